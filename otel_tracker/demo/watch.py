"""Where the processes send their spans: an OTLP/HTTP endpoint that feeds a dashboard.

It stands for a Collector or a dashboard service: this process looks on and works on nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self

from otel_tracker.trace.otlp import spans_of_message
from otel_tracker.trace.spans import Span

_BODY_AT_MOST: Final = 4 << 20
_SPANS_AT_MOST: Final = 10_000
"""Kept to be shown as trees; the dashboard has bounds of its own."""
_READ_WITHIN_S: Final = 10.0


class Watch:
    """Takes spans on a free port of loopback, as a context manager.

    Args:
        take: is given each request's body; a ValueError says that it is none.

    Raises:
        OSError: there is no port.
    """

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self.spans: list[Span] = []
        self._take_body = take
        watch = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _READ_WITHIN_S

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not length.isdecimal():
                    self.send_error(411)
                elif int(length) > _BODY_AT_MOST:
                    self.send_error(413)
                elif not watch.take(self.rfile.read(int(length))):
                    self.send_error(400)
                else:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/x-protobuf")
                    self.send_header("Content-Length", "0")  # an empty response is one of OTLP
                    self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, body: bytes) -> bool:
        """Takes a request's body; False where it is none."""
        try:
            self._take_body(body)
            self.spans.extend(spans_of_message(body))
        except ValueError:
            return False
        del self.spans[:-_SPANS_AT_MOST]
        return True
