"""A service's journal in a process of its own, which somebody kills: appends until then.

    python writer.py DIRECTORY LIMIT BASE

The n-th request is of the moment BASE + n * 10 µs (nanoseconds since 1970).
Prints ``ready N`` when it has restored N requests, then the number of each further one that it has
taken, at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from otel_tracker.dashboard.journal import Journal
from otel_tracker.state import State
from otel_tracker.store import Store, SystemClock
from tests.journal.requests import FEW, PATIENT, fold_of, request


def main() -> None:
    """Runs until it is killed."""
    directory, limit, base_ns = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = Store(State(FEW, PATIENT), SystemClock())
    journal = Journal(directory, store, fold_of(store), limit=limit)
    journal.open()
    journal.restore()
    journal.start()
    number = store.read(lambda state: state.audio_chunks)
    os.write(1, f"ready {number}\n".encode())
    while True:
        journal.take(request(number, base_ns + number * 10_000))
        os.write(1, f"{number}\n".encode())
        number += 1
        if number % 400 == 0:
            journal.tick()


if __name__ == "__main__":
    main()
