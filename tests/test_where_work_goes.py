"""Stages find their transaction wherever work goes: tasks, threads, processes, other services."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import json
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_tracker import (
    ActiveTransaction,
    Pipeline,
    TransactionStatus,
    current_stage,
    current_transaction,
    stage,
    transaction,
)
from otel_tracker.decorators import Stage
from otel_tracker.ids import is_ours
from otel_tracker.testing import Harness, fresh_tracker
from tests.otlp import Arrived, of_trace, receiver, run, tree

COMPLETED: Final = TransactionStatus.COMPLETED
FAILED: Final = TransactionStatus.FAILED
IN_PROGRESS: Final = TransactionStatus.IN_PROGRESS


@pytest.fixture
def t() -> Iterator[Harness]:
    with fresh_tracker(use_as_shared=True) as harness:
        yield harness


def names(t: Harness) -> list[tuple[str, str]]:
    """Name and parent's name of every exported span, sorted; "" for a root."""
    return sorted((s["name"], s["parent"] or "") for s in t.spans())


def where(t: Harness, name: str) -> list[str]:
    """The threads, or threads and tasks, on which the stage of that name ran."""
    found = [s["attributes"]["otel_tracker.where"] for s in t.spans() if s["name"] == name]
    return sorted(text.split("/", 2)[2] for text in found)


def outcome_of_root(t: Harness, name: str = "voice") -> str:
    (root,) = [s for s in t.spans() if s["name"] == name]
    outcome: str = root["attributes"]["otel_tracker.outcome"]
    return outcome


def leave(block: Stage, error: BaseException | None = None) -> None:
    """Leaves a block as Python does where this comes out of it."""
    block.__exit__(type(error) if error is not None else None, error, None)


@stage("memory")
def remember(*_: object) -> str:
    """A stage of whatever transaction it runs in, whose id it returns."""
    return current_transaction().id


@stage("memory")
async def remember_async(*_: object) -> str:
    await asyncio.sleep(0)
    return current_transaction().id


# --- tasks ----------------------------------------------------------------------------------------


def spawn_tasks() -> Any:
    async def work() -> list[str]:
        return [await asyncio.create_task(remember_async(n), name=f"task-{n}") for n in range(3)]

    return work


def gather() -> Any:
    async def work() -> list[str]:
        return await asyncio.gather(*(remember_async(number) for number in range(3)))

    return work


def task_group() -> Any:
    async def work() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(remember_async(number)) for number in range(3)]
        return [task.result() for task in tasks]

    return work


def to_thread() -> Any:
    async def work() -> list[str]:
        return await asyncio.gather(*(asyncio.to_thread(remember, n) for n in range(3)))

    return work


def call_soon() -> Any:
    async def work() -> list[str]:
        done: Future[str] = Future()
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: done.set_result(remember()))
        first = await asyncio.wrap_future(done)
        later: Future[str] = Future()
        loop.call_later(0.001, lambda: later.set_result(remember()))
        called: Future[str] = Future()
        task = asyncio.create_task(asyncio.sleep(0))
        task.add_done_callback(lambda _: called.set_result(remember()))
        return [first, await asyncio.wrap_future(later), await asyncio.wrap_future(called)]

    return work


@pytest.mark.parametrize("make", [spawn_tasks, gather, task_group, to_thread, call_soon])
@pytest.mark.parametrize("within", ["transaction", "stage"])
def test_asyncio_takes_the_transaction_along(
    t: Harness, make: Callable[[], Any], within: str
) -> None:
    """Tasks, groups, threads and callbacks that asyncio starts: nothing has to be done."""

    async def main() -> None:
        async with transaction("voice") as tx:
            if within == "stage":
                async with stage("fetch"):
                    found = await make()()
            else:
                found = await make()()
            assert found == [tx.id] * 3
        assert not current_transaction()

    asyncio.run(main())
    parent = "fetch" if within == "stage" else "voice"
    expected = [("memory", parent)] * 3 + [("voice", "")]
    assert names(t) == sorted(expected + ([("fetch", "voice")] if within == "stage" else []))
    assert outcome_of_root(t) == "success"
    if make is spawn_tasks:
        assert where(t, "memory") == ["MainThread/task-0", "MainThread/task-1", "MainThread/task-2"]
    if make is to_thread:
        assert all(name.startswith("asyncio_") for name in where(t, "memory"))


