"""Stages and transactions that end with a frame: what `with stage(…)` and `@stage` run on.

Here begins, ends and is attached what belongs to a frame of the application; every entry is
guarded, so that nothing of it can raise into that frame.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext

from .diagnostics import Diagnostics
from .directory import QUEUED, TRACEPARENT, TRACESTATE, Directory, wall_ns_of
from .handles import Handle, OpenStage
from .ids import format_id, new_trace_id, root_span_id
from .model import EMPTY, NO_PIPELINE, NOBODY, NS_PER_S, Outcome, Pipeline, Who, parse_stage
from .privacy import (
    error_type_of,
    exception_text,
    id_text,
    merged_metadata,
    plain_metadata,
    text_of,
)
from .recorder import SKIPPED, Recorder
from .spans import is_collecting
from .telemetry import marked
from .wrapping import wrap_function

F = TypeVar("F", bound=Callable[..., Any])

Cleaned = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Metadata as it is kept, and as it may leave."""

_CURRENT: Final = context_api.create_key("otel_tracker.current")


_CANCELLED: Final = (asyncio.CancelledError, concurrent.futures.CancelledError)


class Ending:
    """How a frame is left: the outcome, and what there is to say about it."""

    __slots__ = ("error", "error_type", "outcome")

    def __init__(self, error: BaseException | None) -> None:
        self.outcome: str = Outcome.SUCCESS
        self.error = self.error_type = ""
        if error is None or isinstance(error, GeneratorExit):
            return  # a consumer that has enough is no failure
        if isinstance(error, _CANCELLED):
            self.outcome = Outcome.CANCELLED
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self.outcome = Outcome.INTERRUPTED
        else:
            self.outcome = Outcome.FAILURE
        self.error = exception_text(error)
        self.error_type = error_type_of(error)


class Frame:
    """What is attached while a frame of the application runs."""

    __slots__ = ("_context", "_frames", "_handle", "_opened", "_outer", "_token", "declared")

    def __init__(
        self,
        frames: Frames | None,
        handle: Handle | None,
        opened: OpenStage | None = None,
        outer: Frame | None = None,
    ) -> None:
        self._frames = frames
        self._handle = handle
        self._opened = opened
        """The attempt, where it is one."""
        self._outer = outer
        """The frame around it, until it is left."""
        self._context: context_api.Context | None = None
        self._token: Any = None
        self.declared: object = None
        """What it was entered by."""

    def attach(self) -> None:
        """Makes it the current one. Never raises.

        Not in the middle of a garbage collection: that may have stopped another change of the
        context half-way, and CPython 3.11 crashes where one change is made within another.
        """
        if self._context is not None and not is_collecting():
            self._token = context_api.attach(self._context)

    def detach(self) -> None:
        """Makes current again what was before. Never raises.

        Code that ran in it may have left a context of its own attached; a generator's is current
        again when that goes on. A coroutine that is collected is closed in whatever context there
        is: nothing is undone in one that is not ours.
        """
        token, self._token = self._token, None
        if token is None or is_collecting():
            return
        now = context_api.get_current()
        if now is not self._context:
            here: Any = now.get(_CURRENT)
            while here is not None and here is not self:
                here = here._outer
            if here is None:
                return
            self._context = now
        try:
            token.var.reset(token)  # OpenTelemetry's own detach logs an error where this raises
        except ValueError:
            return  # begun in another `contextvars.Context`, which has gone
        except AttributeError:
            context_api.detach(token)  # another runtime than that on `contextvars`

    def is_within(self, declared: object) -> Frame | None:
        """The innermost frame, from this one outwards, that was entered by `declared`."""
        here: Frame | None = self
        while here is not None and here.declared is not declared:
            here = here._outer
        return here

    def pulse(self) -> None:
        """A generator yields: a sign of life, at most one a second. Never raises."""

    def leave(self, error: BaseException | None) -> None:
        """Detaches and ends it, by the exception that it is left with. Never raises."""
        if self._token is not None:
            self.detach()
        frames = self._frames
        if frames is not None:
            try:
                self._end(frames, error)
            except Exception:
                # Nothing may be left of the stack that the application has filled: later, then.
                frames.recorder.postpone(lambda: self._give_up(frames))
                frames.diagnostics.error("leave", "the end of a stage or transaction was not told")
        # Contexts of tasks that go on hold this frame: it must hold no others.
        self._outer = self._context = None

    def _end(self, frames: Frames, error: BaseException | None) -> None:
        """Tells the end. Each kind of frame has its own."""
        raise NotImplementedError

    def _give_up(self, frames: Frames) -> None:
        """What can be told where the end itself could not."""

    def _do(self, what: str, work: Callable[[Frames, Handle], None]) -> None:
        frames, handle = self._frames, self._handle
        if frames is None or handle is None:
            return
        try:
            work(frames, frames.directory.here(handle))
        except Exception:
            frames.diagnostics.error(what, "%s could not be carried out", what)


