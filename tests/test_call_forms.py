"""The old tracker's API as its real callers wrote it: call forms, keys, orders and copies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import runpy
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import otel_tracker
from otel_tracker import (
    DebugSystemTracker,
    PipelineEvent,
    PipelineStage,
    StageEvent,
    SystemMetrics,
    Transaction,
    TransactionStatus,
    get_debug_tracker,
    init_debug_tracker,
    shutdown_debug_tracker,
)
from otel_tracker.testing import Harness, fresh_tracker

USER = "507f1f77bcf86cd799439011"
CLIENT = "cd7994-laptop"
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED


@pytest.fixture
def t(tmp_path: Path) -> Iterator[Harness]:
    with fresh_tracker(debug_dump_dir=tmp_path) as harness:
        yield harness


def new(t: Harness) -> str:
    return t.tracker.create_transaction(USER, CLIENT)


def transaction(t: Harness, transaction_id: str) -> Transaction:
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    return found


def last_event(t: Harness, transaction_id: str) -> PipelineEvent:
    return transaction(t, transaction_id).events[-1]


# --- create_transaction ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "conversation"),
    [
        ((USER, CLIENT), {}, None),
        ((USER, CLIENT, "conv_123"), {}, "conv_123"),
        ((USER, CLIENT), {"conversation_id": "conv_123"}, "conv_123"),
        ((), {"user_id": USER, "client_id": CLIENT, "conversation_id": "conv_123"}, "conv_123"),
        ((USER,), {"client_id": CLIENT, "conversation_id": None}, None),
    ],
)
def test_create_transaction_forms(
    t: Harness, args: tuple[str, ...], kwargs: dict[str, Any], conversation: str | None
) -> None:
    """Every way in which callers create a transaction gives a truthy id that finds it again."""
    transaction_id = t.tracker.create_transaction(*args, **kwargs)
    assert isinstance(transaction_id, str)
    assert transaction_id
    found = transaction(t, transaction_id)
    assert found.transaction_id == transaction_id
    assert (found.user_id, found.client_id) == (USER, CLIENT)
    assert found.conversation_id == conversation


# --- track_event ----------------------------------------------------------------------------------

EVENT_FORMS: list[tuple[tuple[Any, ...], dict[str, Any], bool, str | None, dict[str, Any]]] = [
    ((MEMORY_COMPLETED,), {}, True, None, {}),
    ((MEMORY_COMPLETED, True), {"chunk_size": 1024}, True, None, {"chunk_size": 1024}),
    (
        (MEMORY_COMPLETED, False),
        {"error_message": "Ollama timeout", "retry_count": 2},
        False,
        "Ollama timeout",
        {"retry_count": 2},
    ),
    (
        (MEMORY_COMPLETED,),
        {"success": False, "error_message": "no model", "metadata": {"tries": 3, "gpu": False}},
        False,
        "no model",
        {"tries": 3, "gpu": False},
    ),
    ((MEMORY_COMPLETED, False, "four positionals"), {}, False, "four positionals", {}),
    ((MEMORY_COMPLETED, True, None), {}, True, None, {}),
    ((MEMORY_COMPLETED,), {"metadata": {"count": 7}}, True, None, {"count": 7}),
    (
        (MEMORY_COMPLETED,),
        {"metadata": {"count": 7, "model": "small"}, "count": 8},
        True,
        None,
        {"count": 8, "model": "small"},
    ),
    ((MEMORY_COMPLETED,), {"metadata": "not a mapping"}, True, None, {"metadata": "not a mapping"}),
    (
        (MEMORY_COMPLETED, True),
        {"stage": "review", "self": 1, "transaction_id": "their-own", "success": "maybe"},
        True,
        None,
        {"stage": "review", "self": 1, "transaction_id": "their-own", "success": "maybe"},
    ),
    (
        (MEMORY_COMPLETED, False, "by position"),
        {"error_message": "by keyword"},
        False,
        "by position",
        {"error_message": "by keyword"},
    ),
    (
        (MEMORY_COMPLETED,),
        {"event": 1, "handle": 2, "extra": 3, "kwargs": 4, "tracker": 5, "metadata": {"key": 6}},
        True,
        None,
        {"event": 1, "handle": 2, "extra": 3, "kwargs": 4, "tracker": 5, "key": 6},
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "success", "error", "metadata"), EVENT_FORMS)
def test_track_event_forms(
    t: Harness,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    success: bool,
    error: str | None,
    metadata: dict[str, Any],
) -> None:
    """Every way in which callers report an event arrives with its success, message and metadata."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, *args, **kwargs)
    event = last_event(t, transaction_id)
    assert event.stage is MEMORY_COMPLETED
    assert event.success is success
    assert event.error_message == error
    assert event.metadata == metadata


