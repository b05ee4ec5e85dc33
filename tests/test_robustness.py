"""Ways in which the tracker could be broken once: each stays mended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from otel_tracker import PipelineStage, TransactionStatus
from otel_tracker.privacy import MAX_KEPT_NODES, plain, scrub
from otel_tracker.recorder import Recorder
from otel_tracker.testing import fresh_tracker
from otel_tracker.verdict import judge
from tests import otlp
from tests.otlp import receiver

MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED


def run(code: str, endpoint: str) -> str:
    """What `code` prints in a process of its own that exports to `endpoint`."""
    return otlp.run(["-c", textwrap.dedent(code)], endpoint)


def outcome(span: Any) -> str | None:
    """The told outcome of a span that came over OTLP."""
    values = {a.key: a.value.string_value for a in span.attributes}
    return values.get("otel_tracker.outcome")


# --- export and exit -----------------------------------------------------------------------------


def test_an_independent_tracker_exports_at_exit() -> None:
    """A script that ends without a shutdown loses no span, whichever tracker made them."""
    with receiver() as (endpoint, spans):
        run(
            """
            from otel_tracker import DebugSystemTracker
            tracker = DebugSystemTracker()
            tid = tracker.create_transaction("user", "client")
            tracker.track_event(tid, "memory_completed")
            tracker.track_event(tid, "conversation_ended")
            """,
            endpoint,
        )
        assert sorted(s.name for s in spans) == ["audio_pipeline", "memory"]


def test_finished_work_is_not_interrupted_by_the_exit() -> None:
    """At exit what has nothing open gets the verdict that it would have come to."""
    with receiver() as (endpoint, spans):
        run(
            """
            from otel_tracker import get_debug_tracker
            tracker = get_debug_tracker()
            for success in (True, False):
                tid = tracker.create_transaction("user", "client")
                tracker.track_event(tid, "memory_completed", success, "no model")
            tracker.track_event(tracker.create_transaction("user", "client"), "memory_started")
            """,
            endpoint,
        )
        roots = [s for s in spans if s.name == "audio_pipeline"]
        assert sorted(outcome(s) or "" for s in roots) == ["failure", "interrupted", "success"]
        (failed,) = [s for s in roots if outcome(s) == "failure"]
        assert failed.status.message == "Failed at memory_completed: no model"


def test_export_goes_on_after_a_shutdown_a_stray_call_and_an_init() -> None:
    """A late call between shutdown and init does not switch export off for good."""
    with receiver() as (endpoint, spans):
        run(
            """
            from otel_tracker import get_debug_tracker, init_debug_tracker, shutdown_debug_tracker
            tracker = init_debug_tracker()
            tid = tracker.create_transaction("first", "client")
            shutdown_debug_tracker()
            tracker.track_event(tid, "memory_completed")  # a background task that was late
            init_debug_tracker()
            tid = tracker.create_transaction("second", "client")
            tracker.track_event(tid, "conversation_ended")
            """,
            endpoint,
        )
        users = {a.value.string_value for s in spans for a in s.attributes if a.key == "user.id"}
        assert users == {"first", "second"}


def test_open_spans_leave_before_the_provider_that_was_set_later_exits() -> None:
    """The usual order: the tracker at import, the application's provider afterwards."""
    with receiver() as (endpoint, spans):
        run(
            """
            from otel_tracker import get_debug_tracker
            tracker = get_debug_tracker()
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            provider = TracerProvider()
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            trace.set_tracer_provider(provider)
            tid = tracker.create_transaction("user", "client")
            tracker.track_event(tid, "memory_started")
            """,
            endpoint,
        )
        assert sorted(s.name for s in spans) == ["audio_pipeline", "memory"]


