"""An OTLP/HTTP receiver on loopback, and programs that export to it from processes of their own."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT: Final = Path(__file__).resolve().parents[1]


@contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP/HTTP endpoint on loopback; the spans that came, in order of arrival."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server asks for
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return None

    # Of several processes that export at the same moment none has to wait for another.
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(arguments: Iterable[str], endpoint: str, timeout_s: float = 60, **env: str) -> str:
    """What Python prints, run with these arguments in a process that exports to `endpoint`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    # Newer Pythons warn of a fork beside threads, which is what some tests are about.
    fork = "ignore:This process:DeprecationWarning"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", fork, *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **env},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Arrived:
    """A span as it came, in plain data."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    attributes: dict[str, Any]
    is_error: bool
    message: str
    links: tuple[str, ...]
    """The linked traces' ids."""

    @property
    def process(self) -> int:
        """The id of the process that did the work, from host/process/thread/task."""
        return int(self.attributes["otel_tracker.where"].split("/")[1])

    @property
    def outcome(self) -> str | None:
        """How the attempt or the transaction ended."""
        told: str | None = self.attributes.get("otel_tracker.stage.outcome")
        return told or self.attributes.get("otel_tracker.outcome")


def plain(span: Any) -> Arrived:
    """One span of a request."""
    values = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        values[attribute.key] = getattr(attribute.value, kind) if kind else None
    return Arrived(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        values,
        span.status.code == span.status.STATUS_CODE_ERROR,
        span.status.message,
        tuple(link.trace_id.hex() for link in span.links),
    )


def of_trace(spans: Iterable[Any], transaction_id: str) -> list[Arrived]:
    """The spans of one transaction."""
    arrived = [plain(span) for span in spans]
    return [span for span in arrived if span.trace_id == transaction_id.replace("-", "")]


def tree(arrived: list[Arrived]) -> list[tuple[str, str]]:
    """Name and parent's name of each, sorted; "" for a root, "?" where the parent did not come."""
    names = {span.span_id: span.name for span in arrived}
    assert len(names) == len(arrived), "a span came twice"
    return sorted(
        (span.name, names.get(span.parent_id, "?") if span.parent_id else "") for span in arrived
    )
