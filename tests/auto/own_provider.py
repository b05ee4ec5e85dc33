"""The application with an OpenTelemetry of its own: provider, sampler, resource, ids and exporter.

``own_provider.py SAMPLER FILE…`` prints what it exported. With INSTRUMENT=1 the tracker is put in
by code, and with INSTRUMENT=2 it is taken out again after the first half of the files.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased

SAMPLERS = {
    "on": ALWAYS_ON,
    "off": ALWAYS_OFF,
    "ratio 0": TraceIdRatioBased(0.0),
    "parent": ParentBased(ALWAYS_ON),
    "parent off": ParentBased(ALWAYS_OFF),
}


class Counting(IdGenerator):
    """Ids that two runs have in common."""

    def __init__(self) -> None:
        self._trace_ids, self._span_ids = itertools.count(1), itertools.count(1)

    def generate_trace_id(self) -> int:
        """The next one."""
        return next(self._trace_ids)

    def generate_span_id(self) -> int:
        """The next one."""
        return next(self._span_ids)

    def is_trace_id_random(self) -> bool:
        """They are counted."""
        return False


def plain(span: ReadableSpan) -> dict[str, Any]:
    """A span as the exporter got it."""
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name, "scope": span.instrumentation_scope.name,  # type: ignore[union-attr]
        "trace": context.trace_id, "span": context.span_id,
        "parent": span.parent.span_id if span.parent else 0,
        "attributes": dict(span.attributes or {}), "links": len(span.links),
        "resource": span.resource.attributes["service.name"],
    }  # fmt: skip


def main(sampler: str, files: list[str]) -> dict[str, Any]:
    """Runs it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        sampler=SAMPLERS[sampler],
        resource=Resource({"service.name": "notes"}),
        id_generator=Counting(),
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    instrument = int(os.environ.get("INSTRUMENT", "0"))
    if instrument:
        from otel_tracker.instrumentor import OtelTrackerInstrumentor

        OtelTrackerInstrumentor().instrument(tracer_provider=provider)
    from tests.auto.notes import pipeline

    half = len(files) // 2
    results = [pipeline.handle(Path(name), "user-1") for name in files[:half]]
    output: dict[str, Any] = {}
    if instrument:
        from otel_tracker import get_debug_tracker

        output["dashboard"] = get_debug_tracker().get_dashboard_data()
    if instrument > 1:
        OtelTrackerInstrumentor().uninstrument()
    results += [pipeline.handle(Path(name), "user-1") for name in files[half:]]
    spans = [plain(span) for span in exporter.get_finished_spans()]
    return {**output, "results": results, "spans": spans}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))  # noqa: T201 -- it is a program
