"""A transaction's tree as plain data: docs/trace.md has every key (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..ids import format_id
from ..model import NS_PER_S, to_iso
from .about import About, Event
from .spans import Span
from .tree import Tree


def as_json(
    trace_id: str, tree: Tree, about: About, source: str, url: str = "", notes: Iterable[str] = ()
) -> dict[str, Any]:
    """The tree as plain data.

    Args:
        trace_id: 32 hex digits.
        tree: its spans.
        about: the rest that is known.
        source: what it was read from.
        url: its page in Jaeger, if it was read from there.
        notes: what else the reader should know.
    """
    groups = (([*tree.roots, *tree.rootless], True), (tree.detached, False))
    return {
        "trace_id": trace_id,
        "transaction_id": format_id(int(trace_id, 16)),
        "pipeline": about.pipeline or None,
        "user_id": about.user_id or None,
        "client_id": about.client_id or None,
        "conversation_id": about.conversation_id or None,
        "audio_uuid": about.audio_uuid or None,
        "status": about.status or None,
        "issue": about.issue or None,
        "as_of": _moment(about.as_of_ns),
        "started_at": _moment(tree.start_ns),
        "duration_seconds": _seconds(tree.end_ns - tree.start_ns),
        "root_arrived": bool(tree.roots),
        "processes": [
            {"service": service or None, "host": host or None, "process": process or None}
            for service, host, process in tree.places()
        ],
        "source": source,
        "url": url or None,
        "notes": list(notes),
        "spans": [
            _span(span, depth, tree.start_ns, attached=attached)
            for heads, attached in groups
            for depth, span in tree.under(heads)
        ],
        "events": [_event(event) for event in about.events],
    }


def _span(span: Span, depth: int, since_ns: int, *, attached: bool) -> dict[str, Any]:
    return {
        "span_id": span.span_id,
        "parent_span_id": span.parent_id or None,
        "depth": depth,
        "attached": attached,
        "name": span.name,
        "kind": span.kind or None,
        "stage": span.stage or None,
        "attempt": span.attempt or None,
        "service": span.service or None,
        "host": span.host or None,
        "process": span.process or None,
        "start_seconds": _seconds(span.start_ns - since_ns) if span.start_ns else None,
        "duration_seconds": None if span.is_open else _seconds(span.duration_ns),
        "outcome": span.outcome or None,
        "error_type": span.error_type or None,
        "error": span.error or None,
        "stack": span.stack or None,
        "attributes": dict(span.details),
    }


def _event(event: Event) -> dict[str, Any]:
    return {
        "at": _moment(event.at_ns),
        "event": event.name,
        "success": event.success,
        "error": event.error or None,
        "metadata": dict(event.metadata),
    }


def _moment(wall_ns: int) -> str | None:
    return to_iso(wall_ns) if wall_ns else None


def _seconds(ns: int) -> float:
    return round(ns / NS_PER_S, 6)