def test_track_event_all_by_keyword(t: Harness) -> None:
    """The old parameter names work as keywords, and are then no metadata."""
    transaction_id = new(t)
    t.tracker.track_event(
        transaction_id=transaction_id,
        stage=MEMORY_COMPLETED,
        success=False,
        error_message="boom",
        size=3,
    )
    event = last_event(t, transaction_id)
    assert (event.stage, event.success, event.error_message) == (MEMORY_COMPLETED, False, "boom")
    assert event.metadata == {"size": 3}


def test_metadata_of_the_caller_is_not_changed(t: Harness) -> None:
    """The dict that a caller passes as metadata= is as it was after the call."""
    metadata = {"metadata": {"inner": 1}, "count": 2}
    t.tracker.track_event(new(t), MEMORY_COMPLETED, metadata=metadata)
    assert metadata == {"metadata": {"inner": 1}, "count": 2}


def test_fifth_positional_argument_does_not_break_the_caller(
    t: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """One argument too many is warned about once, and the event counts."""
    transaction_id = new(t)
    for _ in range(2):
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "boom", {"lost": 1})
    assert last_event(t, transaction_id).error_message == "boom"
    assert len([r for r in caplog.records if "four arguments" in r.getMessage()]) == 1
    assert t.tracker.get_dashboard_data()["health"]["problems"] == {"arguments": 2}


class OldStage(Enum):
    """The enum as a caller's code copied it from the old module."""

    MEMORY_STARTED = "memory_started"


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        *[(stage, stage) for stage in PipelineStage],
        *[(stage.value, stage) for stage in PipelineStage],
        ("MEMORY_STARTED", PipelineStage.MEMORY_STARTED),
        (OldStage.MEMORY_STARTED, PipelineStage.MEMORY_STARTED),
        ("diarization_started", StageEvent("diarization_started")),
        ("diarization_completed", StageEvent("diarization_completed")),
        (StageEvent("diarization_completed"), StageEvent("diarization_completed")),
        ("diarization", StageEvent("diarization_completed")),
    ],
)
def test_stage_as_enum_value_or_own_name(t: Harness, stage: object, expected: Any) -> None:
    """A stage may be an enum member, its value, or an event of a stage of the user's own."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, stage)
    found = transaction(t, transaction_id)
    assert found.current_stage == expected
    assert found.current_stage is not None
    assert found.current_stage.value == expected.value
    assert found.get_stage_status(expected) is True
    row = t.tracker.get_dashboard_data()["recent_transactions"][0]
    assert row["current_stage"] == expected.value


def test_own_stage_fails_by_its_own_name(t: Harness) -> None:
    """A failure of a stage of the user's own is told with that stage's event."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, "diarization_started")
    t.tracker.track_event(transaction_id, "diarization_completed", False, "no speakers")
    assert t.status(transaction_id) is TransactionStatus.FAILED
    assert t.issue(transaction_id) == "Failed at diarization_completed: no speakers"


