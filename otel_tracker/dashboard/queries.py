"""What the API answers, as plain data (pure: a view in, copies out).

Everything that a span said comes out as a value of JSON, never as markup or as a part of a header.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any, Final

from .. import issues as issue_texts
from .. import views
from ..history import is_retold
from ..ids import format_id
from ..model import (
    NS_PER_S,
    Fact,
    Kind,
    Outcome,
    TransactionStatus,
    to_iso,
)
from ..state import State, Tracked
from ..views import Now
from ..workers import Worker, worker_of
from . import pulse
from .trends import NO_DETAIL, length_s
from .view import View, age_s

MOST_ROWS: Final = 500
"""Rows of one page."""
ROWS: Final = 100
"""Rows of a page, unless asked for more."""
SHORTEST_PREFIX: Final = 8
"""Characters of a transaction's id that may stand for it."""
NEW_ISSUE_S: Final = 3_600
"""A pattern first seen within the last hour is new."""

LOST_SHOWN_S: Final = 3_600.0
"""A lost process without open work stands on the dashboard for so long."""

_LISTED: Final = 50  # rows within a row
_OPEN: Final = (TransactionStatus.IN_PROGRESS, TransactionStatus.STALLED)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR: Final = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{32})")
_PREFIX: Final = re.compile(r"[0-9a-f]{8,32}")


class QueryError(ValueError):
    """A parameter that is not understood; the message says what belongs there."""


class UnknownError(LookupError):
    """No such transaction is kept; the message says why that may be."""


# --- parameters -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Which transactions, and how many of them."""

    user: str = ""
    conversation: str = ""
    client: str = ""
    pipeline: str = ""
    stage: str = ""
    """One that was attempted, or is waited for."""
    text: str = ""
    """In an issue or an error message; capitals do not matter."""
    status: frozenset[TransactionStatus] = frozenset()
    """None: all."""
    since_ns: int = 0
    until_ns: int | None = None
    """Created from `since_ns` on and before `until_ns`, wall clock."""
    limit: int = ROWS
    cursor: tuple[int, int] | None = None
    """The place of the last row that was read."""

    def takes(self, tx: Tracked) -> bool:
        """Whether the transaction is meant."""
        who = tx.who
        return (
            (not self.status or tx.verdict.status in self.status)
            and (not self.user or who.user_id == self.user)
            and (
                not self.conversation or self.conversation in (who.conversation_id, who.audio_uuid)
            )
            and (not self.client or who.client_id == self.client)
            and (not self.pipeline or who.pipeline == self.pipeline)
            and tx.created_ns >= self.since_ns
            and (self.until_ns is None or tx.created_ns < self.until_ns)
            and (not self.stage or any(f.stage == self.stage for f in tx.facts.values()))
            and (not self.text or any(self.text in one.lower() for one in _texts(tx)))
        )


def filter_of(parameters: Mapping[str, str]) -> Filter:
    """The filter that the parameters of a request mean.

    Raises:
        QueryError: a value that is none.
    """
    return Filter(
        user=parameters.get("user", ""),
        conversation=parameters.get("conversation", ""),
        client=parameters.get("client", ""),
        pipeline=parameters.get("pipeline", ""),
        stage=parameters.get("stage", ""),
        text=parameters.get("text", "").lower(),
        status=_statuses(parameters.get("status", "")),
        since_ns=_time(parameters.get("since", ""), "since") or 0,
        until_ns=_time(parameters.get("until", ""), "until"),
        limit=limit_of(parameters),
        cursor=_cursor(parameters.get("cursor", "")),
    )


def limit_of(parameters: Mapping[str, str]) -> int:
    """How many rows are asked for.

    Raises:
        QueryError: it is no number of rows.
    """
    text = parameters.get("limit", "") or str(ROWS)
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MOST_ROWS):
        raise QueryError(f"limit: use a whole number from 1 to {MOST_ROWS}")
    return int(text)


