"""`otel-tracker replay`: what was recorded is shown as it was then, in the terminal and as JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tracker import semconv
from otel_tracker.dashboard import journal, queries, recording, replay_command
from otel_tracker.dashboard.app import api
from otel_tracker.dashboard.queries import Filter
from otel_tracker.dashboard.replay import frame
from otel_tracker.dashboard.server import Serving
from otel_tracker.dashboard.service import Service
from otel_tracker.ids import format_id
from otel_tracker.model import EMPTY, NS_PER_S, Kind
from tests.engines import RECORD, Collector, fetch, free_port, missing, until
from tests.otlp import ROOT
from tests.test_dashboard_processes import WORK, dashboard, get
from tests.test_journal import FORMATS, as_json
from tests.test_publisher import ends, process, says

DAY_NS: Final = 86_400 * NS_PER_S
TRACE: Final = 0x0123456789AB8DEF_0000000000000001
THEN: Final = 1_700_000_000 * NS_PER_S
"""2023-11-14 22:13:20 UTC."""


def request(
    wall_ns: int, *, trace_id: int = TRACE, user: str = "alice", stage: str = "memory",
    since_ns: int = 0, ended: bool = False, error: str = "", where: str = "host/42/MainThread",
    more: Mapping[str, str] = EMPTY,
) -> ExportTraceServiceRequest:  # fmt: skip
    """One attempt at a stage, open or ended, as a process tells it."""
    made = ExportTraceServiceRequest()
    span = made.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id = trace_id.to_bytes(16, "big")
    span.span_id = (7).to_bytes(8, "big")
    span.parent_span_id = span.trace_id[8:]
    span.name = stage
    span.start_time_unix_nano = since_ns or wall_ns
    span.end_time_unix_nano = wall_ns if ended else 0
    values = {
        semconv.KIND: Kind.STAGE.value, semconv.STAGE: stage, semconv.USER_ID: user,
        semconv.WHERE: where, semconv.PIPELINE: "notes", **more,
    }  # fmt: skip
    if ended:
        values[semconv.STAGE_OUTCOME] = "failure" if error else "success"
    if error:
        span.status.code, span.status.message = 2, error
    for key, value in values.items():
        pair = span.attributes.add()
        pair.key, pair.value.string_value = key, value
    return made


def segment(path: Path, *requests: tuple[int, ExportTraceServiceRequest]) -> Path:
    """A journal with one segment: each request, and when it came."""
    path.mkdir(exist_ok=True)
    pieces = [b"".join(frame(one.SerializeToString(), at_ns)) for at_ns, one in requests]
    (path / "00000001.otlp").write_bytes(b"".join(pieces))
    return path


def shows(capsys: pytest.CaptureFixture[str], *files: Path, **options: Any) -> str:
    """What the command prints, where it does its work."""
    assert replay_command.run(files, **options) == 0
    return capsys.readouterr().out


def refuses(capsys: pytest.CaptureFixture[str], *files: Path, **options: Any) -> str:
    """What the command says, where it cannot."""
    assert replay_command.run(files, **options) == 1
    out, err = capsys.readouterr()
    assert out == ""
    return err


FIGURES: Final = ("system_metrics", "recent_transactions", "recent_issues", "issue_patterns",
                  "stalled", "waiting", "stages", "active_users")  # fmt: skip


def figures(data: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on when it was asked for."""
    kept = {name: data[name] for name in FIGURES}
    kept["system_metrics"] = {**kept["system_metrics"], "uptime_hours": None}
    for row in (*kept["stalled"], *kept["waiting"]):
        del row["silent_seconds"]
    return kept


# --- as the live service had it -------------------------------------------------------------------

