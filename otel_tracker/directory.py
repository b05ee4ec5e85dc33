"""Whose transaction: finds the handle for an id, a carrier or a context, or continues it here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from .diagnostics import Diagnostics
from .handles import Handle
from .ids import format_id, is_ours, parse_id, root_span_id
from .model import EMPTY, LATEST_NS, NO_PIPELINE, NOBODY, NS_PER_S, Fact, Pipeline, Who, parse_stage
from .privacy import text_of
from .recorder import Recorder
from .state import State
from .store import Store
from .telemetry import marked, pipeline_in

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
QUEUED: Final = "otel-tracker-queued"
"""A carrier's key for what was queued, and when: ``memory=1767225600.000000``, epoch seconds."""

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_FOREIGN: Final = "%s is of another system; pass what %s of the transaction gave"


class Carried(NamedTuple):
    """What a carrier says."""

    context: SpanContext
    pipeline: str
    stage: str
    """The stage that was put into a queue; "" where none was."""
    queued_ns: int
    """When that was, by the wall clock."""


class Directory:
    """Finds handles by what callers have in their hands.

    Args:
        recorder: holds the handles.
        store: knows what was heard of a transaction.
        diagnostics: where ids that are none of ours go.
        pipeline: gives a pipeline by its name; the tracker's own for None.
        on_use: called before a transaction is created or continued here.
    """

    def __init__(
        self,
        recorder: Recorder,
        store: Store,
        diagnostics: Diagnostics,
        pipeline: Callable[[str | None], Pipeline | None],
        on_use: Callable[[], None],
    ) -> None:
        self._recorder = recorder
        self._store = store
        self._diagnostics = diagnostics
        self._pipeline = pipeline
        self._on_use = on_use

    def create(
        self,
        who: Who,
        pipeline: Pipeline,
        metadata: Mapping[str, Any] = EMPTY,
        *,
        in_block: bool = False,
    ) -> Handle:
        """The handle of a new transaction."""
        self._on_use()
        return self._recorder.create(who, pipeline, metadata, in_block=in_block)

    def by_id(self, transaction_id: object, default: Pipeline | None = None) -> Handle | None:
        """The handle of the transaction with this id; None, and a warning, if it is none of ours.

        Args:
            transaction_id: what `create_transaction` returned, or Jaeger's form of it.
            default: what it runs where nobody here has heard of it; None leaves that open.
        """
        if type(transaction_id) is str:
            handle = self._recorder.handle(transaction_id)
            if handle is not None:
                return handle
        trace_id = self.trace_id_of(transaction_id)
        if trace_id is None:
            return None
        return self.by_trace_id(trace_id, default)

    def by_trace_id(
        self,
        trace_id: int,
        default: Pipeline | None = None,
        who: Who = NOBODY,
        remote: SpanContext | None = None,
    ) -> Handle:
        """The handle of a transaction of ours."""
        known = self._recorder.handle(format_id(trace_id))
        return known or self._resume(trace_id, default, who, remote)

    def here(self, handle: Handle) -> Handle:
        """`handle`, or in a forked child one that continues what the parent began."""
        if handle.era is self._recorder.era:
            return handle
        return self.by_trace_id(handle.trace_id, handle.pipeline, handle.who)

    def by_span(self, context: SpanContext) -> Handle | None:
        """The handle for a span of a trace that is marked as ours, wherever it was made."""
        name = pipeline_in(context)
        if name is None:
            return None
        root = SpanContext(
            context.trace_id,
            root_span_id(context.trace_id),
            is_remote=True,
            trace_flags=context.trace_flags,
            trace_state=context.trace_state,
        )
        return self.by_trace_id(context.trace_id, None, Who(pipeline=name), root)

    def read_carrier(self, carrier: object) -> Carried | None:
        """What a carrier says; None, and a warning, if it is none of a transaction of ours."""
        if not isinstance(carrier, Mapping):
            self._diagnostics.warn(
                "carrier", "%s is no carrier; pass the dict that tx.carrier() gave",
                text_of(carrier, 80) or "None",
            )  # fmt: skip
            return None
        try:
            values = {_decoded(key).lower(): _decoded(value) for key, value in carrier.items()}
        except Exception:  # a message's headers may not decode
            values = {}
        match = _TRACEPARENT.fullmatch(str(values.get(TRACEPARENT, "")).strip().lower())
        trace_id = 0 if match is None else int(match[1], 16)
        if match is None or not is_ours(trace_id) or not int(match[2], 16):
            self._diagnostics.warn(
                "carrier", _FOREIGN, text_of(values.get(TRACEPARENT), 80) or "a carrier without "
                "traceparent", "tx.carrier()",
            )  # fmt: skip
            return None
        try:
            state = TraceState.from_header([text_of(values.get(TRACESTATE), 512)])
        except Exception:  # it is the sender's to write, and anybody may be that
            state = TraceState()
        context = SpanContext(
            trace_id,
            int(match[2], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(match[3], 16)),
            trace_state=state,
        )
        pipeline = pipeline_in(context) or ""
        if not state.get("otel_tracker"):
            context = SpanContext(*context[:4], trace_state=marked("", state))
        stage, _, moment = text_of(values.get(QUEUED), 256).rpartition("=")
        return Carried(context, pipeline, parse_stage(stage) or "", wall_ns_of(moment) or 0)

    def by_carrier(self, carried: Carried, who: Who = NOBODY) -> Handle:
        """The handle of the transaction that a carrier is of."""
        who = who._replace(pipeline=carried.pipeline)
        handle = self.by_trace_id(carried.context.trace_id, None, who, carried.context)
        if carried.stage:
            handle.carried[carried.stage] = carried.queued_ns
        return handle

    def trace_id_of(self, transaction_id: object) -> int | None:
        """The trace id of what should be a transaction's id; None, and a warning, if it is not."""
        if isinstance(transaction_id, str):
            trace_id = parse_id(transaction_id)
            if trace_id is not None and is_ours(trace_id):
                return trace_id
            if trace_id is not None:
                self._diagnostics.warn(
                    "foreign_id",
                    "%s is an id that another system made; pass what create_transaction() returned",
                    transaction_id,
                )
                return None
        self._diagnostics.warn(
            "transaction_id",
            "%s is no transaction of this tracker; pass what create_transaction() returned",
            text_of(transaction_id, 80) or "None",
        )
        return None

    def _resume(
        self, trace_id: int, default: Pipeline | None, who: Who, remote: SpanContext | None
    ) -> Handle:
        def known(state: State) -> tuple[Who, list[Fact], bool]:
            tx = state.transactions.get(trace_id)
            if tx is None:
                return NOBODY, [], True
            stages = state.pipeline_of(tx).stages
            return tx.who, tx.history.standing(stages), tx.history.root is None

        self._on_use()
        heard, standing, is_guest = self._store.read(known)
        who = heard.or_else(who)
        if not who.pipeline:
            default = default or self._pipeline(None)
            who = who._replace(pipeline="" if default is None else default.name)
        pipeline = self._pipeline(who.pipeline) or NO_PIPELINE
        return self._recorder.resume(
            trace_id, who, pipeline, standing, remote=remote, is_guest=is_guest
        )


def _decoded(given: object) -> str:
    """A key or value of a carrier: brokers give bytes."""
    return given.decode("utf-8", "replace") if isinstance(given, bytes) else text_of(given)


def wall_ns_of(moment: object) -> int | None:
    """A moment that a caller gives (an aware datetime, or seconds since the epoch); None if none.

    Queues keep UTC datetimes that do not say so: a naive one is taken for UTC.
    """
    try:
        if isinstance(moment, datetime):
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        seconds = float(moment)  # type: ignore[arg-type]
        wall_ns = round(seconds * NS_PER_S)
    except Exception:  # whatever the caller's object does
        return None
    return wall_ns if 0 < wall_ns <= LATEST_NS else None
