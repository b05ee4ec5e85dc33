"""What real callers send, judged as a person would: status, stage and issue at every moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from otel_tracker import Pipeline, PipelineStage, TransactionStatus
from otel_tracker.testing import Harness, fresh_tracker

AUDIO_RECEIVED = PipelineStage.AUDIO_RECEIVED
TRANSCRIPTION_STARTED = PipelineStage.TRANSCRIPTION_STARTED
TRANSCRIPTION_COMPLETED = PipelineStage.TRANSCRIPTION_COMPLETED
MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED

IN_PROGRESS = TransactionStatus.IN_PROGRESS
COMPLETED = TransactionStatus.COMPLETED
FAILED = TransactionStatus.FAILED
STALLED = TransactionStatus.STALLED

MEMORY_FAILED = "Transcription completed but memory creation failed"
MEMORY_STALLED = "Transcription completed but memory processing stalled"
NOTHING_AFTER_AUDIO = "Audio received but nothing came after it"

MOMENT = 0.001
"""Just less than a limit, in seconds."""


@pytest.fixture
def t() -> Iterator[Harness]:
    with fresh_tracker() as harness:
        yield harness


def new(t: Harness, client: str = "client", conversation: str | None = None) -> str:
    return t.tracker.create_transaction("user", client, conversation)


def stand(t: Harness, transaction_id: str) -> tuple[TransactionStatus | None, str | None]:
    return t.status(transaction_id), t.issue(transaction_id)


def stage(t: Harness, transaction_id: str) -> object:
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    return found.current_stage


def issues(t: Harness) -> list[tuple[str, bool]]:
    return [(r["issue"], r["resolved"]) for r in t.tracker.get_dashboard_data()["recent_issues"]]


# --- good runs ------------------------------------------------------------------------------------

GOOD_RUNS: dict[str, list[PipelineStage]] = {
    "documented": list(PipelineStage),
    "no end": list(PipelineStage)[:-1],
    "no end, no TRANSCRIPTION_COMPLETED": [
        AUDIO_RECEIVED, TRANSCRIPTION_STARTED, MEMORY_STARTED, MEMORY_COMPLETED,
    ],
    "results only": [TRANSCRIPTION_COMPLETED, MEMORY_COMPLETED],
    "memory only": [MEMORY_STARTED, MEMORY_COMPLETED],
    "audio and memory": [AUDIO_RECEIVED, MEMORY_STARTED, MEMORY_COMPLETED],
    "memory after the end": [
        AUDIO_RECEIVED, TRANSCRIPTION_STARTED, TRANSCRIPTION_COMPLETED, CONVERSATION_ENDED,
        MEMORY_STARTED, MEMORY_COMPLETED,
    ],
    "the end alone": [CONVERSATION_ENDED],
}  # fmt: skip


@pytest.mark.parametrize("events", GOOD_RUNS.values(), ids=list(GOOD_RUNS))
def test_a_good_run_is_completed_without_an_issue(t: Harness, events: list[PipelineStage]) -> None:
    """However little of it callers report, a run that went well is COMPLETED, now and for ever."""
    transaction_id = new(t)
    for event in events:
        t.advance(2)
        t.tracker.track_event(transaction_id, event)
        assert t.status(transaction_id) in (IN_PROGRESS, COMPLETED)
    t.advance(5)
    assert stand(t, transaction_id) == (COMPLETED, None)
    assert stage(t, transaction_id) is events[-1]
    t.advance(86_400)
    assert stand(t, transaction_id) == (COMPLETED, None)
    assert issues(t) == []
    assert all(span["status"] == "UNSET" for span in t.spans())


def test_a_run_without_end_settles_in_five_seconds(t: Harness) -> None:
    """A memory result without the end is done after five seconds of quiet, and no sooner."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    assert t.status(transaction_id) is IN_PROGRESS
    t.advance(5 - MOMENT)
    assert t.status(transaction_id) is IN_PROGRESS
    t.advance(MOMENT)
    assert t.status(transaction_id) is COMPLETED


