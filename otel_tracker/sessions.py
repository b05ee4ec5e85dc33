"""What a memory session holds beside its spans: texts, which stay in the process. Bounded.

The summaries have the keys of the SQLite tables that an older generation of callers read.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from .model import NS_PER_S

MAX_SESSIONS: Final = 200
MAX_ROWS: Final = 500
"""Most segments, extractions or attempts of one session."""


@dataclass(slots=True)
class Session:
    """One memory run for one recording. Times are seconds since the epoch."""

    session_id: str
    audio_uuid: str
    client_id: str
    user_id: str
    user_email: str
    started: float
    ended: float | None = None
    full_conversation: str | None = None
    processing_started: float | None = None
    processing_started_ns: int | None = None
    """The same on the monotonic clock, while it runs."""
    processing_completed: float | None = None
    success: bool | None = None
    error: str | None = None
    segments: list[dict[str, Any]] = field(default_factory=list)
    extractions: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    dropped_rows: int = 0

    def add(self, rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
        """Appends to one of its lists, up to the bound."""
        if len(rows) < MAX_ROWS:
            rows.append(row)
        else:
            self.dropped_rows += 1

    def row(self) -> dict[str, Any]:
        """The summary's fields up to ``memory_processing_error``."""
        return {
            "session_id": self.session_id,
            "audio_uuid": self.audio_uuid,
            "client_id": self.client_id,
            "user_id": self.user_id,
            "user_email": self.user_email,
            "session_start_time": self.started,
            "session_end_time": self.ended,
            "transcript_count": len(self.segments),
            "full_conversation": self.full_conversation,
            "memory_processing_started": self.processing_started,
            "memory_processing_completed": self.processing_completed,
            "memory_processing_success": self.success,
            "memory_processing_error": self.error,
        }

    def summary(self) -> dict[str, Any]:
        """Everything of it, as copies."""
        return {
            **self.row(),
            "transcript_segments": copy.deepcopy(self.segments),
            "memory_extractions": copy.deepcopy(self.extractions),
            "extraction_attempts": copy.deepcopy(self.attempts),
        }


class SessionBook:
    """The newest memory sessions of this process, by id. Single operations are atomic."""

    def __init__(self) -> None:
        self.clear()

    def add(self, session: Session) -> None:
        """Keeps a session; beyond the bound the oldest is let go."""
        self._sessions[session.session_id] = session
        self.total += 1
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
            self.dropped += 1

    def get(self, session_id: str) -> Session | None:
        """The session of that id, if it is kept."""
        return self._sessions.get(session_id)

    def newest_of(self, audio_uuid: str) -> Session | None:
        """The newest session of a recording."""
        for session in reversed(list(self._sessions.values())):
            if session.audio_uuid == audio_uuid:
                return session
        return None

    def summary_of(self, audio_uuid: str) -> dict[str, Any] | None:
        """Everything of the newest session of a recording; None if none is kept."""
        session = self.newest_of(audio_uuid)
        return None if session is None else session.summary()

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """Rows of the newest sessions, newest first."""
        newest = list(self._sessions.values())[::-1][: max(0, limit)]
        return [session.row() for session in newest]

    def completed(self, session: Session, success: bool, now_ns: int) -> None:
        """The session's memory run is over. Told again, the newest word counts."""
        if session.success is not None:
            self.succeeded -= session.success
            self.failed -= not session.success
        session.success = success
        self.succeeded += success
        self.failed += not success
        if session.processing_started_ns is not None:
            self._processing_ns += now_ns - session.processing_started_ns
            self._processings += 1
            session.processing_started_ns = None

    def stats(self) -> dict[str, Any]:
        """Totals over all sessions, those let go included; rates in percent, times in seconds."""
        average_ns = self._processing_ns / self._processings if self._processings else 0
        return {
            "total_sessions": self.total,
            "successful_sessions": self.succeeded,
            "failed_sessions": self.failed,
            "success_rate": 100.0 * self.succeeded / self.total if self.total else 0.0,
            "total_transcripts": self.transcripts,
            "total_memories": self.memories,
            "avg_processing_time_seconds": average_ns / NS_PER_S,
            "memories_per_session": self.memories / self.total if self.total else 0.0,
        }

    def clear(self) -> None:
        """Drops all: in a forked child they are the parent's."""
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self.total = self.succeeded = self.failed = self.transcripts = self.memories = 0
        self.dropped = 0
        self._processing_ns = self._processings = 0
