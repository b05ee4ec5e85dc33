"""Runs the demo: starts the service, sends recordings while a lock makes one wait, and watches."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from otel_tracker import DebugSystemTracker, init_debug_tracker, shutdown_debug_tracker

from . import client
from .faults import locked
from .memories import Memory, MemoryStore
from .pipeline import Done, News, Stalled
from .processes import ServiceError, Services, exporters_of_the_user
from .traces import Trace, traces_of
from .watch import Watch

RECORDINGS: Final = Path(__file__).parent / "recordings"
AT_ONCE: Final = 2
"""Recordings that are sent at the same time."""
PROCESSES: Final = 3
"""So many processes work on a recording that becomes memories: web, transcription, memory."""

_WORD_ERRORS_AT_MOST: Final = 0.1
_LOCK_AT_MOST_S: Final = 20.0
"""A lock whose stall nobody tells goes anyway, before SQLite gives the writer up at 30 s."""
_LOOK_AT_IT_S: Final = 0.5
"""The lock stays that long after the stall was told."""
_SILENT_AT_MOST_S: Final = 60.0
"""When nothing is heard of any recording for so long, none is waited for any more."""
_LATE_AT_MOST_S: Final = 10.0
"""The last spans of processes that go on, and the 5 s in which their work settles."""
_TICK_S: Final = 0.1

OnProgress = Callable[["Recording", str, float], None]


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
class VoiceNote:
    """What came of a recording; `error` is why it got no further."""

    transaction_id: str
    """Empty where the server never told one."""
    user_id: str
    path: Path
    transcript: str = ""
    memories: tuple[Memory, ...] = ()
    error: str | None = None
    done: bool = False


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
    traces: dict[str, Trace] = field(default_factory=dict)
    """Of the spans that the processes sent, by trace id."""
    trace_urls: list[str] = field(default_factory=list)
    exporters: list[str] = field(default_factory=list)
    """Where spans were sent besides."""
    journal: Path | None = None
    """What the dashboard service of its own keeps; None where there was none."""
    trouble: str = ""
    """Why it ended early."""

    def complaints(self) -> list[str]:
        """What did not go as the recordings' manifest says; empty where all did."""
        if self.trouble:
            return [self.trouble]  # the rest follows from it
        found = []
        for recording, note in zip(self.recordings, self.notes, strict=True):
            if recording.expect not in (None, outcome(note)):
                reason = f": {note.error}" if note.error else ""
                found.append(f"{note.path.name} was to be {recording.expect}{reason}")
            if recording.database_locked and self.stall_of(note) is None:
                found.append(f"{note.path.name} found its database locked and did not stall")
            flaw = self._flaw_in_trace(note)
            if flaw:
                found.append(f"the trace of {note.path.name} is not whole: {flaw}")
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

    def trace_of(self, note: VoiceNote) -> Trace:
        """The recording's trace; without spans where none came."""
        return self.traces.get(note.transaction_id.replace("-", ""), Trace(()))

    def _flaw_in_trace(self, note: VoiceNote) -> str:
        if not note.transaction_id:
            return ""  # the server never heard of it, and why is told elsewhere
        trace = self.trace_of(note)
        flaw, count = trace.flaw(), len(trace.processes)
        if not flaw and outcome(note) == "completed" and count < PROCESSES:
            flaw = f"it shows {count} of {PROCESSES} processes"
        return flaw

    def whole(self) -> list[VoiceNote]:
        """The recordings whose traces have one root and every span under it."""
        return [n for n in self.notes if n.transaction_id and not self.trace_of(n).flaw()]

    def crossing(self) -> list[VoiceNote]:
        """Those of them that at least three processes worked on; the most eventful first."""
        notes = [n for n in self.whole() if len(self.trace_of(n).processes) >= PROCESSES]
        return sorted(notes, key=lambda n: self.stall_of(n) is None)

    def as_json(self) -> dict[str, Any]:
        """The dashboard's data, and beside it what the traces prove."""
        crossing = self.crossing()
        example = None
        if crossing:
            note = crossing[0]
            example = {
                "recording": note.path.name,
                "transaction_id": note.transaction_id,
                "spans": self.trace_of(note).rows(),
            }
        proof = {
            "whole": len(self.whole()),
            "through_three_processes": len(crossing),
            "example": example,
        }
        return {**self.data, "traces": proof}


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
    on_progress: OnProgress,
    *,
    url: str = "",
    stay: Callable[[Run, Services], None] | None = None,
) -> Run:
    """Starts the service, sends it the recordings, waits for the last one, and ends the service.

    Args:
        recordings: sent in this order, two at a time.
        directory: where the databases and the dump go; made when needed.
        on_progress: called on any thread with a recording, its stage, and the share of that stage
            that is done (0 to 1); with ``queued`` and ``stalled`` where it waits, and finally with
            ``completed``, ``failed`` or ``skipped``.
        url: the dashboard service that the processes feed; empty for none.
        stay: called with what came of it, before the service ends: its processes live until that
            returns.

    Raises:
        OSError: the directory cannot be written, or no process be started.
        sqlite3.Error: a database cannot be locked.
    """
    notes = [VoiceNote("", recording.user_id, recording.path) for recording in recordings]
    result = Run(list(recordings), directory, notes)
    store = MemoryStore(directory / "memories")
    tracker = init_debug_tracker(disabled=False, debug_dump_dir=directory / "debug_dumps")
    try:
        # In this order: the processes end first, their last spans are taken, and what is still to
        # be sent finds nobody.
        with (
            Watch(tracker.receiver.take) as watch,
            ThreadPoolExecutor(AT_ONCE) as pool,
            Services(store, watch.endpoint, url) as services,
        ):
            _Sending(result, services, store, on_progress).send(pool)
            if stay is not None:
                _await_the_last_spans(result, watch, tracker)
                _conclude(result, watch, tracker)
                stay(result, services)
        if stay is None:
            _conclude(result, watch, tracker)
    finally:
        with _silent():
            shutdown_debug_tracker()
    return result