def test_each_task_has_a_current_stage_of_its_own(t: Harness) -> None:
    """Stages that overlap in many tasks are each their own task's, and children of none of them."""

    async def work(number: int) -> None:
        async with stage("chunk", key=number) as s:
            for _ in range(3):
                await asyncio.sleep(0)
                assert current_stage() is s
            async with stage("inner", number=number) as inner:
                await asyncio.sleep(0)
                assert current_stage() is inner
            assert current_stage() is s

    async def main() -> None:
        async with transaction("voice"), asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(work(number))

    asyncio.run(main())
    by_id = {s.get_span_context().span_id: s for s in t.finished_spans()}  # type: ignore[union-attr]
    inner = [s for s in t.finished_spans() if s.name == "inner"]
    assert len(inner) == 50
    for span in inner:
        assert span.parent is not None
        outer = by_id[span.parent.span_id].attributes or {}
        number = (span.attributes or {})["number"]
        assert outer["otel_tracker.stage.key"] == str(number)


def test_many_transactions_at_once_keep_apart(t: Harness) -> None:
    """One task each, as a server has them: no stage lands in another's trace."""

    async def handle(number: int) -> None:
        async with transaction("voice", user_id=f"u-{number}", number=number) as tx:
            await asyncio.sleep(0)
            async with stage("fetch", number=number):
                await asyncio.sleep(0)
                assert await remember_async() == tx.id

    async def main() -> None:
        await asyncio.gather(*(handle(number) for number in range(40)))

    asyncio.run(main())
    users: dict[int, set[object]] = {}
    for span in t.finished_spans():
        trace_id = span.get_span_context().trace_id  # type: ignore[union-attr]
        users.setdefault(trace_id, set()).add((span.attributes or {})["user.id"])
    assert sorted(map(len, users.values())) == [1] * 40
    assert t.tracker.metrics.completed_transactions == 40


def test_a_group_of_tasks_of_which_one_fails(t: Harness) -> None:
    """The one that raised is a failure, those that were cancelled for it are cancelled."""

    async def work(key: str) -> None:
        async with stage("chunk", key=key):
            if key == "bad":
                raise ValueError("broken")
            await asyncio.Event().wait()  # for ever

    async def main() -> None:
        async with transaction("voice"), asyncio.TaskGroup() as group:
            for key in ("a", "b", "bad"):
                group.create_task(work(key))

    with pytest.raises(ExceptionGroup):
        asyncio.run(main())
    told = {
        s["attributes"]["otel_tracker.stage.key"]: s["attributes"]["otel_tracker.stage.outcome"]
        for s in t.spans()
        if s["name"] == "chunk"
    }
    assert told == {"a": "cancelled", "b": "cancelled", "bad": "failure"}
    assert outcome_of_root(t) == "failure"


def test_a_stage_that_hangs_in_a_task_is_found_there(t: Harness) -> None:
    """The dashboard names the task, and the line on which it waits."""

    async def waits_for_ever(released: asyncio.Event) -> None:
        with stage("memory"):
            await released.wait()

    async def main() -> None:
        released = asyncio.Event()
        with transaction("voice"):
            task = asyncio.create_task(waits_for_ever(released), name="asr-7")
            await asyncio.sleep(0)
            t.advance(61)
            (row,) = t.tracker.get_dashboard_data()["stalled"]
            assert row["where"].endswith("/MainThread/asr-7")
            assert "waits_for_ever" in row["stack"]
            released.set()
            await task

    asyncio.run(main())
    assert outcome_of_root(t, "ended success") == "success"


def test_a_task_that_outlives_its_transaction(t: Harness) -> None:
    """Its stage still belongs to it, and still decides: there is no "too late"."""

    async def later(go: asyncio.Event) -> None:
        await go.wait()
        with stage("memory") as s:
            s.fail("no model")

    async def main() -> str:
        go = asyncio.Event()
        with transaction("voice") as tx:
            task = asyncio.create_task(later(go))
            await asyncio.sleep(0)
        assert t.status(tx.id) is COMPLETED
        t.clock.advance(1)
        go.set()
        await task
        return tx.id

    tid = asyncio.run(main())
    assert names(t) == [("memory", "voice"), ("voice", "")]
    assert t.status(tid) is FAILED


def test_a_task_that_outlives_the_stage_that_started_it(t: Harness) -> None:
    """What failed after the stage around it had ended well was not coped with by it."""
    voice = Pipeline("voice", ("request",))

    async def later(go: asyncio.Event) -> None:
        await go.wait()
        with stage("memory") as s:
            s.fail("no model")

    async def main() -> str:
        go = asyncio.Event()
        with transaction(voice) as tx, stage("request"):
            task = asyncio.create_task(later(go))
            await asyncio.sleep(0)
        t.clock.advance(1)
        go.set()
        await task
        return tx.id

    tid = asyncio.run(main())
    assert names(t) == [("memory", "request"), ("request", "voice"), ("voice", "")]
    assert t.status(tid) is FAILED


