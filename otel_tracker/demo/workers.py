"""The workers: one process after the other takes a recording's job, and hands on the next.

This is a part to copy. Texts go to the store and numbers go to the tracker. Nobody tells an end
where the pipeline's last stage says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Final, TypeVar

from otel_tracker import current_stage, stage, transaction

from .audio import BYTES_PER_SECOND, samples
from .memories import Memory, MemoryStore, extract
from .pipeline import Done, News, Progress, Recorded, Transcribed
from .recognizer import Recognizer

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

Job = TypeVar("Job")
Tell = Callable[[News], None]

_LOOK_UP_S: Final = 0.2


def _each(jobs: Queue[Job]) -> Iterator[Job]:
    """One job after the other, until the process is told to end.

    It looks up now and then: a signal that another thread receives does not wake this one.
    """
    while True:
        with suppress(Empty):
            yield jobs.get(timeout=_LOOK_UP_S)


# --- transcription --------------------------------------------------------------------------------


@stage("transcription", carrier="carrier", model="pocketsphinx en-us")
def transcribe(
    carrier: dict[str, str],  # noqa: ARG001 - the decorator reads it
    recording: bytes,
    file_name: str,
    recognizer: Recognizer,
    on_progress: Callable[[float], None],
) -> str:
    """What is said in a recording; empty if nothing is."""
    s = current_stage()

    def heard(share: float) -> None:
        s.progress(share=share)  # it may take long, and is alive
        on_progress(share)

    pcm = samples(recording, file_name)
    transcript = recognizer.transcribe(pcm, heard)
    s.set(transcript_length=len(transcript), audio_seconds=len(pcm) / BYTES_PER_SECOND)
    if not transcript:
        s.skip("no speech")
    return transcript


def run_transcriber(jobs: Queue[Recorded], memories: Queue[Transcribed], tell: Tell) -> None:
    """Transcribes one recording after the other, until the process is told to end."""
    recognizer = Recognizer()
    for job in _each(jobs):
        try:
            with transaction(carrier=job.carrier) as tx:
                transcript = transcribe(
                    job.carrier,
                    job.recording,
                    job.file_name,
                    recognizer,
                    lambda share: tell(Progress(tx.id, "transcription", share)),
                )
                if transcript:
                    tell(Progress(tx.id, "queued"))
                    tx.queued("memory")
                    memories.put(Transcribed(tx.carrier(), job.user_id, transcript))
                    tx.hand_over()
                else:
                    tx.end()  # nothing follows
        except Exception as error:
            tell(Done(tx.id, error=str(error)))  # the decorator has told the tracker
        else:
            if not transcript:
                tell(Done(tx.id))


# --- memory ---------------------------------------------------------------------------------------


@stage("memory", carrier="carrier")
def remember(
    carrier: dict[str, str],  # noqa: ARG001 - the decorator reads it
    user_id: str,
    transcript: str,
    store: MemoryStore,
) -> list[Memory]:
    """Keeps what is worth remembering in a transcript."""
    memories = extract(transcript)
    store.add(user_id, memories)
    current_stage().set(memory_count=len(memories))
    return memories


def run_rememberer(jobs: Queue[Transcribed], store: MemoryStore, tell: Tell) -> None:
    """Makes memories of one transcript after the other, until the process is told to end."""
    for job in _each(jobs):
        try:
            with transaction(carrier=job.carrier) as tx:
                tell(Progress(tx.id, "memory"))
                memories = remember(job.carrier, job.user_id, job.transcript, store)
        except Exception as error:
            tell(Done(tx.id, job.transcript, error=str(error)))
        else:
            tell(Done(tx.id, job.transcript, tuple(memories)))
