"""How the tracker stands in OpenTelemetry: exact under any sampler, and out of everybody's way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TraceState
from opentelemetry.util.types import Attributes

from otel_tracker import (
    DebugSystemTracker,
    PipelineStage,
    TransactionStatus,
)
from otel_tracker.processor import DashboardSpanProcessor
from otel_tracker.testing import ManualClock, fresh_tracker

ROOT = Path(__file__).resolve().parents[1]


class Raising(Sampler):
    """A sampler with a bug."""

    def should_sample(
        self,
        parent_context: context_api.Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        raise ValueError("a sampler with a bug")

    def get_description(self) -> str:
        return "Raising"


def run_all(tracker: DebugSystemTracker, clock: ManualClock, runs: int = 20) -> None:
    """That many of each: a good run, a failure, a skip and a stall, with audio."""
    for _ in range(runs):
        good = tracker.create_transaction("user", "client", "talk")
        tracker.track_audio_chunk(good, 10)
        tracker.track_audio_chunk(good, 10)
        tracker.track_event(good, PipelineStage.TRANSCRIPTION_STARTED)
        tracker.track_event(good, PipelineStage.TRANSCRIPTION_COMPLETED)
        tracker.track_event(good, PipelineStage.MEMORY_STARTED)
        tracker.track_event(good, PipelineStage.MEMORY_COMPLETED)
        tracker.track_event(good, PipelineStage.CONVERSATION_ENDED)
        failed = tracker.create_transaction("user", "client", "talk")
        tracker.track_event(failed, PipelineStage.TRANSCRIPTION_COMPLETED)
        tracker.track_event(failed, PipelineStage.MEMORY_COMPLETED, False, "no space")
        skipped = tracker.create_transaction("user", "client", "talk")
        tracker.track_skipped(skipped, "transcription", "silence")
        stuck = tracker.create_transaction("user", "client", "talk")
        tracker.track_event(stuck, PipelineStage.MEMORY_STARTED)
    clock.advance(61)
    tracker.sweep()


def check_all(tracker: DebugSystemTracker, runs: int = 20) -> None:
    """The dashboard over `run_all` is exact."""
    data = tracker.get_dashboard_data()
    metrics = data["system_metrics"]
    assert {
        key: metrics[key] for key in metrics if key not in ("uptime_hours", "last_activity")
    } == {
        "total_transactions": 4 * runs,
        "active_transactions": 0,
        "completed_transactions": 2 * runs,
        "failed_transactions": runs,
        "stalled_transactions": runs,
        "active_websockets": 0,
        "total_audio_chunks": 2 * runs,
        "total_transcriptions": 2 * runs,
        "total_memories": runs,
    }
    tallies = {
        name: (row["running"], row["done"], row["failed"], row["skipped"])
        for name, row in data["stages"].items()
    }
    assert tallies == {
        "audio": (0, runs, 0, 0),
        "transcription": (0, 2 * runs, 0, runs),
        "memory": (runs, runs, runs, 0),
    }
    issues = {row["pattern"]: row["count"] for row in data["issue_patterns"]}
    assert issues == {
        "Transcription completed but memory creation failed": runs,
        "Transaction <id> stalled after memory_started": runs,
    }


def tracker_on(provider: trace.TracerProvider) -> tuple[DebugSystemTracker, ManualClock]:
    clock = ManualClock()
    return DebugSystemTracker(provider, clock=clock, run_sweeper=False), clock


# --- exact whatever OpenTelemetry does -----------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [
        ALWAYS_ON,
        ALWAYS_OFF,
        TraceIdRatioBased(0.1),
        ParentBased(TraceIdRatioBased(0.5)),
        ParentBased(ALWAYS_OFF),
        Raising(),
    ],
    ids=lambda sampler: sampler.get_description(),
)
def test_the_dashboard_is_exact_under_any_sampler(sampler: Sampler) -> None:
    """Sampling decides what is exported, never what is counted; not even one that raises."""
    with fresh_tracker(sampler=sampler) as t:
        run_all(t.tracker, t.clock)
        check_all(t.tracker)


def test_a_sampler_that_raises_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Counted under health, logged once, raised never; such spans are not exported."""
    with fresh_tracker(sampler=Raising()) as t:
        run_all(t.tracker, t.clock, runs=3)
        assert t.spans() == []
        assert t.tracker.get_dashboard_data()["health"]["problems"]["sampler"] > 3
    told = [r for r in caplog.records if "sampler" in r.getMessage()]
    assert len(told) == 1


