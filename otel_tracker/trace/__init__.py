"""A transaction as a tree of its spans: found in Jaeger, in files or in this process, and shown.

A source hands what it finds to a `found.Catch`; a further one is one more line in `find`. All of
them are distrusted: sizes and times are bounded, and values of wrong types are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import settings
from .files import read_files
from .found import Found
from .jaeger import read_jaeger
from .process import of_transaction
from .wanted import NotFoundError, Wanted

__all__ = ["Found", "NotFoundError", "find", "of_transaction"]


def find(text: str, *, files: Sequence[Path] | None = None, jaeger_url: str | None = None) -> Found:
    """Reads a transaction from `files`, or else from Jaeger.

    Args:
        text: its id, as a UUID or as 32 hex digits in any case; in files its beginning will do.
        files: debug dumps, and what Collectors wrote; all of them are read.
        jaeger_url: where Jaeger's UI is; by default OTEL_TRACKER_JAEGER_URL.

    Raises:
        NotFoundError: it is not there, or nothing could be read.
    """
    wanted = Wanted.parse(text)
    options = settings.load()
    if files:
        return read_files(wanted, files, options.patience)
    return read_jaeger(wanted, jaeger_url or options.jaeger_url, options.patience)
