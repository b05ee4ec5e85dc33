"""The spans are the record: what was exported, replayed, gives what the live dashboard showed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.trace import StatusCode

from otel_tracker import PipelineStage, Transaction, semconv, views
from otel_tracker.ids import parse_id
from otel_tracker.state import State
from otel_tracker.testing import START_NS, Harness, fresh_tracker
from tests.facts import MONOTONIC_NS

AUDIO = PipelineStage.AUDIO_RECEIVED
TRANSCRIPTION_STARTED = PipelineStage.TRANSCRIPTION_STARTED
TRANSCRIPTION_COMPLETED = PipelineStage.TRANSCRIPTION_COMPLETED
MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED


def replay(t: Harness) -> State:
    """Only the exported spans, folded anew and judged at the same moment."""
    state = State()
    for span in t.finished_spans():
        context = span.get_span_context()
        assert context is not None
        assert span.start_time is not None
        assert span.end_time is not None
        fact = semconv.read_fact(
            span.attributes or {},
            trace_id=context.trace_id,
            span_id=context.span_id,
            parent_id=0 if span.parent is None else span.parent.span_id,
            start_ns=span.start_time,
            end_ns=span.end_time,
            seen_ns=span.end_time - START_NS + MONOTONIC_NS,
            error=span.status.description or "",
            failed=span.status.status_code is StatusCode.ERROR,
        )
        assert fact is not None, span.name
        state.apply(fact)
    state.advance(t.clock.monotonic_ns(), t.clock.time_ns())
    return state


def live(t: Harness, tid: str) -> dict[str, Any]:
    """What the dashboard that saw it happen shows."""
    transaction = t.tracker.get_transaction(tid)
    assert transaction is not None
    return _shown(transaction, t.tracker.get_dashboard_data())


def replayed(t: Harness, tid: str) -> dict[str, Any]:
    """What a dashboard that only has the exported spans shows."""
    state = replay(t)
    now = views.Now(t.clock.monotonic_ns(), t.clock.time_ns(), MONOTONIC_NS, START_NS)
    trace_id = parse_id(tid)
    assert trace_id is not None
    return _shown(views.transaction(state.transactions[trace_id]), views.dashboard(state, now))


def _shown(transaction: Transaction, data: dict[str, Any]) -> dict[str, Any]:
    metrics = data["system_metrics"]
    return {
        "status": transaction.status.value,
        "issue": transaction.issue,
        "current_stage": data["recent_transactions"][-1]["current_stage"],
        "who": (transaction.user_id, transaction.client_id, transaction.conversation_id),
        "pipeline": transaction.pipeline,
        "created_at": transaction.created_at,
        "events": [(e.stage.value, e.timestamp, e.success) for e in transaction.events],
        "issues": [(i["issue"], i["resolved"]) for i in data["recent_issues"]],
        "stages": data["stages"],
        "metrics": {key: metrics[key] for key in metrics if key != "uptime_hours"},
    }


# --- runs as real callers make them ---------------------------------------------------------------

Run = Callable[[Harness], str]


def begin(t: Harness) -> str:
    tid = t.tracker.create_transaction("user-1", "client-1", "talk-1")
    t.clock.advance(1)
    return tid


def good(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, AUDIO, chunk_size=100)
    t.tracker.track_audio_chunk(tid, 50)
    for event in (
        TRANSCRIPTION_STARTED, TRANSCRIPTION_COMPLETED, MEMORY_STARTED, MEMORY_COMPLETED,
    ):  # fmt: skip
        t.clock.advance(1)
        t.tracker.track_event(tid, event)
    t.clock.advance(1)
    t.tracker.track_event(tid, CONVERSATION_ENDED)
    return tid


def never_ended(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_audio_chunk(tid, 50)
    t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_COMPLETED)
    return tid


def memory_failed(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_COMPLETED, False, "no space")
    return tid


def memory_failed_after_the_end(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED)
    t.tracker.track_event(tid, CONVERSATION_ENDED)
    t.clock.advance(10)
    t.tracker.track_event(tid, MEMORY_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_COMPLETED, False, "no space")
    return tid


def retried(t: Harness) -> str:
    tid = begin(t)
    for success in (False, False, True):
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED, success, "" if success else "busy")
    return tid


def start_failed(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_STARTED, False, "no model")
    return tid


def skipped(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
    t.clock.advance(1)
    t.tracker.track_skipped(tid, "transcription", "nobody spoke")
    return tid


def queued(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED)
    t.tracker.track_queued(tid, "memory")
    t.clock.advance(100)
    t.tracker.track_event(tid, MEMORY_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_COMPLETED)
    return tid


def stalled_and_recovered(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, MEMORY_STARTED)
    t.advance(70)
    t.tracker.track_progress(tid)
    t.advance(1)
    t.tracker.track_event(tid, MEMORY_COMPLETED)
    return tid


def left_open(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, MEMORY_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, MEMORY_COMPLETED)
    return tid


def ended_as_a_failure(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, CONVERSATION_ENDED, False, "hung up")
    return tid


def only_audio(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_audio_chunk(tid, 50)
    return tid


def transcription_only(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
    t.clock.advance(1)
    t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED)
    return tid


def memory_session(t: Harness) -> str:
    sid = t.tracker.start_memory_session("audio-1", "client-1", "user-1")
    t.tracker.start_memory_processing(sid)
    t.clock.advance(1)
    t.tracker.add_extraction_attempt(sid, "audio-1", "first", False, "no JSON", 250.0)
    t.tracker.add_memory_extraction(sid, "audio-1", "mem-1", "text")
    t.clock.advance(1)
    t.tracker.complete_memory_processing(sid, True)
    return sid


def interrupted(t: Harness) -> str:
    tid = begin(t)
    t.tracker.track_audio_chunk(tid, 50)
    t.tracker.track_event(tid, MEMORY_STARTED)
    t.clock.advance(1)
    t.tracker.shutdown()
    return tid


RUNS = [
    good, never_ended, memory_failed, memory_failed_after_the_end, retried, start_failed, skipped,
    queued, stalled_and_recovered, left_open, ended_as_a_failure, only_audio, transcription_only,
    memory_session, interrupted,
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_a_replay_shows_where_it_stands(run: Run) -> None:
    """Status, issue, ids and tallies of the exported spans are those of the live dashboard."""
    with fresh_tracker() as t:
        tid = run(t)
        t.advance(65)
        t.advance(65)
        shown, told = live(t, tid), replayed(t, tid)
        # What silence was called at the time is on no finished span; who looked decides it.
        for key in ("issues", "events", "current_stage"):
            del shown[key], told[key]
        assert told == shown


@pytest.mark.parametrize("run", RUNS)
def test_a_replay_shows_the_same_current_stage(run: Run) -> None:
    """The newest reported event can be read from the spans alone."""
    with fresh_tracker() as t:
        tid = run(t)
        t.advance(65)
        t.advance(65)
        assert replayed(t, tid)["current_stage"] == live(t, tid)["current_stage"]


@pytest.mark.parametrize("run", RUNS)
def test_a_replay_tells_the_same_events(run: Run) -> None:
    """What was reported, when, and whether it went well: the same list."""
    with fresh_tracker() as t:
        tid = run(t)
        t.advance(65)
        t.advance(65)
        assert replayed(t, tid)["events"] == live(t, tid)["events"]


@pytest.mark.parametrize(
    "run", [memory_failed, memory_failed_after_the_end, retried, ended_as_a_failure]
)
def test_a_replay_finds_the_same_failures(run: Run) -> None:
    """Issues of failures, the resolved ones included, are on the spans."""
    with fresh_tracker() as t:
        tid = run(t)
        t.advance(65)
        assert live(t, tid)["issues"]
        assert replayed(t, tid)["issues"] == live(t, tid)["issues"]


def test_what_a_replay_cannot_know_is_what_may_not_leave() -> None:
    """An issue's text comes back cleaned, and cut at 256 characters; nothing else differs."""
    with fresh_tracker() as t:
        tid = begin(t)
        message = "mail to ann@example.com bounced: " + "x" * 400
        t.tracker.track_event(tid, "mail_completed", False, message)
        t.advance(65)
        shown, told = live(t, tid), replayed(t, tid)
        assert shown["issue"] == f"Failed at mail_completed: {message}"
        assert told["issue"].startswith("Failed at mail_completed: mail to [email] bounced: xxx")
        assert len(told["issue"]) == len("Failed at mail_completed: ") + 256
        assert told["status"] == shown["status"] == "failed"
        assert told["stages"] == shown["stages"]


