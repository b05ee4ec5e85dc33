"""The drop-in API for transactions: what callers of the old debug tracker call, as spans and reads.

Every method takes whatever it is given: bad input is logged once, counted under
``health.problems``, and never raised into the caller.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import json
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from multiprocessing import parent_process, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry import trace

from . import views
from .diagnostics import Diagnostics
from .directory import Directory
from .dump import write_dump
from .exporting import SHUTDOWN_S, shutdown_exports
from .frames import Frames
from .handles import Handle
from .ids import format_id, new_trace_id, parse_id
from .model import (
    AUDIO_PIPELINE,
    EMPTY,
    MEMORY_SESSION,
    NO_PIPELINE,
    Event,
    Fact,
    Outcome,
    Phase,
    Pipeline,
    SocketFact,
    StageEvent,
    SystemMetrics,
    Transaction,
    Who,
    near_event,
    parse_event,
    parse_stage,
)
from .privacy import id_text, plain_metadata, text_of
from .processor import DashboardSpanProcessor
from .publisher import MOST_OPEN, Endpoint, Publisher, pipelines_of
from .recorder import SKIPPED, Recorder
from .remote import Reader, RemoteReader, StoreReader
from .sessions import SessionBook
from .settings import load
from .state import News, State
from .store import Clock, FactSource, Store, SystemClock
from .sweeper import Sweeper
from .telemetry import Telemetry

if TYPE_CHECKING:
    from .receiver import Receiver
    from .serving import OwnDashboard

T = TypeVar("T")


class _NotGiven:
    def __repr__(self) -> str:
        return "<not given>"


_UNSET: Final[Any] = _NotGiven()

_OF_A_STAGE: Final = (Phase.STARTED, Phase.COMPLETED)

_LONGEST_S: Final = 86_400.0  # a lock takes no longer timeout than its clock can tell

MOST: Final = 1 << 53
"""The largest number that is taken from a caller: exact in JSON, and far from OTLP's 64 bits."""

_NEWS: Final = 10_000
"""Most news that wait for the sweeper, and for a service."""

_trackers: weakref.WeakSet[TransactionTracker] = weakref.WeakSet()


class _TrackerStore(Store):
    """A store whose news two may hear: the sweeper, and a service that is served from here."""

    def __init__(self, state: State, clock: Clock) -> None:
        super().__init__(state, clock)
        self._for_sweeper: deque[News] = deque(maxlen=_NEWS)
        self._for_service: deque[News] | None = None

    def take_news(self) -> list[News]:
        """As `Store.take_news`, for the sweeper."""

        def take(state: State) -> list[News]:
            self._share(state)
            news = list(self._for_sweeper)
            self._for_sweeper.clear()
            return news

        return self.read(take)

    def for_service(self) -> Store:
        """The same store, as a service may read it: it takes the news that it finds."""
        self._for_service = deque(maxlen=_NEWS)
        return _ServiceStore(self)

    def read_as_service(self, view: Callable[[State], T]) -> T:
        """As `read`; `view` finds what is news to the service, and what it leaves is kept."""

        def look(state: State) -> T:
            self._share(state)
            mine = self._for_service
            if mine is None:
                return view(state)
            state.news.extend(mine)
            mine.clear()
            try:
                return view(state)
            finally:
                mine.extend(state.news)
                state.news.clear()

        return self.read(look)

    def reset(self, state: State) -> None:
        """As `Store.reset`; a child does not serve."""
        super().reset(state)
        self._for_sweeper.clear()
        self._for_service = None

    def _share(self, state: State) -> None:
        self._for_sweeper.extend(state.news)
        if self._for_service is not None:
            self._for_service.extend(state.news)
        state.news.clear()


class _ServiceStore(Store):
    """What a service sees of a tracker's store."""

    def __init__(self, whole: _TrackerStore) -> None:
        self._whole = whole
        self.clock = whole.clock
        self.started_ns = whole.started_ns
        self.started_wall_ns = whole.started_wall_ns

    def put(self, fact: Fact | SocketFact | FactSource) -> None:
        """As `Store.put`."""
        self._whole.put(fact)

    def read(self, view: Callable[[State], T]) -> T:
        """As `Store.read`."""
        return self._whole.read_as_service(view)


