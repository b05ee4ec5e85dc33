"""`stage` and `transaction` on every kind of function: the caller sees what it saw before.

Each kind runs undecorated too, and what its caller sees of both is compared: the value, the very
exception with its chain and traceback, and the OpenTelemetry context before, meanwhile and after.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import contextvars
import copy
import functools
import gc
import inspect
import logging
import pickle
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler

from otel_tracker import (
    DebugSystemTracker,
    TransactionStatus,
    current_stage,
    current_transaction,
    stage,
    transaction,
)
from otel_tracker.testing import Harness, fresh_tracker
from tests import function_kinds
from tests.function_kinds import (
    DOUBLERS,
    FUNCTIONS,
    KINDS,
    Act,
    Canary,
    Kind,
    Plant,
    Seen,
    as_it_is,
    no_collector,
    output_of,
    run,
    told_of,
    use,
)

VALUE: Final = object()
OUTCOME: Final = "otel_tracker.stage.outcome"
TX_OUTCOME: Final = "otel_tracker.outcome"
COMPLETED: Final = TransactionStatus.COMPLETED
FAILED: Final = TransactionStatus.FAILED


@pytest.fixture(autouse=True)
def _no_context_is_left_behind() -> Iterator[None]:
    """After each test the OpenTelemetry context is what it was before; it is put right anyhow."""
    before = context_api.get_current()
    yield
    after = context_api.get_current()
    if after is not before:
        context_api.attach(before)
    assert after is before


@pytest.fixture
def t() -> Iterator[Harness]:
    with fresh_tracker(use_as_shared=True) as harness:
        yield harness


def tally(t: Harness, name: str = "work") -> tuple[int, int, int, int]:
    """Of a stage: running, done, failed, skipped."""
    row = t.tracker.get_dashboard_data()["stages"].get(name, {})
    return row.get("running", 0), row.get("done", 0), row.get("failed", 0), row.get("skipped", 0)


def problems(t: Harness) -> dict[str, int]:
    found: dict[str, int] = t.tracker.get_dashboard_data()["health"]["problems"]
    return found


def shown(t: Harness, *keys: str) -> list[tuple[Any, ...]]:
    """The exported spans: name, parent, status, error.type, and these attributes."""
    return [
        (
            s["name"], s["parent"], s["status"], s["attributes"].get("error.type"),
            *(s["attributes"].get(key) for key in keys),
        )
        for s in t.spans()
    ]  # fmt: skip


# --- every kind, every outcome, both ways --------------------------------------------------------


class UnprintableError(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


UNPRINTABLE: Final = f"{UnprintableError.__module__}.UnprintableError"


@dataclass(frozen=True)
class Outcome:
    """What a body comes to, and how it is told."""

    name: str
    act: Callable[[], Act]
    outcome: str
    """Of the attempt, and of a transaction that it leaves."""
    is_error: bool = False
    error_type: str | None = None
    description: str | None = None

    @property
    def status(self) -> str:
        return "ERROR" if self.is_error else "UNSET"

    @property
    def tally(self) -> tuple[int, int, int, int]:
        done, skipped = self.outcome == "success", self.outcome == "skipped"
        return 0, int(done), int(not (done or skipped)), int(skipped)

    @property
    def verdict(self) -> TransactionStatus:
        return COMPLETED if self.outcome in ("success", "skipped") else FAILED

    @property
    def root(self) -> tuple[str, str | None, str]:
        """Status, error.type and outcome of the root, if the body is all that went wrong."""
        if self.outcome in ("success", "skipped"):
            return "UNSET", None, "success"
        if self.outcome == "cancelled":
            return "UNSET", None, "cancelled"
        return self.status, self.error_type, "failure"


def raising(make: Callable[[], BaseException], *, chained: bool = True) -> Callable[[], Act]:
    return lambda: Plant(make, chained=chained)


def _returns() -> Act:
    return lambda: VALUE


def _skips() -> Act:
    def act() -> object:
        current_stage().skip("nothing to do")
        return VALUE

    return act


def _fails() -> Act:
    def act() -> object:
        current_stage().fail("no model", "no_model")
        return VALUE

    return act


def _tells_a_failure() -> Act:
    def act() -> object:
        current_transaction().end(success=False, error="no model")
        return VALUE

    return act


def _swallows() -> Act:
    def act() -> object:
        with contextlib.suppress(ValueError):
            raise ValueError
        return VALUE

    return act


def _group() -> BaseException:
    return ExceptionGroup("two", [ValueError("one"), KeyError("other")])


RAISED: Final = (
    Outcome(
        "exception", raising(lambda: ValueError("bad shape")),
        "failure", True, "ValueError", "bad shape",
    ),
    Outcome(
        "exception without a cause", raising(lambda: OSError("no disk"), chained=False),
        "failure", True, "OSError", "no disk",
    ),
    Outcome(
        "unprintable exception", raising(UnprintableError),
        "failure", True, UNPRINTABLE, "UnprintableError",
    ),
    Outcome(
        "exception group", raising(_group), "failure", True, "ExceptionGroup",
        "two (2 sub-exceptions); ValueError: one; KeyError: 'other'",
    ),
    Outcome("cancelled", raising(lambda: asyncio.CancelledError("enough")), "cancelled"),
    Outcome("generator exit", raising(GeneratorExit), "success"),
    Outcome(
        "keyboard interrupt", raising(KeyboardInterrupt),
        "interrupted", True, "KeyboardInterrupt", "KeyboardInterrupt",
    ),
    Outcome("system exit", raising(lambda: SystemExit(3)), "interrupted", True, "SystemExit", "3"),
)  # fmt: skip
RETURNED: Final = (
    Outcome("value", _returns, "success"),
    Outcome("swallowed within", _swallows, "success"),
)
TOLD: Final = (
    Outcome("skip()", _skips, "skipped"),
    Outcome("fail()", _fails, "failure", True, "no_model", "no model"),
)

MODES: Final = ("decorator", "context manager")


def seen_of(kind: Kind, declare: Callable[[], Any], mode: str, act: Act) -> Seen:
    """What a caller sees where the kind of function is decorated, or has a `with` in it."""
    if mode == "decorator":
        call = kind.build(declare(), act, contextlib.nullcontext)
    else:
        call = kind.build(as_it_is, act, declare)
    leaks = mode == "context manager" or "manager" in kind.flavour
    return run(kind, call, act, leaks_while_suspended=leaks)


@functools.cache
def undecorated(kind: Kind, outcome: Outcome) -> Seen:
    """What a caller sees without us, which is what it must see with us."""
    act = outcome.act()
    call = kind.build(as_it_is, act, contextlib.nullcontext)
    seen = run(kind, call, act, leaks_while_suspended=False)
    assert seen.contexts == []
    assert seen.is_same
    assert not (isinstance(act, Plant) and act.is_held)
    return seen


def check_caller(kind: Kind, outcome: Outcome, declare: Callable[[], Any], mode: str) -> None:
    """Runs it both ways, and compares all that a caller can see."""
    with no_collector():
        before = undecorated(kind, outcome)
        act = outcome.act()
        seen = seen_of(kind, declare, mode, act)
        assert not (isinstance(act, Plant) and act.is_held)
    assert seen == before


@contextlib.contextmanager
def case(name: str) -> Iterator[None]:
    """One of several in a test: pytest's own subtests take half as long again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case: {name}")
        raise


each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_flavour = pytest.mark.parametrize("kind", FUNCTIONS, ids=lambda kind: kind.name)
each_mode = pytest.mark.parametrize("mode", MODES)


@each_mode
@each_kind
def test_a_stage_on_every_kind_with_every_outcome(kind: Kind, mode: str) -> None:
    """The caller, the spans, the dashboard and the contexts, for a stage of a transaction."""
    for outcome in (*RETURNED, *RAISED, *TOLD):
        with case(outcome.name), fresh_tracker(use_as_shared=True) as t:
            with transaction("voice", user_id="user-1") as tx:
                check_caller(kind, outcome, lambda: stage("work"), mode)
                assert tally(t) == outcome.tally
            skipped = " skipped" if outcome.outcome == "skipped" else ""
            status, error_type, whole = outcome.root
            assert shown(t, OUTCOME, TX_OUTCOME) == [
                ("voice", None, status, error_type, None, whole),
                (
                    f"work{skipped}", "voice", outcome.status, outcome.error_type,
                    outcome.outcome, None,
                ),
            ]  # fmt: skip
            assert t.spans()[1]["description"] == outcome.description
            assert t.status(tx.id) is outcome.verdict
            assert t.tracker.get_dashboard_data()["system_metrics"]["active_transactions"] == 0
            assert problems(t) == {}


