"""`stage` and `transaction`: one object each, as a decorator and as a context manager.

What is wrong with how they are written is a `TypeError` where a function is decorated, since that
is when a program starts. In a `with` it is logged once, and the block runs.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MethodType, TracebackType
from typing import Any, Final, TypeVar, overload

from .api import get_debug_tracker
from .debug_tracker import DebugSystemTracker
from .frames import ActiveStage, ActiveTransaction, Cleaned, Frame, Frames
from .model import (
    MAX_STAGE_NAME,
    NO_PIPELINE,
    AnyEvent,
    Pipeline,
    Who,
    parse_stage,
)
from .privacy import Privacy, id_text
from .wrapping import name_of, wrap

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")

_MEANT: Final = {
    "transaction": "transaction_id",
    "tid": "transaction_id",
    "tx": "transaction_id",
    "tx_id": "transaction_id",
    "trace_id": "transaction_id",
    "user": "user_id",
    "uid": "user_id",
    "client": "client_id",
    "conversation": "conversation_id",
    "traceparent": "carrier",
    "enqueued_at": "queued_at",
}
"""Names that are no options, and the option that is meant by them."""

_IDS: Final = ("user_id", "client_id", "conversation_id")

_DECLARED: Final = "__otel_tracker__"
"""The attribute of what a decorator made that says so: ``("stage", "memory")``."""

_METHODS: Final = (classmethod, staticmethod, MethodType)

_MOST_DECORATORS: Final = 100
"""Above one function; a ring of ``__wrapped__`` would have no end."""


_OPTIONS: Final = {
    "stage": ("key", "transaction_id", "carrier", "queued_at", "capture", "tracker"),
    "transaction": (*_IDS, "transaction_id", "carrier", "capture", "tracker"),
}
_ELSEWHERE: Final = {
    "stage": {**{name: f"write transaction({name}=…)" for name in _IDS},
              "pipeline": "write transaction(pipeline)"},
    "transaction": {"key": "it belongs to stage()", "queued_at": "it belongs to stage()",
                    "pipeline": "write it in front: transaction(voice, user_id=…)"},
}  # fmt: skip
"""What is no option of the one, and what to say of it."""


@lru_cache(maxsize=1024)
def _near_miss(kind: str, names: tuple[str, ...]) -> str:
    """What to write instead where an attribute's name is a slip of an option; "" where none is."""
    options, elsewhere = _OPTIONS[kind], _ELSEWHERE[kind]
    for name in names:
        meant = _MEANT.get(name.lower(), name)
        if meant == name:
            near = difflib.get_close_matches(name, [*options, *elsewhere], n=1, cutoff=0.88)
            meant = near[0] if near else name
        if meant in elsewhere:
            return f"{kind}() has no option {name}=: {elsewhere[meant]}"
        if meant in options:
            return f"{kind}() has no option {name}=; did you mean {meant}=?"
    return ""


