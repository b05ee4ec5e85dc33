"""The dashboard service by HTTP: routes, errors, bounds, and what its OpenAPI document says.

`python -m tests.test_dashboard_api` writes the tables of docs/api.md anew.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from otel_tracker import dashboard
from otel_tracker.dashboard import app as app_module
from otel_tracker.dashboard import openapi, queries
from otel_tracker.dashboard.app import Api, api
from otel_tracker.ids import format_id
from otel_tracker.receiver import JSON, MAX_BODY, PROTOBUF
from tests.test_dashboard_queries import OTHER, WORKER, Spans, beat, service, trace, wall
from tests.test_receiver import as_json

ROOT: Final = Path(__file__).parent.parent
DOCUMENT: Final = openapi.document()
READS: Final = [path for path in DOCUMENT["paths"] if path.startswith("/api/") and "{" not in path]
TOKEN: Final = "a long token"


class Client:
    """Asks an application in this process, each time on an event loop of its own."""

    def __init__(self, application: Any, base_url: str = "http://localhost:8500") -> None:
        self.application = application
        self._base_url = base_url

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self.asked(method, path, **more))

    async def asked(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.application)
        async with httpx.AsyncClient(transport=transport, base_url=self._base_url) as client:
            return await client.request(method, path, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def data(self, path: str, **parameters: Any) -> Any:
        """The answer to a GET that must go well."""
        got = self.get(path, params=parameters)
        assert got.status_code == 200, got.text
        return got.json()

    def spans(self, spans: Spans | bytes, kind: str = PROTOBUF, **headers: str) -> httpx.Response:
        body = spans if isinstance(spans, bytes) else spans.body
        return self.request(
            "POST", "/v1/traces", content=body, headers={"content-type": kind, **headers}
        )

    def beat(self, document: Any) -> httpx.Response:
        body = json.dumps(document)
        return self.request("POST", "/v1/beats", content=body, headers={"content-type": JSON})


def error_of(got: httpx.Response, status: int) -> str:
    """The message of an error in the one form that errors have."""
    assert got.status_code == status, got.text
    assert got.headers["content-type"] == JSON
    document = got.json()
    flaws = list(flaws_of(document, openapi.ERROR, set()))
    assert flaws == []
    assert document["error"]["status"] == status
    message: str = document["error"]["message"]
    return message


def made(**options: Any) -> Client:
    served, clock = service()
    clock.advance(1_000)
    return Client(api(served, **options))


def filled() -> Client:
    """A service in which something is to be seen at every key of every answer."""
    served, clock = service()
    client = Client(api(served))
    spans = Spans()
    spans.done(1, 0, otel_tracker__conversation__id="c1", otel_tracker__audio__uuid="a1")
    spans.add(1, "audio", 0, 1, otel_tracker__stage="audio", otel_tracker__audio__chunks=2)
    spans.add(1, "queued", 1, 1.5, otel_tracker__stage="memory")
    spans.failed(2, 10, otel_tracker__conversation__id="c1")
    spans.stage(2, "transcription", 9, 10)
    spans.done(6, 12)
    spans.root(3, 20, otel_tracker__conversation__id="c3")
    outer = spans.stage(
        3, "memory", 20, otel_tracker__where=f"{WORKER}/MainThread", otel_tracker__stage__key="a"
    )
    spans.stage(3, "embedding", 20, 21, otel_tracker__stage__within=f"{outer:016x}")
    spans.add(
        3, "stalled", 20, 81, otel_tracker__stage="memory", otel_tracker__stage__key="a",
        error="no progress", stack="worker.py:6", otel_tracker__where=f"{WORKER}/MainThread",
    )  # fmt: skip
    spans.root(4, 30, otel_tracker__conversation__id="c4")
    spans.add(4, "queued", 30, otel_tracker__stage="memory")
    spans.root(5, 40)
    lost = spans.stage(5, "memory", 40, otel_tracker__where=f"{OTHER}/MainThread")
    clock.advance(41)
    client.spans(spans)
    client.beat(
        beat(
            OTHER, 41, open=[[f"{trace(5):032x}", f"{lost:016x}", wall(41)]], started_ns=wall(0),
            websockets={"client-5": 1}, health={"dropped": {"spans": 3}},
            pipelines=[{"name": "reports", "stages": ["fetch"], "stall_after": {"fetch": 90}}],
        )
    )  # fmt: skip
    clock.advance(60)
    client.beat(beat(WORKER, 101, started_ns=wall(0)))
    client.beat({"worker": "none"})
    return client


FILLED: Final = filled()


# --- the OpenAPI document -------------------------------------------------------------------------

KINDS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "null": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
}


def flaws_of(value: Any, schema: Mapping[str, Any], seen: set[int], at: str = "") -> Iterator[str]:
    """Where a value is not what a schema says; `seen` gets the schemas of what was there."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(KINDS[kind](value) for kind in kinds):
        yield f"{at}: {value!r} is no {kinds}"
        return
    if value is not None:
        seen.add(id(schema))
    if value is not None and value not in schema.get("enum", [value]):
        yield f"{at}: {value!r} is none of {schema['enum']}"
    is_time = isinstance(value, str) and schema.get("format") == "date-time"
    if is_time and datetime.fromisoformat(value).tzinfo is None:
        yield f"{at}: {value!r} has no zone"
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from flaws_of(item, schema["items"], seen, f"{at}[{number}]")
    if isinstance(value, dict):
        yield from flaws_of_object(value, schema, seen, at)


