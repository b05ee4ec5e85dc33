"""What was found: a transaction, and how it is put together from what the sources have."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..ids import format_id, parse_id
from ..model import to_datetime
from ..stalls import Patience
from .about import About, judge
from .dumps import ns_of, of_row
from .plain import as_json
from .spans import SPANS_AT_MOST, Span
from .text import text_of_tree
from .tree import Tree
from .wanted import NotFoundError, Wanted
from .words import in_encoding

_LISTED: Final = 10
"""Ids that are listed where a prefix fits several."""
_NOTES_AT_MOST: Final = 20


@dataclass(frozen=True, slots=True)
class Found:
    """A transaction, ready to be shown."""

    trace_id: str
    """32 hex digits."""
    tree: Tree
    about: About
    source: str
    """``jaeger``, ``file``, ``dump`` or ``process``."""
    url: str = ""
    """Its page in Jaeger, if it was read from there."""
    notes: tuple[str, ...] = ()
    """What the reader should know of the source."""

    def text(self, width: int | None = None, color: bool | None = None) -> str:
        """The tree for people.

        Args:
            width: columns; those of the terminal on stdout by default.
            color: with colours; by default where stdout is a terminal and NO_COLOR is not set.
        """
        if width is None:
            width = shutil.get_terminal_size().columns
        if color is None:
            color = (
                sys.stdout.isatty()
                and not os.environ.get("NO_COLOR")
                and os.environ.get("TERM") != "dumb"
            )
        text = text_of_tree(
            self.trace_id, self.tree, self.about, url=self.url, notes=self.notes, width=width,
            color=color,
        )  # fmt: skip
        return in_encoding(text, getattr(sys.stdout, "encoding", None) or "utf-8")

    def as_json(self) -> dict[str, Any]:
        """The tree as plain data: docs/trace.md has every key."""
        return as_json(self.trace_id, self.tree, self.about, self.source, self.url, self.notes)


@dataclass(slots=True)
class Catch:
    """What the sources have of what is wanted. Bounded."""

    wanted: Wanted
    spans: dict[str, list[Span]] = field(default_factory=dict)
    """By trace id; once a second one fits, only the first span of each is kept."""
    rows: dict[str, tuple[int, Mapping[str, Any]]] = field(default_factory=dict)
    """Of dumps, by trace id: when it was written, and the transaction; the newest one counts."""
    notes: list[str] = field(default_factory=list)
    is_cut: bool = False
    """There were more spans than are kept."""
    records: int = 0
    """Records that were read, whatever they spoke of."""

    def note(self, text: str) -> None:
        """Says something about the source, once."""
        if text not in self.notes and len(self.notes) < _NOTES_AT_MOST:
            self.notes.append(text)

    def take(self, span: Span) -> None:
        """Keeps a span of what is wanted."""
        if span.trace_id not in self.spans and self._ids >= _LISTED:
            return
        known = self.spans.setdefault(span.trace_id, [])
        if len(self.spans) > 1 and known:
            return
        if len(known) >= SPANS_AT_MOST:
            self.is_cut = True
            return
        known.append(span)

    def take_row(self, row: Mapping[str, Any], at_ns: int) -> None:
        """Keeps a transaction of a dump of that wall clock, if it is the one that is wanted."""
        number = parse_id(str(row.get("transaction_id", "")))
        trace_id = f"{number or 0:032x}"
        if number and self.wanted.fits(trace_id) and self._ids < _LISTED:
            known = self.rows.get(trace_id)
            if known is None or known[0] <= at_ns:
                self.rows[trace_id] = (at_ns, row)

    @property
    def _ids(self) -> int:
        return len(self.spans) + len(self.rows)

    def found(self, source: str, patience: Patience, url: str = "") -> Found | None:
        """The one transaction; None if there is none.

        Raises:
            NotFoundError: there are several.
        """
        ids = list(dict.fromkeys([*self.spans, *self.rows]))
        if not ids:
            return None
        if len(ids) > 1:
            raise NotFoundError(self._several(ids))
        (trace_id,) = ids
        at_ns, row = self.rows.get(trace_id, (0, {}))
        if trace_id not in self.spans:
            tree, about = of_row(row, trace_id, at_ns)
            return Found(trace_id, tree, about, "dump", notes=tuple(self.notes))
        if self.is_cut:
            self.note(f"it has more than {SPANS_AT_MOST} spans: the others are not shown")
        if row:
            status, issue = row.get("status"), row.get("issue")
            said = f"the debug dump of {_clock(at_ns)} says {status}"
            self.note(said + (f": {issue}" if issue else ""))
        tree = Tree(self.spans[trace_id])
        about = judge(trace_id, tree, time.time_ns(), patience)
        return Found(trace_id, tree, about, source, url, tuple(self.notes))

    def _several(self, ids: list[str]) -> str:
        lines = [f"{self.wanted.text} fits several transactions; give more of the id:"]
        for trace_id in ids[:_LISTED]:
            start_ns = min((s.start_ns for s in self.spans.get(trace_id, ())), default=0)
            if trace_id in self.rows:
                start_ns = ns_of(self.rows[trace_id][1].get("created_at"))
            lines.append(f"  {format_id(int(trace_id, 16))}  {_clock(start_ns)}")
        if len(ids) >= _LISTED:
            lines.append("  and perhaps more")
        return "\n".join(lines)


def _clock(wall_ns: int) -> str:
    return f"{to_datetime(wall_ns):%Y-%m-%d %H:%M:%S} UTC" if wall_ns else "an unknown time"
