"""Threads, event loops, signals, forks and the garbage collector: nothing is lost or hangs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from otel_tracker import PipelineStage, TransactionStatus
from otel_tracker.testing import fresh_tracker

ROOT = Path(__file__).resolve().parents[1]

THREADS = 8
MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED


def all_at_once(work: Callable[[int], object], threads: int = THREADS) -> None:
    """Runs `work` on that many threads that start together; raises what one of them raised."""
    barrier = threading.Barrier(threads)

    def run(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(run, number) for number in range(threads)]:
            future.result()


@pytest.fixture(autouse=True)
def _switch_threads_often() -> Any:
    """A race that needs a switch at one moment is met far more often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


# --- threads -------------------------------------------------------------------------------------


def test_threads_with_transactions_of_their_own_lose_nothing() -> None:
    """Exact totals while every thread writes and some read."""
    with fresh_tracker() as t:

        def work(number: int) -> None:
            for run in range(60):
                tid = t.tracker.create_transaction(f"user{number}", f"client{number}")
                t.tracker.track_audio_chunk(tid, 10)
                t.tracker.track_event(tid, PipelineStage.TRANSCRIPTION_STARTED)
                t.tracker.track_event(tid, PipelineStage.TRANSCRIPTION_COMPLETED)
                t.tracker.track_event(tid, MEMORY_STARTED)
                t.tracker.track_event(tid, MEMORY_COMPLETED, run % 3 != 0, "every third fails")
                t.tracker.track_event(tid, CONVERSATION_ENDED)
                if run % 10 == 0:
                    metrics = t.tracker.get_dashboard_data()["system_metrics"]
                    assert metrics["total_transactions"] == sum(
                        metrics[f"{status}_transactions"]
                        for status in ("active", "completed", "failed", "stalled")
                    )

        all_at_once(work)
        metrics = t.tracker.get_dashboard_data()["system_metrics"]
        assert metrics["total_transactions"] == 60 * THREADS
        assert metrics["failed_transactions"] == 20 * THREADS
        assert metrics["completed_transactions"] == 40 * THREADS
        assert metrics["total_audio_chunks"] == 60 * THREADS
        assert metrics["total_transcriptions"] == 60 * THREADS
        assert metrics["total_memories"] == 40 * THREADS
        assert len(t.finished_spans()) == 4 * 60 * THREADS
        assert t.tracker.get_dashboard_data()["health"]["problems"] == {}


def test_threads_on_one_transaction_lose_nothing() -> None:
    """Stages of different names, at once in one transaction: every attempt is counted."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")

        def work(number: int) -> None:
            for run in range(20):
                t.tracker.track_event(tid, f"branch{number}_started")
                t.tracker.track_progress(tid, f"branch{number}", run=run)
                t.tracker.track_event(tid, f"branch{number}_completed", run % 2 == 0)

        all_at_once(work)
        stages = t.tracker.get_dashboard_data()["stages"]
        tallies = {
            name: (row["running"], row["done"], row["failed"]) for name, row in stages.items()
        }
        assert tallies == {f"branch{number}": (0, 10, 10) for number in range(THREADS)}
        found = t.tracker.get_transaction(tid)
        assert found is not None
        assert found.status is TransactionStatus.FAILED


def test_threads_on_one_stage_close_every_span() -> None:
    """However starts and ends of one stage meet, each attempt is over exactly once."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")

        def work(number: int) -> None:
            for _ in range(15):
                t.tracker.track_event(tid, MEMORY_STARTED)
                t.tracker.track_event(tid, MEMORY_COMPLETED)

        all_at_once(work)
        t.tracker.track_event(tid, MEMORY_COMPLETED)  # whatever was left open
        row = t.tracker.get_dashboard_data()["stages"]["memory"]
        spans = [s for s in t.finished_spans() if s.name == "memory"]
        assert row["running"] == 0
        assert row["done"] + row["failed"] == len(spans)
        assert len(spans) >= 15 * THREADS


