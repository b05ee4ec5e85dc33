"""The facts of one transaction, merged and put in order: what judgements start from (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from .model import (
    AUDIO,
    MARK_NS,
    NO_AUDIO,
    NOBODY,
    NS_PER_S,
    TRANSCRIPTION,
    Fact,
    Kind,
    Outcome,
    Who,
)
from .workers import worker_of

_VERDICTS = frozenset({Outcome.SUCCESS, Outcome.FAILURE, Outcome.CANCELLED})
"""Outcomes of a root that speak of the transaction; ``interrupted`` speaks of its process."""

_NO_NEWS = frozenset({Kind.STALLED, Kind.RECOVERED, Kind.AUDIO})
"""Kinds that move nothing. A root ends at its last local activity, so its end is news."""

_SAME_MOMENT_NS: Final = NS_PER_S
"""Between the moment that the sender noted and the one that the queue has: it asked the queue's
server meanwhile."""
_CLOCKS_DIFFER_NS: Final = 60 * NS_PER_S
"""Hosts whose clocks differ by more leave a wait open that has ended."""


def merge(old: Fact, new: Fact) -> Fact:
    """The join of two facts of one span: commutative, associative and idempotent.

    An ended fact beats an open one, then the newest sign of life wins; audio counts and signs of
    life take their maximum, and a gap in `who` is filled. A tie between unequal copies (which a
    span that ends once cannot make) is broken by content, so that order never matters.
    """
    if old is new:
        return old
    if new.ended is not old.ended:
        winner, loser = (new, old) if new.ended else (old, new)
    elif old == new:
        return old
    else:
        winner, loser = (new, old) if _beats(new, old) else (old, new)
    if winner.kind is Kind.AUDIO:
        winner = _with_audio_of(winner, loser)
    if winner.seen_ns >= loser.seen_ns and (winner.who is loser.who or loser.who == winner.who):
        return winner
    return replace(
        winner,
        seen_ns=max(winner.seen_ns, loser.seen_ns),
        who=winner.who.or_else(loser.who),
    )


def _with_audio_of(winner: Fact, loser: Fact) -> Fact:
    """Cumulative counts take their maximum: nothing counts twice, and no late chunk is lost."""
    audio, at_ns = max(winner.audio, loser.audio), max(winner.at_ns, loser.at_ns)
    if audio == winner.audio and at_ns == winner.at_ns:
        return winner
    return replace(winner, audio=audio, at_ns=at_ns)


def _beats(new: Fact, old: Fact) -> bool:
    ranks = [(fact.at_ns, fact.outcome, fact.closed, fact.error) for fact in (new, old)]
    if ranks[0] != ranks[1] and new.kind is not Kind.AUDIO:
        return ranks[0] > ranks[1]
    return _content(new) > _content(old)


def _content(fact: Fact) -> str:
    """All of a fact but what is merged by a rule of its own, which must not decide the winner."""
    if fact.kind is Kind.AUDIO:
        return repr(replace(fact, seen_ns=0, who=NOBODY, audio=NO_AUDIO, at_ns=0))
    return repr(replace(fact, seen_ns=0, who=NOBODY))


GUEST: Final = "guest"
"""The key of a hand-over by a process that only continued the transaction: its end counts there."""


def replaces(later: Fact, earlier: Fact) -> bool:
    """Whether `later`, which began after `earlier`, is another go at what that one tried.

    Both are attempts at one stage with one key. Those of one process that overlap are branches of a
    fan-out, and none makes up for another. Across processes clocks differ by more than a retry
    waits, and a killed one never ends its attempt: there the later one always counts.
    """
    if earlier.ended:
        length_ns = earlier.at_ns - earlier.start_ns
        # A mark's length is only for Jaeger.
        if later.start_ns >= (earlier.start_ns if length_ns == MARK_NS else earlier.at_ns):
            return True
    return not earlier.where or process_of(earlier.where) != process_of(later.where)


def process_of(where: str) -> str:
    """Host and process of a `Fact.where`."""
    return "/".join(where.split("/", 2)[:2])


@dataclass(slots=True)
class History:
    """One transaction in order. Attempts are ordered by start; ties by span id."""

    root: Fact | None = None
    audio: Fact | None = None
    attempts: list[Fact] = field(default_factory=list)
    last: list[Fact] = field(default_factory=list)
    """The newest attempt of each stage and key, and earlier ones that it does not replace where
    they went wrong or are open: these decide."""
    nested_in: dict[int, Fact] = field(default_factory=dict)
    """The attempt within which another was made, by the span id of that other one."""
    told_stalls: list[Fact] = field(default_factory=list)
    queued: list[Fact] = field(default_factory=list)
    """Queued and not taken by an attempt since."""
    handed_over: Fact | None = None
    end: Fact | None = None
    """The newest told end, with its outcome."""
    who: Who = NOBODY
    start_ns: int = 0
    at_ns: int = 0
    """Wall clock of the newest fact."""
    news_ns: int = 0
    """Monotonic clock of the newest fact that moves something: no late audio, no stall's mark."""
    audio_seen_ns: int = 0

    @property
    def last_attempt(self) -> Fact | None:
        """The attempt that started last, of whatever stage; not one within another."""
        return next((a for a in reversed(self.attempts) if a.span_id not in self.nested_in), None)

    def reported_success(self, stage: str) -> bool:
        """Whether a caller reported a success of `stage` (an inferred one does not count)."""
        return any(
            a.stage == stage and a.closed and a.outcome == Outcome.SUCCESS for a in self.attempts
        )

    @property
    def transcribed(self) -> bool:
        """Whether a success of transcription was reported."""
        return self.reported_success(TRANSCRIPTION)

    def standing(self, stages: tuple[str, ...] = ()) -> list[Fact]:
        """Newest attempts that went wrong and that nothing has put right, oldest first.

        Args:
            stages: the declared ones in order. That a later one succeeded shows that an attempt
                which was only left open had done its work.
        """
        return [
            a
            for a in self.last
            if a.outcome in Outcome.BAD and not self._overtaken(a, stages) and not self._handled(a)
        ]

    def _handled(self, attempt: Fact) -> bool:
        """An attempt around it went well all the same: that one has coped with it."""
        outer = self.nested_in.get(attempt.span_id)
        for _ in range(len(self.attempts)):  # spans of others may be nested in a circle
            if outer is None:
                return False
            if outer.outcome in (Outcome.SUCCESS, Outcome.SKIPPED):
                return outer.at_ns >= attempt.at_ns  # else it had ended before, and knew nothing
            outer = self.nested_in.get(outer.span_id)
        return False

    def _overtaken(self, attempt: Fact, stages: tuple[str, ...]) -> bool:
        if attempt.outcome != Outcome.ABANDONED or attempt.stage not in stages:
            return False
        later = stages[stages.index(attempt.stage) + 1 :]
        return any(
            a.stage in later and a.outcome == Outcome.SUCCESS and a.start_ns >= attempt.start_ns
            for a in self.last
        )

    @property
    def failed_end(self) -> Fact | None:
        """The told end where it failed and no later attempt has put it right."""
        end = self.end
        if end is None or end.outcome == Outcome.SUCCESS:
            return None
        later_success = any(
            a.start_ns > end.at_ns and a.outcome in (Outcome.SUCCESS, Outcome.SKIPPED)
            for a in self.last
        )
        return None if later_success else end


