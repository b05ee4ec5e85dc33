"""One test for each defect of the tracker that this project replaces, named for it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otel_tracker import (
    DebugSystemTracker,
    PipelineStage,
    TransactionStatus,
    api,
    get_debug_tracker,
    init_debug_tracker,
)
from otel_tracker.testing import Harness, ManualClock, fresh_tracker

AUDIO_RECEIVED = PipelineStage.AUDIO_RECEIVED
TRANSCRIPTION_STARTED = PipelineStage.TRANSCRIPTION_STARTED
TRANSCRIPTION_COMPLETED = PipelineStage.TRANSCRIPTION_COMPLETED
MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED

TIMEOUT_S = 5.0
"""How long a test waits for another thread; it never takes that long when all is well."""


@pytest.fixture
def t(tmp_path: Path) -> Iterator[Harness]:
    with fresh_tracker(debug_dump_dir=tmp_path) as harness:
        yield harness


def new(t: Harness, user: object = "user-1", client: object = "client-1") -> str:
    return t.tracker.create_transaction(user, client)


def metrics(t: Harness) -> dict[str, Any]:
    found: dict[str, Any] = t.tracker.get_dashboard_data()["system_metrics"]
    return found


def counts(t: Harness) -> tuple[int, int, int, int, int]:
    """Total, active, completed, failed, stalled."""
    m = metrics(t)
    found = (
        m["total_transactions"],
        m["active_transactions"],
        m["completed_transactions"],
        m["failed_transactions"],
        m["stalled_transactions"],
    )
    assert found[0] == sum(found[1:])
    return found


def dump(t: Harness) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(t.tracker.export_debug_dump().read_text())
    return found


# --- counting -------------------------------------------------------------------------------------


def test_repeated_failures_do_not_drive_active_negative(t: Harness) -> None:
    """Five failures of one transaction are one failed transaction, and none active."""
    transaction_id = new(t)
    for attempt in range(5):
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, f"try {attempt}")
        assert counts(t) == (1, 0, 0, 1, 0)


def test_a_failed_transaction_that_ends_counts_once(t: Harness) -> None:
    """The end of a failed transaction leaves it failed, and completes nothing."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model")
    t.tracker.track_event(transaction_id, CONVERSATION_ENDED, True)
    assert counts(t) == (1, 0, 0, 1, 0)
    assert t.status(transaction_id) is TransactionStatus.FAILED


def test_audio_after_the_end_does_not_move_the_stage_back(t: Harness) -> None:
    """Late packets are counted, and move neither stage nor status."""
    transaction_id = new(t)
    t.tracker.track_audio_chunk(transaction_id, 10)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    t.advance(1)
    t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
    t.advance(1)
    t.tracker.track_audio_chunk(transaction_id, 10)
    t.tracker.track_event(transaction_id, AUDIO_RECEIVED, True, chunk_size=10)
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert found.current_stage is CONVERSATION_ENDED
    assert found.status is TransactionStatus.COMPLETED
    assert metrics(t)["total_audio_chunks"] == 3
    t.advance(600)
    assert counts(t) == (1, 0, 1, 0, 0)


def test_the_stalled_counts_of_dashboard_and_metrics_agree(t: Harness) -> None:
    """Dashboard, SystemMetrics and dump show the same stalled count, before and after the sweep."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.clock.advance(61)
    for _ in range(2):
        assert metrics(t)["stalled_transactions"] == 1
        assert t.tracker.metrics.stalled_transactions == 1
        assert dump(t)["system_metrics"]["stalled_transactions"] == 1
        assert len(t.tracker.get_dashboard_data()["stalled"]) == 1
        t.tracker.sweep()


def test_a_stalled_transaction_that_resumes_is_no_longer_stalled(t: Harness) -> None:
    """Progress brings a stalled transaction back, and it can complete."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(61)
    assert t.status(transaction_id) is TransactionStatus.STALLED
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    assert t.status(transaction_id) is TransactionStatus.IN_PROGRESS
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    t.advance(5)
    assert counts(t) == (1, 0, 1, 0, 0)


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [True, False])
def test_transactions_do_not_grow_without_bound(tmp_path: Path, ended: bool) -> None:
    """Of finished and of open transactions a number is kept; the totals count them all."""
    limits: dict[str, Any] = {"recent_transactions": 10, "open_transactions": 20}
    with fresh_tracker(debug_dump_dir=tmp_path, **limits) as t:
        for number in range(300):
            transaction_id = new(t, f"user-{number}")
            if ended:
                t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
        written = dump(t)
        assert len(written["transactions"]) == (10 if ended else 20)
        assert counts(t)[0] == 300
        assert sum(written["health"]["dropped"].values()) >= 280


