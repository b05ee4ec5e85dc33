"""What the doctor found, as plain data and as text for a person."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any, Final, Literal

HopName = Literal["exporter", "endpoint", "collector", "jaeger", "dashboard"]
State = Literal["ok", "warning", "broken", "unknown", "skipped"]

MARKS: Final[dict[State, str]] = {
    "ok": "✓",
    "warning": "!",
    "broken": "✗",
    "unknown": "!",
    "skipped": "·",
}
_PLAIN_MARKS: Final = str.maketrans({"✓": "+", "✗": "x", "·": "-", "…": "."})
_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Hop:
    """One station on the way of a span, and how it stands there.

    ``broken`` and ``unknown`` make the way not whole; ``fix`` is what to type or to write into a
    configuration, where something can be done.
    """

    hop: HopName
    state: State
    finding: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A value in force. ``source`` is the environment variable that gives it, or ``default``."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of one examination, along the way that a span takes."""

    hops: tuple[Hop, ...]
    configuration: tuple[Setting, ...]
    hints: tuple[str, ...] = ()
    """What looks like a slip and breaks nothing by itself."""
    probe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether a probe went all the way to Jaeger, and no hop is broken."""
        arrived = any(hop.hop == "jaeger" and hop.state in ("ok", "warning") for hop in self.hops)
        return arrived and not any(hop.state == "broken" for hop in self.hops)

    @property
    def first_trouble(self) -> Hop | None:
        """The first hop that is broken; without one, the first of which nothing is known."""
        for state in ("broken", "unknown"):
            for hop in self.hops:
                if hop.state == state:
                    return hop
        return None

    def as_json(self) -> dict[str, Any]:
        """The report as docs/doctor.md describes it."""
        return {
            "whole": self.is_whole,
            "configuration": [
                {"name": s.name, "value": s.value, "source": s.source} for s in self.configuration
            ],
            "hops": [
                {"hop": h.hop, "state": h.state, "finding": h.finding, "fix": h.fix}
                for h in self.hops
            ],
            "hints": list(self.hints),
            "probe": self.probe,
            "versions": self.versions,
        }

    def text(self) -> str:
        """The report for a terminal: the verdict, the hops, what to do, the configuration."""
        lines = [self._verdict(), ""]
        for hop in self.hops:
            lines += _wrapped(f"{MARKS[hop.state]} {hop.hop:<10}", hop.finding)
        lines += self._fixes()
        if self.hints:
            lines += ["", "Worth a look:"]
            for hint in self.hints:
                lines += _wrapped("  - ", hint)
        for title, is_default in (("From the environment:", False), ("Defaults:", True)):
            rows = [s for s in self.configuration if (s.source == "default") is is_default]
            lines += ["", title, *_table(rows, with_source=not is_default)]
        versions = ", ".join(f"{name} {v or 'not installed'}" for name, v in self.versions.items())
        lines += ["", *_wrapped("Versions: ", versions)]
        return _printable("\n".join(lines))

    def _verdict(self) -> str:
        trouble = self.first_trouble
        if self.is_whole:
            warnings = sum(hop.state == "warning" for hop in self.hops)
            but = f", with {warnings} warning{'s' * (warnings > 1)}" if warnings else ""
            return f"The way to Jaeger is whole: the probe arrived{but}."
        if trouble is None:
            return "The way to Jaeger is not whole."
        if trouble.state == "unknown":
            return f"Not sure that the way is whole: {trouble.hop} could not be asked."
        return f"The way to Jaeger is broken at the {trouble.hop}."

    def _fixes(self) -> list[str]:
        trouble = self.first_trouble
        lines = []
        if trouble is not None and trouble.fix:
            lines += ["", "To mend it:", textwrap.indent(trouble.fix, "  ")]
        for hop in self.hops:
            if hop.fix and hop is not trouble:
                lines += ["", f"And for the {hop.hop}:", textwrap.indent(hop.fix, "  ")]
        return lines


def _table(rows: list[Setting], *, with_source: bool) -> list[str]:
    names = max((len(s.name) for s in rows), default=0)
    values = min(44, max((len(s.value) for s in rows), default=0)) if with_source else 0
    return [
        f"  {s.name:<{names}}  {s.value:<{values}}{f'  {s.source}' * with_source}" for s in rows
    ] or ["  nothing"]


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        head + text,
        _WIDTH,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _printable(text: str) -> str:
    """`text` in what the terminal can show: an encoding error would hide all of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return text.translate(_PLAIN_MARKS).encode("ascii", "replace").decode("ascii")
    return text
