"""The dashboard service under attack: the command that people run, on real sockets.

Whatever comes, each request gets a status that says what is wrong, the process's memory stays below
`MEMORY`, and somebody who reads meanwhile gets an answer within `ALIVE_S`.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tracker import semconv
from otel_tracker.receiver import DENSEST, JSON, MAX_BODY, PROTOBUF, SMALL
from tests.engines import free_port, until
from tests.otlp import ROOT
from tests.test_dashboard_server import raise_descriptors

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"),
    pytest.mark.timeout(120),
]

TOKEN: Final = "a-secret-that-clients-show"
MEMORY: Final = 400 << 20
"""Bytes that the process has at most, ever. At rest it has 60 MB."""
ALIVE_S: Final = 10.0
"""In which a read is answered: of so many clients at once the kernel drops some packets, and sends
them again after 1, 3 and 7 seconds. Half of the reads take a fifth of that at most."""
CONNECTIONS: Final = 10_000
CLIENTS: Final = 4
SPANS: Final = 60_000

Headers = Mapping[str, str | bytes]


class Besieged:
    """The service in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Headers | None = None,
    ) -> tuple[int, Any, Message]:
        """Status, body and headers of the answer. A body in pieces is sent in chunks."""
        told = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, told)
            answer = connection.getresponse()
            text = answer.read()
            if answer.headers.get_content_type() == JSON:
                return answer.status, json.loads(text), answer.headers
            return answer.status, text, answer.headers

    def post(self, body: bytes, kind: str = PROTOBUF, encoding: str = "", **more: str) -> Any:
        """The status of spans that were posted, and why they were refused."""
        headers = {"Content-Type": kind, "Content-Encoding": encoding, **more}
        status, answer, _ = self.ask("POST", "/v1/traces", body, headers)
        return status, answer["error"]["message"] if status >= 400 else ""

    def beat(self, **more: Any) -> int:
        """The status of a beat."""
        told = json.dumps({"at_ns": time.time_ns(), "worker": "web-1/1", **more}).encode()
        return self.ask("POST", "/v1/beats", told, {"Content-Type": JSON})[0]

    def health(self) -> Any:
        """What it says of itself."""
        return self.ask("GET", "/api/health")[1]

    def memory(self, what: str) -> int:
        """Bytes: `VmHWM` is the most since the attack began, `VmRSS` what it has now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition(f"{what}:")[2].split()[0]) << 10

    @contextmanager
    def attacked(self) -> Iterator[None]:
        """What happens within the block leaves it alive, and small."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")
        waits: list[float] = []
        is_over = threading.Event()

        def look() -> None:
            while not is_over.wait(0.2):
                waits.append(self.wait_for_an_answer())

        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look)
            try:
                yield
            finally:
                is_over.set()
                looking.result()
        waits.append(self.wait_for_an_answer())
        peak = self.memory("VmHWM")
        assert max(waits) < ALIVE_S, f"of {len(waits)} reads the slowest took {max(waits):.1f} s"
        assert median(waits) < ALIVE_S / 5, f"half of the reads took {median(waits):.1f} s"
        assert peak < MEMORY, f"{peak >> 20} MB"
        assert self.process.poll() is None

    def wait_for_an_answer(self) -> float:
        """Seconds to the page's data, for somebody who tries again when they are cut off."""
        started = time.monotonic()

        def is_answered() -> bool:
            try:
                return self.ask("GET", "/api/dashboard")[0] == 200
            except (OSError, http.client.HTTPException):
                return False

        until("the page's data", is_answered)
        return time.monotonic() - started


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    """One for all attacks: what one leaves behind meets the next."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    own = {
        "OTEL_TRACKER_TOKEN": TOKEN,
        "OTEL_TRACKER_JOURNAL_DIR": str(tmp_path_factory.mktemp("journal")),
    }
    port = free_port()
    command = ["-m", "otel_tracker", "dashboard", "--no-page", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command], env={**clean, **own}, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        made = Besieged(process, port)
        made.wait_for_an_answer()
        yield made
        process.terminate()
        _, complaints = process.communicate(timeout=20)
        assert "Traceback" not in complaints, complaints
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


# --- bodies ---------------------------------------------------------------------------------------


def field(number: int, value: bytes) -> bytes:
    """A field of protobuf that has a length."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number of protobuf."""
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*made, value))


