"""How the tracker stands in OpenTelemetry: provider, tracer, sampler, ids, export, shutdown.

The application's provider is used where it has one, and never replaced; its sampler and its other
tracers stay as they are. Otherwise the tracker has a provider of its own, not made global, which
exports only where that was configured the standard way.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 -- the SDK imports it late; a fork in that is a hang
import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import quote, unquote

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.util.types import Attributes

from . import ids, semconv
from .bounded import Flusher
from .diagnostics import Diagnostics, logger
from .exporting import ExportProcessor, batch_settings, configured_exporters
from .model import Fact, is_name
from .processor import STARTING, DashboardSpanProcessor
from .publisher import Publisher

_RANDOM_FLAG: Final = 0x02  # W3C Trace Context level 2: the low 56 bits of the trace id are random


def package_version() -> str:
    """The version of the installed distribution; "0" where it runs from a bare checkout."""
    try:
        return version("otel-tracker")
    except PackageNotFoundError:
        return "0"


# --- ids and sampling, on the tracker's own tracer only -------------------------------------------


class ChosenIds(IdGenerator):
    """Hands out the ids that the recorder chose for the span it is starting on this thread."""

    def __init__(self, otherwise: IdGenerator) -> None:
        self.otherwise = otherwise
        self.users: weakref.WeakSet[Telemetry] = weakref.WeakSet()
        """Trackers on this tracer: newer SDKs give all of a provider's the same one."""

    def generate_trace_id(self) -> int:
        """The chosen trace id, or a fresh one of ours."""
        note = STARTING.note
        return ids.new_trace_id() if note is None else note.start.trace_id

    def generate_span_id(self) -> int:
        """The chosen span id, or a fresh one."""
        note = STARTING.note
        return self.otherwise.generate_span_id() if note is None else note.start.span_id

    def is_trace_id_random(self) -> bool:
        """Our ids' low 56 bits are random, as the W3C flag asks."""
        return True


class RecordAll(Sampler):
    """Records every span for the dashboard, and leaves what is exported to the wrapped sampler.

    It must be the outermost: a sampled-out span would never reach a processor.
    """

    def __init__(self, wrapped: Sampler, diagnostics: Diagnostics) -> None:
        self.wrapped = wrapped
        self._diagnostics = diagnostics

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
        """The wrapped sampler's result, with DROP turned into RECORD_ONLY."""
        is_root = kind is SpanKind.SERVER and attributes is not None
        try:
            result = self.wrapped.should_sample(
                parent_context, trace_id, name, kind, attributes, links, trace_state
            )
            if result.decision is not Decision.DROP and not is_root:
                return result
            state = result.trace_state
            if is_root:
                state = marked(name, state)
            decision = result.decision
            return SamplingResult(
                Decision.RECORD_ONLY if decision is Decision.DROP else decision,
                result.attributes or attributes,
                state,
            )
        except Exception:
            self._diagnostics.error("sampler", "the sampler raised; such spans are not exported")
            return SamplingResult(Decision.RECORD_ONLY, attributes)

    def get_description(self) -> str:
        """As the SDK's own names its samplers."""
        return f"RecordAll{{{self.wrapped.get_description()}}}"


_STATE_KEY: Final = "otel_tracker"
_UNNAMED: Final = "-"
_MOST_ENTRIES: Final = 32  # W3C Trace Context


def marked(pipeline: str, state: TraceState | None = None) -> TraceState:
    """`state` (W3C tracestate) with the mark that says whose trace it is, and its pipeline's name.

    It travels wherever OpenTelemetry propagates a context: a stage that finds itself under a span
    of such a trace belongs to its transaction.
    """
    return _with_mark(pipeline, state) if state else _mark(pipeline)


@lru_cache(maxsize=128)
def _mark(pipeline: str) -> TraceState:
    return _with_mark(pipeline, TraceState())


def _with_mark(pipeline: str, state: TraceState) -> TraceState:
    others = [(key, value) for key, value in state.items() if key != _STATE_KEY]
    value = quote(pipeline, safe="") or _UNNAMED
    return TraceState([(_STATE_KEY, value), *others[: _MOST_ENTRIES - 1]])


