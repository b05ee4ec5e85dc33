"""What people see of the state, as plain data that `json.dumps` takes (pure: state in, copies out).

The old page subscripts every documented key, so none may be missing; new ones stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

from .history import History
from .ids import format_id
from .issues import event_of_fact
from .model import (
    NS_PER_S,
    AnyEvent,
    Fact,
    Kind,
    Outcome,
    Phase,
    PipelineEvent,
    PipelineStage,
    SystemMetrics,
    Transaction,
    TransactionStatus,
    event_of,
    to_datetime,
    to_iso,
)
from .state import StageTally, State, Tracked

RECENT: Final = 10
"""Rows of ``recent_transactions`` and ``recent_issues``, as documented."""
ACTIVE_USER_NS: Final = 300 * NS_PER_S
"""A user is active for five minutes after the last activity."""
LISTED: Final = 50
"""Most rows of ``stalled``, ``waiting`` and ``issue_patterns``."""


class Now:
    """The moment of a view: both clocks, and since when the store runs."""

    __slots__ = ("monotonic_ns", "started_ns", "started_wall_ns", "wall_ns")

    def __init__(
        self, monotonic_ns: int, wall_ns: int, started_ns: int, started_wall_ns: int
    ) -> None:
        self.monotonic_ns = monotonic_ns
        self.wall_ns = wall_ns
        self.started_ns = started_ns
        self.started_wall_ns = started_wall_ns


# --- totals ---------------------------------------------------------------------------------------


def metrics(state: State, now: Now) -> SystemMetrics:
    """The totals. Each is kept by difference: none costs more with history."""
    count = {s: len(state.by_status[s]) + state.let_go[s] for s in TransactionStatus}
    return SystemMetrics(
        system_start_time=to_datetime(now.started_wall_ns),
        uptime_seconds=(now.monotonic_ns - now.started_ns) / NS_PER_S,
        total_transactions=sum(count.values()),
        active_transactions=count[TransactionStatus.IN_PROGRESS],
        completed_transactions=count[TransactionStatus.COMPLETED],
        failed_transactions=count[TransactionStatus.FAILED],
        stalled_transactions=count[TransactionStatus.STALLED],
        active_websockets=state.open_websockets,
        total_audio_chunks_processed=state.audio_chunks,
        total_transcriptions=state.transcriptions,
        total_memories_created=state.memories,
        last_activity=to_datetime(state.last_activity_ns) if state.last_activity_ns else None,
    )


def _metrics_row(state: State, now: Now) -> dict[str, Any]:
    m = metrics(state, now)
    return {
        "uptime_hours": m.uptime_hours(),
        "total_transactions": m.total_transactions,
        "active_transactions": m.active_transactions,
        "completed_transactions": m.completed_transactions,
        "failed_transactions": m.failed_transactions,
        "stalled_transactions": m.stalled_transactions,
        "active_websockets": m.active_websockets,
        "total_audio_chunks": m.total_audio_chunks_processed,
        "total_transcriptions": m.total_transcriptions,
        "total_memories": m.total_memories_created,
        "last_activity": None if m.last_activity is None else m.last_activity.isoformat(),
    }


def active_users(state: State, now: Now) -> int:
    """Users with activity in the last five minutes."""
    oldest_ns = now.monotonic_ns - ACTIVE_USER_NS
    return sum(seen_ns >= oldest_ns for _, seen_ns in state.users.values())


# --- transactions ---------------------------------------------------------------------------------


def transaction_row(tx: Tracked) -> dict[str, Any]:
    """One transaction as a row, with its whole id."""
    found = tx.verdict.found
    return {
        "id": tx.transaction_id,
        "user_id": tx.who.user_id[-6:],
        "status": tx.verdict.status.value,
        "current_stage": _stage_text(tx.verdict.current_stage, "none"),
        "created_at": to_iso(tx.created_ns),
        "issue": None if found is None else found.text,
    }


def recent_transactions(state: State, limit: int) -> list[dict[str, Any]]:
    """The newest `limit` transactions, newest first, with whole ids."""
    newest = islice(reversed(state.transactions.values()), max(0, limit))
    rows = sorted(newest, key=lambda tx: (tx.created_ns, tx.trace_id), reverse=True)
    return [transaction_row(tx) for tx in rows]


def transaction(tx: Tracked) -> Transaction:
    """A frozen copy of one transaction, its events included."""
    found = tx.verdict.found
    return Transaction(
        transaction_id=tx.transaction_id,
        user_id=tx.who.user_id,
        client_id=tx.who.client_id,
        conversation_id=tx.who.conversation_id or None,
        created_at=to_datetime(tx.created_ns),
        updated_at=to_datetime(tx.history.at_ns),
        events=tuple(events(tx)),
        status=tx.verdict.status,
        current_stage=tx.verdict.current_stage,
        issue=None if found is None else found.text,
        pipeline=tx.who.pipeline,
    )


def user_transactions(state: State, user_id: str, limit: int) -> list[Transaction]:
    """The newest `limit` transactions of one user, newest first."""
    own = (tx for tx in reversed(state.transactions.values()) if tx.who.user_id == user_id)
    newest = list(islice(own, max(0, limit)))
    newest.sort(key=lambda tx: (tx.created_ns, tx.trace_id), reverse=True)
    return [transaction(tx) for tx in newest]


def events(tx: Tracked) -> list[PipelineEvent]:
    """The reported events of a transaction in order, as its spans tell them."""
    rows: list[tuple[int, int, int, PipelineEvent]] = []
    for fact in tx.facts.values():
        if fact.kind is Kind.AUDIO:
            event = PipelineStage.AUDIO_RECEIVED
            audio = {
                **fact.metadata,
                "chunk_size": fact.audio.last_size,
                "chunks": fact.audio.chunks,
                "bytes": fact.audio.bytes,
            }
            rows.append((fact.start_ns, 0, fact.span_id, _event(fact, event, fact.start_ns, audio)))
        elif fact.kind is Kind.STAGE:
            if fact.opened:
                started = event_of(fact.stage, Phase.STARTED)
                event_row = _event(fact, started, fact.start_ns, fact.metadata)
                rows.append((fact.start_ns, 0, fact.span_id, event_row))
            if fact.closed:
                done = event_of_fact(fact)
                end_row = _event(fact, done, fact.told_ns, fact.end_metadata)
                rows.append((fact.told_ns, 1, fact.span_id, end_row))
        elif fact.kind in (Kind.ENDED, Kind.TRANSACTION) and fact.closed:
            ended = _event(fact, PipelineStage.CONVERSATION_ENDED, fact.told_ns, fact.end_metadata)
            rows.append((fact.told_ns, 2, fact.span_id, ended))
    rows.sort(key=lambda row: row[:3])
    return [row[3] for row in rows]


def _event(fact: Fact, stage: AnyEvent, wall_ns: int, metadata: Mapping[str, Any]) -> PipelineEvent:
    is_start = fact.opened and stage == event_of(fact.stage, Phase.STARTED)
    its_own = not (is_start and fact.closed)  # success and message belong to the end, if one came
    return PipelineEvent(
        timestamp=to_datetime(wall_ns),
        stage=stage,
        success=not (fact.reported_failure and its_own),
        error_message=(fact.error or None) if its_own and (fact.closed or fact.ended) else None,
        metadata=_copy(metadata),
    )


def _copy(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of plain data, so that no caller can change what is kept."""
    return {key: _copy_value(value) for key, value in metadata.items()}


