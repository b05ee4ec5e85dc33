"""RQ, as docs/queues.md shows it: who sends, the job, the worker."""

from __future__ import annotations

from typing import Any

from rq import Queue, Retry, Worker, get_current_job
from rq.job import Job

from otel_tracker import get_debug_tracker, stage, transaction
from tests.queues.notes import notes, remember


def send(queue: Queue, user: str, text: str) -> Job:
    with transaction(notes, user_id=user) as tx:
        tx.queued("memory")
        job = queue.enqueue(make_memory, text, tx.carrier(), retry=Retry(max=3))
        tx.hand_over()
    return job


def make_memory(text: str, carrier: dict[str, str]) -> int:
    job = get_current_job()
    with stage("memory", carrier=carrier, queued_at=job.enqueued_at):  # type: ignore[union-attr]
        return remember(text)


class SendingWorker(Worker):
    def perform_job(self, *args: Any, **options: Any) -> bool:
        try:
            return super().perform_job(*args, **options)
        finally:  # the result is stored; what follows is os._exit
            get_debug_tracker().force_flush(1_000)
