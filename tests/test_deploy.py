"""What ships works: the real Collector, Jaeger and Prometheus, run with the files that ship."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from otel_tracker.debug_tracker import DebugSystemTracker
from tests.engines import (
    AUTH,
    RECORD,
    Collector,
    Engine,
    Jaeger,
    Span,
    executable,
    fetch,
    free_port,
    until,
)
from tests.otlp import ROOT

SERVICE: Final = "notes"
MS: Final = 1_000_000
S: Final = 1_000 * MS
SERVER: Final = OtlpSpan.SPAN_KIND_SERVER


@dataclass
class Sent:
    """A span to send, made by nobody's library."""

    name: str = "memory"
    trace_id: bytes = field(default_factory=lambda: os.urandom(16))
    attributes: dict[str, Any] = field(default_factory=dict)
    resource: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lasted_ns: int = MS
    span_id: bytes = field(default_factory=lambda: os.urandom(8))
    start_ns: int = field(default_factory=time.time_ns)


def put(attributes: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        attributes.add(key=key).value.CopyFrom(any_value(value))


def any_value(value: Any) -> AnyValue:
    made = AnyValue()
    if isinstance(value, list):
        made.array_value.values.extend(any_value(item) for item in value)
    elif isinstance(value, dict):
        put(made.kvlist_value.values, value)
    elif isinstance(value, bool):
        made.bool_value = value
    elif isinstance(value, int):
        made.int_value = value
    else:
        made.string_value = value
    return made


def request(*spans: Sent) -> bytes:
    """Spans as one OTLP request, all of one service."""
    message = ExportTraceServiceRequest()
    for sent in spans:
        of_resource = message.resource_spans.add()
        put(of_resource.resource.attributes, {"service.name": SERVICE, **sent.resource})
        span = of_resource.scope_spans.add().spans.add(
            trace_id=sent.trace_id,
            span_id=sent.span_id,
            name=sent.name,
            kind=SERVER,
            start_time_unix_nano=sent.start_ns,
            end_time_unix_nano=sent.start_ns + sent.lasted_ns,
        )
        put(span.attributes, sent.attributes)
        if sent.description:
            span.status.code = span.status.STATUS_CODE_ERROR
            span.status.message = sent.description
        for name, attributes in sent.events:
            event = span.events.add(name=name, time_unix_nano=sent.start_ns)
            put(event.attributes, attributes)
    body: bytes = message.SerializeToString()
    return body


def post(collector: Collector, body: bytes, **headers: str) -> int:
    """The status with which the Collector answers a request."""
    asked = urllib.request.Request(  # noqa: S310 - loopback
        f"{collector.http_url}/v1/traces",
        data=body,
        headers={"Content-Type": "application/x-protobuf", **headers},
    )
    try:
        with urllib.request.urlopen(asked, timeout=10) as response:  # noqa: S310 - loopback
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def send(collector: Collector, *spans: Sent) -> None:
    assert post(collector, request(*spans)) == 200, collector.said()


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """One Jaeger for the tests that leave it alone."""
    with Jaeger(tmp_path_factory.mktemp("jaeger")) as running:
        yield running


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory, jaeger: Jaeger) -> Iterator[Collector]:
    """One Collector that records, for the tests that leave it alone."""
    folder = tmp_path_factory.mktemp("collector")
    with Collector(folder, jaeger=jaeger, extra_config=[RECORD]) as running:
        yield running
        assert "deprecat" not in running.said().lower()


# --- through the Collector ------------------------------------------------------------------------


def test_a_stall_is_in_jaeger_while_it_lasts(collector: Collector, jaeger: Jaeger) -> None:
    """From the moment a stall's span leaves the application, it takes well under 5 s."""
    took = []
    for _ in range(5):
        sent = Sent("memory stalled", description="memory: nothing heard for 60 s")
        began = time.monotonic()
        send(collector, sent)
        (span,) = jaeger.wait_for(sent.trace_id.hex())
        took.append(time.monotonic() - began)
        assert (span.name, span.status, span.service) == ("memory stalled", 2, SERVICE)
    assert sorted(took)[2] < 1, took


