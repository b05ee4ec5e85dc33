"""What came from elsewhere, and lengths of time, as text that a terminal only shows (pure)."""

from __future__ import annotations

from typing import Final

from ..model import NS_PER_S

_ASCII: Final = str.maketrans(
    {"├": "|", "└": "`", "│": "|", "─": "-", "█": "#", "…": "...", "µ": "u"}
)


def harmless(text: str) -> str:
    """One line that a terminal only shows: whatever it could obey is spelled out as its code."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c == "\t" else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def in_encoding(text: str, encoding: str) -> str:
    """`text` as a terminal of that encoding takes it: in ASCII where it lacks a character."""
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        text = text.translate(_ASCII)
        return text.encode("ascii", "backslashreplace").decode("ascii")
    return text


def span_time(ns: int) -> str:
    """A length of time for people, to three digits or so."""
    if ns < NS_PER_S // 1_000:
        return f"{ns / 1_000:.0f} µs" if ns >= 500 else "0 s"
    if ns < NS_PER_S:
        return f"{ns / 1_000_000:.0f} ms"
    seconds = ns / NS_PER_S
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {seconds:02d} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h" if days else f"{hours} h {minutes:02d} min"