def test_what_left_and_what_did_not_is_counted() -> None:
    """health.export says how many spans an exporter of ours sent, and how many it lost."""
    with receiver() as (endpoint, _):
        printed = run(
            """
            import json
            from otel_tracker import get_debug_tracker
            tracker = get_debug_tracker()
            tid = tracker.create_transaction("user", "client")
            tracker.track_event(tid, "conversation_ended")
            assert tracker.force_flush()
            print(json.dumps(tracker.get_dashboard_data()["health"]["export"]))
            """,
            endpoint,
        )
    exported = json.loads(printed)["exporters"]["otlp"]
    assert (exported["exported"], exported["waiting"]) == (1, 0)
    assert exported["lost"] == {"queue_full": 0, "refused": 0, "shutdown": 0}
    assert exported["last_success"] is not None
    assert exported["last_failure"] is None


def test_a_proxy_is_no_provider() -> None:
    """Given the API's proxy, the tracker waits for the real provider as if nothing was given."""
    with fresh_tracker() as t:
        t.tracker.configure(tracer_provider=trace.ProxyTracerProvider())
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        (span,) = t.finished_spans()
        context = span.get_span_context()
        assert context is not None
        assert f"{context.trace_id:032x}" == tid.replace("-", "")


# --- the host ------------------------------------------------------------------------------------


def test_metadata_that_shares_its_lists_is_bounded() -> None:
    """A list that holds itself twenty times unfolds to no more than the bound, and at once."""
    graph: list[Any] = []
    graph.extend([graph] * 20)
    kept = json.dumps(plain(graph))
    assert kept.count("<list>") < 25 * MAX_KEPT_NODES
    assert len(kept) < 100 * MAX_KEPT_NODES


def test_many_sockets_cost_a_sweep_nothing() -> None:
    """A client's open sockets are looked up, not searched: thousands do not slow one sweep."""
    with fresh_tracker() as t:
        for number in range(3_000):
            client = f"client-{number}"
            t.tracker.track_websocket_connected("user", client)
            t.tracker.track_audio_chunk(t.tracker.create_transaction("user", client), 1)
        t.clock.advance(6)
        started = time.process_time()
        t.tracker.sweep()
        many = time.process_time() - started
        # Searching would take 9 million steps, several seconds; this bound is generous.
        assert many < 2
        assert t.tracker.metrics.active_websockets == 3_000


def test_a_callback_that_leaves_or_hangs_hurts_nobody() -> None:
    """sys.exit() in a callback, or one that never returns, neither ends nor delays the tracker."""
    seen: list[str] = []
    hangs, told = threading.Event(), threading.Event()

    def on_issue(info: dict[str, Any]) -> None:
        seen.append(info["issue"])
        if len(seen) == 1:
            sys.exit(3)
        told.set()
        hangs.wait(30)

    from otel_tracker import DebugSystemTracker

    tracker = DebugSystemTracker(on_issue=on_issue)
    try:
        for message in ("first", "second", "third"):
            tid = tracker.create_transaction("user", "client")
            tracker.track_event(tid, MEMORY_COMPLETED, False, message)
            tracker.sweep()
        assert told.wait(10)
        started = time.monotonic()
        tracker.shutdown()
        assert time.monotonic() - started < 5
        assert [text.rsplit(" ", 1)[1] for text in seen] == ["first", "second"]
    finally:
        hangs.set()


def test_a_callback_can_be_taken_away() -> None:
    """on_issue=None removes it; an option that is not named stays."""
    seen: list[Any] = []
    with fresh_tracker(on_issue=seen.append) as t:
        t.tracker.configure(on_stall=None)
        fail(t, "one")
        t.tracker.configure(on_issue=None)
        fail(t, "two")
    assert [info["issue"] for info in seen] == ["Failed at memory_completed: one"]


def fail(t: Any, message: str) -> str:
    tid: str = t.tracker.create_transaction("user", "client")
    t.tracker.track_event(tid, MEMORY_COMPLETED, False, message)
    t.tracker.sweep()
    return tid


