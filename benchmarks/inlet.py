"""Spans a second through the dashboard's server and service, against bare protobuf decoding.

The service runs as `otel-tracker dashboard` runs it, in a process of its own; this one posts it the
spans of whole transactions, in batches as exporters make them. What counts is the processor time
that the service takes for a span: on a machine with other work the clock on the wall says little.
``python -m benchmarks.inlet`` runs this alone, on Linux.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otel_tracker import DebugSystemTracker
from otel_tracker.receiver import parse

from .rivals import six_events

BATCH: Final = 512
BATCHES: Final = 40
ROUNDS: Final = 3
CONNECTIONS: Final = 2
KINDS: Final = {
    "the service and its journal": ("journal", "", "at least 10,000"),
    "the service": ("service", "", "at least 10,000"),
    "the service, gzip": ("service", "gzip", "at least 10,000"),
    "the server and parsing alone": ("parsing", "", "none: the floor"),
}
"""What runs, how requests are encoded, and the aim."""


class _Keep(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def batches() -> tuple[list[bytes], float]:
    """Requests with the spans of new transactions; processor seconds that decoding them takes."""
    keep = _Keep()
    provider = TracerProvider(resource=Resource({"service.name": "bench"}), shutdown_on_exit=False)
    provider.add_span_processor(keep)
    tracker = DebugSystemTracker(provider)
    while len(keep.spans) < BATCH * BATCHES:
        six_events(tracker)
    tracker.shutdown()
    spans = keep.spans[: BATCH * BATCHES]
    made = [
        encode_spans(spans[start : start + BATCH]).SerializeToString()
        for start in range(0, len(spans), BATCH)
    ]
    started = time.process_time()
    for body in made:
        ExportTraceServiceRequest.FromString(body)
    return made, time.process_time() - started


def serve(what: str) -> None:
    """In the process: the service, or an application that only parses, until SIGTERM."""
    from otel_tracker.dashboard.app import api
    from otel_tracker.dashboard.server import run
    from otel_tracker.dashboard.service import Service

    # The bound on new transactions is for floods, such as this one.
    made = Service(new_per_minute=10_000_000)
    with tempfile.TemporaryDirectory(prefix="otel-tracker-inlet-") as directory:
        if what == "journal":
            made.open_journal(Path(directory), 256 << 20)
        application = _Parsing() if what == "parsing" else api(made)
        run(application, port=0, on_listening=lambda url: print(url, flush=True))
        made.close()


class _Parsing:
    """The server's own share: takes what the service takes, and keeps nothing."""

    def __init__(self) -> None:
        self.spans = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        request = parse(body) if body else ExportTraceServiceRequest()
        self.spans += sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
        answer = json.dumps({"intake": {"spans": self.spans}}).encode()
        head = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": answer})


@contextmanager
def service(what: str) -> Iterator[tuple[int, int]]:
    """It in a process of its own: that one's id and port."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.inlet", what],
        env=clean,
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the service did not start"
        yield process.pid, int(url.rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(30)
        process.communicate()


def processor_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def post(port: int, bodies: Sequence[bytes], encoding: str) -> None:
    """Posts them over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/x-protobuf"}
    if encoding:
        headers["Content-Encoding"] = encoding
    for body in bodies:
        connection.request("POST", "/v1/traces", body, headers)
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer
    connection.close()


def taken(port: int) -> int:
    """How many spans of ours the service has taken."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/api/health")
    health: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return int(health["intake"]["spans"])


def measure(pid: int, port: int, bodies: Sequence[bytes], encoding: str) -> tuple[float, float]:
    """Processor and wall seconds of the service for all of them."""
    before, used, started = taken(port), processor_s(pid), time.perf_counter()
    threads = [
        threading.Thread(target=post, args=(port, bodies[n::CONNECTIONS], encoding))
        for n in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, used = time.perf_counter() - started, processor_s(pid) - used
    assert taken(port) - before == BATCH * BATCHES, "spans are missing"
    return used, wall


def main() -> None:
    """Prints a line for plain and one for compressed requests."""
    if not Path("/proc/self/stat").exists():
        print("Spans through the dashboard's inlet: measured on Linux only")
        return
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        running = {kind: stack.enter_context(service(what)) for kind, (what, _, _) in KINDS.items()}
        for number in range(ROUNDS + 1):
            bodies, bare = batches()
            for kind, (_, encoding, _) in KINDS.items():
                sent = [gzip.compress(body) for body in bodies] if encoding else bodies
                used, wall = measure(*running[kind], sent, encoding)
                if number:  # the first is for warming up
                    found[kind].append((used, wall, bare))
    print(f"Spans through the dashboard's inlet, {BATCH} in a request of {len(bodies[0])} bytes")
    for kind, rounds in found.items():
        _show(kind, rounds)


def _show(kind: str, rounds: Sequence[tuple[float, float, float]]) -> None:
    spans = BATCH * BATCHES
    a_second = statistics.median(spans / used for used, _, _ in rounds)
    on_the_wall = statistics.median(spans / wall for _, wall, _ in rounds)
    ratios = sorted(used / bare for used, _, bare in rounds)
    print(
        f"  {kind}: {a_second:,.0f} spans a second of one core (aim: {KINDS[kind][2]}), "
        f"{on_the_wall:,.0f} by the clock on the wall\n"
        f"    {statistics.median(ratios):.1f}x [{ratios[0]:.1f} to {ratios[-1]:.1f}] "
        "of the time that bare protobuf decoding takes"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        main()
