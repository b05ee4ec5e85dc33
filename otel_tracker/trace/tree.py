"""The spans of one trace as a tree (pure). Parents may be missing, or go in circles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property

from ..ids import is_ours, root_span_id
from .spans import Span


class Tree:
    """The spans of one trace, each at exactly one place. Not changed once it is made.

    Args:
        spans: all that were found; of one that comes twice, an ended copy counts.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = _in_order(spans)
        """By span id, by their start."""
        self.children: dict[str, list[Span]] = {}
        """By the parent's id, by their start; without circles."""
        for span in self.spans.values():
            self.children.setdefault(span.parent_id, []).append(span)
        self.start_ns = min((s.start_ns for s in self.spans.values() if s.start_ns), default=0)
        """Wall clock of the first start; 0 where there is none."""
        self.end_ns = max((span.last_ns for span in self.spans.values()), default=0)
        """Wall clock of the last thing that is known."""
        self.roots = self.children.get("", [])
        """Those without a parent."""
        self.rootless = self._rootless()
        """Those directly under a root that is known, though it has not come."""
        self.detached = self._detached()
        """The topmost of those that hang under no root: without their parent, or in a circle."""

    def under(self, heads: Iterable[Span]) -> Iterator[tuple[int, Span]]:
        """`heads` and what is under them, with its depth: parents first, then by their start."""
        todo = [(0, head) for head in reversed(list(heads))]
        while todo:
            depth, span = todo.pop()
            yield depth, span
            children = self.children.get(span.span_id, ())
            todo.extend((depth + 1, child) for child in reversed(children))

    def tree(self) -> Iterator[tuple[int, Span]]:
        """Every span under a root, with its depth."""
        return self.under(self.roots)

    def everything(self) -> Iterator[Span]:
        """Every span, in the order in which they are shown."""
        return (span for _, span in self.under([*self.roots, *self.rootless, *self.detached]))

    def places(self) -> list[tuple[str, str, str]]:
        """Service, host and process of all that worked on it, in order."""
        found = dict.fromkeys((s.service, s.host, s.process) for s in self.everything())
        return [place for place in found if any(place)]

    def end_under(self, span: Span) -> int:
        """Wall clock of the last thing that is known of `span` and of what is under it."""
        return self._ends[span.span_id]

    @cached_property
    def _ends(self) -> dict[str, int]:
        ends: dict[str, int] = {}
        for span in reversed(list(self.everything())):  # children before their parents
            children = self.children.get(span.span_id, ())
            ends[span.span_id] = max([span.last_ns, *(ends[c.span_id] for c in children)])
        return ends

    def _rootless(self) -> list[Span]:
        trace_id = next((span.trace_id for span in self.spans.values()), "")
        if self.roots or not re.fullmatch("[0-9a-f]{32}", trace_id):
            return []
        number = int(trace_id, 16)
        root_id = f"{root_span_id(number):016x}"
        return (
            self.children.get(root_id, []) if is_ours(number) and root_id not in self.spans else []
        )

    def _detached(self) -> list[Span]:
        reached = {span.span_id for _, span in self.under([*self.roots, *self.rootless])}
        loose = [span for span in self.spans.values() if span.span_id not in reached]
        heads = [span for span in loose if span.parent_id not in self.spans]
        reached.update(span.span_id for _, span in self.under(heads))
        for span in loose:  # the rest hang under circles, which are cut open
            if span.span_id not in reached:
                head = self._in_circle(span)
                self.children[head.parent_id].remove(head)
                heads.append(head)
                reached.update(one.span_id for _, one in self.under([head]))
        return heads

    def _in_circle(self, span: Span) -> Span:
        """The first span of the circle above `span`, which has no other end."""
        above: dict[str, Span] = {}
        while span.span_id not in above:
            above[span.span_id] = span
            span = self.spans[span.parent_id]
        passed = list(above.values())
        return min(passed[passed.index(span) :], key=lambda one: one.start_ns)


def _in_order(spans: Iterable[Span]) -> dict[str, Span]:
    found: dict[str, Span] = {}
    for span in spans:
        known = found.get(span.span_id)
        if known is None or (known.is_open and not span.is_open):
            found[span.span_id] = span
    # A wait that is as long as what it waits for stands above it: the longer one first.
    ordered = sorted(found.values(), key=lambda s: (s.start_ns, -s.duration_ns))
    return {span.span_id: span for span in ordered}
