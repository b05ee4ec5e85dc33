"""The issue of one transaction in a sentence, and patterns over many transactions (pure).

The documented sentences are the old tracker's, word for word: people search for them.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from .history import History
from .model import MEMORY, TRANSCRIPTION, AnyEvent, Fact, Kind, Outcome, Phase, Pipeline, event_of
from .workers import worker_of

MEMORY_FAILED: Final = "Transcription completed but memory creation failed"
MEMORY_STALLED: Final = "Transcription completed but memory processing stalled"
NOTHING_AFTER_AUDIO: Final = "Audio received but nothing came after it"

_ALERTING: Final = Outcome.BAD - {Outcome.CANCELLED}
"""A cancelled attempt is nobody's fault: people hang up."""


# --- one transaction ------------------------------------------------------------------------------


class Found(NamedTuple):
    """An issue of one transaction."""

    text: str
    at_ns: int
    """Wall clock."""
    resolved: bool = False
    error: str = ""
    """The error message behind a documented sentence that does not show it."""


def event_of_fact(fact: Fact) -> AnyEvent:
    """The event at which `fact` stands: its end where that was reported, else its start."""
    if fact.kind in (Kind.ENDED, Kind.TRANSACTION):
        return event_of(fact.stage, Phase.END)
    return event_of(fact.stage, Phase.COMPLETED if fact.closed else Phase.STARTED)


def failure_of(h: History, stages: tuple[str, ...] = ()) -> Found | None:
    """The issue of a failed transaction: the memory sentence, or the first standing failure."""
    standing = [a for a in h.standing(stages) if a.outcome in _ALERTING]
    for attempt in standing:
        found = _found(attempt, h, resolved=False)
        if found.text == MEMORY_FAILED:
            return found
    if standing:
        return _found(_innermost(standing), h, resolved=False)
    end = h.failed_end
    if end is not None and end.outcome in _ALERTING:
        return _found(end, h, resolved=False)
    return None


def _innermost(standing: list[Fact]) -> Fact:
    """The first failure; where it came from an attempt within that one, there it died."""
    found = standing[0]
    for attempt in standing:  # what is nested began later
        if attempt.parent_id == found.span_id:
            found = attempt
    return found


def past_failures(h: History, stages: tuple[str, ...] = ()) -> list[Found]:
    """Failed attempts that something came after; resolved where that went well."""
    standing = {a.span_id for a in h.standing(stages)}
    found = []
    for attempt in h.attempts:
        if attempt.outcome not in _ALERTING or attempt.span_id in standing:
            continue
        if attempt.outcome == Outcome.ABANDONED and not attempt.error:
            continue  # only started again: no failure
        same = [a for a in h.last if (a.stage, a.key) == (attempt.stage, attempt.key)]
        went_well = all(a.outcome in (Outcome.SUCCESS, Outcome.SKIPPED) for a in same)
        put_right = went_well or any(a is attempt for a in same)
        found.append(_found(attempt, h, resolved=put_right))
    # A stall that lasts is found by its silence; one that was told remains when that is over.
    found.extend(Found(_stall_of(s, h), s.at_ns, resolved=True) for s in h.told_stalls if s.error)
    return found


def _found(fact: Fact, h: History, *, resolved: bool) -> Found:
    if (
        fact.stage == MEMORY
        and fact.kind is Kind.STAGE
        and fact.outcome == Outcome.FAILURE
        and fact.closed
        and h.transcribed
    ):
        return Found(MEMORY_FAILED, fact.at_ns, resolved, fact.error)
    message = fact.error or "Unknown error"
    return Found(f"Failed at {event_of_fact(fact).value}: {message}", fact.at_ns, resolved)


def memory_awaited(h: History, pipeline: Pipeline) -> bool:
    """Whether the memory sentence may apply: transcription reported done, no memory result yet."""
    if MEMORY not in pipeline.stages:
        return False
    return h.transcribed and not any(a.stage == MEMORY and a.ended for a in h.attempts)


def lost_text(fact: Fact, service: str) -> str:
    """The sentence for work whose process fell silent."""
    host, _, process = worker_of(fact.where).partition("/")
    name = f"{service} (process {process} on {host})" if service else f"process {process} on {host}"
    doing = f" in {fact.stage}" if fact.stage else ""
    return f"Worker lost{doing}: {name} went silent"


def stall_text(
    h: History, pipeline: Pipeline, transaction_id: str, current: AnyEvent | None
) -> str:
    """The sentence for a transaction that has stalled."""
    if memory_awaited(h, pipeline):
        return MEMORY_STALLED
    if not h.attempts and h.audio is not None:
        return NOTHING_AFTER_AUDIO
    stage = "unknown stage" if current is None else current.value
    return f"Transaction {transaction_id[:8]} stalled after {stage}"


_NO_PROGRESS: Final = ": no progress in "


def stall_reason(text: str, stage: str, silent_s: float) -> str:
    """What the span of a stall says: its issue, and for how long there was no progress."""
    return f"{text}{_NO_PROGRESS}{stage} for {silent_s:.0f} s"


def _stall_of(told: Fact, h: History) -> str:
    """Its sentence. Who told it may not know, as this view does, that transcription was done."""
    if told.stage == MEMORY and _memory_was_awaited(told, h):
        return MEMORY_STALLED
    return told.error.partition(_NO_PROGRESS)[0]


def _memory_was_awaited(told: Fact, h: History) -> bool:
    before = [a for a in h.attempts if a.closed and a.at_ns < told.at_ns]
    transcribed = any(a.stage == TRANSCRIPTION and a.outcome == Outcome.SUCCESS for a in before)
    return transcribed and not any(a.stage == MEMORY for a in before)


def queue_text(stage: str) -> str:
    """The sentence for work that waits in a queue beyond its limit."""
    return f"Queued for {stage} but not picked up by a worker"