# --- threads --------------------------------------------------------------------------------------


def by_thread(tx: ActiveTransaction) -> list[str]:
    found: list[str] = []
    threads = [
        threading.Thread(target=tx.bind(lambda: found.append(remember())), name=f"worker-{n}")
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def by_pool(tx: ActiveTransaction) -> list[str]:
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(tx.bind(remember), number) for number in range(2)]
        return [*(future.result() for future in futures), *pool.map(tx.bind(remember), [3])]


def by_callback(tx: ActiveTransaction) -> list[str]:
    """A callback of a future runs on the thread that sets it, where nothing is current."""
    found: list[str] = []
    futures: list[Future[None]] = [Future() for _ in range(3)]
    for future in futures:
        future.add_done_callback(tx.bind(lambda _: found.append(remember())))

    def set_all() -> None:
        for future in futures:
            future.set_result(None)

    thread = threading.Thread(target=set_all)
    thread.start()
    thread.join()
    return found


def by_timer(tx: ActiveTransaction) -> list[str]:
    found: list[str] = []
    timers = [threading.Timer(0.001, tx.bind(lambda: found.append(remember()))) for _ in range(3)]
    for timer in timers:
        timer.start()
    for timer in timers:
        timer.join()
    return found


def by_loop_of_another_thread(tx: ActiveTransaction) -> list[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        bound = tx.bind(remember_async)
        futures = [asyncio.run_coroutine_threadsafe(bound(n), loop) for n in range(3)]
        return [future.result(10) for future in futures]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def by_run_in_executor(tx: ActiveTransaction) -> list[str]:
    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        bound = tx.bind(remember)
        with ThreadPoolExecutor(2) as pool:
            futures = [
                loop.run_in_executor(None, bound, 1),
                loop.run_in_executor(pool, bound, 2),
                loop.run_in_executor(pool, functools.partial(bound, 3)),
            ]
            return await asyncio.gather(*futures)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "go",
    [by_thread, by_pool, by_callback, by_timer, by_loop_of_another_thread, by_run_in_executor],
)
@pytest.mark.parametrize("within", ["transaction", "stage", "outside"])
def test_bind_takes_the_transaction_along(
    t: Harness, go: Callable[[ActiveTransaction], list[str]], within: str
) -> None:
    """Into threads, pools, callbacks, timers and other loops; also the stage it was bound in."""
    with transaction("voice") as tx:
        if within == "stage":
            with stage("fetch"):
                assert go(tx) == [tx.id] * 3
        elif within == "transaction":
            assert go(tx) == [tx.id] * 3
        tx.hand_over()
    if within == "outside":
        with transaction("other"), stage("unrelated"):
            assert go(tx) == [tx.id] * 3
    parents = [parent for name, parent in names(t) if name == "memory"]
    assert parents == ["fetch" if within == "stage" else "voice"] * 3


def test_without_bind_nothing_is_lost(t: Harness) -> None:
    """A thread that was not given the transaction has stages, in transactions of their own."""
    with transaction("voice") as tx, ThreadPoolExecutor(1) as pool:
        found = pool.submit(remember).result()
    assert found not in ("", tx.id)
    assert names(t) == [("memory", "transaction"), ("transaction", ""), ("voice", "")]


def test_what_is_bound_is_called_like_the_function(t: Harness) -> None:
    """Arguments, results, exceptions, and the kind of function; the thread is left as it was."""

    class Service:
        def method(self, number: int, *, word: str = "") -> str:
            return f"{number}{word}{current_transaction().id}"

    def generator(count: int) -> Iterator[str]:
        for _ in range(count):
            yield current_transaction().id

    def fails() -> None:
        raise ValueError(current_transaction().id)

    with transaction("voice") as tx:
        method, partial = tx.bind(Service().method), tx.bind(functools.partial(Service().method, 3))
        items, failing, coroutine = tx.bind(generator), tx.bind(fails), tx.bind(remember_async)
        length = tx.bind(len)
    before = context_api.get_current()

    def elsewhere() -> None:
        assert method(3, word="x") == f"3x{tx.id}"
        assert partial(word="x") == f"3x{tx.id}"
        assert list(items(2)) == [tx.id, tx.id]
        assert length("four") == 4
        with pytest.raises(ValueError, match=tx.id):
            failing()
        # By its __call__ frameworks tell that it has to be awaited.
        assert inspect.iscoroutinefunction(type(coroutine).__call__)
        assert asyncio.run(coroutine()) == tx.id
        assert not current_transaction()

    elsewhere()
    assert context_api.get_current() == before
    with ThreadPoolExecutor(1) as pool:
        pool.submit(elsewhere).result()
    assert (method.__name__, length.__name__) == ("method", "len")