OPEN: Final = """
with transaction("notes", user_id="bob") as tx:
    with stage("transcription"):
        pass
    with stage("memory", model="llama3"):
        say(tx.id)
        wait()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["ended", "killed"])
def test_a_journal_shows_what_the_live_service_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: signal.Signals
) -> None:
    """Real processes fed a real service; its journal gives its figures, open work included."""
    with dashboard(tmp_path, free_port()) as (url, service):
        with process(WORK, url) as one:
            ends(one)
        with process(OPEN, url) as worker:
            transaction_id = says(worker)
            until(
                "the open stage",
                lambda: [
                    row
                    for row in get(f"{url}/api/transactions?status=in_progress")["transactions"]
                    if row["current_stage"] == "memory_started"
                ],
            )
            live = get(f"{url}/api/dashboard")
            service.send_signal(end)
            service.wait(20)
    assert live["system_metrics"]["total_transactions"] == 51
    assert live["system_metrics"]["active_transactions"] == 1
    data = json.loads(shows(capsys, tmp_path, as_json=True))
    assert figures(data) == figures(live)
    text = shows(capsys, tmp_path)
    assert "    51       1         45       5        0 " in text
    assert f"memory_started  bob   {transaction_id}" in text
    full = shows(capsys, tmp_path, wanted=transaction_id[:8])
    assert "notes  IN PROGRESS" in full
    assert "with model=llama3" in full


def test_a_collectors_file_shows_what_the_live_service_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same spans by the real file exporter, as protobuf and as JSON lines."""
    overlay = tmp_path / "lines.yaml"
    overlay.write_text(FORMATS)
    with (
        dashboard(tmp_path / "journal", free_port()) as (url, _),
        Collector(tmp_path, extra_config=[RECORD, overlay]) as collector,
    ):
        with process(WORK, url, OTEL_EXPORTER_OTLP_ENDPOINT=collector.http_url) as one:
            ends(one)
        until("all of it", lambda: get(f"{url}/api/dashboard")["active_users"] == 7)
        live = get(f"{url}/api/dashboard")
        page = get(f"{url}/api/transactions?limit=500")["transactions"]
        rows = {row["id"]: row["status"] for row in page}
        lines = tmp_path / "records" / "lines.json"
        until("all spans", lambda: len(collector.received()) == 150)
        until("all lines", lambda: lines.read_bytes().count(b'"spanId"') >= 150)
    assert live["system_metrics"]["failed_transactions"] == 5
    for file in (tmp_path / "records" / "received.otlp", lines):
        data = json.loads(shows(capsys, file, as_json=True))
        mine, its = figures(data), figures(live)
        assert mine["system_metrics"] == its["system_metrics"]
        assert [row["count"] for row in mine["issue_patterns"]] == [5]
        for stage, row in its["stages"].items():
            assert {**mine["stages"][stage], "last_success": None} == {**row, "last_success": None}
        kept = recording.load([file]).service.read(
            lambda view: queries.transactions(view, Filter(limit=500))
        )["transactions"]
        assert {row["id"]: row["status"] for row in kept} == rows


def test_what_only_beats_told_comes_from_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that was lost still is, one that lived still does, and pipelines have stages."""
    service = Service()
    service.open_journal(tmp_path, journal.LIMIT)
    for number, host in enumerate(("gone", "here")):
        one = request(
            time.time_ns(), trace_id=TRACE + number, stage="think", where=f"{host}/1/MainThread",
            more={"otel_tracker.metadata.model": "llama3"},
        )  # fmt: skip
        service.take_spans(one.SerializeToString())
    pipelines = [{"name": "notes", "stages": ["think", "act"], "stall_after": {"think": 500}}]

    def beat(host: str, interval_s: float) -> None:
        service.take_beat(
            {"worker": f"{host}/1", "service": "notes", "at_ns": time.time_ns(),
             "interval_s": interval_s, "pipelines": pipelines}
        )  # fmt: skip

    beat("gone", 0.01)
    beat("here", 60)
    until("the loss", lambda: service.read(queries.dashboard)["system_metrics"]["stalled_"
          "transactions"] == 1)  # fmt: skip
    live = service.read(queries.dashboard)
    service.close()
    data = json.loads(shows(capsys, tmp_path, as_json=True))
    assert figures(data) == figures(live)
    assert {row["host"]: row["state"] for row in data["workers"]} == {
        "gone": "lost", "here": "alive",
    }  # fmt: skip
    one = json.loads(shows(capsys, tmp_path, as_json=True, wanted=format_id(TRACE)))
    assert one["stages"] == ["think", "act"]
    assert one["issue"].startswith("Worker lost in think")
    assert one["attempts"][0]["limit_seconds"] == 500
    assert one["attempts"][0]["metadata"] == {"model": "llama3"}


def test_what_came_after_the_checkpoint_counts_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service was killed long after its newest checkpoint, which is in the middle."""
    service = Service()
    service.open_journal(tmp_path, journal.LIMIT)
    service.take_spans(request(time.time_ns()).SerializeToString())
    service.take_beat(
        {"worker": "host/42", "service": "notes", "at_ns": time.time_ns(), "interval_s": 5}
    )
    service.close()
    at_ns = time.time_ns() + 40 * NS_PER_S
    later = request(at_ns, trace_id=TRACE + 1)
    with (tmp_path / "00000001.otlp").open("ab") as file:
        file.write(b"".join(frame(later.SerializeToString(), at_ns)))
    loaded = recording.load([tmp_path])
    assert (loaded.requests, loaded.spans, loaded.until_ns) == (2, 2, at_ns)
    data = loaded.service.read(queries.dashboard)
    assert data["system_metrics"]["total_transactions"] == 2
    # Beats are not written down: the worker is not lost for that.
    assert [row["state"] for row in data["workers"]] == ["alive"]
    assert "2 requests, 2 spans" in shows(capsys, tmp_path)