def _copy_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _copy(value)
    if isinstance(value, list):
        return [_copy_value(v) for v in value]
    return value


def _stage_text(stage: AnyEvent | None, otherwise: str | None) -> str | None:
    return otherwise if stage is None else stage.value


# --- issues, stalls, queues, stages ---------------------------------------------------------------


def recent_issues(state: State, limit: int) -> list[dict[str, Any]]:
    """The newest `limit` issues, newest last."""
    return [
        {
            "timestamp": to_iso(row.at_ns),
            "transaction_id": format_id(row.trace_id),
            "user_id": row.user_id,
            "issue": row.text,
            "resolved": row.resolved,
            "error": row.error or None,
        }
        for row in state.issues.newest(limit)
    ]


def issue_patterns(state: State, limit: int = LISTED) -> list[dict[str, Any]]:
    """The same issue over many transactions, the one seen last first."""
    return [
        {
            "pattern": pattern.text,
            "count": pattern.transactions,
            "unresolved": max(0, pattern.unresolved),
            "first": to_iso(pattern.first_ns),
            "last": to_iso(pattern.last_ns),
            "examples": [format_id(trace_id) for trace_id in reversed(pattern.examples)],
        }
        for pattern in state.issues.by_last_seen()[:limit]
    ]


def stalled(state: State, now: Now, limit: int = LISTED) -> list[dict[str, Any]]:
    """What is stuck, longest first: which stage, since when, and on which thread."""
    rows: list[dict[str, Any]] = []
    for trace_id in islice(state.by_status[TransactionStatus.STALLED], limit):
        tx = state.transactions[trace_id]
        for attempt in tx.verdict.stalled or (None,):
            seen_ns = tx.verdict.since_ns if attempt is None else attempt.seen_ns
            silent_ns = max(0, now.monotonic_ns - seen_ns)
            rows.append(
                {
                    **_work_row(tx, now, silent_ns),
                    "stage": None if attempt is None else attempt.stage,
                    "span_id": None if attempt is None else f"{attempt.span_id:016x}",
                    "where": attempt.where or None if attempt is not None else None,
                    "issue": None if tx.verdict.found is None else tx.verdict.found.text,
                    "stack": None,
                }
            )
    rows.sort(key=lambda row: -row["silent_seconds"])
    return rows