def spans(rows: Iterable[tuple[int, int]], error: str = "", **attributes: str) -> bytes:
    """Attempts that ended, as (trace id, span id)."""
    request, now = ExportTraceServiceRequest(), time.time_ns()
    into = request.resource_spans.add().scope_spans.add().spans
    for trace_id, span_id in rows:
        span = into.add(
            trace_id=trace_id.to_bytes(16, "big"), span_id=span_id.to_bytes(8, "big"),
            start_time_unix_nano=now, end_time_unix_nano=now,
        )  # fmt: skip
        for key, text in {semconv.STAGE: "memory", **attributes}.items():
            span.attributes.add(key=key).value.string_value = text
        if error:
            span.status.code = span.status.STATUS_CODE_ERROR
            span.status.message = error
    return bytes(request.SerializeToString())


def bomb(size: int, wbits: int) -> bytes:
    """Zeros in a thousandth of their bytes: the same compressed megabyte over and over."""
    squeezed = zlib.compressobj(9, zlib.DEFLATED, wbits)
    head = squeezed.compress(b"\0") + squeezed.flush(zlib.Z_FULL_FLUSH)
    piece = squeezed.compress(bytes(1 << 20)) + squeezed.flush(zlib.Z_FULL_FLUSH)
    return head + piece * (size >> 20)


