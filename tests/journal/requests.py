"""Requests for tests of the journal: the n-th is always the same, but for its moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from otel_tracker import semconv
from otel_tracker.model import AUDIO, MEMORY, NS_PER_S, TRANSCRIPTION, Kind
from otel_tracker.receiver import Receiver
from otel_tracker.stalls import Patience
from otel_tracker.state import Limits
from otel_tracker.store import Store

TRACE: Final = 0x0123456789AB8DEF_0000000000000000
FEW: Final = Limits(finished=20, issues=10, open=60)
"""So few that a checkpoint stays small, however many requests come."""
PATIENT: Final = Patience(3_600 * NS_PER_S, {MEMORY: 3_600 * NS_PER_S})
"""For tests in real time: nothing stalls, however slow the machine is."""
_SPANS: Final = 16
"""Span ids of one transaction."""


def fold_of(store: Store) -> Callable[[ExportTraceServiceRequest], int]:
    """Takes a request and judges at once, as the service does.

    What is let go at a bound depends on when that is judged.
    """
    receiver = Receiver(store)

    def fold(one: ExportTraceServiceRequest) -> int:
        taken = receiver.fold(one)
        store.read(lambda state: None)
        return taken

    return fold


def request(number: int, wall_ns: int) -> ExportTraceServiceRequest:
    """The n-th of an endless number: four make a transaction, each brings one chunk of audio.

    Of every seven transactions one fails, and one stays open.
    """
    of, part = divmod(number, 4)
    made = ExportTraceServiceRequest()
    resource = made.resource_spans.add()
    spans = resource.scope_spans.add().spans
    trace_id, base = TRACE + of + 1, _SPANS * (of + 1)

    def span(
        span_id: int, kind: Kind, stage: str = "", length_ns: int | None = None, failed: str = ""
    ) -> None:
        one = spans.add()
        one.trace_id = trace_id.to_bytes(16, "big")
        one.span_id = (base + span_id).to_bytes(8, "big")
        if kind is not Kind.TRANSACTION:
            one.parent_span_id = (base + 1).to_bytes(8, "big")
        one.name = stage or "audio_pipeline"
        one.start_time_unix_nano = wall_ns - (length_ns or 0)
        one.end_time_unix_nano = 0 if length_ns is None else wall_ns
        values: dict[str, str | int | bool] = {
            semconv.KIND: kind.value,
            semconv.USER_ID: f"user{of % 50}",
            semconv.CLIENT_ID: f"client{of % 60}",
            semconv.PIPELINE: "audio_pipeline",
            semconv.WHERE: "host/42/MainThread",
        }
        if stage:
            values[semconv.STAGE] = stage
        if kind is Kind.AUDIO:
            values.update({semconv.AUDIO_CHUNKS: 1, semconv.AUDIO_BYTES: 100})
        if kind is Kind.TRANSACTION and length_ns is not None:
            values.update({semconv.OUTCOME: "failure" if failed else "success"})
            values[semconv.END_SUCCESS] = not failed
        if failed:
            one.status.code = Status.STATUS_CODE_ERROR
            one.status.message = failed
        for key, value in values.items():
            pair = one.attributes.add()
            pair.key = key
            if isinstance(value, bool):
                pair.value.bool_value = value
            elif isinstance(value, int):
                pair.value.int_value = value
            else:
                pair.value.string_value = value

    span(8 + part, Kind.AUDIO, AUDIO, 1_000_000)
    if part == 0:
        span(1, Kind.TRANSACTION)
    elif part == 1:
        span(2, Kind.STAGE, TRANSCRIPTION, 5_000_000 + of % 9)
    elif part == 2 or of % 7 == 1:
        span(3, Kind.STAGE, MEMORY)
    else:
        span(3, Kind.STAGE, MEMORY, 7_000_000, f"no space {of}" if of % 7 == 3 else "")
        span(1, Kind.TRANSACTION, "", 9_000_000, "no space" if of % 7 == 3 else "")
    return made
