"""Ending spans while they are exported: our processor against the SDK's batch processor.

Each measurement is a process of its own, the two in turn. What counts is how long the application
takes for a burst of spans, and how many of them arrive. ``python -m benchmarks.export`` runs this
alone.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from typing import Any, Final

SPANS: Final = 20_000
ROUNDS: Final = 3
LIMIT_S: Final = 90
_ATTRIBUTES: Final[dict[str, str | int | bool]] = {
    "user.id": "507f1f77bcf8",
    "model": "llama3",
    "words": 512,
    "ok": True,
}


def burst(kind: str) -> None:
    """In the process: `SPANS` spans as fast as they can be made, then a shutdown."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from otel_tracker.diagnostics import Diagnostics
    from otel_tracker.exporting import ExportProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    if kind == "ours":
        provider.add_span_processor(ExportProcessor("otlp", OTLPSpanExporter, Diagnostics()))
    else:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("bench")
    for _ in range(200):
        tracer.start_span("warm", attributes=_ATTRIBUTES).end()
    started = time.perf_counter()
    for _ in range(SPANS):
        tracer.start_span("work", attributes=_ATTRIBUTES).end()
    worked = time.perf_counter() - started
    started = time.perf_counter()
    provider.shutdown()
    print(json.dumps({"work_s": worked, "shutdown_s": time.perf_counter() - started}))


@contextmanager
def sink() -> Iterator[tuple[str, list[bytes]]]:
    """An endpoint that takes everything; the requests' bodies, to be counted afterwards."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name that http.server asks for
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_packed = self.headers.get("Content-Encoding") == "gzip"
            bodies.append(gzip.decompress(body) if is_packed else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def arrived(bodies: list[bytes]) -> int:
    """Spans of the burst in these requests."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return sum(
        span.name == "work"
        for body in bodies
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    )


def measure(kind: str, endpoint: str) -> dict[str, Any]:
    """One burst in a process of its own, seconds."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.export", kind],
        env={**clean, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return {**said, "log_lines": len(done.stderr.splitlines())}


def main() -> None:
    """Prints, for an endpoint that is up, one that never answers, and none, how the two compare."""
    with ExitStack() as stack:
        hole = stack.enter_context(create_server(("127.0.0.1", 0), backlog=128))
        url, bodies = stack.enter_context(sink())
        endpoints = {
            "that is up": url,
            "that never answers": f"http://127.0.0.1:{hole.getsockname()[1]}",
            "with nobody listening": "http://127.0.0.1:9",  # the discard port
        }
        print(f"A burst of {SPANS} spans to an endpoint")
        for what, endpoint in endpoints.items():
            _compare(what, endpoint, bodies)


def _compare(what: str, endpoint: str, bodies: list[bytes]) -> None:
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "sdk": []}
    for _ in range(ROUNDS):
        for kind, rounds in found.items():
            bodies.clear()
            rounds.append({**measure(kind, endpoint), "arrived": arrived(bodies)})

    def median(kind: str, key: str) -> float:
        return float(statistics.median(one[key] for one in found[kind]))

    ratios = sorted(
        a["work_s"] / b["work_s"] for a, b in zip(found["ours"], found["sdk"], strict=True)
    )
    print(
        f"  {what}: {statistics.median(ratios):.2f}x [{ratios[0]:.2f} to {ratios[-1]:.2f}] "
        "of the application's time with the SDK's batch processor (aim: at most 1.1x)"
    )
    for kind in found:
        print(
            f"    {kind:4}  {median(kind, 'work_s') / SPANS * 1e6:5.1f} µs a span, shutdown "
            f"{median(kind, 'shutdown_s'):4.1f} s, {median(kind, 'arrived'):.0f} arrived, "
            f"{median(kind, 'log_lines'):.0f} lines of log"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        burst(sys.argv[1])
    else:
        main()
