"""Exported spans, whole, as a person sees them in Jaeger."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from otel_tracker import PipelineStage, TransactionStatus
from otel_tracker.ids import format_id, is_ours, parse_id, root_span_id
from otel_tracker.testing import Harness, fresh_tracker

AUDIO = PipelineStage.AUDIO_RECEIVED
TRANSCRIPTION_STARTED = PipelineStage.TRANSCRIPTION_STARTED
TRANSCRIPTION_COMPLETED = PipelineStage.TRANSCRIPTION_COMPLETED
MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED

OTHER: dict[str, Any] = {"error.type": "_OTHER"}
"""The type of an error whose class nobody told."""

MARK = 0.00001
"""Seconds that the span of a moment lasts: Jaeger warns of a negative duration at 0."""


WHERE = f"{socket.gethostname()}/{os.getpid()}/MainThread"


class Expected:
    """Spans of one transaction: each has its ids, and what is said here."""

    def __init__(self, transaction_id: str, pipeline: str = "audio_pipeline", **ids: str) -> None:
        self.pipeline = pipeline
        self.ids = {
            "otel_tracker.transaction.id": transaction_id,
            "otel_tracker.pipeline": pipeline,
            "otel_tracker.where": WHERE,
            **{key.replace("__", "."): value for key, value in ids.items()},
        }

    def span(
        self,
        name: str,
        start: float,
        end: float,
        attributes: dict[str, Any],
        *,
        parent: str | None = "",
        error: str | None = None,
        kind: str = "INTERNAL",
        events: list[Any] | None = None,
        links: list[str] | None = None,
    ) -> dict[str, Any]:
        return {
            "name": name,
            "parent": self.pipeline if parent == "" else parent,
            "kind": kind,
            "start": pytest.approx(start, abs=1e-9),
            "end": pytest.approx(end, abs=1e-9),
            "status": "UNSET" if error is None else "ERROR",
            "description": error,
            "attributes": {
                **self.ids,
                **{f"otel_tracker.{k}" if k[0] != "~" else k[1:]: v for k, v in attributes.items()},
            },
            "events": events or [],
            "links": links or [],
        }

    def root(
        self,
        start: float,
        end: float,
        outcome: str = "",
        *,
        error: str | None = None,
        told: bool | None = None,
        **rest: Any,
    ) -> dict[str, Any]:
        """The root; `told` is the success that the caller reported with the end, if it did."""
        attributes = {"kind": "transaction", **rest.pop("attributes", {})}
        if outcome:
            attributes["outcome"] = outcome
        if told is not None:
            attributes["end.success"] = told
        return self.span(
            self.pipeline, start, end, attributes, parent=None, kind="SERVER", error=error, **rest
        )

    def stage(
        self,
        stage: str,
        start: float,
        end: float,
        outcome: str = "success",
        *,
        number: int = 1,
        name: str = "",
        error: str | None = None,
        parent: str = "",
        **attributes: Any,
    ) -> dict[str, Any]:
        return self.span(
            name or stage,
            start,
            end,
            {
                "kind": "stage",
                "stage": stage,
                "stage.attempt": number,
                "stage.outcome": outcome,
                **attributes.pop("more", {}),
                **{f"~{k}": v for k, v in attributes.items()},
            },
            error=error,
            parent=parent,
        )

    def audio(
        self, start: float, end: float, chunks: int, size: int, last: int, **more: Any
    ) -> dict[str, Any]:
        return self.span(
            "audio",
            start,
            end,
            {
                "kind": "audio",
                "stage": "audio",
                "stage.outcome": "success",
                "audio.chunks": chunks,
                "audio.bytes": size,
                "audio.last_chunk_size": last,
                **{f"~{k}": v for k, v in more.items()},
            },
        )

    def ended(
        self,
        at: float,
        outcome: str,
        *,
        error: str | None = None,
        parent: str = "",
        told: bool | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The end, told beside the root; `told` as for `root`."""
        attributes: dict[str, Any] = {"kind": "ended", "outcome": outcome}
        if told is not None:
            attributes["end.success"] = told
        attributes |= {f"~{key}": value for key, value in more.items()}
        if error is not None:
            attributes.setdefault("~error.type", "_OTHER")
        return self.span(f"ended {outcome}", at, at + MARK, attributes, error=error, parent=parent)