def waiting(state: State, now: Now, limit: int = LISTED) -> list[dict[str, Any]]:
    """What waits for a worker, longest first; ``elsewhere`` where others carry on unheard."""
    rows: list[dict[str, Any]] = []
    for trace_id in islice(state.waiting, limit):
        tx = state.transactions[trace_id]
        if tx.verdict.elsewhere and not tx.verdict.waiting:
            handed = tx.history.handed_over
            since_ns = tx.verdict.since_ns if handed is None else handed.seen_ns
            row = _work_row(tx, now, max(0, now.monotonic_ns - since_ns))
            rows.append({**row, "stage": None, "state": "elsewhere"})
        for wait in tx.verdict.waiting:
            row = _work_row(tx, now, max(0, now.monotonic_ns - wait.seen_ns))
            where = "elsewhere" if tx.verdict.elsewhere else "queued"
            rows.append({**row, "stage": wait.stage, "state": where})
    rows.sort(key=lambda row: -row["silent_seconds"])
    return rows


def _work_row(tx: Tracked, now: Now, silent_ns: int) -> dict[str, Any]:
    return {
        "transaction_id": tx.transaction_id,
        "user_id": tx.who.user_id,
        "conversation_id": tx.who.conversation_id or None,
        "current_stage": _stage_text(tx.verdict.current_stage, "none"),
        "since": to_iso(now.wall_ns - silent_ns),
        "silent_seconds": silent_ns / NS_PER_S,
    }


def stages(state: State) -> dict[str, dict[str, Any]]:
    """Per stage: what runs, what became of the rest, and how long a success takes (seconds).

    In the order of the pipelines that declare them, then by name.
    """
    declared = [stage for pipeline in state.pipelines.values() for stage in pipeline.stages]
    order = {stage: place for place, stage in reversed(list(enumerate(declared)))}
    names = sorted(state.stages, key=lambda name: (order.get(name, len(declared)), name))
    return {name: _stage_row(state.stages[name]) for name in names}


def _stage_row(tally: StageTally) -> dict[str, Any]:
    durations = sorted(tally.durations_s)
    return {
        "running": tally.running,
        "done": tally.done,
        "inferred": tally.inferred,
        "failed": tally.failed,
        "skipped": tally.skipped,
        "p50": percentile(durations, 0.5),
        "p95": percentile(durations, 0.95),
        "last_success": to_iso(tally.last_success_ns) if tally.last_success_ns else None,
    }


