"""The API of stages and transactions: what is told in code, and what spans and dashboard say."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import hypothesis
import pytest
from hypothesis import strategies as st
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased

from otel_tracker import (
    ActiveStage,
    DebugSystemTracker,
    Pipeline,
    PipelineStage,
    StageEvent,
    TransactionStatus,
    api,
    current_stage,
    current_transaction,
    init_debug_tracker,
    pipeline,
    semconv,
    stage,
    transaction,
    views,
)
from otel_tracker.decorators import Stage, TransactionOf
from otel_tracker.ids import is_ours, parse_id, root_span_id
from otel_tracker.model import AnyEvent
from otel_tracker.testing import START_NS, Harness, ManualClock, fresh_tracker
from tests import test_round_trip as round_trip
from tests.facts import MONOTONIC_NS

COMPLETED: Final = TransactionStatus.COMPLETED
FAILED: Final = TransactionStatus.FAILED
IN_PROGRESS: Final = TransactionStatus.IN_PROGRESS
STALLED: Final = TransactionStatus.STALLED

OUTCOME: Final = "otel_tracker.outcome"
STAGE_OUTCOME: Final = "otel_tracker.stage.outcome"
ATTEMPT: Final = "otel_tracker.stage.attempt"

CANARY: Final = "the patient is Jane"
"""Free text that must not leave."""


@pytest.fixture(autouse=True)
def no_declared_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test declares is gone after it."""
    monkeypatch.setattr(api, "_declared", {})


@pytest.fixture
def t() -> Iterator[Harness]:
    with fresh_tracker(use_as_shared=True) as harness:
        yield harness


def names(t: Harness) -> list[tuple[str, str | None]]:
    """The exported spans in the order of their start: name, and name of the parent."""
    return [(s["name"], s["parent"]) for s in t.spans()]


def one(t: Harness, name: str) -> dict[str, Any]:
    """The one exported span of that name."""
    (span,) = [s for s in t.spans() if s["name"] == name]
    return span


def outcomes(t: Harness) -> list[tuple[str, str | None, str]]:
    """Of every exported span: name, outcome and status."""
    return [
        (s["name"], s["attributes"].get(STAGE_OUTCOME, s["attributes"].get(OUTCOME)), s["status"])
        for s in t.spans()
    ]


def metadata(t: Harness, tid: str) -> list[tuple[str, dict[str, Any]]]:
    """What is kept in the process: each event of a transaction with its metadata."""
    found = t.tracker.get_transaction(tid)
    assert found is not None
    return [(event.stage.value, event.metadata) for event in found.events]


def problems(t: Harness) -> dict[str, int]:
    counted: dict[str, int] = t.tracker.get_dashboard_data()["health"]["problems"]
    return counted


def tally(t: Harness, name: str) -> tuple[int, int, int, int]:
    """Of a stage: running, done, failed, skipped."""
    row = t.tracker.get_dashboard_data()["stages"].get(name, {})
    return row.get("running", 0), row.get("done", 0), row.get("failed", 0), row.get("skipped", 0)


def leave(block: Stage | TransactionOf, error: BaseException | None = None) -> None:
    """Leaves a block as Python does where this comes out of it."""
    block.__exit__(type(error) if error is not None else None, error, None)


def everything_that_left(t: Harness) -> str:
    return "".join(span.to_json() for span in t.finished_spans())


# --- what a stage can be told ---------------------------------------------------------------------


def test_a_good_run_whole(t: Harness) -> None:
    """Every span with every attribute: the root, and a stage with what was set on it."""
    with transaction(
        "voice", user_id="u-1", client_id="c-1", conversation_id=7, source="app"
    ) as tx:
        t.clock.advance(1)
        with stage("memory", key="a", model="llama3") as s:
            t.clock.advance(2)
            s.set(memory_count=4)
        tx.set(rows=2)
    ids = {
        "otel_tracker.transaction.id": tx.id,
        "user.id": "u-1",
        "otel_tracker.client.id": "c-1",
        "otel_tracker.conversation.id": "7",
        "otel_tracker.pipeline": "voice",
    }
    root, memory = t.spans()
    where = root["attributes"].pop("otel_tracker.where")
    assert where == memory["attributes"].pop("otel_tracker.where")
    assert root == {
        "name": "voice", "parent": None, "kind": "SERVER", "start": 0, "end": 3,
        "status": "UNSET", "description": None, "events": [], "links": [],
        "attributes": {
            **ids, "otel_tracker.kind": "transaction", "source": "app", "rows": 2,
            OUTCOME: "success", "otel_tracker.end.success": True,
        },
    }  # fmt: skip
    assert memory == {
        "name": "memory", "parent": "voice", "kind": "INTERNAL", "start": 1, "end": 3,
        "status": "UNSET", "description": None, "events": [], "links": [],
        "attributes": {
            **ids, "otel_tracker.kind": "stage", "otel_tracker.stage": "memory",
            "otel_tracker.stage.key": "a", ATTEMPT: 1, STAGE_OUTCOME: "success",
            "model": "llama3", "memory_count": 4,
        },
    }  # fmt: skip
    assert t.status(tx.id) is COMPLETED
    assert problems(t) == {}


def test_set_adds_attributes_and_the_newest_wins(t: Harness) -> None:
    with transaction() as tx, stage("memory", rows=1, model="a") as s:
        s.set(rows=2, words=3)
        s.set(words=4)
    assert {k: one(t, "memory")["attributes"][k] for k in ("rows", "model", "words")} == {
        "rows": 2, "model": "a", "words": 4,
    }  # fmt: skip
    assert metadata(t, tx.id) == [
        ("memory_started", {"rows": 1, "model": "a"}),
        ("memory_completed", {"rows": 2, "words": 4}),
        ("conversation_ended", {}),
    ]


def test_progress_is_seen_before_the_stage_ends(t: Harness) -> None:
    """What it tells is on the open attempt at once, and on the span when that ends."""
    with transaction() as tx:
        with stage("memory", total=10) as s:
            t.clock.advance(1)
            s.progress(done=3)
            s.progress(done=4)
            assert metadata(t, tx.id) == [("memory_started", {"total": 10, "done": 4})]
        attributes = one(t, "memory")["attributes"]
        assert (attributes["total"], attributes["done"]) == (10, 4)


def test_a_skip_is_no_failure(t: Harness) -> None:
    """The span's name and outcome say so, its reason is there, and the transaction is done."""
    with transaction() as tx, stage("transcription") as s:
        s.skip("nobody spoke")
    span = one(t, "transcription skipped")
    assert span["status"] == "UNSET"
    assert span["attributes"][STAGE_OUTCOME] == "skipped"
    assert span["attributes"]["otel_tracker.stage.skip_reason"] == "nobody spoke"
    assert tally(t, "transcription") == (0, 0, 0, 1)
    assert t.status(tx.id) is COMPLETED


def test_a_failure_without_an_exception(t: Harness) -> None:
    """The message is the span's description and the issue; the block itself went on."""
    with transaction() as tx:
        with stage("memory") as s:
            s.fail("empty answer")
            went_on = True
        assert went_on
        assert t.status(tx.id) is FAILED
    span = one(t, "memory")
    assert (span["status"], span["description"]) == ("ERROR", "empty answer")
    assert span["attributes"]["error.type"] == "_OTHER"
    assert t.issue(tx.id) == "Failed at memory_completed: empty answer"
    assert one(t, "transaction")["description"] == "empty answer"


@pytest.mark.parametrize(
    ("message", "error_type", "description", "told_type"),
    [
        ("no model", "no_model", "no model", "no_model"),
        (ValueError("bad shape"), "", "bad shape", "ValueError"),
        (ValueError("bad shape"), "shape", "bad shape", "shape"),
        (TimeoutError(), "", "TimeoutError", "TimeoutError"),
        ("", "", "Unknown error", "_OTHER"),
        (None, "", "Unknown error", "_OTHER"),
        (404, "", "404", "_OTHER"),
    ],
)
def test_what_fail_takes(
    t: Harness, message: object, error_type: str, description: str, told_type: str
) -> None:
    """A text, an exception or anything else, with a class of errors where the caller has one."""
    with stage("memory") as s:
        s.fail(message, error_type)
    span = one(t, "memory")
    assert (span["description"], span["attributes"]["error.type"]) == (description, told_type)


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        (("skip", "fail"), "failure"),
        (("fail", "skip"), "skipped"),
        (("skip", "raise"), "failure"),
        (("fail", "raise"), "failure"),
        (("fail", "close"), "failure"),
        (("skip", "close"), "skipped"),
        (("skip", "cancel"), "cancelled"),
    ],
)
def test_the_last_word_counts(t: Harness, told: tuple[str, ...], outcome: str) -> None:
    """Of skip() and fail() the later one, and an exception more than either; closing says less."""
    errors = {
        "raise": ValueError("x"),
        "close": GeneratorExit(),
        "cancel": asyncio.CancelledError(),
    }
    block = stage("memory")
    s = block.__enter__()
    error = errors.get(told[-1])
    for word in told:
        if word not in errors:
            getattr(s, word)("because")
    leave(block, error)
    (span,) = [s for s in t.spans() if s["parent"]]
    assert span["attributes"][STAGE_OUTCOME] == outcome


def test_keys_name_branches_with_attempts_of_their_own(t: Harness) -> None:
    """Any value is a key; each counts its own attempts, and only those make up for each other."""
    uid = UUID(int=7)
    with transaction() as tx:
        for key in (1, uid, "a", None, 1):
            with stage("chunk", key=key) as s:
                if s and key == "a":
                    s.fail("broken")
        assert t.status(tx.id) is FAILED
        with stage("chunk", key="a"):
            pass
    told = [
        (s["attributes"].get("otel_tracker.stage.key"), s["attributes"][ATTEMPT])
        for s in t.spans()[1:]
    ]
    assert told == [("1", 1), (str(uid), 1), ("a", 1), (None, 1), ("1", 2), ("a", 2)]
    assert t.status(tx.id) is COMPLETED


@pytest.mark.parametrize(
    "name",
    [
        "memory", " Memory ", "memory_started", "memory_completed",
        PipelineStage.MEMORY_STARTED, PipelineStage.MEMORY_COMPLETED, StageEvent("memory_started"),
    ],
)  # fmt: skip
def test_a_stage_is_named_by_its_name_or_by_an_event(t: Harness, name: AnyEvent | str) -> None:
    """So code that has the old enum at hand can use it."""
    with stage(name):
        pass

    @stage(name)
    def work() -> None:
        return None

    work()
    assert tally(t, "memory") == (0, 2, 0, 0)
    assert problems(t) == {}


def test_a_stage_says_what_it_is(t: Harness) -> None:
    """It is true, names itself, and leads to its transaction, which leads to the same trace."""
    with transaction() as tx, stage("memory") as s:
        assert s
        assert repr(s) == "<stage memory>"
        assert s.transaction.id == tx.id
        assert current_stage() is s
        assert repr(tx) == f"<transaction {tx.id}>"


