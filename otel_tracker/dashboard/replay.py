"""Recorded requests, read back into a store in the time of the recording.

A journal's segment is what the Collector's file exporter writes as ``format: proto``: the length
in 4 bytes, big-endian, then the request. Ours end with two fields that no request has, so that
every other reader skips them: when it came, and a checksum.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ..model import LATEST_NS, NS_PER_S
from ..receiver import JSON, Receiver, parse
from ..state import State
from ..store import Store
from ..trace.files import RECORD_AT_MOST
from ..trace.pieces import CUT_OFF, Ahead, BrokenError, Document
from ..trace.words import harmless

LENGTH: Final = 4
_ARRIVED: Final = b"\xc1\xa9\x07"  # field 15000, fixed64
_CHECKSUM: Final = b"\xcd\xa9\x07"  # field 15001, fixed32
_FOOTER: Final = struct.Struct("<3sQ3sI")
OVERHEAD: Final = LENGTH + _FOOTER.size
"""Bytes of a record beside the request."""

_DAMAGED: Final = -1
_LOOKS: Final = 1_000
"""Looks in one gap of a recording at most, one a second where it is shorter."""
SEGMENT: Final = ".otlp"
"""How the name of a journal's segment ends."""


class DamagedError(ValueError):
    """A record that is not what was written: the rest of a sentence about its file.

    Attributes:
        is_torn: the file ends in the middle of it; its writer was killed.
    """

    def __init__(self, message: str, *, is_torn: bool = False) -> None:
        super().__init__(message)
        self.is_torn = is_torn


class Record(NamedTuple):
    """A request in a file."""

    message: bytes
    arrived_ns: int | None
    """Wall clock; None where its writer did not say."""
    end: int
    """Bytes of the file up to its end."""


def frame(message: bytes, arrived_ns: int) -> tuple[bytes, bytes, bytes]:
    """A record in pieces to be written one after the other."""
    footer = _FOOTER.pack(_ARRIVED, arrived_ns, _CHECKSUM, 0)
    crc = zlib.crc32(footer[:11], zlib.crc32(message))
    return (
        (len(message) + len(footer)).to_bytes(LENGTH, "big"),
        message,
        _FOOTER.pack(_ARRIVED, arrived_ns, _CHECKSUM, crc),
    )


def _arrival(message: bytes) -> int | None:
    """When a record of ours came; None where somebody else wrote it, -1 where it is damaged."""
    if len(message) < _FOOTER.size:
        return None
    arrived, wall_ns, checksum, crc = _FOOTER.unpack_from(message, len(message) - _FOOTER.size)
    if (arrived, checksum) != (_ARRIVED, _CHECKSUM):
        return None
    if zlib.crc32(memoryview(message)[: -_FOOTER.size + 11]) != crc:
        return _DAMAGED
    return int(wall_ns)


def records(file: BinaryIO | Ahead, start: int = 0, *, ours: bool = False) -> Iterator[Record]:
    """The records of a file from here on.

    Args:
        file: it stands at the start of a record.
        start: how many bytes of it are before that.
        ours: each must end with what we write there.

    Raises:
        DamagedError: one is not what was written, or the file ends in the middle of it.
    """
    at = start
    while prefix := file.read(LENGTH):
        if len(prefix) < LENGTH:
            raise DamagedError(CUT_OFF, is_torn=True)
        length = int.from_bytes(prefix, "big")
        if length > RECORD_AT_MOST or (ours and length < _FOOTER.size):
            raise DamagedError(f"is damaged from byte {at} on; the rest of it is left out")
        message = file.read(length)
        if len(message) < length:
            raise DamagedError(CUT_OFF, is_torn=True)
        arrived_ns = _arrival(message)
        if arrived_ns == _DAMAGED or (ours and arrived_ns is None):
            raise DamagedError(f"is damaged from byte {at} on; the rest of it is left out")
        at += LENGTH + length
        yield Record(message, arrived_ns, at)


# --- the time of a recording ----------------------------------------------------------------------


class RecordedClock:
    """Both clocks as they stood when a recording was made; they never go back.

    Args:
        offset_ns: what its monotonic clock is ahead of its wall clock.
        wall_ns: where it starts; 0 where the first record is to say it.
    """

    def __init__(self, offset_ns: int = 0, wall_ns: int = 0) -> None:
        self._offset_ns = offset_ns
        self._wall_ns = wall_ns

    def monotonic_ns(self) -> int:
        """Recorded time by the monotonic clock."""
        return self._wall_ns + self._offset_ns

    def time_ns(self) -> int:
        """Recorded time by the wall clock."""
        return self._wall_ns

    def move_to(self, wall_ns: int) -> None:
        """It is now that time, if it was not later already."""
        self._wall_ns = max(self._wall_ns, wall_ns)


