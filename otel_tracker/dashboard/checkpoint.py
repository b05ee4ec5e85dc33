"""A `State` as plain JSON lines and back (pure): what the journal need not read again.

The first line has the tallies and the orders in which things are kept. Each further line is one
transaction, then come those of the service's own, and the last one is a checksum of all before. A
transaction is named by its place among the lines. `capture` is quick, since it is taken under the
store's lock, and facts never change; what is slow comes later, line by line: `lines` may run on
another thread.

Verdicts are no part of it: they follow from the facts, and are made anew. So is what was told to
no purpose here: metadata, which OTLP does not bring and which must not leave its process.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ..issues import Found, IssueRow, Pattern
from ..model import AudioCount, Fact, Kind, Pipeline, TransactionStatus, Who
from ..state import Dropped, StageTally, State, Tracked
from ..verdict import Verdict
from ..workers import Beat, Worker

VERSION: Final = 1
"""Changes with every change of what a line means: a file of another version is not read."""

FORMAT: Final = "otel_tracker checkpoint"

_TALLIES: Final = (
    "audio_chunks", "transcriptions", "memories", "last_activity_ns", "last_success_ns",
    "open_websockets",
)  # fmt: skip


_NOT_WHOLE: Final = "is damaged or cut off"
_NO_CHECKPOINT: Final = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, StopIteration,
)  # fmt: skip
"""What lines of another shape lead to."""


class CheckpointError(ValueError):
    """A text that is no checkpoint of this version, or not a whole one."""


# --- out ------------------------------------------------------------------------------------------

_Kept = tuple[int, tuple[Fact, ...], Who, int, dict[str, Found], dict[str, Found],
              dict[int, Fact], tuple[bool, bool, bool], int, tuple[int, ...]]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Captured:
    """What a state was at one moment; nothing of it changes any more."""

    now_ns: int
    """Monotonic clock of that moment."""
    wall_ns: int
    head: dict[str, Any]
    """Plain data, but for the ids in it."""
    orders: dict[str, list[int]]
    """Trace ids by what they are kept in, in its order."""
    indexes: dict[str, dict[str, list[int]]]
    patience: Mapping[str, int]
    """Explicit limits by stage, in nanoseconds."""
    transactions: list[_Kept]


def capture(state: State, now_ns: int, wall_ns: int) -> Captured:
    """Takes what `state` is now; it must have been judged at this moment.

    Args:
        state: held still by its store's lock.
        now_ns: monotonic.
        wall_ns: the same moment by the wall clock.
    """
    orders = {status.value: list(ids) for status, ids in state.by_status.items()}
    orders["waiting"] = list(state.waiting)
    orders["finished"] = list(state._finished)
    indexes = {
        "client": {key: list(ids) for key, ids in state._by_client.items()},
        "recording": {key: list(ids) for key, ids in state._by_recording.items()},
    }
    kept = [
        (
            tx.trace_id,
            tuple(tx.facts.values()),
            tx.who,
            tx.created_ns,
            tx.found,
            dict(tx.noticed),
            tx.told,
            (tx.attempted, tx.carried_on, tx.woke_peers),
            tx.dropped_facts,
            tuple(tx.forgotten),
        )
        for tx in state.transactions.values()
    ]
    by_stage_ns = state.patience.by_stage_ns
    return Captured(now_ns, wall_ns, _head(state), orders, indexes, by_stage_ns, kept)


def _head(state: State) -> dict[str, Any]:
    return {
        "tallies": {name: getattr(state, name) for name in _TALLIES},
        "let_go": {status.value: count for status, count in state.let_go.items()},
        "let_go_ids": list(state._let_go_ids),
        "dropped": {reason.value: count for reason, count in state.dropped.items()},
        "stages": [
            [name, t.running, t.done, t.inferred, t.failed, t.skipped, t.last_success_ns,
             list(t.durations_s)]
            for name, t in state.stages.items()
        ],
        "users": [[user, *times] for user, times in state.users.items()],
        "sockets": list(state.sockets.items()),
        "pipelines": [[p.name, p.stages, dict(p.stall_after)] for p in state.pipelines.values()],
        "workers": [_worker_out(worker) for worker in state.workers],
        "workers_dropped": state.workers.dropped,
        "issues": _issues_out(state),
    }  # fmt: skip


def _worker_out(worker: Worker) -> list[Any]:
    b = worker.beat
    return [
        b.worker, b.service, b.at_ns, b.seen_ns, b.interval_ns, b.started_ns, b.version,
        dict(b.sockets), worker.first_ns, worker.is_lost,
    ]  # fmt: skip


def _issues_out(state: State) -> dict[str, Any]:
    log = state.issues
    return {
        "rows": [
            [_hex(r.trace_id), r.user_id, r.pattern, r.text, r.at_ns, r.resolved, r.error]
            for r in log._rows.values()
        ],
        "rows_of_pattern": [
            [pattern, [_hex(trace_id) for trace_id in ids]]
            for pattern, ids in log._rows_of_pattern.items()
        ],
        "patterns": [
            [p.text, p.transactions, p.unresolved, p.first_ns, p.last_ns,
             [_hex(trace_id) for trace_id in p.examples]]
            for p in log.patterns.values()
        ],
        "dropped": [log.dropped_rows, log.dropped_patterns],
    }  # fmt: skip


def lines(captured: Captured, more: Mapping[str, Any]) -> Iterator[bytes]:
    """The lines of a checkpoint, each with its end.

    Args:
        captured: what to write.
        more: plain data of the service's own; each item has a line of its own.

    Raises:
        TypeError: `more` is no plain data.
        ValueError: likewise.
    """
    crc = 0
    for document in _documents(captured, more):
        line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
        crc = zlib.crc32(line, crc)
        yield line
    yield json.dumps({"crc32": crc}).encode() + b"\n"


def _documents(captured: Captured, more: Mapping[str, Any]) -> Iterator[Any]:
    place = {kept[0]: number for number, kept in enumerate(captured.transactions)}
    head = dict(captured.head)
    head["let_go_ids"] = [_hex(trace_id) for trace_id in head["let_go_ids"]]
    yield {
        "format": FORMAT,
        "version": VERSION,
        "now_ns": captured.now_ns,
        "wall_ns": captured.wall_ns,
        "transactions": len(captured.transactions),
        **head,
        "orders": {name: [place[i] for i in ids] for name, ids in captured.orders.items()},
        "indexes": {
            name: {key: [place[i] for i in ids] for key, ids in index.items()}
            for name, index in captured.indexes.items()
        },
        "patience": dict(captured.patience),
        "more": len(more),
    }
    for kept in captured.transactions:
        yield _transaction_out(kept)
    yield from more.items()


def _transaction_out(kept: _Kept) -> list[Any]:
    trace_id, facts, who, created_ns, found, noticed, told, flags, dropped, forgotten = kept
    whos: dict[Who, int] = {who: 0}
    rows = [_fact_out(fact, whos) for fact in facts]
    told_rows = [_fact_out(fact, whos) for fact in told.values()]
    return [
        _hex(trace_id), list(whos), rows, created_ns, found, noticed, told_rows, flags, dropped,
        [f"{span_id:x}" for span_id in forgotten],
    ]  # fmt: skip


def _fact_out(fact: Fact, whos: dict[Who, int]) -> list[Any]:
    flags = fact.ended | fact.opened << 1 | fact.closed << 2 | fact.reported_failure << 3
    row: list[Any] = [
        f"{fact.span_id:x}", fact.kind.value, fact.start_ns, fact.at_ns, fact.seen_ns, flags,
        whos.setdefault(fact.who, len(whos)), fact.stage, fact.key, fact.outcome, fact.error,
        fact.error_type, f"{fact.parent_id:x}", fact.where,
    ]  # fmt: skip
    if fact.kind is Kind.AUDIO:
        row.append(fact.audio)
    return row


def _hex(trace_id: int) -> str:
    return f"{trace_id:032x}"


# --- in -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint that was read whole: what `install` puts into a state."""

    now_ns: int
    wall_ns: int
    head: dict[str, Any]
    transactions: list[Tracked]
    more: dict[str, Any]
    """What was given to `lines`."""