def test_async_with(t: Harness) -> None:
    """`async with` is the same as `with`, for both."""

    async def main() -> str:
        async with transaction("voice") as tx, stage("memory") as s:
            assert current_stage() is s
            assert current_transaction().id == tx.id
            await asyncio.sleep(0)
        assert not current_transaction()
        return tx.id

    tid = asyncio.run(main())
    assert names(t) == [("voice", None), ("memory", "voice")]
    assert t.status(tid) is COMPLETED


def test_one_object_may_be_entered_again_and_within_itself(t: Harness) -> None:
    """`work = stage("memory")` is a declaration: each `with` of it is another attempt."""
    work = stage("memory", rows=1)
    with transaction():
        with work as outer, work as inner:
            assert outer is not inner
            inner.set(words=2)
        with work:
            pass
    assert names(t)[1:] == [
        ("memory", "transaction"), ("memory", "memory"), ("memory", "transaction"),
    ]  # fmt: skip
    assert [s["attributes"].get("words") for s in t.spans()] == [None, None, 2, None]


def test_what_is_told_after_the_end_changes_nothing(
    t: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """A stage and a transaction that were kept answer for ever, and nobody is warned."""
    with transaction() as tx, stage("memory") as s:
        pass
    spans, shown = t.spans(), t.tracker.get_transaction(tx.id)
    t.clock.advance(1)
    s.set(late=1)
    s.progress(late=1)
    s.skip("late")
    s.fail("late")
    assert t.spans() == spans
    assert t.tracker.get_transaction(tx.id) == shown
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert s.transaction.id == tx.id


# --- what leaves the process ----------------------------------------------------------------------


def test_arguments_and_return_values_are_not_looked_at(
    t: Harness, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Nothing of a call is in a span, in a log line or in the process's own memory."""
    caplog.set_level(logging.DEBUG)

    @transaction("voice")
    def entry(audio: str, *rest: str, user_id: str, **more: str) -> str:
        return remember(audio, text=rest[0])

    @stage("memory")
    def remember(audio: str, *, text: str) -> str:
        return f"{audio}{text}"

    class Unlooked:
        """Whatever is asked of it is an error."""

        def __getattribute__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    @stage("store")
    def store(thing: object) -> object:
        return thing

    assert entry(CANARY, CANARY, user_id="u-1", note=CANARY) == CANARY * 2
    store(Unlooked())
    t.advance(61)
    assert CANARY not in everything_that_left(t)
    assert CANARY not in caplog.text
    t.tracker.configure(debug_dump_dir=tmp_path)
    assert CANARY not in t.tracker.export_debug_dump().read_text()
    assert problems(t) == {}


def test_capture_names_what_may_be_looked_at(t: Harness) -> None:
    """By position, by keyword, by default, in `**kwargs`; nothing that is not named."""

    @stage("memory", capture=("model", "words", "lang", "extra", "kept"), rows=1)
    def remember(
        text: str, words: int, model: str = "llama3", *, lang: str = "en", **more: Any
    ) -> None:
        return None

    @transaction("voice", capture="source")
    def entry(source: str, text: str) -> None:
        remember(text, 3, lang="de", extra=1.5)

    entry("upload", CANARY)
    attributes = one(t, "memory")["attributes"]
    assert {k: v for k, v in attributes.items() if "." not in k} == {
        "rows": 1, "words": 3, "model": "llama3", "lang": "de", "extra": 1.5,
    }  # fmt: skip
    assert one(t, "voice")["attributes"]["source"] == "upload"
    assert CANARY not in everything_that_left(t)


def test_capture_on_methods_and_coroutines(t: Harness) -> None:
    """`self` and `cls` are counted as the call has them."""

    class Worker:
        @stage("one", capture="model")
        def method(self, text: str, model: str) -> None:
            return None

        @stage("two", capture="model")
        @classmethod
        def of_class(cls, text: str, model: str) -> None:
            return None

        @stage("three", capture="model")
        @staticmethod
        def of_none(text: str, model: str) -> None:
            return None

        @stage("four", capture="model")
        async def coroutine(self, text: str, *, model: str) -> None:
            return None

    worker = Worker()
    worker.method(CANARY, "a")
    Worker.of_class(CANARY, "b")
    worker.of_none(CANARY, model="c")
    asyncio.run(worker.coroutine(CANARY, model="d"))
    found = [one(t, name)["attributes"]["model"] for name in ("one", "two", "three", "four")]
    assert found == ["a", "b", "c", "d"]
    assert CANARY not in everything_that_left(t)


def test_sensitive_names_stay_in_the_process(t: Harness) -> None:
    """Whichever way they were given; in the process they are there for whoever debugs it."""

    @stage("memory", capture=("prompt", "api_key"))
    def remember(prompt: str, api_key: str) -> None:
        current_stage().set(transcript=CANARY)
        current_stage().progress(messages=[CANARY])

    with transaction("voice", text=CANARY) as tx:
        tx.set(summary=CANARY)
        remember(CANARY, CANARY)
        with stage("index", content={"any": CANARY}):
            pass
        tx.end(response=CANARY)
    assert CANARY not in everything_that_left(t)
    kept = dict(metadata(t, tx.id))
    assert kept["memory_started"] == {"prompt": CANARY, "api_key": CANARY, "messages": [CANARY]}
    assert kept["memory_completed"] == {"transcript": CANARY}
    assert kept["index_started"] == {"content": {"any": CANARY}}
    assert kept["conversation_ended"] == {"response": CANARY}


def test_addresses_and_credentials_are_taken_out(
    t: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """In attributes, reasons, messages of exceptions, keys and ids; a user's address is hashed."""
    secret = "jane@example.com"

    @stage("memory", capture="note")
    def remember(note: str) -> None:
        current_stage().set(model=f"of {secret}")
        current_stage().progress(step=f"for {secret}")
        raise ValueError(f"mail to {secret} bounced")

    with transaction("voice", user_id=secret, client_id=secret, source=secret) as tx:
        with pytest.raises(ValueError, match="bounced"):
            remember(f"from {secret}")
        with stage("index", key=secret) as s:
            s.skip(f"{secret} has none")
        with stage("store") as s:
            s.fail(f"{secret} is unknown", f"of {secret}")
        tx.end(success=False, error=f"because of {secret}")
    t.tracker.sweep()
    assert secret not in everything_that_left(t)
    assert "jane" not in everything_that_left(t)
    assert secret not in caplog.text
    assert one(t, "memory")["description"] == "mail to [email] bounced"
    assert one(t, "memory")["attributes"]["note"] == "from [email]"
    assert len(one(t, "voice")["attributes"]["user.hash"]) == 32


def test_without_text_only_numbers_leave() -> None:
    """export_text=False: no message, no string of anybody's, no stack."""
    with fresh_tracker(use_as_shared=True, export_text=False) as t:
        with transaction("voice", source="upload") as tx:
            with stage("memory", model="llama3", rows=3) as s:
                s.set(words=4, lang="de")
                s.fail("no model")
            tx.set(note="a note")
        span = one(t, "memory")
        assert {k: v for k, v in span["attributes"].items() if "." not in k} == {
            "rows": 3, "words": 4,
        }  # fmt: skip
        assert not span["description"]
        for text in ("llama3", "no model", "upload", "a note"):
            assert text not in everything_that_left(t)


def test_a_carrier_holds_nothing_of_the_user(t: Harness) -> None:
    """Only the trace's ids, its pipeline's name, and the moment of enqueuing."""
    with transaction("voice", user_id=CANARY, client_id=CANARY, note=CANARY) as tx:
        tx.queued("memory")
        assert CANARY not in json.dumps(tx.carrier())
        assert set(tx.carrier()) == {"traceparent", "tracestate", "otel-tracker-queued"}


# --- a transaction --------------------------------------------------------------------------------


def test_an_id_is_the_trace_id_as_a_uuid(t: Harness) -> None:
    """Ours by its mark, known to the dashboard at once, and where Jaeger shows the trace."""
    with transaction() as tx:
        assert tx
        assert str(UUID(tx.id)) == tx.id
        trace_id = parse_id(tx.id)
        assert trace_id is not None
        assert is_ours(trace_id)
        assert trace.get_current_span().get_span_context().trace_id == trace_id
        assert t.status(tx.id) is IN_PROGRESS
        assert tx.trace_url == f"http://localhost:16686/trace/{trace_id:032x}"
        assert tx.trace_url == t.tracker.trace_url(tx.id)
    assert tx.id


def test_attributes_of_the_root(t: Harness) -> None:
    """Given with it, or set while it is open here; later they are lost, and that is told."""
    with transaction("voice", source="upload", rows=1) as tx:
        tx.set(rows=2)
        current_transaction().set(words=3)
        with stage("memory"):
            current_transaction().set(model="llama3")
    attributes = one(t, "voice")["attributes"]
    assert {k: v for k, v in attributes.items() if "." not in k} == {
        "source": "upload", "rows": 2, "words": 3, "model": "llama3",
    }  # fmt: skip
    assert problems(t) == {}
    tx.set(late=1)
    assert problems(t) == {"root_attributes": 1}


@pytest.mark.parametrize(
    ("success", "error", "status", "outcome", "description", "error_type"),
    [
        (True, None, COMPLETED, "success", None, None),
        (False, None, FAILED, "failure", "Unknown error", "_OTHER"),
        (False, "hung up", FAILED, "failure", "hung up", "_OTHER"),
        (False, ValueError("bad"), FAILED, "failure", "bad", "ValueError"),
    ],
)
def test_after_a_told_end_leaving_adds_nothing(
    t: Harness,
    success: bool,
    error: object,
    status: TransactionStatus,
    outcome: str,
    description: str | None,
    error_type: str | None,
) -> None:
    """The end is told when it is told, with what there is to say."""
    with transaction("voice") as tx:
        t.clock.advance(1)
        tx.end(success, error, rows=3)
        spans = t.spans()
        t.clock.advance(1)
    assert t.spans() == spans
    (root,) = spans
    assert (root["end"], root["description"]) == (1, description)
    attributes = root["attributes"]
    assert (attributes[OUTCOME], attributes.get("error.type")) == (outcome, error_type)
    assert (attributes["rows"], attributes["otel_tracker.end.success"]) == (3, success)
    assert t.status(tx.id) is status
    t.advance(120)
    assert t.spans() == spans


def test_a_stage_after_the_told_end_still_counts(t: Harness) -> None:
    """There is no "too late": the newest attempt decides."""
    with transaction("voice") as tx:
        tx.end()
        t.clock.advance(1)
        with stage("memory") as s:
            s.fail("no model")
    assert t.status(tx.id) is FAILED
    assert names(t) == [("voice", None), ("memory", "voice")]


def test_a_failure_that_leaves_after_the_told_end_is_told(t: Harness) -> None:
    """What a caller said to be over may still go wrong."""
    block = transaction("voice")
    tx = block.__enter__()
    tx.end()
    t.clock.advance(1)
    leave(block, ValueError("late"))
    assert t.status(tx.id) is FAILED
    assert outcomes(t) == [("voice", "success", "UNSET"), ("ended failure", "failure", "ERROR")]


def test_an_end_told_by_another_object_is_the_same_end(t: Harness) -> None:
    """`current_transaction().end()` deep in the call, and the drop-in's event, count as well."""
    with transaction("voice") as tx, stage("memory"):
        current_transaction().end(success=False, error="hung up")
    assert outcomes(t) == [("voice", "failure", "ERROR"), ("memory", "success", "UNSET")]
    assert t.status(tx.id) is FAILED


@pytest.mark.parametrize("success", [True, False])
def test_an_end_told_by_the_drop_in_is_the_same_end(t: Harness, success: bool) -> None:
    """CONVERSATION_ENDED within the block: leaving it adds nothing, and takes nothing back."""
    with transaction("voice") as tx:
        t.tracker.track_event(tx.id, PipelineStage.CONVERSATION_ENDED, success, "hung up")
        spans = t.spans()
        t.clock.advance(1)
    assert t.status(tx.id) is (COMPLETED if success else FAILED)
    assert t.spans() == spans


@pytest.mark.parametrize("by_drop_in", [False, True])
@pytest.mark.parametrize("is_told", [False, True])
def test_what_was_queued_is_not_ended(t: Harness, by_drop_in: bool, is_told: bool) -> None:
    """Leaving the block is not the end; the wait is shown, and then the work's end is the end."""
    with transaction("voice") as tx:
        t.clock.advance(1)
        if by_drop_in:
            t.tracker.track_queued(tx.id, "memory")
        else:
            tx.queued(PipelineStage.MEMORY_STARTED)
    t.clock.advance(100)
    (row,) = t.tracker.get_dashboard_data()["waiting"]
    assert (row["transaction_id"], row["stage"], row["state"]) == (tx.id, "memory", "queued")
    assert row["silent_seconds"] == 100
    assert t.status(tx.id) is IN_PROGRESS
    with stage("memory", transaction_id=tx.id) as s:
        assert t.tracker.get_dashboard_data()["waiting"] == []
        t.clock.advance(1)
        if is_told:
            s.transaction.end()
    assert [(s["name"], s["start"], s["end"]) for s in t.spans()] == [
        ("voice", 0, 102), ("memory queued", 1, 101), ("memory", 101, 102),
    ]  # fmt: skip
    assert t.status(tx.id) is COMPLETED


def test_a_stage_that_is_no_stage_is_not_queued(
    t: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and leaving the block is the end as ever."""
    with transaction() as tx:
        tx.queued("")
        tx.queued(object())
    assert problems(t) == {"stage": 2}
    assert "queued()" in caplog.text
    assert t.status(tx.id) is COMPLETED


@pytest.mark.parametrize("by_drop_in", [False, True])
def test_what_was_handed_over_is_no_stall(t: Harness, by_drop_in: bool) -> None:
    """The root ends here; others carry on, and silence is theirs."""
    with transaction("voice") as tx:
        with stage("fetch"):
            pass
        t.clock.advance(1)
        if by_drop_in:
            t.tracker.hand_over(tx.id)
        else:
            tx.hand_over()
        spans = t.spans()
        t.clock.advance(1)
    assert [(s["name"], s["end"]) for s in spans] == [("voice", 1), ("fetch", 0)]
    assert t.spans() == spans
    t.advance(86_400)
    assert t.status(tx.id) is IN_PROGRESS
    (row,) = t.tracker.get_dashboard_data()["waiting"]
    assert (row["state"], row["stage"]) == ("elsewhere", None)


def test_a_transaction_is_continued_by_its_id(t: Harness) -> None:
    """Leaving the block is then not the end, but an exception is a failure all the same."""
    with transaction("voice", user_id="u-1") as tx:
        tx.hand_over()
    with transaction("other", transaction_id=tx.id, user_id="u-2") as again:
        assert again.id == tx.id
        with stage("memory"):
            pass
    assert t.status(tx.id) is IN_PROGRESS
    assert [s["attributes"]["otel_tracker.pipeline"] for s in t.spans()] == ["voice", "voice"]
    with pytest.raises(ValueError, match="x"), transaction(transaction_id=tx.id):
        raise ValueError("x")
    assert t.status(tx.id) is FAILED


@pytest.mark.parametrize("given", ["nonsense", "", 3, "2d3ab5b2-3c8f-4d53-9d3c-7fb2a1c00b11"])
def test_an_id_of_others_is_refused_and_nothing_is_lost(
    t: Harness, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The stage has a transaction of its own then, and the log says why."""
    with stage("memory", transaction_id=given) as s:
        assert s.transaction
    with transaction("voice", transaction_id=given) as tx:
        assert tx
    assert tally(t, "memory") == (0, 1, 0, 0)
    assert sum(problems(t).values()) == 2
    assert "pass what create_transaction() returned" in caplog.text


def test_an_id_that_is_none_means_the_current_one(t: Harness) -> None:
    """An optional parameter may be handed through."""
    with transaction("voice") as tx, stage("memory", transaction_id=None, carrier=None) as s:
        assert s.transaction.id == tx.id
    assert problems(t) == {}


# --- carriers -------------------------------------------------------------------------------------


def test_a_carrier_is_w3c(t: Harness) -> None:
    """A traceparent that names the root, sampled, and a tracestate that marks it as ours."""
    with transaction("voice") as tx:
        carrier = tx.carrier()
        trace_id = parse_id(tx.id)
        assert trace_id is not None
        named, _, flags = carrier["traceparent"].rpartition("-")
        assert named == f"00-{trace_id:032x}-{root_span_id(trace_id):016x}"
        assert flags in ("01", "03")  # newer SDKs also say that the id is random
        assert carrier["tracestate"] == "otel_tracker=voice"
        with stage("memory"):
            assert current_transaction().carrier() == carrier
    assert tx.carrier() == carrier


@pytest.fixture
def other() -> Iterator[Harness]:
    """The tracker of another process, with a provider and a clock of its own."""
    with fresh_tracker() as harness:
        yield harness


@pytest.mark.parametrize("how", ["stage by id", "stage by carrier", "transaction by carrier"])
def test_another_process_carries_on(t: Harness, other: Harness, how: str) -> None:
    """Its spans are children of the root, with the transaction's id and pipeline."""
    pipeline("voice", "fetch", "memory")
    with transaction("voice", user_id="u-1") as tx:
        tx.hand_over()
    given: dict[str, Any] = (
        {"transaction_id": tx.id} if how == "stage by id" else {"carrier": tx.carrier()}
    )
    if how == "transaction by carrier":
        with (
            transaction(**given, user_id="u-1", tracker=other.tracker) as there,
            stage("memory", tracker=other.tracker),
        ):
            assert there.id == tx.id
    else:
        with stage("memory", **given, tracker=other.tracker) as s:
            assert s.transaction.id == tx.id
    (root,), (memory,) = t.finished_spans(), other.finished_spans()
    assert memory.parent is not None
    assert memory.parent.is_remote
    assert memory.parent.span_id == root.get_span_context().span_id  # type: ignore[union-attr]
    attributes = dict(memory.attributes or {})
    assert attributes["otel_tracker.transaction.id"] == tx.id
    if "carrier" in how:
        assert attributes["otel_tracker.pipeline"] == "voice"
    assert attributes.get("user.id") == ("u-1" if how == "transaction by carrier" else None)
    assert problems(other) == {}


def test_the_wait_between_two_processes_is_shown(t: Harness, other: Harness) -> None:
    """A carrier takes along when it was queued: the worker makes the span of the wait."""
    with transaction("voice") as tx:
        t.clock.advance(1)
        tx.queued("memory")
        carrier = tx.carrier()
    assert carrier["otel-tracker-queued"] == f"memory={START_NS / 1e9 + 1:.6f}"
    other.clock.advance(41)
    with transaction(carrier=carrier, tracker=other.tracker):
        for name in ("prepare", "memory", "memory"):
            with stage(name, tracker=other.tracker):
                other.clock.advance(1)
    # It is the wait of the stage that was queued, and of its first attempt alone.
    assert [(s["name"], s["start"], s["end"]) for s in other.spans()] == [
        ("memory queued", 1, 42), ("prepare", 41, 42), ("memory", 42, 43), ("memory", 43, 44),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "moment",
    [
        START_NS / 1e9 + 1,
        f"{START_NS / 1e9 + 1}",
        datetime.fromtimestamp(START_NS / 1e9 + 1, UTC),
        datetime.fromtimestamp(START_NS / 1e9 + 1, UTC).replace(tzinfo=None),
    ],
)
def test_queued_at_is_any_moment(t: Harness, moment: Any) -> None:
    """Seconds, their text, and datetimes, of which a naive one is UTC as queues keep it."""
    t.clock.advance(31)
    with transaction("voice"), stage("memory", queued_at=moment):
        pass
    wait = one(t, "memory queued")
    assert (wait["start"], wait["end"]) == (1, 31)


@pytest.mark.parametrize("moment", ["yesterday", float("nan"), -3, object(), 1e30])
def test_queued_at_that_is_no_moment_is_told(t: Harness, moment: Any) -> None:
    """The stage runs as if it had not been given; the problem is counted."""
    with transaction("voice"), stage("memory", queued_at=moment):
        pass
    assert names(t) == [("voice", None), ("memory", "voice")]
    assert problems(t) == {"queued_at": 1}


def test_a_moment_in_the_future_is_a_wait_of_no_length(t: Harness) -> None:
    """Clocks of machines differ: no span ends before it starts."""
    with transaction("voice"), stage("memory", queued_at=START_NS / 1e9 + 100):
        pass
    wait = one(t, "memory queued")
    assert wait["start"] <= wait["end"] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda c: {k.upper(): v for k, v in c.items()},
        lambda c: {**c, "baggage": "a=b", "other": 3},
        lambda c: {"traceparent": c["traceparent"]},
        lambda c: {**c, "tracestate": f"vendor=1,{c['tracestate']},more=2"},
        lambda c: {"traceparent": f" {c['traceparent'].upper()} "},
        lambda c: {"traceparent": "01" + c["traceparent"][2:] + "-later"},
    ],
)
def test_carriers_that_travelled(t: Harness, other: Harness, change: Any) -> None:
    """Headers change their case, others add to them, and some drop what they do not know."""
    with transaction("voice") as tx:
        carrier = change(tx.carrier())
    with stage("memory", carrier=carrier, tracker=other.tracker) as s:
        assert s.transaction.id == tx.id
    assert problems(other) == {}


@pytest.mark.parametrize(
    "carrier",
    [
        {},
        "00-0af7651916cd83dd8448eb211c80319c-b7ad6b7169203331-01",
        {"traceparent": "nonsense"},
        {"traceparent": None},
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"traceparent": "00-00000000000000000000000000000000-0000000000000000-00"},
        3,
        [("traceparent", "x")],
    ],
)
def test_a_carrier_that_is_none_is_told_and_nothing_is_lost(t: Harness, carrier: Any) -> None:
    """The stage, or the transaction, is one of its own then."""
    with stage("memory", carrier=carrier) as s:
        assert s.transaction
    t.clock.advance(1)
    with transaction("voice", carrier=carrier) as tx:
        assert tx
    assert problems(t) == {"carrier": 2}
    assert names(t) == [("transaction", None), ("memory", "transaction"), ("voice", None)]


def test_a_carrier_of_a_trace_that_is_not_sampled(other: Harness) -> None:
    """What the process with the root decided holds: no part of a trace is exported alone."""
    with fresh_tracker(sampler=ALWAYS_OFF) as t:
        with transaction("voice", tracker=t.tracker) as tx:
            carrier = tx.carrier()
        assert carrier["traceparent"][-2:] in ("00", "02")
        with stage("memory", carrier=carrier, tracker=other.tracker):
            pass
        assert (t.spans(), other.spans()) == ([], [])
        assert tally(other, "memory") == (0, 1, 0, 0)


def test_outside_any_transaction_there_is_nothing_to_carry(t: Harness) -> None:
    assert current_transaction().carrier() == {}


# --- the current ones -----------------------------------------------------------------------------


def check_nothing_is_current(t: Harness) -> None:
    tx, s = current_transaction(), current_stage()
    assert not tx
    assert not s
    assert (tx.id, tx.trace_url, tx.carrier()) == ("", "", {})
    assert (repr(tx), repr(s)) == ("<transaction none>", "<stage none>")
    assert tx.bind(check_nothing_is_current) is check_nothing_is_current
    tx.set(rows=1)
    tx.end(success=False, error="x")
    tx.queued("memory")
    tx.hand_over()
    s.set(rows=1)
    s.progress(done=1)
    s.skip("x")
    s.fail("x")
    assert not s.transaction


def test_outside_any_transaction_nothing_is_current(t: Harness) -> None:
    """Both are false, answer every call, and do nothing."""
    before = context_api.get_current()
    check_nothing_is_current(t)
    assert context_api.get_current() == before
    assert t.tracker.get_dashboard_data()["system_metrics"]["total_transactions"] == 0
    assert t.spans() == []
    assert problems(t) == {}


def test_the_current_ones_follow_the_blocks(t: Harness) -> None:
    """The innermost of each, also by what a decorated function finds; after a block as before."""

    @stage("inner")
    def inner() -> tuple[str, str]:
        return repr(current_stage()), current_transaction().id

    with transaction("voice") as tx:
        assert not current_stage()
        assert current_transaction() is tx
        with stage("memory") as s:
            assert current_stage() is s
            assert inner() == ("<stage inner>", tx.id)
            with transaction("nested") as nested:
                assert not current_stage()
                assert current_transaction() is nested
                assert inner() == ("<stage inner>", nested.id)
            assert current_stage() is s
        assert not current_stage()
        assert current_transaction().id == tx.id
    check_nothing_is_current(t)


def test_within_a_transaction_of_another_tracker(t: Harness, other: Harness) -> None:
    """Two trackers in a process see each other as two processes do: by the marked trace."""
    with transaction("theirs", tracker=other.tracker) as theirs:
        assert current_transaction().id == theirs.id
        with stage("memory", tracker=other.tracker) as s:
            assert not current_stage()
            with stage("inner") as inner:
                assert inner.transaction.id == s.transaction.id == theirs.id
                assert current_stage() is inner
    assert names(other) == [("theirs", None), ("memory", "theirs")]
    assert names(t) == [("inner", "?")]
    (theirs_span, ours) = (other.finished_spans()[0], t.finished_spans()[0])
    assert ours.parent is not None
    assert ours.parent.span_id == theirs_span.get_span_context().span_id  # type: ignore[union-attr]
    assert problems(t) == problems(other) == {}


# --- ids from parameters --------------------------------------------------------------------------


def who(t: Harness) -> list[tuple[str, str, str | None]]:
    """Whose every transaction is, oldest first."""
    rows = [t.tracker.get_transaction(row["id"]) for row in t.tracker.get_recent_transactions(50)]
    return [(f.user_id, f.client_id, f.conversation_id) for f in rows if f is not None][::-1]


def test_an_entry_function_names_its_ids_by_its_parameters(t: Harness) -> None:
    """By position, by keyword, by default; one that it does not have stays empty."""

    @transaction
    def entry(
        user_id: object, text: str, client_id: object = "web", *, conversation_id: Any
    ) -> None:
        return None

    @transaction("voice")
    async def only_user(user_id: object) -> None:
        return None

    @transaction
    def nobody(text: str) -> None:
        return None

    entry("ann", CANARY, "app", conversation_id=7)
    t.clock.advance(1)
    entry(UUID(int=5), text=CANARY, conversation_id=None)
    t.clock.advance(1)
    asyncio.run(only_user(user_id=3))
    t.clock.advance(1)
    nobody(CANARY)
    assert who(t) == [
        ("ann", "app", "7"), (str(UUID(int=5)), "web", None), ("3", "", None), ("", "", None),
    ]  # fmt: skip


def test_ids_are_taken_from_the_parameters_that_are_named(t: Harness) -> None:
    """And from no other: what is named wins over a parameter of the id's own name."""

    @transaction(user_id="owner", conversation_id="talk")
    def entry(owner: str, user_id: str, **more: Any) -> None:
        return None

    class Service:
        @transaction(client_id="device")
        def handle(self, device: str, user_id: str) -> None:
            return None

        @transaction(user_id="owner")
        @classmethod
        def handle_all(cls, owner: str = "everybody") -> None:
            return None

    entry("ann", "not her", talk="t-1")
    t.clock.advance(1)
    entry("bob", "not him")
    t.clock.advance(1)
    Service().handle("phone", "eve")
    t.clock.advance(1)
    Service.handle_all()
    assert who(t) == [
        ("ann", "", "t-1"), ("bob", "", None), ("eve", "phone", None), ("everybody", "", None),
    ]  # fmt: skip


def test_an_entry_function_may_continue_a_transaction(t: Harness) -> None:
    """The parameter that holds the id, or the carrier, is named: it is never guessed."""

    @transaction(transaction_id="tid")
    def by_id(tid: str) -> str:
        return current_transaction().id

    @transaction(carrier="message")
    def by_carrier(message: dict[str, str]) -> str:
        return current_transaction().id

    @transaction
    def guessed(transaction_id: str, carrier: dict[str, str]) -> str:
        return current_transaction().id

    @stage("memory", transaction_id="tid", key="number")
    def work(tid: str | None, number: int = 3) -> str:
        return current_transaction().id

    with transaction("voice") as tx:
        tx.hand_over()
    assert by_id(tx.id) == by_carrier(tx.carrier()) == work(tx.id) == tx.id
    assert guessed(tx.id, tx.carrier()) != tx.id
    assert work(None) != tx.id
    keys = [
        s["attributes"].get("otel_tracker.stage.key") for s in t.spans() if s["name"] == "memory"
    ]
    assert keys == ["3", "3"]


def test_ids_of_any_type_in_a_with(t: Harness) -> None:
    """Numbers, UUIDs, and even what cannot be printed: the id is lost, the transaction is not."""

    class Broken:
        def __str__(self) -> str:
            raise ZeroDivisionError

    with transaction(user_id=3, client_id=UUID(int=5), conversation_id=Broken()):
        pass
    assert who(t) == [("3", str(UUID(int=5)), "<Broken>")]


# --- outside any transaction ----------------------------------------------------------------------


def test_a_stage_outside_any_transaction_opens_one(t: Harness) -> None:
    """It ends with the stage and as it does; what the stage calls belongs to it."""

    @stage("inner")
    def inner() -> None:
        return None

    with stage("memory", rows=3) as s:
        tx = s.transaction
        assert tx
        assert current_transaction().id == tx.id
        inner()
        t.clock.advance(2)
    assert [(s["name"], s["parent"], s["end"]) for s in t.spans()] == [
        ("transaction", None, 2), ("memory", "transaction", 2), ("inner", "memory", 0),
    ]  # fmt: skip
    assert t.status(tx.id) is COMPLETED
    assert not current_transaction()
    with pytest.raises(ValueError, match="x"), stage("memory") as s:
        raise ValueError("x")
    assert t.status(s.transaction.id) is FAILED


def test_a_transaction_and_the_callers_span_are_linked(t: Harness) -> None:
    """To each other, with the route; a stage of its own too. Neither is the other's child."""
    tracer = t.provider.get_tracer("app")
    with tracer.start_as_current_span("GET /", attributes={"http.route": "/notes"}) as caller:
        with transaction("voice") as tx:
            pass
        with stage("memory") as s:
            pass
    caller_id = caller.get_span_context().trace_id
    for name in ("voice", "transaction"):
        root = one(t, name)
        assert (root["parent"], root["links"]) == (None, [f"{caller_id:032x}"])
        assert root["attributes"]["http.route"] == "/notes"
    assert one(t, "GET /")["links"] == [tid.replace("-", "") for tid in (tx.id, s.transaction.id)]
    assert one(t, "memory")["links"] == []


def test_callers_need_not_be_linked() -> None:
    """link_caller=False: no link in either direction."""
    with fresh_tracker(use_as_shared=True, link_caller=False) as t:
        with t.provider.get_tracer("app").start_as_current_span("GET /"), transaction("voice"):
            pass
        assert [s["links"] for s in t.spans()] == [[], []]


# --- nested transactions --------------------------------------------------------------------------


def test_a_transaction_within_another_is_one_of_its_own(t: Harness) -> None:
    """Two traces that link to each other; what fails in the inner one is not the outer's."""
    with transaction("outer", user_id="ann") as outer, stage("fetch"):
        t.clock.advance(1)
        with transaction("inner", user_id="bob") as inner, stage("memory") as s:
            assert current_transaction().id == inner.id
            s.fail("no model")
        assert current_transaction().id == outer.id
    assert names(t) == [
        ("outer", None), ("fetch", "outer"), ("inner", None), ("memory", "inner"),
    ]  # fmt: skip
    assert (t.status(outer.id), t.status(inner.id)) == (COMPLETED, FAILED)
    # The caller's span is the stage that it was begun in.
    assert one(t, "inner")["links"] == [outer.id.replace("-", "")]
    assert one(t, "fetch")["links"] == [inner.id.replace("-", "")]
    assert who(t) == [("ann", "", None), ("bob", "", None)]


def test_a_stage_of_another_transaction_within_one(t: Harness) -> None:
    """`transaction_id=` wins over the block around; that one's stage is not its parent."""
    with transaction("one") as one_tx:
        one_tx.hand_over()
    t.clock.advance(1)
    with transaction("two") as two, stage("fetch"):
        with stage("memory", transaction_id=one_tx.id) as s:
            assert s.transaction.id == current_transaction().id == one_tx.id
            with stage("inner"):
                pass
        assert current_transaction().id == two.id
    assert sorted(names(t), key=str) == [
        ("fetch", "two"), ("inner", "memory"), ("memory", "one"), ("one", None), ("two", None),
    ]  # fmt: skip


# --- how a transaction ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome", "status", "span_status"),
    [
        (ValueError("x"), "failure", FAILED, "ERROR"),
        (asyncio.CancelledError("x"), "cancelled", FAILED, "UNSET"),
        (KeyboardInterrupt("x"), "interrupted", FAILED, "ERROR"),
        (SystemExit("x"), "interrupted", FAILED, "ERROR"),
        (GeneratorExit("x"), "success", COMPLETED, "UNSET"),
    ],
)
def test_how_a_transaction_is_left(
    t: Harness, error: BaseException, outcome: str, status: TransactionStatus, span_status: str
) -> None:
    """Without a pipeline leaving is the end, told at that moment, by what leaves it."""
    block = transaction("voice")
    tx = block.__enter__()
    t.clock.advance(1)
    leave(block, error)
    assert outcomes(t) == [("voice", outcome, span_status)]
    assert t.spans()[0]["end"] == 1
    assert t.status(tx.id) is status


