"""What changes over time: outcomes and durations in bars of five minutes, and what is usual."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from .. import views
from ..model import EMPTY, NS_PER_S, Fact, Kind, Outcome, TransactionStatus, to_iso
from ..state import State, StatusChange, Tracked
from ..views import Now
from ..workers import worker_of

BUCKET_S: Final = 300
BUCKETS: Final = 72
"""Six hours."""
HOUR: Final = 12
"""Bars of an hour."""
ENDS: Final = ("done", "failed", "skipped", "cancelled", "empty")
"""How an attempt may end; ``empty`` are those of ``done`` that had no result."""
COUNTS: Final = ("memory_count", "gen_ai.memory.record.count", "result_count")
"""Metadata that says how many results a success had; 0 is counted as ``empty``."""

_SAMPLES: Final = 100  # durations of one stage that are kept of one bucket
_STAGES: Final = 50  # stages with trends
_COUNTED: Final = 50_000  # transactions whose bar is known, so that each counts once
_INTERVALS: Final = 50
_WAITS: Final = 200
_VERSIONS: Final = 200
_PIPELINES: Final = 200  # whose goals are known
_SAME_CLOCK_NS: Final = 2 * NS_PER_S
"""A beat takes its time: clocks that differ by less are taken for the same."""

_OUTCOMES: Final = tuple(
    status.value for status in TransactionStatus if status is not TransactionStatus.IN_PROGRESS
)


class Detail(NamedTuple):
    """What a span says beyond its fact, as far as it came."""

    service: str = ""
    version: str = ""
    attributes: Mapping[str, Any] = EMPTY
    """The application's own: plain data."""
    stack: str = ""
    ended: bool = True
    size: int = 0
    """Bytes that it takes, about."""


NO_DETAIL: Final = Detail()


class _Sample:
    """The newest durations of one stage in one bucket, and how many there were."""

    __slots__ = ("count", "values")

    def __init__(self) -> None:
        self.values = array("d")
        self.count = 0

    def add(self, seconds: float) -> None:
        if len(self.values) < _SAMPLES:
            self.values.append(seconds)
        else:
            self.values[self.count % _SAMPLES] = seconds
        self.count += 1


class _Bucket:
    __slots__ = ("attempts", "durations", "outcomes")

    def __init__(self) -> None:
        self.attempts: dict[str, Counter[str]] = {}
        """By stage: how they ended, as in `ENDS`."""
        self.outcomes: Counter[str] = Counter()
        self.durations: dict[str, _Sample] = {}


@dataclass(slots=True)
class _Stage:
    """What is usual in one stage."""

    successes: deque[int] = field(default_factory=lambda: deque(maxlen=_INTERVALS + 1))
    """Ends of successful attempts, wall clock."""
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=_WAITS))
    """Seconds in its queue."""
    empty: int = 0


_NOTHING: Final = Counter[str]()
_END_OF: Final = {
    Outcome.SUCCESS: "done",
    Outcome.SKIPPED: "skipped",
    Outcome.CANCELLED: "cancelled",
}

_Counted = tuple[int, str, int]
"""A transaction's bar and outcome there; attempts that ended by that moment are counted.

A plain tuple: the garbage collector need not look at the many that are kept.
"""