def _statuses(text: str) -> frozenset[TransactionStatus]:
    try:
        return frozenset(TransactionStatus(one.strip()) for one in text.split(",") if one.strip())
    except ValueError:
        known = ", ".join(status.value for status in TransactionStatus)
        raise QueryError(f"status: use {known}, or some of them with commas") from None


def _time(text: str, name: str) -> int | None:
    if not text:
        return None
    try:
        # A plus sign that was not escaped arrives as a space.
        at = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise QueryError(f"{name}: use ISO 8601, such as 2026-01-31T23:59:00Z") from None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return (at - _EPOCH) // timedelta(microseconds=1) * 1_000


def _cursor(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise QueryError('cursor: use the "next" of the page before')
    return int(found[1], 16), int(found[2], 16)


# --- transactions ---------------------------------------------------------------------------------


def transactions(view: View, wanted: Filter) -> dict[str, Any]:
    """A page of rows, newest first; ``next`` is the cursor of the page after it."""
    place = view.order.of
    found = sorted(
        (place(tx) for tx in view.state.transactions.values() if wanted.takes(tx)), reverse=True
    )
    cursor = wanted.cursor
    rest = found if cursor is None else [one for one in found if one < cursor]
    page = rest[: wanted.limit]
    more = len(rest) > len(page)
    return {
        "as_of": to_iso(view.now.wall_ns),
        "transactions": [_row(view.state.transactions[t], view) for _, t in page],
        "matched": len(found),
        "kept": len(view.state.transactions),
        "next": f"{page[-1][0]:x}-{page[-1][1]:032x}" if more else None,
    }


def _row(tx: Tracked, view: View) -> dict[str, Any]:
    found, who = tx.verdict.found, tx.who
    current = tx.verdict.current_stage
    return {
        "id": tx.transaction_id,
        "user_id": who.user_id,
        "client_id": who.client_id or None,
        "conversation_id": who.conversation_id or None,
        "audio_uuid": who.audio_uuid or None,
        "pipeline": who.pipeline or None,
        "status": tx.verdict.status.value,
        "current_stage": "none" if current is None else current.value,
        "created_at": to_iso(tx.created_ns),
        "updated_at": to_iso(tx.history.at_ns),
        "duration_seconds": max(0, tx.history.at_ns - tx.created_ns) / NS_PER_S,
        "silent_seconds": _silent_s(tx, view.now),
        "issue": None if found is None else found.text,
        "error": (found.error or None) if found is not None else None,
        "lost": bool(tx.verdict.lost),
    }


def _silent_s(tx: Tracked, now: Now) -> float:
    return max(0, now.monotonic_ns - tx.verdict.since_ns) / NS_PER_S


def _texts(tx: Tracked) -> Iterator[str]:
    for found in tx.found.values():
        yield found.text
        yield found.error
    for fact in tx.facts.values():
        if fact.error:
            yield fact.error


def find(view: View, text: str) -> Tracked:
    """The transaction of an id, or of a prefix that only one has.

    Raises:
        QueryError: it is no id, or several have that prefix.
        UnknownError: it is not kept, or never was.
    """
    prefix = text.replace("-", "").lower()
    if not _PREFIX.fullmatch(prefix):
        raise QueryError(
            f"{text[:60]!r} is no transaction id; use a UUID, a trace id of 32 hex digits, or at "
            f"least {SHORTEST_PREFIX} characters of one"
        )
    kept = view.state.transactions
    if len(prefix) == 32:
        exact = kept.get(int(prefix, 16))
        found = [] if exact is None else [exact]
    else:
        shift, number = 4 * (32 - len(prefix)), int(prefix, 16)
        found = [tx for trace_id, tx in kept.items() if trace_id >> shift == number]
    if not found:
        raise UnknownError(
            f"no transaction {text[:60]} is kept here: it never came, or it was let go (the newest "
            f"{view.state.limits.finished} finished ones are kept); look for it in Jaeger"
        )
    if len(found) > 1:
        some = ", ".join(tx.transaction_id for tx in found[:5])
        raise QueryError(f"{text[:60]} stands for {len(found)} transactions ({some}); use more")
    return found[0]


def transaction(view: View, text: str) -> dict[str, Any]:
    """One transaction with all that is known of it.

    Raises:
        QueryError: it is no id, or several have that prefix.
        UnknownError: it is not kept, or never was.
    """
    tx = find(view, text)
    facts = sorted(tx.facts.values(), key=lambda f: (f.start_ns, f.span_id))
    root = tx.history.root
    about = NO_DETAIL if root is None else view.detail(tx.trace_id, root.span_id)
    pipeline = view.state.pipeline_of(tx)
    return {
        "as_of": to_iso(view.now.wall_ns),
        **_row(tx, view),
        "trace_id": f"{tx.trace_id:032x}",
        "stages": list(pipeline.stages),
        "waiting": [wait.stage for wait in tx.verdict.waiting],
        "elsewhere": tx.verdict.elsewhere,
        "metadata": dict(about.attributes),
        "service": about.service or None,
        "attempts": _attempts(tx, facts, view),
        "waits": [_wait(fact, tx, view) for fact in _waits(facts)],
        "stalls": [_stall(fact, view) for fact in facts if fact.kind is Kind.STALLED],
        "events": [_event(event) for event in views.events(tx)],
        "issues": [
            {
                "at": to_iso(found.at_ns),
                "issue": found.text,
                "error": found.error or None,
                "resolved": found.resolved,
            }
            for found in sorted(tx.found.values(), key=lambda f: f.at_ns)
        ],
        "recording": [peer.transaction_id for peer in _recording_of(tx, view.state)],
        "dropped_spans": tx.dropped_facts,
        "jaeger": _jaeger(tx, view),
    }


def _jaeger(tx: Tracked, view: View) -> dict[str, Any]:
    if _exports_nothing(tx, view):
        why = "its processes export nothing; set OTEL_EXPORTER_OTLP_ENDPOINT in them"
        return {"url": None, "reason": why}
    return jaeger(tx.trace_id, view.jaeger_url)


def _exports_nothing(tx: Tracked, view: View) -> bool:
    """Whether all its processes that are known say so: they have no exporter of their own."""
    places = {worker_of(fact.where) for fact in tx.facts.values()}
    said = [view.told[place].health.get("export") for place in places if place in view.told]
    return bool(said) and all(
        isinstance(one, Mapping) and one.get("provider") == "own" and one.get("exporters") == {}
        for one in said
    )


def jaeger(trace_id: int, url: str) -> dict[str, Any]:
    """Where its trace is in Jaeger's UI, or why that is not known."""
    if not url.startswith(("http://", "https://")):
        return {"url": None, "reason": "no Jaeger is known here; set OTEL_TRACKER_JAEGER_URL"}
    return {"url": f"{url.rstrip('/')}/trace/{trace_id:032x}", "reason": None}


def _attempts(tx: Tracked, facts: Iterable[Fact], view: View) -> list[dict[str, Any]]:
    numbers: Counter[tuple[str, str]] = Counter()
    rows = []
    for fact in facts:
        if fact.kind not in (Kind.STAGE, Kind.AUDIO):
            continue
        numbers[fact.stage, fact.key] += 1
        rows.append(_attempt(fact, numbers[fact.stage, fact.key], tx, view))
    return rows


def _attempt(fact: Fact, number: int, tx: Tracked, view: View) -> dict[str, Any]:
    detail = view.detail(tx.trace_id, fact.span_id)
    outer = tx.history.nested_in.get(fact.span_id)
    limit_ns = view.state.patience.limit_ns(fact.stage, view.state.pipeline_of(tx))
    silent_ns = max(0, view.now.monotonic_ns - fact.seen_ns)
    return {
        "span_id": f"{fact.span_id:016x}",
        "stage": fact.stage,
        "key": fact.key or None,
        "attempt": number,
        "state": _attempt_state(fact, tx, view.state),
        "outcome": fact.outcome or None,
        "inferred": fact.ended and fact.outcome == Outcome.SUCCESS and not fact.closed,
        "started_at": to_iso(fact.start_ns),
        "ended_at": to_iso(fact.at_ns) if fact.ended else None,
        "duration_seconds": length_s(fact) if fact.ended else age_s(fact, view.now),
        "silent_seconds": None if fact.ended else silent_ns / NS_PER_S,
        "limit_seconds": limit_ns / NS_PER_S,
        "error": fact.error or None,
        "error_type": fact.error_type or None,
        "stack": detail.stack or (None if fact.ended else _stack_of(fact, tx, view)),
        "within": None if outer is None else f"{outer.span_id:016x}",
        "where": fact.where or None,
        "service": detail.service or None,
        "version": detail.version or None,
        "audio_chunks": fact.audio.chunks if fact.kind is Kind.AUDIO else None,
        "audio_bytes": fact.audio.bytes if fact.kind is Kind.AUDIO else None,
        "metadata": dict(detail.attributes),
    }


def _attempt_state(fact: Fact, tx: Tracked, state: State) -> str:
    if fact.ended:
        return "ended"
    if worker_of(fact.where) in state.workers.lost:
        return "lost"
    if any(one.span_id == fact.span_id for one in tx.verdict.stalled):
        return "stalled"
    return "running"


def _stack_of(attempt: Fact, tx: Tracked, view: View) -> str | None:
    """Where an open attempt hung when its stall was told; None where no span brought it."""
    told = [
        fact
        for fact in tx.history.told_stalls
        if (fact.stage, fact.key) == (attempt.stage, attempt.key)
        and fact.start_ns >= attempt.start_ns
    ]
    for fact in sorted(told, key=lambda f: f.at_ns, reverse=True):
        stack = view.detail(tx.trace_id, fact.span_id).stack
        if stack:
            return stack
    return None


def _waits(facts: Iterable[Fact]) -> list[Fact]:
    """Each wait once, although its sender and the worker that took it may both tell of it."""
    waits = [fact for fact in facts if fact.kind is Kind.QUEUED]
    return [wait for wait in waits if not is_retold(wait, waits)]


def _wait(fact: Fact, tx: Tracked, view: View) -> dict[str, Any]:
    waits = any(one.span_id == fact.span_id for one in tx.verdict.waiting)
    until_ns = None if waits else _taken_at(fact, tx)
    length_ns = 0 if until_ns is None else max(0, until_ns - fact.start_ns)
    return {
        "span_id": f"{fact.span_id:016x}",
        "stage": fact.stage,
        "since": to_iso(fact.start_ns),
        "until": None if until_ns is None else to_iso(until_ns),
        "seconds": age_s(fact, view.now) if waits else length_ns / NS_PER_S,
        "waiting": waits,
    }


def _taken_at(wait: Fact, tx: Tracked) -> int | None:
    """When a worker took it, or when it was over for another reason; None if that is not known."""
    if wait.ended:
        return wait.at_ns
    attempts = (a.start_ns for a in tx.history.attempts if a.stage == wait.stage)
    return min((at_ns for at_ns in attempts if at_ns >= wait.start_ns), default=None)


def _stall(fact: Fact, view: View) -> dict[str, Any]:
    return {
        "span_id": f"{fact.span_id:016x}",
        "stage": fact.stage,
        "key": fact.key or None,
        "since": to_iso(fact.start_ns),
        "told_at": to_iso(fact.at_ns),
        "reason": fact.error or None,
        "where": fact.where or None,
        "stack": view.detail(fact.trace_id, fact.span_id).stack or None,
    }


def _event(event: Any) -> dict[str, Any]:
    return {
        "timestamp": event.timestamp.isoformat(),
        "stage": event.stage.value,
        "success": event.success,
        "error_message": event.error_message,
        "metadata": event.metadata,
    }


# --- recordings -----------------------------------------------------------------------------------


def _ids(tx: Tracked) -> list[str]:
    return [one for one in (tx.who.conversation_id, tx.who.audio_uuid) if one]


def _recording_of(tx: Tracked, state: State) -> list[Tracked]:
    """The newest others of its recording, newest first."""
    mine = set(_ids(tx))
    peers = {
        peer.trace_id: peer for peer in state.peers(tx) if mine and not mine.isdisjoint(_ids(peer))
    }
    return sorted(peers.values(), key=lambda t: (t.created_ns, t.trace_id), reverse=True)[:_LISTED]


def recordings(view: View, wanted: Filter) -> dict[str, Any]:
    """What people think of as one thing: transactions that share a conversation or audio id."""
    groups: list[list[Tracked]] = list(_groups(view.state.transactions.values()))
    kept = [group for group in groups if any(wanted.takes(tx) for tx in group)]
    for group in kept:
        group.sort(key=view.order.of, reverse=True)
    kept.sort(key=lambda group: view.order.of(group[0]), reverse=True)
    return {
        "as_of": to_iso(view.now.wall_ns),
        "recordings": [_recording(group, view) for group in kept[: wanted.limit]],
        "matched": len(kept),
    }


def _groups(all_of_them: Iterable[Tracked]) -> Iterator[list[Tracked]]:
    """Transactions that share an id, also by way of a third: those without ids are none."""
    leader: dict[str, str] = {}

    def find_leader(one: str) -> str:
        while leader[one] != one:
            leader[one] = one = leader[leader[one]]
        return one

    members = []
    for tx in all_of_them:
        ids = _ids(tx)
        if ids:
            members.append((ids[0], tx))
        for one in ids:
            leader.setdefault(one, one)
            leader[find_leader(one)] = find_leader(ids[0])
    groups: dict[str, list[Tracked]] = {}
    for one, tx in members:
        groups.setdefault(find_leader(one), []).append(tx)
    yield from groups.values()


def _recording(group: list[Tracked], view: View) -> dict[str, Any]:
    count = Counter(tx.verdict.status for tx in group)
    return {
        "conversation_ids": _all(tx.who.conversation_id for tx in group),
        "audio_uuids": _all(tx.who.audio_uuid for tx in group),
        "user_ids": _all(tx.who.user_id for tx in group),
        "first": to_iso(min(tx.created_ns for tx in group)),
        "last": to_iso(max(tx.history.at_ns for tx in group)),
        "status": group[0].verdict.status.value,
        "counts": {status.value: count[status] for status in TransactionStatus},
        "transactions": [_row(tx, view) for tx in group[:_LISTED]],
        "issues": _all(tx.verdict.found.text for tx in group if tx.verdict.found is not None),
    }


def _all(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))[:_LISTED]


