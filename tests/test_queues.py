"""docs/queues.md works as it stands: its code and its commands, against a real Redis server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import redis
from celery import Celery  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from redis import Redis
from rq import Queue

from otel_tracker import PipelineStage, TransactionStatus, api, stage, transaction
from otel_tracker.debug_tracker import DebugSystemTracker
from otel_tracker.directory import wall_ns_of
from otel_tracker.model import NS_PER_S
from otel_tracker.semconv import STAGE_ATTEMPT, TRANSACTION_ID
from otel_tracker.testing import START_NS, fresh_tracker
from tests.otlp import ROOT, plain, receiver
from tests.queues import with_celery, with_rq, with_stream
from tests.queues.notes import FLAKY, notes

JOBS: Final = 20
MS: Final = 1_000_000


def until(what: str, is_so: Callable[[], Any], timeout_s: float = 60) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"after {timeout_s} s still waiting for: {what}"
        time.sleep(0.02)


# --- servers and workers --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis server of the tests' own, which keeps nothing."""
    program = shutil.which("redis-server")
    if program is None:
        message = "redis-server is not installed (Debian: apt-get install redis-server)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    port = free_port()
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        with Redis(port=port) as client:
            until("redis-server", lambda: answers(client) or server.poll() is not None, 20)
        assert server.poll() is None, "redis-server did not start"
        yield f"redis://127.0.0.1:{port}"
    finally:
        end(server)


