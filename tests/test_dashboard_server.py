"""The dashboard's server: slow, greedy and silent clients, stops, restarts, and what it leaves be.

Real sockets; where signals, exits, forks or memory matter, real processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from otel_tracker.dashboard.deadlines import Limits, Message, Receive, Send
from otel_tracker.dashboard.server import Serving, is_loopback, listen, run

ROOT: Final = Path(__file__).resolve().parents[1]
SHORT: Final = 0.5
"""Seconds of every deadline here."""
BIG: Final = 8 << 20
"""Bytes of an answer that no socket's buffer takes."""
HALF_OPEN: Final = 10_000
BATCH: Final = 500
LIMITS: Final = Limits(
    header_seconds=SHORT, body_seconds=SHORT, drain_seconds=2, write_seconds=SHORT, idle_seconds=2,
    body_bytes=100_000, bodies_bytes=150_000,
)  # fmt: skip


async def application(scope: Any, receive: Receive, send: Send) -> None:
    """What is served here; each path misbehaves, or is large or slow, in its own way."""
    path = scope["path"]
    if path == "/early":  # says no before it has read
        await answer(send, b"no", 401)
        return
    size = 0
    while (message := await receive())["type"] == "http.request":
        size += len(message["body"])
        if not message.get("more_body"):
            break
    else:
        return
    if path == "/big":
        await answer(send, b"x" * BIG)
    elif path == "/stream":
        await begin(send, BIG)
        for _ in range(BIG // 4096):
            await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
        await send({"type": "http.response.body"})
    elif path[1:].isdigit():
        await answer(send, b"x" * int(path[1:]))
    elif path == "/slow":
        await asyncio.sleep(3 * SHORT)
        await answer(send, b"at last")
    elif path == "/soon":
        await asyncio.sleep(0.2)
        await answer(send, b"soon")
    elif path == "/fails":
        raise ZeroDivisionError("of the application")
    elif path == "/fails-late":
        await begin(send, 100)
        raise ZeroDivisionError("of the application")
    elif path != "/says-nothing":
        await answer(send, b"%d" % size)


async def begin(send: Send, length: int, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    await begin(send, len(body), status)
    message: Message = {"type": "http.response.body", "body": body}
    await send(message)


# --- clients --------------------------------------------------------------------------------------


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@contextmanager
def served(limits: Limits = LIMITS) -> Iterator[int]:
    """The port of the application, in a thread of this process."""
    serving = Serving(application, port=0, limits=limits)
    try:
        yield port_of(serving.start())
    finally:
        assert serving.stop(5)


@pytest.fixture
def port() -> Iterator[int]:
    with served() as number:
        yield number


@contextmanager
def dial(port: int, data: bytes = b"", receive_buffer: int = 0) -> Iterator[socket.socket]:
    """A connection on which this was sent."""
    with socket.socket() as client:
        client.settimeout(20)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", port))
        client.sendall(data)
        yield client


def get(path: str, *headers: str) -> bytes:
    lines = (f"GET {path} HTTP/1.1", "Host: x", *headers)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def post(size: int | None = None) -> bytes:
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    return f"POST / HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode()


def read_to_end(client: socket.socket) -> bytes:
    """What comes until the server closes or resets the connection."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(1 << 16):
            got += piece
    return got


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    """One answer, whose connection stays."""
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def ask(port: int, path: str = "/", body: Any = None, method: str = "GET", **headers: str) -> Any:
    """Status and body of an answer, by a client that writes its whole request and then reads."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_reset(client: socket.socket, timeout_s: float) -> bool:
    """Whether the server resets the connection in time, seen without reading from it."""
    poll = select.poll()
    poll.register(client, 0)  # errors are told unasked
    return bool(poll.poll(timeout_s * 1000))


def until(what: str, is_so: Callable[[], Any], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"after {timeout_s} s still waiting for: {what}"
        time.sleep(0.01)


# --- clients that are slow ------------------------------------------------------------------------

HALF_HEADER: Final = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "


SLOW: Final = {
    "half a header": (b"GET /", b""),
    "dripped header": (HALF_HEADER, b"a"),
    "stalled body": (post(90_000) + b"ab", b""),
    "dripped body": (post(90_000), b"a"),
    "stalled chunks": (post() + b"2\r\nab\r\n", b""),
    "dripped chunks": (post(), b"1\r\na\r\n"),
}
"""What a client sends at once, and what it sends all the time from then on."""


@pytest.mark.parametrize("kind", [*SLOW, "silent"])
@pytest.mark.parametrize("is_second", [False, True], ids=["first request", "second request"])
def test_a_slow_request_is_cut_at_its_deadline(port: int, kind: str, is_second: bool) -> None:
    """However it is slow, also if it sends something all the time, and not much earlier."""
    first, drip = SLOW.get(kind, (b"G" if is_second else b"", b""))
    with dial(port) as client:
        if is_second:
            client.sendall(get("/"))
            assert read_answer(client)[0] == 200
        started = time.monotonic()
        client.sendall(first)
        client.settimeout(0.1)
        while True:
            assert time.monotonic() - started < 20, "it is not cut"
            try:
                assert client.recv(100) == b""
                break
            except TimeoutError:
                with contextlib.suppress(OSError):
                    client.sendall(drip)
            except OSError:  # reset
                break
        assert 0.8 * SHORT < time.monotonic() - started < 4 * SHORT


@pytest.mark.parametrize("path", ["/big", "/stream"])
def test_who_does_not_read_is_cut(port: int, path: str) -> None:
    """One piece or many: the connection is reset, and the kernel keeps nothing of the answer."""
    started = time.monotonic()
    with dial(port, get(path), receive_buffer=4096) as client:
        assert is_reset(client, 20)
        assert 0.8 * SHORT < time.monotonic() - started < 4 * SHORT


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc, which Linux has")
def test_who_does_not_read_the_end_of_an_answer_is_let_go(port: int) -> None:
    """However much of it is left, and in whose buffers: the server's socket does not stay."""
    sizes = range(50_000, 600_000, 25_000)  # what the kernel takes is somewhere among them
    before = descriptors()
    with ExitStack() as stack:
        for size in sizes:
            stack.enter_context(dial(port, get(f"/{size}"), receive_buffer=4096))
        until("all to be let go", lambda: descriptors() == before + len(sizes), 6)


def test_a_slow_reader_gets_all_that_it_reads_in_time() -> None:
    """Cutting is for those who miss their time: this one needs half of it."""
    limits = Limits(write_seconds=4)
    with served(limits) as port, dial(port, get("/big", "Connection: close"), 65536) as client:
        got = 0
        while piece := client.recv(1 << 16):
            got += len(piece)
            time.sleep(0.01)  # it is slow
        assert got > BIG


def test_the_time_of_the_application_is_not_the_client_s(port: int) -> None:
    """A request that is complete waits for its answer longer than any deadline."""
    assert ask(port, "/slow") == (200, b"at last")
    assert ask(port, "/slow", b"x" * 50_000, "POST") == (200, b"at last")


def test_an_idle_connection_is_closed_properly(port: int) -> None:
    """At its own time, later than a header's, and without a reset; before that it can be used."""
    with dial(port, get("/")) as client:
        assert read_answer(client) == (200, b"0")
        time.sleep(1.5 * SHORT)  # the subject: longer than a header may take
        client.sendall(get("/"))
        assert read_answer(client) == (200, b"0")
        started = time.monotonic()
        assert client.recv(100) == b""  # a reset would raise
        assert 1.8 < time.monotonic() - started < 4


def test_requests_that_come_at_once_are_answered_in_turn(port: int) -> None:
    """Pipelining: bodies, small and large answers."""
    requests = get("/") + post(3) + b"abc" + get("/1000000") + get("/", "Connection: close")
    with dial(port, requests) as client:
        got = read_to_end(client)
    assert got.count(b"HTTP/1.1 200") == 4
    assert len(got) > 1_000_000


# --- clients that are many ------------------------------------------------------------------------


def test_the_one_that_has_owed_for_longest_is_evicted() -> None:
    """Beyond the limit; not one whose request is being worked on, although it came before."""
    limits = Limits(connections=3, header_seconds=20)
    with served(limits) as port, ExitStack() as stack:
        in_work = stack.enter_context(dial(port, get("/slow")))
        first = stack.enter_context(dial(port, HALF_HEADER))
        second = stack.enter_context(dial(port, HALF_HEADER))
        assert not is_reset(first, 0.1)
        third = stack.enter_context(dial(port, HALF_HEADER))
        assert is_reset(first, 20)
        fourth = stack.enter_context(dial(port, HALF_HEADER))
        assert is_reset(second, 20)
        assert not is_reset(third, 0.05)
        assert not is_reset(fourth, 0.05)
        assert read_answer(in_work) == (200, b"at last")


def test_dripping_does_not_make_a_client_look_new() -> None:
    """Nor does a complete header whose body is owed: the newer one that is silent may stay."""
    limits = Limits(connections=2, header_seconds=20)
    half = HALF_HEADER.replace(b"GET", b"POST").replace(b"X-Slow", b"Content-Length: 9\r\nX-Slow")
    with served(limits) as port, dial(port, half) as dripping, dial(port) as silent:
        for piece in (b"a", b"a", b"\r\n\r\n", b"a", b"a"):
            dripping.sendall(piece)
            time.sleep(0.02)  # packets of their own
        with dial(port, get("/")) as client:
            assert read_answer(client) == (200, b"0")
            assert is_reset(dripping, 20)
            assert not is_reset(silent, 0.05)


def test_answers_that_nobody_reads_are_bounded_together() -> None:
    """Beyond the bound the older reader goes; the newer one may still read."""
    limits = Limits(answers_bytes=3 * BIG // 2)
    with (
        served(limits) as port,
        dial(port, get("/big"), 4096) as older,
        dial(port, HALF_HEADER) as bystander,
    ):
        assert not is_reset(older, 0.2)
        with dial(port, get("/big")) as newer:
            assert is_reset(older, 20)
            status, body = read_answer(newer)
            assert (status, len(body)) == (200, BIG)
        assert not is_reset(bystander, 0.05)


def raise_descriptors(needed: int) -> Callable[[], None]:
    """Lets this process open so many descriptors; returns what undoes it."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"needs {needed} descriptors; `ulimit -Hn` is {hard}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except (ValueError, OSError) as error:
            message = f"needs {needed} descriptors, which the system does not give: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc, which Linux has")
def test_ten_thousand_half_open_connections_are_harmless() -> None:
    """A liveness probe is answered all the while, and neither memory nor descriptors grow on."""
    lower = raise_descriptors(HALF_OPEN + 500)
    try:
        with program("serve()") as (process, port), ExitStack() as stack:
            opened = Path(f"/proc/{process.pid}/fd")
            before = resident(process.pid)
            waits: list[float] = []
            waiting: dict[int, socket.socket] = {}
            poll, grown, most = select.poll(), 0, 0
            while waiting or len(waits) < HALF_OPEN // BATCH:
                if len(waits) < HALF_OPEN // BATCH:
                    for _ in range(BATCH):
                        client = stack.enter_context(socket.socket())
                        client.setblocking(False)
                        client.connect_ex(("127.0.0.1", port))
                        waiting[client.fileno()] = client
                        poll.register(client, select.POLLOUT)
                for number, _ in poll.poll(100):
                    poll.unregister(number)
                    with contextlib.suppress(OSError):  # evicted already
                        waiting.pop(number).send(HALF_HEADER)
                started = time.monotonic()
                assert ask(port) == (200, b"0")
                waits.append(time.monotonic() - started)
                grown = max(grown, resident(process.pid) - before)
                most = max(most, len(list(opened.iterdir())))
            assert sorted(waits)[len(waits) // 2] < 0.5, "half of the probes"
            assert max(waits) < 5, "any probe"
            assert grown < 64 << 20, "bytes"
            assert most < 512 + 128 + 32, "descriptors"
            assert process.poll() is None
    finally:
        lower()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system cannot pause a process")
def test_clients_that_come_during_a_pause_are_not_turned_away() -> None:
    """The kernel's queue holds more than are accepted at once; beyond it, they wait a second."""
    with program("serve()") as (process, port), ExitStack() as stack:
        process.send_signal(signal.SIGSTOP)
        poll = select.poll()
        for _ in range(500):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            poll.register(client, select.POLLOUT)
        until("all to be connected", lambda: len(poll.poll(100)) == 500, 0.9)


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


# --- clients that send much -----------------------------------------------------------------------


@pytest.mark.parametrize("closing", ["keep-alive", "close"])
@pytest.mark.parametrize("size", [100_001, 5_000_000])
@pytest.mark.parametrize("is_announced", [True, False], ids=["announced", "chunked"])
def test_a_body_that_is_too_large_is_always_told_so(
    port: int, size: int, is_announced: bool, closing: str
) -> None:
    """Also to a client that writes all of it before it reads, and asks to close afterwards."""
    for _ in range(10):
        body = b"x" * size if is_announced else iter([b"x" * 50_000] * (size // 50_000) + [b"x"])
        status, got = ask(port, "/", body, "POST", Connection=closing)
        assert status == 413
        assert json.loads(got)["error"] == {
            "status": 413,
            "message": "the body has more than 100000 bytes; send smaller batches",
        }
    assert ask(port, "/", b"x" * 100_000, "POST") == (200, b"100000")


def test_an_answer_before_the_body_s_end_arrives() -> None:
    """Whatever the application answers early, such as 401, a writing client gets to read."""
    with served(Limits()) as port:
        for _ in range(10):
            got = ask(port, "/early", b"x" * 5_000_000, "POST", Connection="close")
            assert got == (401, b"no")


def test_after_a_refused_body_the_connection_can_be_used(port: int) -> None:
    """The rest of the body was dropped, and is not taken for the next request."""
    with dial(port, post(200_000) + b"x" * 200_000) as client:
        assert read_answer(client)[0] == 413
        client.sendall(get("/"))
        assert read_answer(client) == (200, b"0")


def test_who_goes_on_sending_after_the_answer_is_cut() -> None:
    """Dropping the rest of a body has its own short time."""
    limits = Limits(drain_seconds=SHORT, body_bytes=1_000)
    with served(limits) as port, dial(port, post(10**9) + b"x" * 5_000) as client:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 20:
                client.sendall(b"x" * 1_000)
                time.sleep(0.01)  # it takes its time
        assert 0.8 * SHORT < time.monotonic() - started < 4 * SHORT


def test_the_bodies_of_all_requests_are_bounded_together() -> None:
    """Beyond the bound: 503 with Retry-After; once they went, bodies are taken again."""
    limits = Limits(bodies_bytes=150_000, body_bytes=100_000)
    with served(limits) as port:
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(dial(port, post(99_000) + b"x" * 60_000))
            until("503", lambda: ask(port, "/", b"x" * 50_000, "POST")[0] == 503)
            with dial(port, post(50_000) + b"x" * 50_000) as client:
                response = http.client.HTTPResponse(client)
                response.begin()
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
                assert "repeat" in json.loads(response.read())["error"]["message"]
        until("room", lambda: ask(port, "/", b"x" * 50_000, "POST") == (200, b"50000"))
        for _ in range(5):  # nothing that was counted is left
            assert ask(port, "/", b"x" * 100_000, "POST") == (200, b"100000")


def test_a_header_that_is_too_large_is_refused(port: int) -> None:
    """It is not collected without end."""
    with dial(port, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000) as client:
        assert read_to_end(client).startswith(b"HTTP/1.1 400 ")


# --- clients that send nonsense, applications that fail -------------------------------------------


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        post() + b"nonsense\r\n",
        post() + b"5\r\nabcde\r\nnonsense\r\n\r\n",
        get("/slow") + b"nonsense\r\n\r\n",
        get("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    ],
)  # fmt: skip
def test_nonsense_makes_no_noise(
    port: int, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger cannot fill the application's log, and others are served as before."""
    caplog.set_level(logging.INFO)
    with dial(port, nonsense) as client:
        client.shutdown(socket.SHUT_WR)
        read_to_end(client)
    assert ask(port) == (200, b"0")
    assert caplog.records == []


def test_nonsense_after_an_early_answer_makes_no_noise(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In the rest of a body that nobody waits for; there, uvicorn itself fails."""
    with dial(port, post().replace(b"POST /", b"POST /early")) as client:
        assert read_answer(client) == (401, b"no")
        client.sendall(b"nonsense\r\n")
        assert is_reset(client, 20)
    assert ask(port) == (200, b"0")
    assert caplog.records == []


def test_a_failing_application_answers_500_and_is_told_once(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However many requests fail; with its traceback, and the connection stays of use."""
    with dial(port) as client:
        for path in ("/fails", "/says-nothing", "/fails"):
            client.sendall(get(path))
            status, body = read_answer(client)
            assert (status, json.loads(body)["error"]["status"]) == (500, 500)
        client.sendall(get("/"))
        assert read_answer(client) == (200, b"0")
    [record] = caplog.records
    assert record.name == "otel_tracker"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


@pytest.mark.usefixtures("caplog")
def test_an_answer_that_breaks_off_looks_broken(port: int) -> None:
    """A client must not take half an answer for a whole one."""
    with (
        dial(port, get("/fails-late")) as client,
        pytest.raises((OSError, http.client.HTTPException)),
    ):
        read_answer(client)


# --- in a thread ----------------------------------------------------------------------------------


def test_the_thread_can_be_started_and_stopped_again() -> None:
    """On the same port, and each leaves no thread and no descriptor."""
    taken = free_port()
    serving = Serving(application, port=taken, limits=LIMITS)
    assert serving.stop(), "one that was never started"
    for _ in range(3):
        before = descriptors()
        threads = threading.active_count()
        assert serving.start() == serving.start() == f"http://127.0.0.1:{taken}"
        assert ask(taken) == (200, b"0")
        assert serving.stop()
        assert threading.active_count() == threads
        assert descriptors() == before
        with pytest.raises(ConnectionRefusedError):
            ask(taken)


def descriptors() -> int:
    """How many this process has open; 0 where that is not known."""
    listed = Path("/proc/self/fd")
    return len(list(listed.iterdir())) if listed.exists() else 0


def test_the_thread_touches_nothing_of_its_host(caplog: pytest.LogCaptureFixture) -> None:
    """Neither signal handlers nor loggers, not even those of a uvicorn that the host runs."""
    caplog.set_level(logging.DEBUG)
    access = logging.getLogger("uvicorn.access")
    access.addHandler(logging.NullHandler())
    names = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")

    def seen() -> object:
        loggers = [logging.getLogger(name) for name in names]
        return (
            [signal.getsignal(number) for number in signal.valid_signals()],
            [(one.level, one.propagate, one.disabled, list(one.handlers)) for one in loggers],
        )

    before = seen()
    with served() as port:
        assert ask(port) == (200, b"0")
        assert ask(port, "/1000000")[0] == 200
        assert seen() == before
    assert seen() == before
    access.handlers.clear()
    said = [r for r in caplog.records if r.name.startswith(("uvicorn", "otel_tracker"))]
    assert said == []


def slow_clients(stack: ExitStack, port: int) -> list[socket.socket]:
    """One of every kind."""
    first = (HALF_HEADER, post(90_000) + b"ab", post() + b"2\r\nab\r\n", get("/big"), get("/"), b"")
    unread = [get(f"/{size}") for size in range(50_000, 600_000, 25_000)]
    clients = [stack.enter_context(dial(port, data, 4096)) for data in (*first, *unread)]
    assert read_answer(clients[4]) == (200, b"0")  # so the others' have arrived as well
    return clients


def test_a_stop_does_not_wait_for_slow_clients() -> None:
    """They are cut, each of them, within a second."""
    serving = Serving(application, port=0, limits=Limits())
    before = descriptors()
    with ExitStack() as stack:
        clients = slow_clients(stack, port_of(serving.start()))
        started = time.monotonic()
        assert serving.stop()
        assert time.monotonic() - started < 1.5
        if before:
            assert descriptors() == before + len(clients), "some of the server's are left"
        for client in clients:
            client.settimeout(1)
            read_to_end(client)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc, which Linux has")
def test_clients_that_come_during_a_stop_leave_nothing() -> None:
    """asyncio drops, unclosed, what it accepted just before its listener closes."""
    for _ in range(20):  # two of three times it happens
        serving = Serving(application, port=0, limits=LIMITS)
        before = descriptors()
        with ExitStack() as stack:
            port, clients = port_of(serving.start()), 0
            assert ask(port) == (200, b"0")
            stopping = threading.Thread(target=serving.stop)
            with contextlib.suppress(OSError):  # it has stopped
                for number in range(30):
                    if number == 15:
                        stopping.start()
                    stack.enter_context(dial(port))
                    clients += 1
            stopping.join()
            assert descriptors() == before + clients


def test_a_stop_lets_an_answer_under_way_arrive() -> None:
    """What takes a moment more gets it."""
    serving = Serving(application, port=0, limits=LIMITS)
    with dial(port_of(serving.start()), get("/soon")) as client:
        assert not select.select([client], [], [], 0.05)[0]
        assert serving.stop()
        assert read_answer(client) == (200, b"soon")


def test_the_interpreter_s_exit_is_not_held_up() -> None:
    """A thread that serves slow clients, and that nobody stops, ends with it, without a word."""
    code = """
        url = Serving(application, port=0).start()
        print(url, flush=True)
        input()
    """
    with program(code) as (process, port), ExitStack() as stack:
        slow_clients(stack, port)
        started = time.monotonic()
        _, errors = process.communicate("\n", timeout=20)
        assert (process.returncode, errors) == (0, "")
        assert time.monotonic() - started < 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_keeps_neither_port_nor_connections() -> None:
    """The parent's stop is seen by clients, and its port is free, while the child lives on."""
    code = """
        import os, socket
        serving = Serving(application, port=0)
        url = serving.start()
        host, port = url.removeprefix("http://").split(":")
        client = socket.create_connection((host, int(port)), timeout=10)
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        got = b""
        while not got.endswith(b"\\r\\n\\r\\n0"):
            got += client.recv(1000)
        r, w = os.pipe()
        child = os.fork()
        if child == 0:
            client.close()
            os.close(w)
            assert not serving.is_running and serving.stop()
            os.read(r, 1)
            os._exit(0)
        print(url, flush=True)
        input()
        assert serving.stop()
        assert client.recv(1000) == b"", "the child keeps the connection"
        client.close()
        again = Serving(application, port=int(port))
        assert again.start() == url
        again.stop()
        os.write(w, b"x")
        assert os.waitpid(child, 0)[1] == 0
    """
    with program(code) as (process, port):
        assert ask(port) == (200, b"0")  # the parent serves on after the fork
        _, errors = process.communicate("\n", timeout=20)
        assert (process.returncode, errors) == (0, "")


class Living:
    """An application with a lifespan; what it went through."""

    def __init__(self, startup: str = "complete") -> None:
        self.startup = startup
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await application(scope, receive, send)
            self.seen.append("request")
            return
        assert (await receive())["type"] == "lifespan.startup"
        await asyncio.sleep(0.1)
        self.seen.append("startup")
        await send({"type": f"lifespan.startup.{self.startup}", "message": "no disk"})
        assert (await receive())["type"] == "lifespan.shutdown"
        await asyncio.sleep(0.1)
        self.seen.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})


def test_the_application_begins_before_the_first_request_and_ends_after_the_last() -> None:
    """Each time that it is started; who connects before it is ready waits."""
    living = Living()
    serving = Serving(living, port=0, limits=LIMITS)
    for _ in range(2):
        living.seen.clear()
        with dial(port_of(serving.start()), get("/soon")) as client:
            until("it has begun", lambda: living.seen)
            time.sleep(0.05)  # the request is being worked on
            assert serving.stop()
            assert read_answer(client) == (200, b"soon")
        assert living.seen == ["startup", "request", "shutdown"]


def test_an_application_that_cannot_start_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """In the main thread it is raised; a thread logs it, and gives the port back."""
    with pytest.raises(RuntimeError, match="did not start: no disk"):
        run(Living("failed"), port=0)
    taken = free_port()
    serving = Serving(Living("failed"), port=taken)
    serving.start()
    until("its end", lambda: not serving.is_running)
    assert "no disk" in caplog.text
    socket.create_server(("127.0.0.1", taken)).close()


# --- as a process's own work ----------------------------------------------------------------------


@contextmanager
def program(code: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Python that prints a URL first, with warnings as errors; ended at the end of the block."""
    head = (
        "from tests.test_dashboard_server import *\n"
        "def serve(): run(application, port=0, on_listening=lambda url: print(url, flush=True))\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    # Newer Pythons warn of a fork beside threads, which is what one test is about.
    fork = "ignore:This process:DeprecationWarning"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-W", fork, "-c", head + textwrap.dedent(code)],
        env={**clean, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, process.communicate()[1]
        yield process, port_of(url)
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
        return number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_status_0_at_once(number: signal.Signals) -> None:
    """Without a word, with slow clients of every kind attached; in a second, if undisturbed."""
    with program("serve()") as (process, port), ExitStack() as stack:
        slow_clients(stack, port)
        started = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (0, "", "")
        assert time.monotonic() - started < 3  # a busy machine takes twice as long


def test_a_signal_that_comes_before_it_serves_ends_it_too() -> None:
    """Nothing is lost between the handler and the loop; the host's own handlers come back."""
    code = """
        import os, signal
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        def at_once(url):
            print(url, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        run(application, port=0, on_listening=at_once)
        assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    """
    with program(code) as (process, _):
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


# --- addresses ------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_an_error_that_says_so(port: int) -> None:
    """In the caller, in both forms, before anything runs; and nothing is left behind."""
    threads = threading.active_count()
    for start in (
        Serving(application, port=port).start,
        lambda: run(application, port=port),
    ):
        with pytest.raises(OSError, match="another program listens there") as caught:
            start()
        assert caught.value.errno == errno.EADDRINUSE
        assert f"127.0.0.1:{port}" in str(caught.value)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("192.0.2.1", 0, "this machine does not have that address"),
        ("no-such-host.invalid", 0, "that name is not known"),
        ("127.0.0.1", 70_000, "a port is 0 to 65535"),
        ("127.0.0.1", -1, "a port is 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_is_an_error_that_says_why(
    host: str, port: int, why: str
) -> None:
    """And names the address."""
    with pytest.raises(OSError, match=f"cannot listen on {host}:{port}: {why}"):
        listen(host, port)


def test_ipv6_loopback() -> None:
    """An address with colons is listened on, and written in brackets."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    serving = Serving(application, "::1", 0)
    url = serving.start()
    try:
        assert url.startswith("http://[::1]:")
        with socket.create_connection(("::1", port_of(url)), timeout=10) as client:
            client.sendall(get("/"))
            assert read_answer(client) == (200, b"0")
    finally:
        assert serving.stop()


def test_answers_do_not_wait_for_acknowledgements(port: int) -> None:
    """Without TCP_NODELAY each of these would take 40 ms."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    waits = []
    for _ in range(30):
        started = time.monotonic()
        connection.request("POST", "/", b"x" * 50_000)
        assert connection.getresponse().read() == b"50000"
        waits.append(time.monotonic() - started)
    connection.close()
    assert sorted(waits)[len(waits) // 2] < 0.03


def test_what_is_loopback() -> None:
    """By address, not by how it begins; a name only if it is the one."""
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    others = ("0.0.0.0", "::", "192.168.0.1", "127.example.org", "", "localhost.org")  # noqa: S104
    assert not any(is_loopback(host) for host in others)


@pytest.mark.parametrize(("connections", "backlog"), [(1, 0), (4, 4), (4, 5), (4, -1)])
def test_limits_that_evict_newcomers_are_refused(connections: int, backlog: int) -> None:
    """As many accepted at once as may be open would let one push out another of the same moment."""
    with pytest.raises(ValueError, match="must be"):
        Limits(connections=connections, backlog=backlog)


def test_default_limits_fit_together() -> None:
    """They leave most descriptors to the host, and a body's bound is the receiver's."""
    from otel_tracker.receiver import MAX_BODY

    limits = Limits()
    assert 0 < limits.backlog < limits.connections <= 512
    assert limits.body_bytes == MAX_BODY
    assert limits.body_bytes <= limits.bodies_bytes
