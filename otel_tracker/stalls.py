"""When silence is a stall: limits, and which open attempts have been silent too long (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .history import History
from .model import MEMORY, NS_PER_S, Fact, Pipeline
from .workers import worker_of

MEMORY_SENTENCE_NS: Final = 30 * NS_PER_S
"""After a reported transcription, 30 s without a memory result is an issue, as documented."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long silence is normal, in nanoseconds of the monotonic clock."""

    stage_ns: int = 60 * NS_PER_S
    by_stage_ns: Mapping[str, int] = field(default_factory=dict)
    """The user's explicit limits: they win over what a pipeline declares."""
    settle_ns: int = 5 * NS_PER_S
    """Quiet after which work that looks done is done, unless its end was told."""
    queue_ns: int = 300 * NS_PER_S

    def limit_ns(self, stage: str, pipeline: Pipeline) -> int:
        """How long `stage` may be silent."""
        explicit = self._explicit_ns(stage, pipeline)
        return self.stage_ns if explicit is None else explicit

    def memory_sentence_ns(self, pipeline: Pipeline) -> int:
        """Silence after a reported transcription that is worth the memory sentence."""
        explicit = self._explicit_ns(MEMORY, pipeline)
        return MEMORY_SENTENCE_NS if explicit is None else explicit

    def _explicit_ns(self, stage: str, pipeline: Pipeline) -> int | None:
        limit = self.by_stage_ns.get(stage)
        if limit is None and stage in pipeline.stall_after:
            limit = round(pipeline.stall_after[stage] * NS_PER_S)
        return limit


class OpenWork(NamedTuple):
    """The open attempts of a transaction at one moment."""

    running: tuple[Fact, ...]
    stalled: tuple[Fact, ...]
    next_ns: int | None
    """Monotonic moment at which the next of them stalls, if nothing is heard until then."""


_NO_OPEN_WORK: Final = OpenWork((), (), None)


def open_work(
    h: History,
    pipeline: Pipeline,
    patience: Patience,
    now_ns: int,
    lost: frozenset[str] = frozenset(),
) -> OpenWork:
    """Which open attempts run and which have stalled, those of `lost` processes at once.

    Of nested attempts the innermost is judged. One that another process began anew
    counts while it is within its limit and is forgotten beyond it: somebody gave it up.
    """
    if all(a.ended for a in h.attempts):
        return _NO_OPEN_WORK
    running: list[Fact] = []
    stalled: list[Fact] = []
    next_ns: int | None = None
    live_parents: set[int] = set()
    children_seen_ns: dict[int, int] = {}
    for a in h.attempts:
        children_seen_ns[a.parent_id] = max(children_seen_ns.get(a.parent_id, 0), a.seen_ns)
    for attempt in reversed(h.attempts):  # a child starts after its parent, so it comes first here
        if attempt.ended:
            continue
        silent_since_ns = max(attempt.seen_ns, children_seen_ns.get(attempt.span_id, 0))
        due_ns = silent_since_ns + patience.limit_ns(attempt.stage, pipeline)
        if attempt.span_id in live_parents:
            running.append(attempt)
        elif now_ns < due_ns and not (lost and worker_of(attempt.where) in lost):
            running.append(attempt)
            next_ns = due_ns if next_ns is None else min(next_ns, due_ns)
        elif any(a is attempt for a in h.last):
            stalled.append(attempt)
        else:
            continue
        live_parents.add(attempt.parent_id)
    running.reverse()
    stalled.reverse()
    return OpenWork(tuple(running), tuple(stalled), next_ns)
