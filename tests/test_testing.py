"""`otel_tracker.testing`: what a user's own tests stand on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_tracker import (
    DebugSystemTracker,
    Pipeline,
    PipelineStage,
    TransactionStatus,
    api,
    get_debug_tracker,
)
from otel_tracker.ids import new_trace_id
from otel_tracker.model import NS_PER_S
from otel_tracker.testing import START_NS, ManualClock, fresh_tracker

MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED


def test_the_example_of_its_documentation() -> None:
    """A pipeline that hangs is seen to stall after the limit, in no time."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, PipelineStage.TRANSCRIPTION_STARTED)
        t.clock.advance(61)
        assert t.status(tid) is TransactionStatus.STALLED
        t.tracker.track_event(tid, PipelineStage.TRANSCRIPTION_COMPLETED)
        assert [s["name"] for s in t.spans()] == ["transcription"]


def test_every_tracker_is_fresh() -> None:
    """Nothing of one block is in the next, nor in one beside it."""
    with fresh_tracker() as first, fresh_tracker() as beside:
        tid = first.tracker.create_transaction("user", "client")
        first.tracker.track_event(tid, CONVERSATION_ENDED)
        assert beside.tracker.get_recent_transactions() == []
        assert beside.spans() == []
        assert beside.status(tid) is None
        assert beside.issue(tid) is None
    with fresh_tracker() as second:
        assert second.tracker.get_recent_transactions() == []
        assert second.spans() == []
        assert second.clock.time_ns() == START_NS


def test_nothing_is_global(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread runs, no provider is set, the shared tracker is not made, nothing is written."""
    monkeypatch.chdir(tmp_path)
    shared, provider = api._shared, trace.get_tracer_provider()
    threads = set(threading.enumerate())
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, MEMORY_COMPLETED, False, "boom")
        t.advance(61)
        assert set(threading.enumerate()) <= threads  # others may have ended meanwhile
        assert trace.get_tracer_provider() is provider
        assert api._shared is shared
    assert set(threading.enumerate()) <= threads
    assert list(tmp_path.iterdir()) == []


def test_use_as_shared_lasts_as_long_as_its_block() -> None:
    """Code under test finds it by `get_debug_tracker()`; afterwards the one before is back."""
    before = api._shared
    with fresh_tracker(use_as_shared=True) as outer:
        assert get_debug_tracker() is outer.tracker
        with fresh_tracker(use_as_shared=True) as inner:
            assert get_debug_tracker() is inner.tracker
            with fresh_tracker():
                assert get_debug_tracker() is inner.tracker
        assert get_debug_tracker() is outer.tracker
    assert api._shared is before


def test_use_as_shared_ends_with_an_error_too() -> None:
    """A test that fails does not leave its tracker to the next one."""
    before = api._shared
    with pytest.raises(ValueError, match="under test"), fresh_tracker(use_as_shared=True):
        raise ValueError("under test")
    assert api._shared is before


def test_the_clocks_move_by_the_test_alone() -> None:
    """Both together when time passes; the wall clock alone when it is set."""
    clock = ManualClock()
    assert clock.time_ns() == START_NS
    wall, monotonic = clock.time_ns(), clock.monotonic_ns()
    clock.advance(1.5)
    assert clock.time_ns() - wall == clock.monotonic_ns() - monotonic == 1.5 * NS_PER_S
    clock.step_wall(-3600)
    assert clock.time_ns() == wall + 1.5 * NS_PER_S - 3600 * NS_PER_S
    assert clock.monotonic_ns() - monotonic == 1.5 * NS_PER_S


def test_ages_go_by_the_clock_that_cannot_be_set() -> None:
    """A step of the wall clock, forward or back, stalls nothing and bends no duration."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.step_wall(7200)
        t.advance(59)
        assert t.status(tid) is TransactionStatus.IN_PROGRESS
        t.clock.step_wall(-14_400)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        [memory] = t.spans()
        assert memory["end"] - memory["start"] == pytest.approx(59)


def test_advance_is_a_sweep_too() -> None:
    """Time passes and what the tracker's thread would tell is told; a clock alone tells nothing."""
    told: list[str] = []
    with fresh_tracker(on_stall=lambda stall: told.append(stall["stage"])) as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(61)
        assert (t.status(tid), told) == (TransactionStatus.STALLED, [])
        assert t.spans() == []
        t.advance(0)
        assert told == ["memory"]
        assert [s["name"] for s in t.spans()] == ["audio_pipeline", "memory stalled"]


def test_spans_are_plain_data_in_the_order_of_their_start() -> None:
    """Names for parents, seconds for times, plain dicts; `finished_spans` has the SDK's own."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        assert [(s["name"], s["parent"]) for s in t.spans()] == [("memory", "?")]
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        assert [s.name for s in t.finished_spans()] == ["memory", "audio_pipeline"]
        root, memory = t.spans()
        assert (root["name"], root["parent"], root["kind"]) == ("audio_pipeline", None, "SERVER")
        assert (memory["parent"], memory["start"], memory["end"]) == ("audio_pipeline", 1.0, 2.0)
        assert set(root) == {
            "name", "parent", "kind", "start", "end", "status", "description", "attributes",
            "events", "links",
        }  # fmt: skip
        assert type(memory["attributes"]) is dict


def test_options_pipelines_and_samplers_are_the_trackers() -> None:
    """What `init_debug_tracker` takes, `fresh_tracker` takes; a wrong name is an error at once."""
    pipeline = Pipeline("own", ("fetch", "store"), {"fetch": 5})
    with fresh_tracker(sampler=ALWAYS_OFF, pipeline=pipeline, settle=1) as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, "fetch_started")
        t.advance(5)
        assert t.status(tid) is TransactionStatus.STALLED
        assert t.issue(tid) == f"Transaction {tid[:8]} stalled after fetch_started"
        assert t.spans() == []
        assert t.tracker.settings.settle == 1
    with pytest.raises(TypeError, match="settle"), fresh_tracker(setle=1):
        pass


def test_status_and_issue_of_what_was_never_seen() -> None:
    """None, not an error."""
    with fresh_tracker() as t:
        for unknown in ("", "no id", f"{new_trace_id():032x}"):
            assert t.status(unknown) is None
            assert t.issue(unknown) is None


def test_a_block_ends_what_is_open() -> None:
    """Its spans can still be looked at after it; nothing stays open behind it."""
    with fresh_tracker() as t:
        t.tracker.track_event(t.tracker.create_transaction("u", "c"), MEMORY_STARTED)
    assert {s["attributes"].get("otel_tracker.stage.outcome") for s in t.spans()} == {
        None,
        "interrupted",
    }
    assert t.tracker.get_dashboard_data()["stages"]["memory"]["running"] == 0


def test_an_independent_tracker_needs_no_arguments() -> None:
    """`DebugSystemTracker()` answers by itself, with the real clocks and no export."""
    tracker = DebugSystemTracker()
    try:
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, CONVERSATION_ENDED)
        found = tracker.get_transaction(tid)
        assert found is not None
        assert found.status is TransactionStatus.COMPLETED
        assert tracker is not api._shared
    finally:
        tracker.shutdown()