def test_an_exception_as_error_message(t: Harness) -> None:
    """A caller may pass the exception itself where a message is asked for."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, ValueError("bad shape"))
    assert t.issue(transaction_id) == "Failed at memory_completed: bad shape"


# --- audio and websockets -------------------------------------------------------------------------


def test_audio_chunks_by_position_and_keyword(t: Harness) -> None:
    """Each track_audio_chunk is one chunk, and so is an AUDIO_RECEIVED with a chunk_size alone."""
    transaction_id = new(t)
    packet = b"\0" * 320
    t.tracker.track_audio_chunk(transaction_id, len(packet))
    t.tracker.track_audio_chunk(transaction_id, chunk_size=100)
    t.tracker.track_audio_chunk(transaction_id=transaction_id, chunk_size=50)
    t.tracker.track_audio_chunk(transaction_id)
    t.tracker.track_event(transaction_id, PipelineStage.AUDIO_RECEIVED, True, chunk_size=1024)
    t.tracker.track_event(transaction_id, PipelineStage.AUDIO_RECEIVED)
    assert t.tracker.get_dashboard_data()["system_metrics"]["total_audio_chunks"] == 5
    event = last_event(t, transaction_id)
    assert event.stage is PipelineStage.AUDIO_RECEIVED
    assert event.metadata == {"chunk_size": 1024, "chunks": 5, "bytes": 320 + 100 + 50 + 1024}


def test_websockets_by_position_and_keyword(t: Harness) -> None:
    """Connections are counted in and out in both call forms, and show as an active user."""
    t.tracker.track_websocket_connected(USER, CLIENT)
    t.tracker.track_websocket_connected(user_id="other", client_id="phone")
    data = t.tracker.get_dashboard_data()
    assert data["system_metrics"]["active_websockets"] == 2
    assert data["active_users"] == 2
    t.tracker.track_websocket_disconnected(CLIENT)
    assert t.tracker.get_dashboard_data()["system_metrics"]["active_websockets"] == 1
    t.tracker.track_websocket_disconnected(client_id="phone")
    t.tracker.track_websocket_disconnected("never-connected")
    assert t.tracker.get_dashboard_data()["system_metrics"]["active_websockets"] == 0


# --- the new calls, as the README shows them ------------------------------------------------------


@pytest.mark.parametrize("by_keyword", [False, True])
def test_track_skipped_takes_its_reason_in_both_forms(t: Harness, by_keyword: bool) -> None:
    """The reason of a skip is kept and exported, given by position or by its name."""
    transaction_id = new(t)
    if by_keyword:
        t.tracker.track_skipped(transaction_id, "memory", reason="empty transcript")
    else:
        t.tracker.track_skipped(transaction_id, "memory", "empty transcript")
    t.advance(5)
    assert t.status(transaction_id) is TransactionStatus.COMPLETED
    (span,) = [s for s in t.spans() if s["name"] == "memory skipped"]
    assert span["attributes"]["otel_tracker.stage.skip_reason"] == "empty transcript"


@pytest.mark.parametrize("call", ["track_skipped", "track_queued", "track_progress", "hand_over"])
def test_new_calls_take_their_arguments_by_name(t: Harness, call: str) -> None:
    """The calls that are new take transaction_id= and stage= like the old ones do."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, "fetch_started")
    arguments: dict[str, Any] = {"transaction_id": transaction_id}
    if call != "hand_over":
        arguments["stage"] = "fetch"
    getattr(t.tracker, call)(**arguments)
    assert t.tracker.get_dashboard_data()["health"]["problems"] == {}


# --- the shared tracker ---------------------------------------------------------------------------

CALLER_MODULE = """
from otel_tracker import *

tracker = get_debug_tracker()
transaction_id = tracker.create_transaction("user-1", "client-1")
tracker.track_event(transaction_id, PipelineStage.AUDIO_RECEIVED)
tracker.track_event(transaction_id, PipelineStage.TRANSCRIPTION_COMPLETED, True, words=5)
tracker.track_event(transaction_id, PipelineStage.MEMORY_COMPLETED, False, error_message="no model")
transaction: Transaction | None = tracker.get_transaction(transaction_id)
assert transaction.status is TransactionStatus.FAILED
"""


