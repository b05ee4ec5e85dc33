"""Writes: transactions and stages as spans, each with the fact it stands for.

Every open transaction has a handle. Handles are changed by single dictionary operations, which are
atomic, and not under a lock: the garbage collector may end a span, and so come back here, anywhere.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanKind, StatusCode

from . import semconv
from .diagnostics import Diagnostics
from .ids import LOW_HALF, format_id, new_span_id, new_trace_id, root_span_id
from .model import (
    AUDIO,
    EMPTY,
    MARK_NS,
    AudioCount,
    Fact,
    Kind,
    Outcome,
    Pipeline,
    Who,
)
from .privacy import MAX_EXPORTED_TEXT
from .processor import NOTE_KEY, Note
from .settings import Settings
from .stacks import Worker
from .store import Store
from .telemetry import ChosenIds, Telemetry, remote_root


class OpenStage:
    """An open attempt: its span, its fact, and who works on it."""

    __slots__ = ("by_event", "note", "number", "span", "worker")

    def __init__(
        self, span: Span, note: Note, number: int, *, by_event: bool, worker: Worker
    ) -> None:
        self.span = span
        self.note = note
        self.number = number
        self.by_event = by_event
        self.worker = worker

    @property
    def fact(self) -> Fact:
        """The newest fact of this attempt while it is open."""
        return self.note.start


class AudioMeter:
    """Cumulative audio of one transaction, beside its one span. Adding a chunk never waits."""

    __slots__ = ("_base", "_count", "_lock", "_pending", "at_ns", "metadata", "note", "queued",
                 "seen_ns", "span")  # fmt: skip

    def __init__(self, base: Fact) -> None:
        self._base = base
        self._pending: deque[int] = deque()
        self._lock = threading.Lock()
        self._count = (0, 0, 0)
        self.at_ns = base.at_ns
        self.seen_ns = base.seen_ns
        self.metadata: dict[str, Any] = {}
        self.queued = False
        self.span: Span = INVALID_SPAN
        self.note: Note | None = None

    def add(self, size: int) -> None:
        """Counts one chunk of `size` bytes."""
        self._pending.append(size)
        self._add_up()

    def _add_up(self) -> None:
        # Whoever finds the lock free adds up what is pending; nobody waits, nothing is lost.
        while self._pending and self._lock.acquire(blocking=False):
            try:
                chunks, total, last = self._count
                for _ in range(len(self._pending)):
                    last = self._pending.popleft()
                    chunks += 1
                    total += last
                self._count = (chunks, total, last)
            finally:
                self._lock.release()

    @property
    def count(self) -> AudioCount:
        """What came so far."""
        self._add_up()
        return AudioCount(*self._count)

    def fact(self) -> Fact:
        """The audio span as it stands; read when it is folded."""
        self.queued = False
        return self._copy(ended=False, outcome="")

    def ended(self, outcome: str) -> Fact:
        """The audio span, ended at its last chunk."""
        return self._copy(ended=True, outcome=outcome)

    def _copy(self, *, ended: bool, outcome: str) -> Fact:
        base = self._base
        return Fact(
            base.trace_id, base.span_id, Kind.AUDIO, base.start_ns, self.at_ns, self.seen_ns, ended,
            base.who, AUDIO, outcome=outcome, opened=True, closed=ended, parent_id=base.parent_id,
            audio=self.count, metadata=dict(self.metadata), where=base.where,
        )  # fmt: skip


class Handle:
    """One transaction as this process knows it while it may still write to it."""

    __slots__ = (
        "attempts", "attributes", "audio", "bad", "context", "offset_ns", "open", "pipeline",
        "queued", "root", "root_note", "seen_ns", "text_id", "tracer", "trace_id", "who",
    )  # fmt: skip

    def __init__(
        self, trace_id: int, who: Who, pipeline: Pipeline, tracer: trace.Tracer, offset_ns: int
    ) -> None:
        self.trace_id = trace_id
        self.text_id = format_id(trace_id)
        self.who = who
        self.pipeline = pipeline
        self.tracer = tracer
        self.offset_ns = offset_ns
        """Wall minus monotonic clock, fixed at the start: durations survive a step of the wall."""
        self.attributes: dict[str, Any] = {}
        """On every span of the transaction: Jaeger matches all tags of a search on one span."""
        self.context = context_api.Context()
        """Parent of the transaction's spans."""
        self.root: Span | None = None
        """The root while it is open here."""
        self.root_note: Note | None = None
        self.open: dict[tuple[str, str], OpenStage] = {}
        self.attempts: dict[str, int] = {}
        self.audio: dict[str, AudioMeter] = {}
        """The meter of its one open audio span, if there is one."""
        self.queued: dict[str, Fact] = {}
        self.bad: dict[tuple[str, str], Fact] = {}
        """Newest attempts that went wrong: what the end's verdict goes by."""
        self.seen_ns = 0
        """Monotonic moment of the last activity here."""

    def wall_ns(self, monotonic_ns: int) -> int:
        """The wall clock of this transaction at a monotonic moment."""
        return monotonic_ns + self.offset_ns


