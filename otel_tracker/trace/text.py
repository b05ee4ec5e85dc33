"""A transaction's tree as text for people (pure)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from .. import semconv
from ..ids import format_id
from ..model import MARK_NS, NS_PER_S, Kind, Outcome, TransactionStatus, to_datetime
from .about import About
from .spans import ERROR, Span
from .tree import Tree
from .words import harmless, span_time

_SILENCE_NS: Final = 3 * NS_PER_S
"""A pause between siblings that is worth a line."""
_BAR: Final = 20
_BAR_FROM: Final = 110
"""Columns from which there is room for a bar."""
_NAME_AT_MOST: Final = 60
_INDENT_AT_MOST: Final = 90
"""Deeper than 30 levels, all stand in one column: a chain of thousands must not fill the memory."""
_LINES_AT_MOST: Final = 40
_PLACES_AT_MOST: Final = 8

_RED: Final = "31"
_YELLOW: Final = "33"
_GREEN: Final = "32"
_DIM: Final = "2"
_BOLD: Final = "1"
_COLORS: Final[dict[str, str]] = {
    TransactionStatus.COMPLETED.value: _GREEN,
    TransactionStatus.FAILED.value: _RED,
    TransactionStatus.STALLED.value: _YELLOW,
    Outcome.SUCCESS: _GREEN,
    Outcome.FAILURE: _RED,
    Outcome.ABANDONED: _YELLOW,
    Outcome.INTERRUPTED: _YELLOW,
    ERROR: _RED,
}
_LOUD: Final = frozenset({Outcome.FAILURE, Outcome.ABANDONED, Outcome.INTERRUPTED, ERROR})
"""Written in capitals: they stand out without colours too."""


def text_of_tree(
    trace_id: str,
    tree: Tree,
    about: About,
    *,
    url: str = "",
    notes: Iterable[str] = (),
    width: int = 0,
    color: bool = False,
) -> str:
    """The tree for people.

    Args:
        trace_id: 32 hex digits.
        tree: its spans.
        about: the rest that is known.
        url: its page in Jaeger, if it was read from there.
        notes: what else the reader should know.
        width: columns of the terminal; a bar needs 110.
        color: with colours, which say nothing that words do not.
    """
    page = _Page(trace_id, tree, about, width=width, color=color)
    parts = [*page.header(url), ""]
    if not tree.roots:
        parts += ["The root span has not come: the transaction is still open, or it was lost.", ""]
    parts += page.layout(list(page.body()))
    parts += page.events()
    told = [f"note: {harmless(note)}" for note in notes]
    return "\n".join([*parts, *([""] if told else []), *told])


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of the tree before it is laid out, and what is said below it."""

    name: str
    start: str = ""
    took: str = ""
    bar: str = ""
    outcome: str = ""
    color: str = ""
    """Of the outcome."""
    where: str = ""
    below: tuple[str, ...] = ()


@dataclass(slots=True)
class _Level:
    """Siblings under way."""

    left: list[Span]
    """Those that have not been shown, the next one last."""
    indent: str
    quiet_ns: int = 0
    """Since when nothing is heard of those before."""


