"""Connections on which a client always owes something by some time, or owes nothing.

uvicorn limits one kind of slowness, silence between two requests. Here each connection has a
deadline at every moment but those in which the application works on a request it has in full; one
that misses its deadline is reset. The bytes that clients make the process hold are bounded too,
each client's and all of theirs together, and so is the number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI 3 application. It gets HTTP, and the lifespan if it takes it; no WebSocket."""

_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER with no time: what was sent and not read goes, instead of staying with the kernel."""

# uvicorn tells of each request that is none, and strangers decide how often that is.
_unheard: Final = logging.getLogger("otel_tracker.dashboard.uvicorn")
_unheard.setLevel(logging.CRITICAL + 1)


def _connections() -> int:
    # Three quarters of the descriptors stay with the application that the server is a guest of.
    try:
        import resource
    except ImportError:  # Windows, where a loop watches 512 sockets at most
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 512 if soft == resource.RLIM_INFINITY else max(2, min(512, soft // 4))


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may take. Seconds and bytes."""

    header_seconds: float = 10.0
    """From the connection, or a request's first byte, to its whole header. It is one packet: a
    lost one is sent again after 1, 3 and 7 seconds."""
    body_seconds: float = 30.0
    """From the header to the whole body. The largest takes 5 Mbit/s, a usual batch nearly none;
    exporters give up after 10 s themselves."""
    drain_seconds: float = 5.0
    """How long the rest of a body is dropped when the answer is there before it: whoever is still
    writing reads no answer, and a closed socket would take it away."""
    write_seconds: float = 30.0
    """From an answer's first byte to its last being taken by the client's side."""
    idle_seconds: int = 75
    """Between two requests. Beats and batches come every 5 s and scrapes every minute; a shorter
    time closes connections in the moment of their use."""
    connections: int = field(default_factory=_connections)
    """Open at once. Beyond, the one that has owed something for longest is reset."""
    backlog: int = 0
    """Accepted in one go, by default 128 or half of `connections`. As it is fewer than these, none
    that came just now is the one that has owed for longest."""
    header_bytes: int = 16 * 1024
    """Of one request. Proxies send up to 8 KiB."""
    body_bytes: int = 16 << 20
    """Of one request, as it comes: what `receiver.MAX_BODY` is once unpacked."""
    bodies_bytes: int = 64 << 20
    """Of all requests that are being received or worked on. Beyond: 503, to be repeated."""
    answers_bytes: int = 64 << 20
    """Of all answers not taken yet. Beyond, the slowest of the other readers is reset."""

    def __post_init__(self) -> None:
        if self.connections < 2:
            raise ValueError(f"connections must be 2 or more, and is {self.connections}")
        most = self.connections - 1
        backlog = self.backlog or min(128, max(1, self.connections // 2))
        if not 0 < backlog <= most:
            raise ValueError(f"backlog must be 1 to {most} (below connections), and is {backlog}")
        object.__setattr__(self, "backlog", backlog)


class _Owes(Enum):
    HEADER = auto()
    BODY = auto()
    NOTHING = auto()
    """The application works."""
    READING = auto()
    """It is being answered."""
    REST = auto()
    """The answer is complete, and has not been read to its end."""
    NEXT = auto()
    """Another request, if it likes."""


@dataclass(eq=False)
class Pool:
    """The connections of one server, and what they hold."""

    limits: Limits
    open: set[Connection] = field(default_factory=set)
    owing: dict[Connection, None] = field(default_factory=dict)
    """Those with a deadline; who owes for longest is first."""
    bodies: int = 0
    """Bytes."""
    answers: int = 0
    """Bytes."""
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever the last connection goes."""
    told_at: float | None = None
    """When a defect of the application was last told; monotonic."""

    def make_room_for_answers(self, asking: Connection) -> None:
        """Resets slow readers, other than this one, until the bound holds."""
        for connection in list(self.owing):
            if self.answers <= self.limits.answers_bytes:
                return
            if connection.unread and connection is not asking:
                connection.cut()


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with one timer, for what the client owes.

    Args:
        pool: which it belongs to.
        serve: answers a request: this connection, then what ASGI gives an application.
        of_uvicorn: what uvicorn's own takes.
    """

    def __init__(
        self, pool: Pool, serve: Callable[..., Awaitable[None]], **of_uvicorn: Any
    ) -> None:
        super().__init__(**of_uvicorn)
        self.pool = pool
        self.unread = 0
        """Bytes of the present answer that the transport has not taken."""
        self._limits = pool.limits
        self._owes = _Owes.HEADER
        self._is_refused = False
        """What came is no request. It was told so, and what else it sends is dropped."""
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.app: Any = partial(serve, self)
        self.logger = _unheard
        self.access_log = False  # not by the configuration: that would switch off the host's own

    # --- what uvicorn and asyncio call ------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.pool.open.add(self)
        self._await(_Owes.HEADER, self._limits.header_seconds)
        if len(self.pool.open) > self._limits.connections:
            next(iter(self.pool.owing)).cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whomever."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        if self._is_refused:
            return
        if self._owes in (_Owes.REST, _Owes.NEXT):
            self._await(_Owes.HEADER, self._limits.header_seconds)
        try:
            super().data_received(data)
        except Exception:
            # Nonsense in the middle of an exchange leads to what uvicorn does not expect.
            self.cut()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request."""
        # uvicorn closes at once, which takes the answer away from a client that is still sending:
        # a header that is too large, for one.
        body = msg.encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()
        self._is_refused = True
        self._await(_Owes.BODY, self._limits.drain_seconds)

    def shutdown(self) -> None:
        """Ends what is not under way; what is gets until the server cuts it."""
        if self._owes is _Owes.NEXT:
            self.transport.close()
        elif self._owes in (_Owes.HEADER, _Owes.BODY):
            self.cut()
        else:
            with contextlib.suppress(Exception):
                super().shutdown()

    # --- deadlines --------------------------------------------------------------------------------

    def cut(self) -> None:
        """Resets the connection."""
        self._forget()
        with contextlib.suppress(OSError):  # a socket that its peer has reset, on some systems
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET
            )
        self.transport.abort()

    def await_body(self) -> None:
        """The header is complete."""
        self._await(_Owes.BODY, self._limits.body_seconds)

    def await_rest_of_body(self) -> None:
        """An answer was given before the body was complete."""
        self._await(_Owes.BODY, self._limits.drain_seconds)

    def await_nothing(self) -> None:
        """The request is complete: all the time from now is the application's."""
        self._owes = _Owes.NOTHING
        self._allow(None)

    def await_reading(self) -> None:
        """An answer begins; its time is for the whole of it."""
        self._await(_Owes.READING, self._limits.write_seconds)

    def await_next(self) -> None:
        """The answer is complete."""
        if self.transport.get_write_buffer_size():
            self._owes = _Owes.REST  # by the deadline that it has
        else:
            # uvicorn's own timer ends an idle connection properly. This one makes it part of the
            # order in which connections are given up.
            seconds = self._limits.idle_seconds + self._limits.header_seconds
            self._await(_Owes.NEXT, seconds)

    def hold_answer(self, size: int) -> None:
        """More bytes of an answer wait; fewer, if negative."""
        if self in self.pool.open:
            self.unread += size
            self.pool.answers += size
            if size > 0:
                self.pool.make_room_for_answers(self)

    def _await(self, owed: _Owes, seconds: float) -> None:
        self._owes = owed
        self._allow(seconds)

    def _forget(self) -> None:
        self.hold_answer(-self.unread)
        self.pool.open.discard(self)
        self._allow(None)
        if not self.pool.open:
            self.pool.emptied.set()

    def _allow(self, seconds: float | None) -> None:
        if seconds is None or self not in self.pool.open:
            self._deadline = None
            self.pool.owing.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        self.pool.owing.setdefault(self)
        self._deadline = self.loop.time() + seconds
        # A timer that rings too early looks again: that is cheaper than a new one each time.
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self.loop.time() < self._deadline:
            self._timer = self.loop.call_at(self._deadline, self._ring)
        elif self._owes is _Owes.REST and not self.transport.get_write_buffer_size():
            self.await_next()
        else:
            self.cut()
