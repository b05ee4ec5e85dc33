"""What holds for every test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


class Defects(logging.Handler):
    """Collects what the store says of defects of the fold, which it survives."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "a defect of the tracker" in record.getMessage():
            self.messages.append(record.getMessage())


@pytest.fixture(autouse=True)
def no_defect_is_survived_unseen(request: pytest.FixtureRequest) -> Iterator[None]:
    """A host must survive a defect of the fold; a test must not, unless it makes one."""
    logger, defects = logging.getLogger("otel_tracker"), Defects()
    logger.addHandler(defects)
    yield
    logger.removeHandler(defects)
    expected = request.node.get_closest_marker("expects_a_defect") is not None
    assert bool(defects.messages) == expected, defects.messages