# --- nothing is lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("filler", ["queued", "stages"])
def test_a_failure_is_seen_however_much_came_before_it(filler: str) -> None:
    """A transaction that holds as many facts as it may still takes the one that decides."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        for number in range(210):
            stage = "memory" if filler == "queued" else f"stage {number}"
            t.tracker.track_queued(tid, stage)
            t.tracker.track_event(tid, f"{stage}_started")
            t.tracker.track_event(tid, f"{stage}_completed")
        t.tracker.track_event(tid, MEMORY_COMPLETED, False, "no model")
        assert t.status(tid) is TransactionStatus.FAILED
        data = t.tracker.get_dashboard_data()
        assert data["stages"]["memory"]["failed"] == 1
        assert data["health"]["dropped"]["facts_over_the_limit_of_one_transaction"] > 0


def test_an_impossible_time_does_not_poison_the_dashboard() -> None:
    """A span of somebody's with a start beyond the year 9999 is left out; reads go on."""
    with fresh_tracker() as t:
        tracer = t.provider.get_tracer("somebody")
        tracer.start_span(
            "memory", attributes={"otel_tracker.stage": "memory"}, start_time=10**21
        ).end(10**21 + 1)
        assert t.tracker.get_dashboard_data()["system_metrics"]["total_transactions"] == 0


def test_issues_of_one_transaction_are_bounded() -> None:
    """Three hundred failures in different words leave some tens of issues of the transaction."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        for number in range(300):
            word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
            t.tracker.track_event(tid, MEMORY_COMPLETED, False, f"reason {word}")
            t.clock.advance(0.01)
            t.tracker.sweep()
        kept = t.tracker._store.read(
            lambda state: [len(tx.found) for tx in state.transactions.values()]
        )
        assert max(kept) <= 50
        assert t.issue(tid) == "Failed at memory_completed: reason cjj"


def test_an_end_is_told_though_the_root_ends_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the sweeper ends the root first, the told end becomes a child: it never vanishes."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        end_audio = Recorder.end_audio

        def end_root_meanwhile(recorder: Recorder, handle: Any, *args: Any) -> None:
            recorder.end_root(handle)
            end_audio(recorder, handle, *args)

        monkeypatch.setattr(Recorder, "end_audio", end_root_meanwhile)
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        monkeypatch.undo()
        assert [s["name"] for s in t.spans()] == ["audio_pipeline", "ended success"]


def test_a_stage_survives_that_its_handle_was_dropped_at_the_same_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between finding the transaction and opening the stage the sweeper may forget it."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        recorder = t.tracker._recorder
        handle = recorder.handle(tid)
        assert handle is not None
        touch = Recorder._touch

        def drop_meanwhile(self: Recorder, handle: Any) -> int:
            self.end_root(handle)
            self.drop(handle)
            return touch(self, handle)

        monkeypatch.setattr(Recorder, "_touch", drop_meanwhile)
        t.tracker.track_event(tid, MEMORY_STARTED)
        monkeypatch.undo()
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        assert t.tracker.get_dashboard_data()["stages"]["memory"]["running"] == 0
        assert [s["name"] for s in t.spans()] == ["audio_pipeline", "memory"]


def test_the_end_told_late_knows_what_failed_before() -> None:
    """Minutes after the root ended, CONVERSATION_ENDED still says that memory had failed."""
    with fresh_tracker() as t:
        tid = fail(t, "no model")
        t.advance(140)
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        assert t.status(tid) is TransactionStatus.FAILED
        told = [s["attributes"].get("otel_tracker.outcome") for s in t.spans()]
        assert "success" not in told


def test_a_stage_that_was_open_when_the_end_failed_did_not_succeed() -> None:
    """The provider crashed in the middle of transcription: nobody infers its success."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, PipelineStage.TRANSCRIPTION_STARTED)
        t.tracker.track_event(tid, CONVERSATION_ENDED, False, "provider crashed")
        (stage,) = [s for s in t.spans() if s["name"] == "transcription"]
        assert stage["attributes"]["otel_tracker.stage.outcome"] == "abandoned"
        assert t.status(tid) is TransactionStatus.FAILED


def test_what_was_handed_over_is_no_stall_when_it_is_let_go() -> None:
    """A web process that hands all its work over has no stalls in its totals."""
    with fresh_tracker(open_transactions=10) as t:
        for _ in range(15):
            tid = t.tracker.create_transaction("user", "client")
            t.tracker.track_queued(tid, "memory")
            t.tracker.hand_over(tid)
        metrics = t.tracker.metrics
        assert (metrics.stalled_transactions, metrics.total_transactions) == (0, 15)


