"""otel_tracker: see where a pipeline's transaction died, live and in Jaeger.

Replacing the old debug tracker's import by ``from otel_tracker import *`` is the whole migration.
"""

from __future__ import annotations

from .api import get_debug_tracker, init_debug_tracker, pipeline, shutdown_debug_tracker
from .debug_tracker import DebugSystemTracker
from .decorators import current_stage, current_transaction, stage, transaction
from .frames import ActiveStage, ActiveTransaction
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
    "ActiveStage",
    "ActiveTransaction",
    "DebugSystemTracker",
    "Pipeline",
    "PipelineEvent",
    "PipelineStage",
    "StageEvent",
    "SystemMetrics",
    "Transaction",
    "TransactionStatus",
    "current_stage",
    "current_transaction",
    "get_debug_tracker",
    "init_debug_tracker",
    "pipeline",
    "shutdown_debug_tracker",
    "stage",
    "transaction",
]
