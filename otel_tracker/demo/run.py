"""Sends recordings through the pipeline, several at once, while a lock makes one of them wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from otel_tracker import init_debug_tracker, shutdown_debug_tracker

from .faults import locked
from .memories import MemoryStore
from .pipeline import Progress, VoiceNote, VoiceNotes
from .recognizer import Recognizer

RECORDINGS: Final = Path(__file__).parent / "recordings"
WORKERS: Final = 2
STALL_AFTER_S: Final = 1.5
"""Silence after which the memory stage counts as stalled; rightly short for one small write."""

_LOCK_AT_MOST_S: Final = 20.0
"""A lock whose stall nobody tells goes anyway, before SQLite gives the writer up at 30 s."""
_LOOK_AT_IT_S: Final = 0.5
"""The lock stays that long after the stall was told."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording to send, and what is known of it beforehand."""

    path: Path
    user_id: str
    spoken: str | None = None
    """What is said in it; None where nobody wrote it down."""
    expect: str | None = None
    """``completed``, ``failed`` or ``skipped``; None for a recording of the user's own."""
    database_locked: bool = False


@dataclass(slots=True)
class Stall:
    """A stage that went silent, as `on_stall` told it. Times in seconds."""

    transaction_id: str
    stage: str
    silent_s: float
    where: str
    told_at_s: float
    recovered_after_s: float | None = None
    """From the telling to the end of the recording; None if it never went on."""


@dataclass(slots=True)
class Run:
    """What came of it; `notes` are in the order of `recordings`."""

    recordings: list[Recording]
    directory: Path
    notes: list[VoiceNote] = field(default_factory=list)
    stalls: list[Stall] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """`get_dashboard_data()`, when all was done."""
    dump: Path = Path()
    trace_urls: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """What did not go as the recordings' manifest says; empty where all did."""
        found = []
        for recording, note in zip(self.recordings, self.notes, strict=True):
            if recording.expect not in (None, outcome(note)):
                reason = f" ({note.error})" if note.error else ""
                found.append(f"{note.path.name} was to be {recording.expect}{reason}")
        metrics = self.data["system_metrics"]
        for status in ("active", "stalled"):
            if metrics[f"{status}_transactions"]:
                found.append(f"{metrics[f'{status}_transactions']} transactions are still {status}")
        if any(r.database_locked for r in self.recordings):
            if not self.stalls:
                found.append("the locked database made no stall")
            found += [
                f"the stall of {stall.transaction_id} did not recover"
                for stall in self.stalls
                if stall.recovered_after_s is None
            ]
        return found


def outcome(note: VoiceNote) -> str:
    """``completed``, ``failed``, or ``skipped`` where nothing was said."""
    if note.error is not None:
        return "failed"
    return "completed" if note.transcript else "skipped"


def shipped() -> list[Recording]:
    """The recordings that come with the package."""
    rows = json.loads((RECORDINGS / "manifest.json").read_text("utf-8"))
    return [
        Recording(
            RECORDINGS / row["file"],
            row["user"],
            row["spoken"] or None,
            row["expect"],
            row.get("database_locked", False),
        )
        for row in rows
    ]


def own(files: Sequence[Path]) -> list[Recording]:
    """A user's own recordings; nothing is known of them, and nothing is made to go wrong."""
    return [Recording(path, "you") for path in files]


def run(
    recordings: Sequence[Recording],
    directory: Path,
    on_progress: Callable[[Recording, str, float], None],
) -> Run:
    """Sends the recordings through the pipeline and waits for the last one.

    Args:
        recordings: sent in this order, two at a time.
        directory: where the databases and the dump go; made when needed.
        on_progress: called on any thread with a recording, its stage, and the share of that stage
            that is done (0 to 1); with the stage ``stalled`` when it stalls, and finally with
            ``completed``, ``failed`` or ``skipped``.

    Raises:
        ImportError: pocketsphinx is not installed.
        OSError: the directory cannot be written.
    """
    result = Run(list(recordings), directory)
    sending = _Sending(result, on_progress)
    store = MemoryStore(directory / "memories")
    tracker = init_debug_tracker(
        stall_after_memory=STALL_AFTER_S,
        debug_dump_dir=directory / "debug_dumps",
        on_stall=sending.stalled,
    )
    try:
        sending.send(VoiceNotes(tracker, Recognizer(), store), store)
        result.data = tracker.get_dashboard_data()
        result.dump = tracker.export_debug_dump()
        result.trace_urls = [tracker.trace_url(note.transaction_id) for note in result.notes]
    finally:
        shutdown_debug_tracker()
    return result


class _Sending:
    """The recordings under way."""

    def __init__(self, result: Run, on_progress: Callable[[Recording, str, float], None]) -> None:
        self._result = result
        self._on_progress = on_progress
        self._told = threading.Event()

    def stalled(self, info: dict[str, Any]) -> None:
        """For `on_stall`: runs on a thread of the tracker's."""
        self._result.stalls.append(
            Stall(
                info["transaction_id"],
                info["stage"] or "none",
                info["silent_seconds"],
                info["where"] or "",
                time.monotonic(),
            )
        )
        for recording in self._result.recordings:
            if recording.path.stem == info["conversation_id"]:
                self._on_progress(recording, "stalled", 0.0)
        self._told.set()

    def send(self, pipeline: VoiceNotes, store: MemoryStore) -> None:
        """Sends all of them; the databases that are to be locked are so until a stall was told."""
        waiting = [r for r in self._result.recordings if r.database_locked]
        with ThreadPoolExecutor(WORKERS) as pool:
            with ExitStack() as locks:
                for recording in waiting:
                    locks.enter_context(locked(store.path_of(recording.user_id)))
                futures = [
                    pool.submit(self._send_one, pipeline, r) for r in self._result.recordings
                ]
                if waiting:
                    self._wait_for_stall(futures)
            self._result.notes = [future.result() for future in futures]

    def _wait_for_stall(self, futures: list[Future[VoiceNote]]) -> None:
        gives_up_at = time.monotonic() + _LOCK_AT_MOST_S
        while not self._told.wait(0.1) and time.monotonic() < gives_up_at:
            if all(future.done() for future in futures):
                return
        time.sleep(_LOOK_AT_IT_S)

    def _send_one(self, pipeline: VoiceNotes, recording: Recording) -> VoiceNote:
        note = pipeline.process(recording.user_id, recording.path, self._progress_of(recording))
        for stall in self._result.stalls:
            if stall.transaction_id == note.transaction_id and note.error is None:
                stall.recovered_after_s = time.monotonic() - stall.told_at_s
        self._on_progress(recording, outcome(note), 1.0)
        return note

    def _progress_of(self, recording: Recording) -> Progress:
        return lambda stage, share: self._on_progress(recording, stage, share)
