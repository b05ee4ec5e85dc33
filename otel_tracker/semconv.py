"""Span names and attribute keys, and how a span with them reads as a fact.

Names follow OpenTelemetry's semantic conventions where they have one (``user.id``, ``user.hash``,
``error.type``); everything else is prefixed ``otel_tracker.``. Any span that carries these
attributes feeds the fold, whoever made it: `read_fact` is the one reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from .model import (
    AUDIO,
    EMPTY,
    LATEST_NS,
    NO_AUDIO,
    AudioCount,
    Fact,
    Kind,
    Outcome,
    Who,
)
from .privacy import MAX_KEPT_TEXT

SCOPE: Final = "otel_tracker"
"""The instrumentation scope's name."""

KIND: Final = "otel_tracker.kind"
PIPELINE: Final = "otel_tracker.pipeline"
TRANSACTION_ID: Final = "otel_tracker.transaction.id"
CLIENT_ID: Final = "otel_tracker.client.id"
CONVERSATION_ID: Final = "otel_tracker.conversation.id"
AUDIO_UUID: Final = "otel_tracker.audio.uuid"
WEBSOCKET: Final = "otel_tracker.websocket"
"""True on a root that was created while a websocket of its client was open."""
OUTCOME: Final = "otel_tracker.outcome"
STAGE: Final = "otel_tracker.stage"
STAGE_WITHIN: Final = "otel_tracker.stage.within"
"""The span id (hex) of the attempt around this one, where other spans lie between the two."""
STAGE_KEY: Final = "otel_tracker.stage.key"
STAGE_ATTEMPT: Final = "otel_tracker.stage.attempt"
STAGE_OUTCOME: Final = "otel_tracker.stage.outcome"
STAGE_INFERRED: Final = "otel_tracker.stage.inferred"
STAGE_MARK: Final = "otel_tracker.stage.mark"
"""``start`` or ``end``: the only one of an attempt's two events that was reported."""
END_SUCCESS: Final = "otel_tracker.end.success"
"""What the caller reported with the end; absent where the verdict was inferred."""
WHERE: Final = "otel_tracker.where"
"""Host, process id, thread and task that do the work: ``web-1/4711/MainThread``."""
SKIP_REASON: Final = "otel_tracker.stage.skip_reason"
AUDIO_CHUNKS: Final = "otel_tracker.audio.chunks"
AUDIO_BYTES: Final = "otel_tracker.audio.bytes"
AUDIO_LAST_SIZE: Final = "otel_tracker.audio.last_chunk_size"
USER_ID: Final = "user.id"
USER_HASH: Final = "user.hash"
ERROR_TYPE: Final = "error.type"
HTTP_ROUTE: Final = "http.route"

OTHER_ERROR: Final = "_OTHER"
"""The conventions' value of ``error.type`` where no class is known."""

STACK_EVENT: Final = "stack"
STACK: Final = "code.stacktrace"

STALLED: Final = "stalled"

_KINDS: Final[Mapping[str, Kind]] = {kind.value: kind for kind in Kind}


def name_of_wait(stage: str) -> str:
    """The span of a wait in a queue."""
    return f"{stage} queued"


def name_of_skip(stage: str) -> str:
    """The span of an attempt that found nothing to do."""
    return f"{stage} skipped"


def name_of_stall(stage: str) -> str:
    """The span that tells a stall while the stage is open."""
    return f"{stage} stalled"


def name_of_recovery(stage: str) -> str:
    """The mark of progress after a told stall."""
    return f"{stage} recovered"


def name_of_end(outcome: str) -> str:
    """The mark of an end that was told where the root was not open."""
    return f"ended {outcome}"


def is_ours(attributes: Mapping[str, Any] | None) -> bool:
    """Whether a span carries the project's attributes."""
    return attributes is not None and (
        KIND in attributes
        or STAGE in attributes
        or TRANSACTION_ID in attributes
        or PIPELINE in attributes
    )


