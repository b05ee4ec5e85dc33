"""Problems of the tracker itself: each is counted, and logged once.

The telemetry path never raises into the application; this is where its troubles go instead.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from .privacy import scrub

logger: Final = logging.getLogger("otel_tracker")

_MAX_KINDS: Final = 200


class Diagnostics:
    """Counts by kind of problem, and the memory of what was logged already."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def warn(self, kind: str, message: str, *args: object) -> None:
        """Counts `kind`; its first time, logs `message`, which names the fix. Never raises."""
        self._note(kind, message, args, exc_info=False)

    def error(self, kind: str, message: str, *args: object) -> None:
        """As `warn`, with the traceback of the exception that is being handled."""
        self._note(kind, message, args, exc_info=True)

    def _note(self, kind: str, message: str, args: tuple[object, ...], *, exc_info: bool) -> None:
        try:
            if kind not in self.counts and len(self.counts) >= _MAX_KINDS:
                kind = "other"
            self.counts[kind] += 1
            if self.counts[kind] == 1:
                text = f"otel_tracker: {message} (logged once; counted under health.problems)"
                clean = (scrub(arg) if isinstance(arg, str) else arg for arg in args)
                logger.warning(text, *clean, exc_info=exc_info)
        except Exception:
            # A log handler of the application raised: there is nobody left to tell.
            return
