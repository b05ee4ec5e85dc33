"""Runs any kind of callable within a frame: the one place that knows how each kind is called.

A frame is begun when the callable's own code begins, attached while that runs, and left with the
exception that leaves it. What the caller sees is what it would have seen without it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
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
            return _await(frame, result)
        frame.leave(None)
        return result

    return call


async def _await(frame: Attachable, coroutine: Coroutine[Any, Any, Any]) -> Any:
    frame.attach()
    try:
        result = await coroutine
    except BaseException as error:
        frame.leave(error)
        raise
    frame.leave(None)
    return result


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
                item = resume(value)
            except StopIteration as stop:
                frame.leave(None)
                return stop.value
            except BaseException as error:
                value = None  # it may be this very exception: no circle
                frame.leave(error)
                raise
            frame.detach()
            try:
                value = yield item
                resume = generator.send
            except GeneratorExit as closed:
                frame.attach()
                try:
                    generator.close()
                except BaseException as error:
                    frame.leave(error)
                    raise
                frame.leave(closed)
                raise
            except BaseException as thrown:
                resume, value = generator.throw, thrown

    return call


def _async_generator(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        frame = begin(args, kwargs)
        try:
            generator = function(*args, **kwargs)
        except BaseException as error:
            frame.leave(error)
            raise
        resume, value = generator.asend, None
        while True:
            frame.attach()
            try:
                item = await resume(value)
            except StopAsyncIteration:
                frame.leave(None)
                return
            except BaseException as error:
                value = None
                frame.leave(error)
                raise
            frame.detach()
            try:
                value = yield item
                resume = generator.asend
            except GeneratorExit as closed:
                frame.attach()
                try:
                    await generator.aclose()
                except BaseException as error:
                    frame.leave(error)
                    raise
                frame.leave(closed)
                raise
            except BaseException as thrown:
                resume, value = generator.athrow, thrown

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

    def __init__(self, inner: Any, call: Callable[..., Any], remake: Any) -> None:
        functools.update_wrapper(self, inner, updated=())
        self._inner = inner
        self._call = call
        self._remake = remake

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the object."""
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_inner", "_call", "_remake"):  # not made yet: it is being copied
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None or not hasattr(type(self._inner), "__get__"):
            return self
        return types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<wrapped {self._inner!r}>"

    def __reduce__(self) -> Any:
        return self._remake


class WrappedAsyncCallable(WrappedCallable):
    """The same for an ``async def __call__``, by which frameworks tell what to await."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the object."""
        return await self._call(*args, **kwargs)


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
    if isinstance(target, types.FunctionType) or inspect.iscoroutinefunction(target):
        return wrap_function(target, begin)
    if isinstance(target, types.MethodType):
        return types.MethodType(wrap_function(target.__func__, begin), target.__self__)
    call = _unbound(target)
    kind = WrappedAsyncCallable if inspect.iscoroutinefunction(call) else WrappedCallable
    return kind(target, wrap_function(call, begin), remake)


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
