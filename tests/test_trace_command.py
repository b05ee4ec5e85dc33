"""`otel-tracker trace`: the tree, and the places it is read from, real engines among them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tracker import Pipeline, cli, stage, transaction
from otel_tracker.ids import format_id, new_trace_id
from otel_tracker.model import NS_PER_S
from otel_tracker.stalls import Patience
from otel_tracker.testing import START_NS, Harness, fresh_tracker
from otel_tracker.trace import NotFoundError, find, of_transaction
from otel_tracker.trace.about import About, judge
from otel_tracker.trace.jaeger import read_jaeger
from otel_tracker.trace.plain import as_json
from otel_tracker.trace.spans import SPANS_AT_MOST, Span, span_of
from otel_tracker.trace.text import text_of_tree
from otel_tracker.trace.tree import Tree
from otel_tracker.trace.wanted import Wanted
from otel_tracker.trace.words import harmless, span_time
from tests.engines import Engine, Jaeger, engine, free_port

ROOT: Final = Path(__file__).resolve().parents[1]
TRACE_ID: Final = "c0ffee0000008000f00000000000000f"
ROOT_ID: Final = TRACE_ID[16:]
LATER_NS: Final = START_NS + 86_400 * NS_PER_S


# --- spans to show --------------------------------------------------------------------------------


def span(number: int, parent: str | int = ROOT_ID, **more: Any) -> Span:
    """A span of one second that starts at second `number`."""
    start_ns = START_NS + number * NS_PER_S
    parent_id = f"{parent:016x}" if isinstance(parent, int) else parent
    made = Span(
        TRACE_ID,
        f"{number:016x}",
        parent_id,
        f"s{number}",
        "",
        "",
        start_ns,
        start_ns + NS_PER_S,
        "",
    )
    return replace(made, **more)


def root(**more: Any) -> Span:
    """The root, of one second."""
    return replace(span(0, ""), span_id=ROOT_ID, name="root", **more)


def shown(spans: Iterable[Span], **more: Any) -> str:
    """The text of these spans."""
    tree = Tree(spans)
    about = judge(TRACE_ID, tree, LATER_NS, Patience())
    return text_of_tree(TRACE_ID, tree, about, **more)


def tree_of(text: str) -> list[str]:
    """The lines of the tree alone."""
    lines = text.splitlines()
    (top,) = (i for i, line in enumerate(lines) if line.split()[:3] == ["start", "took", "stage"])
    return lines[top + 1 :]


def a_failed_transaction(t: Harness, end: bool = True) -> str:
    """A queue, a stall with its stack, a recovery, two failed attempts, and an end."""
    tracker = t.tracker
    transaction_id = tracker.create_transaction("user-7", "client-1", "conversation-9")
    for _ in range(5):
        tracker.track_audio_chunk(transaction_id, 3200)
        t.advance(2)
    tracker.track_event(transaction_id, "transcription_started")
    t.advance(2.8)
    tracker.track_event(transaction_id, "transcription_completed")
    tracker.track_queued(transaction_id, "memory")
    t.advance(100)
    tracker.track_event(transaction_id, "memory_started")
    t.advance(120)
    t.advance(1)
    tracker.track_progress(transaction_id, "memory")
    t.advance(10)
    error = "the model is \x1b[31moverloaded"
    tracker.track_event(transaction_id, "memory_completed", False, error, model="llama3")
    t.advance(41)
    tracker.track_event(transaction_id, "memory_started")
    t.advance(40)
    tracker.track_event(
        transaction_id, "memory_completed", False, "no quota left", error_type="QuotaError"
    )
    if end:
        tracker.track_event(transaction_id, "conversation_ended", False, "no quota left")
        t.advance(100)
    return transaction_id


@dataclass(frozen=True)
class Sample:
    """A failed transaction: its id, an OTLP request with it, and its dump."""

    id: str
    request: ExportTraceServiceRequest
    dump: Path

    @property
    def digits(self) -> str:
        return self.id.replace("-", "")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Made by a tracker, once."""
    with fresh_tracker(debug_dump_dir=tmp_path_factory.mktemp("dump")) as t:
        transaction_id = a_failed_transaction(t)
        dump = t.tracker.export_debug_dump()
        return Sample(transaction_id, encode_spans(t.finished_spans()), dump)


STORY: Final = """\
      0 s      12.8 s  audio_pipeline
      0 s       8.0 s  ├─ audio                       success
   10.0 s       2.8 s  ├─ transcription               success
   12.8 s  1 min 40 s  ├─ memory queued               waited in a queue
 1 min 53 s  2 min 11 s  ├─ memory (attempt 1)          FAILURE
                         │     the model is \\x1b[31moverloaded
                         │     with model=llama3
 1 min 53 s  2 min 00 s  ├─ memory stalled (attempt 1)  STALLED
                         │     Transcription completed but memory processing stalled: no progress
"""
"""How the story begins, for people; compared without its white space."""


def assert_it_is_the_story(text: str, transaction_id: str) -> None:
    """Everything of the failed transaction, in order."""
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "audio_pipeline  FAILED"
    assert lines[1] == "Transcription completed but memory creation failed"
    header = dict(line.split(None, 1) for line in lines[2:8])
    assert header["transaction"] == transaction_id
    assert header["trace"] == transaction_id.replace("-", "")
    assert header["user"] == "user-7"
    assert header["client"] == "client-1"
    assert header["conversation"] == "conversation-9"
    assert header["started"].endswith(" UTC, 5 min 25 s until the last sign")
    assert any(re.fullmatch(rf"service +test \(process {os.getpid()} on .+\)", x) for x in lines)
    plain = " ".join(text.split())
    place = 0
    for part in (
        *(" ".join(line.split()) for line in STORY.splitlines()),
        "it hung at (innermost call last):",
        f"{Path(__file__).name}:",
        " in a_failed_transaction",
        "memory recovered went on",
        "… 41.0 s of silence",
        "40.0 s ├─ memory (attempt 2) FAILURE",
        "QuotaError: no quota left",
        "└─ ended failure FAILURE",
        "no quota left",
    ):
        place = plain.find(part, place)
        assert place >= 0, (part, text)


# --- the tree -------------------------------------------------------------------------------------

_ids = st.integers(1, 12)
_parents = st.one_of(st.just(""), st.just(ROOT_ID), _ids)


