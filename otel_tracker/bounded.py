"""A thread that does slow things for somebody who waits only so long."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

logger: Final = logging.getLogger("otel_tracker")


class Flusher:
    """A daemon thread that does one slow thing at a time for somebody who waits only so long.

    It is started beforehand: at the interpreter's exit it would be too late (Python 3.12).

    Raises:
        RuntimeError: no thread can be started.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None]
        self._work = queue.SimpleQueue()
        self.stuck = False
        """Its work took longer than somebody waited: it is still at it."""
        threading.Thread(target=self._run, name="otel-tracker-flush", daemon=True).start()

    def within(self, timeout_s: float, work: Callable[[], Any]) -> Any:
        """What `work` returns, or None if it takes longer than `timeout_s` or raises."""
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._work.put((work, done))
        try:
            return done.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            self.stuck = True
            return None

    def stop(self) -> None:
        """Ends the thread after what it is at."""
        self._work.put(None)

    def _run(self) -> None:
        while (task := self._work.get()) is not None:
            work, done = task
            try:
                done.put(work())
            except Exception:
                logger.warning("otel_tracker: flushing spans failed", exc_info=True)
                done.put(None)
