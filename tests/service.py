"""A stand-in for the dashboard service: what a process feeds it, on a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Fed:
    """What came, in order of arrival."""

    url: str
    spans: list[Any] = field(default_factory=list)
    beats: list[dict[str, Any]] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    unknown: list[Any] = field(default_factory=list)
    """What the next beat is told that the service does not know."""

    def named(self, name: str, *, ended: bool) -> list[Any]:
        """The spans of this name that came open, or ended."""
        return [
            s for s in list(self.spans) if s.name == name and bool(s.end_time_unix_nano) == ended
        ]


@contextmanager
def service(port: int = 0) -> Iterator[Fed]:
    """Takes spans and beats, as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name that http.server asks for
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fed.authorizations.add(self.headers.get("Authorization", ""))
            answer = b""
            if self.path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        fed.spans.extend(scope.spans)
            elif self.path == "/v1/beats":
                fed.beats.append(json.loads(body))
                answer = json.dumps({"unknown": fed.unknown}).encode()
                fed.unknown = []
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    fed = Fed(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fed
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