class _Argument:
    """Finds one argument of a call by its parameter's name, without binding the whole call."""

    __slots__ = ("_default", "_index", "_name")

    def __init__(self, signature: inspect.Signature, name: str) -> None:
        self._name = name
        self._index: int | None = None
        self._default: Any = None
        positional = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
        for index, parameter in enumerate(signature.parameters.values()):
            if parameter.name == name:
                if parameter.kind in positional:
                    self._index = index
                if parameter.default is not inspect.Parameter.empty:
                    self._default = parameter.default

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Its value; None where the call does not give it."""
        if self._name in kwargs:
            return kwargs[self._name]
        index = self._index
        return args[index] if index is not None and index < len(args) else self._default


class _Declared:
    """What `stage` and `transaction` have in common: options, and the two ways of use."""

    __slots__ = ("_attributes", "_capture", "_complaint", "_entered", "_tracker")

    _kind: str

    def __init__(
        self,
        capture: tuple[str, ...],
        tracker: DebugSystemTracker | None,
        attributes: dict[str, Any],
    ) -> None:
        self._capture = capture
        self._tracker = tracker
        self._attributes = attributes
        self._complaint = _near_miss(self._kind, tuple(attributes)) if attributes else ""
        self._entered: list[Frame] = []
        if tracker is not None:
            self._check_tracker(tracker)

    def _check_tracker(self, tracker: object) -> None:
        if not isinstance(tracker, DebugSystemTracker):
            self._tracker = None
            self._complaint = (
                f"{self._kind}(tracker=…) got {_shown(tracker)}; give a DebugSystemTracker, or "
                "leave it out for the shared one"
            )

    @property
    def _frames(self) -> Frames:
        return (self._tracker or get_debug_tracker()).frames

    def _captured(
        self, arguments: Mapping[str, _Argument], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Mapping[str, Any]:
        if not self._capture:
            return self._attributes
        values = {name: arguments[name].of(args, kwargs) for name in self._capture}
        return {**self._attributes, **values}

    # --- as a decorator -------------------------------------------------------------------------
    def _decorate(self, target: F, remake: Any) -> F:
        problem = self._complaint or _no_function(target, self._kind)
        if problem:
            raise TypeError(problem)
        signature = _signature_of(target)
        needed = (*self._capture, *self._parameters())
        if signature is not None:
            for name in needed:
                self._check_parameter(name, signature, target)
        arguments = {
            name: _Argument(signature or inspect.Signature(), name)
            for name in (*needed, *self._implicit(signature))
        }
        made = wrap(target, self._begin_for(arguments), remake)
        setattr(_function_in(made), _DECLARED, (self._kind, self._label()))
        return made  # type: ignore[no-any-return]

    def _check_parameter(self, name: str, signature: inspect.Signature, target: object) -> None:
        kinds = {p.kind for p in signature.parameters.values()}
        if name in signature.parameters or inspect.Parameter.VAR_KEYWORD in kinds:
            return
        raise TypeError(
            f"@{self._kind}: {name_of(target)}() has no parameter {name!r}; it has "
            f"{', '.join(signature.parameters) or 'none'}. In a decorator, capture= and "
            "options that hold a value of the call name a parameter"
        )

    def _label(self) -> str:
        """The stage's name, or the pipeline's. Each of the two has its own."""
        raise NotImplementedError

    def _parameters(self) -> tuple[str, ...]:
        """The parameters that options name. Each of the two says which of its own do."""
        raise NotImplementedError

    def _implicit(self, signature: inspect.Signature | None) -> tuple[str, ...]:
        """Parameters that are taken where a function has them."""
        return ()

    def _begin_for(
        self, arguments: Mapping[str, _Argument]
    ) -> Callable[[tuple[Any, ...], dict[str, Any]], Frame]:
        """What begins the frame of a call. Each of the two has its own."""
        raise NotImplementedError

    # --- as a context manager -------------------------------------------------------------------

    def _complain(self, frames: Frames) -> None:
        complaint = self._complaint or (
            f"{self._kind}(capture=…) is for a decorated function; here write {self._kind}(…, "
            "name=value)"
        )
        frames.diagnostics.warn(f"{self._kind}_options", "%s", complaint)

    def _exit(self, error: BaseException | None) -> None:
        """Leaves what was entered: of several (it may be used by many tasks), the current one."""
        entered = self._entered
        here = self._frames.current()
        frame = None if here is None else here.is_within(self)
        try:
            if frame is None:
                frame = entered.pop()
            else:
                entered.remove(frame)
        except (IndexError, ValueError):
            pass  # another thread was faster
        if frame is not None:
            frame.leave(error)


class Stage(_Declared):
    """What ``stage(…)`` gives: put it on a function, or use it in a ``with`` or ``async with``."""

    __slots__ = ("_carrier", "_key", "_name", "_queued_at", "_transaction_id")

    _kind = "stage"

    def __init__(
        self,
        name: object,
        key: object,
        transaction_id: object,
        carrier: object,
        queued_at: object,
        capture: tuple[str, ...],
        tracker: DebugSystemTracker | None,
        attributes: dict[str, Any],
    ) -> None:
        # Not by super(): a `with` in a loop makes one each time.
        self._capture = capture
        self._tracker = tracker
        self._attributes = attributes
        self._complaint = _near_miss("stage", tuple(attributes)) if attributes else ""
        self._entered = []
        self._key = key
        self._transaction_id = transaction_id
        self._carrier = carrier
        self._queued_at = queued_at
        if tracker is not None:
            self._check_tracker(tracker)
        self._name = "" if name is None else _stage_named(name)
        if name is not None and not self._name:
            self._complaint = (
                f'stage({_shown(name)}) is no name of a stage; write @stage("memory"), with at '
                f"most {MAX_STAGE_NAME} plain characters"
            )

    def __call__(self, function: F, /) -> F:
        """Each call of `function` is an attempt at the stage.

        Raises:
            TypeError: it is no function, or an option names no parameter of it.
        """
        name = self._name
        if not name and not self._complaint:
            name = name_of(function).strip("_<>")[:MAX_STAGE_NAME] or "stage"
        options = (
            self._key, self._transaction_id, self._carrier, self._queued_at, self._capture,
            self._tracker, self._attributes,
        )  # fmt: skip
        if name != self._name and not self._complaint:
            return Stage(name, *options)(function)
        return self._decorate(function, (_remake_stage, (name, options, function)))

    def _label(self) -> str:
        return self._name

    def _parameters(self) -> tuple[str, ...]:
        named = (self._key, self._transaction_id, self._carrier, self._queued_at)
        for value in named:
            if value is not None and not isinstance(value, str):
                raise TypeError(
                    f"@stage: {_shown(value)} is a value; in a decorator, options that hold a "
                    'value of the call name the parameter: @stage("memory", key="item")'
                )
        return tuple(value for value in named if isinstance(value, str))

    def _begin_for(
        self, arguments: Mapping[str, _Argument]
    ) -> Callable[[tuple[Any, ...], dict[str, Any]], Frame]:
        name = self._name
        if not arguments:
            attributes, tracker = self._attributes, self._tracker
            cleaned_by: Privacy | None = None
            cleaned: Cleaned | None = None

            def begin(*_: object) -> Frame:
                nonlocal cleaned_by, cleaned
                frames = (tracker or get_debug_tracker()).frames
                if attributes and frames.recorder.privacy is not cleaned_by:
                    cleaned_by = frames.recorder.privacy
                    cleaned = cleaned_by.both(attributes)
                return frames.begin_stage(name, attributes, cleaned=cleaned)

            return begin

        def argument(option: object) -> Callable[[tuple[Any, ...], dict[str, Any]], Any] | None:
            return arguments[option].of if isinstance(option, str) else None

        key, queued_at = argument(self._key), argument(self._queued_at)
        transaction_id, carrier = argument(self._transaction_id), argument(self._carrier)

        def begin_with(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Frame:
            return self._frames.begin_stage(
                name,
                self._captured(arguments, args, kwargs),
                key and key(args, kwargs),
                transaction_id and transaction_id(args, kwargs),
                carrier and carrier(args, kwargs),
                queued_at and queued_at(args, kwargs),
            )

        return begin_with

    def __enter__(self) -> ActiveStage:
        frames = (self._tracker or get_debug_tracker()).frames
        if self._complaint or self._capture:
            self._complain(frames)
        frame = frames.begin_stage(
            self._name or "stage",
            self._attributes,
            self._key,
            self._transaction_id,
            self._carrier,
            self._queued_at,
        )
        frame.declared = self
        frame.attach()
        self._entered.append(frame)
        return frame

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit(error)

    async def __aenter__(self) -> ActiveStage:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit(error)


class TransactionOf(_Declared):
    """What ``transaction(…)`` gives: put it on an entry function, or use it in a ``with``."""

    __slots__ = ("_carrier", "_ids", "_pipeline", "_transaction_id")

    _kind = "transaction"

    def __init__(
        self,
        pipeline: Pipeline | str | None,
        *,
        ids: Mapping[str, object],
        transaction_id: object,
        carrier: object,
        capture: tuple[str, ...],
        tracker: DebugSystemTracker | None,
        attributes: dict[str, Any],
    ) -> None:
        _Declared.__init__(self, capture, tracker, attributes)
        self._ids = {name: value for name, value in ids.items() if value is not None}
        self._transaction_id = transaction_id
        self._carrier = carrier
        self._pipeline: Pipeline | str = NO_PIPELINE if pipeline is None else pipeline
        if isinstance(pipeline, str):
            try:
                Pipeline(pipeline)
            except ValueError as error:
                self._complaint, self._pipeline = str(error), NO_PIPELINE
        elif not isinstance(self._pipeline, Pipeline):
            self._complaint = (
                f'transaction({_shown(pipeline)}) is no pipeline; write transaction("voice"), or '
                "give what otel_tracker.pipeline(…) returned"
            )
            self._pipeline = NO_PIPELINE

    def __call__(self, function: F, /) -> F:
        """Each call of `function` is a transaction.

        Raises:
            TypeError: it is no function, or an option names no parameter of it.
        """
        options = {
            "ids": self._ids, "transaction_id": self._transaction_id, "carrier": self._carrier,
            "capture": self._capture, "tracker": self._tracker,
        }  # fmt: skip
        remake = (_remake_transaction, (self._pipeline, options, self._attributes, function))
        return self._decorate(function, remake)

    def _label(self) -> str:
        pipeline = self._pipeline
        return pipeline if isinstance(pipeline, str) else pipeline.name

    def _parameters(self) -> tuple[str, ...]:
        named = (*self._ids.values(), self._transaction_id, self._carrier)
        for value in named:
            if value is not None and not isinstance(value, str):
                raise TypeError(
                    f"@transaction: {_shown(value)} is a value; in a decorator, ids name the "
                    'parameter that holds them: @transaction(user_id="owner")'
                )
        return tuple(value for value in named if isinstance(value, str))

    def _implicit(self, signature: inspect.Signature | None) -> tuple[str, ...]:
        if signature is None:
            return ()
        return tuple(n for n in _IDS if n in signature.parameters and n not in self._ids)

    def _begin_for(
        self, arguments: Mapping[str, _Argument]
    ) -> Callable[[tuple[Any, ...], dict[str, Any]], Frame]:
        ids = {name: arguments[str(value)].of for name, value in self._ids.items()}
        ids.update({n: arguments[n].of for n in _IDS if n in arguments and n not in ids})

        def argument(option: object) -> Callable[[tuple[Any, ...], dict[str, Any]], Any] | None:
            return arguments[option].of if isinstance(option, str) else None

        transaction_id, carrier = argument(self._transaction_id), argument(self._carrier)

        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Frame:
            return self._begin(
                {name: of(args, kwargs) for name, of in ids.items()},
                self._captured(arguments, args, kwargs),
                transaction_id and transaction_id(args, kwargs),
                carrier and carrier(args, kwargs),
            )

        return begin

    def _begin(
        self,
        ids: Mapping[str, object],
        attributes: Mapping[str, Any],
        transaction_id: object,
        carrier: object,
    ) -> ActiveTransaction:
        who = Who(**{name: id_text(value) for name, value in ids.items()})
        return self._frames.begin_transaction(
            self._pipeline, who, attributes, transaction_id=transaction_id, carrier=carrier
        )

    def __enter__(self) -> ActiveTransaction:
        if self._complaint or self._capture:
            self._complain(self._frames)
        frame = self._begin(self._ids, self._attributes, self._transaction_id, self._carrier)
        frame.declared = self
        frame.attach()
        self._entered.append(frame)
        return frame

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit(error)

    async def __aenter__(self) -> ActiveTransaction:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit(error)


def _function_in(target: Any) -> Any:
    """The function that a method holds; anything else as it is."""
    return target.__func__ if isinstance(target, _METHODS) else target


def declared_on(function: Any) -> set[tuple[str, str]]:
    """What `stage` and `transaction` made of it: ``{("stage", "memory")}``.

    Also found below the decorators of others that keep ``__wrapped__``, as `functools.wraps` does.
    """
    found: set[tuple[str, str]] = set()
    for _ in range(_MOST_DECORATORS):
        # Its dictionary: some objects answer to any name.
        names = getattr(_function_in(function), "__dict__", {})
        if _DECLARED in names:
            found.add(names[_DECLARED])
        if "__wrapped__" not in names:
            break
        function = names["__wrapped__"]
    return found


def _shown(value: object) -> str:
    """A wrong argument as it may be shown: a `repr` may raise, run long or tell secrets."""
    if isinstance(value, str | int | float):
        return repr(value)[:80]
    return f"<{getattr(value, '__name__', type(value).__name__)}>"


def _no_function(target: object, kind: str) -> str:
    """What to write instead where `target` is nothing that can be decorated; "" where it is."""
    if isinstance(target, type):
        return (
            f"@{kind} is for functions, and {target.__name__} is a class; decorate its methods, or "
            "__init__, or the function that makes it"
        )
    if isinstance(target, property):
        return f"@{kind} is for functions; put it under @property, next to the function"
    if isinstance(target, classmethod | staticmethod) or callable(target):
        return ""
    if hasattr(target, "__get__"):
        return (
            f"@{kind} is for functions; put it under @{type(target).__name__}, next to the function"
        )
    return (
        f'@{kind} is for functions, and {_shown(target)} is none; write @{kind}("name") above a '
        f"function, or with {kind}(…):"
    )


def _signature_of(target: Any) -> inspect.Signature | None:
    target = _function_in(target)
    if hasattr(target, "func") and hasattr(target, "keywords"):
        target = target.func  # a partial: what it binds comes along in the call
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None  # a built-in function may not tell


def _remake_stage(name: str, options: Any, target: Any) -> Any:
    return Stage(name, *options)(target)


def _remake_transaction(
    pipeline: Pipeline | str, options: Any, attributes: dict[str, Any], target: Any
) -> Any:
    return TransactionOf(pipeline, **options, attributes=attributes)(target)


@overload
def stage(function: F, /) -> F: ...
@overload
def stage(
    name: AnyEvent | str | None = None,
    /,
    *,
    key: object = None,
    transaction_id: object = None,
    carrier: object = None,
    queued_at: object = None,
    capture: Iterable[str] | str = (),
    tracker: DebugSystemTracker | None = None,
    **attributes: Any,
) -> Stage: ...
def stage(
    name: object = None,
    /,
    *,
    key: object = None,
    transaction_id: object = None,
    carrier: object = None,
    queued_at: object = None,
    capture: Iterable[str] | str = (),
    tracker: DebugSystemTracker | None = None,
    **attributes: Any,
) -> Any:
    """An attempt at a stage, as a decorator or in a ``with`` or ``async with``.

    ``@stage("memory")`` above a function, ``with stage("memory") as s`` around a block. It
    belongs to the transaction that the code runs in; outside any, to one of its own. It fails with
    the exception that leaves it. Arguments and results are not looked at.

    In a decorator, `key`, `transaction_id`, `carrier` and `queued_at` name the parameter that holds
    the value; in a ``with`` they are the value.

    Args:
        name: the stage's name, or an event of it; ``@stage`` alone takes the function's.
        key: tells branches of a fan-out apart, each with attempts of its own.
        transaction_id: continues this transaction, begun anywhere.
        carrier: the same, by what `ActiveTransaction.carrier` gave.
        queued_at: when it was put into a queue: a datetime, or seconds since the epoch.
        capture: parameters of the decorated function whose values may be attributes.
        tracker: another tracker than the shared one.
        **attributes: of the attempt; what may leave the process is in docs/privacy.md.

    Raises:
        TypeError: at decoration; the message says what to write instead.
    """
    if capture:
        capture = _names(capture)
    declared = Stage(
        name if type(name) is str or not _is_target(name) else None,
        key, transaction_id, carrier, queued_at, capture, tracker, attributes,  # type: ignore[arg-type]
    )  # fmt: skip
    if type(name) is str or not _is_target(name):
        return declared
    return declared(name)  # type: ignore[type-var]


@overload
def transaction(function: F, /) -> F: ...
@overload
def transaction(
    pipeline: Pipeline | str | None = None,
    /,
    *,
    user_id: object = None,
    client_id: object = None,
    conversation_id: object = None,
    transaction_id: object = None,
    carrier: object = None,
    capture: Iterable[str] | str = (),
    tracker: DebugSystemTracker | None = None,
    **attributes: Any,
) -> TransactionOf: ...
def transaction(
    pipeline: object = None,
    /,
    *,
    user_id: object = None,
    client_id: object = None,
    conversation_id: object = None,
    transaction_id: object = None,
    carrier: object = None,
    capture: Iterable[str] | str = (),
    tracker: DebugSystemTracker | None = None,
    **attributes: Any,
) -> Any:
    """A run of a pipeline, as a decorator or in a ``with`` or ``async with``.

    ``with transaction(user_id=user) as tx`` around a block, ``@transaction`` above a function,
    which takes the ids from its parameters of those names. Leaving the block is the end, and an
    exception that leaves it a failure, unless work was queued or handed over. With a declared
    pipeline it is the end only if its last stage was attempted.

    In a decorator, `user_id`, `client_id`, `conversation_id`, `transaction_id` and `carrier` name
    the parameter that holds the value; in a ``with`` they are the value.

    Args:
        pipeline: what `pipeline()` returned, or a name for the root span.
        user_id: whose it is.
        client_id: from which client.
        conversation_id: joins transactions into one recording.
        transaction_id: continues this one, begun anywhere; leaving the block is not its end.
        carrier: the same, by what `ActiveTransaction.carrier` gave.
        capture: parameters of the decorated function whose values may be attributes.
        tracker: another tracker than the shared one.
        **attributes: of the root span.

    Raises:
        TypeError: at decoration; the message says what to write instead.
    """
    options: dict[str, Any] = {
        "ids": {"user_id": user_id, "client_id": client_id, "conversation_id": conversation_id},
        "transaction_id": transaction_id, "carrier": carrier, "capture": _names(capture),
        "tracker": tracker, "attributes": attributes,
    }  # fmt: skip
    if _is_target(pipeline):
        return TransactionOf(None, **options)(pipeline)  # type: ignore[type-var]
    return TransactionOf(pipeline, **options)  # type: ignore[arg-type]


def _names(capture: Any) -> tuple[str, ...]:
    """Parameters' names; what is none stays in, for the check where a function is decorated."""
    if isinstance(capture, str):
        return (capture,)
    return tuple(capture) if isinstance(capture, Iterable) else (capture,)


def _stage_named(name: object) -> str:
    """The stage that is meant; "" where it is none."""
    try:
        return _known_stage(name)
    except TypeError:  # nothing that hashes is a name
        return ""


@lru_cache(maxsize=1024)
def _known_stage(name: object) -> str:
    return parse_stage(name) or ""


def _is_target(given: object) -> bool:
    """Whether it is what a bare decorator is put on."""
    return callable(given) or isinstance(given, classmethod | staticmethod | property)


def current_transaction() -> ActiveTransaction:
    """The transaction that the caller runs in. Outside any it is false, and does nothing."""
    return get_debug_tracker().frames.current_transaction()


def current_stage() -> ActiveStage:
    """The innermost stage that the caller runs in. Outside any it is false, and does nothing."""
    return get_debug_tracker().frames.current_stage()
