"""otel_tracker: see where a pipeline's transaction died, live and in Jaeger.

Replacing the old debug tracker's import by ``from otel_tracker import *`` is the whole migration.
"""

from __future__ import annotations

from .api import get_debug_tracker, init_debug_tracker, shutdown_debug_tracker
from .debug_tracker import DebugSystemTracker
from .model import (
    Pipeline,
    PipelineEvent,
    PipelineStage,
    StageEvent,
    SystemMetrics,
    Transaction,
    TransactionStatus,
)

__all__ = [
    "DebugSystemTracker",
    "Pipeline",
    "PipelineEvent",
    "PipelineStage",
    "StageEvent",
    "SystemMetrics",
    "Transaction",
    "TransactionStatus",
    "get_debug_tracker",
    "init_debug_tracker",
    "shutdown_debug_tracker",
]