def test_a_stage_that_failed_and_was_swallowed_fails_the_transaction(t: Harness) -> None:
    """The block was left well, and still nothing came of it."""
    with transaction("voice") as tx:
        with pytest.raises(ValueError, match="no model"), stage("memory"):
            raise ValueError("no model")
        with stage("index"):
            pass
    assert t.status(tx.id) is FAILED
    root = one(t, "voice")
    assert (root["attributes"][OUTCOME], root["description"]) == ("failure", "no model")
    assert root["attributes"]["otel_tracker.end.success"] is True
    assert t.issue(tx.id) == "Failed at memory_completed: no model"


def test_a_retry_puts_it_right(t: Harness) -> None:
    """The second attempt has the number two, and the issue stays, resolved."""
    with transaction("voice") as tx:
        for number in range(3):
            with stage("memory") as s:
                t.clock.advance(1)
                if number < 2:
                    s.fail("busy")
    assert t.status(tx.id) is COMPLETED
    assert [s["attributes"].get(ATTEMPT) for s in t.spans()] == [None, 1, 2, 3]
    assert one(t, "voice")["attributes"][OUTCOME] == "success"
    (issue,) = t.tracker.get_dashboard_data()["recent_issues"]
    assert (issue["issue"], issue["resolved"]) == ("Failed at memory_completed: busy", True)