def test_user_activity_does_not_grow_without_bound(t: Harness) -> None:
    """Beyond ten thousand users the one longest unseen is let go, counted and visible."""
    for number in range(10_100):
        t.tracker.track_websocket_connected(f"user-{number}", f"client-{number}")
        t.tracker.track_websocket_disconnected(f"client-{number}")
    written = dump(t)
    assert len(written["user_activity"]) == 10_000
    assert "user-10099" in written["user_activity"]
    assert "user-0" not in written["user_activity"]
    assert written["health"]["dropped"]["users"] == 100


def test_events_of_one_transaction_do_not_grow_without_bound(t: Harness) -> None:
    """A transaction that retries two thousand times keeps a few hundred events, the newest too."""
    transaction_id = new(t)
    for attempt in range(2_000):
        t.tracker.track_event(transaction_id, MEMORY_STARTED)
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "again", number=attempt)
        t.clock.advance(0.001)
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert 100 <= len(found.events) <= 500
    assert found.events[-1].metadata == {"number": 1_999}
    assert t.tracker.get_dashboard_data()["health"]["dropped"]
    assert counts(t) == (1, 0, 0, 1, 0)


class OpenSpans(SpanProcessor):
    """Counts the spans of a provider that were started and not ended."""

    now = 0

    def on_start(self, span: object, parent_context: object = None) -> None:
        self.now += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.now -= 1


@pytest.mark.parametrize("stages", ["one", "many"])
def test_open_spans_of_one_transaction_do_not_grow_without_bound(t: Harness, stages: str) -> None:
    """Two thousand stages that nobody closes do not hold two thousand spans open."""
    opened = OpenSpans()
    t.provider.add_span_processor(opened)
    transaction_id = new(t)
    for number in range(2_000):
        name = "fetch_started" if stages == "one" else f"fetch {number}_started"
        t.tracker.track_event(transaction_id, name)
    assert opened.now <= 500


