"""The service's processes: how each begins and ends, and where its spans go.

Each ends by ``SIGTERM``, as services do: the work at hand is interrupted, and told so.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, Self

from otel_tracker import init_debug_tracker, shutdown_debug_tracker
from otel_tracker.diagnostics import Diagnostics
from otel_tracker.exporting import configured_exporters

from .pipeline import News, Recorded, Stalled, Transcribed

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    from opentelemetry.sdk.trace.export import SpanExporter

    from .memories import MemoryStore

WEB: Final = "voice-notes-web"
TRANSCRIBER: Final = "voice-notes-transcriber"
MEMORY: Final = "voice-notes-memory"

_TRANSCRIBERS: Final = 2
"""The recogniser keeps one processor busy."""
_SEND_EVERY_MS: Final = 500
"""To the watch."""
_SEND_WITHIN_MS: Final = 3_000
"""For the last spans of a process."""
_END_WITHIN_S: Final = 8.0
"""A process that takes longer to end is killed."""


class ServiceError(RuntimeError):
    """The service cannot do its work; the message says why."""


class Services:
    """The web process, the workers, and the queues between them, as a context manager.

    Args:
        store: where memories are kept.
        watch: the address that takes spans by OTLP/HTTP.
        url: the dashboard service that each of them feeds; empty for none.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, store: MemoryStore, watch: str, url: str = "") -> None:
        # Spawned, not forked: this process has threads, and a fork would copy their locks.
        context = multiprocessing.get_context("spawn")
        self._news: Queue[News | logging.LogRecord] = context.Queue()
        recorded: Queue[Recorded] = context.Queue()
        transcribed: Queue[Transcribed] = context.Queue()
        self._queues = (self._news, recorded, transcribed)  # gone with the last one who has them
        # Nothing is ever sent by it. They end when this end is closed, also by this one's death.
        ended, self._lifeline = context.Pipe(duplex=False)
        # Bound here, so that the address is known and taken before the process is up.
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        work: list[tuple[str, Callable[..., None], tuple[Any, ...]]] = [
            (WEB, _web, (self._listener, recorded)),
            *[(TRANSCRIBER, _transcriber, (recorded, transcribed))] * _TRANSCRIBERS,
            (MEMORY, _rememberer, (transcribed, store)),
        ]
        self._processes: list[BaseProcess] = [
            context.Process(
                target=_run, name=name, args=(name, watch, url, ended, self._news, run, *args)
            )
            for name, run, args in work
        ]

    def __enter__(self) -> Self:
        try:
            with interrupt_held_back():
                for process in self._processes:
                    process.start()
        except BaseException:
            self.__exit__()
            raise
        finally:
            self._listener.close()  # theirs by now: when it dies, connections are refused
        return self

    def __exit__(self, *_: object) -> None:
        begun = [process for process in self._processes if process.pid is not None]
        deadline = time.monotonic() + _END_WITHIN_S
        self._lifeline.close()
        for process in begun:
            while process.is_alive() and time.monotonic() < deadline:
                process.join(0.05)
                self.hear(0)  # a process that has more to tell could not end otherwise
            if process.is_alive():
                logging.getLogger(__name__).warning("%s did not end; it is killed", process.name)
                process.kill()
                process.join()
            process.close()
        for queue in self._queues:
            queue.close()

    def hear(self, timeout_s: float) -> News | None:
        """The next news; None if none came within `timeout_s`. Log lines go where ours go."""
        try:
            news = self._news.get(timeout=timeout_s)
        except Empty:
            return None
        if isinstance(news, logging.LogRecord):
            logging.getLogger(news.name).handle(news)
            return None
        return news

    @property
    def living(self) -> dict[int, str]:
        """The names of those that live, by their process ids."""
        return {p.pid: p.name for p in self._processes if p.pid is not None and p.exitcode is None}

    def check(self) -> None:
        """Sees whether all are alive.

        Raises:
            ServiceError: one is not.
        """
        for process in self._processes:
            if process.exitcode is not None:
                raise ServiceError(
                    f"the process {process.name} ended before its work was done "
                    f"(exit code {process.exitcode})"
                )


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Processes that start meanwhile never get a Ctrl-C, which a terminal sends to all.

    It is for this process, which ends them.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exporters_of_the_user() -> dict[str, Callable[[], SpanExporter]]:
    """Where the environment says that spans are to go besides."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return {}
    return dict(configured_exporters(Diagnostics()))


# --- in each process ------------------------------------------------------------------------------


def _run(
    service: str,
    watch: str,
    url: str,
    ended: Connection,
    news: Queue[Any],
    work: Callable[..., None],
    *args: object,
) -> None:
    """The life of one process, from its start to its end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    threading.Thread(target=_end_with, args=(ended,), daemon=True).start()
    logs = QueueHandler(news)
    logs.setFormatter(logging.Formatter("%(processName)s: %(message)s"))
    logging.getLogger().addHandler(logs)
    _export_to(watch, service)
    tracker = init_debug_tracker(
        disabled=False,
        url=url,
        on_stall=lambda info: news.put(Stalled(info["transaction_id"], info)),
    )
    try:
        work(*args, news)
    finally:
        shutdown_debug_tracker()
        tracker.force_flush(_SEND_WITHIN_MS)


def _export_to(watch: str, service: str) -> None:
    """Sets up OpenTelemetry as an application does; the tracker finds it.

    Spans go to `watch`, which shows the demo, and wherever ``OTEL_EXPORTER_OTLP_*`` says.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    bypass = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = f"{bypass},127.0.0.1" if bypass else "127.0.0.1"
    shown = OTLPSpanExporter(watch, compression=Compression.NoCompression)
    exporters = [make() for make in exporters_of_the_user().values()]
    os.environ.pop("OTEL_SDK_DISABLED", None)  # the demo would have nothing to show
    # Nor may it hold up the end: what waits is sent by hand, within bounds.
    provider = TracerProvider(
        ALWAYS_ON, Resource.create({SERVICE_NAME: service}), shutdown_on_exit=False
    )
    # First, so that an endpoint of the user's that does not answer holds nothing up here.
    provider.add_span_processor(BatchSpanProcessor(shown, schedule_delay_millis=_SEND_EVERY_MS))
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def _end_with(ended: Connection) -> None:
    with suppress(EOFError, OSError):
        ended.recv()
    signal.raise_signal(signal.SIGTERM)


def _web(listener: socket.socket, recorded: Queue[Recorded], _news: Queue[Any]) -> None:
    from . import web

    recorded.cancel_join_thread()  # at the end nobody takes what is still in there
    web.server(recorded).run(sockets=[listener])


def _transcriber(
    recorded: Queue[Recorded], transcribed: Queue[Transcribed], news: Queue[Any]
) -> None:
    from . import workers

    transcribed.cancel_join_thread()
    workers.run_transcriber(recorded, transcribed, news.put)


def _rememberer(transcribed: Queue[Transcribed], store: MemoryStore, news: Queue[Any]) -> None:
    from . import workers

    workers.run_rememberer(transcribed, store, news.put)
