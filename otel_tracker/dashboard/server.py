"""Runs the dashboard's ASGI application: as a process's own work, or in a thread beside it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final

from uvicorn import Config
from uvicorn.server import ServerState

from . import exchange
from .deadlines import Application, Connection, Limits, Pool
from .lifespan import Lifespan

HOST: Final = "127.0.0.1"
PORT: Final = 8500

_STOP_SECONDS: Final = 0.4
"""What answers under way get when the server stops: with it, a stop takes less than a second."""
_CLOSE_SECONDS: Final = 5.0
"""What the application gets after that to write what it keeps. Service managers kill after 10."""
_QUEUE: Final = 1024
"""Connections that the kernel keeps until they are accepted. Where its queue is full it drops the
packet that asks, and a client that means well tries again after a second."""
_SEND_BUFFER: Final = 128 * 1024
"""Bytes. By itself the kernel lets what one client does not read grow to megabytes."""

logger: Final = logging.getLogger("otel_tracker")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address, or a name, of which the first IPv4 address is taken, or else the first.
        port: 0 takes a free one.

    Raises:
        OSError: it cannot; `strerror` says why and what to do.
    """
    where = f"{host}:{port}"
    try:
        if not 0 <= port <= 65535:
            raise OSError(errno.EINVAL, "a port is 0 to 65535")
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listening = socket.create_server(address[:2], family=family, backlog=_QUEUE)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {where}: {_why(error)}") from error
    # What is accepted inherits both. Without the first, an answer in two writes waits 40 ms for an
    # acknowledgement: asyncio sets it on sockets of another making only.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return listening


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there; end it, or choose another port"
    if error.errno == errno.EACCES:
        return "that port is reserved for the system; choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address; choose one of its own, or 127.0.0.1"
    if isinstance(error, socket.gaierror):
        return "that name is not known; use an address, such as 127.0.0.1"
    return error.strerror or str(error)


class _Server:
    """One application on one listening socket, which it closes."""

    def __init__(self, application: Application, listening: socket.socket, limits: Limits) -> None:
        self._application = application
        self._socket = listening
        self._limits = limits
        self._state = ServerState()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._is_stopping = False
        host, port = listening.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        _servers.add(self)

    def run(self) -> None:
        """Serves until `stop`."""
        try:
            # Not the loop of a policy that the application may have set: cutting a connection is
            # done, and tested, with this one.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        finally:
            _servers.discard(self)
            self._socket.close()

    def stop(self) -> None:
        """Ends `run`; from any thread, or a signal handler, also before `run` has begun."""
        self._is_stopping = True
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._stop.set)

    def let_go(self) -> None:
        """In a child after a fork: what it holds of the server's sockets would keep them open.

        Their numbers are given to nothing, as the objects, when they are collected, close them.
        """
        nothing = os.open(os.devnull, os.O_RDWR)
        sockets = [c.transport.get_extra_info("socket") for c in self._state.connections]
        for one in (self._socket, *sockets):
            if one is not None and one.fileno() >= 0:
                os.dup2(nothing, one.fileno(), inheritable=False)
        os.close(nothing)

    async def _serve(self) -> None:
        stop, pool, loop = asyncio.Event(), Pool(self._limits), asyncio.get_running_loop()
        self._stop, self._loop = stop, loop
        if self._is_stopping:
            return
        lifespan = Lifespan(self._application)
        await lifespan.begin()
        # uvicorn's Server is not used: it logs its start and end as the application's own server
        # does, looks ten times a second whether to stop, and raises again the signals it got.
        listener = await loop.create_server(
            self._connections(pool), sock=self._socket, backlog=self._limits.backlog
        )
        self._socket.listen(_QUEUE)  # asyncio has one number for this queue and for what it takes
        await stop.wait()
        loop.remove_reader(self._socket)
        for _ in range(3):  # what was accepted just now: asyncio would drop it, and not close it
            await asyncio.sleep(0)
        listener.close()
        await self._end(pool)
        await lifespan.end(_CLOSE_SECONDS)

    async def _end(self, pool: Pool) -> None:
        for connection in list(pool.open):
            connection.shutdown()
        pool.emptied.clear()
        if pool.open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(pool.emptied.wait(), _STOP_SECONDS)
        for connection in list(pool.open):
            connection.cut()
        await asyncio.sleep(0)  # sockets are closed in the loop's next turn

    def _connections(self, pool: Pool) -> Callable[[], Connection]:
        config = Config(
            # Not by uvicorn, which logs its messages where the root logger's level is low.
            _no_application,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,  # logging belongs to the application; `access_log=False` changes it
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=self._limits.idle_seconds,
            h11_max_incomplete_event_size=self._limits.header_bytes,
        )
        config.load()
        serve = partial(exchange.serve, self._application)
        return partial(
            Connection, pool, serve, config=config, server_state=self._state, app_state={}
        )