def first_here(stage: dict[str, Any]) -> dict[str, Any]:
    """In a process that only continues a transaction, the first attempt there has no number."""
    attributes = {k: v for k, v in stage["attributes"].items() if k != "otel_tracker.stage.attempt"}
    return {**stage, "attributes": attributes}


def begin(t: Harness) -> tuple[str, Expected]:
    tid = t.tracker.create_transaction("user-1", "client-1", "talk-1")
    return tid, Expected(
        tid,
        user__id="user-1",
        otel_tracker__client__id="client-1",
        otel_tracker__conversation__id="talk-1",
    )


def test_a_good_run() -> None:
    """Audio, transcription, memory and the end: four spans, all of one trace, none in error."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(1)
        t.tracker.track_event(tid, AUDIO, chunk_size=1024)
        t.clock.advance(1)
        t.tracker.track_audio_chunk(tid, 512)
        t.clock.advance(1)
        t.tracker.track_event(tid, TRANSCRIPTION_STARTED, True, model="small")
        t.clock.advance(2)
        t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED, words=7)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(2)
        t.tracker.track_event(tid, MEMORY_COMPLETED, metadata={"memories": 3})
        t.clock.advance(1)
        t.tracker.track_event(tid, CONVERSATION_ENDED, reason="hung up")

        assert t.spans() == [
            x.root(0, 9, "success", told=True, attributes={"~reason": "hung up"}),
            x.audio(1, 2, chunks=2, size=1536, last=512),
            x.stage("transcription", 3, 5, model="small", words=7),
            x.stage("memory", 6, 8, memories=3),
        ]
        [trace_id] = {s.get_span_context().trace_id for s in t.finished_spans()}  # type: ignore[union-attr]
        assert trace_id == parse_id(tid)


def test_a_failure_and_its_retry() -> None:
    """Two attempts alike in name, told apart by number; the failed one is an error with a type."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(1)
        t.tracker.track_event(
            tid, MEMORY_COMPLETED, False, "database is locked", error_type="OperationalError"
        )
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_STARTED, retry_count=1)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        t.tracker.track_event(tid, CONVERSATION_ENDED)

        error_type: dict[str, Any] = {
            "error.type": "OperationalError",
            "error_type": "OperationalError",
        }
        assert t.spans() == [
            x.root(0, 3, "success", told=True),
            x.stage("memory", 0, 1, "failure", error="database is locked", **error_type),
            x.stage("memory", 2, 3, number=2, retry_count=1),
        ]


def test_a_transaction_that_failed_in_the_end() -> None:
    """The root is in error only then, with what failed as its description."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
        t.clock.advance(1)
        t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED, False)
        t.clock.advance(1)
        t.tracker.track_event(tid, CONVERSATION_ENDED)

        assert t.spans() == [
            x.root(
                0,
                2,
                "failure",
                told=True,
                error="Unknown error",
                attributes={"~error.type": "_OTHER"},
            ),
            x.stage("transcription", 0, 1, "failure", error="Unknown error", **OTHER),
        ]


def test_an_end_told_as_a_failure() -> None:
    """The caller's own word for it is the root's description."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, CONVERSATION_ENDED, False, ConnectionError("peer went away"))
        assert t.spans() == [
            x.root(
                0,
                0,
                "failure",
                told=False,
                error="peer went away",
                attributes={"~error.type": "_OTHER"},
            )
        ]


def test_a_failure_that_nobody_ends_is_told_by_the_roots_end_after_a_minute() -> None:
    """The owner ends the root at its last activity, with the verdict that there is by then."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(2)
        t.tracker.track_event(tid, MEMORY_COMPLETED, False, "no space")
        t.advance(59)
        assert [s["name"] for s in t.spans()] == ["memory"]
        t.advance(1)

        issue = "Failed at memory_completed: no space"
        assert t.spans() == [
            x.root(0, 2, "failure", error=issue, attributes={"~error.type": "_OTHER"}),
            x.stage("memory", 2, 2 + MARK, "failure", error="no space",
                    more={"stage.mark": "end"}, **OTHER),
        ]  # fmt: skip


def test_a_success_that_nobody_ends_is_told_when_it_has_settled() -> None:
    """Real callers hardly ever tell the end: the root carries the verdict all the same."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(3)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        t.advance(4.9)
        assert [s["name"] for s in t.spans()] == ["memory"]
        t.advance(0.1)
        assert t.spans() == [x.root(0, 3, "success"), x.stage("memory", 0, 3)]


