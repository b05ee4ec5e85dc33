"""What is known of the transaction around the spans, and what the project's fold says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .. import semconv
from ..model import AUDIO_PIPELINE, MEMORY_SESSION, NO_PIPELINE
from ..stalls import Patience
from ..state import Limits, State
from .spans import ERROR, SPANS_AT_MOST
from .tree import Tree

_PIPELINES: Final = (AUDIO_PIPELINE, MEMORY_SESSION, NO_PIPELINE)
"""Whose stages are known here; those of others' own are in their programs."""


@dataclass(frozen=True, slots=True)
class Event:
    """A reported event, where the events themselves are known (a dump, or the process itself)."""

    at_ns: int
    """Wall clock; 0 where it is not told."""
    name: str
    success: bool
    error: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class About:
    """The transaction around the spans. Empty where unknown."""

    pipeline: str = ""
    user_id: str = ""
    client_id: str = ""
    conversation_id: str = ""
    audio_uuid: str = ""
    status: str = ""
    issue: str = ""
    as_of_ns: int = 0
    """Wall clock at which the status was told; 0 where it follows from the spans."""
    events: tuple[Event, ...] = ()


def judge(trace_id: str, tree: Tree, now_ns: int, patience: Patience) -> About:
    """What the spans prove, by the rules of the dashboard.

    Args:
        trace_id: 32 hex digits.
        tree: its spans.
        now_ns: wall clock.
        patience: how long silence is normal.
    """
    number = int(trace_id, 16)
    limits = Limits(facts_of_one=SPANS_AT_MOST)
    state = State(limits, patience, {p.name: p for p in _PIPELINES})
    for span in tree.spans.values():
        fact = semconv.read_fact(
            span.attributes,
            trace_id=number,
            span_id=int(span.span_id, 16),
            parent_id=int(span.parent_id or "0", 16),
            start_ns=span.start_ns,
            end_ns=span.end_ns or None,
            seen_ns=span.last_ns,  # one clock for all: the spans' own
            error=span.error,
            failed=bool(span.error_type or span.error or span.outcome == ERROR),
        )
        if fact is not None:
            state.apply(fact)
    now_ns = max(now_ns, tree.end_ns)
    state.advance(now_ns, now_ns)
    tracked = state.transactions.get(number)
    if tracked is None:
        return About(status=ERROR if any(root.outcome == ERROR for root in tree.roots) else "")
    who, verdict = tracked.who, tracked.verdict
    return About(
        pipeline=who.pipeline,
        user_id=who.user_id,
        client_id=who.client_id,
        conversation_id=who.conversation_id,
        audio_uuid=who.audio_uuid,
        status=verdict.status.value,
        issue=verdict.found.text if verdict.found is not None else "",
    )
