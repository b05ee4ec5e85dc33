"""Is it broken, since when, for whom, and what is open (pure: a view in, plain data out)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest, nsmallest
from itertools import pairwise
from statistics import median
from typing import Any, Final

from ..ids import format_id
from ..issues import Found, pattern_of
from ..model import AUDIO, NS_PER_S, Fact, Kind, Pipeline, TransactionStatus, to_iso
from ..state import Tracked
from ..workers import worker_of
from .trends import here
from .view import View

STATES: Final = ("none", "ok", "quiet", "empty", "late", "failing", "broken")
"""``none``: nothing has succeeded yet; ``quiet``: the last success is long ago, and none is due;
``empty``: no success of the last hour had a result; ``late``: the next one is overdue;
``failing``: some fail; ``broken``: none succeed any more."""
TROUBLES: Final = ("lost", "failed", "stalled", "waiting")
"""How the transactions stand that have an issue; ``waiting``: too long in a queue."""
_CAUSES: Final = {"lost": 0, "failed": 1, "stalled": 1, "waiting": 2}
"""What may be the cause of others stands first: a lost worker lets a queue wait."""
OPEN_STATES: Final = (
    "running", "slow", "stalled", "lost", "waiting", "elsewhere", "between",
)  # fmt: skip
"""``slow``: it takes longer than is usual; ``between``: no stage is open."""

LATE_FACTOR: Final = 3
"""So many times the usual interval without a success is late."""
LATE_AT_LEAST_S: Final = 60.0
MANY_RECORDINGS: Final = 3
"""So many that went wrong since the last success are no single mishap."""
SEVERAL_RECORDINGS: Final = 2
"""So many that are not done, one of them gone wrong, are none either once a success is overdue."""
SLOW_SAMPLES: Final = 5
"""Successes that must be known before anything is called slow."""
SLOW_FACTOR: Final = 2
"""So many times the median, and longer than the 95th percentile, is slow."""

_WINDOW_S: Final = 3_600.0
_UNKNOWN_S: Final = 600.0
"""Until a success is late whose usual interval is not known."""
_LISTED: Final = 50
_NAMED: Final = 5  # users of one trouble
_OPEN: Final = (TransactionStatus.IN_PROGRESS, TransactionStatus.STALLED)


# --- is it broken ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Trouble:
    """One pattern over the transactions that have it now."""

    stage: str
    state: str
    example: Tracked
    newest: Found
    first_ns: int
    last_ns: int
    transactions: int = 0
    recordings: set[str | int] = field(default_factory=set)
    users: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Pipeline:
    """What is kept of one pipeline."""

    declared: Pipeline
    goals: list[int]
    """When its goal was reached, oldest first."""
    recordings: set[str | int] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    by_status: Counter[TransactionStatus] = field(default_factory=Counter)
    """Of what began since the last success, as the two before."""
    successes: list[tuple[int, str]] = field(default_factory=list)
    """When, and whose."""
    troubles: dict[str, _Trouble] = field(default_factory=dict)
    wrong_since: set[str | int] = field(default_factory=set)
    """Recordings that went wrong since the last success."""
    due_ns: int = 0
    """Since when something is there that could succeed; 0 while nothing is."""
    undone: set[str | int] = field(default_factory=set)
    """Recordings since the last success that are not done."""
    attempted: dict[str, None] = field(default_factory=dict)
    """Of a pipeline that declares no stages: those that are seen, by their start."""

    @property
    def last_success_ns(self) -> int:
        return self.goals[-1] if self.goals else 0

    @property
    def usual_s(self) -> float | None:
        """The median time between two successes, if there were two."""
        between = [(b - a) / NS_PER_S for a, b in pairwise(self.goals)]
        return median(between) if between else None


def pulse(view: View) -> list[dict[str, Any]]:
    """Each pipeline with what is true of it, the busiest first."""
    kept: dict[str, list[Tracked]] = defaultdict(list)
    for tx in view.state.transactions.values():
        kept[tx.who.pipeline].append(tx)
    busiest = nlargest(_LISTED, kept.items(), key=lambda item: len(item[1]))
    return [_row(name, _found(name, all_of_it, view), view) for name, all_of_it in busiest]


def _found(name: str, kept: list[Tracked], view: View) -> _Pipeline:
    one = _Pipeline(view.state.pipeline_of(kept[0]), view.trends.goals(name))
    for tx in kept:
        _count(tx, one, view)
    return one


def _recording(tx: Tracked) -> str | int:
    """What stands for its recording: other transactions may share it."""
    return tx.who.conversation_id or tx.who.audio_uuid or tx.trace_id


def _pattern(tx: Tracked, issue: Found) -> str:
    """The pattern of its issue, which it knows already: finding it anew would take its time."""
    for pattern, known in tx.found.items():
        if known.text == issue.text:
            return pattern
    return pattern_of(issue.text)


def _count(tx: Tracked, one: _Pipeline, view: View) -> None:
    verdict, user, last_ns = tx.verdict, tx.who.user_id, one.last_success_ns
    is_open = verdict.status in _OPEN
    if not one.declared.stages and len(one.attempted) < _LISTED:
        one.attempted.update((attempt.stage, None) for attempt in tx.history.attempts)
    if tx.created_ns > last_ns:
        one.recordings.add(_recording(tx))
        one.by_status[verdict.status] += 1
        if user:
            one.users.add(user)
    if verdict.status is TransactionStatus.COMPLETED:
        one.successes.append((tx.history.at_ns, user))
        return
    if not _is_ours(tx, one.declared, view):
        return
    is_wrong = verdict.found is not None and _trouble(tx, verdict.found, one, view)
    if is_open or is_wrong:
        one.undone.add(_recording(tx))
        one.due_ns = min(one.due_ns or tx.created_ns, tx.created_ns)


def _is_ours(tx: Tracked, pipeline: Pipeline, view: View) -> bool:
    """Not where it only waits for a stage that nobody declares and nobody ever told of.

    Its workers feed no dashboard, and are none the worse for it.
    """
    verdict = tx.verdict
    if not verdict.waiting or verdict.status is not TransactionStatus.IN_PROGRESS:
        return True
    known = view.state.stages
    return any(w.stage in pipeline.stages or w.stage in known for w in verdict.waiting)


def _trouble(tx: Tracked, issue: Found, one: _Pipeline, view: View) -> bool:
    """Notes it; whether it went wrong since the last success."""
    at_ns = _wrong_at(tx, issue, one.declared, view)
    oldest_ns = min(view.now.wall_ns - int(_WINDOW_S * NS_PER_S), one.last_success_ns)
    if at_ns < oldest_ns and tx.verdict.status not in _OPEN:
        return False
    is_since = at_ns >= one.last_success_ns
    if is_since:
        one.wrong_since.add(_recording(tx))
    pattern = _pattern(tx, issue)
    known = one.troubles.get(pattern)
    if known is None:
        known = one.troubles[pattern] = _Trouble(
            _stage_of(tx, one.declared), _state_of(tx), tx, issue, at_ns, at_ns
        )
    known.transactions += 1
    known.recordings.add(_recording(tx))
    known.first_ns = min(known.first_ns, at_ns)
    if tx.who.user_id:
        known.users[tx.who.user_id] += 1
    if at_ns >= known.last_ns:
        known.last_ns, known.example, known.newest = at_ns, tx, issue
    return is_since


def _wrong_at(tx: Tracked, issue: Found, pipeline: Pipeline, view: View) -> int:
    """When it went wrong, by the clock of this process, as successes are."""
    if tx.verdict.status is not TransactionStatus.FAILED:
        return issue.at_ns or tx.history.at_ns  # noticed here
    standing = tx.history.standing(pipeline.stages)
    where = standing[0].where if standing else ""
    return here(issue.at_ns or tx.history.at_ns, where, view.state, view.now)


def _state_of(tx: Tracked) -> str:
    if tx.verdict.lost:
        return "lost"
    if tx.verdict.status is TransactionStatus.FAILED:
        return "failed"
    return "waiting" if tx.verdict.waiting else "stalled"


def _stage_of(tx: Tracked, pipeline: Pipeline) -> str:
    """The stage in which it went wrong; empty where that cannot be said."""
    verdict = tx.verdict
    known = (*verdict.lost, *verdict.stalled, *verdict.waiting, *verdict.running)
    for fact in (*known, *tx.history.standing(pipeline.stages)):
        if fact.stage:
            return fact.stage
    attempted = {fact.stage for fact in tx.facts.values() if fact.kind is Kind.STAGE}
    missing = (stage for stage in pipeline.stages if stage not in attempted and stage != AUDIO)
    return next(missing, "")


def _row(name: str, one: _Pipeline, view: View) -> dict[str, Any]:
    last_ns, stages = one.last_success_ns, one.declared.stages
    since_s = max(0, view.now.wall_ns - last_ns) / NS_PER_S if last_ns else None
    troubles = sorted(one.troubles.items(), key=lambda item: _weight(item[1]))
    hour = view.trends.last_hour(stages[-1], view.now) if stages else {"done": 0, "empty": 0}
    overdue = _is_overdue(one, view.now.wall_ns)
    wrong_users = {user for trouble in one.troubles.values() for user in trouble.users}
    return {
        "pipeline": name,
        "stages": list(stages or one.attempted)[:_LISTED],
        "goal": stages[-1] if stages else None,
        "state": _state(one, since_s, hour, overdue=overdue),
        "last_success": to_iso(last_ns) if last_ns else None,
        "seconds_since_success": since_s,
        "usual_interval_seconds": one.usual_s,
        "overdue": overdue,
        "since": {
            "recordings": len(one.recordings),
            "users": len(one.users),
            **{status.value: one.by_status[status] for status in TransactionStatus},
        },
        "wrong": {
            "recordings": len(set().union(*(t.recordings for t in one.troubles.values()))),
            "users": len(wrong_users),
        },
        "last_hour": {"done": hour["done"], "empty": hour["empty"]},
        "troubles": [_trouble_row(text, t, one) for text, t in troubles[:_LISTED]],
    }


def _weight(one: _Trouble) -> tuple[int, int, int]:
    return _CAUSES[one.state], -one.transactions, -one.last_ns


def _is_overdue(one: _Pipeline, now_ns: int) -> bool:
    """Counted from the last success, but not from before there was anything to do."""
    if not one.due_ns:
        return False
    due_s = (now_ns - max(one.due_ns, one.last_success_ns)) / NS_PER_S
    usual_s = one.usual_s
    if usual_s is None:
        return due_s > _UNKNOWN_S
    return due_s > max(LATE_AT_LEAST_S, min(LATE_FACTOR * usual_s, _WINDOW_S))


def _state(one: _Pipeline, since_s: float | None, hour: Mapping[str, int], *, overdue: bool) -> str:
    wrong = len(one.wrong_since)
    several = overdue and len(one.undone) >= SEVERAL_RECORDINGS
    if wrong >= MANY_RECORDINGS or (wrong and several):
        return "broken"
    if one.troubles:
        return "failing"
    if overdue:
        return "late"
    if since_s is None:
        return "none"
    if hour["empty"] == hour["done"] >= MANY_RECORDINGS:
        return "empty"
    return "ok" if since_s <= _WINDOW_S else "quiet"


def _trouble_row(pattern: str, one: _Trouble, pipeline: _Pipeline) -> dict[str, Any]:
    others = {user for at_ns, user in pipeline.successes if at_ns >= one.first_ns and user}
    return {
        "pattern": pattern,
        "issue": one.newest.text,
        "stage": one.stage or None,
        "state": one.state,
        "transactions": one.transactions,
        "recordings": len(one.recordings),
        "users": len(one.users),
        "user_ids": [user for user, _ in one.users.most_common(_NAMED)],
        "other_users": len(others - set(one.users)),
        "first": to_iso(one.first_ns),
        "last": to_iso(one.last_ns),
        "example": format_id(one.example.trace_id),
        "error": one.newest.error or None,
    }


# --- what is open ---------------------------------------------------------------------------------


_Candidate = tuple[int, int, Tracked, Fact | None]
"""Since when (monotonic), a number that tells equal ones apart, and what is open."""


def open_work(view: View, flow: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is open, oldest first.

    Args:
        view: what is looked at.
        flow: by stage, what is usual there.
    """
    stuck: list[_Candidate] = []
    rest: list[_Candidate] = []
    for status in _OPEN:
        for trace_id in view.state.by_status[status]:
            tx = view.state.transactions[trace_id]
            is_stuck = status is TransactionStatus.STALLED
            for began_ns, fact in _open_of(tx):
                into = stuck if is_stuck else rest
                into.append((began_ns, len(into), tx, fact))
    # A long queue must not push out of sight what is stuck in front of it.
    oldest = nsmallest(_LISTED, rest)
    shown = nsmallest(max(_LISTED // 2, _LISTED - len(oldest)), stuck)
    shown += oldest[: _LISTED - len(shown)]
    shown.sort(key=lambda one: one[0])
    return {
        "total": len(stuck) + len(rest),
        "rows": [_open_row(began_ns, tx, fact, view, flow) for began_ns, _, tx, fact in shown],
    }


def _open_of(tx: Tracked) -> Iterator[tuple[int, Fact | None]]:
    """What is open of a transaction, and since when, by the monotonic clock."""
    verdict = tx.verdict
    facts = (*verdict.stalled, *verdict.running, *verdict.waiting)
    for fact in facts:
        yield fact.seen_ns - fact.at_ns + fact.start_ns, fact
    if facts:
        return
    audio = tx.history.audio
    if verdict.lost:
        yield verdict.since_ns, verdict.lost[0]
    elif verdict.status is TransactionStatus.STALLED or verdict.elsewhere:
        yield verdict.since_ns, None
    elif audio is not None and not audio.ended and not tx.history.attempts:
        yield audio.seen_ns - audio.at_ns + audio.start_ns, audio
    else:
        yield verdict.since_ns, None


def _open_state(
    fact: Fact | None, tx: Tracked, age: float, view: View, flow: Mapping[str, Mapping[str, Any]]
) -> str:
    if tx.verdict.lost and (fact is None or fact in tx.verdict.lost):
        return "lost"
    if fact is None:
        if tx.verdict.status is TransactionStatus.STALLED:
            return "stalled"
        return "elsewhere" if tx.verdict.elsewhere else "between"
    if fact.kind is Kind.QUEUED:
        return "waiting"
    return _attempt_state(fact, tx, age, view, flow)


def _attempt_state(
    fact: Fact, tx: Tracked, age: float, view: View, flow: Mapping[str, Mapping[str, Any]]
) -> str:
    if worker_of(fact.where) in view.state.workers.lost:
        return "lost"
    if any(one.span_id == fact.span_id for one in tx.verdict.stalled):
        return "stalled"
    tally, usual = view.state.stages.get(fact.stage), flow.get(fact.stage)
    if tally is None or usual is None or len(tally.durations_s) < SLOW_SAMPLES:
        return "running"
    limit = max(usual["usual_running_p95"], SLOW_FACTOR * usual["usual_running_p50"])
    return "slow" if age > limit else "running"


def _open_row(
    began_ns: int,
    tx: Tracked,
    fact: Fact | None,
    view: View,
    flow: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    who, now = tx.who, view.now
    age = max(0, now.monotonic_ns - began_ns) / NS_PER_S
    seen_ns = tx.verdict.since_ns if fact is None else fact.seen_ns
    silent_ns = max(0, now.monotonic_ns - seen_ns)
    state = _open_state(fact, tx, age, view, flow)
    stage = "" if fact is None else fact.stage
    kind = "waiting" if state == "waiting" else "running"
    usual = flow.get(stage, {})
    limit_ns = view.state.patience.limit_ns(stage, view.state.pipeline_of(tx)) if stage else None
    detail = view.detail(tx.trace_id, 0 if fact is None else fact.span_id)
    return {
        "transaction_id": tx.transaction_id,
        "user_id": who.user_id,
        "conversation_id": who.conversation_id or None,
        "audio_uuid": who.audio_uuid or None,
        "client_id": who.client_id or None,
        "pipeline": who.pipeline or None,
        "stage": stage or None,
        "key": (fact.key or None) if fact is not None else None,
        "span_id": None if fact is None else f"{fact.span_id:016x}",
        "attempt": None if fact is None else _number(fact, tx),
        "state": state,
        "since": to_iso(now.wall_ns - int(age * NS_PER_S)),
        "age_seconds": age,
        "usual_p50": usual.get(f"usual_{kind}_p50"),
        "usual_p95": usual.get(f"usual_{kind}_p95"),
        "last_progress": to_iso(now.wall_ns - silent_ns),
        "silent_seconds": silent_ns / NS_PER_S,
        "limit_seconds": None if limit_ns is None else limit_ns / NS_PER_S,
        "where": _worker_at(fact),
        "service": detail.service or None,
        "issue": None if tx.verdict.found is None else tx.verdict.found.text,
    }


def _worker_at(fact: Fact | None) -> str | None:
    """Who does it: nobody yet, where it waits, although its sender told of it."""
    return None if fact is None or fact.kind is Kind.QUEUED else fact.where or None


def _number(fact: Fact, tx: Tracked) -> int | None:
    if fact.kind is not Kind.STAGE:
        return None
    mine = (fact.start_ns, fact.span_id)
    return sum(
        other.kind is Kind.STAGE
        and (other.stage, other.key) == (fact.stage, fact.key)
        and (other.start_ns, other.span_id) <= mine
        for other in tx.facts.values()
    )