def test_a_transaction_of_ours_arrives_whole(collector: Collector, jaeger: Jaeger) -> None:
    """Sent over gRPC it is in Jaeger as it was, and is found as the documents say."""
    provider = TracerProvider(resource=Resource({"service.name": "ours"}))
    exporter = OTLPSpanExporter(endpoint=collector.grpc, insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracker = DebugSystemTracker(provider)
    transaction_id = tracker.create_transaction("user-7", "client-7", "talk-7")
    tracker.track_event(transaction_id, "memory_started")
    tracker.track_event(transaction_id, "memory_completed", False, "no model")
    tracker.track_event(transaction_id, "conversation_ended", False)
    tracker.shutdown()
    provider.shutdown()

    trace_id = transaction_id.replace("-", "")
    spans = jaeger.wait_for(trace_id, spans=2)
    assert [span.name for span in spans] == ["audio_pipeline", "memory"]
    for span, raw in zip(spans, jaeger_order(of(collector.received(), trace_id)), strict=True):
        assert span == replace(raw, resource=span.resource)
        assert raw.resource.items() <= {**span.resource, "service.name": "ours"}.items()
    for attributes in (
        {"user.id": "user-7"},
        {"otel_tracker.conversation.id": "talk-7"},
        {"otel_tracker.transaction.id": transaction_id},
        {"otel_tracker.outcome": "failure"},
        {"otel_tracker.stage.outcome": "failure"},
    ):
        assert jaeger.search("ours", attributes=attributes) == [trace_id], attributes
    assert jaeger.search("ours", attributes={"user.id": "user-8"}) == []


def jaeger_order(spans: list[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: span.start_ns)


# --- masking --------------------------------------------------------------------------------------

SECRETS: Final = {
    "e-mail address": "ann.o'neill+notes@mail.example.org",
    "percent-encoded address": "bob%40example.co.uk",
    "address in another script": "jörg@müller.example",
    "bearer token": "Bearer abcDEF123456-._~",
    "basic credentials": "Basic dXNlcjpwYXNzd29yZA==",
    "json web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27uhbUJU1p1r",
    "OpenAI's key": "sk-proj-abcdefghijklmnop1234",
    "Stripe's key": "sk_live_abcdefghijklmnop1234",
    "GitHub's token": "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "GitLab's token": "glpat-abcdefghij0123456789",
    "Slack's token": "xoxb-1234567890-abcdefghij",
    "Hugging Face's token": "hf_abcdefghijklmnopqrstuvwxyz",
    "AWS's key id": "AKIAIOSFODNN7EXAMPLE",
    "Google's key": "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234",
    "password in a URL": "postgresql://notes:hunter2!@db:5432/notes",
    "password beside its name": "password=hunter2!",
    "key beside its name": '"api_key": "hunter2!-hunter2!"',
    "token beside its name": "access_token: hunter2!-hunter2!",
    "header": "Authorization: Token hunter2!",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_masked_wherever_they_are(
    kind: str, collector: Collector, jaeger: Jaeger
) -> None:
    """Sent past our library, a secret reaches neither Jaeger nor the dashboard nor a metric."""
    secret = SECRETS[kind]
    sent = Sent(
        name=f"call {secret} now",
        description=f"refused: {secret}, sorry",
        attributes={
            "text": f"before {secret} after",
            "list": ["one", secret],
            "map": {"deep": {"er": secret}},
            "json": json.dumps({"cause": secret}),
        },
        resource={"process.command_line": f"run --with {secret} --fast"},
        events=[(f"event {secret}", {"exception.message": secret, "exception.stacktrace": secret})],
    )
    send(collector, sent)
    trace_id = sent.trace_id.hex()
    (arrived,) = jaeger.wait_for(trace_id)
    (masked,) = until("the record", lambda: of(collector.masked(), trace_id))
    telling = secret.split("//")[-1].split("@db")[0]
    for span in (arrived, masked):
        assert telling not in str(span), span
        assert "hunter2" not in str(span), span
        assert span.name.startswith("call ")
        assert span.name.endswith(" now")
        assert span.description.startswith("refused: ")
        assert span.attributes["text"].startswith("before ")
        assert span.attributes["text"].endswith("after")
        assert len(span.attributes) == 4
    (raw,) = of(collector.received(), trace_id)
    assert telling in str(raw), "the canary was not there to be masked"


def test_a_span_with_nothing_but_a_name_is_masked_too(collector: Collector, jaeger: Jaeger) -> None:
    """No attributes, no events, no description: its name still is."""
    sent = Sent("memory of ann@example.org")
    send(collector, sent)
    (span,) = jaeger.wait_for(sent.trace_id.hex())
    assert (span.name, span.attributes, span.description) == ("memory of ****", {}, "")


def of(spans: list[Span], trace_id: str) -> list[Span]:
    return [span for span in spans if span.trace_id == trace_id]


HARMLESS: Final = {
    "otel_tracker.transaction.id": "0193f5a2-7c4e-8d11-a2b3-c4d5e6f70819",
    "otel_tracker.conversation.id": "conversation-2026-11-24",
    "user.id": "user-1234567890",
    "user.hash": "9f86d081884c7d659a2feaa0c55ad015",
    "gen_ai.usage.input_tokens": 4096,
    "otel_tracker.where": "web-1/4711/MainThread",
    "code.stacktrace": 'File "/app/site-packages/api.py", line 3, in get\n  token = take()',
    "url.full": "https://example.org/notes?page=2",
    "http.route": "/users/{id}",
    "package": "left-pad@1.2.3",
    "error": "max tokens: 4096 exceeded, basic check of the password failed",
    "numbers": [1, 2, 3],
    "texts": ["one", "two"],
    "flag": True,
}


def test_what_is_no_secret_arrives_as_it_was(collector: Collector, jaeger: Jaeger) -> None:
    """Masking deletes nothing, adds nothing, and leaves ids, counts, lists and stacks alone."""
    sent = Sent(
        name="memory",
        attributes=dict(HARMLESS),
        events=[("stack", {"n": 1})],
        description="no model",
    )
    send(collector, sent)
    trace_id = sent.trace_id.hex()
    jaeger.wait_for(trace_id)
    (masked,) = until("the record", lambda: of(collector.masked(), trace_id))
    (raw,) = of(collector.received(), trace_id)
    assert masked == raw
    assert masked.attributes == HARMLESS


def test_attributes_are_masked_by_their_names(collector: Collector, jaeger: Jaeger) -> None:
    """Whatever stands under such a name; a number of tokens does not."""
    secret = {
        "password": "abc",
        "db.password": "abc",
        "http.request.header.authorization": ["abc"],
        "http.request.header.x-api-key": "abc",
        "http.request.header.set-cookie": "abc",
        "app.refresh_token": "abc",
        "client_secret": 123,
    }
    sent = Sent(attributes={**secret, "gen_ai.usage.output_tokens": 7, "tokens": "abc"})
    send(collector, sent)
    (span,) = jaeger.wait_for(sent.trace_id.hex())
    kept = {"gen_ai.usage.output_tokens": 7, "tokens": "abc"}
    assert span.attributes == {**dict.fromkeys(secret, "****"), **kept}


def test_masking_long_texts_takes_no_long_time(collector: Collector) -> None:
    """A megabyte of one long word, the worst for most patterns, is done in a second or so."""
    body = request(*[Sent(attributes={"text": "x" * 4_000}) for _ in range(250)])
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert post(collector, body) == 200
        took.append(time.monotonic() - began)
    assert min(took) < 1.5, took  # 0.4 s on a quiet machine


# --- metrics --------------------------------------------------------------------------------------


def test_spans_are_counted_and_timed(tmp_path: Path) -> None:
    """By stage and outcome, in buckets from 50 ms to 30 min; no label has an id."""
    lasted = {45 * MS: "0.05", 90 * S: "120", 40 * 60 * S: "+Inf"}
    with Collector(tmp_path) as collector:
        for lasted_ns in lasted:
            what = {"otel_tracker.stage": "memory", "otel_tracker.stage.outcome": "failure"}
            who = {"user.id": "user-7", "otel_tracker.transaction.id": os.urandom(16).hex()}
            what |= {"otel_tracker.pipeline": "audio_pipeline", "error.type": "TimeoutError"}
            send(
                collector,
                Sent(attributes={**what, **who}, lasted_ns=lasted_ns, description="late"),
            )
        send(collector, Sent("audio_pipeline", attributes={"otel_tracker.outcome": "success"}))
        labels = (
            'error_type="TimeoutError",job="notes",otel_tracker_pipeline="audio_pipeline",'
            'otel_tracker_stage="memory",otel_tracker_stage_outcome="failure",service_name="notes",'
            'span_kind="SPAN_KIND_SERVER",span_name="memory",status_code="STATUS_CODE_ERROR"'
        )
        calls = f"traces_span_metrics_calls_total{{{labels}}}"
        found = until("the counts", lambda: (m := collector.span_metrics()).get(calls) == 3 and m)
        until("the root", lambda: 'otel_tracker_outcome="success"' in str(collector.span_metrics()))
    buckets = [
        (float(name.rpartition('le="')[2].rstrip('"}')), count)
        for name, count in found.items()
        if name.startswith(f"traces_span_metrics_duration_milliseconds_bucket{{{labels}")
    ]
    seconds = (
        0.05,
        0.1,
        0.25,
        0.5,
        1,
        2,
        5,
        10,
        20,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
        float("inf"),
    )
    assert [bound for bound, _ in buckets] == [1000 * bound for bound in seconds]
    counts = dict(buckets)
    assert [b for (_, was), (b, now) in pairwise(buckets) if now > was] == [120_000, float("inf")]
    assert (counts[50], counts[120_000], counts[float("inf")]) == (1, 2, 3)
    for name in found:
        assert "user-7" not in name
        assert "transaction" not in name
        assert "collector_instance" not in name


def test_a_restart_of_a_service_goes_on_counting(tmp_path: Path) -> None:
    """Processes of one service are one counter, whatever else their resources say."""
    with Collector(tmp_path) as collector:
        for pid in range(3):
            send(collector, Sent(resource={"service.instance.id": f"i{pid}", "process.pid": pid}))

        def counted() -> list[float]:
            every = collector.span_metrics().items()
            return [v for name, v in every if name.startswith("traces_span_metrics_calls")]

        until("the counts", lambda: sum(counted()) == 3)
        assert counted() == [3]


# --- queues ---------------------------------------------------------------------------------------


def test_nothing_is_lost_when_both_go_down(tmp_path: Path) -> None:
    """1,000 spans, no Jaeger, then the Collector is killed: when both are back, all 1,000 are."""
    trace_id = os.urandom(16)
    spans = [Sent(f"span {n}", trace_id=trace_id) for n in range(1_000)]
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        jaeger.kill()
        for n in range(0, 1_000, 20):
            send(collector, *spans[n : n + 20])
        collector.kill()
        collector.start()
        jaeger.start()
        found = jaeger.wait_for(trace_id.hex(), spans=1_000)
        assert sorted(span.name for span in found) == sorted(span.name for span in spans)
        # It delivers at least once. What comes twice is stored over the first.
        send(collector, *spans[:100])
        last = Sent("the last", trace_id=trace_id)
        send(collector, last)
        assert len(jaeger.wait_for(trace_id.hex(), spans=1_001)) == 1_001


def test_jaeger_keeps_its_traces(tmp_path: Path) -> None:
    """A killed Jaeger has, when it is back, what it had accepted."""
    sent = Sent(attributes={"user.id": "user-7"})
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        send(collector, sent)
        jaeger.wait_for(sent.trace_id.hex())
        jaeger.kill()
        jaeger.start()
        (span,) = jaeger.wait_for(sent.trace_id.hex())
        assert span.attributes == {"user.id": "user-7"}
        found = jaeger.search(SERVICE, operation="memory", attributes={"user.id": "user-7"})
        assert found == [sent.trace_id.hex()]


def test_a_dashboard_that_is_away_is_felt_by_nobody(tmp_path: Path, jaeger: Jaeger) -> None:
    """It hangs, and its queue is small: every span is accepted, and in Jaeger; the rest is counted.

    Were the queue to fill, clients would hear an error for spans that Jaeger has.
    """
    trace_id = os.urandom(16)
    padding = {"text": "some words " * 400}
    with socket.create_server(("127.0.0.1", 0), backlog=256) as silent:
        env = {
            "OTEL_TRACKER_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTELCOL_DASHBOARD_QUEUE_BYTES": "1500000",
        }
        with Collector(tmp_path, env=env, jaeger=jaeger) as collector:
            # More than the queue holds in all, and less in the 7 s for which it tries each batch.
            for _ in range(450):
                send(collector, Sent(trace_id=trace_id, attributes=padding))
                time.sleep(0.025)
            assert len(jaeger.wait_for(trace_id.hex(), spans=450)) == 450
            dropped = 'otelcol_exporter_send_failed_spans{exporter="otlp_http/dashboard"'
            assert any(name.startswith(dropped) for name in collector.metrics())


@contextlib.contextmanager
def dashboard() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """A service that takes spans; with each request, its Authorization."""
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server asks for
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            assert self.headers.get("Content-Encoding") is None
            got.append((self.headers["Authorization"], ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_dashboard_is_told_with_its_token(tmp_path: Path) -> None:
    """It gets masked spans, also without Jaeger, with the token from a file as compose makes it."""
    (tmp_path / "token").write_text("t0ken-of-the-dashboard", encoding="utf-8")
    with dashboard() as (url, got):
        env = {"OTEL_TRACKER_URL": url, "OTEL_TRACKER_TOKEN": f"${{file:{tmp_path / 'token'}}}"}
        with Collector(tmp_path, env=env) as collector:
            send(collector, Sent(name="memory of ann@example.org"))
            until("the dashboard", lambda: got)
    ((authorization, message),) = got
    assert authorization == "Bearer t0ken-of-the-dashboard"
    (span,) = message.resource_spans[0].scope_spans[0].spans
    assert span.name == "memory of ****"


# --- limits ---------------------------------------------------------------------------------------


def test_requests_are_bounded_and_no_web_page_may_send(tmp_path: Path) -> None:
    env = {"OTELCOL_MAX_HTTP_REQUEST_BYTES": "10000", "OTELCOL_MAX_GRPC_REQUEST_MIB": "1"}
    with Collector(tmp_path, env=env) as collector:
        assert post(collector, request(Sent(attributes={"text": "x" * 20_000}))) in {400, 413}
        assert post(collector, request(Sent())) == 200
        preflight = urllib.request.Request(  # noqa: S310 - loopback
            f"{collector.http_url}/v1/traces",
            method="OPTIONS",
            headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(preflight, timeout=10)  # noqa: S310 - loopback
        with refused.value as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_full_queue_and_a_full_memory_make_clients_send_again(tmp_path: Path) -> None:
    """What is not taken is refused with the status that means later, and counted."""
    big = request(Sent(attributes={"text": "x" * 100_000}))
    many = request(*[Sent(attributes={"text": "x" * 4_000}) for _ in range(500)])
    for name, variable, limit, body in (
        ("queue", "OTELCOL_JAEGER_QUEUE_BYTES", "300000", big),
        ("memory", "OTELCOL_MEMORY_LIMIT_MIB", "9", many),
    ):
        folder = tmp_path / name
        folder.mkdir()
        with Collector(folder, env={variable: limit}) as collector:
            until(f"a full {name}", partial(refuses, collector, body))
            refused = 'otelcol_receiver_refused_spans{receiver="otlp",transport="http"}'
            assert collector.metrics()[refused] > 0
            assert ("otelcol_exporter_enqueue_failed_spans" in str(collector.metrics())) == (
                name == "queue"
            )


def refuses(collector: Collector, body: bytes) -> bool:
    status = post(collector, body)
    assert status in {200, 503}, status
    return status == 503


def test_with_the_addition_clients_need_a_token(tmp_path: Path) -> None:
    """Over HTTP and over gRPC, without it nothing is taken."""
    env = {"OTELCOL_TOKEN": "t0ken-of-clients"}
    right = {"authorization": "Bearer t0ken-of-clients"}
    with Collector(tmp_path, env=env, extra_config=[RECORD, AUTH]) as collector:
        assert post(collector, request(Sent())) == 401
        assert post(collector, request(Sent()), authorization="Bearer wrong") == 401
        assert post(collector, request(Sent("by http")), **right) == 200
        for headers, result in (
            (None, SpanExportResult.FAILURE),
            (right, SpanExportResult.SUCCESS),
        ):
            exporter = OTLPSpanExporter(
                endpoint=collector.grpc, insecure=True, headers=headers, timeout=5
            )
            span = TracerProvider().get_tracer(__name__).start_span("by grpc")
            span.end()
            assert exporter.export([span]) is result  # type: ignore[list-item]
            exporter.shutdown()
        names = until("the record", lambda: len(r := collector.received()) == 2 and r)
        assert {span.name for span in names} == {"by http", "by grpc"}


# --- Prometheus -----------------------------------------------------------------------------------


class Prometheus(Engine):
    """A Prometheus with the configuration that ships, scraping this Collector each second."""

    name = "Prometheus"

    def __init__(self, tmp_path: Path, collector: Collector, port: int) -> None:
        config = (ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8")
        for shipped, here in (
            ("collector:8889", collector.span_metrics_url.split("/")[2]),
            ("collector:8888", collector.metrics_url.split("/")[2]),
            ("scrape_interval: 15s", "scrape_interval: 1s"),
        ):
            assert shipped in config
            config = config.replace(shipped, here)
        (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
        self.url = f"http://127.0.0.1:{port}"
        self.health_url = f"{self.url}/-/ready"
        command = [
            executable("prometheus", "prometheus"),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        super().__init__(command, {}, tmp_path / "prometheus.log")

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of a query, as it is now."""
        query = urllib.parse.urlencode({"query": expression})
        status, body = fetch(f"{self.url}/api/v1/query?{query}")
        assert status == 200, body
        rows: list[dict[str, Any]] = json.loads(body)["data"]["result"]
        return rows


def test_jaegers_monitor_shows_rates_errors_and_durations(tmp_path: Path) -> None:
    """Spans → span_metrics → Prometheus → the API behind Jaeger's Monitor tab."""
    executable("prometheus", "prometheus")
    port = free_port()
    jaeger = Jaeger(tmp_path, env={"JAEGER_PROMETHEUS_URL": f"http://127.0.0.1:{port}"})
    collector = Collector(tmp_path, jaeger=jaeger)
    with jaeger, collector, Prometheus(tmp_path, collector, port) as prometheus:

        def newest(figure: str, **more: str) -> float | None:
            """The newest value of a figure for the operation, as the page asks for it."""
            query = {
                "service": SERVICE,
                "groupByOperation": "true",
                "endTs": str(time.time_ns() // MS),
                "lookback": "60000",
                "step": "1000",
                "ratePer": "10000",
                **more,
            }
            status, body = fetch(
                f"{jaeger.ui_url}/api/metrics/{figure}?{urllib.parse.urlencode(query)}"
            )
            assert status == 200, body
            values = [
                point["gaugeValue"]["doubleValue"]
                for metric in json.loads(body)["metrics"]
                if {"name": "operation", "value": "audio_pipeline"} in metric["labels"]
                for point in metric["metricPoints"]
            ]
            numbers = [float(value) for value in values if value != "NaN"]
            return numbers[-1] if numbers else None

        def work() -> bool:
            """Sends until two scrapes differ: the first value of a counter is no rate."""
            stage = {"otel_tracker.stage": "memory", "otel_tracker.stage.outcome": "failure"}
            send(
                collector,
                Sent("audio_pipeline", lasted_ns=90 * S, description="no model"),
                Sent("memory", attributes=stage, lasted_ns=90 * S, description="no model"),
            )
            return bool(newest("calls")) and bool(newest("latencies", quantile="0.95"))

        until("the Monitor API", work)
        latency = newest("latencies", quantile="0.95")
        assert latency is not None
        assert 60_000 <= latency <= 120_000, "in ms, which the page takes it for"
        assert newest("errors") == pytest.approx(1)
        up = {row["metric"]["job"]: row["value"][1] for row in prometheus.query("up")}
        assert up == {"span-metrics": "1", "collector": "1"}
        # And the queries of docs/deployment.md find something.
        document = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
        queries = re.findall(r"^ +((?:sum|histogram_quantile).*)$", document, re.MULTILINE)
        found = [prometheus.query(query)[0] for query in queries]
        assert [row["metric"]["otel_tracker_stage"] for row in found] == ["memory"] * 2
        assert 60_000 <= float(found[1]["value"][1]) <= 120_000