def test_what_is_bound_may_run_on_many_threads_at_once(t: Harness) -> None:
    """Thousands of stages of one transaction, on eight threads: each counted, none left open."""
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait(10)
        for _ in range(100):
            with stage("chunk", key=number), stage("inner"):
                pass

    with transaction("voice") as tx, ThreadPoolExecutor(8) as pool:
        handle = t.tracker._recorder.handle(tx.id)
        assert handle is not None
        list(pool.map(tx.bind(work), range(8)))
        assert handle.frames == {}
    stages = t.tracker.get_dashboard_data()["stages"]
    assert [(row["running"], row["done"]) for row in stages.values()] == [(0, 800), (0, 800)]
    assert names(t) == sorted(
        [("chunk", "voice")] * 800 + [("inner", "chunk")] * 800 + [("voice", "")]
    )
    assert t.status(tx.id) is COMPLETED


def test_what_is_bound_in_a_stage_that_has_ended(t: Harness) -> None:
    """It still is that stage's child, as a callback of it would be."""
    with transaction("voice") as tx:
        with stage("fetch"):
            bound = tx.bind(remember)
        assert bound() == tx.id
    assert names(t) == [("fetch", "voice"), ("memory", "fetch"), ("voice", "")]


def test_what_is_bound_pickles_with_its_carrier(t: Harness) -> None:
    """Where it is loaded it runs in the same transaction, by the tracker that is shared there."""
    with transaction("voice") as tx:
        packed = pickle.dumps([tx.bind(remember), tx.bind(remember_async)])
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(tx.bind(lambda: 3))  # as by itself
        tx.hand_over()
    with fresh_tracker(use_as_shared=True) as there:
        loaded, loaded_async = pickle.loads(packed)  # noqa: S301 -- made above
        assert loaded() == asyncio.run(loaded_async()) == tx.id
        assert not current_transaction()
    assert names(there) == [("memory", "?")] * 2
    assert {s["attributes"]["otel_tracker.pipeline"] for s in there.spans()} == {"voice"}
    with fresh_tracker(use_as_shared=True, disabled=True):
        assert pickle.loads(packed) == [remember, remember_async]  # noqa: S301 -- as above


def test_a_disabled_tracker_binds_nothing() -> None:
    with fresh_tracker(use_as_shared=True, disabled=True), transaction("voice") as tx:
        assert tx.bind(remember) is remember


# --- attempts at one stage that overlap -----------------------------------------------------------

ORDERS: Final = [
    order
    for order in itertools.permutations(("+bad", "+good", "-bad", "-good"))
    if order.index("+bad") < order.index("-bad") and order.index("+good") < order.index("-good")
]
"""Starts and ends of two attempts, one of which fails, in every order."""


def play(t: Harness, order: tuple[str, ...], keys: dict[str, Any], seconds: float) -> None:
    """Runs the two attempts on threads of their own, one step at a time."""
    blocks = {name: stage("chunk", key=keys.get(name)) for name in ("bad", "good")}
    tx = current_transaction()
    workers = {name: ThreadPoolExecutor(1) for name in blocks}
    actives = {}
    try:
        for step in order:
            t.clock.advance(seconds)
            name = step[1:]
            if step[0] == "+":
                enter = tx.bind(blocks[name].__enter__)
                actives[name] = workers[name].submit(enter).result(10)
            else:
                if name == "bad":
                    actives[name].fail("broken")
                workers[name].submit(leave, blocks[name]).result(10)
    finally:
        for worker in workers.values():
            worker.shutdown()


@pytest.mark.parametrize("seconds", [1.0, 0.0])
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_of_two_attempts_that_overlap_a_failure_stands(
    t: Harness, order: tuple[str, ...], seconds: float
) -> None:
    """Branches of a fan-out do not make up for each other, in whatever order; a later retry does.

    Also where the clock did not move between any of it.
    """
    is_retried = order == ("+bad", "-bad", "+good", "-good")
    with transaction("voice") as tx:
        play(t, order, {}, seconds)
        with transaction("unrelated"), stage("chunk"):
            pass
        assert t.status(tx.id) is (IN_PROGRESS if is_retried else FAILED)
    assert t.status(tx.id) is (COMPLETED if is_retried else FAILED)
    assert outcome_of_root(t) == ("success" if is_retried else "failure")