def test_starting_a_stage_again_is_no_failure() -> None:
    """Callers that seldom report completions cause no false alarm by starting anew."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        for _ in range(3):
            t.tracker.track_event(tid, PipelineStage.TRANSCRIPTION_STARTED)
            t.clock.advance(1)
        t.tracker.track_event(tid, MEMORY_COMPLETED)
        t.advance(5)
        assert t.status(tid) is TransactionStatus.COMPLETED
        assert t.tracker.get_dashboard_data()["recent_issues"] == []
        assert {s["status"] for s in t.spans()} == {"UNSET"}


# --- privacy -------------------------------------------------------------------------------------


def test_without_text_no_message_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """export_text=False keeps free text out of the log lines as well."""
    with fresh_tracker(export_text=False) as t:
        fail(t, "Mrs Smith said so")
    assert "failed" in caplog.text
    assert "Smith" not in caplog.text


def test_the_text_of_a_memory_stays_in_under_whatever_name() -> None:
    """Metadata of an extraction leaves as numbers only: stores put the memory's text there."""
    with fresh_tracker() as t:
        session = t.tracker.start_memory_session("audio", "client", "user", "mail")
        t.tracker.add_memory_extraction(
            session, "audio", "1", "a text", metadata={"data": "a text", "score": 0.9}
        )
        (span,) = t.spans()
        assert "data" not in span["attributes"]
        assert span["attributes"]["score"] == 0.9


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Digest abc123canary",
        "Cookie: session=canary",
        'token = "canary',
        "user=canary%40example.com",
        "postgres://user:p@canary@host/db",
    ],
)
def test_more_that_a_scrubber_must_know(text: str) -> None:
    """Credentials in the forms that the first pattern missed."""
    assert "canary" not in scrub(text)


def test_a_disconnect_without_a_client_touches_nobody() -> None:
    """track_websocket_disconnected(None) does not end the audio of those who have no client id."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", None)
        t.tracker.track_audio_chunk(tid, 10)
        t.tracker.track_websocket_disconnected(None)
        assert t.tracker.get_dashboard_data()["stages"]["audio"]["running"] == 1


def test_a_dump_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without them the dump is written all the same, private and whole."""

    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with fresh_tracker(debug_dump_dir=tmp_path) as t:
        paths = {t.tracker.export_debug_dump() for _ in range(2)}
    assert len(paths) == 2
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert all(json.loads(path.read_text())["export_metadata"] for path in paths)
    assert set(tmp_path.iterdir()) == paths


def test_chunks_may_carry_metadata() -> None:
    """Further keywords of track_audio_chunk are metadata, as everywhere."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_audio_chunk(tid, 10, sample_rate=16_000)
        found = t.tracker.get_transaction(tid)
        assert found is not None
        assert found.events[0].metadata["sample_rate"] == 16_000


# --- what people read ---------------------------------------------------------------------------


def test_a_stall_is_logged_with_its_place_and_its_length(caplog: pytest.LogCaptureFixture) -> None:
    """The one line says which stage, for how long, on which thread and on which line of code."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.advance(61)
        (line,) = [r.getMessage() for r in caplog.records if "stalled" in r.getMessage()]
    assert f"transaction {tid}: in_progress -> stalled at memory_started" in line
    assert "memory silent for 61 s on " in line
    assert "MainThread" in line
    assert Path(__file__).name in line


def test_a_failure_is_logged_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Behind a documented sentence that hides it, the line has the error message."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, PipelineStage.TRANSCRIPTION_COMPLETED)
        t.tracker.track_event(tid, MEMORY_COMPLETED, False, "connection refused")
        t.tracker.sweep()
    (line,) = [r.getMessage() for r in caplog.records if "failed" in r.getMessage()]
    assert line.endswith("Transcription completed but memory creation failed (connection refused)")


