"""The spans in OTLP, as protobuf and as JSON. Values of wrong types are ignored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .. import semconv
from .spans import Span, span_of
from .wanted import Wanted

_TRACE_ID: Final = re.compile("[0-9a-f]{32}")
_SPAN_ID: Final = re.compile("[0-9a-f]{16}")


def spans_of_message(message: bytes, wanted: Wanted | None = None) -> Iterator[Span]:
    """The spans in a request in protobuf; of the wanted trace, or all.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for resource_spans in ExportTraceServiceRequest.FromString(message).resource_spans:
        resource = _values(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                trace_id = _hex(span.trace_id.hex(), _TRACE_ID)
                span_id = _hex(span.span_id.hex(), _SPAN_ID)
                if not _is_wanted(trace_id, span_id, wanted):
                    continue
                stacks = (e.attributes for e in span.events if e.name == semconv.STACK_EVENT)
                yield span_of(
                    trace_id=trace_id,
                    span_id=span_id,
                    parent_id=_hex(span.parent_span_id.hex(), _SPAN_ID),
                    name=span.name,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_values(span.attributes),
                    resource=resource,
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    message=span.status.message,
                    stack=_stack(_values(next(stacks, ()))),
                )


def spans_of_json(resource_spans: Mapping[str, Any], wanted: Wanted) -> Iterator[Span]:
    """The spans of the wanted trace in one element of ``resourceSpans``."""
    resource = _json_values(_object(resource_spans.get("resource")).get("attributes"))
    for scope_spans in _objects(resource_spans.get("scopeSpans")):
        for span in _objects(scope_spans.get("spans")):
            trace_id = _hex(span.get("traceId"), _TRACE_ID)
            span_id = _hex(span.get("spanId"), _SPAN_ID)
            if not _is_wanted(trace_id, span_id, wanted):
                continue
            status, events = _object(span.get("status")), _objects(span.get("events"))
            stacks = (e.get("attributes") for e in events if e.get("name") == semconv.STACK_EVENT)
            yield span_of(
                trace_id=trace_id,
                span_id=span_id,
                parent_id=_hex(span.get("parentSpanId"), _SPAN_ID),
                name=_string(span.get("name")),
                start_ns=_integer(span.get("startTimeUnixNano")) or 0,
                end_ns=_integer(span.get("endTimeUnixNano")) or 0,
                attributes=_json_values(span.get("attributes")),
                resource=resource,
                failed=status.get("code") in (2, "STATUS_CODE_ERROR"),
                message=_string(status.get("message")),
                stack=_stack(_json_values(next(stacks, ()))),
            )


def _is_wanted(trace_id: str, span_id: str, wanted: Wanted | None) -> bool:
    """A span without proper ids has no place anywhere."""
    return bool(trace_id and span_id) and (wanted is None or wanted.fits(trace_id))


def _hex(value: object, pattern: re.Pattern[str]) -> str:
    text = value.lower() if isinstance(value, str) else ""
    return text if pattern.fullmatch(text) else ""


def _stack(attributes: Mapping[str, Any]) -> str:
    return str(attributes.get(semconv.STACK, ""))


# --- protobuf -------------------------------------------------------------------------------------


def _values(pairs: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        if kind in ("string_value", "bool_value", "int_value", "double_value"):
            found[pair.key] = getattr(pair.value, kind)
    return found


# --- JSON -----------------------------------------------------------------------------------------

_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "stringValue": str,
    "boolValue": bool,
    "intValue": int,
    "doubleValue": (int, float),
}


def _json_values(pairs: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in _objects(pairs):
        key, value = pair.get("key"), _object(pair.get("value"))
        for kind, kind_of in _KINDS.items():
            one = _integer(value.get(kind)) if kind == "intValue" else value.get(kind)
            if isinstance(key, str) and isinstance(one, kind_of):
                found[key] = one
    return found


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _integer(value: object) -> int | None:
    """A 64-bit integer, which OTLP's JSON writes as text."""
    if type(value) is int:
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value):
        return int(value)
    return None
