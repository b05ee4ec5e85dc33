"""The fold: facts in, transactions and tallies out. Bounded in everything.

Knows no OpenTelemetry, lock or clock: time comes in with each call. `apply` only merges a fact into
its transaction; `advance` judges what changed or came due, and keeps every figure by the difference
between old and new verdict. So a read costs what changed since the last one, never the history.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, NamedTuple

from . import issues
from .history import History, history, merge
from .ids import format_id
from .issues import Found, IssueLog
from .model import (
    AUDIO_PIPELINE,
    MEMORY,
    MEMORY_SESSION,
    NO_PIPELINE,
    NOBODY,
    TRANSCRIPTION,
    Fact,
    FastEnum,
    Kind,
    Outcome,
    Pipeline,
    SocketFact,
    TransactionStatus,
    Who,
)
from .stalls import Patience
from .verdict import CARRY_ON_NS, FOREVER_NS, Verdict, judge
from .workers import Beat, Workers, worker_of

_FINISHED: Final = frozenset({TransactionStatus.COMPLETED, TransactionStatus.FAILED})
_DURATIONS: Final = 500  # newest durations kept for each stage's percentiles
_PEERS: Final = 100  # newest transactions of a client or recording that are looked at
_FORGOTTEN: Final = 4  # times the facts of one transaction whose ids are known to have been
_WELL: Final = frozenset({Outcome.SUCCESS, Outcome.SKIPPED})
_DECIDE_NOTHING: Final = frozenset({Kind.DETAIL, Kind.STALLED, Kind.RECOVERED})
_PATTERNS_OF_ONE: Final = 50  # issues of one transaction
_ATTEMPTS: Final = frozenset({Kind.STAGE, Kind.AUDIO})
_NEWS: Final = 10_000  # changes that wait for the sweeper
_FACT: Final = 600  # bytes of a fact beside its longest texts, about


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept. What goes beyond is let go: counted, and visible under ``health``."""

    finished: int = 100
    open: int = 10_000
    issues: int = 50
    facts_of_one: int = 200
    """Spans of one transaction."""
    let_go_ids: int = 10_000
    """Ids whose later facts are known to come too late."""
    users: int = 10_000
    sockets: int = 10_000
    stages: int = 100
    bytes: int = 256 << 20
    """Of the facts of all transactions, about."""


_UNJUDGED: Final = Verdict(TransactionStatus.IN_PROGRESS, None)


@dataclass(slots=True)
class Tracked:
    """One transaction that is kept."""

    trace_id: int
    facts: dict[int, Fact] = field(default_factory=dict)
    who: Who = NOBODY
    created_ns: int = 0
    history: History = field(default_factory=History)
    verdict: Verdict = _UNJUDGED
    found: dict[str, Found] = field(default_factory=dict)
    """Its issues by pattern, the resolved ones included."""
    noticed: dict[str, Found] = field(default_factory=dict)
    """Issues of silence that were noticed once: they stay, resolved, when the silence is over."""
    told: dict[int, Fact] = field(default_factory=dict)
    """Attempts whose stall is news already, by span id."""
    attempted: bool = False
    """Some stage was attempted; until then it is audio alone, or nothing."""
    carried_on: bool = False
    """Audio alone, and another transaction of its recording did the work."""
    woke_peers: bool = False
    indexed: set[str] = field(default_factory=lambda: {""})
    """Its clients' and recordings' ids: more than one each where its spans disagree."""
    dropped_facts: int = 0
    size: int = 0
    """Bytes of its facts, about, when it was judged last."""
    forgotten: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Span ids of facts that were let go: heard of again, they must not count twice."""

    @property
    def transaction_id(self) -> str:
        """The trace id written as a UUID."""
        return format_id(self.trace_id)


@dataclass(slots=True)
class StageTally:
    """What became of the attempts at one stage, over all transactions ever."""

    running: int = 0
    done: int = 0
    """Reported successes."""
    inferred: int = 0
    """Successes that nobody reported: a later stage had begun."""
    failed: int = 0
    skipped: int = 0
    last_success_ns: int = 0
    durations_s: deque[float] = field(default_factory=lambda: deque(maxlen=_DURATIONS))
    """Seconds that successful attempts took, the newest last."""


class Dropped(FastEnum):
    """What was let go or refused, by reason: the keys of ``health.dropped``."""

    LATE_FACTS = "late_facts"
    FACTS_OF_ONE = "facts_over_the_limit_of_one_transaction"
    FINISHED = "finished_transactions"
    OPEN = "open_transactions"
    USERS = "users"
    SOCKETS = "sockets"
    STAGES = "stage_names"
    NEWS = "changes_not_told"
    DEFECTS = "facts_and_verdicts_that_failed"


class StatusChange(NamedTuple):
    """News: a transaction's status changed."""

    trace_id: int
    who: Who
    old: TransactionStatus
    verdict: Verdict
    since_ns: int