class ActiveTransaction(Frame):
    """A transaction while code runs in it: ``with transaction() as tx``.

    Every method may be called at any time and never raises. Outside any transaction, and where the
    tracker is disabled, it does nothing; then it is false.
    """

    __slots__ = ("_id", "_is_owner")

    def __init__(
        self,
        frames: Frames | None,
        handle: Handle | None,
        outer: Frame | None = None,
        *,
        is_owner: bool = False,
    ) -> None:
        super().__init__(frames, handle, None, outer)
        self._is_owner = is_owner
        self._id = ""

    def __bool__(self) -> bool:
        return self._handle is not None

    def __repr__(self) -> str:
        return f"<transaction {self.id or 'none'}>"

    @property
    def id(self) -> str:
        """Its id, the trace id written as a UUID; "" outside any transaction."""
        return self._id if self._handle is None else self._handle.text_id

    @property
    def trace_url(self) -> str:
        """Where its trace is in Jaeger's UI; "" outside any transaction."""
        if self._frames is None or self._handle is None:
            return ""
        base = self._frames.recorder.settings.jaeger_url.rstrip("/")
        return f"{base}/trace/{self._handle.trace_id:032x}"

    def set(self, **attributes: Any) -> None:
        """Adds attributes to its root span, while that is open here."""

        def work(frames: Frames, handle: Handle) -> None:
            frames.recorder.set_root(handle, plain_metadata(attributes))

        self._do("transaction.set()", work)

    def end(self, success: bool = True, error: object = None, **attributes: Any) -> None:
        """Tells its end now; leaving the block then adds nothing.

        Args:
            success: False for a failure.
            error: what went wrong: a message or an exception.
            **attributes: what else is to be said.
        """

        def work(frames: Frames, handle: Handle) -> None:
            frames.recorder.end(
                handle,
                success=bool(success),
                error=text_of(error),
                error_type=error_type_of(error) if isinstance(error, BaseException) else "",
                metadata=plain_metadata(attributes) if attributes else EMPTY,
            )
            if not success:
                frames.on_failure()

        self._do("transaction.end()", work)

    def queued(self, stage: object) -> None:
        """Says that `stage` waits for a worker from now on: leaving the block is not the end.

        `carrier()` takes the moment along, so that the worker's trace shows the wait.
        """

        def work(frames: Frames, handle: Handle) -> None:
            name = parse_stage(stage)
            if name is None:
                frames.diagnostics.warn(
                    "stage", "queued() got %s as its stage; use its name", text_of(stage, 80)
                )
                return
            frames.recorder.queue(handle, name)

        self._do("transaction.queued()", work)

    def hand_over(self) -> None:
        """Says that other processes carry on: its root ends here, and silence is no stall."""

        def work(frames: Frames, handle: Handle) -> None:
            frames.recorder.hand_over(handle)

        self._do("transaction.hand_over()", work)

    def bind(self, function: F) -> F:
        """`function`, to be called elsewhere: in a thread, an executor, a callback, a process pool.

        What it does there belongs to this transaction, and to the stage that it was bound in. It
        takes what `function` takes, and is of the same kind.
        """
        return bind(function, self)

    def carrier(self) -> dict[str, str]:
        """What another process needs to carry on: ``traceparent`` (W3C), as a dict of strings.

        Put it into a message; there, ``stage("memory", carrier=…)`` or ``transaction(carrier=…)``
        takes it. It holds no user, client or conversation. Empty outside any transaction.
        """
        handle = self._handle
        if handle is None:
            return {}
        span = trace.get_current_span(handle.context).get_span_context()
        trace_id, flags = handle.trace_id, int(span.trace_flags) if span.is_valid else 0
        carrier = {
            TRACEPARENT: f"00-{trace_id:032x}-{root_span_id(trace_id):016x}-{flags & 0x03:02x}",
            TRACESTATE: (span.trace_state or marked(handle.who.pipeline)).to_header(),
        }
        for stage, queued_ns in list(handle.carried.items())[-1:]:
            carrier[QUEUED] = f"{stage}={queued_ns / NS_PER_S:.6f}"
        return carrier

    def _end(self, frames: Frames, error: BaseException | None) -> None:
        handle = self._handle
        if handle is None or handle.era is not frames.recorder.era:
            return  # a forked child leaves its parent's frame: that is the parent's to end
        handle.blocks -= 1
        ending = Ending(error)
        if ending.outcome != Outcome.SUCCESS:
            frames.recorder.end(
                handle,
                success=False,
                error=ending.error,
                error_type=ending.error_type,
                outcome=ending.outcome,
            )
            frames.on_failure()
        elif self._is_owner and not handle.is_told:
            stages = handle.pipeline.stages
            if not stages or any(stage == stages[-1] for stage, _ in list(handle.attempts)):
                frames.recorder.end(handle, success=True)
            else:
                frames.recorder.leave_block(handle)
        elif self._is_owner and handle.queued:
            frames.recorder.leave_block(handle)
            handle.ends_with_work = not handle.pipeline.stages
        if handle.is_told:
            frames.recorder.drop(handle)