@pytest.mark.parametrize("seconds", [1.0, 0.0])
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_a_retry_after_two_that_overlapped_puts_it_right(
    t: Harness, order: tuple[str, ...], seconds: float
) -> None:
    """It began after both had ended: whatever they came to, it counts."""
    with transaction("voice") as tx:
        play(t, order, {}, seconds)
        t.clock.advance(seconds)
        with stage("chunk"):
            pass
        assert t.status(tx.id) is IN_PROGRESS
    assert t.status(tx.id) is COMPLETED
    assert outcome_of_root(t) == "success"


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_with_keys_each_branch_is_by_itself(t: Harness, order: tuple[str, ...]) -> None:
    """Even one that came wholly after the other makes up for its own key alone."""
    with transaction("voice") as tx:
        play(t, order, {"bad": 1, "good": 2}, 1)
        with stage("chunk", key=2):
            pass
        with stage("chunk"):
            pass
        assert t.status(tx.id) is FAILED
        with stage("chunk", key=1):
            pass
        assert t.status(tx.id) is IN_PROGRESS
    assert outcome_of_root(t) == "success"


def test_a_retry_that_fails_too(t: Harness) -> None:
    """The newest failure is the one that is told."""
    with transaction("voice") as tx:
        for message in ("first", "second"):
            with stage("memory") as s:
                s.fail(message)
            t.clock.advance(1)
    assert t.issue(tx.id) == "Failed at memory_completed: second"
    assert outcome_of_root(t) == "failure"


# --- nested stages --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outer", "status"),
    [("", COMPLETED), ("skip", COMPLETED), ("fail", FAILED), ("cancel", FAILED)],
)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_nested_failure_that_the_stage_around_coped_with(
    t: Harness, outer: str, status: TransactionStatus, depth: int
) -> None:
    """It shows, and it counts for the stage's tally, and not for the transaction's status."""
    with transaction("voice") as tx:
        block = stage("outer")
        s = block.__enter__()
        with contextlib.ExitStack() as around:
            for number in range(depth - 1):
                around.enter_context(stage(f"between-{number}"))
            with stage("inner") as inner:
                inner.fail("no JSON")
            t.clock.advance(1)
        # Those between were left well, and have coped with it by themselves.
        assert t.status(tx.id) is IN_PROGRESS
        if outer in ("skip", "fail"):
            getattr(s, outer)("because")
        leave(block, asyncio.CancelledError() if outer == "cancel" else None)
    assert t.status(tx.id) is status
    assert t.tracker.get_dashboard_data()["stages"]["inner"]["failed"] == 1
    only_cancelled = outer == "cancel" and depth > 1
    failed = "cancelled" if only_cancelled else "failure"
    assert outcome_of_root(t) == (failed if status is FAILED else "success")


def test_a_nested_failure_in_tasks_and_threads(t: Harness) -> None:
    """A stage that starts others elsewhere, and waits for them, copes with them as well."""

    async def attempt(number: int) -> None:
        async with stage("attempt", key=number) as s:
            await asyncio.sleep(0)
            if number:
                s.fail("busy")

    def in_thread(number: int) -> None:
        with stage("thread", key=number) as s:
            s.fail("busy")

    async def main() -> str:
        async with transaction("voice") as tx, stage("outer"):
            await asyncio.gather(*(attempt(number) for number in range(3)))
            await asyncio.to_thread(in_thread, 1)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(tx.bind(in_thread), 2).result()
        return tx.id

    tid = asyncio.run(main())
    assert t.status(tid) is COMPLETED
    assert outcome_of_root(t) == "success"


# --- other services, by OpenTelemetry's own propagation -------------------------------------------


@pytest.fixture
def service() -> Iterator[Harness]:
    """The tracker of another service."""
    with fresh_tracker() as harness:
        yield harness


def injected() -> dict[str, str]:
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


@contextlib.contextmanager
def extracted(headers: dict[str, str]) -> Iterator[None]:
    token = context_api.attach(
        TraceContextTextMapPropagator().extract(headers, context_api.Context())
    )
    try:
        yield
    finally:
        context_api.detach(token)