@pytest.mark.parametrize("call", ["audio", "progress"])
def test_metadata_that_adds_up_does_not_grow_without_bound(t: Harness, call: str) -> None:
    """Metadata merged over many calls is bounded like that of one call."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    for number in range(2_000):
        extra = {f"key {number}": number}
        if call == "audio":
            t.tracker.track_event(transaction_id, AUDIO_RECEIVED, metadata=extra)
        else:
            t.tracker.track_progress(transaction_id, "memory", **extra)
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert all(len(event.metadata) <= 200 for event in found.events)


# --- dumps ----------------------------------------------------------------------------------------


def test_metadata_that_is_no_json_does_not_break_the_dump(t: Harness, tmp_path: Path) -> None:
    """Objects, bytes, sets, NaN and cycles in metadata still give one whole file of strict JSON."""
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    transaction_id = new(t)
    t.tracker.track_event(
        transaction_id, MEMORY_COMPLETED, True, thing=object(), raw=b"\xff", some={1, 2},
        number=float("nan"), cyclic=cyclic, enum=MEMORY_STARTED, stage={("a", 1): Path("x")},
    )  # fmt: skip
    path = t.tracker.export_debug_dump()
    assert list(tmp_path.iterdir()) == [path]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads(path.read_text(), parse_constant=refuse)
    assert len(written["transactions"][0]["events"][0]["metadata"]) == 7


def test_two_dumps_in_one_second_do_not_overwrite_each_other(t: Harness) -> None:
    """Two dumps at the same moment are two files, each as it was written."""
    new(t)
    first = t.tracker.export_debug_dump()
    new(t)
    second = t.tracker.export_debug_dump()
    assert first != second
    assert [len(json.loads(p.read_text())["transactions"]) for p in (first, second)] == [1, 2]


def test_an_unwritable_dump_directory_does_not_break_the_constructor(tmp_path: Path) -> None:
    """Where dumps cannot be written, all but the dump itself works."""
    file = tmp_path / "a file"
    file.write_text("")
    with fresh_tracker(debug_dump_dir=file / "below") as t:
        transaction_id = new(t)
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "boom")
        assert counts(t) == (1, 0, 0, 1, 0)
        with pytest.raises(OSError, match="DEBUG_DUMP_DIR"):
            t.tracker.export_debug_dump()


# --- monitoring -----------------------------------------------------------------------------------


def test_monitoring_needs_no_running_asyncio_loop() -> None:
    """In a plain script, without any event loop, an issue is told on the tracker's own thread."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    told = threading.Event()
    tracker = DebugSystemTracker(
        TracerProvider(shutdown_on_exit=False), on_issue=lambda _: told.set()
    )
    try:
        transaction_id = tracker.create_transaction("user", "client")
        tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "boom")
        assert told.wait(TIMEOUT_S)
    finally:
        tracker.shutdown()


def test_monitoring_restarts_after_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread could be started, the next transaction tries again."""
    told = threading.Event()
    tracker = DebugSystemTracker(
        TracerProvider(shutdown_on_exit=False), on_issue=lambda _: told.set()
    )

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    try:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            first = tracker.create_transaction("user", "client")
            assert tracker.get_transaction(first) is not None
        second = tracker.create_transaction("user", "client")
        tracker.track_event(second, MEMORY_COMPLETED, False, "boom")
        assert told.wait(TIMEOUT_S)
    finally:
        tracker.shutdown()


def test_monitoring_restarts_after_a_shutdown() -> None:
    """A tracker that was shut down and is used again tells issues again."""
    told = threading.Event()
    tracker = DebugSystemTracker(
        TracerProvider(shutdown_on_exit=False), on_issue=lambda _: told.set()
    )
    tracker.create_transaction("user", "client")
    tracker.shutdown()
    told.clear()
    try:
        transaction_id = tracker.create_transaction("user", "client")
        tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "boom")
        assert told.wait(TIMEOUT_S)
    finally:
        tracker.shutdown()


# --- arguments ------------------------------------------------------------------------------------


def test_track_audio_chunk_does_not_nest_its_metadata(t: Harness) -> None:
    """The chunk's size stands directly in the event's metadata."""
    transaction_id = new(t)
    t.tracker.track_audio_chunk(transaction_id, chunk_size=1024)
    (event,) = dump(t)["transactions"][0]["events"]
    assert event["stage"] == "audio_received"
    assert event["metadata"]["chunk_size"] == 1024
    assert "metadata" not in event["metadata"]


@pytest.mark.parametrize("name", ["stage", "self", "transaction_id", "success", "error_message"])
def test_metadata_named_like_an_argument_is_no_type_error(t: Harness, name: str) -> None:
    """A keyword that a position has filled, or that is called self, is metadata."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True, None, **{name: "theirs"})
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert found.events[0].metadata == {name: "theirs"}
    assert found.events[0].success is True


def test_two_connections_of_one_client_are_two(t: Harness) -> None:
    """Of two connections with one client_id one closes, and one is left."""
    for expected in (1, 2):
        t.tracker.track_websocket_connected("user", "client")
        assert metrics(t)["active_websockets"] == expected
    for expected in (1, 0, 0):
        t.tracker.track_websocket_disconnected("client")
        assert metrics(t)["active_websockets"] == expected


