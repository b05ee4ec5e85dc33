"""Whatever a caller passes: nothing raises, it is warned about once, and the spans encode."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tracker import DebugSystemTracker, PipelineStage, TransactionStatus
from otel_tracker.testing import Harness, fresh_tracker

MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
HUGE = "x" * 1_000_000


class Hostile:
    """Every method that a logger, a cleaner or a comparison might call raises."""

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("hostile")

    __repr__ = __str__ = __bool__ = __len__ = __hash__ = __iter__ = _raise
    __eq__ = __lt__ = __int__ = __float__ = __index__ = __format__ = _raise


class HostileStr(str):
    """A string whose own methods raise."""

    __slots__ = ()

    def _raise(self, *_: object, **__: object) -> Any:
        raise RuntimeError("hostile")

    __str__ = __repr__ = __len__ = lower = strip = encode = startswith = _raise


class HostileInt(int):
    """A number that raises where it is turned into text or another number."""

    def _raise(self, *_: object) -> Any:
        raise RuntimeError("hostile")

    __str__ = __repr__ = __index__ = __int__ = __float__ = __round__ = _raise


class HostileMapping(Mapping[str, Any]):
    """A mapping whose contents cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("hostile")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("hostile")

    def __len__(self) -> int:
        raise RuntimeError("hostile")


class HostileError(Exception):
    """An exception that cannot say what it is about."""

    def __str__(self) -> str:
        raise RuntimeError("hostile")


def cyclic_dict() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["itself"] = [value]
    return value


def deep_list() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


BAD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "empty": lambda: "",
    "number": lambda: 7,
    "negative": lambda: -1,
    "float": lambda: 1.5,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: float("-inf"),
    "huge float": lambda: 1e300,
    "65 bits": lambda: 1 << 64,
    "very negative": lambda: -(1 << 64),
    "5000 digits": lambda: 10**5_000,
    "bool": lambda: True,
    "bytes": lambda: b"\xff\x00",
    "object": object,
    "class": lambda: dict,
    "hostile": Hostile,
    "hostile string": lambda: HostileStr("memory_started"),
    "hostile number": lambda: HostileInt(5),
    "hostile mapping": HostileMapping,
    "hostile exception": HostileError,
    "cyclic": cyclic_dict,
    "deep": deep_list,
    "list": lambda: [1, None, "two"],
    "set": lambda: {1, "two"},
    "thousands of keys": lambda: {f"key {n}": n for n in range(5_000)},
    "odd keys": lambda: {None: 1, ("a",): 2, 3: 3, "": 4, "\ud800": 5, HUGE: 6, b"b": 7},
    "uuid4": lambda: str(uuid.UUID("2d1e4a1c-90b7-4f0e-a2a4-6c8d8a4b9f10")),
    "UUID": lambda: uuid.UUID("2d1e4a1c-90b7-4f0e-a2a4-6c8d8a4b9f10"),
    "zeros": lambda: "00000000-0000-0000-0000-000000000000",
    "surrogate": lambda: "a\ud800b",
    "control": lambda: "a\x00b\x1b[31m\n",
    "huge": lambda: HUGE,
    "format": lambda: "%s %d {0} {name}",
}

GOOD: dict[str, tuple[str, ...]] = {
    "create_transaction": ("id", "id", "id"),
    "track_event": ("transaction", "stage", "success", "text"),
    "track_audio_chunk": ("transaction", "size"),
    "track_progress": ("transaction", "stage"),
    "track_skipped": ("transaction", "stage", "text"),
    "track_queued": ("transaction", "stage"),
    "hand_over": ("transaction",),
    "track_websocket_connected": ("id", "id"),
    "track_websocket_disconnected": ("id",),
    "get_transaction": ("transaction",),
    "describe_transaction": ("transaction",),
    "get_user_transactions": ("id", "limit"),
    "get_recent_transactions": ("limit",),
    "trace_url": ("transaction",),
    "start_memory_session": ("id", "id", "id", "text"),
    "start_memory_processing": ("session",),
    "complete_memory_processing": ("session", "success", "text"),
    "add_memory_extraction": (
        "session", "id", "id", "text", "text", "text", "text", "metadata",
    ),
    "add_extraction_attempt": (
        "session", "id", "text", "success", "text", "size", "size", "text", "text",
    ),
    "add_transcript_segment": ("session", "id", "size", "text", "text", "size", "text"),
    "update_full_conversation": ("session", "text"),
    "get_session_summary": ("id",),
    "get_recent_sessions": ("limit",),
    "force_flush": ("limit",),
}  # fmt: skip
"""Every public method that takes arguments, with what each argument is."""