@pytest.mark.parametrize("sender", ["transaction", "stage", "span of the application"])
@pytest.mark.parametrize("receiving", ["bare", "span of the application"])
def test_a_stage_under_a_remote_span_joins_the_transaction(
    t: Harness, service: Harness, sender: str, receiving: str
) -> None:
    """The marked trace finds its transaction in a service that was told nothing else."""
    with contextlib.ExitStack() as around:
        tx = around.enter_context(transaction("voice"))
        if sender != "transaction":
            around.enter_context(stage("fetch"))
        if sender == "span of the application":
            client = t.provider.get_tracer("client")
            around.enter_context(client.start_as_current_span("POST"))
        headers = injected()
        sent_from = f"{trace.get_current_span().get_span_context().span_id:016x}"
    with extracted(headers), contextlib.ExitStack() as around:
        if receiving != "bare":
            server = service.provider.get_tracer("server")
            around.enter_context(server.start_as_current_span("POST /"))
        s = around.enter_context(stage("memory", tracker=service.tracker))
        assert s.transaction.id == tx.id
        around.enter_context(stage("inner", tracker=service.tracker))
    spans = {span.name: span for span in service.finished_spans()}
    remote = spans["memory" if receiving == "bare" else "POST /"]
    assert remote.parent is not None
    assert f"{remote.parent.span_id:016x}" == sent_from
    assert ("inner", "memory") in names(service)
    for name in ("memory", "inner"):
        attributes = spans[name].attributes or {}
        assert attributes["otel_tracker.transaction.id"] == tx.id
        assert attributes["otel_tracker.pipeline"] == "voice"
    assert service.tracker.get_dashboard_data()["health"]["problems"] == {}


def test_the_current_transaction_under_a_remote_span(t: Harness, service: Harness) -> None:
    """A service can end it, or hand it on, without a stage of its own around."""
    with transaction("voice") as tx:
        headers = injected()
        tx.hand_over()
    with extracted(headers):
        there = service.tracker.frames.current_transaction()
        assert there.id == tx.id
        assert there.carrier()["tracestate"] == "otel_tracker=voice"
        there.end(success=False, error="no model")
    assert names(service) == [("ended failure", "?")]


FOREIGN: Final = "0af7651916cd43dd8448eb211c80319c"
LOOKS_LIKE_OURS: Final = "0af7651916cd83dd8448eb211c80319c"
"""One foreign trace id in sixteen has our mark digit."""


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": f"00-{FOREIGN}-b7ad6b7169203331-01"},
        {"traceparent": f"00-{LOOKS_LIKE_OURS}-b7ad6b7169203331-01"},
        {"traceparent": f"00-{LOOKS_LIKE_OURS}-b7ad6b7169203331-01", "tracestate": "vendor=voice"},
        {"traceparent": f"00-{FOREIGN}-b7ad6b7169203331-01", "tracestate": "otel_tracker=voice"},
        {"traceparent": f"00-{FOREIGN}-b7ad6b7169203331-00", "tracestate": "a=otel_tracker"},
    ],
)
def test_a_remote_trace_of_others_is_not_joined(t: Harness, headers: dict[str, str]) -> None:
    """The stage has a transaction of its own, linked with the remote span; both marks are asked."""
    assert is_ours(int(LOOKS_LIKE_OURS, 16))
    assert not is_ours(int(FOREIGN, 16))
    with extracted(headers):
        assert not current_transaction()
        with stage("memory") as s:
            tid = s.transaction.id
    assert names(t) == [("memory", "transaction"), ("transaction", "")]
    remote = headers["traceparent"].split("-")[1]
    assert tid.replace("-", "") != remote
    assert next(span["links"] for span in t.spans() if span["name"] == "transaction") == [remote]
    assert t.status(tid) is COMPLETED


def test_an_unsampled_remote_trace_stays_unsampled(t: Harness) -> None:
    """What the service with the root decided holds; the dashboard counts it all the same."""
    trace_id = int(LOOKS_LIKE_OURS, 16)
    state = TraceState([("otel_tracker", "voice")])
    remote = SpanContext(trace_id, 0xB7AD6B7169203331, True, TraceFlags(0), state)
    token = context_api.attach(trace.set_span_in_context(NonRecordingSpan(remote)))
    with stage("memory") as s:
        assert s.transaction.id.replace("-", "") == LOOKS_LIKE_OURS
    context_api.detach(token)
    assert t.spans() == []
    assert t.tracker.get_dashboard_data()["stages"]["memory"]["done"] == 1


# --- processes ------------------------------------------------------------------------------------

