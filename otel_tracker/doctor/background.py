"""Slow work that is waited for only so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Work on a daemon thread: what hangs there cannot keep the command from ending."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="otel-tracker-doctor", daemon=True).start()

    def result(self, timeout_s: float) -> T:
        """What the work returned.

        Raises:
            TimeoutError: it takes longer than `timeout_s` seconds.
            Exception: what the work raised.
        """
        if not self._done.wait(max(0.0, timeout_s)):
            raise TimeoutError(f"not done within {timeout_s:.1f} s")
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # told to whoever waits
            self._error = error
        finally:
            self._done.set()


def within(timeout_s: float, work: Callable[[], T]) -> T:
    """What `work` returns.

    Raises:
        TimeoutError: it takes longer than `timeout_s` seconds.
        Exception: what the work raised.
    """
    return Background(work).result(timeout_s)