def test_audio_chunks_of_many_threads_are_exact() -> None:
    """No chunk and no byte is lost or counted twice, read live and after the end."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")

        def work(number: int) -> None:
            for run in range(1_000):
                t.tracker.track_audio_chunk(tid, number + 1)
                if run % 100 == 0:
                    t.tracker.get_dashboard_data()

        all_at_once(work)
        total = t.tracker.get_dashboard_data()["system_metrics"]["total_audio_chunks"]
        assert total == 1_000 * THREADS
        t.tracker.track_event(tid, CONVERSATION_ENDED)
        [audio] = [s for s in t.spans() if s["name"] == "audio"]
        assert audio["attributes"]["otel_tracker.audio.chunks"] == 1_000 * THREADS
        assert audio["attributes"]["otel_tracker.audio.bytes"] == 1_000 * sum(range(1, THREADS + 1))
        total = t.tracker.get_dashboard_data()["system_metrics"]["total_audio_chunks"]
        assert total == 1_000 * THREADS


def test_first_chunks_at_once_make_one_audio_span() -> None:
    """The race for the first chunk has one winner, and the others' chunks count too."""
    with fresh_tracker() as t:
        for _ in range(30):
            tid = t.tracker.create_transaction("user", "client")

            def first_chunk(_: int, tid: str = tid) -> None:
                t.tracker.track_audio_chunk(tid, 1)

            all_at_once(first_chunk)
            t.tracker.track_event(tid, CONVERSATION_ENDED)
        audio = [s for s in t.spans() if s["name"] == "audio"]
        assert [s["attributes"]["otel_tracker.audio.chunks"] for s in audio] == [THREADS] * 30
        total = t.tracker.get_dashboard_data()["system_metrics"]["total_audio_chunks"]
        assert total == 30 * THREADS


def test_chunks_that_race_with_the_end_are_counted() -> None:
    """Live packets do not stop for CONVERSATION_ENDED: each is in the total exactly once."""
    with fresh_tracker() as t:
        for _ in range(20):
            tid = t.tracker.create_transaction("user", "client")

            def work(number: int, tid: str = tid) -> None:
                for _ in range(50):
                    t.tracker.track_audio_chunk(tid, 1)
                if number == 0:
                    t.tracker.track_event(tid, CONVERSATION_ENDED)

            all_at_once(work, threads=4)
        total = t.tracker.get_dashboard_data()["system_metrics"]["total_audio_chunks"]
        assert total == 20 * 4 * 50


def test_sockets_of_many_threads_are_exact() -> None:
    """As many connects as disconnects leave none open, and never fewer."""
    with fresh_tracker() as t:

        def work(number: int) -> None:
            for _ in range(50):
                t.tracker.track_websocket_connected("user", "shared")
                t.tracker.track_websocket_connected("user", f"client{number}")
                t.tracker.track_websocket_disconnected("shared")

        all_at_once(work)
        metrics = t.tracker.get_dashboard_data()["system_metrics"]
        assert metrics["active_websockets"] == 50 * THREADS


def test_a_new_thread_for_every_call() -> None:
    """Callers' executors may never reuse a thread: a transaction belongs to none."""
    with fresh_tracker() as t:
        tid = t.tracker.create_transaction("user", "client")
        for event in (MEMORY_STARTED, MEMORY_COMPLETED, CONVERSATION_ENDED):
            thread = threading.Thread(target=t.tracker.track_event, args=(tid, event))
            thread.start()
            thread.join()
        assert t.status(tid) is TransactionStatus.COMPLETED
        assert {s["parent"] for s in t.spans()} == {None, "audio_pipeline"}


# --- event loops ---------------------------------------------------------------------------------


def test_several_event_loops_one_after_the_other_and_at_once() -> None:
    """The tracker belongs to no loop, and needs none."""
    with fresh_tracker() as t:

        async def one(number: int) -> str:
            tid = t.tracker.create_transaction(f"user{number}", "client")
            t.tracker.track_event(tid, MEMORY_STARTED)
            await asyncio.sleep(0)
            t.tracker.track_event(tid, MEMORY_COMPLETED)
            return tid

        async def many() -> list[str]:
            return await asyncio.gather(*(one(number) for number in range(20)))

        first = asyncio.run(many())
        second = asyncio.run(many())
        assert len({*first, *second}) == 40
        all_at_once(lambda _: asyncio.run(many()), threads=4)
        metrics = t.tracker.get_dashboard_data()["system_metrics"]
        assert metrics["total_transactions"] == 40 + 80
        assert metrics["total_memories"] == 40 + 80
        assert {s["parent"] for s in t.spans() if s["name"] == "memory"} <= {"audio_pipeline", "?"}