def flaws_of_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], seen: set[int], at: str
) -> Iterator[str]:
    properties, others = schema.get("properties", {}), schema["additionalProperties"]
    missing = set(schema.get("required", ())) - set(value)
    if missing:
        yield f"{at}: lacks {sorted(missing)}"
    for key, item in value.items():
        if key in properties:
            yield from flaws_of(item, properties[key], seen, f"{at}.{key}")
        elif isinstance(others, dict):
            yield from flaws_of(item, others, seen, f"{at}.{key}")
        elif not others:
            yield f"{at}: has {key!r}, of which the document knows nothing"


def schemas_within(schema: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, int]]:
    """The schemas of all keys, with the path to each."""
    for key, inner in schema.get("properties", {}).items():
        yield f"{at}.{key}", id(inner)
        yield from schemas_within(inner, f"{at}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from schemas_within(schema[key], f"{at}[]")


def answer_schema(path: str, method: str = "get") -> dict[str, Any]:
    schema: dict[str, Any] = DOCUMENT["paths"][path][method]["responses"]["200"]["content"][JSON][
        "schema"
    ]
    return schema


NEVER: Final = frozenset(
    {
        "/api/dashboard.health.export.provider",
        "/api/dashboard.health.publisher",
        "/api/dashboard.health.intake.journal",
        "/api/dashboard.open.rows[].audio_uuid",
        "/api/health.export.provider",
        "/api/health.publisher",
        "/api/health.intake.journal",
        "/api/transactions/{id}.jaeger.reason",
    }
)
"""What is null in this test's answers: nothing is there, or other tests have seen it otherwise."""


@pytest.mark.parametrize("path", [*READS, "/api/transactions/{id}", "/healthz"])
def test_every_key_of_every_answer_is_in_the_document_and_the_other_way_round(path: str) -> None:
    """Types too; and at nearly every key something was there to look at."""
    schema = answer_schema(path)
    seen: set[int] = set()
    paths = [path]
    if "{id}" in path:
        paths = [path.format(id=format_id(trace(number))) for number in range(1, 6)]
    if path == "/api/transactions":
        paths = [path, f"{path}?limit=2"]
    flaws = [flaw for one in paths for flaw in flaws_of(FILLED.get(one).json(), schema, seen)]
    assert flaws == []
    nothing = {at for at, place in schemas_within(schema, path) if place not in seen}
    assert nothing <= NEVER


def test_the_check_sees_a_flaw() -> None:
    """The walker above is not blind: a key too many, one too few, and a wrong type are found."""
    schema = answer_schema("/healthz")
    assert list(flaws_of({"status": 7}, schema, set()))
    assert list(flaws_of({}, schema, set()))
    assert list(flaws_of({"status": "ok", "more": 1}, schema, set()))


def test_the_document_has_every_path_and_parameter_and_is_served() -> None:
    """And every refusal that it names has a reason."""
    assert FILLED.data("/openapi.json") == json.loads(json.dumps(DOCUMENT))
    for path, parameters in openapi.PARAMETERS.items():
        told = {p["name"] for p in DOCUMENT["paths"][path]["get"]["parameters"]}
        assert told == set(parameters)
        message = error_of(FILLED.get(path, params={"colour": "red"}), 400)
        assert set(re.findall(r"\w+", message.partition("use ")[2])) == set(parameters)
    for path in READS:
        if path not in openapi.PARAMETERS:
            assert "there is none" in error_of(FILLED.get(path, params={"limit": "1"}), 400)


def test_the_dashboard_has_the_shape_of_get_dashboard_data() -> None:
    """Every key that a tracker's own has, at every depth, so that one page reads both."""
    from otel_tracker.testing import fresh_tracker

    with fresh_tracker() as t:
        transaction_id = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(transaction_id, "memory_started")
        t.tracker.track_queued(t.tracker.create_transaction("user", "client"), "memory")
        failed = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(failed, "memory_completed", False, "boom")
        t.advance(61)
        own = t.tracker.get_dashboard_data()
    data = FILLED.data("/api/dashboard")
    assert set(own) <= set(data)
    for name in ("system_metrics", "health"):
        assert set(own[name]) <= set(data[name])
    for name in ("recent_transactions", "recent_issues", "issue_patterns", "stalled", "waiting"):
        assert set(own[name][0]) == set(data[name][0])
    assert set(own["stages"]["memory"]) == set(data["stages"]["memory"])
    assert set(own["health"]["export"]) == set(data["health"]["export"])


# --- routes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "encoding"),
    [
        (lambda s: s.body, PROTOBUF, ""),
        (lambda s: gzip.compress(s.body), PROTOBUF, "gzip"),
        (lambda s: as_json(s.body), "application/json; charset=utf-8", ""),
        (lambda s: gzip.compress(as_json(s.body)), JSON, "gzip"),
    ],
)
def test_spans_come_in_every_form(body: Callable[[Spans], bytes], kind: str, encoding: str) -> None:
    """The answer is an empty response in the form of the request."""
    client, spans = made(), Spans()
    spans.done(1, 0)
    got = client.spans(body(spans), kind, **({"content-encoding": encoding} if encoding else {}))
    assert got.status_code == 200
    is_json = kind.startswith(JSON)
    assert got.content == (b"{}" if is_json else b"")
    assert got.headers["content-type"] == (JSON if is_json else PROTOBUF)
    assert client.data("/api/dashboard")["system_metrics"]["total_memories"] == 1


