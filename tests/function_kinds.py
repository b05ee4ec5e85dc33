"""Every kind of function as tables, how each is run, and module-level functions that pickle."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import gc
import inspect
import json
import multiprocessing
import operator
import os
import subprocess
import sys
import textwrap
import traceback
import types
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from opentelemetry import context as context_api

from otel_tracker import get_debug_tracker, stage, transaction

ROOT: Final = Path(__file__).resolve().parents[1]

Act = Callable[[], Any]
"""What the body of a function comes to: it returns a value or raises."""
Decorate = Callable[[Any], Any]
Around = Callable[[], Any]
"""Makes a context manager, sync and async, for a `with` within the body."""


def as_it_is(function: Any) -> Any:
    """Decorates with nothing."""
    return function


# --- functions of every flavour ------------------------------------------------------------------
# Each takes what any container passes (self, cls, bound arguments), and nothing of it matters.


def plain(act: Act, around: Around) -> Callable[..., Any]:
    def work(*_: object) -> Any:
        "Works."
        with around():
            return act()

    return work


def coroutine(act: Act, around: Around) -> Callable[..., Any]:
    async def work(*_: object) -> Any:
        "Works."
        async with around():
            await asyncio.sleep(0)
            return act()

    return work


def old_coroutine(act: Act, around: Around) -> Callable[..., Any]:
    @types.coroutine
    def work(*_: object) -> Generator[Any, Any, Any]:
        "Works."
        with around():
            yield  # to the event loop
            return act()

    return work


def generator(act: Act, around: Around) -> Callable[..., Any]:
    def work(*_: object) -> Generator[Any, Any, Any]:
        "Works."
        with around():
            yield "first"
            yield act()
            return "the end"

    return work


def async_generator(act: Act, around: Around) -> Callable[..., Any]:
    async def work(*_: object) -> AsyncIterator[Any]:
        "Works."
        async with around():
            await asyncio.sleep(0)
            yield "first"
            await asyncio.sleep(0)
            yield act()

    return work


def manager(act: Act, around: Around) -> Callable[..., Any]:
    return contextlib.contextmanager(_manager_body(act, around))


def async_manager(act: Act, around: Around) -> Callable[..., Any]:
    return contextlib.asynccontextmanager(_async_manager_body(act, around))


def _manager_body(act: Act, around: Around) -> Callable[..., Any]:
    def work(*_: object) -> Iterator[Any]:
        "Works."
        with around():
            yield "entered"
            act()

    return work


def _async_manager_body(act: Act, around: Around) -> Callable[..., Any]:
    async def work(*_: object) -> AsyncIterator[Any]:
        "Works."
        async with around():
            await asyncio.sleep(0)
            yield "entered"
            await asyncio.sleep(0)
            act()

    return work


# --- what a function may stand in ----------------------------------------------------------------


def _held(attribute: Any) -> Any:
    return type("Holder", (), {"call": attribute})()


def _abstract(decorate: Decorate, function: Any) -> Callable[[], Any]:
    base = abc.ABCMeta("Base", (), {"call": decorate(abc.abstractmethod(function))})

    def _call_base(self: Any) -> Any:
        return base.call(self)  # type: ignore[attr-defined]

    child = type(base)("Child", (base,), {"call": _call_base})
    return child().call  # type: ignore[no-any-return]


def _abstract_inside(decorate: Decorate, function: Any) -> Callable[[], Any]:
    return _abstract(as_it_is, decorate(function))


def _forwarding(function: Any) -> Any:
    @functools.wraps(function)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return forward


Container = Callable[[Decorate, Any], Callable[[], Any]]
"""Puts a decorated function somewhere, and gives what a caller calls, without arguments."""

CONTAINERS: Final[dict[str, Container]] = {
    "function": lambda d, f: d(f),
    "method": lambda d, f: _held(d(f)).call,
    "class method, above": lambda d, f: _held(d(classmethod(f))).call,
    "class method, below": lambda d, f: _held(classmethod(d(f))).call,
    "static method, above": lambda d, f: _held(d(staticmethod(f))).call,
    "static method, below": lambda d, f: _held(staticmethod(d(f))).call,
    "partial": lambda d, f: d(functools.partial(f, 1)),
    "partial of it": lambda d, f: functools.partial(d(f), 1),
    "partial method": lambda d, f: _held(functools.partialmethod(d(f), 1)).call,
    "object": lambda d, f: d(type("Callable", (), {"__call__": f})()),
    "object's __call__": lambda d, f: type("Callable", (), {"__call__": d(f)})(),
    "bound method": lambda d, f: d(_held(f).call),
    "abstract method, above": _abstract,
    "abstract method, below": _abstract_inside,
    "singledispatch of it": lambda d, f: functools.partial(functools.singledispatch(d(f)), 1),
}
"""For functions of every flavour."""

FORWARDED: Final[dict[str, Container]] = {
    "wrapped by another": lambda d, f: d(_forwarding(f)),
    "singledispatch": lambda d, f: functools.partial(d(functools.singledispatch(f)), 1),
    "partial of an object": lambda d, f: d(
        functools.partial(type("Callable", (), {"__call__": f})(), 1)
    ),
}
"""Plain functions in front of one: they are what the decorator sees."""

PLAIN_ONLY: Final[dict[str, Container]] = {
    "lru_cache, above": lambda d, f: d(functools.lru_cache(f)),
    "lru_cache, below": lambda d, f: functools.lru_cache(None)(d(f)),
    "lru_cache of a method": lambda d, f: _held(d(functools.lru_cache(f))).call,
    "lambda": lambda d, f: d(lambda: f()),  # noqa: PLW0108 -- it is what is tried
    "built-in": lambda d, f: functools.partial(d(operator.call), f),
    "property": lambda d, f: functools.partial(getattr, _held(property(d(f))), "call"),
}


@dataclass(frozen=True)
class Kind:
    """A kind of function, and where it stands."""

    flavour: str
    make: Callable[[Act, Around], Any]
    place: str
    container: Container

    @property
    def name(self) -> str:
        return f"{self.flavour}, {self.place}"

    def build(self, decorate: Decorate, act: Act, around: Around) -> Callable[[], Any]:
        """What a caller calls: `decorate` is put on, `around` is entered within."""
        return self.container(decorate, self.make(act, around))


FLAVOURS: Final[dict[str, Callable[[Act, Around], Any]]] = {
    "plain": plain,
    "coroutine": coroutine,
    "old coroutine": old_coroutine,
    "generator": generator,
    "async generator": async_generator,
    "manager": manager,
    "async manager": async_manager,
}


def _kinds() -> Iterator[Kind]:
    for flavour, make in FLAVOURS.items():
        places = dict(CONTAINERS)
        if flavour in ("plain", "coroutine"):
            places.update(FORWARDED)
        if flavour == "plain":
            places.update(PLAIN_ONLY)
        for place, container in places.items():
            yield Kind(flavour, make, place, container)
    yield Kind("manager", _manager_body, "below", lambda d, f: contextlib.contextmanager(d(f)))
    yield Kind(
        "async manager",
        _async_manager_body,
        "below",
        lambda d, f: contextlib.asynccontextmanager(d(f)),
    )


KINDS: Final = tuple(_kinds())
FUNCTIONS: Final = tuple(kind for kind in KINDS if kind.place in ("function", "below"))
"""One of each flavour."""


# --- running one, and what its caller sees --------------------------------------------------------


class Canary:
    """Something that is let go with whatever holds it."""


class Plant:
    """Raises an exception that is recognised, and of which it is known whether anything holds it.

    Args:
        make: makes the exception.
        chained: whether it is raised from another one, while that is handled.
    """

    def __init__(self, make: Callable[[], BaseException], *, chained: bool = True) -> None:
        self._make = make
        self._chained = chained
        self._error_id = 0
        self._held: list[weakref.ref[Canary]] = []

    def __call__(self) -> Any:
        canary = Canary()  # of this frame
        self._held.append(weakref.ref(canary))
        error = self._make()
        self._held.append(weakref.ref(mark := Canary()))
        error.canary = mark  # type: ignore[attr-defined]
        self._error_id = id(error)
        try:
            if self._chained:
                try:
                    raise LookupError("what came first")
                except LookupError as first:
                    raise error from first
            raise error
        finally:
            del error, mark

    def is_mine(self, error: BaseException | None) -> bool:
        """Whether it is the very exception."""
        return error is not None and id(error) == self._error_id

    @property
    def is_held(self) -> bool:
        """Whether something still holds the exception or the frame that raised it."""
        return any(ref() is not None for ref in self._held)


@dataclass
class Seen:
    """What a caller sees of one call."""

    value: Any = None
    error: str = ""
    chain: list[str] = field(default_factory=list)
    """The exceptions behind it: ``__cause__`` and ``__context__``, outermost first."""
    frames: list[str] = field(default_factory=list)
    """Of the traceback, without those of the tracker and of `contextlib`."""
    innermost: str = ""
    """The last frame of the traceback, whosever it is."""
    is_same: bool = True
    """The exception is the one that was raised."""
    contexts: list[str] = field(default_factory=list)
    """Where another OpenTelemetry context than the caller's was found."""

    def take(self, error: BaseException, act: Act) -> None:
        """Takes down all about the exception, without holding it."""
        if isinstance(act, Plant):
            self.is_same = act.is_mine(error)
        told = told_of(error)
        self.error, self.chain, self.frames, self.innermost = told

    def check(self, where: str, context: context_api.Context) -> None:
        """Notes if the current context is not `context`."""
        if context_api.get_current() is not context:
            self.contexts.append(where)


