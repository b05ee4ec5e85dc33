"""Transactions as people look for them in Jaeger; docs/jaeger.md uses the same names and values.

``python -m tests.stories`` tells all of them and prints their ids as one line of JSON; with the
name of one that stays open it tells that one, prints its id, and waits to be killed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from otel_tracker import (
    PipelineStage,
    get_debug_tracker,
    init_debug_tracker,
    stage,
    transaction,
)

SLOW_S: Final = 1.2


def success() -> str:
    """Audio, transcription and memory by the drop-in API."""
    tracker = get_debug_tracker()
    tid = tracker.create_transaction("alice", "phone-1", "conversation-1")
    for _ in range(3):
        tracker.track_audio_chunk(tid, 3_200)
    _transcribed(tid)
    tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
    tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, True, memory_count=2)
    tracker.track_event(tid, PipelineStage.CONVERSATION_ENDED)
    return tid


def failed_twice() -> str:
    """Two attempts at the memory, both failed: the transaction failed."""
    tracker = get_debug_tracker()
    tid = tracker.create_transaction("bob", "phone-2", "conversation-2")
    _transcribed(tid)
    for _ in range(2):
        tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
        tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, False, "model answered 503")
    tracker.track_event(tid, PipelineStage.CONVERSATION_ENDED)
    return tid


def retried() -> str:
    """The second attempt at the memory succeeded: so did the transaction."""
    tracker = get_debug_tracker()
    tid = tracker.create_transaction("carol", "phone-3", "conversation-3")
    _transcribed(tid)
    tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
    tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, False, "model answered 503")
    tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
    tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, True)
    tracker.track_event(tid, PipelineStage.CONVERSATION_ENDED)
    return tid


def skipped() -> str:
    """Nothing was said: rightly no memory."""
    tracker = get_debug_tracker()
    tid = tracker.create_transaction("dave", "phone-4", "conversation-4")
    _transcribed(tid)
    tracker.track_skipped(tid, "memory", "nothing was said")
    tracker.track_event(tid, PipelineStage.CONVERSATION_ENDED)
    return tid


def slow() -> str:
    """A memory job that took longer than others."""
    with transaction("audio_pipeline", user_id="erin") as tx, stage("memory"):
        time.sleep(SLOW_S)
    return tx.id


def raised() -> str:
    """An exception of the application's leaves a stage."""
    ids = []
    try:
        with transaction("audio_pipeline", user_id="frank") as tx:
            ids.append(tx.id)
            with stage("transcription"):
                raise ConnectionError("transcriber went away")
    except ConnectionError:
        pass
    return ids[0]


def recovered() -> str:
    """A memory job that stalled, was told, and went on. Needs OTEL_TRACKER_STALL_AFTER=1."""
    tracker = get_debug_tracker()
    told = threading.Event()
    init_debug_tracker(on_stall=lambda stall: told.set())
    with transaction("audio_pipeline", user_id="grace") as tx, stage("memory"):
        told.wait(20)
        tracker.track_progress(tx.id, "memory")
    return tx.id


def _transcribed(tid: str) -> None:
    tracker = get_debug_tracker()
    tracker.track_event(tid, PipelineStage.TRANSCRIPTION_STARTED)
    tracker.track_event(tid, PipelineStage.TRANSCRIPTION_COMPLETED, True, words=12)


def stalled() -> None:
    """A memory job that hangs, for as long as one likes to look at it."""
    with transaction("audio_pipeline", user_id="heidi", conversation_id="conversation-8") as tx:
        with stage("transcription"):
            pass
        with stage("memory"):
            _say(tx.id)
            threading.Event().wait(60)


def killed_owner() -> None:
    """The process that began it is killed in the middle of the memory."""
    with transaction("audio_pipeline", user_id="ivan", conversation_id="conversation-9") as tx:
        with stage("transcription"):
            pass
        with stage("memory"):
            get_debug_tracker().force_flush(5_000)
            _say(tx.id)
            threading.Event().wait(60)


def killed_worker() -> None:
    """A process begins it and hands it over; this one, which carries on, is killed."""
    carrier = json.loads(sys.stdin.readline())
    with stage("transcription", carrier=carrier):
        pass
    with stage("memory", carrier=carrier):
        get_debug_tracker().force_flush(5_000)
        _say("open")
        threading.Event().wait(60)


def handed_over() -> str:
    """What `killed_worker` carries on."""
    with transaction("audio_pipeline", user_id="judy", conversation_id="conversation-10") as tx:
        tx.queued("transcription")
        _say([tx.id, tx.carrier()])
        tx.hand_over()
    return tx.id


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


TOLD: Final[tuple[Callable[[], str], ...]] = (
    success,
    failed_twice,
    retried,
    skipped,
    slow,
    raised,
    recovered,
)
OPEN: Final[tuple[Callable[[], None], ...]] = (stalled, killed_owner, killed_worker)


def main() -> None:
    if len(sys.argv) > 1:
        wanted = {story.__name__: story for story in (*OPEN, handed_over)}[sys.argv[1]]
        wanted()
        return
    _say({story.__name__: story() for story in TOLD})


if __name__ == "__main__":
    main()
