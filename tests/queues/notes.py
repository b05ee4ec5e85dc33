"""The application around the queues: its pipeline, and the work that a worker does."""

from __future__ import annotations

import os
from pathlib import Path

from otel_tracker import pipeline

notes = pipeline("notes", "memory")  # both sides import it: the last stage's success is the end

FLAKY = "flaky "
"""A text of this beginning names a file; the work on it fails until that file is there."""


def remember(text: str) -> int:
    """The work; says in which process it was done.

    Raises:
        ConnectionError: the text asks for it, and this is the first attempt.
    """
    if text.startswith(FLAKY):
        been_here = Path(text.removeprefix(FLAKY))
        if not been_here.exists():
            been_here.touch()
            raise ConnectionError("the model is away")
    return os.getpid()
