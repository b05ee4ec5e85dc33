"""Notes when a child of Celery begins a task: the pool alone may let a task wait for seconds."""

from __future__ import annotations

import time
from typing import Any

from celery.signals import task_prerun  # type: ignore[import-untyped]


@task_prerun.connect  # type: ignore[untyped-decorator]
def note(task_id: str, task: Any, **_: Any) -> None:
    task.backend.client.set(f"began-{task_id}", time.time())
