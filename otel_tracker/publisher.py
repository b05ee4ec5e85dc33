"""Feeds a dashboard service from this process: what ended, what is open, and that it lives.

``OTEL_TRACKER_URL`` turns it on. None of it passes a Collector or reaches Jaeger, which cannot show
what is open; so it is sent whatever the sampler decides. A service that is away costs nothing: what
has ended waits in a bounded queue, and what is open is told again when it is back.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import SpanContext

from . import semconv
from .diagnostics import Diagnostics
from .exporting import BatchSettings, ExportProcessor
from .handles import OpenAudio, OpenSpan
from .model import NS_PER_S, Fact, Kind, Pipeline, to_iso
from .processor import DashboardSpanProcessor

BEAT_S: Final = 5.0
"""Between two signs of life; after three that are missing the process is taken for lost."""
OPEN_AFTER_S: Final = 1.0
"""A stage that is open so long is told while it is open; a transaction at once."""
MOST_OPEN: Final = 10_000
"""Open spans in one beat, and sockets."""

_TICK_S: Final = 0.5
_TIMEOUT_S: Final = 2.0
_ANSWER: Final = 4 << 20  # bytes of an answer that are read
_GOODBYE_S: Final = 0.5
_SENDING: Final = BatchSettings(queue_size=10_000, batch_size=512, delay_s=0.2)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A dashboard service: where it is, and what it wants to be shown."""

    url: str
    token: str = ""

    @property
    def flaw(self) -> str:
        """Why nothing can be sent there; empty where it can."""
        try:
            parts = urlsplit(self.url)
            if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return ""
        except ValueError:
            pass
        return "use a URL such as http://localhost:8500"

    def path(self, path: str) -> str:
        """The URL of a path of it."""
        return self.url.rstrip("/") + path

    @property
    def headers(self) -> dict[str, str]:
        """What authorizes a request."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}

    def exporter(self) -> SpanExporter:
        """Posts spans to it."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(
            endpoint=self.path("/v1/traces"), headers=self.headers, timeout=int(_TIMEOUT_S)
        )

    def post(self, path: str, document: Mapping[str, Any]) -> Any:
        """Posts JSON and returns the answer's.

        Raises:
            OSError: nobody answers in time.
            ValueError: the answer is none, or says no.
        """
        import http.client  # it takes its time to import

        parts = urlsplit(self.path(path))
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        try:
            body = json.dumps(document, separators=(",", ":")).encode()
            headers = {"content-type": "application/json", **self.headers}
            connection.request("POST", parts.path, body, headers)
            answer = connection.getresponse()
            text = answer.read(_ANSWER)
        except http.client.HTTPException as error:
            raise ValueError(f"no HTTP: {type(error).__name__}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        return json.loads(text)


class Publisher(SpanProcessor):
    """Sends the tracker's spans to a dashboard service, open and ended, and beats.

    Its thread looks at what is open, so that nothing of that is done on the application's threads;
    there a span that ends is queued.

    Args:
        endpoint: the service.
        processor: knows what is open.
        diagnostics: where troubles go.
        about: what else a beat says: ``websockets``, ``pipelines``, ``stall_after``, ``health``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        processor: DashboardSpanProcessor,
        diagnostics: Diagnostics,
        about: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._endpoint = endpoint
        self._processor = processor
        self._diagnostics = diagnostics
        self._about = about
        self._export = ExportProcessor(
            f"the dashboard service {endpoint.url}", endpoint.exporter, diagnostics, _SENDING
        )
        self._is_child = False
        """Forked: a child often leaves without a word, so it beats only while something is open."""
        self._is_over = False
        # The SDK makes no span then; a wait is told without one, and would tell of it all the same.
        self._is_sdk_off = os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true"
        self._began_ns = time.time_ns()
        self._begin()

    def _begin(self) -> None:
        self._told: dict[int, tuple[int, ...]] = {}
        """What was told of open spans, by span id: to tell changes."""
        self._beating = False
        self._beat_at = 0.0
        self._last_beat_ns = 0
        self._bell: queue.SimpleQueue[queue.SimpleQueue[None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._resource: Mapping[str, Any] = {}

    def start(self) -> None:
        """Starts its thread where it does not run yet. Never raises."""
        if self._thread is not None or not self._starting.acquire(blocking=False):
            return
        try:
            thread = threading.Thread(target=self._run, name="otel-tracker-publish", daemon=True)
            self._thread = thread
            thread.start()
        except RuntimeError:
            self._thread = None  # the next span tries again
        finally:
            self._starting.release()

    def after_fork(self) -> None:
        """In a forked child: a process of its own, of which nothing was told yet."""
        self._is_child = True
        self._began_ns = time.time_ns()
        self._begin()

    # --- on the application's threads -----------------------------------------------------------

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Starts the thread, where a fork has left none."""
        if self._thread is None:
            self.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a span that carries our attributes, sampled or not."""
        if self._processor.listens and semconv.is_ours(span.attributes):
            self._resource = span.resource.attributes
            self._export.put(span)

    def tell(self, fact: Fact, name: str, attributes: Mapping[str, Any]) -> None:
        """Queues what is open and has no span yet: a wait in a queue. Never raises."""
        try:
            if self._processor.listens and not self._is_sdk_off:
                self._export.put(_span_of(fact, name, attributes, self._resource))
        except Exception:
            self._diagnostics.error("publisher", "a wait in a queue could not be told")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Sends what has ended; a child with nothing open says goodbye."""
        self._ring(min(_GOODBYE_S, timeout_millis / 1_000))
        return self._export.force_flush(timeout_millis)

    def shutdown(self, timeout_s: float = 5.0) -> None:
        """Sends what has ended, and says goodbye, within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        self._export.shutdown(max(0.1, timeout_s - _GOODBYE_S))
        self._is_over = True
        self._ring(max(0.0, min(_GOODBYE_S, deadline - time.monotonic())))

    def _ring(self, timeout_s: float) -> None:
        """Has the thread look at once, and waits for that."""
        if self._thread is None:
            return
        done: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._bell.put(done)
        try:
            done.get(timeout=timeout_s)
        except queue.Empty:
            return

    def state(self) -> dict[str, Any]:
        """For ``health.export``: as an exporter's, and when the service last took a beat."""
        beat = to_iso(self._last_beat_ns) if self._last_beat_ns else None
        return {**self._export.state(), "url": self._endpoint.url, "last_beat": beat}

    # --- on the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        bell = self._bell
        while True:
            try:
                done = bell.get(timeout=_TICK_S)
            except queue.Empty:
                done = None
            if bell is not self._bell:
                return
            try:
                self._look()
            except Exception:
                self._diagnostics.error("publisher", "what is open could not be told; it goes on")
            if done is not None:
                done.put(None)
            if self._is_over:
                return

    def _look(self) -> None:
        opened = [one for one in self._processor.open_notes() if isinstance(one, OpenSpan)]
        now = time.monotonic()
        is_due = now >= self._beat_at
        self._tell_open(opened, counts=is_due)
        if self._is_over or (self._is_child and not self._told):
            if self._beating:
                self._beating = False
                self._beat([], is_last=True)
        elif is_due or not self._beating:
            self._beating = True
            self._beat_at = now + BEAT_S
            self._beat(opened, is_last=False)

    def _tell_open(self, opened: Sequence[OpenSpan], *, counts: bool) -> None:
        """Tells what has opened, and, once a beat, how much audio has come."""
        now_ns = time.time_ns()
        told: dict[int, tuple[int, ...]] = {}
        for one in opened:
            fact = one.start
            is_root = fact.kind is Kind.TRANSACTION
            if not is_root and now_ns - fact.start_ns < OPEN_AFTER_S * NS_PER_S:
                continue
            known = self._told.get(fact.span_id)
            stands: tuple[int, ...] = ()
            if isinstance(one, OpenAudio):
                stands = tuple(one.count) if counts or known is None else known
            told[fact.span_id] = stands
            if known != stands:
                self._send(one)
        self._told = told

    def _send(self, one: OpenSpan) -> None:
        copy = copy_of(one)
        if copy is not None:
            self._resource = copy.resource.attributes
            self._export.put(copy)

    def _beat(self, opened: Sequence[OpenSpan], *, is_last: bool) -> None:
        told = [one for one in opened if one.start.span_id in self._told][:MOST_OPEN]
        beat = {
            **self._about(),
            "worker": f"{socket.gethostname()}/{os.getpid()}",
            "service": str(self._resource.get("service.name", "")),
            "version": str(self._resource.get("service.version", "")),
            "at_ns": time.time_ns(),
            "interval_s": BEAT_S,
            "started_ns": self._began_ns,
            "is_last": is_last,
            "open": [_row(one) for one in told],
        }
        try:
            answer = self._endpoint.post("/v1/beats", beat)
            self._last_beat_ns = time.time_ns()
        except (OSError, ValueError):
            return  # the spans' exporter tells that the service is away
        self._tell_again(told, answer)

    def _tell_again(self, told: Iterable[OpenSpan], answer: Any) -> None:
        """Sends what the service says that it does not know: it began anew."""
        rows = answer.get("unknown") if isinstance(answer, dict) else None
        unknown = [row for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
        for one in told if unknown else ():
            if _row(one)[:2] in unknown:
                self._send(one)


def _row(one: OpenSpan) -> list[Any]:
    fact = one.start
    at_ns = one.at_ns if isinstance(one, OpenAudio) else fact.at_ns
    return [f"{fact.trace_id:032x}", f"{fact.span_id:016x}", at_ns]


def copy_of(one: OpenSpan) -> ReadableSpan | None:
    """An open span as it stands; None where the SDK records none."""
    span = one.span
    if not isinstance(span, Span):
        return None
    attributes = dict(span.attributes or {})
    if isinstance(one, OpenAudio):
        count = one.count
        attributes[semconv.AUDIO_CHUNKS] = count.chunks
        attributes[semconv.AUDIO_BYTES] = count.bytes
        attributes[semconv.AUDIO_LAST_SIZE] = count.last_size
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        kind=span.kind,
        start_time=span.start_time,
        end_time=None,
        instrumentation_scope=span.instrumentation_scope,
    )


def _span_of(
    fact: Fact, name: str, attributes: Mapping[str, Any], resource: Mapping[str, Any]
) -> ReadableSpan:
    def context(span_id: int) -> SpanContext:
        return SpanContext(fact.trace_id, span_id, is_remote=False)

    return ReadableSpan(
        name=name,
        context=context(fact.span_id),
        parent=context(fact.parent_id) if fact.parent_id else None,
        resource=Resource(dict(resource)),
        attributes=dict(attributes),
        start_time=fact.start_ns,
        end_time=None,
    )


def pipelines_of(pipelines: Iterable[Pipeline]) -> list[dict[str, Any]]:
    """Declared pipelines as a beat has them."""
    return [
        {"name": p.name, "stages": list(p.stages), "stall_after": dict(p.stall_after)}
        for p in pipelines
        if p.name
    ]