class ActiveStage(Frame):
    """An attempt at a stage while it runs: ``with stage("memory") as s``.

    Every method may be called at any time and never raises. Where the tracker is disabled it does
    nothing; then it is false.
    """

    __slots__ = ("_ending", "_owns", "_transaction")

    def __init__(
        self,
        frames: Frames | None,
        handle: Handle | None,
        opened: OpenStage | None,
        outer: Frame | None = None,
    ) -> None:
        # Not by super(): one is made for every attempt.
        self._frames = frames
        self._handle = handle
        self._opened = opened
        self._context = None
        self._token = None
        self._outer = outer
        self.declared = None
        self._owns = False
        """A stage outside any transaction has one of its own, which ends with it."""
        self._transaction: ActiveTransaction | None = None
        self._ending: Ending | None = None

    def __bool__(self) -> bool:
        return self._opened is not None

    def __repr__(self) -> str:
        return f"<stage {self._opened.start.stage if self._opened else 'none'}>"

    @property
    def transaction(self) -> ActiveTransaction:
        """The transaction that it belongs to."""
        if self._transaction is None:
            self._transaction = ActiveTransaction(self._frames, self._handle)
        return self._transaction

    def set(self, **attributes: Any) -> None:
        """Adds attributes; they are on its span when it ends, and cleaned as all metadata is."""

        def work(opened: OpenStage, *_: object) -> None:
            new = plain_metadata(attributes)
            opened.late = merged_metadata(opened.late, new) if opened.late else new

        self._do_here("stage.set()", work)

    def progress(self, **attributes: Any) -> None:
        """Says that work goes on, such as ``done=3, total=10``: its silence starts anew."""

        def work(opened: OpenStage, frames: Frames, handle: Handle) -> None:
            plain = plain_metadata(attributes) if attributes else EMPTY
            frames.recorder.progress_of(handle, opened, plain)

        self._do_here("stage.progress()", work)

    def skip(self, reason: object = "") -> None:
        """Says that there is rightly nothing to do: it ends as skipped, unless by an exception."""

        def work(*_: object) -> None:
            self._ending = Ending(None)
            self._ending.outcome = Outcome.SKIPPED
            self._ending.error = text_of(reason)

        self._do_here("stage.skip()", work)

    def fail(self, message: object = "", error_type: str = "") -> None:
        """Says that it failed without an exception.

        Args:
            message: what went wrong: a message or an exception.
            error_type: a class of errors, for ``error.type``.
        """

        def work(*_: object) -> None:
            self._ending = ending = Ending(message if isinstance(message, BaseException) else None)
            ending.outcome = Outcome.FAILURE
            ending.error = text_of(message)
            ending.error_type = text_of(error_type) or ending.error_type

        self._do_here("stage.fail()", work)

    def report(self, *, success: bool, error: str, metadata: Mapping[str, Any]) -> None:
        """Takes what the drop-in API reports of this stage: metadata, and how it went so far."""
        opened = self._opened
        if opened is not None:
            opened.late = merged_metadata(opened.late or {}, metadata)
        self._ending = None
        if not success:
            given = metadata.get("error_type")
            self.fail(error, given if isinstance(given, str) else "")

    def _do_here(self, what: str, work: Callable[[OpenStage, Frames, Handle], None]) -> None:
        """Does `work`, unless the attempt has ended, or is a parent process's."""
        frames, handle, opened = self._frames, self._handle, self._opened
        if frames is None or handle is None or opened is None or opened.end is not None:
            return
        if handle.era is not frames.recorder.era:
            return
        try:
            work(opened, frames, handle)
        except Exception:
            frames.diagnostics.error(what, "%s could not be carried out", what)

    def pulse(self) -> None:
        """As progress(), at most once a second. Never raises."""
        frames, handle, opened = self._frames, self._handle, self._opened
        if frames is not None and handle is not None and opened is not None:
            try:
                frames.recorder.pulse(handle, opened)
            except Exception:
                frames.diagnostics.error("pulse", "a sign of life was not told")

    def _give_up(self, frames: Frames) -> None:
        handle, opened = self._handle, self._opened
        if handle is not None and opened is not None:
            frames.recorder.end_frame(handle, opened, Outcome.FAILURE, EMPTY, "unknown")

    def _end(self, frames: Frames, error: BaseException | None) -> None:
        handle, opened, ending = self._handle, self._opened, self._ending
        if handle is None or opened is None:
            return
        if error is None and ending is None:
            frames.recorder.end_frame(handle, opened, Outcome.SUCCESS, opened.late or EMPTY)
        else:
            self._end_otherwise(frames, handle, opened, error)
        if self._owns:
            self.transaction._end(frames, error)

    def _end_otherwise(
        self, frames: Frames, handle: Handle, opened: OpenStage, error: BaseException | None
    ) -> None:
        ending = self._ending
        if ending is None or (error is not None and not isinstance(error, GeneratorExit)):
            ending = Ending(error)
        metadata: Mapping[str, Any] = opened.late or EMPTY
        message = ending.error
        if ending.outcome == Outcome.SKIPPED:
            metadata, message = {**metadata, SKIPPED: message}, ""
        frames.recorder.end_frame(
            handle, opened, ending.outcome, metadata, message, ending.error_type
        )
        if ending.outcome in Outcome.BAD:
            frames.on_failure()