def test_the_stack_of_a_stuck_task_is_its_await_chain() -> None:
    """A stall says where the coroutine waits, not where the event loop does."""
    with fresh_tracker() as t:

        async def deep_inside(gate: asyncio.Event) -> None:
            await gate.wait()

        async def stuck(tid: str, gate: asyncio.Event) -> None:
            t.tracker.track_event(tid, MEMORY_STARTED)
            await deep_inside(gate)

        async def main() -> str:
            tid = t.tracker.create_transaction("user", "client")
            gate = asyncio.Event()
            task = asyncio.create_task(stuck(tid, gate))
            await asyncio.sleep(0)
            t.advance(60)
            [row] = t.tracker.get_dashboard_data()["stalled"]
            gate.set()
            await task
            return str(row["stack"])

        stack = asyncio.run(main())
        assert stack.index("in stuck") < stack.index("in deep_inside") < stack.index("in wait")


# --- processes of their own ----------------------------------------------------------------------


def output_of(code: str, *, timeout: float = 90, watched: int = 60) -> Any:
    """The JSON that `code` prints as its last line; it dies with its stacks if it hangs.

    It is watched for so many seconds. What forks is not (0): the watchdog's thread is not in the
    child, which would wait for it.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    watch = f"import faulthandler\nfaulthandler.dump_traceback_later({watched}, exit=True)\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", (watch if watched else "") + textwrap.dedent(code)],
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_garbage_collector_may_end_spans_in_the_middle_of_anything() -> None:
    """Generators abandoned in cycles end their spans, and stages, wherever the collector runs."""
    result = output_of(
        """
        import gc, json, logging, threading
        logging.disable(logging.CRITICAL)
        from opentelemetry.sdk.trace import TracerProvider
        from otel_tracker import DebugSystemTracker

        provider = TracerProvider(shutdown_on_exit=False)
        # Links to callers have a test of their own, below.
        tracker = DebugSystemTracker(provider, run_sweeper=False)
        tracer = provider.get_tracer("app")
        gc.set_threshold(200)

        def stream():
            tid = tracker.create_transaction("user", "client")
            tracker.track_event(tid, "memory_started")
            attributes = {"otel_tracker.stage": "stream"}
            with tracer.start_as_current_span("stream", attributes=attributes):
                try:
                    while True:
                        yield
                finally:
                    tracker.track_event(tid, "memory_completed")
                    tracker.track_event(tid, "conversation_ended")
                    tracker.track_audio_chunk(tid, 1)

        class Node:
            pass

        def abandon():
            node = Node()
            node.itself = node
            node.stream = stream()
            next(node.stream)

        errors = []
        def work():
            try:
                for number in range(400):
                    abandon()
                    if number % 20 == 0:
                        tracker.get_dashboard_data()
                        tracker.sweep()
            except BaseException as error:
                errors.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        gc.collect()
        data = tracker.get_dashboard_data()
        stages = data["stages"]
        print(json.dumps({
            "errors": errors,
            "memories": data["system_metrics"]["total_memories"],
            "chunks": data["system_metrics"]["total_audio_chunks"],
            "running": [stages["memory"]["running"], stages["stream"]["running"]],
            "streams": stages["stream"]["done"] + stages["stream"]["failed"],
            "problems": data["health"]["problems"],
        }))
        """
    )
    late = result.pop("chunks")
    assert result == {
        "errors": [],
        "memories": 1200,
        "running": [0, 0],
        "streams": 1200,
        "problems": {},
    }
    assert late == 1200


def test_linking_to_the_callers_span_survives_a_collection() -> None:
    """The caller's span may be one that the collector ends while we hold the SDK's lock on it."""
    result = output_of(
        """
        import gc, json
        from opentelemetry.sdk import util
        from opentelemetry.sdk.trace import TracerProvider
        from otel_tracker import DebugSystemTracker

        provider = TracerProvider(shutdown_on_exit=False)
        tracker = DebugSystemTracker(provider, run_sweeper=False)
        tracer = provider.get_tracer("app")
        tracker.create_transaction("user", "client")
        gc.set_threshold(0)

        def stream():
            with tracer.start_as_current_span("stream"):
                while True:
                    yield

        def abandon():
            one = {}
            one["itself"], one["stream"] = one, stream()
            next(one["stream"])

        append = util.BoundedList.append
        def append_and_collect(self, item):
            if gc.isenabled():  # as an allocation right here may do
                gc.collect()
            append(self, item)
        util.BoundedList.append = append_and_collect

        abandon()  # its span is still the current one
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, "conversation_ended")
        print(json.dumps([tracker.get_transaction(tid).status.value, gc.isenabled()]))
        """,
        watched=10,
    )
    assert result == ["completed", True]


def test_linking_to_the_callers_span_survives_a_signal() -> None:
    """A handler that begins a transaction, called while we hold the SDK's lock on that span."""
    result = output_of(
        """
        import json, os, signal
        from opentelemetry.sdk import util
        from opentelemetry.sdk.trace import TracerProvider
        from otel_tracker import DebugSystemTracker

        provider = TracerProvider(shutdown_on_exit=False)
        tracker = DebugSystemTracker(provider, run_sweeper=False)
        made = []
        signal.signal(signal.SIGUSR1, lambda *_: made.append(tracker.create_transaction("s", "c")))

        append = util.BoundedList.append
        def append_and_interrupt(self, item):
            if not made:
                os.kill(os.getpid(), signal.SIGUSR1)
            append(self, item)
        util.BoundedList.append = append_and_interrupt

        with provider.get_tracer("app").start_as_current_span("caller") as caller:
            made.append(tracker.create_transaction("user", "client"))
        print(json.dumps([len(made), len(caller.links), tracker.metrics.total_transactions]))
        """,
        watched=10,
    )
    assert result == [2, 1, 2]


