"""Spans that arrive by OTLP, as facts in the store: whoever made them, in whatever language.

What comes from a network is distrusted: bytes that are no request are refused, what unpacks to
more than a bound is too, and values of wrong types or impossible sizes are ignored.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from . import semconv
from .model import Fact
from .store import Store

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

MAX_BODY: Final = 16 << 20
"""Bytes of a request, unpacked. A batch of 512 spans has 0.2 MB."""

_HEX: Final = re.compile(r"[0-9A-Fa-f]*")
_NO_REQUEST: Final = (
    json_format.ParseError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
)  # fmt: skip
"""What JSON of another shape leads to."""
_IDS: Final = ("traceId", "spanId", "parentSpanId")


class TooLargeError(ValueError):
    """A body that is, or unpacks to, more than is taken."""


class EncodingError(ValueError):
    """A content type or encoding that is not known here."""


def unpack(body: bytes, encoding: str = "", limit: int = MAX_BODY) -> bytes:
    """The body of a request without its content encoding, at most `limit` bytes of it.

    Args:
        body: as it came.
        encoding: of HTTP: ``gzip``, ``deflate``, ``identity`` or empty.
        limit: bytes.

    Raises:
        TooLargeError: there is more.
        EncodingError: another encoding.
        ValueError: it is not so encoded.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        unpacked = body
    elif encoding in ("gzip", "x-gzip", "deflate"):
        unpacked = _inflate(body, limit + 1)
    else:
        raise EncodingError(f"content encoding {encoding[:40]!r} is not taken; use gzip or none")
    if len(unpacked) > limit:
        raise TooLargeError(f"the body has more than {limit} bytes; send smaller batches")
    return unpacked


def _inflate(body: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj(wbits=47)  # zlib's or gzip's header, whichever there is
    try:
        unpacked = inflater.decompress(body, most)
    except zlib.error as error:
        raise ValueError("the body is not what its content encoding says") from error
    if len(unpacked) < most and not inflater.eof:
        raise ValueError("the body is cut off")
    return unpacked


def parse(body: bytes, content_type: str = PROTOBUF) -> ExportTraceServiceRequest:
    """The request in a body.

    Args:
        body: unpacked.
        content_type: of HTTP: `PROTOBUF` or `JSON`, with or without parameters.

    Raises:
        EncodingError: another content type.
        ValueError: it is no request.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == PROTOBUF:
        try:
            request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(body)
        except DecodeError as error:
            raise ValueError("this is no ExportTraceServiceRequest in protobuf") from error
        return request
    if kind == JSON:
        return _parse_json(body)
    raise EncodingError(f"content type {kind[:60]!r} is not taken; use {PROTOBUF} or {JSON}")


def _parse_json(body: bytes) -> ExportTraceServiceRequest:
    """OTLP/JSON has ids in hex, where protobuf's own JSON has base64."""
    try:
        document = json.loads(body)
        for resource_spans in document["resourceSpans"]:
            for scope_spans in resource_spans.get("scopeSpans", ()):
                for span in scope_spans.get("spans", ()):
                    for one in (span, *span.get("links", ())):
                        _to_base64(one)
        request = ExportTraceServiceRequest()
        json_format.ParseDict(document, request, ignore_unknown_fields=True)
    except _NO_REQUEST as error:
        raise ValueError("this is no ExportTraceServiceRequest in OTLP/JSON") from error
    return request


def _to_base64(span: dict[str, Any]) -> None:
    for key in _IDS:
        value = span.get(key)
        if isinstance(value, str) and _HEX.fullmatch(value) and len(value) % 2 == 0:
            span[key] = base64.b64encode(bytes.fromhex(value)).decode()
        elif value is not None:
            raise ValueError(f"{key} is not in hex")


class Receiver:
    """Folds OTLP requests.

    Args:
        store: what it feeds.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def take(self, body: bytes, content_type: str = PROTOBUF, encoding: str = "") -> int:
        """Takes an ``ExportTraceServiceRequest``, as exporters post it.

        A span that is sent twice counts once.

        Args:
            body: as it came.
            content_type: its header's value.
            encoding: likewise, of ``Content-Encoding``.

        Returns:
            How many of its spans carry our attributes.

        Raises:
            TooLargeError: it unpacks to more than `MAX_BODY` bytes.
            EncodingError: a content type or encoding that is not known here.
            ValueError: it is no request.
        """
        return self.fold(parse(unpack(body, encoding), content_type))

    def fold(self, request: ExportTraceServiceRequest) -> int:
        """Takes a request that was parsed; returns how many of its spans carry our attributes."""
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