def test_a_checkpoint_alone_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where all segments were let go, its figures and a transaction's attempts are there."""
    service = Service()
    service.open_journal(tmp_path, journal.LIMIT)
    service.take_spans(request(time.time_ns()).SerializeToString())
    failed = request(time.time_ns(), trace_id=TRACE + 1, ended=True, error="no space")
    service.take_spans(failed.SerializeToString())
    service.close()
    (tmp_path / "00000001.otlp").unlink()
    data = json.loads(shows(capsys, tmp_path, as_json=True))
    assert sum(row["failed"] for row in data["trends"]["outcomes"]) == 1
    text = shows(capsys, tmp_path)
    assert "0 requests" in text
    assert format_id(TRACE) in text
    full = shows(capsys, tmp_path, wanted=format_id(TRACE))
    assert "still open" in full
    assert "note: its spans were let go from the journal" in full


def test_a_damaged_checkpoint_is_said_and_the_requests_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures follow from the segments then."""
    segment(tmp_path, (THEN, request(THEN)))
    (tmp_path / "00000001-000000000000.checkpoint").write_bytes(b"{}\n")
    assert replay_command.run([tmp_path]) == 0
    out, err = capsys.readouterr()
    assert "is damaged or cut off" in err
    assert format_id(TRACE) in out


# --- the time of the recording --------------------------------------------------------------------


def test_ages_are_those_of_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Open for 20 s when the recording ended, years ago: open for 20 s, and not stalled."""
    path = segment(
        tmp_path,
        (THEN, request(THEN)),
        (THEN + 20 * NS_PER_S, request(THEN, trace_id=TRACE + 1, ended=True)),
    )
    text = shows(capsys, path)
    assert text.startswith("Recorded, as of 2023-11-14 22:13:40 UTC\n")
    assert "from 2023-11-14 22:13:20 UTC on, 20.0 s: 2 requests" in text
    assert "Stuck, waiting or open (ages as of 2023-11-14 22:13:40 UTC)" in text
    (line,) = [line for line in text.splitlines() if " open   memory_started" in line]
    assert line.split()[:2] == ["20.0", "s"]
    full = shows(capsys, path, wanted=format_id(TRACE))
    assert "as of        2023-11-14 22:13:40.000 UTC" in full
    assert "still open, 20.0 s so far" in full
    assert "IN PROGRESS" in full
    data = json.loads(shows(capsys, path, as_json=True))
    assert data["as_of"] == "2023-11-14T22:13:40+00:00"


def test_what_was_stuck_then_is_stuck_for_as_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Silent beyond its limit within the recording: stalled, with its age of then and its place."""
    path = segment(
        tmp_path,
        (THEN, request(THEN)),
        (THEN + 300 * NS_PER_S, request(THEN, trace_id=TRACE + 1, ended=True)),
    )
    (line,) = [line for line in shows(capsys, path).splitlines() if "min 00 s  stalled " in line]
    assert line.split()[:5] == ["5", "min", "00", "s", "stalled"]
    assert "(host/42/MainThread)" in line
    assert "notes  STALLED" in shows(capsys, path, wanted=format_id(TRACE))


def test_a_recording_stands_still(tmp_path: Path) -> None:
    """Read again later, it shows the same to the nanosecond."""
    loaded = recording.load([segment(tmp_path, (THEN, request(THEN)))])
    before = loaded.service.read(queries.dashboard)
    time.sleep(0.01)
    loaded.service.sweep()
    assert loaded.service.read(queries.dashboard) == before


# --- files as they are ----------------------------------------------------------------------------


def test_a_file_that_is_cut_in_the_middle_is_shown_up_to_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its writer was killed: said on stderr, and what came before it is there."""
    path = segment(tmp_path, *((THEN, request(THEN, trace_id=TRACE + n)) for n in range(3)))
    file = path / "00000001.otlp"
    file.write_bytes(file.read_bytes()[:-5])
    assert replay_command.run([path]) == 0
    out, err = capsys.readouterr()
    assert "00000001.otlp ends in the middle of a record" in err
    assert "2 requests, 2 spans" in out