def test_a_skipped_stage() -> None:
    """Its name says so in the tree, and its reason stands on the span; nothing is in error."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
        t.clock.advance(1)
        t.tracker.track_skipped(tid, "transcription", "nobody spoke", silence_ms=900)
        t.advance(5)
        assert t.spans() == [
            x.root(0, 1, "success"),
            x.stage("transcription", 0, 1, "skipped", name="transcription skipped",
                    more={"stage.skip_reason": "nobody spoke"},
                    silence_ms=900),
        ]  # fmt: skip


def test_a_skip_without_a_start_is_a_mark() -> None:
    """It lasts 10 µs."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(1)
        t.tracker.track_skipped(tid, MEMORY_STARTED, "no words")
        assert t.spans() == [
            x.stage("memory", 1, 1 + MARK, "skipped", name="memory skipped",
                    more={"stage.skip_reason": "no words", "stage.mark": "end"},
                    parent="?"),
        ]  # fmt: skip


def test_a_completion_without_a_start_is_a_mark() -> None:
    """A span of 10 µs that says it is one."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(4)
        t.tracker.track_event(tid, "diarization_completed", speakers=2)
        assert t.spans() == [
            x.stage("diarization", 4, 4 + MARK, more={"stage.mark": "end"}, speakers=2, parent="?")
        ]


def test_a_start_that_failed_is_a_mark_of_a_failed_attempt() -> None:
    """It was opened, so it is not called a mark without a start."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, MEMORY_STARTED, False, "no model")
        assert t.spans() == [
            x.stage(
                "memory",
                0,
                MARK,
                "failure",
                error="no model",
                parent="?",
                more={"stage.mark": "start"},
                **OTHER,
            )
        ]


def test_a_stage_that_a_later_one_shows_to_be_over() -> None:
    """Callers seldom report that transcription completed: it is inferred, and says so."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
        t.clock.advance(2)
        t.tracker.track_event(tid, MEMORY_STARTED)
        assert t.spans() == [
            x.stage("transcription", 0, 2, more={"stage.inferred": True}, parent="?")
        ]


def test_a_stage_that_is_started_again_was_left_open() -> None:
    """A second start is a second attempt; the first one was given up, which is no error."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(2)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        assert t.spans() == [
            x.stage("memory", 0, 2, "abandoned", parent="?"),
            x.stage("memory", 2, 3, number=2, parent="?"),
        ]  # fmt: skip


def test_a_wait_in_a_queue() -> None:
    """From enqueuing to pick-up: a child of the root, before the stage that took it."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(1)
        t.tracker.track_queued(tid, "memory")
        t.clock.advance(100)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        t.advance(5)
        assert t.spans() == [
            x.root(0, 102, "success"),
            x.span("memory queued", 1, 101, {"kind": "queued", "stage": "memory"}),
            x.stage("memory", 101, 102),
        ]


def test_a_stall_and_its_recovery() -> None:
    """A stall is a finished child of the ended root, its stack an event; progress is another."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.advance(60)
        issue = f"Transaction {tid[:8]} stalled after memory_started"
        reason = f"{issue}: no progress in memory for 60 s"

        root, stalled = t.spans()
        assert root == x.root(0, 1)
        [(name, attributes)] = stalled.pop("events")
        assert (name, list(attributes)) == ("stack", ["code.stacktrace"])
        assert "test_a_stall_and_its_recovery" in attributes["code.stacktrace"]
        expected = x.span(
            "memory stalled",
            1,
            61,
            {"kind": "stalled", "stage": "memory", "stage.attempt": 1, "~error.type": "stalled"},
            error=reason,
        )
        del expected["events"]
        assert stalled == expected

        t.clock.advance(9)
        t.tracker.track_progress(tid, "memory", done=3)
        t.advance(1)
        recovered = {"kind": "recovered", "stage": "memory"}
        assert t.spans()[2:] == [x.span("memory recovered", 70, 70 + MARK, recovered)]

        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        t.advance(5)
        by_name = {s["name"]: s for s in t.spans()}
        assert by_name["memory"] == x.stage("memory", 1, 72, done=3)
        assert by_name["ended success"] == x.ended(72, "success")
        assert len(t.spans()) == 5


