"""What every peer is measured against: a span by OpenTelemetry alone, and the printed figure.

Runs in the peers' environments, which have OpenTelemetry and the peer, but not this project.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from ..timing import compare

ATTRIBUTES: dict[str, str | int] = {
    "client": "cd7994-laptop",
    "user": "507f1f77bcf8",
    "conversation": "conv_123",
    "chunk_size": 1024,
    "attempt": 1,
}


class _Counter(SpanExporter):
    """Counts every span and throws it away."""

    seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.seen += len(spans)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        return None


class Discard(BatchSpanProcessor):
    """A batch processor behind which nothing is sent, for both sides of a comparison."""

    def __init__(self) -> None:
        self._counter = _Counter()
        super().__init__(self._counter, max_queue_size=1 << 16)

    def seen(self) -> int:
        """How many spans came, those still queued included."""
        self.force_flush()
        return self._counter.seen


def provider(processor: Discard) -> TracerProvider:
    made = TracerProvider(resource=Resource({"service.name": "bench"}), shutdown_on_exit=False)
    made.add_span_processor(processor)
    return made


def stage(client: str, user: str, conversation: str, chunk_size: int, attempt: int) -> None:
    """For the decorators that record the arguments."""


def measure(name: str, work: Callable[[], object], *libraries: str) -> int:
    """Times `work` against a bare span, prints a line of JSON, and returns the number of calls."""
    discard = Discard()
    rival = provider(discard)
    tracer = rival.get_tracer("bare")

    def bare() -> None:
        with tracer.start_as_current_span("stage", attributes=ATTRIBUTES):
            pass

    measured = compare(work, bare, rounds=300)
    versions = {library: version(library) for library in (*libraries, "opentelemetry-sdk")}
    versions["Python"] = platform.python_version()
    print(json.dumps({"name": name, **measured._asdict(), "versions": versions}), flush=True)
    calls = discard.seen()
    rival.shutdown()
    return calls