def test_a_shutdown_alarms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What a deploy interrupts is no warning, no callback, and no recovery."""
    seen: list[Any] = []
    with fresh_tracker(on_issue=seen.append, on_stall=seen.append) as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, MEMORY_STARTED)
        t.advance(61)
        seen.clear()
        caplog.clear()
        t.tracker.shutdown()
        assert t.issue(tid) == "Failed at memory_started: its process shut down"
    assert seen == []
    assert "recovered" not in caplog.text
    assert [r.levelname for r in caplog.records if r.levelname == "WARNING"] == []


def test_a_slip_in_a_name_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    """One letter beside a built-in event, or beside a declared stage in a limit, is a warning."""
    with fresh_tracker(stall_after_memry=3) as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, "memory_complete")
        t.tracker.track_event(tid, "diarization_completed")
        problems = t.tracker.get_dashboard_data()["health"]["problems"]
    assert problems == {"stage_limit": 1, "near_miss": 1}
    assert "did you mean 'memory'?" in caplog.text
    assert "did you mean memory_completed?" in caplog.text


def test_a_foreign_id_is_told_apart_from_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    """Each of the two has a warning of its own, in whatever order they come."""
    with fresh_tracker() as t:
        t.tracker.track_event("nonsense", MEMORY_STARTED)
        t.tracker.track_event("2d3ab5b2-3c8f-4d53-9d3c-7fb2a1c00b11", MEMORY_STARTED)
        problems = t.tracker.get_dashboard_data()["health"]["problems"]
    assert problems == {"transaction_id": 1, "foreign_id": 1}
    assert "another system made" in caplog.text


def test_stages_come_in_the_order_of_the_pipeline() -> None:
    """Audio, transcription, memory, and after them the caller's own by name."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        for stage in ("zip", "memory", "audio", "diarization", "transcription"):
            t.tracker.track_event(tid, stage)
        names = list(t.tracker.get_dashboard_data()["stages"])
    assert names == ["audio", "transcription", "memory", "diarization", "zip"]


def test_a_stage_whose_task_is_gone_says_so() -> None:
    """A cancelled task leaves its stage open: the row names the task, and that it has ended."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")

        async def begin() -> None:
            t.tracker.track_event(tid, MEMORY_STARTED)

        async def main() -> None:
            await asyncio.create_task(begin(), name="asr-user5")

        asyncio.run(main())
        t.advance(61)
        (row,) = t.tracker.get_dashboard_data()["stalled"]
    assert row["where"].endswith("/asr-user5")
    assert row["stack"] == "the task that began this stage has ended"


@pytest.mark.expects_a_defect
def test_a_defect_in_one_verdict_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Were one transaction to break the judge, reads go on, and the others are right."""
    with fresh_tracker() as t:
        broken, sound = (t.tracker.create_transaction(u, "client") for u in ("broken", "sound"))

        def breaks(*args: Any, **rest: Any) -> Any:
            if args[4] == broken:
                raise ZeroDivisionError
            return judge(*args, **rest)

        monkeypatch.setattr("otel_tracker.state.judge", breaks)
        for tid in (broken, sound):
            t.tracker.track_event(tid, MEMORY_COMPLETED, False, "no model")
        t.tracker.get_dashboard_data()
        data = t.tracker.get_dashboard_data()
        assert t.status(sound) is TransactionStatus.FAILED
        assert data["system_metrics"]["total_transactions"] == 2
        assert data["health"]["dropped"]["facts_and_verdicts_that_failed"] >= 1
        monkeypatch.undo()
    assert caplog.text.count("a defect of the tracker") == 1


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), 1e300, -1, None, "5", [], True])
def test_shutdown_takes_any_timeout(timeout: Any) -> None:
    """It never raises into the application, and ends."""
    with fresh_tracker() as t:
        t.tracker.create_transaction("user", "client")
        t.tracker.shutdown(timeout)
        t.tracker.shutdown(timeout)
        assert [span.name for span in t.finished_spans()] == ["audio_pipeline"]
        assert t.tracker.get_dashboard_data()["health"]["problems"] == {}