def test_a_cancelled_stage_cancels_the_transaction(t: Harness) -> None:
    """It is FAILED, but nobody's alarm."""
    with transaction("voice") as tx, pytest.raises(asyncio.CancelledError), stage("memory"):
        raise asyncio.CancelledError
    assert t.status(tx.id) is FAILED
    assert outcomes(t) == [("voice", "cancelled", "UNSET"), ("memory", "cancelled", "UNSET")]
    assert t.tracker.get_dashboard_data()["recent_issues"] == []


def test_what_failed_is_told_at_once(t: Harness) -> None:
    """on_issue= is called with the transaction, before the block is left."""
    told: list[dict[str, Any]] = []
    t.tracker.configure(on_issue=told.append)
    with transaction("voice", user_id="ann") as tx:
        with stage("memory") as s:
            s.fail("no model")
        t.tracker.sweep()
        assert [(row["transaction_id"], row["user_id"], row["issue"]) for row in told] == [
            (tx.id, "ann", "Failed at memory_completed: no model")
        ]


# --- pipelines ------------------------------------------------------------------------------------


def test_a_declared_pipeline_is_done_when_its_last_stage_was_attempted(t: Harness) -> None:
    """Leaving the block before is not the end: another process may do the rest."""
    voice = pipeline("voice", "fetch", "transcription", "store")
    with transaction(voice) as done:
        for name in voice.stages:
            with stage(name):
                pass
    with transaction(voice) as open_, stage("fetch"):
        pass
    assert t.status(done.id) is COMPLETED
    assert t.status(open_.id) is IN_PROGRESS
    assert [s["name"] for s in t.spans()].count("voice") == 1
    with stage("store", transaction_id=open_.id):
        pass
    t.advance(5)
    assert t.status(open_.id) is COMPLETED
    assert [s["name"] for s in t.spans()].count("voice") == 2


