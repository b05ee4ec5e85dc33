"""Export of our own provider: which exporters, what became of their spans, and a bounded flush.

As OpenTelemetry's specification says, environment variables decide; with none set nothing is sent.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from .diagnostics import Diagnostics
from .model import to_iso

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


class Flusher:
    """A daemon thread that does one slow thing at a time for somebody who waits only so long.

    It is started beforehand: at the interpreter's exit it would be too late (Python 3.12).

    Raises:
        RuntimeError: no thread can be started.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None]
        self._work = queue.SimpleQueue()
        self.stuck = False
        """Its work took longer than somebody waited: it is still at it."""
        threading.Thread(target=self._run, name="otel-tracker-flush", daemon=True).start()

    def within(self, timeout_s: float, work: Callable[[], Any]) -> Any:
        """What `work` returns, or None if it takes longer than `timeout_s` or raises."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._work.put((work, done))
        try:
            return done.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            self.stuck = True
            return None

    def stop(self) -> None:
        """Ends the thread after what it is at."""
        self._work.put(None)

    def _run(self) -> None:
        while (task := self._work.get()) is not None:
            work, done = task
            try:
                done.put(work())
            except Exception:
                logger.warning("otel_tracker: flushing spans failed", exc_info=True)
                done.put(None)


class CountingExporter(SpanExporter):
    """An exporter that counts what left and what did not, for ``health.export``."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._exported = 0
        self._failed = 0
        self._last_success_ns = 0
        self._last_failure_ns = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As the exporter it wraps."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self._exported += len(spans)
                self._last_success_ns = time.time_ns()
            else:
                self._failed += len(spans)
                self._last_failure_ns = time.time_ns()
        return result

    def shutdown(self) -> None:
        """As the exporter it wraps."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """As the exporter it wraps."""
        return self._exporter.force_flush(timeout_millis)

    def state(self) -> dict[str, Any]:
        """Spans that left and that did not, and when it last went well and badly."""
        return {
            "exported": self._exported,
            "failed": self._failed,
            "last_success": to_iso(self._last_success_ns) if self._last_success_ns else None,
            "last_failure": to_iso(self._last_failure_ns) if self._last_failure_ns else None,
        }


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