TAKE_METADATA = ("track_event", "track_progress", "track_skipped")


@pytest.fixture
def t(tmp_path: Path) -> Iterator[Harness]:
    with fresh_tracker(debug_dump_dir=tmp_path) as harness:
        yield harness


def encode(t: Harness) -> ExportTraceServiceRequest:
    """Ends everything and encodes every span as an exporter would: a bad one fails the batch."""
    t.tracker.shutdown()
    request = encode_spans(t.finished_spans())
    request.SerializeToString()
    return request


def assert_sound(t: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """Every read answers as JSON, totals add up, spans encode, and nothing was lost on the way."""
    data = t.tracker.get_dashboard_data()
    json.dumps(data, allow_nan=False).encode()
    json.dumps(t.tracker.get_recent_transactions(100), allow_nan=False).encode()
    json.dumps(t.tracker.get_recent_sessions(100), allow_nan=False).encode()
    json.dumps(t.tracker.get_session_summary("id"), allow_nan=False).encode()
    json.dumps(t.tracker.get_stats(), allow_nan=False).encode()
    json.loads(t.tracker.export_debug_dump().read_text())
    m = data["system_metrics"]
    parts = ("active", "completed", "failed", "stalled")
    assert m["total_transactions"] == sum(m[f"{part}_transactions"] for part in parts)
    assert encode(t).resource_spans
    assert [r.getMessage() for r in caplog.records if r.name.startswith("opentelemetry")] == []


def test_the_table_has_every_public_method() -> None:
    """No public method of the tracker is missing from the table that this file goes by."""
    public = {
        name
        for name in dir(DebugSystemTracker)
        if not name.startswith("_") and callable(getattr(DebugSystemTracker, name))
    }
    no_arguments = {
        "get_dashboard_data", "get_system_metrics", "get_stats", "export_debug_dump", "sweep",
    }  # fmt: skip
    set_up = {"configure", "declare", "shutdown", "detach"}
    assert set(GOOD) == public - no_arguments - set_up


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", GOOD)
def test_no_argument_raises_into_the_caller(
    t: Harness, caplog: pytest.LogCaptureFixture, method: str, bad: str
) -> None:
    """Each argument of each method takes each bad value, and the tracker stays sound."""
    tracker = t.tracker
    session = tracker.start_memory_session("id", "id", "id", "mail")
    tracker.start_memory_processing(session)
    for position in range(len(GOOD[method])):
        transaction_id = tracker.create_transaction("id", "id", "id")
        good: dict[str, Any] = {
            "transaction": transaction_id, "session": session, "stage": "memory_completed",
            "success": True, "id": "id", "text": "text", "size": 10, "limit": 10,
            "metadata": {"a": 1},
        }  # fmt: skip
        arguments = [good[what] for what in GOOD[method]]
        arguments[position] = BAD[bad]()
        getattr(tracker, method)(*arguments)
        t.clock.advance(0.01)
    assert_sound(t, caplog)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", TAKE_METADATA)
@pytest.mark.parametrize("merged", [False, True])
def test_no_metadata_raises_into_the_caller(
    t: Harness, caplog: pytest.LogCaptureFixture, method: str, bad: str, merged: bool
) -> None:
    """Any value as metadata leaves the event in place, the dump strict JSON and the spans whole."""
    transaction_id = t.tracker.create_transaction("id", "id")
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    metadata: dict[str, Any] = {"metadata": BAD[bad]()} if merged else {"value": BAD[bad]()}
    getattr(t.tracker, method)(transaction_id, "memory_completed", **metadata)
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    expected = MEMORY_STARTED if method == "track_progress" else MEMORY_COMPLETED
    assert found.events[-1].stage is expected
    assert all(len(event.metadata) <= 150 for event in found.events)
    assert all(len(key) <= 64 for event in found.events for key in event.metadata)
    assert_sound(t, caplog)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1 << 64, "18446744073709551616"),
        (-(1 << 63), -(1 << 63)),
        ((1 << 63) - 1, (1 << 63) - 1),
        ("a\ud800b", "a?b"),
        (b"\xff\x00", "<bytes of 2 bytes>"),
        (object(), "<object>"),
        ([1, {"a": (2, None)}], [1, {"a": [2, None]}]),
        (PipelineStage.MEMORY_STARTED, "memory_started"),
        (ValueError("bad"), "bad"),
        (HostileError(), "HostileError"),
    ],
)
def test_metadata_is_kept_as_plain_data(t: Harness, value: object, kept: object) -> None:
    """What a value of metadata becomes in the process: the same as far as JSON has it."""
    transaction_id = t.tracker.create_transaction("id", "id")
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, value=value)
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert found.events[0].metadata == {"value": kept}