def test_the_last_stage_need_only_be_attempted(t: Harness) -> None:
    """It failed: that is the end, and a failure. It was skipped: that is the end, and well."""
    pipeline("voice", "fetch", "store")
    with transaction("voice") as failed, stage("store") as s:
        s.fail("no space")
    with transaction("voice") as skipped, stage("store") as s:
        s.skip("nothing new")
    assert (t.status(failed.id), t.status(skipped.id)) == (FAILED, COMPLETED)
    assert [s["attributes"][OUTCOME] for s in t.spans() if s["name"] == "voice"] == [
        "failure", "success",
    ]  # fmt: skip


def test_a_stage_that_never_comes_is_a_stall(t: Harness) -> None:
    """Where a declared stage is missing and the block was left, its silence is measured."""
    voice = pipeline("voice", "fetch", "store", stall_after={"store": 300})
    with transaction(voice) as tx, stage("fetch"):
        pass
    t.advance(299)
    assert t.status(tx.id) is IN_PROGRESS
    t.advance(1)
    assert t.status(tx.id) is STALLED
    (row,) = t.tracker.get_dashboard_data()["stalled"]
    assert (row["transaction_id"], row["stage"]) == (tx.id, None)


def test_a_failure_before_the_last_stage(t: Harness) -> None:
    """It stands whether it leaves the block or not."""
    voice = pipeline("voice", "fetch", "store")
    with transaction(voice) as swallowed, pytest.raises(ValueError, match="x"), stage("fetch"):
        raise ValueError("x")
    with pytest.raises(ValueError, match="x"), transaction(voice) as left, stage("fetch"):
        raise ValueError("x")
    assert (t.status(swallowed.id), t.status(left.id)) == (FAILED, FAILED)


def test_undeclared_stages_are_welcome(t: Harness) -> None:
    """They count, they may fail it, and they never are the last one."""
    voice = pipeline("voice", "fetch", "store")
    with transaction(voice) as tx:
        with stage("fetch"):
            pass
        with stage("zip"):
            pass
    assert t.status(tx.id) is IN_PROGRESS
    assert list(t.tracker.get_dashboard_data()["stages"]) == ["fetch", "zip"]
    with transaction(voice) as failed:
        with stage("zip") as s:
            s.fail("no space")
        with stage("store"):
            pass
    assert t.status(failed.id) is FAILED
    assert problems(t) == {}


def test_a_pipeline_without_memory_does_not_wait_for_it(t: Harness) -> None:
    """The sentence about memory is for pipelines that have that stage."""
    voice = pipeline("voice", "transcription", "index", stall_after={"index": 600})
    with transaction(voice) as tx, stage("transcription"):
        pass
    t.advance(45)
    assert (t.status(tx.id), t.issue(tx.id)) == (IN_PROGRESS, None)


def test_limits_are_those_of_the_pipeline_unless_the_user_says_otherwise() -> None:
    """A stage that is slow by nature has a limit of its own, in this pipeline alone."""
    with fresh_tracker(use_as_shared=True, stall_after_index=20) as t:
        voice = pipeline(
            "voice", "transcribe", "index", "store", stall_after={"transcribe": 600, "index": 500}
        )
        for given, name, limit in (
            (voice, "transcribe", 600), (voice, "index", 20), (voice, "store", 60),
            ("other", "transcribe", 60),
        ):  # fmt: skip
            with transaction(given) as tx, stage(name):
                t.advance(limit - 1)
                assert t.status(tx.id) is IN_PROGRESS, (given, name)
                t.advance(1)
                assert t.status(tx.id) is STALLED, (given, name)


@pytest.mark.parametrize("order", ["before", "after", "at use", "again"])
def test_the_order_of_declaration_and_init_does_not_matter(order: str) -> None:
    """At import before any tracker is there, after it, or only where it is used."""
    if order == "before":
        voice = pipeline("voice", "fetch", "store", stall_after={"fetch": 600})
    with fresh_tracker(use_as_shared=True) as t:
        if order == "again":
            pipeline("voice", "something", "else")
        init_debug_tracker(settle=4)
        if order in ("after", "again"):
            voice = pipeline("voice", "fetch", "store", stall_after={"fetch": 600})
        if order == "at use":
            voice = Pipeline("voice", ("fetch", "store"), {"fetch": 600})
        init_debug_tracker(settle=5)
        with transaction(voice) as tx, stage("fetch"):
            t.advance(599)
            assert t.status(tx.id) is IN_PROGRESS
        t.advance(61)
        assert t.status(tx.id) is STALLED
        with transaction("voice") as by_name, stage("store"):
            pass
        assert t.status(by_name.id) is COMPLETED


def test_the_shared_tracker_knows_what_was_declared_before_it() -> None:
    """It is made on first use: a pipeline declared at import is there by then."""
    before = api.replace_shared(None)
    try:
        pipeline("voice", "fetch", "store")
        with transaction("voice") as tx, stage("fetch"):
            pass
        found = api.get_debug_tracker().get_transaction(tx.id)
        assert found is not None
        assert found.status is IN_PROGRESS
    finally:
        api.shutdown_debug_tracker()
        api.replace_shared(before)


def test_a_pipeline_of_your_own_for_the_drop_in(t: Harness) -> None:
    """init_debug_tracker(pipeline=…): `create_transaction` runs it, and stages in code join."""
    voice = pipeline("voice", "fetch", "store")
    init_debug_tracker(pipeline=voice)
    tid = t.tracker.create_transaction("ann", "web")
    for name in voice.stages:
        with stage(name, transaction_id=tid):
            pass
    t.advance(5)
    assert t.status(tid) is COMPLETED
    assert names(t) == [("voice", None), ("fetch", "voice"), ("store", "voice")]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pipeline(""),
        lambda: pipeline("x" * 200),
        lambda: pipeline("voice", ""),
        lambda: pipeline("voice", "a", stall_after={"a": 0}),
        lambda: pipeline("voice", "a", stall_after={"a": float("inf")}),
    ],
)
def test_a_pipeline_that_is_none_is_a_value_error(t: Harness, wrong: Any) -> None:
    """Told where it is declared, which is when a program starts; nothing of it stays."""
    with pytest.raises(ValueError, match="Pipeline"):
        wrong()
    assert api._declared == {}


