"""A transaction as a debug dump has it, by its attempts or by its events alone, as spans (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from .. import semconv
from ..model import (
    AUDIO,
    AUDIO_PIPELINE,
    LATEST_NS,
    MARK_NS,
    Kind,
    Outcome,
    PipelineStage,
    TransactionStatus,
    to_datetime,
)
from .about import About, Event
from .spans import Span, details_of, message_of, place_of, text_at
from .tree import Tree


def of_row(row: Mapping[str, Any], trace_id: str, as_of_ns: int) -> tuple[Tree, About]:
    """The tree of a transaction, and the rest of it.

    Args:
        row: one of a dump's ``transactions``; values of wrong types are ignored.
        trace_id: 32 hex digits.
        as_of_ns: wall clock of the dump.
    """
    events = tuple(_events_of(row.get("events")))
    about = About(
        pipeline=text_at(row, "pipeline"),
        user_id=text_at(row, "user_id"),
        client_id=text_at(row, "client_id"),
        conversation_id=text_at(row, "conversation_id"),
        status=text_at(row, "status"),
        issue=text_at(row, "issue"),
        as_of_ns=as_of_ns,
        events=events,
    )
    attempts = row.get("attempts")
    made = _spans_of_events(events, trace_id)
    if isinstance(attempts, list):  # the old tracker's dumps have none
        ends = [span for span in made if span.kind == Kind.ENDED.value]
        made = [*_spans_of_attempts(attempts, trace_id), *ends]
    over = about.status in (TransactionStatus.COMPLETED.value, TransactionStatus.FAILED.value)
    root = Span(
        trace_id=trace_id,
        span_id=trace_id[16:],
        parent_id="",
        name=about.pipeline or AUDIO_PIPELINE.name,
        service="",
        process="",
        start_ns=ns_of(row.get("created_at")),
        end_ns=ns_of(row.get("updated_at")) if over else 0,
        outcome="",
        attributes={semconv.KIND: Kind.TRANSACTION.value},
    )
    return Tree([root, *_numbered(made)]), about


def ns_of(value: object) -> int:
    """Wall clock of ISO 8601 text, or of an aware datetime; 0 for anything else."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        since = moment - to_datetime(0)
    except (ValueError, TypeError, OverflowError):
        return 0
    microseconds = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return max(0, min(microseconds * 1_000, LATEST_NS))


def _events_of(rows: object) -> Iterator[Event]:
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict):
            metadata = row.get("metadata")
            yield Event(
                at_ns=ns_of(row.get("timestamp")),
                name=text_at(row, "stage"),
                success=row.get("success") is not False,
                error=message_of(row.get("error_message")),
                metadata=details_of(metadata) if isinstance(metadata, dict) else {},
            )


def _spans_of_attempts(rows: list[Any], trace_id: str) -> Iterator[Span]:
    for number, row in enumerate(row for row in rows if isinstance(row, dict)):
        stage, kind = text_at(row, "stage"), text_at(row, "kind") or Kind.STAGE.value
        is_wait = kind == Kind.QUEUED.value
        end_ns = ns_of(row.get("ended_at"))
        attributes: dict[str, Any] = {semconv.KIND: kind, semconv.STAGE: stage}
        if row.get("key"):
            attributes[semconv.STAGE_KEY] = text_at(row, "key")
        if row.get("inferred") is True and kind == Kind.STAGE.value and end_ns:
            attributes[semconv.STAGE_INFERRED] = True
        host, process = place_of(text_at(row, "where"))
        yield Span(
            trace_id=trace_id,
            span_id=text_at(row, "span_id") or f"attempt {number}",
            parent_id=trace_id[16:],
            name=semconv.name_of_wait(stage) if is_wait else stage,
            service="",
            process=process,
            start_ns=ns_of(row.get("started_at")),
            end_ns=end_ns,
            outcome="" if is_wait else text_at(row, "outcome"),
            error=message_of(row.get("error")),
            attributes=attributes,
            host=host,
        )


def _spans_of_events(events: Iterable[Event], trace_id: str) -> list[Span]:
    """A span for each start, ended by the next completion of its stage; for others a moment."""
    made: list[Span] = []
    opened: dict[str, list[int]] = {}

    def add(name: str, kind: Kind, event: Event, end_ns: int, outcome: str) -> None:
        stage = name if kind is not Kind.ENDED else ""
        made.append(
            Span(
                trace_id=trace_id,
                span_id=f"event {len(made)}",
                parent_id=trace_id[16:],
                name=name,
                service="",
                process="",
                start_ns=event.at_ns,
                end_ns=end_ns,
                outcome=outcome,
                error=event.error,
                error_type=text_at(event.metadata, "error_type"),
                attributes={semconv.KIND: kind.value, semconv.STAGE: stage},
                details=event.metadata,
            )
        )

    for event in events:
        outcome = Outcome.SUCCESS if event.success else Outcome.FAILURE
        mark_ns = event.at_ns + MARK_NS
        stage, _, phase = event.name.rpartition("_")
        if event.name == PipelineStage.CONVERSATION_ENDED.value:
            add(semconv.name_of_end(outcome), Kind.ENDED, event, mark_ns, outcome)
        elif event.name == PipelineStage.AUDIO_RECEIVED.value:
            add(AUDIO, Kind.AUDIO, event, mark_ns, "" if event.success else outcome)
        elif phase == "started" and event.success:
            opened.setdefault(stage, []).append(len(made))
            add(stage, Kind.STAGE, event, 0, "")
        elif phase == "completed" and opened.get(stage):
            place = opened[stage].pop(0)
            made[place] = replace(
                made[place],
                end_ns=event.at_ns,
                outcome=outcome,
                error=event.error,
                error_type=text_at(event.metadata, "error_type"),
                details={**made[place].details, **event.metadata},
            )
        else:
            add(stage or event.name, Kind.STAGE, event, mark_ns, outcome)
    return made


def _numbered(spans: Iterable[Span]) -> Iterator[Span]:
    """The attempts with their numbers, which neither dumps nor events tell."""
    count: dict[tuple[str, object], int] = {}
    for span in sorted(spans, key=lambda one: one.start_ns):
        if span.kind != Kind.STAGE.value:
            yield span
            continue
        key = span.stage, span.attributes.get(semconv.STAGE_KEY)
        count[key] = count.get(key, 0) + 1
        numbered = {**span.attributes, semconv.STAGE_ATTEMPT: count[key]}
        yield replace(span, attributes=numbered)
