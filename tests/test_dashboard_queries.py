"""What the dashboard service's views say: filters, pages, transactions, recordings, the night's."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tracker import semconv
from otel_tracker.dashboard import beats, queries
from otel_tracker.dashboard.queries import QueryError, UnknownError, filter_of
from otel_tracker.dashboard.service import BusyError, Service, settings_of
from otel_tracker.dashboard.trends import BUCKET_S
from otel_tracker.dashboard.view import View
from otel_tracker.ids import format_id, root_span_id
from otel_tracker.model import NS_PER_S
from otel_tracker.receiver import TooLargeError
from otel_tracker.settings import load
from otel_tracker.testing import START_NS, ManualClock

BASE: Final = 0x4567_8DEF_0000_0000_0000_0000
WORKER: Final = "host-1/11"
OTHER: Final = "host-2/22"


def trace(number: int) -> int:
    """Trace ids that differ in their first digits, as real ones do."""
    return BASE | number << 96 | number


def wall(at: float) -> int:
    return START_NS + round(at * NS_PER_S)


class Spans:
    """Makes spans as another process exports them: times in seconds since the clock's start."""

    def __init__(self, service: str = "notes", version: str = "1.0") -> None:
        self.message = ExportTraceServiceRequest()
        resource_spans = self.message.resource_spans.add()
        for key, value in (("service.name", service), ("service.version", version)):
            pair = resource_spans.resource.attributes.add(key=key)
            pair.value.string_value = value
        self._spans = resource_spans.scope_spans.add().spans
        self._next = 1

    def add(
        self,
        number: int,
        kind: str,
        start: float,
        end: float | None = None,
        *,
        span_id: int = 0,
        error: str = "",
        stack: str = "",
        **attributes: Any,
    ) -> int:
        """One span; keywords are attributes, with ``__`` for a dot."""
        root_id = root_span_id(trace(number))
        if kind == "transaction":
            span_id = root_id
        self._next += 1
        span_id = span_id or (number << 16 | self._next)
        span = self._spans.add(
            trace_id=trace(number).to_bytes(16, "big"),
            span_id=span_id.to_bytes(8, "big"),
            parent_span_id=b"" if span_id == root_id else root_id.to_bytes(8, "big"),
            name=kind,
            start_time_unix_nano=wall(start),
            end_time_unix_nano=0 if end is None else wall(end),
        )
        given = {semconv.KIND: kind, semconv.PIPELINE: "audio_pipeline"}
        given.update({key.replace("__", "."): value for key, value in attributes.items()})
        for key, value in given.items():
            self._set(span.attributes.add(key=key).value, value)
        if error:
            span.status.code = span.status.STATUS_CODE_ERROR
            span.status.message = error
        if stack:
            event = span.events.add(name=semconv.STACK_EVENT)
            event.attributes.add(key=semconv.STACK).value.string_value = stack
        return span_id

    @staticmethod
    def _set(place: Any, value: Any) -> None:
        kinds = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
        if isinstance(value, list):
            for one in value:
                Spans._set(place.array_value.values.add(), one)
        else:
            setattr(place, kinds[type(value)], value)

    def root(self, number: int, start: float, end: float | None = None, **more: Any) -> int:
        who = {"user__id": f"user-{number}", "otel_tracker__client__id": f"client-{number}"}
        return self.add(number, "transaction", start, end, **{**who, **more})

    def stage(
        self, number: int, stage: str, start: float, end: float | None = None, **more: Any
    ) -> int:
        return self.add(number, "stage", start, end, otel_tracker__stage=stage, **more)

    def done(self, number: int, at: float, **more: Any) -> None:
        """A transaction whose transcription and memory went well, a second each."""
        self.root(number, at, at + 3, **more)
        self.stage(number, "transcription", at, at + 1)
        self.stage(number, "memory", at + 1, at + 2)

    def failed(self, number: int, at: float, error: str = "no model", **more: Any) -> None:
        self.root(number, at, at + 3, **more)
        self.stage(number, "memory", at, at + 1, error=error, error__type="OSError")

    @property
    def body(self) -> bytes:
        return bytes(self.message.SerializeToString())


def beat(worker: str = WORKER, at: float = 0, **more: Any) -> dict[str, Any]:
    return {"worker": worker, "service": "notes", "version": "1.0", "at_ns": wall(at), **more}


def service(**more: Any) -> tuple[Service, ManualClock]:
    clock = ManualClock()
    options = {"recent_transactions": 1_000, "open_transactions": 20_000, **more}
    per_minute = options.pop("new_per_minute", 60_000)
    return Service(load(options, {}), clock=clock, new_per_minute=per_minute), clock


def feed(to: Service, spans: Spans) -> int:
    return to.take_spans(spans.body)


