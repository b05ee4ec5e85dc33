"""The words of the project as plain types: stages, events, statuses, facts, and callers' copies.

Knows nothing of OpenTelemetry, locks or clocks. Times inside are integer nanoseconds (wall clock
since the epoch, or monotonic where the name says so); public types carry aware UTC datetimes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from .privacy import scrub

NS_PER_S: Final = 1_000_000_000
MARK_NS: Final = 10_000
"""Length of a span that marks a moment: 10 µs, since Jaeger warns of a negative duration at 0."""

MAX_STAGE_NAME: Final = 64
"""Longest stage name, in characters: span names must stay few and short."""


class FastEnum(Enum):
    """An `Enum` that hashes by identity, as it compares: `Enum`'s own hash is a Python call."""

    __hash__ = object.__hash__


class PipelineStage(FastEnum):
    """The events of the built-in audio pipeline, with the values the dashboard and dumps show."""

    AUDIO_RECEIVED = "audio_received"
    TRANSCRIPTION_STARTED = "transcription_started"
    TRANSCRIPTION_COMPLETED = "transcription_completed"
    MEMORY_STARTED = "memory_started"
    MEMORY_COMPLETED = "memory_completed"
    CONVERSATION_ENDED = "conversation_ended"


@dataclass(frozen=True, slots=True)
class StageEvent:
    """An event of a stage that the user named: ``StageEvent("fetch_completed")``.

    Stands wherever a `PipelineStage` does; ``.value`` and ``.name`` are like an enum member's.
    """

    value: str

    @property
    def name(self) -> str:
        """The value in capitals, as an enum member would be named."""
        return self.value.upper()


AnyEvent: TypeAlias = PipelineStage | StageEvent


class TransactionStatus(FastEnum):
    """Where a transaction stands. See docs/architecture.md for the table that decides it."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    STALLED = "stalled"


class Outcome:
    """How an attempt or a transaction ended: the values of ``otel_tracker.(stage.)outcome``."""

    SUCCESS: Final = "success"
    SKIPPED: Final = "skipped"  # rightly nothing to do
    FAILURE: Final = "failure"
    CANCELLED: Final = "cancelled"  # the caller gave up: no alert
    ABANDONED: Final = "abandoned"  # left open
    INTERRUPTED: Final = "interrupted"  # its process went away

    ALL: Final = frozenset({SUCCESS, SKIPPED, FAILURE, CANCELLED, ABANDONED, INTERRUPTED})
    BAD: Final = frozenset({FAILURE, CANCELLED, ABANDONED, INTERRUPTED})
    """As the outcome of a stage's last attempt, each of these makes the transaction FAILED."""


class Phase(FastEnum):
    """What an event says about its stage."""

    STARTED = "started"
    COMPLETED = "completed"
    AUDIO = "audio"
    END = "end"


class Event(NamedTuple):
    """An event as the tracker understands it: which stage, and what of it."""

    event: AnyEvent
    stage: str
    phase: Phase


AUDIO: Final = "audio"
TRANSCRIPTION: Final = "transcription"
MEMORY: Final = "memory"
END: Final = "conversation"

_BUILT_IN: Final[Mapping[PipelineStage, Event]] = {
    PipelineStage.AUDIO_RECEIVED: Event(PipelineStage.AUDIO_RECEIVED, AUDIO, Phase.AUDIO),
    PipelineStage.TRANSCRIPTION_STARTED: Event(
        PipelineStage.TRANSCRIPTION_STARTED, TRANSCRIPTION, Phase.STARTED
    ),
    PipelineStage.TRANSCRIPTION_COMPLETED: Event(
        PipelineStage.TRANSCRIPTION_COMPLETED, TRANSCRIPTION, Phase.COMPLETED
    ),
    PipelineStage.MEMORY_STARTED: Event(PipelineStage.MEMORY_STARTED, MEMORY, Phase.STARTED),
    PipelineStage.MEMORY_COMPLETED: Event(PipelineStage.MEMORY_COMPLETED, MEMORY, Phase.COMPLETED),
    PipelineStage.CONVERSATION_ENDED: Event(PipelineStage.CONVERSATION_ENDED, END, Phase.END),
}