@settings(deadline=None)
@given(st.lists(st.tuples(_ids, _parents, st.booleans()), max_size=30), st.booleans())
def test_every_span_is_shown_exactly_once(
    rows: list[tuple[int, str | int, bool]], has_root: bool
) -> None:
    """Whatever the parents: missing, in a circle, the span itself; and a duplicate counts once."""
    spans = [
        span(number, parent, **({"end_ns": 0} if is_open else {}))
        for number, parent, is_open in rows
    ]
    spans += [root()] * has_root
    text, tree = shown(spans), Tree(spans)
    names = {one.name for one in spans}
    lines = tree_of(text)
    for name in names:
        assert sum(bool(re.search(rf"\b{name}\b", line)) for line in lines) == 1, text
    plain = as_json(TRACE_ID, tree, About(), "file")
    assert sorted(row["name"] for row in plain["spans"]) == sorted(names)
    json.dumps(plain)


def test_an_ended_copy_counts_before_an_open_one() -> None:
    """Of a span that comes twice the end is shown, whichever came first."""
    ended, opened = span(1), span(1, end_ns=0)
    for pair in ((ended, opened), (opened, ended)):
        assert not Tree(pair).spans[ended.span_id].is_open


def test_children_stand_under_their_parents() -> None:
    """A tree of three levels, each level in the order of its start."""
    spans = [root(), span(3), span(1), span(2, 1), span(4, 2)]
    assert [line.split("s  ", 2)[-1].strip() for line in tree_of(shown(spans))] == [
        "root",
        "├─ s1",
        "│  └─ s2",
        "│     └─ s4",
        "└─ s3",
    ]


def test_a_chain_of_thousands_is_no_trouble() -> None:
    """Depth costs neither recursion nor memory."""
    spans = [root(), span(1), *(span(n, n - 1) for n in range(2, SPANS_AT_MOST))]
    text = shown(spans)
    assert len(tree_of(text)) == SPANS_AT_MOST
    assert max(map(len, text.splitlines())) < 250


def test_a_span_without_its_parent_is_not_attached() -> None:
    """It is shown apart, and not lost, with what is under it."""
    lines = tree_of(shown([root(), span(1), span(7, 99), span(8, 7)]))
    (apart,) = (i for i, line in enumerate(lines) if line.startswith("not attached"))
    assert [line.split()[-1] for line in lines[apart + 1 :]] == ["s7", "s8"]


def test_a_root_that_has_not_come_is_said() -> None:
    """The transaction is still open then: what is known hangs under a stand-in for its root."""
    text = shown([span(1), span(2, 99)])
    assert "The root span has not come: the transaction is still open, or it was lost." in text
    lines = tree_of(text)
    assert lines[0].strip() == "the root  its span has not come"
    assert lines[1].endswith("└─ s1")
    assert lines[-2].startswith("not attached")
    assert as_json(TRACE_ID, Tree([span(1)]), About(), "file")["root_arrived"] is False


def test_silence_between_siblings_is_a_line() -> None:
    """More than three seconds in which nothing below a sibling goes on; a wait is no silence."""
    wait = {"otel_tracker.kind": "queued", "otel_tracker.stage": "memory"}
    inner = span(2, 1, end_ns=START_NS + 20 * NS_PER_S)
    last_ns = START_NS + 100 * NS_PER_S
    spans = [root(), span(1), inner, span(22), span(30), span(32, attributes=wait, end_ns=last_ns),
             span(100)]  # fmt: skip
    silent = [line for line in tree_of(shown(spans)) if "of silence" in line]
    assert [line.split("…")[1].strip() for line in silent] == ["7.0 s of silence"]
    assert "waited in a queue" in shown(spans)


def test_impossible_times_are_shown_as_unknown() -> None:
    """A span that starts in 1970 or after the year 9999 does not stretch the others."""
    spans = [root(), span(1)]
    for number, start_ns in ((5, 0), (6, 1 << 70)):
        made = span_of(
            trace_id=TRACE_ID, span_id=f"{number:016x}", parent_id=ROOT_ID, name="odd",
            start_ns=start_ns, end_ns=1 << 70, attributes={}, resource={}, failed=False, message="",
        )  # fmt: skip
        assert (made.start_ns, made.end_ns) == (0, 0)
        spans.append(made)
    text = shown(spans)
    assert [line.split()[0] for line in tree_of(text) if "odd" in line] == ["?", "?"]
    assert "2.0 s until the last sign" in text


@pytest.mark.parametrize(
    ("age_s", "status", "issue"),
    [
        (1, "in_progress", ""),
        (3_600, "stalled", "Transcription completed but memory processing stalled"),
    ],
)
def test_the_status_follows_from_the_spans(age_s: int, status: str, issue: str) -> None:
    """By the rules of the dashboard: what is missing is a stall once it has been missing long."""
    attributes = {
        "otel_tracker.pipeline": "audio_pipeline", "otel_tracker.stage": "transcription",
        "otel_tracker.stage.outcome": "success",
    }  # fmt: skip
    done = span(1, attributes=attributes)
    about = judge(TRACE_ID, Tree([done]), done.end_ns + age_s * NS_PER_S, Patience())
    assert (about.status, about.issue) == (status, issue)


def test_a_trace_of_others_is_shown_too() -> None:
    """Spans without the tracker's attributes: a tree, and whether the root went wrong."""
    text = shown([root(outcome="error", error="boom"), span(1)])
    assert text.startswith("root  ERROR\n")
    assert "boom" in text


@pytest.mark.parametrize(
    ("attributes", "outcome", "words"),
    [
        ({"otel_tracker.kind": "stage"}, "success", "success"),
        ({"otel_tracker.stage.inferred": True}, "success", "success (inferred)"),
        ({"otel_tracker.stage.skip_reason": "no speech"}, "skipped", "skipped because: no speech"),
        ({}, "failure", "FAILURE"),
        ({}, "cancelled", "cancelled"),
        ({}, "abandoned", "ABANDONED"),
        ({}, "interrupted", "INTERRUPTED"),
        ({}, "error", "ERROR"),
        ({"otel_tracker.kind": "stalled"}, "error", "STALLED"),
        ({"otel_tracker.kind": "recovered"}, "success", "went on"),
        ({"otel_tracker.kind": "queued"}, "", "waited in a queue"),
        ({"otel_tracker.stage.key": "left"}, "success", "success"),
    ],
)
def test_the_outcome_is_in_words(attributes: dict[str, Any], outcome: str, words: str) -> None:
    """Never in a colour alone."""
    lines = tree_of(shown([root(), span(1, attributes=attributes, outcome=outcome)]))
    key = " [left]" if "otel_tracker.stage.key" in attributes else ""
    assert " ".join(" ".join(lines).split()).endswith(f"└─ s1{key} {words}")


