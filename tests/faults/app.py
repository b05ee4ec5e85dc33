"""An application under the tracker, which a fault test lets run into trouble.

``python app.py '{"transactions": 200, "stages": 49}'`` makes so many transactions of so many stages
(one span each, and the root), then does what ``end`` says, and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from otel_tracker import get_debug_tracker, shutdown_debug_tracker, stage, transaction


def say(**what: Any) -> None:
    """One line for whoever reads, at once."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def work(transactions: int, stages: int, pause_s: float = 0.0) -> list[str]:
    """The ids of the transactions that ended."""
    ids = []
    for _ in range(transactions):
        with transaction(user_id="user", client_id="client") as tx:
            for number in range(stages):
                with stage(f"step_{number % 10}"):
                    pass
        ids.append(tx.id)
        if pause_s:
            say(id=tx.id, at=time.time())
            time.sleep(pause_s)
    return ids


def exporter() -> dict[str, Any]:
    """What health says of our exporter."""
    exporters = get_debug_tracker().get_dashboard_data()["health"]["export"]["exporters"]
    state: dict[str, Any] = exporters["otlp"]
    return state


def wait_until_sent() -> None:
    """Until all that waited has left, or half a minute is over."""
    deadline = time.monotonic() + 30
    while exporter()["waiting"] and time.monotonic() < deadline:
        time.sleep(0.05)


def wait_for(line: str) -> None:
    """Until the test writes `line`."""
    for told in sys.stdin:
        if told.strip() == line:
            return


def children(count: int, transactions: int, stages: int) -> list[list[str]]:
    """Ids of the transactions that forked children made, each flushed before the child is gone."""
    pipes = []
    for _ in range(count):
        read, write = os.pipe()
        if os.fork() == 0:
            ids = work(transactions, stages)
            is_sent = get_debug_tracker().force_flush(20_000)
            os.write(write, json.dumps(ids if is_sent else []).encode())
            os._exit(0)
        os.close(write)
        pipes.append(read)
    made = []
    for read in pipes:
        with os.fdopen(read) as pipe:
            made.append(json.load(pipe))
        os.wait()
    return made


def main() -> None:
    options = json.loads(sys.argv[1])
    transactions, stages = options.get("transactions", 1), options.get("stages", 3)
    end = options.get("end", "exit")
    if end == "sigterm":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    if options.get("fork"):
        parent = work(transactions, stages)
        forked = children(options["fork"], transactions, stages)
        say(ids=[*parent, *(one for ids in forked for one in ids)])
        return
    if options.get("rounds"):
        # A round more whenever the test says so.
        for number in range(options["rounds"]):
            started = time.monotonic()
            ids = work(transactions, stages)
            say(ids=ids, took=time.monotonic() - started, round=number, state=exporter())
            wait_for("go")
        wait_until_sent()
    else:
        started = time.monotonic()
        ids = work(transactions, stages, options.get("pause_s", 0.0))
        say(ids=ids, took=time.monotonic() - started, state=exporter())
    if end in ("wait", "sigterm", "sigkill"):
        with transaction(user_id="left open", client_id="client") as tx, stage("hangs"):
            say(open=tx.id)
            threading.Event().wait(60)
    elif end == "os._exit":
        os._exit(0)
    elif end == "flush, os._exit":
        say(is_sent=get_debug_tracker().force_flush(10_000), state=exporter())
        os._exit(0)
    elif end == "shutdown":
        started = time.monotonic()
        shutdown_debug_tracker()
        say(took=time.monotonic() - started, state=exporter())


if __name__ == "__main__":
    main()
