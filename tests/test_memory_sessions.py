"""The memory-session family: keys, times, outcomes, and each session as a transaction."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from otel_tracker import TransactionStatus
from otel_tracker.testing import Harness, fresh_tracker

START = 1_767_225_600.0
"""The injected clock's start, in seconds since the epoch."""

ROW_KEYS = [
    "session_id", "audio_uuid", "client_id", "user_id", "user_email", "session_start_time",
    "session_end_time", "transcript_count", "full_conversation", "memory_processing_started",
    "memory_processing_completed", "memory_processing_success", "memory_processing_error",
]  # fmt: skip
SUMMARY_KEYS = [*ROW_KEYS, "transcript_segments", "memory_extractions", "extraction_attempts"]
STATS_KEYS = [
    "total_sessions", "successful_sessions", "failed_sessions", "success_rate", "total_transcripts",
    "total_memories", "avg_processing_time_seconds", "memories_per_session",
]  # fmt: skip


@pytest.fixture
def t() -> Iterator[Harness]:
    with fresh_tracker() as harness:
        yield harness


def start(t: Harness, audio_uuid: str = "audio-1") -> str:
    return t.tracker.start_memory_session(audio_uuid, "client-1", "user-1", "zoe@example.com")


def summary(t: Harness, audio_uuid: str = "audio-1") -> dict[str, Any]:
    found = t.tracker.get_session_summary(audio_uuid)
    assert found is not None
    return found


def test_a_session_as_its_callers_write_it(t: Harness) -> None:
    """The documented sequence gives the documented summary: every key, time and row."""
    tracker = t.tracker
    session_id = tracker.start_memory_session(
        audio_uuid="audio-1", client_id="client-1", user_id="user-1", user_email="zoe@example.com"
    )
    assert isinstance(session_id, str)
    assert session_id
    t.advance(1)
    tracker.add_transcript_segment(session_id, "audio-1", 0, "Zoe", "buy milk", START, "offline")
    tracker.update_full_conversation(session_id, "buy milk")
    t.advance(1)
    tracker.start_memory_processing(session_id)
    t.advance(2.5)
    tracker.add_extraction_attempt(
        session_id, "audio-1", "first", False, error_message="timeout", processing_time_ms=1500.5,
        transcript_length=8, prompt_used="extract", llm_model="small",
    )  # fmt: skip
    tracker.add_memory_extraction(
        session_id, "audio-1", "mem-1", "Zoe needs milk", memory_type="task",
        extraction_prompt="extract", llm_response="[milk]", metadata={"score": 0.5},
    )  # fmt: skip
    tracker.complete_memory_processing(session_id, True)
    found = summary(t)
    assert found == {
        "session_id": session_id,
        "audio_uuid": "audio-1",
        "client_id": "client-1",
        "user_id": "user-1",
        "user_email": "zoe@example.com",
        "session_start_time": START,
        "session_end_time": START + 4.5,
        "transcript_count": 1,
        "full_conversation": "buy milk",
        "memory_processing_started": START + 2,
        "memory_processing_completed": START + 4.5,
        "memory_processing_success": True,
        "memory_processing_error": None,
        "transcript_segments": [
            {
                "order": 0,
                "speaker": "Zoe",
                "text": "buy milk",
                "timestamp": START,
                "method": "offline",
            }
        ],
        "memory_extractions": [
            {
                "mem0_id": "mem-1",
                "text": "Zoe needs milk",
                "type": "task",
                "prompt": "extract",
                "llm_response": "[milk]",
                "metadata": {"score": 0.5},
            }
        ],
        "extraction_attempts": [
            {
                "type": "first",
                "success": False,
                "error": "timeout",
                "processing_time_ms": 1500.5,
                "transcript_length": 8,
                "prompt": "extract",
                "model": "small",
            }
        ],
    }
    assert list(found) == SUMMARY_KEYS
    json.dumps(found, allow_nan=False)


