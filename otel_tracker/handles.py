"""What this process knows of a transaction while it may still write to it.

Handles are changed by single dictionary operations, which are atomic, and not under a lock: the
garbage collector may end a span, and so come back here, in the middle of anything.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span

from .ids import format_id
from .model import EMPTY, AudioCount, Fact, Pipeline, Who
from .processor import Note
from .stacks import Worker
from .store import Store

MAX_BYTES: Final = 1 << 62
"""Where counting bytes ends: OTLP carries 64-bit integers."""


class OpenSpan(Note):
    """A span that is open here, with its facts."""

    __slots__ = ("span",)

    def __init__(self, store: Store, start: Fact) -> None:
        super().__init__(store, start)
        self.span: Span = INVALID_SPAN


class OpenStage(OpenSpan):
    """An open attempt, and who works on it."""

    __slots__ = ("is_stall_told", "late", "number", "worker")

    def __init__(self, store: Store, start: Fact, number: int, worker: Worker) -> None:
        Note.__init__(self, store, start)
        self.span = INVALID_SPAN
        self.number = number
        """Which attempt at its stage, from 1, as far as this process knows."""
        self.worker = worker
        self.late: dict[str, Any] | None = None
        """Metadata that its span gets at the end."""
        self.is_stall_told = False
        """A span says that it stalled, and none yet that it went on."""


class OpenAudio(OpenSpan):
    """The one audio span with its cumulative counts. Adding a chunk never waits."""

    __slots__ = ("_count", "_lock", "_pending", "at_ns", "metadata", "seen_ns")

    def __init__(self, store: Store, start: Fact) -> None:
        super().__init__(store, start)
        self._pending: deque[int] = deque()
        self._lock = threading.Lock()
        self._count = AudioCount()
        self.at_ns = start.at_ns
        self.seen_ns = start.seen_ns
        self.metadata: dict[str, Any] = {}

    def add(self, size: int) -> None:
        """Counts one chunk of `size` bytes."""
        self._pending.append(size)
        self._add_up()

    @property
    def count(self) -> AudioCount:
        """What came so far."""
        self._add_up()
        return self._count

    def _add_up(self) -> None:
        # Whoever finds the lock free adds up what is pending: nobody waits, and nothing is lost.
        while self._pending and self._lock.acquire(blocking=False):
            try:
                chunks, total, last = self._count
                for _ in range(len(self._pending)):
                    last = self._pending.popleft()
                    chunks += 1
                    total = min(total + last, MAX_BYTES)
                self._count = AudioCount(chunks, total, last)
            finally:
                self._lock.release()

    def fact(self) -> Fact:
        """The span as it stands, read when it is folded."""
        fact = super().fact()
        if not fact.ended:
            return self.standing()
        if fact.audio == self.count:
            return fact
        # Chunks that raced with the end: the totals have them, the span cannot any more.
        return replace(fact, audio=self.count)

    def standing(self) -> Fact:
        """The open span with its counts so far."""
        metadata = self.metadata or EMPTY
        return self.start.seen(self.at_ns, self.seen_ns, metadata, self.count)


S = TypeVar("S")


class Slot(Generic[S]):
    """Holds at most one thing. Each call is one dictionary operation, so that threads may race."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[int, S] = {}

    def get(self) -> S | None:
        """What is held."""
        return self._held.get(0)

    def fill(self, thing: S) -> S:
        """Puts `thing` in if nothing is; what is held then."""
        return self._held.setdefault(0, thing)

    def take(self) -> S | None:
        """Takes out what is held: one caller alone gets it."""
        return self._held.pop(0, None)


class Handle:
    """One transaction that is open here, or that this process continues."""

    __slots__ = (
        "attempts",
        "attributes",
        "audio",
        "bad",
        "blocks",
        "carried",
        "context",
        "ends_with_work",
        "era",
        "frames",
        "is_guest",
        "is_told",
        "last_ns",
        "offset_ns",
        "open",
        "pipeline",
        "queued",
        "root",
        "seen_ns",
        "text_id",
        "trace_id",
        "tracer",
        "who",
    )

    def __init__(
        self,
        trace_id: int,
        who: Who,
        pipeline: Pipeline,
        tracer: trace.Tracer,
        offset_ns: int,
        era: object,
    ) -> None:
        self.trace_id = trace_id
        self.text_id = format_id(trace_id)
        self.who = who
        self.pipeline = pipeline
        self.tracer = tracer
        self.offset_ns = offset_ns
        """Wall minus monotonic clock, fixed at the start: durations survive a step of the wall."""
        self.era = era
        """The recorder's when it was made: a handle from before a fork is the parent's."""
        self.attributes: dict[str, Any] = {}
        """On every span of the transaction: Jaeger matches all tags of a search on one span."""
        self.context = context_api.Context()
        """Parent of the transaction's spans."""
        self.root: Slot[OpenSpan] = Slot()
        """The root while it is open here."""
        self.open: dict[tuple[str, str], OpenStage] = {}
        """Open attempts that events began, by stage and key: a further start closes them."""
        self.frames: dict[int, OpenStage] = {}
        """Open attempts that end with their frame, by span id: any number at a time."""
        self.attempts: dict[tuple[str, str], int] = {}
        """Attempts made here, by stage and key."""
        self.audio: Slot[OpenAudio] = Slot()
        """Its one audio span while that is open."""
        self.queued: dict[str, Fact] = {}
        """Waits that nobody has taken yet, by stage."""
        self.bad: dict[int, Fact] = {}
        """Attempts that went wrong and were not put right, by span id: the end's verdict."""
        self.is_guest = False
        """Continued here; another process has its root."""
        self.blocks = 0
        """Blocks of the application's that run in it: nobody else ends it meanwhile."""
        self.is_told = False
        """Its end was told, or that it goes on elsewhere: leaving a block adds nothing."""
        self.ends_with_work = False
        """Its block was left while work waited: the end of that is its end."""
        self.carried: dict[str, int] = {}
        """Moments of enqueuing that are not told yet, by stage: wall clock."""
        self.seen_ns = 0
        """Monotonic moment of the last activity here."""
        self.last_ns = 0
        """The same on the transaction's wall clock."""

    @property
    def is_working(self) -> bool:
        """Whether an attempt is open here."""
        return bool(self.open or self.frames)

    def working(self) -> list[OpenStage]:
        """The open attempts."""
        return [*self.open.values(), *self.frames.values()]
