"""One request and its answer, between uvicorn and the application.

Tells the connection what the client owes next, bounds what it may send, and hands answers on no
faster than they are read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import MutableMapping
from email.utils import formatdate
from typing import Any, Final

from .deadlines import Application, Connection, Message, Receive, Send

_PIECE: Final = 64 * 1024
"""Bytes of an answer that are handed on at once: what asyncio buffers before it says stop."""
_TELL_EVERY_S: Final = 60.0
"""Of defects of the application one traceback a minute: a client repeats what failed."""

logger: Final = logging.getLogger("otel_tracker")


async def serve(
    application: Application,
    connection: Connection,
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
) -> None:
    """Has the application answer one request."""
    await _Exchange(connection, receive, send).run(application, scope)


class _Exchange:
    """One request and its answer, between uvicorn and the application."""

    def __init__(self, connection: Connection, receive: Receive, send: Send) -> None:
        self._connection = connection
        self._pool = connection.pool
        self._limits = connection.pool.limits
        self._receive = receive
        self._send = send
        self._size = 0
        """Bytes of the body so far."""
        self._is_received = False
        self._is_begun = False
        """The answer."""
        self._is_answered = False
        self._is_refused = False
        """Answered here. To the application it looks as if the client had gone."""

    async def run(self, application: Application, scope: MutableMapping[str, Any]) -> None:
        """Serves the request."""
        try:
            length = self._announced(scope)
            if length == 0:
                self._is_received = True
                self._connection.await_nothing()
            else:
                self._connection.await_body()
            if length is not None and length > self._limits.body_bytes:
                await self._refuse_size()
            else:
                await application(scope, self.receive, self.send)
                if not self._is_answered:
                    raise RuntimeError("the application returned without a whole answer")
        except asyncio.CancelledError:
            self._connection.cut()  # the server stops
        except Exception as error:
            # Without a client, or with one that was answered here, it may fail as it likes.
            if self._connection in self._pool.open and not self._is_refused:
                self._tell(error)
                await self._refuse(500, "this is a defect of the service; its log has a traceback")
        finally:
            self._pool.bodies -= self._size
        if self._is_refused and not self._is_answered:
            await self._end()

    @staticmethod
    def _announced(scope: MutableMapping[str, Any]) -> int | None:
        """The body's length in bytes; None if it is not said beforehand."""
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers:
            return None
        return int(headers.get(b"content-length", 0))

    async def receive(self) -> Message:
        """ASGI's: the next piece of the body."""
        if self._is_refused:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] != "http.request" or self._is_received:
            return message
        size = len(message.get("body", b""))
        self._size += size
        self._pool.bodies += size
        if not message.get("more_body"):
            self._is_received = True
            self._connection.await_nothing()
        if self._size > self._limits.body_bytes:
            await self._refuse_size()
            return {"type": "http.disconnect"}
        if self._pool.bodies > self._limits.bodies_bytes:
            await self._refuse(
                503,
                f"the requests in work have {self._limits.bodies_bytes} bytes; repeat this one",
                (b"retry-after", b"1"),
            )
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """ASGI's: the answer's head, or a piece of its body."""
        if self._is_refused:
            return
        if message["type"] == "http.response.start":
            self._is_begun = True
            self._connection.await_reading()
            date = (b"date", formatdate(usegmt=True).encode())
            await self._send({**message, "headers": [date, *message.get("headers", ())]})
        elif message["type"] == "http.response.body":
            await self._send_body(message.get("body", b""))
            if not message.get("more_body"):
                await self._end()
        else:
            await self._send(message)

    async def _send_body(self, body: bytes) -> None:
        """Hands it on in pieces, each after those before are nearly taken."""
        self._connection.hold_answer(len(body))
        for start in range(0, len(body), _PIECE):
            piece = body[start : start + _PIECE]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            self._connection.hold_answer(-len(piece))

    async def _end(self) -> None:
        if not self._is_received:
            await self._drain()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self._is_answered = True
        self._connection.await_next()

    async def _drain(self) -> None:
        """Drops the rest of the body, before the answer's end lets uvicorn close the socket."""
        self._connection.await_rest_of_body()
        while not self._is_received:
            message = await self._receive()
            self._is_received = message["type"] != "http.request" or not message.get("more_body")

    async def _refuse_size(self) -> None:
        limit = self._limits.body_bytes
        await self._refuse(413, f"the body has more than {limit} bytes; send smaller batches")

    async def _refuse(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        """Answers in the application's place, or, if it has begun to, cuts."""
        if self._is_begun:
            self._connection.cut()
        else:
            body = json.dumps({"error": {"status": status, "message": message}}).encode()
            length = b"%d" % len(body)
            head = [(b"content-type", b"application/json"), (b"content-length", length), *headers]
            await self.send({"type": "http.response.start", "status": status, "headers": head})
            await self._send_body(body)  # the end comes after the application's
        self._is_refused = True

    def _tell(self, error: Exception) -> None:
        if not threading.main_thread().is_alive():
            return  # at the interpreter's exit a daemon thread fails in many ways
        now, last = time.monotonic(), self._pool.told_at
        if last is None or now - last >= _TELL_EVERY_S:
            self._pool.told_at = now
            what = "otel_tracker: the dashboard's service failed at a request"
            logger.error(what, exc_info=error)
