"""A trace as it was received: what its spans prove.

Read from OTLP: it shows what every backend would see, not what the tracker makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from otel_tracker.model import NS_PER_S
from otel_tracker.trace.spans import Span
from otel_tracker.trace.tree import Tree


class Trace(Tree):
    """The spans of one trace, and whether it is whole."""

    @property
    def processes(self) -> list[str]:
        """Ids of the processes that worked on it, in order."""
        return list(dict.fromkeys(span.process for _, span in self.tree() if span.process))

    def flaw(self) -> str:
        """Why it is not whole: one root, and every other span under it; empty where it is."""
        if not self.spans:
            return "no span of it came"
        if len(self.roots) != 1:
            return f"it has {len(self.roots)} roots"
        loose = len(self.spans) - len(list(self.tree()))
        return f"{loose} of its spans are not under its root" if loose else ""

    def rows(self) -> list[dict[str, Any]]:
        """The tree as plain data; seconds, counted from the first start."""
        return [
            {
                "depth": depth,
                "span": span.name,
                "service": span.service,
                "process": span.process,
                "start": round((span.start_ns - self.start_ns) / NS_PER_S, 6),
                "duration": round(span.duration_ns / NS_PER_S, 6),
                "outcome": span.outcome,
            }
            for depth, span in self.tree()
        ]


def traces_of(spans: Iterable[Span]) -> dict[str, Trace]:
    """The traces that these spans belong to, by their ids."""
    by_id: dict[str, list[Span]] = {}
    for span in spans:
        by_id.setdefault(span.trace_id, []).append(span)
    return {trace_id: Trace(found) for trace_id, found in by_id.items()}
