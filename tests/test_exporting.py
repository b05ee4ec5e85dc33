"""The processor that exports for our own provider: bounds, counts, logs and forks."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_tracker.diagnostics import Diagnostics
from otel_tracker.exporting import BatchSettings, ExportProcessor, Outage, batch_settings
from otel_tracker.outbox import Outbox

QUICK = BatchSettings(queue_size=1_000, batch_size=10, delay_s=0.02)


class Endpoint(SpanExporter):
    """What an exporter meets, as a test says."""

    def __init__(self) -> None:
        self.arrived: list[str] = []
        self.batches: list[int] = []
        self.answer: Callable[[Sequence[ReadableSpan]], SpanExportResult] = lambda spans: (
            SpanExportResult.SUCCESS
        )
        self.shut = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self.answer(spans)
        if result is SpanExportResult.SUCCESS:
            self.batches.append(len(spans))
            self.arrived += [span.name for span in spans]
        return result

    def shutdown(self) -> None:
        self.shut.set()


class OfOpenTelemetry(Endpoint):
    """As the exporters whose loggers are listened to."""

    __module__ = "opentelemetry.exporter.made.up"


def fails(spans: Sequence[ReadableSpan]) -> SpanExportResult:
    return SpanExportResult.FAILURE


@contextmanager
def exporting(
    settings: BatchSettings = QUICK, *, has_threads: bool = True
) -> Iterator[tuple[Endpoint, ExportProcessor, Callable[[int], None]]]:
    """An endpoint, the processor that sends to it, and a function that ends so many spans."""
    endpoint = OfOpenTelemetry()
    provider = TracerProvider(shutdown_on_exit=False)
    tracer = provider.get_tracer("test")
    with nullcontext() if has_threads else no_threads():
        processor = ExportProcessor("test", lambda: endpoint, Diagnostics(), settings)
    provider.add_span_processor(processor)
    numbers = iter(range(1_000_000))

    def work(count: int) -> None:
        for _ in range(count):
            tracer.start_span(str(next(numbers))).end()

    try:
        yield endpoint, processor, work
    finally:
        processor.shutdown(0.1)


@contextmanager
def no_threads() -> Iterator[None]:
    """As at the interpreter's exit."""

    def refuses(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        yield


def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Waits for what another thread does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def test_spans_leave_by_themselves_in_batches() -> None:
    """A full batch leaves at once, the rest when the delay is over, none twice."""
    with exporting() as (endpoint, processor, work):
        work(25)
        until(lambda: len(endpoint.arrived) == 25)
        assert sorted(endpoint.arrived, key=int) == [str(n) for n in range(25)]
        assert max(endpoint.batches) == 10
        state = processor.state()
        assert (state["exported"], state["waiting"], state["failing_since"]) == (25, 0, None)


def test_a_span_alone_leaves_after_the_delay() -> None:
    """Also where the thread slept because nothing waited."""
    with exporting() as (endpoint, _, work):
        for count in (1, 2, 3):
            work(1)
            until(lambda count=count: len(endpoint.arrived) == count)  # type: ignore[misc]


def test_what_is_not_sampled_stays() -> None:
    """The sampler decides what is exported."""
    endpoint = Endpoint()
    processor = ExportProcessor("test", lambda: endpoint, Diagnostics(), QUICK)
    span = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("test")
    assert not span.start_span("unsampled").is_recording()

    class Recorded:
        context = span.start_span("unsampled").get_span_context()

    processor.on_end(Recorded())  # type: ignore[arg-type]  # all that on_end reads
    assert processor.state()["waiting"] == 0
    processor.shutdown()


def test_an_outage_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two lines, however many tries there were; nothing was lost, and health says so."""
    caplog.set_level(logging.DEBUG)
    with exporting() as (endpoint, processor, work):
        tries = []

        def refuses(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            tries.append(len(spans))
            return SpanExportResult.FAILURE

        endpoint.answer = refuses
        work(40)
        assert not processor.force_flush(700)
        assert len(tries) >= 3
        state = processor.state()
        assert (state["exported"], state["waiting"], state["lost"]["queue_full"]) == (0, 40, 0)
        assert state["failing_since"] is not None
        endpoint.answer = lambda spans: SpanExportResult.SUCCESS
        assert processor.force_flush(5_000)
        assert sorted(endpoint.arrived, key=int) == [str(n) for n in range(40)]
        assert processor.state()["failing_since"] is None
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2, told
    assert "cannot be exported by test" in told[0]
    assert "none was lost" in told[1]


def test_an_endpoint_that_comes_and_goes_is_not_told_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One pair of lines a minute."""
    with exporting() as (endpoint, processor, work):
        for _ in range(5):
            endpoint.answer = fails
            work(1)
            assert not processor.force_flush(50)
            endpoint.answer = lambda spans: SpanExportResult.SUCCESS
            assert processor.force_flush(5_000)
        assert processor.state()["exported"] == 5
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 2


def test_a_full_queue_is_counted_exactly_and_told_at_recovery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of 5,000 spans in an outage the newest are kept, and what is lost is exported + lost."""
    with exporting() as (endpoint, processor, work):
        endpoint.answer = fails
        work(5_000)
        state = processor.state()
        lost = state["lost"]["queue_full"]
        assert lost >= 5_000 - 1_000 - 8 * 10 - 10
        assert state["waiting"] + lost == 5_000
        endpoint.answer = lambda spans: SpanExportResult.SUCCESS
        assert processor.force_flush(10_000)
        lost = processor.state()["lost"]["queue_full"]
        assert len(endpoint.arrived) == 5_000 - lost
        assert "4999" in endpoint.arrived
    assert f"{lost} were lost" in caplog.text


def test_the_reason_is_what_the_exporter_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It is quiet in the log, shown in health, and has no credential in it."""
    with exporting() as (endpoint, processor, work):
        log = logging.getLogger(OfOpenTelemetry.__module__)

        def refuses(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            log.error("refused, token=%s", "sk-live-0123456789abcdef0123456789")
            return SpanExportResult.FAILURE

        endpoint.answer = refuses
        work(1)
        assert not processor.force_flush(50)
        log.error("an exporter of the application's own")
        assert processor.state()["last_error"].startswith("refused")
        assert "sk-live" not in processor.state()["last_error"]
    assert "sk-live" not in caplog.text
    assert "an exporter of the application's own" in caplog.text


def test_an_exporter_that_raises_is_one_that_failed() -> None:
    """Its spans are tried again, and the thread goes on."""
    with exporting() as (endpoint, processor, work):

        def raises(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise ConnectionError("reset by peer")

        endpoint.answer = raises
        work(3)
        assert not processor.force_flush(50)
        assert processor.state()["last_error"] == "ConnectionError: reset by peer"
        endpoint.answer = lambda spans: SpanExportResult.SUCCESS
        assert processor.force_flush(5_000)
        assert len(endpoint.arrived) == 3


def test_an_exporter_that_hangs_blocks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Spans end as ever, flush and shutdown keep their bounds, and the loss is told and counted."""
    with exporting() as (endpoint, processor, work):
        released = threading.Event()

        def hangs(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            released.wait(30)
            return SpanExportResult.FAILURE

        endpoint.answer = hangs
        work(10)
        until(lambda: processor.state()["waiting"] == 10)
        started = time.monotonic()
        work(500)
        assert not processor.force_flush(200)
        processor.shutdown(0.3)
        assert time.monotonic() - started < 3
        state = processor.state()
        assert state["lost"]["shutdown"] + state["waiting"] == 510
        released.set()
        assert endpoint.shut.wait(10)  # its thread goes on, and ends it
        until(lambda: processor.state()["lost"]["shutdown"] == 510)
    assert "510 spans could not be sent by test" in caplog.text


def test_shutdown_sends_what_waits_and_ends_the_exporter() -> None:
    """And is safe to repeat; what comes after it is counted as lost."""
    with exporting(BatchSettings(delay_s=60)) as (endpoint, processor, work):
        work(700)
        processor.shutdown()
        processor.shutdown()
        assert len(endpoint.arrived) == 700
        assert endpoint.shut.is_set()
        work(2)
        assert processor.state()["lost"]["shutdown"] == 2
        assert processor.force_flush(10)


def test_without_a_thread_spans_leave_at_the_flush() -> None:
    """At the interpreter's exit no thread can be started: the caller sends by itself."""
    with exporting(has_threads=False) as (endpoint, processor, work), no_threads():
        work(5)
        assert endpoint.arrived == []
        assert processor.force_flush()
        assert len(endpoint.arrived) == 5
        work(1)
        processor.shutdown()
        assert len(endpoint.arrived) == 6
        assert endpoint.shut.is_set()


def test_the_exporters_own_calls_are_not_traced() -> None:
    """Instrumented HTTP clients leave alone what runs with OpenTelemetry's suppression."""
    from opentelemetry.instrumentation.utils import is_instrumentation_enabled

    with exporting() as (endpoint, processor, work):
        seen = []

        def looks(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            seen.append(is_instrumentation_enabled())
            return SpanExportResult.SUCCESS

        endpoint.answer = looks
        work(1)
        assert processor.force_flush()
        assert seen == [False]
        assert is_instrumentation_enabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_sends_its_own_spans_by_its_own_exporter() -> None:
    """What the parent had waiting is the parent's; connections are not shared."""
    made: list[tuple[int, Endpoint]] = []

    def make() -> Endpoint:
        made.append((os.getpid(), Endpoint()))
        return made[-1][1]

    processor = ExportProcessor("test", make, Diagnostics(), BatchSettings(delay_s=60))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")
    tracer.start_span("of the parent").end()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        tracer.start_span("of the child").end()
        is_sent = processor.force_flush(5_000)
        mine = [e.arrived for owner, e in made if owner == os.getpid()]
        os.write(write, repr((is_sent, mine, len(made))).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == repr((True, [["of the child"]], 2))
    os.waitpid(pid, 0)
    processor.shutdown()
    assert made[0][1].arrived == ["of the parent"]


def test_the_specifications_variables_are_obeyed(caplog: pytest.LogCaptureFixture) -> None:
    """OTEL_BSP_*: milliseconds and counts; a bad value is a warning and the default."""
    diagnostics = Diagnostics()
    env = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200",
        "OTEL_BSP_SCHEDULE_DELAY": "250",
    }
    assert batch_settings(diagnostics, env) == BatchSettings(100, 100, 0.25)
    assert caplog.text == ""
    assert batch_settings(diagnostics, {"OTEL_BSP_SCHEDULE_DELAY": "soon"}) == BatchSettings()
    assert "OTEL_BSP_SCHEDULE_DELAY='soon'" in caplog.text


def test_a_flush_ends_while_the_application_goes_on() -> None:
    """It sends what waited when it was asked for: what others end meanwhile has no end."""
    with exporting() as (endpoint, processor, work):
        work(5)
        more = iter(range(2_000))

        def slow(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if next(more, None) is not None:
                work(10)  # while a batch is under way, another one ends
            return SpanExportResult.SUCCESS

        endpoint.answer = slow
        assert processor.force_flush(5_000)
        assert next(more, None) is not None, "it went on to the very end"
        endpoint.answer = lambda spans: SpanExportResult.SUCCESS


def test_an_outage_that_began_in_a_quiet_minute_is_told_when_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not told at once, having just been told; but an hour without a word would be wrong."""
    now = [1_000.0]
    outage = Outage("test", lambda: now[0])
    outbox: Outbox[ReadableSpan] = Outbox(10, 1)

    def told() -> list[str]:
        return [record.message for record in caplog.records]

    outage.begins("down", (now[0], 1))
    outage.over(outbox)
    assert len(told()) == 2
    now[0] += 10
    outage.begins("down again", (now[0], 2))
    assert len(told()) == 2
    now[0] += 60
    outage.begins("still down", (now[0], 3))
    assert "still down" in told()[2]
    outage.over(outbox)
    assert "again after 60 s" in told()[3]


def test_what_an_exporter_raises_that_is_no_exception_ends_nothing() -> None:
    """A panic of native code is tried again like any failure, and the thread lives."""
    with exporting() as (endpoint, processor, work):

        def panics(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise BaseException("panicked")

        endpoint.answer = panics
        work(3)
        assert not processor.force_flush(50)
        assert processor.state()["last_error"] == "BaseException: panicked"
        endpoint.answer = lambda spans: SpanExportResult.SUCCESS
        assert processor.force_flush(5_000)
        assert len(endpoint.arrived) == 3


def test_a_flush_from_within_the_exporter_does_not_wait_for_itself() -> None:
    """A log handler that flushes, called on the exporting thread."""
    with exporting() as (endpoint, processor, work):
        said = []

        def flushes(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            said.append(processor.force_flush(5_000))
            return SpanExportResult.SUCCESS

        endpoint.answer = flushes
        work(1)
        started = time.monotonic()
        assert processor.force_flush(10_000)
        assert time.monotonic() - started < 4
        assert said == [False]


def test_counts_go_on_after_a_shutdown_and_a_new_beginning() -> None:
    """Also of a batch that was under way at the shutdown and failed only later."""
    with exporting() as (endpoint, processor, work), exporting() as (_, after, work_after):
        released = threading.Event()

        def hangs(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            released.wait(30)
            return SpanExportResult.FAILURE

        endpoint.answer = hangs
        work(10)
        until(lambda: processor.state()["waiting"] == 10)
        processor.shutdown(0.1)
        after.continue_from(processor)
        work_after(5)
        assert after.force_flush(5_000)
        released.set()
        until(lambda: after.state()["lost"]["shutdown"] == 10)
        assert (after.state()["exported"], after.state()["waiting"]) == (5, 0)


def test_the_filter_on_a_logger_is_one_however_often_is_exported() -> None:
    """Nothing grows, and a fork in the middle leaves nothing behind that swallows lines."""
    log = logging.getLogger(OfOpenTelemetry.__module__)
    with exporting() as (_, processor, work):
        for _ in range(20):
            work(1)
            assert processor.force_flush()
        assert len(log.filters) == 1
    with exporting() as (_, processor, work):
        work(1)
        assert processor.force_flush()
    assert len(log.filters) == 1


def test_spans_that_come_too_fast_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Export works, and yet 4,000 of 5,000 never left: one line says so, with the number."""
    with exporting(BatchSettings(queue_size=1_000, batch_size=10, delay_s=60)) as parts:
        endpoint, processor, work = parts
        entered, released = threading.Event(), threading.Event()

        def slow(spans: Sequence[ReadableSpan]) -> SpanExportResult:
            entered.set()
            released.wait(30)
            return SpanExportResult.SUCCESS

        endpoint.answer = slow
        work(10)
        assert entered.wait(10)
        work(5_000)
        released.set()
        assert processor.force_flush(10_000)
        assert processor.state()["lost"]["queue_full"] == 4_000
    told = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == 1, told
    assert "4000 spans for test were lost" in told[0]
