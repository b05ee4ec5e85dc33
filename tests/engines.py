"""The real engines for tests: a Collector with the configuration that ships, and a Jaeger.

    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        ...  # export to collector.http_url, or collector.grpc
        spans = jaeger.wait_for(trace_id, spans=3)

`make engines` builds them. Each listens on ports of its own on loopback, keeps its files and its
log below `tmp_path`, and is ended by its own handle. `stop`, `kill` and `start` keep ports and
files.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NoReturn, Self

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from tests.otlp import ROOT

CONFIG: Final = ROOT / "collector-config.yaml"
RECORD: Final = ROOT / "deploy" / "collector-record.yaml"
"""Given to a `Collector`, it keeps what it received, and what it sends on: `received`, `masked`."""
AUTH: Final = ROOT / "deploy" / "collector-auth.yaml"
"""Given to a `Collector` with ``env={"OTELCOL_TOKEN": …}``, it wants that token of its clients."""
JAEGER_CONFIG: Final = ROOT / "deploy" / "jaeger.yaml"

START_S: Final = 30
"""Longest start of an engine; under a second on a quiet machine."""
STOP_S: Final = 20


@dataclass(frozen=True, slots=True)
class Span:
    """A span as an engine has it. Ids in hex, times in nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    name: str
    service: str
    kind: int
    """As OTLP counts: 1 internal, 2 server."""
    start_ns: int
    end_ns: int
    status: int
    """0 unset, 1 ok, 2 error."""
    description: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[str]
    """The trace ids that it links to."""


def engine(name: str) -> Path:
    """The program that `make engines` has built. Skips the test without it; in CI it fails."""
    cache = os.environ.get("OTEL_TRACKER_ENGINES") or (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-tracker-engines"
    )
    program = Path(cache) / name
    if not program.exists():
        missing(f"{name} is not built: run `make engines` (minutes, once)")
    return program