def read(text: Iterable[bytes], shift_ns: Callable[[int, int], int]) -> Snapshot:
    """The checkpoint in these lines.

    Args:
        text: its lines.
        shift_ns: what to add to its monotonic times, given its monotonic and its wall clock: those
            of another process mean nothing in this one.

    Raises:
        CheckpointError: it is none, is cut off or damaged, or is of another version.
    """
    numbered = iter(text)
    first = next(numbered, b"")
    try:
        head = json.loads(first)
        if head["format"] != FORMAT or head["version"] != VERSION:
            raise CheckpointError(f"is of version {head['version']}, not {VERSION}")
        shift = shift_ns(head["now_ns"], head["wall_ns"])
        crc = zlib.crc32(first)
        strings: dict[str, str] = {}
        transactions = []
        for _ in range(head["transactions"]):
            line = next(numbered)
            crc = zlib.crc32(line, crc)
            transactions.append(_transaction_in(json.loads(line), shift, strings))
        more = {}
        for _ in range(head["more"]):
            line = next(numbered)
            crc = zlib.crc32(line, crc)
            name, value = json.loads(line)
            more[name] = value
        if json.loads(next(numbered)) != {"crc32": crc} or next(numbered, None) is not None:
            raise CheckpointError(_NOT_WHOLE)
        _prepare(head, transactions, shift)
    except CheckpointError:
        raise
    except _NO_CHECKPOINT as error:
        raise CheckpointError(_NOT_WHOLE) from error
    return Snapshot(head["now_ns"] + shift, head["wall_ns"], head, transactions, more)