def test_cyclic_and_deep_metadata_is_cut(t: Harness) -> None:
    """Nesting is kept some levels deep, and a cycle ends there."""
    transaction_id = t.tracker.create_transaction("id", "id")
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, cyclic=cyclic_dict(), deep=deep_list())
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert len(json.dumps(found.events[0].metadata)) < 500


def test_huge_strings_are_cut_in_memory_and_at_export(t: Harness) -> None:
    """A megabyte of text is kept as some kilobytes, and leaves as 256 characters."""
    transaction_id = t.tracker.create_transaction(HUGE, HUGE, HUGE)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, HUGE, note=HUGE)
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert len(found.events[0].metadata["note"]) == 8_192
    assert len(found.events[0].error_message or "") <= 8_192
    assert len(encode(t).SerializeToString()) < 10_000


WARNED: dict[str, tuple[str, Callable[[DebugSystemTracker, str], object]]] = {
    "unknown id": ("transaction_id", lambda k, _: k.track_event("nonsense", MEMORY_STARTED)),
    "None as id": ("transaction_id", lambda k, _: k.track_event(None, MEMORY_STARTED)),
    "no id": ("transaction_id", lambda k, _: k.track_event(stage=MEMORY_STARTED)),
    "foreign UUID": (
        "foreign_id",
        lambda k, _: k.track_audio_chunk("2d1e4a1c-90b7-4f0e-a2a4-6c8d8a4b9f10", 10),
    ),
    "foreign UUID in progress": (
        "foreign_id",
        lambda k, _: k.track_progress("2d1e4a1c-90b7-4f0e-a2a4-6c8d8a4b9f10"),
    ),
    "foreign UUID in hand_over": (
        "foreign_id",
        lambda k, _: k.hand_over("2d1e4a1c-90b7-4f0e-a2a4-6c8d8a4b9f10"),
    ),
    "foreign UUID in a memory session": (
        "foreign_id",
        lambda k, _: k.start_memory_processing("2d1e4a1c-90b7-4f0e-a2a4-6c8d8a4b9f10"),
    ),
    "no stage": ("stage", lambda k, i: k.track_event(i)),
    "empty stage": ("stage", lambda k, i: k.track_event(i, "")),
    "a number as stage": ("stage", lambda k, i: k.track_event(i, 7)),
    "an overlong stage": ("stage", lambda k, i: k.track_event(i, "x" * 65)),
    "a surrogate as stage": ("stage", lambda k, i: k.track_event(i, "\ud800_started")),
    "a skip of no stage": ("stage", lambda k, i: k.track_skipped(i, None)),
    "a queue of no stage": ("stage", lambda k, i: k.track_queued(i, object())),
    "too many arguments": ("arguments", lambda k, i: k.track_event(i, "memory", True, None, 5)),
}


@pytest.mark.parametrize(("problem", "call"), WARNED.values(), ids=list(WARNED))
def test_bad_input_is_warned_about_once_and_counted(
    t: Harness,
    caplog: pytest.LogCaptureFixture,
    problem: str,
    call: Callable[[DebugSystemTracker, str], object],
) -> None:
    """The same mistake three times is one warning, and three under health.problems."""
    transaction_id = t.tracker.create_transaction("id", "id")
    for _ in range(3):
        call(t.tracker, transaction_id)
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.name for r in warnings] == ["otel_tracker"]
    assert t.tracker.get_dashboard_data()["health"]["problems"] == {problem: 3}
    assert t.tracker.get_dashboard_data()["system_metrics"]["total_transactions"] == 1


@pytest.mark.parametrize("stage", [None, 7, "", Hostile()])
def test_progress_of_a_bad_stage_is_warned_about(t: Harness, stage: object) -> None:
    """A stage that track_progress does not know is counted, like everywhere else."""
    transaction_id = t.tracker.create_transaction("id", "id")
    t.tracker.track_progress(transaction_id, stage)
    problems = t.tracker.get_dashboard_data()["health"]["problems"]
    assert problems == ({} if stage is None else {"stage": 1})