@each_mode
@each_kind
def test_a_transaction_on_every_kind_with_every_outcome(kind: Kind, mode: str) -> None:
    """The same for a transaction that is left by what the function comes to."""
    told = Outcome("end(False)", _tells_a_failure, "failure", True, "_OTHER", "no model")
    for outcome in (*RETURNED, *RAISED, told):
        with case(outcome.name), fresh_tracker(use_as_shared=True) as t:
            check_caller(kind, outcome, lambda: transaction("voice"), mode)
            assert shown(t, TX_OUTCOME) == [
                ("voice", None, outcome.status, outcome.error_type, outcome.outcome)
            ]
            assert t.spans()[0]["description"] == outcome.description
            (row,) = t.tracker.get_recent_transactions()
            assert t.status(row["id"]) is outcome.verdict
            assert problems(t) == {}


@each_mode
@each_flavour
def test_a_stage_outside_any_transaction(kind: Kind, mode: str) -> None:
    """It has a transaction of its own, which ends with it and as it does."""
    for outcome in (*RETURNED, *RAISED, *TOLD):
        with case(outcome.name), fresh_tracker(use_as_shared=True) as t:
            check_caller(kind, outcome, lambda: stage("work"), mode)
            root, work = shown(t, OUTCOME, TX_OUTCOME)
            whole = outcome.outcome if outcome.name != "skip()" else "success"
            assert root == (
                "transaction", None, outcome.status, outcome.error_type, None, whole
            )  # fmt: skip
            assert work[1:] == (
                "transaction", outcome.status, outcome.error_type, outcome.outcome, None
            )  # fmt: skip
            assert tally(t) == outcome.tally
            (row,) = t.tracker.get_recent_transactions()
            assert t.status(row["id"]) is outcome.verdict


@each_mode
@each_flavour
def test_a_disabled_tracker_changes_nothing(kind: Kind, mode: str) -> None:
    """With the tracker disabled the caller sees the same, and there are no spans and no stages."""
    for outcome in (*RETURNED, *RAISED, *TOLD):
        with (
            case(outcome.name),
            fresh_tracker(use_as_shared=True, disabled=True) as t,
        ):
            check_caller(kind, outcome, lambda: stage("work"), mode)
            check_caller(kind, outcome, lambda: transaction("voice"), mode)
            assert t.spans() == []
            assert t.tracker.get_dashboard_data()["stages"] == {}


# --- managers: the block of the `with` is the consumer's -----------------------------------------


@pytest.mark.parametrize("outcome", RAISED, ids=lambda outcome: outcome.name)
@pytest.mark.parametrize("kind", [k for k in FUNCTIONS if "manager" in k.flavour], ids=str)
def test_what_leaves_the_block_of_a_decorated_manager(
    t: Harness, kind: Kind, outcome: Outcome
) -> None:
    """It goes through the manager, as the very exception, and is the outcome of the stage."""

    def enter(call: Callable[[], Any], act: Act) -> Seen:
        seen = Seen()
        before = context_api.get_current()
        try:
            if kind.flavour == "manager":
                with call():
                    act()
            else:

                async def main() -> None:
                    inside = context_api.get_current()
                    try:
                        async with call():
                            act()
                    except BaseException as error:
                        seen.take(error, act)
                    seen.check("the task, after", inside)

                asyncio.run(main())
        except BaseException as error:
            seen.take(error, act)
        seen.check("after", before)
        return seen

    with no_collector():
        before = enter(kind.build(as_it_is, lambda: None, contextlib.nullcontext), outcome.act())
        act = outcome.act()
        seen = enter(kind.build(stage("work"), lambda: None, contextlib.nullcontext), act)
        assert isinstance(act, Plant)
        assert not act.is_held
    assert seen == before
    assert before.is_same
    assert tally(t) == outcome.tally
    assert shown(t, OUTCOME)[1][2:] == (outcome.status, outcome.error_type, outcome.outcome)


@pytest.mark.parametrize("above", [True, False], ids=["above", "below"])
def test_the_block_belongs_to_the_stage_only_where_it_stands_above(t: Harness, above: bool) -> None:
    """Above @contextmanager the block is in the stage; below it only the manager's own code is."""
    inside = []

    def body() -> Iterator[None]:
        inside.append(bool(current_stage()))
        yield
        inside.append(bool(current_stage()))

    if above:
        manage = stage("work")(contextlib.contextmanager(body))
    else:
        manage = contextlib.contextmanager(stage("work")(body))
    with manage():
        assert bool(current_stage()) is above
    assert inside == [True, True]
    assert tally(t) == (0, 1, 0, 0)


@pytest.mark.parametrize("above", [True, False], ids=["above", "below"])
def test_a_manager_that_swallows_or_replaces_the_exception(t: Harness, above: bool) -> None:
    """What it swallows is a success; what it raises instead is what the caller gets."""

    def body(answer: BaseException | None) -> Iterator[None]:
        try:
            yield
        except ValueError:
            if answer is not None:
                raise answer from None

    def enter(answer: BaseException | None) -> None:
        manage: Any
        if above:
            manage = stage("work")(contextlib.contextmanager(body))
        else:
            manage = contextlib.contextmanager(stage("work")(body))
        with manage(answer):
            raise ValueError

    enter(None)
    assert tally(t) == (0, 1, 0, 0)
    instead = KeyError("instead")
    with pytest.raises(KeyError) as caught:
        enter(instead)
    assert caught.value is instead
    assert tally(t) == (0, 1, 1, 0)


def test_a_decorated_manager_still_decorates(t: Harness) -> None:
    """What @contextmanager makes is itself a decorator, and remains one: each call a stage."""

    @stage("work")
    @contextlib.contextmanager
    def around() -> Iterator[None]:
        yield

    @around()
    def answer() -> int:
        return 42

    assert [answer(), answer()] == [42, 42]
    assert tally(t) == (0, 2, 0, 0)


# --- generators: each call of theirs as undecorated ----------------------------------------------


class Thrown(Exception):  # noqa: N818 -- it is no error, but what a consumer throws
    pass


THROWN: Final = (Thrown, ValueError, GeneratorExit, KeyboardInterrupt, asyncio.CancelledError)
ANSWERS: Final = ("goes on", "raises it", "raises another", "returns")

steps = st.lists(st.sampled_from(ANSWERS), max_size=4)
"""A generator: a yield each, and how it answers an exception there."""
calls = st.lists(
    st.one_of(
        st.just(("next", None)),
        st.tuples(st.just("send"), st.integers(0, 3)),
        st.tuples(st.just("throw"), st.sampled_from(THROWN)),
        st.just(("close", None)),
    ),
    max_size=7,
)
"""What its consumer calls."""


def _answer(answer: str, log: list[str], error: BaseException) -> bool:
    """Whether the generator returns."""
    log.append(f"caught {type(error).__name__}")
    if answer == "raises it":
        raise error
    if answer == "raises another":
        raise KeyError("another")
    return answer == "returns"


def scripted(answers: list[str], log: list[str]) -> Generator[Any, Any, Any]:
    try:
        for number, answer in enumerate(answers):
            try:
                log.append(f"got {(yield number)}")
            except BaseException as error:
                if _answer(answer, log, error):
                    return "early"
        return "late"
    finally:
        log.append("finally")


async def scripted_async(answers: list[str], log: list[str]) -> AsyncIterator[Any]:
    try:
        for number, answer in enumerate(answers):
            await asyncio.sleep(0)
            try:
                log.append(f"got {(yield number)}")
            except BaseException as error:
                await asyncio.sleep(0)
                if _answer(answer, log, error):
                    return
    finally:
        log.append("finally")


def _told(error: BaseException, *, is_begun: bool) -> list[object]:
    kind, chain, frames, innermost = told_of(error)
    if is_begun:
        return [getattr(error, "value", None), kind, chain, frames, innermost]
    # Thrown into one that has not begun it leaves at once, from where the function is defined.
    return [getattr(error, "value", None), kind, chain]


def consumed(made: Any, script: list[tuple[str, Any]], log: list[str]) -> list[Any]:
    """What each call gave or raised, and how the generator stood after it."""
    before = context_api.get_current()
    results: list[Any] = []
    for name, value in script:
        is_begun = inspect.getgeneratorstate(made) != inspect.GEN_CREATED
        try:
            if name == "next":
                results.append(next(made))
            elif name == "throw":
                results.append(made.throw(value("from outside")))
            else:
                results.append(made.close() if name == "close" else made.send(value))
        except BaseException as error:
            results.append(_told(error, is_begun=is_begun))
        results.append(inspect.getgeneratorstate(made))
        assert context_api.get_current() is before
    return [results, list(log)]