def _order(fact: Fact) -> tuple[int, int]:
    return (fact.start_ns, fact.span_id)


def _end_order(fact: Fact) -> tuple[int, int]:
    return (fact.at_ns, fact.span_id)


def history(facts: Iterable[Fact]) -> History:
    """The history that a set of merged facts (one a span) tells, whatever their order."""
    h = History()
    queued: list[Fact] = []
    ends: list[Fact] = []
    others: list[Fact] = []
    for fact in facts:
        kind = fact.kind
        if kind is Kind.STAGE:
            h.attempts.append(fact)
        elif kind is Kind.TRANSACTION:
            h.root = fact
            if fact.ended and (fact.outcome in _VERDICTS or _is_told_interrupted(fact)):
                ends.append(fact)
        elif kind is Kind.AUDIO:
            h.audio = max(h.audio or fact, fact, key=_order)
            h.audio_seen_ns = max(h.audio_seen_ns, fact.seen_ns)
        elif kind is Kind.QUEUED:
            queued.append(fact)
        elif kind is Kind.ENDED:
            ends.append(fact)
        elif kind is Kind.HANDED_OVER:
            h.handed_over = max(h.handed_over or fact, fact, key=_order)
        elif kind is Kind.STALLED:
            h.told_stalls.append(fact)
        others.append(fact)
    h.attempts.sort(key=_order)
    _find_last(h)
    if ends:
        h.end = max(ends, key=_end_order)
    _put_audio_failure_right(h)
    if queued:
        _find_waits(h, queued, ends)
    _times(h, others)
    return h


