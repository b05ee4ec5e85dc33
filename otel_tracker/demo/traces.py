"""A trace as it was received: its spans as a tree, and what they prove.

Reads OTLP by itself: it shows what every backend would see, not what the tracker makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """What there is to show of a span."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    name: str
    service: str
    process: str
    """Id of the process that did the work."""
    start_ns: int
    end_ns: int
    outcome: str
    """As the tracker tells it; empty on a wait, and on a root whose end other processes tell."""


def spans_in(body: bytes) -> Iterator[Span]:
    """The spans in an OTLP request, which the receiver has found to be one."""
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _texts(resource_spans.resource.attributes).get("service.name", "")
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                texts = _texts(span.attributes)
                where = texts.get("otel_tracker.where", "").split("/")  # host/process/thread
                yield Span(
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    service,
                    where[1] if len(where) > 1 else "",
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    texts.get("otel_tracker.stage.outcome")
                    or texts.get("otel_tracker.outcome")
                    or ("error" if span.status.code == Status.STATUS_CODE_ERROR else ""),
                )


def _texts(attributes: Iterable[Any]) -> dict[str, str]:
    return {one.key: one.value.string_value for one in attributes}


class Trace:
    """The spans of one trace.

    Args:
        spans: all that were received; one that was sent twice counts once.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = {span.span_id: span for span in spans}
        self._children: dict[str, list[Span]] = {}
        for span in sorted(self._spans.values(), key=lambda s: (s.start_ns, -s.end_ns)):
            self._children.setdefault(span.parent_id, []).append(span)

    @property
    def processes(self) -> list[str]:
        """Ids of the processes that worked on it, in order."""
        return list(dict.fromkeys(span.process for _, span in self.tree() if span.process))

    def tree(self) -> Iterator[tuple[int, Span]]:
        """Every span under a root, with its depth: parents first, then by their start."""
        todo = [(0, root) for root in reversed(self._children.get("", []))]
        while todo:
            depth, span = todo.pop()
            yield depth, span
            children = self._children.get(span.span_id, [])
            todo.extend((depth + 1, child) for child in reversed(children))

    def flaw(self) -> str:
        """Why it is not whole: one root, and every other span under it; empty where it is."""
        if not self._spans:
            return "no span of it came"
        roots = len(self._children.get("", []))
        if roots != 1:
            return f"it has {roots} roots"
        loose = len(self._spans) - len(list(self.tree()))
        return f"{loose} of its spans are not under its root" if loose else ""

    def rows(self) -> list[dict[str, Any]]:
        """The tree as plain data; seconds, counted from the root's start."""
        tree = list(self.tree())
        begin_ns = min((span.start_ns for _, span in tree), default=0)
        return [
            {
                "depth": depth,
                "span": span.name,
                "service": span.service,
                "process": span.process,
                "start": round((span.start_ns - begin_ns) / NS_PER_S, 6),
                "duration": round((span.end_ns - span.start_ns) / NS_PER_S, 6),
                "outcome": span.outcome,
            }
            for depth, span in tree
        ]


def traces_of(spans: Iterable[Span]) -> dict[str, Trace]:
    """The traces that these spans belong to, by their ids."""
    by_id: dict[str, list[Span]] = {}
    for span in spans:
        by_id.setdefault(span.trace_id, []).append(span)
    return {trace_id: Trace(found) for trace_id, found in by_id.items()}