def test_the_end_needs_no_settling(t: Harness) -> None:
    """When the caller tells the end, the transaction is COMPLETED at once, and so is its root."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    t.advance(1)
    t.tracker.track_event(transaction_id, CONVERSATION_ENDED, True)
    assert t.status(transaction_id) is COMPLETED
    (root,) = [s for s in t.spans() if s["parent"] is None]
    assert root["attributes"]["otel_tracker.outcome"] == "success"


def test_the_end_right_after_a_result_comes_last(t: Harness) -> None:
    """An end told within the same microsecond as a result is still the newest event."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    t.tracker.track_event(transaction_id, CONVERSATION_ENDED, True)
    assert stage(t, transaction_id) is CONVERSATION_ENDED
    found = t.tracker.get_transaction(transaction_id)
    assert found is not None
    assert [e.stage for e in found.events] == [MEMORY_COMPLETED, CONVERSATION_ENDED]


def test_a_start_right_after_a_result_comes_last(t: Harness) -> None:
    """A stage that begins within the same microsecond as a result is the current one."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    assert stage(t, transaction_id) is MEMORY_STARTED


def test_zero_memories_are_a_success(t: Harness) -> None:
    """A memory run that found nothing to remember is COMPLETED and counts as a result."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True, memory_count=0)
    t.advance(5)
    assert stand(t, transaction_id) == (COMPLETED, None)
    assert t.tracker.get_dashboard_data()["system_metrics"]["total_memories"] == 1


def test_an_unreported_transcription_counts_as_inferred(t: Harness) -> None:
    """A transcription that nobody reported closes with memory's start; the totals leave it out."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(3)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    data = t.tracker.get_dashboard_data()
    assert data["stages"]["transcription"]["inferred"] == 1
    assert data["system_metrics"]["total_transcriptions"] == 0
    assert data["system_metrics"]["total_memories"] == 1


def test_a_failure_without_a_reported_transcription_has_its_own_sentence(t: Harness) -> None:
    """The documented memory sentence goes by what was reported, not by what was inferred."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model")
    assert stand(t, transaction_id) == (FAILED, "Failed at memory_completed: no model")


def test_an_own_pipeline_is_done_when_its_last_stage_succeeded() -> None:
    """Declared stages are found again by their events, however they are written."""
    with fresh_tracker(pipeline=Pipeline("ingest", ("Fetch", "Store"))) as t:
        transaction_id = new(t)
        t.tracker.track_event(transaction_id, "Fetch_started")
        t.advance(1)
        t.tracker.track_event(transaction_id, "Fetch_completed")
        t.tracker.track_event(transaction_id, "Store_completed")
        t.advance(5)
        assert stand(t, transaction_id) == (COMPLETED, None)


# --- audio alone ----------------------------------------------------------------------------------


def test_audio_alone_without_a_socket_stalls_after_a_minute(t: Harness) -> None:
    """Audio after which nothing came is a stall with its own sentence, sixty seconds after it."""
    transaction_id = new(t)
    t.tracker.track_audio_chunk(transaction_id, 320)
    t.advance(30)
    t.tracker.track_audio_chunk(transaction_id, 320)
    t.advance(60 - MOMENT)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    t.advance(MOMENT)
    assert stand(t, transaction_id) == (STALLED, NOTHING_AFTER_AUDIO)
    assert stage(t, transaction_id) is AUDIO_RECEIVED


def test_silence_of_an_open_socket_is_no_stall(t: Harness) -> None:
    """While the client is connected nobody knows whether more comes; after it the minute runs."""
    t.tracker.track_websocket_connected("user", "client")
    transaction_id = new(t)
    t.tracker.track_audio_chunk(transaction_id, 320)
    t.advance(3_600)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    t.tracker.track_websocket_disconnected("client")
    t.advance(60)
    assert stand(t, transaction_id) == (STALLED, NOTHING_AFTER_AUDIO)


@pytest.mark.parametrize("socket", [False, True])
@pytest.mark.parametrize(
    ("conversation", "later_s"), [("conv_1", 1), ("conv_1", 3_000), (None, 1), (None, 59)]
)
def test_audio_that_another_transaction_carried_on_is_done(
    t: Harness, socket: bool, conversation: str | None, later_s: float
) -> None:
    """The same recording, or the same client within a minute, carried on: nothing is wrong."""
    if socket:
        t.tracker.track_websocket_connected("user", "client")
    audio = new(t, conversation=conversation)
    t.tracker.track_audio_chunk(audio, 320)
    t.advance(0.5)
    if socket:
        t.tracker.track_websocket_disconnected("client")
    t.advance(later_s)
    work = new(t, conversation=conversation)
    t.tracker.track_event(work, TRANSCRIPTION_STARTED)
    t.advance(1)
    t.tracker.track_event(work, MEMORY_COMPLETED, True)
    t.advance(5)
    assert stand(t, work) == (COMPLETED, None)
    assert stand(t, audio) == (COMPLETED, None)
    t.advance(600)
    assert stand(t, audio) == (COMPLETED, None)