def missing(message: str) -> NoReturn:
    """Skips the test visibly for want of a program; with ``CI=true`` the test fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def executable(name: str, package: str) -> str:
    """A program of the system. Skips the test without it; in CI it fails."""
    program = shutil.which(name)
    if program is None:
        missing(f"{name} is not installed (Debian: apt-get install {package})")
    return program


def engines_or_skip() -> None:
    """Skips the test where the Collector or Jaeger is missing; in CI it fails."""
    engine("otelcol")
    engine("jaeger")


def until(what: str, is_so: Callable[[], Any], timeout_s: float = 30) -> Any:
    """Waits until `is_so` gives something true, which it returns."""
    deadline = time.monotonic() + timeout_s
    while not (result := is_so()):
        assert time.monotonic() < deadline, f"after {timeout_s} s still waiting for: {what}"
        time.sleep(0.02)
    return result


_given: set[int] = set()


def free_port() -> int:
    """A port of loopback on which nobody listens, never given before.

    From below those that the kernel gives to clients: while an engine is down, no connection of
    anybody's takes its port.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def fetch(url: str, timeout_s: float = 10) -> tuple[int, str]:
    """Status and body of a GET; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310 - loopback
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


class Engine:
    """A process that answers on a health endpoint once it is up."""

    name: str
    health_url: str

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str], log: Path) -> None:
        """Prepares the process; `start` or the context manager starts it."""
        self.command = [str(part) for part in command]
        # Nothing of the test's own OpenTelemetry settings reaches it.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL", "JAEGER"))}
        self.env = {**clean, **env}
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts it, and returns when it is ready. Fails with its log when it is not in time."""
        assert self.process is None, f"{self.name} runs"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd=self.log.parent, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while fetch(self.health_url)[0] != 200:
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                self.kill()
                how = f"ended with {code}" if code is not None else f"not ready in {START_S} s"
                raise AssertionError(f"{self.name} {how}:\n{self.said()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Asks it to end (SIGTERM), and waits until it has."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            finally:
                self.kill()

    def kill(self) -> None:
        """Ends it at once (SIGKILL)."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-8_000:]


class Jaeger(Engine):
    """A Jaeger with the configuration that ships; its storage below `tmp_path`.

    Args:
        tmp_path: where it keeps its files.
        env: variables of deploy/jaeger.yaml.
        config: another configuration.
    """

    name = "Jaeger"

    def __init__(
        self, tmp_path: Path, env: Mapping[str, str] | None = None, config: Path = JAEGER_CONFIG
    ) -> None:
        """Chooses the ports; the context manager starts it."""
        ui, self._health = free_port(), free_port()
        self.otlp_grpc = f"127.0.0.1:{free_port()}"
        self.ui_url = f"http://127.0.0.1:{ui}"
        self.health_url = f"http://127.0.0.1:{self._health}/status"
        variables = {
            "JAEGER_GRPC_ENDPOINT": self.otlp_grpc,
            "JAEGER_UI_ENDPOINT": f"127.0.0.1:{ui}",
            "JAEGER_QUERY_GRPC_ENDPOINT": f"127.0.0.1:{free_port()}",
            "JAEGER_HEALTH_ENDPOINT": f"127.0.0.1:{self._health}",
            "JAEGER_METRICS_PORT": str(free_port()),
            "JAEGER_DATA_DIR": str(tmp_path / "jaeger"),
            "JAEGER_UI_CONFIG": str(ROOT / "deploy" / "jaeger-ui.json"),
            **(env or {}),
        }
        command: list[str | Path] = [engine("jaeger"), "--config", config]
        super().__init__(command, variables, tmp_path / "jaeger.log")

    def traces(self, trace_id: str) -> list[Span] | None:
        """The spans of one trace (32 hex digits) in order of start; None where it is unknown."""
        status, body = fetch(f"{self.ui_url}/api/v3/traces/{trace_id}")
        if status == 404:
            return None
        assert status == 200, f"{status} {body}"
        return sorted(_from_json(json.loads(body)["result"]), key=lambda span: span.start_ns)

    def wait_for(self, trace_id: str, spans: int = 1, timeout_s: float = 30) -> list[Span]:
        """The spans of one trace, as soon as there are as many."""
        found: list[Span] = until(
            f"{spans} spans of {trace_id} in Jaeger",
            lambda: len(got := self.traces(trace_id) or []) >= spans and got,
            timeout_s,
        )
        return found

    def search(
        self,
        service: str,
        operation: str | None = None,
        attributes: Mapping[str, str] | None = None,
        min_duration: float | None = None,
        limit: int = 100,
    ) -> list[str]:
        """The ids of the traces in which one span is all that; of the last and the next hour.

        Args:
            service: required, as in Jaeger's form.
            operation: a span's name.
            attributes: exact values.
            min_duration: of that span, in seconds.
            limit: most traces.
        """
        # What the search form of 2.13 calls: its /api/v3 over HTTP reads no attributes.
        now, hour = time.time_ns() // 1000, 3_600_000_000
        query = {"service": service, "limit": limit, "start": now - hour, "end": now + hour}
        if operation is not None:
            query["operation"] = operation
        if attributes:
            query["tags"] = json.dumps(dict(attributes))
        if min_duration is not None:
            query["minDuration"] = f"{round(min_duration * 1e6)}us"
        status, body = fetch(f"{self.ui_url}/api/traces?{urllib.parse.urlencode(query)}")
        assert status == 200, f"{status} {body}"
        return [trace["traceID"] for trace in json.loads(body)["data"]]


class Collector(Engine):
    """A Collector that runs collector-config.yaml itself; its queues below `tmp_path`.

    Args:
        tmp_path: where it keeps its files.
        jaeger: whom it sends to; without one, to nobody.
        env: variables of collector-config.yaml, which win.
        extra_config: further configurations: `RECORD`, `AUTH`.
    """

    name = "Collector"

    def __init__(
        self,
        tmp_path: Path,
        env: Mapping[str, str] | None = None,
        extra_config: Sequence[Path] = (),
        jaeger: Jaeger | None = None,
    ) -> None:
        """Chooses the ports; the context manager starts it."""
        http, health, metrics, spans = (free_port() for _ in range(4))
        self.grpc = f"127.0.0.1:{free_port()}"
        self.http_url = f"http://127.0.0.1:{http}"
        self.health_url = f"http://127.0.0.1:{health}/"
        self.metrics_url = f"http://127.0.0.1:{metrics}/metrics"
        self.span_metrics_url = f"http://127.0.0.1:{spans}/metrics"
        self._records = tmp_path / "records"
        self._records.mkdir(exist_ok=True)
        variables = {
            "OTELCOL_GRPC_ENDPOINT": self.grpc,
            "OTELCOL_HTTP_ENDPOINT": f"127.0.0.1:{http}",
            "OTELCOL_HEALTH_ENDPOINT": f"127.0.0.1:{health}",
            "OTELCOL_METRICS_PORT": str(metrics),
            "OTELCOL_SPAN_METRICS_ENDPOINT": f"127.0.0.1:{spans}",
            "OTELCOL_SPAN_METRICS_INTERVAL": "500ms",
            "OTELCOL_QUEUE_DIR": str(tmp_path / "queue"),
            "OTELCOL_RECORD_DIR": str(self._records),
            "JAEGER_OTLP_ENDPOINT": jaeger.otlp_grpc if jaeger else f"127.0.0.1:{free_port()}",
            "OTEL_TRACKER_URL": f"http://127.0.0.1:{free_port()}",
            **(env or {}),
        }
        command: list[str | Path] = [engine("otelcol")]
        for config in (CONFIG, *extra_config):
            command += ["--config", config]
        super().__init__(command, variables, tmp_path / "collector.log")

    def received(self) -> list[Span]:
        """What clients sent, as it came (started with `RECORD`; a tenth of a second late)."""
        return list(_recorded(self._records / "received.otlp"))

    def masked(self) -> list[Span]:
        """What it sends on (started with `RECORD`; a tenth of a second late)."""
        return list(_recorded(self._records / "masked.otlp"))

    def metrics(self) -> dict[str, float]:
        """Its own metrics, by name and labels as they are written: ``name{a="b"}``."""
        return samples(fetch(self.metrics_url)[1])

    def span_metrics(self) -> dict[str, float]:
        """What it counted of the spans, likewise."""
        return samples(fetch(self.span_metrics_url)[1])


def samples(text: str) -> dict[str, float]:
    """Prometheus' text format as a dict."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def _recorded(file: Path) -> Iterator[Span]:
    if not file.exists():
        return
    with file.open("rb") as stream:
        while (message := _message(stream)) is not None:
            yield from _from_proto(TracesData.FromString(message))


def _message(stream: IO[bytes]) -> bytes | None:
    """The next message; None at the end, or where the last one is not yet written out."""
    length = stream.read(4)
    if len(length) < 4:
        return None
    size = int.from_bytes(length, "big")
    message = stream.read(size)
    return message if len(message) == size else None


def _from_proto(data: Any) -> Iterator[Span]:
    for of_resource in data.resource_spans:
        resource = _plain(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    service=resource.get("service.name", ""),
                    kind=span.kind,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    status=span.status.code,
                    description=span.status.message,
                    attributes=_plain(span.attributes),
                    resource=resource,
                    events=[(event.name, _plain(event.attributes)) for event in span.events],
                    links=[link.trace_id.hex() for link in span.links],
                )


def _plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: _held(pair.value) for pair in attributes}


def _held(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_held(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _plain(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _from_json(data: Any) -> Iterator[Span]:
    for of_resource in data["resourceSpans"]:
        resource = _plain_json(of_resource["resource"])
        for scope in of_resource["scopeSpans"]:
            for span in scope["spans"]:
                status = span.get("status", {})
                yield Span(
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    name=span["name"],
                    service=resource.get("service.name", ""),
                    kind=span.get("kind", 0),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span["endTimeUnixNano"]),
                    status=status.get("code", 0),
                    description=status.get("message", ""),
                    attributes=_plain_json(span),
                    resource=resource,
                    events=[(e.get("name", ""), _plain_json(e)) for e in span.get("events", [])],
                    links=[link["traceId"] for link in span.get("links", [])],
                )


def _plain_json(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in holder.get("attributes", [])}


def _value(value: Mapping[str, Any]) -> Any:
    """One value of OTLP/JSON, where 64-bit integers are strings."""
    for kind, held in value.items():
        if kind == "intValue":
            return int(held)
        if kind == "arrayValue":
            return [_value(item) for item in held.get("values", [])]
        if kind == "kvlistValue":
            return {pair["key"]: _value(pair["value"]) for pair in held.get("values", [])}
        return held
    return None