def test_star_import_is_the_whole_migration(tmp_path: Path) -> None:
    """A caller's module that says `from otel_tracker import *` has every old name and works."""
    module = tmp_path / "caller.py"
    module.write_text(CALLER_MODULE)
    with fresh_tracker(use_as_shared=True) as t:
        names = runpy.run_path(str(module))
        assert names["tracker"] is t.tracker
        assert (
            t.issue(names["transaction_id"]) == "Transcription completed but memory creation failed"
        )
    for name in [
        "get_debug_tracker", "init_debug_tracker", "shutdown_debug_tracker", "DebugSystemTracker",
        "PipelineStage", "TransactionStatus", "Transaction", "PipelineEvent", "SystemMetrics",
    ]:  # fmt: skip
        assert names[name] is getattr(otel_tracker, name)


def test_the_enums_are_the_old_ones() -> None:
    """The members and values of both enums are those that callers and stored dumps know."""
    assert {s.name: s.value for s in PipelineStage} == {
        "AUDIO_RECEIVED": "audio_received",
        "TRANSCRIPTION_STARTED": "transcription_started",
        "TRANSCRIPTION_COMPLETED": "transcription_completed",
        "MEMORY_STARTED": "memory_started",
        "MEMORY_COMPLETED": "memory_completed",
        "CONVERSATION_ENDED": "conversation_ended",
    }
    assert {s.name: s.value for s in TransactionStatus} == {
        "IN_PROGRESS": "in_progress",
        "COMPLETED": "completed",
        "FAILED": "failed",
        "STALLED": "stalled",
    }


def test_the_shared_tracker_is_truthy_and_always_the_same() -> None:
    """`tracker is not None` and `if tracker:` hold, also while it has tracked nothing."""
    with fresh_tracker(use_as_shared=True) as t:
        assert get_debug_tracker() is t.tracker
        assert get_debug_tracker() is get_debug_tracker()
        assert get_debug_tracker() is not None
        assert bool(get_debug_tracker())


def test_an_independent_tracker_needs_no_arguments() -> None:
    """DebugSystemTracker() is a tracker of its own: what it tracks is not the shared one's."""
    with fresh_tracker(use_as_shared=True) as t:
        tracker = DebugSystemTracker()
        try:
            transaction_id = tracker.create_transaction(USER, CLIENT)
            assert tracker.get_transaction(transaction_id) is not None
            assert t.tracker.get_transaction(transaction_id) is None
        finally:
            tracker.shutdown()


def test_asgi_lifespan() -> None:
    """init and shutdown in an ASGI lifespan, tracking in between and reads after, all work."""

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        init_debug_tracker()
        yield
        shutdown_debug_tracker()

    async def serve() -> str:
        async with lifespan(None):
            return await route()

    async def route() -> str:
        transaction_id = get_debug_tracker().create_transaction(USER, CLIENT)
        await asyncio.to_thread(
            get_debug_tracker().track_event, transaction_id, PipelineStage.AUDIO_RECEIVED
        )
        return transaction_id

    with fresh_tracker(use_as_shared=True) as t:
        first = asyncio.run(serve())
        t.advance(1)
        second = asyncio.run(serve())
        assert get_debug_tracker() is t.tracker
        assert [row["id"] for row in t.tracker.get_recent_transactions()] == [second, first]
        shutdown_debug_tracker()
        assert get_debug_tracker().get_dashboard_data()["system_metrics"]["total_transactions"] == 2