class _Page:
    """Says what is to be said of a tree, and lays it out."""

    def __init__(self, trace_id: str, tree: Tree, about: About, *, width: int, color: bool) -> None:
        self._trace_id = trace_id
        self._tree = tree
        self._about = about
        self._has_bar = width >= _BAR_FROM
        self._color = color
        attempts = [s for s in tree.spans.values() if s.kind == Kind.STAGE.value]
        self._repeated = {s.stage for s in attempts if s.attempt > 1}
        places = {(s.service, s.process) for s in tree.spans.values() if s.service or s.process}
        self._shows_where = len(places) > 1

    def _paint(self, text: str, color: str) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._color and color and text else text

    # --- header ---

    def header(self, url: str) -> Iterator[str]:
        about, tree = self._about, self._tree
        status = about.status.upper().replace("_", " ")
        title = about.pipeline or next((root.name for root in tree.roots), "") or "trace"
        title = self._paint(harmless(title), _BOLD)
        yield f"{title}  {self._paint(harmless(status), _COLORS.get(about.status, ''))}".rstrip()
        if about.issue:
            yield f"  {harmless(about.issue)}"
        number = int(self._trace_id, 16)
        rows = [("transaction", format_id(number)), ("trace", self._trace_id)]
        who = (
            ("user", about.user_id), ("client", about.client_id),
            ("conversation", about.conversation_id), ("recording", about.audio_uuid),
        )  # fmt: skip
        rows += [(key, value) for key, value in who if value]
        if tree.start_ns:
            took = span_time(tree.end_ns - tree.start_ns)
            rows.append(("started", f"{_clock(tree.start_ns)} UTC, {took} until the last sign"))
        if about.as_of_ns:
            rows.append(("as of", f"{_clock(about.as_of_ns)} UTC"))
        rows += self._services()
        if url:
            rows.append(("in Jaeger", url))
        for key, value in rows:
            yield f"  {key:<12} {harmless(value)}"

    def _services(self) -> Iterator[tuple[str, str]]:
        by_service: dict[str, list[str]] = {}
        for service, host, process in self._tree.places():
            where = f"process {process}" if process else ""
            where += f" on {host}" if host else ""
            by_service.setdefault(service, []).append(where.strip())
        for service, places in by_service.items():
            listed = ", ".join(place for place in places[:_PLACES_AT_MOST] if place)
            more = len(places) - _PLACES_AT_MOST
            listed += f" and {more} more" if more > 0 else ""
            if not service:
                yield "process", listed
            else:
                yield "service", f"{service} ({listed})" if listed else service

    # --- the tree ---

    def body(self) -> Iterator[_Row | str]:
        """The rows of the tree; a text is a line across all columns."""
        tree = self._tree
        yield from self._heads(tree.roots)
        if tree.rootless:
            name = harmless(self._about.pipeline or "the root")
            yield _Row(name, outcome="its span has not come", color=_YELLOW)
            yield from self._branches(tree.rootless)
        if tree.detached:
            yield ""
            yield "not attached (their parents did not come):"
            yield from self._heads(tree.detached)

    def _heads(self, heads: list[Span]) -> Iterator[_Row]:
        for head in heads:
            yield self._row(head, "", "")
            yield from self._branches(self._children(head))

    def _children(self, span: Span) -> list[Span]:
        return self._tree.children.get(span.span_id, [])

    def _branches(self, siblings: list[Span]) -> Iterator[_Row]:
        """Siblings, what is under them, and the silence between them. Not recursive: any depth."""
        levels = [_Level(siblings[::-1], "")]
        while levels:
            level = levels[-1]
            if not level.left:
                levels.pop()
                continue
            span = level.left.pop()
            silent_ns = span.start_ns - level.quiet_ns if level.quiet_ns and span.start_ns else 0
            if silent_ns > _SILENCE_NS:
                yield _Row(f"{level.indent}│ … {span_time(silent_ns)} of silence")
            level.quiet_ns = max(level.quiet_ns, self._tree.end_under(span))
            is_last = not level.left
            is_deep = len(level.indent) >= _INDENT_AT_MOST
            below = level.indent + ("" if is_deep else "   " if is_last else "│  ")
            yield self._row(span, level.indent + ("└─ " if is_last else "├─ "), below)
            levels.append(_Level(self._children(span)[::-1], below))

    def _row(self, span: Span, branch: str, below: str) -> _Row:
        outcome, color = self._outcome(span)
        is_moment = span.is_open or span.duration_ns <= MARK_NS
        where = "/".join(part for part in (span.service, span.process) if part)
        stem = below + ("│  " if self._children(span) else "   ")
        return _Row(
            branch + self._name(span),
            start=span_time(span.start_ns - self._tree.start_ns) if span.start_ns else "?",
            took="" if is_moment else span_time(span.duration_ns),
            bar=self._bar(span),
            outcome=outcome,
            color=color,
            where=harmless(where) if self._shows_where else "",
            below=tuple(stem + reason for reason in _reasons(span)),
        )

    def _name(self, span: Span) -> str:
        name = span.name if len(span.name) <= _NAME_AT_MOST else span.name[:_NAME_AT_MOST] + "…"
        key = span.attributes.get(semconv.STAGE_KEY)
        name += f" [{key}]" if key else ""
        if span.attempt > 1 or (span.attempt and span.stage in self._repeated):
            name += f" (attempt {span.attempt})"
        return harmless(name)

    def _outcome(self, span: Span) -> tuple[str, str]:
        """The outcome in words, and its colour."""
        lasted_ns = self._about.as_of_ns - span.start_ns if span.start_ns else 0
        so_far = f", {span_time(lasted_ns)} so far" if lasted_ns > 0 else ""
        if span.kind == Kind.STALLED.value:
            return "STALLED", _YELLOW
        if span.kind == Kind.RECOVERED.value:
            return "went on", _GREEN
        if span.kind == Kind.QUEUED.value:
            return f"waiting in a queue{so_far}" if span.is_open else "waited in a queue", _DIM
        if span.is_open:
            return f"still open{so_far}", _YELLOW
        if span.kind == Kind.TRANSACTION.value and not span.outcome:
            return "", ""  # it ended here, and others tell how it went
        word = span.outcome.upper() if span.outcome in _LOUD else span.outcome
        if span.attributes.get(semconv.STAGE_INFERRED) is True:
            word += " (inferred)"
        return harmless(word), _COLORS.get(span.outcome, "")

    def _bar(self, span: Span) -> str:
        if not self._has_bar or not span.start_ns:
            return ""
        whole_ns = max(1, self._tree.end_ns - self._tree.start_ns)
        begin = (span.start_ns - self._tree.start_ns) * _BAR // whole_ns
        end_ns = self._tree.end_ns if span.is_open else span.last_ns
        end = -(-(end_ns - self._tree.start_ns) * _BAR // whole_ns)
        begin = min(begin, _BAR - 1)
        cell = "─" if span.kind == Kind.QUEUED.value else "█"
        return " " * begin + cell * max(1, min(end, _BAR) - begin)

    def layout(self, lines: list[_Row | str]) -> Iterator[str]:
        """The columns with their titles."""
        rows = [line for line in lines if isinstance(line, _Row)]

        def widest(part: Callable[[_Row], str]) -> int:
            return max((len(part(row)) for row in rows), default=0)

        start, took = max(5, widest(lambda one: one.start)), max(4, widest(lambda one: one.took))
        name, outcome = widest(lambda one: one.name), widest(lambda one: one.outcome)
        bar = _BAR + 2 if self._has_bar else 0
        yield self._paint(f"{'start':>{start}}  {'took':>{took}}  {'':<{bar}}stage", _DIM)
        margin = " " * (start + 2 + took + 2 + bar)
        for line in lines:
            if isinstance(line, str):
                yield line
                continue
            yield (
                f"{line.start:>{start}}  {line.took:>{took}}  "
                + self._paint(f"{line.bar:<{bar}}", _DIM)
                + f"{line.name:<{name}}  "
                + self._paint(f"{line.outcome:<{outcome}}", line.color)
                + f"  {line.where}"
            ).rstrip()
            for text in line.below:
                yield (margin + text).rstrip()

    def events(self) -> Iterator[str]:
        if not self._about.events:
            return
        yield ""
        yield "events as they were reported"
        for event in self._about.events:
            offset = span_time(max(0, event.at_ns - self._tree.start_ns)) if event.at_ns else "?"
            line = f"{offset:>12}  {event.name}  {'ok' if event.success else 'FAILED'}"
            if event.error:
                line += f": {event.error}"
            if event.metadata:
                line += "  " + _pairs(event.metadata.items())
            yield harmless(line)


def _reasons(span: Span) -> Iterator[str]:
    """What went wrong, why it was skipped, and where it hung."""
    why = span.error
    if span.error_type not in ("", semconv.OTHER_ERROR, semconv.STALLED):
        why = f"{span.error_type}: {why}" if why else span.error_type
    yield from _lines(why)
    skip = span.attributes.get(semconv.SKIP_REASON)
    if skip:
        yield from _lines(f"because: {skip}")
    if why or span.is_open:
        pairs = _pairs((k, v) for k, v in span.details.items() if v != span.error_type)
        yield from _lines(f"with {pairs}" if pairs else "")
    if span.stack:
        yield "it hung at (innermost call last):"
        yield from (f"  {line}" for line in _lines(span.stack))


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{key}={value}" for key, value in pairs)


def _lines(text: str) -> list[str]:
    lines = [harmless(line) for line in re.split(r"\r\n|\n", text) if line.strip()]
    if len(lines) > _LINES_AT_MOST:
        return [f"… {len(lines) - _LINES_AT_MOST} lines more", *lines[-_LINES_AT_MOST:]]
    return lines


def _clock(wall_ns: int) -> str:
    return to_datetime(wall_ns).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