def page(of: Service, **parameters: str) -> dict[str, Any]:
    wanted = filter_of(parameters)
    return of.read(lambda view: queries.transactions(view, wanted))


def ids(answer: Mapping[str, Any]) -> list[int]:
    """The numbers of the rows' transactions."""
    return [int(row["id"].replace("-", ""), 16) & 0xFFFF for row in answer["transactions"]]


# --- settings -------------------------------------------------------------------------------------


def test_a_service_keeps_more_than_a_process_unless_it_is_told() -> None:
    """1,000 finished and 20,000 open ones; the environment's word counts."""
    assert settings_of({}).limits.finished == 1_000
    assert settings_of({}).limits.open == 20_000
    told = settings_of({"OTEL_TRACKER_RECENT_TRANSACTIONS": "7", "OTEL_TRACKER_SETTLE": "2"})
    assert (told.limits.finished, told.limits.open, told.settle) == (7, 20_000, 2.0)


# --- filters and pages ----------------------------------------------------------------------------


def four() -> Service:
    """A done one, a failed one, a stalled one and an open one, ten seconds apart."""
    made, clock = service()
    spans = Spans()
    spans.done(1, 0, otel_tracker__conversation__id="talk")
    spans.failed(2, 10, "no model Llama-3", otel_tracker__audio__uuid="talk")
    spans.root(3, 20)
    spans.stage(3, "memory", 20)
    clock.advance(100)
    feed(made, spans)
    late = Spans()
    late.root(4, 99)
    late.add(4, "queued", 99, otel_tracker__stage="memory")
    feed(made, late)
    return made


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [4, 3, 2, 1]),
        ({"status": "failed"}, [2]),
        ({"status": "completed, stalled"}, [3, 1]),
        ({"user": "user-3"}, [3]),
        ({"user": "user"}, []),
        ({"client": "client-2"}, [2]),
        ({"conversation": "talk"}, [2, 1]),
        ({"stage": "transcription"}, [1]),
        ({"stage": "memory"}, [4, 3, 2, 1]),
        ({"text": "LLAMA"}, [2]),
        ({"text": "stalled after memory"}, [3]),
        ({"since": "2026-01-01T00:00:10Z"}, [4, 3, 2]),
        ({"until": "2026-01-01T01:00:10+01:00"}, [1]),
        ({"until": "2026-01-01T01:00:10 01:00"}, [1]),
        ({"since": "2026-01-01T00:00:10", "until": "2026-01-01T00:00:21"}, [3, 2]),
        ({"since": "2026-01-02"}, []),
        ({"limit": "2"}, [4, 3]),
    ],
)
def test_filters(parameters: dict[str, str], expected: list[int]) -> None:
    """Each takes what it says, newest first."""
    answer = page(four(), **parameters)
    assert ids(answer) == expected
    if "limit" not in parameters:
        assert answer["matched"] == len(expected)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"limit": "0"}, "from 1 to 500"),
        ({"limit": "501"}, "from 1 to 500"),
        ({"limit": "٣"}, "from 1 to 500"),
        ({"limit": "-1"}, "from 1 to 500"),
        ({"status": "broken"}, "in_progress, completed, failed, stalled"),
        ({"since": "yesterday"}, "ISO 8601"),
        ({"until": "T"}, "ISO 8601"),
        ({"cursor": "7"}, 'the "next" of the page before'),
    ],
)
def test_values_that_are_none_are_refused_with_the_fix(
    parameters: dict[str, str], says: str
) -> None:
    """The message says what belongs there."""
    with pytest.raises(QueryError, match=says):
        filter_of(parameters)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["limit", "status", "since", "until", "cursor", "text"]),
        st.text(max_size=30)
        | st.datetimes().map(str)
        | st.from_regex(r"[0-9a-f]{1,17}-[0-9a-f]{32}", fullmatch=True),
    )
)
def test_any_value_of_a_parameter_is_taken_or_refused(parameters: dict[str, str]) -> None:
    """Nothing but a `QueryError` comes out, whatever the text is."""
    try:
        filter_of(parameters)
    except QueryError:
        return


def test_pages_while_rows_arrive() -> None:
    """No row comes twice or is left out: new ones come, roots arrive late and move their start."""
    made, clock = service()
    clock.advance(1_000)
    random_numbers = random.Random(7)
    for number in range(1, 41):
        spans = Spans()
        spans.stage(number, "memory", 100 + number, 101 + number)
        feed(made, spans)
    seen: list[int] = []
    cursor, new = "", 100
    while True:
        answer = page(made, limit="7", **({"cursor": cursor} if cursor else {}))
        seen += ids(answer)
        for _ in range(5):  # what began before its first span came: it moves back, even to the end
            late = Spans()
            late.root(random_numbers.randrange(1, 41), random_numbers.randrange(100), 900)
            new += 1
            late.done(new, 500 + new)
            feed(made, late)
        if answer["next"] is None:
            break
        cursor = answer["next"]
    assert seen == list(range(40, 0, -1))


