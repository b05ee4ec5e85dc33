"""ASGI's lifespan: an application is told when serving begins and when it has ended."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from .deadlines import Application, Message

logger: Final = logging.getLogger("otel_tracker")


class Lifespan:
    """Tells one application. Those that do not take such messages are left alone.

    Args:
        application: ASGI 3.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._answered = asyncio.Event()
        self._failure: str | None = None
        self._has_started = False
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Returns once the application is ready.

        Raises:
            RuntimeError: it said that it cannot.
        """
        self._task = asyncio.get_running_loop().create_task(self._run())
        await self._tell("lifespan.startup")
        if self._failure is not None:
            raise RuntimeError(f"the application did not start: {self._failure}")
        self._has_started = True

    async def end(self, timeout_s: float) -> None:
        """Returns once the application has finished, or after `timeout_s`."""
        if self._task is None or self._task.done():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._tell("lifespan.shutdown")
                await self._task
        except TimeoutError:
            logger.error("otel_tracker: the dashboard's service took over %g s to end", timeout_s)
        if self._failure is not None:
            logger.error("otel_tracker: the dashboard's service did not end: %s", self._failure)

    async def _tell(self, what: str) -> None:
        self._answered.clear()
        self._messages.put_nowait({"type": what})
        await self._answered.wait()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        try:
            await self._application(scope, self._messages.get, self._send)
        except Exception:
            if self._has_started:  # before, it is how an application says that it has none
                logger.exception("otel_tracker: the dashboard's service failed")
        finally:
            self._answered.set()

    async def _send(self, message: Message) -> None:
        if message["type"].endswith(".failed"):
            self._failure = message.get("message") or "it gives no reason"
        self._answered.set()
