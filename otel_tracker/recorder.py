"""Writes: what callers report about transactions, stages and audio, as spans with their facts."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind

from . import semconv
from .diagnostics import Diagnostics
from .handles import Handle, OpenAudio, OpenSpan, OpenStage
from .history import GUEST, replaces
from .ids import new_span_id, new_trace_id, root_span_id
from .model import (
    AUDIO,
    EMPTY,
    MARK_NS,
    NO_AUDIO,
    NO_PIPELINE,
    NS_PER_S,
    Fact,
    Kind,
    Outcome,
    Pipeline,
    Who,
)
from .privacy import MAX_EXPORTED_TEXT, merged_metadata
from .settings import Settings
from .spans import SpanWriter
from .stacks import Worker
from .store import Store
from .telemetry import Telemetry, remote_root

MAX_OPEN: Final = 200
"""Most open stages of one transaction, and most stage names that its handle remembers."""

SKIPPED: Final = "skipped"
"""The metadata under which the reason of a skip is kept."""

MAX_CONNECTED: Final = 10_000
"""Most clients of which it is remembered that a websocket is open."""

K = TypeVar("K")
V = TypeVar("V")


def _put_bounded(known: dict[K, V], key: K, value: V) -> None:
    known[key] = value
    if len(known) > MAX_OPEN:
        known.pop(next(iter(list(known))), None)


class _Linking(threading.local):
    is_under_way = False


_LINKING: Final = _Linking()


def _link_back(caller: Span, root: Span) -> None:
    """Links the caller's span to the root.

    The SDK allocates under that span's lock. Where the span is one that an abandoned generator left
    current, a collection at that moment would end it, and wait for the lock for ever. So would a
    signal handler that begins a transaction in here: its link back is left out.
    """
    if _LINKING.is_under_way:
        return
    _LINKING.is_under_way = True
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        caller.add_link(root.get_span_context())
    finally:
        if was_enabled:
            gc.enable()
        _LINKING.is_under_way = False


class Recorder:
    """Opens and ends the spans of transactions.

    Args:
        store: where facts go.
        telemetry: gives the tracer.
        settings: the options in force.
        diagnostics: where troubles go.
    """

    def __init__(
        self, store: Store, telemetry: Telemetry, settings: Settings, diagnostics: Diagnostics
    ) -> None:
        self._store = store
        self._clock = store.clock
        self._telemetry = telemetry
        self._diagnostics = diagnostics
        self._spans = SpanWriter(store, diagnostics, settings.privacy)
        self._handles: OrderedDict[str, Handle] = OrderedDict()
        """By transaction id as text, which is what callers come with."""
        self.connected: dict[str, bool] = {}
        """Clients with an open websocket, as far as was told here."""
        self.era = object()
        """Another one after a fork: what began before is the parent's."""
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Takes new options; what is open goes on."""
        self.settings = settings
        self.privacy = self._spans.privacy = settings.privacy
        self._patience = settings.patience

    # --- handles --------------------------------------------------------------------------------

    def handles(self) -> list[Handle]:
        """All handles at this moment."""
        return list(self._handles.values())

    def handle(self, text_id: str) -> Handle | None:
        """The handle of a transaction that is known here, by its id as `create` formats it."""
        return self._handles.get(text_id)

    def postpone(self, work: Callable[[], None]) -> None:
        """Does `work` a moment later: now is no time for it."""
        self._spans.postpone(work)

    def end_postponed(self) -> None:
        """Ends the spans of generators that were collected since."""
        self._spans.end_postponed()

    def forget(self) -> None:
        """Drops every handle: in a forked child they are the parent's."""
        self._spans.forget()
        self._handles = OrderedDict()
        self.connected = {}
        self.era = object()

    def create(
        self,
        who: Who,
        pipeline: Pipeline,
        metadata: Mapping[str, Any] = EMPTY,
        *,
        in_block: bool = False,
    ) -> Handle:
        """A new transaction: a new trace, its root span open.

        Args:
            who: whose it is.
            pipeline: what it runs.
            metadata: plain data, for the root.
            in_block: leaving a block of the application's will tell its end.
        """
        if who.pipeline != pipeline.name:
            who = who._replace(pipeline=pipeline.name)
        handle = self._new_handle(new_trace_id(), who, pipeline)
        caller = trace.get_current_span()
        attributes = {**handle.attributes, semconv.KIND: Kind.TRANSACTION.value}
        if metadata:
            attributes.update(self.privacy.attributes(metadata))
        links = self._link_to(caller, attributes)
        if handle.who.client_id in self.connected:
            attributes[semconv.WEBSOCKET] = True
        root = OpenSpan(
            self._store,
            Fact(
                trace_id=handle.trace_id,
                span_id=root_span_id(handle.trace_id),
                kind=Kind.TRANSACTION,
                start_ns=handle.seen_ns + handle.offset_ns,
                at_ns=handle.seen_ns + handle.offset_ns,
                seen_ns=handle.seen_ns,
                ended=False,
                who=handle.who,
                opened=in_block,
                metadata=metadata,
                where=Worker.where(),
            ),
        )
        self._spans.start(
            handle, root, pipeline.name, attributes, kind=SpanKind.SERVER, links=links
        )
        handle.context = trace.set_span_in_context(root.span, context_api.Context())
        if links and root.span.get_span_context().is_valid and caller.is_recording():
            _link_back(caller, root.span)
        handle.root.fill(root)
        self._register(handle)
        return handle

    def resume(
        self,
        trace_id: int,
        who: Who,
        pipeline: Pipeline,
        standing: Iterable[Fact] = (),
        *,
        remote: SpanContext | None = None,
        is_guest: bool = False,
    ) -> Handle:
        """The handle of a transaction whose root is not open here: its id alone continues it.

        Args:
            trace_id: of ours.
            who: whose it is, as far as that is known here.
            pipeline: what it runs, as far as that is known here.
            standing: attempts known here that went wrong and that nothing has put right.
            remote: what a carrier brought: it knows whether the trace is sampled.
            is_guest: another process has its root.
        """
        handle = self._new_handle(trace_id, who, pipeline)
        handle.is_guest = is_guest
        if remote is None:
            remote = remote_root(handle.tracer, trace_id, who.pipeline, handle.attributes)
        handle.context = trace.set_span_in_context(NonRecordingSpan(remote), context_api.Context())
        handle.bad.update({fact.span_id: fact for fact in standing})
        return self._register(handle)

    def _new_handle(self, trace_id: int, who: Who, pipeline: Pipeline) -> Handle:
        now_ns = self._clock.monotonic_ns()
        offset_ns = self._clock.time_ns() - now_ns
        handle = Handle(trace_id, who, pipeline, self._telemetry.tracer(), offset_ns, self.era)
        handle.seen_ns = now_ns
        handle.last_ns = now_ns + offset_ns
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
        if who.pipeline:
            attributes[semconv.PIPELINE] = who.pipeline
        return attributes

    def identify(self, handle: Handle, who: Who, pipeline: Pipeline) -> None:
        """Fills gaps in whose transaction it is and what it runs, for the spans that come."""
        if not handle.who.pipeline and pipeline is not NO_PIPELINE:
            handle.pipeline = pipeline
            who = who._replace(pipeline=pipeline.name)
        known = handle.who.or_else(who)
        if known != handle.who:
            handle.who = known
            handle.attributes = self._identity(handle)

    def set_root(self, handle: Handle, metadata: Mapping[str, Any]) -> None:
        """Adds attributes to the root span."""
        root = handle.root.get()
        if root is None:
            self._diagnostics.warn(
                "root_attributes",
                "attributes of a transaction whose root is not open here are lost; set them where "
                "it began, or on a stage",
            )
            return
        old = root.start
        merged = merged_metadata(old.metadata, metadata)
        root.start = old.seen(old.at_ns, old.seen_ns, merged)
        root.span.set_attributes(self.privacy.attributes(metadata))

    def _register(self, handle: Handle) -> Handle:
        """Makes `handle` the one of its transaction, unless another thread was faster."""
        first = self._handles.setdefault(handle.text_id, handle)
        if len(self._handles) > self.settings.open_transactions:
            oldest = self._oldest_idle(but=first)
            if oldest is None or self._handles.pop(oldest.text_id, None) is None:
                return first
            self._diagnostics.warn(
                "open_transactions",
                "more than %d transactions are open; the spans of the oldest are ended. Raise "
                "OTEL_TRACKER_OPEN_TRANSACTIONS, or tell the end of transactions",
                self.settings.open_transactions,
            )
            self.release(oldest, Outcome.ABANDONED, "left open")
        return first

    def _oldest_idle(self, but: Handle) -> Handle | None:
        """The one to give up: of the oldest few the first that does no work, if there is one."""
        oldest = [h for h in list(islice(self._handles.values(), MAX_OPEN)) if h is not but]
        return next(
            (h for h in oldest if not (h.is_working or h.blocks)), oldest[0] if oldest else None
        )

    def _link_to(self, caller: Span, attributes: dict[str, Any]) -> tuple[Link, ...]:
        """The link to the span that the caller is in; its route comes along."""
        context = caller.get_span_context()
        if not (context.is_valid and self.settings.link_caller):
            return ()
        route = (getattr(caller, "attributes", None) or {}).get(semconv.HTTP_ROUTE)
        if isinstance(route, str):
            attributes[semconv.HTTP_ROUTE] = route[:MAX_EXPORTED_TEXT]
        return (Link(context),)

    def _touch(self, handle: Handle) -> int:
        now_ns = handle.seen_ns = self._clock.monotonic_ns()
        wall_ns = now_ns + handle.offset_ns
        if wall_ns <= handle.last_ns:
            # Two events at one reading of the clock: the later call is the later event.
            handle.offset_ns += handle.last_ns + 1 - wall_ns
        handle.last_ns = now_ns + handle.offset_ns
        return now_ns

    def _fact(
        self, handle: Handle, kind: Kind, seen_ns: int, *, ended: bool, stage: str = "", **more: Any
    ) -> Fact:
        """A fact of a child of the root, at the moment `seen_ns`."""
        wall_ns = seen_ns + handle.offset_ns
        more.setdefault("start_ns", wall_ns)
        more.setdefault("at_ns", wall_ns)
        more.setdefault("parent_id", root_span_id(handle.trace_id))
        more.setdefault("where", Worker.where())
        return Fact(
            trace_id=handle.trace_id,
            span_id=new_span_id(),
            kind=kind,
            seen_ns=seen_ns,
            ended=ended,
            who=handle.who,
            stage=stage,
            **more,
        )

    def connect(self, client_id: str) -> None:
        """A websocket of this client is open."""
        self.connected[client_id] = True
        if len(self.connected) > MAX_CONNECTED:
            self.connected.pop(next(iter(list(self.connected))), None)

    def disconnect(self, client_id: str) -> None:
        """The client's last websocket has closed: the audio of its transactions ends."""
        self.connected.pop(client_id, None)
        for handle in self.handles():
            if handle.who.client_id == client_id:
                self.end_audio(handle)

    # --- stages ---------------------------------------------------------------------------------

    def start_stage(
        self, handle: Handle, stage: str, metadata: Mapping[str, Any], *, key: str = ""
    ) -> OpenStage:
        """Opens an attempt that an event began. Earlier ones that events left open are closed."""
        exported = self.privacy.attributes(metadata) if metadata else EMPTY
        opened = self._open(handle, stage, key, metadata, exported)
        while handle.open.setdefault((stage, key), opened) is not opened:
            other = handle.open.pop((stage, key), None)
            if other is not None:  # another thread began the same stage at the same moment
                self._abandon(handle, other, "")
        if len(handle.open) > MAX_OPEN:
            self._abandon_oldest(handle)
        current = self._register(handle)  # the sweeper may have dropped it, having nothing open
        if current is not handle:
            current.open.setdefault((stage, key), opened)
        return opened

    def start_frame(
        self,
        handle: Handle,
        stage: str,
        key: str,
        metadata: Mapping[str, Any],
        exported: Mapping[str, Any],
        within: OpenStage | None,
        context: context_api.Context,
        queued_ns: int = 0,
        *,
        is_through: bool = False,
    ) -> OpenStage:
        """Opens an attempt that ends with its frame.

        Args:
            handle: the transaction.
            stage: its name.
            key: of the branch of a fan-out.
            metadata: plain data.
            exported: what of it may leave.
            within: the attempt around it.
            context: holds the span around it.
            queued_ns: wall clock at which it was put into a queue; 0 if it was not.
            is_through: a span of the application's lies between this attempt and that around it.
        """
        if handle.carried:
            carried_ns = handle.carried.pop(stage, 0)
            if stage not in handle.queued:  # otherwise the wait is told as what it is known as here
                queued_ns = queued_ns or carried_ns
        if queued_ns:
            self._tell_wait(handle, stage, key, queued_ns)
        if is_through and within is not None:
            exported = {**exported, semconv.STAGE_WITHIN: f"{within.start.span_id:016x}"}
        opened = self._open(handle, stage, key, metadata, exported, within, context)
        handle.frames[opened.start.span_id] = opened
        if handle.text_id not in self._handles:
            self._register(handle)  # the sweeper has dropped it, having nothing open
        return opened

    def _open(
        self,
        handle: Handle,
        stage: str,
        key: str,
        metadata: Mapping[str, Any],
        exported: Mapping[str, Any],
        within: OpenStage | None = None,
        context: context_api.Context | None = None,
    ) -> OpenStage:
        now_ns = self._touch(handle)
        if handle.open or handle.queued:
            self._make_way(handle, stage, key, now_ns)
        number = self._number(handle, stage, key)
        worker = Worker.current()
        wall_ns = now_ns + handle.offset_ns
        parent_id = root_span_id(handle.trace_id) if within is None else within.start.span_id
        opened = OpenStage(
            self._store,
            Fact(
                handle.trace_id,
                new_span_id(),
                Kind.STAGE,
                wall_ns,
                wall_ns,
                now_ns,
                False,
                handle.who,
                stage,
                key,
                "",
                "",
                "",
                True,
                False,
                False,
                parent_id,
                NO_AUDIO,
                metadata,
                EMPTY,
                worker.name,
            ),
            number,
            worker,
        )
        attributes = self._stage_attributes(handle, stage, key, number)
        # Nearly all succeed, and an attribute at the start costs a third of one later. Nobody reads
        # the outcome of an open span.
        attributes[semconv.STAGE_OUTCOME] = Outcome.SUCCESS
        if exported:
            attributes.update(exported)
        self._spans.start(handle, opened, stage, attributes, context=context)
        return opened

    def end_frame(
        self,
        handle: Handle,
        opened: OpenStage,
        outcome: str,
        metadata: Mapping[str, Any],
        error: str = "",
        error_type: str = "",
    ) -> None:
        """Ends an attempt with its frame, unless a shutdown has ended it before.

        Nor in a forked child, which leaves its parent's frame: that is the parent's to end.
        """
        if handle.era is not self.era or handle.frames.pop(opened.start.span_id, None) is None:
            return
        self.end_stage(
            handle,
            opened,
            outcome,
            metadata,
            error=error,
            error_type=error_type,
            reported=outcome != Outcome.INTERRUPTED,
        )
        if handle.is_working:
            return
        if handle.is_guest:
            self._leave_to_others(handle, opened.start.stage, outcome)
            if not handle.blocks:
                self.drop(handle)
        elif handle.ends_with_work and not handle.queued:
            handle.ends_with_work = False
            self.end(handle, success=True)

    def _leave_to_others(self, handle: Handle, stage: str, outcome: str) -> None:
        """What comes next may be another process's to do: its silence is no stall here."""
        stages = handle.pipeline.stages
        if not (outcome == Outcome.SUCCESS and stages and stage == stages[-1]):
            self._tell_elsewhere(handle, handle.seen_ns, GUEST)

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
    ) -> None:
        """Ends an attempt, once: whoever took it out of its handle calls this.

        Args:
            handle: the transaction.
            opened: the attempt.
            outcome: one of `Outcome`.
            metadata: plain data given with the end.
            error: the message; also kept with a success that a caller gave one with.
            error_type: the exception's class, where known.
            reported: whether the caller said so (False: it was inferred).
        """
        start = opened.start
        now_ns = self._touch(handle)
        end = start.finished(
            now_ns + handle.offset_ns,
            now_ns,
            outcome,
            error,
            error_type,
            reported,
            reported and outcome == Outcome.FAILURE,
            metadata,
        )
        attributes: dict[str, Any] = dict(self.privacy.attributes(metadata)) if metadata else {}
        name = ""
        if outcome != Outcome.SUCCESS:
            attributes[semconv.STAGE_OUTCOME] = outcome
        if outcome == Outcome.SKIPPED:
            name = semconv.name_of_skip(start.stage)
            self._tell_skip(attributes)
        elif not reported and outcome == Outcome.SUCCESS:
            attributes[semconv.STAGE_INFERRED] = True
        if handle.bad or outcome in Outcome.BAD:
            self._note_bad(handle, end)
        self._spans.end(opened, end, attributes, name)
        if opened.is_stall_told:
            self._tell_recovery(handle, opened)

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
        """An attempt of no length: an end without a start, or (`is_start`) a start that failed."""
        now_ns = self._touch(handle)
        self._make_way(handle, stage, "", now_ns)
        number = self._number(handle, stage, "")
        fact = self._fact(
            handle,
            Kind.STAGE,
            now_ns,
            ended=True,
            stage=stage,
            at_ns=now_ns + handle.offset_ns + MARK_NS,
            outcome=outcome,
            error=error,
            error_type=error_type,
            opened=is_start,
            closed=not is_start,
            reported_failure=outcome == Outcome.FAILURE,
            metadata=metadata if is_start else EMPTY,
            end_metadata=EMPTY if is_start else metadata,
        )
        attributes = self._stage_attributes(handle, stage, "", number)
        attributes[semconv.STAGE_OUTCOME] = outcome
        attributes[semconv.STAGE_MARK] = "start" if is_start else "end"
        attributes.update(self.privacy.attributes(metadata))
        name = stage
        if outcome == Outcome.SKIPPED:
            name = semconv.name_of_skip(stage)
            self._tell_skip(attributes)
        self._note_bad(handle, fact)
        self._spans.at_once(handle, fact, name, attributes)

    @staticmethod
    def _tell_skip(attributes: dict[str, Any]) -> None:
        """The reason of a skip comes as metadata; on the span it has a name of its own."""
        if SKIPPED in attributes:
            attributes[semconv.SKIP_REASON] = attributes.pop(SKIPPED)

    def progress(self, handle: Handle, stage: str | None, metadata: Mapping[str, Any]) -> None:
        """Somebody is at work: on the open attempts of `stage`, or on the transaction."""
        now_ns = self._touch(handle)
        touched = [o for o in handle.working() if stage in (None, o.start.stage)]
        for opened in touched:
            self._progress_of(handle, opened, now_ns, metadata)
        root = handle.root.get()
        if not touched and root is not None:
            old = root.start
            root.start = old.seen(now_ns + handle.offset_ns, now_ns, old.metadata)
            root.put()

    def pulse(self, handle: Handle, opened: OpenStage) -> None:
        """Work goes on, said often: told once a second at most."""
        if self._clock.monotonic_ns() - opened.start.seen_ns >= NS_PER_S and opened.end is None:
            self.progress_of(handle, opened, EMPTY)

    def progress_of(self, handle: Handle, opened: OpenStage, metadata: Mapping[str, Any]) -> None:
        """Work goes on in this very attempt."""
        self._progress_of(handle, opened, self._touch(handle), metadata)

    def _progress_of(
        self, handle: Handle, opened: OpenStage, now_ns: int, metadata: Mapping[str, Any] = EMPTY
    ) -> None:
        old = opened.start
        merged = merged_metadata(old.metadata, metadata) if metadata else old.metadata
        opened.start = old.seen(now_ns + handle.offset_ns, now_ns, merged)
        opened.put()
        if metadata:
            opened.span.set_attributes(self.privacy.attributes(metadata))
        if opened.is_stall_told:
            self._tell_recovery(handle, opened)

    def _stage_attributes(
        self, handle: Handle, stage: str, key: str, number: int
    ) -> dict[str, Any]:
        attributes = {**handle.attributes, semconv.KIND: "stage", semconv.STAGE: stage}
        if number > 1 or not handle.is_guest:
            # The first one here may be another process's second: better no number than a wrong one.
            attributes[semconv.STAGE_ATTEMPT] = number
        if key:
            attributes[semconv.STAGE_KEY] = self.privacy.identifier(key)
        return attributes

    def _note_bad(self, handle: Handle, fact: Fact) -> None:
        if handle.bad:
            self._put_right(handle, fact)
        if fact.outcome in Outcome.BAD:
            _put_bounded(handle.bad, fact.span_id, fact)

    def _put_right(self, handle: Handle, fact: Fact) -> None:
        """Takes back what `fact` makes up for: earlier goes, and failures it has coped with."""
        coped = {fact.span_id} if fact.outcome in (Outcome.SUCCESS, Outcome.SKIPPED) else set()
        for span_id, bad in reversed(list(handle.bad.items())):
            again = (bad.stage, bad.key) == (fact.stage, fact.key) and bad.start_ns < fact.start_ns
            if bad.parent_id in coped:
                coped.add(span_id)
                handle.bad.pop(span_id, None)
            elif again and replaces(fact, bad):
                handle.bad.pop(span_id, None)
        if fact.outcome == Outcome.SUCCESS:
            self._overtake(handle, fact.stage)

    def _overtake(self, handle: Handle, stage: str) -> None:
        """That a later declared stage succeeded shows that what was only left open was done."""
        stages = handle.pipeline.stages
        earlier = stages[: stages.index(stage)] if stage in stages else ()
        for span_id, bad in list(handle.bad.items()):
            if bad.outcome == Outcome.ABANDONED and bad.stage in earlier:
                handle.bad.pop(span_id, None)

    def _make_way(self, handle: Handle, stage: str, key: str, now_ns: int) -> None:
        """What a new attempt says about others."""
        if handle.open:
            self._close_before(handle, stage, key, now_ns)
        if handle.queued:
            self._take_from_queue(handle, stage, now_ns)

    @staticmethod
    def _number(handle: Handle, stage: str, key: str) -> int:
        """The number of a new attempt."""
        attempts = handle.attempts
        number = attempts.get((stage, key), 0) + 1
        if number == 1:
            _put_bounded(attempts, (stage, key), 1)
        else:
            attempts[stage, key] = number
        return number

    def _close_before(self, handle: Handle, stage: str, key: str, now_ns: int) -> None:
        """Closes what events left open and `stage` shows to be over.

        Callers seldom report that a stage completed: the begin of a later declared stage says it.
        A new start of the same stage says that the earlier attempt was given up.
        """
        again = handle.open.get((stage, key))
        if again is not None and handle.open.pop((stage, key), None) is again:
            stalled = now_ns - again.start.seen_ns >= self._patience.limit_ns(
                stage, handle.pipeline
            )
            self._abandon(handle, again, "left open, and silent too long" if stalled else "")
        declared = handle.pipeline.stages
        if stage in declared:
            earlier = declared[: declared.index(stage)]
            self._infer(handle, [k for k in list(handle.open) if k[0] in earlier], now_ns)

    def _infer(
        self,
        handle: Handle,
        keys: Iterable[tuple[str, str]],
        now_ns: int,
        *,
        went_well: bool = True,
    ) -> None:
        for key in keys:
            opened = handle.open.get(key)
            if opened is None or handle.open.pop(key, None) is not opened:
                continue
            limit_ns = self._patience.limit_ns(key[0], handle.pipeline)
            if now_ns - opened.start.seen_ns >= limit_ns:
                self._abandon(handle, opened, "left open, and silent too long")
            elif not went_well:
                self._abandon(handle, opened, "left open when the end was told as a failure")
            else:
                self.end_stage(handle, opened, Outcome.SUCCESS, reported=False)

    def _abandon(self, handle: Handle, opened: OpenStage, reason: str) -> None:
        """Ends an attempt as given up; without a reason that is no error."""
        outcome = Outcome.ABANDONED
        error_type = outcome if reason else ""
        self.end_stage(handle, opened, outcome, error=reason, error_type=error_type, reported=False)

    def _abandon_oldest(self, handle: Handle) -> None:
        for key in list(handle.open)[:1]:
            oldest = handle.open.pop(key, None)
            if oldest is not None:
                self._diagnostics.warn(
                    "open_stages",
                    "a transaction has more than %d open stages; the oldest is ended. Report their "
                    "*_completed events",
                    MAX_OPEN,
                )
                self._abandon(handle, oldest, "left open, among too many others")

    # --- queues, details ------------------------------------------------------------------------

    def queue(self, handle: Handle, stage: str) -> None:
        """The stage waits for a worker from now on. Its span is made when it is taken.

        A dashboard service is told at once: nobody else can tell it of what no worker takes.
        """
        wait = self._fact(handle, Kind.QUEUED, self._touch(handle), ended=False, stage=stage)
        handle.is_told = True
        _put_bounded(handle.queued, stage, wait)
        _put_bounded(handle.carried, stage, wait.start_ns)
        self._store.put(wait)
        attributes = {**self._wait_attributes(handle, stage), semconv.WHERE: wait.where}
        self._telemetry.tell_open(wait, semconv.name_of_wait(stage), attributes)

    def _take_from_queue(self, handle: Handle, stage: str, now_ns: int) -> None:
        wait = handle.queued.pop(stage, None)
        if wait is not None:
            self._end_wait(handle, wait.finished(now_ns + handle.offset_ns, now_ns, "success"))

    def _tell_wait(self, handle: Handle, stage: str, key: str, queued_ns: int) -> None:
        """Another process queued it; it is taken now, and here its span is made."""
        now_ns = self._touch(handle)
        taken_ns = now_ns + handle.offset_ns
        wait = self._fact(
            handle,
            Kind.QUEUED,
            now_ns,
            ended=True,
            stage=stage,
            key=key,
            start_ns=min(queued_ns, taken_ns - MARK_NS),
            outcome=Outcome.SUCCESS,
        )
        handle.queued.pop(stage, None)
        self._end_wait(handle, wait)

    def _end_wait(self, handle: Handle, wait: Fact) -> None:
        attributes = self._wait_attributes(handle, wait.stage)
        self._spans.at_once(handle, wait, semconv.name_of_wait(wait.stage), attributes)

    @staticmethod
    def _wait_attributes(handle: Handle, stage: str) -> dict[str, Any]:
        return {
            **handle.attributes,
            semconv.KIND: Kind.QUEUED.value,
            semconv.STAGE: stage,
        }

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
        parent = next(iter(handle.working()), None)
        context = None
        more: dict[str, Any] = {}
        if parent is not None:
            context = trace.set_span_in_context(parent.span, context_api.Context())
            more["parent_id"] = parent.start.span_id
            self._progress_of(handle, parent, now_ns)
        fact = self._fact(
            handle,
            Kind.DETAIL,
            now_ns,
            ended=True,
            start_ns=now_ns + handle.offset_ns - duration_ns,
            outcome=Outcome.SUCCESS if error is None else Outcome.FAILURE,
            error=error or "",
            **more,
        )
        attributes = {
            **handle.attributes,
            semconv.KIND: Kind.DETAIL.value,
            **self.privacy.attributes(metadata),
        }
        self._spans.at_once(handle, fact, name, attributes, context=context)

    # --- audio ----------------------------------------------------------------------------------

    def audio(self, handle: Handle, size: int | None, metadata: Mapping[str, Any] = EMPTY) -> None:
        """Audio came: one chunk of `size` bytes, or (None) only the word that audio began."""
        opened = handle.audio.get() or self._start_audio(handle)
        now_ns = handle.seen_ns = self._clock.monotonic_ns()
        if size is not None:
            opened.add(size)
        if metadata:
            opened.metadata = merged_metadata(opened.metadata, metadata)
        opened.seen_ns = now_ns
        opened.at_ns = now_ns + handle.offset_ns
        opened.put()

    def _start_audio(self, handle: Handle) -> OpenAudio:
        fact = self._fact(
            handle,
            Kind.AUDIO,
            self._touch(handle),
            ended=False,
            stage=AUDIO,
            opened=True,
        )
        opened = OpenAudio(self._store, fact)
        first = handle.audio.fill(opened)
        if first is opened:  # otherwise another thread was faster
            attributes = {
                **handle.attributes,
                semconv.KIND: Kind.AUDIO.value,
                semconv.STAGE: AUDIO,
            }
            self._spans.start(handle, opened, AUDIO, attributes)
            self._register(handle)
        return first

    def end_audio(self, handle: Handle, outcome: str = Outcome.SUCCESS) -> None:
        """Ends the audio span at the time of its last chunk."""
        opened = handle.audio.take()
        if opened is None:
            return
        end = opened.standing().finished(opened.at_ns, opened.seen_ns, outcome, closed=True)
        attributes: dict[str, Any] = {
            semconv.STAGE_OUTCOME: outcome,
            semconv.AUDIO_CHUNKS: end.audio.chunks,
            semconv.AUDIO_BYTES: end.audio.bytes,
            semconv.AUDIO_LAST_SIZE: end.audio.last_size,
            **self.privacy.attributes(end.metadata),
        }
        self._spans.end(opened, end, attributes)

    # --- the end --------------------------------------------------------------------------------

    def end(
        self,
        handle: Handle,
        *,
        success: bool,
        error: str = "",
        error_type: str = "",
        outcome: str = "",
        metadata: Mapping[str, Any] = EMPTY,
    ) -> None:
        """The caller tells the end: on the root where it is open here, otherwise as a child.

        Args:
            handle: the transaction.
            success: what the caller reports.
            error: the message of a failure.
            error_type: the exception's class, where known.
            outcome: where there is no success, what it came to instead of a failure.
            metadata: plain data given with the end.
        """
        now_ns = self._touch(handle)
        handle.is_told, handle.ends_with_work = True, False
        if handle.open:
            self._infer(handle, list(handle.open), now_ns, went_well=success)
        self.end_audio(handle)
        # What failed within a stage that still runs may be coped with there.
        bad = [fact for fact in list(handle.bad.values()) if fact.parent_id not in handle.frames]
        bad.sort(key=lambda fact: fact.start_ns)
        if not success:
            outcome = outcome or Outcome.FAILURE
        elif not bad:
            outcome = Outcome.SUCCESS
        else:
            only_cancelled = all(f.outcome == Outcome.CANCELLED for f in bad)
            outcome = Outcome.CANCELLED if only_cancelled else Outcome.FAILURE
            error, error_type = error or bad[0].error, error_type or bad[0].error_type
        self._tell_end(
            handle,
            now_ns,
            {**self.privacy.attributes(metadata), semconv.END_SUCCESS: success},
            outcome=outcome,
            error=error,
            error_type=error_type,
            closed=True,
            reported_failure=not success,
            end_metadata=metadata,
        )
        self.drop(handle)

    def tell_verdict(self, handle: Handle, outcome: str, *, error: str, error_type: str) -> None:
        """What the transaction came to, where nobody told the end: at its last local activity."""
        self.end_audio(handle)
        self._tell_end(
            handle, handle.seen_ns, {}, outcome=outcome, error=error, error_type=error_type
        )

    def _tell_end(
        self,
        handle: Handle,
        seen_ns: int,
        attributes: Mapping[str, Any],
        *,
        outcome: str,
        **told: Any,
    ) -> None:
        attributes = {semconv.OUTCOME: outcome, **attributes}
        if self._end_root(handle, seen_ns, attributes, outcome=outcome, **told):
            return
        fact = self._fact(
            handle,
            Kind.ENDED,
            seen_ns,
            ended=True,
            at_ns=seen_ns + handle.offset_ns + MARK_NS,
            outcome=outcome,
            **told,
        )
        attributes = {**handle.attributes, semconv.KIND: Kind.ENDED.value, **attributes}
        self._spans.at_once(handle, fact, semconv.name_of_end(outcome), attributes)

    def end_root(self, handle: Handle, outcome: str = "") -> None:
        """Ends the root where it is open here, at its last local activity, without a verdict.

        Jaeger names a trace after its root; that the root ended says nothing of the work.
        """
        attributes = {semconv.OUTCOME: outcome} if outcome else {}
        self._end_root(handle, handle.seen_ns, attributes, outcome=outcome)

    def _end_root(
        self, handle: Handle, seen_ns: int, attributes: Mapping[str, Any], **told: Any
    ) -> bool:
        root = handle.root.take()
        if root is None:
            return False
        end = root.start.finished(seen_ns + handle.offset_ns, seen_ns, **told)
        self._spans.end(root, end, attributes)
        return True

    def hand_over(self, handle: Handle) -> None:
        """Others carry on: audio and root end here, and silence is no stall in this view."""
        now_ns = self._touch(handle)
        handle.is_told = True
        self.end_audio(handle)
        self._tell_elsewhere(handle, now_ns)
        self.end_root(handle)
        handle.queued.clear()
        self.drop(handle)

    def _tell_elsewhere(self, handle: Handle, seen_ns: int, key: str = "") -> None:
        fact = self._fact(handle, Kind.HANDED_OVER, seen_ns, ended=True, key=key)
        fact.span_id = root_span_id(handle.trace_id) ^ 1  # one a transaction: the newest counts
        self._store.put(fact)

    def release(self, handle: Handle, outcome: str, reason: str) -> None:
        """Ends whatever is open of this transaction as `outcome` and drops its handle."""
        for key in list(handle.open):
            self._give_up(handle, handle.open.pop(key, None), outcome, reason)
        for span_id in reversed(list(handle.frames)):  # inner ones first
            self._give_up(handle, handle.frames.pop(span_id, None), outcome, reason)
        handle.queued.clear()
        self.end_audio(handle, outcome)
        self.end_root(handle, outcome if outcome == Outcome.INTERRUPTED else "")
        self.drop(handle)

    def _give_up(self, handle: Handle, opened: OpenStage | None, outcome: str, reason: str) -> None:
        if opened is not None:
            self.end_stage(
                handle,
                opened,
                outcome,
                opened.late or EMPTY,
                error=reason,
                error_type=outcome,
                reported=False,
            )

    def leave_block(self, handle: Handle) -> None:
        """The block is left without an end: from now on quiet after the last stage is the end."""
        root = handle.root.get()
        if root is not None and root.start.opened:
            now_ns = self._touch(handle)
            open_end = root.start.seen(now_ns + handle.offset_ns, now_ns, root.start.metadata)
            open_end.opened = False
            root.start = open_end
            root.put()

    def drop(self, handle: Handle) -> None:
        """Forgets a handle with nothing open or waiting."""
        is_open = handle.root.get() is not None or handle.audio.get() is not None
        if not (is_open or handle.is_working or handle.queued or handle.blocks):
            self._handles.pop(handle.text_id, None)

    # --- stalls ---------------------------------------------------------------------------------

    def open_stage_of(self, handle: Handle, span_id: int) -> OpenStage | None:
        """The open attempt with this span id, if it is open here."""
        return next((o for o in handle.working() if o.start.span_id == span_id), None)

    def tell_stall(self, handle: Handle, opened: OpenStage, reason: str, stack: str) -> None:
        """One finished child of the root, at once: from the last progress to now.

        A child of the stage itself would float in Jaeger until the stage has ended.
        """
        attempt = opened.start
        fact = self._fact(
            handle,
            Kind.STALLED,
            self._clock.monotonic_ns(),
            ended=True,
            stage=attempt.stage,
            key=attempt.key,
            start_ns=attempt.at_ns,
            outcome=Outcome.FAILURE,
            error=reason,
            error_type=semconv.STALLED,
            where=attempt.where,
        )
        attributes = self._stage_attributes(handle, attempt.stage, attempt.key, opened.number)
        attributes[semconv.KIND] = Kind.STALLED.value
        if not self.settings.export_text:
            stack = ""
        name = semconv.name_of_stall(attempt.stage)
        self._spans.at_once(handle, fact, name, attributes, stack=stack)
        self.end_root(handle)
        opened.is_stall_told = True
        if opened.end is not None:
            self._tell_recovery(handle, opened)  # it ended in the meantime

    def _tell_recovery(self, handle: Handle, opened: OpenStage) -> None:
        """A mark of the first progress after a told stall: at once, the end may follow closely."""
        opened.is_stall_told = False
        attempt = opened.end or opened.start
        if attempt.outcome in Outcome.BAD:
            return  # given up, or failed: no progress
        fact = self._fact(
            handle,
            Kind.RECOVERED,
            attempt.seen_ns,
            ended=True,
            stage=attempt.stage,
            key=attempt.key,
            start_ns=attempt.at_ns,
            at_ns=attempt.at_ns + MARK_NS,
            outcome=Outcome.SUCCESS,
            where=attempt.where,
        )
        attributes = {
            **handle.attributes,
            semconv.KIND: Kind.RECOVERED.value,
            semconv.STAGE: attempt.stage,
        }
        self._spans.at_once(handle, fact, semconv.name_of_recovery(attempt.stage), attributes)