async def consumed_async(made: Any, script: list[tuple[str, Any]], log: list[str]) -> list[Any]:
    before = context_api.get_current()
    results: list[Any] = []
    is_begun = False
    for name, value in script:
        try:
            if name == "next":
                results.append(await anext(made))
            elif name == "throw":
                results.append(await made.athrow(value("from outside")))
            else:
                results.append(await (made.aclose() if name == "close" else made.asend(value)))
        except BaseException as error:
            results.append(_told(error, is_begun=is_begun))
        is_begun = is_begun or name != "send" or value is None or made.ag_frame is None
        results.append((made.ag_frame is None, made.ag_running))
        assert context_api.get_current() is before
    return [results, list(log)]


IGNORES_CLOSE: Final = (["goes on"] * 2, [("next", None), ("close", None), ("next", None)])
THROWS_AN_EXIT: Final = (["returns"], [("next", None), ("throw", GeneratorExit)])
FAILS_TO_CLOSE: Final = (["raises another"], [("next", None), ("close", None)])
THROWS_THROUGH: Final = (["raises it"], [("next", None), ("throw", Thrown)])
NOT_BEGUN: Final = (["goes on"], [("send", 1), ("throw", Thrown), ("close", None)])


@contextlib.contextmanager
def unraisable() -> Iterator[set[str]]:
    """What is told of exceptions that nobody can catch, such as a collected generator's."""
    told: set[str] = set()
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: told.add(repr(args.exc_value))
    try:
        yield told
    finally:
        sys.unraisablehook = hook


generated: Final = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,  # the same examples in every run: a build must not fail by chance
)


@example(*IGNORES_CLOSE)
@example(*THROWS_AN_EXIT)
@example(*FAILS_TO_CLOSE)
@example(*THROWS_THROUGH)
@example(*NOT_BEGUN)
@generated
@given(steps, calls)
def test_a_generator_answers_every_call_as_undecorated(
    answers: list[str], script: list[tuple[str, Any]]
) -> None:
    """Random scripts of next, send, throw and close: values, returns, exceptions and tracebacks.

    In the end it is let go, wherever it stands, and nothing is left running.
    """

    def play(function: Callable[..., Any]) -> list[Any]:
        log: list[str] = []
        return consumed(function(answers, log), script, log)

    with unraisable() as told:
        expected = play(scripted)
    with fresh_tracker(use_as_shared=True) as t:
        with unraisable() as told_too:
            assert play(stage("work")(scripted)) == expected
        assert told_too >= told
        assert tally(t)[0] == 0


@example(*IGNORES_CLOSE)
@example(*THROWS_AN_EXIT)
@example(*FAILS_TO_CLOSE)
@example(*THROWS_THROUGH)
@example(*NOT_BEGUN)
@generated
@given(steps, calls)
def test_an_async_generator_answers_every_call_as_undecorated(
    answers: list[str], script: list[tuple[str, Any]]
) -> None:
    """The same with anext, asend, athrow and aclose; the event loop closes what is let go."""

    def play(function: Callable[..., Any]) -> list[Any]:
        log: list[str] = []
        errors = LoopErrors()

        async def main() -> list[Any]:
            asyncio.get_running_loop().set_exception_handler(errors)
            results = await consumed_async(function(answers, log), script, log)
            await asyncio.sleep(0)
            return results

        results = asyncio.run(main())
        return [results, log, [message.split(" ")[0] for message in errors.messages]]

    with unraisable() as told:
        expected = play(scripted_async)
    with fresh_tracker(use_as_shared=True) as t:
        with unraisable() as told_too:
            assert play(stage("work")(scripted_async)) == expected
        assert told_too >= told
        assert tally(t)[0] == 0


class LoopErrors:
    """What an event loop is told that nobody caught."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, _: object, what: dict[str, Any]) -> None:
        self.messages.append(f"{what['message']} {what.get('exception')!r}")


def test_a_delegating_generator_passes_everything_through(t: Harness) -> None:
    """`yield from` a decorated one, decorated itself: sent values, results and spans are right."""
    got: list[Any] = []

    @stage("inner")
    def inner() -> Generator[Any, Any, Any]:
        got.append((yield 1))
        try:
            yield 2
        except Thrown:
            got.append("thrown")
        return "inner's"

    @stage("outer")
    def outer() -> Generator[Any, Any, Any]:
        result = yield from inner()
        assert current_stage().transaction.id == current_transaction().id
        yield result
        return "outer's"

    before = context_api.get_current()
    made = outer()
    assert [next(made), made.send("sent"), made.throw(Thrown())] == [1, 2, "inner's"]
    with pytest.raises(StopIteration) as stopped:
        next(made)
    assert stopped.value.value == "outer's"
    assert got == ["sent", "thrown"]
    assert context_api.get_current() is before
    assert [row[:2] for row in shown(t)] == [
        ("transaction", None), ("outer", "transaction"), ("inner", "outer"),
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["close", "exhausted", "throw"])
def test_a_with_within_a_decorated_generator_does_not_reach_the_consumer(
    t: Harness, how: str
) -> None:
    """A stage, and a span of the application's, stay current within it and nowhere else."""
    tracer = t.provider.get_tracer("app")
    inside: list[object] = []

    @stage("outer")
    def numbers() -> Iterator[int]:
        with tracer.start_as_current_span("mine") as span, stage("inner"):
            for number in range(3):
                yield number
                inside.append(bool(current_stage()) and repr(current_stage()))
        inside.append(trace.get_current_span() is not span and repr(current_stage()))

    before = context_api.get_current()
    made: Any = numbers()
    assert next(made) == 0
    assert context_api.get_current() is before
    with stage("consumer"):
        around = context_api.get_current()
        assert next(made) == 1
        assert context_api.get_current() is around
    assert context_api.get_current() is before
    if how == "close":
        made.close()
    elif how == "throw":
        with pytest.raises(Thrown):
            made.throw(Thrown())
    else:
        assert list(made) == [2]
        assert inside == ["<stage inner>"] * 3 + ["<stage outer>"]
    assert context_api.get_current() is before
    parents = {s["name"]: s["parent"] for s in t.spans()}
    assert (parents["mine"], parents["inner"]) == ("outer", "mine")
    assert all(tally(t, name)[0] == 0 for name in ("inner", "outer", "consumer"))


def test_a_with_within_a_decorated_async_generator_does_not_reach_the_consumer(
    t: Harness,
) -> None:
    """The same, in a task."""
    inside: list[object] = []

    @stage("outer")
    async def numbers() -> AsyncIterator[int]:
        async with stage("inner"):
            for number in range(3):
                await asyncio.sleep(0)
                yield number
                inside.append(repr(current_stage()))
        inside.append(repr(current_stage()))

    async def main() -> None:
        before = context_api.get_current()
        async for _ in numbers():
            assert context_api.get_current() is before
        assert context_api.get_current() is before

    asyncio.run(main())
    assert inside == ["<stage inner>"] * 3 + ["<stage outer>"]


def test_two_interleaved_generators_keep_apart(t: Harness) -> None:
    """Consumed in turns, each runs in its own stage, and the consumer in none."""

    @stage("work")
    def numbers(name: str) -> Iterator[str]:
        mine = current_stage()
        mine.set(model=name)
        for _ in range(3):
            assert current_stage() is mine
            yield name

    before = context_api.get_current()
    one, two = numbers("one"), numbers("two")
    for a, b in zip(one, two, strict=True):
        assert (a, b) == ("one", "two")
        assert context_api.get_current() is before
    models = [s["attributes"].get("model") for s in t.spans() if s["name"] == "work"]
    assert sorted(models) == ["one", "two"]


def test_a_generator_that_is_resumed_by_other_threads(t: Harness) -> None:
    """Begun in one thread, resumed in another, closed in a third: none is left in its stage."""

    @stage("work")
    def numbers() -> Iterator[int]:
        for number in range(9):
            assert current_stage()
            yield number

    made: Any = numbers()

    def elsewhere(call: Callable[[], Any]) -> Any:
        def work() -> Any:
            before = context_api.get_current()
            result = call()
            assert context_api.get_current() is before
            return result

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result(30)

    assert [elsewhere(lambda: next(made)), elsewhere(lambda: next(made))] == [0, 1]
    assert elsewhere(made.close) is None
    assert tally(t) == (0, 1, 0, 0)