def test_a_stall_is_told_once() -> None:
    """However often it is looked at, one attempt has one `memory stalled`."""
    with fresh_tracker() as t:
        tid, _ = begin(t)
        t.tracker.track_event(tid, MEMORY_STARTED)
        for _ in range(5):
            t.advance(60)
        assert [s["name"] for s in t.spans()].count("memory stalled") == 1


def test_the_end_told_where_the_root_was_ended_before() -> None:
    """It is a child of its own, and never a second root."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, TRANSCRIPTION_STARTED)
        t.advance(61)  # a stall: the root is ended
        t.tracker.track_event(tid, TRANSCRIPTION_COMPLETED)
        t.clock.advance(1)
        t.tracker.track_event(tid, CONVERSATION_ENDED, words=7)
        spans = {s["name"]: s for s in t.spans()}
        assert spans["ended success"] == x.ended(62, "success", told=True, words=7)
        assert spans["audio_pipeline"] == x.root(0, 0)


def test_an_end_told_as_a_failure_where_the_root_was_ended_before() -> None:
    """An error with a description."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.hand_over(tid)
        t.clock.advance(3)
        t.tracker.track_event(tid, CONVERSATION_ENDED, False, "worker gave up")
        assert t.spans() == [
            x.root(0, 0),
            x.ended(3, "failure", error="worker gave up", told=False),
        ]


def test_a_verdict_that_changes_later_is_told_again() -> None:
    """Memory fails after the conversation has closed: another child says how it ended."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        t.clock.advance(10)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(5)
        t.tracker.track_event(tid, MEMORY_COMPLETED, False, "no space")
        t.advance(60)
        issue = "Failed at memory_completed: no space"
        assert t.spans() == [
            x.root(0, 0, "success", told=True),
            x.stage("memory", 10, 15, "failure", error="no space", **OTHER),
            x.ended(15, "failure", error=issue),
        ]


def test_hand_over_ends_audio_and_root_without_a_verdict() -> None:
    """Others carry on: Jaeger can name the trace, and nothing is said of how it will end."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(1)
        t.tracker.track_audio_chunk(tid, 10)
        t.clock.advance(1)
        t.tracker.track_audio_chunk(tid, 20)
        t.clock.advance(1)
        t.tracker.hand_over(tid)
        assert t.spans() == [
            x.root(0, 3),
            x.audio(1, 2, chunks=2, size=30, last=20),
        ]


def test_audio_ends_with_its_clients_last_connection() -> None:
    """At the time of the last chunk, not of the disconnect."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_websocket_connected("user-1", "client-1")
        t.tracker.track_websocket_connected("user-1", "client-1")
        for size in range(1, 101):
            t.tracker.track_audio_chunk(tid, size)
            t.clock.advance(0.01)
        t.clock.advance(20)
        t.tracker.track_websocket_disconnected("client-1")
        assert t.spans() == []
        t.tracker.track_websocket_disconnected("client-1")
        audio = x.audio(0, 0.99, chunks=100, size=5050, last=100)
        assert t.spans() == [{**audio, "parent": "?"}]


def test_the_word_that_audio_began_is_no_chunk() -> None:
    """AUDIO_RECEIVED without a size opens the span and counts nothing; its metadata is on it."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.clock.advance(1)
        t.tracker.track_event(tid, AUDIO, codec="opus")
        t.tracker.hand_over(tid)
        assert t.spans() == [
            x.root(0, 1),
            x.audio(1, 1, chunks=0, size=0, last=0, codec="opus"),
        ]