def test_a_new_session_has_every_key(t: Harness) -> None:
    """Before anything happened success is None, times are None, and lists are empty."""
    session_id = start(t)
    found = summary(t)
    assert list(found) == SUMMARY_KEYS
    assert found["session_id"] == session_id
    assert found["session_start_time"] == START
    for key in SUMMARY_KEYS[6:]:
        expected: Any = 0 if key == "transcript_count" else None
        assert found[key] == ([] if key in SUMMARY_KEYS[-3:] else expected), key


@pytest.mark.parametrize(
    ("arguments", "success", "error", "status"),
    [
        ((True,), True, None, TransactionStatus.COMPLETED),
        ((True, None), True, None, TransactionStatus.COMPLETED),
        ((False, "no model"), False, "no model", TransactionStatus.FAILED),
        ((False,), False, None, TransactionStatus.FAILED),
        ((False, ConnectionError("refused")), False, "refused", TransactionStatus.FAILED),
        (None, None, None, TransactionStatus.STALLED),
    ],
)
def test_outcomes(
    t: Harness,
    arguments: tuple[Any, ...] | None,
    success: bool | None,
    error: str | None,
    status: TransactionStatus,
) -> None:
    """Success is true, false or None in the summary, and the transaction stands accordingly."""
    session_id = start(t)
    t.tracker.start_memory_processing(session_id)
    t.advance(1)
    if arguments is not None:
        t.tracker.complete_memory_processing(session_id, *arguments)
    t.advance(60)
    found = summary(t)
    assert found["memory_processing_success"] is success
    assert found["memory_processing_error"] == error
    assert (found["session_end_time"] is None) is (arguments is None)
    assert t.status(session_id) is status


def test_a_failed_session_has_its_issue(t: Harness) -> None:
    """A failure shows on the dashboard with its message, though there was no transcription."""
    session_id = start(t)
    t.tracker.start_memory_processing(session_id)
    t.tracker.complete_memory_processing(session_id, False, "no model")
    assert t.issue(session_id) == "Failed at memory_completed: no model"
    assert t.tracker.get_dashboard_data()["system_metrics"]["failed_transactions"] == 1


def test_a_retry_puts_a_session_right(t: Harness) -> None:
    """Completed a second time, the newest outcome holds, in the summary and in the status."""
    session_id = start(t)
    for success in (False, True):
        t.advance(1)
        t.tracker.start_memory_processing(session_id)
        t.advance(1)
        t.tracker.complete_memory_processing(session_id, success, None if success else "timeout")
    t.advance(5)
    found = summary(t)
    assert found["memory_processing_success"] is True
    assert found["memory_processing_error"] is None
    assert t.status(session_id) is TransactionStatus.COMPLETED
    assert t.tracker.get_stats()["successful_sessions"] == 1
    assert t.tracker.get_stats()["failed_sessions"] == 0


def test_defaults_of_the_rows(t: Harness) -> None:
    """What callers leave out is None, "general", or counted up."""
    session_id = start(t)
    t.advance(1)
    t.tracker.add_memory_extraction(session_id, "audio-1", "mem-1", "text")
    t.tracker.add_extraction_attempt(session_id, "audio-1", "first", True)
    t.tracker.add_transcript_segment(session_id, text="one")
    t.tracker.add_transcript_segment(session_id, text="two")
    found = summary(t)
    assert found["memory_extractions"] == [
        {
            "mem0_id": "mem-1", "text": "text", "type": "general", "prompt": None,
            "llm_response": None, "metadata": {},
        }
    ]  # fmt: skip
    assert found["extraction_attempts"] == [
        {
            "type": "first", "success": True, "error": None, "processing_time_ms": None,
            "transcript_length": None, "prompt": None, "model": None,
        }
    ]  # fmt: skip
    assert [
        (row["order"], row["text"], row["timestamp"]) for row in found["transcript_segments"]
    ] == [
        (0, "one", START + 1),
        (1, "two", START + 1),
    ]
    assert found["transcript_count"] == 2