def test_bars_need_room() -> None:
    """A terminal of 110 columns has bars, a narrower one does not; a wait looks different."""
    spans = [
        root(end_ns=START_NS + 10 * NS_PER_S),
        span(5, attributes={"otel_tracker.kind": "queued"}),
    ]
    wide, narrow = shown(spans, width=110), shown(spans, width=109)
    assert "█" * 20 in wide
    assert re.search(r" {10}── ", wide)
    assert "█" not in narrow


def test_colours_change_no_word() -> None:
    """With the escape codes taken out, the coloured text is the plain one."""
    spans = [root(), span(1, outcome="failure"), span(2, outcome="success"), span(9)]
    plain, colored = shown(spans, width=120), shown(spans, width=120, color=True)
    assert "\x1b[31m" in colored
    assert "\x1b" not in plain
    # Blanks at the end of a line are cut before the code that ends a colour, or after it.
    bare = re.sub(r"\x1b\[\d*m", "", colored)
    assert [x.rstrip() for x in bare.splitlines()] == plain.splitlines()


def test_services_are_named_where_there_are_several() -> None:
    """Each line then says which service and process did the work."""
    spans = [root(service="web", process="1"), span(1, service="worker", process="2", host="h")]
    text = shown(spans)
    assert tree_of(text)[1].endswith("worker/2")
    assert "  service      web (process 1)\n  service      worker (process 2 on h)\n" in text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 s"), (10_000, "10 µs"), (1_000_000, "1 ms"), (999_000_000, "999 ms"),
        (12_840_000_000, "12.8 s"), (59_960_000_000, "1 min 00 s"),
        (3_599 * NS_PER_S, "59 min 59 s"), (3_600 * NS_PER_S, "1 h 00 min"),
        (90_000 * NS_PER_S, "1 d 01 h"),
    ],
)  # fmt: skip
def test_lengths_of_time(ns: int, text: str) -> None:
    assert span_time(ns) == text


# --- nothing that a terminal obeys ----------------------------------------------------------------

EVIL: Final = "a\x1b]0;owned\x07b\r\nc\x9b31md\u202ee\u2028f\x00g\ud800h"
"""A window's title, a return, a C1 code, a turn of the writing direction, a lone surrogate."""


def assert_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), text
    text.encode()


@settings(deadline=None)
@given(st.text(st.characters(), max_size=30))
def test_harmless(text: str) -> None:
    """Any text becomes one printable line; what is printable stays as it is."""
    assert_harmless(harmless(text))
    assert "\n" not in harmless(text)
    assert harmless(text) == text or not text.isprintable()


def test_texts_from_the_network_are_harmless() -> None:
    """Names, services, errors, types, stacks, keys, details, ids and notes are all spelled out."""
    attributes = {
        "otel_tracker.kind": "stage", "otel_tracker.stage": "memory",
        "otel_tracker.stage.key": EVIL, "otel_tracker.where": f"{EVIL}/{EVIL}/{EVIL}",
        "otel_tracker.stage.outcome": EVIL,
        "otel_tracker.pipeline": EVIL, "user.id": EVIL, "otel_tracker.client.id": EVIL,
        "otel_tracker.transaction.id": EVIL, "error.type": EVIL, EVIL: EVIL,
        "otel_tracker.stage.skip_reason": EVIL,
    }  # fmt: skip
    made = span_of(
        trace_id=TRACE_ID, span_id=f"{5:016x}", parent_id=ROOT_ID, name=EVIL, start_ns=START_NS,
        end_ns=START_NS + 5, attributes=attributes, resource={"service.name": EVIL}, failed=True,
        message=EVIL, stack=EVIL,
    )  # fmt: skip
    text = shown([root(), made, replace(made, span_id=f"{6:016x}")], notes=[EVIL], url=EVIL)
    assert_harmless(text)
    assert text.count("owned") > 10


def test_a_dump_is_harmless(tmp_path: Path) -> None:
    """A dump may hold what the network sent, too."""
    keys = ("user_id", "client_id", "conversation_id", "status", "issue", "pipeline")
    row = dict.fromkeys(keys, EVIL)
    event = {"timestamp": EVIL, "stage": EVIL, "error_message": EVIL, "metadata": {EVIL: EVIL}}
    row_of_all = {**row, "transaction_id": TRACE_ID, "events": [event]}
    attempt = {"kind": "stage", "stage": EVIL, "error": EVIL, "where": EVIL, "key": EVIL}
    for more in ({}, {"attempts": [attempt, {**attempt, "span_id": EVIL}, 7]}):
        path = tmp_path / "dump.json"
        path.write_text(json.dumps({"transactions": [{**row_of_all, **more}]}))
        assert_harmless(find(TRACE_ID, files=[path]).text(width=150, color=False))


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        (format_id(int(TRACE_ID, 16)), TRACE_ID),
        (TRACE_ID.upper(), TRACE_ID),
        (f"  {TRACE_ID}\n", TRACE_ID),
        (TRACE_ID[:8], TRACE_ID[:8]),
        (format_id(int(TRACE_ID, 16))[:15], TRACE_ID[:13]),
        (format_id(int(TRACE_ID, 16))[:14], TRACE_ID[:12]),
        (TRACE_ID[:31], TRACE_ID[:31]),
        ("c0ffee00-", "c0ffee00"),
        ("c0ffee00-0", "c0ffee000"),
    ],
)
def test_ways_to_write_an_id(text: str, digits: str) -> None:
    assert Wanted.parse(text).digits == digits


@pytest.mark.parametrize(
    "text",
    ["", "c0ffee0", "c0ffee0z", TRACE_ID + "0", "0" * 32, "c0-ffee00", "c0ffee000-", "../../x" * 5,
     "c0ffee00\x1b[31m"],
)  # fmt: skip
def test_what_is_no_id_is_said(text: str) -> None:
    """With what an id looks like; nothing is read."""
    with pytest.raises(NotFoundError, match="is no transaction id; give the UUID") as error:
        find(text, files=[Path("/nowhere")])
    assert_harmless(str(error.value))


# --- files ----------------------------------------------------------------------------------------


def messages(requests: Iterable[ExportTraceServiceRequest]) -> bytes:
    """As the file exporter writes them as protobuf."""
    bodies = [request.SerializeToString() for request in requests]
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


