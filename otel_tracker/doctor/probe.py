"""The probe: one small real transaction of the tracker, and the exporter that it leaves by."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, Sampler
from opentelemetry.trace import SpanKind

from ..debug_tracker import DebugSystemTracker
from ..diagnostics import Diagnostics
from ..exporting import configured_exporters
from ..ids import new_trace_id, parse_id
from ..model import AUDIO_PIPELINE, Pipeline, PipelineStage
from ..settings import load
from .configuration import near_misses
from .discretion import first_set, one_line
from .report import Hop
from .target import Target, missing_files, target_of

SERVICE: Final = "otel-tracker-doctor"
_PIPELINE: Final = Pipeline("doctor")
_STAGE: Final = "probe"
_TRIES: Final = 10_000
"""Ids that the sampler is asked about: a share of one percent is told to a tenth of itself."""

NOTHING_CONFIGURED: Final = "export OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318"


@dataclass(frozen=True, slots=True)
class Probe:
    """The spans of one transaction, finished and not yet sent."""

    transaction_id: str
    spans: tuple[ReadableSpan, ...]

    @property
    def trace_hex(self) -> str:
        """The trace id in 32 hex digits."""
        return f"{parse_id(self.transaction_id) or 0:032x}"


def make_probe() -> Probe:
    """A transaction with one stage, on a provider of its own that is thrown away."""
    memory = InMemorySpanExporter()
    resource = Resource.create({"service.name": SERVICE, "host.name": socket.gethostname()})
    # The application's sampler is judged by itself: the probe is to arrive under any.
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracker = DebugSystemTracker(provider, _PIPELINE, run_sweeper=False)
    transaction_id = tracker.create_transaction(SERVICE, SERVICE)
    tracker.track_event(transaction_id, f"{_STAGE}_started")
    tracker.track_event(transaction_id, f"{_STAGE}_completed")
    tracker.track_event(transaction_id, PipelineStage.CONVERSATION_ENDED)
    tracker.shutdown()
    provider.shutdown()
    return Probe(transaction_id, tuple(memory.get_finished_spans()))


@dataclass(frozen=True, slots=True)
class Sender:
    """The exporter that an application's spans would leave by; None where none would."""

    hop: Hop
    name: str = ""
    target: Target | None = None
    """Where it sends, if it is one of OTLP's."""
    send: Callable[[Sequence[ReadableSpan]], bool] | None = None


def choose_sender(environ: Mapping[str, str]) -> Sender:
    """What the environment asks for, and whether anything would leave by it at all."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return _broken("OTEL_SDK_DISABLED=true: no span is made", "export OTEL_SDK_DISABLED=false")
    if load(environ=environ).disabled:
        return _broken(
            "OTEL_TRACKER_DISABLED is set: the tracker does nothing", "unset OTEL_TRACKER_DISABLED"
        )
    exporters = configured_exporters(Diagnostics(), dict(environ))
    asked = [n.strip() for n in environ.get("OTEL_TRACES_EXPORTER", "").split(",") if n.strip()]
    absent = [n for n in asked if n != "none" and n not in [name for name, _ in exporters]]
    if absent:
        return _broken(
            f"OTEL_TRACES_EXPORTER names {', '.join(absent)}, which is not installed",
            "export OTEL_TRACES_EXPORTER=otlp",
        )
    sending = [(name, make) for name, make in exporters if name != "console"]
    if not sending:
        return _nothing_is_sent(environ, is_printed=bool(exporters))
    name, make = sending[0]
    try:
        target = target_of(environ, name)
    except ValueError as error:
        text, _, fix = str(error).partition("\n")
        return _broken(text, fix or NOTHING_CONFIGURED)
    missing = missing_files(target) if target else None
    if missing:
        return _broken(missing, "name a file that this process can read")
    try:
        exporter = make()
    except Exception as error:
        return _broken(
            f"the exporter {name} cannot be made: {one_line(repr(error))}",
            "check the OTEL_EXPORTER_OTLP_* values in the configuration",
        )
    names = ", ".join(one for one, _ in sending)
    told = name if name == names else f"{name} (the first of {names})"
    return Sender(_judge_sampling(environ, told), name, target, _sending(exporter))


def _broken(finding: str, fix: str) -> Sender:
    return Sender(Hop("exporter", "broken", finding, fix))


def _nothing_is_sent(environ: Mapping[str, str], *, is_printed: bool) -> Sender:
    if is_printed:
        return _broken(
            "OTEL_TRACES_EXPORTER=console: spans are printed and go nowhere else",
            "export OTEL_TRACES_EXPORTER=otlp",
        )
    if first_set(environ, ("OTEL_TRACES_EXPORTER",))[0]:
        return _broken(
            "OTEL_TRACES_EXPORTER=none: nothing is sent", "export OTEL_TRACES_EXPORTER=otlp"
        )
    for given, meant in near_misses(environ).items():
        if meant.startswith("OTEL_EXPORTER_OTLP_"):
            return _broken(
                f"nothing is configured, so nothing is sent; {given} is set, which nothing reads: "
                f"did you mean {meant}?",
                f'export {meant}="${given}"',
            )
    return _broken("nothing is configured, so nothing is sent", NOTHING_CONFIGURED)


def _sending(exporter: SpanExporter) -> Callable[[Sequence[ReadableSpan]], bool]:
    def send(spans: Sequence[ReadableSpan]) -> bool:
        done = exporter.export(spans) is SpanExportResult.SUCCESS
        exporter.shutdown()  # here, and not by who waits: it would wait for a hanging export
        return done

    return send


# --- sampling -------------------------------------------------------------------------------------


def _judge_sampling(environ: Mapping[str, str], name: str) -> Hop:
    share = measured_share(TracerProvider(shutdown_on_exit=False).sampler)
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").strip()
    argument = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    told = f"OTEL_TRACES_SAMPLER={sampler}" + (f" with {argument}" if argument else "")
    if share == 0:
        return Hop(
            "exporter", "broken", f"{told}: no transaction is sampled, so none is sent",
            "export OTEL_TRACES_SAMPLER=parentbased_always_on",
        )  # fmt: skip
    if share < 1:
        return Hop(
            "exporter", "warning",
            f"{name}; but {told} lets about {share:.1%} of transactions through (measured on "
            f"{_TRIES} ids): the others are on the dashboard alone",
            "export OTEL_TRACES_SAMPLER=parentbased_always_on",
        )  # fmt: skip
    return Hop("exporter", "ok", f"{name}, and every transaction is sampled")


def measured_share(sampler: Sampler) -> float:
    """The share of transactions that a sampler lets through, from 0 to 1."""
    kept = sum(
        sampler.should_sample(
            Context(), new_trace_id(), AUDIO_PIPELINE.name, SpanKind.SERVER
        ).decision
        is Decision.RECORD_AND_SAMPLE
        for _ in range(_TRIES)
    )
    return kept / _TRIES


def silence_grpc() -> None:
    """GRPC's core prints to stderr by itself; it reads this when it is first used."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