class IssueFound(NamedTuple):
    """News: a transaction has an issue that it did not have."""

    trace_id: int
    who: Who
    found: Found


class Stalled(NamedTuple):
    """News: an open attempt has been silent too long (`recovered`: it is heard of again)."""

    trace_id: int
    attempt: Fact
    text: str
    recovered: bool = False


News = StatusChange | IssueFound | Stalled


class State:
    """All transactions, tallies, sockets and users of one process or one service.

    Args:
        limits: how much is kept.
        patience: how long silence is normal.
        pipelines: declared pipelines by name; spans of others are welcome and declare no stages.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        patience: Patience | None = None,
        pipelines: Mapping[str, Pipeline] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.patience = patience or Patience()
        self.pipelines: dict[str, Pipeline] = {
            p.name: p for p in (AUDIO_PIPELINE, MEMORY_SESSION, NO_PIPELINE)
        }
        self.pipelines.update(pipelines or {})
        self.transactions: OrderedDict[int, Tracked] = OrderedDict()
        """By trace id, in order of arrival."""
        self.by_status: dict[TransactionStatus, OrderedDict[int, None]] = {
            status: OrderedDict() for status in TransactionStatus
        }
        self.waiting: OrderedDict[int, None] = OrderedDict()
        """Queued or handed over, longest first."""
        self.let_go: Counter[TransactionStatus] = Counter()
        """Transactions no longer kept, by the status they are counted with."""
        self.issues = IssueLog(self.limits.issues)
        self.stages: dict[str, StageTally] = {}
        self.audio_chunks = 0
        self.transcriptions = 0
        self.memories = 0
        self.last_activity_ns = 0
        self.last_success_ns = 0
        self.dropped: Counter[Dropped] = Counter()
        self.sockets: OrderedDict[str, int] = OrderedDict()
        """Open connections by client."""
        self.open_websockets = 0
        self.users: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Last activity (wall, monotonic) by user, the newest last."""
        self.workers = Workers()
        """Other processes that feed this one, by their beats."""
        self.news: deque[News] = deque()
        self._finished: OrderedDict[int, None] = OrderedDict()
        self._let_go_ids: OrderedDict[int, None] = OrderedDict()
        self._only_audio: OrderedDict[int, None] = OrderedDict()
        self._size = 0
        """Bytes of all facts, about."""
        self._by_client: dict[str, OrderedDict[int, None]] = {}
        self._by_recording: dict[str, OrderedDict[int, None]] = {}
        self._dirty: OrderedDict[int, None] = OrderedDict()
        self._due: list[tuple[int, int]] = []

    # --- facts in -------------------------------------------------------------------------------

    def apply(self, fact: Fact) -> None:
        """Merges one fact. Duplicates change nothing; order does not matter."""
        tx = self.transactions.get(fact.trace_id)
        if tx is None:
            if fact.trace_id in self._let_go_ids:
                self.dropped[Dropped.LATE_FACTS] += 1
                return
            tx = self.transactions[fact.trace_id] = Tracked(fact.trace_id)
            self.by_status[TransactionStatus.IN_PROGRESS][fact.trace_id] = None
        old = tx.facts.get(fact.span_id)
        if old is None:
            if fact.span_id in tx.forgotten:
                return  # counted when it was let go
            if len(tx.facts) >= self.limits.facts_of_one:
                let_go = self._make_room(tx, fact)
                tx.dropped_facts += let_go or 1
                self.dropped[Dropped.FACTS_OF_ONE] += let_go or 1
                if not let_go:
                    return
            merged = fact
        else:
            merged = merge(old, fact)
            if merged is old:
                return
        tx.facts[fact.span_id] = merged
        if fact.kind is Kind.STAGE:
            if not tx.attempted:
                tx.attempted = True
                self._only_audio.pop(fact.trace_id, None)
        elif fact.kind is Kind.AUDIO and not tx.attempted:
            self._only_audio[fact.trace_id] = None
        self._dirty[fact.trace_id] = None
        self._tally(old, merged)
        self.last_activity_ns = max(self.last_activity_ns, merged.at_ns)
        if merged.who is not tx.who:
            self._index(tx, merged.who)
        if merged.who.user_id:
            self._user_seen(merged.who.user_id, merged.at_ns, merged.seen_ns)

    def apply_socket(self, fact: SocketFact) -> None:
        """Counts one websocket; a close without its open changes nothing."""
        client_id = fact.client_id
        if fact.opened:
            self.sockets[client_id] = self.sockets.get(client_id, 0) + 1
            self.open_websockets += 1
            if fact.user_id:
                self._user_seen(fact.user_id, fact.at_ns, fact.seen_ns)
            if len(self.sockets) > self.limits.sockets:
                _, count = self.sockets.popitem(last=False)
                self.open_websockets -= count
                self.dropped[Dropped.SOCKETS] += 1
        elif client_id in self.sockets:
            self.open_websockets -= 1
            self.sockets[client_id] -= 1
            if self.sockets[client_id] == 0:
                del self.sockets[client_id]
        self.last_activity_ns = max(self.last_activity_ns, fact.at_ns)
        for trace_id in self._newest(self._by_client.get(client_id)):
            self._dirty[trace_id] = None

    def apply_beat(self, beat: Beat) -> list[tuple[int, int]]:
        """Takes a sign of life of another process: of itself, of what is open in it, its sockets.

        Returns:
            Trace and span ids of what is open there and not known here.
        """
        beat = self._with_room_for_sockets(beat)
        was_lost = beat.worker in self.workers.lost
        before = self.workers.take(beat)
        if before is beat:
            return []
        self._compare_sockets(beat, {} if before is None else before.sockets)
        unknown = []
        for (trace_id, span_id), at_ns in beat.progress.items():
            tx = self.transactions.get(trace_id)
            fact = None if tx is None else tx.facts.get(span_id)
            if fact is None:
                if trace_id not in self._let_go_ids:
                    unknown.append((trace_id, span_id))
            elif not fact.ended and at_ns > fact.at_ns:
                seen_ns = beat.seen_ns - max(0, beat.at_ns - at_ns)
                self.apply(fact.seen(at_ns, seen_ns, fact.metadata, fact.audio))
        if was_lost:
            self._wake_work_of({beat.worker})
        return unknown

    def _with_room_for_sockets(self, beat: Beat) -> Beat:
        """With as many clients as may be known of all processes together."""
        others = sum(len(w.beat.sockets) for w in self.workers if w.beat.worker != beat.worker)
        room = max(0, self.limits.sockets - others)
        if len(beat.sockets) <= room:
            return beat
        self.dropped[Dropped.SOCKETS] += len(beat.sockets) - room
        return replace(beat, sockets=dict(islice(beat.sockets.items(), room)))

    def _compare_sockets(self, beat: Beat, before: Mapping[str, int]) -> None:
        now: Mapping[str, int] = {} if beat.is_last else beat.sockets
        for client_id in {*before, *now}:
            change = now.get(client_id, 0) - before.get(client_id, 0)
            for _ in range(abs(change)):
                self.apply_socket(SocketFact(client_id, "", change > 0, beat.at_ns, beat.seen_ns))

    def _lose_workers(self, now_ns: int) -> None:
        fallen = self.workers.advance(now_ns)
        if not fallen:
            return
        self._wake_work_of({worker.beat.worker for worker in fallen})
        for worker in fallen:
            beat = worker.beat
            for client_id, count in beat.sockets.items():
                for _ in range(count):
                    self.apply_socket(SocketFact(client_id, "", False, beat.at_ns, beat.seen_ns))
            worker.beat = replace(beat, sockets={})  # if it comes back it tells them anew

    def _wake_work_of(self, workers: set[str]) -> None:
        """Judges anew what is open in these processes."""
        for status in (TransactionStatus.IN_PROGRESS, TransactionStatus.STALLED):
            for trace_id in self.by_status[status]:
                facts = self.transactions[trace_id].facts.values()
                if any(not f.ended and worker_of(f.where) in workers for f in facts):
                    self._dirty[trace_id] = None

    def knows(self, trace_id: int) -> bool:
        """Whether this transaction was counted, be it kept or let go."""
        return trace_id in self.transactions or trace_id in self._let_go_ids

    def open_sockets(self, client_id: str) -> int:
        """How many connections of this client are open."""
        return self.sockets.get(client_id, 0)

    def add_pipeline(self, pipeline: Pipeline) -> None:
        """Declares a pipeline: its transactions are judged by its stages and limits."""
        self.pipelines[pipeline.name] = pipeline

    def set_patience(self, patience: Patience) -> None:
        """Changes the limits; what is open is judged anew."""
        self.patience = patience
        self._dirty.update(dict.fromkeys(self.transactions))

    @property
    def unjudged(self) -> int:
        """How many transactions changed since they were judged."""
        return len(self._dirty)

    # --- judging --------------------------------------------------------------------------------

    def advance(self, now_ns: int, wall_ns: int, *, more_to_come: bool = False) -> None:
        """Judges what changed and what came due by now.

        Args:
            now_ns: monotonic.
            wall_ns: dates new issues.
            more_to_come: facts are queued. Some may be of what is finished, since a note is read
                where it stood first; so that goes a little later.
        """
        self._lose_workers(now_ns)
        while self._due and self._due[0][0] <= now_ns:
            _, trace_id = heapq.heappop(self._due)
            self._dirty[trace_id] = None
        while self._dirty:
            trace_id, _ = self._dirty.popitem(last=False)
            tx = self.transactions.get(trace_id)
            if tx is not None:
                self._judge(tx, now_ns, wall_ns)
        limits = self.limits
        if (
            not more_to_come
            or len(self._finished) > 2 * limits.finished
            or self._size > limits.bytes
        ):
            self._let_go_finished()
        self._let_go_open()

    def pipeline_of(self, tx: Tracked) -> Pipeline:
        """The pipeline that this transaction runs, as far as it was declared here.

        Where no span names one, stages of the audio pipeline alone are of that.
        """
        if tx.who.pipeline:
            return self.pipelines.get(tx.who.pipeline, NO_PIPELINE)
        of_audio = all(a.stage in AUDIO_PIPELINE.stages for a in tx.history.attempts)
        return AUDIO_PIPELINE if of_audio else NO_PIPELINE

    def _judge(self, tx: Tracked, now_ns: int, wall_ns: int) -> None:
        old = tx.verdict
        h = tx.history = history(tx.facts.values())
        tx.who = h.who
        tx.created_ns = h.start_ns
        size = sum([_FACT + len(f.error) + len(f.where) + len(f.key) for f in tx.facts.values()])
        self._size += size - tx.size
        tx.size = size
        if not tx.attempted and not tx.carried_on:
            tx.carried_on = self._is_carried_on(tx)
        verdict = tx.verdict = judge(
            h,
            self.pipeline_of(tx),
            self.patience,
            now_ns,
            tx.transaction_id,
            socket_open=bool(h.who.client_id) and self.open_sockets(h.who.client_id) > 0,
            carried_on=tx.carried_on,
            workers=self.workers,
        )
        if tx.attempted and not tx.woke_peers:
            tx.woke_peers = True
            self._wake_audio_peers(tx)
        if verdict.next_ns is not None:
            heapq.heappush(self._due, (verdict.next_ns, tx.trace_id))
            if len(self._due) > 4 * len(self.transactions) + 1000:
                self._rebuild_due()
        if verdict.status is not old.status:
            del self.by_status[old.status][tx.trace_id]
            self.by_status[verdict.status][tx.trace_id] = None
            if verdict.status is TransactionStatus.COMPLETED:
                self.last_success_ns = max(self.last_success_ns, h.at_ns)
            since_ns = max(0, now_ns - verdict.since_ns)
            self._tell(StatusChange(tx.trace_id, tx.who, old.status, verdict, since_ns))
        if verdict.status in _FINISHED:
            self._finished.setdefault(tx.trace_id, None)
        else:
            self._finished.pop(tx.trace_id, None)
        if verdict.waiting or verdict.elsewhere:
            self.waiting.setdefault(tx.trace_id, None)
        else:
            self.waiting.pop(tx.trace_id, None)
        self._note_issues(tx, wall_ns)
        self._note_stalls(tx)

    def _note_issues(self, tx: Tracked, wall_ns: int) -> None:
        current = tx.verdict.found
        found = issues.past_failures(tx.history, self.pipeline_of(tx).stages)
        if current is not None:
            if current.at_ns == 0:
                known = tx.found.get(issues.pattern_of(current.text))
                if known is None or known.resolved:
                    tx.noticed[current.text] = current._replace(at_ns=wall_ns)
                current = tx.noticed.setdefault(current.text, current._replace(at_ns=wall_ns))
            found.append(current)
        for text, noticed in tx.noticed.items():
            if current is None or text != current.text:
                found.append(noticed._replace(resolved=True))
        by_pattern = issues.newest_by_pattern(found)
        for pattern, was in tx.found.items():
            # Facts that came late may show that an issue never was one.
            by_pattern.setdefault(pattern, was._replace(resolved=True))
        if len(by_pattern) > _PATTERNS_OF_ONE:
            by_pattern = _weightiest(by_pattern)
        if by_pattern == tx.found:
            return
        for pattern, issue in by_pattern.items():
            known = tx.found.get(pattern)
            if known is None:
                self.issues.add(tx.trace_id, tx.who.user_id, pattern, issue)
                self._tell(IssueFound(tx.trace_id, tx.who, issue))
            elif known != issue:
                self.issues.change(tx.trace_id, tx.who.user_id, pattern, known, issue)
                if known.resolved and not issue.resolved:
                    self._tell(IssueFound(tx.trace_id, tx.who, issue))
        tx.found = by_pattern

    def _note_stalls(self, tx: Tracked) -> None:
        stalled = {a.span_id: a for a in tx.verdict.stalled}
        if stalled.keys() == tx.told.keys():
            return
        for span_id in stalled.keys() - tx.told.keys():
            text = tx.verdict.found.text if tx.verdict.found is not None else ""
            self._tell(Stalled(tx.trace_id, stalled[span_id], text))
        for span_id in tx.told.keys() - stalled.keys():
            now = tx.facts.get(span_id, tx.told[span_id])
            is_given_up = now.outcome in (Outcome.ABANDONED, Outcome.INTERRUPTED)
            if now.seen_ns > tx.told[span_id].seen_ns and not is_given_up:
                self._tell(Stalled(tx.trace_id, now, "", recovered=True))
        tx.told = stalled

    def _tell(self, news: News) -> None:
        if len(self.news) >= _NEWS:
            self.news.popleft()
            self.dropped[Dropped.NEWS] += 1
        self.news.append(news)

    def _rebuild_due(self) -> None:
        self._due = [
            (tx.verdict.next_ns, trace_id)
            for trace_id, tx in self.transactions.items()
            if tx.verdict.next_ns is not None
        ]
        heapq.heapify(self._due)

    # --- recordings: transactions of one conversation ---------------------------------------------

    def _index(self, tx: Tracked, who: Who) -> None:
        known, tx.who = tx.who, tx.who.or_else(who)
        if known == tx.who and {who.client_id, who.conversation_id, who.audio_uuid} <= tx.indexed:
            return
        for index, key in self._places(who):
            if key:
                index.setdefault(key, OrderedDict())[tx.trace_id] = None
                tx.indexed.add(key)

    def _places(self, who: Who) -> list[tuple[dict[str, OrderedDict[int, None]], str]]:
        return [
            (self._by_client, who.client_id),
            (self._by_recording, who.conversation_id),
            (self._by_recording, who.audio_uuid),
        ]

    def peers(self, tx: Tracked) -> Iterator[Tracked]:
        """Kept transactions of the same recording, or without ids of the same client."""
        for recording in (tx.who.conversation_id, tx.who.audio_uuid):
            for trace_id in self._newest(self._by_recording.get(recording)):
                if trace_id != tx.trace_id:
                    yield self.transactions[trace_id]
        for trace_id in self._newest(self._by_client.get(tx.who.client_id)):
            peer = self.transactions[trace_id]
            if peer is not tx and not (tx.who.conversation_id and peer.who.conversation_id):
                yield peer

    @staticmethod
    def _newest(ids: OrderedDict[int, None] | None) -> list[int]:
        return list(islice(reversed(ids), _PEERS)) if ids else []

    def _is_carried_on(self, tx: Tracked) -> bool:
        audio = tx.history.audio
        if audio is None:
            return False
        recordings = {tx.who.conversation_id, tx.who.audio_uuid} - {""}
        for peer in self.peers(tx):
            if not peer.attempted:
                continue
            if recordings & {peer.who.conversation_id, peer.who.audio_uuid}:
                return True
            if tx.created_ns <= _start_ns(peer) <= audio.at_ns + CARRY_ON_NS:
                return True
        return False

    def _wake_audio_peers(self, tx: Tracked) -> None:
        """A transaction with work may be what an audio-only one of its recording waits for."""
        if not self._only_audio:
            return
        for peer in self.peers(tx):
            if not peer.attempted and not peer.carried_on and self._is_carried_on(peer):
                peer.carried_on = True
                self._dirty[peer.trace_id] = None

    # --- tallies --------------------------------------------------------------------------------

    def _tally(self, old: Fact | None, new: Fact) -> None:
        if new.kind is Kind.AUDIO:
            self.audio_chunks += new.audio.chunks - (old.audio.chunks if old is not None else 0)
        elif new.kind is not Kind.STAGE:
            return
        if old is not None:
            self._count(self._stage(old.stage), old, -1)
        tally = self._stage(new.stage)
        self._count(tally, new, 1)
        if new.ended and new.outcome == Outcome.SUCCESS and (old is None or not old.ended):
            tally.durations_s.append(new.duration_s)

    def _count(self, tally: StageTally, fact: Fact, sign: int) -> None:
        if not fact.ended:
            tally.running += sign
        elif fact.outcome == Outcome.SUCCESS:
            if not fact.closed:
                tally.inferred += sign
                return
            tally.done += sign
            tally.last_success_ns = max(tally.last_success_ns, fact.at_ns)
            if fact.stage == TRANSCRIPTION:
                self.transcriptions += sign
            elif fact.stage == MEMORY:
                self.memories += sign
        elif fact.outcome == Outcome.SKIPPED:
            tally.skipped += sign
        else:
            tally.failed += sign

    def _stage(self, stage: str) -> StageTally:
        tally = self.stages.get(stage)
        if tally is None:
            declared = any(stage in p.stages for p in self.pipelines.values())
            if len(self.stages) >= self.limits.stages and not declared:
                self.dropped[Dropped.STAGES] += 1
                stage = "(others)"
            tally = self.stages.setdefault(stage, StageTally())
        return tally

    def _user_seen(self, user_id: str, at_ns: int, seen_ns: int) -> None:
        known = self.users.get(user_id)
        if known is not None and known[1] > seen_ns:
            return
        self.users[user_id] = (at_ns, seen_ns)
        self.users.move_to_end(user_id)
        if len(self.users) > self.limits.users:
            self.users.popitem(last=False)
            self.dropped[Dropped.USERS] += 1

    # --- letting go -----------------------------------------------------------------------------

    def _let_go_finished(self) -> None:
        limits = self.limits
        while self._finished and (
            len(self._finished) > limits.finished or self._size > limits.bytes
        ):
            trace_id, _ = self._finished.popitem(last=False)
            self.dropped[Dropped.FINISHED] += 1
            tx = self.transactions[trace_id]
            self._let_go(tx, tx.verdict.status)

    def _let_go_open(self) -> None:
        limits = self.limits
        while (
            len(self.transactions) - len(self._finished) > limits.open or self._size > limits.bytes
        ):
            candidates = (
                self.transactions[next(iter(ids))]
                for status, ids in self.by_status.items()
                if ids and status not in _FINISHED
            )
            tx = min(candidates, key=lambda t: (t.created_ns, t.trace_id))
            self.dropped[Dropped.OPEN] += 1
            self._let_go(tx, self.status_forever(tx))

    def status_forever(self, tx: Tracked) -> TransactionStatus:
        """Its status if nothing more is ever heard: what looks done is done, the rest stalled.

        What was handed over is done as far as this process goes.
        """
        if tx.verdict.elsewhere:
            return TransactionStatus.COMPLETED
        pipeline = self.pipeline_of(tx)
        status = judge(tx.history, pipeline, self.patience, FOREVER_NS, tx.transaction_id).status
        return status if status in _FINISHED else TransactionStatus.STALLED

    def _let_go(self, tx: Tracked, status: TransactionStatus) -> None:
        del self.transactions[tx.trace_id]
        del self.by_status[tx.verdict.status][tx.trace_id]
        self._size -= tx.size
        self.let_go[status] += 1
        self.waiting.pop(tx.trace_id, None)
        self._only_audio.pop(tx.trace_id, None)
        self._dirty.pop(tx.trace_id, None)
        for index in (self._by_client, self._by_recording):
            for key in tx.indexed:
                ids = index.get(key)
                if ids is not None:
                    ids.pop(tx.trace_id, None)
                    if not ids:
                        del index[key]
        for fact in tx.facts.values():
            if fact.kind in _ATTEMPTS and not fact.ended:
                self._stage(fact.stage).running -= 1
        self._let_go_ids[tx.trace_id] = None
        if len(self._let_go_ids) > self.limits.let_go_ids:
            self._let_go_ids.popitem(last=False)

    def _make_room(self, tx: Tracked, new: Fact) -> int:
        """Lets go of facts for `new`: some that decide nothing, or else the oldest that ended well.

        Several at once, since finding them takes a look at all. Returns how many: 0 where `new`
        itself decides nothing, so that it is the one to refuse.
        """
        most = max(1, self.limits.facts_of_one // 8)
        h = history([*tx.facts.values(), new])
        decide = {a.span_id for a in h.last}
        idle = [
            fact
            for fact in tx.facts.values()
            if fact.kind in _DECIDE_NOTHING
            or (fact.kind is Kind.STAGE and fact.ended and fact.span_id not in decide)
            or (fact.kind is Kind.QUEUED and fact.ended)
        ]
        # An attempt that coped with a failure within it stays as long as that does.
        coping = {outer.span_id for outer in h.nested_in.values()}
        idle = [fact for fact in idle if fact.span_id not in coping]
        if not idle:
            if new.kind in _DECIDE_NOTHING:
                return 0
            kept = [f for f in tx.facts.values() if f.kind is not Kind.TRANSACTION]
            idle = [
                f for f in kept
                if f.ended and f.outcome in _WELL and f.span_id not in coping
            ]  # fmt: skip
            idle.sort(key=lambda f: (f.start_ns, f.span_id))
            if not idle:
                idle = sorted(kept, key=lambda f: (f.start_ns, f.span_id))
        del idle[most:]
        for fact in idle:
            self._forget(tx, fact)
        return len(idle)

    def _forget(self, tx: Tracked, fact: Fact) -> None:
        del tx.facts[fact.span_id]
        if fact.ended:
            tx.forgotten[fact.span_id] = None
        if len(tx.forgotten) > _FORGOTTEN * self.limits.facts_of_one:
            tx.forgotten.popitem(last=False)
        if fact.kind in _ATTEMPTS and not fact.ended:
            self._stage(fact.stage).running -= 1


def _weightiest(found: dict[str, Found]) -> dict[str, Found]:
    """What stands unresolved, then the newest, as many as are kept of one transaction."""
    ordered = sorted(found.items(), key=lambda item: (item[1].resolved, -item[1].at_ns, item[0]))
    return dict(ordered[:_PATTERNS_OF_ONE])


def _start_ns(tx: Tracked) -> int:
    return tx.created_ns or min(f.start_ns for f in tx.facts.values())