_HIDDEN: Final = (str(ROOT / "otel_tracker") + os.sep, contextlib.__file__, functools.__file__)


def told_of(error: BaseException) -> tuple[str, list[str], list[str], str]:
    """An exception, the chain behind it, its traceback's frames, and the innermost of them."""
    chain: list[str] = []
    behind: BaseException | None = error
    while behind is not None and len(chain) < 20:
        chain.append(
            f"{type(behind).__name__} cause={type(behind.__cause__).__name__} "
            f"context={type(behind.__context__).__name__} {behind.__suppress_context__}"
        )
        behind = behind.__cause__ or behind.__context__
    frames = [
        f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    shown = [
        name
        for name, (frame, _) in zip(frames, traceback.walk_tb(error.__traceback__), strict=True)
        if not frame.f_code.co_filename.startswith(_HIDDEN)
    ]
    return type(error).__name__, chain, shown, frames[-1] if frames else ""


def run(kind: Kind, call: Callable[[], Any], act: Act, *, leaks_while_suspended: bool) -> Seen:
    """Calls it as its callers do, to the end.

    Args:
        kind: what it is.
        call: calls it.
        act: what is in it.
        leaks_while_suspended: a `with` around a `yield`, as every context manager's, reaches the
            consumer until it is left; so the block of a manager is a part of it.
    """
    seen = Seen()
    before = context_api.get_current()
    if kind.flavour in ("plain", "generator", "manager"):
        try:
            seen.value = _RUN[kind.flavour](call, seen, before, leaks_while_suspended)
        except BaseException as error:
            seen.take(error, act)
    else:
        asyncio.run(_run_async(kind, call, act, seen, leaks_while_suspended))
    seen.check("the caller, after", before)
    return seen


def _run_plain(call: Callable[[], Any], *_: object) -> Any:
    return call()


def _run_generator(
    call: Callable[[], Any], seen: Seen, before: context_api.Context, leaks: bool
) -> Any:
    made = call()
    items = []
    seen.check("not begun", before)
    while True:
        try:
            items.append(next(made))
        except StopIteration as stop:
            return items, stop.value
        if not leaks:
            seen.check(f"suspended at {len(items)}", before)


def _run_manager(call: Callable[[], Any], seen: Seen, before: context_api.Context, _: bool) -> Any:
    made = call()
    seen.check("not entered", before)
    with made as entered:
        pass
    return entered


_RUN: Final[dict[str, Callable[..., Any]]] = {
    "plain": _run_plain, "generator": _run_generator, "manager": _run_manager,
}  # fmt: skip


async def _run_async(
    kind: Kind, call: Callable[[], Any], act: Act, seen: Seen, leaks: bool
) -> None:
    """Within a task: a sibling looks at its own context all the while."""
    before = context_api.get_current()
    done = asyncio.Event()

    async def sibling() -> None:
        while not done.is_set():
            seen.check("another task", before)
            await asyncio.sleep(0)

    other = asyncio.create_task(sibling())
    try:
        made = call()
        seen.check("not begun", before)
        if kind.flavour == "async generator":
            items = []
            async for item in made:
                items.append(item)
                if not leaks:
                    seen.check(f"suspended at {len(items)}", before)
            seen.value = items
        elif kind.flavour == "async manager":
            async with made as entered:
                pass
            seen.value = entered
        else:
            seen.value = await made
    except BaseException as error:
        seen.take(error, act)
    seen.check("the task, after", before)
    done.set()
    await other


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Nothing is freed by the garbage collector: what is, was held by no cycle."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# --- functions that pickle ------------------------------------------------------------------------


def _told(value: object) -> tuple[object, str, int]:
    """A value, with the process and the stages that are open in it: it ran within one."""
    stages = get_debug_tracker().get_dashboard_data()["stages"]
    running = ",".join(name for name, tally in stages.items() if tally["running"])
    return value, running, os.getpid()


@stage("double")
def double(number: int) -> Any:
    """Doubles."""
    return _told(2 * number)


@stage("double")
async def double_async(number: int) -> Any:
    """Doubles, asynchronously."""
    await asyncio.sleep(0)
    return _told(2 * number)


@stage("double")
def doubles(number: int) -> Iterator[Any]:
    """Doubles, as a generator."""
    yield _told(2 * number)


@stage("double")
@contextlib.contextmanager
def doubling(number: int) -> Iterator[Any]:
    """Doubles, as a context manager."""
    yield _told(2 * number)


@stage("double")
@functools.lru_cache
def double_cached(number: int) -> Any:
    """Doubles, once."""
    return _told(2 * number)


@transaction("doubling")
def double_whole(number: int) -> Any:
    """Doubles, as a transaction."""
    with stage("double"):
        return _told(2 * number)


class Arithmetic:
    """Methods that pickle by their qualified names."""

    @stage("double")
    @staticmethod
    def above(number: int) -> Any:
        """Doubles."""
        return _told(2 * number)

    @staticmethod
    @stage("double")
    def below(number: int) -> Any:
        """Doubles."""
        return _told(2 * number)

    @stage("double")
    @classmethod
    def of_class(cls, number: int) -> Any:
        """Doubles."""
        return _told(2 * number)

    @stage("double")
    def method(self, number: int) -> Any:
        """Doubles."""
        return _told(2 * number)


def multiply(factor: int, number: int, *, plus: int = 0) -> Any:
    """Multiplies."""
    return _told(factor * number + plus)


async def multiply_async(factor: int, number: int) -> Any:
    """Multiplies, asynchronously."""
    await asyncio.sleep(0)
    return _told(factor * number)


class Multiplier:
    """An object that is called, and that pickles by its state."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, number: int) -> Any:
        """Multiplies."""
        return _told(self.factor * number)

    def multiply(self, number: int) -> Any:
        """Multiplies, under another name."""
        return _told(self.factor * number)


class AsyncMultiplier(Multiplier):
    """The same with an ``async def __call__``."""

    async def __call__(self, number: int) -> Any:
        """Multiplies, asynchronously."""
        await asyncio.sleep(0)
        return _told(self.factor * number)


DOUBLERS: Final[dict[str, Any]] = {
    "function": double,
    "coroutine function": double_async,
    "generator function": doubles,
    "context manager": doubling,
    "cached function": double_cached,
    "transaction": double_whole,
    "static method, above": Arithmetic.above,
    "static method, below": Arithmetic.below,
    "class method": Arithmetic.of_class,
    "bound method of a decorated one": Arithmetic().method,
    "partial": stage("double")(functools.partial(multiply, 2, plus=0)),
    "partial of a coroutine function": stage("double")(functools.partial(multiply_async, 2)),
    "partial of a decorated one": functools.partial(double),
    "object": stage("double")(Multiplier(2)),
    "async object": stage("double")(AsyncMultiplier(2)),
    "partial, as a transaction": transaction("doubling")(
        functools.partial(stage("double")(Multiplier(2)))
    ),
}
"""Each doubles a number, within the stage `double`, in whatever process."""


def use(doubler: Any, number: int) -> Any:
    """Calls any of the doublers, as it is called; what it gave."""
    made = doubler(number)
    if inspect.iscoroutine(made):
        return asyncio.run(_awaited(made))
    if isinstance(made, types.GeneratorType):
        return next(made)
    if isinstance(made, AbstractContextManager):
        with made as entered:
            return entered
    return made


async def _awaited(made: Any) -> Any:
    return await made


def print_doubled_elsewhere(method: str) -> None:
    """Sends every doubler to a process that was started by `method`; prints what came back."""
    context = multiprocessing.get_context(method)
    told: dict[str, Any] = {}
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for name, doubler in DOUBLERS.items():
            try:
                told[name] = pool.submit(use, doubler, 21).result(30)
            except Exception as error:
                told[name] = [f"{type(error).__name__}: {error}", "", os.getpid()]
    print(json.dumps({"here": os.getpid(), "told": told}))  # noqa: T201 -- it is the result


# --- processes of their own -----------------------------------------------------------------------


def output_of(code: str, *, seconds: int = 30, is_watched: bool = True) -> Any:
    """The JSON that `code` prints as its last line; it dies with its stacks if it hangs.

    What forks is not watched: the watchdog's thread is not in the child, which would wait for it.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    watch = f"import faulthandler\nfaulthandler.dump_traceback_later({seconds}, exit=True)\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", watch * is_watched + textwrap.dedent(code)],
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=2 * seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