def test_thread_pool_without_an_event_loop(t: Harness) -> None:
    """Eight threads of a caller's own pool lose nothing and count nothing twice."""

    def work(number: int) -> str:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        transaction_id = t.tracker.create_transaction(f"user-{number % 5}", f"client-{number}")
        for _ in range(10):
            t.tracker.track_audio_chunk(transaction_id, 100)
        t.tracker.track_event(transaction_id, PipelineStage.TRANSCRIPTION_STARTED)
        t.tracker.track_event(transaction_id, PipelineStage.TRANSCRIPTION_COMPLETED, True)
        t.tracker.track_event(transaction_id, PipelineStage.MEMORY_STARTED)
        t.tracker.track_event(transaction_id, PipelineStage.MEMORY_COMPLETED, number % 4 != 0)
        t.tracker.track_event(transaction_id, PipelineStage.CONVERSATION_ENDED)
        t.tracker.get_dashboard_data()
        return transaction_id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(work, range(80)))
    assert len(set(ids)) == 80
    metrics = t.tracker.get_dashboard_data()["system_metrics"]
    assert metrics["total_transactions"] == 80
    assert metrics["completed_transactions"] == 60
    assert metrics["failed_transactions"] == 20
    assert metrics["active_transactions"] == metrics["stalled_transactions"] == 0
    assert metrics["total_audio_chunks"] == 800
    assert metrics["total_transcriptions"] == 80
    assert metrics["total_memories"] == 60


# --- reads: keys and orders -----------------------------------------------------------------------

METRICS_KEYS = [
    "uptime_hours", "total_transactions", "active_transactions", "completed_transactions",
    "failed_transactions", "stalled_transactions", "active_websockets", "total_audio_chunks",
    "total_transcriptions", "total_memories", "last_activity",
]  # fmt: skip


def twelve(t: Harness) -> list[str]:
    """Twelve transactions, a second apart; each fails in a way of its own."""
    ids = []
    for number in range(12):
        transaction_id = t.tracker.create_transaction(f"user-000{number:02d}", f"client-{number}")
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "abcdefghijkl"[number])
        ids.append(transaction_id)
        t.advance(1)
    return ids


@pytest.mark.parametrize("tracked", [False, True])
def test_dashboard_keys(t: Harness, tracked: bool) -> None:
    """The documented keys come first, in their order, also when nothing was tracked yet."""
    if tracked:
        twelve(t)
    data = t.tracker.get_dashboard_data()
    assert list(data)[:4] == [
        "system_metrics", "recent_transactions", "recent_issues", "active_users",
    ]  # fmt: skip
    assert set(data) >= {"issue_patterns", "stalled", "waiting", "stages", "health"}
    assert list(data["system_metrics"]) == METRICS_KEYS
    assert data["active_users"] == (12 if tracked else 0)
    assert len(data["recent_transactions"]) == len(data["recent_issues"]) == (10 if tracked else 0)
    json.dumps(data, allow_nan=False)


def test_dashboard_values(t: Harness) -> None:
    """Every documented figure has the old meaning: counts, hours, ISO texts, None before all."""
    empty = t.tracker.get_dashboard_data()["system_metrics"]
    assert empty == {**dict.fromkeys(METRICS_KEYS, 0), "last_activity": None}
    ids = twelve(t)
    t.advance(3600 - 12)
    metrics = t.tracker.get_dashboard_data()["system_metrics"]
    assert metrics == {
        **dict.fromkeys(METRICS_KEYS, 0),
        "uptime_hours": 1.0,
        "total_transactions": len(ids),
        "failed_transactions": len(ids),
        "last_activity": metrics["last_activity"],
    }
    last = datetime.fromisoformat(metrics["last_activity"])
    assert abs(last - datetime(2026, 1, 1, 0, 0, 11, tzinfo=UTC)) < timedelta(milliseconds=1)


def test_recent_transactions_of_the_dashboard(t: Harness) -> None:
    """The last ten rows, oldest first, with short ids, six characters of the user, ISO times."""
    ids = twelve(t)
    rows = t.tracker.get_dashboard_data()["recent_transactions"]
    assert [row["id"] for row in rows] == [transaction_id[:8] for transaction_id in ids[-10:]]
    assert rows[-1] == {
        "id": ids[-1][:8],
        "user_id": "-00011",
        "status": "failed",
        "current_stage": "memory_completed",
        "created_at": "2026-01-01T00:00:11+00:00",
        "issue": "Failed at memory_completed: l",
    }
    assert list(rows[-1]) == ["id", "user_id", "status", "current_stage", "created_at", "issue"]


