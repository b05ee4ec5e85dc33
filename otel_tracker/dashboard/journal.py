"""What arrives at the dashboard service, on disk: bounded, and read back after a restart.

A directory has segments (`replay` says in which format) and checkpoints:

    00000007.otlp                          requests in the order in which they came
    00000007-000000123456.checkpoint       the state after the first 123456 bytes of segment 7
    lock                                   held by the one service that writes here

A request is written before it is folded, both under one lock. So a checkpoint, taken under that
lock, holds exactly what the segments have up to its place: a restart is the newest good checkpoint
and what comes after it. Older segments are history to replay, and go when their bytes are needed.

A write goes to the operating system before the client gets its answer, and no further: a killed
process loses nothing, a power cut the last seconds. Waiting for the disk would hold up every
sender for milliseconds, and what a power cut takes from telemetry is not worth that. Checkpoints
are forced to disk, since their thread may wait.

While the service is down no time passes for what is open: at a restart each attempt has been
silent for as long as when the service was last alive. Nothing stalls because nobody was there to
listen; what had stalled before still has. Ages of users are real ones.

Nothing here raises into the service or stops it. Where the disk is full or not writable it goes on
without a journal, says so once and under `health`, and tries again. A checkpoint then makes good
what was not written meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ..model import NS_PER_S, to_iso
from ..receiver import parse
from ..state import State
from ..store import Clock, Store, SystemClock
from .checkpoint import (
    Captured,
    CheckpointError,
    Snapshot,
    capture,
    forgive_workers,
    install,
    lines,
    read,
)
from .replay import (
    OVERHEAD,
    SEGMENT,
    DamagedError,
    RecordedClock,
    frame,
    pass_time,
    records,
    unseen,
)

logger: Final = logging.getLogger("otel_tracker")

DIRECTORY_ENV: Final = "OTEL_TRACKER_JOURNAL_DIR"
BYTES_ENV: Final = "OTEL_TRACKER_JOURNAL_BYTES"
LIMIT: Final = 256 << 20
"""Bytes of all files in the directory, by default."""
LEAST_LIMIT: Final = 1 << 20

_SEGMENTS: Final = 16  # segments that share the bound
_LARGEST_RECORD: Final = 8  # a record has at most this part of the bound
_LARGEST_CHECKPOINT: Final = 4  # and a checkpoint this: two are kept while a third is written
_CHECKPOINT_EVERY_NS: Final = 60 * NS_PER_S
_PIPELINES_EVERY_NS: Final = 5 * NS_PER_S
_RETRY_NS: Final = 10 * NS_PER_S
_NOTES: Final = 20
_PIECE: Final = 256 << 10

_SEGMENT_NAME: Final = re.compile(r"([0-9]{8})" + re.escape(SEGMENT))
_CHECKPOINT_NAME: Final = re.compile(r"([0-9]{8})-([0-9]{12})\.checkpoint")
_TEMPORARY: Final = ".checkpoint.tmp"


class JournalInUseError(RuntimeError):
    """Another service writes to this directory; the message names its process."""


def directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where the journal is kept: ``OTEL_TRACKER_JOURNAL_DIR``, else below ``XDG_STATE_HOME``."""
    environ = os.environ if environ is None else environ
    given = environ.get(DIRECTORY_ENV, "").strip()
    if given:
        return Path(given).expanduser()
    state = environ.get("XDG_STATE_HOME", "").strip()
    base = Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()
    return base / "otel-tracker" / "journal"


