"""`DebugSystemTracker`: the whole drop-in API, with the memory-session family.

A memory session is a transaction of its own; its texts stay in the process (`sessions.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from .ids import format_id, new_trace_id
from .model import EMPTY, MARK_NS, MEMORY_SESSION, NS_PER_S, PipelineStage, Who
from .privacy import id_text, plain_metadata, text_of
from .sessions import Session
from .tracker import MOST, TransactionTracker, limit_of

_LONGEST_NS: Final = 30 * 24 * 3600 * NS_PER_S
"""The longest reported duration of an extraction: 30 days."""


class DebugSystemTracker(TransactionTracker):
    """The old debug tracker's whole API on OpenTelemetry spans.

    Without arguments an independent tracker with an OpenTelemetry provider of its own; the shared
    one is `get_debug_tracker()`. Arguments are those of `TransactionTracker`.
    """

    # --- writes ---------------------------------------------------------------------------------

    def start_memory_session(
        self,
        audio_uuid: object,
        client_id: object = None,
        user_id: object = None,
        user_email: object = None,
    ) -> str:
        """Begins the memory run of a recording: a transaction of its own.

        The e-mail address and all texts stay in the process.

        Returns:
            The session's id, a transaction id.
        """
        try:
            if self.settings.disabled:
                return format_id(new_trace_id())
            who = Who(id_text(user_id), id_text(client_id), audio_uuid=id_text(audio_uuid))
            handle = self._directory.create(who, MEMORY_SESSION, EMPTY)
            self._sessions.add(
                Session(
                    handle.text_id,
                    who.audio_uuid,
                    who.client_id,
                    who.user_id,
                    text_of(user_email, 256),
                    self._seconds(),
                )
            )
            return handle.text_id
        except Exception:
            self._diagnostics.error("memory_session", "a memory session could not be started")
            return format_id(new_trace_id())

    def start_memory_processing(self, session_id: object) -> None:
        """The memory stage of a session begins."""

        def start() -> None:
            session = self._session(session_id)
            if session is not None:
                session.processing_started = self._seconds()
                session.processing_started_ns = self._clock.monotonic_ns()
            self.track_event(session_id, PipelineStage.MEMORY_STARTED)

        self._guard(None, start)

    def complete_memory_processing(
        self, session_id: object, success: object = True, error_message: object = None
    ) -> None:
        """The memory stage of a session ended; with a success the session is done."""

        def complete() -> None:
            session = self._session(session_id)
            if session is not None:
                session.processing_completed = session.ended = self._seconds()
                session.error = text_of(error_message) or None
                self._sessions.completed(session, bool(success), self._clock.monotonic_ns())
            self.track_event(session_id, PipelineStage.MEMORY_COMPLETED, success, error_message)

        self._guard(None, complete)

    def add_memory_extraction(
        self,
        session_id: object,
        audio_uuid: object,
        mem0_memory_id: object,
        memory_text: object,
        memory_type: object = "general",
        extraction_prompt: object = None,
        llm_response: object = None,
        metadata: object = None,
    ) -> None:
        """One memory that came out: a child span; its texts stay in the process."""

        def add() -> None:
            given = plain_metadata(metadata) if isinstance(metadata, Mapping) else {}
            # Memory stores put the memory's text in here under names of their own.
            numbers = {k: v for k, v in given.items() if isinstance(v, bool | int | float)}
            row = {
                "mem0_id": id_text(mem0_memory_id),
                "text": text_of(memory_text),
                "type": text_of(memory_type, 64),
                "prompt": text_of(extraction_prompt) or None,
                "llm_response": text_of(llm_response) or None,
                "metadata": given,
            }
            session = self._session(session_id)
            if session is not None:
                session.add(session.extractions, row)
                self._sessions.memories += 1
            self._detail(
                session_id,
                "memory extraction",
                {**numbers, "memory_id": row["mem0_id"], "memory_type": row["type"]},
            )

        self._guard(None, add)

    def add_extraction_attempt(
        self,
        session_id: object,
        audio_uuid: object,
        attempt_type: object,
        success: object,
        error_message: object = None,
        processing_time_ms: object = None,
        transcript_length: object = None,
        prompt_used: object = None,
        llm_model: object = None,
    ) -> None:
        """One try at extracting: a child span as long as it took; it decides nothing by itself."""

        def add() -> None:
            milliseconds = _number(processing_time_ms)
            row = {
                "type": text_of(attempt_type, 64),
                "success": bool(success),
                "error": text_of(error_message) or None,
                "processing_time_ms": milliseconds,
                "transcript_length": _number(transcript_length),
                "prompt": text_of(prompt_used) or None,
                "model": text_of(llm_model, 128) or None,
            }
            session = self._session(session_id)
            if session is not None:
                session.add(session.attempts, row)
            self._detail(
                session_id,
                "extraction attempt",
                {
                    "attempt_type": row["type"],
                    "attempt_success": row["success"],
                    "transcript_length": row["transcript_length"],
                    "model": row["model"],
                },
                duration_ns=min(round((milliseconds or 0) * 1_000_000), _LONGEST_NS),
                error=None if success else str(row["error"] or "Unknown error"),
            )

        self._guard(None, add)

    def add_transcript_segment(
        self,
        session_id: object,
        audio_uuid: object = None,
        segment_order: object = None,
        speaker: object = None,
        text: object = None,
        timestamp: object = None,
        transcription_method: object = None,
        **metadata: Any,
    ) -> None:
        """One segment of the transcript; it stays in the process."""

        def add() -> None:
            session = self._session(session_id)
            if session is not None:
                order = _number(segment_order)
                at = _number(timestamp)
                row = {
                    "order": len(session.segments) if order is None else order,
                    "speaker": text_of(speaker, 128) or None,
                    "text": text_of(text),
                    "timestamp": self._seconds() if at is None else at,
                    "method": text_of(transcription_method, 64) or None,
                }
                session.add(session.segments, row)
                self._sessions.transcripts += 1
            self.track_progress(session_id)

        self._guard(None, add)

    def update_full_conversation(self, session_id: object, full_conversation: object = "") -> None:
        """The whole conversation as text; it stays in the process."""

        def update() -> None:
            session = self._session(session_id)
            if session is not None:
                session.full_conversation = text_of(full_conversation, 1 << 20)

        self._guard(None, update)

    # --- reads ----------------------------------------------------------------------------------

    def get_session_summary(self, audio_uuid: object) -> dict[str, Any] | None:
        """Everything of the newest session of a recording; None if none is kept."""
        return self._reader.session_summary(id_text(audio_uuid))

    def get_recent_sessions(self, limit: int = 20) -> list[dict[str, Any]]:
        """Rows of the newest sessions, newest first."""
        return self._reader.recent_sessions(limit_of(limit, 20))

    def get_stats(self) -> dict[str, Any]:
        """Totals over all sessions; ``success_rate`` in percent, times in seconds."""
        return self._reader.session_stats()

    def _session(self, session_id: object) -> Session | None:
        return self._sessions.get(session_id) if isinstance(session_id, str) else None

    def _detail(
        self,
        session_id: object,
        name: str,
        metadata: Mapping[str, Any],
        *,
        duration_ns: int = 0,
        error: str | None = None,
    ) -> None:
        handle = None if self.settings.disabled else self._handle_of(session_id)
        if handle is not None:
            self._recorder.detail(
                handle, name, metadata, duration_ns=max(MARK_NS, duration_ns), error=error
            )

    def _seconds(self) -> float:
        return self._clock.time_ns() / NS_PER_S


def _number(value: object) -> int | float | None:
    """A number that JSON and OTLP can carry, or None."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value if abs(value) < MOST else None
    return None
