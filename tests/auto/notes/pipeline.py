"""The whole run of one text."""

from __future__ import annotations

import asyncio
from pathlib import Path

from opentelemetry import trace

from .index import Index
from .reading import fetch, lines, sentences

tracer = trace.get_tracer("notes")


async def index_file(path: Path, user_id: str) -> dict[str, object]:
    """Reads and indexes a file, all in one."""
    text = await fetch(path)
    index = Index.empty()
    count = 0
    for sentence in sentences(text):
        index.add(count, sentence)
        count += 1
    rows = [line async for line in lines(text)]
    return {
        "user": user_id, "sentences": count, "words": index.size, "lines": len(rows),
        "longest": Index.Statistics().longest(index), "kind": index.describe(),
    }  # fmt: skip


def handle(path: Path, user_id: str) -> dict[str, object]:
    """A request: what an HTTP route would call."""
    with tracer.start_as_current_span("request", attributes={"user": user_id}):
        result = asyncio.run(index_file(path, user_id))
        with tracer.start_as_current_span("answer"):
            return result