def test_segments_and_attempts_are_progress(t: Harness) -> None:
    """A session that keeps working is no stall, however long it takes."""
    session_id = start(t)
    t.tracker.start_memory_processing(session_id)
    for number in range(10):
        t.advance(59)
        if number % 2:
            t.tracker.add_extraction_attempt(session_id, "audio-1", "again", False, "timeout")
        else:
            t.tracker.add_memory_extraction(session_id, "audio-1", str(number), "text")
        assert t.status(session_id) is TransactionStatus.IN_PROGRESS
    t.advance(60)
    assert t.status(session_id) is TransactionStatus.STALLED


def test_the_newest_session_of_a_recording_is_its_summary(t: Harness) -> None:
    """Two sessions of one recording: the summary is the newer one's; an unknown one has None."""
    start(t)
    t.advance(1)
    newer = start(t)
    start(t, "audio-2")
    assert summary(t)["session_id"] == newer
    assert t.tracker.get_session_summary("never heard of") is None
    assert t.tracker.get_session_summary(newer) is None


def test_recent_sessions(t: Harness) -> None:
    """Rows have the summary's fields up to the error, newest first, twenty by default."""
    ids = []
    for number in range(25):
        ids.append(start(t, f"audio-{number}"))
        t.advance(1)
    rows = t.tracker.get_recent_sessions()
    assert [row["session_id"] for row in rows] == ids[:-21:-1]
    assert [row["session_id"] for row in t.tracker.get_recent_sessions(limit=3)] == ids[:-4:-1]
    assert list(rows[0]) == ROW_KEYS
    assert t.tracker.get_recent_sessions(0) == []


def test_stats_of_nothing(t: Harness) -> None:
    """Before any session every figure is 0, and none is missing."""
    assert t.tracker.get_stats() == dict.fromkeys(STATS_KEYS, 0)


def test_stats(t: Harness) -> None:
    """Totals, the rate in percent, and averages in seconds and by session."""
    for number, outcome in enumerate([True, True, False, None]):
        session_id = start(t, f"audio-{number}")
        t.tracker.add_transcript_segment(session_id, text="one")
        t.tracker.start_memory_processing(session_id)
        t.advance(2 + number)
        if outcome:
            for memory in range(3):
                t.tracker.add_memory_extraction(session_id, "audio", str(memory), "text")
        if outcome is not None:
            t.tracker.complete_memory_processing(session_id, outcome)
    stats = t.tracker.get_stats()
    assert list(stats) == STATS_KEYS
    assert stats == {
        "total_sessions": 4,
        "successful_sessions": 2,
        "failed_sessions": 1,
        "success_rate": 50.0,
        "total_transcripts": 4,
        "total_memories": 6,
        "avg_processing_time_seconds": 3.0,
        "memories_per_session": 1.5,
    }


def test_stats_survive_a_step_of_the_wall_clock(t: Harness) -> None:
    """Processing time is measured by the monotonic clock."""
    session_id = start(t)
    t.tracker.start_memory_processing(session_id)
    t.clock.advance(2)
    t.clock.step_wall(-3_600)
    t.clock.advance(2)
    t.tracker.complete_memory_processing(session_id, True)
    assert t.tracker.get_stats()["avg_processing_time_seconds"] == 4.0


def test_sessions_are_bounded_and_totals_are_not(t: Harness) -> None:
    """Of a thousand sessions some hundreds are kept; the totals count every one."""
    for number in range(1_000):
        session_id = start(t, f"audio-{number}")
        t.tracker.add_memory_extraction(session_id, "audio", "1", "text")
        t.tracker.complete_memory_processing(session_id, number % 2 == 0)
    assert t.tracker.get_session_summary("audio-0") is None
    assert t.tracker.get_session_summary("audio-999") is not None
    assert len(t.tracker.get_recent_sessions(10_000)) < 500
    stats = t.tracker.get_stats()
    assert stats["total_sessions"] == 1_000
    assert stats["successful_sessions"] == stats["failed_sessions"] == 500
    assert stats["total_memories"] == 1_000


