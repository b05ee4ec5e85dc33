"""Stages and transactions that end with a frame: what `with stage(…)` and `@stage` run on.

Here begins, ends and is attached what belongs to a frame of the application; every entry is
guarded, so that nothing of it can raise into that frame.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext

from .diagnostics import Diagnostics
from .directory import QUEUED_AT, TRACEPARENT, TRACESTATE, Directory, wall_ns_of
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
from .wrapping import wrap_function

F = TypeVar("F", bound=Callable[..., Any])

Cleaned = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Metadata as it is kept, and as it may leave."""

_CURRENT: Final = context_api.create_key("otel_tracker.current")


class Ending:
    """How a frame is left: the outcome, and what there is to say about it."""

    __slots__ = ("error", "error_type", "outcome")

    def __init__(self, error: BaseException | None) -> None:
        self.outcome: str = Outcome.SUCCESS
        self.error = self.error_type = ""
        if error is None or isinstance(error, GeneratorExit):
            return  # a consumer that has enough is no failure
        if isinstance(error, asyncio.CancelledError):
            self.outcome = Outcome.CANCELLED
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self.outcome = Outcome.INTERRUPTED
        else:
            self.outcome = Outcome.FAILURE
        self.error = exception_text(error)
        self.error_type = error_type_of(error)


class Frame:
    """What is attached while a frame of the application runs."""

    __slots__ = ("_context", "_frames", "_handle", "_opened", "_token")

    def __init__(
        self, frames: Frames | None, handle: Handle | None, opened: OpenStage | None = None
    ) -> None:
        self._frames = frames
        self._handle = handle
        self._opened = opened
        """The attempt, where it is one."""
        self._context: context_api.Context | None = None
        self._token: Any = None

    def attach(self) -> None:
        """Makes it the current one. Never raises."""
        if self._context is not None:
            self._token = context_api.attach(self._context)

    def detach(self) -> None:
        """Makes current again what was before. Never raises.

        A coroutine that is collected is closed in whatever context there is: nothing is undone in
        one that is not ours.
        """
        token, self._token = self._token, None
        if token is not None and context_api.get_current() is self._context:
            context_api.detach(token)

    def is_current(self) -> bool:
        """Whether the caller runs in this very frame."""
        return self._context is not None and context_api.get_current() is self._context

    def leave(self, error: BaseException | None) -> None:
        """Detaches and ends it, by the exception that it is left with. Never raises."""
        if self._token is not None:
            self.detach()
        frames = self._frames
        if frames is None:
            return
        try:
            self._end(frames, error)
        except Exception:
            frames.diagnostics.error("leave", "the end of a stage or transaction was not told")

    def _end(self, frames: Frames, error: BaseException | None) -> None:
        raise NotImplementedError

    def _do(self, what: str, work: Callable[[Frames, Handle], None]) -> None:
        frames, handle = self._frames, self._handle
        if frames is None or handle is None:
            return
        try:
            work(frames, handle)
        except Exception:
            frames.diagnostics.error(what, "%s could not be carried out", what)


class ActiveTransaction(Frame):
    """A transaction while code runs in it: ``with transaction() as tx``.

    Every method may be called at any time and never raises. Outside any transaction, and where the
    tracker is disabled, it does nothing; then it is false.
    """

    __slots__ = ("_id", "_is_owner", "_is_told", "_queued_ns")

    def __init__(
        self, frames: Frames | None, handle: Handle | None, *, is_owner: bool = False
    ) -> None:
        super().__init__(frames, handle)
        self._is_owner = is_owner
        self._is_told = False
        self._queued_ns = 0
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
            self._is_told = True
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
            self._is_told = True
            self._queued_ns = frames.recorder.queue(handle, name)

        self._do("transaction.queued()", work)

    def hand_over(self) -> None:
        """Says that other processes carry on: its root ends here, and silence is no stall."""

        def work(frames: Frames, handle: Handle) -> None:
            self._is_told = True
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
            TRACESTATE: span.trace_state.to_header() or "otel_tracker=1",
        }
        if self._queued_ns:
            carrier[QUEUED_AT] = f"{self._queued_ns / NS_PER_S:.6f}"
        return carrier

    def _end(self, frames: Frames, error: BaseException | None) -> None:
        handle = self._handle
        if handle is None or handle.era is not frames.recorder.era:
            return  # a forked child leaves its parent's frame: that is the parent's to end
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
        elif self._is_told or handle.queued:
            return
        elif self._is_owner:
            stages = handle.pipeline.stages
            if not stages or any(stage == stages[-1] for stage, _ in handle.attempts):
                frames.recorder.end(handle, success=True)