def test_several_files_are_read_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journal and a Collector's file in JSON, together."""
    first = segment(tmp_path / "journal", (THEN, request(THEN)))
    second = tmp_path / "spans.json"
    one = request(THEN + NS_PER_S, trace_id=TRACE + 1)
    second.write_text(json.dumps(as_json(one)) + "\n")
    text = shows(capsys, first, second)
    assert "2 requests" in text
    assert format_id(TRACE) in text
    assert format_id(TRACE + 1) in text


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing", None, "there is no {}"),
        ("empty", b"", "{}: empty"),
        ("text", b"this is a text, and a long one, but no recording of anything", "is damaged"),
        ("other.json", b'{"a": 1}\n', "no spans, or broken, and left out: 1 lines"),
        ("torn", b"\x00\x00\x00\x20abc", "ends in the middle of a record"),
        ("spans.otlp.gz", b"\x1f\x8b\x08\x00abcdefg", "is compressed; give it uncompressed"),
    ],
)
def test_what_cannot_be_shown_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, says: str
) -> None:
    """In one sentence, with what to give instead where that is not plain; the status is 1."""
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    err = refuses(capsys, file)
    assert says.format(file) in err
    assert err.count("\n") == 1
    assert ("Give a journal" in err) == (name not in ("missing", "empty"))


def test_directories_and_spans_of_others_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory without a journal, and requests without a span of ours."""
    assert "holds no journal" in refuses(capsys, tmp_path)
    others = request(THEN)
    del others.resource_spans[0].scope_spans[0].spans[0].attributes[:]
    path = segment(tmp_path / "others", (THEN, others))
    assert "1 requests, and no span in them is one of otel_tracker's" in refuses(capsys, path)


# --- what spans say -------------------------------------------------------------------------------


def test_nothing_of_a_span_reaches_the_terminal_as_an_escape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users, stages, errors, places and file names may hold anything; it is spelled out."""
    evil = "\x1b]0;owned\x07\x9b31m\u202e\r\n"
    path = segment(
        tmp_path / f"journal{evil.replace('/', '')}",
        (THEN, request(THEN, user=f"a{evil}", stage=f"s{evil}", where=f"h{evil}/1/t")),
        (
            THEN + 90 * NS_PER_S,
            request(THEN, trace_id=TRACE + 1, user=evil, ended=True, error=f"e{evil}"),
        ),
    )
    (path / "00000002.otlp").write_bytes(b"\x00\x00")
    for options in ({}, {"wanted": format_id(TRACE)}, {"wanted": format_id(TRACE + 1)}):
        assert replay_command.run([path], **options) == 0  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        assert "\\x1b]0;owned\\x07" in out
        assert "ends in the middle" in err
        for text in (out, err):
            assert all(line.isprintable() for line in text.splitlines()), text
            assert not {"\x1b", "\x9b", "\u202e", "\r"} & set(text)
    assert "\x1b" not in shows(capsys, path, as_json=True)
    assert "\x1b" not in refuses(capsys, path, wanted="\x1b[31m")
    assert "\x1b" not in refuses(capsys, tmp_path / "\x1b[31m")


# --- one transaction ------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    """A UUID, 32 hex digits or a beginning find it; an unknown, vague or bad one says so."""
    path = segment(
        tmp_path,
        (THEN, request(THEN)),
        (THEN, request(THEN, trace_id=TRACE + 1)),
        (THEN, request(THEN, trace_id=0xABCDEF01_00008000_0000000000000001, user="bob")),
    )
    for wanted in (format_id(TRACE), f"{TRACE:032x}", f"{TRACE:032X}"):
        assert format_id(TRACE) in shows(capsys, path, wanted=wanted, as_json=as_json)
    assert "bob" in shows(capsys, path, wanted="abcdef01", as_json=as_json)
    assert format_id(TRACE + 1) in refuses(capsys, path, wanted="01234567", as_json=as_json)
    assert "no transaction" in refuses(capsys, path, wanted="99999999", as_json=as_json)
    assert "is no transaction id" in refuses(capsys, path, wanted="short", as_json=as_json)


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "open"])
def test_a_transaction_that_the_service_let_go_is_found_in_the_files(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ended: bool,
) -> None:
    """Only so many are kept in memory, then and now; it is judged as of then all the same."""
    monkeypatch.setenv("OTEL_TRACKER_RECENT_TRANSACTIONS", "1")
    monkeypatch.setenv("OTEL_TRACKER_OPEN_TRANSACTIONS", "1")
    pipeline = {semconv.PIPELINE: "transaction"}
    path = segment(
        tmp_path,
        *(
            (
                THEN + n * 10 * NS_PER_S,
                request(THEN, trace_id=TRACE + n, ended=ended, more=pipeline),
            )
            for n in range(4)
        ),
    )
    kept = recording.load([path]).service.read(lambda view: list(view.state.transactions))
    assert TRACE not in kept
    full = shows(capsys, path, wanted=format_id(TRACE))
    assert format_id(TRACE) in full
    assert ("transaction  COMPLETED" if ended else "transaction  IN PROGRESS") in full