def test_a_generator_that_resumes_itself(t: Harness) -> None:
    """It raises what any generator does that is running already."""
    made: Any = None

    @stage("work")
    def numbers() -> Iterator[int]:
        with pytest.raises(ValueError, match="generator already executing"):
            next(made)
        yield 1

    made = numbers()
    assert list(made) == [1]
    assert tally(t) == (0, 1, 0, 0)


@pytest.mark.parametrize("is_async", [False, True], ids=["generator", "async generator"])
def test_what_the_consumer_let_go_is_let_go(t: Harness, is_async: bool) -> None:
    """A suspended generator holds neither what it yielded nor what was thrown into it."""
    with no_collector():
        thrown: list[weakref.ref[Canary]] = []

        def stubborn() -> Iterator[Any]:
            while True:
                with contextlib.suppress(Thrown):
                    yield Canary()

        async def stubborn_async() -> AsyncIterator[Any]:
            while True:
                with contextlib.suppress(Thrown):
                    yield Canary()

        def exception() -> Thrown:
            error = Thrown()
            error.canary = Canary()  # type: ignore[attr-defined]
            thrown.append(weakref.ref(error.canary))  # type: ignore[attr-defined]
            return error

        async def main(make: Callable[[], Any]) -> tuple[bool, bool, bool]:
            made = make()
            item = weakref.ref(await anext(made) if is_async else next(made))
            is_item_held = item() is not None
            thrown.clear()
            await made.athrow(exception()) if is_async else made.throw(exception())
            while_suspended = thrown[0]() is not None
            if is_async:
                await made.aclose()
            del made
            return is_item_held, while_suspended, thrown[0]() is not None

        work: Any = stubborn_async if is_async else stubborn
        assert asyncio.run(main(work)) == (False, False, False)
        assert asyncio.run(main(stage("work")(work))) == (False, False, False)


@pytest.mark.parametrize("make", [as_it_is, functools.partial], ids=["function", "partial"])
def test_what_is_never_begun_is_no_attempt(t: Harness, make: Any) -> None:
    """A coroutine or generator that is made, and closed or let go: no span, and no warning."""

    @stage("work")
    def numbers() -> Iterator[int]:
        yield 1

    @stage("work")
    async def numbers_async() -> AsyncIterator[int]:
        yield 1

    @stage("work")
    async def answer() -> int:
        return 1

    before = context_api.get_current()
    make(numbers)().close()
    make(numbers)()
    make(numbers_async)()
    make(answer)().close()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        make(answer)()
    assert [str(w.message) for w in warned] == [
        f"coroutine '{answer.__qualname__}' was never awaited"
    ]
    assert context_api.get_current() is before
    assert t.spans() == []
    assert tally(t) == (0, 0, 0, 0)


# --- generators that nobody finishes -------------------------------------------------------------


def half_way(function: Callable[[], Iterator[Any]], *, in_a_circle: bool) -> None:
    """Abandons a generator after its first item; a circle leaves it to the garbage collector."""
    made = function()
    next(made)
    if in_a_circle:
        circle: list[Any] = [made]
        circle.append(circle)


@pytest.mark.parametrize("in_a_circle", [False, True], ids=["let go", "collected"])
def test_a_generator_that_is_abandoned_half_way(t: Harness, in_a_circle: bool) -> None:
    """It ends as if it was closed, in the consumer's context and with nothing left running."""
    left = []

    @stage("work")
    def numbers() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            left.append(bool(current_stage()))

    with transaction("voice") as tx:
        before = context_api.get_current()
        half_way(numbers, in_a_circle=in_a_circle)
        assert tally(t) == ((1, 0, 0, 0) if in_a_circle else (0, 1, 0, 0))
        with stage("consumer"):
            around = context_api.get_current()
            gc.collect()
            assert context_api.get_current() is around
        assert context_api.get_current() is before
    assert left == [True]
    assert tally(t) == (0, 1, 0, 0)
    t.advance(1)  # the sweeper ends what the collector could not
    assert [row[:2] for row in shown(t, OUTCOME)] == [
        ("voice", None), ("work", "voice"), ("consumer", "voice"),
    ]  # fmt: skip
    assert t.status(tx.id) is COMPLETED


def test_an_abandoned_generator_that_fails_to_close(t: Harness) -> None:
    """Python tells of it as it does undecorated, and the stage has failed."""

    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("no disk")

    for function in (numbers, stage("work")(numbers)):
        with unraisable() as told:
            half_way(function, in_a_circle=False)
        assert told == {"ValueError('no disk')"}
    assert tally(t) == (0, 0, 1, 0)


def test_an_abandoned_generator_that_ignores_it(t: Harness) -> None:
    """One that yields instead of closing leaves nothing running once it is gone."""

    def numbers() -> Iterator[int]:
        for number in range(2):
            with contextlib.suppress(GeneratorExit):
                yield number

    for function in (numbers, stage("work")(numbers)):
        with unraisable() as told:
            half_way(function, in_a_circle=False)
        assert told == {"RuntimeError('generator ignored GeneratorExit')"}
    assert tally(t) == (0, 0, 1, 0)


COLLECTED: Final = """
    import gc, json, logging, threading, time
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from otel_tracker import get_debug_tracker, init_debug_tracker, stage

    exporter = InMemorySpanExporter()
    processor = BatchSpanProcessor(
        exporter, max_export_batch_size=1, max_queue_size=100_000, schedule_delay_millis=3_600_000
    )
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracker = init_debug_tracker(provider)

    @stage("work")
    def numbers():
        yield 1
        yield 2

    def abandon():
        made = numbers()
        next(made)
        circle = [made]
        circle.append(circle)

    def exported():
        return sum(span.name == "work" for span in exporter.get_finished_spans())
"""


def test_a_generator_collected_while_a_lock_of_the_sdk_is_held() -> None:
    """The lock by which a span's end wakes the exporter's thread: no deadlock, nothing lost."""
    told = output_of(
        COLLECTED
        + """
    gc.disable()
    abandon()
    if hasattr(processor, "condition"):
        lock = processor.condition  # up to 1.33 or so
    else:
        lock = processor._batch_processor._worker_awaken._cond
    with lock:
        gc.collect()
        stages = tracker.get_dashboard_data()["stages"]
    deadline = time.monotonic() + 20
    while not exported() and time.monotonic() < deadline:
        tracker.sweep()
        processor.force_flush()
        time.sleep(0.01)
    print(json.dumps({"work": stages["work"], "exported": exported()}))
    """
    )
    assert (told["work"]["running"], told["work"]["done"]) == (0, 1)
    assert told["exported"] == 1


def test_generators_collected_at_any_moment() -> None:
    """A collection every few objects, in two threads that export all the while: each arrives."""
    told = output_of(
        COLLECTED
        + """
    logging.disable(logging.CRITICAL)
    gc.set_threshold(20, 2, 2)

    def work():
        for _ in range(150):
            abandon()
            with stage("other"):
                pass

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    deadline = time.monotonic() + 20
    while exported() < 300 and time.monotonic() < deadline:
        tracker.sweep()
        processor.force_flush()
        time.sleep(0.01)
    stages = tracker.get_dashboard_data()["stages"]
    print(json.dumps({"work": stages["work"], "exported": exported()}))
    """
    )
    assert (told["work"]["running"], told["work"]["done"]) == (0, 300)
    assert told["exported"] == 300


@pytest.mark.parametrize("left", ["let go", "kept"])
def test_an_async_generator_that_is_abandoned_half_way(t: Harness, left: str) -> None:
    """The event loop closes it, when it is collected or when the loop ends, and nobody complains.

    Undecorated and decorated: what it does at its end may take a while, and is done to the end.
    """
    kept: list[Any] = []
    ends: list[tuple[bool, bool]] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            begun = bool(current_stage())
            for _ in range(3):
                await asyncio.sleep(0)
            ends.append((begun, bool(current_stage())))

    async def main(function: Callable[[], Any], errors: LoopErrors) -> None:
        asyncio.get_running_loop().set_exception_handler(errors)
        before = context_api.get_current()
        for _ in range(5):
            made = function()
            assert await anext(made) == 1
            if left == "kept":
                kept.append(made)
            del made
        for _ in range(10):
            assert context_api.get_current() is before
            await asyncio.sleep(0)

    for function, within in ((numbers, False), (stage("work")(numbers), True)):
        errors = LoopErrors()
        ends.clear()
        asyncio.run(main(function, errors))
        assert errors.messages == []
        assert ends == [(within, within)] * 5
    assert tally(t) == (0, 5, 0, 0)


