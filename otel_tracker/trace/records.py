"""What JSON says of the wanted transaction: OTLP in any wrapping, and debug dumps."""

from __future__ import annotations

from typing import Any, Final

from .dumps import ns_of
from .found import Catch
from .otlp import spans_of_json
from .pieces import Document

_TRANSACTIONS: Final = "transactions"
_LISTS: Final = ("resourceSpans", _TRANSACTIONS)
_WRAPPING: Final = "result"
"""Of Jaeger's answers."""
_METADATA: Final = "export_metadata"


def take_document(document: Document, catch: Catch) -> None:
    """Takes what a text speaks of, piece by piece.

    Raises:
        BrokenError: from some point on it is no JSON; what comes before it was taken.
    """
    while document.peek():
        _take_members(document, catch)


def _take_members(document: Document, catch: Catch) -> None:
    at_ns = 0
    for key in document.members():
        if key == _WRAPPING and document.peek() == "{":
            _take_members(document, catch)
        elif key in _LISTS and document.peek() == "[":
            catch.records += 1
            for row in document.elements():
                _take_row(key, row, at_ns, catch)
        else:
            value = document.value()
            if key == _METADATA:
                at_ns = _generated_ns(value)


def take_object(record: dict[str, Any], catch: Catch) -> None:
    """The same of one object that is in memory as a whole."""
    inner = record.get(_WRAPPING)
    for part in (record, inner if isinstance(inner, dict) else {}):
        at_ns = _generated_ns(part.get(_METADATA))
        for key in _LISTS:
            rows = part.get(key)
            if isinstance(rows, list):
                catch.records += 1
                for row in rows:
                    _take_row(key, row, at_ns, catch)


def _take_row(key: str, row: object, at_ns: int, catch: Catch) -> None:
    if not isinstance(row, dict):
        return
    if key == _TRANSACTIONS:
        catch.take_row(row, at_ns)
    else:
        for span in spans_of_json(row, catch.wanted):
            catch.take(span)


def _generated_ns(metadata: object) -> int:
    return ns_of(metadata.get("generated_at")) if isinstance(metadata, dict) else 0
