"""What the page says, without a browser, and how it reads the API."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest

from otel_tracker.dashboard import page, queries
from otel_tracker.dashboard.app import api
from otel_tracker.dashboard.page import charts
from otel_tracker.dashboard.page.board import board, strip
from otel_tracker.dashboard.page.client import Answer, Client
from otel_tracker.dashboard.page.detail import detail
from otel_tracker.dashboard.page.guard import LoopbackOnly
from otel_tracker.dashboard.page.nodes import Node, node, text_of
from otel_tracker.dashboard.page.words import NEVER, Times, ago, many
from otel_tracker.dashboard.page_process import PageProcess
from otel_tracker.dashboard.server import Serving
from otel_tracker.dashboard.service import Service
from otel_tracker.ids import format_id
from tests.engines import free_port, until
from tests.test_dashboard_queries import WORKER, Spans, beat, feed, service, trace
from tests.test_pulse import advance, well

HERE: Final = Path(page.__file__).parent
HOSTILE: Final = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) **bold** $x$ :material/x:"


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"), (0, "0 s"), (0.25, "250 ms"), (4.04, "4.0 s"), (59.6, "60 s"), (119, "119 s"),
        (121, "2 min"), (7_000, "117 min"), (7_500, "2 h 05"), (200_000, "2 d"),
    ],
)  # fmt: skip
def test_a_length_of_time_is_short_and_has_its_unit(seconds: float | None, said: str) -> None:
    assert ago(seconds) == said


def test_times_are_in_utc_and_in_the_readers_zone() -> None:
    """And an other day than today is named, in each zone by its own calendar."""
    times = Times(datetime(2026, 1, 31, 23, 30, tzinfo=UTC), ZoneInfo("Asia/Kolkata"))
    assert times.both("2026-01-31T22:00:00+00:00") == "22:00 UTC (03:30 local)"
    assert times.both("2026-01-31T09:00:00+00:00") == "09:00 UTC (31 Jan 14:30 local)"
    assert times.past("2026-01-31T23:29:00+00:00") == "60 s ago"
    assert times.utc(None) == NEVER


def test_a_reader_whose_clock_is_utc_sees_one_time() -> None:
    times = Times(datetime(2026, 1, 31, tzinfo=UTC), ZoneInfo("UTC"))
    assert times.both("2026-01-31T00:00:00+00:00") == "00:00 UTC"


def test_one_of_a_thing_is_no_plural() -> None:
    assert (many(1, "user"), many(2, "user")) == ("1 user", "2 users")
    assert many(2_000, "process", "processes") == "2,000 processes"


# --- the board ------------------------------------------------------------------------------------


def answers_of(of: Service) -> dict[str, Answer]:
    rows = of.read(lambda view: queries.transactions(view, queries.filter_of({})))
    return {
        "dashboard": Answer(of.read(queries.dashboard), wall=time.time()),
        "issues": Answer(of.read(lambda view: queries.issues(view, 50))),
        "rows": Answer(rows),
    }


def times_of(answers: dict[str, Answer]) -> Times:
    return Times(datetime.fromisoformat(answers["dashboard"].data["as_of"]), None)


def drawn(of: Service, **more: Any) -> Node:
    answers = answers_of(of)
    return node("div", "", *board(answers, times_of(answers), **more))


def within(tree: Node, css: str) -> list[Node]:
    """The nodes that have this class."""
    found = [tree] if css in tree.get("css", "").split() else []
    for child in tree.get("children", ()):
        found += within(child, css)
    return found


def test_an_empty_service_says_what_to_do_and_shows_no_green() -> None:
    of, _ = service()
    tree = drawn(of)
    said = text_of(tree)
    assert "no transaction has come yet" in said
    assert "OTEL_TRACKER_URL" in said
    assert within(tree, "s-ok") == []


def test_a_good_night_is_said_in_one_line_and_no_cell_is_sick() -> None:
    of, clock = service()
    well(of, clock, 4)
    tree = drawn(of)
    assert "last memory" in text_of(within(tree, "headline")[0])
    assert within(tree, "sick") == []
    assert within(tree, "h-ok")


def test_no_cell_is_green_hours_after_its_last_success() -> None:
    """It is idle, in grey: nothing is known to be well."""
    of, clock = service()
    well(of, clock, 4)
    assert within(drawn(of), "s-ok")
    clock.advance(2 * 3600)
    cells = [one for one in within(drawn(of), "cell") if not one["label"].startswith("queue")]
    assert within(node("div", "", *cells), "s-ok") == []
    assert any("idle" in text_of(one) for one in cells)


def broken() -> Service:
    """Memory fails for two users, one worker is lost, and a queue waits."""
    of, clock = service()
    well(of, clock, 5)
    advance(clock, 600)
    of.take_beat(beat(at=600))
    spans = Spans()
    for number, user in ((21, "anna"), (22, "ben"), (23, "ben")):
        spans.failed(number, 500 + number, "database is locked", user__id=user)
    where = f"{WORKER}/MainThread"
    spans.root(30, 590, otel_tracker__where=where, user__id="cleo")
    spans.stage(30, "transcription", 590, 591)
    spans.stage(30, "memory", 592, otel_tracker__where=where)
    spans.root(31, 300, user__id="dora")
    spans.add(31, "queued", 301, otel_tracker__stage="memory")
    feed(of, spans)
    clock.advance(60)
    of.sweep()
    return of


def test_the_headline_says_since_when_and_for_whom_and_why() -> None:
    """The sentence of the night, with the cause first and a transaction to open."""
    tree = drawn(broken())
    (head,) = within(tree, "headline")
    said = text_of(head)
    assert "BROKEN no memory for 7 min" in said
    assert re.search(
        r"Last memory \d\d:\d\d UTC, usually every 60 s; since then 5 recordings", said
    )
    assert "0 memories, 4 users" in said
    reasons = [text_of(one) for one in within(head, "why")]
    assert reasons[0].startswith("LOST Worker lost in memory: notes (process 11 on host-1)")
    assert "database is locked 3 recordings, 2 users (ben, anna)" in reasons[1]
    assert reasons[2].startswith("WAITING Queued for memory but not picked up by a worker")
    links = [child["open"] for one in within(head, "why") for child in one["children"]
             if "open" in child]  # fmt: skip
    assert format_id(trace(30)) in links


def test_the_first_sick_cell_stands_out_and_only_that() -> None:
    """The queue is before the memory, and both are sick."""
    cells = within(drawn(broken()), "cell")
    names = [one["label"].split(":")[0] for one in cells]
    assert names == ["audio", "transcription", "queue → memory", "memory"]
    assert [one["label"].split(":")[0] for one in cells if "first" in one["css"].split()] == [
        "queue → memory"
    ]
    assert "1 lost" in text_of(cells[-1])


def test_every_state_has_a_word_beside_its_colour() -> None:
    """No badge is empty: a colour alone says nothing to many."""
    tree = drawn(broken())
    badges = within(tree, "badge")
    assert len(badges) > 8
    assert all(text_of(one).strip() for one in badges)


def test_normal_skips_are_not_red() -> None:
    of, clock = service()
    well(of, clock, 3)
    advance(clock, 200)
    spans = Spans()
    spans.root(9, 190, 195)
    spans.stage(9, "transcription", 190, 191, otel_tracker__stage__outcome="skipped")
    feed(of, spans)
    clock.advance(10)
    tree = drawn(of)
    assert within(tree, "sick") == within(tree, "s-failed") == []


def test_the_chosen_row_is_marked_by_id_wherever_it_stands() -> None:
    """In open work, among the newest, and as an example of its pattern."""
    chosen = format_id(trace(30))
    tree = drawn(broken(), chosen=chosen)

    def rows(of: Node) -> list[Node]:
        found = [of] if "chosen" in of else []
        return found + [row for child in of.get("children", ()) for row in rows(child)]

    marked = [row for row in rows(tree) if row["chosen"]]
    assert len(marked) >= 2
    assert {row["open"] for row in marked} == {chosen}


# --- is it to be believed -------------------------------------------------------------------------


def strip_of(of: Service, **more: Any) -> str:
    answers = answers_of(of)
    data = answers["dashboard"].data
    assert data is not None
    at = datetime.fromisoformat(data["as_of"]).timestamp()
    told = {"now": at, "paused": False, "url": "http://127.0.0.1:8500", **more}
    main = told.pop("answer", Answer(data, wall=at))
    return text_of(strip(main, told.pop("now"), times_of(answers), **told))


def test_the_strip_says_live_who_reports_and_who_is_lost() -> None:
    said = strip_of(broken())
    assert said.startswith("LIVE As of ")
    assert "LOST notes (process 11 on host-1), silent for 60 s" in said


def test_a_recording_is_not_shown_as_live() -> None:
    """The service answers now, and what it says is of a moment long ago."""
    of = broken()
    now = time.time()
    said = strip_of(of, answer=Answer(of.read(queries.dashboard), wall=now), now=now)
    assert said.startswith("RECORDED As of ")


def test_the_strip_names_the_exports_that_fail_and_since_when() -> None:
    of, _ = service()
    failing = {"exporters": {"otlp": {"failing_since": "2026-01-01T02:00:00+00:00"}}}
    of.take_beat(beat(health={"export": failing}))
    said = strip_of(of)
    assert "1 process reports (notes)" in said
    assert re.search(r"EXPORT fails since .*02:00 UTC in notes \(otlp\)", said)


def test_the_strip_says_what_ails_the_service_itself(tmp_path: Path) -> None:
    """A journal on a full disk, and senders that are refused; not a reader who mistyped an id."""
    of, _ = service()
    of.open_journal(tmp_path / "journal", 64 << 20)
    try:
        of.refuse(404)
        assert "SERVICE" not in strip_of(of)
        of.refuse(401)
        of.refuse(401)
        assert "SERVICE 2 requests refused since its start" in strip_of(of)
        answers = answers_of(of)
        data = json.loads(json.dumps(answers["dashboard"].data))
        assert "problem" in data["health"]["intake"]["journal"]
        data["health"]["intake"]["journal"]["problem"] = "no space left"
        at = datetime.fromisoformat(data["as_of"]).timestamp()
        assert "its journal is not kept" in strip_of(of, answer=Answer(data, wall=at), now=at)
    finally:
        of.close()


def test_many_processes_hide_neither_a_failing_export_nor_their_number() -> None:
    """The list has fifty; the one with trouble is among them, and all are counted."""
    of, clock = service()
    failing = {"exporters": {"otlp": {"failing_since": "2026-01-01T00:00:00+00:00"}}}
    for number in range(119):
        of.take_beat(beat(f"host/{number}"))
    of.take_beat(beat("zebra/1", health={"export": failing}))
    said = strip_of(of)
    assert "120 processes report" in said
    assert "EXPORT fails since" in said
    clock.advance(7200)
    of.take_beat(beat("host/1", at=7200))
    said = strip_of(of)
    assert "1 process reports" in said
    assert "LOST" not in said  # of last night's deploys, which left nothing open


def test_what_processes_say_of_their_health_breaks_nothing() -> None:
    """It is theirs, and may be anything."""
    of, _ = service()
    nonsense: list[Any] = [
        {"export": 3}, {"export": {"exporters": [1]}}, {"export": {"exporters": {"a": None}}},
        {"export": {"exporters": {"a": {"failing_since": HOSTILE}}}},
    ]  # fmt: skip
    for number, health in enumerate(nonsense):
        of.take_beat(beat(f"host/{number}", health=health))
    assert "4 processes report" in strip_of(of)


def test_an_old_answer_is_stale_and_a_failure_says_since_when() -> None:
    """Neither looks like a live page."""
    of = broken()
    data = of.read(queries.dashboard)
    now = time.time()
    stale = strip_of(of, answer=Answer(data, wall=now - 60), now=now)
    assert stale.startswith("STALE All below is of ")
    gone = Answer(data, wall=now - 60, error="connection refused", failing_since=now - 50)
    said = strip_of(of, answer=gone, now=now)
    assert said.startswith("UNREACHABLE since ")
    assert "connection refused" in said
    assert "60 s ago" in said
    assert strip_of(of, answer=Answer(data, wall=now - 9), now=now, paused=True).startswith(
        "PAUSED All below is of"
    )


# --- one transaction ------------------------------------------------------------------------------


def detail_of(of: Service, number: int) -> Node:
    data = of.read(lambda view: queries.transaction(view, format_id(trace(number))))
    return detail(Answer(data), "", Times(datetime.fromisoformat(data["as_of"]), None))


def test_a_transaction_tells_its_story() -> None:
    """Attempts in order with their states, the wait, the error, the stack, where to look next."""
    of, clock = service()
    spans = Spans()
    spans.root(1, 0, user__id="anna", otel_tracker__conversation__id="conv-1")
    spans.stage(1, "transcription", 1, 2)
    spans.add(1, "queued", 2, 3, otel_tracker__stage="memory")
    spans.stage(1, "memory", 3, 4, error="database is locked", error__type="OperationalError",
                stack="File notes.py, line 7")  # fmt: skip
    spans.stage(1, "memory", 5)
    feed(of, spans)
    advance(clock, 100)
    tree = detail_of(of, 1)
    said = text_of(tree)
    assert [text_of(one["children"][0]) for one in within(tree, "line")] == [
        "transcription", "queue → memory", "memory", "memory #2",
    ]  # fmt: skip
    for words in (
        "anna", "conv-1", "waited 1.0 s in its queue", "OperationalError", "database is locked",
        "Where memory #1 failed", "File notes.py, line 7", "stalled", "silent for 100 s of 60 s",
        "http://localhost:16686/trace/",
    ):  # fmt: skip
        assert words in said
    bars = [one["size"] for one in within(tree, "bar")]
    assert all(0 <= bar["--left"] <= 1 and 0 <= bar["--left"] + bar["--width"] <= 1.0001
               for bar in bars)  # fmt: skip
    assert bars[0]["--left"] < bars[-1]["--left"]


def test_an_unknown_transaction_says_why_it_is_not_here() -> None:
    tree = detail(Answer(error="no transaction … is kept here", status=404), "ab" * 16,
                  Times(datetime.now(UTC), None))  # fmt: skip
    assert "is kept here" in text_of(tree)


# --- nothing from a span is markup ----------------------------------------------------------------


def test_what_spans_say_stays_the_text_of_a_node() -> None:
    """In every place of the board and of a transaction; never a tag, a class or a link."""
    of, clock = service()
    spans = Spans(HOSTILE)
    spans.root(1, 0, user__id=HOSTILE, otel_tracker__conversation__id=HOSTILE)
    spans.stage(1, "memory", 1, 2, error=HOSTILE, error__type=HOSTILE, stack=HOSTILE,
                otel_tracker__where=HOSTILE, note=HOSTILE)  # fmt: skip
    feed(of, spans)
    clock.advance(10)
    for tree in (drawn(of), detail_of(of, 1)):
        assert "onerror" in text_of(tree)
        for one in everything(tree):
            assert "onerror" not in one["tag"] + one.get("css", "") + one.get("open", "")
            assert one.get("link", "http://").startswith("http")


def everything(tree: Node) -> Iterator[Node]:
    yield tree
    for child in tree.get("children", ()):
        yield from everything(child)


def test_the_drawing_script_makes_no_html_of_what_it_gets() -> None:
    """It knows none of the ways in which a browser parses text."""
    script = (HERE / "draw.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(",
                "DOMParser", "srcdoc", "fetch(", "XMLHttp", "import("):  # fmt: skip
        assert way not in script


def test_the_page_asks_streamlit_for_no_markup_of_what_was_sent() -> None:
    """Its only HTML is a style of its own, and Markdown it has none."""
    script = (HERE / "script.py").read_text()
    assert re.findall(r"st\.html\(([^)]*)\)", script) == ["_PAGE_STYLE"]
    assert "markdown" not in script
    assert "unsafe" not in script


# --- trends ---------------------------------------------------------------------------------------


def test_new_versions_are_marked_and_first_ones_are_not() -> None:
    """A service that is seen for the first time has not changed."""
    of, clock = service()
    for at, version in ((0, "1.0"), (600, "1.1")):
        spans = Spans("notes", version)
        spans.done(at + 1, at)
        advance(clock, at + 10)
        feed(of, spans)
        of.sweep()
    clock.advance(10)
    trends = of.read(queries.dashboard)["trends"]
    (said,) = charts.changes(trends)
    assert said.endswith("UTC: notes 1.1")
    spec = charts.outcomes(trends)
    assert json.dumps(spec)
    assert sum(row["transactions"] for row in spec["layer"][0]["data"]["values"]) == 2
    lines = charts.durations(trends)
    assert lines is not None
    assert {row["stage"] for row in lines["layer"][0]["data"]["values"]} == {
        "memory", "transcription",
    }  # fmt: skip


# --- reading the API ------------------------------------------------------------------------------


@contextmanager
def serving(of: Service, token: str = "") -> Iterator[str]:
    server = Serving(api(of, token), port=0)
    try:
        yield server.start()
    finally:
        server.stop()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_answer_serves_all_who_look_at_the_same_moment() -> None:
    """More readers do not ask the service more."""
    of, _ = service()
    clock = Clock()
    with serving(of) as url:
        client = Client(url, clock=clock)
        first = client.get("/api/dashboard")
        assert client.get("/api/dashboard") is first
        clock.now += 1
        assert client.get("/api/dashboard") is not first
        assert first.error == ""
        assert first.data["system_metrics"]["total_transactions"] == 0


def test_readers_do_not_wait_for_each_other_behind_a_slow_service() -> None:
    """Ten who ask the same at once cost one question."""
    asked: list[str] = []
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with odd_server(body, 0.5, asked) as url:
        client = Client(url)
        readers = [threading.Thread(target=client.get, args=("/api/dashboard",)) for _ in range(10)]
        for one in readers:
            one.start()
        for one in readers:
            one.join(10)
    assert len(asked) == 1


def test_a_service_that_goes_away_leaves_the_last_good_answer_and_comes_back() -> None:
    """With why and since when; and nothing is asked anew for a second."""
    of, _ = service()
    clock = Clock()
    with serving(of) as url:
        client = Client(url, clock=clock)
        good = client.get("/api/dashboard")
    clock.now += 2
    gone = client.get("/api/dashboard")
    assert gone.data == good.data
    assert gone.error
    assert gone.failing_since > 0
    clock.now += 5
    again = client.get("/api/dashboard")
    assert again.failing_since == gone.failing_since
    never = client.get("/api/workers")
    assert (never.data, bool(never.error)) == (None, True)
    port = int(url.rpartition(":")[2])
    back = Serving(api(service()[0]), port=port)
    back.start()
    try:
        clock.now += 2
        assert client.get("/api/dashboard").error == ""
    finally:
        back.stop()


def test_a_refusal_is_an_answer_to_one_question() -> None:
    """An unknown transaction does not make the service unreachable."""
    of, _ = service()
    with serving(of, "secret") as url:
        refused = Client(url, "wrong").get("/api/dashboard")
        assert (refused.data, refused.status) == (None, 401)
        assert "token" in refused.error
        client = Client(url, "secret")
        assert client.get("/api/transactions/" + "ab" * 16).status == 404
        assert client.get("/api/dashboard").error == ""


@contextmanager
def odd_server(answer: bytes, hang_s: float = 0.0, asked: list[str] | None = None) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            over.wait(hang_s)
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nobody asked."""

    over = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "hang_s", "said"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n<html>another program</html>", 0, "no dashboard service"),
        (b"no HTTP at all", 0, "no HTTP at all"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}", 0, "status 500"),
        (b"", 20, "did not answer in time"),
    ],
)
def test_whatever_answers_there_is_said(answer: bytes, hang_s: float, said: str) -> None:
    """Another program, garbage, a defect, silence: an error in words, within the time limit."""
    with odd_server(answer, hang_s) as url:
        assert said in Client(url, timeout_s=0.3).get("/api/dashboard").error


