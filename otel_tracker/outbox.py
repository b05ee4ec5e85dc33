"""What waits to be exported, what failed and is tried again, and the exact count of what was lost.

Pure bookkeeping: no thread, clock or exporter. ``put = exported + waiting + lost``, where `lost`
says for each span why. (Read while another thread moves a batch, the sum may be off by that batch.)
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MOST_HELD: Final = 8
"""Failed batches kept beside the queue before no new one is tried: they find out whether the
endpoint is down, or refuses one batch and takes others."""

REFUSALS: Final = 3
"""Times that an item alone may fail while others get through, before it is given up."""

PROBES: Final = 3
"""Items of failed batches that are tried alone."""


@dataclass(slots=True)
class Batch(Generic[T]):
    """Items that are exported together."""

    items: list[T]
    failed_at: int = -1
    """How many batches had got through when it last failed; -1 before it did."""
    refusals: int = 0


@dataclass(slots=True)
class Lost:
    """Spans that were never sent, by reason."""

    queue_full: int = 0
    """More waited than the queue holds: the oldest went."""
    refused: int = 0
    """Failed again and again, alone, while others got through."""
    shutdown: int = 0
    """Still waited when the time for shutdown was over."""

    def add(self, other: Lost) -> None:
        """Counts the other's too."""
        self.queue_full += other.queue_full
        self.refused += other.refused
        self.shutdown += other.shutdown

    def total(self) -> int:
        """All of them."""
        return self.queue_full + self.refused + self.shutdown


class Outbox(Generic[T]):
    """A bounded queue whose failed batches are tried again.

    Any thread may `put`; one thread takes, and says what became of what it took.

    Args:
        limit: items that may wait; the oldest go first. (Failed batches come on top: `MOST_HELD`.)
        batch_size: items in a batch, at most.
    """

    def __init__(self, limit: int, batch_size: int) -> None:
        self._limit = limit
        self._batch_size = batch_size
        self._queue: deque[T] = deque()
        self._held: deque[Batch[T]] = deque()
        self._in_flight = 0
        self._delivered = 0  # batches
        self._is_closed = False
        # Re-entrant: a signal handler, or the garbage collector, may end a span within.
        self._lock = threading.RLock()
        self.exported = 0
        self.lost = Lost()
        self.is_failing = False
        """The last batch failed."""

    def put(self, item: T) -> int:
        """Takes an item, whatever thread it comes from, without waiting for another.

        Returns:
            How many wait in the queue by now.
        """
        queue = self._queue
        if self._is_closed:
            with self._lock:
                self.lost.shutdown += 1
            return 0
        queue.append(item)
        count = len(queue)
        if count > self._limit:
            self._make_room()
        return count

    def _make_room(self) -> None:
        with self._lock:
            while len(self._queue) > self._limit:
                try:
                    self._queue.popleft()
                except IndexError:
                    return  # the exporting thread was quicker
                self.lost.queue_full += 1

    @property
    def waiting(self) -> int:
        """Items that neither left nor were lost, those under way among them."""
        return len(self._queue) + sum(len(b.items) for b in tuple(self._held)) + self._in_flight

    @property
    def gone(self) -> int:
        """Items that left or were lost."""
        return self.exported + self.lost.total()

    def take(self) -> Batch[T] | None:
        """The next batch to export; None where nothing waits.

        After a failure it is a new one, if there is: if that one gets through, the fault was the
        failed one's own.
        """
        has_probe = bool(self._held) and self._held[0].failed_at < 0
        wants_new = self.is_failing and len(self._held) < MOST_HELD and bool(self._queue)
        wants_new = wants_new and not has_probe
        is_again = bool(self._held) and not wants_new
        batch = self._held.popleft() if is_again else Batch(self._from_queue())
        self._in_flight = len(batch.items)
        return batch if batch.items else None

    def _from_queue(self) -> list[T]:
        items: list[T] = []
        with contextlib.suppress(IndexError):  # empty by now
            while len(items) < self._batch_size:
                items.append(self._queue.popleft())
        return items

    def has_more(self) -> bool:
        """Whether a failed batch, or a full one, waits."""
        return bool(self._held) or len(self._queue) >= self._batch_size

    def delivered(self, batch: Batch[T]) -> None:
        """`batch` arrived."""
        self._in_flight = 0
        self.exported += len(batch.items)
        self._delivered += 1
        self.is_failing = False

    def failed(self, batch: Batch[T]) -> None:
        """`batch` did not arrive, or nobody said so; it is tried again."""
        self._in_flight = 0
        self.is_failing = True
        if self._is_closed:
            with self._lock:
                self.lost.shutdown += len(batch.items)
            return
        others_got_through = 0 <= batch.failed_at < self._delivered
        batch.failed_at = self._delivered
        if len(batch.items) > 1:
            if others_got_through:
                half = len(batch.items) // 2
                for items in (batch.items[:half], batch.items[half:]):
                    self._held.append(Batch(items, self._delivered))
                return
            self._add_probe(batch)
        elif others_got_through:
            batch.refusals += 1
            if batch.refusals == REFUSALS:
                self.lost.refused += 1
                return
        self._held.append(batch)

    def _add_probe(self, batch: Batch[T]) -> None:
        """Where nothing gets through, one item goes alone: a batch may be refused for its size.

        Not always the first, which may be the bad one.
        """
        probes = sum(len(held.items) == 1 for held in self._held)
        if probes < PROBES:
            item = batch.items.pop((len(batch.items) - 1) * probes // (PROBES - 1))
            self._held.appendleft(Batch([item]))  # the next one that is taken

    def close(self) -> None:
        """From now on nothing is taken in. All that waits is lost, but for what is under way."""
        self._is_closed = True
        lost = len(_emptied(self._queue)) + sum(len(b.items) for b in _emptied(self._held))
        with self._lock:
            self.lost.shutdown += lost


def _emptied(queue: deque[T]) -> list[T]:
    """All that was in it; what another thread takes at the same moment is that thread's."""
    taken: list[T] = []
    try:
        while True:
            taken.append(queue.popleft())
    except IndexError:
        return taken