def test_a_page_goes_on_after_its_last_row_was_let_go() -> None:
    """The cursor is a place, not a row."""
    made, clock = service(recent_transactions=4)
    clock.advance(1_000)
    for number in range(1, 5):
        spans = Spans()
        spans.done(number, 10 * number)
        feed(made, spans)
    first = page(made, limit="2")
    assert ids(first) == [4, 3]
    for number in (5, 6):  # lets go of 1 and 2
        spans = Spans()
        spans.done(number, 10 * number)
        feed(made, spans)
    assert ids(page(made, cursor=first["next"])) == []
    assert ids(page(made)) == [6, 5, 4, 3]


# --- one transaction ------------------------------------------------------------------------------


def one(of: Service, text: str) -> dict[str, Any]:
    return of.read(lambda view: queries.transaction(view, text))


def test_a_transaction_is_found_by_any_of_its_names() -> None:
    """Dashed, as Jaeger has it, in capitals, or by a prefix that only it has."""
    made = four()
    whole = format_id(trace(2))
    for name in (whole, whole.upper(), whole.replace("-", ""), whole[:8], whole[:13]):
        assert one(made, name)["id"] == whole


@pytest.mark.parametrize("name", ["", "0123456", "zzzzzzzz", "0" * 33, "<script>", "../../etc"])
def test_what_is_no_id_is_refused(name: str) -> None:
    """With the forms that an id has."""
    with pytest.raises(QueryError, match="is no transaction id; use a UUID"):
        one(four(), name)


def test_what_is_not_kept_says_why() -> None:
    """It never came, or was let go: where to look then."""
    with pytest.raises(UnknownError, match="look for it in Jaeger"):
        one(four(), format_id(trace(9)))


def test_a_prefix_of_several_names_them() -> None:
    """So that the next question can be more precise."""
    made, clock = service()
    clock.advance(10)
    spans = Spans()
    twin = trace(1) ^ 0xFF00
    spans.done(1, 0)
    feed(made, spans)
    body = spans.body.replace(trace(1).to_bytes(16, "big"), twin.to_bytes(16, "big"))
    made.take_spans(body)
    with pytest.raises(QueryError, match=f"stands for 2 transactions .*{format_id(twin)}"):
        one(made, format_id(trace(1))[:8])


def test_attempts_say_what_their_spans_brought() -> None:
    """Numbers, outcomes, errors, metadata, service and version; retries in order."""
    made, clock = service()
    clock.advance(100)
    spans = Spans("notes-memory", "2.1")
    spans.root(1, 0, language="de")
    spans.add(
        1, "audio", 0, 2, otel_tracker__stage="audio", otel_tracker__audio__chunks=3,
        otel_tracker__audio__bytes=300,
    )  # fmt: skip
    spans.stage(
        1, "memory", 3, 5, error="no model", error__type="OSError", model="llama3", temperature=0.5,
        otel_tracker__metadata__name="n", tags=["a", "b"],
        otel_tracker__where="host-1/11/MainThread",
    )  # fmt: skip
    spans.stage(1, "memory", 6, 8, otel_tracker__stage__key="")
    feed(made, spans)
    got = one(made, format_id(trace(1)))
    assert got["metadata"] == {"language": "de"}
    assert got["service"] == "notes-memory"
    audio, first, second = got["attempts"]
    assert (audio["audio_chunks"], audio["audio_bytes"]) == (3, 300)
    assert (first["attempt"], first["outcome"], first["error"]) == (1, "failure", "no model")
    assert (first["error_type"], first["version"]) == ("OSError", "2.1")
    assert first["metadata"] == {
        "model": "llama3", "temperature": 0.5, "name": "n", "tags": ["a", "b"],
    }  # fmt: skip
    assert (second["attempt"], second["outcome"], second["duration_seconds"]) == (2, "success", 2)
    assert [row["resolved"] for row in got["issues"]] == [True]
    assert [row["stage"] for row in got["events"]] == [
        "audio_received", "memory_started", "memory_completed", "memory_started",
        "memory_completed",
    ]  # fmt: skip


def test_an_open_copy_does_not_take_back_what_the_end_told() -> None:
    """The publisher's copy of an open span may overtake nothing."""
    made, clock = service()
    clock.advance(10)
    ended, opened = Spans(), Spans()
    ended.stage(1, "memory", 1, 2, span_id=5, model="llama3")
    opened.stage(1, "memory", 1, span_id=5)
    for spans in (ended, opened):
        feed(made, spans)
    assert one(made, format_id(trace(1)))["attempts"][0]["metadata"] == {"model": "llama3"}