def pass_time(clock: RecordedClock, wall_ns: int, look: Callable[[], None]) -> None:
    """Lets recorded time pass, with a look every second as a live service has it.

    So what was judged between two records is judged again: a silence that became an issue, work
    that settled, and in that order. A look without anything due costs microseconds.
    """
    gap_ns = wall_ns - clock.time_ns()
    if clock.time_ns() == 0 or gap_ns < NS_PER_S:
        clock.move_to(wall_ns)
        return
    step_ns = max(NS_PER_S, -(-gap_ns // _LOOKS))
    while clock.time_ns() < wall_ns:
        clock.move_to(min(wall_ns, clock.time_ns() + step_ns))
        look()


def unseen(store: Store) -> None:
    """A look of nobody: judges what came due; the news of it is for nobody."""
    store.read(_forget_news)


def _forget_news(state: State) -> None:
    state.news.clear()


# --- files ----------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """What `replay` has just fed."""

    wall_ns: int
    """When that was, in the recording."""
    spans: int
    """How many of its spans carry our attributes."""


def replay(
    files: Iterable[Path],
    store: Store,
    clock: RecordedClock,
    *,
    progress: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
    fold: Callable[[ExportTraceServiceRequest], int] | None = None,
    look: Callable[[], None] | None = None,
    before: Callable[[Path, int], None] | None = None,
) -> Iterator[Moment]:
    """Feeds a store from recordings, one request at a time, in the time of the recording.

    Nothing is judged by today's clock: after each step the store's "now" is when that request
    came. What a journal wrote says when that was; a Collector does not, so the newest time that
    its spans tell stands for it.

    Args:
        files: what a journal or a Collector's file exporter wrote (``proto``, or JSON lines), or
            OTLP in JSON; all of a journal where it is a directory. Read in this order.
        store: an empty one, on `clock`.
        clock: its clock.
        progress: told after each request how many bytes were read so far.
        note: told, in a sentence, what could not be read.
        fold: puts a request into the store; by default as `Receiver.fold` does.
        look: reads the store as time passes, every second of it; by default its news is dropped.
        before: told, before a request is looked at, its file and how many bytes of it came before.

    Yields:
        Each request that was fed.

    Raises:
        ValueError: the store is on another clock.
    """
    if store.clock is not clock:
        raise ValueError("replay: the store is on another clock; make it Store(state, clock)")
    fold, look = fold or Receiver(store).fold, look or partial(unseen, store)
    tell = note or _ignore
    done = 0
    for path in expanded(files):
        read = 0
        for request, arrived_ns, end in _requests(path, tell):
            if before is not None:
                before(path, read)
            read = end
            is_first = clock.time_ns() == 0
            at_ns = _moment(request) if arrived_ns is None else arrived_ns
            pass_time(clock, at_ns, look)
            if is_first:
                store.started_ns, store.started_wall_ns = clock.monotonic_ns(), clock.time_ns()
            spans = fold(request)
            if progress is not None:
                progress(done + read)
            yield Moment(clock.time_ns(), spans)
        done += read
    look()


def _ignore(_: str) -> None:
    """Nobody wants to know."""


def expanded(files: Iterable[Path]) -> Iterator[Path]:
    """These files, and for each directory the segments of the journal in it."""
    for path in files:
        if path.is_dir():
            yield from sorted(path.glob(f"*{SEGMENT}"))
        else:
            yield path


def _moment(request: ExportTraceServiceRequest) -> int:
    """When a request was sent, as far as its spans know: the newest of their times.

    Not later than now, lest one span with a wrong clock ends all silence.
    """
    newest = 0
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                at_ns = span.end_time_unix_nano or span.start_time_unix_nano
                if at_ns <= LATEST_NS:
                    newest = max(newest, at_ns)
    return min(newest, time.time_ns())


_Read = tuple[ExportTraceServiceRequest, int | None, int]


def _requests(path: Path, note: Callable[[str], None]) -> Iterator[_Read]:
    """The requests of a file, whatever its format, with the bytes up to the end of each."""
    name = harmless(str(path))
    try:
        with path.open("rb") as file:
            head = file.read(8)
            reader = Ahead(head, file)
            if (
                head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))
                or head[4:] == b"\x28\xb5\x2f\xfd"
            ):
                note(f"{name} is compressed; give it uncompressed")
            elif head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                yield from _json_requests(name, reader, note)
            elif head:
                yield from _messages(name, reader, note)
    except OSError as error:
        note(f"{name} cannot be read: {error.strerror or error}")


def _messages(name: str, reader: Ahead, note: Callable[[str], None]) -> Iterator[_Read]:
    broken = 0
    try:
        for record in records(reader):
            try:
                request = parse(record.message)
            except ValueError:
                broken += 1
            else:
                yield request, record.arrived_ns, record.end
    except DamagedError as error:
        note(f"{name} {error}")
    if broken:
        note(f"{name}: broken and left out: {broken} records")


def _json_requests(name: str, reader: Ahead, note: Callable[[str], None]) -> Iterator[_Read]:
    """JSON lines, of which broken ones are left out; or documents over many lines."""
    first = reader.readline(RECORD_AT_MOST)
    request = _of_json(first)
    if request is None and not _is_object(first):
        reader.unread(first)
        yield from _documents(name, reader, note)
        return
    line, at, others = first, 0, 0
    while line:
        at += len(line)
        request = _of_json(line)
        if request is not None:
            yield request, None, at
        elif not line.endswith(b"\n") and not _is_object(line):
            note(f"{name} {CUT_OFF}")
        elif line.strip():
            others += 1
        line = reader.readline(RECORD_AT_MOST)
    if others:
        note(f"{name}: no spans, or broken, and left out: {others} lines")


def _documents(name: str, reader: Ahead, note: Callable[[str], None]) -> Iterator[_Read]:
    document, at = Document(reader, RECORD_AT_MOST), 0
    try:
        while document.peek():
            text = json.dumps(document.value()).encode()
            at += len(text)
            request = _of_json(text)
            if request is None:
                note(f"{name} holds something else than OTLP's traces")
                return
            yield request, None, at
    except BrokenError as error:
        note(f"{name} {error}")


def _of_json(text: bytes) -> ExportTraceServiceRequest | None:
    try:
        return parse(text, JSON)
    except ValueError:
        return None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def sizes(files: Iterable[Path]) -> int:
    """Bytes of all these recordings, to show progress by; 0 for what has no size."""
    total = 0
    for path in expanded(files):
        try:
            total += os.stat(path).st_size
        except OSError:
            continue
    return total