def limit_bytes(environ: Mapping[str, str] | None = None) -> int:
    """``OTEL_TRACKER_JOURNAL_BYTES``; a bad value is a warning and the default."""
    environ = os.environ if environ is None else environ
    given = environ.get(BYTES_ENV, "").strip()
    if not given:
        return LIMIT
    if given.isascii() and given.isdigit() and int(given) >= LEAST_LIMIT:
        return int(given)
    logger.warning(
        "otel_tracker: %s %r is no good (use a whole number of bytes from %d); using the default, "
        "%d", BYTES_ENV, given, LEAST_LIMIT, LIMIT,
    )  # fmt: skip
    return LIMIT


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restart found."""

    alive_ns: int = 0
    """When the service before this one was last alive, by the wall clock; 0 if there was none."""
    requests: int = 0
    """Read after the checkpoint."""
    read_bytes: int = 0
    notes: tuple[str, ...] = ()
    """What could not be read, in sentences."""


class _Segment:
    """The file that is written to. Raises `OSError`."""

    def __init__(self, path: Path, number: int) -> None:
        self.number = number
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o600)
        self.size = os.fstat(self._descriptor).st_size

    def append(self, pieces: tuple[bytes, ...], size: int) -> None:
        """Writes a record, or nothing of it."""
        try:
            written = os.writev(self._descriptor, pieces)
            if written < size:  # the disk is nearly full, or the pieces are many: the next tells
                rest = memoryview(b"".join(pieces))
                while written < size:
                    written += os.write(self._descriptor, rest[written:])
        except OSError:
            # A record that is cut off here would hide what is written after it.
            os.ftruncate(self._descriptor, self.size)
            raise
        self.size += size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self.size = size

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


_Place = tuple[int, int]
"""Segment and byte."""


class _Files:
    """The directory: names, sizes, the bound. Raises `OSError`."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.segments: dict[int, int] = {}
        """Bytes by number, oldest first."""
        self.checkpoints: dict[_Place, int] = {}
        """Bytes by place, oldest first."""
        self.temporary = 0
        """Bytes of the checkpoint that is being written."""
        self.lost = 0
        """Segments that went although no checkpoint had them."""

    def look(self) -> None:
        """Finds out what is there; foreign files stay as they are."""
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.path)}
        for name in sorted(sizes):
            if match := _SEGMENT_NAME.fullmatch(name):
                self.segments[int(match[1])] = sizes[name]
            elif match := _CHECKPOINT_NAME.fullmatch(name):
                self.checkpoints[int(match[1]), int(match[2])] = sizes[name]

    @property
    def bytes(self) -> int:
        # Lists are made at once: `health` may ask while another thread writes.
        kept = [*list(self.segments.values()), *list(self.checkpoints.values())]
        return sum(kept) + self.temporary

    def segment(self, number: int) -> Path:
        return self.path / f"{number:08d}{SEGMENT}"

    def checkpoint(self, place: _Place) -> Path:
        return self.path / f"{place[0]:08d}-{place[1]:012d}.checkpoint"

    def make_room(self, size: int, current: int | None) -> None:
        """Lets go of the oldest until `size` more bytes fit; never of the current segment."""
        while self.bytes + size > self.limit:
            needed_from = next(iter(self.checkpoints), (0, 0))[0]
            oldest = next((n for n in self.segments if n != current), None)
            if oldest is not None and oldest < needed_from:
                self.drop_segment(oldest)
            elif len(self.checkpoints) > 1:
                self.drop_checkpoint(next(iter(self.checkpoints)))
            elif oldest is not None:
                self.drop_segment(oldest)
                self.lost += 1
            else:
                return

    def drop_segment(self, number: int) -> None:
        self.segment(number).unlink(missing_ok=True)
        del self.segments[number]

    def drop_checkpoint(self, place: _Place) -> None:
        self.checkpoint(place).unlink(missing_ok=True)
        del self.checkpoints[place]