def test_a_forked_child_drops_what_it_inherited() -> None:
    """It ends and exports nothing of its parent's, can track anew, and the parent goes on."""
    result = output_of(
        """
        import json, os, warnings
        warnings.simplefilter("ignore")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from otel_tracker import get_debug_tracker, init_debug_tracker, shutdown_debug_tracker

        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracker = init_debug_tracker(provider)
        tid = tracker.create_transaction("user", "client")
        tracker.track_audio_chunk(tid, 10)
        tracker.track_event(tid, "memory_started")
        sid = tracker.start_memory_session("audio", "client", "user")
        tracker.track_websocket_connected("user", "client")

        def shown():
            data = tracker.get_dashboard_data()
            metrics = data["system_metrics"]
            return [metrics["total_transactions"], metrics["active_transactions"],
                    metrics["active_websockets"], metrics["total_audio_chunks"],
                    len(tracker.get_recent_sessions()), data["health"]["problems"]]

        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            inherited = shown()
            spans = [s.name for s in exporter.get_finished_spans()]
            new = tracker.create_transaction("user", "client")
            tracker.track_event(new, "memory_completed")
            tracker.track_event(new, "conversation_ended")
            tracker.track_event(tid, "fetch_completed")  # the transaction goes on, by its id
            same = get_debug_tracker() is tracker
            status = tracker.get_transaction(new).status.value
            shutdown_debug_tracker()
            spans += sorted(s.name for s in exporter.get_finished_spans())
            told = {"inherited": inherited, "spans": spans, "same": same, "status": status,
                    "new_id": new != tid}
            os.write(writable, json.dumps(told).encode())
            os._exit(0)
        os.close(writable)
        told = json.loads(os.read(readable, 100_000))
        assert os.waitpid(child, 0)[1] == 0
        before = shown()
        tracker.track_event(tid, "memory_completed")
        tracker.track_event(tid, "conversation_ended")
        print(json.dumps({
            "child": told, "before": before,
            "status": tracker.get_transaction(tid).status.value,
            "spans": sorted(s.name for s in exporter.get_finished_spans()),
        }))
        """,
        watched=0,
    )
    assert result == {
        "child": {
            "inherited": [0, 0, 0, 0, 0, {}],
            "spans": ["audio_pipeline", "fetch", "memory"],
            "same": True,
            "status": "completed",
            "new_id": True,
        },
        "before": [2, 2, 1, 1, 1, {}],
        "status": "completed",
        "spans": ["audio", "audio_pipeline", "memory"],
    }