def test_a_stall_shows_where_it_hangs() -> None:
    """The stack that its span brought stands at the stall, the open attempt and the dashboard."""
    made, clock = service()
    spans = Spans()
    spans.root(1, 0)
    spans.stage(1, "memory", 1)
    spans.add(
        1, "stalled", 1, 62, otel_tracker__stage="memory", error="no progress",
        stack="worker.py:6 in ask",
    )  # fmt: skip
    clock.advance(70)
    feed(made, spans)
    got = one(made, format_id(trace(1)))
    assert [row["stack"] for row in got["stalls"]] == ["worker.py:6 in ask"]
    assert [(row["state"], row["stack"]) for row in got["attempts"]] == [
        ("stalled", "worker.py:6 in ask")
    ]
    assert got["attempts"][0]["silent_seconds"] == 69
    assert got["attempts"][0]["limit_seconds"] == 60
    (row,) = made.read(queries.dashboard)["stalled"]
    assert row["stack"] == "worker.py:6 in ask"


def test_waits_are_told_with_their_length() -> None:
    """One that a worker took, and one that lasts."""
    made, clock = service()
    clock.advance(50)
    spans = Spans()
    spans.root(1, 0)
    spans.add(1, "queued", 0, 4, otel_tracker__stage="transcription")
    spans.stage(1, "transcription", 4, 6)
    spans.add(1, "queued", 10, otel_tracker__stage="memory")
    feed(made, spans)
    got = one(made, format_id(trace(1)))
    assert [(w["stage"], w["seconds"], w["waiting"]) for w in got["waits"]] == [
        ("transcription", 4, False), ("memory", 40, True),
    ]  # fmt: skip
    assert got["waiting"] == ["memory"]


def test_the_link_to_jaeger_or_why_there_is_none() -> None:
    """A deep link by the 32 digits; nothing but http and https becomes one."""
    assert queries.jaeger(trace(1), "http://localhost:16686/")["url"] == (
        f"http://localhost:16686/trace/{trace(1):032x}"
    )
    for url in ("", "javascript:alert(1)"):
        got = queries.jaeger(trace(1), url)
        assert got["url"] is None
        assert "OTEL_TRACKER_JAEGER_URL" in got["reason"]


def test_no_link_leads_to_jaeger_where_nothing_was_exported() -> None:
    """Its processes say so with their beats; one that exports, or says nothing, keeps the link."""
    of, _ = service()
    spans = Spans()
    spans.root(1, 0, otel_tracker__where=f"{WORKER}/main")
    spans.stage(1, "memory", 1, otel_tracker__where=f"{OTHER}/main")
    feed(of, spans)

    def link() -> Any:
        found = of.read(lambda view: queries.transaction(view, format_id(trace(1))))
        return found["jaeger"]

    assert link()["url"]
    nothing = {"export": {"provider": "own", "exporters": {}}}
    of.take_beat(beat(WORKER, health=nothing))
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in link()["reason"]
    of.take_beat(beat(OTHER, health={"export": {"provider": "application", "exporters": None}}))
    assert link()["url"]


# --- recordings -----------------------------------------------------------------------------------


def recordings(of: Service, **parameters: str) -> list[dict[str, Any]]:
    wanted = filter_of(parameters)
    rows: list[dict[str, Any]] = of.read(lambda view: queries.recordings(view, wanted))[
        "recordings"
    ]
    return rows


def test_transactions_that_share_an_id_are_one_recording() -> None:
    """By conversation, by audio, and by way of a third; those without ids are none."""
    made, clock = service()
    clock.advance(1_000)
    spans = Spans()
    spans.done(1, 0, otel_tracker__conversation__id="c1")
    spans.failed(2, 10, otel_tracker__audio__uuid="a1")
    spans.done(3, 20, otel_tracker__conversation__id="c1", otel_tracker__audio__uuid="a1")
    spans.done(4, 30, otel_tracker__conversation__id="c2")
    spans.done(5, 40)
    feed(made, spans)
    rows = recordings(made)
    assert [row["conversation_ids"] for row in rows] == [["c2"], ["c1"]]
    joined = rows[1]
    assert joined["audio_uuids"] == ["a1"]
    assert ids(joined) == [3, 2, 1]
    assert joined["status"] == "completed"
    assert joined["counts"] == {"in_progress": 0, "completed": 2, "failed": 1, "stalled": 0}
    assert joined["issues"] == ["Failed at memory_completed: no model"]
    assert [len(recordings(made, status=s)) for s in ("failed", "completed")] == [1, 2]
    assert [i[-4:] for i in one(made, format_id(trace(3)))["recording"]] == ["0002", "0001"]


