"""The shared tracker: `get_debug_tracker`, `init_debug_tracker`, `shutdown_debug_tracker`.

There is one of it in a process. It is made on first use; `init` only changes its options, so that
nothing tracked before is lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace

from .debug_tracker import DebugSystemTracker
from .frames import Shared
from .model import AnyEvent, Pipeline, parse_stage

_lock = threading.RLock()  # a signal handler may ask for the tracker while it is being made
_shared: DebugSystemTracker | None = None
_declared: dict[str, Pipeline] = {}


def get_debug_tracker() -> DebugSystemTracker:
    """The tracker that everything in this process shares; made on the first call."""
    global _shared  # noqa: PLW0603 -- one shared tracker is what this module is for
    if _shared is None:
        with _lock:
            if _shared is None:
                made = DebugSystemTracker(follow_global=True)
                for one in list(_declared.values()):
                    made.declare(one)
                if _shared is None:
                    _shared = made
    return _shared


def init_debug_tracker(
    tracer_provider: trace.TracerProvider | None = None,
    pipeline: Pipeline | None = None,
    **options: Any,
) -> DebugSystemTracker:
    """Sets options of the shared tracker. May be called again; what was tracked is kept.

    Args:
        tracer_provider: the application's OpenTelemetry provider; by default the global one as soon
            as the application has set it, otherwise one of the tracker's own.
        pipeline: what `create_transaction` runs; the audio pipeline by default.
        **options: ``on_stall=`` and ``on_issue=`` (called with a dict, on a thread of the
            tracker's), and those of docs/settings.md, such as ``stall_after_memory=900``, or
            ``serve="127.0.0.1:8500"`` to serve this process's dashboard there.

    Returns:
        The shared tracker.

    Raises:
        TypeError: an option that does not exist; the message names the nearest one.
    """
    tracker = get_debug_tracker()
    tracker.configure(tracer_provider, pipeline, **options)
    return tracker


def shutdown_debug_tracker(timeout_s: float = 5.0) -> None:
    """Ends open spans and exports what waits, within `timeout_s` seconds. Safe to repeat."""
    if _shared is not None:
        _shared.shutdown(timeout_s)


def pipeline(
    name: str,
    *stages: AnyEvent | str,
    stall_after: Mapping[AnyEvent | str, float] | None = None,
) -> Pipeline:
    """Declares a pipeline of your own.

    ``voice = pipeline("voice", "fetch", "transcribe", "store", stall_after={"transcribe": 600})``

    Use it as ``transaction(voice)``, or for `create_transaction` as
    ``init_debug_tracker(pipeline=voice)``. A transaction of it is done when its last stage
    succeeded; stages that are not declared are welcome too.

    Args:
        name: names the root spans; keep it short and constant.
        *stages: in order.
        stall_after: seconds of silence that are normal, by stage; others have the default limit.

    Raises:
        ValueError: an empty or overlong name, or a limit that is no positive number of seconds.
    """
    limits = {
        parse_stage(stage) or str(stage): limit for stage, limit in (stall_after or {}).items()
    }
    made = Pipeline(name, tuple(parse_stage(stage) or str(stage) for stage in stages), limits)
    _declared[name] = made
    if _shared is not None:
        _shared.declare(made)
    return made


def replace_shared(tracker: DebugSystemTracker | None) -> DebugSystemTracker | None:
    """Makes `tracker` the shared one and returns the one before: for `otel_tracker.testing`."""
    global _shared
    before, _shared = _shared, tracker
    if tracker is not None:
        for one in list(_declared.values()):
            tracker.declare(one)
    return before


Shared.find = lambda: get_debug_tracker().frames


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 -- a thread that is not in the child may hold the old one
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
