"""Spans that arrive by OTLP, as facts in the store: whoever made them, in whatever language.

What comes from a network is distrusted: bytes that are no request are refused, and values of wrong
types or impossible sizes are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from . import semconv
from .model import Fact
from .store import Store


class Receiver:
    """Folds OTLP requests.

    Args:
        store: what it feeds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def take(self, body: bytes) -> int:
        """Takes an ``ExportTraceServiceRequest`` in protobuf, as exporters post it.

        A span that is sent twice counts once.

        Returns:
            How many of its spans carry our attributes.

        Raises:
            ValueError: it is none.
        """
        try:
            request = ExportTraceServiceRequest.FromString(body)
        except DecodeError as error:
            raise ValueError("this is no ExportTraceServiceRequest in protobuf") from error
        count = 0
        for fact in self._facts(request):
            self._store.put(fact)
            count += 1
        return count

    def _facts(self, request: ExportTraceServiceRequest) -> Iterator[Fact]:
        clock = self._store.clock
        now_ns, wall_ns = clock.monotonic_ns(), clock.time_ns()
        for resource_spans in request.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    fact = _fact(span, now_ns, wall_ns)
                    if fact is not None:
                        yield fact


def _fact(span: Span, now_ns: int, wall_ns: int) -> Fact | None:
    trace_id = int.from_bytes(span.trace_id, "big")
    span_id = int.from_bytes(span.span_id, "big")
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or not (trace_id and span_id):
        return None
    at_ns = span.end_time_unix_nano or span.start_time_unix_nano
    return semconv.read_fact(
        _attributes(span.attributes),
        trace_id=trace_id,
        span_id=span_id,
        parent_id=int.from_bytes(span.parent_span_id[:8], "big"),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano or None,
        seen_ns=now_ns - max(0, wall_ns - at_ns),
        error=span.status.message,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        if kind in ("string_value", "bool_value", "int_value", "double_value"):
            found[pair.key] = getattr(pair.value, kind)
    return found