# --- patterns over many ---------------------------------------------------------------------------

_VARIABLE = re.compile(
    r"""(?P<id>\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b
            | (?<=^Transaction\ )[0-9a-f]{8}\b
            | \b0x[0-9a-f]+\b
            | \b(?=[0-9a-f]*[0-9])[0-9a-f]{8,}\b)
      | (?P<number>(?<![A-Za-z_])[-+]?\d+(?:[.,:]\d+)*)""",
    re.VERBOSE | re.IGNORECASE,
)


@lru_cache(maxsize=1024)
def pattern_of(text: str) -> str:
    """`text` with its ids as ``<id>`` and its numbers as ``<n>``: what many have in common."""
    return _VARIABLE.sub(lambda m: "<id>" if m["id"] else "<n>", text)


@dataclass(slots=True)
class IssueRow:
    """One pattern in one transaction: however often it comes, one row."""

    trace_id: int
    user_id: str
    pattern: str
    text: str
    at_ns: int
    resolved: bool
    error: str = ""


@dataclass(slots=True)
class Pattern:
    """The same issue over many transactions."""

    text: str
    transactions: int = 0
    unresolved: int = 0
    first_ns: int = 0
    last_ns: int = 0
    examples: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """The newest few trace ids."""


class IssueLog:
    """The newest issues and patterns, both bounded; what is let go is counted.

    Args:
        rows: how many issue rows are kept.
        patterns: how many patterns are kept; the one longest unseen goes first.
    """

    EXAMPLES: Final = 5

    def __init__(self, rows: int, patterns: int = 200) -> None:
        self._max_rows = rows
        self._max_patterns = patterns
        self._rows: OrderedDict[tuple[int, str], IssueRow] = OrderedDict()
        self._rows_of_pattern: dict[str, OrderedDict[int, None]] = {}
        self.patterns: OrderedDict[str, Pattern] = OrderedDict()
        self.dropped_rows = 0
        self.dropped_patterns = 0

    def set_limit(self, rows: int) -> None:
        """Keeps another number of rows from now on."""
        self._max_rows = rows
        while len(self._rows) > rows:
            self._drop_row()

    def newest(self, limit: int) -> list[IssueRow]:
        """The last `limit` rows in time, the newest last."""
        ordered = sorted(self._rows.values(), key=lambda r: (r.at_ns, r.trace_id, r.pattern))
        return ordered[max(0, len(ordered) - limit) :]

    def by_last_seen(self) -> list[Pattern]:
        """All kept patterns, the one seen last first."""
        return sorted(self.patterns.values(), key=lambda p: (-p.last_ns, p.text))

    def add(self, trace_id: int, user_id: str, pattern: str, found: Found) -> None:
        """A pattern that this transaction did not have before."""
        entry = self.patterns.get(pattern)
        if entry is None:
            entry = self.patterns[pattern] = Pattern(pattern, first_ns=found.at_ns)
            if len(self.patterns) > self._max_patterns:
                self.patterns.popitem(last=False)
                self.dropped_patterns += 1
        self.patterns.move_to_end(pattern)
        entry.transactions += 1
        entry.unresolved += not found.resolved
        self._seen(entry, trace_id, found.at_ns)
        self._put_row(
            IssueRow(
                trace_id, user_id, pattern, found.text, found.at_ns, found.resolved, found.error
            )
        )

    def change(self, trace_id: int, user_id: str, pattern: str, was: Found, now: Found) -> None:
        """A pattern that this transaction has already: seen again, or put right."""
        entry = self.patterns.get(pattern)
        if entry is not None:
            entry.unresolved += was.resolved - now.resolved
            self._seen(entry, trace_id, now.at_ns)
        row = self._rows.get((trace_id, pattern))
        if row is None:
            if not now.resolved and now.at_ns > was.at_ns:
                self._put_row(
                    IssueRow(trace_id, user_id, pattern, now.text, now.at_ns, False, now.error)
                )
            return
        row.text, row.at_ns, row.resolved, row.error = now.text, now.at_ns, now.resolved, now.error
        row.user_id = user_id

    def _seen(self, entry: Pattern, trace_id: int, at_ns: int) -> None:
        entry.first_ns = min(entry.first_ns, at_ns)
        entry.last_ns = max(entry.last_ns, at_ns)
        entry.examples[trace_id] = None
        entry.examples.move_to_end(trace_id)
        if len(entry.examples) > self.EXAMPLES:
            entry.examples.popitem(last=False)

    def _put_row(self, row: IssueRow) -> None:
        self._rows[row.trace_id, row.pattern] = row
        self._rows_of_pattern.setdefault(row.pattern, OrderedDict())[row.trace_id] = None
        if len(self._rows) > self._max_rows:
            self._drop_row()

    def _drop_row(self) -> None:
        """Lets go the oldest row of the pattern that has most, so that no flood hides the rest."""
        pattern, of_pattern = max(self._rows_of_pattern.items(), key=lambda item: len(item[1]))
        trace_id, _ = of_pattern.popitem(last=False)
        if not of_pattern:
            del self._rows_of_pattern[pattern]
        del self._rows[trace_id, pattern]
        self.dropped_rows += 1


def newest_by_pattern(found: Iterable[Found]) -> dict[str, Found]:
    """The issues of one transaction by pattern: an unresolved one wins, then the newest."""
    by_pattern: dict[str, Found] = {}
    for issue in found:
        pattern = pattern_of(issue.text)
        known = by_pattern.get(pattern)
        if known is None or _weight(issue) > _weight(known):
            by_pattern[pattern] = issue
    return by_pattern


def _weight(found: Found) -> tuple[bool, int, str]:
    return (not found.resolved, found.at_ns, found.text)