def test_user_id_none_does_not_break_the_dashboard(t: Harness) -> None:
    """A transaction of nobody shows on the dashboard, with every read still answering."""
    transaction_id = new(t, None, None)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "boom")
    data = t.tracker.get_dashboard_data()
    assert data["recent_transactions"][0]["user_id"] == ""
    assert data["recent_issues"][0]["transaction_id"] == transaction_id
    assert t.tracker.get_recent_transactions()[0]["id"] == transaction_id
    assert dump(t)["transactions"][0]["transaction_id"] == transaction_id


# --- the shared tracker ---------------------------------------------------------------------------


def test_get_debug_tracker_makes_one_instance_however_many_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one thread is in the constructor no other one gets in, and all get the same tracker."""
    both_inside = threading.Barrier(2)
    made: list[object] = []

    class Slow(DebugSystemTracker):
        def __init__(self, **options: Any) -> None:
            made.append(self)
            with contextlib.suppress(threading.BrokenBarrierError):
                both_inside.wait(0.3)
            super().__init__(TracerProvider(shutdown_on_exit=False))

    monkeypatch.setattr(api, "DebugSystemTracker", Slow)
    before = api.replace_shared(None)
    got: list[DebugSystemTracker] = []
    threads = [threading.Thread(target=lambda: got.append(get_debug_tracker())) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    finally:
        api.replace_shared(before)
    assert len(made) == 1
    assert len(got) == 8
    assert all(tracker is made[0] for tracker in got)


def test_init_after_get_keeps_the_data() -> None:
    """init_debug_tracker after the first use changes options and keeps everything tracked."""
    with fresh_tracker(use_as_shared=True) as t:
        transaction_id = get_debug_tracker().create_transaction("user", "client")
        assert init_debug_tracker(stall_after=5) is t.tracker
        assert get_debug_tracker().get_transaction(transaction_id) is not None
        get_debug_tracker().track_event(transaction_id, MEMORY_STARTED)
        t.advance(5)
        assert t.status(transaction_id) is TransactionStatus.STALLED
        init_debug_tracker()
        assert t.status(transaction_id) is TransactionStatus.STALLED


def test_callers_get_no_live_objects(t: Harness) -> None:
    """What a caller got does not follow the tracker, and changing it changes nothing."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_STARTED, shared={"a": 1})
    copy = t.tracker.get_transaction(transaction_id)
    assert copy is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.status = TransactionStatus.COMPLETED  # type: ignore[misc]
    copy.events[0].metadata["shared"]["a"] = 2
    data = t.tracker.get_dashboard_data()
    data["recent_transactions"].clear()
    data["system_metrics"]["total_transactions"] = 99
    again = t.tracker.get_transaction(transaction_id)
    assert again is not None
    assert again.status is TransactionStatus.IN_PROGRESS
    assert again.events[0].metadata == {"shared": {"a": 1}}
    assert len(t.tracker.get_dashboard_data()["recent_transactions"]) == 1
    assert metrics(t)["total_transactions"] == 1


# --- issues, clocks, cost -------------------------------------------------------------------------


def test_one_looping_failure_does_not_flood_the_issues(t: Harness) -> None:
    """Two hundred transactions that fail alike do not push out the one that failed differently."""
    odd = new(t)
    t.tracker.track_event(odd, TRANSCRIPTION_COMPLETED, False, "disk full")
    looping = new(t)
    for _ in range(100):
        t.advance(1)
        t.tracker.track_event(looping, MEMORY_COMPLETED, False, "Ollama connection timeout")
    issues = dump(t)["recent_issues"]
    assert [row["transaction_id"] for row in issues] == [odd, looping]
    for number in range(200):
        t.advance(1)
        t.tracker.track_event(new(t), MEMORY_COMPLETED, False, f"Ollama timeout after {number} s")
    issues = dump(t)["recent_issues"]
    assert len(issues) == 50
    assert [row["issue"] for row in issues if row["transaction_id"] == odd] == [
        "Failed at transcription_completed: disk full"
    ]
    patterns = {p["pattern"]: p["count"] for p in t.tracker.get_dashboard_data()["issue_patterns"]}
    assert patterns["Failed at memory_completed: Ollama timeout after <n> s"] == 200
    assert patterns["Failed at transcription_completed: disk full"] == 1


