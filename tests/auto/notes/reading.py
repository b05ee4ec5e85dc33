"""From files to sentences: functions of every kind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from opentelemetry import trace

tracer = trace.get_tracer("notes")


def read(path: Path) -> str:
    """The text of a file; the application has spans of its own."""
    with tracer.start_as_current_span("disk", attributes={"file": path.name}):
        return path.read_text(encoding="utf-8")


async def fetch(path: Path) -> str:
    """The same, off the event loop."""
    return await asyncio.to_thread(read, path)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text."""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        if sentence.strip():
            yield sentence.strip()


async def lines(text: str) -> AsyncIterator[str]:
    """The lines of a text."""
    for line in text.splitlines():
        await asyncio.sleep(0)
        yield line
