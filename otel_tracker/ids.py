"""Transaction ids: 128 random bits, a trace id written as a UUID, marked as ours (pure).

The 13th hex digit is always 8, so that a UUID of somebody else's is told apart. There are no
variant bits: a uuid4's would top the low half, by which ratio samplers decide, and bias them to all
or none.
"""

from __future__ import annotations

import os
import random
import re
from typing import Final

LOW_HALF: Final = (1 << 64) - 1
_MARK_SHIFT: Final = 76  # the 13th hex digit of 32
_MARK: Final = 8
_CLEAR: Final = ~(0xF << _MARK_SHIFT)
_TEXT: Final = re.compile(
    r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE
)


# Its own generator, seeded by the system: an application's `random.seed()` must not repeat our ids,
# and a system call for each id costs as much as a span. Ids are no secrets.
_random = random.Random()  # noqa: S311
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def new_trace_id() -> int:
    """A fresh trace id of ours; its low half, never zero, is the root's span id."""
    while True:
        bits = _random.getrandbits(128) & _CLEAR | _MARK << _MARK_SHIFT
        if bits & LOW_HALF:
            return bits


def new_span_id() -> int:
    """A random span id, never zero."""
    return _random.getrandbits(64) or 1


def is_ours(trace_id: int) -> bool:
    """Whether `trace_id` carries the mark."""
    return trace_id >> _MARK_SHIFT & 0xF == _MARK and trace_id & LOW_HALF != 0


def root_span_id(trace_id: int) -> int:
    """The span id of the root, derived, so that the transaction id alone continues the trace."""
    return trace_id & LOW_HALF


def format_id(trace_id: int) -> str:
    """The trace id in the five groups of a UUID."""
    h = f"{trace_id:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def parse_id(text: str) -> int | None:
    """The trace id that `text` writes, as a UUID or as Jaeger's 32 hex digits; None if neither."""
    if _TEXT.fullmatch(text) is None:
        return None
    return int(text.replace("-", ""), 16)