WORKERS: Final = """
import json, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
from otel_tracker import current_stage, current_transaction, stage, transaction

@stage("memory", transaction_id="tid")
def remember(tid):
    assert current_transaction().id == tid
    with stage("inner"):
        pass

@stage("chunk", key="number")
def work(number):
    return os.getpid(), current_transaction().id

def bound(tid):
    assert current_transaction().id == tid
    with stage("bound"):
        pass

def main(method):
    context = multiprocessing.get_context(method)
    with transaction("voice", user_id="ann") as tx:
        with stage("fetch"):
            pass
        processes = [
            context.Process(target=remember, args=(tx.id,)),
            context.Process(target=tx.bind(bound), args=(tx.id,)),
        ]
        for process in processes:
            process.start()
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            futures = [pool.submit(tx.bind(work), number) for number in range(3)]
            futures += [pool.submit(tx.bind(work), number=3)]
            done = [future.result(30) for future in futures]
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0, 0]
    print(json.dumps({
        "tid": tx.id, "pid": os.getpid(), "pids": [process.pid for process in processes],
        "pool": done,
    }))

if __name__ == "__main__":
    main(sys.argv[1])
"""


def script(tmp_path: Path, source: str) -> str:
    """A program as a user would have it: what it starts can import it again."""
    path = tmp_path / "program.py"
    path.write_text(source)
    return str(path)


def of(arrived: list[Arrived], name: str) -> list[Arrived]:
    return [span for span in arrived if span.name == name]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_carries_on(method: str, tmp_path: Path) -> None:
    """By the id as an argument, and bound: one trace, one root, each span with its own process."""
    with receiver() as (endpoint, spans):
        printed = json.loads(run([script(tmp_path, WORKERS), method], endpoint))
    arrived = of_trace(spans, printed["tid"])
    assert len(arrived) == len(spans) == 9
    assert tree(arrived) == sorted(
        [
            ("voice", ""), ("fetch", "voice"), ("memory", "voice"), ("inner", "memory"),
            ("bound", "voice"), *[("chunk", "voice")] * 4,
        ]
    )  # fmt: skip
    (root,), (fetch,), (memory,), (inner,), (bound,) = (
        of(arrived, name) for name in ("voice", "fetch", "memory", "inner", "bound")
    )
    assert root.process == fetch.process == printed["pid"]
    for span in (root, fetch, memory, inner, bound):
        where = f"{socket.gethostname()}/{span.process}/MainThread"
        assert span.attributes["otel_tracker.where"] == where
    assert [memory.process, bound.process] == printed["pids"]
    assert inner.process == memory.process
    assert {tid for _, tid in printed["pool"]} == {printed["tid"]}
    chunks = of(arrived, "chunk")
    assert {(span.attributes["otel_tracker.stage.key"], span.process) for span in chunks} == {
        (str(number), pid) for number, (pid, _) in enumerate(printed["pool"])
    }
    assert printed["pid"] not in {span.process for span in chunks}
    assert {span.outcome for span in arrived} == {"success"}
    assert {span.attributes["otel_tracker.transaction.id"] for span in arrived} == {printed["tid"]}


SHORT_LIVED: Final = """
import json, multiprocessing, os
from otel_tracker import stage, transaction

@stage("chunk", key="number")
def work(number):
    return os.getpid()

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with transaction("voice") as tx, context.Pool(3, maxtasksperchild=1) as pool:
        pids = pool.map(tx.bind(work), range(12), chunksize=1)
        pool.close()
        pool.join()
    print(json.dumps({"tid": tx.id, "pids": pids}))
"""


def test_workers_that_live_for_one_task_lose_nothing(tmp_path: Path) -> None:
    """A pool with maxtasksperchild=1: a process for each task, and each one's span arrives."""
    with receiver() as (endpoint, spans):
        printed = json.loads(run([script(tmp_path, SHORT_LIVED)], endpoint))
    arrived = of_trace(spans, printed["tid"])
    assert tree(arrived) == sorted([("voice", ""), *[("chunk", "voice")] * 12])
    assert len(set(printed["pids"])) == 12
    assert {
        int(span.attributes["otel_tracker.stage.key"]): span.process
        for span in of(arrived, "chunk")
    } == dict(enumerate(printed["pids"]))


SUBPROCESSES: Final = """
import json, os, subprocess, sys
from otel_tracker import current_transaction, stage, transaction

def child(*arguments, **options):
    done = subprocess.run(
        [sys.executable, __file__, *arguments], text=True, capture_output=True, timeout=50,
        check=True, **options,
    )
    return int(done.stdout)

if sys.argv[1:2] == ["id"]:
    with stage("by id", transaction_id=sys.argv[2]):
        with stage("inner"):
            pass
elif sys.argv[1:2] == ["carrier"]:
    with transaction(carrier=json.load(sys.stdin), client_id="child") as tx:
        with stage("by carrier"):
            pass
        with stage("failing") as s:
            s.fail("no model")
elif sys.argv[1:2] == ["headers"]:
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    context.attach(TraceContextTextMapPropagator().extract(json.loads(sys.argv[2])))
    with stage("by headers"):
        pass
else:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    headers = {}
    with transaction("voice", user_id="ann") as tx:
        with stage("fetch"):
            TraceContextTextMapPropagator().inject(headers)
        pids = [
            child("id", tx.id),
            child("carrier", input=json.dumps(tx.carrier())),
            child("headers", json.dumps(headers)),
        ]
        tx.end()
    print(json.dumps({"tid": tx.id, "pid": os.getpid(), "pids": pids}))
    sys.exit()
print(os.getpid())
"""