def _transaction_in(row: list[Any], shift_ns: int, strings: dict[str, str]) -> Tracked:
    trace_hex, whos, rows, created_ns, found, noticed, told, flags, dropped, forgotten = row
    trace_id = int(trace_hex, 16)
    people = [Who(*who) for who in whos]
    facts = [_fact_in(trace_id, row, people, shift_ns, strings) for row in rows]
    told_facts = [_fact_in(trace_id, row, people, shift_ns, strings) for row in told]
    attempted, carried_on, woke_peers = flags
    return Tracked(
        trace_id,
        facts={fact.span_id: fact for fact in facts},
        who=people[0],
        created_ns=created_ns,
        found={pattern: Found(*issue) for pattern, issue in found.items()},
        noticed={text: Found(*issue) for text, issue in noticed.items()},
        told={fact.span_id: fact for fact in told_facts},
        attempted=attempted,
        carried_on=carried_on,
        woke_peers=woke_peers,
        dropped_facts=dropped,
        forgotten=OrderedDict.fromkeys(int(span_id, 16) for span_id in forgotten),
    )


def _fact_in(
    trace_id: int, row: list[Any], whos: list[Who], shift_ns: int, strings: dict[str, str]
) -> Fact:
    span_id, kind, start_ns, at_ns, seen_ns, flags, who, *texts = row
    stage, key, outcome, error, error_type, parent_id, where, *audio = texts
    return Fact(
        trace_id,
        int(span_id, 16),
        Kind(kind),
        start_ns,
        at_ns,
        seen_ns + shift_ns,
        bool(flags & 1),
        whos[who],
        strings.setdefault(stage, stage),
        key,
        strings.setdefault(outcome, outcome),
        error,
        error_type,
        bool(flags & 2),
        bool(flags & 4),
        bool(flags & 8),
        int(parent_id, 16),
        AudioCount(*audio[0]) if audio else AudioCount(),
        where=strings.setdefault(where, where),
    )


def _prepare(head: dict[str, Any], transactions: list[Tracked], shift_ns: int) -> None:
    """Makes of the first line what `install` only has to put in its place."""
    ids = [tx.trace_id for tx in transactions]
    head["orders"] = {
        name: OrderedDict.fromkeys(ids[place] for place in places)
        for name, places in head["orders"].items()
    }
    for status in TransactionStatus:
        for trace_id in head["orders"][status.value]:
            head.setdefault("status", {})[trace_id] = status
    for tx in transactions:
        tx.verdict = Verdict(head["status"][tx.trace_id], None)  # judged anew before any read
    for index in head["indexes"].values():
        for key, places in index.items():
            index[key] = OrderedDict.fromkeys(ids[place] for place in places)
            for place in places:
                transactions[place].indexed.add(key)
    head["let_go"] = Counter({TransactionStatus(s): n for s, n in head["let_go"].items()})
    head["let_go_ids"] = OrderedDict.fromkeys(int(i, 16) for i in head["let_go_ids"])
    head["dropped"] = Counter({Dropped(r): n for r, n in head["dropped"].items()})
    head["stages"] = {name: _stage_in(*figures) for name, *figures in head["stages"]}
    head["users"] = OrderedDict((u, (at, seen + shift_ns)) for u, at, seen in head["users"])
    head["sockets"] = OrderedDict((client, count) for client, count in head["sockets"])
    head["pipelines"] = [
        Pipeline(n, tuple(stages), limits) for n, stages, limits in head["pipelines"]
    ]
    head["workers"] = [_worker_in(row, shift_ns) for row in head["workers"]]
    _prepare_issues(head["issues"])
    if set(head["tallies"]) != set(_TALLIES):
        raise CheckpointError(_NOT_WHOLE)


