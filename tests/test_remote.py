"""Reading from elsewhere: a dashboard service over HTTP, and what may be wrong with it."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from otel_tracker import DebugSystemTracker, PipelineStage, remote
from otel_tracker.remote import MAX_ANSWER, PAUSE_S, UNKNOWN, Unknown
from otel_tracker.testing import fresh_tracker
from tests.engines import free_port, until
from tests.otlp import ROOT

SLACK_S: Final = 1.5
"""What the machine's other work may add to a bound."""
AT_ONCE_S: Final = 0.7

SERVICE: Final = """
import sys
from pathlib import Path
from otel_tracker.dashboard.app import api
from otel_tracker.dashboard.server import run
from otel_tracker.dashboard.service import Service

service = Service()
service.open_journal(Path(sys.argv[2]), 1 << 26)
run(api(service, service.settings.token), port=int(sys.argv[1]),
    on_listening=lambda url: print(url, flush=True))
"""

PAGE: Final = '''
"""As pages for the old tracker are written: every key by hard subscript, every figure formatted."""
import json, sys
from datetime import datetime
from otel_tracker import get_debug_tracker

def page():
    tracker = get_debug_tracker()
    assert tracker is not None
    data = tracker.get_dashboard_data()
    m = data["system_metrics"]
    shown = [
        f"{m['uptime_hours']:.1f}h", f"{m['total_transactions']:,}",
        f"{m['active_transactions']:d}",
        f"{m['completed_transactions']}", f"{m['failed_transactions']:>4}",
        f"{m['stalled_transactions']:,d}", str(m["active_websockets"]),
        f"{m['total_audio_chunks']:,}", f"{m['total_transcriptions']:d}",
        f"{m['total_memories']:.0f}", f"{data['active_users']:d}",
    ]
    if m["total_transactions"] > 0:
        shown.append(f"{m['completed_transactions'] / m['total_transactions']:.0%}")
    if m["stalled_transactions"] > 0:
        shown.append("stalls!")
    if m["last_activity"]:
        datetime.fromisoformat(m["last_activity"])
    rows = [
        [tx["id"], tx["user_id"], tx["status"].upper(), tx["current_stage"].replace("_", " "),
         datetime.fromisoformat(tx["created_at"]).strftime("%Y"), tx["issue"] or "-"]
        for tx in reversed(data["recent_transactions"])
    ]
    issues = [
        [datetime.fromisoformat(i["timestamp"]).strftime("%Y"), i["transaction_id"][:8],
         i["user_id"][-6:], i["issue"]]
        for i in reversed(data["recent_issues"])
    ]
    recent = tracker.get_recent_transactions(limit=10)
    return {"shown": shown, "rows": rows, "issues": issues, "recent": len(recent),
            "read": data["health"]["read"]}

print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(page()), flush=True)
'''


# --- what is read from ----------------------------------------------------------------------------


def clean_environ(**more: str) -> dict[str, str]:
    ours = ("OTEL_", "DEBUG_DUMP_DIR")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | more