def test_a_subprocess_carries_on(tmp_path: Path) -> None:
    """By the id alone as an argument, by the carrier as JSON, and by W3C's headers."""
    with receiver() as (endpoint, spans):
        printed = json.loads(run([script(tmp_path, SUBPROCESSES)], endpoint))
    arrived = of_trace(spans, printed["tid"])
    assert len(arrived) == len(spans)
    assert tree(arrived) == sorted(
        [
            ("voice", ""), ("fetch", "voice"), ("by id", "voice"), ("inner", "by id"),
            ("by carrier", "voice"), ("failing", "voice"), ("by headers", "fetch"),
            ("ended failure", "voice"),  # at its exit, by the one process that knows of it
        ]
    )  # fmt: skip
    (by_id,), (by_carrier,), (by_headers,) = (
        of(arrived, name) for name in ("by id", "by carrier", "by headers")
    )
    assert [by_id.process, by_carrier.process, by_headers.process] == printed["pids"]
    assert by_carrier.attributes["otel_tracker.client.id"] == "child"
    for span in (by_carrier, by_headers):
        assert span.attributes["otel_tracker.pipeline"] == "voice"
    (failing,) = of(arrived, "failing")
    assert (failing.outcome, failing.is_error, failing.message) == ("failure", True, "no model")


FORKS: Final = """
import json, os, sys
from otel_tracker import (
    current_stage, current_transaction, get_debug_tracker, stage, transaction,
)

def in_the_child(how, tx, s):
    assert current_transaction().id == tx.id
    if how == "speaks of the stage":
        s.set(rows=1)
        s.progress(done=1)
        s.fail("said by the child")
    if how == "hands over":
        current_transaction().hand_over()
    if how == "tells the end":
        tx.end(success=False, error="said by the child")
    with stage("memory"):
        with stage("inner"):
            pass
    if how == "exits":
        sys.exit(0)
    if how == "raises":
        raise ValueError("in the child")

told = []
for how in sys.argv[1:]:
    child = None
    try:
        with transaction("voice", user_id="ann") as tx:
            with stage("fetch") as s:
                get_debug_tracker().get_dashboard_data()  # it has heard of all that is open
                child = os.fork()
                if child == 0:
                    in_the_child(how, tx, s)
                else:
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ValueError:
        assert child == 0
    with stage("alone") as s:
        alone = s.transaction.id
    if child == 0:
        stages = get_debug_tracker().get_dashboard_data()["stages"]
        sys.exit(7 if any(row["running"] for row in stages.values()) else 0)
    told.append({"tid": tx.id, "child": child, "alone": alone, "code": code})
print(json.dumps({"pid": os.getpid(), "told": told}))
"""
WAYS: Final = ("leaves", "exits", "raises", "speaks of the stage", "hands over", "tells the end")


def test_a_fork_within_a_block(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """The child leaves its parent's blocks: nothing is ended twice, and its own work carries on."""
    with receiver() as (endpoint, spans):
        printed = json.loads(run([script(tmp_path, FORKS), *WAYS], endpoint))
    for how, told in zip(WAYS, printed["told"], strict=True):
        with subtests.test(how=how):
            assert told["code"] == 0, "7: in the child's dashboard something runs for ever"
            arrived = of_trace(spans, told["tid"])
            expected = [("voice", ""), ("fetch", "voice"), ("memory", "fetch"), ("inner", "memory")]
            if how == "tells the end":
                expected.append(("ended failure", "voice"))  # its root is not open there
            assert tree(arrived) == sorted(expected)
            for span in arrived:
                is_parents = span.name in ("voice", "fetch")
                assert span.process == (printed["pid"] if is_parents else told["child"]), span.name
            outcomes = {span.name: span.outcome for span in arrived}
            assert outcomes.pop("ended failure", "failure") == "failure"
            assert set(outcomes.values()) == {"success"}
            # What came after the blocks is a transaction of its own.
            assert tree(of_trace(spans, told["alone"])) == [
                ("alone", "transaction"), ("transaction", ""),
            ]  # fmt: skip