def _stage_in(
    running: int, done: int, inferred: int, failed: int, skipped: int, last_ns: int,
    durations_s: list[float],
) -> StageTally:  # fmt: skip
    tally = StageTally(running, done, inferred, failed, skipped, last_ns)
    tally.durations_s.extend(durations_s)
    return tally


def _worker_in(row: list[Any], shift_ns: int) -> Worker:
    name, service, at_ns, seen_ns, interval_ns, started_ns, version, sockets, first_ns, lost = row
    beat = Beat(
        name, service, at_ns, seen_ns + shift_ns, interval_ns, started_ns, version, sockets=sockets
    )
    return Worker(beat, first_ns + shift_ns, lost)


def _prepare_issues(issues: dict[str, Any]) -> None:
    rows = [IssueRow(int(trace_id, 16), *rest) for trace_id, *rest in issues["rows"]]
    issues["rows"] = OrderedDict(((row.trace_id, row.pattern), row) for row in rows)
    issues["rows_of_pattern"] = {
        pattern: OrderedDict.fromkeys(int(i, 16) for i in ids)
        for pattern, ids in issues["rows_of_pattern"]
    }
    patterns = [_pattern_in(*figures) for figures in issues["patterns"]]
    issues["patterns"] = OrderedDict((pattern.text, pattern) for pattern in patterns)
    issues["dropped_rows"], issues["dropped_patterns"] = issues["dropped"]


def _pattern_in(
    text: str, transactions: int, unresolved: int, first_ns: int, last_ns: int, examples: list[str]
) -> Pattern:
    ids = OrderedDict.fromkeys(int(trace_id, 16) for trace_id in examples)
    return Pattern(text, transactions, unresolved, first_ns, last_ns, ids)


def install(snapshot: Snapshot, state: State) -> None:
    """Puts the checkpoint into an empty state; it is judged at the next `State.advance`.

    The state's own bounds, limits and pipelines stand; what it does not say of a stage's limit or
    of a pipeline is taken over, since workers told it by beats, which are not kept.
    """
    head = snapshot.head
    for name in _TALLIES:
        setattr(state, name, head["tallies"][name])
    state.transactions = OrderedDict((tx.trace_id, tx) for tx in snapshot.transactions)
    state.by_status = {status: head["orders"][status.value] for status in TransactionStatus}
    state.waiting = head["orders"]["waiting"]
    state._finished = head["orders"]["finished"]
    state._by_client = head["indexes"]["client"]
    state._by_recording = head["indexes"]["recording"]
    state._only_audio = OrderedDict.fromkeys(
        tx.trace_id
        for tx in snapshot.transactions
        if not tx.attempted and any(fact.kind is Kind.AUDIO for fact in tx.facts.values())
    )
    state.let_go = head["let_go"]
    state._let_go_ids = head["let_go_ids"]
    state.dropped = head["dropped"]
    state.stages = head["stages"]
    state.users = head["users"]
    state.sockets = head["sockets"]
    for pipeline in head["pipelines"]:
        state.pipelines.setdefault(pipeline.name, pipeline)
    log, issues = state.issues, head["issues"]
    log._rows, log._rows_of_pattern = issues["rows"], issues["rows_of_pattern"]
    log.patterns = issues["patterns"]
    log.dropped_rows, log.dropped_patterns = issues["dropped_rows"], issues["dropped_patterns"]
    log.set_limit(state.limits.issues)
    state.workers.dropped = head["workers_dropped"]
    _install_workers(head["workers"], state)
    by_stage_ns = {**head["patience"], **state.patience.by_stage_ns}
    state.set_patience(replace(state.patience, by_stage_ns=by_stage_ns))  # all is to be judged


def _install_workers(workers: list[Worker], state: State) -> None:
    for worker in workers:
        state.workers._known[worker.beat.worker] = worker
    state.workers.lost = frozenset(w.beat.worker for w in workers if w.is_lost)


def forgive_workers(state: State, seen_ns: int) -> None:
    """Lets the silence of those that were not lost begin at this moment of the monotonic clock."""
    for worker in state.workers:
        if not worker.is_lost:
            worker.beat = replace(worker.beat, seen_ns=seen_ns)
