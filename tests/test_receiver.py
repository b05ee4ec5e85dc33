"""OTLP in: protobuf and JSON, packed and not, and what a network may send instead."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import zlib
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from otel_tracker import stage, transaction
from otel_tracker.receiver import (
    JSON,
    MAX_BODY,
    PROTOBUF,
    EncodingError,
    TooLargeError,
    parse,
    unpack,
)
from otel_tracker.testing import fresh_tracker


def request() -> bytes:
    """What an exporter posts of one transaction."""
    with fresh_tracker() as t:
        with transaction(user_id="alice", tracker=t.tracker), stage("memory", tracker=t.tracker):
            pass
        return bytes(encode_spans(t.finished_spans()).SerializeToString())


def as_json(body: bytes) -> bytes:
    """The same as OTLP/JSON: ids in hex."""
    document = json_format.MessageToDict(parse(body))
    message = parse(body)
    for i, resource in enumerate(message.resource_spans):
        for j, scope in enumerate(resource.scope_spans):
            for k, span in enumerate(scope.spans):
                plain = document["resourceSpans"][i]["scopeSpans"][j]["spans"][k]
                plain["traceId"] = span.trace_id.hex()
                plain["spanId"] = span.span_id.hex()
                if span.parent_span_id:
                    plain["parentSpanId"] = span.parent_span_id.hex()
    return json.dumps(document).encode()


BODY = request()


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (BODY, PROTOBUF, ""),
        (BODY, f"{PROTOBUF}; charset=x", "identity"),
        (gzip.compress(BODY), PROTOBUF, "gzip"),
        (zlib.compress(BODY), PROTOBUF, "deflate"),
        (as_json(BODY), JSON, ""),
        (gzip.compress(as_json(BODY)), "Application/JSON; charset=utf-8", "GZIP"),
    ],
)
def test_every_form_says_the_same(body: bytes, content_type: str, encoding: str) -> None:
    """One transaction, completed, with its user; sent twice it counts once."""
    with fresh_tracker() as t:
        for _ in range(2):
            assert t.tracker.receiver.take(body, content_type, encoding) == 2
        data = t.tracker.get_dashboard_data()
        assert data["system_metrics"]["total_transactions"] == 1
        assert data["system_metrics"]["completed_transactions"] == 1
        assert data["system_metrics"]["total_memories"] == 1
        assert data["recent_transactions"][0]["user_id"] == "alice"


def test_a_bomb_is_stopped_at_the_bound() -> None:
    """A gigabyte of zeros in a megabyte: no more than the bound is ever unpacked."""
    bomb = gzip.compress(b"\0" * (1 << 20)) * 1  # a megabyte in a kilobyte
    with pytest.raises(TooLargeError, match="more than 1000 bytes"):
        unpack(bomb, "gzip", limit=1_000)
    assert len(unpack(bomb, "gzip", limit=1 << 20)) == 1 << 20
    with pytest.raises(TooLargeError):
        unpack(b"x" * (MAX_BODY + 1))


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "says"),
    [
        (BODY, "text/html", "", "content type 'text/html' is not taken"),
        (BODY, PROTOBUF, "br", "content encoding 'br' is not taken"),
        (BODY, PROTOBUF, "gzip", "not what its content encoding says"),
        (gzip.compress(BODY)[:-20], PROTOBUF, "gzip", "cut off"),
        (b"garbage", PROTOBUF, "", "no ExportTraceServiceRequest in protobuf"),
        (b"garbage", JSON, "", "no ExportTraceServiceRequest in OTLP/JSON"),
        (b"[]", JSON, "", "OTLP/JSON"),
        (b'{"resourceSpans": 7}', JSON, "", "OTLP/JSON"),
        (b'{"resourceSpans": [7]}', JSON, "", "OTLP/JSON"),
        (b"[" * 100_000, JSON, "", "OTLP/JSON"),
        (as_json(BODY).replace(b'"spanId": "', b'"spanId": "zz'), JSON, "", "OTLP/JSON"),
    ],
)
def test_what_is_no_request_is_refused(
    body: bytes, content_type: str, encoding: str, says: str
) -> None:
    """With a reason that names the fix, and nothing of it is counted."""
    with fresh_tracker() as t:
        with pytest.raises(ValueError, match=re.escape(says)) as refused:
            t.tracker.receiver.take(body, content_type, encoding)
        expects_encoding = "is not taken" in says
        assert isinstance(refused.value, EncodingError) == expects_encoding
        assert t.tracker.get_dashboard_data()["system_metrics"]["total_transactions"] == 0


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([PROTOBUF, JSON]),
    st.sampled_from(["", "gzip", "deflate"]),
)
def test_garbage_raises_nothing_but_a_value_error(
    body: bytes, content_type: str, encoding: str
) -> None:
    """Whatever the bytes are."""
    with fresh_tracker() as t, contextlib.suppress(ValueError):
        t.tracker.receiver.take(body, content_type, encoding)


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["resourceSpans", "scopeSpans", "spans", "traceId", "links", "value"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(ANYTHING)
def test_json_of_any_shape_raises_nothing_but_a_value_error(document: Any) -> None:
    """Lists where objects are meant, numbers where lists are."""
    for body in (document, {"resourceSpans": document}, {"resourceSpans": [document]}):
        with contextlib.suppress(ValueError):
            parse(json.dumps(body).encode(), JSON)