# --- many processes -------------------------------------------------------------------------------


def workers(of: Service) -> dict[str, dict[str, Any]]:
    rows = of.read(queries.workers)["workers"]
    return {row["worker"]: row for row in rows}


def test_two_workers_give_the_sum() -> None:
    """Their spans, sockets and open work add up; what both tell of one span counts once."""
    made, clock = service()
    clock.advance(60)
    for first in (1, 11):
        spans = Spans()
        for number in range(first, first + 5):
            spans.done(number, number)
        feed(made, spans)
        feed(made, spans)
    made.take_beat(beat(WORKER, 60, websockets={"a": 2, "b": 1}))
    made.take_beat(beat(OTHER, 60, websockets={"b": 4}))
    made.take_beat(beat(OTHER, 61, websockets={"b": 3}))
    metrics = made.read(queries.dashboard)["system_metrics"]
    assert metrics["total_transactions"] == metrics["completed_transactions"] == 10
    assert metrics["total_memories"] == metrics["total_transcriptions"] == 10
    assert metrics["active_websockets"] == 6
    assert {w: row["websockets"] for w, row in workers(made).items()} == {WORKER: 3, OTHER: 3}


def test_a_lost_worker_is_named_with_its_work() -> None:
    """In the workers' list, first, and in the dashboard; its transaction says so."""
    made, clock = service()
    spans = Spans()
    spans.root(1, 0)
    spans.stage(1, "memory", 0, span_id=5, otel_tracker__where=f"{OTHER}/MainThread")
    feed(made, spans)
    made.take_beat(beat(WORKER, 0))
    made.take_beat(beat(OTHER, 0, open=[[f"{trace(1):032x}", f"{5:016x}", wall(0)]]))
    clock.advance(15)
    made.take_beat(beat(WORKER, 15))
    data = made.read(queries.dashboard)
    assert [(w["worker"], w["state"]) for w in data["workers"]] == [
        (OTHER, "lost"), (WORKER, "alive"),
    ]  # fmt: skip
    assert workers(made)[OTHER]["lost_work"] == [
        {"transaction_id": format_id(trace(1)), "stage": "memory",
         "since": "2026-01-01T00:00:00+00:00"}
    ]  # fmt: skip
    issue = "Worker lost in memory: notes (process 22 on host-2) went silent"
    assert data["stalled"][0]["issue"] == issue
    got = one(made, format_id(trace(1)))
    assert (got["status"], got["lost"], got["attempts"][0]["state"]) == ("stalled", True, "lost")


def test_what_is_unknown_is_asked_for() -> None:
    """A service that began anew hears of open work by a beat, and wants its spans."""
    made, _ = service()
    row = [f"{trace(1):032x}", f"{5:016x}", wall(0)]
    assert made.take_beat(beat(open=[row])) == {"unknown": [row[:2]]}
    spans = Spans()
    spans.stage(1, "memory", 0, span_id=5)
    feed(made, spans)
    assert made.take_beat(beat(at=1, open=[row])) == {"unknown": []}


def test_the_longest_limit_of_any_living_worker_counts() -> None:
    """Of its settings and of its pipelines; one that is lost or leaves has no say any more."""
    made, clock = service()

    def limits() -> tuple[float, float]:
        def look(view: View) -> tuple[float, float]:
            pipelines, patience = view.state.pipelines, view.state.patience
            return (
                pipelines["reports"].stall_after["fetch"],
                patience.by_stage_ns.get("memory", 0) / NS_PER_S,
            )

        return made.read(look)

    def tell(worker: str, at: float, fetch: float, memory: float, **more: Any) -> None:
        reports = {"name": "reports", "stages": ["fetch"], "stall_after": {"fetch": fetch}}
        made.take_beat(
            beat(worker, at, pipelines=[reports], stall_after={"memory": memory}, **more)
        )

    tell(WORKER, 0, 100, 20)
    tell(OTHER, 0, 30, 900)
    assert limits() == (100, 900)
    tell(OTHER, 1, 30, 900, is_last=True)
    assert limits() == (100, 20)
    tell(OTHER, 2, 500, 7)
    clock.advance(10)
    tell(WORKER, 10, 100, 20)
    clock.advance(7)  # the other one is lost
    assert limits() == (100, 20)
    tell(OTHER, 17, 500, 7)
    assert limits() == (500, 20)
    tell(OTHER, 18, 500, 7, is_last=True)
    tell(WORKER, 18, 100, 20, is_last=True)
    assert limits() == (100, 20), "an orderly restart of all changes no verdict"