# --- spans of the application ---------------------------------------------------------------------


def test_application_spans_within_a_stage_are_its_children(t: Harness) -> None:
    """And a stage within one of those is the span's child, and the outer stage's in the verdict."""
    tracer = t.provider.get_tracer("app")
    with transaction("voice") as tx:
        with tracer.start_as_current_span("in the transaction"), stage("fetch"):
            pass
        with stage("memory"), tracer.start_as_current_span("SELECT"):
            with tracer.start_as_current_span("row"):
                pass
            with stage("extract") as s:
                assert s.transaction.id == tx.id
                s.fail("no JSON")
    assert sorted(names(t), key=str) == [
        ("SELECT", "memory"), ("extract", "SELECT"), ("fetch", "in the transaction"),
        ("in the transaction", "voice"), ("memory", "voice"), ("row", "SELECT"), ("voice", None),
    ]  # fmt: skip
    # What failed within a stage that went well was coped with, whatever lies between them.
    assert t.status(tx.id) is COMPLETED
    assert len({s.get_span_context().trace_id for s in t.finished_spans()}) == 1  # type: ignore[union-attr]


def test_a_span_of_another_trace_is_not_taken_for_the_parent(t: Harness) -> None:
    """Where the application began a trace of its own within, the stage stays in the transaction."""
    tracer = t.provider.get_tracer("app")
    with transaction("voice") as tx:
        new = tracer.start_as_current_span("a new trace", context_api.Context())
        with new as span, stage("memory") as s:
            assert s.transaction.id == tx.id
        assert span.get_span_context().trace_id != parse_id(tx.id)
    assert sorted(names(t)) == [("a new trace", None), ("memory", "voice"), ("voice", None)]


# --- the drop-in API within -----------------------------------------------------------------------


def test_events_of_the_same_stage_are_of_the_same_attempt(t: Harness) -> None:
    """What old code reports from within the block is told by the block's own span."""
    with transaction("voice") as tx, stage("memory", rows=1):
        t.tracker.track_event(tx.id, PipelineStage.MEMORY_STARTED, model="llama3")
        t.clock.advance(1)
        t.tracker.track_event(tx.id, "memory_completed", metadata={"words": 3})
        assert tally(t, "memory") == (1, 0, 0, 0)
    assert names(t) == [("voice", None), ("memory", "voice")]
    attributes = one(t, "memory")["attributes"]
    assert (attributes["rows"], attributes["model"], attributes["words"]) == (1, "llama3", 3)
    assert tally(t, "memory") == (0, 1, 0, 0)


def test_a_failure_reported_from_within_fails_the_attempt(t: Harness) -> None:
    """As `s.fail()` does, also from a stage further in."""
    with transaction("voice") as tx, stage("memory"), stage("extract"):
        t.tracker.track_event(tx.id, "memory_completed", False, "no model", error_type="no_model")
    span = one(t, "memory")
    assert (span["status"], span["description"]) == ("ERROR", "no model")
    assert span["attributes"]["error.type"] == "no_model"
    assert tally(t, "memory") == (0, 0, 1, 0)
    assert tally(t, "extract") == (0, 1, 0, 0)
    assert t.status(tx.id) is FAILED


def test_a_skip_reported_from_within_skips_the_attempt(t: Harness) -> None:
    """As `s.skip()` does."""
    with transaction("voice") as tx, stage("memory"):
        t.tracker.track_skipped(tx.id, "memory", "no words")
    assert names(t) == [("voice", None), ("memory skipped", "voice")]
    assert tally(t, "memory") == (0, 0, 0, 1)


def test_events_of_another_stage_are_a_stage_of_its_own(t: Harness) -> None:
    """Begun and ended by events, while the block's own goes on."""
    with transaction("voice") as tx, stage("memory"):
        t.tracker.track_event(tx.id, PipelineStage.TRANSCRIPTION_STARTED)
        t.clock.advance(1)
        t.tracker.track_event(tx.id, PipelineStage.TRANSCRIPTION_COMPLETED)
        t.tracker.track_event(tx.id, "index_completed")
        assert (tally(t, "memory"), tally(t, "transcription")) == ((1, 0, 0, 0), (0, 1, 0, 0))
    assert names(t) == [
        ("voice", None), ("memory", "voice"), ("transcription", "voice"), ("index", "voice"),
    ]  # fmt: skip
    assert t.status(tx.id) is COMPLETED


def test_events_of_another_transaction_are_not_of_this_attempt(t: Harness) -> None:
    """Though the stage has the same name: the id in the call says whose it is."""
    tid = t.tracker.create_transaction("ann", "web")
    with transaction("voice"), stage("memory"):
        t.tracker.track_event(tid, "memory_completed", False, "no model")
    assert t.status(tid) is FAILED
    assert [s["status"] for s in t.spans() if s["name"] == "memory"] == ["UNSET", "ERROR"]


def test_what_events_left_open(t: Harness) -> None:
    """A block of the same stage gives it up, as a second start does; leaving ends the others."""
    with transaction("voice") as tx:
        t.tracker.track_event(tx.id, PipelineStage.MEMORY_STARTED)
        t.tracker.track_event(tx.id, "index_started")
        t.clock.advance(1)
        with stage("memory"):
            t.clock.advance(1)
        assert tally(t, "memory") == (0, 1, 1, 0)
        assert tally(t, "index") == (1, 0, 0, 0)
    assert outcomes(t) == [
        ("voice", "success", "UNSET"), ("memory", "abandoned", "UNSET"),
        ("index", "success", "UNSET"), ("memory", "success", "UNSET"),
    ]  # fmt: skip
    assert t.status(tx.id) is COMPLETED


# --- disabled, not sampled ------------------------------------------------------------------------


def use_everything() -> list[str]:
    """Every entry of the API once; the ids of its transactions."""

    @stage("decorated", capture="number")
    def work(number: int) -> int:
        current_stage().set(rows=1)
        current_stage().progress(done=1)
        return number + 1

    @transaction
    def entry(user_id: str) -> str:
        assert work(3) == 4
        return current_transaction().id

    with transaction("voice", user_id="ann", rows=1) as tx:
        with stage("memory", key="a", rows=1) as s:
            s.set(words=1)
            s.progress(done=1)
            with stage("inner") as inner:
                inner.skip("nothing")
        with stage("store") as s:
            s.fail("no space")
        assert tx.bind(work)(1) == 2
        tx.set(rows=2)
        tx.queued("later")
        carrier = tx.carrier()
        tx.end(success=False, error="x")
    with stage("alone"):
        pass
    with stage("later", transaction_id=tx.id, carrier=carrier):
        pass
    with transaction("voice", transaction_id=tx.id) as again:
        again.hand_over()
    return [tx.id, entry("bob")]


def test_a_disabled_tracker_answers_and_makes_nothing() -> None:
    """Everything answers and is false; an id is still an id, and another each time."""
    with fresh_tracker(use_as_shared=True, disabled=True) as t:
        before = context_api.get_current()
        with transaction("voice", user_id="ann") as tx, stage("memory") as s:
            assert (bool(tx), bool(s)) == (False, False)
            assert str(UUID(tx.id)) == tx.id
            assert is_ours(int(tx.id.replace("-", ""), 16))
            assert (tx.trace_url, tx.carrier()) == ("", {})
            assert tx.bind(use_everything) is use_everything
            assert context_api.get_current() == before
            check_nothing_is_current(t)
        assert use_everything()[0] != tx.id
        assert t.spans() == []
        data = t.tracker.get_dashboard_data()
        assert data["system_metrics"]["total_transactions"] == 0
        assert (data["stages"], data["health"]["problems"]) == ({}, {})


def test_a_tracker_can_be_disabled_and_enabled_at_any_moment(t: Harness) -> None:
    """What was open ends as it would; what begins meanwhile is not there."""
    with transaction("voice") as tx:
        with stage("memory"):
            init_debug_tracker(disabled=True)
            with stage("unseen"):
                pass
            with transaction("unseen"):
                pass
        init_debug_tracker(disabled=False)
        with stage("index"):
            pass
    assert names(t) == [("voice", None), ("memory", "voice"), ("index", "voice")]
    assert t.status(tx.id) is COMPLETED


def run_all(runs: int) -> list[TransactionStatus]:
    """That many of each with frames; what each comes to, in the order of their begin."""
    for _ in range(runs):
        with transaction("voice"):
            with stage("fetch"), stage("inner"):
                pass
            with stage("memory", key=1), stage("memory", key=2):
                pass
        with transaction("voice"), stage("memory") as s:
            s.fail("no space")
        with transaction("voice"), stage("fetch") as s:
            s.skip("silence")
        with stage("alone"):
            pass
    return [COMPLETED, FAILED, COMPLETED, COMPLETED] * runs


def check_all(tracker: DebugSystemTracker, runs: int) -> None:
    """The dashboard over `run_all` is exact."""
    data = tracker.get_dashboard_data()
    metrics = data["system_metrics"]
    keys = ("total", "active", "completed", "failed")
    assert [metrics[f"{key}_transactions"] for key in keys] == [
        4 * runs, 0, 3 * runs, runs,
    ]  # fmt: skip
    assert {
        name: (row["running"], row["done"], row["failed"], row["skipped"])
        for name, row in data["stages"].items()
    } == {
        "fetch": (0, runs, 0, runs), "inner": (0, runs, 0, 0), "memory": (0, 2 * runs, runs, 0),
        "alone": (0, runs, 0, 0),
    }  # fmt: skip
    assert data["health"]["problems"] == {}


@pytest.mark.parametrize(
    "sampler",
    [ALWAYS_OFF, TraceIdRatioBased(0.5), ParentBased(TraceIdRatioBased(0.5))],
    ids=lambda sampler: sampler.get_description(),
)
def test_the_dashboard_is_exact_under_any_sampler(sampler: Sampler) -> None:
    """A trace is exported whole or not at all; the dashboard counts every one."""
    with fresh_tracker(use_as_shared=True, sampler=sampler) as t:
        run_all(20)
        check_all(t.tracker, 20)
        whole = {("voice", 5), ("voice", 2), ("transaction", 2)}
        traces: dict[str, list[str]] = {}
        for span in t.finished_spans():
            traces.setdefault(f"{span.get_span_context().trace_id:032x}", []).append(span.name)  # type: ignore[union-attr]
        for found in traces.values():
            (root,) = {"voice", "transaction"} & set(found)
            assert (root, len(found)) in whole
        assert len(traces) == 0 if sampler is ALWAYS_OFF else 10 < len(traces) < 70


def tracker_on(provider: trace.TracerProvider) -> DebugSystemTracker:
    return DebugSystemTracker(provider, clock=ManualClock(), run_sweeper=False)