def test_a_memory_session_with_its_extractions() -> None:
    """A transaction with the recording's id on every span; the texts stay in the process."""
    with fresh_tracker() as t:
        tracker = t.tracker
        sid = tracker.start_memory_session("audio-1", "client-1", "user-1", "ann@example.com")
        x = Expected(
            sid,
            "memory_session",
            user__id="user-1",
            otel_tracker__client__id="client-1",
            otel_tracker__audio__uuid="audio-1",
        )
        t.clock.advance(1)
        tracker.start_memory_processing(sid)
        tracker.add_transcript_segment(sid, "audio-1", 0, "ann", "buy milk", 1.0, "whisper")
        t.clock.advance(1)
        tracker.add_extraction_attempt(
            sid, "audio-1", "first", False, "no JSON", 250.0, 8, "the prompt", "tiny"
        )
        t.clock.advance(1)
        tracker.add_extraction_attempt(sid, "audio-1", "second", True, None, 500, 8, "p", "tiny")
        tracker.add_memory_extraction(sid, "audio-1", "mem-7", "buy milk", "task", "prompt", "{}")
        t.clock.advance(1)
        tracker.complete_memory_processing(sid, True)
        t.advance(5)

        first = {
            "kind": "detail",
            "~attempt_type": "first",
            "~attempt_success": False,
            "~transcript_length": 8,
            "~model": "tiny",
            "~error.type": "_OTHER",
        }
        second = {
            "kind": "detail",
            "~attempt_type": "second",
            "~attempt_success": True,
            "~transcript_length": 8,
            "~model": "tiny",
        }
        extraction = {"kind": "detail", "~memory_id": "mem-7", "~memory_type": "task"}
        assert t.spans() == [
            x.root(0, 4, "success"),
            x.stage("memory", 1, 4),
            x.span("extraction attempt", 1.75, 2, first, parent="memory", error="no JSON"),
            x.span("extraction attempt", 2.5, 3, second, parent="memory"),
            x.span("memory extraction", 3 - MARK, 3, extraction, parent="memory"),
        ]
        assert t.status(sid) is TransactionStatus.COMPLETED


def test_a_transaction_within_the_callers_own_span() -> None:
    """A new trace; the two link to each other, and the root carries the caller's route."""
    with fresh_tracker() as t:
        tracer = t.provider.get_tracer("web")
        route = {"http.route": "/talk/{id}", "http.request.method": "POST"}
        with tracer.start_as_current_span("POST /talk/{id}", attributes=route) as web:
            tid, x = begin(t)
            web_trace = f"{web.get_span_context().trace_id:032x}"
            t.tracker.track_event(tid, CONVERSATION_ENDED)
        by_name = {s["name"]: s for s in t.spans()}
        assert by_name["audio_pipeline"] == x.root(
            0, 0, "success", told=True, links=[web_trace], attributes={"~http.route": "/talk/{id}"}
        )
        assert by_name["POST /talk/{id}"]["links"] == [tid.replace("-", "")]
        assert web_trace != tid.replace("-", "")


def test_links_can_be_switched_off() -> None:
    """Then neither span knows of the other, nor of the route."""
    with fresh_tracker(link_caller=False) as t:
        tracer = t.provider.get_tracer("web")
        with tracer.start_as_current_span("GET /", attributes={"http.route": "/"}):
            tid, x = begin(t)
            t.tracker.track_event(tid, CONVERSATION_ENDED)
        by_name = {s["name"]: s for s in t.spans()}
        assert by_name["audio_pipeline"] == x.root(0, 0, "success", told=True)
        assert by_name["GET /"]["links"] == []


def test_creating_a_transaction_leaves_the_callers_context_alone() -> None:
    """The application's spans after it are children of what they were children of before."""
    with fresh_tracker() as t:
        tracer = t.provider.get_tracer("web")
        with tracer.start_as_current_span("outer") as outer:
            tid, _ = begin(t)
            t.tracker.track_event(tid, MEMORY_STARTED)
            with tracer.start_as_current_span("inner") as inner:
                assert isinstance(inner, ReadableSpan)
                assert inner.parent == outer.get_span_context()


