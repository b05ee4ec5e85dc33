"""What the processes share: the pipeline, the jobs in its queues, and what is told of the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from otel_tracker import pipeline

from .memories import Memory

STALL_AFTER_S: Final = 1.5
"""Silence after which the memory stage counts as stalled; rightly short for one small write."""

# Declared where every process imports it: each judges by it what it knows.
VOICE_NOTES: Final = pipeline(
    "voice_notes", "audio", "transcription", "memory", stall_after={"memory": STALL_AFTER_S}
)


# --- jobs -----------------------------------------------------------------------------------------
# The carrier of a transaction goes along in the message: it is all that the next process needs.


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording that waits for its transcription."""

    carrier: dict[str, str]
    user_id: str
    file_name: str
    recording: bytes


@dataclass(frozen=True, slots=True)
class Transcribed:
    """A transcript that waits for its memories to be made."""

    carrier: dict[str, str]
    user_id: str
    transcript: str


# --- news -----------------------------------------------------------------------------------------
# For the progress bars and the report alone: the tracker needs none of it.


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a stage is done, 0 to 1."""

    transaction_id: str
    stage: str
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a recording; `error` is why it got no further."""

    transaction_id: str
    transcript: str = ""
    memories: tuple[Memory, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stalled:
    """What the tracker called `on_stall` with."""

    transaction_id: str
    info: dict[str, Any]


News = Progress | Done | Stalled