def test_the_dashboard_is_exact_with_the_sdk_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED gives no-op spans, all of one id: the facts are folded all the same."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracker, clock = tracker_on(TracerProvider(shutdown_on_exit=False))
    run_all(tracker, clock)
    check_all(tracker)
    assert len({row["id"] for row in tracker.get_recent_transactions(100)}) == 80


def test_the_dashboard_is_exact_on_a_no_op_provider() -> None:
    """The API alone, without any SDK behind it."""
    tracker, clock = tracker_on(trace.NoOpTracerProvider())
    run_all(tracker, clock)
    check_all(tracker)


def test_the_dashboard_is_exact_without_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that takes no processors loses no fact."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(provider, "add_span_processor", lambda processor: None)
    tracker, clock = tracker_on(provider)
    run_all(tracker, clock)
    check_all(tracker)


def test_the_dashboard_is_exact_where_hooks_run_on_another_thread() -> None:
    """ConcurrentMultiSpanProcessor calls processors from a pool of its own."""
    concurrent = ConcurrentMultiSpanProcessor(num_threads=3)
    provider = TracerProvider(active_span_processor=concurrent, shutdown_on_exit=False)
    tracker, clock = tracker_on(provider)
    run_all(tracker, clock)
    check_all(tracker)
    provider.shutdown()


def test_the_dashboard_is_exact_where_a_processor_raises() -> None:
    """An exporter with a bug, in front of ours, loses no fact and does not reach the caller."""

    class Broken(SimpleSpanProcessor):
        def on_end(self, span: Any) -> None:
            raise RuntimeError("a processor with a bug")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken(InMemorySpanExporter()))
    tracker, clock = tracker_on(provider)
    run_all(tracker, clock)
    check_all(tracker)


def test_a_hook_that_cannot_read_a_span_does_not_reach_the_application() -> None:
    """Whatever is wrong in the processor is counted; the application's span goes on."""
    with fresh_tracker() as t:
        processor = t.tracker._processor
        processor.on_start(None)  # type: ignore[arg-type]  # that is the point
        processor.on_end(None)  # type: ignore[arg-type]
        assert t.tracker.get_dashboard_data()["health"]["problems"] == {"processor": 2}


# --- the application's own stays its own ---------------------------------------------------------


def test_the_applications_sampler_and_tracers_are_not_touched() -> None:
    """Only the tracker's own tracer instance has its ids and its sampler."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    app = provider.get_tracer("app")
    id_generator, sampler = provider.id_generator, provider.sampler
    tracker, _ = tracker_on(provider)
    tid = tracker.create_transaction("user", "client")

    assert provider.sampler is sampler is ALWAYS_OFF
    assert provider.id_generator is id_generator
    for tracer in (app, provider.get_tracer("app"), provider.get_tracer("other")):
        assert tracer.sampler is ALWAYS_OFF  # type: ignore[attr-defined]
        assert tracer.id_generator is id_generator  # type: ignore[attr-defined]
        assert not tracer.start_span("of the application").is_recording()
    assert tracker.get_transaction(tid) is not None


def test_two_trackers_on_one_provider_tell_their_spans_apart() -> None:
    """Each counts its own, and none of the other's."""
    provider = TracerProvider(shutdown_on_exit=False)
    one, clock = tracker_on(provider)
    two, _ = tracker_on(provider)
    run_all(one, clock, runs=2)
    check_all(one, runs=2)
    assert two.get_dashboard_data()["system_metrics"]["total_transactions"] == 0
    two.create_transaction("user", "client")
    assert one.get_dashboard_data()["system_metrics"]["total_transactions"] == 8
    assert two.get_dashboard_data()["system_metrics"]["total_transactions"] == 1


def test_the_tracker_adds_its_processor_once() -> None:
    """However often it is configured with the same provider."""
    with fresh_tracker() as t:
        t.tracker.create_transaction("user", "client")
        for _ in range(3):
            t.tracker.configure(t.provider, settle=4)
            t.tracker.create_transaction("user", "client")
        processors = t.provider._active_span_processor._span_processors
        assert sum(isinstance(p, DashboardSpanProcessor) for p in processors) == 1


