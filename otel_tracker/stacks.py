"""Who works on a stage, and where it hangs: the thread or task that began it, and its stack."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import traceback
import weakref
from types import FrameType
from typing import Any, Final, NamedTuple

MAX_STACK: Final = 4_000
"""Longest stack that is shown, in characters; the innermost frames are kept."""
_MAX_FRAMES: Final = 40

_PACKAGE: Final = os.path.dirname(__file__)
_host = socket.gethostname()
_local = threading.local()


def _forget_where() -> None:
    global _local  # noqa: PLW0603 -- the process id in it is the parent's
    _local = threading.local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_where)


class Worker(NamedTuple):
    """The thread, and the asyncio task where there is one, that opened a stage."""

    thread_id: int
    task: weakref.ref[asyncio.Task[Any]] | None
    name: str
    """Host, process, thread and task, for people."""

    @classmethod
    def current(cls) -> Worker:
        """Whoever calls this."""
        worker: Worker | None = getattr(_local, "worker", None)
        if worker is None:
            where = f"{_host}/{os.getpid()}/{threading.current_thread().name}"
            worker = _local.worker = cls(threading.get_ident(), None, where)
        if asyncio._get_running_loop() is None:  # public, and cheap where there is no loop
            return worker
        task = asyncio.current_task()
        if task is None:
            return worker
        return cls(worker.thread_id, weakref.ref(task), f"{worker.name}/{task.get_name()}")

    @classmethod
    def where(cls) -> str:
        """Host, process and thread of the caller."""
        return cls.current().name

    def stack(self) -> str:
        """Where it is at this moment, the innermost call last; or that it is gone."""
        if self.task is not None:
            task = self.task()
            if task is None or task.done():
                return "the task that began this stage has ended"
            return _await_chain(task)
        frame = sys._current_frames().get(self.thread_id)  # documented for just this
        if frame is None:
            return "the thread that began this stage has ended"
        frames = traceback.extract_stack(frame, limit=_MAX_FRAMES)  # the innermost ones
        if self.thread_id == threading.get_ident():
            while frames and frames[-1].filename.startswith(_PACKAGE):
                frames.pop()  # reading the stack is not where the work hangs
        return _text(frames)


def _await_chain(task: asyncio.Task[Any]) -> str:
    frames: list[traceback.FrameSummary] = []
    awaiting: Any = task.get_coro()
    while awaiting is not None and len(frames) < _MAX_FRAMES:
        frame: FrameType | None = None
        for prefix in ("cr", "gi", "ag"):
            frame = frame or getattr(awaiting, f"{prefix}_frame", None)
        if frame is not None:
            code = frame.f_code
            frames.append(
                traceback.FrameSummary(
                    code.co_filename, frame.f_lineno, code.co_name, lookup_line=False
                )
            )
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            following = getattr(awaiting, name, None)
            if following is not None:
                break
        awaiting = following
    return _text(traceback.StackSummary.from_list(frames))


def _text(frames: traceback.StackSummary) -> str:
    """File, line and function of each frame. No values or source lines: they may hold secrets."""
    lines = [f"{f.filename}:{f.lineno} in {f.name}" for f in frames]
    return "\n".join(lines)[-MAX_STACK:]