GIGABYTE: Final = 1 << 30
FULL: Final = MAX_BODY - 100
EMPTY_SPANS: Final = field(1, field(2, b"\x12\0" * (FULL // 2)))
EMPTY_ATTRIBUTES: Final = field(1, field(2, field(2, b"\x4a\0" * (FULL // 2))))
EMPTY_OBJECTS: Final = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{}' + b",{}" * (FULL // 3 - 30)
LISTS: Final = b'{"resourceSpans":[],"x":[[]' + b",[]" * (FULL // 3 - 20) + b"]}"
DEEP: Final = field(5, field(1, b""))  # an AnyValue in a list in an AnyValue …
for _ in range(500):
    DEEP = field(5, field(1, DEEP))  # type: ignore[misc]
DEEP_VALUE: Final = field(1, field(2, field(2, field(9, field(1, b"k") + field(2, DEEP)))))
TOO_LARGE: Final = f"more than {MAX_BODY} bytes"
TOO_DENSE: Final = f"a part for every {DENSEST} of them"
NO_PROTOBUF: Final = "no ExportTraceServiceRequest in protobuf"
NO_JSON: Final = "no ExportTraceServiceRequest in OTLP/JSON"


@pytest.mark.parametrize(
    ("make", "kind", "encoding", "status", "says"),
    [
        (lambda: bomb(GIGABYTE, 31), PROTOBUF, "gzip", 413, TOO_LARGE),
        (lambda: bomb(GIGABYTE, 31), JSON, "gzip", 413, TOO_LARGE),
        (lambda: bomb(GIGABYTE, 15), PROTOBUF, "deflate", 413, TOO_LARGE),
        (lambda: gzip.compress(bomb(GIGABYTE, 31)), PROTOBUF, "gzip", 400, NO_PROTOBUF),
        (lambda: gzip.compress(bomb(GIGABYTE, 31)), PROTOBUF, "gzip, gzip", 415, "'gzip, gzip'"),
        (lambda: bomb(1 << 20, 31), PROTOBUF, "gzip", 400, "cut off"),
        (lambda: random.Random(1).randbytes(FULL), PROTOBUF, "gzip", 400, "not what its content"),
        (lambda: random.Random(2).randbytes(FULL), PROTOBUF, "", 400, NO_PROTOBUF),
        (lambda: random.Random(3).randbytes(FULL), JSON, "", 400, NO_JSON),
        (lambda: gzip.compress(EMPTY_SPANS), PROTOBUF, "gzip", 413, TOO_DENSE),
        (lambda: EMPTY_ATTRIBUTES, PROTOBUF, "", 413, TOO_DENSE),
        (lambda: field(1, field(2, b"\x12\0" * (SMALL // 2 - 9))), PROTOBUF, "", 200, ""),
        (lambda: EMPTY_OBJECTS + b"]}]}]}", JSON, "", 413, TOO_DENSE),
        (lambda: LISTS, JSON, "", 413, TOO_DENSE),
        (lambda: b"[" * FULL, JSON, "", 413, TOO_DENSE),
        (lambda: b"[" * SMALL, JSON, "", 400, NO_JSON),
        (lambda: b'{"a":' * 100_000, JSON, "", 400, NO_JSON),
        (lambda: DEEP_VALUE, PROTOBUF, "", 400, NO_PROTOBUF),
        (lambda: b'{"resourceSpans":[],"x":' + b"9" * 100_000 + b"}", JSON, "", 400, NO_JSON),
        (lambda: b"x" * 1000, "text/html", "", 415, "text/html"),
    ],
    ids=[
        "a gzip bomb", "one of JSON", "a deflate bomb", "a gzip bomb in gzip", "twice gzip",
        "a gzip bomb without its end", "noise that says it is gzip", "noise", "noise as JSON",
        "millions of empty spans", "millions of empty attributes", "empty spans in a small body",
        "millions of empty objects", "millions of empty lists", "deep JSON", "deep, small JSON",
        "deep objects", "deep protobuf", "a very long number", "a web page",
    ],
)  # fmt: skip
def test_a_hostile_body_gets_the_status_that_it_deserves(
    service: Besieged, make: Callable[[], bytes], kind: str, encoding: str, status: int, says: str
) -> None:
    """With a sentence that says what is wrong; nothing of it is kept or takes memory."""
    body = make()
    before = service.health()["kept"]
    with service.attacked():
        got = service.post(body, kind, encoding)
    assert (got[0], says in got[1]) == (status, True), got
    assert service.health()["kept"] == before


@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "not announced"])
@pytest.mark.parametrize("path", ["/v1/traces", "/v1/beats"])
def test_a_body_of_a_hundred_megabytes_is_refused(
    service: Besieged, path: str, is_chunked: bool
) -> None:
    """413, whether its length is told beforehand or not; it is not kept while it comes."""
    piece, size = bytes(100_000), 100_000_000
    headers = {"Content-Type": JSON}
    if not is_chunked:
        headers["Content-Length"] = str(size)
    with service.attacked():
        body = (piece for _ in range(size // len(piece)))
        status, answer, _ = service.ask("POST", path, body, headers)
    assert status == 413, answer
    assert "send smaller batches" in answer["error"]["message"]


def test_many_large_bodies_at_once_are_taken_one_by_one_or_sent_back(service: Besieged) -> None:
    """Thirty of 15 MB: each is refused for what it is, or with 503 and when to send it again."""
    body = random.Random(4).randbytes(15_000_000)

    def post(_number: int) -> tuple[int, str | None]:
        headers = {"Content-Type": PROTOBUF}
        status, _, told = service.ask("POST", "/v1/traces", body, headers)
        return status, told.get("Retry-After")

    with service.attacked(), ThreadPoolExecutor(30) as pool:
        got = Counter(pool.map(post, range(30)))
    assert set(got) <= {(400, None), (503, "1")}
    assert service.post(body)[0] == 400, "once they went, bodies are taken again"


def test_messages_of_megabytes_are_cut(service: Besieged) -> None:
    """Sixty failures of 10 MB each: what is kept of them is their beginning."""
    with service.attacked():
        for number in range(1, 61):
            body = spans([(number << 64, number)], error="no model " * 1_100_000)
            assert service.post(gzip.compress(body, 1), encoding="gzip") == (200, "")
    row = service.ask("GET", f"/api/transactions/{60 << 64:032x}")[1]
    assert row["issue"].startswith("Failed at memory_completed: no model no model")
    assert len(json.dumps(row)) < 50_000


# --- who is let in --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [TOKEN.encode()],
        [b"Basic " + TOKEN.encode()],
        [b"Bearer " + TOKEN.encode()[:-1]],
        [b"Bearer " + TOKEN.encode() + b"s"],
        [b"Bearer " + TOKEN.upper().encode()],
        [b"Bearer " + b"x" * len(TOKEN)],
        [b"Bearer " + b"\xff\xfe\xc3" * 9],
        [b"Bearer " + b"x" * 12_000],
        [b"Bearer wrong", b"Bearer " + TOKEN.encode()],
        [b"Bearer " + TOKEN.encode(), b"Bearer " + TOKEN.encode()],
    ],
    ids=[
        "none", "empty", "no token", "a blank token", "no scheme", "another scheme", "shorter",
        "longer", "in capitals", "of its length", "no text", "long", "a second one", "twice",
    ],
)  # fmt: skip
def test_a_wrong_token_is_answered_401_everywhere(service: Besieged, shown: list[bytes]) -> None:
    """Also on what there is not; the answer says which header is wanted, and tells nothing."""
    for method, path in (
        ("POST", "/v1/traces"), ("POST", "/v1/beats"), ("GET", "/api/health"), ("GET", "/nothing"),
    ):  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path)
            for value in shown:
                connection.putheader("Authorization", value)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            answer = connection.getresponse()
            text = answer.read().decode()
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "Authorization: Bearer <OTEL_TRACKER_TOKEN>" in text
        assert TOKEN not in text


@pytest.mark.parametrize(
    ("path", "headers", "statuses"),
    [
        ("/api/health", {"X-Large": "x" * 1_000_000}, {400}),
        ("/api/health", {f"X-{n}": "x" for n in range(50_000)}, {400}),
        ("/api/health?" + "x" * 1_000_000, {}, {400}),
        ("/api/health", {f"X-{n}": "" for n in range(500)}, {200}),
        ("/api/transactions?" + "&".join(f"user={n}" for n in range(500)), {}, {400}),
        ("/api/transactions/" + "f" * 8_000, {}, {400}),
        ("/api/transactions?text=" + "(a%2B)%2B" * 1_000, {}, {200}),
    ],
    ids=["one", "many", "the path", "small ones", "parameters", "an id", "a pattern"],
)
def test_headers_and_paths_of_any_size_are_answered(
    service: Besieged, path: str, headers: dict[str, str], statuses: set[int]
) -> None:
    """Those that are larger than a header may be are refused before they are kept."""
    with service.attacked():
        status, _, _ = service.ask("GET", path, headers=headers)
    assert status in statuses


# --- floods of what is well made ------------------------------------------------------------------


def test_more_workers_than_there_can_be_are_bounded_in_all_that_they_say(
    service: Besieged,
) -> None:
    """Names, websockets, pipelines, health: what is left out is counted, and one who means well
    is still seen."""
    clients = [f"{'c' * 200}{number}" for number in range(10_000)]
    stages = [f"{'s' * 50}{number}" for number in range(100)]
    pipelines = [{"name": f"{'p' * 50}{n}", "stages": stages} for n in range(50)]
    with service.attacked():
        for number in range(15):
            of_one = {f"{client}-{number}": 1 for client in clients}
            assert service.beat(worker=f"socket-host/{number}", websockets=of_one) == 200
            for pipeline in pipelines:
                pipeline["name"] = f"{pipeline['name'][:54]}-{number}"
            health = {f"key{n}": "h" * 150 for n in range(90)}
            told = {
                "pipelines": pipelines,
                "health": health,
                "stall_after": {stages[0]: number + 1},
            }
            assert service.beat(worker=f"telling-host/{number}", **told) == 200
        for number in range(1_200):
            assert service.beat(worker=f"{'host' * 50}/{number}") == 200
        assert service.beat(worker="honest-host/1", health={"dropped": 7}) == 200
    health = service.health()
    assert health["kept"]["workers"] == 1_000
    assert health["dropped"]["sockets"] >= 14 * 10_000
    assert health["problems"]["told_by_workers"] >= 1
    assert health["workers"]["honest-host/1"] == {"dropped": 7}


def test_one_transaction_with_far_more_spans_than_are_kept(service: Besieged) -> None:
    """It stays one transaction with 200 spans; the rest is counted."""
    before = service.health()["dropped"].get("facts_over_the_limit_of_one_transaction", 0)
    step = 15_000
    with service.attacked():
        for start in range(1, SPANS, step):
            body = spans((77 << 64, number) for number in range(start, start + step))
            assert service.post(body) == (200, "")
    dropped = service.health()["dropped"]["facts_over_the_limit_of_one_transaction"]
    assert dropped - before >= SPANS - 200
    assert len(service.ask("GET", f"/api/transactions/{77 << 64:032x}")[1]["attempts"]) <= 200


# --- slow clients ---------------------------------------------------------------------------------

SLOW: Final = """
    import os, resource, selectors, socket, sys, time

    port, count, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    show = f"Host: localhost\\r\\nAuthorization: Bearer {token}\\r\\n"
    KINDS = (
        "GET /api/dash",
        f"POST /v1/traces HTTP/1.1\\r\\n{show}Content-Length: 1000000\\r\\n\\r\\n",
        f"GET /api/dashboard HTTP/1.1\\r\\n{show}\\r\\n",
    )
    watched, held, sent = selectors.DefaultSelector(), [], 0
    for number in range(count):
        client = socket.socket()
        if number % 3 == 2:  # reads nothing of its answer
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        held.append(client)
        watched.register(client, selectors.EVENT_WRITE, KINDS[number % 3].encode())
    deadline = time.monotonic() + 60
    while watched.get_map() and time.monotonic() < deadline:
        for key, _ in watched.select(1):
            watched.unregister(key.fileobj)
            try:
                key.fileobj.send(key.data)
                sent += 1
            except OSError:
                pass  # it had to go for another one
    print(sent, flush=True)
    os.set_blocking(0, False)
    while sys.stdin.buffer.read(1) is None:  # until somebody closes it
        for number in range(1, count, 3):  # bodies drip
            try:
                held[number].send(b"x")
            except OSError:
                pass
        time.sleep(0.2)
"""


def slow_clients(port: int, count: int) -> subprocess.Popen[str]:
    """A process with so many; it prints a line once each has said what it says."""
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(port), str(count), TOKEN]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_ten_thousand_slow_clients_keep_nobody_out(service: Besieged) -> None:
    """Half-sent headers, bodies that drip, answers that nobody reads: at most 512 stay connected,
    and the page's data comes all the while."""
    undo = raise_descriptors(1_000)
    each = CONNECTIONS // CLIENTS
    attackers: list[subprocess.Popen[str]] = []
    opened = Path(f"/proc/{service.process.pid}/fd")
    try:
        with service.attacked():
            for _ in range(CLIENTS):
                attackers += [slow_clients(service.port, each)]
            sent = 0
            for attacker in attackers:
                assert attacker.stdout is not None
                sent += int(attacker.stdout.readline())
            assert sent > CONNECTIONS // 2, "most of them were heard"
            for _ in range(10):
                assert service.wait_for_an_answer() < ALIVE_S
            assert len(list(opened.iterdir())) < 512 + 128 + 64
            assert service.post(spans([(55 << 64, 1)])) == (200, "")
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.communicate()
        undo()


def test_new_transactions_without_end_are_sent_back(service: Besieged) -> None:
    """After 60,000 in a minute: 503, and when to send again; known ones go on, and memory stays."""
    step, known = 3_000, 99 << 64
    assert service.post(spans([(known, 1)])) == (200, "")
    numbers = iter(range(1 << 80, 1 << 90))
    with service.attacked():
        for _ in range(40):
            body = spans((next(numbers) << 16, 1) for _ in range(step))
            headers = {"Content-Type": PROTOBUF}
            status, answer, told = service.ask("POST", "/v1/traces", body, headers)
            if status != 200:
                break
        assert status == 503
        assert "60000 transactions begin in a minute" in answer["error"]["message"]
        assert 1 <= int(told["Retry-After"]) <= 60
        assert service.post(spans([(known, 2)])) == (200, "")
    assert service.health()["intake"]["refused_new_transactions"] >= step
    assert service.health()["kept"]["transactions"] <= 21_000


def test_after_all_of_it_the_service_is_small_and_remembers(service: Besieged) -> None:
    """Everything that was taken is counted once, and nothing in it has failed."""
    assert service.memory("VmRSS") < MEMORY
    totals = service.ask("GET", "/api/dashboard")[1]["system_metrics"]
    names = ("active", "completed", "failed", "stalled")
    assert totals["total_transactions"] == sum(totals[f"{n}_transactions"] for n in names) > 57_000
    health = service.health()
    assert health["problems"].keys() <= {"told_by_workers", "pipelines"}
    assert health["dropped"].get("facts_and_verdicts_that_failed", 0) == 0
    assert "500" not in health["intake"]["refused"]