def test_an_async_generator_that_is_closed_in_another_task(t: Harness) -> None:
    """Begun in one task, closed in another: a success, and neither is left in its stage."""

    @stage("work")
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            assert current_stage()

    async def alone(awaitable: Awaitable[Any]) -> Any:
        before = context_api.get_current()
        result = await awaitable
        assert context_api.get_current() is before
        return result

    async def main() -> None:
        made: Any = numbers()
        assert await asyncio.create_task(alone(made.asend(None))) == 1
        assert await asyncio.create_task(alone(made.aclose())) is None

    asyncio.run(main())
    assert tally(t) == (0, 1, 0, 0)


def test_an_async_generator_whose_consumer_is_cancelled(t: Harness) -> None:
    """Cancelled while it waits inside, the stage is cancelled."""

    @stage("work")
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()
        yield 2

    async def consume() -> None:
        async for _ in numbers():
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        for _ in range(5):
            await asyncio.sleep(0)
        assert task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert shown(t, OUTCOME)[1] == ("work", "transaction", "UNSET", None, "cancelled")
    assert tally(t) == (0, 0, 1, 0)


# --- plain functions in front of a coroutine -----------------------------------------------------


def in_front(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function that returns the coroutine, as other decorators leave one."""

    def call() -> Any:
        return function()

    return call


def test_a_returned_coroutine_keeps_its_name(t: Harness) -> None:
    """Tasks, warnings and stacks name a coroutine: it is the application's, not the tracker's."""

    async def answer() -> int:
        return 42

    made = stage("work")(in_front(answer))()
    assert inspect.iscoroutine(made)
    assert (made.__name__, made.__qualname__) == (answer.__name__, answer.__qualname__)
    assert asyncio.run(made) == 42


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "let go"])
@pytest.mark.parametrize("is_begun", [True, False], ids=["begun", "not begun"])
def test_a_returned_coroutine_that_is_never_finished(
    t: Harness, is_begun: bool, is_closed: bool
) -> None:
    """Python warns as it does undecorated, and the attempt that the call began is over.

    Closed within, it is a success, as for any generator; where it never began, it was given up.
    """

    async def answer() -> None:
        await asyncio.Event().wait()

    def give_up(function: Callable[[], Any]) -> list[str]:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            made = function()
            if is_begun:
                contextvars.copy_context().run(made.send, None)
            if is_closed:
                made.close()
            del made
        return [str(warning.message) for warning in warned]

    async def main() -> None:
        expected = give_up(in_front(answer))
        assert give_up(stage("work")(in_front(answer))) == expected

    asyncio.run(main())
    outcome = "success" if is_begun else "cancelled"
    assert shown(t, OUTCOME)[1] == ("work", "transaction", "UNSET", None, outcome)
    assert tally(t)[0] == 0


# --- nested, recursive, and called the wrong way -------------------------------------------------


def test_a_recursive_function_is_a_stage_within_a_stage(t: Harness) -> None:
    """Each call is an attempt within the one before; a failure passes through all of them."""

    @stage("work")
    def descend(depth: int) -> int:
        if depth < 0:
            raise ValueError(depth)
        return depth and 1 + descend(depth - 1)

    with transaction("voice"):
        assert descend(3) == 3
    assert [row[:2] for row in shown(t)] == [("voice", None), ("work", "voice")] + [
        ("work", "work")
    ] * 3
    assert tally(t) == (0, 4, 0, 0)

    @stage("work")
    def fail(depth: int) -> None:
        descend(-1) if not depth else fail(depth - 1)

    with transaction("voice"), pytest.raises(ValueError, match="-1"):
        fail(2)
    assert tally(t) == (0, 4, 4, 0)


@each_mode
def test_a_function_that_recurses_for_ever(t: Harness, mode: str) -> None:
    """The caller gets Python's RecursionError, wherever it strikes, and nothing is left running.

    Where it strikes in `__enter__` or `__exit__` themselves, the innermost attempts stay open.
    """

    @stage("work")
    def decorated() -> int:
        return decorated()

    def with_a_block() -> int:
        with stage("work"):
            return with_a_block()

    # A thread of its own: its stack begins empty, whoever runs this test.
    def run_it() -> None:
        before = context_api.get_current()
        with pytest.raises(RecursionError):
            decorated() if mode == "decorator" else with_a_block()
        assert context_api.get_current() is before

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_it).result(60)
    t.advance(1)  # what could not be ended at the limit is ended by the sweeper
    assert tally(t)[0] <= (0 if mode == "decorator" else 4)
    active = t.tracker.get_dashboard_data()["system_metrics"]["active_transactions"]
    assert active <= (0 if mode == "decorator" else 1)


def test_stages_of_every_flavour_nest_in_each_other(t: Harness) -> None:
    """A coroutine in an async generator in a coroutine, beside a manager: parents as written."""

    @stage("answer")
    async def answer(number: int) -> int:
        await asyncio.sleep(0)
        return number

    @stage("numbers")
    async def numbers() -> AsyncIterator[int]:
        for number in range(2):
            yield await answer(number)

    @stage("room")
    @contextlib.asynccontextmanager
    async def room() -> AsyncIterator[None]:
        yield

    @transaction("voice")
    async def entry() -> list[int]:
        async with room():
            return [number async for number in numbers()]

    assert asyncio.run(entry()) == [0, 1]
    assert [row[:2] for row in shown(t)] == [
        ("voice", None), ("room", "voice"), ("numbers", "room"),
        ("answer", "numbers"), ("answer", "numbers"),
    ]  # fmt: skip


@each_flavour
def test_wrong_arguments_are_the_callers_type_error(t: Harness, kind: Kind) -> None:
    """The message is Python's own, at the call or where the generator or coroutine begins."""

    def call_wrongly(function: Callable[..., Any]) -> str:
        async def main() -> None:
            made = function(wrong=1)
            if kind.flavour == "async generator":
                await anext(made)
            elif kind.flavour == "async manager":
                await made.__aenter__()
            else:
                await made

        def begin() -> None:
            if "async" in kind.flavour or "coroutine" in kind.flavour:
                asyncio.run(main())
            elif kind.flavour == "generator":
                next(function(wrong=1))
            elif kind.flavour == "manager":
                function(wrong=1).__enter__()
            else:
                function(wrong=1)

        with pytest.raises(TypeError) as caught:
            begin()
        return str(caught.value)

    def function(decorate: Callable[[Any], Any]) -> Any:
        return kind.build(decorate, lambda: None, contextlib.nullcontext)

    expected = call_wrongly(function(as_it_is))
    assert "unexpected keyword argument 'wrong'" in expected
    assert call_wrongly(function(stage("work"))) == expected
    assert tally(t)[0] == 0


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
@each_flavour
def test_the_exceptions_of_iteration(t: Harness, kind: Kind, error: type[Exception]) -> None:
    """StopIteration and StopAsyncIteration that leave a function are what they are undecorated."""

    def act() -> None:
        raise error("told")

    expected = run(
        kind,
        kind.build(as_it_is, act, contextlib.nullcontext),
        act,
        leaks_while_suspended="manager" in kind.flavour,
    )
    for mode in MODES:
        seen = seen_of(kind, lambda: stage("work"), mode, act)
        if expected.error == "RuntimeError":  # Python makes it where the coroutine was awaited
            seen.innermost = expected.innermost
        assert seen == expected
    assert tally(t) == (0, 0, 2, 0)


# --- contexts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["a span", "stage", "transaction", "@stage", "@transaction"])
def test_what_the_block_leaves_attached_is_taken_off(t: Harness, around: str) -> None:
    """Code that attaches a context and forgets it does no harm beyond the block: as with a span."""

    def leak() -> None:
        context_api.attach(context_api.set_value("forgotten", 1))

    before = context_api.get_current()
    if around == "@stage":
        stage("work")(leak)()
    elif around == "@transaction":
        transaction(leak)()
    else:
        blocks: dict[str, Callable[[], Any]] = {
            "a span": lambda: t.provider.get_tracer("app").start_as_current_span("span"),
            "stage": lambda: stage("work"),
            "transaction": lambda: transaction("voice"),
        }
        with blocks[around]():
            leak()
    assert context_api.get_current() is before
    assert not current_transaction()


def test_a_coroutine_that_is_closed_in_another_context(
    t: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Another task, which inherited the stage's context, drops it: no error in any log."""

    @stage("work")
    async def waits() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        made = waits()
        one = contextvars.copy_context()
        one.run(made.send, None)
        other = one.copy()
        inside = other.run(context_api.get_current)
        other.run(made.close)
        assert other.run(context_api.get_current) is inside

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert caplog.records == []
    assert tally(t) == (0, 1, 0, 0)


def test_a_stage_is_seen_by_what_it_starts_and_by_nobody_else(t: Harness) -> None:
    """A task begun within a stage inherits it, a thread does not, and a sibling never sees it."""
    seen: dict[str, str] = {}

    @stage("work")
    async def work() -> None:
        async def child() -> None:
            seen["child"] = repr(current_stage())

        await asyncio.create_task(child())
        thread = threading.Thread(target=lambda: seen.update(thread=repr(current_stage())))
        thread.start()
        thread.join()
        seen["itself"] = repr(current_stage())

    async def sibling() -> None:
        await asyncio.sleep(0)
        seen["sibling"] = repr(current_stage())

    async def main() -> None:
        await asyncio.gather(work(), sibling())
        seen["after"] = repr(current_stage())

    asyncio.run(main())
    assert seen == {
        "child": "<stage work>", "itself": "<stage work>", "thread": "<stage none>",
        "sibling": "<stage none>", "after": "<stage none>",
    }  # fmt: skip


@each_flavour
def test_threads_are_left_as_they_were(t: Harness, kind: Kind) -> None:
    """Pool threads that ran a decorated function, well or badly, are in no stage afterwards."""

    def work(number: int) -> Seen:
        outcome = RAISED[0] if number % 2 else RETURNED[0]
        return seen_of(kind, lambda: stage("work"), "decorator", outcome.act())

    with ThreadPoolExecutor(4) as pool:
        for seen in pool.map(work, range(20)):
            assert seen.contexts == []
            assert seen.is_same
    assert tally(t) == (0, 10, 10, 0)


# --- one object, used in many ways ---------------------------------------------------------------


def test_one_declaration_used_in_every_way(t: Harness) -> None:
    """On two functions, in a `with`, in an `async with`, within itself, and again."""
    work = stage("work")

    @work
    def one() -> int:
        with work as inner:
            assert current_stage() is inner
        assert current_stage() is not inner
        return 1

    @work
    async def two() -> int:
        async with work, work as inner:
            assert current_stage() is inner
        return 2

    for _ in range(2):
        with work as outer:
            assert one() == 1
            assert current_stage() is outer
        assert asyncio.run(two()) == 2
    parents = [row[1] for row in shown(t) if row[0] == "work"]
    assert sorted(parents) == ["transaction"] * 4 + ["work"] * 8
    assert tally(t) == (0, 12, 0, 0)


def _by_number(t: Harness) -> dict[int, tuple[str, str]]:
    """Of the stages: their own number, outcome and status."""
    return {
        s["attributes"]["number"]: (s["attributes"][OUTCOME], s["status"])
        for s in t.spans()
        if s["name"] == "work"
    }


EXPECTED: Final = (("success", "UNSET"), ("failure", "ERROR"))


@pytest.mark.parametrize("leaks", [False, True], ids=["tidy", "leaking"])
def test_one_declaration_shared_by_tasks(t: Harness, leaks: bool) -> None:
    """Fifty tasks are in it at once, and each leaves its own attempt: by its own exception.

    Some forget a context that they attached, which makes it no harder to find theirs.
    """
    work = stage("work")

    async def one(number: int) -> None:
        before = context_api.get_current()
        with contextlib.suppress(ValueError):
            async with work as mine:
                mine.set(number=number)
                if leaks and number % 3 == 0:
                    context_api.attach(context_api.set_value("forgotten", number))
                for _ in range(number * 7 % 11):
                    await asyncio.sleep(0)
                if number % 2:
                    raise ValueError(number)
        assert context_api.get_current() is before

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(one(number))

    asyncio.run(main())
    assert _by_number(t) == {number: EXPECTED[number % 2] for number in range(50)}
    assert tally(t) == (0, 25, 25, 0)


def test_one_declaration_shared_by_threads(t: Harness) -> None:
    """Eight threads enter and leave it at once: each attempt ends with its own exception."""
    work = stage("work")
    barrier = threading.Barrier(8)
    interval = sys.getswitchinterval()

    def one(thread: int) -> None:
        barrier.wait(30)
        for number in range(thread * 25, thread * 25 + 25):
            with contextlib.suppress(ValueError), work as mine:
                mine.set(number=number)
                with work as inner:
                    inner.set(number=1000 + number)
                    assert current_stage() is inner
                if number % 2:
                    raise ValueError(number)

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))
    finally:
        sys.setswitchinterval(interval)
    expected = {number: EXPECTED[number % 2] for number in range(200)}
    expected.update({1000 + number: EXPECTED[0] for number in range(200)})
    assert _by_number(t) == expected
    assert tally(t) == (0, 300, 100, 0)