NO_STAGE: Final = ActiveStage(None, None, None)


class _Borrowed(Frame):
    """A context that code runs in and that ends with something else."""

    __slots__ = ()

    def _end(self, frames: Frames, error: BaseException | None) -> None:
        return


class Frames:
    """Begins stages and transactions for frames of the application.

    Args:
        recorder: writes them.
        directory: finds the transaction.
        diagnostics: where troubles go.
        on_failure: called when something failed: it is told at once.
        pipeline_named: gives the pipeline of a name, and declares one that is given.
    """

    def __init__(
        self,
        recorder: Recorder,
        directory: Directory,
        diagnostics: Diagnostics,
        on_failure: Callable[[], None],
        pipeline_named: Callable[[Pipeline | str], Pipeline],
    ) -> None:
        self.recorder = recorder
        self.directory = directory
        self.diagnostics = diagnostics
        self.on_failure = on_failure
        self._pipeline_named = pipeline_named

    def begin_stage(
        self,
        stage: str,
        attributes: Mapping[str, Any],
        key: object = None,
        transaction_id: object = None,
        carrier: object = None,
        queued_at: object = None,
        cleaned: Cleaned | None = None,
    ) -> ActiveStage:
        """An attempt at `stage`, begun and not attached yet. Never raises.

        It belongs to the transaction that is given, else to the current one, else to one of its
        own. `attributes` are what the caller gave; `cleaned` is what became of the same before.
        """
        recorder = self.recorder
        if recorder.settings.disabled:
            return NO_STAGE
        opened: OpenStage | None = None
        try:
            context = context_api.get_current()
            here: Frame | None = context.get(_CURRENT)  # type: ignore[assignment]
            if here is not None and here._frames is not self:
                here = None
            queued_ns = 0 if queued_at is None else self._queued_ns(queued_at)
            handle = None
            if transaction_id is not None or carrier is not None:
                handle = self._given(transaction_id, carrier)
            if handle is None and here is not None:
                handle = here._handle
                if handle is not None and handle.era is not recorder.era:
                    handle = self.directory.here(handle)
            is_own = is_through = False
            if handle is None:
                handle = self.directory.by_span(_span_in(context))
                is_own = handle is None
                if handle is None:
                    handle = self.directory.create(NOBODY, NO_PIPELINE, in_block=True)
                    handle.blocks += 1
            if here is None or here._handle is not handle:
                within = None
                is_inside = not is_own and _span_in(context).trace_id == handle.trace_id
            else:
                within = here._opened
                is_inside = here._context is context
                if not is_inside:
                    span = _span_in(context)
                    is_inside = span.trace_id == handle.trace_id
                    is_through = within is not None and span.span_id != within.start.span_id
            if cleaned is not None:
                metadata, exported = cleaned
            elif attributes:
                metadata, exported = recorder.privacy.both(attributes)
            else:
                metadata = exported = EMPTY
            opened = recorder.start_frame(
                handle,
                stage,
                "" if key is None else id_text(key),
                metadata,
                exported,
                within,
                context if is_inside else handle.context,
                queued_ns,
                is_through=is_through,
            )
            active = ActiveStage(self, handle, opened, here)
            if is_own:
                active._transaction = ActiveTransaction(self, handle, is_owner=True)
                active._owns = True
            active._context = _with_current(context, opened.span, active)
            return active
        except Exception:
            if opened is not None and handle is not None:
                begun, of = opened, handle
                recorder.postpone(lambda: recorder.end_frame(of, begun, Outcome.ABANDONED, EMPTY))
            self.diagnostics.error("begin_stage", "a stage could not be tracked")
        return NO_STAGE

    def _given(self, transaction_id: object, carrier: object, who: Who = NOBODY) -> Handle | None:
        """The transaction with this id, or that of this carrier."""
        handle: Handle | None = None
        if carrier is not None:
            carried = self.directory.read_carrier(carrier)
            if carried is not None:
                handle = self.directory.by_carrier(carried, who)
        if transaction_id is not None:
            handle = self.directory.by_id(transaction_id) or handle
        return handle

    def begin_transaction(
        self,
        pipeline: Pipeline | str,
        who: Who,
        attributes: Mapping[str, Any],
        *,
        transaction_id: object = None,
        carrier: object = None,
    ) -> ActiveTransaction:
        """A new transaction, or the one that is given, not attached yet. Never raises."""
        try:
            if not self.recorder.settings.disabled:
                known = self._pipeline_named(pipeline)
                metadata = plain_metadata(attributes) if attributes else EMPTY
                return self._begin_transaction(known, who, metadata, transaction_id, carrier)
        except Exception:
            self.diagnostics.error("begin_transaction", "a transaction could not be tracked")
        nothing = ActiveTransaction(None, None)
        nothing._id = format_id(new_trace_id())
        return nothing

    def _begin_transaction(
        self,
        pipeline: Pipeline,
        who: Who,
        metadata: Mapping[str, Any],
        transaction_id: object,
        carrier: object,
    ) -> ActiveTransaction:
        here = self._frame_in(context_api.get_current())
        handle = self._given(transaction_id, carrier, who)
        is_owner = handle is None
        if handle is None:
            handle = self.directory.create(who, pipeline, metadata, in_block=True)
        else:
            self.recorder.identify(handle, who, pipeline)
        handle.blocks += 1
        active = ActiveTransaction(self, handle, here, is_owner=is_owner)
        active._context = self._context_of(handle, active)
        return active

    def current(self) -> Frame | None:
        """The innermost frame that the caller runs in."""
        return self._frame_in(context_api.get_current())

    def current_transaction(self) -> ActiveTransaction:
        """The transaction that the caller runs in. Never raises."""
        try:
            context = context_api.get_current()
            here = self._frame_in(context)
            if isinstance(here, ActiveStage):
                return here.transaction
            if isinstance(here, ActiveTransaction):
                return here
            if not self.recorder.settings.disabled:
                caller = trace.get_current_span(context).get_span_context()
                handle = self.directory.by_span(caller)
                if handle is not None:
                    return ActiveTransaction(self, handle)
        except Exception:
            self.diagnostics.error("current_transaction", "the transaction could not be found")
        return ActiveTransaction(None, None)

    def current_stage(self) -> ActiveStage:
        """The innermost stage that the caller runs in. Never raises."""
        here = self._frame_in(context_api.get_current())
        return here if isinstance(here, ActiveStage) else NO_STAGE

    def stage_of(self, handle: Handle, stage: str) -> ActiveStage | None:
        """The open attempt at `stage` that the caller runs in, if it runs in one of `handle`."""
        here = self._frame_in(context_api.get_current())
        while isinstance(here, ActiveStage) and here._handle is handle:
            opened = here._opened
            if opened is not None and opened.end is None and opened.start.stage == stage:
                return here
            here = here._outer
        return None

    def bound(self, transaction: ActiveTransaction) -> Frame:
        """The context of `transaction`, to run something in: the current one if it is of it."""
        frame = _Borrowed(self, None)
        handle = transaction._handle
        if handle is None:
            return frame
        context = context_api.get_current()
        here = self._frame_in(context)
        if here is not None and here._handle is handle:
            frame._context = context
        else:
            frame._context = self._context_of(handle, transaction)
        return frame

    def _context_of(self, handle: Handle, frame: Frame) -> context_api.Context:
        span = trace.get_current_span(handle.context)
        return _with_current(context_api.get_current(), span, frame)

    def _frame_in(self, context: context_api.Context) -> Frame | None:
        here = context.get(_CURRENT)
        if isinstance(here, Frame) and here._frames is self and here._handle is not None:
            return here
        return None

    def _queued_ns(self, queued_at: object) -> int:
        wall_ns = wall_ns_of(queued_at)
        if wall_ns is None:
            self.diagnostics.warn(
                "queued_at",
                "queued_at=%s is no moment; give a datetime or seconds since the epoch",
                text_of(queued_at, 80),
            )
        return wall_ns or 0


