"""Stands in for Datadog's agent on a Unix socket: takes every trace and throws it away.

A process of its own, so that it takes no part in what is measured.
"""

from __future__ import annotations

import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler

_seen: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b'{"endpoints": ["/v0.4/traces", "/v0.5/traces"], "version": "7.60.0"}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        _seen.append(int(self.headers.get("X-Datadog-Trace-Count", 0)))
        self._answer(b'{"rate_by_service": {}}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return None

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def main() -> None:
    """Serves until its input ends, then prints how many traces came."""
    with _Server(sys.argv[1], _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print("listening", flush=True)
        sys.stdin.read()
        server.shutdown()
        print(sum(_seen))


if __name__ == "__main__":
    main()
