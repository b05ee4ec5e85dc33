"""A transaction in files: debug dumps, and what Collectors wrote, told apart by their content."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from ..stalls import Patience
from .found import Catch, Found
from .otlp import spans_of_message
from .pieces import CUT_OFF, PIECE, Ahead, BrokenError, Document
from .records import take_document, take_object
from .wanted import NotFoundError, Wanted
from .words import harmless

RECORD_AT_MOST: Final = 32 << 20
"""Bytes of one record: a line, a message, or an element of a document's list."""
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_GZIP: Final = b"\x1f\x8b"
_LINE: Final = re.compile(rb'\s*\{\s*"')
_LINE_OF_SPANS: Final = re.compile(rb'\s*\{\s*"resourceSpans"')


def read_files(wanted: Wanted, files: Iterable[Path], patience: Patience) -> Found:
    """What these files have of the wanted transaction, all together.

    Args:
        wanted: its id, or the beginning of it.
        files: all of them are read; one that cannot be is told in a note.
        patience: how long silence is normal.

    Raises:
        NotFoundError: nothing was found, or several transactions.
    """
    catch = Catch(wanted)
    read: list[str] = []
    for path in files:
        name = harmless(str(path))
        try:
            with path.open("rb") as file:
                _read_file(name, file, catch)
            read.append(name)
        except OSError as error:
            catch.note(f"{name} cannot be read: {error.strerror or error}")
        except NotFoundError as error:
            catch.note(str(error))
    found = catch.found("file", patience)
    if found is None:
        absent = [f"no transaction {wanted.text} in {', '.join(read)}"] if read else []
        raise NotFoundError("; ".join([*absent, *catch.notes]))
    return found


def _read_file(name: str, file: BinaryIO, catch: Catch) -> None:
    """Finds out by its first bytes what a file is, and reads it; never goes back (pipes)."""
    head = file.read(12)
    if not head.strip():
        raise NotFoundError(f"{name} is empty")
    _refuse_compressed(name, head, catch.wanted)
    before = catch.records
    head = head.removeprefix(codecs.BOM_UTF8)
    reader = Ahead(head, file)
    if head.lstrip().startswith(b"{"):
        _read_json(name, reader, catch)
    elif head[4:5] == b"\x0a" and int.from_bytes(head[:4], "big") > 0:
        _read_messages(name, reader, catch)
    if catch.records == before:
        raise NotFoundError(
            f"{name} holds no spans and is no debug dump; give what export_debug_dump() or a "
            "Collector's file exporter wrote (JSON, or `format: proto`), or OTLP in JSON"
        )


def _refuse_compressed(name: str, head: bytes, wanted: Wanted) -> None:
    pipe = f"-dc {name} | otel-tracker trace {wanted.text} --file /dev/stdin"
    if head.startswith(_GZIP):
        raise NotFoundError(f"{name} is compressed by gzip; try: gzip {pipe}")
    refusal = (
        f"{name} is compressed by zstd, which this command does not read; take `compression` "
        "out of the Collector's file exporter"
    )
    if head.startswith(_ZSTD):
        raise NotFoundError(f"{refusal}, or: zstd {pipe}")
    if head[4:8] == _ZSTD:  # each record by itself, behind its length: zstd cannot read that
        raise NotFoundError(refusal)


# --- JSON -----------------------------------------------------------------------------------------


def _read_json(name: str, file: Ahead, catch: Catch) -> None:
    """JSON lines, as a Collector writes them, or documents over many lines, as dumps are."""
    first = file.readline(RECORD_AT_MOST)
    if first.endswith(b"\n") and _LINE.match(first):
        second = file.readline(PIECE)
        file.unread(second)
        if _parsed(first) is not None or _LINE_OF_SPANS.match(second):
            _read_lines(name, first, file, catch)
            return
    file.unread(first)
    try:
        take_document(Document(file, RECORD_AT_MOST), catch)
    except BrokenError as error:
        catch.note(f"{name} {error}")


def _read_lines(name: str, first: bytes, file: Ahead, catch: Catch) -> None:
    line, number = first, 1
    broken: list[int] = []
    while line:
        is_cut = not line.endswith(b"\n")  # by the limit, or by the end of the file
        if is_cut and len(line) >= RECORD_AT_MOST:
            catch.note(f"{name}: line {number} is larger than {RECORD_AT_MOST >> 20} MiB: left out")
            while line and not line.endswith(b"\n"):
                line = file.readline(RECORD_AT_MOST)
        elif is_cut or number == 1 or catch.wanted.may_be_in(line):
            record = _parsed(line)
            if record is not None:
                take_object(record, catch)
            elif is_cut:
                catch.note(f"{name} {CUT_OFF}")
            elif line.strip():
                broken.append(number)
        line, number = file.readline(RECORD_AT_MOST), number + 1
    if broken:
        listed = ", ".join(map(str, broken[:10])) + (" …" if len(broken) > 10 else "")
        catch.note(f"{name}: broken and left out: line {listed}")


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


# --- protobuf -------------------------------------------------------------------------------------


def _read_messages(name: str, file: Ahead, catch: Catch) -> None:
    """What the file exporter writes as `format: proto`: length, big-endian, and message."""
    from google.protobuf.message import DecodeError

    number = broken = 0
    while prefix := file.read(4):
        number += 1
        length = int.from_bytes(prefix, "big")
        if len(prefix) == 4 and length > RECORD_AT_MOST:
            catch.note(f"{name}: record {number} is larger than {RECORD_AT_MOST >> 20} MiB: broken")
            return
        message = file.read(length) if len(prefix) == 4 else b""
        if len(prefix) < 4 or len(message) < length:
            catch.note(f"{name} {CUT_OFF}")
            return
        if number == 1 or catch.wanted.may_be_in_message(message):
            try:
                for span in spans_of_message(message, catch.wanted):
                    catch.take(span)
                catch.records += 1
            except DecodeError:
                broken += 1
                if number == 1:
                    return  # something else
    if broken:
        catch.note(f"{name}: broken and left out: {broken} records")