def test_current_stage_is_the_string_none_where_there_is_none(t: Harness) -> None:
    """A transaction without events shows "none" on the dashboard, and None in the dump and copy."""
    transaction_id = new(t)
    assert t.tracker.get_dashboard_data()["recent_transactions"][0]["current_stage"] == "none"
    assert t.tracker.get_recent_transactions()[0]["current_stage"] == "none"
    assert transaction(t, transaction_id).current_stage is None
    dump = json.loads(t.tracker.export_debug_dump().read_text())
    assert dump["transactions"][0]["current_stage"] is None


def test_recent_issues_of_the_dashboard(t: Harness) -> None:
    """The last ten issues, newest last, with whole ids and whole users."""
    ids = twelve(t)
    rows = t.tracker.get_dashboard_data()["recent_issues"]
    assert [row["transaction_id"] for row in rows] == ids[-10:]
    newest = rows[-1]
    assert list(newest)[:4] == ["timestamp", "transaction_id", "user_id", "issue"]
    assert newest["transaction_id"] == ids[-1]
    assert newest["user_id"] == "user-00011"
    assert newest["issue"] == "Failed at memory_completed: l"
    assert newest["timestamp"].startswith("2026-01-01T00:00:11")


def test_active_users_are_those_of_five_minutes(t: Harness) -> None:
    """active_users is a number that forgets a user five minutes after the last activity."""
    t.tracker.create_transaction("early", "a")
    t.advance(200)
    t.tracker.create_transaction("late", "b")
    t.advance(99)
    assert t.tracker.get_dashboard_data()["active_users"] == 2
    t.advance(2)
    assert t.tracker.get_dashboard_data()["active_users"] == 1
    t.advance(300)
    assert t.tracker.get_dashboard_data()["active_users"] == 0


def test_recent_transactions_from_a_route(t: Harness) -> None:
    """A route takes len() of the rows and returns them as JSON: whole ids, newest first."""
    ids = twelve(t)

    async def route(limit: int) -> bytes:
        rows = t.tracker.get_recent_transactions(limit=limit)
        content = {"transactions": rows, "total": len(rows)}
        return json.dumps(content, allow_nan=False, ensure_ascii=False).encode()

    body = json.loads(asyncio.run(route(limit=5)))
    assert body["total"] == 5
    assert [row["id"] for row in body["transactions"]] == ids[:-6:-1]
    assert body["transactions"][0]["user_id"] == "-00011"
    assert body["transactions"][0]["status"] == "failed"
    assert [row["id"] for row in t.tracker.get_recent_transactions()] == ids[:-11:-1]
    assert len(t.tracker.get_recent_transactions(100)) == 12


def test_user_transactions_are_the_newest_first(t: Harness) -> None:
    """get_user_transactions gives the newest `limit` of that user alone, newest first."""
    mine = []
    for _ in range(12):
        mine.append(t.tracker.create_transaction("me", CLIENT))
        t.tracker.create_transaction("someone else", CLIENT)
        t.advance(1)
    newest_first = mine[::-1]
    found = t.tracker.get_user_transactions("me")
    assert [tx.transaction_id for tx in found] == newest_first[:10]
    found = t.tracker.get_user_transactions("me", 3)
    assert [tx.transaction_id for tx in found] == newest_first[:3]
    found = t.tracker.get_user_transactions(user_id="me", limit=100)
    assert [tx.transaction_id for tx in found] == newest_first
    assert t.tracker.get_user_transactions("nobody") == []


