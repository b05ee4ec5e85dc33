"""A voice-notes application of two kinds of processes, which a test or a script drives.

``python notes.py web DIRECTORY`` transcribes what is told on its standard input, one line of JSON
for each recording: ``{"user": …, "conversation": …, "text": …}``, and puts a note for the workers
into the directory. ``python notes.py memory DIRECTORY`` takes the oldest note and saves it in
``memories.db`` there. Both end with their standard input.

Texts that mean something: ``hold`` makes the worker compute until it is killed, ``silence`` leaves
nothing to remember, and ``garbled`` cannot be transcribed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from otel_tracker import get_debug_tracker, pipeline, stage, transaction

NOTES: Final = pipeline("notes", "transcription", "memory")
LOCK_WAIT_S: Final = float(os.environ.get("NOTES_LOCK_WAIT_S", "0.2"))
"""How long a worker waits for the database before it gives up."""


class TranscriptionError(Exception):
    """The recogniser cannot read a recording."""


def say(**what: Any) -> None:
    """One line for whoever reads, at once."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


# --- the web process ------------------------------------------------------------------------------


def transcribe(text: str) -> str:
    """Stands for the recogniser."""
    time.sleep(0.02)
    if text == "garbled":
        raise TranscriptionError("cannot decode the recording: expected 16000 Hz, found 8000 Hz")
    return text


def record(told: dict[str, str], directory: Path) -> None:
    """One recording, from its audio to the note for a worker."""
    with transaction(NOTES, user_id=told["user"], conversation_id=told["conversation"]) as tx:
        say(id=tx.id)
        with stage("transcription"):
            text = transcribe(told.get("text", "buy milk"))
        tx.queued("memory")
        note = json.dumps({"text": text, "carrier": tx.carrier(), "queued_at": time.time()})
        coming = directory / f"{time.time_ns()}.coming"
        coming.write_text(note)
        coming.rename(coming.with_suffix(".note"))
        tx.hand_over()


def web(directory: Path) -> None:
    """Until nobody tells it any more."""
    for line in sys.stdin:
        with contextlib.suppress(TranscriptionError):  # told by its stage
            record(json.loads(line), directory)


# --- the worker -----------------------------------------------------------------------------------


def save(database: Path, text: str) -> None:
    """Keeps a memory."""
    with contextlib.closing(sqlite3.connect(database, timeout=LOCK_WAIT_S)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS memories (text)")
        connection.execute("INSERT INTO memories VALUES (?)", (text,))
        connection.commit()


def remember(text: str, database: Path) -> None:
    """Makes a memory of a text."""
    if text == "hold":
        threading.Event().wait()
    save(database, text)


def work(note: Path, database: Path) -> None:
    """One note."""
    told = json.loads(note.read_text())
    note.unlink()
    with (
        contextlib.suppress(sqlite3.Error),  # told by its stage
        stage("memory", carrier=told["carrier"], queued_at=told["queued_at"]) as s,
    ):
        if told["text"] == "silence":
            s.skip("no speech")
        else:
            remember(told["text"], database)


def memory(directory: Path) -> None:
    """Until whoever started it is gone."""
    threading.Thread(target=end_with_input, daemon=True).start()
    say(works=os.getpid())
    while True:
        note = min(directory.glob("*.note"), default=None)
        if note is None:
            time.sleep(0.02)
        else:
            work(note, directory / "memories.db")


def end_with_input() -> None:
    """What waits is sent before."""
    sys.stdin.read()
    get_debug_tracker().force_flush(1_000)
    os._exit(0)


if __name__ == "__main__":
    {"web": web, "memory": memory}[sys.argv[1]](Path(sys.argv[2]))