_VALUES: Final = frozenset(stage.value for stage in PipelineStage)


@lru_cache(maxsize=1024)
def _parse_event(text: str) -> Event | None:
    value = text.strip().lower()
    if value == AUDIO:
        value = PipelineStage.AUDIO_RECEIVED.value
    if value in _VALUES:
        return _BUILT_IN[PipelineStage(value)]
    for phase in (Phase.STARTED, Phase.COMPLETED):
        stage = value.removesuffix(f"_{phase.value}")
        if stage != value:
            return Event(StageEvent(value), stage, phase) if is_name(stage) else None
    if not is_name(value):
        return None
    return _parse_event(f"{value}_completed")


def is_name(stage: str) -> bool:
    """Whether it may name a stage or a pipeline."""
    if not (0 < len(stage) <= MAX_STAGE_NAME and stage.isprintable()):
        return False
    # No address and no credential is a stage: names leave the process, in span names and logs.
    return "@" not in stage and scrub(stage) == stage


def parse_event(event: object) -> Event | None:
    """The event that a caller means, or None where it is none.

    Takes a `PipelineStage`, a `StageEvent`, an event's value (``"fetch_started"``) or a bare stage
    name, which stands for its ``*_completed``.
    """
    if isinstance(event, PipelineStage):
        return _BUILT_IN[event]
    if isinstance(event, StageEvent):
        return _parse_event(event.value)
    if isinstance(event, str):
        return _parse_event(event)
    if isinstance(event, Enum) and isinstance(event.value, str):
        return _parse_event(event.value)  # the caller's own copy of the old enum
    return None


@lru_cache(maxsize=1024)
def near_event(value: str) -> str | None:
    """The built-in event that `value`, an event of the caller's own, is a slip of; None if none."""
    given = value.removesuffix("_completed")
    near = difflib.get_close_matches(given, _VALUES, n=1, cutoff=0.92)
    return near[0] if near else None


def parse_stage(stage: object) -> str | None:
    """The stage that a caller means by a stage's name or by one of its events, or None."""
    parsed = parse_event(stage)
    return None if parsed is None else parsed.stage


@lru_cache(maxsize=1024)
def event_of(stage: str, phase: Phase) -> AnyEvent:
    """The event of `stage` at `phase`: memory, STARTED is `PipelineStage.MEMORY_STARTED`."""
    if stage == AUDIO:
        return PipelineStage.AUDIO_RECEIVED
    if phase is Phase.END:
        return PipelineStage.CONVERSATION_ENDED
    value = f"{stage}_{phase.value}"
    try:
        return PipelineStage(value)
    except ValueError:
        return StageEvent(value)