def answers(client: Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def silence() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def end(process: subprocess.Popen[Any]) -> None:
    """Asks it to end, as a service manager does, and sees to it that it has."""
    process.terminate()
    try:
        process.wait(30)
    finally:
        process.kill()


@contextmanager
def worker(
    command: list[str], endpoint: str, redis_url: str, log: Path, **variables: str
) -> Iterator[subprocess.Popen[Any]]:
    """A worker in a process of its own, asked to end at the end of the block.

    What it said is shown where a test fails.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    env.update(PYTHONPATH=str(ROOT), REDIS_URL=redis_url, RQ_REDIS_URL=redis_url, **variables)
    if endpoint:
        env.update(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_SERVICE_NAME="notes-worker")
    program = Path(sys.executable).with_name(command[0])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]], env=env, cwd=ROOT, stdout=output, stderr=output
        )
        try:
            yield process
            assert process.poll() in (None, 0), "the worker has left by itself"
        finally:
            end(process)
            print(log.read_text(encoding="utf-8", errors="replace")[-5_000:])  # noqa: T201


@contextmanager
def sending(endpoint: str = "") -> Iterator[DebugSystemTracker]:
    """The tracker of the application that sends; its spans go to `endpoint` at once."""
    provider = TracerProvider(shutdown_on_exit=False)
    if endpoint:
        exporter = OTLPSpanExporter(f"{endpoint}/v1/traces")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracker = DebugSystemTracker(provider, run_sweeper=False, settle=0.001)
    before = api.replace_shared(tracker)
    try:
        yield tracker
    finally:
        api.replace_shared(before)
        tracker.shutdown()
        provider.shutdown()


# --- one run of each kind -------------------------------------------------------------------------


class Side(NamedTuple):
    """The application's side of a queue."""

    send: Callable[[str], Any]
    """Sends one text, as the document does."""
    is_done: Callable[[], bool]
    """Whether the queue says that everything sent was worked on."""


@contextmanager
def rq_side(url: str) -> Iterator[Side]:
    jobs = []
    with Redis.from_url(url) as redis:
        queue = Queue("notes", connection=redis)
        yield Side(
            lambda text: jobs.append(with_rq.send(queue, "user", text)),
            lambda: all(job.get_status() == "finished" for job in jobs),
        )


@contextmanager
def celery_side(url: str) -> Iterator[Side]:
    results = []
    with_celery.app.conf.update(broker_url=url, result_backend=url)
    yield Side(
        lambda text: results.append(with_celery.send("user", text)),
        lambda: all(result.ready() for result in results),
    )
    with_celery.app.close()


@contextmanager
def stream_side(url: str) -> Iterator[Side]:
    with Redis.from_url(url) as redis:

        def is_done() -> bool:
            groups: Any = redis.xinfo_groups("notes")
            return bool(groups) and groups[0]["lag"] == groups[0]["pending"] == 0

        yield Side(lambda text: with_stream.send(redis, "user", text), is_done)


class Kind(NamedTuple):
    """A queue, and the worker that takes from it."""

    name: str
    side: Callable[[str], AbstractContextManager[Side]]
    database: int
    module: str
    mark: str
    """What its command in the document has in it."""
    more: tuple[str, ...] = ()
    """What the tests add to that command."""
    begins: tuple[str, ...] = ()
    """What makes it note when it begins a job, where it does not by itself."""

    def emptied(self, redis_url: str) -> str:
        """Its database, without what a test before has left in it."""
        url = f"{redis_url}/{self.database}"
        with Redis.from_url(url) as redis:
            redis.flushdb()
        return url

    def command(self) -> list[str]:
        """The document's command, with its module where the tests have it."""
        lines = re.findall(r"^\$ OTEL_SERVICE_NAME=notes-worker (.+)$", document(), re.MULTILINE)
        (line,) = [line for line in lines if self.mark in line]
        line = re.sub(r"\bwith_(rq|celery)\b", r"tests.queues.with_\1", line)
        return [*line.replace("with_stream.py", "tests/queues/with_stream.py").split(), *self.more]


RQ: Final = Kind("rq", rq_side, 1, "tests.queues.with_rq", "rq worker")
# Celery's pool makes new children every few seconds only: four of them take turns.
QUICK: Final = ("--without-gossip", "--without-mingle", "--without-heartbeat")
POOL: Final = ("--concurrency", "4", *QUICK)
BEGINS: Final = ("--include", "tests.queues.began")
PREFORK: Final = Kind(
    "celery-prefork", celery_side, 2, "tests.queues.with_celery", "--pool prefork", POOL, BEGINS
)
THREADS: Final = Kind(
    "celery-threads", celery_side, 2, "tests.queues.with_celery", "--pool threads", POOL
)
STREAM: Final = Kind("stream", stream_side, 3, "tests.queues.with_stream", "with_stream.py")


@dataclass
class Run:
    """What was sent, and what came of it."""

    kind: Kind
    sent_ns: list[tuple[int, int]] = field(default_factory=list)
    """Before and after each sending."""
    started_ns: int = 0
    """When the worker was started."""
    spans: list[Any] = field(default_factory=list)
    waiting: dict[str, Any] = field(default_factory=dict)
    """The sender's dashboard while nobody has taken anything."""
    done: dict[str, Any] = field(default_factory=dict)
    """The sender's dashboard when what the worker exported has come to it."""
    retried: list[tuple[Any, bool]] = field(default_factory=list)
    """The events of the transaction that was retried, as that dashboard knows them."""

    def traces(self) -> list[list[Any]]:
        """The spans of each transaction, its root and then what ended; the retried one is last."""
        by_id: dict[bytes, list[Any]] = {}
        for span in sorted(
            self.spans, key=lambda s: (bool(s.parent_span_id), s.end_time_unix_nano)
        ):
            by_id.setdefault(span.trace_id, []).append(span)
        return list(by_id.values())


@pytest.fixture(scope="module", params=[RQ, PREFORK, THREADS, STREAM], ids=lambda kind: kind.name)
def run(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Twenty jobs and one that fails at first, sent before a worker is there, then worked on.

    The worker is asked to end as soon as the queue says that all is done.
    """
    kind: Kind = request.param
    this = Run(kind)
    folder = tmp_path_factory.mktemp(kind.name)
    texts = [*(f"text {number}" for number in range(JOBS)), f"{FLAKY}{folder / 'been-here'}"]
    url = kind.emptied(redis_url)
    with receiver() as (endpoint, spans), sending(endpoint) as tracker, kind.side(url) as side:
        for text in texts:
            before = time.time_ns()
            side.send(text)
            this.sent_ns.append((before, time.time_ns()))
        this.waiting = tracker.get_dashboard_data()
        this.started_ns = time.time_ns()
        with worker(kind.command(), endpoint, url, folder / "worker.log") as process:
            until("the jobs", lambda: side.is_done() or process.poll() is not None)
        log = (folder / "worker.log").read_text(encoding="utf-8", errors="replace")
        assert "health.problems" not in log, "the worker's tracker had something to complain of"
        this.spans = list(spans)
        tracker.receiver.take(as_request(this.spans))
        time.sleep(0.01)  # longer than `settle`
        this.done = tracker.get_dashboard_data()
        known = tracker.get_transaction(transaction_id_of(this.traces()[-1]))
        this.retried = [(e.stage, e.success) for e in known.events] if known else []
    return this


def as_request(spans: list[Any]) -> bytes:
    """The spans as one request, as a Collector passes them on."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(spans)
    body: bytes = request.SerializeToString()
    return body


def transaction_id_of(trace: list[Any]) -> str:
    (found,) = {plain(span).attributes[TRANSACTION_ID] for span in trace}
    return str(found)


def test_nothing_is_lost(run: Run) -> None:
    """Of every job the wait and the attempt arrive, under the root that the sender made.

    Though the work-horse has left by `os._exit`, or the child after its only task, or the worker as
    soon as all was done.
    """
    traces = run.traces()
    assert len(traces) == JOBS + 1
    for trace in traces[:-1]:
        shown = [(span.name, plain(span).outcome) for span in told(trace)]
        assert shown == [("notes", None), ("memory queued", None), ("memory", "success")]
        root, *children = told(trace)
        assert [span.parent_span_id for span in children] == [root.span_id] * 2
    horses = [plain(span).process for trace in traces for span in trace if span.name == "memory"]
    assert len(horses) == JOBS + 2
    assert os.getpid() not in horses
    assert len(set(horses)) == (JOBS + 2 if run.kind in (RQ, PREFORK) else 1)


def told(trace: list[Any]) -> list[Any]:
    """Without the verdict, which a worker tells that lives long enough to know it."""
    return [span for span in trace if not span.name.startswith("ended ")]


def test_the_time_in_the_queue_is_a_span(run: Run) -> None:
    """It begins when the job was sent, and ends when a worker takes it: the attempt begins."""
    for trace, (before_ns, after_ns) in zip(run.traces(), run.sent_ns, strict=True):
        _, wait, attempt, *_ = trace
        assert before_ns - 2 * MS <= wait.start_time_unix_nano <= after_ns
        assert run.started_ns < wait.end_time_unix_nano <= attempt.start_time_unix_nano
        assert attempt.start_time_unix_nano - wait.end_time_unix_nano < NS_PER_S


def test_a_retry_is_a_second_attempt_with_a_wait_of_its_own(run: Run) -> None:
    """It waits from its own enqueuing on, not from the first: the two waits do not overlap."""
    root, first_wait, failed, second_wait, good = told(run.traces()[-1])
    assert [plain(span).outcome for span in (failed, good)] == ["failure", "success"]
    assert (plain(failed).message, plain(failed).attributes["error.type"]) == (
        "the model is away",
        "ConnectionError",
    )
    assert first_wait.name == second_wait.name == "memory queued"
    assert {span.parent_span_id for span in (failed, second_wait, good)} == {root.span_id}
    assert failed.end_time_unix_nano - 2 * MS <= second_wait.start_time_unix_nano
    assert second_wait.end_time_unix_nano <= good.start_time_unix_nano


def test_the_second_attempt_does_not_say_that_it_is_the_first(run: Run) -> None:
    """Also where each attempt has a process of its own, which knows nothing of the one before."""
    first, second = [
        plain(span).attributes.get(STAGE_ATTEMPT)
        for span in run.traces()[-1]
        if span.name == "memory"
    ]
    assert first in (1, None)
    assert second in (2, None)


def test_the_senders_dashboard_shows_what_is_elsewhere(run: Run) -> None:
    """What was handed over is neither a stall nor an issue, and waits in the view of its sender."""
    rows = run.waiting["waiting"]
    assert [(r["stage"], r["state"]) for r in rows] == [("memory", "elsewhere")] * (JOBS + 1)
    assert run.waiting["stalled"] == run.waiting["recent_issues"] == []
    assert run.waiting["system_metrics"]["active_transactions"] == JOBS + 1


def test_a_dashboard_that_the_workers_spans_come_to_shows_all_done(run: Run) -> None:
    """The same dashboard, once it got what the workers exported: nothing waits, nothing failed."""
    metrics = run.done["system_metrics"]
    assert (metrics["completed_transactions"], metrics["active_transactions"]) == (JOBS + 1, 0)
    assert run.done["waiting"] == run.done["stalled"] == []
    assert run.done["stages"]["memory"]["failed"] == 1
    assert run.retried == [
        (PipelineStage.MEMORY_STARTED, True),
        (PipelineStage.MEMORY_COMPLETED, False),
        (PipelineStage.MEMORY_STARTED, True),
        (PipelineStage.MEMORY_COMPLETED, True),
    ]


# --- nobody listens -------------------------------------------------------------------------------


class Worked(NamedTuple):
    """What is known of a job that was done; wall clock, in seconds."""

    began: float
    had_result: float
    process_id: int


Job = Callable[[], Worked | None]
"""Asks for a job; None until it has its result."""


@contextmanager
def rq_jobs(url: str, module: str) -> Iterator[Callable[[dict[str, str]], Job]]:
    with Redis.from_url(url) as redis:
        queue = Queue("notes", connection=redis)

        def send(carrier: dict[str, str]) -> Job:
            job = queue.enqueue(f"{module}.make_memory", "text", carrier)

            def ask() -> Worked | None:
                job.refresh()  # type: ignore[no-untyped-call]
                if not job.is_finished or job.started_at is None or job.ended_at is None:
                    return None
                times = job.started_at.timestamp(), job.ended_at.timestamp()
                return Worked(*times, job.return_value() or 0)

            return ask

        yield send


@contextmanager
def celery_jobs(url: str, module: str) -> Iterator[Callable[[dict[str, str]], Job]]:
    with Celery(broker=url, backend=url, set_as_current=False) as app:

        def send(carrier: dict[str, str]) -> Job:
            sent = app.send_task(f"{module}.make_memory", ("text", carrier))

            def ask() -> Worked | None:
                if not sent.ready():
                    return None
                began = float(app.backend.client.get(f"began-{sent.id}"))
                return Worked(began, (wall_ns_of(sent.date_done) or 0) / NS_PER_S, sent.result)

            return ask

        yield send


def has_left(process_id: int) -> bool:
    """Whether a process has ended, also where nobody has asked yet how it ended."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError):  # no Linux, or gone at this moment
        status = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii")
        return status.rpartition(")")[2].split()[0] == "Z"
    return False


class Times(NamedTuple):
    """Seconds after a worker began a job."""

    result: float
    """Until it had a result."""
    left: float
    """Until the process that did it had left."""


def round_of(workers: dict[str, Callable[[dict[str, str]], Job]]) -> dict[str, Times]:
    """One job to each worker, the next when the one before has its result; until all have left."""
    with transaction(notes) as tx:
        carrier = tx.carrier()
    under_way: dict[str, Worked] = {}
    ended: dict[str, Times] = {}

    def look() -> None:
        for lane, (began, had_result, process_id) in under_way.items():
            if lane not in ended and has_left(process_id):
                ended[lane] = Times(had_result - began, time.time() - began)

    def has_result(lane: str, job: Job) -> bool:
        look()
        worked = job()
        if worked is not None:
            under_way[lane] = worked
        return worked is not None

    def have_left() -> bool:
        look()
        return len(ended) == len(workers)

    for lane, send in workers.items():
        until("a result", partial(has_result, lane, send(carrier)))
    until("all to leave", have_left)
    return ended


@pytest.mark.parametrize(
    ("kind", "jobs"), [(RQ, rq_jobs), (PREFORK, celery_jobs)], ids=["rq", "celery-prefork"]
)
def test_with_nobody_listening_a_job_ends_at_most_2_s_later(
    redis_url: str, tmp_path: Path, kind: Kind, jobs: Any
) -> None:
    """Its result is there as soon as without us, and its process leaves at most 2 s later.

    Three workers get a job in turn, a few times: one that knows no tracker, one whose endpoint is a
    closed port, and one whose endpoint accepts and never answers.
    """
    tracked = [*kind.command(), *kind.begins]
    untracked = [word.replace(kind.module, "tests.queues.untracked") for word in tracked]
    if kind is RQ:
        untracked = ["rq", "worker", "notes"]
    with ExitStack() as stack:
        stack.enter_context(sending())
        lanes = {
            "untracked": (untracked, "", "tests.queues.untracked"),
            "closed": (tracked, f"http://127.0.0.1:{free_port()}", kind.module),
            "silent": (tracked, stack.enter_context(silence()), kind.module),
        }
        workers = {}
        for number, (lane, (command, endpoint, module)) in enumerate(lanes.items()):
            url = f"{redis_url}/{kind.database * 3 + 2 + number}"
            stack.enter_context(worker(command, endpoint, url, tmp_path / f"{lane}.log"))
            workers[lane] = stack.enter_context(jobs(url, module))
        rounds = [round_of(workers) for _ in range(3)]
    for lane in ("closed", "silent"):
        result = statistics.median(one[lane].result - one["untracked"].result for one in rounds)
        left = statistics.median(one[lane].left - one["untracked"].left for one in rounds)
        assert result < 1, rounds
        assert left <= 2, rounds
        assert lane == "closed" or left > 0.5, "it was not tracked, or did not try to send"


def test_with_nobody_listening_a_worker_that_lives_on_goes_from_job_to_job(
    redis_url: str, tmp_path: Path
) -> None:
    """Threads of Celery, and a stream's consumer: spans are sent beside the work.

    The endpoint accepts and never answers, and they begin to send at once.
    """
    with silence() as endpoint, sending(), ExitStack() as stack:
        processes, sides = [], []
        for kind in (THREADS, STREAM):
            url, log = kind.emptied(redis_url), tmp_path / f"{kind.name}.log"
            side = stack.enter_context(kind.side(url))
            side.send("while the worker starts")
            started = worker(kind.command(), endpoint, url, log, OTEL_BSP_SCHEDULE_DELAY="50")
            processes.append(stack.enter_context(started))
            sides.append(side)
        for side in sides:
            until("the worker to start", side.is_done)
            for number in range(5):
                side.send(f"text {number}")
                until("the job", side.is_done, 2)
                time.sleep(0.1)  # it begins to send
        for process in processes:
            process.terminate()  # both at once: each ends within the bound of a shutdown


# --- the sender's view ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RQ, PREFORK, STREAM], ids=["rq", "celery", "stream"])
def test_what_was_handed_over_is_never_late(redis_url: str, kind: Kind) -> None:
    """A day after it was handed over nothing is a stall or an issue: others may have done it."""
    told: list[Any] = []
    with (
        fresh_tracker(use_as_shared=True, on_stall=told.append, on_issue=told.append) as t,
        kind.side(kind.emptied(redis_url)) as side,
    ):
        side.send("text")
        t.advance(86_400)
        data = t.tracker.get_dashboard_data()
        ((root,),) = (t.spans(),)
    (row,) = data["waiting"]
    assert (row["state"], row["stage"], row["silent_seconds"]) == ("elsewhere", "memory", 86_400)
    assert data["stalled"] == data["recent_issues"] == told == []
    assert (root["name"], root["status"], root["end"]) == ("notes", "UNSET", 0)


def test_a_thread_of_the_same_process_ends_the_wait(redis_url: str) -> None:
    """Nobody hands over: it is queued, then taken by a thread, then done, all in one dashboard."""
    with (
        fresh_tracker(use_as_shared=True) as t,
        Redis.from_url(f"{redis_url}/0", decode_responses=True) as redis,
    ):
        with transaction(notes, user_id="user") as tx:
            tx.queued("memory")
            redis.xadd("same", {"text": "text", **tx.carrier()})
        t.advance(10)
        (row,) = t.tracker.get_dashboard_data()["waiting"]
        assert (row["state"], row["silent_seconds"]) == ("queued", 10)

        def work() -> None:
            entries: Any = redis.xrange("same")
            with stage("memory", carrier=entries[0][1]):
                t.advance(3)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert t.tracker.get_dashboard_data()["waiting"] == []
        t.advance(6)  # longer than `settle`
        assert t.status(tx.id) is TransactionStatus.COMPLETED
        spans = {(s["name"], s["parent"], s["start"], s["end"]) for s in t.spans()}
    assert spans >= {("memory queued", "notes", 0, 10), ("memory", "notes", 10, 13)}
    assert len(spans) == 3


@pytest.mark.parametrize("kind", [RQ, STREAM], ids=["rq", "stream"])
def test_a_queue_that_cannot_be_reached_fails_the_transaction(kind: Kind) -> None:
    """It was said to wait, but never did: the sender's error stands, not a wait for ever."""
    with (
        fresh_tracker(use_as_shared=True) as t,
        kind.side(f"redis://127.0.0.1:{free_port()}/0") as side,
    ):
        with pytest.raises(redis.ConnectionError):
            side.send("text")
        data = t.tracker.get_dashboard_data()
    (row,) = data["recent_transactions"]
    assert row["status"] == "failed"
    assert "Connection refused" in row["issue"]


def test_what_never_got_into_its_queue_does_not_wait_in_it() -> None:
    """The sender's error is told as the end of its transaction: nothing of it waits any more."""
    with fresh_tracker(use_as_shared=True) as t:
        with contextlib.suppress(ConnectionError), transaction(notes) as tx:
            tx.queued("memory")
            raise ConnectionError("no queue")
        assert t.status(tx.id) is TransactionStatus.FAILED
        assert t.tracker.get_dashboard_data()["waiting"] == []


def test_without_a_moment_of_its_own_a_retry_has_waited_since_the_first_time() -> None:
    """The carrier's moment is all there is then; `queued_at=` is the better one."""
    with fresh_tracker(use_as_shared=True) as t:
        with transaction(notes) as tx:
            tx.queued("memory")
            carrier = tx.carrier()
            tx.hand_over()
        for moment in (None, None, START_NS / NS_PER_S + 20):
            t.advance(10)
            with stage("memory", carrier=carrier, queued_at=moment):
                t.advance(1)
        waits = [(s["start"], s["end"]) for s in t.spans() if s["name"] == "memory queued"]
    assert waits == [(0, 10), (0, 21), (20, 32)]


# --- the document ---------------------------------------------------------------------------------


def document() -> str:
    return (ROOT / "docs/queues.md").read_text(encoding="utf-8")


def test_the_documents_code_is_what_runs_here() -> None:
    """Every block of code in it stands, line for line, in a module that the tests above run.

    But for comments to linters, and as far in as its surroundings ask for.
    """
    modules = []
    for path in (ROOT / "tests/queues").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        modules.append(re.sub(r"  # (type: ignore|noqa).*", "", text).splitlines())
    blocks = re.findall(r"^```python\n(.*?)^```", document(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= len((RQ, PREFORK, STREAM)) * 2
    for block in blocks:
        wanted = block.splitlines()
        assert any(
            textwrap.dedent("\n".join(lines[n : n + len(wanted)])).splitlines() == wanted
            for lines in modules
            for n in range(len(lines))
        ), block
