"""Writes a debug dump: private, under a name of its own, complete or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from .model import to_datetime


def write_dump(directory: Path, wall_ns: int, text: str) -> Path:
    """Writes `text` to ``debug_dump_<timestamp>.json`` in `directory`, which is made when needed.

    Raises:
        OSError: it cannot be written; the message names the path and ``DEBUG_DUMP_DIR``.
    """
    stamp = to_datetime(wall_ns).strftime("%Y%m%d_%H%M%S_%f")
    temporary = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".debug_dump_{stamp}_{os.getpid()}_{threading.get_ident()}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return _publish(temporary, directory, stamp)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}: no debug dump written; set DEBUG_DUMP_DIR to a "
            "directory that can be written", str(error.filename or directory),
        ) from error  # fmt: skip
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _publish(temporary: Path, directory: Path, stamp: str) -> Path:
    """Gives the finished file its name, and never replaces another dump."""
    for attempt in range(1_000):
        suffix = f"_{attempt}" if attempt else ""
        path = directory / f"debug_dump_{stamp}{suffix}.json"
        try:
            os.link(temporary, path)
        except FileExistsError:
            continue
        except OSError:
            # A file system without hard links: the name is taken first, then filled at once.
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                continue
            temporary.replace(path)
        return path
    raise FileExistsError(17, "too many dumps in one microsecond", str(directory))