# --- progress -------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """None for what is read at once; then one every two seconds."""
    now = [0.0]
    tell = replay_command._lines(10_000_000, clock=lambda: now[0])
    for second in range(6):
        now[0] = float(second)
        tell(second * 1_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "otel-tracker: read 2.0 of 10.0 MB (20 %)",
        "otel-tracker: read 4.0 of 10.0 MB (40 %)",
    ]


def test_in_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On stderr, and gone when it is done; stdout stays for the report."""
    pytest.importorskip("rich")
    path = segment(tmp_path, (THEN, request(THEN)))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert replay_command.run([path]) == 0
    assert "reading" in terminal.getvalue()
    assert "━" in terminal.getvalue()


# --- served ---------------------------------------------------------------------------------------


@contextmanager
def served(path: Path) -> Iterator[str]:
    loaded = recording.load([path])
    application = replay_command.ReadOnly(api(loaded.service), "2023-11-14 22:13:20 UTC")
    serving = Serving(application, port=0)
    try:
        yield serving.start()
    finally:
        serving.stop()


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/beats", "/api/dashboard"])
def test_nothing_can_be_added_to_a_recording(tmp_path: Path, path: str) -> None:
    """Who posts is told that this is no live service, and the figures stay."""
    with served(segment(tmp_path, (THEN, request(THEN)))) as url:
        before = get(f"{url}/api/dashboard")
        assert before["as_of"] == "2023-11-14T22:13:20+00:00"
        call = urllib.request.Request(  # noqa: S310 - loopback
            url + path,
            request(time.time_ns(), trace_id=TRACE + 1).SerializeToString(),
            {"Content-Type": "application/x-protobuf"},
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(call, timeout=10)  # noqa: S310
        with caught.value as answer:
            assert answer.code == 403
            message = json.load(answer)["error"]["message"]
        assert message.startswith("this is a recording, as of 2023-11-14 22:13:20 UTC")
        assert get(f"{url}/api/dashboard") == before


@contextmanager
def on_the_page(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The command with ``--page``, once it says where all is; ended in any case."""
    if find_spec("streamlit") is None:
        missing("streamlit is not installed")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    made = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "otel_tracker", "replay", "--page", *arguments],
        env=clean, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert made.stdout is not None
        said: dict[str, str] = {}
        for line in made.stdout:
            if line.startswith("Ctrl-C ends it"):
                break
            name, _, rest = line.strip().partition(": ")
            said[name] = rest
        else:
            raise AssertionError(made.communicate()[1])
        yield made, said
    finally:
        made.kill()
        made.communicate()


def test_the_page_shows_a_recording_until_ctrl_c(tmp_path: Path) -> None:
    """The page and its data stand at the recorded moment; then it ends well, the page with it."""
    path, port = segment(tmp_path, (THEN, request(THEN))), free_port()
    with on_the_page(str(path), "--page-port", str(port)) as (made, said):
        page = f"http://127.0.0.1:{port}"
        assert said[f"The page is at {page}"] == "recorded, as of 2023-11-14 22:13:20 UTC"
        assert fetch(f"{page}/_stcore/health")[0] == 200
        data = get(said["Its data"])
        assert data["as_of"] == "2023-11-14T22:13:20+00:00"
        assert data["system_metrics"]["active_transactions"] == 1
        made.send_signal(signal.SIGINT)
        assert made.wait(15) == 0
        assert made.communicate() == ("", "")
        until("the page's end", lambda: fetch(f"{page}/_stcore/health")[0] == 0, 5)


def test_a_page_that_cannot_listen_is_said(tmp_path: Path) -> None:
    """A port that was asked for and is taken is no reason to take another."""
    path = segment(tmp_path, (THEN, request(THEN)))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1:{port}"),
            on_the_page(str(path), "--page-port", str(port)),
        ):
            pass


def test_the_command_line(tmp_path: Path) -> None:
    """Arguments reach it; a report that nobody reads to its end is no traceback."""
    path = segment(tmp_path, (THEN, request(THEN)))
    command = [sys.executable, "-W", "error", "-m", "otel_tracker", "replay"]
    done = subprocess.run(
        [*command, str(path), "--id", format_id(TRACE), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["id"] == format_id(TRACE)
    done = subprocess.run(
        [*command, str(path), "--json", "--page"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "not allowed with argument --json" in done.stderr
