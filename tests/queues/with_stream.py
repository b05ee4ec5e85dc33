"""A bare Redis stream, as docs/queues.md shows it: who sends, and the worker."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

from redis import Redis, ResponseError

from otel_tracker import stage, transaction
from tests.queues.notes import notes, remember


def send(redis: Any, user: str, text: str) -> Any:
    with transaction(notes, user_id=user) as tx:
        tx.queued("memory")
        entry_id = redis.xadd("notes", {"text": text, **tx.carrier()})
        tx.hand_over()
    return entry_id


def work(redis: Any, consumer: str) -> None:
    """Takes entries until the process is told to end."""
    while True:
        new = redis.xreadgroup("workers", consumer, {"notes": ">"}, count=10, block=1_000)
        for _, entries in new:
            for entry_id, fields in entries:
                make_memory(redis, entry_id, fields)


def make_memory(redis: Any, entry_id: str, fields: dict[str, str]) -> None:
    moment = int(entry_id.partition("-")[0]) / 1_000  # an entry's id is its time, in ms
    try:
        with stage("memory", carrier=fields, queued_at=moment):
            remember(fields["text"])
    except ConnectionError:
        redis.xadd("notes", fields)  # the retry is a new entry, with a moment of its own
    redis.xack("notes", "workers", entry_id)


def main() -> None:
    """The worker."""
    redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
    with contextlib.suppress(ResponseError):  # another worker has made it
        redis.xgroup_create("notes", "workers", id="0", mkstream=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    work(redis, f"worker-{os.getpid()}")


if __name__ == "__main__":
    main()
