# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnusedCallResult=false
"""What type checkers know of `stage`, `transaction` and what they give. Never run, only checked.

Each `ignore` says that the line is wrong and has to be told: one that is not needed is an error.
`test_typing.py` runs mypy and basedpyright on it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Protocol, TypeVar, assert_type, overload

from otel_tracker import (
    ActiveStage,
    ActiveTransaction,
    Pipeline,
    PipelineStage,
    StageEvent,
    current_stage,
    current_transaction,
    get_debug_tracker,
    pipeline,
    stage,
    transaction,
)

T = TypeVar("T")

voice = pipeline("voice", "fetch", PipelineStage.MEMORY_STARTED, stall_after={"fetch": 600})
assert_type(voice, Pipeline)


# --- functions keep their signature ---------------------------------------------------------------


@stage
def bare(a: int, *, b: str = "") -> bytes:
    return f"{a}{b}".encode()


@stage("memory", rows=12, model="llama3")
def named(a: int, *, b: str = "") -> bytes:
    return bare(a, b=b)


@stage(key="a", transaction_id="b", capture=("a", "b"))
def with_options(a: int, *, b: str = "") -> bytes:
    return bare(a, b=b)


@stage(PipelineStage.MEMORY_COMPLETED)
def by_event(a: int) -> bytes:
    return bare(a)


@stage(StageEvent("fetch_started"))
def by_own_event(a: int) -> bytes:
    return bare(a)


@transaction
def entry(user_id: str, *, conversation_id: int | None = None) -> list[str]:
    return [user_id, str(conversation_id)]


@transaction(voice, user_id="owner", capture="owner", source="upload")
def entry_of_a_pipeline(owner: str) -> list[str]:
    return [owner]


@transaction("voice")
@stage("fetch")
def both(a: int) -> bytes:
    return bare(a)


def calls() -> None:
    assert_type(bare(1, b="x"), bytes)
    assert_type(named(1), bytes)
    assert_type(with_options(1), bytes)
    assert_type(by_event(1), bytes)
    assert_type(by_own_event(1), bytes)
    assert_type(entry("ann", conversation_id=None), list[str])
    assert_type(entry_of_a_pipeline("ann"), list[str])
    assert_type(both(1), bytes)

    bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    named(1, "x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with_options(1, c="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    entry()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    entry_of_a_pipeline(user_id="ann")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    both("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- coroutines and generators --------------------------------------------------------------------


@stage("transcription")
async def coroutine(audio: bytes) -> str:
    return audio.decode()


@stage
def generator(count: int) -> Generator[int, str, bytes]:
    word = yield count
    return word.encode()


@stage("chunk", key="count")
async def async_generator(count: int) -> AsyncGenerator[int, str]:
    word = yield count
    yield len(word)


@stage("fetch")
@contextmanager
def manager(name: str) -> Generator[bytes, None, None]:
    yield name.encode()


@transaction
@asynccontextmanager
async def async_manager(user_id: str) -> AsyncGenerator[bytes, None]:
    yield user_id.encode()


async def asynchronous() -> None:
    assert_type(await coroutine(b"x"), str)
    coroutine("x")  # type: ignore[arg-type, unused-coroutine]  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    length: int = coroutine(b"x")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    del length

    assert_type(generator(3), Generator[int, str, bytes])
    assert_type(generator(3).send("word"), int)
    generator(3).send(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(async_generator(3), AsyncGenerator[int, str])
    assert_type([number async for number in async_generator(3)], list[int])

    with manager("name") as opened:
        assert_type(opened, bytes)
    async with async_manager("ann") as entered:
        assert_type(entered, bytes)
    manager(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- methods, either order, and other callables ---------------------------------------------------


class Worker:
    @stage
    def method(self, a: int) -> str:
        return str(a)

    @stage("memory", capture="a")
    async def async_method(self, a: int) -> str:
        return str(a)

    @stage("memory")
    @classmethod
    def class_method_below(cls, a: int) -> str:
        return f"{cls}{a}"

    @classmethod
    @stage("memory")
    def class_method_above(cls, a: int) -> str:
        return f"{cls}{a}"

    @stage
    @staticmethod
    def static_method_below(a: int) -> str:
        return str(a)

    @staticmethod
    @transaction
    def static_method_above(user_id: int) -> str:
        return str(user_id)

    @property
    @stage("memory")
    def size(self) -> int:
        return 3

    def __call__(self, a: int) -> str:
        return str(a)


async def methods(worker: Worker) -> None:
    assert_type(worker.method(1), str)
    assert_type(await worker.async_method(1), str)
    assert_type(Worker.class_method_below(1), str)
    assert_type(worker.class_method_above(1), str)
    assert_type(Worker.static_method_below(1), str)
    assert_type(worker.static_method_above(1), str)
    assert_type(worker.size, int)
    assert_type(stage("memory")(worker), Worker)
    assert_type(stage(worker.method)(1), str)
    assert_type(stage("memory")(partial(bare, 1))(), bytes)

    worker.method("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Worker.class_method_below("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    worker.class_method_above()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Worker.static_method_below("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    worker.size()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]


@stage("memory")
def generic(thing: T, *more: T) -> list[T]:
    return [thing, *more]


@overload
def overloaded(thing: int) -> str: ...
@overload
def overloaded(thing: str) -> int: ...
@stage("memory")
def overloaded(thing: int | str) -> str | int:
    return thing


class Transcribes(Protocol):
    async def __call__(self, audio: bytes) -> str: ...


def wanted(transcribe: Transcribes, work: Callable[[int], bytes]) -> None:
    assert_type(generic(3), list[int])
    assert_type(generic("x", "y"), list[str])
    assert_type(overloaded(3), str)
    assert_type(overloaded("x"), int)
    assert_type(stage(work), Callable[[int], bytes])
    assert_type(stage("memory")(transcribe), Transcribes)


wanted(coroutine, bare)
wanted(bare, bare)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- in a `with` ----------------------------------------------------------------------------------


def blocks(owner: object) -> int:
    with stage() as s:
        assert_type(s, ActiveStage)
    with transaction(voice, user_id=owner, conversation_id=7, source="upload") as tx:
        assert_type(tx, ActiveTransaction)
        with stage("memory", key=3, queued_at=1.5, carrier=tx.carrier(), rows=12) as s:
            assert_type(s.transaction, ActiveTransaction)
            s.set(memory_count=4)
            s.progress(done=3, total=10)
            s.skip("nothing to do")
            s.fail(ValueError("no model"), error_type="no_model")
        assert_type(tx.id, str)
        assert_type(tx.trace_url, str)
        assert_type(tx.carrier(), dict[str, str])
        assert_type(tx.bind(bare)(1), bytes)
        tx.queued("memory")
        tx.queued(PipelineStage.MEMORY_STARTED)
        tx.hand_over()
        tx.end(success=False, error="no model", rows=12)
        # What leaves a block by a return leaves the function: a block swallows nothing.
        return len(tx.id)


async def async_blocks(tid: str) -> str:
    async with transaction("voice", transaction_id=tid) as tx:
        assert_type(tx, ActiveTransaction)
        async with stage("memory", tracker=get_debug_tracker()) as s:
            assert_type(s, ActiveStage)
            assert_type(await tx.bind(coroutine)(b"x"), str)
            return tx.id


assert_type(current_stage(), ActiveStage)
assert_type(current_transaction(), ActiveTransaction)


# --- what is wrong is told ------------------------------------------------------------------------


def wrong(s: ActiveStage, tx: ActiveTransaction) -> None:
    stage(3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    stage("memory", "key")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    stage("memory", capture=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    stage("memory", tracker="shared")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    transaction(PipelineStage.MEMORY_STARTED)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    transaction(voice, "user")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    pipeline()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pipeline("voice", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pipeline("voice", stall_after={"fetch": "long"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]

    # What is no function cannot be decorated.
    stage("memory")(3)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    transaction("voice")("memory")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    stage("memory")(property(str))  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]

    with stage:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    with stage("memory") as inner:
        del inner.key  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    current_stage.set(rows=12)  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess, reportAny]

    s.set("rows", 12)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    s.progress(3, 10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    s.fail("no model", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    s.key = "other"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    tx.id = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    tx.queued()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tx.end("no model")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tx.bind(3)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    tx.bind(bare)("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
