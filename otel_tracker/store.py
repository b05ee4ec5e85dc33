"""The one shared mutable thing: a queue of facts, the lock, and the clocks around the state.

Writers never wait: a fact is appended, and whoever finds the lock free folds what is queued. That
matters because the garbage collector can end a span of an abandoned generator anywhere, also on a
thread that is in the middle of a fold: under a plain lock that hook would wait for itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from .model import Fact, Kind, SocketFact
from .state import Dropped, News, State

T = TypeVar("T")

logger: Final = logging.getLogger("otel_tracker")

_FOLD_AT: Final = 64
"""Queued facts at which a writer folds; fewer wait for the next read or sweep."""
_JUDGE_AT: Final = 64
"""Changed transactions at which a writer judges them too, so that what is let go goes soon."""


class Clock(Protocol):
    """Where time comes from. Nanoseconds; tests inject their own."""

    def monotonic_ns(self) -> int:
        """Never goes back: ages are measured by it."""
        ...

    def time_ns(self) -> int:
        """Wall clock since the epoch: what people read."""
        ...


class SystemClock:
    """The real clocks."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    time_ns = staticmethod(time.time_ns)


class FactSource(Protocol):
    """Something cumulative that is read when it is folded, such as an audio meter."""

    is_over: bool
    """Nothing more will come of it."""

    def fact(self) -> Fact:
        """What it stands at now."""
        ...


class Store:
    """A `State` that any thread may feed and read.

    Args:
        state: the fold.
        clock: both clocks.
    """

    def __init__(self, state: State, clock: Clock) -> None:
        self.clock = clock
        self.started_ns = clock.monotonic_ns()
        self.started_wall_ns = clock.time_ns()
        self._state = state
        self._queue: deque[Fact | SocketFact | FactSource] = deque()
        # Re-entrant, since a collection or a signal handler may come back here on the thread that
        # holds it; `_busy`, only touched under it, says that a fold or a view is under way.
        self._lock = threading.RLock()
        self._busy = False

    def put(self, fact: Fact | SocketFact | FactSource) -> None:
        """Takes one fact. Never waits, never fails."""
        self._queue.append(fact)
        if len(self._queue) >= _FOLD_AT:
            self._fold_if_free()

    def read(self, view: Callable[[State], T]) -> T:
        """What `view` makes of the state as of now. It must copy what it returns, and be quick.

        A read from within a read (a signal handler's, on the thread that holds the lock) sees the
        state as it is at that moment, unfolded.
        """
        with self._lock:
            if self._busy:
                return view(self._state)
            self._busy = True
            try:
                self._fold()
                self._judge()
                return view(self._state)
            finally:
                self._busy = False

    def take_news(self) -> list[News]:
        """The changes since the last call, oldest first."""

        def take(state: State) -> list[News]:
            news = list(state.news)
            state.news.clear()
            return news

        return self.read(take)

    def reset(self, state: State) -> None:
        """In a forked child: an empty state, and a lock that no thread of the parent holds."""
        self._state = state
        self._queue = deque()
        self._lock = threading.RLock()
        self._busy = False
        self.started_ns = self.clock.monotonic_ns()
        self.started_wall_ns = self.clock.time_ns()

    def _fold_if_free(self) -> None:
        while self._queue and self._lock.acquire(blocking=False):
            try:
                if self._busy:
                    return  # further out on this thread's stack; that fold looks again
                self._busy = True
                try:
                    self._fold()
                    if self._state.unjudged >= _JUDGE_AT:
                        self._judge()
                finally:
                    self._busy = False
            finally:
                self._lock.release()

    def _fold(self) -> None:
        queue, state = self._queue, self._state
        for _ in range(len(queue)):  # no more: writers must not keep a reader here for ever
            try:
                fact = queue.popleft()
            except IndexError:
                return
            try:
                if isinstance(fact, Fact):
                    state.apply(fact)
                elif isinstance(fact, SocketFact):
                    state.apply_socket(fact)
                else:
                    newest = fact.fact()
                    if not fact.is_over:
                        state.apply(newest)
                        fact.is_over = newest.ended and newest.kind is not Kind.AUDIO
            except Exception as error:
                self._defect(error)

    def _judge(self) -> None:
        try:
            self._state.advance(
                self.clock.monotonic_ns(), self.clock.time_ns(), more_to_come=bool(self._queue)
            )
        except Exception as error:
            self._defect(error)

    def _defect(self, error: Exception) -> None:
        """One transaction that this code cannot read must not hide the others from their reader."""
        self._state.dropped[Dropped.DEFECTS] += 1
        if self._state.dropped[Dropped.DEFECTS] == 1:
            logger.error(
                "otel_tracker: a defect of the tracker: a fact or a verdict was left out (logged "
                "once; counted under health.dropped)",
                exc_info=error,
            )