async def _no_application(_scope: object, _receive: object, _send: object) -> None:
    raise AssertionError("uvicorn was given another application")


_servers: Final[weakref.WeakSet[_Server]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for server in list(_servers):
        server.let_go()
    _servers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def run(
    application: Application,
    host: str = HOST,
    port: int = PORT,
    limits: Limits | None = None,
    *,
    on_listening: Callable[[str], object] | None = None,
) -> None:
    """Serves until SIGINT (Ctrl-C) or SIGTERM, then ends within a second; in the main thread.

    Args:
        application: ASGI 3.
        host: an address or a name.
        port: 0 takes a free one.
        limits: what clients may take.
        on_listening: called with the URL, once it can be reached.

    Raises:
        OSError: it cannot listen there; `strerror` says why and what to do.
        RuntimeError: the application says that it cannot start.
        ValueError: this is not the main thread.
    """
    limits = limits or Limits()
    server = _Server(application, listen(host, port), limits)
    with on_signals(server.stop):
        if on_listening is not None:
            on_listening(server.url)
        server.run()


@contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM call `stop`, and nothing else; in the main thread."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Serving:
    """The application in a daemon thread, beside the work of the process.

    It touches no signal handler and no logging, and never holds up the interpreter's exit. A child
    that is forked does not serve, and does not keep the port.

    Args:
        application: ASGI 3.
        host: an address or a name.
        port: 0 takes a free one at each start.
        limits: what clients may take.
    """

    def __init__(
        self,
        application: Application,
        host: str = HOST,
        port: int = PORT,
        limits: Limits | None = None,
    ) -> None:
        self._application = application
        self._host = host
        self._port = port
        self._limits = limits or Limits()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether this process serves."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> str:
        """Begins to serve, if it does not; may follow a `stop`.

        Returns:
            The URL, which can be reached by now.

        Raises:
            OSError: it cannot listen there; `strerror` says why and what to do.
            RuntimeError: no thread can be started.
        """
        if self._server is not None and self.is_running:
            return self._server.url
        listening = listen(self._host, self._port)
        server = _Server(self._application, listening, self._limits)
        thread = threading.Thread(target=_serve, args=(server,), name="otel-tracker-server")
        thread.daemon = True
        try:
            thread.start()
        except RuntimeError:
            listening.close()
            raise
        self._server, self._thread = server, thread
        return server.url

    def stop(self, timeout_s: float = 2.0) -> bool:
        """Ends it: the port is free, and clients are cut, half a second later at most.

        Args:
            timeout_s: how long to wait for that.

        Returns:
            Whether it has ended. The application may hold it up, by blocking its thread.
        """
        if self._server is None or self._thread is None:
            return True
        self._server.stop()
        self._thread.join(timeout_s)
        return not self.is_running


def _serve(server: _Server) -> None:
    try:
        server.run()
    except Exception:
        logger.exception("otel_tracker: the dashboard's server ended")
