"""The same work where nobody has heard of a tracker: a job of RQ, and a task of Celery."""

from __future__ import annotations

import os

from celery import Celery  # type: ignore[import-untyped]

app = Celery("untracked", broker=os.environ.get("REDIS_URL"), backend=os.environ.get("REDIS_URL"))


@app.task  # type: ignore[untyped-decorator]
def make_memory(text: str, carrier: dict[str, str]) -> int:
    return os.getpid()
