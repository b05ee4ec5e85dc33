"""What both processes have: the pipeline, OpenTelemetry's provider, and the queue between them."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_tracker import pipeline

# Declared where both import it, since each judges by it what it knows. A transaction is done when
# the last stage went well: nobody has to tell its end.
RECORDINGS = pipeline("recordings", "decode", "loudness", stall_after={"loudness": 300})


def set_up_opentelemetry() -> TracerProvider:
    """The application's own provider. The tracker finds it, adds to it and never replaces it."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


# --- the queue: an application has Redis or Celery here -------------------------------------------


def _jobs() -> sqlite3.Connection:
    db = sqlite3.connect(os.environ["QUEUE"], timeout=30, isolation_level=None)
    db.execute("CREATE TABLE IF NOT EXISTS jobs (carrier TEXT, pcm BLOB)")
    return db


def put(carrier: dict[str, str], pcm: bytes) -> None:
    """A job for any worker. The carrier goes along in the message, and holds nothing personal."""
    with closing(_jobs()) as db:
        db.execute("INSERT INTO jobs VALUES (?, ?)", (json.dumps(carrier), pcm))


def take() -> tuple[dict[str, str], bytes] | None:
    """The oldest job, which no other worker gets; None if there is none."""
    oldest = "DELETE FROM jobs WHERE rowid = (SELECT min(rowid) FROM jobs) RETURNING carrier, pcm"
    with closing(_jobs()) as db:
        rows = db.execute(oldest).fetchall()
    return (json.loads(rows[0][0]), rows[0][1]) if rows else None