# --- issues, stages, workers, health --------------------------------------------------------------


def issues(view: View, limit: int) -> dict[str, Any]:
    """Patterns, the one that is new first; and the newest issues, newest first."""
    new_ns = view.now.wall_ns - NEW_ISSUE_S * NS_PER_S
    patterns = sorted(
        view.state.issues.by_last_seen(), key=lambda p: (p.first_ns, p.last_ns), reverse=True
    )
    return {
        "as_of": to_iso(view.now.wall_ns),
        "patterns": [
            {
                "pattern": pattern.text,
                "new": pattern.first_ns >= new_ns,
                "count": pattern.transactions,
                "unresolved": max(0, pattern.unresolved),
                "first": to_iso(pattern.first_ns),
                "last": to_iso(pattern.last_ns),
                "examples": [format_id(trace_id) for trace_id in reversed(pattern.examples)],
            }
            for pattern in patterns[:limit]
        ],
        "recent": [
            {**row, "pattern": issue_texts.pattern_of(row["issue"])}
            for row in reversed(views.recent_issues(view.state, limit))
        ],
    }


def stages(view: View) -> dict[str, Any]:
    """Per stage: its tallies, and how it goes against what is usual."""
    flow = _flow(view)
    return {
        "as_of": to_iso(view.now.wall_ns),
        "stages": {name: {**row, **flow[name]} for name, row in views.stages(view.state).items()},
        "trends": view.trends.rows(view.now),
    }