def percentile(ordered: list[float], share: float) -> float | None:
    """The nearest-rank percentile of ordered values; None of none."""
    if not ordered:
        return None
    rank = -(-len(ordered) * share // 1)  # ceiling
    return ordered[max(0, int(rank) - 1)]


def health(state: State) -> dict[str, Any]:
    """The fold's own health: last success, and what was let go or refused, by reason."""
    dropped = {reason.value: count for reason, count in state.dropped.items() if count}
    if state.issues.dropped_rows:
        dropped["issues"] = state.issues.dropped_rows
    if state.issues.dropped_patterns:
        dropped["issue_patterns"] = state.issues.dropped_patterns
    return {
        "last_success": to_iso(state.last_success_ns) if state.last_success_ns else None,
        "dropped": dropped,
    }


# --- the whole ------------------------------------------------------------------------------------


def dashboard(state: State, now: Now) -> dict[str, Any]:
    """`get_dashboard_data()`: the documented keys, and the new ones beside them."""
    rows = recent_transactions(state, RECENT)
    for row in rows:
        row["id"] = row["id"][:8]
    return {
        "system_metrics": _metrics_row(state, now),
        "recent_transactions": rows[::-1],
        "recent_issues": recent_issues(state, RECENT),
        "active_users": active_users(state, now),
        "issue_patterns": issue_patterns(state),
        "stalled": stalled(state, now),
        "waiting": waiting(state, now),
        "stages": stages(state),
        "health": health(state),
    }


def dump(state: State, now: Now) -> dict[str, Any]:
    """`export_debug_dump()`: everything that is kept, complete."""
    return {
        "export_metadata": {
            "generated_at": to_iso(now.wall_ns),
            "system_start_time": to_iso(now.started_wall_ns),
            "uptime_hours": (now.monotonic_ns - now.started_ns) / NS_PER_S / 3600,
        },
        "system_metrics": _metrics_row(state, now),
        "transactions": [_dump_row(tx) for tx in state.transactions.values()],
        "recent_issues": recent_issues(state, state.limits.issues),
        "issue_patterns": issue_patterns(state, limit=1_000),
        "active_websockets": sorted(state.sockets),
        "user_activity": {user: to_iso(at_ns) for user, (at_ns, _) in state.users.items()},
        "stages": stages(state),
        "health": health(state),
    }


def _dump_row(tx: Tracked) -> dict[str, Any]:
    copy = transaction(tx)
    return {
        "transaction_id": copy.transaction_id,
        "user_id": copy.user_id,
        "client_id": copy.client_id,
        "conversation_id": copy.conversation_id,
        "created_at": copy.created_at.isoformat(),
        "updated_at": copy.updated_at.isoformat(),
        "status": copy.status.value,
        "current_stage": _stage_text(copy.current_stage, None),
        "issue": copy.issue,
        "pipeline": copy.pipeline,
        "events": [
            {
                "timestamp": event.timestamp.isoformat(),
                "stage": event.stage.value,
                "success": event.success,
                "error_message": event.error_message,
                "metadata": event.metadata,
            }
            for event in copy.events
        ],
        "attempts": [_attempt_row(fact) for fact in _attempts(tx.history)],
        "dropped_facts": tx.dropped_facts,
    }


def _attempts(h: History) -> Iterable[Fact]:
    return [*([h.audio] if h.audio is not None else []), *h.attempts, *h.queued]


def _attempt_row(fact: Fact) -> dict[str, Any]:
    return {
        "span_id": f"{fact.span_id:016x}",
        "kind": fact.kind.value,
        "stage": fact.stage,
        "key": fact.key or None,
        "started_at": to_iso(fact.start_ns),
        "ended_at": to_iso(fact.at_ns) if fact.ended else None,
        "outcome": fact.outcome or None,
        "inferred": fact.outcome == Outcome.SUCCESS and not fact.closed,
        "error": fact.error or None,
        "where": fact.where or None,
    }
