"""The pipeline: audio → transcription → memory, each stage telling the tracker how it goes.

This is the part to copy. Texts go to the store and numbers go to the tracker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from otel_tracker import DebugSystemTracker, PipelineStage

from .audio import BYTES_PER_SECOND, packets, samples, size_of
from .memories import Memory, MemoryStore, extract
from .recognizer import Recognizer

Progress = Callable[[str, float], None]
"""Called with a stage's name and the share of it that is done, 0 to 1."""


@dataclass(slots=True)
class VoiceNote:
    """One recording on its way through the pipeline; `error` is why it got no further."""

    transaction_id: str
    user_id: str
    path: Path
    transcript: str = ""
    memories: list[Memory] = field(default_factory=list)
    error: str | None = None


class VoiceNotes:
    """Takes recordings and keeps what was said; may be used from several threads at once."""

    def __init__(
        self, tracker: DebugSystemTracker, recognizer: Recognizer, store: MemoryStore
    ) -> None:
        self._tracker = tracker
        self._recognizer = recognizer
        self._store = store

    def process(self, user_id: str, path: Path, on_progress: Progress) -> VoiceNote:
        """Takes one recording from its first packet to its memories: one transaction.

        What goes wrong is told to the tracker and kept in `VoiceNote.error`, never raised: one
        recording does not stop the others.
        """
        client_id = f"{user_id}-phone"
        transaction_id = self._tracker.create_transaction(user_id, client_id, path.stem)
        note = VoiceNote(transaction_id, user_id, path)
        try:
            recording = self._receive(note, client_id, on_progress)
            note.transcript = self._transcribe(note, recording, on_progress)
            if note.transcript:
                note.memories = self._remember(note, on_progress)
        except Exception as error:
            note.error = str(error)  # its stage has told the tracker
        self._tracker.track_event(transaction_id, PipelineStage.CONVERSATION_ENDED)
        return note

    def _receive(self, note: VoiceNote, client_id: str, on_progress: Progress) -> bytes:
        recording = bytearray()
        self._tracker.track_websocket_connected(note.user_id, client_id)
        try:
            size = size_of(note.path)
            for packet in packets(note.path):
                self._tracker.track_audio_chunk(note.transaction_id, len(packet))
                recording += packet
                on_progress("audio", len(recording) / size)
        except Exception as error:
            self._failed(note, PipelineStage.AUDIO_RECEIVED, error)
            raise
        finally:
            self._tracker.track_websocket_disconnected(client_id)
        return bytes(recording)

    def _transcribe(self, note: VoiceNote, recording: bytes, on_progress: Progress) -> str:
        def heard(share: float) -> None:
            self._tracker.track_progress(note.transaction_id, "transcription", share=share)
            on_progress("transcription", share)

        self._tracker.track_event(
            note.transaction_id, PipelineStage.TRANSCRIPTION_STARTED, model="pocketsphinx en-us"
        )
        try:
            pcm = samples(recording, note.path.name)
            transcript = self._recognizer.transcribe(pcm, heard)
        except Exception as error:
            self._failed(note, PipelineStage.TRANSCRIPTION_COMPLETED, error)
            raise
        if not transcript:
            self._tracker.track_skipped(note.transaction_id, "transcription", "no speech")
            return ""
        self._tracker.track_event(
            note.transaction_id,
            PipelineStage.TRANSCRIPTION_COMPLETED,
            True,
            transcript_length=len(transcript),
            audio_seconds=len(pcm) / BYTES_PER_SECOND,
        )
        return transcript

    def _remember(self, note: VoiceNote, on_progress: Progress) -> list[Memory]:
        self._tracker.track_event(note.transaction_id, PipelineStage.MEMORY_STARTED)
        on_progress("memory", 0.0)
        try:
            memories = extract(note.transcript)
            self._store.add(note.user_id, memories)
        except Exception as error:
            self._failed(note, PipelineStage.MEMORY_COMPLETED, error)
            raise
        self._tracker.track_event(
            note.transaction_id, PipelineStage.MEMORY_COMPLETED, True, memory_count=len(memories)
        )
        on_progress("memory", 1.0)
        return memories

    def _failed(self, note: VoiceNote, event: PipelineStage, error: Exception) -> None:
        self._tracker.track_event(
            note.transaction_id, event, False, str(error), error_type=type(error).__name__
        )
