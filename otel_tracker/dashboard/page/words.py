"""Numbers, ages and times in words."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3_600
_DAY: Final = 86_400
NEVER: Final = "-"


def ago(seconds: float | None) -> str:
    """A length of time, short: ``4 s``, ``12 min``, ``2 h 05``, ``3 d``; a dash for None."""
    if seconds is None:
        return NEVER
    if seconds < 1:
        return f"{seconds * 1_000:.0f} ms" if seconds > 0 else "0 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        hours, rest = divmod(int(seconds), _HOUR)
        return f"{hours} h {rest // _MINUTE:02}"
    return f"{seconds / _DAY:.0f} d"


def number(count: float | None) -> str:
    """A count with its thousands apart; a dash for None."""
    return NEVER if count is None else f"{count:,.0f}"


def many(count: int, one: str, more: str = "") -> str:
    """``1 user``, ``2 users``; `more` where the plural is irregular."""
    return f"{number(count)} {one if count == 1 else more or one + 's'}"


def clipped(text: str, most: int = 240) -> str:
    """A text that may be long, for where it must not fill the screen."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def moment(text: str | None) -> datetime | None:
    """An ISO 8601 time of the API."""
    return None if text is None else datetime.fromisoformat(text)


class Times:
    """Writes times for one reader.

    Args:
        as_of: now, as the API says it.
        zone: the reader's; None if it is not known.
    """

    def __init__(self, as_of: datetime, zone: tzinfo | None) -> None:
        self._as_of = as_of
        self._zone = zone

    @property
    def as_of(self) -> datetime:
        """Now, as the API says it."""
        return self._as_of

    def utc(self, text: str | None) -> str:
        """``02:38``; with its day where that is not today; a dash for None."""
        at = moment(text)
        return NEVER if at is None else self._clock(at, UTC, seconds=False)

    def both(self, text: str | None, *, seconds: bool = False) -> str:
        """``02:38 UTC (03:38 local)``; the bracket only where the reader's clock differs."""
        at = moment(text)
        if at is None:
            return NEVER
        said = f"{self._clock(at, UTC, seconds=seconds)} UTC"
        if self._zone is not None and at.astimezone(self._zone).utcoffset():
            said += f" ({self._clock(at, self._zone, seconds=seconds)} local)"
        return said

    def past(self, text: str | None) -> str:
        """How long ago: ``3 min ago``."""
        at = moment(text)
        if at is None:
            return NEVER
        return f"{ago(max(0.0, (self._as_of - at).total_seconds()))} ago"

    def _clock(self, at: datetime, zone: tzinfo, *, seconds: bool) -> str:
        there = at.astimezone(zone)
        clock = there.strftime("%H:%M:%S" if seconds else "%H:%M")
        if there.date() == self._as_of.astimezone(zone).date():
            return clock
        return f"{there.strftime('%d %b')} {clock}"