@pytest.mark.parametrize(
    ("client", "conversations", "later_s"),
    [
        ("client", (None, None), 61),
        ("other", (None, None), 1),
        ("client", ("conv_1", "conv_2"), 1),
    ],
    ids=["too late", "another client", "another recording"],
)
def test_audio_that_nobody_carried_on_stalls(
    t: Harness, client: str, conversations: tuple[str | None, str | None], later_s: float
) -> None:
    """Work of another recording or client, or much later, is no work on this audio."""
    audio = new(t, conversation=conversations[0])
    t.tracker.track_audio_chunk(audio, 320)
    t.advance(later_s)
    work = new(t, client, conversations[1])
    t.tracker.track_event(work, MEMORY_COMPLETED, True)
    t.advance(60)
    assert stand(t, audio) == (STALLED, NOTHING_AFTER_AUDIO)


def test_another_audio_alone_carries_nothing_on(t: Harness) -> None:
    """Two recordings of one client in which only audio came both lack their work."""
    ids = [new(t), new(t)]
    for transaction_id in ids:
        t.tracker.track_audio_chunk(transaction_id, 320)
    t.advance(60)
    assert [stand(t, i) for i in ids] == [(STALLED, NOTHING_AFTER_AUDIO)] * 2


def test_a_transaction_without_any_event_stalls(t: Harness) -> None:
    """Nothing at all for a minute is a stall after an unknown stage."""
    transaction_id = new(t)
    t.advance(60 - MOMENT)
    assert t.status(transaction_id) is IN_PROGRESS
    t.advance(MOMENT)
    assert stand(t, transaction_id) == (
        STALLED,
        f"Transaction {transaction_id[:8]} stalled after unknown stage",
    )


@pytest.mark.parametrize("ended", [False, True])
def test_late_audio_moves_nothing(t: Harness, ended: bool) -> None:
    """Packets that come when all is done are counted; stage, status and issue stay."""
    transaction_id = new(t)
    t.tracker.track_audio_chunk(transaction_id, 320)
    t.advance(1)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    if ended:
        t.advance(1)
        t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
    t.advance(5)
    before = stage(t, transaction_id)
    for _ in range(3):
        t.tracker.track_audio_chunk(transaction_id, 320)
        t.advance(40)
        assert stand(t, transaction_id) == (COMPLETED, None)
        assert stage(t, transaction_id) is before
    assert t.tracker.get_dashboard_data()["system_metrics"]["total_audio_chunks"] == 4
    assert issues(t) == []


# --- failures, retries, skips ---------------------------------------------------------------------


@pytest.mark.parametrize("message", [None, "no speech found"])
def test_a_failed_transcription_has_its_sentence(t: Harness, message: str | None) -> None:
    """A failure names its event and its message, or "Unknown error" where there is none."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(1)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, False, message)
    text = f"Failed at transcription_completed: {message or 'Unknown error'}"
    assert stand(t, transaction_id) == (FAILED, text)
    t.advance(3_600)
    assert stand(t, transaction_id) == (FAILED, text)


def test_memory_that_fails_after_the_end_is_seen(t: Harness) -> None:
    """Memory runs when the conversation has closed; its failure is the transaction's, at once."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.advance(1)
    t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
    assert stand(t, transaction_id) == (COMPLETED, None)
    t.advance(20)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    t.advance(2)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model")
    assert stand(t, transaction_id) == (FAILED, MEMORY_FAILED)
    t.advance(61)
    assert stand(t, transaction_id) == (FAILED, MEMORY_FAILED)
    (told,) = [s for s in t.spans() if s["name"] == "ended failure"]
    assert told["parent"] == "audio_pipeline"
    assert told["status"] == "ERROR"