@dataclass(slots=True)
class _Opened:
    """What is open in one stage."""

    oldest_running_ns: int = -1
    oldest_waiting_ns: int = -1
    waiting: int = 0


def _flow(view: View) -> dict[str, dict[str, Any]]:
    opened = _opened(view.state, view.now.monotonic_ns)
    names = dict.fromkeys([*views.stages(view.state), *opened])
    return {name: _flow_row(name, opened.get(name, _Opened()), view) for name in names}


def _opened(state: State, now_ns: int) -> dict[str, _Opened]:
    """What is open, by stage. It looks at all that is unfinished, so it is spelled out."""
    found: dict[str, _Opened] = defaultdict(_Opened)
    kept = state.transactions
    for status in _OPEN:
        for trace_id in state.by_status[status]:
            verdict = kept[trace_id].verdict
            for attempt in (*verdict.running, *verdict.stalled):
                one = found[attempt.stage]
                age_ns = now_ns - attempt.seen_ns + attempt.at_ns - attempt.start_ns
                one.oldest_running_ns = max(one.oldest_running_ns, age_ns)
    for trace_id in state.waiting:
        for wait in kept[trace_id].verdict.waiting:
            one = found[wait.stage]
            one.oldest_waiting_ns = max(one.oldest_waiting_ns, now_ns - wait.seen_ns)
            one.waiting += 1
    return found


