"""A worker: `python -m examples.fastapi_app.worker`. It carries transactions on that web began."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from array import array

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_tracker import current_stage, init_debug_tracker, shutdown_debug_tracker, stage

from .shared import set_up_opentelemetry, take

logger = logging.getLogger(__name__)


@stage("loudness", carrier="carrier")  # the parameter that says whose work it is
def measure(carrier: dict[str, str], pcm: bytes) -> None:  # noqa: ARG001 - the decorator reads it
    """How loud a recording is, against the loudest possible (dB)."""
    samples = array("h", pcm)
    power = sum(sample * sample for sample in samples) / max(1, len(samples))
    current_stage().set(loudness_db=round(10 * math.log10(max(1, power) / 32768**2), 1))


def main() -> None:
    """Takes jobs until SIGTERM, and ends the one it is at."""
    provider = set_up_opentelemetry()
    if web := os.environ.get("DASHBOARD"):  # the dashboard is in another process: it is told too
        # Briefly: where web has gone, the end of this process should not wait for it.
        exporter = OTLPSpanExporter(endpoint=f"{web}/v1/traces", timeout=2)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    init_debug_tracker()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    while not asked:
        job = take()
        if job is None:
            time.sleep(0.2)
            continue
        try:
            measure(*job)
        except Exception:
            logger.exception("a job failed")  # for the log; the tracker knows already
    shutdown_debug_tracker()
    provider.shutdown()


if __name__ == "__main__":
    main()