def test_the_dashboard_is_exact_with_the_sdk_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED: no-op spans without ids. Frames find each other all the same."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracker = tracker_on(TracerProvider(shutdown_on_exit=False))
    before = api.replace_shared(tracker)
    try:
        run_all(5)
        check_all(tracker, 5)
        with transaction("voice") as tx, stage("memory") as s:
            assert (s.transaction.id, current_transaction().id) == (tx.id, tx.id)
            assert current_stage() is s
        assert len({row["id"] for row in tracker.get_recent_transactions(100)}) == 21
        assert not current_transaction()
        use_everything()
    finally:
        api.replace_shared(before)


def test_the_dashboard_is_exact_on_a_no_op_provider() -> None:
    """The API alone, without any SDK behind it."""
    tracker = tracker_on(trace.NoOpTracerProvider())
    before = api.replace_shared(tracker)
    try:
        run_all(5)
        check_all(tracker, 5)
        use_everything()
    finally:
        api.replace_shared(before)


# --- stalls ---------------------------------------------------------------------------------------


def test_a_stage_in_a_block_stalls_and_recovers(t: Harness) -> None:
    """Told once with the line of code where it hangs, and the recovery too."""
    told: list[dict[str, Any]] = []
    t.tracker.configure(on_stall=told.append)
    with transaction("voice", user_id="ann") as tx:
        t.clock.advance(1)
        with stage("memory") as s:
            t.advance(59)
            assert t.status(tx.id) is IN_PROGRESS
            t.advance(1)
            assert t.status(tx.id) is STALLED
            t.advance(30)
            (row,) = t.tracker.get_dashboard_data()["stalled"]
            assert (row["stage"], row["silent_seconds"]) == ("memory", 90)
            assert "test_a_stage_in_a_block_stalls_and_recovers" in row["stack"]
            s.progress(done=1)
            t.advance(1)
            assert t.status(tx.id) is IN_PROGRESS
            assert t.tracker.get_dashboard_data()["stalled"] == []
    assert t.status(tx.id) is COMPLETED
    (info,) = told
    assert (info["transaction_id"], info["stage"], info["user_id"]) == (tx.id, "memory", "ann")
    assert "test_a_stage_in_a_block_stalls_and_recovers" in info["stack"]
    assert [(s["name"], s["start"], s["end"]) for s in t.spans()] == [
        ("voice", 0, 1), ("memory stalled", 1, 61), ("memory", 1, 92),
        ("memory recovered", 91, 91.00001), ("ended success", 92, 92.00001),
    ]  # fmt: skip
    assert one(t, "memory")["status"] == "UNSET"


def test_progress_keeps_a_long_stage_alive(t: Harness) -> None:
    """Told on the stage, by `current_stage()`, or by the drop-in: for an hour."""

    @stage("memory")
    def work() -> None:
        for number in range(60):
            t.advance(59)
            if number % 3 == 0:
                current_stage().progress(done=number)
            elif number % 3 == 1:
                t.tracker.track_progress(tx.id, "memory")
            else:
                t.tracker.track_progress(tx.id)
            assert t.status(tx.id) is IN_PROGRESS

    with transaction("voice") as tx:
        work()
    assert [s["name"] for s in t.spans() if "stalled" in s["name"]] == []


def test_of_nested_stages_the_innermost_is_judged(t: Harness) -> None:
    """The outer one is as alive as the one within it: only that one stalls, and is named."""
    voice = pipeline("voice", "outer", "store", stall_after={"inner": 300})
    with transaction(voice) as tx, stage("outer"), stage("middle"), stage("inner"):
        t.advance(299)
        assert t.status(tx.id) is IN_PROGRESS
        t.advance(1)
        assert [row["stage"] for row in t.tracker.get_dashboard_data()["stalled"]] == ["inner"]
    assert [s["name"] for s in t.spans() if "stalled" in s["name"]] == ["inner stalled"]


def test_what_is_done_within_is_progress_of_what_is_around(t: Harness) -> None:
    """A stage that calls others one after the other says nothing itself, and is not silent."""
    with transaction("voice") as tx, stage("outer"):
        for _ in range(10):
            t.advance(25)
            with stage("inner") as s:
                t.advance(25)
                s.progress()
                t.advance(25)
            assert t.status(tx.id) is IN_PROGRESS
        t.advance(60)
        assert [row["stage"] for row in t.tracker.get_dashboard_data()["stalled"]] == ["outer"]


def test_two_stages_side_by_side_stall_each_for_itself(t: Harness) -> None:
    """One of them makes progress, the other one does not."""
    with transaction("voice") as tx:
        quiet, busy = stage("chunk", key="quiet"), stage("chunk", key="busy")
        context = context_api.get_current()
        one_of_them = quiet.__enter__()
        token = context_api.attach(context)
        with busy as other_one:
            for _ in range(3):
                t.advance(30)
                other_one.progress()
            rows = t.tracker.get_dashboard_data()["stalled"]
            assert [(row["stage"], row["span_id"] is not None) for row in rows] == [("chunk", True)]
            stalled = one(t, "chunk stalled")
            assert stalled["attributes"]["otel_tracker.stage.key"] == "quiet"
            assert t.status(tx.id) is STALLED
        context_api.detach(token)
        assert one_of_them
        leave(quiet)
    assert t.status(tx.id) is COMPLETED


# --- shutdown -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError("too late")])
def test_a_shutdown_ends_open_blocks_and_leaving_them_changes_nothing(
    t: Harness, error: Exception | None
) -> None:
    """They were interrupted, inner ones first; what leaves them later is not told any more."""
    tx = transaction("voice")
    outer, inner = stage("outer"), stage("inner")
    active = tx.__enter__()
    t.clock.advance(1)
    outer.__enter__()
    t.clock.advance(1)
    inner.__enter__()
    t.clock.advance(1)
    t.tracker.shutdown()
    assert [s.name for s in t.finished_spans()] == ["inner", "outer", "voice"]
    spans, data = t.spans(), t.tracker.get_dashboard_data()
    assert outcomes(t) == [
        ("voice", "interrupted", "UNSET"), ("outer", "interrupted", "ERROR"),
        ("inner", "interrupted", "ERROR"),
    ]  # fmt: skip
    status = t.status(active.id)
    assert status is FAILED
    for block in (inner, outer, tx):
        leave(block, error)
    assert not current_transaction()
    assert t.spans() == spans
    assert t.status(active.id) is status
    after = t.tracker.get_dashboard_data()
    assert after["stages"] == data["stages"]
    assert after["recent_issues"] == data["recent_issues"]


def test_after_a_shutdown_everything_still_answers(t: Harness) -> None:
    """Late work is tracked in the process, and the application's provider still has its spans."""
    t.tracker.shutdown()
    with transaction("voice") as tx, stage("memory"):
        pass
    assert t.status(tx.id) is COMPLETED
    assert names(t) == [("voice", None), ("memory", "voice")]


# --- very many ------------------------------------------------------------------------------------


def test_a_thousand_stages_in_one_transaction(t: Harness) -> None:
    """Every one is counted and exported; what is kept of one transaction is bounded."""
    with transaction("voice") as tx:
        handle = t.tracker._recorder.handle(tx.id)
        assert handle is not None
        for number in range(1_000):
            with stage("chunk", number=number) as s:
                if number % 10 == 0:
                    s.fail("broken")
        with stage("chunk"):
            pass
        assert handle.frames == {}
        assert len(handle.bad) + len(handle.attempts) + len(handle.open) < 10
    assert tally(t, "chunk") == (0, 901, 100, 0)
    assert len(t.spans()) == 1_002
    assert t.spans()[-1]["attributes"][ATTEMPT] == 1_001
    assert t.status(tx.id) is COMPLETED
    found = t.tracker.get_transaction(tx.id)
    assert found is not None
    assert len(found.events) < 1_000
    dropped = t.tracker.get_dashboard_data()["health"]["dropped"]
    assert dropped["facts_over_the_limit_of_one_transaction"] > 500


def test_an_attempt_counts_once_however_late_its_end_is_heard_of(t: Harness) -> None:
    """Between its end and the moment the dashboard hears of it others may have filled the bound.

    A slow exporter in front of ours makes that moment long; on other threads it is there always.
    """

    class Slow(SpanProcessor):
        is_first = True

        def on_end(self, span: ReadableSpan) -> None:
            if self.is_first:
                self.is_first = False
                t.tracker.get_dashboard_data()
                for _ in range(1_500):
                    with stage("chunk", transaction_id=tx.id):
                        pass
                t.tracker.get_dashboard_data()

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Slow())
    t.tracker.configure(tracer_provider=provider)
    with transaction("voice") as tx, stage("chunk"):
        pass
    assert tally(t, "chunk") == (0, 1_501, 0, 0)


def test_a_thousand_branches_in_one_transaction(t: Harness) -> None:
    """Each with a key of its own: what a transaction remembers of them is bounded too."""
    with transaction("voice") as tx:
        handle = t.tracker._recorder.handle(tx.id)
        assert handle is not None
        for number in range(1_000):
            with stage("chunk", key=number) as s:
                if number in (3, 700):
                    s.fail("broken")
        assert len(handle.attempts) <= 200
        assert t.status(tx.id) is FAILED
    assert tally(t, "chunk") == (0, 998, 2, 0)
    assert t.status(tx.id) is FAILED
    assert one(t, "voice")["attributes"][OUTCOME] == "failure"


def test_a_thousand_transactions_leave_nothing_open(t: Harness) -> None:
    """Nothing of what has ended stays where open things are kept."""
    for _ in range(500):
        with transaction("voice"), stage("memory"):
            pass
        with stage("alone"):
            pass
    assert t.tracker._recorder.handles() == []
    assert t.tracker.get_dashboard_data()["system_metrics"]["completed_transactions"] == 1_000


def test_three_hundred_blocks_open_at_once(t: Harness) -> None:
    """Deep nesting: each ends, inside out, with its own parent."""
    blocks = [stage(f"s{number}") for number in range(300)]
    with transaction("voice") as tx:
        for block in blocks:
            block.__enter__()
        for block in reversed(blocks):
            leave(block)
    assert names(t) == [
        ("voice", None), ("s0", "voice"), *((f"s{n}", f"s{n - 1}") for n in range(1, 300)),
    ]  # fmt: skip
    assert t.status(tx.id) is COMPLETED


def test_more_open_transactions_than_are_kept() -> None:
    """The spans of the oldest are ended, which is told; leaving them later is still their end."""
    with fresh_tracker(use_as_shared=True, open_transactions=3) as t:
        blocks = [transaction(f"t{number}") for number in range(5)]
        ids = []
        for block in blocks:
            t.clock.advance(1)
            ids.append(block.__enter__().id)
        assert [s["name"] for s in t.spans()] == ["t0", "t1"]
        assert problems(t) == {"open_transactions": 2}
        for block in reversed(blocks):
            leave(block)
        # The dashboard has let the same two go by then, and counts them all the same.
        assert [t.status(tid) for tid in ids] == [None, None, *[COMPLETED] * 3]
        assert t.tracker.metrics.total_transactions == 5
        ends = [pair for pair in names(t) if pair[0] == "ended success"]
        assert sorted(ends) == [("ended success", "t0"), ("ended success", "t1")]