def _seconds_of(age_ns: int) -> float | None:
    return None if age_ns < 0 else age_ns / NS_PER_S


def _flow_row(name: str, opened: _Opened, view: View) -> dict[str, Any]:
    usual, tally = view.trends.stage(name), view.state.stages.get(name)
    ends = sorted(usual.successes)
    between = [(b - a) / NS_PER_S for a, b in pairwise(ends)]
    waits = sorted(usual.waits)
    durations = [] if tally is None else sorted(tally.durations_s)
    last_ns = 0 if tally is None else tally.last_success_ns
    return {
        "last_success": to_iso(last_ns) if last_ns else None,
        "seconds_since_success": (
            max(0, view.now.wall_ns - last_ns) / NS_PER_S if last_ns else None
        ),
        "usual_interval_seconds": median(between) if between else None,
        "oldest_running_seconds": _seconds_of(opened.oldest_running_ns),
        "usual_running_p50": views.percentile(durations, 0.5),
        "usual_running_p95": views.percentile(durations, 0.95),
        "waiting": opened.waiting,
        "oldest_waiting_seconds": _seconds_of(opened.oldest_waiting_ns),
        "usual_waiting_p50": views.percentile(waits, 0.5),
        "usual_waiting_p95": views.percentile(waits, 0.95),
        "failed": 0 if tally is None else tally.failed,
        "skipped": 0 if tally is None else tally.skipped,
        "empty": usual.empty,
        "last_hour": view.trends.last_hour(name, view.now),
    }