def test_one_transaction_declared_and_shared_by_tasks(t: Harness) -> None:
    """The same for `transaction`: as many transactions as times it was entered."""
    voice = transaction("voice", user_id="user-1")

    async def one(number: int) -> str:
        with contextlib.suppress(ValueError):
            async with voice as mine:
                await asyncio.sleep(0)
                assert current_transaction() is mine
                if number % 2:
                    raise ValueError(number)
        return mine.id

    async def main() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(20)))

    ids = asyncio.run(main())
    assert [t.status(tid) for tid in ids] == [COMPLETED, FAILED] * 10


def test_what_is_left_without_having_been_entered(t: Harness) -> None:
    """An exit stack that only leaves it, as `push` does, is not disturbed."""
    work = stage("work")
    with contextlib.ExitStack() as stack:
        stack.push(work)
        stack.push(transaction("voice"))
    with work:
        pass
    work.__exit__(None, None, None)
    assert tally(t) == (0, 1, 0, 0)


# --- what inspect and pickle see -----------------------------------------------------------------


def inspected(function: Any) -> dict[str, Any]:
    """All that a framework may ask about a callable."""
    facts: dict[str, Any] = {
        "signature": _or_error(lambda: inspect.signature(function)),
        "source": _or_error(lambda: inspect.getsource(function)),
        "is callable": callable(function),
    }
    kinds: tuple[Callable[[Any], bool], ...] = (
        inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction,
    )  # fmt: skip
    others: tuple[Callable[[Any], bool], ...] = (
        inspect.isfunction, inspect.ismethod, inspect.isroutine, inspect.isclass,
    )  # fmt: skip
    for question in kinds:
        facts[f"{question.__name__} of __call__"] = question(function.__call__)
    for question in (*kinds, *others):
        facts[question.__name__] = question(function)
    if not isinstance(function, functools.partial):  # it has those of its class
        facts["annotations"] = _or_error(lambda: inspect.get_annotations(function))
        for name in ("__name__", "__qualname__", "__module__", "__doc__", "__isabstractmethod__"):
            facts[name] = getattr(function, name, "none")
    return facts


def _or_error(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except (TypeError, OSError) as error:
        return type(error).__name__


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k.place != "property"], ids=lambda kind: kind.name
)
def test_inspect_sees_what_it_saw_before(kind: Kind) -> None:
    """Signature, source, names, and what kind of function it is; also on what it is kept in."""
    function = kind.make(lambda: None, contextlib.nullcontext)
    expected = inspected(kind.container(as_it_is, function))
    assert inspected(kind.container(stage("work"), function)) == expected
    assert inspected(kind.container(transaction("voice"), function)) == expected


@each_flavour
def test_a_decorated_function_leads_back_to_its_own(kind: Kind) -> None:
    """`__wrapped__` is the function itself, and `unwrap` ends where it ended."""
    function = kind.make(lambda: None, contextlib.nullcontext)
    for decorate in (stage("work"), transaction("voice")):
        assert decorate(function).__wrapped__ is function
        assert inspect.unwrap(decorate(function)) is inspect.unwrap(function)


def test_what_a_generator_or_coroutine_is_called(t: Harness) -> None:
    """The objects that are made have the function's name, as debuggers and warnings show it."""

    async def coroutine() -> None:
        pass

    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    checks: tuple[tuple[Callable[[], Any], Callable[[Any], bool]], ...] = (
        (coroutine, inspect.iscoroutine),
        (generator, inspect.isgenerator),
        (async_generator, inspect.isasyncgen),
    )
    for function, is_right in checks:
        made: Any = stage("work")(function)()
        assert is_right(made)
        assert (made.__name__, made.__qualname__) == (function.__name__, function.__qualname__)
        if function is not async_generator:
            made.close()