class ActiveStage(Frame):
    """An attempt at a stage while it runs: ``with stage("memory") as s``.

    Every method may be called at any time and never raises. Where the tracker is disabled it does
    nothing; then it is false.
    """

    __slots__ = ("_ending", "_metadata", "_outer", "_owns", "_transaction")

    def __init__(
        self,
        frames: Frames | None,
        handle: Handle | None,
        opened: OpenStage | None,
        outer: Frame | None = None,
    ) -> None:
        self._frames = frames
        self._handle = handle
        self._opened = opened
        self._context = None
        self._token = None
        self._outer = outer
        self._owns = False
        """A stage outside any transaction has one of its own, which ends with it."""
        self._transaction: ActiveTransaction | None = None
        self._metadata: dict[str, Any] | None = None
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
        if self._opened is None:
            return

        def work(*_: object) -> None:
            new = plain_metadata(attributes)
            self._metadata = merged_metadata(self._metadata, new) if self._metadata else new

        self._do("stage.set()", work)

    def progress(self, **attributes: Any) -> None:
        """Says that work goes on, such as ``done=3, total=10``: its silence starts anew."""
        opened = self._opened
        if opened is None:
            return

        def work(frames: Frames, handle: Handle) -> None:
            plain = plain_metadata(attributes) if attributes else EMPTY
            frames.recorder.progress_of(handle, opened, plain)

        self._do("stage.progress()", work)

    def skip(self, reason: object = "") -> None:
        """Says that there is rightly nothing to do: it ends as skipped, unless by an exception."""

        def work(*_: object) -> None:
            self._ending = Ending(None)
            self._ending.outcome = Outcome.SKIPPED
            self._ending.error = text_of(reason)

        self._do("stage.skip()", work)

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

        self._do("stage.fail()", work)

    def report(self, *, success: bool, error: str, metadata: Mapping[str, Any]) -> None:
        """Takes what the drop-in API reports of this stage: metadata, or that it failed."""
        old = self._metadata
        self._metadata = merged_metadata(old, metadata) if old else dict(metadata)
        if not success:
            given = metadata.get("error_type")
            self.fail(error, given if isinstance(given, str) else "")

    def _end(self, frames: Frames, error: BaseException | None) -> None:
        handle, opened, ending = self._handle, self._opened, self._ending
        if handle is None or opened is None:
            return
        if error is None and ending is None:
            frames.recorder.end_frame(handle, opened, Outcome.SUCCESS, self._metadata or EMPTY)
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
        metadata: Mapping[str, Any] = self._metadata or EMPTY
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
        try:
            context = context_api.get_current()
            here: Frame | None = context.get(_CURRENT)  # type: ignore[assignment]
            if here is not None and here._frames is not self:
                here = None
            queued_ns = 0 if queued_at is None else self._queued_ns(queued_at)
            handle = None
            if transaction_id is not None or carrier is not None:
                handle, queued_ns = self._given(transaction_id, carrier, queued_ns)
            if handle is None and here is not None:
                handle = here._handle
                if handle is not None and handle.era is not recorder.era:
                    handle = self.directory.here(handle)
            is_own = False
            if handle is None:
                handle = self.directory.by_span(_span_in(context))
                is_own = handle is None
                if handle is None:
                    handle = self.directory.create(NOBODY, NO_PIPELINE, EMPTY)
            if here is None or here._handle is not handle:
                within = None
                is_inside = not is_own and _span_in(context).trace_id == handle.trace_id
            else:
                within = here._opened
                is_inside = here._context is context or (
                    _span_in(context).trace_id == handle.trace_id
                )
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
            )
            active = ActiveStage(self, handle, opened, here)
            if is_own:
                active._transaction = ActiveTransaction(self, handle, is_owner=True)
                active._owns = True
            active._context = _with_current(context, opened.span, active)
            return active
        except Exception:
            self.diagnostics.error("begin_stage", "a stage could not be tracked")
        return NO_STAGE

    def _given(
        self, transaction_id: object, carrier: object, queued_ns: int
    ) -> tuple[Handle | None, int]:
        handle: Handle | None = None
        if transaction_id is not None:
            handle = self.directory.by_id(transaction_id)
        if carrier is not None:
            carried = self.directory.read_carrier(carrier)
            if carried is not None:
                handle = handle or self.directory.by_carrier(carried)
                queued_ns = queued_ns or carried.queued_ns
        return handle, queued_ns

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
        handle: Handle | None = None
        if transaction_id is not None:
            handle = self.directory.by_id(transaction_id)
        elif carrier is not None:
            carried = self.directory.read_carrier(carrier)
            handle = None if carried is None else self.directory.by_carrier(carried, who)
        if handle is not None:
            self.recorder.identify(handle, who)
            active = ActiveTransaction(self, handle)
        else:
            handle = self.directory.create(who, pipeline, metadata)
            active = ActiveTransaction(self, handle, is_owner=True)
        active._context = self._context_of(handle, active)
        return active

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
            if opened is not None and opened.start.stage == stage:
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
