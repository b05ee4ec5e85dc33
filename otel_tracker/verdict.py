"""The state of a transaction: the table in docs/architecture.md, as one pure function.

A function of the set of facts, of the time, and of two things that lie outside the transaction:
whether its client's socket is open, and whether another transaction of the recording carried on.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from . import issues
from .history import GUEST, History
from .issues import Found
from .model import (
    AUDIO,
    MEMORY,
    NS_PER_S,
    AnyEvent,
    Fact,
    Kind,
    Outcome,
    Phase,
    Pipeline,
    PipelineStage,
    TransactionStatus,
    event_of,
)
from .stalls import OpenWork, Patience, open_work
from .workers import Workers, worker_of

FOREVER_NS: Final = 1 << 80
"""As `now_ns`: how it would stand if nothing more were ever heard."""

CARRY_ON_NS: Final = 60 * NS_PER_S
"""Without ids, a client's transaction carries audio on if begun within a minute after it."""


NO_WORKERS: Final = Workers()
"""Of a process that nobody else feeds."""


class Verdict(NamedTuple):
    """Where a transaction stands at one moment."""

    status: TransactionStatus
    current_stage: AnyEvent | None
    found: Found | None = None
    """Its issue; ``at_ns`` 0 where silence is the issue, which has no time of its own."""
    stalled: tuple[Fact, ...] = ()
    """The open attempts that have been silent too long; empty where it stalled between stages."""
    lost: tuple[Fact, ...] = ()
    """What is open in processes that fell silent: the stalled attempts among them, or the root."""
    running: tuple[Fact, ...] = ()
    waiting: tuple[Fact, ...] = ()
    """Queued and not yet taken."""
    elsewhere: bool = False
    """Handed over: others carry on, and this process may never hear of it."""
    since_ns: int = 0
    """Monotonic moment of the last news."""
    next_ns: int | None = None
    """Monotonic moment at which this verdict changes if nothing is heard until then."""


def judge(
    h: History,
    pipeline: Pipeline,
    patience: Patience,
    now_ns: int,
    transaction_id: str,
    *,
    socket_open: bool = False,
    carried_on: bool = False,
    workers: Workers = NO_WORKERS,
) -> Verdict:
    """The first row of the table that fits."""
    work = open_work(h, pipeline, patience, now_ns, workers.lost)
    current = current_stage(h)
    row = _Row(h, pipeline, patience, now_ns, transaction_id, current, work, workers)
    if work.stalled:
        return row.stalled()
    if work.running:
        only_memory = all(a.stage == MEMORY for a in work.running)
        return row.in_progress(work.next_ns, sentence=only_memory)
    if h.standing(pipeline.stages) or h.failed_end is not None:
        return row.verdict(TransactionStatus.FAILED, issues.failure_of(h, pipeline.stages))
    if h.queued:
        return row.waiting()
    if _elsewhere(h):
        return row.verdict(TransactionStatus.IN_PROGRESS, None, elsewhere=True)
    if h.end is not None and (h.end.outcome == Outcome.SUCCESS or not pipeline.stages):
        return row.verdict(TransactionStatus.COMPLETED, None)
    settles_ns: int | None = None
    if _looks_done(h, pipeline):
        settles_ns = h.news_ns + patience.settle_ns
        if now_ns >= settles_ns:
            return row.verdict(TransactionStatus.COMPLETED, None)
    if carried_on and h.audio is not None and not h.attempts and not socket_open:
        settles_ns = h.audio_seen_ns + patience.settle_ns
        if h.audio.ended or now_ns >= settles_ns:
            return row.verdict(TransactionStatus.COMPLETED, None)
    if socket_open and not h.attempts:
        return row.verdict(TransactionStatus.IN_PROGRESS, None)
    if settles_ns is not None:
        return row.in_progress(settles_ns, sentence=False)
    if h.root is not None and not h.root.ended and worker_of(h.root.where) in workers.lost:
        return row.stalled()  # nobody will tell its end
    return row.awaiting(_missing_stage(h, pipeline))