def test_transaction_fields_and_methods(t: Harness) -> None:
    """A Transaction has the old fields with aware UTC times, and both old methods."""
    transaction_id = t.tracker.create_transaction(USER, CLIENT, "conv_1")
    t.advance(1)
    t.tracker.track_event(transaction_id, PipelineStage.TRANSCRIPTION_COMPLETED, True, words=3)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model")
    found = transaction(t, transaction_id)
    assert (found.user_id, found.client_id, found.conversation_id) == (USER, CLIENT, "conv_1")
    assert found.created_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert found.created_at.tzinfo is UTC
    assert found.updated_at - found.created_at >= timedelta(seconds=2)
    assert found.status is TransactionStatus.FAILED
    assert found.current_stage is MEMORY_COMPLETED
    assert [e.stage for e in found.events] == [
        PipelineStage.TRANSCRIPTION_COMPLETED, MEMORY_COMPLETED,
    ]  # fmt: skip
    assert found.events[0].metadata == {"words": 3}
    assert found.events[0].timestamp.tzinfo is UTC
    assert found.get_stage_status(PipelineStage.TRANSCRIPTION_COMPLETED) is True
    assert found.get_stage_status(MEMORY_COMPLETED) is False
    assert found.get_stage_status(PipelineStage.MEMORY_STARTED) is None
    assert found.get_issue_description() == "Transcription completed but memory creation failed"
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    assert transaction(t, transaction_id).get_stage_status(MEMORY_COMPLETED) is True


def test_system_metrics(t: Harness) -> None:
    """SystemMetrics has the old fields, and uptime_hours() is a call."""
    ids = twelve(t)
    t.tracker.track_audio_chunk(ids[0], 10)
    t.advance(1800 - 12)
    metrics = t.tracker.metrics
    assert isinstance(metrics, SystemMetrics)
    assert metrics == t.tracker.get_system_metrics()
    assert metrics.uptime_hours() == 0.5
    assert metrics.system_start_time == datetime(2026, 1, 1, tzinfo=UTC)
    assert metrics.total_transactions == metrics.failed_transactions == 12
    assert metrics.active_transactions == metrics.completed_transactions == 0
    assert metrics.stalled_transactions == metrics.active_websockets == 0
    assert metrics.total_audio_chunks_processed == 1
    assert metrics.total_transcriptions == metrics.total_memories_created == 0
    assert metrics.last_activity is not None


# --- copies ---------------------------------------------------------------------------------------


def test_transactions_and_events_are_frozen_copies(t: Harness) -> None:
    """No caller can change what is kept by way of a Transaction, an event or its metadata."""
    transaction_id = new(t)
    t.tracker.track_event(
        transaction_id, MEMORY_COMPLETED, False, "boom", nested={"list": [1, {"deep": 2}]}
    )
    copy = transaction(t, transaction_id)
    event = copy.events[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.status = TransactionStatus.COMPLETED  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.success = True  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        t.tracker.metrics.total_transactions = 9  # type: ignore[misc]
    assert isinstance(copy.events, tuple)
    event.metadata["nested"]["list"][1]["deep"] = "changed"
    event.metadata["added"] = True
    assert transaction(t, transaction_id).events[0].metadata == {
        "nested": {"list": [1, {"deep": 2}]}
    }


def test_a_copy_does_not_change_by_itself(t: Harness) -> None:
    """A Transaction that a caller holds stays as it was at the moment of the call."""
    transaction_id = new(t)
    before = transaction(t, transaction_id)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "boom")
    assert before.status is TransactionStatus.IN_PROGRESS
    assert before.events == ()


@pytest.mark.parametrize("read", ["get_dashboard_data", "get_recent_transactions"])
def test_rows_are_copies(t: Harness, read: str) -> None:
    """Changing everything in a read's answer changes nothing in the next one."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, PipelineStage.MEMORY_STARTED)
    t.tracker.track_queued(transaction_id, "transcription")
    t.advance(61)
    answers = []
    for _ in range(2):
        answer = getattr(t.tracker, read)()
        answers.append(json.dumps(answer))
        _spoil(answer)
    assert answers[0] == answers[1]


def _spoil(value: Any) -> None:
    if isinstance(value, dict):
        for key in list(value):
            _spoil(value[key])
            value[key] = "spoiled"
    elif isinstance(value, list):
        for item in value:
            _spoil(item)
        value.append("spoiled")
