"""What a test of a pipeline needs: a fresh tracker, clocks that the test moves, finished spans.

    from otel_tracker import TransactionStatus
    from otel_tracker.testing import fresh_tracker

    def test_a_hanging_transcription_is_a_stall():
        with fresh_tracker() as t:
            transaction_id = t.tracker.create_transaction("user", "client")
            t.tracker.track_event(transaction_id, "transcription_started")
            t.advance(61)  # time passes, and what the tracker's thread would do is done
            assert t.status(transaction_id) is TransactionStatus.STALLED
            assert [s["name"] for s in t.spans()] == ["audio_pipeline", "transcription stalled"]

Nothing is global: no thread runs, nothing is exported, and the application's OpenTelemetry and the
shared tracker are not touched (`use_as_shared=True` lets code under test find it by
`get_debug_tracker()`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from . import api
from .debug_tracker import DebugSystemTracker
from .model import NS_PER_S, TransactionStatus

START_NS: Final = 1_767_225_600 * NS_PER_S
"""Where the injected wall clock starts: 2026-01-01T00:00:00Z."""


class ManualClock:
    """Both clocks, moved by the test alone."""

    def __init__(self, wall_ns: int = START_NS, monotonic_ns: int = 1_000 * NS_PER_S) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns

    def monotonic_ns(self) -> int:
        """As `time.monotonic_ns`."""
        return self._monotonic_ns

    def time_ns(self) -> int:
        """As `time.time_ns`."""
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        """Time passes, on both clocks."""
        self._wall_ns += round(seconds * NS_PER_S)
        self._monotonic_ns += round(seconds * NS_PER_S)

    def step_wall(self, seconds: float) -> None:
        """The wall clock is set forward or back; no time passes."""
        self._wall_ns += round(seconds * NS_PER_S)


class Harness:
    """A fresh tracker, its clock, and what it exported."""

    def __init__(
        self,
        tracker: DebugSystemTracker,
        clock: ManualClock,
        provider: TracerProvider,
        exporter: InMemorySpanExporter,
    ) -> None:
        self.tracker = tracker
        self.clock = clock
        self.provider = provider
        self._exporter = exporter

    def advance(self, seconds: float) -> None:
        """Time passes and the sweep runs, as the tracker's thread would do it."""
        self.clock.advance(seconds)
        self.tracker.sweep()

    def status(self, transaction_id: str) -> TransactionStatus | None:
        """The status of a transaction now; None if it is not kept."""
        found = self.tracker.get_transaction(transaction_id)
        return None if found is None else found.status

    def issue(self, transaction_id: str) -> str | None:
        """The issue of a transaction now."""
        found = self.tracker.get_transaction(transaction_id)
        return None if found is None else found.issue

    def finished_spans(self) -> list[ReadableSpan]:
        """The exported spans as the SDK has them, in the order of their end."""
        return list(self._exporter.get_finished_spans())

    def spans(self) -> list[dict[str, Any]]:
        """The exported spans as plain data, in the order of their start.

        Each has ``name``, ``parent`` (a name; None for a root, ``"?"`` for one that is not
        exported), ``kind``, ``start`` and ``end`` (seconds since the clock's start, to the
        microsecond), ``status``, ``description``, ``attributes``, ``events`` and ``links``.
        """
        spans = sorted(self.finished_spans(), key=lambda s: (s.start_time or 0, s.end_time or 0))
        names = {s.get_span_context().span_id: s.name for s in spans}  # type: ignore[union-attr]
        return [_plain(span, names) for span in spans]


def _plain(span: ReadableSpan, names: dict[int, str]) -> dict[str, Any]:
    return {
        "name": span.name,
        "parent": None if span.parent is None else names.get(span.parent.span_id, "?"),
        "kind": span.kind.name,
        "start": _seconds(span.start_time),
        "end": _seconds(span.end_time),
        "status": span.status.status_code.name,
        "description": span.status.description,
        "attributes": dict(span.attributes or {}),
        "events": [(event.name, dict(event.attributes or {})) for event in span.events],
        "links": [f"{link.context.trace_id:032x}" for link in span.links],
    }


def _seconds(wall_ns: int | None) -> float:
    return round(((wall_ns or 0) - START_NS) / NS_PER_S, 6)


@contextmanager
def fresh_tracker(
    *, sampler: Sampler | None = None, use_as_shared: bool = False, **options: Any
) -> Iterator[Harness]:
    """A tracker of the test's own.

    Args:
        sampler: the application's; every span is sampled by default.
        use_as_shared: for the length of the block `get_debug_tracker()` returns this tracker.
        **options: as for `init_debug_tracker`.
    """
    exporter = InMemorySpanExporter()
    provider = TracerProvider(
        sampler=sampler, resource=Resource({"service.name": "test"}), shutdown_on_exit=False
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    clock = ManualClock()
    tracker = DebugSystemTracker(provider, clock=clock, run_sweeper=False, **options)
    before = api.replace_shared(tracker) if use_as_shared else None
    try:
        yield Harness(tracker, clock, provider, exporter)
    finally:
        if use_as_shared:
            api.replace_shared(before)
        tracker.shutdown()
        provider.shutdown()