def test_spans_of_others_with_our_attributes_are_counted() -> None:
    """Whoever made them: a stage, its failure, and the end, from plain OpenTelemetry."""
    with fresh_tracker() as t:
        own = t.tracker.create_transaction("somebody", "client")
        t.tracker.track_event(own, PipelineStage.CONVERSATION_ENDED)
        t.clock.advance(1)
        tracer = t.provider.get_tracer("somebody else")
        now_ns = t.clock.time_ns()
        root = tracer.start_span(
            "audio_pipeline",
            attributes={"otel_tracker.pipeline": "audio_pipeline", "user.id": "user-1"},
            start_time=now_ns,
        )
        tid_hex = f"{root.get_span_context().trace_id:032x}"
        context = trace.set_span_in_context(root)
        stage = tracer.start_span(
            "memory", context, attributes={"otel_tracker.stage": "memory"}, start_time=now_ns
        )
        assert t.status(tid_hex) is TransactionStatus.IN_PROGRESS
        stage.set_status(Status(StatusCode.ERROR, "no space"))
        stage.end(now_ns + 1)
        unrelated = tracer.start_span("SELECT", context, start_time=now_ns)
        unrelated.end(now_ns + 1)
        assert t.status(tid_hex) is TransactionStatus.FAILED
        assert t.issue(tid_hex) == "Failed at memory_completed: no space"
        root.end(now_ns + 2)

        data = t.tracker.get_dashboard_data()
        assert data["system_metrics"]["total_transactions"] == 2
        assert data["stages"]["memory"]["failed"] == 1
        assert data["recent_transactions"][-1]["user_id"] == "user-1"


def test_spans_of_others_are_counted_before_the_first_call() -> None:
    """A tracker that was given a provider listens from then on, not from its first transaction."""
    with fresh_tracker() as t:
        tracer = t.provider.get_tracer("somebody else")
        tracer.start_span("audio_pipeline", attributes={"otel_tracker.pipeline": "x"}).end()
        assert t.tracker.get_dashboard_data()["system_metrics"]["total_transactions"] == 1


def test_spans_without_our_attributes_are_nobodys_business() -> None:
    """The application's other spans make no transaction."""
    with fresh_tracker() as t:
        with t.provider.get_tracer("web").start_as_current_span("GET /"):
            pass
        assert t.tracker.get_dashboard_data()["system_metrics"]["total_transactions"] == 0


def test_a_disabled_tracker_answers_and_makes_no_span() -> None:
    """Every call answers and does nothing."""
    with fresh_tracker(disabled=True) as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED)
        assert len(tid) == 36
        assert t.spans() == []
        assert t.tracker.get_dashboard_data()["system_metrics"]["total_transactions"] == 0


# --- which provider, and when --------------------------------------------------------------------


