"""Runs any kind of callable within a frame: the one place that knows how each kind is called.

A frame is begun when the callable's own code begins, attached while that runs, and left with the
exception that leaves it. What the caller sees is what it would have seen without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import types
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Final, Protocol


class Attachable(Protocol):
    """What a callable runs in. None of this may raise."""

    def attach(self) -> None:
        """Makes it current."""
        ...

    def detach(self) -> None:
        """Makes current what was before."""
        ...

    def pulse(self) -> None:
        """Work goes on."""
        ...

    def leave(self, error: BaseException | None) -> None:
        """Detaches where it is attached, and ends it."""
        ...


Begin = Callable[[tuple[Any, ...], dict[str, Any]], Attachable]
"""Begins a frame for a call with these arguments, not attached yet. Must not raise."""


def _nothing() -> Any:
    return None


_MANAGER_CODE: Final = contextlib.contextmanager(_nothing).__code__
_ASYNC_MANAGER_CODE: Final = contextlib.asynccontextmanager(_nothing).__code__


def wrap_function(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """`function`, of whatever kind, as one of the same kind, each of whose runs is a frame."""
    code = getattr(function, "__code__", None)
    if code is _MANAGER_CODE or code is _ASYNC_MANAGER_CODE:
        make = _manager if code is _MANAGER_CODE else _async_manager
    elif inspect.isasyncgenfunction(function):
        make = _async_generator
    elif inspect.iscoroutinefunction(function):
        make = _coroutine
    elif inspect.isgeneratorfunction(function):
        make = _generator
    else:
        make = _plain
    wrapped = make(function, begin)
    functools.update_wrapper(wrapped, function)
    flags = getattr(code, "co_flags", 0)
    return types.coroutine(wrapped) if flags & inspect.CO_ITERABLE_COROUTINE else wrapped


def _plain(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        frame = begin(args, kwargs)
        frame.attach()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            frame.leave(error)
            raise
        if type(result) is types.CoroutineType:
            # A plain function in front of a coroutine, as other decorators leave one.
            frame.detach()
            return _awaiting(frame, result)
        frame.leave(None)
        return result

    return call


async def _await(frame: Attachable, coroutine: Coroutine[Any, Any, Any], key: object) -> Any:
    _UNBEGUN.pop(key, None)
    frame.attach()
    try:
        result = await coroutine
    except BaseException as error:
        frame.leave(error)
        raise
    frame.leave(None)
    return result


_UNBEGUN: Final[dict[object, weakref.ref[Any]]] = {}
"""Coroutines that were returned and have not begun yet."""


def _awaiting(frame: Attachable, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """`coroutine`, within `frame` and under its own name."""
    key = object()
    made = _await(frame, coroutine, key)
    made.__name__, made.__qualname__ = coroutine.__name__, coroutine.__qualname__  # type: ignore[attr-defined]

    def gone(_: object) -> None:
        if _UNBEGUN.pop(key, None) is not None:  # closed or let go before it began
            coroutine.close()
            frame.leave(asyncio.CancelledError())

    _UNBEGUN[key] = weakref.ref(made, gone)
    return made


def _coroutine(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        frame = begin(args, kwargs)
        frame.attach()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            frame.leave(error)
            raise
        frame.leave(None)
        return result

    return call


class _Ended:
    """Stands for a frame that was left before its generator had ended."""

    def attach(self) -> None:
        """Nothing."""

    detach = pulse = attach

    def leave(self, error: BaseException | None) -> None:
        """Nothing."""


_IGNORED: Final = "generator ignored GeneratorExit"


def _generator(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        frame = begin(args, kwargs)
        try:
            generator = function(*args, **kwargs)
        except BaseException as error:
            frame.leave(error)
            raise
        resume, value = generator.send, None
        while True:
            frame.attach()  # never across the yield below: the consumer is no part of it
            try:
                items = [resume(value)]
            except StopIteration as stop:
                frame.leave(None)
                return stop.value
            except BaseException as error:
                value = None  # it may be this very exception: no circle
                frame.leave(error)
                raise
            frame.detach()
            frame.pulse()
            if type(value) is GeneratorExit:
                # It is not closed, and Python says so to whoever closed it.
                frame.leave(RuntimeError(_IGNORED))
                frame = _Ended()
            value = None  # while it is suspended nothing is held that the consumer lets go
            try:
                value = yield items.pop()
                resume = generator.send
            except BaseException as thrown:
                # As it came: without this frame at its innermost end.
                thrown.__traceback__ = _behind(thrown)
                resume, value = generator.throw, thrown

    return call


def _behind(error: BaseException) -> types.TracebackType | None:
    return None if error.__traceback__ is None else error.__traceback__.tb_next


def _async_generator(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        frame = begin(args, kwargs)
        try:
            generator = function(*args, **kwargs)
            # The event loop closes this one, which closes that one: not both at once.
            hooks = sys.get_asyncgen_hooks()
            sys.set_asyncgen_hooks(None, None)
            try:
                awaited = generator.asend(None)
            finally:
                sys.set_asyncgen_hooks(*hooks)
        except BaseException as error:
            frame.leave(error)
            raise
        value: Any = None
        while True:
            frame.attach()
            try:
                items = [await awaited]
            except StopAsyncIteration:
                frame.leave(None)
                return
            except BaseException as error:
                value = awaited = None
                frame.leave(error)
                raise
            frame.detach()
            frame.pulse()
            if type(value) is GeneratorExit:
                frame.leave(RuntimeError("async " + _IGNORED))
                frame = _Ended()
            value = awaited = None
            try:
                awaited = generator.asend((yield items.pop()))
            except BaseException as thrown:
                thrown.__traceback__ = _behind(thrown)
                value = thrown
            if value is not None:
                awaited = generator.athrow(value)

    return call


def _manager(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @contextlib.contextmanager
    def call(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        frame = begin(args, kwargs)
        frame.attach()  # across the yield: the block of the `with` is a part of it
        try:
            with function(*args, **kwargs) as value:
                yield value
        except BaseException as error:
            frame.leave(error)
            raise
        frame.leave(None)

    return call


def _async_manager(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @contextlib.asynccontextmanager
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        frame = begin(args, kwargs)
        frame.attach()
        try:
            async with function(*args, **kwargs) as value:
                yield value
        except BaseException as error:
            frame.leave(error)
            raise
        frame.leave(None)

    return call


# --- callables that are no functions ------------------------------------------------------------


class WrappedPartial(functools.partial):  # type: ignore[type-arg]
    """A `functools.partial` whose function is wrapped; still a partial to `inspect`."""

    _remake: Any

    def __reduce__(self) -> Any:
        return self._remake


class WrappedCallable:
    """An object with ``__call__`` (or a cached or built-in function), its other attributes kept."""

    def __init__(self, inner: Any, remake: Any) -> None:
        functools.update_wrapper(self, inner, updated=())
        self._inner = inner
        self._remake = remake

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the object. `wrap` puts one of the object's own kind in its place."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name in ("_inner", "_remake"):  # not made yet: it is being copied
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __repr__(self) -> str:
        return f"<wrapped {self._inner!r}>"

    def __reduce__(self) -> Any:
        name = getattr(self, "__qualname__", None)
        if isinstance(name, str) and _found(self.__module__, name) is self:
            return name  # as a cached function does, which is found by its name
        return self._remake


class WrappedDescriptor(WrappedCallable):
    """One that binds to an instance, as a cached function in a class does."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def wrap(target: Any, begin: Begin, remake: Any) -> Any:
    """Any callable, wrapped, of the kind that it was.

    Args:
        target: a function, a class or static method, a partial, or an object with ``__call__``.
        begin: begins a frame for each call.
        remake: what ``__reduce__`` of an object gives, since only functions pickle by their name.
    """
    if isinstance(target, classmethod | staticmethod):
        return type(target)(wrap(target.__func__, begin, remake))
    if isinstance(target, functools.partial):
        partial = WrappedPartial(wrap_function(target.func, begin), *target.args, **target.keywords)
        partial._remake = remake
        partial.__dict__.update({"__name__": name_of(target), **target.__dict__})
        return partial
    if isinstance(target, types.MethodType):
        return types.MethodType(wrap_function(target.__func__, begin), target.__self__)
    if isinstance(target, types.FunctionType) or inspect.iscoroutinefunction(target):
        return wrap_function(target, begin)
    call = _unbound(target)
    kind = WrappedDescriptor if hasattr(type(target), "__get__") else WrappedCallable
    made: type[WrappedCallable] = type(
        # Its `__call__` is a function of the kind that the object's is: frameworks look at it.
        kind.__name__, (kind,), {"__call__": staticmethod(wrap_function(call, begin))},
    )  # fmt: skip
    return made(target, remake)


def _unbound(target: Any) -> Callable[..., Any]:
    """What to call for an object: its ``__call__``, whose kind is the object's."""
    own = inspect.getattr_static(type(target), "__call__", None)
    call: Callable[..., Any] = target.__call__ if isinstance(own, types.FunctionType) else target
    return call


def name_of(target: Any) -> str:
    """The name of a callable: a function's, or its class's where it has none."""
    while isinstance(target, functools.partial):
        target = target.func
    if isinstance(target, classmethod | staticmethod):
        target = target.__func__
    name = getattr(target, "__name__", None)
    return name if isinstance(name, str) else type(target).__name__
