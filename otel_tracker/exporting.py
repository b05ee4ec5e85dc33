"""Export of our own provider: which exporters, and a processor that loses nothing unsaid.

As OpenTelemetry's specification says, environment variables decide; with none set nothing is sent.

The SDK's own batch processor drops a batch that failed, drops the oldest spans of a burst, and
counts neither in public; its exporters warn at every try. So this one keeps what failed and tries
again, counts every span, warns once when export begins to fail and once when it works again, and
ends within a bound.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any, Final, Self

from opentelemetry import context as context_api
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from .diagnostics import Diagnostics
from .model import to_iso
from .outbox import Batch, Lost, Outbox
from .privacy import scrub

logger: Final = logging.getLogger("otel_tracker")

_EXPORT_VARIABLES: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_INSECURE",
)

SHUTDOWN_S: Final = 5.0
"""Bound on shutdown and on the interpreter's exit: the SDK's own takes up to 30 s."""

_IDLE_S: Final = 5.0  # sleep where nothing waits: of two first spans at once none may ring
_LONGEST_WAIT_S: Final = 86_400.0  # a lock takes no longer timeout than its clock can tell
_LONGEST_PAUSE_S: Final = 5.0  # between two tries; the exporters pause between tries of their own
_QUIET_S: Final = 60.0  # an endpoint that comes and goes is warned of once in this time
_LONGEST_REASON: Final = 200
_FLUSH_PAUSE_S: Final = 0.2  # between two tries while somebody waits
_JOIN_S: Final = 0.5  # for an exporter to close its connections
_FORK_S: Final = 0.25  # a fork waits for a call of gRPC; one that goes well takes milliseconds


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How spans are batched: the variables of OpenTelemetry's specification."""

    queue_size: int = 65_536
    """Spans that may wait (``OTEL_BSP_MAX_QUEUE_SIZE``). The specification's 2,048 are 300
    transactions; these are some 10,000."""
    batch_size: int = 512
    """Spans in one request (``OTEL_BSP_MAX_EXPORT_BATCH_SIZE``)."""
    delay_s: float = 1.0
    """From the first span to the request (``OTEL_BSP_SCHEDULE_DELAY``, in ms). The specification's
    5 s would show a stall late."""


