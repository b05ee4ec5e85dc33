"""What is asked for: a transaction id, or the beginning of one (pure)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..ids import parse_id
from .words import harmless

PREFIX: Final = 8
"""Characters of an id that are enough in a file."""


class NotFoundError(Exception):
    """There is no such transaction to show. The message says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A transaction id, or the beginning of one."""

    digits: str
    """Lower-case hex: all 32 or the first of them."""

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Reads a UUID, 32 hex digits, or at least the first 8 characters of either.

        Raises:
            NotFoundError: it is none of them.
        """
        text = text.strip().lower()
        whole = parse_id(text)
        if whole:
            return cls(f"{whole:032x}")
        digits = text.replace("-", "")
        if re.fullmatch(rf"[0-9a-f]{{{PREFIX},31}}", digits) and (
            text == digits or text.rstrip("-") == _dashed(digits)
        ):
            return cls(digits)
        raise NotFoundError(
            f"{harmless(text)[:80]!r} is no transaction id; give the UUID, its 32 hex "
            f"digits, or (with --file) at least its first {PREFIX} characters"
        )

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole id."""
        return len(self.digits) == 32

    @property
    def text(self) -> str:
        """As people know it."""
        return _dashed(self.digits)

    def fits(self, trace_id: str) -> bool:
        """Whether that trace is meant."""
        return trace_id.startswith(self.digits)

    def may_be_in(self, record: bytes) -> bool:
        """Whether JSON text can speak of it: most of a file need not be parsed."""
        low = record.lower()
        return self.digits.encode() in low or self.text.encode() in low

    def may_be_in_message(self, message: bytes) -> bool:
        """The same for protobuf."""
        return bytes.fromhex(self.digits[: len(self.digits) // 2 * 2]) in message


def _dashed(digits: str) -> str:
    """The first digits of an id with the dashes of a UUID."""
    groups = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(group for group in groups if group)
