"""The rivals: the same work by hand, with nothing but OpenTelemetry's SDK."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from otel_tracker import DebugSystemTracker, PipelineStage
from otel_tracker.testing import fresh_tracker


class NullExporter(SpanExporter):
    """Takes every span and throws it away: what an export costs is the same for both sides."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        return None


def provider() -> TracerProvider:
    """As an application has it: a batch processor behind which nothing is sent."""
    made = TracerProvider(resource=Resource({"service.name": "bench"}), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(NullExporter(), max_queue_size=1 << 16))
    return made


def six_events(tracker: DebugSystemTracker) -> None:
    """One whole transaction by the drop-in API: create, and the six documented events."""
    transaction_id = tracker.create_transaction("507f1f77bcf8", "cd7994-laptop", "conv_123")
    track = tracker.track_event
    track(transaction_id, PipelineStage.AUDIO_RECEIVED, True, chunk_size=1024)
    track(transaction_id, PipelineStage.TRANSCRIPTION_STARTED)
    track(transaction_id, PipelineStage.TRANSCRIPTION_COMPLETED, True, transcript_length=500)
    track(transaction_id, PipelineStage.MEMORY_STARTED)
    track(transaction_id, PipelineStage.MEMORY_COMPLETED, True, memory_count=2)
    track(transaction_id, PipelineStage.CONVERSATION_ENDED)


def same_spans(rival: TracerProvider) -> Callable[[], None]:
    """The very spans of `six_events`, made by hand: same names, attributes, parents and kinds.

    They are read off a real run once, so that the rival cannot drift from what is compared.
    """
    with fresh_tracker() as t:
        six_events(t.tracker)
        spans = {span["name"]: span["attributes"] for span in t.spans()}
    late = {"otel_tracker.outcome", "otel_tracker.stage.outcome", "transcript_length"}
    late |= {"memory_count", *(f"otel_tracker.audio.{n}" for n in ("chunks", "bytes"))}
    late |= {"otel_tracker.audio.last_chunk_size"}

    def split(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        attributes = spans[name]
        at_end = {k: v for k, v in attributes.items() if k in late}
        return {k: v for k, v in attributes.items() if k not in late}, at_end

    tracer = rival.get_tracer("bare")
    (root_start, root_end), (audio_start, audio_end) = split("audio_pipeline"), split("audio")
    (text_start, text_end), (memory_start, memory_end) = split("transcription"), split("memory")

    def transaction() -> None:
        root = tracer.start_span(
            "audio_pipeline", Context(), SpanKind.SERVER, attributes=dict(root_start)
        )
        context = trace.set_span_in_context(root, Context())
        audio = tracer.start_span("audio", context, attributes=dict(audio_start))
        text = tracer.start_span("transcription", context, attributes=dict(text_start))
        text.set_attributes(dict(text_end))
        text.end()
        memory = tracer.start_span("memory", context, attributes=dict(memory_start))
        memory.set_attributes(dict(memory_end))
        memory.end()
        audio.set_attributes(dict(audio_end))
        audio.end()
        root.set_attributes(dict(root_end))
        root.end()

    return transaction


def locked_counter() -> Callable[[], None]:
    """The least that counting from several threads takes."""
    lock, counts = threading.Lock(), {"chunks": 0, "bytes": 0}

    def count() -> None:
        with lock:
            counts["chunks"] += 1
            counts["bytes"] += 1024

    return count