def test_a_beat_that_was_overtaken_changes_nothing() -> None:
    """Neither limits nor health of a newer one are taken back."""
    made, _ = service()
    made.take_beat(beat(at=5, health={"new": True}))
    made.take_beat(beat(at=4, health={"new": False}, stall_after={"memory": 1}))
    assert workers(made)[WORKER]["health"] == {"new": True}
    assert made.read(lambda view: dict(view.state.patience.by_stage_ns)) == {}


# --- the night ------------------------------------------------------------------------------------


def test_outcomes_stand_in_bars_of_five_minutes() -> None:
    """Each transaction once, in the bar of its newest outcome, whenever anybody looks."""
    made, clock = service()
    clock.advance(4 * BUCKET_S)
    spans = Spans()
    spans.done(1, 10)
    spans.failed(2, BUCKET_S + 10)
    spans.root(3, 2 * BUCKET_S)
    spans.stage(3, "memory", 2 * BUCKET_S, span_id=5)  # stalls a minute later
    spans.done(4, -7 * 3600)
    feed(made, spans)

    def bars() -> list[tuple[int, int, int]]:
        rows = made.read(queries.dashboard)["trends"]["outcomes"]
        assert len(rows) == 72
        return [(row["completed"], row["failed"], row["stalled"]) for row in rows[-5:]]

    assert bars() == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]
    late = Spans()
    late.stage(3, "memory", 2 * BUCKET_S, 3 * BUCKET_S + 1, span_id=5)
    late.stage(2, "memory", 3 * BUCKET_S, 3 * BUCKET_S + 2)
    feed(made, late)
    clock.advance(10)
    assert bars() == [(1, 0, 0), (0, 0, 0), (0, 0, 0), (2, 0, 0), (0, 0, 0)]
    clock.advance(6 * 3600)
    assert sum(sum(bar) for bar in bars()) == 0


def test_what_is_usual_in_a_stage() -> None:
    """Interval, wait and length of the last ones; empty, skipped and failed ones are counted."""
    made, clock = service()
    clock.advance(1_000)
    spans = Spans()
    for number in range(1, 6):
        at = 100 * number
        spans.root(number, at, at + 90)
        spans.add(number, "queued", at, at + number, otel_tracker__stage="memory")
        spans.stage(number, "memory", at + 10, at + 20, memory_count=number % 2)
    spans.failed(6, 900)
    spans.stage(7, "memory", 950, 951, otel_tracker__stage__outcome="skipped")
    spans.root(8, 990)
    spans.stage(8, "memory", 990)
    spans.root(9, 980)
    spans.add(9, "queued", 980, otel_tracker__stage="memory")
    feed(made, spans)
    row = made.read(queries.stages)["stages"]["memory"]
    assert (row["done"], row["failed"], row["skipped"], row["empty"]) == (5, 1, 1, 2)
    assert row["usual_interval_seconds"] == 100
    assert (row["usual_waiting_p50"], row["usual_waiting_p95"]) == (3, 5)
    assert (row["usual_running_p50"], row["oldest_running_seconds"]) == (10, 10)
    assert (row["waiting"], row["oldest_waiting_seconds"]) == (1, 20)
    assert row["seconds_since_success"] == 480
    durations = made.read(queries.stages)["trends"]["durations"]["memory"]
    assert [(d["count"], d["p50"]) for d in durations] == [(2, 10), (3, 10)]


def test_versions_are_told_when_they_first_came() -> None:
    """By spans and by beats, newest first."""
    made, clock = service()
    for at, version in ((0, "1.0"), (60, "1.1"), (120, "1.0")):
        spans = Spans("notes", version)
        spans.done(at + 1, at)
        feed(made, spans)
        clock.advance(60)
    made.take_beat(beat(at=180, version="1.2"))
    versions = made.read(queries.dashboard)["trends"]["versions"]
    assert [(v["version"], v["first_seen"][11:19]) for v in versions] == [
        ("1.2", "00:03:00"), ("1.1", "00:01:00"), ("1.0", "00:00:00"),
    ]  # fmt: skip


def test_trends_outlive_a_restart() -> None:
    """What `keep` gives, through JSON, is what another service takes back; garbage it leaves."""
    made, clock = service()
    clock.advance(500)
    spans = Spans()
    spans.done(1, 10)
    spans.failed(2, 400)
    feed(made, spans)
    made.take_beat(beat(at=500))
    kept = json.loads(json.dumps(made.keep(), allow_nan=False))
    other, other_clock = service()
    other_clock.advance(500)
    other.take_back(kept)
    assert other.read(queries.dashboard)["trends"] == made.read(queries.dashboard)["trends"]
    for garbage in ({}, {"trends": 7}, {"trends": {"buckets": 7}}):
        other.take_back(garbage)
    assert other.read(queries.dashboard)["trends"] == made.read(queries.dashboard)["trends"]


