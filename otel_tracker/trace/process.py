"""A transaction as the tracker of this process knows it."""

from __future__ import annotations

import time
from typing import Protocol

from ..model import Transaction
from ..privacy import text_of
from ..settings import Settings
from .dumps import of_row
from .found import Found
from .wanted import NotFoundError
from .words import harmless


class Tracker(Protocol):
    """What `of_transaction` needs of a tracker."""

    @property
    def settings(self) -> Settings:
        """The options in force."""

    def get_transaction(self, transaction_id: object) -> Transaction | None:
        """A frozen copy of one transaction; None if it is not kept."""


def of_transaction(tracker: Tracker, transaction_id: object) -> Found:
    """A transaction as the tracker of this process knows it, open stages included.

    Errors and metadata are cleaned as for export: the text may go to a log.

    Args:
        tracker: the application's, as `get_debug_tracker()` gives it.
        transaction_id: the whole id.

    Raises:
        NotFoundError: it is not kept, or never was.
    """
    copy = tracker.get_transaction(transaction_id)
    if copy is None:
        raise NotFoundError(
            f"the tracker keeps no transaction {harmless(text_of(transaction_id, 80))}; it "
            "may have been let go: OTEL_TRACKER_RECENT_TRANSACTIONS says how many are kept"
        )
    privacy = tracker.settings.privacy
    row = {
        "pipeline": copy.pipeline,
        "user_id": privacy.user(copy.user_id)[1],
        "client_id": copy.client_id,
        "conversation_id": copy.conversation_id,
        "created_at": copy.created_at,
        "updated_at": copy.updated_at,
        "status": copy.status.value,
        "issue": privacy.message(copy.issue or ""),
        "events": [
            {
                "timestamp": event.timestamp,
                "stage": event.stage.value,
                "success": event.success,
                "error_message": privacy.message(event.error_message or ""),
                "metadata": privacy.attributes(event.metadata),
            }
            for event in copy.events
        ],
    }
    trace_id = copy.transaction_id.replace("-", "")
    tree, about = of_row(row, trace_id, time.time_ns())
    return Found(trace_id, tree, about, "process")