# --- pipelines ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline: its name, its stages in order, and how long silence in each is normal.

    Args:
        name: names the root spans; keep it short and constant.
        stages: declared stages, in order. The transaction is done when the last one succeeded.
        stall_after: seconds of silence that are normal, by stage; others have the default limit.

    Raises:
        ValueError: an empty or overlong name, or a limit that is no positive number of seconds.
    """

    name: str
    stages: tuple[str, ...] = ()
    stall_after: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stages = tuple(parse_stage(stage) or "" for stage in self.stages)
        for given, name in ((self.name, self.name), *zip(self.stages, stages, strict=True)):
            if not is_name(name):
                raise ValueError(
                    f"Pipeline: {given!r} is no name; use 1 to {MAX_STAGE_NAME} plain characters"
                )
        limits = {}
        for stage, seconds in self.stall_after.items():
            if not 0 < seconds < math.inf:
                raise ValueError(
                    f"Pipeline: stall_after[{stage!r}] is {seconds!r}; use seconds greater than 0"
                )
            limits[parse_stage(stage) or stage] = seconds
        # Stages are found again by their events, however the caller writes either.
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "stall_after", limits)


AUDIO_PIPELINE: Final = Pipeline("audio_pipeline", (AUDIO, TRANSCRIPTION, MEMORY))
MEMORY_SESSION: Final = Pipeline("memory_session", (MEMORY,))
"""The pipeline of `start_memory_session`: one memory run for one recording."""
NO_PIPELINE: Final = Pipeline("transaction")
"""Declares no stages: such a transaction is done when its end is told."""


# --- facts ----------------------------------------------------------------------------------------


class Kind(FastEnum):
    """What a span of ours tells: the values of ``otel_tracker.kind``."""

    TRANSACTION = "transaction"  # the root
    STAGE = "stage"  # an attempt at a stage
    AUDIO = "audio"  # the one span of received audio, with cumulative counts
    QUEUED = "queued"  # waiting for a worker; no attempt
    HANDED_OVER = "handed_over"  # a fact without a span: others carry on
    ENDED = "ended"  # the end, told where the root is not open
    STALLED = "stalled"  # a stall, told while its stage is open; no progress
    RECOVERED = "recovered"  # progress after a stall was told; no progress by itself
    DETAIL = "detail"  # a child of a stage that decides nothing (an extraction)


class Who(NamedTuple):
    """Whose transaction it is. Empty where unknown."""

    user_id: str = ""
    client_id: str = ""
    conversation_id: str = ""
    audio_uuid: str = ""
    pipeline: str = ""

    def or_else(self, other: Who) -> Who:
        """This one, its gaps filled from `other`."""
        if self is other or other is NOBODY:
            return self
        filled = Who(
            self.user_id or other.user_id,
            self.client_id or other.client_id,
            self.conversation_id or other.conversation_id,
            self.audio_uuid or other.audio_uuid,
            self.pipeline or other.pipeline,
        )
        # One that is there already, if it can be: those of a transaction are often the same object.
        return other if filled == other else self if filled == self else filled


NOBODY: Final = Who()
EMPTY: Final[Mapping[str, Any]] = {}


class AudioCount(NamedTuple):
    """Cumulative audio of one transaction: chunks, bytes, and the newest chunk's bytes."""

    chunks: int = 0
    bytes: int = 0
    last_size: int = 0


NO_AUDIO: Final = AudioCount()


@dataclass(slots=True)
class Fact:
    """What one span says, open or ended. Never changed once made (not frozen only for speed).

    Facts of one span merge: an ended one beats an open one, the newest sign of life wins, audio
    counts take their maximum. So a transaction's state is a function of the set of its facts.
    """

    trace_id: int
    span_id: int
    kind: Kind
    start_ns: int
    """Wall clock."""
    at_ns: int
    """Wall clock of the newest sign of life: start, progress, or the end where `ended`."""
    seen_ns: int
    """The same moment on this process's monotonic clock: ages and silences are measured by it."""
    ended: bool
    who: Who = NOBODY
    stage: str = ""
    key: str = ""
    """Tells branches of a fan-out apart: each has attempts of its own."""
    outcome: str = ""
    """One of `Outcome` once ended; empty where nothing was told (a root that ended early)."""
    error: str = ""
    error_type: str = ""
    opened: bool = False
    """The caller reported the start. Of a root: that leaving a block will tell its end."""
    closed: bool = False
    """The caller reported the end: an outcome without it was inferred."""
    reported_failure: bool = False
    """The caller reported success=False with that start or end."""
    parent_id: int = 0
    audio: AudioCount = NO_AUDIO
    metadata: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    """Given with the start; plain data. Stays in the process."""
    end_metadata: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    where: str = ""
    """Host, process and thread that do the work, for people."""

    def seen(
        self, at_ns: int, seen_ns: int, metadata: Mapping[str, Any], audio: AudioCount = NO_AUDIO
    ) -> Fact:
        """This one, open, with a newer sign of life. `dataclasses.replace` costs ten times more."""
        return Fact(
            self.trace_id,
            self.span_id,
            self.kind,
            self.start_ns,
            at_ns,
            seen_ns,
            False,
            self.who,
            self.stage,
            self.key,
            opened=self.opened,
            parent_id=self.parent_id,
            audio=audio,
            metadata=metadata,
            where=self.where,
        )

    def finished(
        self,
        at_ns: int,
        seen_ns: int,
        outcome: str,
        error: str = "",
        error_type: str = "",
        closed: bool = False,
        reported_failure: bool = False,
        end_metadata: Mapping[str, Any] = EMPTY,
    ) -> Fact:
        """This one, ended at that moment, never before its start."""
        return Fact(
            self.trace_id,
            self.span_id,
            self.kind,
            self.start_ns,
            max(self.start_ns, at_ns),
            seen_ns,
            True,
            self.who,
            self.stage,
            self.key,
            outcome,
            error,
            error_type,
            self.opened,
            closed,
            reported_failure,
            self.parent_id,
            self.audio,
            self.metadata,
            end_metadata,
            self.where,
        )

    @property
    def told_ns(self) -> int:
        """Wall clock at which its end was reported: a mark's length is only for Jaeger."""
        is_mark = self.kind is Kind.ENDED or (self.kind is Kind.STAGE and not self.opened)
        return self.start_ns if is_mark else self.at_ns

    @property
    def duration_s(self) -> float:
        """Seconds from the start to the newest sign of life."""
        return (self.at_ns - self.start_ns) / NS_PER_S