def test_an_address_that_is_none_names_the_right_form() -> None:
    with pytest.raises(ValueError, match="use http://127"):
        Client("localhost:8500")


# --- who may ask ----------------------------------------------------------------------------------


async def _reached(app_scope: dict[str, Any]) -> bool:
    """Whether a request gets past the guard."""
    seen: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        assert message.get("status", 403) == 403

    await LoopbackOnly(app)(app_scope, receive, send)
    return bool(seen)


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("host", "origin", "is_let_in"),
    [
        ("localhost:8501", None, True),
        ("127.0.0.1:8501", "http://127.0.0.1:8501", True),
        ("[::1]:8501", "http://[::1]:8501", True),
        ("LOCALHOST", "http://localhost:3000", True),
        ("evil.example:8501", "http://evil.example:8501", False),
        ("127.0.0.1:8501", "http://evil.example", False),
        ("127.0.0.1:8501", "null", False),
        ("127.0.0.1:8501", "http://[", False),
        ("", None, False),
        (None, None, False),
    ],
)
def test_without_a_token_only_this_machines_own_names_reach_the_page(
    kind: str, host: str | None, origin: str | None, is_let_in: bool
) -> None:
    """A site on the web can neither point its name here nor open a socket to it."""
    given = ((b"host", host), (b"origin", origin))
    headers = [(name, value.encode()) for name, value in given if value is not None]
    assert asyncio.run(_reached({"type": kind, "headers": headers})) is is_let_in


# --- the process ----------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_before_anything_starts() -> None:
    of, _ = service()
    with serving(of) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(OSError, match="another program listens there"):
            PageProcess(url, port=port).start()


def test_the_page_ends_with_whoever_started_it_even_by_a_kill() -> None:
    """Nothing is left running: its standard input ends."""
    code = (
        "from otel_tracker.dashboard.page_process import PageProcess\n"
        f"page = PageProcess('http://127.0.0.1:{free_port()}', port=0)\n"
        "print(page.start(), page.pid, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert parent.stdout is not None
        url, pid = parent.stdout.readline().split()
        assert url.startswith("http://127.0.0.1:")
        assert Path(f"/proc/{pid}").exists()
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(f"{url}/v1/traces", b"spans", timeout=10)  # noqa: S310 - loopback
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    until("the page has ended", lambda: not running(int(pid)), 10)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