def _find_waits(h: History, queued: list[Fact], ends: list[Fact]) -> None:
    """What was queued and not yet taken."""
    free = list(h.attempts)
    for wait in sorted(queued, key=_order):
        if h.failed_end is not None and h.failed_end.at_ns >= wait.start_ns:
            continue  # it never got into its queue, or nobody waits for it
        if is_retold(wait, queued) or any(_overtakes(end, wait) for end in ends):
            continue
        # Each attempt takes one, lest a success hide the next part that is queued soon after it;
        # but of two that were queued before it, it ends both.
        taker = next((attempt for attempt in free if _takes(attempt, wait)), None)
        if taker is not None:
            free.remove(taker)
        elif not any(a.stage == wait.stage and a.start_ns >= wait.start_ns for a in h.attempts):
            h.queued.append(wait)


def is_retold(wait: Fact, waits: Iterable[Fact]) -> bool:
    """Whether the worker that took it tells of the same wait, which its sender left open."""
    return not wait.ended and any(
        other.ended
        and other.stage == wait.stage
        and (
            abs(other.start_ns - wait.start_ns) < _SAME_MOMENT_NS
            or _was_taken_before_it_began(other, wait)
        )
        for other in waits
    )


def _was_taken_before_it_began(told: Fact, wait: Fact) -> bool:
    """By the clock of a worker that is behind: it tells such a wait as short as can be."""
    return (
        told.at_ns - told.start_ns <= MARK_NS
        and told.start_ns < wait.start_ns
        and _host(told.where) != _host(wait.where)
    )


def _takes(attempt: Fact, wait: Fact) -> bool:
    if attempt.stage != wait.stage:
        return False
    slack_ns = 0
    if not wait.ended and _host(attempt.where) != _host(wait.where):
        # A quick worker whose clock is behind the sender's. What failed may have been queued again.
        went_well = attempt.ended and attempt.outcome not in Outcome.BAD
        slack_ns = _CLOCKS_DIFFER_NS if went_well else NS_PER_S
    return attempt.start_ns >= wait.start_ns - slack_ns


def _overtakes(end: Fact, wait: Fact) -> bool:
    """Whether another process than the sender's told the end after it had queued the work."""
    return (
        end.kind is Kind.ENDED
        and not wait.ended
        and worker_of(end.where) != worker_of(wait.where)
        and end.at_ns >= wait.start_ns - _CLOCKS_DIFFER_NS
    )


def _host(where: str) -> str:
    return where.partition("/")[0]


def _is_told_interrupted(root: Fact) -> bool:
    """A block was left by Ctrl-C or `sys.exit`; where a shutdown ended the root, nobody told it."""
    return root.closed and root.outcome == Outcome.INTERRUPTED


def _find_last(h: History) -> None:
    places: dict[tuple[str, str], list[Fact]] = {}
    for attempt in h.attempts:
        place = places.get((attempt.stage, attempt.key), [])
        still = [a for a in place if _may_decide(a) and not replaces(attempt, a)]
        places[attempt.stage, attempt.key] = [*still, attempt]
    h.last = sorted((a for place in places.values() for a in place), key=_order)
    if any(a.parent_id for a in h.attempts):
        by_id = {a.span_id: a for a in h.attempts}
        for attempt in h.attempts:
            outer = by_id.get(attempt.parent_id)
            if outer is not None and outer is not attempt:
                h.nested_in[attempt.span_id] = outer


def _may_decide(attempt: Fact) -> bool:
    return not attempt.ended or attempt.outcome in Outcome.BAD


def _put_audio_failure_right(h: History) -> None:
    """Audio that came after a reported failure of audio is the attempt that put it right."""
    audio = h.audio
    if audio is not None:
        h.last = [a for a in h.last if a.stage != AUDIO or a.key or audio.seen_ns <= a.seen_ns]


def _times(h: History, facts: list[Fact]) -> None:
    if not facts:
        return
    h.start_ns = h.root.start_ns if h.root is not None else min(f.start_ns for f in facts)
    who = h.who = facts[0].who if h.root is None else h.root.who
    for fact in facts:
        h.at_ns = max(h.at_ns, fact.at_ns)
        if fact.kind not in _NO_NEWS:
            h.news_ns = max(h.news_ns, fact.seen_ns)
    if any(fact.who is not who for fact in facts):
        h.who = NOBODY if h.root is None else h.root.who
        for fact in sorted(facts, key=_order):
            h.who = h.who.or_else(fact.who)