def _span_in(context: context_api.Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


_SPAN: Final = next(iter(trace.set_span_in_context(INVALID_SPAN, context_api.Context())))
"""Under what OpenTelemetry keeps the current span in a context."""


def _with_current(context: context_api.Context, span: Span, frame: Frame) -> context_api.Context:
    if span is INVALID_SPAN:  # OpenTelemetry could not make it: the one around it stays current
        return context_api.set_value(_CURRENT, frame, context)
    return context_api.Context({**context, _SPAN: span, _CURRENT: frame})


# --- functions that run in a transaction wherever they are called --------------------------------


class Bound:
    """What ``tx.bind(function)`` gives: `function`, within the transaction.

    Pickled, it takes the transaction along as its carrier.
    """

    def __init__(
        self, function: Callable[..., Any], frames: Frames, transaction: ActiveTransaction
    ) -> None:
        functools.update_wrapper(self, function, updated=())
        self._remake = (bind_here, (function, transaction.carrier()))
        context = frames.bound(transaction)._context

        def begin(*_: object) -> Frame:
            frame = _Borrowed(None, None)  # each call's own: it holds what to restore
            frame._context = context
            return frame

        self._call = wrap_function(function, begin)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the function."""
        return self._call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return self._remake


class AsyncBound(Bound):
    """The same for a coroutine function, by which frameworks tell what to await."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the function."""
        return await self._call(*args, **kwargs)


def bind(function: F, transaction: ActiveTransaction) -> F:
    """`function`, within `transaction` wherever it is called; as it is outside any."""
    frames = transaction._frames
    if frames is None or transaction._handle is None:
        return function
    kind = AsyncBound if inspect.iscoroutinefunction(function) else Bound
    return kind(function, frames, transaction)  # type: ignore[return-value]


def bind_here(function: F, carrier: Mapping[str, str]) -> F:
    """A function that another process bound: within the same transaction, in this one."""
    frames = Shared.find()
    carried = frames.directory.read_carrier(carrier)
    if carried is None or frames.recorder.settings.disabled:
        return function
    return bind(function, ActiveTransaction(frames, frames.directory.by_carrier(carried)))


class Shared:
    """How the frames of the shared tracker are found: `api.py` says it, which stands above."""

    find: Callable[[], Frames]
