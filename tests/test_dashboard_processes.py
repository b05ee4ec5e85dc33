"""The dashboard service as it runs: real processes feed it, die, and it restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engines import Collector, engines_or_skip, free_port, until
from tests.otlp import ROOT
from tests.test_publisher import ends, go_on, process, says

pytestmark = pytest.mark.timeout(180)  # three beats take fifteen seconds

WORK: Final = """
for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 50):
    try:
        with transaction("notes", user_id=f"user-{number % 7}"):
            with stage("transcription"):
                pass
            with stage("memory"):
                if number % 10 == 3:
                    raise RuntimeError("no space left")
    except RuntimeError:
        pass
"""
EACH: Final = 50
FAILED: Final = 5


@contextmanager
def dashboard(path: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`otel-tracker dashboard`, as soon as it listens; killed at the end."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    made = subprocess.Popen(
        [sys.executable, "-m", "otel_tracker", "dashboard", "--no-page", "--port", str(port)],
        env={**clean, "OTEL_TRACKER_JOURNAL_DIR": str(path)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert made.stdout is not None
        assert "is kept in" in made.stdout.readline()
        assert "listens at" in made.stdout.readline()
        yield f"http://127.0.0.1:{port}", made
    finally:
        made.kill()
        made.communicate()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
        return json.load(answer)


def totals(url: str) -> dict[str, int]:
    metrics = get(f"{url}/api/dashboard")["system_metrics"]
    return {
        name: metrics[f"{name}_transactions"]
        for name in ("total", "active", "completed", "failed", "stalled")
    } | {"memories": metrics["total_memories"]}


DONE: Final = {
    "total": 4 * EACH,
    "active": 0,
    "completed": 4 * (EACH - FAILED),
    "failed": 4 * FAILED,
    "stalled": 0,
    "memories": 4 * (EACH - FAILED),
}


def test_four_processes_are_one_set_of_figures_also_after_a_kill_of_the_service(
    tmp_path: Path,
) -> None:
    """Equal to the sum of what they did; killed and started again, it shows the same."""
    port = free_port()
    with dashboard(tmp_path, port) as (url, _):
        for _ in range(2):
            with process(WORK, url) as one, process(WORK, url) as other:
                ends(one)
                ends(other)
        until("all of it", lambda: totals(url) == DONE)
        before = get(f"{url}/api/transactions?limit=500")["transactions"]
        assert len(before) == 4 * EACH
    with dashboard(tmp_path, port) as (url, _):
        assert totals(url) == DONE
        after = get(f"{url}/api/transactions?limit=500")["transactions"]
        assert {row["id"]: row["status"] for row in after} == {
            row["id"]: row["status"] for row in before
        }


def test_a_worker_that_is_killed_is_lost_and_named(tmp_path: Path) -> None:
    """Its long job is seen within 5 s of its start, and its loss told after three beats."""
    code = """
    with transaction("notes", user_id="alice") as tx, stage("memory"):
        say(tx.id)
        wait()
    """
    with dashboard(tmp_path, free_port()) as (url, _), process(code, url) as worker:
        transaction_id = says(worker)
        seen = until(
            "the open job",
            lambda: [
                row
                for row in get(f"{url}/api/transactions")["transactions"]
                if row["id"] == transaction_id and row["current_stage"] == "memory_started"
            ],
            timeout_s=5,
        )
        assert seen[0]["status"] == "in_progress"
        until("its beat", lambda: get(f"{url}/api/workers")["workers"], timeout_s=10)
        worker.send_signal(signal.SIGKILL)
        row = until(
            "its loss",
            lambda: [
                row
                for row in get(f"{url}/api/dashboard")["stalled"]
                if "Worker lost in memory: notes-worker" in (row["issue"] or "")
            ],
            timeout_s=25,
        )[0]
        assert f"process {worker.pid}" in row["issue"]
        assert totals(url)["stalled"] == 1


def test_what_waits_in_a_queue_is_seen_before_any_worker_takes_it(tmp_path: Path) -> None:
    """Its sender tells it at once; once it is taken it stands there as one wait that is over."""
    send = """
    with transaction("notes", user_id="alice") as tx:
        tx.queued("memory")
        carried = tx.carrier()
    say([tx.id, carried])
    wait()
    """
    take = """
    with transaction(carrier=json.loads(sys.stdin.readline())), stage("memory"):
        say("taken")
        wait()
    """
    with dashboard(tmp_path, free_port()) as (url, _), process(send, url) as sender:
        transaction_id, carried = says(sender)
        (row,) = until("the wait", lambda: get(f"{url}/api/dashboard")["waiting"], 5)
        assert (row["transaction_id"], row["stage"]) == (transaction_id, "memory")
        with process(take, url) as worker:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(carried) + "\n")
            worker.stdin.flush()
            assert says(worker) == "taken"
            until("its end", lambda: not get(f"{url}/api/dashboard")["waiting"], 5)
            (wait,) = get(f"{url}/api/transactions/{transaction_id}")["waits"]
            assert not wait["waiting"]
            assert wait["until"] is not None
            assert 0 < wait["seconds"] < 60


def test_a_service_that_restarts_under_work_learns_what_is_open(tmp_path: Path) -> None:
    """The job began before and ends after; nothing of it is missing."""
    port = free_port()
    code = """
    with transaction("notes", user_id="alice") as tx, stage("memory"):
        say(tx.id)
        wait()
    """
    with process(code, f"http://127.0.0.1:{port}") as worker:
        transaction_id = says(worker)
        with dashboard(tmp_path / "first", port) as (url, _):
            until("the open job", lambda: totals(url)["active"] == 1, timeout_s=15)
        # Another journal: all that it can know, it is told anew.
        with dashboard(tmp_path / "second", port) as (url, _):
            until("the open job again", lambda: totals(url)["active"] == 1, timeout_s=20)
            go_on(worker)
            ends(worker)
            until("its end", lambda: totals(url)["completed"] == 1)
            one = get(f"{url}/api/transactions/{transaction_id}")
            assert one["id"] == transaction_id


def test_fed_directly_by_a_collector_and_by_both_it_shows_the_same(tmp_path: Path) -> None:
    """For finished work any mix of the two ways in, with repeats, is the same."""
    engines_or_skip()
    port = free_port()
    (tmp_path / "collector").mkdir()
    env = {"OTEL_TRACKER_URL": f"http://127.0.0.1:{port}"}
    with (
        dashboard(tmp_path, port) as (url, _),
        Collector(tmp_path / "collector", env=env) as collector,
    ):
        for to_service, to_collector in (("", True), (url, False), (url, True), (url, True)):
            endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_url} if to_collector else {}
            with process(WORK, to_service, **endpoint) as one:
                ends(one)
        until("all of it", lambda: totals(url) == DONE, timeout_s=20)