class Trends:
    """Six hours in bars of five minutes, and what is usual, fed by what the state has to tell.

    A transaction stands in one bar: that of its newest outcome. Its stages' durations count once it
    has come to an outcome.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._stages: dict[str, _Stage] = {}
        self._counted: OrderedDict[int, _Counted] = OrderedDict()
        self._versions: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._goals: OrderedDict[str, deque[int]] = OrderedDict()
        """By pipeline: when its goal was reached, wall clock of this process."""

    def take(self, state: State, now: Now, details: Mapping[int, Mapping[int, Detail]]) -> None:
        """Takes what the state has to tell since the last time."""
        while state.news:
            one = state.news.popleft()
            if isinstance(one, StatusChange):
                self._changed(one, state, now, details)

    def seen(self, service: str, version: str, wall_ns: int) -> None:
        """A version of a service is at work."""
        if version and (service, version) not in self._versions:
            self._versions[service, version] = wall_ns
            if len(self._versions) > _VERSIONS:
                self._versions.popitem(last=False)

    def plain(self, state: State) -> dict[str, Any]:
        """All of it as plain data, for `take_back`; of transactions, those that are kept."""
        return {
            "buckets": [
                [
                    number,
                    dict(bucket.outcomes),
                    {n: [s.count, list(s.values)] for n, s in bucket.durations.items()},
                    {n: dict(ends) for n, ends in bucket.attempts.items()},
                ]
                for number, bucket in self._buckets.items()
            ],
            "stages": [
                [name, list(stage.successes), list(stage.waits), stage.empty]
                for name, stage in self._stages.items()
            ],
            "counted": [
                [f"{trace_id:x}", *one]
                for trace_id, one in self._counted.items()
                if trace_id in state.transactions
            ],
            "versions": [[*names, at_ns] for names, at_ns in self._versions.items()],
            "goals": [[pipeline, list(ends)] for pipeline, ends in self._goals.items()],
        }

    def take_back(self, plain: Any) -> None:
        """Becomes what `plain` gave. What is none is left out: a restart must not fail for it."""
        try:
            made = _trends_of(plain)
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        self._buckets, self._stages = made._buckets, made._stages
        self._counted, self._versions = made._counted, made._versions
        self._goals = made._goals

    def stage(self, name: str) -> _Stage:
        """What is usual in one stage."""
        return self._stages.get(name, _Stage())

    def goals(self, pipeline: str) -> list[int]:
        """When the newest transactions of a pipeline reached its goal: nanoseconds, oldest first.

        The goal is the success of its last declared stage, or, of a pipeline that declares none, a
        transaction that is done.
        """
        return sorted(self._goals.get(pipeline, ()))

    def _changed(
        self,
        change: StatusChange,
        state: State,
        now: Now,
        details: Mapping[int, Mapping[int, Detail]],
    ) -> None:
        stood, as_what, until_ns = self._counted.pop(change.trace_id, (-1, "", 0))
        if stood in self._buckets:
            self._buckets[stood].outcomes[as_what] -= 1
        status = change.verdict.status.value
        tx = state.transactions.get(change.trace_id)
        number = -1
        if status in _OUTCOMES:
            if tx is not None:
                self._count_attempts(tx, until_ns, now, details.get(change.trace_id, {}))
                self._count_goal(tx, until_ns, state, now)
                until_ns = max(until_ns, tx.history.at_ns)
            at_ns = now.wall_ns if tx is None else _moment(tx, state, now)
            number, bucket = self._bucket(at_ns, now)
            if bucket is not None:
                bucket.outcomes[status] += 1
        if until_ns or number >= 0:
            self._counted[change.trace_id] = number, status, until_ns
            if len(self._counted) > _COUNTED:
                self._counted.popitem(last=False)

    def _count_goal(self, tx: Tracked, until_ns: int, state: State, now: Now) -> None:
        stages, h = state.pipeline_of(tx).stages, tx.history
        if stages:
            reached = [
                a for a in h.attempts
                if a.stage == stages[-1] and a.closed and a.outcome == Outcome.SUCCESS
            ]  # fmt: skip
        elif tx.verdict.status is TransactionStatus.COMPLETED:
            reached = [fact for fact in (h.root, h.end) if fact is not None and fact.ended][:1]
        else:
            return
        for fact in reached:
            if fact.at_ns > until_ns:
                self._reached(tx.who.pipeline, here(fact.at_ns, fact.where, state, now))

    def _reached(self, pipeline: str, at_ns: int) -> None:
        self._goals.setdefault(pipeline, deque(maxlen=_INTERVALS + 1)).append(at_ns)
        self._goals.move_to_end(pipeline)
        if len(self._goals) > _PIPELINES:
            self._goals.popitem(last=False)

    def _bucket(self, at_ns: int, now: Now) -> tuple[int, _Bucket | None]:
        newest = now.wall_ns // (BUCKET_S * NS_PER_S)
        number = min(newest, at_ns // (BUCKET_S * NS_PER_S))
        if number <= newest - BUCKETS:
            return -1, None
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
            for old in [n for n in self._buckets if n <= newest - BUCKETS]:
                del self._buckets[old]
        return number, bucket

    def _count_attempts(
        self, tx: Tracked, until_ns: int, now: Now, details: Mapping[int, Detail]
    ) -> None:
        for fact in tx.facts.values():
            if not fact.ended or fact.at_ns <= until_ns:
                continue
            if fact.stage not in self._stages and len(self._stages) >= _STAGES:
                continue
            if fact.kind is Kind.QUEUED:
                self._stages.setdefault(fact.stage, _Stage()).waits.append(length_s(fact))
            elif fact.kind in (Kind.STAGE, Kind.AUDIO):
                attributes = details.get(fact.span_id, NO_DETAIL).attributes
                self._count_attempt(fact, any(attributes.get(name) == 0 for name in COUNTS), now)

    def _count_attempt(self, fact: Fact, empty: bool, now: Now) -> None:
        stage = self._stages.setdefault(fact.stage, _Stage())
        _, bucket = self._bucket(fact.at_ns, now)
        ends = Counter[str]()
        if bucket is not None:
            ends = bucket.attempts.setdefault(fact.stage, ends)
        ends[_END_OF.get(fact.outcome, "failed")] += 1
        if fact.kind is Kind.STAGE and fact.outcome == Outcome.SUCCESS and fact.closed:
            stage.successes.append(fact.at_ns)
            stage.empty += empty
            ends["empty"] += empty
            if bucket is not None:
                bucket.durations.setdefault(fact.stage, _Sample()).add(length_s(fact))

    def last_hour(self, name: str, now: Now) -> dict[str, int]:
        """How the attempts at one stage ended in the last hour: a count for each of `ENDS`."""
        newest = now.wall_ns // (BUCKET_S * NS_PER_S)
        total: Counter[str] = Counter()
        for number, bucket in self._buckets.items():
            if number > newest - HOUR:
                total += bucket.attempts.get(name, _NOTHING)
        return {end: total[end] for end in ENDS}

    def rows(self, now: Now) -> dict[str, Any]:
        """The bars, oldest first; the durations where there are any; the versions, newest first."""
        newest = now.wall_ns // (BUCKET_S * NS_PER_S)
        numbers = range(newest - BUCKETS + 1, newest + 1)
        nothing = _Bucket()
        durations: dict[str, list[dict[str, Any]]] = {}
        for number in numbers:
            for name, sample in self._buckets.get(number, nothing).durations.items():
                durations.setdefault(name, []).append(_duration_row(number, sample))
        return {
            "bucket_seconds": BUCKET_S,
            "outcomes": [
                {
                    "at": _start_of(number),
                    **{
                        status: self._buckets.get(number, nothing).outcomes[status]
                        for status in _OUTCOMES
                    },
                }
                for number in numbers
            ],
            "durations": durations,
            "versions": [
                {"service": service, "version": version, "first_seen": to_iso(at_ns)}
                for (service, version), at_ns in reversed(self._versions.items())
            ],
        }


def _trends_of(plain: Any) -> Trends:
    made = Trends()
    for number, outcomes, durations, *attempts in plain["buckets"]:
        bucket = made._buckets[number] = _Bucket()
        bucket.outcomes.update(outcomes)
        for name, (count, values) in durations.items():
            sample = bucket.durations[name] = _Sample()
            sample.count, sample.values = count, array("d", values)
        for name, ends in attempts[0].items() if attempts else ():  # since 0.1.0's first releases
            bucket.attempts[name] = Counter(ends)
    for name, successes, waits, empty in plain["stages"]:
        stage = made._stages[name] = _Stage(empty=empty)
        stage.successes.extend(successes)
        stage.waits.extend(waits)
    for trace_id, number, status, until_ns in plain["counted"]:
        made._counted[int(trace_id, 16)] = number, status, until_ns
    for service, version, at_ns in plain["versions"]:
        made._versions[service, version] = at_ns
    for pipeline, ends in plain.get("goals", ()):
        made._goals[pipeline] = deque(ends, maxlen=_INTERVALS + 1)
    return made


def here(at_ns: int, where: str, state: State, now: Now) -> int:
    """A moment that a process told, by the wall clock of this one: no later than now.

    Its beats tell how far its clock is ahead; of one that does not beat that is not known.
    """
    worker = state.workers.get(worker_of(where))
    ahead_ns = 0
    if worker is not None:
        beat = worker.beat
        ahead_ns = beat.at_ns - (now.wall_ns - (now.monotonic_ns - beat.seen_ns))
        if abs(ahead_ns) < _SAME_CLOCK_NS:
            ahead_ns = 0
    return min(at_ns - ahead_ns, now.wall_ns)


def _moment(tx: Tracked, state: State, now: Now) -> int:
    """When a transaction came to its outcome: a stall when its limit was over, whoever looked."""
    if tx.verdict.status is not TransactionStatus.STALLED:
        return tx.history.at_ns
    if tx.verdict.lost or not tx.verdict.stalled:
        return now.wall_ns
    attempt = tx.verdict.stalled[0]
    limit_ns = state.patience.limit_ns(attempt.stage, state.pipeline_of(tx))
    return min(now.wall_ns, now.wall_ns - (now.monotonic_ns - attempt.seen_ns) + limit_ns)


def _start_of(number: int) -> str:
    return to_iso(number * BUCKET_S * NS_PER_S)


def _duration_row(number: int, sample: _Sample) -> dict[str, Any]:
    ordered = sorted(sample.values)
    return {
        "at": _start_of(number),
        "count": sample.count,
        "p50": views.percentile(ordered, 0.5),
        "p95": views.percentile(ordered, 0.95),
    }


def length_s(fact: Fact) -> float:
    """Seconds from its start to its end; clocks that differ give 0, not less."""
    return max(0.0, fact.duration_s)


# --- the order of rows ----------------------------------------------------------------------------


class Order:
    """Where each kept transaction stands in the list: fixed when it is first seen.

    What starts a transaction may come after what it did, and moves its time; a page that was read
    before must not have to be read again for that.
    """

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        """Nanoseconds, wall clock, by trace id."""

    def take(self, state: State) -> None:
        """Gives what is new its place."""
        for trace_id, tx in reversed(state.transactions.items()):
            if trace_id in self.places:
                break
            self.places[trace_id] = tx.created_ns
        if len(self.places) > 2 * len(state.transactions) + 1_000:
            kept = state.transactions
            self.places = {t: place for t, place in self.places.items() if t in kept}

    def of(self, tx: Tracked) -> tuple[int, int]:
        """Its place: the greatest comes first."""
        return self.places.get(tx.trace_id, tx.created_ns), tx.trace_id
