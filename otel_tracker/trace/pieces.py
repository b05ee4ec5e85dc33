"""Files and JSON read piece by piece: never more of them in memory than one record."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

PIECE: Final = 64 << 10
"""Bytes that are read at a time."""
CUT_OFF: Final = (
    "ends in the middle of a record (its writer was killed, or still writes); "
    "what comes before it was read"
)
_NO_JSON: Final = "is no JSON from some point on; what comes before it was read"


class BrokenError(ValueError):
    """A text that is no JSON, or an end in the middle of it: the rest of a sentence about it."""


class Ahead:
    """A file of which the first bytes were read already. It need not be able to go back: a pipe.

    Args:
        head: the bytes that were read.
        file: the rest.
    """

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = io.BytesIO(head)
        self._file = file

    def read(self, size: int) -> bytes:
        """As a file does."""
        head = self._head.read(size)
        return head + self._file.read(size - len(head)) if len(head) < size else head

    def readline(self, limit: int) -> bytes:
        """As a file does."""
        head = self._head.readline(limit)
        if head.endswith(b"\n") or len(head) == limit:
            return head
        return head + self._file.readline(limit - len(head))

    def unread(self, piece: bytes) -> None:
        """Puts bytes back."""
        self._head = io.BytesIO(piece + self._head.read())


class Document:
    """JSON that is read piece by piece: never more of it in memory than one value.

    Every method raises `BrokenError` where the text is none, is cut off, or a value is too large.

    Args:
        file: the text in UTF-8; several values may follow each other.
        limit: characters of the largest value that is read.
    """

    def __init__(self, file: Ahead | BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False

    def _more(self, size: int = PIECE) -> bool:
        """Reads on; False at the end."""
        piece = b"" if self._ended else self._file.read(size)
        self._ended = not piece
        self._text = self._text[self._at :] + self._bytes.decode(piece, self._ended)
        self._at = 0
        return not self._ended

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def expect(self, char: str) -> None:
        """Goes over this character."""
        found = self.peek()
        if found != char:
            raise BrokenError(_NO_JSON if found else CUT_OFF)
        self._at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                # Cut by the end of what was read, a text is wrong at that end; else it is wrong.
                is_cut = error.pos >= len(self._text) - 10 or error.msg.startswith("Unterminated")
                if self._ended or not is_cut:
                    raise BrokenError(CUT_OFF if is_cut else _NO_JSON) from error
            except RecursionError as error:
                raise BrokenError("is nested too deeply") from error
            size = len(self._text) - self._at
            if size > self._limit:
                raise BrokenError(f"has a part that is larger than {self._limit >> 20} MiB")
            self._more(max(PIECE, size))

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; whoever asks reads the value before going on."""
        self.expect("{")
        while self.peek() != "}":
            key = self.value()
            self.expect(":")
            yield key if isinstance(key, str) else ""
            if self.peek() != "}":
                self.expect(",")
        self.expect("}")

    def elements(self) -> Iterator[Any]:
        """The values of the list that comes next."""
        self.expect("[")
        while self.peek() != "]":
            yield self.value()
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")