def test_a_beat_is_answered_by_what_is_unknown() -> None:
    """In JSON, as the document has it."""
    client = made()
    row = [f"{trace(1):032x}", f"{5:016x}", wall(0)]
    got = client.beat(beat(open=[row])).json()
    assert got == {"unknown": [row[:2]]}
    assert list(flaws_of(got, answer_schema("/v1/beats", "post"), set())) == []


def test_pages_lead_to_each_other() -> None:
    """By `next`, until it is null."""
    client, rows = made(), []
    for number in range(1, 8):
        spans = Spans()
        spans.done(number, number)
        client.spans(spans)
    parameters = {"limit": "3"}
    while True:
        page = client.data("/api/transactions", **parameters)
        rows += [row["id"] for row in page["transactions"]]
        if page["next"] is None:
            break
        parameters["cursor"] = page["next"]
    assert rows == [format_id(trace(number)) for number in range(7, 0, -1)]


def test_every_answer_says_that_it_is_data() -> None:
    """No browser takes it for a page or keeps it, and no other origin may read it."""
    for path in (*READS, "/healthz", "/nowhere"):
        headers = FILLED.get(path).headers
        assert headers["content-type"] == JSON
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in headers)


def test_head_is_get_without_a_body() -> None:
    """For whoever only wants to know whether it lives."""
    got = FILLED.request("HEAD", "/healthz")
    assert (got.status_code, got.content) == (200, b"")


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/", 404, "/openapi.json has the paths"),
        ("GET", "/api", 404, "/openapi.json has the paths"),
        ("GET", "/api/dashboard/", 404, "/openapi.json has the paths"),
        ("GET", f"/api/transactions/{format_id(1 << 100)}", 404, "look for it in Jaeger"),
        ("GET", "/api/transactions/<b>", 400, "is no transaction id"),
        ("GET", "/api/transactions/", 400, "is no transaction id"),
        ("GET", "/api/transactions?limit=no", 400, "from 1 to 500"),
        ("GET", "/api/transactions?user=%ff", 400, "query string"),
        ("GET", "/api/transactions?user=a&user=b", 400, "given twice"),
        ("GET", "/api/transactions?" + "&".join("user=a" for _ in range(60)), 400, "query string"),
        ("POST", "/api/dashboard", 405, "use GET"),
        ("DELETE", f"/api/transactions/{format_id(trace(1))}", 405, "use GET"),
        ("GET", "/v1/traces", 405, "use POST"),
        ("PUT", "/v1/beats", 405, "use POST"),
        ("OPTIONS", "/v1/traces", 405, "use POST"),
        ("POST", "/healthz", 405, "use GET"),
    ],
)
def test_errors_are_json_and_name_the_fix(method: str, path: str, status: int, says: str) -> None:
    """Whatever was asked for."""
    got = FILLED.request(method, path)
    assert says in error_of(got, status)
    assert ("allow" in got.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("/v1/traces", b"garbage", {"content-type": PROTOBUF}, 400, "no ExportTraceServiceRequest"),
        ("/v1/traces", b"[" * 9_999, {"content-type": JSON}, 400, "no ExportTraceServiceRequest"),
        ("/v1/traces", b"", {"content-type": "text/plain"}, 415, "content type 'text/plain'"),
        ("/v1/traces", b"", {}, 415, "content type ''"),
        ("/v1/traces", b"", {"content-type": PROTOBUF, "content-encoding": "br"}, 415, "use gzip"),
        ("/v1/traces", b"x", {"content-type": PROTOBUF, "content-encoding": "gzip"}, 400, "cut"),
        ("/v1/traces", gzip.compress(bytes(MAX_BODY + 1)),
         {"content-type": PROTOBUF, "content-encoding": "gzip"}, 413, "send smaller batches"),
        ("/v1/beats", b"{}", {"content-type": "text/plain"}, 415, "use application/json"),
        ("/v1/beats", b"{", {"content-type": JSON}, 400, "no JSON"),
        ("/v1/beats", b"\xff", {"content-type": JSON}, 400, "no JSON"),
        ("/v1/beats", b"NaN", {"content-type": JSON}, 400, "no JSON"),
        ("/v1/beats", b"[" * 100_000, {"content-type": JSON}, 400, "nested too deep"),
        ("/v1/beats", b"[]", {"content-type": JSON}, 400, "a beat is a JSON object"),
        ("/v1/beats", gzip.compress(bytes(5 << 20)),
         {"content-type": JSON, "content-encoding": "gzip"}, 413, "more than"),
    ],
)  # fmt: skip
def test_bodies_that_are_none_are_refused(
    path: str, body: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    """With a reason, and counted by their status; nothing of them is taken."""
    client = made()
    assert says in error_of(client.request("POST", path, content=body, headers=headers), status)
    intake = client.data("/api/health")["intake"]
    assert intake["refused"] == {str(status): 1}
    assert (intake["requests"], intake["beats"]) == (0, 0)


def test_a_body_without_a_length_is_bounded_too() -> None:
    """Chunks are counted as they come, and no more is read than the bound."""
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1 << 20
            yield bytes(1 << 20)

    headers = {"content-type": PROTOBUF}
    got = made().request("POST", "/v1/traces", content=endless(), headers=headers)
    assert "send smaller batches" in error_of(got, 413)
    assert read <= MAX_BODY + (2 << 20)


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    """Its length is believed, however many digits that has."""

    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"x")
        yield b"x"

    for length in (str(MAX_BODY + 1), "9" * 5_000):
        headers = {"content-type": PROTOBUF, "content-length": length}
        got = made().request("POST", "/v1/traces", content=body(), headers=headers)
        assert error_of(got, 413)
    assert read == []


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow client gets an answer, and its bytes count no longer."""
    monkeypatch.setattr(app_module, "BODY_S", 0.05)
    application = made().application

    async def slow() -> tuple[int, int]:
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": b"x" * 100, "more_body": True}]

        async def receive() -> Any:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", PROTOBUF.encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/traces", "headers": headers}
        await application(scope, receive, send)
        return sent[0]["status"], application._bytes

    assert asyncio.run(slow()) == (408, 0)


def test_a_client_that_goes_away_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """No answer, no count, no log line."""
    application = made().application

    async def gone() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", PROTOBUF.encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/traces", "headers": headers}
        await application(scope, receive, send)
        return sent

    assert asyncio.run(gone()) == []
    assert (application._bytes, caplog.records) == (0, [])


def test_bodies_of_many_clients_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound: try again in a second. Done with, their bytes are free again."""
    monkeypatch.setattr(app_module, "IN_FLIGHT", 1_000)
    client = made()
    got = client.spans(bytes(2_000))
    assert "send again" in error_of(got, 503)
    assert got.headers["retry-after"] == "1"
    spans = Spans()
    spans.root(1, 0)
    assert client.spans(spans).status_code == 200