def pipeline_in(context: SpanContext) -> str | None:
    """The pipeline's name in a marked trace's context ("" where it has none); None without mark."""
    if not (context.is_valid and ids.is_ours(context.trace_id)):
        return None
    value = context.trace_state.get(_STATE_KEY)
    if value is None:
        return None
    name = "" if value == _UNNAMED else unquote(value)
    return name if is_name(name) else ""


def remote_root(
    tracer: trace.Tracer, trace_id: int, name: str, attributes: Attributes
) -> SpanContext:
    """The context of a root that lives in another process, from its trace id alone.

    The sampler is asked as if for the root itself, so that both processes decide alike.
    """
    sampled = True
    sampler = getattr(tracer, "sampler", None)
    if isinstance(sampler, RecordAll):
        result = sampler.should_sample(
            context_api.Context(), trace_id, name, SpanKind.SERVER, attributes
        )
        sampled = result.decision is Decision.RECORD_AND_SAMPLE
    flags = TraceFlags(_RANDOM_FLAG | (TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT))
    return SpanContext(
        trace_id,
        ids.root_span_id(trace_id),
        is_remote=True,
        trace_flags=flags,
        trace_state=marked(name),
    )


# --- provider and export --------------------------------------------------------------------------


class Telemetry:
    """The tracker's place in OpenTelemetry: which provider, and how to leave it.

    Args:
        processor: feeds the dashboard; added once to whichever provider is used.
        diagnostics: where troubles go.
        provider: the application's, given; otherwise the global one as soon as it is an SDK's.
        follow_global: False keeps an independent tracker off the application's provider.
        make_publisher: feeds a dashboard service, where one is set.
    """

    def __init__(
        self,
        processor: DashboardSpanProcessor,
        diagnostics: Diagnostics,
        provider: trace.TracerProvider | None = None,
        *,
        follow_global: bool = True,
        make_publisher: Callable[[], Publisher | None] = lambda: None,
    ) -> None:
        self._processor = processor
        self._make_publisher = make_publisher
        self._publisher: Publisher | None = None
        self._diagnostics = diagnostics
        is_proxy = isinstance(provider, trace.ProxyTracerProvider)
        self._given = None if is_proxy else provider
        self._follow_global = follow_global
        self._resolved_from: trace.TracerProvider | None = None
        self._tracer: trace.Tracer = trace.NoOpTracer()
        self._provider: trace.TracerProvider | None = None
        self._own: TracerProvider | None = None
        self._own_exports = False
        self._flusher: Flusher | None = None
        self.on_attach: Callable[[], None] = lambda: None
        """Called when a provider is attached to: its exit handler was registered before."""
        self._attached: list[trace.TracerProvider] = []
        self._lock = threading.RLock()  # re-entered where the garbage collector ends a span in it
        self._resolving = False
        self._left = False
        self._export = True
        self._exports: dict[str, ExportProcessor] = {}

    def __del__(self) -> None:
        for export in self._exports.values():
            export.abandon()
        if self._flusher is not None:
            self._flusher.stop()

    def use(self, provider: trace.TracerProvider | None) -> None:
        """From now on `provider` (None: the global one, or our own); export is allowed again."""
        with self._lock:
            if provider is not None and not isinstance(provider, trace.ProxyTracerProvider):
                self._given = provider
            self._left = False
            self._processor.listens = True
            self._export = True
            if self._own is not None and not self._own_exports:
                self._leave_own()  # made after a shutdown, without export
            self._resolved_from = None
        self.publish()

    def publish(self) -> None:
        """Feeds the dashboard service that is set, if one is and it is not fed yet."""
        with self._lock:
            if self._publisher is not None:
                return
            publisher = self._publisher = self._make_publisher()
            if publisher is not None:
                for provider in self._attached:
                    if isinstance(provider, TracerProvider):
                        provider.add_span_processor(publisher)
                publisher.start()

    def leave(self) -> None:
        """Makes no more spans and takes no more facts, until `use` is called.

        The tracer of our scope is as it was without the tracker.
        """
        with self._lock:
            self._left = True
            self._processor.listens = False
            self._processor.forget()
            tracer, self._tracer = self._tracer, trace.NoOpTracer()
            self._given = self._provider = self._resolved_from = None
            if isinstance(tracer, Tracer):
                self._restore(tracer)

    def tracer(self) -> trace.Tracer:
        """The tracer to start a transaction with. Cheap while the provider stays the same."""
        source = self._given
        if source is None and self._follow_global:
            source = trace.get_tracer_provider()
        if source is not None and source is self._resolved_from:
            return self._tracer
        return self._resolve(source)

    def attach(self) -> bool:
        """Feeds the dashboard from the application's provider, if there is one by now.

        Its spans that carry our attributes count from here on, before any call made one of ours.
        True where it is attached.
        """
        source = self._given
        if source is None and self._follow_global:
            source = trace.get_tracer_provider()
        if self._left or not isinstance(source, TracerProvider):
            return False
        if source is not self._resolved_from:
            self._resolve(source)
        return True

    def _resolve(self, source: trace.TracerProvider | None) -> trace.Tracer:
        with self._lock:
            if self._left:
                return trace.NoOpTracer()
            if self._resolving:
                # A signal handler, or the garbage collector, in the middle of the lines below.
                return trace.NoOpTracer()
            self._resolving = True
            try:
                return self._resolve_once(source)
            finally:
                self._resolving = False

    def _resolve_once(self, source: trace.TracerProvider | None) -> trace.Tracer:
        provider = source
        if provider is None or (
            provider is not self._given and not isinstance(provider, TracerProvider)
        ):
            # The global is still the API's proxy: ours serves until the application sets one.
            provider = self._own or self._make_own()
        if provider is not self._provider:
            self._provider = provider
            self._attach(provider)
            tracer = provider.get_tracer(semconv.SCOPE, package_version())
            self._adapt(tracer)
            self._tracer = tracer
        self._resolved_from = source
        return self._tracer

    def _attach(self, provider: trace.TracerProvider) -> None:
        if any(provider is known for known in self._attached):
            return
        self._attached.append(provider)
        if isinstance(provider, TracerProvider):
            provider.add_span_processor(self._processor)
            if self._publisher is not None:
                provider.add_span_processor(self._publisher)
        self.on_attach()

    def _adapt(self, tracer: trace.Tracer) -> None:
        if not isinstance(tracer, Tracer):
            return
        if not isinstance(tracer.id_generator, ChosenIds):
            tracer.id_generator = ChosenIds(tracer.id_generator)
        if not isinstance(tracer.sampler, RecordAll):
            tracer.sampler = RecordAll(tracer.sampler, self._diagnostics)
        if isinstance(tracer.id_generator, ChosenIds):
            tracer.id_generator.users.add(self)

    def _restore(self, tracer: Tracer) -> None:
        generator, sampler = tracer.id_generator, tracer.sampler
        if not isinstance(generator, ChosenIds):
            return
        generator.users.discard(self)
        if not generator.users and isinstance(sampler, RecordAll):
            tracer.id_generator, tracer.sampler = generator.otherwise, sampler.wrapped

    def _make_own(self) -> TracerProvider:
        # The environment's attributes win over ours: merge() prefers the one it is given.
        resource = Resource({"host.name": socket.gethostname()}).merge(_resource())
        own = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._own_exports = self._export
        if self._export:
            settings = batch_settings(self._diagnostics)
            for name, make in configured_exporters(self._diagnostics):
                try:
                    export = ExportProcessor(name, make, self._diagnostics, settings)
                    own.add_span_processor(export)
                    if name in self._exports:
                        export.continue_from(self._exports[name])
                    self._exports[name] = export
                except Exception:
                    self._diagnostics.error(
                        "exporter",
                        "the exporter %r could not be made; check OTEL_TRACES_EXPORTER and "
                        "OTEL_EXPORTER_OTLP_*",
                        name,
                    )
            if self._exports:
                with contextlib.suppress(RuntimeError):  # no thread can be started
                    self._flusher = Flusher()
                logger.info("otel_tracker: spans are exported by %s", ", ".join(self._exports))
            else:
                logger.info(
                    "otel_tracker: the dashboard is live; spans are not exported. To see them in "
                    "Jaeger set OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318"
                )
        self._own = own
        return own

    def export_state(self) -> dict[str, Any]:
        """Whose provider is used, and by what spans leave: for ``health.export``."""
        provider = self._provider
        if provider is not None and provider is not self._own:
            return {"provider": "application", "exporters": None}
        # Also after a shutdown: what was lost in it is still to be read.
        exporters = {name: export.state() for name, export in self._exports.items()}
        return {"provider": None if provider is None else "own", "exporters": exporters}

    def tell_open(self, fact: Fact, name: str, attributes: Mapping[str, Any]) -> None:
        """Tells a dashboard service, where one is fed, of what is open and has no span yet."""
        publisher = self._publisher
        if publisher is not None:
            publisher.tell(fact, name, attributes)

    def publisher_state(self) -> dict[str, Any] | None:
        """How a dashboard service is fed, for ``health.publisher``; None where none is."""
        publisher = self._publisher
        return None if publisher is None else publisher.state()

    def flush(self, timeout_millis: int) -> bool:
        """Asks the provider to export what waits; False if that took longer than the timeout."""
        deadline = time.monotonic() + timeout_millis / 1_000
        publisher = self._publisher
        is_told = publisher is None or publisher.force_flush(timeout_millis)
        return self._flush_provider(_left_ms(deadline)) and is_told

    def _flush_provider(self, timeout_millis: int) -> bool:
        provider = self._provider
        if not isinstance(provider, TracerProvider):
            return True
        if provider is self._own:
            deadline = time.monotonic() + timeout_millis / 1_000
            sent = [e.force_flush(_left_ms(deadline)) for e in self._exports.values()]
            return all(sent)  # each was asked, also after one that failed
        timeout_s = timeout_millis / 1_000
        return bool(self.within(timeout_s, lambda: provider.force_flush(timeout_millis)))

    def within(self, timeout_s: float, work: Callable[[], Any]) -> Any:
        """What `work` returns, or None if it takes longer than `timeout_s` or raises.

        It runs on a daemon thread, which cannot hold up the interpreter's exit.
        """
        flusher, self._flusher = self._flusher, None
        is_kept = flusher is not None
        if flusher is None:
            try:
                flusher = Flusher()
            except RuntimeError:
                # Python 3.12 starts no thread once the interpreter exits. Without an exporter of
                # ours there is nothing slow to wait for.
                return work()
        result = flusher.within(timeout_s, work)
        if is_kept and not flusher.stuck:
            self._flusher = flusher
        else:
            flusher.stop()
        return result

    def shutdown(self, timeout_s: float) -> None:
        """Ends our own provider within `timeout_s` seconds; the application's is its own to end."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            publisher, self._publisher = self._publisher, None
            own = self._own
        if publisher is not None:
            # Its share: the service is next door, or not there.
            publisher.shutdown(timeout_s / 2 if own is not None else timeout_s)
        with self._lock:
            if own is None:
                return
            self._export = False
            self._leave_own()
        exports = list(self._exports.values())
        for left, export in zip(range(len(exports), 0, -1), exports, strict=True):
            # One that hangs leaves the others their share.
            export.shutdown(max(0.1, (deadline - time.monotonic()) / left))
        own.shutdown()
        flusher, self._flusher = self._flusher, None
        if flusher is not None:
            flusher.stop()

    def _leave_own(self) -> None:
        own, self._own = self._own, None
        self._provider = self._resolved_from = None
        self._attached = [p for p in self._attached if p is not own]

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._lock = threading.RLock()
        self._resolving = False
        self._flusher = None
        if self._publisher is not None:
            self._publisher.after_fork()


def _resource() -> Resource:
    """What the environment says of this process."""
    try:
        return Resource.create()
    except RuntimeError:
        # The SDK's detectors run on threads, and none can be started: the main thread has ended.
        default = Resource({"service.name": "unknown_service"})
        return default.merge(OTELResourceDetector().detect())


def _left_ms(deadline: float) -> int:
    return max(0, round((deadline - time.monotonic()) * 1_000))
