"""The SpanProcessor that feeds the dashboard: spans in, facts out, at the moment they happen.

Its hooks run on the application's threads and an exception in one would reach the application, so
each is guarded. The tracker's own spans bring their facts along, which keep what may not leave the
process: the note of the span that is being started lies ready for its thread. Any other span is
read by its attributes.
"""

from __future__ import annotations

import threading
from typing import Final

from opentelemetry import context as context_api
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode

from . import semconv
from .diagnostics import Diagnostics
from .model import Fact
from .store import Store


class Note:
    """What rides along with a span of the tracker's own: its facts, and whether they were taken.

    The note itself is queued and read when it is folded, so that a span which began and ended
    between two folds is folded once.
    """

    __slots__ = ("_queued", "end", "end_seen", "is_over", "start", "start_seen", "store")

    def __init__(self, store: Store, start: Fact) -> None:
        self.store = store
        self.start = start
        """The newest fact while the span is open."""
        self.end: Fact | None = None
        self.start_seen = False
        self.end_seen = False
        self.is_over = False
        """Its end was folded: queued again, it must not count again."""
        self._queued = False

    def put(self) -> None:
        """Queues what the span stands at, unless it is queued already."""
        if not self._queued:
            self._queued = True
            self.store.put(self)

    def fact(self) -> Fact:
        """What the span stands at. `_queued` is cleared first: no later change is missed."""
        self._queued = False
        return self.end or self.start


class _Starting(threading.local):
    note: Note | None = None


STARTING: Final = _Starting()
"""The note of the span that this thread is starting. Whoever starts another within puts it back."""


class DashboardSpanProcessor(SpanProcessor):
    """Keeps dashboard metrics, stalls and issues in memory while spans also export elsewhere.

    Args:
        store: what it feeds.
        diagnostics: where its own troubles go.
    """

    def __init__(self, store: Store, diagnostics: Diagnostics) -> None:
        self._store = store
        self._diagnostics = diagnostics
        self._open: dict[int, Note] = {}
        """Of our own spans, by span id: the recorder chose it."""
        self.listens = True
        """False where the tracker left OpenTelemetry, which has no way to remove a processor."""

    def on_start(self, span: Span, parent_context: context_api.Context | None = None) -> None:
        """Takes the fact that a span began."""
        if not self.listens:
            return
        try:
            note = STARTING.note
            if note is None or note.start.span_id != span.get_span_context().span_id:
                self._take_foreign(span)
            elif note.store is self._store and not note.start_seen:
                note.start_seen = True
                note.put()
                self._open[note.start.span_id] = note
        except Exception:
            self._diagnostics.error("processor", "the dashboard could not read a span's start")

    def on_end(self, span: ReadableSpan) -> None:
        """Takes the fact that a span ended."""
        if not self.listens:
            return
        try:
            ids = span.get_span_context()
            note = None if ids is None else self._open.pop(ids.span_id, None)
            if note is None:
                self._take_foreign(span)
            elif note.end is not None:
                note.end_seen = True
                note.put()
        except Exception:
            self._diagnostics.error("processor", "the dashboard could not read a span's end")

    def shutdown(self) -> None:
        """Nothing to do: the dashboard goes on answering."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing to do: facts are taken as they happen."""
        return True

    def open_notes(self) -> list[Note]:
        """What is open of the tracker's own spans, oldest first."""
        return list(self._open.values())

    def forget(self) -> None:
        """Drops what is open: in a forked child it is the parent's."""
        self._open = {}

    def _take_foreign(self, span: ReadableSpan) -> None:
        attributes = span.attributes
        if not attributes or not semconv.is_ours(attributes):
            return
        scope = span.instrumentation_scope
        if scope is not None and scope.name == semconv.SCOPE:
            return  # another tracker's own, on a provider that both use
        ids = span.get_span_context()
        if ids is None:
            return
        fact = semconv.read_fact(
            attributes,
            trace_id=ids.trace_id,
            span_id=ids.span_id,
            parent_id=span.parent.span_id if span.parent is not None else 0,
            start_ns=span.start_time or 0,
            end_ns=span.end_time,
            seen_ns=self._store.clock.monotonic_ns(),
            error=span.status.description or "",
            failed=span.status.status_code is StatusCode.ERROR,
        )
        if fact is not None:
            self._store.put(fact)
