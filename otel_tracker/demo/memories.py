"""What is worth remembering in a transcript, and where it is kept: rules and SQLite.

Knows nothing of the tracker or of audio.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

_LOCK_TIMEOUT_S: Final = 30.0
"""How long a write waits for another connection's lock before SQLite says "database is locked"."""

_VERB: Final = r"(?:am|is|are|was|were|has|have|had|likes?|loves?|lives?|works?|starts?|leaves?)"
_NEW_SENTENCE: Final = re.compile(
    rf" and (?=(?:please|remember|i|we)\b|(?:my|our|the|his|her) (?:\w+ )?\w+ {_VERB}\b)"
)
_RULES: Final = (
    (
        "task",
        re.compile(
            r"(?:please )?(?:remember to|remind me to|do(?: not|n't) forget to|"
            r"(?:i|we) (?:need to|have to|want to|should)) (?P<memory>.+)"
        ),
    ),
    (
        "preference",
        re.compile(r"(?P<memory>(?:i (?:like|love|prefer|hate|always|never)|my favorite)\b.+)"),
    ),
    ("fact", re.compile(rf"(?P<memory>(?:my|our|the|his|her|it|he|she|they)\b.* {_VERB}\b.+)")),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """One thing to remember. `kind` is task, preference, fact, or note where no rule fits."""

    kind: str
    text: str


def extract(transcript: str) -> list[Memory]:
    """The memories in a transcript of lower-case words, one a sentence."""
    return [_memory(sentence) for sentence in _NEW_SENTENCE.split(transcript) if sentence]


def _memory(sentence: str) -> Memory:
    for kind, rule in _RULES:
        match = rule.fullmatch(sentence)
        if match:
            return Memory(kind, match["memory"])
    return Memory("note", sentence)


class MemoryStore:
    """Keeps each user's memories in an SQLite database of its own.

    Args:
        directory: where the databases are; made when needed.

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path_of(self, user_id: str) -> Path:
        """The user's database."""
        return self.directory / f"{quote(user_id, safe='')}.sqlite"

    def add(self, user_id: str, memories: list[Memory]) -> None:
        """Keeps all of the memories, or none.

        Raises:
            sqlite3.Error: they could not be written; "database is locked" after 30 s of waiting.
        """
        with closing(connect(self.path_of(user_id))) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE IF NOT EXISTS memories (kind TEXT, text TEXT)")
            rows = [(memory.kind, memory.text) for memory in memories]
            database.executemany("INSERT INTO memories VALUES (?, ?)", rows)
            database.execute("COMMIT")

    def all_of(self, user_id: str) -> list[Memory]:
        """The user's memories, oldest first.

        Raises:
            sqlite3.Error: nothing was ever kept for that user, or the database cannot be read.
        """
        with closing(connect(self.path_of(user_id))) as database:
            rows = database.execute("SELECT kind, text FROM memories ORDER BY rowid").fetchall()
        return [Memory(kind, text) for kind, text in rows]


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose transactions are begun and ended by hand."""
    return sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