def workers(view: View, limit: int | None = None) -> dict[str, Any]:
    """The processes that beat, lost ones first."""
    return {"as_of": to_iso(view.now.wall_ns), "workers": _workers(view, limit)}


def _workers(view: View, limit: int | None) -> list[dict[str, Any]]:
    of_lost: dict[str, list[tuple[Tracked, Fact]]] = {}
    for trace_id in view.state.by_status[TransactionStatus.STALLED]:
        tx = view.state.transactions[trace_id]
        for fact in tx.verdict.lost:
            of_lost.setdefault(worker_of(fact.where), []).append((tx, fact))
    known = sorted(
        view.state.workers,
        key=lambda w: (
            not w.is_lost,
            -len(of_lost.get(w.beat.worker, ())),
            not _has_trouble(w, view),
            w.beat.worker,
        ),
    )
    if limit is not None:
        # A process that was killed long ago, and left nothing open, is no news of tonight.
        old_ns = view.now.monotonic_ns - int(LOST_SHOWN_S * NS_PER_S)
        known = [
            w for w in known
            if not w.is_lost or w.beat.worker in of_lost or w.beat.seen_ns >= old_ns
        ]  # fmt: skip
    return [_worker(one, of_lost.get(one.beat.worker, []), view) for one in known[:limit]]