def read_fact(
    attributes: Mapping[str, Any],
    *,
    trace_id: int,
    span_id: int,
    parent_id: int,
    start_ns: int,
    end_ns: int | None,
    seen_ns: int,
    error: str = "",
    failed: bool = False,
) -> Fact | None:
    """The fact that a span tells; None where it has none of our attributes, or impossible times.

    Args:
        attributes: the span's, as OTLP or the SDK gives them; values of wrong types are ignored.
        trace_id: 128 bits.
        span_id: 64 bits.
        parent_id: 64 bits, 0 for a root.
        start_ns: wall clock.
        end_ns: wall clock; None while the span is open.
        seen_ns: the newest of its moments on this process's monotonic clock.
        error: the description of its status.
        failed: whether its status is ERROR; decides where the span tells no outcome.
    """
    if not is_ours(attributes) or not (_is_time(start_ns) and _is_time(end_ns or start_ns)):
        return None
    kind = _kind(attributes, parent_id)
    stage = _text(attributes, STAGE) or (AUDIO if kind is Kind.AUDIO else "")
    is_end = kind in (Kind.TRANSACTION, Kind.ENDED)
    if not (is_end or stage or kind is Kind.DETAIL):
        return None
    ended = end_ns is not None
    outcome = _text(attributes, OUTCOME if is_end else STAGE_OUTCOME)
    if outcome not in Outcome.ALL:
        outcome = ""
    if ended and not outcome and not is_end:
        outcome = Outcome.FAILURE if failed else Outcome.SUCCESS
    return Fact(
        trace_id=trace_id,
        span_id=span_id,
        kind=kind,
        start_ns=start_ns,
        at_ns=start_ns if end_ns is None else max(start_ns, end_ns),
        seen_ns=seen_ns,
        ended=ended,
        who=_who(attributes),
        stage=stage,
        key=_text(attributes, STAGE_KEY),
        outcome=outcome if ended else "",
        error=error[:MAX_KEPT_TEXT] if ended else "",
        error_type=_text(attributes, ERROR_TYPE) if ended else "",
        opened=kind is Kind.AUDIO or (kind is Kind.STAGE and attributes.get(STAGE_MARK) != "end"),
        closed=ended and _is_reported(kind, outcome, attributes),
        reported_failure=ended and _is_reported_failure(kind, outcome, attributes),
        parent_id=_within(attributes) or parent_id,
        audio=_audio(attributes) if kind is Kind.AUDIO else NO_AUDIO,
        metadata=EMPTY,
        where=_text(attributes, WHERE),
    )


def _within(attributes: Mapping[str, Any]) -> int:
    text = _text(attributes, STAGE_WITHIN)
    try:
        return int(text, 16) & (1 << 64) - 1 if text else 0
    except ValueError:
        return 0


def _is_time(wall_ns: int) -> bool:
    return type(wall_ns) is int and 0 <= wall_ns <= LATEST_NS


def _kind(attributes: Mapping[str, Any], parent_id: int) -> Kind:
    told = _KINDS.get(_text(attributes, KIND))
    if told is not None:
        return told  # another language's span need not say it
    if STAGE in attributes:
        return Kind.STAGE
    if parent_id == 0:
        return Kind.TRANSACTION
    return Kind.ENDED if OUTCOME in attributes else Kind.DETAIL


def _is_reported(kind: Kind, outcome: str, attributes: Mapping[str, Any]) -> bool:
    if kind is Kind.ENDED or kind is Kind.TRANSACTION:
        return isinstance(attributes.get(END_SUCCESS), bool)
    if attributes.get(STAGE_INFERRED) is True or attributes.get(STAGE_MARK) == "start":
        return False
    return outcome not in (Outcome.ABANDONED, Outcome.INTERRUPTED)


def _is_reported_failure(kind: Kind, outcome: str, attributes: Mapping[str, Any]) -> bool:
    if kind is Kind.ENDED or kind is Kind.TRANSACTION:
        return attributes.get(END_SUCCESS) is False
    return outcome == Outcome.FAILURE


def _who(attributes: Mapping[str, Any]) -> Who:
    return _shared(
        Who(
            _text(attributes, USER_ID) or _text(attributes, USER_HASH),
            _text(attributes, CLIENT_ID),
            _text(attributes, CONVERSATION_ID),
            _text(attributes, AUDIO_UUID),
            _text(attributes, PIPELINE),
        )
    )


@lru_cache(maxsize=1024)
def _shared(who: Who) -> Who:
    """One object for the spans of a transaction, which are compared with each other often."""
    return who


def _audio(attributes: Mapping[str, Any]) -> AudioCount:
    return AudioCount(
        _number(attributes, AUDIO_CHUNKS),
        _number(attributes, AUDIO_BYTES),
        _number(attributes, AUDIO_LAST_SIZE),
    )


def _text(attributes: Mapping[str, Any], key: str) -> str:
    value = attributes.get(key)
    return value[:256] if isinstance(value, str) else ""


def _number(attributes: Mapping[str, Any], key: str) -> int:
    value = attributes.get(key)
    return value if type(value) is int and 0 <= value < 1 << 53 else 0