def _await_the_last_spans(result: Run, watch: Watch, tracker: DebugSystemTracker) -> None:
    """Nobody tells an end where processes go on; what never comes or settles is a complaint."""
    deadline = time.monotonic() + _LATE_AT_MOST_S
    while time.monotonic() < deadline:
        result.traces, result.data = traces_of(watch.spans), tracker.get_dashboard_data()
        if not result.complaints():
            return
        time.sleep(_TICK_S)


def _conclude(result: Run, watch: Watch, tracker: DebugSystemTracker) -> None:
    result.traces = traces_of(watch.spans)
    result.data = tracker.get_dashboard_data()
    result.dump = tracker.export_debug_dump()
    ids = [note.transaction_id for note in result.notes]
    result.trace_urls = [tracker.trace_url(one) if one else "none" for one in ids]
    result.exporters = list(exporters_of_the_user())


@contextmanager
def _silent() -> Iterator[None]:
    """What the tracker would tell here at its end was told by the processes, when it happened."""
    logger = logging.getLogger("otel_tracker")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Sending:
    """The recordings under way."""

    def __init__(
        self, result: Run, services: Services, store: MemoryStore, on_progress: OnProgress
    ) -> None:
        self._result = result
        self._services = services
        self._store = store
        self._on_progress = on_progress
        self._heard_at = time.monotonic()
        self._unlock_at = math.inf

    def send(self, pool: Executor) -> None:
        """Sends all; the databases that are to be locked are so until a stall was told."""
        pairs = list(zip(self._result.recordings, self._result.notes, strict=True))
        with ExitStack() as locks:
            for recording, _ in pairs:
                if recording.database_locked:
                    locks.enter_context(locked(self._store.path_of(recording.user_id)))
            futures = [pool.submit(self._send_one, *pair) for pair in pairs]
            try:
                self._wait(locks)
            except ServiceError as error:
                self._result.trouble = str(error)
            finally:
                for future in futures:
                    future.cancel()  # after Ctrl-C, those that are not begun
        for recording, note in pairs:
            if not note.done:
                self._finish(recording, note, Done(note.transaction_id, error="nobody finished it"))

    def _wait(self, locks: ExitStack) -> None:
        while not all(note.done for note in self._result.notes):
            news = self._services.hear(_TICK_S)
            if news is not None:
                self._take(news)
            else:
                self._services.check()
                if time.monotonic() - self._heard_at > _SILENT_AT_MOST_S:
                    raise ServiceError(f"nothing was heard for {_SILENT_AT_MOST_S:.0f} s")
            if time.monotonic() >= self._unlock_at:
                locks.close()
        self._services.check()

    def _take(self, news: News) -> None:
        self._heard_at = now = time.monotonic()
        for recording, note in zip(self._result.recordings, self._result.notes, strict=True):
            if note.transaction_id == news.transaction_id and not note.done:
                self._take_of(recording, note, news, now)

    def _take_of(self, recording: Recording, note: VoiceNote, news: News, now: float) -> None:
        if isinstance(news, Done):
            self._finish(recording, note, news)
        elif isinstance(news, Stalled):
            self._result.stalls.append(_stall(news.info, now))
            self._on_progress(recording, "stalled", 0.0)
            if recording.database_locked:
                self._unlock_at = now + _LOOK_AT_IT_S
        else:
            self._on_progress(recording, news.stage, news.share)
            if recording.database_locked and news.stage == "memory":
                self._unlock_at = now + _LOCK_AT_MOST_S

    def _finish(self, recording: Recording, note: VoiceNote, came: Done) -> None:
        note.transcript, note.memories, note.error = came.transcript, came.memories, came.error
        stall = self._result.stall_of(note)
        if stall is not None and note.error is None:
            stall.recovered_after_s = time.monotonic() - stall.told_at_s
        self._on_progress(recording, outcome(note), 1.0)
        note.done = True

    def _send_one(self, recording: Recording, note: VoiceNote) -> None:
        """On a thread of the pool: the others go on meanwhile."""

        def begin(transaction_id: str) -> None:
            note.transaction_id = transaction_id

        def sent(share: float) -> None:
            self._heard_at = time.monotonic()
            self._on_progress(recording, "audio" if share < 1 else "queued", share)

        try:
            client.send(self._services.address, note.user_id, note.path, begin, sent)
        except Exception as error:  # whatever it is, it is this recording's alone
            self._finish(recording, note, Done(note.transaction_id, error=str(error)))


def _stall(info: dict[str, Any], now_s: float) -> Stall:
    return Stall(
        info["transaction_id"],
        info["stage"] or "none",
        info["silent_seconds"],
        info["where"] or "an unknown thread",
        (info["stack"] or "an unknown line").rpartition("\n")[2],
        now_s,
    )