def test_a_transaction_goes_on_elsewhere_by_its_id_alone() -> None:
    """A second process hangs its spans under the root's id, and makes no second root."""
    with fresh_tracker() as front, fresh_tracker() as worker:
        tid, _ = begin(front)
        front.tracker.track_queued(tid, "memory")
        front.tracker.hand_over(tid)

        worker.clock.advance(30)
        worker.tracker.track_event(tid, MEMORY_STARTED)
        worker.clock.advance(2)
        worker.tracker.track_event(tid, MEMORY_COMPLETED, memories=1)
        worker.tracker.track_event(tid, CONVERSATION_ENDED)

        x = Expected(tid)
        assert worker.spans() == [
            {**first_here(x.stage("memory", 30, 32, memories=1)), "parent": "?"},
            x.ended(32, "success", told=True, parent="?"),
        ]
        [root] = front.finished_spans()
        context = root.get_span_context()
        assert context is not None
        for span in worker.finished_spans():
            assert span.parent is not None
            assert (span.parent.trace_id, span.parent.span_id) == (
                context.trace_id,
                context.span_id,
            )
            assert span.parent.is_remote


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_both_processes_decide_alike_what_is_sampled(rate: float) -> None:
    """By the id alone the worker keeps a trace exactly where its root was kept."""
    sampler = ParentBased(TraceIdRatioBased(rate))
    with fresh_tracker(sampler=sampler) as front, fresh_tracker(sampler=sampler) as worker:
        for _ in range(60):
            tid = front.tracker.create_transaction("u", "c")
            front.tracker.hand_over(tid)
            worker.tracker.track_event(tid, MEMORY_COMPLETED)
        kept = {span["attributes"]["otel_tracker.transaction.id"] for span in front.spans()}
        also = {span["attributes"]["otel_tracker.transaction.id"] for span in worker.spans()}
        assert kept == also
        if rate == 0.5:  # ids without a uuid4's variant bits, which would make it all or nothing
            assert 10 < len(kept) < 50


def test_a_transaction_id_is_its_trace_id_written_as_a_uuid() -> None:
    """The first 8 characters on the dashboard are those in Jaeger; its low half is the root."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("u", "c")
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        [root] = t.finished_spans()
        context = root.get_span_context()
        assert context is not None
        assert format_id(context.trace_id) == tid
        assert is_ours(context.trace_id)
        assert context.span_id == root_span_id(context.trace_id)
        assert t.tracker.trace_url(tid).endswith(f"/trace/{tid.replace('-', '')}")


def test_shutdown_ends_what_is_open_as_interrupted() -> None:
    """Open stages are in error with the reason; the root says only that its process left."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_audio_chunk(tid, 10)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.clock.advance(1)
        t.tracker.shutdown()
        audio = x.audio(0, 0, chunks=1, size=10, last=10)
        audio["attributes"]["otel_tracker.stage.outcome"] = "interrupted"
        spans = sorted(t.spans(), key=lambda s: str(s["name"]))
        assert spans == [
            audio,
            x.root(0, 2, "interrupted"),
            x.stage("memory", 1, 2, "interrupted",
                    error="its process shut down", **{**OTHER, "error.type": "interrupted"}),
        ]  # fmt: skip


def test_no_span_has_no_length() -> None:
    """Marks last 10 µs, also where everything happens at one moment and the clock stands still."""
    with fresh_tracker() as t:
        tid, _ = begin(t)
        t.tracker.track_event(tid, "fetch_completed")
        t.tracker.track_skipped(tid, "store", "nothing")
        t.tracker.hand_over(tid)
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        marks = [s for s in t.finished_spans() if s.name != "audio_pipeline"]
        assert len(marks) == 3
        for span in marks:
            assert span.end_time is not None
            assert span.start_time is not None
            assert span.end_time - span.start_time == 10_000


@pytest.mark.parametrize("first", ["memory_started", "memory_completed", "audio_received"])
def test_events_at_one_reading_of_the_clock_keep_their_order(first: str) -> None:
    """They are 1 ns apart: a coarse clock puts no child before its root, nor an end first."""
    with fresh_tracker() as t:
        tid, _ = begin(t)
        for event in (first, "fetch_started", "store_started", "fetch_completed"):
            t.tracker.track_event(tid, event)
        t.tracker.track_event(tid, "store_completed")
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        started = sorted(t.finished_spans(), key=lambda s: s.start_time or 0)
        stage = first.partition("_")[0]
        assert [s.name for s in started] == ["audio_pipeline", stage, "fetch", "store"]
        times = [s.start_time or 0 for s in started]
        assert times == [times[0] + later for later in range(4)]
        root, _, fetch, store = started
        assert (fetch.end_time or 0) < (store.end_time or 0) < (root.end_time or 0)
        assert {s["start"] for s in t.spans()} == {0.0}


