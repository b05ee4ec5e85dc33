"""`make bench`: every figure is a ratio against a named rival of the same run, with its aim."""

from __future__ import annotations

import gc
import platform
import tracemalloc
from importlib.metadata import version

from otel_tracker import DebugSystemTracker

from . import stages
from .rivals import locked_counter, provider, same_spans, six_events
from .timing import Ratio, compare


def main() -> None:
    """Runs all benchmarks and prints a line for each."""
    print(
        f"Python {platform.python_version()}, opentelemetry-sdk {version('opentelemetry-sdk')}; "
        "medians of interleaved rounds, 10th to 90th percentile in brackets\n"
    )
    _stages()
    _transaction()
    _chunks()
    _dashboard()
    _memory()


def _show(what: str, measured: Ratio, aim: str) -> None:
    print(
        f"{what}\n    {measured.ratio:.2f}x [{measured.low:.2f} to {measured.high:.2f}]"
        f"  ({measured.a_us:.1f} µs against {measured.b_us:.1f} µs; aim: {aim})"
    )


def _stages() -> None:
    for what, measured in stages.measure().items():
        aim = "at most 0.1x" if "disabled" in what else "at most 1.2x"
        _show(f"{what}, against start_as_current_span with the same attributes", measured, aim)


def _transaction() -> None:
    rival = provider()
    tracker = DebugSystemTracker(provider())
    by_hand = same_spans(rival)
    measured = compare(lambda: six_events(tracker), by_hand)
    _show(
        "a six-event transaction, live dashboard on, against the bare SDK making the same spans",
        measured,
        "at most 1.2x",
    )
    tracker.shutdown()
    disabled = DebugSystemTracker(provider(), disabled=True)
    measured = compare(lambda: six_events(disabled), by_hand)
    _show("the same, OTEL_TRACKER_DISABLED=true, against the same rival", measured, "at most 0.1x")
    rival.shutdown()


def _chunks() -> None:
    tracker = DebugSystemTracker(provider())
    transaction_id = tracker.create_transaction("user", "client")
    span = provider().get_tracer("bare").start_span("audio")

    def chunk() -> None:
        tracker.track_audio_chunk(transaction_id, 1024)

    def event() -> None:
        span.add_event("chunk", {"chunk_size": 1024})

    measured = compare(chunk, event, calls=500)
    _show("track_audio_chunk against one bare add_event", measured, "at most 1x")
    measured = compare(chunk, locked_counter(), calls=500)
    _show("track_audio_chunk against a counter under a lock", measured, "none: the floor")
    tracker.shutdown()


def _dashboard() -> None:
    trackers = []
    for count in (50_000, 1_000):
        tracker = DebugSystemTracker(provider())
        for _ in range(count):
            six_events(tracker)
        tracker.get_dashboard_data()
        trackers.append(tracker)
    after_many, after_few = trackers
    measured = compare(
        after_many.get_dashboard_data, after_few.get_dashboard_data, calls=5, rounds=60
    )
    _show("get_dashboard_data after 50,000 transactions against after 1,000", measured, "1x")
    for tracker in trackers:
        tracker.shutdown()


def _memory() -> None:
    tracker = DebugSystemTracker(provider())
    for _ in range(2_000):  # what is kept at most is there by now
        six_events(tracker)
    tracker.get_dashboard_data()
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(100_000):
        six_events(tracker)
    tracker.get_dashboard_data()
    tracker.force_flush()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        "memory growth over 100,000 further transactions\n"
        f"    {(after - before) / 1e6:.1f} MB (aim: under 10 MB)"
    )
    tracker.shutdown()


if __name__ == "__main__":
    main()