@pytest.mark.parametrize("flavour", ["plain", "class method", "static method", "property"])
@pytest.mark.parametrize("above", [True, False], ids=["above", "below"])
def test_an_abstract_method_stays_abstract(flavour: str, above: bool) -> None:
    """A class with a decorated abstract method cannot be made, in either decorator order."""

    def work(self: object) -> None: ...

    outer: Any = {
        "plain": as_it_is, "class method": classmethod, "static method": staticmethod,
        "property": property,
    }[flavour]  # fmt: skip
    if flavour != "property" and above:
        attribute = stage("work")(outer(abc.abstractmethod(work)))
    elif above:
        attribute = outer(stage("work")(abc.abstractmethod(work)))
    else:
        attribute = outer(abc.abstractmethod(stage("work")(work)))
    base = abc.ABCMeta("Base", (), {"work": attribute})
    assert base.__abstractmethods__ == {"work"}
    with pytest.raises(TypeError, match="abstract"):
        base()


def test_a_decorated_object_keeps_its_other_attributes(t: Harness) -> None:
    """Those of the object, of a cached function and of a dispatching one are still there."""
    multiplier = stage("work")(function_kinds.Multiplier(3))
    assert multiplier.factor == 3

    @stage("work")
    @functools.lru_cache
    def cached(number: int) -> int:
        return number

    assert [cached(1), cached(1)] == [1, 1]
    assert (cached.cache_info().hits, cached.cache_info().misses) == (1, 1)
    cached.cache_clear()
    assert cached.cache_info().currsize == 0
    assert tally(t) == (0, 2, 0, 0)

    @stage("dispatch")
    @functools.singledispatch
    def dispatch(value: object) -> str:
        return "object"

    @dispatch.register
    def _(value: int) -> str:
        return "int"

    assert [dispatch("1"), dispatch(1)] == ["object", "int"]
    assert dispatch.dispatch(int)(1) == "int"
    assert tally(t, "dispatch") == (0, 2, 0, 0)


def test_a_decorated_init(t: Harness) -> None:
    """The way to follow the making of an object, as the message about classes says."""

    class Model:
        @stage("load")
        def __init__(self, name: str) -> None:
            self.name = name

    assert Model("small").name == "small"
    assert tally(t, "load") == (0, 1, 0, 0)


