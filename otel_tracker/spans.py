"""Starts and ends the tracker's own spans, each with the fact that it stands for.

A fact lies ready for the processor while its span is started. Where no processor takes it (the SDK
is disabled, the provider is not ours to add one to), it is folded here, so that the dashboard is
exact either way.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import context as context_api
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from . import semconv
from .diagnostics import Diagnostics
from .handles import Handle, OpenSpan
from .model import Fact, Outcome
from .privacy import Privacy
from .processor import STARTING
from .store import Store

_collecting: dict[int, bool] = {}
"""Threads on which the garbage collector runs."""


def _note_collection(phase: str, _info: dict[str, int]) -> None:
    if phase == "start":
        _collecting[threading.get_ident()] = True
    else:
        _collecting.pop(threading.get_ident(), None)


gc.callbacks.append(_note_collection)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_collecting.clear)


def is_collecting() -> bool:
    """Whether the garbage collector runs on this thread: it may have stopped anything half-way."""
    return bool(_collecting) and threading.get_ident() in _collecting


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
        self._postponed: deque[Callable[[], None]] = deque()

    def start(
        self,
        handle: Handle,
        opened: OpenSpan,
        name: str,
        attributes: dict[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: tuple[Link, ...] = (),
        context: context_api.Context | None = None,
    ) -> None:
        """Starts the span of `opened`, with the ids and at the time of its fact."""
        fact = opened.start
        if fact.where:
            attributes[semconv.WHERE] = fact.where
        before, STARTING.note = STARTING.note, opened
        try:
            opened.span = handle.tracer.start_span(
                name, context or handle.context, kind, attributes, links, fact.start_ns
            )
        except Exception:
            self._diagnostics.error("start_span", "OpenTelemetry could not start a span")
        finally:
            STARTING.note = before
        if not opened.start_seen:
            opened.put()

    def end(
        self, opened: OpenSpan, end: Fact, attributes: Mapping[str, Any], name: str = ""
    ) -> None:
        """Ends the span of `opened` as `end` tells it.

        A generator that is collected ends its stage in the middle of whatever its thread does,
        which may be holding a lock of OpenTelemetry's: there only the fact is taken, and the span
        is ended a moment later, from outside.
        """
        opened.end = end
        if is_collecting():
            opened.put()
            self._postponed.append(lambda: self._end(opened, end, attributes, name))
            return
        if self._postponed:
            self.end_postponed()
        self._end(opened, end, attributes, name)

    def postpone(self, work: Callable[[], None]) -> None:
        """Does `work` with the next span that is ended, sweep or flush."""
        self._postponed.append(work)

    def end_postponed(self) -> None:
        """Does what could not be done at once."""
        if is_collecting():
            return  # a signal handler, in the middle of one
        while self._postponed:
            try:
                postponed = self._postponed.popleft()
            except IndexError:
                return
            try:
                postponed()
            except Exception:
                self._diagnostics.error("postponed", "what was put off could not be done")

    def forget(self) -> None:
        """In a forked child: what could not be ended is the parent's."""
        self._postponed = deque()

    def _end(
        self, opened: OpenSpan, end: Fact, attributes: Mapping[str, Any], name: str = ""
    ) -> None:
        span = opened.span
        try:
            if name:
                span.update_name(name)
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
        attributes: dict[str, Any],
        *,
        context: context_api.Context | None = None,
        stack: str = "",
    ) -> None:
        """A span that is finished when it is made."""
        if is_collecting():
            self._store.put(fact)
            self._postponed.append(
                lambda: self.at_once(handle, fact, name, attributes, context=context, stack=stack)
            )
            return
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