@dataclass(frozen=True, slots=True)
class SocketFact:
    """A websocket of `client_id` opened (`opened`) or closed. Counted in order, in this process."""

    client_id: str
    user_id: str
    opened: bool
    at_ns: int
    seen_ns: int


# --- the copies that callers get ------------------------------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


LATEST_NS: Final = 253_402_300_799 * NS_PER_S
"""The end of the year 9999: no time is later, whatever a span says."""


def to_datetime(wall_ns: int) -> datetime:
    """Nanoseconds since the epoch as an aware UTC datetime, to the microsecond."""
    return _EPOCH + timedelta(microseconds=max(0, min(wall_ns, LATEST_NS)) // 1000)


def to_iso(wall_ns: int) -> str:
    """Nanoseconds since the epoch as ISO 8601 text in UTC."""
    return to_datetime(wall_ns).isoformat()


@dataclass(frozen=True, slots=True)
class PipelineEvent:
    """One event of a transaction, as it was reported. A copy: changing it changes nothing."""

    timestamp: datetime
    stage: AnyEvent
    success: bool = True
    error_message: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transaction:
    """One run of a pipeline at the moment of the call. A copy: changing it changes nothing."""

    transaction_id: str
    user_id: str
    client_id: str
    conversation_id: str | None
    created_at: datetime
    updated_at: datetime
    events: tuple[PipelineEvent, ...]
    status: TransactionStatus
    current_stage: AnyEvent | None
    issue: str | None = None
    pipeline: str = AUDIO_PIPELINE.name

    def get_stage_status(self, stage: AnyEvent | str) -> bool | None:
        """Whether the newest event of that name succeeded; None if it never came."""
        wanted = parse_event(stage)
        for event in reversed(self.events):
            if wanted is not None and event.stage == wanted.event:
                return event.success
        return None

    def get_issue_description(self) -> str | None:
        """What is wrong with it, in one sentence; None if nothing is."""
        return self.issue


@dataclass(frozen=True, slots=True)
class SystemMetrics:
    """The totals of everything tracked. ``total = active + completed + failed + stalled``."""

    system_start_time: datetime
    uptime_seconds: float = 0.0
    total_transactions: int = 0
    active_transactions: int = 0
    completed_transactions: int = 0
    failed_transactions: int = 0
    stalled_transactions: int = 0
    active_websockets: int = 0
    total_audio_chunks_processed: int = 0
    total_transcriptions: int = 0
    total_memories_created: int = 0
    last_activity: datetime | None = None

    def uptime_hours(self) -> float:
        """Hours since the tracker started, by the monotonic clock."""
        return self.uptime_seconds / 3600