def test_a_flood_of_new_transactions_is_sent_back_in_time() -> None:
    """503, with the seconds until the minute is over; counted under health."""
    served, clock = service(new_per_minute=2)
    client = Client(api(served))
    clock.advance(10)
    first, second = Spans(), Spans()
    for number in (1, 2):
        first.done(number, 0)
        second.done(number + 2, 0)
    assert client.spans(first).status_code == 200
    clock.advance(30)
    got = client.spans(second)
    assert "more than 2 transactions" in error_of(got, 503)
    assert got.headers["retry-after"] == "31"
    assert client.data("/api/health")["intake"]["refused_new_transactions"] == 2


def test_a_defect_is_an_answer_and_one_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 as JSON without anything of the inside; the log has the traceback, once."""

    def broken(_: Any) -> Any:
        raise ValueError("a secret of the inside")

    monkeypatch.setattr(queries, "workers", broken)
    client = made()
    for _ in range(2):
        assert "secret" not in error_of(client.get("/api/workers"), 500)
    assert [record.exc_info is not None for record in caplog.records] == [True]


# --- who may ask ----------------------------------------------------------------------------------


def test_a_token_is_wanted_on_everything_but_healthz() -> None:
    """Also on what is not there; a wrong one, or none, is told how to show it."""
    client = made(token=TOKEN)
    assert client.get("/healthz").status_code == 200
    wrong: tuple[dict[str, str], ...] = (
        {}, {"authorization": "Bearer"}, {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"}, {"authorization": "Bearer \xff"},
    )  # fmt: skip
    for path in (*READS, "/nowhere", "/openapi.json", "/v1/traces", "/v1/beats"):
        for headers in wrong:
            raw = {k: v.encode("latin-1") for k, v in headers.items()}
            got = client.get(path, headers=raw)
            assert "OTEL_TRACKER_TOKEN" in error_of(got, 401)
            assert got.headers["www-authenticate"] == "Bearer"
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {TOKEN}", "host": "tracker.example"}
        assert client.get("/api/dashboard", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "hosts", "allowed"),
    [
        ("localhost:8500", (), True),
        ("127.0.0.1", (), True),
        ("127.8.8.8:80", (), True),
        ("[::1]:8500", (), True),
        ("LOCALHOST", (), True),
        ("evil.example:8500", (), False),
        ("localhost.evil.example", (), False),
        ("10.0.0.1", (), False),
        ("", (), False),
        ("[", (), False),
        ("tracker.example", ("Tracker.example",), True),
        ("anything", ("*",), True),
    ],
)
def test_without_a_token_only_this_machine_is_answered(
    host: str, hosts: tuple[str, ...], allowed: bool
) -> None:
    """A web page can point a name of its own at 127.0.0.1, and then ask in a browser's name."""
    client = made(hosts=hosts)
    for method, path in (("GET", "/api/dashboard"), ("POST", "/v1/beats")):
        headers = {"host": host, "content-type": JSON}
        body = json.dumps(beat()) if method == "POST" else None
        got = client.request(method, path, headers=headers, content=body)
        if allowed:
            assert got.status_code == 200
        else:
            assert "OTEL_TRACKER_TOKEN" in error_of(got, 403)
    assert client.get("/healthz", headers={"host": host}).status_code == 200