class TransactionTracker:
    """Tracks transactions through a pipeline: writes are spans, reads are views over their facts.

    Args:
        tracer_provider: the application's provider, to make the spans with.
        pipeline: what `create_transaction` runs; the audio pipeline by default.
        clock: both clocks; tests inject their own.
        run_sweeper: False starts no thread: stalls are seen when read and told by `sweep()`.
        follow_global: use the global provider as soon as the application has set one.
        **options: as in docs/settings.md.

    Raises:
        TypeError: an option that does not exist.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        pipeline: Pipeline | None = None,
        *,
        clock: Clock | None = None,
        run_sweeper: bool = True,
        follow_global: bool = False,
        **options: Any,
    ) -> None:
        on_stall = options.pop("on_stall", None)
        on_issue = options.pop("on_issue", None)
        self._options = options
        self.settings = load(options)
        self._clock: Clock = clock or SystemClock()
        self._own_pipeline = pipeline
        self._pipeline = pipeline or AUDIO_PIPELINE
        self._sessions = SessionBook()
        self._pipelines: dict[str, Pipeline] = {
            p.name: p for p in (AUDIO_PIPELINE, MEMORY_SESSION, NO_PIPELINE, self._pipeline)
        }
        self._run_sweeper = run_sweeper
        self._diagnostics = Diagnostics()
        self._store = _TrackerStore(self._new_state(), self._clock)
        self._own = StoreReader(self._store, self._sessions, self._finish)
        self._processor = DashboardSpanProcessor(self._store, self._diagnostics)
        self._telemetry = Telemetry(
            self._processor,
            self._diagnostics,
            tracer_provider,
            follow_global=follow_global,
            make_publisher=self._make_publisher,
        )
        self._recorder = Recorder(self._store, self._telemetry, self.settings, self._diagnostics)
        self._sweeper = Sweeper(
            self._store, self._recorder, self._diagnostics, inline=not run_sweeper
        )
        self._directory = Directory(
            self._recorder,
            self._store,
            self._diagnostics,
            self._pipeline_of,
            self._sweeper.ensure_running if run_sweeper else lambda: None,
        )
        self.frames = Frames(
            self._recorder,
            self._directory,
            self._diagnostics,
            self._sweeper.wake,
            self._pipeline_named,
        )
        """What `stage` and `transaction` run on."""
        self._sweeper.on_stall, self._sweeper.on_issue = on_stall, on_issue
        _trackers.add(self)
        self._check_stage_limits()
        self._telemetry.on_attach = _at_exit_first
        _at_exit_first()
        self._reader = self._make_reader()
        self._dashboard: OwnDashboard | None = None
        self._attach()
        self._serve()
        self._telemetry.publish()

    def _new_state(self) -> State:
        return State(self.settings.limits, self.settings.patience, self._pipelines)

    # --- set-up ---------------------------------------------------------------------------------

    def configure(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        pipeline: Pipeline | None = None,
        **options: Any,
    ) -> None:
        """Changes options while it runs; what was tracked is kept, what was not named stays.

        Raises:
            TypeError: an option that does not exist.
        """
        callbacks = {k: options.pop(k) for k in ("on_stall", "on_issue") if k in options}
        merged = {**self._options, **options}
        self.settings = load(merged)
        self._options = merged
        self._recorder.configure(self.settings)
        self._reader = self._make_reader()
        self._check_stage_limits()
        if pipeline is not None:
            self._own_pipeline = self._pipeline = pipeline
            self._pipelines[pipeline.name] = pipeline
        for name, callback in callbacks.items():
            setattr(self._sweeper, name, callback)
        settings, known = self.settings, dict(self._pipelines)

        def apply(state: State) -> None:
            state.limits = settings.limits
            state.issues.set_limit(settings.limits.issues)
            state.set_patience(settings.patience)
            for one in known.values():
                state.add_pipeline(one)

        self._store.read(apply)
        self._serve()
        self._telemetry.use(tracer_provider)
        self._attach()

    def _make_publisher(self) -> Publisher | None:
        endpoint = Endpoint(self.settings.url.strip(), self.settings.token)
        if not endpoint.url or self.settings.disabled or not self._run_sweeper:
            return None
        if endpoint.flaw:
            self._diagnostics.warn(
                "url", "OTEL_TRACKER_URL=%r leads nowhere; %s", endpoint.url, endpoint.flaw
            )
            return None
        if self._dashboard is not None and self._dashboard.is_at(endpoint.url):
            return None  # it is here already
        return Publisher(endpoint, self._processor, self._diagnostics, self._about_this_process)

    def _make_reader(self) -> Reader:
        """Where reads are answered from."""
        settings, url = self.settings, self.settings.read_url.strip()
        if not url or settings.disabled:
            return self._own
        endpoint = Endpoint(url, settings.token)
        return RemoteReader(endpoint, settings.privacy, self._own_health)

    def _serve(self) -> None:
        """Serves the dashboard from here, where that is wanted."""
        settings = self.settings
        if settings.disabled or not self._run_sweeper:
            settings = replace(settings, serve="")
        if self._dashboard is None and settings.serve:
            self._dashboard = self._guard(None, self._make_dashboard)
        if self._dashboard is not None:
            self._dashboard.use(settings)

    def _make_dashboard(self) -> OwnDashboard:
        from .serving import OwnDashboard  # it takes its time to import

        return OwnDashboard(self._store.for_service, self._own_health, self._add_stacks)

    def _about_this_process(self) -> dict[str, Any]:
        """What the dashboard service learns from a beat, beside what is open."""
        privacy = self.settings.privacy
        sockets = self._store.read(lambda state: dict(islice(state.sockets.items(), MOST_OPEN)))
        return {
            "websockets": {privacy.identifier(client): n for client, n in sockets.items()},
            "pipelines": pipelines_of(self._pipelines.values()),
            "stall_after": dict(self.settings.stall_after_stage),
            "health": {"problems": dict(self._diagnostics.counts),
                       "export": self._telemetry.export_state()},
        }  # fmt: skip

    def _check_stage_limits(self) -> None:
        """A limit for a stage that nobody declared may be meant so, unless it is a near miss."""
        declared = {stage for p in self._pipelines.values() for stage in p.stages}
        for stage in self.settings.stall_after_stage:
            near = difflib.get_close_matches(stage, declared, n=1, cutoff=0.8)
            if near and stage not in declared:
                self._diagnostics.warn(
                    "stage_limit", "there is a limit for the stage %r; did you mean %r?",
                    stage, near[0],
                )  # fmt: skip

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Ends every open span, exports what waits, stops the thread, within `timeout_s` seconds.

        Safe to repeat. Calls after it still answer; what they track is no longer exported until
        `init_debug_tracker` is called again.
        """
        timeout_s = seconds_of(timeout_s, SHUTDOWN_S)
        started = time.monotonic()
        if self._dashboard is not None:
            self._dashboard.stop(timeout_s / 2)
        self._sweeper.stop()
        # Bounded too: an application's SimpleSpanProcessor exports within the end of each span.
        if self._run_sweeper:
            self._telemetry.within(timeout_s, lambda: self._guard(None, self._end_everything))
        else:
            self._guard(None, self._end_everything)
        self._telemetry.shutdown(max(0.1, timeout_s - (time.monotonic() - started)))

    def detach(self, timeout_s: float = SHUTDOWN_S) -> None:
        """As `shutdown`, and OpenTelemetry is left as it was without the tracker.

        Calls after it still answer and count. They make no spans until `init_debug_tracker` is
        called again.
        """
        self.shutdown(timeout_s)
        self._guard(None, self._recorder.end_postponed)
        self._recorder.forget()
        self._guard(None, self._telemetry.leave)

    def _end_everything(self) -> None:
        self._sweeper.sweep()
        self._sweeper.settle()
        self._sweeper.closing = True
        for handle in self._recorder.handles():
            self._recorder.release(handle, Outcome.INTERRUPTED, "its process shut down")
            handle.era = None  # blocks that are left later have nothing to end any more
        self._sweeper.sweep()
        self._sweeper.closing = False

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Exports what waits.

        Returns:
            False if that took longer than `timeout_millis`.
        """
        self._guard(None, self._recorder.end_postponed)
        return bool(self._guard(False, lambda: self._telemetry.flush(int(timeout_millis))))

    def _attach(self) -> None:
        """Listens to the application's provider, if there is one by now."""
        if self._guard(False, self._telemetry.attach) and self._run_sweeper:
            self._sweeper.ensure_running()

    def sweep(self) -> None:
        """Tells stalls, recoveries and issues now, and ends roots that rest."""
        self._sweeper.sweep()

    @property
    def receiver(self) -> Receiver:
        """Takes spans of other processes, by OTLP: the dashboard shows them with its own."""
        from .receiver import Receiver  # protobuf takes its time to import

        return Receiver(self._store)

    # --- writes ---------------------------------------------------------------------------------

    def create_transaction(
        self,
        user_id: object = None,
        client_id: object = None,
        conversation_id: object = None,
    ) -> str:
        """Begins a transaction: a new trace, its root span open.

        Returns:
            Its id: the trace id written as a UUID. It alone continues the transaction elsewhere.
        """
        try:
            if self.settings.disabled:
                return format_id(new_trace_id())
            pipeline = self._pipeline
            who = Who(
                id_text(user_id), id_text(client_id), id_text(conversation_id), "", pipeline.name
            )
            return self._directory.create(who, pipeline, EMPTY).text_id
        except Exception:
            self._diagnostics.error("create_transaction", "a transaction could not be created")
            return format_id(new_trace_id())

    def track_event(
        self,
        transaction_id: object = _UNSET,
        stage: object = _UNSET,
        success: object = _UNSET,
        error_message: object = _UNSET,
        /,
        *extra: object,
        **metadata: Any,
    ) -> None:
        """Reports an event of a transaction.

        ``transaction_id``, ``stage``, ``success=True`` and ``error_message=None`` may be given by
        position or by keyword; every other keyword is metadata, and so is one of these that a
        position has filled already. ``metadata={…}`` is merged; single keywords win.

        Args:
            transaction_id: what `create_transaction` returned.
            stage: a `PipelineStage`, its value, or an event of a stage of your own:
                ``"diarization_completed"``.
            success: False reports a failure.
            error_message: what went wrong; an exception will do.
            *extra: too many arguments; ignored, and warned about once.
            **metadata: anything; what may leave the process is in docs/privacy.md.
        """
        try:
            if self.settings.disabled:
                return
            if transaction_id is _UNSET:
                transaction_id = metadata.pop("transaction_id", None)
            if stage is _UNSET:
                stage = metadata.pop("stage", None)
            if success is _UNSET:
                success = metadata.pop("success", True)
            if error_message is _UNSET:
                error_message = metadata.pop("error_message", None)
            if extra:
                self._diagnostics.warn(
                    "arguments", "track_event() takes four arguments by position; name the others"
                )
            handle = self._handle_of(transaction_id)
            event = parse_event(stage)
            if handle is None or event is None:
                if event is None:
                    self._warn_of_stage("track_event", stage)
                return
            if type(event.event) is StageEvent:
                self._warn_of_near_miss(event.event.value)
            self._report(
                handle,
                event,
                success is True or bool(success),
                "" if error_message is None else text_of(error_message),
                self._plain(metadata) if metadata else EMPTY,
            )
        except Exception:
            self._diagnostics.error("track_event", "an event could not be tracked")

    @staticmethod
    def _plain(metadata: dict[str, Any]) -> Mapping[str, Any]:
        if isinstance(metadata.get("metadata", _UNSET), Mapping):
            with contextlib.suppress(Exception):  # a mapping that raises is metadata like any other
                merged = dict(metadata["metadata"])
                del metadata["metadata"]
                metadata = {**merged, **metadata}
        return plain_metadata(metadata)

    def _report(
        self, handle: Handle, event: Event, success: bool, error: str, metadata: Mapping[str, Any]
    ) -> None:
        recorder = self._recorder
        _, stage, phase = event
        if handle.frames and phase in _OF_A_STAGE:
            frame = self.frames.stage_of(handle, stage)
            if frame is not None:
                # Reported from within `with stage`: the same attempt, which its frame ends.
                frame.report(success=success, error=error, metadata=metadata)
                return
        if success and phase is Phase.STARTED:
            recorder.start_stage(handle, stage, metadata)
        elif success and phase is Phase.AUDIO:
            self._report_audio(handle, metadata)
        elif phase is Phase.END:
            recorder.end(
                handle,
                success=success,
                error=error,
                error_type=_error_type(metadata),
                metadata=metadata,
            )
        else:
            outcome = Outcome.SUCCESS if success else Outcome.FAILURE
            error_type = "" if success else _error_type(metadata)
            opened = handle.open.pop((stage, ""), None) if phase is Phase.COMPLETED else None
            if opened is not None:
                recorder.end_stage(
                    handle, opened, outcome, metadata, error=error, error_type=error_type
                )
            else:
                recorder.mark_stage(
                    handle,
                    stage,
                    outcome,
                    metadata,
                    error=error,
                    error_type=error_type,
                    is_start=phase is Phase.STARTED,
                )
        if not success:
            self._sweeper.wake()

    def _report_audio(self, handle: Handle, metadata: Mapping[str, Any]) -> None:
        """One chunk where its size is told; otherwise only the word that audio began."""
        size = metadata.get("chunk_size")
        if isinstance(size, int) and not isinstance(size, bool):
            rest = {k: v for k, v in metadata.items() if k != "chunk_size"}
            self._recorder.audio(handle, _size_of(size), rest)
        else:
            self._recorder.audio(handle, None, metadata)

    def track_audio_chunk(
        self, transaction_id: object = _UNSET, chunk_size: object = _UNSET, /, **metadata: Any
    ) -> None:
        """Counts one packet of audio of `chunk_size` bytes. Made to be called for every packet.

        Metadata is kept once for the transaction's audio, the newest value of each name.
        """
        try:
            if self.settings.disabled:
                return
            if transaction_id is _UNSET:
                transaction_id = metadata.pop("transaction_id", None)
            if chunk_size is _UNSET:
                chunk_size = metadata.pop("chunk_size", 0)
            handle = self._handle_of(transaction_id)
            if handle is not None:
                plain = self._plain(metadata) if metadata else EMPTY
                self._recorder.audio(handle, _size_of(chunk_size), plain)
        except Exception:
            self._diagnostics.error("track_audio_chunk", "an audio chunk could not be tracked")

    def track_progress(
        self, transaction_id: object = _UNSET, stage: object = _UNSET, /, **metadata: Any
    ) -> None:
        """Says that work goes on: the silence of the open stage starts anew.

        Args:
            transaction_id: what `create_transaction` returned.
            stage: which open stage; all of them by default.
            **metadata: such as ``done=3, total=10``.
        """
        try:
            if transaction_id is _UNSET:
                transaction_id = metadata.pop("transaction_id", None)
            if stage is _UNSET:
                stage = metadata.pop("stage", None)
            handle = None if self.settings.disabled else self._handle_of(transaction_id)
            if handle is not None:
                name = None if stage is None else parse_stage(stage)
                if name is None and stage is not None:
                    self._warn_of_stage("track_progress", stage)
                plain = self._plain(metadata) if metadata else EMPTY
                self._recorder.progress(handle, name, plain)
        except Exception:
            self._diagnostics.error("track_progress", "progress could not be tracked")

    def track_skipped(
        self,
        transaction_id: object = _UNSET,
        stage: object = _UNSET,
        reason: object = _UNSET,
        /,
        **metadata: Any,
    ) -> None:
        """Says that there was rightly nothing to do in `stage`: an empty transcript, for one.

        The transaction is done by that, unless another stage follows.
        """
        try:
            if transaction_id is _UNSET:
                transaction_id = metadata.pop("transaction_id", None)
            if stage is _UNSET:
                stage = metadata.pop("stage", None)
            if reason is _UNSET:
                reason = metadata.pop("reason", None)
            handle, name = self._handle_and_stage(transaction_id, stage, "track_skipped")
            if handle is None or name is None:
                return
            plain = dict(self._plain(metadata)) if metadata else {}
            frame = self.frames.stage_of(handle, name) if handle.frames else None
            if frame is not None:
                frame.set(**plain)
                frame.skip(reason)
                return
            plain[SKIPPED] = text_of(reason)
            opened = handle.open.pop((name, ""), None)
            if opened is not None:
                self._recorder.end_stage(handle, opened, Outcome.SKIPPED, plain)
            else:
                self._recorder.mark_stage(handle, name, Outcome.SKIPPED, plain)
        except Exception:
            self._diagnostics.error("track_skipped", "a skipped stage could not be tracked")

    def track_queued(self, transaction_id: object = None, stage: object = None) -> None:
        """Says that `stage` waits for a worker: a clock of its own, and no stall."""
        try:
            handle, name = self._handle_and_stage(transaction_id, stage, "track_queued")
            if handle is not None and name is not None:
                self._recorder.queue(handle, name)
        except Exception:
            self._diagnostics.error("track_queued", "a queued stage could not be tracked")

    def hand_over(self, transaction_id: object = None) -> None:
        """Says that other processes carry on: the root ends here, and silence is no stall."""
        try:
            handle = None if self.settings.disabled else self._handle_of(transaction_id)
            if handle is not None:
                self._recorder.hand_over(handle)
        except Exception:
            self._diagnostics.error("hand_over", "a hand-over could not be tracked")

    def track_websocket_connected(self, user_id: object = None, client_id: object = None) -> None:
        """Counts a connection of a client. While it is open, silence after audio is no stall."""
        self._guard(None, lambda: self._connect(id_text(client_id), id_text(user_id)))

    def track_websocket_disconnected(self, client_id: object = None) -> None:
        """Counts a connection out; with the client's last one its audio ends."""
        self._guard(None, lambda: self._disconnect(id_text(client_id)))

    def _socket(self, client_id: str, user_id: str, *, opened: bool) -> None:
        if not self.settings.disabled:
            now_ns = self._clock.monotonic_ns()
            self._store.put(SocketFact(client_id, user_id, opened, self._clock.time_ns(), now_ns))

    def _connect(self, client_id: str, user_id: str) -> None:
        if client_id and not self.settings.disabled:
            self._recorder.connect(client_id)
        self._socket(client_id, user_id, opened=True)

    def _disconnect(self, client_id: str) -> None:
        if self.settings.disabled:
            return
        self._socket(client_id, "", opened=False)
        if not client_id:
            return
        if self._store.read(lambda state: state.open_sockets(client_id)) == 0:
            self._recorder.disconnect(client_id)

    # --- whose transaction ----------------------------------------------------------------------

    def _handle_of(self, transaction_id: object) -> Handle | None:
        return self._directory.by_id(transaction_id, self._pipeline)

    def _pipeline_of(self, name: str | None) -> Pipeline | None:
        return self._own_pipeline if name is None else self._pipelines.get(name)

    def _pipeline_named(self, pipeline: Pipeline | str) -> Pipeline:
        """The pipeline of this name, or one without declared stages; declares one that is given."""
        if isinstance(pipeline, str):
            return self._pipelines.get(pipeline) or Pipeline(pipeline)
        if self._pipelines.get(pipeline.name) != pipeline:
            self.declare(pipeline)
        return pipeline

    def declare(self, pipeline: Pipeline) -> None:
        """Declares a pipeline: its transactions are judged by its stages and limits."""
        self._pipelines[pipeline.name] = pipeline
        self._check_stage_limits()
        self._store.read(lambda state: state.add_pipeline(pipeline))

    def _handle_and_stage(
        self, transaction_id: object, stage: object, call: str
    ) -> tuple[Handle | None, str | None]:
        if self.settings.disabled:
            return None, None
        name = parse_stage(stage)
        if name is None:
            self._warn_of_stage(call, stage)
            return None, None
        return self._handle_of(transaction_id), name

    def _warn_of_stage(self, call: str, stage: object) -> None:
        self._diagnostics.warn(
            "stage",
            "%s() got %s as its stage; use a PipelineStage, or a name such as 'fetch_started'",
            call,
            text_of(stage, 80) or "None",
        )

    def _warn_of_near_miss(self, name: str) -> None:
        """A stage of the caller's own is welcome; one letter beside a built-in event is a slip."""
        meant = near_event(name)
        if meant is not None:
            self._diagnostics.warn(
                "near_miss",
                "%s is taken for a stage of your own; did you mean %s?",
                name.removesuffix("_completed"),
                meant,
            )

    # --- reads ----------------------------------------------------------------------------------

    def get_dashboard_data(self) -> dict[str, Any]:
        """Everything a dashboard shows, as plain data: docs/dashboard-data.md has every key.

        This and the other reads answer from this process, or, with ``OTEL_TRACKER_READ_URL``, from
        the dashboard service there, within a second: docs/reading.md.
        """
        self._attach()
        return self._reader.dashboard()

    def get_transaction(self, transaction_id: object) -> Transaction | None:
        """A frozen copy of one transaction; None if it is not kept, or never was."""
        trace_id = parse_id(transaction_id) if isinstance(transaction_id, str) else None
        return None if trace_id is None else self._reader.transaction(trace_id)

    def describe_transaction(self, transaction_id: object) -> str:
        """A transaction as a tree of text, open stages included, as docs/trace.md shows it.

        Errors and metadata are cleaned as for export, so it may go to a log. Where the transaction
        is not kept, the text says so.
        """

        def describe() -> str:
            from .trace import NotFoundError, of_transaction  # most applications never ask

            try:
                return of_transaction(self, transaction_id).text(width=0, color=False)
            except NotFoundError as error:
                return str(error)

        return self._guard("", describe)

    def get_user_transactions(self, user_id: object, limit: int = 10) -> list[Transaction]:
        """Frozen copies of the newest `limit` transactions of a user, newest first."""
        return self._reader.user_transactions(id_text(user_id), limit_of(limit, 10))

    def get_recent_transactions(self, limit: int = 10) -> list[dict[str, Any]]:
        """Rows of the newest `limit` transactions, newest first, with whole ids, ready for JSON."""
        return self._reader.recent_transactions(limit_of(limit, 10))

    def get_system_metrics(self) -> SystemMetrics:
        """The totals as a frozen copy."""
        return self._reader.metrics()

    @property
    def metrics(self) -> SystemMetrics:
        """As `get_system_metrics`: the old tracker's attribute."""
        return self.get_system_metrics()

    def trace_url(self, transaction_id: object) -> str:
        """Where the transaction's trace is in Jaeger's UI; empty for what is no transaction id."""
        trace_id = self._directory.trace_id_of(transaction_id)
        if trace_id is None:
            return ""
        return f"{self.settings.jaeger_url.rstrip('/')}/trace/{trace_id:032x}"

    def export_debug_dump(self) -> Path:
        """Writes everything that this process keeps as JSON: private, complete or not at all.

        Returns:
            The path, ``debug_dump_<timestamp>.json`` in ``DEBUG_DUMP_DIR``.

        Raises:
            OSError: the directory cannot be written; the message names it and ``DEBUG_DUMP_DIR``.
        """
        data = self._store.read(lambda state: views.dump(state, self._own.now()))
        self._add_health(data["health"])
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
        return write_dump(Path(self.settings.debug_dump_dir), self._clock.time_ns(), text)

    def _finish(self, data: dict[str, Any]) -> None:
        """Adds to a dashboard what this process knows beside its store."""
        self._add_stacks(data["stalled"])
        self._add_health(data["health"])

    def _own_health(self) -> dict[str, Any]:
        """The tracker's own state, where the dashboard is another process's."""
        health = self._store.read(views.health)
        self._add_health(health)
        return health

    def _add_health(self, health: dict[str, Any]) -> None:
        """What the fold does not know: the tracker's own state beside the store's."""
        health["disabled"] = self.settings.disabled
        health["export"] = self._telemetry.export_state()
        health["publisher"] = self._telemetry.publisher_state()
        health["problems"] = dict(self._diagnostics.counts)
        if self.settings.serve and self._dashboard is not None:
            health["serve"] = self._dashboard.state()
        if self._sessions.dropped:
            health["dropped"]["sessions"] = self._sessions.dropped

    def _add_stacks(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["span_id"] is None:
                continue
            handle = self._recorder.handle(row["transaction_id"])
            if handle is not None:
                opened = self._recorder.open_stage_of(handle, int(row["span_id"], 16))
                if opened is not None:
                    row["stack"] = opened.worker.stack() or None

    # --- the rest -------------------------------------------------------------------------------

    def _guard(self, otherwise: T, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception:
            self._diagnostics.error("call", "a call could not be carried out")
            return otherwise

    def _after_fork(self) -> None:
        """In a forked child: what was inherited is the parent's to end and to count."""
        self._store.reset(self._new_state())
        self._sessions.clear()
        if self._dashboard is not None:
            self._dashboard.after_fork()
        if isinstance(self._reader, RemoteReader):
            self._reader.after_fork()
        self._processor.forget()
        self._telemetry.after_fork()
        self._recorder.forget()
        self._sweeper.forget()


def _shutdown_all() -> None:
    """At exit, for an application that forgot, or crashed."""
    deadline = time.monotonic() + SHUTDOWN_S
    for tracker in list(_trackers):
        tracker.shutdown(max(0.1, deadline - time.monotonic()))
    # Of trackers that nobody holds any more: their spans may still wait.
    shutdown_exports(deadline)


def _at_exit_first() -> None:
    """Before the exit handlers of the providers that are there by now: they stop the export."""
    atexit.unregister(_shutdown_all)
    atexit.register(_shutdown_all)


def _after_fork_in_child() -> None:
    for tracker in list(_trackers):
        tracker._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class _Child:
    """A child process of `multiprocessing`, which leaves by ``os._exit``: no exit handler runs."""

    FLUSH_S: Final = 2.0

    def begins(self) -> None:
        """Called in each child, when its own code is about to run."""
        util.Finalize(None, self.ends, exitpriority=0)

    def ends(self) -> None:
        """Sends what waits, also by the application's provider, which nobody ends there."""
        deadline = time.monotonic() + self.FLUSH_S
        for tracker in list(_trackers):
            tracker.force_flush(round((deadline - time.monotonic()) * 1_000))
            tracker.shutdown(max(0.1, deadline - time.monotonic()))


_child: Final = _Child()
util.register_after_fork(_child, _Child.begins)
if parent_process() is not None:
    _child.begins()  # first imported by what the child runs


def _error_type(metadata: Mapping[str, Any]) -> str:
    given = metadata.get("error_type")
    return given if isinstance(given, str) else ""


def seconds_of(value: object, default: float) -> float:
    """How long a caller wants to wait; `default` where that is no number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return default
    return float(max(0, min(value, _LONGEST_S)))


def limit_of(value: object, default: int) -> int:
    """How many rows a caller asks for; `default` where that is no whole number."""
    return max(0, min(value, MOST)) if type(value) is int else default


def _size_of(value: object) -> int:
    """Bytes of a chunk, whatever the caller gave as its size; 0 where that says nothing."""
    if type(value) is int and 0 <= value < MOST:
        return value
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if isinstance(value, bytes | bytearray | memoryview):
            return len(value)
        if isinstance(value, int | float):
            return max(0, min(int(value), MOST))
    return 0