def test_new_issues_come_first() -> None:
    """A pattern first seen within the hour is marked and stands before those that are known."""
    made, clock = service()
    clock.advance(100)
    spans = Spans()
    spans.failed(1, 0, "old trouble")
    feed(made, spans)
    clock.advance(7_200)
    spans = Spans()
    spans.failed(2, 7_200, "new trouble")
    spans.failed(3, 7_201, "old trouble")
    feed(made, spans)
    got = made.read(lambda view: queries.issues(view, 100))
    assert [(p["pattern"][-11:], p["new"], p["count"]) for p in got["patterns"]] == [
        ("new trouble", True, 1), ("old trouble", False, 2),
    ]  # fmt: skip
    assert [row["pattern"][-11:] for row in got["recent"]] == [
        "old trouble", "new trouble", "old trouble",
    ]  # fmt: skip


# --- bounds ---------------------------------------------------------------------------------------


def test_new_transactions_are_bounded_a_minute() -> None:
    """Beyond it a request is sent back whole and counted; known ones go on, and so does time."""
    made, clock = service(new_per_minute=10)
    clock.advance(100)
    spans = Spans()
    for number in range(1, 9):
        spans.done(number, number)
    feed(made, spans)
    more, known = Spans(), Spans()
    for number in range(11, 15):
        more.done(number, number)
    known.stage(1, "memory", 50, 51)
    clock.advance(20)
    with pytest.raises(BusyError, match="more than 10 transactions") as refused:
        feed(made, more)
    assert refused.value.retry_s == 41
    assert feed(made, known) == 1
    intake = made.read(queries.health)["intake"]
    assert (intake["refused_new_transactions"], intake["new_transactions_this_minute"]) == (4, 8)
    clock.advance(41)
    assert feed(made, more) == 12
    flood = Spans()
    for number in range(101, 112):
        flood.done(number, number)
    with pytest.raises(TooLargeError, match="send smaller batches"):
        feed(made, flood)


def test_foreign_spans_begin_nothing() -> None:
    """A Collector may send everything that it has: only spans with our attributes count."""
    made, _ = service(new_per_minute=1)
    spans = Spans()
    for number in range(50):
        spans.done(number + 1, number)
    for span in spans.message.resource_spans[0].scope_spans[0].spans:
        del span.attributes[:]
    assert feed(made, spans) == 0
    assert made.read(queries.health)["kept"]["transactions"] == 0


def test_memory_is_bounded_over_many_transactions() -> None:
    """Ten times more than are kept: transactions, details and orders stay within their bounds."""
    made, clock = service(recent_transactions=50, open_transactions=50)
    clock.advance(10_000)
    for first in range(0, 2_000, 250):
        spans = Spans()
        for number in range(first, first + 250):
            spans.done(number + 1, number, blob="x" * 500)
            spans.root(number + 10_001, number)
        feed(made, spans)
    health = made.read(queries.health)
    assert health["kept"]["transactions"] == 100
    assert health["kept"]["spans_with_details"] < 2_500
    assert health["dropped"]["finished_transactions"] == 1_950
    assert len(made._order.places) <= 1_200
    metrics = made.read(queries.dashboard)["system_metrics"]
    assert metrics["total_transactions"] == 4_000


def test_details_are_bounded_in_bytes() -> None:
    """The longest known transaction's go first, counted; the newest keep theirs."""
    made, clock = service()
    made._details._most = 100_000
    clock.advance(1_000)
    for number in range(1, 201):
        spans = Spans()
        spans.stage(number, "memory", number, number + 1, blob="x" * 1_000)
        feed(made, spans)
    assert made._details._size <= 100_000
    assert made.read(queries.health)["intake"]["details_dropped"] > 100
    assert one(made, format_id(trace(1)))["attempts"][0]["metadata"] == {}
    assert one(made, format_id(trace(200)))["attempts"][0]["metadata"] == {"blob": "x" * 1_000}


def test_stage_names_without_end_do_not_fill_the_trends() -> None:
    """Only so many stages have trends; the API still answers within bounds."""
    made, clock = service()
    clock.advance(1_000)
    spans = Spans()
    for number in range(1, 301):
        spans.root(number, 0, 3, otel_tracker__outcome="success")
        spans.stage(number, f"stage-{number}", 1, 2)
    feed(made, spans)
    assert len(made.read(queries.stages)["trends"]["durations"]) == 50


ODD: Final = ["\ud800", "<script>alert(1)</script>", "\u2028", "\x00", "a" * 9_000, "नमस्ते"]