def python(code: str, *, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own, with nothing about OpenTelemetry in its environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "DEBUG_DUMP"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**clean, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output_of(code: str, *, timeout: float = 60, **env: str) -> Any:
    """The JSON that `code` prints as its last line."""
    done = python(code, timeout=timeout, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_global_provider_is_used_from_when_the_application_sets_it() -> None:
    """Transactions before are kept; those after go where the application exports."""
    result = output_of(
        """
        import json
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from otel_tracker import get_debug_tracker, init_debug_tracker

        tracker = get_debug_tracker()
        before = tracker.create_transaction("user", "client")
        proxy = type(trace.get_tracer_provider()).__name__
        own = tracker.get_dashboard_data()["health"]["export"]["provider"]

        exporter = InMemorySpanExporter()
        app = TracerProvider(shutdown_on_exit=False)
        app.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(app)
        after = tracker.create_transaction("user", "client")
        for tid in (before, after):
            tracker.track_event(tid, "memory_completed")
            tracker.track_event(tid, "conversation_ended")
        same = init_debug_tracker(settle=4) is tracker
        data = tracker.get_dashboard_data()
        print(json.dumps({
            "proxy": proxy, "own": own, "same": same,
            "now": data["health"]["export"]["provider"],
            "untouched": trace.get_tracer_provider() is app,
            "completed": data["system_metrics"]["completed_transactions"],
            "exported": sorted({s.attributes["otel_tracker.transaction.id"] == after
                                for s in exporter.get_finished_spans()}),
            "spans": len(exporter.get_finished_spans()),
        }))
        """
    )
    assert result == {
        "proxy": "ProxyTracerProvider",
        "own": "own",
        "same": True,
        "now": "application",
        "untouched": True,
        "completed": 2,
        "exported": [True],
        "spans": 2,
    }


def test_init_keeps_what_was_tracked_before() -> None:
    """It may come late, and again: the same tracker, the same transactions, new options."""
    result = output_of(
        """
        import json
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from otel_tracker import Pipeline, get_debug_tracker, init_debug_tracker

        first = get_debug_tracker()
        tid = first.create_transaction("user", "client")
        provider = TracerProvider(shutdown_on_exit=False)
        pipeline = Pipeline("own", ("fetch", "store"))
        same = init_debug_tracker(provider, pipeline, stall_after=10) is first
        again = init_debug_tracker(settle=1) is first
        new = first.create_transaction("user", "client")
        print(json.dumps({
            "same": same and again,
            "kept": first.get_transaction(tid).pipeline,
            "new": first.get_transaction(new).pipeline,
            "options": [first.settings.stall_after, first.settings.settle],
            "provider": first.get_dashboard_data()["health"]["export"]["provider"],
            "global": type(trace.get_tracer_provider()).__name__,
        }))
        """
    )
    assert result == {
        "same": True,
        "kept": "audio_pipeline",
        "new": "own",
        "options": [10.0, 1.0],
        "provider": "application",
        "global": "ProxyTracerProvider",
    }


def test_a_given_provider_wins_over_the_global_one() -> None:
    """The application says which; the global one then sees nothing."""
    result = output_of(
        """
        import json
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from otel_tracker import init_debug_tracker

        exporters, providers = [], []
        for _ in range(2):
            exporters.append(InMemorySpanExporter())
            providers.append(TracerProvider(shutdown_on_exit=False))
            providers[-1].add_span_processor(SimpleSpanProcessor(exporters[-1]))
        trace.set_tracer_provider(providers[0])
        tracker = init_debug_tracker(tracer_provider=providers[1])
        tracker.track_event(tracker.create_transaction("u", "c"), "conversation_ended")
        print(json.dumps([len(e.get_finished_spans()) for e in exporters]))
        """
    )
    assert result == [0, 1]


def test_an_independent_tracker_has_a_provider_of_its_own() -> None:
    """It stays off the application's global provider unless it is given it."""
    result = output_of(
        """
        import json
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from otel_tracker import DebugSystemTracker

        exporter = InMemorySpanExporter()
        app = TracerProvider(shutdown_on_exit=False)
        app.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(app)
        tracker = DebugSystemTracker()
        tracker.track_event(tracker.create_transaction("u", "c"), "conversation_ended")
        total = tracker.get_dashboard_data()["system_metrics"]["completed_transactions"]
        print(json.dumps([total, len(exporter.get_finished_spans())]))
        tracker.shutdown()
        """
    )
    assert result == [1, 0]


# --- export --------------------------------------------------------------------------------------

NO_NETWORK = """
        import socket
        attempts = []
        connect = socket.socket.connect
        def recorded(self, address):
            attempts.append(str(address))
            return connect(self, address)
        socket.socket.connect = recorded
        socket.create_connection = lambda *a, **k: attempts.append(str(a)) or 1 / 0
"""

WORK = """
        import json, logging, sys, time
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        from otel_tracker import get_debug_tracker, init_debug_tracker, shutdown_debug_tracker
        tracker = init_debug_tracker()
        for _ in range(50):
            tid = tracker.create_transaction("user", "client")
            tracker.track_event(tid, "memory_completed")
            tracker.track_event(tid, "conversation_ended")
        tracker.create_transaction("user", "client")
"""


def test_with_nothing_configured_nothing_connects_and_the_exit_is_fast() -> None:
    """One informative log line, no connection attempt, no exporter, no slow exit."""
    started = time.monotonic()
    done = python(
        NO_NETWORK
        + WORK
        + """
        exporters = [m for m in sys.modules if m.startswith("opentelemetry.exporter")]
        print(json.dumps({"attempts": attempts, "exporters": exporters, "at": time.time()}),
              flush=True)
        """
    )
    ended = time.time()
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["attempts"], result["exporters"]) == ([], [])
    assert ended - result["at"] < 2, "the interpreter's exit took too long"
    assert time.monotonic() - started < 30
    told = [line for line in done.stderr.splitlines() if "not exported" in line]
    assert len(told) == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in told[0]


def test_the_console_exporter_by_the_standard_variable() -> None:
    """OTEL_TRACES_EXPORTER names the exporter, as everywhere in OpenTelemetry."""
    done = python(WORK, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="voice-notes")
    assert done.returncode == 0, done.stderr
    assert '"name": "audio_pipeline"' in done.stdout
    assert '"service.name": "voice-notes"' in done.stdout
    assert '"otel_tracker.outcome": "interrupted"' in done.stdout  # the one left open


def test_an_exporter_that_is_not_there_is_a_warning() -> None:
    """A typo in OTEL_TRACES_EXPORTER neither stops the application nor goes unnoticed."""
    done = python(
        WORK + "        print(json.dumps(tracker.get_dashboard_data()['health']))",
        OTEL_TRACES_EXPORTER="jaguar",
    )
    assert done.returncode == 0, done.stderr
    health = json.loads(done.stdout)
    assert health["export"] == {"provider": "own", "exporters": {}}
    assert [line for line in done.stderr.splitlines() if "'jaguar'" in line]


def test_export_can_be_switched_off_by_the_standard_variable() -> None:
    """OTEL_TRACES_EXPORTER=none wins over an endpoint."""
    result = output_of(
        WORK + "        print(json.dumps(tracker.get_dashboard_data()['health']['export']))",
        OTEL_TRACES_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert result == {"provider": "own", "exporters": {}}


@contextmanager
def inlet() -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """An OTLP/HTTP inlet on loopback: its port, and path and size of what came."""
    came: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # its name is the interface
            size = int(self.headers["Content-Length"])
            came.append((self.path, len(self.rfile.read(size))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_endpoint_is_all_it_takes_to_export() -> None:
    """OTEL_EXPORTER_OTLP_ENDPOINT alone: OTLP over HTTP, flushed at the interpreter's exit."""
    with inlet() as (port, came):
        done = python(WORK, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
        assert done.returncode == 0, done.stderr
        assert came
        assert {path for path, _ in came} == {"/v1/traces"}
        assert sum(size for _, size in came) > 5_000


@pytest.mark.parametrize("is_up", [True, False])
def test_the_first_export_imports_nothing(is_up: bool) -> None:
    """A child that is forked within an import of another thread's waits for it for ever."""
    with inlet() as (port, _):
        new = output_of(
            """
            import json, sys
            from otel_tracker import get_debug_tracker, stage, transaction
            tracker = get_debug_tracker()
            tracker.create_transaction("user", "client")  # the exporter is made
            before = set(sys.modules)
            with transaction(), stage("memory"):
                pass
            tracker.force_flush(3_000)
            print(json.dumps(sorted(set(sys.modules) - before)))
            """,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port if is_up else 9}",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        )
    assert new == []


def test_force_flush_exports_at_once() -> None:
    """After it the spans are there, without waiting for the batch."""
    with inlet() as (port, came):
        code = (
            WORK
            + """
        flushed = tracker.force_flush(10_000)
        print(json.dumps(flushed), flush=True)
        import os
        os._exit(0)  # as a work-horse leaves: no exit handlers
        """
        )
        done = python(code, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{port}/traces")
        assert done.stdout.strip().splitlines()[-1] == "true", done.stderr
        assert {path for path, _ in came} == {"/traces"}


@contextmanager
def black_hole() -> Iterator[int]:
    """The port of a socket on loopback that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def test_shutdown_is_bounded_where_nobody_answers() -> None:
    """At most 5 s in all, safe to repeat; afterwards every call still answers."""
    with black_hole() as port:
        result = output_of(
            WORK
            + """
        for _ in range(3000):
            tracker.track_event(tracker.create_transaction("u", "c"), "conversation_ended")
        took = []
        for _ in range(3):
            started = time.monotonic()
            shutdown_debug_tracker()
            took.append(time.monotonic() - started)
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, "conversation_ended")
        data = tracker.get_dashboard_data()
        print(json.dumps({
            "took": took,
            "status": tracker.get_transaction(tid).status.value,
            "total": data["system_metrics"]["total_transactions"],
            "export": data["health"]["export"],
            "problem": data["health"]["problems"]["shutdown"],
            "at": time.time(),
        }), flush=True)
        """,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        )
        exited = time.time() - result["at"]
    assert max(result["took"]) < 5.5
    assert sum(result["took"][1:]) < 1
    assert result["status"] == "completed"
    assert result["total"] == 3052
    # What was lost stays to be read: the root of what came after is not exported at all.
    assert result["export"]["provider"] == "own"
    export = result["export"]["exporters"]["otlp"]
    assert export["exported"] == 0
    assert export["lost"]["shutdown"] + export["waiting"] == 3_101
    assert result["problem"] == 1
    assert exited < 4, "the interpreter's exit took too long"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_exit_is_bounded_where_nobody_answers(protocol: str) -> None:
    """A script that never shuts the tracker down leaves within the same bound."""
    with black_hole() as port:
        result = output_of(
            WORK + "        print(json.dumps(time.time()), flush=True)",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        )
        exited = time.time() - result
    assert exited < 8


def test_shutdown_leaves_the_applications_provider_running() -> None:
    """It is the application's to end: its own spans are exported as before."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        t.tracker.shutdown()
        t.tracker.shutdown()
        t.provider.get_tracer("app").start_span("of the application").end()
        assert [s.name for s in t.finished_spans()] == ["audio_pipeline", "of the application"]
        again = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(again, PipelineStage.CONVERSATION_ENDED)
        assert t.status(again) is TransactionStatus.COMPLETED
        assert t.tracker.get_transaction(tid) is not None