@pytest.mark.parametrize("step_s", [3_600.0, -3_600.0])
def test_a_step_of_the_wall_clock_stalls_nothing(t: Harness, step_s: float) -> None:
    """Setting the wall clock neither makes stalls nor hides them: silence is monotonic."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.clock.step_wall(step_s)
    t.tracker.sweep()
    assert counts(t) == (1, 1, 0, 0, 0)
    t.advance(59)
    assert counts(t) == (1, 1, 0, 0, 0)
    t.advance(1)
    assert counts(t) == (1, 0, 0, 0, 1)
    assert metrics(t)["uptime_hours"] == pytest.approx(60 / 3600)


class Calls:
    """Counts the Python calls that a block makes: work, without a stopwatch."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _profile(self, _frame: FrameType, event: str, _arg: object) -> None:
        self.count += event in ("call", "c_call")


@pytest.mark.parametrize("state", ["open", "finished", "failed", "stalled"])
def test_the_dashboard_costs_the_same_after_many_transactions(t: Harness, state: str) -> None:
    """A read after 4,000 transactions does no more work than one after 200."""

    def track(count: int) -> int:
        for _ in range(count):
            transaction_id = new(t)
            t.tracker.track_event(transaction_id, MEMORY_STARTED)
            if state == "finished":
                t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
            elif state == "failed":
                t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model")
        if state == "stalled":
            t.advance(61)
        t.tracker.get_dashboard_data()
        with Calls() as calls:
            t.tracker.get_dashboard_data()
        return calls.count

    after_few = track(200)
    after_many = track(3_800)
    assert metrics(t)["total_transactions"] == 4_000
    assert after_many <= after_few * 1.1 + 20


# --- the paragraph below the list -----------------------------------------------------------------


def test_a_good_run_without_end_is_not_stalled(t: Harness) -> None:
    """Callers send neither CONVERSATION_ENDED nor TRANSCRIPTION_COMPLETED; a good run is done."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, AUDIO_RECEIVED)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(3)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(4)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True, memory_count=2)
    t.advance(600)
    assert counts(t) == (1, 0, 1, 0, 0)
    assert t.issue(transaction_id) is None


def test_the_route_of_recent_transactions_answers(t: Harness) -> None:
    """get_recent_transactions, which the old tracker never had, gives rows that JSON takes."""
    transaction_id = new(t)
    rows = t.tracker.get_recent_transactions(limit=10)
    assert len(rows) == 1
    assert json.loads(json.dumps(rows, allow_nan=False))[0]["id"] == transaction_id


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_worker_starts_empty_and_leaves_the_parent_whole(t: Harness) -> None:
    """A forked child counts nothing of its parent's, and the parent loses nothing by it."""
    new(t)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            total = metrics(t)["total_transactions"]
            new(t)
            os.write(writer, f"{total} {metrics(t)['total_transactions']}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"0 1"
    os.waitpid(child, 0)
    assert counts(t)[0] == 1


def test_a_step_of_the_wall_clock_leaves_durations_alone() -> None:
    """A stage that runs through a step of the wall clock has the length that it took."""
    clock = ManualClock()
    with fresh_tracker() as t:
        assert t.clock.time_ns() == clock.time_ns()
        transaction_id = new(t)
        t.tracker.track_event(transaction_id, MEMORY_STARTED)
        t.clock.advance(2)
        t.clock.step_wall(-3_600)
        t.clock.advance(2)
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED)
        assert t.tracker.get_dashboard_data()["stages"]["memory"]["p50"] == 4.0
        (span,) = [s for s in t.spans() if s["name"] == "memory"]
        assert span["end"] - span["start"] == 4.0