# --- as an application ----------------------------------------------------------------------------


def test_it_is_mounted_in_an_application_of_the_users_own() -> None:
    """Under a prefix, without its lifespan, beside the application's own routes."""
    served, _ = service()
    web = FastAPI()
    web.mount("/inner/tracker", dashboard.api(served))

    @web.get("/api/dashboard")
    def own() -> str:
        return "the application's own"

    client, spans = Client(web), Spans()
    spans.done(1, -10)
    headers = {"content-type": PROTOBUF}
    got = client.request("POST", "/inner/tracker/v1/traces", content=spans.body, headers=headers)
    assert got.status_code == 200
    prefix = "/inner/tracker"
    metrics = client.data(f"{prefix}/api/dashboard")["system_metrics"]
    assert metrics["completed_transactions"] == 1
    one = f"{prefix}/api/transactions/{format_id(trace(1))}"
    assert client.data(one)["status"] == "completed"
    assert client.data(f"{prefix}/openapi.json")["servers"] == [{"url": prefix}]
    assert error_of(client.get(f"{prefix}{prefix}/healthz"), 404)
    assert client.data("/api/dashboard") == "the application's own"


def test_the_lifespan_judges_silence_and_ends_in_order() -> None:
    """Its thread runs between startup and shutdown; later requests are told so."""
    served, _ = service()
    application = api(served)

    def threads() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name == "otel-tracker-service"}

    async def live() -> list[str]:
        sent: list[str] = []
        messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
        running: list[bool] = []

        async def receive() -> Any:
            running.append(bool(threads()))
            return messages.pop()

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await application({"type": "lifespan"}, receive, send)
        assert running == [False, True]
        return sent

    assert asyncio.run(live()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert threads() == set()
    client = Client(application)
    assert "shutting down" in error_of(client.get("/api/health"), 503)
    assert client.get("/healthz").status_code == 200


def test_a_websocket_is_turned_away() -> None:
    """There is none; the server must not wait for it."""

    async def connect() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await made().application({"type": "websocket"}, receive, send)
        return sent

    assert asyncio.run(connect()) == [{"type": "websocket.close", "code": 1000}]


def test_the_event_loop_is_free_while_spans_are_folded() -> None:
    """With the store held by a fold, spans and reads wait, and /healthz answers at once."""
    served, _ = service()
    application: Api = api(served)
    client = Client(application)
    held, release = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        held.set()
        assert release.wait(30)

    holder = threading.Thread(target=served.store.read, args=(hold,))
    holder.start()
    assert held.wait(10)

    async def ask() -> None:
        spans = Spans()
        spans.done(1, -10)
        headers = {"content-type": PROTOBUF}
        waits = [
            asyncio.create_task(
                client.asked("POST", "/v1/traces", content=spans.body, headers=headers)
            ),
            asyncio.create_task(client.asked("GET", "/api/dashboard")),
        ]
        for _ in range(20):
            got = await asyncio.wait_for(client.asked("GET", "/healthz"), 10)
            assert got.status_code == 200
        assert not any(task.done() for task in waits)
        release.set()
        assert [got.status_code for got in await asyncio.gather(*waits)] == [200, 200]

    try:
        asyncio.run(ask())
    finally:
        release.set()
        holder.join()


def test_a_beat_does_not_wait_for_the_spans_before_it() -> None:
    """Else a long queue of spans would make a living worker look lost."""
    served, _ = service()
    client = Client(api(served))
    working, release = threading.Event(), threading.Event()
    take = served.fold

    def slow(request: Any) -> int:
        working.set()
        assert release.wait(30)
        return take(request)

    served.fold = slow  # type: ignore[method-assign]

    async def ask() -> None:
        spans = Spans()
        spans.done(1, -10)
        headers = {"content-type": PROTOBUF}
        posted = asyncio.create_task(
            client.asked("POST", "/v1/traces", content=spans.body, headers=headers)
        )
        await asyncio.to_thread(working.wait, 10)
        body, kind = json.dumps(beat()), {"content-type": JSON}
        got = await asyncio.wait_for(
            client.asked("POST", "/v1/beats", content=body, headers=kind), 10
        )
        assert got.status_code == 200
        assert not posted.done()
        release.set()
        assert (await posted).status_code == 200

    try:
        asyncio.run(ask())
    finally:
        release.set()


# --- anything -------------------------------------------------------------------------------------

PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["host/1", "1" * 32, "1" * 16, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS: Final = [
    "worker", "service", "version", "at_ns", "interval_s", "started_ns", "is_last", "open",
    "websockets", "pipelines", "stall_after", "health",
]  # fmt: skip
ANY_BEAT: Final = (
    PLAIN
    | st.dictionaries(st.sampled_from(KEYS), PLAIN)
    | st.dictionaries(st.sampled_from(KEYS), PLAIN).map(lambda some: {**beat(), **some})
    | st.lists(st.lists(PLAIN, min_size=3, max_size=3), max_size=2).map(
        lambda rows: {**beat(), "open": rows}
    )
)
FUZZED: Final = made()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_BEAT)
@example({**beat(), "websockets": {"\ud800": 1}})
@example({**beat(), "pipelines": [{"name": "a", "stages": ["\ud800"]}]})
@example({**beat(), "pipelines": [{"name": "a", "stall_after": {"x": 10**400}}]})
@example({**beat(), "health": {"a": [[[[[[[[1]]]]]]]]}})
def test_any_json_is_a_beat_or_is_refused(document: Any) -> None:
    """200 or 400, never 500; and everything can be read afterwards."""
    got = FUZZED.beat(document)
    assert got.status_code in (200, 400), got.text
    if got.status_code == 400:
        error_of(got, 400)
    for path in ("/api/workers", "/api/health"):
        assert list(flaws_of(FUZZED.data(path), answer_schema(path), set())) == []


METHODS: Final = ["GET", "POST", "PUT", "HEAD", "PATCH", "DELETE", "OPTIONS", "BREW"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(METHODS),
    st.sampled_from([*DOCUMENT["paths"], "/", ""]) | st.text(max_size=30).map(lambda t: f"/{t}"),
    st.binary(max_size=20)
    | st.builds(
        lambda name, value: f"{name}={quote(value, errors='replace')}".encode(),
        st.sampled_from(["limit", "cursor", "status", "since", "user", "x"]),
        st.text(max_size=20),
    ),
    st.sampled_from([PROTOBUF, JSON, "", "text/html"]),
    st.sampled_from(["", "gzip", "deflate", "br"]),
    st.binary(max_size=60) | PLAIN.map(lambda plain: json.dumps(plain).encode()),
)
def test_any_request_is_answered_as_the_document_says(
    method: str, path: str, query: bytes, kind: str, encoding: str, body: bytes
) -> None:
    """A known status, never 500, and in JSON unless it is an empty answer in protobuf."""
    headers = [
        (b"host", b"localhost"),
        (b"content-type", kind.encode()),
        (b"content-encoding", encoding.encode()),
    ]
    scope = {
        "type": "http", "method": method, "path": path, "headers": headers, "query_string": query,
    }  # fmt: skip
    status, answered, text = asyncio.run(spoken(FUZZED.application, scope, body))
    assert status in (200, 400, 404, 405, 413, 415)
    if method == "HEAD":
        assert text == b""
    elif status != 200:
        assert list(flaws_of(json.loads(text), openapi.ERROR, set())) == []
    elif answered[b"content-type"] == JSON.encode():
        json.loads(text)
    else:
        assert (path, text) == ("/v1/traces", b"")


async def spoken(
    application: Any, scope: dict[str, Any], body: bytes
) -> tuple[int, dict[bytes, bytes], bytes]:
    """What an application says to a request that no client would make: status, headers, body."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    await application(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


# --- the document for people ----------------------------------------------------------------------


def kind_of(schema: Mapping[str, Any]) -> str:
    """A type in a word or two."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = ["time" if schema.get("format") == "date-time" else kinds[0], *kinds[1:]]
    names = {"string": "text", "integer": "count", "boolean": "flag", "array": "list"}
    return " or ".join(names.get(word, word) for word in words)


def rows_of(schema: Mapping[str, Any], told: dict[str, str], at: str, route: str) -> Iterator[str]:
    """A row for each key, the inner ones after it; what was told before is only referred to."""
    for key, inner in schema.get("properties", {}).items():
        shape, place, inside = inner, f"{at}{key}", key
        while shape.get("type") == "array" or isinstance(shape.get("additionalProperties"), dict):
            is_list = shape["type"] == "array"
            inside += "[]" if is_list else ".*"
            shape = shape["items"] if is_list else shape["additionalProperties"]
        text = json.dumps(shape.get("properties"))
        means = inner["description"]
        if shape is not inner and shape["description"] not in (means, "a stage", "an id"):
            means = f"{means}: {shape['description']}"
        if shape.get("properties") and text in told:
            yield f"| `{place}` | {kind_of(inner)} | {means}; keys as {told[text]} |"
            continue
        yield f"| `{place}` | {kind_of(inner)} | {means} |"
        if shape.get("properties"):
            inside = f"{at}{inside}"
            told[text] = f"`{inside}` of {route}"
            yield from rows_of(shape, told, f"{inside}.", route)


def tables() -> Iterator[str]:
    """The part of docs/api.md that follows from the OpenAPI document."""
    told: dict[str, str] = {}
    order = sorted(
        (path for path in DOCUMENT["paths"] if path.startswith("/api/")),
        key=lambda path: (path != "/api/transactions", path == "/api/dashboard"),
    )
    for path in order:
        operation = DOCUMENT["paths"][path]["get"]
        yield f"### `GET {path}`\n"
        yield f"{operation['summary']}.\n"
        if operation["parameters"]:
            yield "| parameter | meaning |\n|---|---|"
            for parameter in operation["parameters"]:
                schema = parameter["schema"]
                means = parameter["description"]
                if "default" in schema:
                    bounds = f"{schema['minimum']} to {schema['maximum']}"
                    means = f"{means}: {bounds}, else {schema['default']}"
                yield f"| `{parameter['name']}` | {means} |"
            yield ""
        yield "| key | type | meaning |\n|---|---|---|"
        yield from rows_of(answer_schema(path), told, "", f"`{path}`")
        yield ""


START: Final = "<!-- python -m tests.test_dashboard_api writes from here to the end -->\n"


def test_the_document_for_people_has_every_key() -> None:
    """docs/api.md says of each parameter and key what the OpenAPI document says, and no more."""
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    written = text.partition(START)[2].strip()
    assert written == "\n".join(tables()).strip(), "run: python -m tests.test_dashboard_api"
    for name in (*KEYS, "/v1/traces", "/v1/beats", "/healthz", "/openapi.json"):
        assert f"`{name}`" in text or f"{name}`" in text
    for status in ("400", "401", "403", "404", "405", "408", "413", "415", "500", "503"):
        assert f"| {status} |" in text


if __name__ == "__main__":
    path = ROOT / "docs/api.md"
    before = path.read_text(encoding="utf-8").partition(START)[0]
    path.write_text(before + START + "\n" + "\n".join(tables()).strip() + "\n", encoding="utf-8")
