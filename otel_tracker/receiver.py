"""Spans that arrive by OTLP, as facts in the store: whoever made them, in whatever language.

What comes from a network is distrusted: bytes that are no request are refused, what unpacks to
more than a bound is too, and values of wrong types or impossible sizes are ignored.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from . import semconv
from .model import Fact
from .privacy import MAX_EXPORTED_TEXT, text_of
from .store import Clock, Store

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

MAX_BODY: Final = 16 << 20
"""Bytes of a request, unpacked. A batch of 512 spans has 0.2 MB."""

MAX_ITEMS: Final = 16
"""Values of a list among a span's attributes that are read."""

SMALL: Final = 1 << 20
"""Bytes of a request, unpacked, that may be of any shape."""
DENSEST: Final = 16
"""A larger one has at most a message (of JSON: an object or a list) for so many of its bytes. Spans
have one for 20 and more."""

_DEEPEST: Final = 100  # protobuf itself goes no deeper
_WIDTHS: Final = {1: 8, 5: 4}
"""Bytes of the wire types that have a fixed width."""
_SINGLE: Final = frozenset({"string_value", "bool_value", "int_value", "double_value"})
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
        TooLargeError: it would take too much memory.
        ValueError: it is no request.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == PROTOBUF:
        _refuse_if_dense(body, _count_messages)
        try:
            request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(body)
        except DecodeError as error:
            raise ValueError("this is no ExportTraceServiceRequest in protobuf") from error
        return request
    if kind == JSON:
        _refuse_if_dense(body, _count_containers)
        return _parse_json(body)
    raise EncodingError(f"content type {kind[:60]!r} is not taken; use {PROTOBUF} or {JSON}")


def _refuse_if_dense(body: bytes, count: Callable[[bytes, int], int]) -> None:
    """An empty span has two bytes, and takes 180 in memory; an empty object of JSON takes 64."""
    most = len(body) // DENSEST
    if len(body) > SMALL and count(body, most) >= most:
        raise TooLargeError(
            f"the body has {len(body)} bytes and a part for every {DENSEST} of them, which would "
            f"fill the memory; send at most {SMALL} bytes at once"
        )


def _count_containers(body: bytes, _most: int) -> int:
    return body.count(b"{") + body.count(b"[")


def _count_messages(body: bytes, most: int) -> int:
    """How many messages a request has at any depth, as far as it can be read; `most` are enough."""
    count = 0
    at, end, fields = 0, len(body), _messages_in(ExportTraceServiceRequest.DESCRIPTOR)
    around: list[tuple[int, int, Mapping[int, Descriptor]]] = []
    try:
        while count < most:
            if at >= end:
                if not around:
                    break
                at, end, fields = around.pop()
                continue
            tag, at = _varint(body, at)
            wire_type = tag & 7
            if wire_type == 2:
                size, at = _varint(body, at)
                message = fields.get(tag >> 3)
                if message is None:
                    at += size
                    continue
                count += 1
                if len(around) == _DEEPEST:
                    break
                around.append((at + size, end, fields))
                end, fields = at + size, _messages_in(message)
            elif wire_type == 0:
                _, at = _varint(body, at)
            else:
                at += _WIDTHS[wire_type]
    except (IndexError, KeyError):
        pass  # it is no request: parsing says so
    return count


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    byte = body[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = body[at]
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at + 1


@cache
def _messages_in(message: Descriptor) -> Mapping[int, Descriptor]:
    """Which of its fields are messages, by number."""
    return {
        number: field.message_type
        for number, field in message.fields_by_number.items()
        if field.message_type is not None
    }


def _parse_json(body: bytes) -> ExportTraceServiceRequest:
    """OTLP/JSON has ids in hex, where protobuf's own JSON has base64."""
    try:
        document = json.loads(body)
        # `{}` is an empty request; a document with other keys alone is something else.
        for resource_spans in document["resourceSpans"] if document != {} else ():
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
        for one in facts_of(request, self._store.clock):
            self._store.put(one.fact)
            count += 1
        return count


class Read(NamedTuple):
    """A span with our attributes."""

    fact: Fact
    attributes: dict[str, Any]
    """All of its own: plain values, and lists of them."""
    span: Span
    service: str
    """``service.name`` of its process, and its version; empty where unknown."""
    version: str


def facts_of(request: ExportTraceServiceRequest, clock: Clock) -> Iterator[Read]:
    """What a request tells, span by span.

    Args:
        request: that was parsed.
        clock: this process's, as of now.
    """
    now_ns, wall_ns = clock.monotonic_ns(), clock.time_ns()
    for resource_spans in request.resource_spans:
        of_process = _attributes(resource_spans.resource.attributes)
        service = text_of(of_process.get("service.name"), MAX_EXPORTED_TEXT)
        version = text_of(of_process.get("service.version"), MAX_EXPORTED_TEXT)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                attributes = _attributes(span.attributes)
                if semconv.is_ours(attributes):
                    fact = _fact(span, attributes, now_ns, wall_ns)
                    if fact is not None:
                        yield Read(fact, attributes, span, service, version)


def _fact(span: Span, attributes: dict[str, Any], now_ns: int, wall_ns: int) -> Fact | None:
    trace_id, span_id = span.trace_id, span.span_id
    if len(trace_id) != 16 or len(span_id) != 8 or not (any(trace_id) and any(span_id)):
        return None
    start_ns, end_ns, status = span.start_time_unix_nano, span.end_time_unix_nano, span.status
    return semconv.read_fact(
        attributes,
        trace_id=int.from_bytes(trace_id, "big"),
        span_id=int.from_bytes(span_id, "big"),
        parent_id=int.from_bytes(span.parent_span_id[:8], "big"),
        start_ns=start_ns,
        end_ns=end_ns or None,
        seen_ns=now_ns - max(0, wall_ns - (end_ns or start_ns)),
        error=status.message,
        failed=status.code == Status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        value = pair.value
        kind = value.WhichOneof("value")
        if kind in _SINGLE:
            found[pair.key] = getattr(value, kind)
        elif kind == "array_value":
            found[pair.key] = [
                getattr(one, single)
                for one in value.array_value.values[:MAX_ITEMS]
                if (single := one.WhichOneof("value")) in _SINGLE
            ]
    return found