class Recorder:
    """Opens and ends the spans of transactions.

    Args:
        store: where facts go that no processor took.
        telemetry: gives the tracer.
        settings: the options in force.
        diagnostics: where troubles go.
    """

    def __init__(
        self, store: Store, telemetry: Telemetry, settings: Settings, diagnostics: Diagnostics
    ) -> None:
        self.settings = settings
        self.privacy = settings.privacy
        self._patience = settings.patience
        self._store = store
        self._clock = store.clock
        self._telemetry = telemetry
        self._diagnostics = diagnostics
        self._handles: OrderedDict[str, Handle] = OrderedDict()
        """By transaction id as text, which is what callers come with."""

    def configure(self, settings: Settings) -> None:
        """Takes new options; what is open goes on."""
        self.settings = settings
        self.privacy = settings.privacy
        self._patience = settings.patience

    # --- handles --------------------------------------------------------------------------------

    def handles(self) -> list[Handle]:
        """All handles at this moment."""
        return list(self._handles.values())

    def handle(self, text_id: str) -> Handle | None:
        """The handle of a transaction that is known here, by its id as `create` formats it."""
        return self._handles.get(text_id)

    def forget(self) -> None:
        """Drops every handle: in a forked child they are the parent's."""
        self._handles = OrderedDict()

    def create(self, who: Who, pipeline: Pipeline) -> Handle:
        """A new transaction: a new trace, its root span open."""
        handle = self._new_handle(new_trace_id(), who, pipeline)
        now_ns = handle.seen_ns
        wall_ns = handle.wall_ns(now_ns)
        caller = trace.get_current_span()
        attributes = {**handle.attributes, semconv.KIND: Kind.TRANSACTION.value}
        links = self._link_to(caller, attributes)
        fact = Fact(
            handle.trace_id, root_span_id(handle.trace_id), Kind.TRANSACTION, wall_ns, wall_ns,
            now_ns, False, handle.who, where=Worker.where(),
        )  # fmt: skip
        span, note = self._start(
            handle, pipeline.name, fact, attributes, kind=SpanKind.SERVER, links=links
        )
        handle.root, handle.root_note = span, note
        handle.context = trace.set_span_in_context(span, context_api.Context())
        if links:
            self._link_back(caller, span)
        self._register(handle)
        return handle

    def resume(self, trace_id: int, who: Who, pipeline: Pipeline) -> Handle:
        """The handle of a transaction whose root is not open here: the trace goes on by id alone."""
        known = self._handles.get(format_id(trace_id))
        if known is not None:
            return known
        handle = self._new_handle(trace_id, who, pipeline)
        remote = remote_root(handle.tracer, trace_id, pipeline.name, handle.attributes)
        handle.context = trace.set_span_in_context(NonRecordingSpan(remote), context_api.Context())
        self._register(handle)
        return handle

    def _new_handle(self, trace_id: int, who: Who, pipeline: Pipeline) -> Handle:
        now_ns = self._clock.monotonic_ns()
        if who.pipeline != pipeline.name:
            who = who._replace(pipeline=pipeline.name)
        handle = Handle(
            trace_id, who, pipeline, self._telemetry.tracer(), self._clock.time_ns() - now_ns
        )
        handle.seen_ns = now_ns
        handle.attributes = self._identity(handle)
        return handle

    def _identity(self, handle: Handle) -> dict[str, Any]:
        who, privacy = handle.who, self.privacy
        attributes: dict[str, Any] = {semconv.TRANSACTION_ID: handle.text_id}
        if who.user_id:
            key, value = privacy.user(who.user_id)
            attributes[key] = value
        if who.client_id:
            attributes[semconv.CLIENT_ID] = privacy.identifier(who.client_id)
        if who.conversation_id:
            attributes[semconv.CONVERSATION_ID] = privacy.identifier(who.conversation_id)
        if who.audio_uuid:
            attributes[semconv.AUDIO_UUID] = privacy.identifier(who.audio_uuid)
        attributes[semconv.PIPELINE] = handle.pipeline.name
        return attributes

    def _register(self, handle: Handle) -> None:
        self._handles[handle.text_id] = handle
        if len(self._handles) > self.settings.open_transactions:
            try:
                _, oldest = self._handles.popitem(last=False)
            except KeyError:
                return
            self._diagnostics.warn(
                "open_transactions",
                "more than %d transactions are open; the oldest one's spans are ended. Raise "
                "OTEL_TRACKER_OPEN_TRANSACTIONS, or tell the end of transactions",
                self.settings.open_transactions,
            )
            self.release(oldest, Outcome.ABANDONED, "left open")

    def _link_to(self, caller: Span, attributes: dict[str, Any]) -> tuple[Link, ...]:
        """The link to the span that the caller is in; its route comes along."""
        context = caller.get_span_context()
        if not (context.is_valid and self.settings.link_caller):
            return ()
        route = (getattr(caller, "attributes", None) or {}).get(semconv.HTTP_ROUTE)
        if isinstance(route, str):
            attributes[semconv.HTTP_ROUTE] = route[:MAX_EXPORTED_TEXT]
        return (Link(context),)

    def _link_back(self, caller: Span, root: Span) -> None:
        context = root.get_span_context()
        if context.is_valid and caller.is_recording():
            caller.add_link(context)

    # --- stages ---------------------------------------------------------------------------------

    def start_stage(
        self,
        handle: Handle,
        stage: str,
        metadata: Mapping[str, Any],
        *,
        key: str = "",
        by_event: bool = True,
    ) -> OpenStage:
        """Opens an attempt. Earlier stages that events left open are closed first."""
        now_ns = self._touch(handle)
        self._close_before(handle, stage, key, now_ns)
        self._take_from_queue(handle, stage, now_ns)
        number = handle.attempts[stage] = handle.attempts.get(stage, 0) + 1
        wall_ns = now_ns + handle.offset_ns
        worker = Worker.current()
        fact = Fact(
            handle.trace_id, new_span_id(), Kind.STAGE, wall_ns, wall_ns, now_ns, False, handle.who,
            stage, key, opened=True, parent_id=handle.trace_id & LOW_HALF, metadata=metadata,
            where=worker.name,
        )  # fmt: skip
        attributes = self._stage_attributes(handle, stage, key, number)
        if metadata:
            attributes.update(self.privacy.attributes(metadata))
        span, note = self._start(handle, stage, fact, attributes)
        opened = OpenStage(span, note, number, by_event=by_event, worker=worker)
        handle.open[stage, key] = opened
        return opened

    def end_stage(
        self,
        handle: Handle,
        opened: OpenStage,
        outcome: str,
        metadata: Mapping[str, Any] = EMPTY,
        *,
        error: str = "",
        error_type: str = "",
        reported: bool = True,
        at_seen_ns: int | None = None,
    ) -> None:
        """Ends an attempt, once: whoever took it out of ``handle.open`` calls this.

        Args:
            handle: the transaction.
            opened: the attempt.
            outcome: one of `Outcome`.
            metadata: plain data given with the end.
            error: the message; also kept with a success that a caller gave one with.
            error_type: the exception's class, where known.
            reported: whether the caller said so (False: it was inferred).
            at_seen_ns: monotonic moment of the end; now by default.
        """
        start = opened.note.start
        now_ns = self._touch(handle) if at_seen_ns is None else at_seen_ns
        wall_ns = max(now_ns + handle.offset_ns, start.start_ns)
        bad = outcome in Outcome.BAD
        end = Fact(
            start.trace_id, start.span_id, Kind.STAGE, start.start_ns, wall_ns,
            max(now_ns, start.seen_ns), True, start.who, start.stage, start.key, outcome, error,
            error_type, start.opened, reported, outcome == Outcome.FAILURE, start.parent_id,
            start.audio, start.metadata, metadata, start.where,
        )  # fmt: skip
        self._judge_for_end(handle, end, bad)
        attributes: dict[str, Any] = {semconv.STAGE_OUTCOME: outcome}
        if not reported and outcome == Outcome.SUCCESS:
            attributes[semconv.STAGE_INFERRED] = True
        if metadata:
            attributes.update(self.privacy.attributes(metadata))
        if outcome == Outcome.SKIPPED:
            opened.span.update_name(semconv.name_of_skip(start.stage))
            attributes[semconv.SKIP_REASON] = self.privacy.message(error)
        if bad:
            self._set_error(opened.span, end, attributes)
        self._end(opened.span, opened.note, end, attributes)

    def mark_stage(
        self,
        handle: Handle,
        stage: str,
        outcome: str,
        metadata: Mapping[str, Any],
        *,
        error: str = "",
        error_type: str = "",
        is_start: bool = False,
    ) -> None:
        """An attempt of no length: its end came without a start (`is_start`: a start that failed)."""
        now_ns = self._touch(handle)
        self._close_before(handle, stage, "", now_ns)
        self._take_from_queue(handle, stage, now_ns)
        number = handle.attempts[stage] = handle.attempts.get(stage, 0) + 1
        wall_ns = now_ns + handle.offset_ns
        failed = outcome == Outcome.FAILURE
        span_id, worker = new_span_id(), Worker.current()
        given_at_start, given_at_end = (metadata, EMPTY) if is_start else (EMPTY, metadata)
        fact = Fact(
            handle.trace_id, span_id, Kind.STAGE, wall_ns, wall_ns + MARK_NS, now_ns, True,
            handle.who, stage, "", outcome, error, error_type, is_start, not is_start, failed,
            handle.trace_id & LOW_HALF, metadata=given_at_start, end_metadata=given_at_end,
            where=worker.name,
        )  # fmt: skip
        self._judge_for_end(handle, fact, failed)
        attributes = self._stage_attributes(handle, stage, "", number)
        attributes[semconv.STAGE_OUTCOME] = outcome
        if not is_start:
            attributes[semconv.STAGE_MARK] = True
        attributes.update(self.privacy.attributes(metadata))
        name = stage
        if outcome == Outcome.SKIPPED:
            name = semconv.name_of_skip(stage)
            attributes[semconv.SKIP_REASON] = self.privacy.message(error)
        self._span_at_once(handle, name, fact, attributes)

    def progress(self, handle: Handle, stage: str | None, metadata: Mapping[str, Any]) -> None:
        """Somebody is at work: on the open attempts of `stage`, or on the transaction."""
        now_ns = self._touch(handle)
        touched = [o for o in list(handle.open.values()) if stage in (None, o.fact.stage)]
        for opened in touched:
            self._progress_of(handle, opened, now_ns, metadata)
        if not touched and handle.root_note is not None and handle.root is not None:
            note = handle.root_note
            note.start = replace(note.start, at_ns=now_ns + handle.offset_ns, seen_ns=now_ns)
            note.put()

    def _progress_of(
        self, handle: Handle, opened: OpenStage, now_ns: int, metadata: Mapping[str, Any] = EMPTY
    ) -> None:
        old = opened.note.start
        opened.note.start = replace(
            old,
            at_ns=now_ns + handle.offset_ns,
            seen_ns=now_ns,
            metadata={**old.metadata, **metadata} if metadata else old.metadata,
        )
        opened.note.put()
        if metadata:
            opened.span.set_attributes(self.privacy.attributes(metadata))

    def _stage_attributes(
        self, handle: Handle, stage: str, key: str, number: int
    ) -> dict[str, Any]:
        attributes = {
            **handle.attributes,
            semconv.KIND: Kind.STAGE.value,
            semconv.STAGE: stage,
            semconv.STAGE_ATTEMPT: number,
        }
        if key:
            attributes[semconv.STAGE_KEY] = self.privacy.identifier(key)
        return attributes

    def _judge_for_end(self, handle: Handle, fact: Fact, bad: bool) -> None:
        if bad:
            handle.bad[fact.stage, fact.key] = fact
        elif handle.bad:
            handle.bad.pop((fact.stage, fact.key), None)

    def _close_before(self, handle: Handle, stage: str, key: str, now_ns: int) -> None:
        """Closes what events left open and `stage` shows to be over.

        Callers seldom report that a stage completed: the begin of a later declared stage says it.
        A new start of the same stage says that the earlier attempt was given up.
        """
        if not handle.open:
            return
        again = handle.open.get((stage, key))
        if again is not None and again.by_event and handle.open.pop((stage, key), None) is again:
            self.end_stage(
                handle, again, Outcome.ABANDONED, error="left open; it was started again",
                error_type=Outcome.ABANDONED, reported=False,
            )  # fmt: skip
        declared = handle.pipeline.stages
        if stage in declared:
            earlier = declared[: declared.index(stage)]
            self._infer(handle, [k for k in list(handle.open) if k[0] in earlier], now_ns)

    def _infer(self, handle: Handle, keys: Iterable[tuple[str, str]], now_ns: int) -> None:
        for key in keys:
            opened = handle.open.get(key)
            if opened is None or not opened.by_event or handle.open.pop(key, None) is not opened:
                continue
            limit_ns = self._patience.limit_ns(key[0], handle.pipeline)
            if now_ns - opened.fact.seen_ns >= limit_ns:
                self.end_stage(
                    handle, opened, Outcome.ABANDONED, error="left open, and silent too long",
                    error_type=Outcome.ABANDONED, reported=False,
                )  # fmt: skip
            else:
                self.end_stage(handle, opened, Outcome.SUCCESS, reported=False)

    # --- queues, details ------------------------------------------------------------------------

    def queue(self, handle: Handle, stage: str) -> None:
        """The stage waits for a worker from now on. Its span is made when it is taken."""
        now_ns = self._touch(handle)
        wall_ns = now_ns + handle.offset_ns
        fact = Fact(
            handle.trace_id, new_span_id(), Kind.QUEUED, wall_ns, wall_ns, now_ns, False, handle.who,
            stage, parent_id=handle.trace_id & LOW_HALF,
        )  # fmt: skip
        handle.queued[stage] = fact
        self._store.put(fact)

    def _take_from_queue(self, handle: Handle, stage: str, now_ns: int) -> None:
        if not handle.queued:
            return
        wait = handle.queued.pop(stage, None)
        if wait is None:
            return
        taken = Fact(
            wait.trace_id, wait.span_id, Kind.QUEUED, wait.start_ns, now_ns + handle.offset_ns,
            now_ns, True, wait.who, stage, outcome=Outcome.SUCCESS, parent_id=wait.parent_id,
        )  # fmt: skip
        attributes = {
            **handle.attributes, semconv.KIND: Kind.QUEUED.value, semconv.STAGE: stage,
        }  # fmt: skip
        self._span_at_once(handle, semconv.name_of_wait(stage), taken, attributes)

    def detail(
        self,
        handle: Handle,
        name: str,
        metadata: Mapping[str, Any],
        *,
        duration_ns: int = MARK_NS,
        error: str | None = None,
    ) -> None:
        """A finished child that decides nothing, such as one extraction. It ends now."""
        now_ns = self._touch(handle)
        wall_ns = now_ns + handle.offset_ns
        parent = next(iter(handle.open.values()), None)
        fact = Fact(
            handle.trace_id, new_span_id(), Kind.DETAIL, wall_ns - duration_ns, wall_ns, now_ns, True,
            handle.who, outcome=Outcome.SUCCESS if error is None else Outcome.FAILURE,
            error=error or "", parent_id=parent.fact.span_id if parent else handle.trace_id & LOW_HALF,
        )  # fmt: skip
        attributes = {
            **handle.attributes,
            semconv.KIND: Kind.DETAIL.value,
            **self.privacy.attributes(metadata),
        }
        context = handle.context
        if parent is not None:
            context = trace.set_span_in_context(parent.span, context_api.Context())
            self._progress_of(handle, parent, now_ns)
        self._span_at_once(handle, name, fact, attributes, context=context)

    # --- audio ----------------------------------------------------------------------------------

    def audio(self, handle: Handle, size: int | None, metadata: Mapping[str, Any] = EMPTY) -> None:
        """Audio came: one chunk of `size` bytes, or (None) only the word that audio began."""
        meter = handle.audio.get(AUDIO) or self._start_audio(handle)
        now_ns = self._clock.monotonic_ns()
        handle.seen_ns = now_ns
        if size is not None:
            meter.add(size)
        if metadata:
            meter.metadata.update(metadata)
        meter.seen_ns = now_ns
        meter.at_ns = now_ns + handle.offset_ns
        if not meter.queued:
            meter.queued = True
            self._store.put(meter)

    def _start_audio(self, handle: Handle) -> AudioMeter:
        now_ns = self._clock.monotonic_ns()
        wall_ns = now_ns + handle.offset_ns
        fact = Fact(
            handle.trace_id, new_span_id(), Kind.AUDIO, wall_ns, wall_ns, now_ns, False, handle.who,
            AUDIO, opened=True, parent_id=handle.trace_id & LOW_HALF, where=Worker.where(),
        )  # fmt: skip
        meter = AudioMeter(fact)
        first = handle.audio.setdefault(AUDIO, meter)
        if first is not meter:
            return first  # another thread was faster
        attributes = {
            **handle.attributes, semconv.KIND: Kind.AUDIO.value, semconv.STAGE: AUDIO,
        }  # fmt: skip
        meter.span, meter.note = self._start(handle, AUDIO, fact, attributes)
        return meter

    def end_audio(self, handle: Handle, outcome: str = Outcome.SUCCESS) -> None:
        """Ends the audio span at the time of its last chunk."""
        meter = handle.audio.pop(AUDIO, None)
        if meter is None or meter.note is None:
            return
        end = meter.ended(outcome)
        attributes: dict[str, Any] = {
            semconv.STAGE_OUTCOME: outcome,
            semconv.AUDIO_CHUNKS: end.audio.chunks,
            semconv.AUDIO_BYTES: end.audio.bytes,
            semconv.AUDIO_LAST_SIZE: end.audio.last_size,
            **self.privacy.attributes(meter.metadata),
        }
        self._end(meter.span, meter.note, end, attributes)

    # --- the end --------------------------------------------------------------------------------

    def end(
        self,
        handle: Handle,
        *,
        success: bool,
        error: str = "",
        error_type: str = "",
        metadata: Mapping[str, Any] = EMPTY,
    ) -> None:
        """The caller tells the end: on the root where it is open here, otherwise as a child."""
        now_ns = self._touch(handle)
        self._infer(handle, list(handle.open), now_ns)
        self.end_audio(handle)
        bad = list(handle.bad.values())
        if not success:
            outcome = Outcome.FAILURE
        elif bad:
            only_cancelled = all(f.outcome == Outcome.CANCELLED for f in bad)
            outcome = Outcome.CANCELLED if only_cancelled else Outcome.FAILURE
            error, error_type = error or bad[0].error, error_type or bad[0].error_type
        else:
            outcome = Outcome.SUCCESS
        self._tell_end(
            handle, outcome, now_ns, error=error, error_type=error_type, metadata=metadata,
            reported=True, reported_failure=not success,
        )  # fmt: skip
        if not handle.open:
            self._handles.pop(handle.text_id, None)

    def tell_verdict(self, handle: Handle, outcome: str, *, error: str, error_type: str) -> None:
        """What the transaction came to, where nobody told the end: at its last local activity."""
        self.end_audio(handle)
        self._tell_end(
            handle, outcome, handle.seen_ns, error=error, error_type=error_type, metadata=EMPTY,
            reported=False, reported_failure=False,
        )  # fmt: skip

    def _tell_end(
        self,
        handle: Handle,
        outcome: str,
        seen_ns: int,
        *,
        error: str,
        error_type: str,
        metadata: Mapping[str, Any],
        reported: bool,
        reported_failure: bool,
    ) -> None:
        wall_ns = seen_ns + handle.offset_ns
        root_id = handle.trace_id & LOW_HALF
        attributes: dict[str, Any] = {semconv.OUTCOME: outcome, **self.privacy.attributes(metadata)}
        root, handle.root = handle.root, None
        note = handle.root_note
        if root is not None and note is not None:
            start = note.start
            end = Fact(
                handle.trace_id, root_id, Kind.TRANSACTION, start.start_ns,
                max(wall_ns, start.start_ns), seen_ns, True, handle.who, "", "", outcome, error,
                error_type, False, reported, reported_failure, end_metadata=metadata,
                where=start.where,
            )  # fmt: skip
            if outcome == Outcome.FAILURE:
                self._set_error(root, end, attributes)
            self._end(root, note, end, attributes)
            return
        mark = Fact(
            handle.trace_id, new_span_id(), Kind.ENDED, wall_ns, wall_ns + MARK_NS, seen_ns, True,
            handle.who, "", "", outcome, error, error_type, False, reported, reported_failure,
            root_id, end_metadata=metadata,
        )  # fmt: skip
        attributes = {
            **handle.attributes, semconv.KIND: Kind.ENDED.value, **attributes,
        }  # fmt: skip
        self._span_at_once(handle, semconv.name_of_end(outcome), mark, attributes)

    def end_root(self, handle: Handle, outcome: str = "") -> None:
        """Ends the root where it is open here, at its last local activity, without a verdict.

        Jaeger gives a trace its name from its root, and an end of the root says nothing of the work.
        """
        root, handle.root = handle.root, None
        note = handle.root_note
        if root is None or note is None:
            return
        start = note.start
        wall_ns = max(handle.seen_ns + handle.offset_ns, start.start_ns)
        end = Fact(
            start.trace_id, start.span_id, Kind.TRANSACTION, start.start_ns, wall_ns,
            handle.seen_ns, True, handle.who, outcome=outcome, where=start.where,
        )  # fmt: skip
        self._end(root, note, end, {semconv.OUTCOME: outcome} if outcome else {})

    def hand_over(self, handle: Handle) -> None:
        """Others carry on: audio and root end here, and silence is no stall in this view."""
        now_ns = self._touch(handle)
        wall_ns = now_ns + handle.offset_ns
        self.end_audio(handle)
        self._store.put(
            Fact(
                handle.trace_id,
                new_span_id(),
                Kind.HANDED_OVER,
                wall_ns,
                wall_ns,
                now_ns,
                True,
                handle.who,
            )  # fmt: skip
        )
        self.end_root(handle)
        if not handle.open:
            self._handles.pop(handle.text_id, None)

    def release(self, handle: Handle, outcome: str, reason: str) -> None:
        """Ends whatever is open of this transaction as `outcome` and drops its handle."""
        self._handles.pop(handle.text_id, None)
        for key in list(handle.open):
            opened = handle.open.pop(key, None)
            if opened is not None:
                self.end_stage(
                    handle, opened, outcome, error=reason, error_type=outcome, reported=False
                )
        self.end_audio(handle, outcome)
        self.end_root(handle, outcome if outcome == Outcome.INTERRUPTED else "")

    def drop(self, handle: Handle) -> None:
        """Forgets a handle with nothing open."""
        if handle.root is None and not handle.audio and not handle.open:
            self._handles.pop(handle.text_id, None)

    # --- stalls ---------------------------------------------------------------------------------

    def open_stage_of(self, handle: Handle, span_id: int) -> OpenStage | None:
        """The open attempt with this span id, if it is open here."""
        return next((o for o in list(handle.open.values()) if o.fact.span_id == span_id), None)

    def tell_stall(self, handle: Handle, opened: OpenStage, reason: str, stack: str) -> None:
        """One finished child of the root, at once: from the last progress to now.

        A child of the stage itself would float in Jaeger until the stage has ended.
        """
        attempt = opened.fact
        now_ns = self._clock.monotonic_ns()
        fact = Fact(
            handle.trace_id, new_span_id(), Kind.STALLED, attempt.at_ns, now_ns + handle.offset_ns,
            now_ns, True, handle.who, attempt.stage, attempt.key, Outcome.FAILURE, reason,
            semconv.STALLED, parent_id=handle.trace_id & LOW_HALF, where=attempt.where,
        )  # fmt: skip
        attributes = self._stage_attributes(handle, attempt.stage, attempt.key, opened.number)
        attributes[semconv.KIND] = Kind.STALLED.value
        self._span_at_once(
            handle, semconv.name_of_stall(attempt.stage), fact, attributes,
            stack=stack if self.settings.export_text else "",
        )  # fmt: skip
        self.end_root(handle)

    def tell_recovery(self, handle: Handle, attempt: Fact) -> None:
        """A mark of the first progress after a told stall."""
        fact = Fact(
            handle.trace_id, new_span_id(), Kind.RECOVERED, attempt.at_ns, attempt.at_ns + MARK_NS,
            attempt.seen_ns, True, handle.who, attempt.stage, attempt.key, Outcome.SUCCESS,
            parent_id=handle.trace_id & LOW_HALF, where=attempt.where,
        )  # fmt: skip
        attributes = {
            **handle.attributes,
            semconv.KIND: Kind.RECOVERED.value,
            semconv.STAGE: attempt.stage,
        }
        self._span_at_once(handle, semconv.name_of_recovery(attempt.stage), fact, attributes)

    # --- spans ----------------------------------------------------------------------------------

    def _touch(self, handle: Handle) -> int:
        now_ns = handle.seen_ns = self._clock.monotonic_ns()
        return now_ns

    def _start(
        self,
        handle: Handle,
        name: str,
        fact: Fact,
        attributes: Mapping[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: tuple[Link, ...] = (),
        context: context_api.Context | None = None,
    ) -> tuple[Span, Note]:
        """Starts a span that carries `fact`; folds the fact itself where no processor takes it."""
        note = Note(self._store, fact)
        parent = handle.context if context is None else context
        ChosenIds.choose(fact.trace_id, fact.span_id)
        try:
            span = handle.tracer.start_span(
                name,
                context=context_api.set_value(NOTE_KEY, note, parent),
                kind=kind,
                attributes=attributes,
                links=links,
                start_time=fact.start_ns,
            )
        except Exception:
            self._diagnostics.error("start_span", "OpenTelemetry could not start a span")
            span = INVALID_SPAN
        finally:
            ChosenIds.choose(0, 0)
        if not note.start_seen:
            note.put()
        return span, note

    def _end(self, span: Span, note: Note, end: Fact, attributes: Mapping[str, Any]) -> None:
        note.end = end
        try:
            if attributes:
                span.set_attributes(attributes)
            span.end(end.at_ns)
        except Exception:
            self._diagnostics.error("end_span", "OpenTelemetry could not end a span")
        if not note.end_seen:
            note.put()

    def _span_at_once(
        self,
        handle: Handle,
        name: str,
        fact: Fact,
        attributes: dict[str, Any],
        *,
        context: context_api.Context | None = None,
        stack: str = "",
    ) -> None:
        """A span that is finished as soon as it is started."""
        if fact.outcome in Outcome.BAD and fact.error_type:
            attributes[semconv.ERROR_TYPE] = fact.error_type
        span, note = self._start(handle, name, fact, attributes, context=context)
        if stack:
            span.add_event(semconv.STACK_EVENT, {semconv.STACK: stack}, timestamp=fact.at_ns)
        late: dict[str, Any] = {}
        if fact.outcome in Outcome.BAD:
            self._set_error(span, fact, late)
        self._end(span, note, fact, late)

    def _set_error(self, span: Span, fact: Fact, attributes: dict[str, Any]) -> None:
        """ERROR with a description and ``error.type``; a cancellation is no error."""
        if fact.outcome == Outcome.CANCELLED:
            return
        attributes[semconv.ERROR_TYPE] = fact.error_type or semconv.OTHER_ERROR
        span.set_status(StatusCode.ERROR, self.privacy.message(fact.error or "Unknown error"))