def test_memory_that_hangs_after_the_end_is_seen(t: Harness) -> None:
    """A memory run that never answers is a stall, also after the conversation closed."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.advance(1)
    t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(60)
    assert stand(t, transaction_id) == (STALLED, MEMORY_STALLED)


def test_a_retry_puts_a_failure_right(t: Harness) -> None:
    """A second attempt that succeeds completes the transaction; its issue stays, resolved."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    for outcome in (False, True):
        t.advance(1)
        t.tracker.track_event(transaction_id, MEMORY_STARTED)
        t.advance(1)
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED, outcome, retry=outcome)
        if not outcome:
            assert stand(t, transaction_id) == (FAILED, MEMORY_FAILED)
            assert issues(t) == [(MEMORY_FAILED, False)]
    t.advance(5)
    assert stand(t, transaction_id) == (COMPLETED, None)
    assert issues(t) == [(MEMORY_FAILED, True)]
    attempts = [s for s in t.spans() if s["name"] == "memory"]
    assert [s["attributes"]["otel_tracker.stage.attempt"] for s in attempts] == [1, 2]
    assert [s["status"] for s in attempts] == ["ERROR", "UNSET"]


def test_a_retry_that_runs_is_in_progress(t: Harness) -> None:
    """While the second attempt runs nobody knows: the transaction is no longer FAILED."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model")
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    assert t.status(transaction_id) is IN_PROGRESS


def test_a_failed_retry_of_one_stage_is_not_put_right_by_another(t: Harness) -> None:
    """The first failure still standing decides, whatever other stages do."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, False, "half a file")
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    t.advance(60)
    assert stand(t, transaction_id) == (FAILED, "Failed at transcription_completed: half a file")


@pytest.mark.parametrize("name", ["transcription", TRANSCRIPTION_COMPLETED, MEMORY_COMPLETED])
def test_a_skip_completes(t: Harness, name: object) -> None:
    """An empty transcript is no failure: skipped is done, after five seconds of quiet."""
    transaction_id = new(t)
    t.tracker.track_audio_chunk(transaction_id, 320)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(1)
    t.tracker.track_skipped(transaction_id, name, "empty transcript")
    assert t.status(transaction_id) is IN_PROGRESS
    t.advance(5)
    assert stand(t, transaction_id) == (COMPLETED, None)
    data = t.tracker.get_dashboard_data()
    assert sum(row["skipped"] for row in data["stages"].values()) == 1
    assert data["system_metrics"]["failed_transactions"] == 0


def test_a_failed_end_is_a_failure(t: Harness) -> None:
    """A caller may tell the end with success=False."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, CONVERSATION_ENDED, False, "client vanished")
    assert stand(t, transaction_id) == (FAILED, "Failed at conversation_ended: client vanished")


# --- silence and the documented sentences ---------------------------------------------------------


@pytest.mark.parametrize("memory_started", [False, True])
def test_the_memory_sentence_comes_at_thirty_seconds(t: Harness, memory_started: bool) -> None:
    """Transcription done and no memory result: an issue at 30 s, STALLED at 60 s, as documented."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    if memory_started:
        t.advance(10)
        t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(30 - MOMENT)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    t.advance(MOMENT)
    assert stand(t, transaction_id) == (IN_PROGRESS, MEMORY_STALLED)
    assert issues(t) == [(MEMORY_STALLED, False)]
    t.advance(30 - MOMENT)
    assert stand(t, transaction_id) == (IN_PROGRESS, MEMORY_STALLED)
    t.advance(MOMENT)
    assert stand(t, transaction_id) == (STALLED, MEMORY_STALLED)
    assert issues(t) == [(MEMORY_STALLED, False)]