class Journal:
    """Keeps what arrives, and gives it back to a store after a restart.

        journal = Journal(directory(), store, Receiver(store).fold)
        journal.open()  # raises JournalInUseError
        journal.restore()
        journal.start()
        ...
        journal.take(request)  # for each that arrives, before it is answered
        ...
        journal.close()

    Args:
        path: its directory, made when needed.
        store: an empty one.
        fold: puts a request into that store, and does whatever else the service does with it.
        look: reads the store, as the service does every second: called while recorded time passes.
        keep: plain data of the service's own by name, which every checkpoint takes with it. It must
            copy, and be quick: requests wait meanwhile.
        take_back: is given that again at a restart, before what came after it is folded.
        limit: bytes of all files.
        clock: dates what comes.
    """

    def __init__(
        self,
        path: Path,
        store: Store,
        fold: Callable[[ExportTraceServiceRequest], int],
        *,
        look: Callable[[], None] | None = None,
        keep: Callable[[], Mapping[str, Any]] = dict,
        take_back: Callable[[Mapping[str, Any]], None] | None = None,
        limit: int = LIMIT,
        clock: Clock | None = None,
    ) -> None:
        if limit < LEAST_LIMIT:
            raise ValueError(f"Journal: a limit of {limit} bytes is too small; use {LEAST_LIMIT}")
        self._files = _Files(path, limit)
        self._store = store
        self._fold = fold
        self._look = look or partial(unseen, store)
        self._keep = keep
        self._take_back = take_back
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()  # appending, and where a checkpoint begins
        self._one_checkpoint = threading.Lock()
        self._segment: _Segment | None = None
        self._next = 1  # number of the next segment
        self._lock_file: int | None = None
        self._alive_ns = 0
        self._is_off = False  # nothing is written until the next try
        self._problem = ""
        self._checkpoint_problem = ""
        self._retry_ns = 0
        self._is_wanted = False  # a checkpoint: something is not in the segments, or they are long
        self._appended = 0  # bytes since the newest checkpoint
        self._checkpoint_ns = self._clock.monotonic_ns()
        self._pipelines: object = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_closed = False
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._damaged = 0
        self._requests = 0
        self._not_kept = 0
        self._checkpoint: dict[str, Any] | None = None

    # --- life -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Takes the directory. Where it cannot be written, the service goes on without a journal.

        Raises:
            JournalInUseError: another service has it.
        """
        try:
            self._take_directory()
        except OSError as error:
            self._fail(error)

    def _take_directory(self) -> None:
        path = self._files.path
        os.makedirs(path, mode=0o700, exist_ok=True)  # the mode is that of the last one alone
        self._lock_directory()
        self._files.look()
        last = max([0, *self._files.segments, *(place[0] for place in self._files.checkpoints)])
        self._next = last + 1
        (path / _TEMPORARY).unlink(missing_ok=True)

    def _lock_directory(self) -> None:
        """A lock that the kernel takes back when its process dies, however it dies."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self._files.path / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise JournalInUseError(
                f"process {pid or '(unknown)'} writes its journal to {self._files.path}; end that "
                f"service, or set {DIRECTORY_ENV} to a directory of this one's own"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_size:
            self._alive_ns = os.fstat(descriptor).st_mtime_ns
        self._lock_file = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        if self._alive_ns:  # a start that is killed before it ends was not alive
            os.utime(descriptor, ns=(self._alive_ns, self._alive_ns))

    def start(self) -> None:
        """Starts the thread that writes checkpoints and tries again after a failure."""
        self._thread = threading.Thread(target=self._run, name="otel_tracker-journal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_closed:
            self._wake.wait(1.0)
            self._wake.clear()
            if not self._is_closed:
                try:
                    self.tick()
                except Exception:
                    logger.exception("otel_tracker: a defect of the journal: no checkpoint written")
                    self._checkpoint_ns = self._clock.monotonic_ns()

    def close(self) -> None:
        """Writes a last checkpoint, and leaves the directory to the next service."""
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        if self._lock_file is None:
            return
        self.checkpoint()
        with self._lock:
            self._leave_segment()
        self._touch()
        os.close(self._lock_file)
        self._lock_file = None

    # --- writing --------------------------------------------------------------------------------

    def take(self, request: ExportTraceServiceRequest, message: bytes | None = None) -> int:
        """Keeps a request and folds it: after this, a killed process loses nothing of it.

        Args:
            request: what `receiver.parse` accepted.
            message: its bytes, where it came as protobuf: saves encoding it again.

        Returns:
            How many of its spans carry our attributes.
        """
        if message is None:
            message = request.SerializeToString()
        with self._lock:
            self._append(message)
            return self._fold(request)

    def _append(self, message: bytes) -> None:
        size = len(message) + OVERHEAD
        files = self._files
        if self._lock_file is None or self._is_off or size > files.limit // _LARGEST_RECORD:
            self._not_kept += 1
            self._is_wanted = True
            return
        try:
            segment = self._segment
            if segment is not None and segment.size + size > files.limit // _SEGMENTS:
                self._leave_segment()
                self._is_wanted = True
                self._wake.set()
                segment = None
            files.make_room(size, None if segment is None else segment.number)
            if segment is None:
                segment = self._new_segment()
            segment.append(frame(message, self._clock.time_ns()), size)
        except OSError as error:
            self._not_kept += 1
            self._fail(error)
            return
        files.segments[segment.number] = segment.size
        self._appended += size
        self._requests += 1

    def _new_segment(self) -> _Segment:
        segment = _Segment(self._files.segment(self._next), self._next)
        self._segment = segment
        self._files.segments[segment.number] = segment.size
        self._next += 1
        return segment

    def _leave_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _give_up_segment(self) -> None:
        segment = self._segment
        self._leave_segment()
        if segment is not None and segment.size == 0:  # else every try would leave a file
            with contextlib.suppress(OSError):
                self._files.drop_segment(segment.number)
                self._next = segment.number

    def _fail(self, error: OSError) -> None:
        """Goes on without a journal, and says so once."""
        self._give_up_segment()
        self._is_off = True
        self._is_wanted = True
        self._retry_ns = self._clock.monotonic_ns() + _RETRY_NS
        reason = _reason(error)
        if not self._problem:
            logger.warning(
                "otel_tracker: no journal is kept in %s (%s); after a restart the page will lack "
                "what comes now. Free the disk, or set %s to a directory that can be written; it "
                "is tried again every %d s (logged once)",
                self._files.path, reason, DIRECTORY_ENV, _RETRY_NS // NS_PER_S,
            )  # fmt: skip
        self._problem = reason

    # --- checkpoints ----------------------------------------------------------------------------

    def tick(self) -> None:
        """What is to be done about once a second; `start` has a thread for it."""
        self._touch()
        if self._is_due():
            self.checkpoint()

    def _touch(self) -> None:
        """Says that the service lives: what is open may be silent from here on."""
        if self._lock_file is not None:
            now_ns = self._clock.time_ns()
            with contextlib.suppress(OSError):
                os.utime(self._lock_file, ns=(now_ns, now_ns))

    def _is_due(self) -> bool:
        now_ns = self._clock.monotonic_ns()
        if (self._problem or self._checkpoint_problem) and now_ns < self._retry_ns:
            return False
        since_ns = now_ns - self._checkpoint_ns
        if self._is_wanted or (self._appended and since_ns >= _CHECKPOINT_EVERY_NS):
            return True
        # Beats declare pipelines, and are not kept: without them work is judged differently.
        return since_ns >= _PIPELINES_EVERY_NS and self._store.read(_pipelines) != self._pipelines

    def checkpoint(self) -> bool:
        """Writes a checkpoint now; whether it could be written."""
        with self._one_checkpoint, _no_long_collection():
            try:
                return self._write_checkpoint()
            except (OSError, CheckpointError, TypeError, ValueError, OverflowError) as error:
                self._fail_checkpoint(error)
                return False
            finally:
                with self._lock:
                    self._files.temporary = 0

    def _write_checkpoint(self) -> bool:
        started_ns = self._clock.monotonic_ns()
        with self._lock:
            if not self._begin_again():
                return False
            captured, kept, place = self._captured()
        held_ns = self._clock.monotonic_ns() - started_ns
        temporary = self._files.path / _TEMPORARY
        try:
            size = self._write(temporary, captured, kept)
            temporary.replace(self._files.checkpoint(place))
            self._sync_directory()
        finally:
            temporary.unlink(missing_ok=True)
        with self._lock:
            self._files.temporary = 0
            self._files.checkpoints[place] = size
            for old in list(self._files.checkpoints)[:-2]:
                self._files.drop_checkpoint(old)
            if self._problem and not self._is_off:
                self._problem = ""
                logger.warning("otel_tracker: the journal in %s is kept again", self._files.path)
        self._checkpoint_problem = ""
        self._checkpoint_ns = self._clock.monotonic_ns()
        self._checkpoint = {
            "at": to_iso(captured.wall_ns),
            "bytes": size,
            "seconds": (self._checkpoint_ns - started_ns) / NS_PER_S,
            "held_seconds": held_ns / NS_PER_S,
        }
        return True

    def _begin_again(self) -> bool:
        """After a failure: from here on requests are written, and the checkpoint has the rest."""
        if self._lock_file is not None and not self._is_off:
            return True
        try:
            if self._lock_file is None:
                self._take_directory()
            self._new_segment()
        except JournalInUseError as error:
            self._fail(OSError(0, str(error)))
        except OSError as error:
            self._fail(error)
        else:
            self._is_off = False
            return True
        return False

    def _captured(self) -> tuple[Captured, Mapping[str, Any], _Place]:
        segment = self._segment
        place = (self._next, 0) if segment is None else (segment.number, segment.size)
        clock = self._store.clock

        def view(state: State) -> tuple[Captured, object]:
            taken = capture(state, clock.monotonic_ns(), clock.time_ns())
            return taken, _pipelines(state)

        captured, self._pipelines = self._store.read(view)
        self._appended = 0
        self._is_wanted = False
        return captured, self._keep(), place

    def _write(self, path: Path, captured: Captured, kept: Mapping[str, Any]) -> int:
        """Line by line: each gives way to the threads that take requests."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        size = 0
        with open(os.open(path, flags, 0o600), "wb", buffering=_PIECE) as file:
            for line in lines(captured, kept):
                size += len(line)
                self._count_temporary(size)
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return size

    def _count_temporary(self, size: int) -> None:
        if size > self._files.limit // _LARGEST_CHECKPOINT:
            raise CheckpointError(
                f"it needs more than a quarter of {BYTES_ENV}, {self._files.limit}; set that higher"
            )
        if size <= self._files.temporary:
            return
        with self._lock:
            current = None if self._segment is None else self._segment.number
            self._files.make_room(size + _PIECE - self._files.temporary, current)
            self._files.temporary = size + _PIECE

    def _sync_directory(self) -> None:
        descriptor = os.open(self._files.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _fail_checkpoint(self, error: Exception) -> None:
        """The segments go on; a restart takes longer, and lacks what is only in checkpoints."""
        reason = _reason(error)
        with self._lock:
            self._is_wanted = True
            self._retry_ns = self._clock.monotonic_ns() + _RETRY_NS
        if not self._checkpoint_problem:
            logger.warning(
                "otel_tracker: no checkpoint can be written to %s (%s); it is tried again every "
                "%d s (logged once)", self._files.path, reason, _RETRY_NS // NS_PER_S,
            )  # fmt: skip
        self._checkpoint_problem = reason

    # --- restart --------------------------------------------------------------------------------

    def restore(self, progress: Callable[[int, int], None] | None = None) -> Restored:
        """Puts into the store what the directory has: the newest good checkpoint, and what follows.

        Meanwhile the store's clock is that of the recording.

        Args:
            progress: told how many bytes were read of how many.

        Returns:
            What was found.
        """
        if self._lock_file is None:
            return Restored(notes=tuple(self._notes))
        collects = gc.isenabled()
        gc.disable()  # much is made and none of it is garbage: half of the time would go there
        try:
            return self._restore(progress)
        except OSError as error:
            self._fail(error)
            return Restored(notes=tuple(self._notes))
        finally:
            if collects:
                gc.enable()

    def _restore(self, progress: Callable[[int, int], None] | None) -> Restored:
        clock = self._store.clock
        now_ns, wall_ns = clock.monotonic_ns(), clock.time_ns()
        alive_ns = self._newest_ns()
        recorded = RecordedClock(now_ns - alive_ns)

        def shift_ns(then_ns: int, then_wall_ns: int) -> int:
            return now_ns - max(0, alive_ns - then_wall_ns) - then_ns

        snapshot, place = self._newest_checkpoint(shift_ns)
        after = [n for n in self._files.segments if n >= place[0]]
        total = sum(self._files.segments[n] for n in after)
        self._store.clock = recorded
        requests = done = 0
        try:
            if snapshot is not None:
                recorded.move_to(min(snapshot.wall_ns, alive_ns))
                self._install(snapshot, now_ns)
            self._note_gaps(after, place, is_first=snapshot is None)
            for number in after:
                start = place[1] if number == place[0] else 0
                for arrived_ns, request, end in self._requests_of(number, start):
                    # A wall clock that was set back leaves times that are still to come.
                    pass_time(recorded, min(arrived_ns, alive_ns), self._look)
                    self._fold(request)
                    requests += 1
                    if progress is not None:
                        progress(done + end, total)
                done += self._files.segments[number]
            pass_time(recorded, alive_ns, self._look)
            self._look()
            # Reading took its time as well; on the recording's clock still, by which none is lost.
            down_ns, now_ns = max(0, wall_ns - alive_ns), clock.monotonic_ns()
            self._store.read(lambda state: _end_restart(state, now_ns, down_ns))
        finally:
            self._store.clock = clock
        # What was read once need not be read again after the next restart.
        self._is_wanted = bool(requests or self._notes)
        return Restored(
            alive_ns if snapshot is not None or requests else 0,
            requests,
            total - (place[1] if place[0] in after else 0),
            tuple(self._notes),
        )

    def _newest_ns(self) -> int:
        """When the service before this one was last alive; now, if there was none."""
        files = self._files
        paths = [
            *(files.segment(number) for number in files.segments),
            *(files.checkpoint(place) for place in files.checkpoints),
        ]
        newest = max((path.stat().st_mtime_ns for path in paths), default=0)
        return max(self._alive_ns, newest) or self._store.clock.time_ns()

    def _newest_checkpoint(
        self, shift_ns: Callable[[int, int], int]
    ) -> tuple[Snapshot | None, _Place]:
        """The newest that can be read; those that are damaged are removed."""
        for place in reversed(list(self._files.checkpoints)):
            path = self._files.checkpoint(place)
            try:
                with path.open("rb") as file:
                    return read(file, shift_ns), place
            except CheckpointError as error:
                self._note(f"{path.name} {error}")
                self._damaged += 1
                self._files.drop_checkpoint(place)
            except OSError as error:
                self._note(f"{path.name} cannot be read: {error.strerror or error}")
                self._damaged += 1
        return None, (0, 0)

    def _install(self, snapshot: Snapshot, now_ns: int) -> None:
        def put(state: State) -> None:
            install(snapshot, state)
            # Beats are not kept: none is lost before it had the time to beat again.
            forgive_workers(state, now_ns)

        self._store.read(put)
        unseen(self._store)
        if self._take_back is not None:
            self._take_back(snapshot.more)

    def _note_gaps(self, after: list[int], place: _Place, *, is_first: bool) -> None:
        """Segments that are not there were let go, or somebody removed them."""
        first = max(1, place[0])
        wanted = range(first, (after or [first])[-1] + 1)
        missing = [n for n in wanted if n not in self._files.segments]
        if is_first and after and after[0] > 1:
            self._note(f"there is no checkpoint: the figures begin with {after[0]:08d}{SEGMENT}")
        elif missing and after:
            self._note(f"missing segments: {len(missing)} from {missing[0]:08d}{SEGMENT} on")

    def _requests_of(
        self, number: int, start: int
    ) -> Iterator[tuple[int, ExportTraceServiceRequest, int]]:
        """The requests of a segment from this byte on: when each came, itself, and its end."""
        path = self._files.segment(number)
        end = start
        try:
            with path.open("rb", buffering=_PIECE) as file:
                file.seek(start)
                for record in records(file, start, ours=True):
                    yield record.arrived_ns or 0, parse(record.message), record.end
                    end = record.end
        except DamagedError as error:
            self._note(f"{path.name} {error}")
            if error.is_torn and number == max(self._files.segments):
                self._cut_off(number, end)
            else:
                self._damaged += 1
        except OSError as error:
            self._note(f"{path.name} cannot be read: {error.strerror or error}")
            self._damaged += 1

    def _cut_off(self, number: int, size: int) -> None:
        """The last record was being written when the process was killed; nobody was told of it."""
        path = self._files.segment(number)
        try:
            times = path.stat()
            os.truncate(path, size)
            # It is by these times that a next start knows when a service was alive.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        except OSError as error:
            self._fail(error)
        else:
            self._files.segments[number] = size

    def _note(self, text: str) -> None:
        self._notes.append(text)
        logger.warning("otel_tracker: journal: %s", text)

    # --- health ---------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """How the journal fares, as plain data. ``problem`` is None while all is well."""
        files = self._files
        return {
            "directory": str(files.path),
            "problem": self._problem or self._checkpoint_problem or None,
            "bytes": files.bytes,
            "limit_bytes": files.limit,
            "segments": len(files.segments),
            "requests": self._requests,
            "requests_not_kept": self._not_kept,
            "segments_lost": files.lost,
            "damaged_files": self._damaged,
            "notes": list(self._notes),
            "checkpoint": self._checkpoint,
        }


@contextlib.contextmanager
def _no_long_collection() -> Iterator[None]:
    """A full collection would look at every fact that is kept, and hold up all threads for that.

    Writing a checkpoint makes so many small objects that several would come.
    """
    is_ours = gc.isenabled() and gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _pipelines(state: State) -> object:
    return list(state.pipelines.values())


def _end_restart(state: State, now_ns: int, down_ns: int) -> None:
    """Users' ages are real ones, and workers have from now on to beat again."""
    for user, (at_ns, seen_ns) in state.users.items():
        state.users[user] = (at_ns, seen_ns - down_ns)
    forgive_workers(state, now_ns)