@pytest.mark.parametrize("success", [True, False])
def test_the_callers_word_for_the_end_is_on_one_span_only(success: bool) -> None:
    """Only on the span that tells the end; an inferred verdict beside it has none."""
    with fresh_tracker() as t:
        tid, _ = begin(t)
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.tracker.track_event(tid, CONVERSATION_ENDED, success)
        t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED, not success)
        t.advance(65)
        words = {s["name"]: s["attributes"].get("otel_tracker.end.success") for s in t.spans()}
        assert words.pop("audio_pipeline") is success
        assert set(words.values()) == {None}


def test_names_leave_scrubbed() -> None:
    """A metadata name and an error's type are strings of callers' like any other."""
    with fresh_tracker() as t:
        tid, x = begin(t)
        t.tracker.track_event(
            tid, MEMORY_COMPLETED, False, "boom", error_type="To ann@example.com",
            metadata={"ann@example.com": 1},
        )  # fmt: skip
        [memory] = t.spans()
        assert "ann@example.com" not in repr(memory)
        cleaned: dict[str, Any] = {
            "[email]": 1,
            "error.type": "To [email]",
            "error_type": "To [email]",
        }
        assert memory == x.stage(
            "memory", 0, MARK, "failure", error="boom", parent="?", more={"stage.mark": "end"},
            **cleaned,
        )  # fmt: skip


def test_personal_data_stays_in_the_process() -> None:
    """An e-mail address as a user id leaves as a hash; sensitive names do not leave at all."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("ann@example.com", "client-1")
        t.tracker.track_event(
            tid, "fetch_completed", False, "mail to ann@example.com bounced", transcript="hello",
            token_count=3,
        )  # fmt: skip
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        text = repr([(s["attributes"], s["description"]) for s in t.spans()])
        assert "ann@example.com" not in text
        assert "hello" not in text
        assert "'token_count': 3" in text
        assert all(len(s["attributes"]["user.hash"]) == 32 for s in t.spans())
        assert all("user.id" not in s["attributes"] for s in t.spans())


def test_nothing_leaves_that_was_sampled_out() -> None:
    """The dashboard sees it all; export follows the application's sampler."""
    with fresh_tracker(sampler=ALWAYS_OFF) as t:
        tid, _ = begin(t)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        t.advance(60)
        assert t.status(tid) is TransactionStatus.COMPLETED
        assert t.spans() == []


def test_a_stack_stays_in_the_process_where_free_text_does() -> None:
    """With export_text=False a stall is told without its reason, its error text and its stack."""
    with fresh_tracker(export_text=False) as t:
        tid, _ = begin(t)
        t.tracker.track_event(tid, MEMORY_STARTED, note="hello", size=3)
        t.advance(60)
        [stalled] = [s for s in t.spans() if s["name"] == "memory stalled"]
        assert stalled["events"] == []
        assert not stalled["description"]
        t.tracker.track_event(tid, MEMORY_COMPLETED, False, "secret reason")
        [memory] = [s for s in t.spans() if s["name"] == "memory"]
        assert (memory["status"], memory["description"] or "") == ("ERROR", "")
        assert memory["attributes"]["size"] == 3
        assert "note" not in memory["attributes"]


def test_a_transaction_of_a_connected_client_says_so() -> None:
    """The root tells whether a websocket of its client was open; the socket itself is no span."""
    with fresh_tracker() as t:
        for connected in (True, False):
            if connected:
                t.tracker.track_websocket_connected("user-1", "client-1")
            else:
                t.tracker.track_websocket_disconnected("client-1")
            tid = t.tracker.create_transaction("user-1", "client-1")
            t.tracker.track_event(tid, CONVERSATION_ENDED)
            t.clock.advance(1)
        assert [s["attributes"].get("otel_tracker.websocket") for s in t.spans()] == [True, None]
