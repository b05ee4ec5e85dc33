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

_WORD_ERRORS_AT_MOST: Final = 0.1
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
    """Host, process and thread."""
    line: str
    """File, line and function at which it hung."""
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
                reason = f": {note.error}" if note.error else ""
                found.append(f"{note.path.name} was to be {recording.expect}{reason}")
            if recording.database_locked and self.stall_of(note) is None:
                found.append(f"{note.path.name} found its database locked and did not stall")
        metrics = self.data["system_metrics"]
        for status in ("active", "stalled"):
            count = metrics[f"{status}_transactions"]
            if count:
                found.append(f"transactions that are still {status}: {count}")
        rate = word_error_rate(self.recordings, self.notes)
        if rate is not None and rate > _WORD_ERRORS_AT_MOST:
            found.append(f"the word error rate is {rate:.1%}")
        return found

    def stall_of(self, note: VoiceNote) -> Stall | None:
        """The recording's stall, if it had one."""
        told = (s for s in self.stalls if s.transaction_id == note.transaction_id)
        return next(told, None)


def outcome(note: VoiceNote) -> str:
    """``completed``, ``failed``, or ``skipped`` where nothing was said."""
    if note.error is not None:
        return "failed"
    return "completed" if note.transcript else "skipped"


def word_error_rate(recordings: Sequence[Recording], notes: Sequence[VoiceNote]) -> float | None:
    """Words that were heard wrong, missed or added, as a share of the spoken ones.

    Recordings that came to no transcript, or of which nobody knows what is said, are left out; None
    if none remains.

    Raises:
        ImportError: jiwer is not installed.
    """
    import jiwer

    pairs = [(r.spoken, n.transcript) for r, n in zip(recordings, notes, strict=True)]
    known = [(spoken, heard) for spoken, heard in pairs if spoken and heard]
    if not known:
        return None
    return float(jiwer.wer([spoken for spoken, _ in known], [heard for _, heard in known]))


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
                info["where"] or "an unknown thread",
                (info["stack"] or "an unknown line").rpartition("\n")[2],
                time.monotonic(),
            )
        )
        for recording in self._result.recordings:
            if recording.path.stem == info["conversation_id"]:
                self._on_progress(recording, "stalled", 0.0)
                if recording.database_locked:
                    self._told.set()

    def send(self, pipeline: VoiceNotes, store: MemoryStore) -> None:
        """Sends all of them; the databases that are to be locked are so until a stall was told."""
        to_lock = [r for r in self._result.recordings if r.database_locked]
        pool = ThreadPoolExecutor(WORKERS)
        try:
            with ExitStack() as locks:
                for recording in to_lock:
                    locks.enter_context(locked(store.path_of(recording.user_id)))
                futures = [
                    pool.submit(self._send_one, pipeline, r) for r in self._result.recordings
                ]
                if to_lock:
                    self._wait_for_stall(futures)
            self._result.notes = [future.result() for future in futures]
        finally:
            # After Ctrl-C: those under way are brought to their end, the others are not begun.
            pool.shutdown(cancel_futures=True)

    def _wait_for_stall(self, futures: list[Future[VoiceNote]]) -> None:
        gives_up_at = time.monotonic() + _LOCK_AT_MOST_S
        while not self._told.wait(0.1) and time.monotonic() < gives_up_at:
            if all(future.done() for future in futures):
                return
        time.sleep(_LOOK_AT_IT_S)

    def _send_one(self, pipeline: VoiceNotes, recording: Recording) -> VoiceNote:
        note = pipeline.process(recording.user_id, recording.path, self._progress_of(recording))
        stall = self._result.stall_of(note)
        if stall is not None and note.error is None:
            stall.recovered_after_s = time.monotonic() - stall.told_at_s
        self._on_progress(recording, outcome(note), 1.0)
        return note

    def _progress_of(self, recording: Recording) -> Progress:
        return lambda stage, share: self._on_progress(recording, stage, share)