def test_a_fork_while_other_threads_track_does_not_hang_the_child() -> None:
    """No lock is inherited held, whatever another thread of the parent was doing."""
    result = output_of(
        """
        import json, logging, os, threading, warnings
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        from otel_tracker import DebugSystemTracker

        tracker = DebugSystemTracker()
        tracker.create_transaction("user", "client")  # what the SDK imports late is imported by now
        going = True

        def work():
            while going:
                tid = tracker.create_transaction("user", "client")
                tracker.track_audio_chunk(tid, 1)
                tracker.track_event(tid, "memory_completed", False, "x")
                tracker.get_dashboard_data()
                tracker.sweep()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        [thread.start() for thread in threads]
        codes = []
        for _ in range(15):
            child = os.fork()
            if child == 0:
                tid = tracker.create_transaction("user", "client")
                tracker.track_audio_chunk(tid, 1)
                tracker.track_event(tid, "conversation_ended")
                tracker.sweep()
                data = tracker.get_dashboard_data()["system_metrics"]
                exact = (data["total_transactions"], data["total_audio_chunks"]) == (1, 1)
                tracker.shutdown()
                os._exit(0 if exact else 3)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        going = False
        [thread.join() for thread in threads]
        print(json.dumps(codes))
        """,
        watched=0,
    )
    assert result == [0] * 15


def test_a_forked_child_that_exits_exports_nothing_of_its_parents() -> None:
    """A child that leaves through the exit handlers does not end the parent's open spans again."""
    result = output_of(
        """
        import json, os, sys, warnings
        warnings.simplefilter("ignore")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
        from otel_tracker import init_debug_tracker

        class File(SpanExporter):
            def export(self, spans):
                for span in spans:
                    os.write(writable, f"{os.getpid()} {span.name}\\n".encode())
                return SpanExportResult.SUCCESS

        readable, writable = os.pipe()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(File()))
        tracker = init_debug_tracker(provider)
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, "memory_started")
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        tracker.track_event(tid, "conversation_ended")
        os.close(writable)
        lines = os.read(readable, 100_000).decode().split("\\n")
        lines = [line.split() for line in lines if line]
        print(json.dumps([[int(pid) == parent, name] for pid, name in lines]))
        """,
        watched=0,
    )
    assert result == [[True, "memory"], [True, "audio_pipeline"]]


def test_everybody_gets_the_one_shared_tracker() -> None:
    """Threads that race for it get one instance."""
    result = output_of(
        """
        import json, sys, threading
        sys.setswitchinterval(1e-6)
        import otel_tracker
        from otel_tracker import api

        made = []
        class Slow(otel_tracker.DebugSystemTracker):
            def __init__(self, *args, **options):
                made.append(1)
                super().__init__(*args, **options)
        api.DebugSystemTracker = Slow

        got, barrier = [], threading.Barrier(16)
        def work():
            barrier.wait()
            got.append(otel_tracker.get_debug_tracker())
        threads = [threading.Thread(target=work) for _ in range(16)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(json.dumps([len(made), len({id(tracker) for tracker in got}), bool(got[0])]))
        """
    )
    assert result == [1, 1, True]


def test_a_signal_handler_may_read_and_write() -> None:
    """A handler that interrupts a read on the same thread neither deadlocks nor loses anything."""
    result = output_of(
        """
        import json, logging, signal
        logging.disable(logging.CRITICAL)
        from otel_tracker import DebugSystemTracker

        tracker = DebugSystemTracker(run_sweeper=False)
        calls = []

        def handler(signum, frame):
            tracker.get_dashboard_data()
            tid = tracker.create_transaction("signal", "client")
            tracker.track_event(tid, "memory_completed", False, "stopped by a signal")
            tracker.sweep()
            calls.append(tid)
            signal.setitimer(signal.ITIMER_REAL, 0.0005)  # not periodic: it would interrupt itself

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        total = 0
        while len(calls) < 300:
            tid = tracker.create_transaction("user", "client")
            tracker.track_audio_chunk(tid, 1)
            tracker.track_event(tid, "memory_started")
            tracker.track_event(tid, "memory_completed")
            tracker.get_dashboard_data()
            total += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        data = tracker.get_dashboard_data()
        metrics = data["system_metrics"]
        print(json.dumps({
            "total": metrics["total_transactions"] == total + len(calls),
            "failed": metrics["failed_transactions"] == len(calls),
            "chunks": metrics["total_audio_chunks"] == total,
            "memories": metrics["total_memories"] == total,
            "problems": data["health"]["problems"],
        }))
        """
    )
    assert result == {
        "total": True,
        "failed": True,
        "chunks": True,
        "memories": True,
        "problems": {},
    }
