"""Starts and ends the tracker's own spans, each with the fact that it stands for.

A fact rides to the processor in the `Context` given to `start_span` (never attached). Where no
processor takes it (the SDK is disabled, the provider is not ours to add one to), it is folded here,
so that the dashboard is exact either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import context as context_api
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from . import semconv
from .diagnostics import Diagnostics
from .handles import Handle, OpenSpan
from .model import Fact, Outcome
from .privacy import Privacy
from .processor import NOTE_KEY
from .store import Store
from .telemetry import ChosenIds


class SpanWriter:
    """The one place that calls OpenTelemetry's `start_span` and `end`. Never raises.

    Args:
        store: takes the facts that no processor took.
        diagnostics: where troubles of OpenTelemetry go.
        privacy: cleans what a status may say.
    """

    def __init__(self, store: Store, diagnostics: Diagnostics, privacy: Privacy) -> None:
        self.privacy = privacy
        self._store = store
        self._diagnostics = diagnostics

    def start(
        self,
        handle: Handle,
        opened: OpenSpan,
        name: str,
        attributes: Mapping[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: tuple[Link, ...] = (),
        context: context_api.Context | None = None,
    ) -> None:
        """Starts the span of `opened`, with the ids and at the time of its fact."""
        fact = opened.start
        before = ChosenIds.choose((fact.trace_id, fact.span_id))
        try:
            opened.span = handle.tracer.start_span(
                name,
                context_api.set_value(NOTE_KEY, opened, context or handle.context),
                kind,
                attributes,
                links,
                fact.start_ns,
            )
        except Exception:
            self._diagnostics.error("start_span", "OpenTelemetry could not start a span")
        finally:
            ChosenIds.choose(before)
        if not opened.start_seen:
            opened.put()

    def end(self, opened: OpenSpan, end: Fact, attributes: Mapping[str, Any]) -> None:
        """Ends the span of `opened` as `end` tells it."""
        opened.end = end
        span = opened.span
        try:
            if attributes:
                span.set_attributes(attributes)
            if end.outcome in Outcome.BAD:
                self._set_error(span, end)
            span.end(end.at_ns)
        except Exception:
            self._diagnostics.error("end_span", "OpenTelemetry could not end a span")
        if not opened.end_seen:
            opened.put()

    def at_once(
        self,
        handle: Handle,
        fact: Fact,
        name: str,
        attributes: Mapping[str, Any],
        *,
        context: context_api.Context | None = None,
        stack: str = "",
    ) -> None:
        """A span that is finished when it is made."""
        opened = OpenSpan(self._store, fact)
        self.start(handle, opened, name, attributes, context=context)
        if stack:
            # An event shows unopened in Jaeger; an attribute would bury the reason beside it.
            opened.span.add_event(semconv.STACK_EVENT, {semconv.STACK: stack}, fact.at_ns)
        self.end(opened, fact, {})

    def _set_error(self, span: Span, fact: Fact) -> None:
        """ERROR with a description and ``error.type``. A cancellation is no error: people hang up.

        Nor is an interrupted root or audio, which speaks of the process, nor an attempt that was
        only started again.
        """
        if fact.outcome == Outcome.CANCELLED:
            return
        if fact.outcome in (Outcome.INTERRUPTED, Outcome.ABANDONED) and not fact.error_type:
            return
        error_type = self.privacy.identifier(fact.error_type) or semconv.OTHER_ERROR
        span.set_attribute(semconv.ERROR_TYPE, error_type)
        span.set_status(StatusCode.ERROR, self.privacy.message(fact.error or "Unknown error"))
