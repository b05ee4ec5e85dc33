"""A real fault to look at: another connection that holds a database's lock.

It is the lock that a backup or a forgotten transaction takes; the pipeline does not know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .memories import connect


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Holds the write lock of an SQLite database while the block runs; other writers wait.

    Raises:
        sqlite3.OperationalError: the database cannot be opened, or is locked already.
    """
    with closing(connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