def test_a_foreign_id_makes_no_transaction(t: Harness) -> None:
    """Callers hold many UUIDs; one of another system's makes neither a row nor a span."""
    foreign = str(uuid.uuid4())
    t.tracker.track_event(foreign, MEMORY_STARTED)
    t.tracker.track_audio_chunk(foreign, 10)
    t.tracker.hand_over(foreign)
    assert t.tracker.get_transaction(foreign) is None
    assert t.tracker.trace_url(foreign) == ""
    assert t.tracker.get_recent_transactions() == []
    t.tracker.shutdown()
    assert t.finished_spans() == []


@pytest.mark.parametrize("form", ["upper", "hex", "spaces"])
def test_other_spellings_of_our_own_id(t: Harness, form: str) -> None:
    """Jaeger's 32 digits and capitals are the same transaction; a padded id is none."""
    transaction_id = t.tracker.create_transaction("id", "id")
    spelled = {
        "upper": transaction_id.upper(),
        "hex": transaction_id.replace("-", ""),
        "spaces": f" {transaction_id} ",
    }[form]
    t.tracker.track_event(spelled, MEMORY_COMPLETED, False, "boom")
    expected = TransactionStatus.IN_PROGRESS if form == "spaces" else TransactionStatus.FAILED
    assert t.status(transaction_id) is expected
    assert len(t.tracker.get_recent_transactions()) == 1


@pytest.mark.parametrize("size", [1 << 70, 10**30, float("inf"), -5, None, "12", b"1234"])
def test_odd_chunk_sizes_leave_the_audio_counts_exportable(
    t: Harness, caplog: pytest.LogCaptureFixture, size: object
) -> None:
    """A chunk of an impossible size is still one chunk, and the span keeps its counts."""
    transaction_id = t.tracker.create_transaction("id", "id")
    t.tracker.track_audio_chunk(transaction_id, size)
    t.tracker.track_audio_chunk(transaction_id, 10)
    assert t.tracker.get_dashboard_data()["system_metrics"]["total_audio_chunks"] == 2
    assert_sound(t, caplog)
    (audio,) = [s for s in t.spans() if s["name"] == "audio"]
    total = audio["attributes"]["otel_tracker.audio.bytes"]
    assert 10 <= total < 1 << 63


@pytest.mark.parametrize("milliseconds", [float("nan"), float("inf"), 1e15, 1e300, -5, 10**40, "9"])
def test_odd_durations_leave_the_spans_exportable(
    t: Harness, caplog: pytest.LogCaptureFixture, milliseconds: object
) -> None:
    """An extraction attempt of an impossible length is kept, and no span begins before 1970."""
    session = t.tracker.start_memory_session("id", "client", "user", "mail")
    t.tracker.add_extraction_attempt(session, "id", "first", True, None, milliseconds)
    summary = t.tracker.get_session_summary("id")
    assert summary is not None
    assert len(summary["extraction_attempts"]) == 1
    assert_sound(t, caplog)
    (span,) = [s for s in t.finished_spans() if s.name == "extraction attempt"]
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 <= span.start_time < span.end_time


@pytest.mark.parametrize("bad", ["hostile", "hostile string", "hostile mapping", "cyclic"])
def test_an_event_with_a_hostile_message_still_counts(t: Harness, bad: str) -> None:
    """A failure whose message cannot be read is a failure all the same."""
    transaction_id = t.tracker.create_transaction("id", "id")
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, BAD[bad]())
    assert t.status(transaction_id) is TransactionStatus.FAILED
    assert (t.issue(transaction_id) or "").startswith("Failed at memory_completed: ")


def test_bad_input_to_a_disabled_tracker() -> None:
    """Disabled, every call with every bad value answers too, and nothing is tracked."""
    with fresh_tracker(disabled=True) as t:
        for method, kinds in GOOD.items():
            for make in BAD.values():
                getattr(t.tracker, method)(*[make() for _ in kinds])
        data = t.tracker.get_dashboard_data()
        assert data["system_metrics"]["total_transactions"] == 0
        assert data["health"]["disabled"] is True
        t.tracker.shutdown()
        assert t.finished_spans() == []
