"""Facts written by hand for tests of the fold: times in seconds since a fixed moment."""

from __future__ import annotations

from typing import Any, Final

from otel_tracker.ids import root_span_id
from otel_tracker.model import AUDIO, NS_PER_S, AudioCount, Fact, Kind, Outcome, Who

WALL_NS: Final = 1_767_225_600 * NS_PER_S
"""Wall clock at second 0: 2026-01-01T00:00:00Z."""
MONOTONIC_NS: Final = 1_000 * NS_PER_S
"""Monotonic clock at second 0."""
TRACE_ID: Final = 0x0123456789AB8DEF_0000000000000001
USER: Final = Who("user1", "client1", "", "", "audio_pipeline")


def wall(seconds: float) -> int:
    """That many seconds after the start, on the wall clock."""
    return WALL_NS + round(seconds * NS_PER_S)


def monotonic(seconds: float) -> int:
    """That many seconds after the start, on the monotonic clock."""
    return MONOTONIC_NS + round(seconds * NS_PER_S)


def make(
    kind: Kind,
    span_id: int,
    start: float,
    end: float | None = None,
    *,
    seen: float | None = None,
    trace_id: int = TRACE_ID,
    who: Who = USER,
    **rest: Any,
) -> Fact:
    """A fact of `kind`: open without `end`, last heard of at `seen` (the start by default)."""
    newest = end if end is not None else start if seen is None else seen
    return Fact(
        trace_id,
        span_id,
        kind,
        wall(start),
        wall(newest),
        monotonic(newest),
        end is not None,
        who,
        parent_id=rest.pop("parent_id", root_span_id(trace_id)),
        **rest,
    )


def root(start: float = 0, end: float | None = None, outcome: str = "", **rest: Any) -> Fact:
    """The root of a transaction."""
    trace_id = rest.get("trace_id", TRACE_ID)
    rest.setdefault("closed", end is not None and outcome != "")
    return make(
        Kind.TRANSACTION, root_span_id(trace_id), start, end, outcome=outcome, parent_id=0, **rest
    )


def attempt(
    stage: str,
    span_id: int,
    start: float,
    end: float | None = None,
    outcome: str = Outcome.SUCCESS,
    **rest: Any,
) -> Fact:
    """An attempt at a stage, whose start and end the caller reported."""
    rest.setdefault("opened", True)
    rest.setdefault("closed", end is not None)
    rest.setdefault("reported_failure", end is not None and outcome == Outcome.FAILURE)
    return make(
        Kind.STAGE,
        span_id,
        start,
        end,
        stage=stage,
        outcome=outcome if end is not None else "",
        **rest,
    )


def audio(
    span_id: int, start: float, end: float | None = None, *, chunks: int = 1, **rest: Any
) -> Fact:
    """The audio span with `chunks` packets of 100 bytes."""
    return make(
        Kind.AUDIO,
        span_id,
        start,
        end,
        stage=AUDIO,
        outcome=Outcome.SUCCESS if end is not None else "",
        opened=True,
        closed=end is not None,
        audio=AudioCount(chunks, 100 * chunks, 100 if chunks else 0),
        **rest,
    )


def ended(span_id: int, at: float, outcome: str = Outcome.SUCCESS, **rest: Any) -> Fact:
    """The end, told beside the root."""
    rest.setdefault("closed", True)
    return make(Kind.ENDED, span_id, at, at, outcome=outcome, **rest)