# --- any run --------------------------------------------------------------------------------------

_STEPS = st.sampled_from(
    (
        "audio", "chunk", "transcription_started", "transcription_completed",
        "transcription_failed", "memory_started", "memory_completed", "memory_failed",
        "fetch_started", "fetch_completed", "fetch_failed", "skip_memory", "skip_transcription",
        "queue_memory", "progress",
    )
)  # fmt: skip


def do(t: Harness, tid: str, step: str) -> None:
    stage, _, phase = step.partition("_")
    if step == "audio":
        t.tracker.track_event(tid, AUDIO)
    elif step == "chunk":
        t.tracker.track_audio_chunk(tid, 10)
    elif step == "progress":
        t.tracker.track_progress(tid)
    elif stage == "skip":
        t.tracker.track_skipped(tid, phase, "nothing to do")
    elif stage == "queue":
        t.tracker.track_queued(tid, phase)
    elif phase == "failed":
        t.tracker.track_event(tid, f"{stage}_completed", False, f"{stage} broke")
    else:
        t.tracker.track_event(tid, step)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(_STEPS, st.sampled_from((0, 1, 20, 70))), max_size=10),
    st.sampled_from(("told", "told as a failure", "not told")),
)
def test_a_replay_of_any_run_shows_where_it_stands(steps: list[tuple[str, int]], end: str) -> None:
    """Whatever was called in whatever order, once every stage is over the spans say it all.

    The list of events and the current stage too.
    """
    with fresh_tracker() as t:
        tid = begin(t)
        for step, later in steps:
            do(t, tid, step)
            t.advance(later)
        # What waits, or runs, has no finished span yet.
        if "queue_memory" in dict(steps):
            t.tracker.track_event(tid, MEMORY_STARTED)
        for stage in ("fetch", "transcription", "memory"):
            t.clock.advance(1)
            t.tracker.track_event(tid, f"{stage}_completed")
        if end != "not told":
            t.clock.advance(1)
            t.tracker.track_event(tid, CONVERSATION_ENDED, end == "told")
        t.advance(65)
        t.advance(65)
        shown, told = live(t, tid), replayed(t, tid)
        # Which silences were noticed at the time is on no finished span.
        del shown["issues"], told["issues"]
        assert told == shown