def test_what_spans_say_is_json_whatever_it_is() -> None:
    """NaN, infinities, markup, control characters: every answer is strict JSON and in UTF-8."""
    made, clock = service()
    clock.advance(1_000)
    spans = Spans("<b>notes</b>", "\x1b[31m")
    for number, text in enumerate(ODD[1:], 1):
        spans.root(number, 0, user__id=text, otel_tracker__conversation__id=text)
        spans.stage(
            number, text, 1, 2, error=text, error__type=text, otel_tracker__where=text, note=text,
            numbers=[float("nan"), float("inf")], ratio=float("-inf"),
        )  # fmt: skip
    feed(made, spans)
    made.take_beat({**beat(), "service": ODD[0], "health": {ODD[0]: float("inf")}})
    answers: Iterable[Any] = [
        made.read(queries.dashboard), made.read(queries.stages), made.read(queries.health),
        page(made), recordings(made), workers(made), made.read(lambda v: queries.issues(v, 100)),
        *(one(made, format_id(trace(n))) for n in range(1, len(ODD))),
    ]  # fmt: skip
    for answer in answers:
        text = json.dumps(answer, allow_nan=False, ensure_ascii=False)
        assert json.loads(text.encode("utf-8")) == answer


# --- beats ----------------------------------------------------------------------------------------


def test_a_beat_comes_back_as_it_was() -> None:
    """Out as JSON, in again."""
    document = beat(
        at=3, interval_s=2.5, started_ns=wall(1), is_last=False, websockets={"a": 2},
        open=[[f"{trace(1):032x}", f"{5:016x}", wall(2)]],
        pipelines=[{"name": "reports", "stages": ["fetch"], "stall_after": {"fetch": 9.0}}],
        stall_after={"memory": 900.0}, health={"dropped": {}},
    )  # fmt: skip
    told = beats.read(json.loads(json.dumps(document)), 77)
    assert told.beat.seen_ns == 77
    assert beats.document_of(told) == document


def test_what_beats_leave_behind_is_bounded() -> None:
    """Of a thousand workers at most, without what is open in them, and little of their health."""
    made, _ = service()
    row = [[f"{trace(1):032x}", f"{span:016x}", wall(0)] for span in range(1, 51)]
    for number in range(1_010):
        made.take_beat(beat(f"host/{number}", open=row, health={"notes": ["x" * 9_000] * 3}))
    assert len(made._told) <= 1_000
    rows = workers(made)
    assert len(rows) == 1_000
    one_of_them = rows["host/1009"]
    assert one_of_them["open"] == 50
    assert len(json.dumps(one_of_them)) < 1_000
    assert sum(len(w.beat.progress) for w in made.read(lambda v: list(v.state.workers))) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"worker": "host"}, '"worker": use "host/process"'),
        ({"worker": "a/b/c"}, '"worker": use "host/process"'),
        ({"worker": "a/" + "b" * 256}, '"worker": use "host/process"'),
        ({"worker": 7}, '"worker": use text'),
        ({"service": None}, '"service": use text'),
        ({"at_ns": None}, '"at_ns": use whole nanoseconds'),
        ({"at_ns": True}, '"at_ns": use whole nanoseconds'),
        ({"at_ns": 1 << 80}, '"at_ns": use whole nanoseconds'),
        ({"interval_s": 0}, '"interval_s": use a number of seconds'),
        ({"interval_s": 1e300}, '"interval_s": use a number of seconds'),
        ({"interval_s": float("nan")}, '"interval_s": use a number of seconds'),
        ({"is_last": 1}, '"is_last": use true or false'),
        ({"open": {}}, '"open": use a list of at most 10000'),
        ({"open": [[]] * 10_001}, '"open": use a list of at most 10000'),
        ({"open": [["1" * 32, "1" * 16]]}, '"open": each row is'),
        ({"open": [["+" + "1" * 31, "1" * 16, 1]]}, "a trace id has 32 hex digits"),
        ({"open": [["1" * 32, "0" * 16, 1]]}, "a span id is not zero"),
        ({"open": [["1" * 32, "1" * 16, "1"]]}, 'the time in "open"'),
        ({"websockets": {"a": 10**9}}, '"websockets": use a count from 0 to 10000'),
        ({"websockets": {"a": 9_000, "b": 9_000}}, '"websockets": at most 10000 in all'),
        ({"pipelines": [7]}, '"pipelines": each is'),
        ({"pipelines": [{"name": ""}]}, '"pipelines": Pipeline:'),
        ({"pipelines": [{"name": "a", "stages": [1]}]}, "are names"),
        ({"stall_after": {"memory": -1}}, 'a limit in "stall_after"'),
        ({"health": []}, '"health": use a JSON object'),
    ],
)
def test_a_beat_that_is_wrong_names_its_key(change: dict[str, Any], says: str) -> None:
    """And says what belongs there."""
    with pytest.raises(beats.BeatError) as refused:
        beats.read({**beat(), **change}, 0)
    assert says in str(refused.value)