# --- exported spans alone say the same ------------------------------------------------------------

Run = Callable[[Harness], str]


def replayed(t: Harness, tid: str) -> dict[str, Any]:
    """What a dashboard shows that has the exported spans, and knows the declared pipelines."""
    state = round_trip.replay(t)
    for known in t.tracker._pipelines.values():
        state.add_pipeline(known)
    state.set_patience(state.patience)  # all is judged anew
    state.advance(t.clock.monotonic_ns(), t.clock.time_ns())
    now = views.Now(t.clock.monotonic_ns(), t.clock.time_ns(), MONOTONIC_NS, START_NS)
    tx = state.transactions[parse_id(tid) or 0]
    return round_trip._shown(views.transaction(tx), views.dashboard(state, now))


def begin(t: Harness, given: Pipeline | str = "voice") -> TransactionOf:
    t.clock.advance(1)
    return transaction(given, user_id="u-1", client_id="c-1", conversation_id="talk-1")


def attempt(t: Harness, name: str, outcome: str = "", **options: Any) -> None:
    """One stage of a second that comes to this."""
    with stage(name, **options) as s:
        t.clock.advance(1)
        if outcome:
            getattr(s, outcome)("because")


def good(t: Harness) -> str:
    with begin(t) as tx:
        attempt(t, "fetch", rows=1)
        attempt(t, "transcription")
        attempt(t, "memory")
    return tx.id


def good_pipeline(t: Harness) -> str:
    with begin(t, pipeline("voice", "fetch", "store")) as tx:
        attempt(t, "fetch")
        attempt(t, "zip")
        attempt(t, "store")
    return tx.id


def left_early(t: Harness) -> str:
    with begin(t, pipeline("voice", "fetch", "store")) as tx:
        attempt(t, "fetch")
    t.clock.advance(1)
    attempt(t, "store", transaction_id=tx.id)
    return tx.id


def swallowed(t: Harness) -> str:
    with begin(t) as tx:
        attempt(t, "memory", "fail")
        attempt(t, "index", "skip")
    return tx.id


def left_by(t: Harness, error: BaseException) -> str:
    whole, memory = begin(t), stage("memory")
    tx = whole.__enter__()
    memory.__enter__()
    t.clock.advance(1)
    leave(memory, error)
    leave(whole, error)
    return tx.id


def raised(t: Harness) -> str:
    return left_by(t, ValueError("no model"))


def cancelled(t: Harness) -> str:
    return left_by(t, asyncio.CancelledError())


def quit_(t: Harness) -> str:
    return left_by(t, SystemExit(3))


def retried(t: Harness) -> str:
    with begin(t) as tx:
        for outcome in ("fail", "fail", ""):
            attempt(t, "memory", outcome)
    return tx.id


def retried_by_key(t: Harness) -> str:
    with begin(t) as tx:
        for key, outcome in ((1, "fail"), (2, "fail"), (2, ""), (3, "skip")):
            attempt(t, "chunk", outcome, key=key)
    return tx.id


def coped_with(t: Harness) -> str:
    with begin(t) as tx, stage("outer"), stage("middle"):
        attempt(t, "inner", "fail")
        attempt(t, "other", "fail")
    return tx.id


def not_coped_with(t: Harness) -> str:
    with begin(t) as tx, stage("outer") as s:
        attempt(t, "inner", "fail")
        s.fail("no way")
    return tx.id


def side_by_side(t: Harness) -> str:
    """Two attempts at one stage overlap; the one that began first fails and ends last."""
    with begin(t) as tx:
        one_of_them, other_one = stage("chunk"), stage("chunk")
        here = contextvars.copy_context()
        first = here.run(one_of_them.__enter__)
        t.clock.advance(1)
        with other_one:
            t.clock.advance(1)
        first.fail("broken")
        here.run(leave, one_of_them)
    return tx.id


def told_at_once(t: Harness) -> str:
    with begin(t) as tx:
        tx.end(success=False, error="hung up")
        t.clock.advance(1)
        attempt(t, "memory")
    return tx.id


def own_transaction(t: Harness) -> str:
    with stage("memory") as s:
        t.clock.advance(1)
    return s.transaction.id


def queued_and_taken(t: Harness) -> str:
    with begin(t, pipeline("voice", "fetch", "store")) as tx:
        attempt(t, "fetch")
        tx.queued("store")
    t.clock.advance(20)
    attempt(t, "store", carrier=tx.carrier())
    return tx.id


def stalled_and_recovered(t: Harness) -> str:
    with begin(t) as tx, stage("memory") as s:
        t.advance(70)
        s.progress(done=1)
        t.advance(1)
    return tx.id


def with_events(t: Harness) -> str:
    with begin(t) as tx:
        t.tracker.track_event(tx.id, PipelineStage.TRANSCRIPTION_STARTED)
        with stage("memory"):
            t.clock.advance(1)
            t.tracker.track_event(tx.id, "memory_completed", False, "no model")
        t.tracker.track_audio_chunk(tx.id, 50)
        t.tracker.track_event(tx.id, "index_completed")
    return tx.id


def interrupted(t: Harness) -> str:
    with begin(t) as tx, stage("outer"), stage("inner"):
        t.clock.advance(1)
        t.tracker.shutdown()
    return tx.id


RUNS: Final = [
    good, good_pipeline, left_early, swallowed, raised, cancelled, quit_, retried, retried_by_key,
    coped_with, not_coped_with, side_by_side, told_at_once, own_transaction, queued_and_taken,
    stalled_and_recovered, with_events, interrupted,
]  # fmt: skip


@pytest.mark.parametrize("run", RUNS)
def test_the_exported_spans_alone_say_the_same(t: Harness, run: Run) -> None:
    """Replayed, they give the status, the issue, the events and the tallies of the dashboard."""
    tid = run(t)
    t.advance(65)
    t.advance(65)
    shown, told = round_trip.live(t, tid), replayed(t, tid)
    # Which silences were noticed at the time is on no finished span.
    del shown["issues"], told["issues"]
    assert told == shown


def test_a_replay_sees_nested_stages_through_application_spans(t: Harness) -> None:
    """A stage that failed within an application's span, within a stage that coped with it."""
    tracer = t.provider.get_tracer("app")
    with begin(t) as tx, stage("memory"), tracer.start_as_current_span("SELECT"):
        attempt(t, "extract", "fail")
    assert t.status(tx.id) is COMPLETED
    ours = [s for s in t.finished_spans() if semconv.is_ours(s.attributes)]
    assert len(ours) == 3
    t.finished_spans = lambda: ours  # type: ignore[method-assign]
    assert replayed(t, tx.id)["status"] == round_trip.live(t, tx.id)["status"]


_STAGES: Final = st.sampled_from(("fetch", "memory", "store"))
_KEYS: Final = st.sampled_from((None, 1))
_STEPS: Final = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 3), _STAGES, _KEYS),
    st.tuples(st.just("close"), st.integers(0, 3), st.sampled_from(("", "fail", "skip", "raise"))),
    st.tuples(st.just("branch"), st.integers(0, 3)),
    st.tuples(st.just("progress"), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.sampled_from((1, 20, 70))),
)


class Branches:
    """Concurrent branches of one transaction, as tasks would be, moved step by step."""

    def __init__(self, t: Harness) -> None:
        self.t = t
        self.contexts = [contextvars.copy_context()]
        self.open: list[list[tuple[Stage, ActiveStage]]] = [[]]

    def take(self, step: tuple[Any, ...]) -> None:
        what, *rest = step
        if what == "wait":
            self.t.advance(rest[0])
            return
        number = rest[0] % len(self.contexts)
        context, blocks = self.contexts[number], self.open[number]
        if what == "open":
            block = stage(rest[1], key=rest[2])
            blocks.append((block, context.run(block.__enter__)))
        elif what == "branch" and len(self.contexts) < 4:
            self.contexts.append(context.copy())  # within whatever is open there
            self.open.append([])
        elif what == "progress" and blocks:
            blocks[-1][1].progress(done=1)
        elif what == "close" and blocks:
            self.close(number, rest[1])

    def close(self, number: int, outcome: str) -> None:
        block, active = self.open[number].pop()
        error = ValueError("because") if outcome == "raise" else None
        if outcome in ("fail", "skip"):
            getattr(active, outcome)("because")
        self.contexts[number].run(leave, block, error)

    def close_all(self) -> None:
        for number in range(len(self.contexts)):
            while self.open[number]:
                self.t.clock.advance(1)
                self.close(number, "")


@hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(
    st.lists(_STEPS, max_size=25), st.booleans(), st.sampled_from(("left", "raised", "told"))
)
def test_any_run_of_concurrent_and_nested_stages_says_the_same_in_its_spans(
    steps: list[tuple[Any, ...]], declared: bool, end: str
) -> None:
    """Live and replayed dashboards agree, and so does the verdict that the root carries."""
    error = ValueError("at the end") if end == "raised" else None
    with fresh_tracker(use_as_shared=True) as t:
        given = Pipeline("voice", ("fetch", "store")) if declared else "voice"
        block = begin(t, given)
        active = block.__enter__()
        branches = Branches(t)
        for step in steps:
            branches.take(step)
        branches.close_all()
        t.clock.advance(1)
        if end == "told":
            active.end()
        leave(block, error)
        t.advance(65)
        t.advance(65)
        shown, told = round_trip.live(t, active.id), replayed(t, active.id)
        del shown["issues"], told["issues"]
        assert told == shown
        said = [s["attributes"].get(OUTCOME) for s in t.spans() if s["attributes"].get(OUTCOME)]
        if shown["status"] in ("completed", "failed"):
            assert said[-1:] == ["success" if shown["status"] == "completed" else "failure"]
        assert all(row["running"] == 0 for row in shown["stages"].values())
        assert problems(t) == {}


def test_a_carrier_may_come_back_as_bytes(t: Harness) -> None:
    """Redis gives keys and values as bytes, beside others that are no text at all."""
    with transaction("voice") as tx:
        tx.queued("memory")
        tx.hand_over()
    carrier: dict[bytes, bytes] = {k.encode(): v.encode() for k, v in tx.carrier().items()}
    with fresh_tracker(use_as_shared=True) as elsewhere:
        elsewhere.clock.advance(5)
        with stage("memory", carrier={**carrier, b"audio": b"\xff\xfe"}) as s:
            assert s.transaction.id == tx.id
        waits = [(s["name"], s["start"], s["end"]) for s in elsewhere.spans()]
        assert waits[0] == ("memory queued", 0, 5)
        assert problems(elsewhere) == {}