def otlp_json(transaction_id: int, names: Iterable[str] = ("work",)) -> dict[str, Any]:
    """A request in JSON with spans of these names."""
    trace_id = f"{transaction_id:032x}"
    spans = [
        {
            "traceId": trace_id,
            "spanId": f"{number:016x}",
            "parentSpanId": trace_id[16:],
            "name": name,
            "startTimeUnixNano": str(START_NS),
            "endTimeUnixNano": str(START_NS + NS_PER_S),
            "attributes": [{"key": "otel_tracker.stage", "value": {"stringValue": name}}],
        }
        for number, name in enumerate(names, 1)
    ]
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": spans}]}]}


class OtelCollector(Engine):
    """A Collector with a configuration of the test's: what it gets it writes to files, as it is."""

    name = "Collector"

    def __init__(self, tmp_path: Path, jaeger: Jaeger) -> None:
        http, health = free_port(), free_port()
        self.http_url = f"http://127.0.0.1:{http}"
        self.health_url = f"http://127.0.0.1:{health}/"
        self.directory = tmp_path
        exporters = {
            "file/json": {"path": str(tmp_path / "spans.json")},
            "file/proto": {"path": str(tmp_path / "spans.otlp"), "format": "proto"},
            "file/zstd": {"path": str(tmp_path / "spans.zst"), "compression": "zstd"},
            "otlp_grpc": {"endpoint": jaeger.otlp_grpc, "tls": {"insecure": True}},
        }
        config = {
            "extensions": {"health_check": {"endpoint": f"127.0.0.1:{health}"}},
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{http}"}}}},
            "exporters": exporters,
            "service": {
                "extensions": ["health_check"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": list(exporters)}},
                "telemetry": {"metrics": {"level": "none"}},
            },
        }
        path = tmp_path / "collector.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        super().__init__([engine("otelcol"), "--config", path], {}, tmp_path / "collector.log")


@dataclass(frozen=True)
class Engines:
    """What the engines have of two transactions."""

    failed: str
    other: str
    jaeger: Jaeger
    directory: Path


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Transactions that went to a Collector, and from there to files and to Jaeger."""
    engine("otelcol")
    engine("jaeger")
    tmp_path = tmp_path_factory.mktemp("engines")
    with Jaeger(tmp_path) as jaeger:
        with OtelCollector(tmp_path, jaeger) as collector, fresh_tracker() as t:
            failed = a_failed_transaction(t)
            with (
                transaction(Pipeline("other"), tracker=t.tracker) as tx,
                stage("only", tracker=t.tracker),
            ):
                t.advance(1)
            exporter = OTLPSpanExporter(f"{collector.http_url}/v1/traces")
            for one in t.finished_spans():  # each in a request, and so in a record, of its own
                exporter.export([one])
            exporter.shutdown()  # type: ignore[no-untyped-call]
            jaeger.wait_for(failed.replace("-", ""), spans=9)
            jaeger.wait_for(tx.id.replace("-", ""), spans=1)
            collector.stop()  # it writes out what it has
        yield Engines(failed, tx.id, jaeger, tmp_path)


@pytest.mark.parametrize("file", ["spans.json", "spans.otlp"])
def test_files_of_a_real_collector(engines: Engines, file: str) -> None:
    """JSON and protobuf as the Collector's file exporter writes them, both found by a prefix."""
    path = engines.directory / file
    for id_ in (engines.failed, engines.failed[:8], engines.failed.replace("-", "").upper()):
        assert_it_is_the_story(find(id_, files=[path]).text(width=80, color=False), engines.failed)
    other = find(engines.other, files=[path])
    assert [row["name"] for row in other.as_json()["spans"]] == ["other", "only"]
    assert other.about.status == "completed"


def test_a_compressed_file_is_refused(engines: Engines, tmp_path: Path) -> None:
    """By name of the compression, with what to do."""
    with pytest.raises(NotFoundError, match=r"compressed by zstd.*take `compression` out"):
        find(engines.failed, files=[engines.directory / "spans.zst"])
    whole = tmp_path / "whole.zst"  # as `zstd` makes it of a whole file
    whole.write_bytes((engines.directory / "spans.zst").read_bytes()[4:])
    with pytest.raises(NotFoundError, match=r"zstd -dc .* \| otel-tracker trace"):
        find(engines.failed, files=[whole])
    gz = tmp_path / "x.gz"
    gz.write_bytes(b"\x1f\x8b\x08\x00" + bytes(20))
    with pytest.raises(NotFoundError, match="gzip -dc"):
        find(engines.failed, files=[gz])


def test_several_files_are_one_trace(engines: Engines, tmp_path: Path) -> None:
    """A trace whose spans went to two Collectors is read from both their files."""
    lines = (engines.directory / "spans.json").read_bytes().splitlines(keepends=True)
    halves = [tmp_path / "a", tmp_path / "b"]
    for half, part in zip(halves, (lines[:4], lines[4:]), strict=True):
        half.write_bytes(b"".join(part))
    assert_it_is_the_story(find(engines.failed, files=halves).text(80, False), engines.failed)


def test_a_file_that_cannot_be_read_hides_no_other(sample: Sample, tmp_path: Path) -> None:
    """It is told in a note: a Collector that has just begun its next file, for one."""
    good, empty = tmp_path / "good", tmp_path / "empty"
    good.write_bytes(messages([sample.request]))
    empty.touch()
    found = find(sample.id, files=[empty, good, tmp_path / "missing"])
    assert_it_is_the_story(found.text(80, False), sample.id)
    assert found.notes[0] == f"{empty} is empty"
    assert found.notes[1].startswith(f"{tmp_path / 'missing'} cannot be read: ")


def test_otlp_json_over_many_lines(engines: Engines, tmp_path: Path) -> None:
    """Indented, among other things, or one line without an end: recognised by content."""
    lines = (engines.directory / "spans.json").read_text().splitlines()
    resource_spans = [one for line in lines for one in json.loads(line)["resourceSpans"]]
    document = {"before": [1, {"x": "}"}], "resourceSpans": resource_spans, "after": 1e3}
    for name, text in {
        "indented.txt": json.dumps(document, indent=4),
        "line": json.dumps(document),
        "result": json.dumps({"result": document}),
        "lines over lines": "\n".join(json.dumps(json.loads(line), indent=1) for line in lines),
        "bom": "\ufeff" + json.dumps(document) + "\n",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        assert_it_is_the_story(find(engines.failed, files=[path]).text(80, False), engines.failed)


@pytest.mark.parametrize("form", ["json", "indented", "proto"])
def test_a_truncated_end_is_told_and_hides_nothing(
    tmp_path: Path, sample: Sample, form: str
) -> None:
    """Wherever the writer was killed: what came before is shown, and the reader is told."""
    first, second = otlp_json(int(sample.digits, 16), ["kept"]), otlp_json(7 << 64 | 9, ["cut off"])
    if form == "proto":
        whole, last = (messages([sample.request]) for _ in range(2))
        kept = "ended failure"
    elif form == "json":
        whole, last = (json.dumps(one).encode() + b"\n" for one in (first, second))
        kept = "kept"
    else:
        both = [*first["resourceSpans"], *second["resourceSpans"]]
        text = json.dumps({"resourceSpans": both}, indent=1).encode()
        at = text.index(b'"traceId": "0000')
        whole, last, kept = text[:at], text[at:], "kept"
    path = tmp_path / "file"
    for cut in sorted({1, 3, 4, 5, 40, len(last) // 2, len(last) - 2}):
        path.write_bytes(whole + last[:cut])
        found = find(sample.id, files=[path])
        assert any("ends in the middle of a record" in note for note in found.notes), (cut, form)
        assert kept in found.text(80, False)
        assert "note: " in found.text(80, False)
    path.write_bytes(whole + last)
    assert find(sample.id, files=[path]).notes == ()


def test_a_broken_line_in_the_middle_is_told(tmp_path: Path) -> None:
    """A writer was killed and another went on in the same file: the next line is read."""
    lines = [json.dumps(otlp_json(int(TRACE_ID, 16), [name])) for name in ("one", "two", "three")]
    path = tmp_path / "file"
    for place, number in ((0, 1), (1, 2)):
        broken = list(lines)
        broken[place] = broken[place][:-30]
        for row, line in enumerate(broken):
            document = line.replace('"spanId": "0000000000000001"', f'"spanId": "{row + 1:016x}"')
            broken[row] = document
        path.write_text("\n".join(broken) + "\n")
        found = find(TRACE_ID, files=[path])
        assert len(found.tree.spans) == 2
        assert found.notes == (f"{path}: broken and left out: line {number}",)


def test_spans_of_a_trace_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them are shown, and that there are more is told."""
    monkeypatch.setattr("otel_tracker.trace.found.SPANS_AT_MOST", 5)
    path = tmp_path / "file"
    path.write_text(json.dumps(otlp_json(int(TRACE_ID, 16), map(str, range(9)))) + "\n")
    found = find(TRACE_ID, files=[path])
    assert len(found.tree.spans) == 5
    assert found.notes == ("it has more than 5 spans: the others are not shown",)


@pytest.mark.parametrize("form", ["lines", "messages", "document"])
def test_a_big_file_fills_no_memory(tmp_path: Path, sample: Sample, form: str) -> None:
    """Of a file of many transactions only the wanted one is kept."""
    path, mebibytes = tmp_path / "big", 16 if form == "document" else 64
    with path.open("wb") as file:
        if form == "messages":
            with fresh_tracker() as t:
                for _ in range(300):
                    t.tracker.create_transaction("user", "client")
                t.tracker.shutdown()
                other = messages([encode_spans(t.finished_spans())] * 10)
            mine, before, after = messages([sample.request]), b"", b""
        else:
            other = b"".join(
                json.dumps(otlp_json(n << 64 | 5)).encode() + b"\n" for n in range(1, 3000)
            )
            mine = json.dumps(otlp_json(int(sample.digits, 16), ["mine"])).encode() + b"\n"
            before = after = b""
            if form == "document":
                rows = [json.loads(line)["resourceSpans"][0] for line in other.splitlines()]
                other = json.dumps(rows).encode()[1:-1] + b","
                mine = json.dumps(json.loads(mine)["resourceSpans"][0]).encode() + b","
                before, after = b'{"resourceSpans": [\n', json.dumps(rows[0]).encode() + b"]}"
        file.write(before)
        for _ in range(mebibytes * (1 << 20) // len(other) // 2):
            file.write(other)
        file.write(mine)
        for _ in range(mebibytes * (1 << 20) // len(other) // 2):
            file.write(other)
        file.write(after)
    assert path.stat().st_size > (mebibytes - 4) << 20
    tracemalloc.start()
    try:
        found = find(sample.id, files=[path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.notes == ()
    assert found.tree.spans
    assert peak < 12 << 20, f"{peak >> 20} MiB"


def test_one_giant_record_fills_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out and told, and what stands around it is read."""
    monkeypatch.setattr("otel_tracker.trace.files.RECORD_AT_MOST", 4096)
    mine = [json.dumps(otlp_json(int(TRACE_ID, 16), [name])) for name in ("a", "b")]
    giant = json.dumps({"resourceSpans": ["x" * 20_000], "id": TRACE_ID})
    path = tmp_path / "lines"
    path.write_text("\n".join([mine[0], giant, mine[1].replace("01", "02")]) + "\n")
    found = find(TRACE_ID, files=[path])
    assert sorted(one.name for one in found.tree.spans.values()) == ["a", "b"]
    assert found.notes == (f"{path}: line 2 is larger than 0 MiB: left out",)
    element = json.dumps(otlp_json(int(TRACE_ID, 16))["resourceSpans"][0])
    path.write_text(f'{{"resourceSpans":\n[{element}, {{"x": "{"x" * 200_000}"}}]}}')
    assert find(TRACE_ID, files=[path]).notes == (f"{path} has a part that is larger than 0 MiB",)
    path.write_bytes(len(b"\x0a" * 9000).to_bytes(4, "big") + b"\x0a" * 9000)
    with pytest.raises(NotFoundError, match="record 1 is larger than"):
        find(TRACE_ID, files=[path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"hello, this is no trace", "holds no spans and is no debug dump; give what"),
        (b'{"some": "json"}\n', "holds no spans"),
        (b"[1, 2]", "holds no spans"),
        (b"{" * 100_000, "holds no spans"),
        (b'{"resourceSpans":' + b"[" * 200_000, "is nested too deeply|holds no spans"),
        (b"\x00\x00\x00\x05\x0a\xff\xff\xff\xff\xff\xff", "holds no spans"),
        (bytes(range(256)) * 4, "holds no spans"),
        (b'{"resourceSpans": [7, {"scopeSpans": 5}, {"scopeSpans": [{"spans": [{}]}]}]}',
         "no transaction"),
        (b'{"transactions": [null, {}, {"transaction_id": 5}]}', "no transaction"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    """Whatever the file holds: one clear sentence that names it."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(NotFoundError, match=message) as error:
        find(TRACE_ID, files=[path])
    assert str(path) in str(error.value)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["", "{", '{"resourceSpans":[', "proto"]))
def test_any_bytes_are_answered(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, start: str
) -> None:
    """No content raises anything but the documented error."""
    path = tmp_path_factory.getbasetemp() / "any"
    head = (
        b"\x00\x00\x00" + bytes([len(content) + 1]) + b"\x0a"
        if start == "proto"
        else start.encode()
    )
    path.write_bytes(head + content)
    with pytest.raises(NotFoundError):
        find(TRACE_ID, files=[path])


_odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.data())
def test_values_of_wrong_types_are_survived(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any field of a span or of a dump's transaction may hold anything."""
    document = otlp_json(int(TRACE_ID, 16))
    (made,) = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    for key in data.draw(st.lists(st.sampled_from([*made, "events", "status"]), max_size=3)):
        if key not in ("traceId", "spanId"):
            made[key] = data.draw(_odd)
    row: dict[str, Any] = {"transaction_id": TRACE_ID}
    for key in ("created_at", "updated_at", "status", "events", "attempts", "user_id", "issue"):
        row[key] = data.draw(_odd)
    for more in ({"transactions": [row]}, {**document, "transactions": [row]}):
        path = tmp_path_factory.getbasetemp() / "odd"
        path.write_text(json.dumps(more))
        found = find(TRACE_ID, files=[path])
        assert_harmless(found.text(130, False))
        json.dumps(found.as_json(), allow_nan=True)


def test_ids_that_are_none(tmp_path: Path) -> None:
    """A span without a proper id is left out, and a parent without one is no parent."""
    document = otlp_json(int(TRACE_ID, 16), ["no id", "no parent"])
    first, second = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    first["spanId"], second["parentSpanId"] = "zz", "nonsense"
    path = tmp_path / "file"
    path.write_text(json.dumps(document))
    (row,) = find(TRACE_ID, files=[path]).as_json()["spans"]
    assert (row["name"], row["parent_span_id"]) == ("no parent", None)


@pytest.mark.parametrize(
    ("trace_id", "span_id"), [(TRACE_ID, ""), (TRACE_ID, "0101"), (TRACE_ID + "01", "01" * 8)]
)
def test_ids_that_are_none_in_protobuf(tmp_path: Path, trace_id: str, span_id: str) -> None:
    """As in JSON: such a span is left out, and hides no other."""
    request = ExportTraceServiceRequest()
    made = request.resource_spans.add().scope_spans.add().spans
    made.add(trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id), name="no id")
    made.add(
        trace_id=bytes.fromhex(TRACE_ID), span_id=b"\1" * 8, parent_span_id=b"\2", name="no parent"
    )
    path = tmp_path / "file"
    path.write_bytes(messages([request]))
    (row,) = find(TRACE_ID, files=[path]).as_json()["spans"]
    assert (row["name"], row["parent_span_id"]) == ("no parent", None)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a directory are named."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(NotFoundError, match=f"{path} cannot be read: "):
            find(TRACE_ID, files=[path])


def test_an_ambiguous_prefix_is_listed(tmp_path: Path) -> None:
    """With every whole id that fits, and when it began."""
    ids = [int("c0ffee00" + f"{n:024x}", 16) for n in (1, 2)]
    path = tmp_path / "file"
    path.write_text("".join(json.dumps(otlp_json(one)) + "\n" for one in ids))
    with pytest.raises(NotFoundError, match="c0ffee00 fits several transactions") as error:
        find("c0ffee00", files=[path])
    for one in ids:
        assert f"{format_id(one)}  2026-01-01 00:00:00 UTC" in str(error.value)
    assert find(format_id(ids[1])[:-1] + "2", files=[path]).trace_id == f"{ids[1]:032x}"


# --- dumps, and the process itself ----------------------------------------------------------------


def test_a_debug_dump(sample: Sample) -> None:
    """The attempts as a tree with their processes, and the events as they were reported."""
    found = find(sample.id[:8], files=[sample.dump])
    text = " ".join(found.text(80, False).split())
    assert text.startswith(
        "audio_pipeline FAILED Transcription completed but memory creation failed"
    )
    assert "as of 2026-01-01 00:07:04.800 UTC" in text
    assert f"process {os.getpid()} on" in text
    for part in (
        "├─ transcription success", "├─ memory (attempt 1) FAILURE",
        "├─ memory (attempt 2) FAILURE", "no quota left", "└─ ended failure FAILURE",
        "events as they were reported 0 s audio_received ok chunk_size=3200, chunks=5, bytes=16000",
        "memory_completed FAILED: the model is \\x1b[31moverloaded model=llama3",
    ):  # fmt: skip
        assert part in text, text
    plain = found.as_json()
    assert (plain["source"], plain["status"]) == ("dump", "failed")
    assert [row["event"] for row in plain["events"]][-1] == "conversation_ended"


def test_a_dump_of_the_old_tracker(sample: Sample, tmp_path: Path) -> None:
    """It has events alone: they are paired to stages."""
    data = json.loads(sample.dump.read_text())
    for row in data["transactions"]:
        del row["attempts"], row["pipeline"], row["dropped_facts"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    rows = find(sample.id, files=[path]).as_json()["spans"]
    assert [(r["name"], r["attempt"], r["outcome"], r["duration_seconds"]) for r in rows] == [
        ("audio_pipeline", None, None, 324.80001),
        ("audio", None, None, 1e-05),
        ("transcription", 1, "success", 2.8),
        ("memory", 1, "failure", 131.0),
        ("memory", 2, "failure", 40.0),
        ("ended failure", None, "failure", 1e-05),
    ]


def test_the_newest_dump_counts(tmp_path: Path) -> None:
    """Of several dumps with the transaction, whatever their order."""
    paths = []
    for status in ("stalled", "completed", "in_progress"):
        second = {"stalled": 1, "completed": 3, "in_progress": 2}[status]
        path = tmp_path / status
        at = f"2026-01-01T00:00:0{second}+00:00"
        row = {"transaction_id": TRACE_ID, "status": status, "created_at": at}
        path.write_text(
            json.dumps({"export_metadata": {"generated_at": at}, "transactions": [row]})
        )
        paths.append(path)
    assert find(TRACE_ID, files=paths).about.status == "completed"


def test_spans_and_a_dump_together(sample: Sample, tmp_path: Path) -> None:
    """The spans are the tree; what the dump said stands beside it."""
    path = tmp_path / "spans"
    path.write_bytes(messages([sample.request]))
    found = find(sample.id, files=[sample.dump, path])
    assert_it_is_the_story(found.text(80, False), sample.id)
    (note,) = found.notes
    said = "failed: Transcription completed but memory creation failed"
    assert note == f"the debug dump of 2026-01-01 00:07:04 UTC says {said}"


def test_the_process_itself() -> None:
    """An application shows a transaction that is under way: open stages, and since when."""
    with fresh_tracker() as t:
        transaction_id = a_failed_transaction(t, end=False)
        t.tracker.track_event(transaction_id, "memory_started")
        found = of_transaction(t.tracker, transaction_id)
        text = found.text(width=0, color=False)
        assert text.startswith("audio_pipeline  IN PROGRESS")
        assert re.search(r"memory \(attempt 3\) +still open", text)
        assert found.as_json()["source"] == "process"
        with pytest.raises(NotFoundError, match="the tracker keeps no transaction"):
            of_transaction(t.tracker, TRACE_ID)
        with pytest.raises(NotFoundError, match="the tracker keeps no transaction"):
            of_transaction(t.tracker, None)


def test_the_process_shows_what_may_leave_it() -> None:
    """The text may go to a log: no address, no transcript, no credential is in it."""
    with fresh_tracker() as t:
        tracker = t.tracker
        transaction_id = tracker.create_transaction("ann@example.com", "client")
        error = "ann@example.com is over quota"
        tracker.track_event(
            transaction_id, "memory_completed", False, error, transcript="my secret", model="llama3"
        )
        found = of_transaction(tracker, transaction_id)
        shown_ = found.text(0, False) + json.dumps(found.as_json())
    assert "over quota" in shown_
    assert "model=llama3" in shown_
    assert "ann@example.com" not in shown_
    assert "secret" not in shown_


class _Unreadable:
    """An argument of which not even a text can be made."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_describe_transaction() -> None:
    """The tree as text in one call: an open stage, and since when; an unknown id is said."""
    with fresh_tracker() as t:
        transaction_id = a_failed_transaction(t, end=False)
        t.tracker.track_event(transaction_id, "memory_started", user="ann@example.com")
        text = t.tracker.describe_transaction(transaction_id)
        assert text.startswith("audio_pipeline  IN PROGRESS\n")
        assert re.search(r"└─ memory \(attempt 3\) +still open, .+ so far", text)
        assert_harmless(text)
        assert "ann@example.com" not in text
        absent = format_id(new_trace_id())
        said = t.tracker.describe_transaction(absent)
        assert said.startswith(
            f"the tracker keeps no transaction {absent}; it may have been let go"
        )


@pytest.mark.parametrize(
    "argument",
    [None, 0, 1.5, True, b"c0ffee00", [], {"a": 1}, object(), _Unreadable(), "", EVIL, "x" * 9_999],
)  # fmt: skip
def test_describe_transaction_never_raises(argument: object) -> None:
    """Whatever it is given: one sentence, and no problem is counted."""
    with fresh_tracker() as t:
        said = t.tracker.describe_transaction(argument)
        assert said.startswith("the tracker keeps no transaction ")
        assert_harmless(said)
        assert len(said) < 300
        assert t.tracker.get_dashboard_data()["health"]["problems"] == {}


# --- Jaeger ---------------------------------------------------------------------------------------


def test_the_real_jaeger(engines: Engines) -> None:
    """The same story as from the files, with the link to its page."""
    found = find(engines.failed, jaeger_url=engines.jaeger.ui_url + "/")
    assert_it_is_the_story(found.text(80, False), engines.failed)
    assert f"in Jaeger    {engines.jaeger.ui_url}/trace/{found.trace_id}" in found.text(80, False)
    from_file = find(engines.failed, files=[engines.directory / "spans.otlp"])
    assert found.as_json()["spans"] == from_file.as_json()["spans"]


def test_what_jaeger_has_not(engines: Engines) -> None:
    """Says what may have become of it, and what to do."""
    absent = format_id(new_trace_id())
    with pytest.raises(
        NotFoundError, match=f"has no transaction {absent}: .*OTEL_TRACKER_JAEGER_URL"
    ):
        find(absent, jaeger_url=engines.jaeger.ui_url)
    with pytest.raises(NotFoundError, match="by its whole id, and c0ffee00 is a part of one"):
        find("c0ffee00", jaeger_url=engines.jaeger.ui_url)


def test_an_unreachable_jaeger_is_said() -> None:
    """With both ways to name another."""
    with pytest.raises(
        NotFoundError, match=r"does not answer at http://127.*OTEL_TRACKER_JAEGER_URL"
    ) as e:
        find(TRACE_ID, jaeger_url=f"http://127.0.0.1:{free_port()}")
    assert "--jaeger" in str(e.value)


@pytest.mark.parametrize(
    "url",
    ["", " ", "localhost:16686", "ftp://localhost/x", "file:///etc/passwd", "http://", "http://[::1",
     "http://h:99999", "http://a b/", "http://u:secret@localhost", "http://localhost/\r\nX: y"],
)  # fmt: skip
def test_addresses_that_are_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only http and https are spoken; nothing is sent, and no password is repeated."""
    monkeypatch.setattr(
        "otel_tracker.trace.jaeger._get", lambda *_: pytest.fail("something was sent")
    )
    with pytest.raises(NotFoundError) as error:
        read_jaeger(Wanted.parse(TRACE_ID), url, Patience())
    assert "secret" not in str(error.value)
    assert_harmless(str(error.value))


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """Something that is no Jaeger; its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with suppress(OSError):  # the client had enough
                answer(self)

        def log_message(self, *args: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", asked
        finally:
            running.shutdown()
            thread.join()


def reply(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(404, b"<h1>Not Found</h1>"), "answered 404 to a request of Jaeger's API"),
        (reply(404, b"{}"), "answered 404"),
        (reply(500, b"\x1b[31m"), "answered 500"),
        (reply(302, b"", {"Location": "http://elsewhere/\x1b"}), r"302 \(moved to http://elsewhere/"),
        (reply(200, b"<html>"), "is no trace .*is it Jaeger 2"),
        (reply(200, b'{"result":{"resourceSpans":[{"scope'), "is no trace"),
        (reply(200, b""), "has no transaction"),
        (reply(200, b'{"result":{}}'), "has no transaction"),
        (lambda handler: handler.wfile.write(b"\x00\x01\x02 nonsense\r\n\r\n"), "does not answer"),
        (lambda handler: handler.connection.close(), "does not answer"),
    ],
)  # fmt: skip
def test_what_is_no_jaeger_is_said(
    answer: Callable[[BaseHTTPRequestHandler], None], message: str
) -> None:
    """Other servers, broken ones and redirections: one sentence, nothing followed."""
    with server(answer) as (url, asked), pytest.raises(NotFoundError, match=message) as error:
        find(TRACE_ID, jaeger_url=url + "/base/")
    assert_harmless(str(error.value))
    # Without corrections, in the spelling of every Jaeger 2.
    assert asked == [f"/base/api/v3/traces/{TRACE_ID}?raw_traces=true&rawTraces=true"]


def test_an_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a giant answer nor one that drips for ever is read to its end."""

    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 65536)

    monkeypatch.setattr("otel_tracker.trace.jaeger.ANSWER_AT_MOST", 1 << 20)
    with server(pour) as (url, _), pytest.raises(NotFoundError, match="is larger than 1 MiB"):
        find(TRACE_ID, jaeger_url=url)
    monkeypatch.setattr("otel_tracker.trace.jaeger.ANSWER_AT_MOST", 1 << 40)
    monkeypatch.setattr("otel_tracker.trace.jaeger.ANSWER_S", 0.2)
    with server(pour) as (url, _), pytest.raises(NotFoundError, match="took longer than"):
        find(TRACE_ID, jaeger_url=url)


def test_a_silent_jaeger_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the connection and says nothing costs a bounded time."""
    monkeypatch.setattr("otel_tracker.trace.jaeger.CONNECT_S", 0.2)
    release = threading.Event()
    with server(lambda handler: void(release.wait(30))) as (url, _):
        started = time.monotonic()
        try:
            with pytest.raises(NotFoundError, match="does not answer"):
                find(TRACE_ID, jaeger_url=url)
        finally:
            release.set()
    assert time.monotonic() - started < 10


def void(_: object) -> None:
    """Drops a value."""


def test_no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not asked for what is on loopback."""
    body = json.dumps({"result": otlp_json(int(TRACE_ID, 16))}).encode()
    with server(reply(200, body)) as (url, asked), server(reply(502)) as (proxy, proxied):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert find(TRACE_ID, jaeger_url=url).tree.spans
        assert (len(asked), proxied) == (1, [])
        # It is this that the test above would miss if proxies were never asked.
        with pytest.raises(NotFoundError, match="answered 502"):
            find(TRACE_ID, jaeger_url="http://jaeger.invalid:16686")
        assert len(proxied) == 1
        monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
        with pytest.raises(NotFoundError, match="unknown url type: socks5"):
            find(TRACE_ID, jaeger_url="http://jaeger.invalid:16686")


# --- the command ----------------------------------------------------------------------------------


def command(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    clean = {
        k: v for k, v in os.environ.items()
        if not k.startswith("OTEL") and k not in ("NO_COLOR", "COLUMNS")
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "otel_tracker", "trace", *map(str, arguments)],
        env={**clean, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_the_command(engines: Engines) -> None:
    """From Jaeger by its variable, from files, and as JSON, in real processes."""
    done = command(engines.failed, OTEL_TRACKER_JAEGER_URL=engines.jaeger.ui_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert_it_is_the_story(done.stdout, engines.failed)
    assert "\x1b" not in done.stdout  # no terminal
    path = engines.directory / "spans.json"
    done = command("--file", path, engines.failed[:8], "--json", "--file", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["transaction_id"] == engines.failed


def test_exit_statuses(tmp_path: Path) -> None:
    """1 and one sentence on stderr where there is nothing to show, 2 for wrong arguments."""
    done = command("nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("otel-tracker: 'nonsense' is no transaction id; give")
    done = command(TRACE_ID, "--file", tmp_path / "missing")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    done = command(TRACE_ID, "--jaeger", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert command().returncode == 2


def test_a_pipe_is_read_and_a_closed_one_is_survived(sample: Sample, tmp_path: Path) -> None:
    """`zstd -dc … | otel-tracker trace ID --file /dev/stdin | head` works, and ends quietly."""
    path = tmp_path / "spans"
    path.write_bytes(messages([sample.request]))
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-W", "error", "-m", "otel_tracker", "trace", sample.id]
    arguments += ["--file", "/dev/stdin"]
    for stdout, status in ((subprocess.PIPE, 0), (writer, 1)):
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            done = subprocess.run(
                arguments, stdin=cat.stdout, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT,
                timeout=60, check=False,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (status, b"")
    os.close(writer)


def on_a_terminal(arguments: list[str], **env: str) -> str:
    """What the command writes to a terminal."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "otel_tracker", "trace", *arguments],
        env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "PYTHONPATH": str(ROOT),
             "TERM": "xterm", "COLUMNS": "120", **env},
        stdout=its, stderr=its, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its)
    written = b""
    try:
        while True:
            try:
                piece = os.read(mine, 65536)
            except OSError:  # Linux says so when the last writer has gone
                break
            if not piece:
                break
            written += piece
        assert process.wait(60) == 0, written
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    return written.decode().replace("\r\n", "\n")


def test_colours_are_for_terminals(sample: Sample, tmp_path: Path) -> None:
    """And only where NO_COLOR is not set; what the network sent is spelled out there, too."""
    path = tmp_path / "spans"
    path.write_bytes(messages([sample.request]))
    arguments = [sample.id, "--file", str(path)]
    colored = on_a_terminal(arguments)
    assert "\x1b[31mFAILED\x1b[0m" in colored
    assert "\\x1b[31moverloaded" in colored
    assert "█" in colored
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = on_a_terminal(arguments, **env)
        assert "\x1b" not in plain
        assert plain.startswith("audio_pipeline  FAILED\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_without_unicode(sample: Sample, tmp_path: Path, encoding: str) -> None:
    """The lines of the tree are then drawn in ASCII."""
    path = tmp_path / "spans"
    path.write_bytes(messages([sample.request]))
    done = command(sample.id, "--file", path, PYTHONIOENCODING=encoding, COLUMNS="120")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "|- memory (attempt 1)" in done.stdout
    assert "... 41.0 s of silence" in done.stdout


def test_jaeger_is_not_needed_for_files_and_files_not_for_jaeger(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files are read instead of Jaeger, whatever its address is."""
    path = tmp_path / "spans"
    path.write_bytes(messages([sample.request]))
    assert cli.main(["trace", sample.id, "--file", str(path), "--jaeger", "nonsense"]) == 0
    assert_it_is_the_story(capsys.readouterr().out, sample.id)


def test_every_key_is_documented(sample: Sample) -> None:
    """docs/trace.md has each key of the JSON."""
    named = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/trace.md").read_text(encoding="utf-8")))
    plain = find(sample.id, files=[sample.dump]).as_json()
    keys = {*plain, *plain["spans"][0], *plain["events"][0], *plain["processes"][0]}
    assert keys <= named, keys - named
