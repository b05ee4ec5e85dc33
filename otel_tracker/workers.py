"""Who works, and who fell silent: the beats of other processes (pure).

A process that feeds a dashboard service says every few seconds that it lives, and what is open in
it. When it stops saying so it is lost: what is open in it will never end, and that is no stall.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

BEATS: Final = 3
"""So many intervals without a beat, and a worker is lost."""

MOST_WORKERS: Final = 1_000


def worker_of(where: str) -> str:
    """The process in a ``host/process/thread``; empty where none is told."""
    parts = where.split("/", 2)
    return f"{parts[0]}/{parts[1]}" if len(parts) > 1 else ""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life of one process."""

    worker: str
    """``host/process``, as in `worker_of`."""
    service: str
    at_ns: int
    """When it was sent, by the sender's wall clock."""
    seen_ns: int
    """When it came, by this process's monotonic clock."""
    interval_ns: int
    """When the next one is due."""
    started_ns: int = 0
    """When the process began, by its wall clock."""
    version: str = ""
    """Of the service that runs in it."""
    progress: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """What is open in it, by trace and span id: its newest sign of life, by the sender's clock."""
    sockets: Mapping[str, int] = field(default_factory=dict)
    """Open websockets by client."""
    is_last: bool = False
    """It shuts down in order."""


@dataclass(slots=True)
class Worker:
    """One process, as of its newest beat."""

    beat: Beat
    first_ns: int
    """Its first beat, by this process's monotonic clock."""
    is_lost: bool = False

    @property
    def due_ns(self) -> int:
        """When it is lost, if nothing comes until then."""
        return self.beat.seen_ns + BEATS * self.beat.interval_ns


class Workers:
    """The processes that beat, the longest silent first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Worker] = OrderedDict()
        self.lost: frozenset[str] = frozenset()
        """Those that fell silent."""
        self.dropped = 0
        """Workers that were let go because there were too many."""

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._known.values())

    def get(self, worker: str) -> Worker | None:
        """The process ``host/process``, if it beats or was lost."""
        return self._known.get(worker)

    def take(self, beat: Beat) -> Beat | None:
        """Takes a beat.

        Returns:
            The one before it. One that comes late, after a newer one, changes nothing and is
            returned itself.
        """
        known = self._known.get(beat.worker)
        if known is not None and beat.at_ns < known.beat.at_ns:
            return beat
        before = None if known is None else known.beat
        if beat.is_last:
            self._known.pop(beat.worker, None)
        elif known is None:
            self._known[beat.worker] = Worker(beat, beat.seen_ns)
            if len(self._known) > MOST_WORKERS:
                let_go, _ = self._known.popitem(last=False)
                self.lost -= {let_go}
                self.dropped += 1
        else:
            known.beat = beat
            known.is_lost = False
            self._known.move_to_end(beat.worker)
        self.lost -= {beat.worker}
        return before

    def advance(self, now_ns: int) -> list[Worker]:
        """Those that are lost as of now and were not before."""
        fallen = [w for w in self if not w.is_lost and now_ns >= w.due_ns]
        if fallen:
            for worker in fallen:
                worker.is_lost = True
            self.lost |= {worker.beat.worker for worker in fallen}
        return fallen