@pytest.mark.parametrize("name", DOUBLERS)
def test_what_is_decorated_pickles(t: Harness, name: str) -> None:
    """What a module holds, and a decorated partial or object, come back and are stages still."""
    doubler = DOUBLERS[name]
    pickled = pickle.loads(pickle.dumps(doubler))  # noqa: S301 -- made on this line
    for again in (pickled, copy.copy(doubler), copy.deepcopy(doubler)):
        value, running, _ = use(again, 21)
        assert (value, running) == (42, "double")
    assert tally(t, "double")[2:] == (0, 0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_is_decorated_runs_in_another_process(method: str) -> None:
    """A process pool takes each, and it is a stage there."""
    printed = output_of(
        f"""
        from tests.function_kinds import print_doubled_elsewhere

        if __name__ == "__main__":
            print_doubled_elsewhere({method!r})
        """,
        is_watched=method != "fork",
    )
    elsewhere = {name: (value, running) for name, (value, running, _) in printed["told"].items()}
    assert elsewhere == dict.fromkeys(DOUBLERS, (42, "double"))
    assert printed["here"] not in {pid for _, _, pid in printed["told"].values()}


# --- mistakes ------------------------------------------------------------------------------------


def work(item: str, owner: str = "") -> None:
    """What the mistakes are made with."""


class Model:
    """A class, which is no function."""


stage_: Any = stage
transaction_: Any = transaction
"""Without their types, by which a checker finds most of the mistakes."""

MISTAKES: Final[dict[str, tuple[Callable[[], Any], str]]] = {
    "a class": (lambda: stage_(Model), "Model is a class; decorate its methods, or __init__"),
    "a class, named": (lambda: stage_("work")(Model), "Model is a class; decorate its methods"),
    "a class, in a transaction": (lambda: transaction_(Model), "Model is a class; decorate its"),
    "a number": (lambda: stage_("work")(3), r'3 is none; write @stage\("name"\) above a function'),
    "a number as a name": (lambda: stage_(3)(work), r'stage\(3\) is no name .* @stage\("memory"\)'),
    "a number as a pipeline": (lambda: transaction_(3)(work), r'write transaction\("voice"\)'),
    "none": (lambda: stage_("work")(None), r'<NoneType> is none; write @stage\("name"\) above'),
    "none, in a transaction": (lambda: transaction_()(None), r'write @transaction\("name"\) above'),
    "a property": (lambda: stage_("work")(property(work)), "put it under @property, next to the"),
    "a bare property": (lambda: stage_(property(work)), "put it under @property, next to the"),
    "a cached property": (
        lambda: stage_("work")(functools.cached_property(work)),
        "put it under @cached_property, next to the function",
    ),
    "a partial method": (
        lambda: stage_("work")(functools.partialmethod(work, 1)),
        "put it under @partialmethod, next to the function",
    ),
    "a text": (lambda: stage_("work")("work"), "'work' is none; write"),
    "transaction=": (lambda: stage_("work", transaction="t")(work), "did you mean transaction_id="),
    "tid=": (
        lambda: stage_("work", tid="t")(work),
        r"no option tid=; did you mean transaction_id=",
    ),
    "traceparent=": (lambda: stage_("work", traceparent="item")(work), "did you mean carrier="),
    "captures=": (lambda: stage_("work", captures="item")(work), "did you mean capture="),
    "user=": (lambda: stage_("work", user="u")(work), r"user=: write transaction\(user_id=…\)"),
    "user_id=": (lambda: stage_("work", user_id="u")(work), r"write transaction\(user_id=…\)"),
    "client_id=": (
        lambda: stage_("work", client_id="c")(work),
        r"write transaction\(client_id=…\)",
    ),
    "pipeline=": (lambda: stage_("work", pipeline="p")(work), r"write transaction\(pipeline\)"),
    "user= of a transaction": (lambda: transaction_(user="owner")(work), "did you mean user_id="),
    "pipeline= of one": (
        lambda: transaction_(pipeline="p")(work),
        "write it in front: transaction",
    ),
    "key= of one": (lambda: transaction_(key="item")(work), r"key=: it belongs to stage"),
    "transaction_id of no parameter": (
        lambda: stage_("work", transaction_id="nope")(work),
        r"work\(\) has no parameter 'nope'; it has item, owner",
    ),
    "capture of no parameter": (
        lambda: stage_("work", capture=("item", "nope"))(work),
        "has no parameter 'nope'",
    ),
    "capture of no parameter, as a text": (
        lambda: stage_("work", capture="nope")(work),
        "has no parameter 'nope'",
    ),
    "key of no parameter": (lambda: stage_("work", key="nope")(work), "has no parameter 'nope'"),
    "user_id of no parameter": (
        lambda: transaction_(user_id="nope")(work),
        "has no parameter 'nope'",
    ),
    "a key that is a value": (
        lambda: stage_("work", key=3)(work),
        r'3 is a value; .* @stage\("memory", key="item"\)',
    ),
    "a moment that is a value": (lambda: stage_("work", queued_at=1.5)(work), r"1\.5 is a value"),
    "a carrier that is a value": (lambda: stage_("work", carrier={})(work), r"<dict> is a value"),
    "a user_id that is a value": (
        lambda: transaction_(user_id=7)(work),
        r'7 is a value; .* @transaction\(user_id="owner"\)',
    ),
    "capture of a number": (lambda: stage_("work", capture=3)(work), "capture"),
    "a tracker that is none": (lambda: stage_("work", tracker="t")(work), "tracker"),
    "a name that is too long": (lambda: stage_("x" * 65)(work), "at most 64 plain characters"),
    "an empty name": (lambda: stage_("")(work), "is no name of a stage"),
    "a pipeline's name that is too long": (lambda: transaction_("x" * 65)(work), "is no name"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_type_error_at_decoration(t: Harness, name: str) -> None:
    """It is raised where the function is decorated, and says what to write instead."""
    decorate, message = MISTAKES[name]
    with pytest.raises(TypeError, match=message):
        decorate()
    assert t.spans() == []


def test_what_may_look_like_a_mistake_and_is_none(t: Harness) -> None:
    """Attributes of any name that is near no option, and parameters that ** may hold."""

    @stage("work", model="llama3", users=3, language="en", transcript_id="7", trace=True)
    def one() -> int:
        return 1

    @stage("work", key="item", capture=("language",))
    def two(**options: object) -> int:
        return 2

    assert one() + two(item="a", language="en") + two() == 5
    first, second, third = [s["attributes"] for s in t.spans() if s["name"] == "work"]
    assert (first["model"], first["users"]) == ("llama3", 3)
    assert (second["otel_tracker.stage.key"], second["language"]) == ("a", "en")
    assert "otel_tracker.stage.key" not in third


IN_A_WITH: Final[dict[str, tuple[Callable[[], Any], str]]] = {
    "a number": (lambda: stage_(3), "is no name of a stage"),
    "a number as a pipeline": (lambda: transaction_(3), "is no pipeline"),
    "transaction=": (lambda: stage_("work", transaction="t"), "did you mean transaction_id="),
    "user=": (lambda: stage_("work", user="u"), "write transaction(user_id=…)"),
    "user_id=": (lambda: stage_("work", user_id="u"), "write transaction(user_id=…)"),
    "user= of a transaction": (lambda: transaction_(user="u"), "did you mean user_id="),
    "key= of one": (lambda: transaction_(key="k"), "it belongs to stage"),
    "an id of nothing": (
        lambda: stage_("work", transaction_id="nope"),
        "is no transaction of this",
    ),
    "an id of nothing, in one": (
        lambda: transaction_(transaction_id="nope"),
        "is no transaction",
    ),
    "a carrier of nothing": (
        lambda: stage_("work", carrier="nope"),
        "is no carrier; pass the dict",
    ),
    "a moment of nothing": (
        lambda: stage_("work", queued_at="nope"),
        "is no moment; give a date",
    ),
    "capture": (lambda: stage_("work", capture=("nope",)), "capture"),
    "capture of a number": (lambda: stage_("work", capture=3), "capture"),
    "capture, in a transaction": (lambda: transaction_(capture=("nope",)), "capture"),
    "a tracker that is none": (lambda: stage_("work", tracker="t"), "tracker"),
}


@pytest.mark.parametrize("name", IN_A_WITH)
def test_a_mistake_in_a_with_is_logged_once(
    t: Harness, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The block runs, what it raises is its own, and one line says what to write instead."""
    make, message = IN_A_WITH[name]
    ran = raised = 0
    for _ in range(2):
        with make():
            ran += 1
        try:
            with make():
                ran += 1
                raise ZeroDivisionError
        except ZeroDivisionError:
            raised += 1
    assert (ran, raised) == (4, 2)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    said = [line for line in said if "logged once" in line]
    assert len(said) == 1
    assert message in said[0]
    assert list(problems(t).values()) == [4]
    metrics = t.tracker.get_dashboard_data()["system_metrics"]
    assert (metrics["completed_transactions"], metrics["failed_transactions"]) == (2, 2)


def test_a_mistake_on_a_function_that_is_called_is_never_raised_by_the_call(t: Harness) -> None:
    """A wrong id at run time is no mistake of the decorator: the function runs, and is followed."""

    @stage("work", transaction_id="tid")
    def one(tid: object) -> object:
        return tid

    for tid in ("nope", 3, None, Unfriendly()):
        assert one(tid) is tid
    assert tally(t) == (0, 4, 0, 0)


# --- nothing of the tracker raises into the host -------------------------------------------------


class Unfriendly(Mapping[str, Any]):
    """Raises whatever is asked of it."""

    def _raise(self, *_: object, **__: object) -> Any:
        raise ZeroDivisionError

    __str__ = __repr__ = __iter__ = __len__ = __getitem__ = __bool__ = __eq__ = _raise
    __float__ = __int__ = __index__ = __format__ = items = keys = get = _raise
    __hash__ = None  # type: ignore[assignment]


def test_values_that_raise_when_they_are_looked_at(t: Harness) -> None:
    """As attributes, ids, keys, reasons and messages: nothing is raised, and each block is told."""
    bad: Any = Unfriendly()

    @stage("work", key="value", transaction_id="value", queued_at="value", capture=("value",))
    def one(value: object) -> object:
        return value

    @transaction(user_id="value", carrier="value", capture="value")
    def two(user: object = None, value: object = None) -> object:
        return value

    assert one(bad) is bad
    assert two(value=bad) is bad
    with transaction("voice", user_id=bad, client_id=bad, conversation_id=bad, thing=bad) as tx:
        tx.set(thing=bad)
        tx.queued(bad)
        for tell in ("skip", "fail", None):
            with stage(
                "work", key=bad, transaction_id=bad, carrier=bad, queued_at=bad, thing=bad
            ) as s:
                s.set(thing=bad)
                s.progress(thing=bad)
                if tell is not None:
                    getattr(s, tell)(bad)
        tx.end(success=False, error=bad, thing=bad)
    assert tally(t) == (0, 2, 1, 1)


class BrokenSpan(trace.Span):
    """A span of a provider with a defect: it only has ids."""

    def __init__(self) -> None:
        self._context = trace.SpanContext(1, 2, is_remote=False)

    def get_span_context(self) -> trace.SpanContext:
        return self._context

    def _raise(self, *_: object, **__: object) -> Any:
        raise ZeroDivisionError

    end = set_attributes = set_attribute = add_event = update_name = _raise
    is_recording = set_status = record_exception = add_link = _raise


class BrokenTracer(trace.Tracer):
    """A tracer that raises, or one whose spans do."""

    def __init__(self, *, raises: bool) -> None:
        self._raises = raises

    def start_span(self, *_: Any, **__: Any) -> trace.Span:
        if self._raises:
            raise ZeroDivisionError
        return BrokenSpan()

    start_as_current_span = start_span  # type: ignore[assignment]


class BrokenProvider(trace.TracerProvider):
    """Gives a tracer that raises, one whose spans do, or none."""

    def __init__(self, broken: str) -> None:
        self._broken = broken

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        if self._broken == "provider":
            raise ZeroDivisionError
        return BrokenTracer(raises=self._broken == "tracer")


class BrokenProcessor(SpanProcessor):
    """A processor of the application's that raises."""

    def on_start(self, span: Span, parent_context: object = None) -> None:
        raise ZeroDivisionError

    def on_end(self, span: ReadableSpan) -> None:
        raise ZeroDivisionError


class BrokenSampler(Sampler):
    """A sampler of the application's that raises."""

    def should_sample(self, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    def get_description(self) -> str:
        return "broken"


def broken_provider(broken: str) -> trace.TracerProvider:
    if broken in ("provider", "tracer", "span"):
        return BrokenProvider(broken)
    sampler = BrokenSampler() if broken == "sampler" else None
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    if broken == "processor":
        provider.add_span_processor(BrokenProcessor())
    return provider


@pytest.mark.parametrize("broken", ["provider", "tracer", "span", "processor", "sampler"])
@each_flavour
def test_a_broken_opentelemetry_changes_nothing_for_the_caller(kind: Kind, broken: str) -> None:
    """Values and exceptions are the same, nothing is left running, and the dashboard is exact."""
    outcomes = (*RETURNED[:1], *RAISED[:3], RAISED[4], RAISED[6], *TOLD)
    for outcome in outcomes:
        for mode in MODES:
            with case(f"{outcome.name}, {mode}"):
                tracker = DebugSystemTracker(broken_provider(broken), run_sweeper=False)
                try:
                    _check_with(tracker, kind, outcome, mode)
                finally:
                    tracker.shutdown()


def _check_with(tracker: DebugSystemTracker, kind: Kind, outcome: Outcome, mode: str) -> None:
    tell = outcome in TOLD
    before = undecorated(kind, outcome) if not tell else undecorated(kind, RETURNED[0])

    def declare() -> Any:
        return stage("work", tracker=tracker)

    def act() -> Any:
        current = tracker.frames.current_stage()
        if outcome.name == "skip()":
            current.skip("nothing to do")
        else:
            current.fail("no model", "no_model")
        return VALUE

    with transaction("voice", tracker=tracker):
        assert seen_of(kind, declare, mode, act if tell else outcome.act()) == before
    row = tracker.get_dashboard_data()["stages"]["work"]
    found = tuple(row[key] for key in ("running", "done", "failed", "skipped"))
    assert found == outcome.tally
    (tx,) = tracker.get_recent_transactions()
    assert tx["status"] == outcome.verdict.value


def test_a_log_handler_that_raises_too(t: Harness) -> None:
    """A mistake is complained about to a handler that is broken itself: the block runs."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError

    handler = Broken()
    logging.getLogger("otel_tracker").addHandler(handler)
    try:
        with stage("work", user="u"):
            ran = True
    finally:
        logging.getLogger("otel_tracker").removeHandler(handler)
    assert ran
    assert tally(t) == (0, 1, 0, 0)