def _has_trouble(one: Worker, view: View) -> bool:
    """It missed a beat, or cannot export."""
    beat, told = one.beat, view.told.get(one.beat.worker)
    if view.now.monotonic_ns - beat.seen_ns > beat.interval_ns * 3 // 2:
        return True
    export = {} if told is None else told.health.get("export")
    exporters = export.get("exporters") if isinstance(export, Mapping) else None
    return isinstance(exporters, Mapping) and any(
        isinstance(state, Mapping) and state.get("failing_since") for state in exporters.values()
    )


def _processes(view: View) -> dict[str, Any]:
    """How many there are, as of `workers` not all are listed."""
    alive = [worker for worker in view.state.workers if not worker.is_lost]
    services = sorted({worker.beat.service for worker in alive if worker.beat.service})
    return {
        "alive": len(alive),
        "lost": len(view.state.workers.lost),
        "services": services[:_LISTED],
    }


def _worker(one: Worker, lost: list[tuple[Tracked, Fact]], view: View) -> dict[str, Any]:
    beat, now = one.beat, view.now
    host, _, process = beat.worker.partition("/")
    silent_ns = max(0, now.monotonic_ns - beat.seen_ns)
    told = view.told.get(beat.worker)
    return {
        "worker": beat.worker,
        "host": host,
        "process": process,
        "service": beat.service or None,
        "version": beat.version or None,
        "state": "lost" if one.is_lost else "alive",
        "last_beat": to_iso(now.wall_ns - silent_ns),
        "silent_seconds": silent_ns / NS_PER_S,
        "interval_seconds": beat.interval_ns / NS_PER_S,
        "started_at": to_iso(beat.started_ns) if beat.started_ns else None,
        "clock_ahead_seconds": (beat.at_ns - (now.wall_ns - silent_ns)) / NS_PER_S,
        "open": 0 if told is None else told.open,
        "websockets": sum(beat.sockets.values()),
        "lost_work": [
            {
                "transaction_id": tx.transaction_id,
                "stage": fact.stage or None,
                "since": to_iso(fact.start_ns),
            }
            for tx, fact in lost[:_LISTED]
        ],
        "health": {} if told is None else dict(told.health),
    }


def health(view: View) -> dict[str, Any]:
    """What was let go, refused or lost, here and in the workers."""
    state, now = view.state, view.now
    return {
        "as_of": to_iso(now.wall_ns),
        "started_at": to_iso(now.started_wall_ns),
        "uptime_seconds": (now.monotonic_ns - now.started_ns) / NS_PER_S,
        **_fold_health(view),
        "kept": {
            "transactions": len(state.transactions),
            "users": len(state.users),
            "workers": sum(1 for _ in state.workers),
            "spans_with_details": sum(len(spans) for spans in view.details.values()),
        },
        "workers": {name: dict(told.health) for name, told in view.told.items() if told.health},
    }


def _fold_health(view: View) -> dict[str, Any]:
    """As `get_dashboard_data()` has it: what is a tracker's own has nothing to say here."""
    return {
        **views.health(view.state),
        "disabled": False,
        "export": {"provider": None, "exporters": {}},
        "publisher": None,
        "problems": dict(view.intake["problems"]),
        "intake": {name: value for name, value in view.intake.items() if name != "problems"},
    }


# --- the whole ------------------------------------------------------------------------------------


def dashboard(view: View) -> dict[str, Any]:
    """`get_dashboard_data()`, and what many processes and the night ask for beside it."""
    data = views.dashboard(view.state, view.now)
    for row in data["stalled"]:
        row["stack"] = _stack_of_row(row, view)
    flow = _flow(view)
    return {
        **data,
        "health": _fold_health(view),
        "as_of": to_iso(view.now.wall_ns),
        "workers": _workers(view, _LISTED),
        "processes": _processes(view),
        "flow": flow,
        "pulse": pulse.pulse(view),
        "open": pulse.open_work(view, flow),
        "trends": view.trends.rows(view.now),
    }


def _stack_of_row(row: Mapping[str, Any], view: View) -> str | None:
    tx = view.state.transactions[int(row["transaction_id"].replace("-", ""), 16)]
    if row["span_id"] is None:
        return None
    return _stack_of(tx.facts[int(row["span_id"], 16)], tx, view)