def test_progress_puts_both_clocks_back(t: Harness) -> None:
    """track_progress is a sign of life: 30 s and 60 s run from the last one."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    for _ in range(10):
        t.advance(29)
        assert stand(t, transaction_id) == (IN_PROGRESS, None)
        t.tracker.track_progress(transaction_id, "memory", done=1)
    t.advance(30)
    assert stand(t, transaction_id) == (IN_PROGRESS, MEMORY_STALLED)
    t.tracker.track_progress(transaction_id)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    t.advance(60)
    assert stand(t, transaction_id) == (STALLED, MEMORY_STALLED)


LIMITS: dict[str, dict[str, Any]] = {
    "option": {"stall_after_memory": 900},
    "pipeline": {
        "pipeline": Pipeline(
            "audio_pipeline", ("audio", "transcription", "memory"), {"memory": 900}
        )
    },
    "option over pipeline": {
        "stall_after_memory": 900,
        "pipeline": Pipeline("audio_pipeline", ("audio", "transcription", "memory"), {"memory": 5}),
    },
}


@pytest.mark.parametrize("options", LIMITS.values(), ids=list(LIMITS))
@pytest.mark.parametrize("memory_started", [False, True])
def test_an_explicit_memory_limit_replaces_both(
    options: dict[str, Any], memory_started: bool
) -> None:
    """A 15-minute memory job is neither an issue at 30 s nor a stall at 60 s, but at its limit."""
    with fresh_tracker(**options) as t:
        transaction_id = new(t)
        t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
        if memory_started:
            t.tracker.track_event(transaction_id, MEMORY_STARTED)
        for _ in range(9):
            t.advance(100 - MOMENT)
            assert stand(t, transaction_id) == (IN_PROGRESS, None)
        t.advance(9 * MOMENT)
        assert stand(t, transaction_id) == (STALLED, MEMORY_STALLED)


def test_a_stage_that_hangs_stalls_at_sixty_seconds(t: Harness) -> None:
    """Without a reported transcription the sentence names the transaction and its last event."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(60 - MOMENT)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    t.advance(MOMENT)
    assert stand(t, transaction_id) == (
        STALLED,
        f"Transaction {transaction_id[:8]} stalled after transcription_started",
    )
    (row,) = t.tracker.get_dashboard_data()["stalled"]
    assert row["transaction_id"] == transaction_id
    assert row["stage"] == "transcription"
    assert row["silent_seconds"] == 60.0


def test_a_stall_that_recovers_is_resolved_and_told(t: Harness) -> None:
    """Progress after a stall brings the transaction back; the issue stays, resolved."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(61)
    t.tracker.track_progress(transaction_id, "transcription")
    t.advance(0)
    text = f"Transaction {transaction_id[:8]} stalled after transcription_started"
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    assert issues(t) == [(text, True)]
    names = [s["name"] for s in t.spans()]
    assert names.count("transcription stalled") == 1
    assert names.count("transcription recovered") == 1


def test_a_stall_is_told_once(t: Harness) -> None:
    """However long it lasts and however often one looks, a stall is one span and one issue."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    for _ in range(20):
        t.advance(60)
    assert [s["name"] for s in t.spans()].count("memory stalled") == 1
    assert len(issues(t)) == 1


def test_a_stage_that_had_stalled_when_the_next_began_is_abandoned(t: Harness) -> None:
    """Nobody closed it and it was silent beyond its limit: that is no inferred success."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(61)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    assert t.status(transaction_id) is IN_PROGRESS
    (span,) = [s for s in t.spans() if s["name"] == "transcription"]
    assert span["attributes"]["otel_tracker.stage.outcome"] == "abandoned"
    assert span["status"] == "ERROR"


# --- queues and hand-overs ------------------------------------------------------------------------


def test_waiting_in_a_queue_is_no_stall(t: Harness) -> None:
    """Waiting has a clock of its own: at 300 s an issue, never a stall, and shown as waiting."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.advance(1)
    t.tracker.track_queued(transaction_id, "memory")
    t.advance(300 - MOMENT)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    (row,) = t.tracker.get_dashboard_data()["waiting"]
    assert (row["transaction_id"], row["stage"]) == (transaction_id, "memory")
    t.advance(MOMENT)
    text = "Queued for memory but not picked up by a worker"
    assert stand(t, transaction_id) == (IN_PROGRESS, text)
    t.advance(86_400)
    assert stand(t, transaction_id) == (IN_PROGRESS, text)


def test_a_worker_that_takes_it_ends_the_wait(t: Harness) -> None:
    """Picked up, the stage's own clock runs; the wait is a span, and its issue is resolved."""
    transaction_id = new(t)
    t.tracker.track_queued(transaction_id, MEMORY_STARTED)
    t.advance(400)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    assert t.tracker.get_dashboard_data()["waiting"] == []
    t.advance(59)
    assert t.status(transaction_id) is IN_PROGRESS
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    t.advance(5)
    assert stand(t, transaction_id) == (COMPLETED, None)
    assert issues(t) == [("Queued for memory but not picked up by a worker", True)]
    (wait,) = [s for s in t.spans() if s["name"] == "memory queued"]
    assert wait["end"] - wait["start"] == 400.0
    assert wait["parent"] == "audio_pipeline"


