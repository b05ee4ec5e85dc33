"""Celery, as docs/queues.md shows it: who sends, the task, the worker."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery  # type: ignore[import-untyped]
from celery.signals import (  # type: ignore[import-untyped]
    before_task_publish,
    worker_process_shutdown,
)

from otel_tracker import get_debug_tracker, stage, transaction
from tests.queues.notes import notes, remember

app = Celery("notes", broker=os.environ.get("REDIS_URL"), backend=os.environ.get("REDIS_URL"))


def send(user: str, text: str) -> Any:
    with transaction(notes, user_id=user) as tx:
        tx.queued("memory")
        result = make_memory.delay(text, tx.carrier())
        tx.hand_over()
    return result


@before_task_publish.connect  # type: ignore[untyped-decorator]
def note_the_moment(headers: dict[str, Any], **_: Any) -> None:
    headers["queued_at"] = time.time()  # a retry is published too


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def send_spans(**_: Any) -> None:
    get_debug_tracker().force_flush(1_000)


@app.task(bind=True, autoretry_for=(ConnectionError,), default_retry_delay=1)  # type: ignore[untyped-decorator]
def make_memory(self: Any, text: str, carrier: dict[str, str]) -> int:
    with stage("memory", carrier=carrier, queued_at=self.request.get("queued_at")):
        return remember(text)
