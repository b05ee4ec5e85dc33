"""A web process and three workers, a thousand transactions, one dashboard service."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest

from tests.engines import Collector, engines_or_skip, free_port, until
from tests.test_dashboard_processes import dashboard, get
from tests.test_publisher import process

pytestmark = pytest.mark.timeout(180)

COUNT: Final = 1_000
WORKERS: Final = 3

WEB: Final = f"""
import time
tracker = get_debug_tracker()
for number in range({COUNT}):
    who = f"user-{{number % 7}}", f"client-{{number % 20}}", f"conv-{{number}}"
    tid = tracker.create_transaction(*who)
    for _ in range(3):
        tracker.track_audio_chunk(tid, 320)
    tracker.track_queued(tid, "transcription")
    tracker.hand_over(tid)
    sys.stdout.write(json.dumps([number, tid]) + "\\n")
    sys.stdout.flush()
    time.sleep(PAUSE)
shutdown_debug_tracker()
"""
"""Audio comes in here, and the work is done elsewhere."""

WORKER: Final = """
tracker = get_debug_tracker()
for line in sys.stdin:
    if line == "end\\n":
        break
    number, tid = json.loads(line)
    tracker.track_event(tid, PipelineStage.TRANSCRIPTION_STARTED)
    if number % 10 == 7:
        tracker.track_event(
            tid, PipelineStage.TRANSCRIPTION_COMPLETED, False, error_message="no model"
        )
        did = "failed"
    elif number % 10 == 8:
        tracker.track_skipped(tid, "transcription", "nothing was said")
        did = "skipped"
    else:
        tracker.track_event(tid, PipelineStage.TRANSCRIPTION_COMPLETED)
        tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
        if number % 10 == 3:  # a retry makes up for it
            tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, False, error_message="locked")
            tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
        tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED)
        did = "remembered"
    sys.stdout.write(json.dumps(did) + "\\n")
    sys.stdout.flush()
shutdown_debug_tracker()
"""
BEGIN: Final = """
from otel_tracker import PipelineStage, get_debug_tracker, shutdown_debug_tracker
"""


@dataclass
class Fleet:
    """The processes, and what they say that they did."""

    web: subprocess.Popen[str]
    workers: list[subprocess.Popen[str]]
    did: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Passes each recording to the next worker, in turn: the queue between them."""
        readers = [threading.Thread(target=self._listen, args=(one,)) for one in self.workers]
        for reader in readers:
            reader.start()
        assert self.web.stdout is not None
        for number, line in enumerate(self.web.stdout):
            stdin = self.workers[number % WORKERS].stdin
            assert stdin is not None
            stdin.write(line)
            stdin.flush()
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write("end\n")
            worker.stdin.flush()
        for reader in readers:
            reader.join(60)
        for one in (self.web, *self.workers):
            assert one.wait(30) == 0

    def _listen(self, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self.did[json.loads(line)] += 1


@contextmanager
def fleet(
    url: str, pause_s: float = 0.0, env: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Fleet]:
    web = BEGIN + WEB.replace("PAUSE", str(pause_s))
    with ExitStack() as stack:
        names = [{"OTEL_SERVICE_NAME": name, **env} for name in ("notes-web", "notes-worker")]
        made = stack.enter_context(process(web, url, **names[0]))
        workers = [
            stack.enter_context(process(BEGIN + WORKER, url, **names[1])) for _ in range(WORKERS)
        ]
        yield Fleet(made, workers)


def figures(url: str) -> dict[str, Any]:
    """What the service counted."""
    data = get(f"{url}/api/dashboard")
    system = data["system_metrics"]
    return {
        "total": system["total_transactions"],
        "active": system["active_transactions"],
        "completed": system["completed_transactions"],
        "failed": system["failed_transactions"],
        "stalled": system["stalled_transactions"],
        "chunks": system["total_audio_chunks"],
        "transcriptions": system["total_transcriptions"],
        "memories": system["total_memories"],
        "skipped": data["stages"].get("transcription", {}).get("skipped", 0),
        "retried": data["stages"].get("memory", {}).get("failed", 0),
        "users": data["active_users"],
    }


def expected(did: Counter[str]) -> dict[str, Any]:
    """The sum of what the processes did, as they said it."""
    assert sum(did.values()) == COUNT
    return {
        "total": COUNT,
        "active": 0,
        "completed": did["remembered"] + did["skipped"],
        "failed": did["failed"],
        "stalled": 0,
        "chunks": 3 * COUNT,
        "transcriptions": did["remembered"],
        "memories": did["remembered"],
        "skipped": did["skipped"],
        "retried": COUNT // 10,
        "users": 7,
    }


def has_seen(url: str, count: int) -> bool:
    return bool(figures(url)["total"] >= count)


def settled(url: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """The figures, once they are what is wanted, or what they are when time is over."""

    def is_so() -> bool:
        return figures(url) == wanted

    try:
        until("the figures", is_so, 45)
    except AssertionError:
        return figures(url)
    return wanted


def test_three_workers_and_a_web_process_are_one_set_of_figures(tmp_path: Path) -> None:
    """Equal to the sum of what they did, over a thousand transactions."""
    with dashboard(tmp_path, free_port()) as (url, _), fleet(url) as one:
        one.run()
        wanted = expected(one.did)
        assert settled(url, wanted) == wanted
        assert get(f"{url}/api/health")["dropped"] == {}
        recordings = get(f"{url}/api/recordings?limit=1")
        assert recordings["matched"] == COUNT


def test_a_service_that_is_killed_and_restarted_under_load_shows_the_same(tmp_path: Path) -> None:
    """Twice, by SIGKILL, in the middle of the work; nobody who works is held up or loses a span."""
    port = free_port()
    with ExitStack() as stack, fleet(f"http://127.0.0.1:{port}", pause_s=0.008) as one:
        running = threading.Thread(target=one.run, daemon=True)
        for wave in (200, 500):
            with dashboard(tmp_path, port) as (url, service):
                if not running.is_alive():
                    running.start()
                until("some of it", partial(has_seen, url, wave), 60)
                service.kill()
                service.wait()
        url, _ = stack.enter_context(dashboard(tmp_path, port))
        running.join(90)
        wanted = expected(one.did)
        assert settled(url, wanted) == wanted


def test_a_collector_or_both_ways_show_the_same_figures(tmp_path: Path) -> None:
    """Whether processes send to the service, to a Collector in front of it, or to both."""
    engines_or_skip()
    seen = []
    for name, direct, collected in (("collector", False, True), ("both", True, True)):
        path = tmp_path / name
        path.mkdir()
        port = free_port()
        with (
            dashboard(path / "journal", port) as (url, _),
            Collector(path, env={"OTEL_TRACKER_URL": f"http://127.0.0.1:{port}"}) as collector,
            fleet(
                url if direct else "",
                env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_url} if collected else {},
            ) as one,
        ):
            one.run()
            wanted = expected(one.did)
            seen.append(settled(url, wanted) == wanted or figures(url))
    assert seen == [True, True]