class _Row(NamedTuple):
    """Makes the verdict of a row: what all rows share stands here once."""

    h: History
    pipeline: Pipeline
    patience: Patience
    now_ns: int
    transaction_id: str
    current: AnyEvent | None
    work: OpenWork
    workers: Workers

    def verdict(
        self,
        status: TransactionStatus,
        found: Found | None,
        *,
        elsewhere: bool = False,
        next_ns: int | None = None,
        lost: tuple[Fact, ...] = (),
    ) -> Verdict:
        return Verdict(
            status,
            self.current,
            found,
            self.work.stalled,
            lost,
            self.work.running,
            tuple(self.h.queued),
            elsewhere,
            max(self.h.news_ns, self.h.audio_seen_ns),
            next_ns,
        )

    def stalled(self) -> Verdict:
        lost = self._lost()
        if lost:
            worker = self.workers.get(worker_of(lost[0].where))
            text = issues.lost_text(lost[0], "" if worker is None else worker.beat.service)
        else:
            text = issues.stall_text(self.h, self.pipeline, self.transaction_id, self.current)
        return self.verdict(
            TransactionStatus.STALLED, Found(text, 0), next_ns=self.work.next_ns, lost=lost
        )

    def _lost(self) -> tuple[Fact, ...]:
        names = self.workers.lost
        if not names:
            return ()
        candidates = self.work.stalled or ((self.h.root,) if self.h.root is not None else ())
        return tuple(f for f in candidates if not f.ended and worker_of(f.where) in names)

    def in_progress(self, next_ns: int | None, *, sentence: bool) -> Verdict:
        """IN_PROGRESS until `next_ns`; the memory sentence may come before a stall does."""
        found = None
        if sentence and issues.memory_awaited(self.h, self.pipeline):
            due_ns = self.h.news_ns + self.patience.memory_sentence_ns(self.pipeline)
            if self.now_ns >= due_ns:
                found = Found(issues.MEMORY_STALLED, 0)
            elif next_ns is None or due_ns < next_ns:
                next_ns = due_ns
        return self.verdict(TransactionStatus.IN_PROGRESS, found, next_ns=next_ns)

    def awaiting(self, missing: str | None) -> Verdict:
        """IN_PROGRESS; STALLED where a declared stage is missing and its limit is over."""
        if missing is None:
            return self.verdict(TransactionStatus.IN_PROGRESS, None)
        news_ns = max(self.h.news_ns, self.h.audio_seen_ns)
        due_ns = news_ns + self.patience.limit_ns(missing, self.pipeline)
        if self.now_ns >= due_ns:
            return self.stalled()
        return self.in_progress(due_ns, sentence=True)

    def waiting(self) -> Verdict:
        """IN_PROGRESS in a queue: beyond its limit an issue, never a stall."""
        if self.h.handed_over is not None:
            # The worker that takes it may never report here, so waiting long says nothing.
            return self.verdict(TransactionStatus.IN_PROGRESS, None, elsewhere=True)
        oldest = self.h.queued[0]
        due_ns = oldest.seen_ns + self.patience.queue_ns
        if self.now_ns >= due_ns:
            found = Found(issues.queue_text(oldest.stage), 0)
            return self.verdict(TransactionStatus.IN_PROGRESS, found)
        return self.verdict(TransactionStatus.IN_PROGRESS, None, next_ns=due_ns)


def current_stage(h: History) -> AnyEvent | None:
    """The newest reported event; late audio never moves it back."""
    newest: tuple[int, int, int] = (-1, 0, 0)
    current: AnyEvent | None = None
    for a in h.attempts:
        if a.opened and (a.start_ns, 0, a.span_id) > newest:
            newest, current = (a.start_ns, 0, a.span_id), event_of(a.stage, Phase.STARTED)
        if a.closed and (a.told_ns, 1, a.span_id) > newest:
            newest, current = (a.told_ns, 1, a.span_id), event_of(a.stage, Phase.COMPLETED)
    end = h.end
    if end is not None and end.closed and (end.told_ns, 2, end.span_id) > newest:
        current = PipelineStage.CONVERSATION_ENDED
    if current is None and (h.audio is not None):
        return PipelineStage.AUDIO_RECEIVED
    return current


def _elsewhere(h: History) -> bool:
    """Handed over, and nothing was attempted here since."""
    handed = h.handed_over
    if handed is None:
        return False
    if handed.key == GUEST and h.end is not None and h.end.at_ns >= handed.start_ns:
        return False
    return not any(a.start_ns >= handed.start_ns for a in h.attempts)


def _looks_done(h: History, pipeline: Pipeline) -> bool:
    last = h.last_attempt
    if last is None:
        return False
    if h.root is not None and h.root.opened and not h.root.ended:
        return False  # it is a block of the application's: leaving that will tell
    if last.outcome == Outcome.SKIPPED:
        return True
    if not pipeline.stages:
        # Without a root nobody will tell an end: it is a trace of others, with our attributes.
        return h.root is None
    # None of them is open or has gone wrong: those rows come before.
    return any(a.stage == pipeline.stages[-1] for a in h.last)


def _missing_stage(h: History, pipeline: Pipeline) -> str | None:
    """The first declared stage that was never attempted; audio that came counts as attempted."""
    attempted = {a.stage for a in h.attempts if a.kind is Kind.STAGE}
    if h.audio is not None:
        attempted.add(AUDIO)
    if attempted - {AUDIO}:
        attempted.add(AUDIO)  # a pipeline that never reports audio is not missing it
    return next((stage for stage in pipeline.stages if stage not in attempted), None)