@contextmanager
def service(
    path: Path, port: int = 0, **environ: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A dashboard service in a process of its own, as soon as it listens; killed at the end."""
    made = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVICE, str(port), str(path)],
        env=clean_environ(**environ),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert made.stdout is not None
        url = made.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), url
        yield url, made
    finally:
        made.kill()
        made.communicate()


@contextmanager
def feeding(url: str, **options: Any) -> Iterator[DebugSystemTracker]:
    """A tracker that feeds the service; it shows its own data."""
    tracker = DebugSystemTracker(url=url, **options)
    try:
        yield tracker
    finally:
        tracker.shutdown()


@contextmanager
def reading(url: str, **options: Any) -> Iterator[DebugSystemTracker]:
    """A tracker as a page has it."""
    tracker = DebugSystemTracker(read_url=url, **options)
    try:
        yield tracker
    finally:
        tracker.shutdown()


@contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says what `talk` says to whoever comes; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        opened: list[socket.socket] = []

        def one(connection: socket.socket) -> None:
            with suppress(OSError):
                talk(connection)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    opened.append(connection)
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            for connection in opened:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
            thread.join(5)


def saying(body: bytes, status: str = "200 OK", *, length: int | None = None) -> Any:
    """Answers every request so, and hangs up."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        told = len(body) if length is None else length
        connection.sendall(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {told}\r\n\r\n".encode()
        )
        connection.sendall(body)
        connection.close()

    return talk


def hanging(connection: socket.socket) -> None:
    connection.recv(65536)
    threading.Event().wait(30)


def dripping(connection: socket.socket) -> None:
    """One byte of an endless header every now and then."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(1_000):
        connection.sendall(b"x")
        time.sleep(0.03)  # it is what is tested


def work(tracker: DebugSystemTracker) -> list[str]:
    """A success, a failure with its retry to come, and something that runs. Their ids."""
    good = tracker.create_transaction("user-123456", "client-1", "talk-1")
    tracker.track_event(good, PipelineStage.AUDIO_RECEIVED, chunk_size=1024)
    tracker.track_audio_chunk(good, 512)
    tracker.track_event(good, PipelineStage.TRANSCRIPTION_STARTED)
    tracker.track_event(good, PipelineStage.TRANSCRIPTION_COMPLETED, True, words=12)
    tracker.track_event(good, PipelineStage.MEMORY_STARTED, model="llama3")
    tracker.track_event(good, PipelineStage.MEMORY_COMPLETED, memory_count=2)
    tracker.track_event(good, PipelineStage.CONVERSATION_ENDED)
    bad = tracker.create_transaction("user-123456", "client-1", "talk-2")
    tracker.track_event(bad, PipelineStage.TRANSCRIPTION_STARTED)
    tracker.track_event(bad, PipelineStage.TRANSCRIPTION_COMPLETED, False, "no model")
    runs = tracker.create_transaction("other-9", "client-2")
    tracker.track_event(runs, PipelineStage.TRANSCRIPTION_STARTED)
    return [good, bad, runs]


def totals(data: dict[str, Any]) -> list[int]:
    names = ("total", "active", "completed", "failed", "stalled")
    return [data["system_metrics"][f"{name}_transactions"] for name in names]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    before = time.monotonic()
    result = call()
    return time.monotonic() - before, result


# --- the same shapes ------------------------------------------------------------------------------


def shape(value: Any) -> Any:
    """Keys and types, of lists those of every row; None goes with anything."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value]
    return type(value).__name__


def assert_within(local: Any, other: Any, path: str = "") -> None:
    """Everything that `local` has is in `other`, of the same types, row by row."""
    if isinstance(local, dict):
        assert isinstance(other, dict), path
        for key, one in local.items():
            assert key in other, f"{path}.{key}"
            assert_within(one, other[key], f"{path}.{key}")
    elif isinstance(local, list):
        assert isinstance(other, list), path
        assert len(local) == len(other), path
        for number, (one, another) in enumerate(zip(local, other, strict=True)):
            assert_within(one, another, f"{path}[{number}]")
    else:
        assert type(local) is type(other), f"{path}: {local!r} {other!r}"


def test_every_read_has_the_shape_and_the_figures_of_the_process_that_worked(
    tmp_path: Path,
) -> None:
    """The dashboard key by key and row by row, and each other read, equal what the worker shows."""
    with service(tmp_path) as (url, _), feeding(url) as worker, reading(url) as page:
        good, bad, runs = work(worker)
        worker.force_flush()
        until("all of it", lambda: len(page.get_recent_transactions(10)) == 3)
        until("the open stage", lambda: page.get_dashboard_data()["stages"].get("transcription",
              {}).get("running") == 1)  # fmt: skip
        local, there = worker.get_dashboard_data(), page.get_dashboard_data()
        exporters = ("export", "publisher", "problems", "dropped")  # a process's own
        for name in exporters:
            assert name in there["health"]
            del local["health"][name]
        assert_within(local, there)
        for name in ("recent_transactions", "recent_issues", "active_users", "stages"):
            assert there[name] == local[name], name
        figures = [{**d["system_metrics"], "uptime_hours": 0} for d in (local, there)]
        assert figures[0] == figures[1]
        assert there["health"]["read"]["url"] == url
        assert there["health"]["read"]["stale_seconds"] == 0.0
        assert there["health"]["read"]["error"] is None
        assert set(there["health"]["here"]) >= {"export", "publisher", "problems", "dropped"}

        assert page.get_recent_transactions(2) == worker.get_recent_transactions(2)
        assert page.get_recent_transactions(0) == []
        assert page.get_transaction(bad) == worker.get_transaction(bad)
        assert page.get_transaction(runs) == worker.get_transaction(runs)
        mine = page.get_user_transactions("user-123456", 5)
        assert [tx.transaction_id for tx in mine] == [bad, good]
        assert mine == [page.get_transaction(bad), page.get_transaction(good)]
        assert page.get_user_transactions("user-123456", 1) == mine[:1]
        assert page.get_user_transactions("nobody") == []
        one, other = page.get_transaction(good), worker.get_transaction(good)
        assert one is not None
        assert other is not None
        assert [(e.stage, e.success, e.timestamp) for e in one.events] == [
            (e.stage, e.success, e.timestamp) for e in other.events
        ]
        assert one.get_stage_status(PipelineStage.MEMORY_COMPLETED) is True
        assert one.events[-2].metadata["memory_count"] == 2
        assert page.get_transaction("0" * 8 + "-0000-8000-0000-" + "1" * 12) is None
        assert page.get_transaction("no id") is None
        assert page.describe_transaction(good).count("\n") > 2

        mine_now, theirs = page.get_system_metrics(), worker.metrics
        assert mine_now.completed_transactions == theirs.completed_transactions == 1
        assert mine_now.total_audio_chunks_processed == theirs.total_audio_chunks_processed == 2
        assert mine_now.last_activity == theirs.last_activity
        assert 0 <= mine_now.uptime_hours() < 1
        assert json.loads(json.dumps(there, allow_nan=False)) == there


def test_a_user_known_by_an_e_mail_address_is_found(tmp_path: Path) -> None:
    """The service knows a hash; who asks by the address gets the rows all the same."""
    with service(tmp_path) as (url, _), feeding(url) as worker, reading(url) as page:
        mine = worker.create_transaction("Ann@example.com", "client")
        worker.force_flush()
        found = until("it", lambda: page.get_user_transactions("ann@example.com"))
        assert [tx.transaction_id for tx in found] == [mine]


def test_a_memory_session_is_read_without_what_stays_in_its_process(tmp_path: Path) -> None:
    """Times, outcome and error are those of the worker; texts are absent, and that is said."""
    with service(tmp_path) as (url, _), feeding(url) as worker, reading(url) as page:
        done = worker.start_memory_session("audio-1", "client", "user", "user@example.com")
        worker.start_memory_processing(done)
        worker.add_memory_extraction(done, "audio-1", "m1", "the milk is sour")
        worker.complete_memory_processing(done, True)
        failed = worker.start_memory_session("audio-2", "client", "user", "user@example.com")
        worker.start_memory_processing(failed)
        worker.complete_memory_processing(failed, False, "no model")
        worker.create_transaction("user", "client")
        worker.force_flush()
        until("both", lambda: [row["memory_processing_success"] for row in
              page.get_recent_sessions()] == [False, True])  # fmt: skip
        for audio in ("audio-1", "audio-2"):
            local, there = worker.get_session_summary(audio), page.get_session_summary(audio)
            assert local is not None
            assert there is not None
            assert set(there) == {*local, "absent"}
            for key in local:
                if key in there["absent"]:
                    assert there[key] in (None, []), key
                elif isinstance(local[key], float):
                    assert there[key] == pytest.approx(local[key], abs=0.05), key
                else:
                    assert there[key] == local[key], key
        assert "milk" not in json.dumps(page.get_session_summary("audio-1"))
        assert page.get_session_summary("audio-3") is None
        assert [set(row) for row in page.get_recent_sessions(1)] == [
            {*worker.get_recent_sessions(1)[0], "absent"}
        ]
        stats, local_stats = page.get_stats(), worker.get_stats()
        assert set(stats) == set(local_stats)
        for name in ("total_sessions", "successful_sessions", "failed_sessions", "success_rate"):
            assert stats[name] == local_stats[name], name
        assert f"{stats['memories_per_session']:.2f}" == "?"


def test_a_caller_that_changes_what_it_got_changes_nothing(tmp_path: Path) -> None:
    """The last good answer is kept apart from what was handed out."""
    with service(tmp_path) as (url, process), feeding(url) as worker, reading(url) as page:
        work(worker)
        worker.force_flush()
        until("all of it", lambda: totals(page.get_dashboard_data())[0] == 3)
        page.get_dashboard_data()["system_metrics"]["total_transactions"] = 77
        process.kill()
        process.wait()
        data = page.get_dashboard_data()
        assert data["health"]["read"]["error"]
        assert totals(data)[0] == 3


def test_the_service_may_be_mounted_below_a_path() -> None:
    """The URL's own path comes first."""
    asked: list[str] = []

    def talk(connection: socket.socket) -> None:
        asked.append(connection.recv(65536).decode().split()[1])
        connection.close()

    with talking(talk) as url, reading(f"{url}/tracker/") as page:
        page.get_dashboard_data()
    assert asked == ["/tracker/api/dashboard"]


def test_an_answer_after_which_it_hangs_up_is_read_to_its_end() -> None:
    """As many proxies and HTTP/1.0 have it, also several in one read."""
    row = {
        "id": "a" * 8 + "-aaaa-8aaa-aaaa-" + "a" * 12, "user_id": "ann", "client_id": None,
        "conversation_id": None, "audio_uuid": None, "pipeline": None, "status": "failed",
        "current_stage": "none", "issue": "bad", "error": None,
        "created_at": "2026-01-01T00:00:00+00:00", "updated_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip

    def talk(connection: socket.socket) -> None:
        path = connection.recv(65536).split()[1]
        body = json.dumps({"transactions": [row] * 3} if b"?" in path else row)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        for part in (body[:20], body[20:]):
            connection.sendall(part.encode())
        connection.shutdown(socket.SHUT_RDWR)

    with talking(talk) as url, reading(url) as page:
        found = page.get_user_transactions("ann", 3)
        assert [tx.issue for tx in found] == ["bad"] * 3


@pytest.mark.skipif(
    shutil.which("openssl") is None and not os.environ.get("CI"),
    reason="openssl, which makes the certificate, is not installed",
)
def test_https_is_read_where_the_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And refused with the reason where it is not."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            saying(b'{"transactions": []}')(secure)

    with talking(talk) as url:
        name = url.replace("http://127.0.0.1", "https://localhost")
        with reading(name) as page:
            assert page.get_recent_transactions() == []
            assert "certificate" in page.get_dashboard_data()["health"]["read"]["error"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with reading(name) as page:
            assert "no dashboard" in page.get_dashboard_data()["health"]["read"]["error"]


# --- the old page, unchanged, in a process of its own --------------------------------------------


@contextmanager
def old_page(url: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """The page's process; each call is one refresh."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PAGE],
        env=clean_environ(OTEL_TRACKER_READ_URL=url),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    sent, got = process.stdin, process.stdout
    assert got.readline() == "ready\n"

    def refresh() -> dict[str, Any]:
        sent.write("\n")
        sent.flush()
        line = got.readline()
        assert line, process.communicate()[1]
        found: dict[str, Any] = json.loads(line)
        return found

    try:
        yield refresh
        sent.close()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def test_the_old_page_works_unchanged_while_the_service_lives_dies_and_returns(
    tmp_path: Path,
) -> None:
    """It shows the figures; those of before, and an issue that says so, while the service is gone;
    and the figures again."""
    port = free_port()
    with service(tmp_path, port) as (url, process), old_page(url) as refresh:
        with feeding(url) as worker:
            work(worker)
            worker.force_flush()
        until("all of it", lambda: refresh()["shown"][1] == "3")
        seen = refresh()
        assert seen["shown"][1:7] == ["3", "0", "1", "   2", "0", "0"]
        assert seen["shown"][11] == "33%"
        assert seen["rows"][-1][2:4] == ["COMPLETED", "conversation ended"]
        assert seen["recent"] == 3
        assert seen["read"]["error"] is None
        assert not any("cannot be read" in issue[3] for issue in seen["issues"])

        process.send_signal(signal.SIGKILL)
        process.wait()
        took, gone = timed(refresh)
        assert took < 2 + SLACK_S
        assert gone["shown"][1:] == seen["shown"][1:]
        assert gone["rows"] == seen["rows"]
        assert gone["recent"] == 3
        assert "cannot be read (connection refused)" in gone["issues"][0][3]
        assert gone["read"]["stale_seconds"] > 0
        assert gone["read"]["as_of"] >= seen["read"]["as_of"]
        with service(tmp_path, port):
            back = until("it again", lambda: (r := refresh())["read"]["error"] is None and r)
            assert back["shown"][1:7] == seen["shown"][1:7]
            assert not any("cannot be read" in issue[3] for issue in back["issues"])


def test_the_old_page_shows_no_figure_where_nothing_was_ever_read() -> None:
    """From the start unreachable: every figure is a question mark, and an issue says why."""
    with old_page(f"http://127.0.0.1:{free_port()}") as refresh:
        for _ in range(2):
            shown = refresh()
            assert shown["shown"] == ["?h", *["?"] * 10]
            assert shown["rows"] == []
            assert [issue[1:3] for issue in shown["issues"]] == [["", ""]]
            assert "cannot be read (connection refused): nothing is known" in shown["issues"][0][3]
            assert shown["read"]["as_of"] is None
            assert shown["read"]["stale_seconds"] is None


# --- what may be wrong ----------------------------------------------------------------------------


READS: Final[dict[str, Callable[[DebugSystemTracker], Any]]] = {
    "get_dashboard_data": lambda t: t.get_dashboard_data(),
    "get_recent_transactions": lambda t: t.get_recent_transactions(limit=10),
    "get_user_transactions": lambda t: t.get_user_transactions("user"),
    "get_transaction": lambda t: t.get_transaction("a" * 8 + "-aaaa-8aaa-aaaa-" + "a" * 12),
    "get_system_metrics": lambda t: t.get_system_metrics(),
    "metrics": lambda t: t.metrics,
    "get_session_summary": lambda t: t.get_session_summary("audio"),
    "get_recent_sessions": lambda t: t.get_recent_sessions(),
    "get_stats": lambda t: t.get_stats(),
    "describe_transaction": lambda t: t.describe_transaction("x"),
}


def never_read(name: str, answer: Any) -> bool:
    """Whether that is how a read answers that never got one."""
    if name == "get_dashboard_data":
        return math.isnan(answer["system_metrics"]["total_transactions"])
    if name in ("get_system_metrics", "metrics"):
        return math.isnan(answer.total_transactions) and math.isnan(answer.uptime_hours())
    if name == "get_stats":
        return all(math.isnan(value) for value in answer.values())
    if name == "describe_transaction":
        return "keeps no transaction" in answer
    return answer in (None, [])


@pytest.mark.parametrize("name", READS)
def test_a_hanging_service_costs_a_read_a_second_at_most(name: str) -> None:
    """It accepts and says nothing: the first read takes its second, the next none."""
    with talking(hanging) as url, reading(url) as page:
        took, answer = timed(lambda: READS[name](page))
        assert took < remote.TIMEOUT_S + SLACK_S
        assert never_read(name, answer)
        took, answer = timed(lambda: READS[name](page))
        assert took < AT_ONCE_S
        assert never_read(name, answer)


def test_an_outage_costs_one_timeout_for_all_reads_together() -> None:
    """A page with many reads, refreshed each second, waits once and never again."""
    with talking(hanging) as url, reading(url) as page:
        took, _ = timed(lambda: [read(page) for read in READS.values()])
        assert took < remote.TIMEOUT_S + SLACK_S
        for _ in range(3):
            time.sleep(PAUSE_S)  # the page's own interval
            took, _ = timed(lambda: [read(page) for read in READS.values()])
            assert took < AT_ONCE_S
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("otel-tracker-read") < 10  # one a second, of which each ends


@pytest.mark.parametrize("talk", [hanging, dripping])
def test_slow_answers_are_cut(
    talk: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that drips bytes for ever: the thread that waits for it ends, too."""
    monkeypatch.setattr(remote, "PAUSE_S", 60.0)
    with talking(talk) as url, reading(url) as page:
        took, data = timed(page.get_dashboard_data)
        assert took < remote.TIMEOUT_S + SLACK_S
        assert data["health"]["read"]["error"] == "no answer within 1 s"
        until("no thread", lambda: not [
            t for t in threading.enumerate() if t.name == "otel-tracker-read"], 3)  # fmt: skip


def test_a_name_that_takes_long_to_look_up_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No timeout of a socket covers that: a thread waits for it, and the read does not."""
    answered = threading.Event()

    def slow(*_: object, **__: object) -> Any:
        answered.wait(30)
        raise socket.gaierror("unknown")

    with reading("http://dashboard.example:8500") as page, monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", slow)
        took, data = timed(page.get_dashboard_data)
        assert took < remote.TIMEOUT_S + SLACK_S
        assert data["health"]["read"]["error"] == "no answer within 1 s"
        took, _ = timed(page.get_dashboard_data)
        assert took < AT_ONCE_S
        answered.set()
        until("its end", lambda: page.get_dashboard_data()["health"]["read"]["error"]
              == "its name is not known")  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"<html>a page</html>", "200 OK", "no JSON"),
        (b"", "200 OK", "no JSON"),
        (b"\xff\xfe", "200 OK", "no JSON"),
        (b'{"a": NaN}', "200 OK", "no JSON"),
        (b"[" * 100_000, "200 OK", "no JSON"),
        (b"1" * 10_000, "200 OK", "no JSON"),
        (b"[]", "200 OK", "no dashboard"),
        (b"null", "200 OK", "no dashboard"),
        (b'"text"', "200 OK", "no dashboard"),
        (b"{}", "200 OK", "no dashboard"),
        (b'{"system_metrics": {"uptime_hours": "soon"}}', "200 OK", "no dashboard"),
        (b'{"system_metrics": []}', "200 OK", "no dashboard"),
        (b"{}", "500 No", "500"),
        (b"{}", "302 Found\r\nLocation: http://127.0.0.1:1/", "302"),
        (b"gone", "404 Not Found", "404"),
        (b'{"error": {"status": 404, "message": "no"}}', "404 Not Found", "404"),
        (b'{"error": {"message": "too much; again in a second"}}', "503 No", "503: too much"),
    ],
)  # fmt: skip
def test_answers_that_make_no_sense(body: bytes, status: str, says: str) -> None:
    """They are an outage with its reason, for every read, and nothing raises."""
    with talking(saying(body, status)) as url, reading(url) as page:
        data = page.get_dashboard_data()
        assert says in data["health"]["read"]["error"]
        assert math.isnan(data["system_metrics"]["failed_transactions"])
    for name, read in READS.items():
        with talking(saying(body, status)) as url, reading(url) as page:
            assert never_read(name, read(page)), name


@pytest.mark.parametrize("change", ["missing", "text", "null", "flag", "infinite"])
@pytest.mark.parametrize("where", ["metrics", "row", "issue", "users"])
def test_a_dashboard_that_lacks_something_is_none(change: str, where: str, tmp_path: Path) -> None:
    """A page would fail at it: each figure and each key of a row is looked at."""
    with fresh_tracker() as t:
        work(t.tracker)
        document = t.tracker.get_dashboard_data() | {"as_of": "2026-01-01T00:00:00+00:00"}
    part, key = {
        "metrics": (document["system_metrics"], "stalled_transactions"),
        "row": (document["recent_transactions"][1], "created_at"),
        "issue": (document["recent_issues"][0], "transaction_id"),
        "users": (document, "active_users"),
    }[where]
    with talking(saying(json.dumps(document).encode())) as url, reading(url) as page:
        assert page.get_dashboard_data()["health"]["read"]["error"] is None
    if change == "missing":
        del part[key]
    else:
        values = {"text": "soon", "null": None, "flag": True, "infinite": math.inf}
        part[key] = values[change] if where in ("metrics", "users") else [values[change]]
    text = json.dumps(document).replace("Infinity", "1e999").encode()
    with talking(saying(text)) as url, reading(url) as page:
        data = page.get_dashboard_data()
        assert "no dashboard" in data["health"]["read"]["error"], data["system_metrics"]


@pytest.mark.parametrize("by", ["no HTTP", "cut", "nothing"])
def test_what_speaks_no_http(by: str) -> None:
    """Another protocol, an answer that breaks off, and a connection that is closed at once."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        if by == "no HTTP":
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        elif by == "cut":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        connection.close()

    with talking(talk) as url, reading(url) as page:
        data = page.get_dashboard_data()
        assert data["health"]["read"]["error"]
        assert data["recent_issues"][-1]["issue"].startswith(f"Dashboard service {url}")


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_of_100_mb_is_not_read(chunked: bool) -> None:
    """Told beforehand it is not begun, otherwise left at the bound."""
    taken = 0

    def talk(connection: socket.socket) -> None:
        nonlocal taken
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        if chunked:
            connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        else:
            connection.sendall(b"Content-Length: 104857600\r\n\r\n")
        part = b" " * (1 << 20)
        for _ in range(100):
            connection.sendall(b"100000\r\n" + part + b"\r\n" if chunked else part)
            taken += len(part)

    with talking(talk) as url, reading(url) as page:
        took, data = timed(page.get_dashboard_data)
        assert took < remote.TIMEOUT_S + SLACK_S
        error = data["health"]["read"]["error"]
        assert error in ("the answer has more than 8 MiB", "no answer within 1 s")
        assert chunked or error.startswith("the answer has")
    assert taken < 4 * MAX_ANSWER  # what sockets hold is counted too


def test_a_wrong_token_is_named_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says which variable to set; no token is in health, in a row or in the log."""
    with service(tmp_path, OTEL_TRACKER_TOKEN="right-one") as (url, _):
        with reading(url, token="wrong-one") as page:
            data = page.get_dashboard_data()
            assert "401" in data["health"]["read"]["error"]
            assert "OTEL_TRACKER_TOKEN" in data["health"]["read"]["error"]
            assert "wrong-one" not in str(data) + caplog.text
        with reading(url, token="right-one") as page:
            assert page.get_dashboard_data()["health"]["read"]["error"] is None
            assert totals(page.get_dashboard_data()) == [0, 0, 0, 0, 0]


def test_credentials_within_the_url_are_not_shown() -> None:
    """Whatever stands before the @ stays out of health and of the issue."""
    with reading(f"http://ann:secret9@127.0.0.1:{free_port()}") as page:
        assert "secret9" not in str(page.get_dashboard_data())


@pytest.mark.parametrize(
    "url", ["dashboard:8500", "http://", "ftp://x", "http://x:99999", "http://[x"]
)
def test_a_url_that_leads_nowhere_is_said(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """As an outage whose reason is the fix; nothing raises and nothing is connected to."""
    with reading(url) as page:
        data = page.get_dashboard_data()
        assert "http://localhost:8500" in data["health"]["read"]["error"]
        assert "OTEL_TRACKER_READ_URL" in warnings(caplog)[0]


def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lines, however often it was tried."""
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    came: list[socket.socket] = []

    def talk(connection: socket.socket) -> None:
        came.append(connection)
        connection.close()

    with talking(talk) as url, reading(url) as page:
        until("tries", lambda: page.get_dashboard_data() and len(came) > 5)
        (begun,) = warnings(caplog)
        assert f"{url} cannot be read (" in begun
        assert "health.read" in begun
    caplog.clear()
    with reading(url) as page:
        assert page.get_dashboard_data()["health"]["read"]["error"] == "connection refused"
        with service(tmp_path, int(url.rpartition(":")[2])):
            until("it", lambda: page.get_dashboard_data()["health"]["read"]["error"] is None)
        assert len(warnings(caplog)) == 2
        assert "is read again after" in warnings(caplog)[1]


def test_a_page_not_found_is_no_transaction_that_is_not_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only the service's own 404 says that; another server's is told as what it is."""
    said = b'{"error": {"status": 404, "message": "no transaction is kept here"}}'
    for body, told in ((said, 0), (b"<html>Not Found</html>", 1)):
        with talking(saying(body, "404 Not Found")) as url, reading(url) as page:
            assert READS["get_transaction"](page) is None
        assert len(warnings(caplog)) == told


def test_an_application_whose_log_raises_reads_all_the_same() -> None:
    """A handler's exception stays within."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("full")

    handler = Raising()
    logging.getLogger("otel_tracker").addHandler(handler)
    try:
        with reading(f"http://127.0.0.1:{free_port()}") as page:
            assert page.get_dashboard_data()["health"]["read"]["error"] == "connection refused"
    finally:
        logging.getLogger("otel_tracker").removeHandler(handler)


def test_where_no_thread_can_be_started_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is tried again."""
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    with reading(f"http://127.0.0.1:{free_port()}", run_sweeper=False) as page:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", _no_thread)
            for _ in range(3):
                data = page.get_dashboard_data()
        assert data["health"]["read"]["error"] == "this process can start no thread"
        until("a try", lambda: page.get_dashboard_data()["health"]["read"]["error"]
              == "connection refused")  # fmt: skip


def _no_thread(_self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# --- the rest of that process ---------------------------------------------------------------------


def test_a_process_that_reads_elsewhere_writes_as_before(tmp_path: Path) -> None:
    """Its own spans are made, and its dump is of its own; only reads answer from the service."""
    with (
        service(tmp_path / "journal") as (url, _),
        fresh_tracker(read_url=url, debug_dump_dir=tmp_path / "dumps") as t,
    ):
        mine = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(mine, "memory_completed")
        t.advance(6)
        assert [span["name"] for span in t.spans()] == ["audio_pipeline", "memory"]
        assert t.tracker.get_transaction(mine) is None
        assert totals(t.tracker.get_dashboard_data()) == [0, 0, 0, 0, 0]
        dump = json.loads(t.tracker.export_debug_dump().read_text(encoding="utf-8"))
        assert [tx["transaction_id"] for tx in dump["transactions"]] == [mine]
        t.tracker.configure(read_url="")
        assert t.tracker.get_transaction(mine) is not None
        assert "read" not in t.tracker.get_dashboard_data()["health"]


def test_a_disabled_tracker_connects_to_nothing() -> None:
    """Its reads answer from itself, as every call does nothing."""
    came = threading.Event()
    with talking(lambda _: came.set()) as url, reading(url, disabled=True) as page:
        for read in READS.values():
            read(page)
        assert page.get_dashboard_data()["health"]["disabled"] is True
        assert not came.is_set()


def test_a_forked_child_reads_too(tmp_path: Path) -> None:
    """Also where the fork came in the middle of a read of another thread."""
    code = """
        import os, sys, threading
        from otel_tracker import init_debug_tracker

        tracker = init_debug_tracker(read_url=sys.argv[1])
        assert tracker.get_dashboard_data()["health"]["read"]["error"] is None
        tracker._reader._lock.acquire()  # as another thread would hold it
        pid = os.fork()
        if pid == 0:
            good = tracker.get_dashboard_data()["health"]["read"]["error"] is None
            os._exit(0 if good else 1)
        tracker._reader._lock.release()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    code = code.replace("tracker._reader._lock.acquire()", "lock = threading.Thread("
        "target=tracker._reader._lock.acquire); lock.start(); lock.join()").replace(
        "tracker._reader._lock.release()", "tracker._reader.after_fork()")  # fmt: skip
    with service(tmp_path) as (url, _):
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code), url],
            env=clean_environ(), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.stdout == "0\n", done.stderr


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    """Each gets its answer; none is marked stale."""
    with service(tmp_path) as (url, _), reading(url) as page:
        errors: list[str | None] = []

        def read() -> None:
            errors.extend(page.get_dashboard_data()["health"]["read"]["error"] for _ in range(5))

        threads = [threading.Thread(target=read) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == [None] * 25


def test_an_unknown_number_takes_any_format() -> None:
    """A page's own formats must not raise, and no comparison holds."""
    assert [f"{UNKNOWN:.1f}", f"{UNKNOWN:,d}", f"{UNKNOWN}", str(UNKNOWN)] == ["?"] * 4
    assert not UNKNOWN > 0
    assert float(UNKNOWN) != 0
    assert math.isnan(UNKNOWN / 2)
    assert type(__import__("copy").deepcopy(UNKNOWN)) is Unknown