def test_sessions_that_are_let_go_are_visible(t: Harness) -> None:
    """What is let go is counted under health.dropped."""
    for number in range(300):
        start(t, f"audio-{number}")
    kept = len(t.tracker.get_recent_sessions(10_000))
    assert t.tracker.get_dashboard_data()["health"]["dropped"]["sessions"] == 300 - kept


def test_rows_of_one_session_are_bounded(t: Harness) -> None:
    """Five thousand segments of one session are kept up to a bound, and the tracker stays quick."""
    session_id = start(t)
    for number in range(5_000):
        t.tracker.add_transcript_segment(session_id, "audio-1", number, "Zoe", "word")
    assert 100 <= len(summary(t)["transcript_segments"]) <= 1_000


def test_a_summary_is_a_copy(t: Harness) -> None:
    """Changing all of a summary or a row changes nothing that is kept."""
    session_id = start(t)
    t.tracker.add_memory_extraction(
        session_id, "audio-1", "1", "text", metadata={"nested": {"list": [1]}}
    )
    kept = json.dumps(summary(t))
    spoiled = summary(t)
    spoiled["memory_extractions"][0]["metadata"]["nested"]["list"].append(2)
    spoiled["memory_extractions"][0]["text"] = "changed"
    spoiled["memory_extractions"].clear()
    spoiled["user_id"] = "changed"
    t.tracker.get_recent_sessions()[0]["user_id"] = "changed"
    assert json.dumps(summary(t)) == kept


def test_a_session_is_a_transaction(t: Harness) -> None:
    """Its id finds a transaction of its own, with its recording on every span and its children."""
    session_id = start(t)
    t.tracker.start_memory_processing(session_id)
    t.advance(2)
    t.tracker.add_extraction_attempt(session_id, "audio-1", "first", True, None, 500)
    t.tracker.add_memory_extraction(session_id, "audio-1", "mem-1", "text")
    t.tracker.complete_memory_processing(session_id, True)
    t.advance(61)
    found = t.tracker.get_transaction(session_id)
    assert found is not None
    assert found.pipeline == "memory_session"
    assert found.status is TransactionStatus.COMPLETED
    spans = {span["name"]: span for span in t.spans()}
    assert {name: span["parent"] for name, span in spans.items()} == {
        "memory_session": None,
        "memory": "memory_session",
        "extraction attempt": "memory",
        "memory extraction": "memory",
    }
    assert all(s["attributes"]["otel_tracker.audio.uuid"] == "audio-1" for s in spans.values())
    assert (spans["extraction attempt"]["start"], spans["extraction attempt"]["end"]) == (1.5, 2.0)
    assert spans["memory_session"]["attributes"]["otel_tracker.outcome"] == "success"
    assert t.tracker.get_dashboard_data()["system_metrics"]["total_memories"] == 1


def test_calls_for_an_unknown_session_change_nothing(t: Harness) -> None:
    """An id that is no session is counted as a problem, and makes no row anywhere."""
    unknown = "no session"
    t.tracker.start_memory_processing(unknown)
    t.tracker.complete_memory_processing(unknown, False, "boom")
    t.tracker.add_memory_extraction(unknown, "audio-1", "1", "text")
    t.tracker.add_extraction_attempt(unknown, "audio-1", "first", True)
    t.tracker.add_transcript_segment(unknown, "audio-1", 0, "Zoe", "text")
    t.tracker.update_full_conversation(unknown, "text")
    assert t.tracker.get_session_summary("audio-1") is None
    assert t.tracker.get_recent_sessions() == []
    assert t.tracker.get_recent_transactions() == []
    assert set(t.tracker.get_dashboard_data()["health"]["problems"]) == {"transaction_id"}
