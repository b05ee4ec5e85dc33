"""A stage against the span that it is: `with stage` and `@stage`, and the same spans by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.trace import SpanKind

from otel_tracker import DebugSystemTracker, stage, transaction
from otel_tracker.testing import fresh_tracker

from .rivals import provider
from .timing import Ratio, compare_timed

STAGES: Final = 40
"""Stages of one transaction, timed together; its own begin and end are not."""

IDS: Final = {"user_id": "507f1f77bcf8", "client_id": "cd7994-laptop", "conversation_id": "conv_12"}


def decorated(tracker: DebugSystemTracker) -> Callable[[], None]:
    """A function that does nothing, as a stage."""

    @stage("memory", model="llama3", tracker=tracker)
    def work() -> None:
        return

    return work


def attributes_of_a_stage() -> tuple[dict[str, Any], dict[str, Any]]:
    """What the root and a stage carry, read off a real run: the rival cannot drift from it."""
    with fresh_tracker() as t:
        with transaction(tracker=t.tracker, **IDS):
            decorated(t.tracker)()
        spans = {span["name"]: span["attributes"] for span in t.spans()}
    return spans["transaction"], spans["memory"]


def by_hand() -> Callable[[], int]:
    """The same spans with OpenTelemetry alone; nanoseconds a stage."""
    tracer = provider().get_tracer("bare")
    of_root, of_stage = attributes_of_a_stage()

    def run() -> int:
        with tracer.start_as_current_span("transaction", kind=SpanKind.SERVER, attributes=of_root):
            started_ns = time.perf_counter_ns()
            for _ in range(STAGES):
                with tracer.start_as_current_span("memory", attributes=of_stage):
                    pass
            return (time.perf_counter_ns() - started_ns) // STAGES

    return run


def by_block(tracker: DebugSystemTracker) -> Callable[[], int]:
    """``with stage``; nanoseconds a stage."""

    def run() -> int:
        with transaction(tracker=tracker, **IDS):
            started_ns = time.perf_counter_ns()
            for _ in range(STAGES):
                with stage("memory", model="llama3", tracker=tracker):
                    pass
            return (time.perf_counter_ns() - started_ns) // STAGES

    return run


def by_decorator(tracker: DebugSystemTracker) -> Callable[[], int]:
    """``@stage``; nanoseconds a call."""
    work = decorated(tracker)

    def run() -> int:
        with transaction(tracker=tracker, **IDS):
            started_ns = time.perf_counter_ns()
            for _ in range(STAGES):
                work()
            return (time.perf_counter_ns() - started_ns) // STAGES

    return run


def measure() -> dict[str, Ratio]:
    """All of them against the same spans by hand, in one interleaved run."""
    live = DebugSystemTracker(provider())
    disabled = DebugSystemTracker(provider(), disabled=True)
    measured = compare_timed(
        {
            "with stage, live dashboard on": by_block(live),
            "@stage, live dashboard on": by_decorator(live),
            "with stage, disabled": by_block(disabled),
            "@stage, disabled": by_decorator(disabled),
        },
        by_hand(),
    )
    live.shutdown()
    disabled.shutdown()
    return measured
