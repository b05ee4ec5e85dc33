"""A module whose engine is not there the first time that it is imported."""

from __future__ import annotations

import sys

if not hasattr(sys, "notes_engine"):
    sys.notes_engine = True  # type: ignore[attr-defined]
    raise ImportError("the engine is not there yet")


def translate(text: str) -> str:
    """The text in upper case."""
    return text.upper()