def batch_settings(
    diagnostics: Diagnostics, environ: Mapping[str, str] | None = None
) -> BatchSettings:
    """What the environment asks for; a bad value is a warning and the default."""
    env = os.environ if environ is None else environ
    default = BatchSettings()

    def number(name: str, otherwise: int) -> int:
        text = env.get(name, "").strip()
        try:
            value = int(text) if text else otherwise
        except ValueError:
            value = 0
        if value >= 1:
            return value
        diagnostics.warn(
            f"setting:{name}", "%s=%r is no whole number above 0; using %d", name, text, otherwise
        )
        return otherwise

    size = number("OTEL_BSP_MAX_QUEUE_SIZE", default.queue_size)
    return BatchSettings(
        size,
        min(size, number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", default.batch_size)),
        number("OTEL_BSP_SCHEDULE_DELAY", round(default.delay_s * 1_000)) / 1_000,
    )


class _Flush:
    """Somebody waits for all to be sent."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.done: queue.SimpleQueue[bool] = queue.SimpleQueue()


_FULL: Final = "full"  # a batch is
_FIRST: Final = "first"  # a span came where none was waiting
_STOP: Final = "stop"


class ExportProcessor(SpanProcessor):
    """Sends ended spans with an exporter, from a thread of its own.

    `on_end` appends to a queue and never waits. What is asked for by ``flush`` and ``shutdown`` is
    bounded by their timeouts, whatever the exporter does: its thread is a daemon.

    Args:
        name: of the exporter, for logs.
        make: makes the exporter; again in a forked child, which must not share its connections.
        diagnostics: where its own troubles go.
        settings: sizes and times.
        clock: monotonic seconds.

    Raises:
        Exception: what `make` raises.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], SpanExporter],
        diagnostics: Diagnostics,
        settings: BatchSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._make = make
        self._diagnostics = diagnostics
        self._settings = settings or BatchSettings()
        self._clock = clock
        self._lock = threading.RLock()
        # requests imports it in its first call: a child that is forked in that moment would wait
        # for its lock, which a thread holds that is not there.
        import netrc  # noqa: F401

        self._exporter: SpanExporter | None = make()
        self._is_grpc = "grpc" in type(self._exporter).__module__
        self._has_called = False
        self._unusable = ""
        self._before: ExportProcessor | None = None
        self._begin()
        self._start()
        _processors.add(self)

    def _begin(self) -> None:
        self._outbox: Outbox[ReadableSpan] = Outbox(
            self._settings.queue_size, self._settings.batch_size
        )
        # Its put() may be interrupted by another one on the same thread, unlike an Event's set().
        self._bell: queue.SimpleQueue[_Flush | str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._calling = threading.Lock()
        """Held while the exporter is called."""
        self._outage = Outage(self._name, self._clock)
        self._not_before = 0.0
        self._failures = 0
        self._is_stopped = False
        self._last_success_ns = self._last_failure_ns = 0

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._is_stopped:
                return
            thread = threading.Thread(target=self._run, name="otel-tracker-export", daemon=True)
            self._thread = thread
            try:
                thread.start()
            except RuntimeError:
                self._thread = None
                self._diagnostics.warn(
                    "export_thread",
                    "no thread could be started to export spans; they leave when the tracker is "
                    "flushed or shut down",
                )

    def before_fork(self) -> bool:
        """Waits a moment for a call of gRPC's to end, or for the first call of any exporter.

        In a child that was forked during a call gRPC aborts the process. The first call of others
        may import modules, which in a child would then be locked for ever.

        Returns:
            Whether it is held until `after_fork`.
        """
        minds = self._is_grpc or not self._has_called
        return minds and self._calling.acquire(timeout=_FORK_S)

    def after_fork(self, *, is_held: bool, is_child: bool) -> None:
        """In a forked child what waits is the parent's to send, and so are its connections."""
        if not is_child:
            if is_held:
                self._calling.release()
            return
        if self._is_grpc and not is_held:
            self._unusable = (
                "this process was forked during a call of gRPC, which it would not survive; "
                "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or fork before the first span"
            )
        self._lock = threading.RLock()
        self._exporter = self._before = None
        self._begin()

    def continue_from(self, before: ExportProcessor) -> None:
        """Goes on counting where another one ended, which may still be at its last batch."""
        self._before = before

    # --- on the application's threads -----------------------------------------------------------

    def on_start(self, span: Span, parent_context: context_api.Context | None = None) -> None:
        """Starts the thread, where a fork has left none."""
        if self._thread is None:
            self._start()

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a sampled span."""
        context = span.context
        if context is not None and context.trace_flags.sampled:
            self.put(span)

    def put(self, span: ReadableSpan) -> None:
        """Queues a span, sampled or not."""
        count = self._outbox.put(span)
        if count == 1:
            self._bell.put(_FIRST)
        elif count == self._settings.batch_size:
            self._bell.put(_FULL)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Sends what waits; False where not all of it was sent within the timeout."""
        if self._is_stopped:
            return True
        flush = _Flush(self._clock() + timeout_millis / 1_000)
        if self._thread is None:
            # No thread could be started: at the interpreter's exit none can be (Python 3.12).
            return self._send_until(flush.deadline_s)
        if self._thread is threading.current_thread():
            return False  # from a log handler: it would wait for itself
        self._bell.put(flush)
        try:
            return flush.done.get(timeout=min(max(0.0, timeout_millis / 1_000), _LONGEST_WAIT_S))
        except queue.Empty:
            return False

    def abandon(self) -> None:
        """Nobody holds the tracker any more: the thread sends what waits, and ends."""
        self._bell.put(_Flush(self._clock() + SHUTDOWN_S))
        self._bell.put(_STOP)

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Sends what waits, within `timeout_s` seconds; what is left then is lost, and counted."""
        if self._is_stopped:
            return
        deadline = self._clock() + timeout_s
        self.force_flush(round(timeout_s * 1_000))
        self._is_stopped = True
        self._outbox.close()
        left = self._outbox.lost.shutdown + self._outbox.waiting
        if left:
            # Each time, unlike other problems: it says how many.
            self._diagnostics.counts["shutdown"] += 1
            logger.warning(
                "otel_tracker: %d spans could not be sent by %s within %.1f s of shutdown and are "
                "lost; %s",
                left,
                self._name,
                timeout_s,
                self._outage.reason or "is the endpoint of OTEL_EXPORTER_OTLP_ENDPOINT up?",
            )
        self._bell.put(_STOP)
        thread = self._thread
        if thread is None:
            self._end_exporter()
        elif thread is not threading.current_thread():
            thread.join(min(_JOIN_S, max(0.0, deadline - self._clock())))

    def state(self) -> dict[str, Any]:
        """What became of the spans, for ``health.export``: docs/dashboard-data.md."""
        outage = self._outage
        exported = waiting = 0
        lost = Lost()
        one: ExportProcessor | None = self
        while one is not None:
            exported += one._outbox.exported
            waiting += one._outbox.waiting
            lost.add(one._outbox.lost)
            one = one._before
        return {
            "exported": exported,
            "waiting": waiting,
            "lost": asdict(lost),
            "failing_since": to_iso(outage.since_ns) if outage.since_ns else None,
            "last_error": outage.reason or None,
            "last_success": to_iso(self._last_success_ns) if self._last_success_ns else None,
            "last_failure": to_iso(self._last_failure_ns) if self._last_failure_ns else None,
        }

    # --- on the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        # What the exporter does is no work of the application's: its HTTP client is not traced.
        context_api.attach(context_api.set_value("suppress_instrumentation", True))
        bell = self._bell
        while True:
            try:
                task = self._next(bell)
                if task == _STOP:
                    break
                if isinstance(task, _Flush):
                    task.done.put(self._send_until(task.deadline_s))
                elif self._clock() >= self._not_before:
                    self._send()
            except BaseException:
                self._diagnostics.error("export", "the exporting thread goes on after an error")
        self._is_stopped = True
        self._outbox.close()
        self._end_exporter()

    def _next(self, bell: queue.SimpleQueue[_Flush | str]) -> _Flush | str | None:
        """Waits for a flush, a full batch, or the time for what waits."""
        now = self._clock()
        if self._failures:
            due = self._not_before
        else:
            due = now + (self._settings.delay_s if self._outbox.waiting else _IDLE_S)
        while True:
            try:
                task = bell.get(timeout=min(max(0.0, due - self._clock()), _LONGEST_WAIT_S))
            except queue.Empty:
                return None
            if task == _FIRST:
                due = min(due, self._clock() + self._settings.delay_s)
            elif task != _FULL or not self._failures:
                return task

    def _send(self) -> None:
        """Sends batch after batch, until one fails."""
        while (batch := self._outbox.take()) is not None:
            # A few spans more may have come: they are worth a batch of their own, later.
            if not (self._export(batch) and self._outbox.has_more()):
                break

    def _send_until(self, deadline_s: float) -> bool:
        """Sends as many as wait by now: those that others end meanwhile have no end."""
        goal = self._outbox.gone + self._outbox.waiting
        while self._outbox.gone < goal:
            left = deadline_s - self._clock()
            if left <= 0 or self._is_stopped:
                return False
            batch = self._outbox.take()
            if batch is None:
                break
            if not self._export(batch):
                time.sleep(max(0.0, min(_FLUSH_PAUSE_S, deadline_s - self._clock())))
        return True

    def _export(self, batch: Batch[ReadableSpan]) -> bool:
        reason = ""
        result = SpanExportResult.FAILURE
        began = self._clock(), time.time_ns()
        try:
            if self._unusable:
                reason = self._unusable
            else:
                with self._calling:
                    if self._exporter is None:
                        self._exporter = self._make()
                    with _Overheard(self._exporter) as overheard:
                        result = self._exporter.export(batch.items)
                self._has_called = True
                reason = overheard.last
        except BaseException as error:  # a PanicException of Rust code, for one, is no Exception
            reason = f"{type(error).__name__}: {error}"
            if threading.current_thread() is not self._thread and not isinstance(error, Exception):
                self._outbox.failed(batch)
                raise  # KeyboardInterrupt or SystemExit of the caller's own
        if result is SpanExportResult.SUCCESS:
            self._outbox.delivered(batch)
            self._last_success_ns = time.time_ns()
            self._failures = 0
            self._not_before = 0.0
            self._outage.over(self._outbox)
            return True
        self._outbox.failed(batch)
        self._last_failure_ns = time.time_ns()
        self._failures += 1
        pause = min(_LONGEST_PAUSE_S, 0.5 * 2 ** min(self._failures, 10))
        self._not_before = self._clock() + pause
        self._outage.begins(reason, began)
        return False

    def _end_exporter(self) -> None:
        try:
            if self._exporter is not None:
                with self._calling, _Overheard(self._exporter):
                    self._exporter.shutdown()
        except BaseException:
            self._diagnostics.error("export", "the exporter could not be ended")


class Outage:
    """Export that fails: told once when it begins, and once when it is over.

    Args:
        name: of the exporter.
        clock: monotonic seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self.since_ns = 0
        """Wall clock; 0 where export works."""
        self.reason = ""
        self._since = 0.0
        self._lost_before = 0
        self._warned_at: float | None = None
        self._loss_told_at: float | None = None
        self._untold = 0
        self._is_told = False

    def begins(self, reason: str, at: tuple[float, int]) -> None:
        """A batch failed that was sent at this time, by the monotonic and by the wall clock."""
        self.reason = scrub(reason)[:_LONGEST_REASON] or self.reason or "it gave no reason"
        now = self._clock()
        if not self.since_ns:
            self._since, self.since_ns = at
            self._is_told = False
        if self._is_told:
            return
        # One that began within a quiet minute is told when that is over, if it still lasts.
        if self._warned_at is None or now - self._warned_at > _QUIET_S:
            self._is_told = True
            self._warned_at = now
            logger.warning(
                "otel_tracker: spans cannot be exported by %s (%s); they are kept and tried again; "
                "health.export has the counts, and `otel-tracker doctor` finds the cause",
                self._name,
                self.reason,
            )

    def over(self, outbox: Outbox[ReadableSpan]) -> None:
        """A batch arrived."""
        # From the last success on: the first try may hang for long before it fails.
        lost_by_now = outbox.lost.total()
        lost, self._lost_before = lost_by_now - self._lost_before, lost_by_now
        is_outage, self.since_ns = self.since_ns != 0, 0
        if is_outage and self._is_told:
            logger.warning(
                "otel_tracker: spans are exported by %s again after %.0f s; %s",
                self._name,
                self._clock() - self._since,
                f"{lost} were lost" if lost else "none was lost",
            )
        elif lost:
            self._tell_loss(lost)

    def _tell_loss(self, lost: int) -> None:
        """Spans were lost though export works: they came faster than they left."""
        self._untold += lost
        now = self._clock()
        if self._loss_told_at is None or now - self._loss_told_at > _QUIET_S:
            self._loss_told_at = now
            logger.warning(
                "otel_tracker: %d spans for %s were lost: they came faster than they left, or were "
                "refused; health.export has the counts, OTEL_BSP_MAX_QUEUE_SIZE is the queue",
                self._untold,
                self._name,
            )
            self._untold = 0


class _Listener(threading.local):
    """Who listens on this thread."""

    overheard: _Overheard | None = None


_listener: Final = _Listener()


def _is_for_others(record: logging.LogRecord) -> bool:
    """A log filter: False for what is overheard on this thread."""
    overheard = _listener.overheard
    if overheard is None:
        return True
    overheard.last = record.getMessage()
    return False


class _Overheard:
    """Takes what an exporter logs on this thread: it would warn at every try.

    The application's own exporters are of the same class, and go on logging. The filter stays on
    the loggers: another thread may be going through their filters, and a fork would keep it.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self.last = ""
        """The newest message."""
        for kind in type(exporter).__mro__:
            if kind.__module__.startswith("opentelemetry."):
                logging.getLogger(kind.__module__).addFilter(_is_for_others)

    def __enter__(self) -> Self:
        _listener.overheard = self
        return self

    def __exit__(self, *error: object) -> None:
        _listener.overheard = None


_processors: Final[weakref.WeakSet[ExportProcessor]] = weakref.WeakSet()


class _Forking(threading.local):
    """What this thread holds for its forks: one within another, if a signal handler forks."""

    def __init__(self) -> None:
        self.held: list[list[ExportProcessor]] = []


_forking: Final = _Forking()


def _before_fork() -> None:
    _forking.held.append([one for one in list(_processors) if one.before_fork()])


def _after_fork(*, is_child: bool) -> None:
    held = _forking.held.pop()
    for one in list(_processors):
        is_held = any(one is other for other in held)
        one.after_fork(is_held=is_held, is_child=is_child)


def shutdown_exports(deadline: float) -> None:
    """Ends every processor that nobody has ended, by this monotonic time."""
    for one in list(_processors):
        one.shutdown(max(0.1, deadline - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(is_child=False),
        after_in_child=lambda: _after_fork(is_child=True),
    )


def configured_exporters(
    diagnostics: Diagnostics, environ: dict[str, str] | None = None
) -> list[tuple[str, Callable[[], SpanExporter]]]:
    """The span exporters that the environment asks for, by name; none if it asks for none.

    ``OTEL_TRACES_EXPORTER`` names them; where it is unset, an ``OTEL_EXPORTER_OTLP_*`` that says
    where to or how to send means OTLP.
    """
    env = dict(os.environ) if environ is None else environ
    names = env.get("OTEL_TRACES_EXPORTER", "").strip()
    if not names:
        names = "otlp" if any(env.get(name, "").strip() for name in _EXPORT_VARIABLES) else "none"
    wanted = []
    for raw in names.split(","):
        name = raw.strip()
        if name in ("", "none"):
            continue
        entry_name = _otlp_entry(env) if name == "otlp" else name
        found = list(entry_points(group="opentelemetry_traces_exporter", name=entry_name))
        if not found:
            diagnostics.warn(
                f"exporter:{name}",
                "OTEL_TRACES_EXPORTER names %r, which is not installed; 'otlp' and 'console' are",
                name,
            )
            continue
        wanted.append((name, _maker(found[0])))
    return wanted


def _maker(entry: Any) -> Callable[[], SpanExporter]:
    def make() -> SpanExporter:
        exporter: SpanExporter = entry.load()()
        return exporter

    return make


def _otlp_entry(env: dict[str, str]) -> str:
    protocol = (
        env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"  # the specification's default
    )
    return "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