def test_the_queue_limit_is_an_option() -> None:
    """queue_wait= replaces the 300 s."""
    with fresh_tracker(queue_wait=10) as t:
        transaction_id = new(t)
        t.tracker.track_queued(transaction_id, "memory")
        t.advance(10)
        assert t.issue(transaction_id) == "Queued for memory but not picked up by a worker"


@pytest.mark.parametrize("queued", [False, True])
def test_a_hand_over_is_elsewhere_and_never_stalls(t: Harness, queued: bool) -> None:
    """Others carry on and may never report here: no stall, no issue, and a root that is ended."""
    transaction_id = new(t)
    t.tracker.track_audio_chunk(transaction_id, 320)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_COMPLETED, True)
    t.advance(1)
    if queued:
        t.tracker.track_queued(transaction_id, "memory")
    t.tracker.hand_over(transaction_id)
    (row,) = t.tracker.get_dashboard_data()["waiting"]
    assert row["state"] == "elsewhere"
    t.advance(86_400)
    assert stand(t, transaction_id) == (IN_PROGRESS, None)
    (root,) = [s for s in t.spans() if s["parent"] is None]
    assert root["end"] == 1.0
    assert root["status"] == "UNSET"


def test_work_after_a_hand_over_is_judged_again(t: Harness) -> None:
    """When the work comes back to this process, its result decides."""
    transaction_id = new(t)
    t.tracker.hand_over(transaction_id)
    t.advance(10)
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
    t.advance(5)
    assert stand(t, transaction_id) == (COMPLETED, None)


def test_a_worker_continues_by_the_id_alone() -> None:
    """Another process needs the id and nothing else: its spans join the trace, under the root."""
    with fresh_tracker() as sender, fresh_tracker() as worker:
        transaction_id = new(sender)
        sender.tracker.hand_over(transaction_id)
        worker.tracker.track_event(transaction_id, MEMORY_STARTED)
        worker.advance(1)
        worker.tracker.track_event(transaction_id, MEMORY_COMPLETED, True)
        worker.advance(5)
        assert worker.status(transaction_id) is COMPLETED
        (root,) = sender.finished_spans()
        memory = next(s for s in worker.finished_spans() if s.name == "memory")
        assert root.context is not None
        assert memory.context is not None
        assert memory.parent is not None
        assert memory.context.trace_id == root.context.trace_id
        assert memory.parent.span_id == root.context.span_id


def test_totals_always_add_up(t: Harness) -> None:
    """total = active + completed + failed + stalled, with one of each and at every moment."""
    done, bad, hung = new(t), new(t, "b"), new(t, "c")
    t.tracker.track_event(done, CONVERSATION_ENDED)
    t.tracker.track_event(bad, MEMORY_COMPLETED, False, "boom")
    t.tracker.track_event(hung, MEMORY_STARTED)
    t.advance(61)
    running = new(t, "d")
    t.tracker.track_event(running, MEMORY_STARTED)
    m = t.tracker.metrics
    assert m.total_transactions == 4
    assert m.active_transactions == m.completed_transactions == 1
    assert m.failed_transactions == m.stalled_transactions == 1


def test_a_slow_transcription_that_nobody_closed_is_put_right_by_its_memory(t: Harness) -> None:
    """Transcription ran for ten minutes and nobody reported its end; the memory it led to did."""
    transaction_id = new(t)
    t.tracker.track_event(transaction_id, TRANSCRIPTION_STARTED)
    t.advance(600)
    assert t.status(transaction_id) is STALLED
    t.tracker.track_event(transaction_id, MEMORY_STARTED)
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED)
    t.advance(5)
    assert stand(t, transaction_id) == (COMPLETED, None)
    assert {resolved for _, resolved in issues(t)} == {True}
    told = [s["attributes"].get("otel_tracker.outcome") for s in t.spans()]
    assert "success" in told
    assert "failure" not in told
