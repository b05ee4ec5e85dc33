"""The journal: what was acknowledged is there after a restart, whatever ended the service."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Final

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_tracker import views
from otel_tracker.dashboard import checkpoint, journal, queries, replay
from otel_tracker.dashboard import service as dashboard_service
from otel_tracker.dashboard.checkpoint import CheckpointError, capture, install, lines, read
from otel_tracker.dashboard.journal import (
    LEAST_LIMIT,
    LIMIT,
    Journal,
    JournalInUseError,
    Restored,
    directory,
    limit_bytes,
)
from otel_tracker.dashboard.replay import RecordedClock, frame
from otel_tracker.dashboard.view import View
from otel_tracker.issues import Found, IssueRow, Pattern
from otel_tracker.model import (
    MEMORY,
    NS_PER_S,
    AudioCount,
    Fact,
    Kind,
    Pipeline,
    SocketFact,
    TransactionStatus,
    Who,
)
from otel_tracker.receiver import Receiver
from otel_tracker.stalls import Patience
from otel_tracker.state import Limits, StageTally, State, Tracked
from otel_tracker.store import Clock, Store, SystemClock
from otel_tracker.testing import ManualClock
from otel_tracker.workers import Beat, Worker
from tests.engines import RECORD, Collector, engine, until
from tests.facts import TRACE_ID, attempt, monotonic, root, wall
from tests.journal import requests
from tests.journal.requests import PATIENT, request
from tests.otlp import ROOT
from tests.test_fold_properties import FEW, OWN, fact_sets, shuffled, shuffles

WRITER: Final = ROOT / "tests" / "journal" / "writer.py"
SMALL: Final = Limits(finished=20, issues=10)
DAY_NS: Final = 86_400 * NS_PER_S


@dataclass
class Service:
    """A store with its journal."""

    store: Store
    journal: Journal
    restored: Restored

    def take(self, *numbers: int) -> None:
        for number in numbers:
            self.journal.take(request(number, self.store.clock.time_ns()))

    def die(self) -> None:
        """What a killed process leaves: the kernel closes its files and frees its lock."""
        assert self.journal._lock_file is not None
        os.close(self.journal._lock_file)
        self.journal._lock_file = None
        self.journal._leave_segment()


def service(
    path: Path,
    clock: Clock | None = None,
    *,
    limit: int = LIMIT,
    limits: Limits = SMALL,
    patience: Patience | None = None,
    progress: Callable[[int, int], None] | None = None,
    judges_each: bool = False,
    **more: Any,
) -> Service:
    """One that has restored what is in `path`; without a thread."""
    store = Store(State(limits, patience), clock or SystemClock())
    fold = requests.fold_of(store) if judges_each else Receiver(store).fold
    kept = Journal(path, store, fold, limit=limit, clock=clock, **more)
    kept.open()
    return Service(store, kept, kept.restore(progress))


@contextlib.contextmanager
def restarted(path: Path, clock: Clock | None = None, **more: Any) -> Iterator[Service]:
    """As `service`, and dead in the end."""
    one = service(path, clock, **more)
    try:
        yield one
    finally:
        if one.journal._lock_file is not None:
            one.die()


def shown(store: Store) -> dict[str, Any]:
    """All that people see of it, but for ages."""
    result = store.read(lambda state: views.dump(state, views.Now(0, 0, 0, 0)))
    del result["export_metadata"]
    return result


def without_times(document: Any) -> Any:
    """The same without what depends on the moment of a request."""
    if isinstance(document, dict):
        moments = {"created_at", "updated_at", "started_at", "ended_at", "timestamp", "first",
                   "last", "last_success", "last_activity", "user_activity"}  # fmt: skip
        return {k: without_times(v) for k, v in document.items() if k not in moments}
    if isinstance(document, list):
        return [without_times(one) for one in document]
    return document


def folded(number: int, base_ns: int, *, judges_each: bool = False) -> Store:
    """The same requests, 10 µs apart, in a service that nobody ended."""
    store = Store(State(requests.FEW, PATIENT), SystemClock())
    fold = requests.fold_of(store) if judges_each else Receiver(store).fold
    for one in range(number):
        fold(request(one, base_ns + one * 10_000))
    return store


def chunks(store: Store) -> int:
    """How many requests it has: each brings one chunk."""
    return store.read(lambda state: state.audio_chunks)


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.name != "lock")


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.otlp"))


def status(store: Store, trace_id: int) -> TransactionStatus:
    return store.read(lambda state: state.transactions[trace_id].verdict.status)


@pytest.fixture
def at_the_end() -> Iterator[contextlib.ExitStack]:
    """Ends in any case what a test has started."""
    with contextlib.ExitStack() as stack:
        yield stack


# --- kill -9 --------------------------------------------------------------------------------------


def start_writer(path: Path, base_ns: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", WRITER, str(path), str(LEAST_LIMIT), str(base_ns)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )


def acknowledged(out: IO[bytes]) -> int:
    """How many requests a dead writer said that it had taken."""
    last = 0
    for line in out.read().split(b"\n")[:-1]:
        last = int(line) + 1
    return last


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Ten services in one directory, each killed in the middle of its appending."""
    chosen = random.Random(7)
    path, total = tmp_path / "journal", 0
    base_ns = time.time_ns() + 3_600 * NS_PER_S  # clocks that are ahead: silence is from arrival
    for number in range(10):
        writer = start_writer(path, base_ns)
        try:
            assert writer.stdout is not None
            ready = writer.stdout.readline()
            assert ready == f"ready {total}\n".encode()
            time.sleep(chosen.uniform(0, 0.5))  # no condition: the moment is to be any
            writer.send_signal(signal.SIGKILL)
            told = max(total, acknowledged(writer.stdout))
        finally:
            writer.kill()
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        copy = tmp_path / f"copy{number}"
        shutil.copytree(path, copy)
        as_the_writer: dict[str, Any] = {"limits": requests.FEW, "patience": PATIENT}
        as_the_writer |= {"limit": LEAST_LIMIT, "judges_each": True}
        with restarted(copy, **as_the_writer) as after:
            assert all("in the middle of a record" in note for note in after.restored.notes)
            total = chunks(after.store)
            # One more may have been written, of which it had no time to tell.
            assert told <= total <= told + 1
            assert shown(after.store) == shown(folded(total, base_ns, judges_each=True))
        assert size_of(path) <= LEAST_LIMIT
        shutil.rmtree(copy)
    assert total > 1_000


def test_a_service_that_ends_in_order_has_nothing_to_read_again(tmp_path: Path) -> None:
    """Its last checkpoint has everything, times included."""
    first = service(tmp_path)
    first.take(*range(500))
    before = shown(first.store)
    first.journal.close()
    with restarted(tmp_path) as second:
        assert second.restored.requests == 0
        assert second.restored.notes == ()
        assert shown(second.store) == before


def test_a_restart_without_any_checkpoint_reads_all_segments(tmp_path: Path) -> None:
    """The same figures and the same times, from the requests alone."""
    first = service(tmp_path)
    first.take(*range(500))
    before = shown(first.store)
    first.die()
    with restarted(tmp_path) as second:
        assert second.restored.requests == 500
        assert shown(second.store) == before


def test_a_request_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    """After each `take` a restart from a copy of the files finds it."""
    first = service(tmp_path / "journal")
    for number in range(5):
        first.take(number)
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "journal", copy)
        with restarted(copy) as second:
            assert chunks(second.store) == number + 1
    first.die()


def test_checkpoints_while_requests_come_from_many_threads(tmp_path: Path) -> None:
    """Wherever a checkpoint falls, it has what is before its place, and nothing of what follows."""
    every = Limits(finished=1_000)  # what a slow thread brings late is still kept
    first = service(tmp_path / "journal", limits=every)
    numbers = iter(range(1_200))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            first.take(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    copies = 0
    while any(thread.is_alive() for thread in threads):
        assert first.journal.checkpoint()
        copies += 1
    for thread in threads:
        thread.join()
    before = without_times(shown(first.store))
    first.die()
    assert copies > 1
    with restarted(tmp_path / "journal", limits=every) as second:
        assert chunks(second.store) == 1_200
        assert without_times(shown(second.store)) == before
        assert second.restored.requests < 1_200


def test_no_checkpoint_falls_between_writing_and_folding(tmp_path: Path) -> None:
    """It would have a place behind a request that is not in it: a restart would never read that."""
    store = Store(State(SMALL), SystemClock())
    receiver = Receiver(store)
    meanwhile: list[threading.Thread] = []

    def fold(one: ExportTraceServiceRequest) -> int:
        thread = threading.Thread(target=kept.checkpoint)
        meanwhile.append(thread)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "a checkpoint was written in the middle of a request"
        return receiver.fold(one)

    kept = Journal(tmp_path, store, fold)
    kept.open()
    kept.restore()
    kept.take(request(0, time.time_ns()))
    meanwhile[0].join()
    Service(store, kept, Restored()).die()
    assert list(tmp_path.glob("*.checkpoint"))
    with restarted(tmp_path) as second:
        assert (chunks(second.store), second.restored.requests) == (1, 0)


def test_the_service_shows_the_same_after_a_restart(
    tmp_path: Path, at_the_end: contextlib.ExitStack
) -> None:
    """The dashboard service itself: its lists, trends, workers and limits, nothing sent anew."""
    base_ns = time.time_ns()
    first = dashboard_service.Service(dashboard_service.settings_of({}))
    first.open_journal(tmp_path, LIMIT)
    at_the_end.callback(first.close)
    for number in range(40):
        first.take_spans(request(number, base_ns + number * 10_000).SerializeToString())
    first.take_beat(
        {
            "worker": "host/42", "service": "notes", "version": "1", "at_ns": base_ns,
            "interval_s": 5.0, "started_ns": base_ns, "is_last": False, "open": [],
            "websockets": {"client1": 2}, "stall_after": {"memory": 900.0}, "health": {},
            "pipelines": [{"name": "own", "stages": ["a", "b"], "stall_after": {}}],
        }
    )  # fmt: skip
    before = first.read(listed)
    first.close()
    second = dashboard_service.Service(dashboard_service.settings_of({}))
    second.open_journal(tmp_path, LIMIT)
    at_the_end.callback(second.close)
    assert second.read(listed) == before
    assert [row["status"] for row in before["transactions"]].count("in_progress") == 2
    assert second.store.read(lambda state: state.patience.by_stage_ns[MEMORY]) == 900 * NS_PER_S


def listed(view: View) -> dict[str, Any]:
    rows = queries.transactions(view, queries.filter_of({}))["transactions"]
    for row in rows:
        del row["silent_seconds"]
    return {
        # Their order is that of arrival before, and that of their start after.
        "transactions": sorted(rows, key=lambda row: str(row["id"])),
        "issues": views.recent_issues(view.state, 10),
        "trends": queries.stages(view)["trends"],
        "tallies": views.stages(view.state),
        "workers": [row["worker"] for row in queries.workers(view)["workers"]],
        "websockets": view.state.open_websockets,
        "pipelines": view.state.pipelines,
    }


# --- checkpoints ----------------------------------------------------------------------------------

thorough: Final = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def new_state(limits: Limits | None = None) -> State:
    return State(limits, pipelines={OWN.name: OWN})


def everything(state: State, second: float, shift_ns: int = 0) -> dict[str, Any]:
    now = views.Now(monotonic(second) + shift_ns, wall(second), monotonic(0) + shift_ns, wall(0))
    shown: dict[str, Any]
    shown = {
        "dump": views.dump(state, now),
        "dashboard": views.dashboard(state, now),
        "stalled": sorted(views.stalled(state, now), key=str),
        "waiting": sorted(views.waiting(state, now), key=str),
    }
    for view in ("dump", "dashboard"):
        for pattern in shown[view]["issue_patterns"]:
            pattern["examples"].sort()  # of those that come due in one look, any is first
    for name in ("stalled", "waiting"):
        shown["dashboard"][name].sort(key=str)
    return shown


def advance(state: State, second: float, shift_ns: int = 0) -> None:
    state.advance(monotonic(second) + shift_ns, wall(second))


def through_disk(state: State, second: float, shift_ns: int, limits: Limits | None) -> State:
    taken = capture(state, monotonic(second), wall(second))
    snapshot = read(lines(taken, {"own": [1, {"a": None}]}), lambda _now, _wall: shift_ns)
    assert snapshot.more == {"own": [1, {"a": None}]}
    again = new_state(limits)
    install(snapshot, again)
    advance(again, second, shift_ns)
    return again


@thorough
@given(
    fact_sets(most=5),
    shuffles,
    st.integers(0, 400),
    st.sampled_from((None, FEW, Limits(finished=1, open=2, issues=2, facts_of_one=3))),
)
def test_a_state_is_the_same_after_a_checkpoint_and_goes_on_alike(
    facts: list[Fact], rnd: random.Random, later: int, limits: Limits | None
) -> None:
    """Every view, everything kept and its order; also after more facts, on another clock."""
    # Where the mark of a stall is all that came, silence is counted from the start of the clock.
    marks = {Kind.STALLED, Kind.RECOVERED}
    shift_ns = 0 if any(fact.kind in marks for fact in facts) else 3 * DAY_NS
    told = shuffled(facts, rnd)
    half = rnd.randint(0, len(told))
    state = new_state(limits)
    second = 0.0
    for fact in told[:half]:
        state.apply(fact)
        second += rnd.choice((0, 0, 7))
        advance(state, second)
    second += later
    state.apply_socket(SocketFact("client1", "user9", True, wall(second), monotonic(second)))
    advance(state, second)

    same = through_disk(state, second, 0, limits)
    assert capture(same, 0, 0) == capture(state, 0, 0)
    assert not same.news, "told a second time"

    moved = through_disk(state, second, shift_ns, limits)
    assert everything(moved, second, shift_ns) == everything(state, second)
    state.news.clear()
    moved.news.clear()
    for fact in told[half:]:
        state.apply(fact)
        moved.apply(replace(fact, seen_ns=fact.seen_ns + shift_ns))
        second += rnd.choice((0, 0, 7))
        advance(state, second)
        advance(moved, second, shift_ns)
    for _ in range(3):
        second += 60
        advance(state, second)
        advance(moved, second, shift_ns)
        assert everything(moved, second, shift_ns) == everything(state, second)
    # Those of transactions that come due in one look are in any order.
    assert Counter(type(news) for news in moved.news) == Counter(type(n) for n in state.news)


def test_what_finished_first_goes_first_after_a_checkpoint_too() -> None:
    """In the order in which they finished, which is not that of their arrival."""
    limits = Limits(finished=3)
    state = new_state(limits)
    ids = [TRACE_ID + number for number in range(4)]
    for trace_id in ids:
        state.apply(root(0, trace_id=trace_id))
    for second, trace_id in enumerate((ids[2], ids[0], ids[1]), 1):
        state.apply(root(0, second, "success", trace_id=trace_id))
        advance(state, second)
    again = through_disk(state, 3, 0, limits)
    for one in (state, again):
        one.apply(root(0, 4, "success", trace_id=ids[3]))
        advance(one, 4)
        assert set(one.transactions) == {ids[0], ids[1], ids[3]}


def test_what_beats_told_is_in_a_checkpoint() -> None:
    """Workers, their sockets and limits, and the pipelines that they declared."""
    state = new_state()
    state.add_pipeline(Pipeline("told", ("a", "b"), {"a": 7.0}))
    state.set_patience(Patience(by_stage_ns={"a": 9 * NS_PER_S}))
    state.apply_beat(Beat("host/1", "notes", wall(1), monotonic(1), 5 * NS_PER_S, wall(0), "1.2",
                          sockets={"client1": 2}))  # fmt: skip
    state.apply_beat(Beat("host/2", "notes", wall(90), monotonic(90), 5 * NS_PER_S))
    advance(state, 91)
    again = through_disk(state, 91, DAY_NS, None)
    assert again.pipelines == state.pipelines
    assert again.patience == state.patience
    assert again.workers.lost == {"host/1"}
    assert [w.beat.worker for w in again.workers] == ["host/1", "host/2"]
    assert [w.beat.seen_ns for w in again.workers] == [monotonic(1) + DAY_NS,
                                                       monotonic(90) + DAY_NS]  # fmt: skip
    assert everything(again, 91, DAY_NS) == everything(state, 91)


def test_own_limits_win_over_those_of_a_checkpoint() -> None:
    """What the service's settings say of a stage stands, whatever a worker told before."""
    state = new_state()
    state.set_patience(Patience(by_stage_ns={"a": 9, "b": 8}))
    taken = capture(state, monotonic(0), wall(0))
    again = State(patience=Patience(by_stage_ns={"a": 5}))
    install(read(lines(taken, {}), lambda _now, _wall: 0), again)
    assert again.patience.by_stage_ns == {"a": 5, "b": 8}


def test_nothing_of_a_state_is_unknown_to_a_checkpoint() -> None:
    """Whoever gives these types another field has to say here what a checkpoint does with it."""
    state = State()
    assert set(vars(state)) == {
        # in its lines
        "transactions", "by_status", "waiting", "let_go", "issues", "stages", "audio_chunks",
        "transcriptions", "memories", "last_activity_ns", "last_success_ns", "dropped", "sockets",
        "open_websockets", "users", "workers", "pipelines", "patience",
        "_finished", "_let_go_ids", "_by_client", "_by_recording",
        # made anew: from the settings, from the facts, by the next look
        "limits", "_only_audio", "_dirty", "_due", "_size", "news",
    }  # fmt: skip
    assert set(vars(state.issues)) == {
        "_max_rows", "_max_patterns", "_rows", "_rows_of_pattern", "patterns", "dropped_rows",
        "dropped_patterns",
    }  # fmt: skip
    assert set(vars(state.workers)) == {"_known", "lost", "dropped"}
    expected = {
        Tracked: "trace_id facts who created_ns history verdict found noticed told attempted "
        "carried_on woke_peers indexed dropped_facts size forgotten",
        StageTally: "running done inferred failed skipped last_success_ns durations_s",
        Fact: "trace_id span_id kind start_ns at_ns seen_ns ended who stage key outcome error "
        "error_type opened closed reported_failure parent_id audio metadata end_metadata where",
        Beat: "worker service at_ns seen_ns interval_ns started_ns version progress sockets "
        "is_last",
        Worker: "beat first_ns is_lost",
        Pipeline: "name stages stall_after",
        IssueRow: "trace_id user_id pattern text at_ns resolved error",
        Pattern: "text transactions unresolved first_ns last_ns examples",
    }
    for kind, names in expected.items():
        assert [one.name for one in fields(kind)] == names.split(), kind
    assert (Found._fields, Who._fields, AudioCount._fields) == (
        ("text", "at_ns", "resolved", "error"),
        ("user_id", "client_id", "conversation_id", "audio_uuid", "pipeline"),
        ("chunks", "bytes", "last_size"),
    )


def text_of_checkpoint() -> list[bytes]:
    state = new_state()
    for number in range(3):
        state.apply(root(number, trace_id=TRACE_ID + number))
        state.apply(attempt(MEMORY, 9, number, trace_id=TRACE_ID + number))
    advance(state, 100)
    return list(lines(capture(state, monotonic(100), wall(100)), {"own": 1}))


@thorough
@given(st.data())
def test_a_checkpoint_that_is_not_whole_is_refused(data: st.DataObject) -> None:
    """Cut anywhere, a byte changed anywhere, a line left out or twice: never half a state."""
    whole = text_of_checkpoint()
    text = b"".join(whole)
    at = data.draw(st.integers(0, len(text) - 2))
    changed = bytes([text[at] ^ data.draw(st.integers(1, 127))])
    line = data.draw(st.integers(0, len(whole) - 1))
    for broken in (
        text[:at],
        text[:at] + changed + text[at + 1 :],
        b"".join(whole[:line] + whole[line + 1 :]),
        b"".join(whole[: line + 1] + whole[line:]),
    ):
        with pytest.raises(CheckpointError):
            read(broken.splitlines(keepends=True), lambda _now, _wall: 0)


def test_a_checkpoint_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines may mean something else."""
    text = text_of_checkpoint()
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    with pytest.raises(CheckpointError, match="is of version 1, not 2"):
        read(text, lambda _now, _wall: 0)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path: Path) -> None:
    """With the segments after that, the figures are the same; it is said, and counted."""
    first = service(tmp_path)
    for start in (0, 100, 200):
        first.take(*range(start, start + 100))
        assert first.journal.checkpoint()
    first.take(*range(300, 350))
    before = shown(first.store)
    first.die()
    kept = sorted(tmp_path.glob("*.checkpoint"))
    assert len(kept) == 2
    kept[-1].write_bytes(kept[-1].read_bytes()[:-200])
    with restarted(tmp_path) as second:
        assert shown(second.store) == before
        assert second.restored.requests == 150
        assert second.restored.notes == (f"{kept[-1].name} is damaged or cut off",)
        assert second.journal.health()["damaged_files"] == 1
        assert not kept[-1].exists()


def test_what_the_service_keeps_comes_back_before_what_follows(tmp_path: Path) -> None:
    """Its own plain data, as of the checkpoint; and it is asked to look as recorded time passes."""
    counted = {"requests": 0}
    first = service(tmp_path, keep=lambda: dict(counted))
    first.take(*range(10))
    counted["requests"] = 10
    assert first.journal.checkpoint()
    first.take(*range(10, 15))
    first.die()

    back: list[Mapping[str, Any]] = []
    store = Store(State(SMALL), SystemClock())
    receiver = Receiver(store)

    def fold(one: ExportTraceServiceRequest) -> int:
        assert back == [{"requests": 10}]
        counted["requests"] += 1
        return receiver.fold(one)

    second = Journal(tmp_path, store, fold, take_back=back.append)
    second.open()
    assert second.restore().requests == 5
    assert counted == {"requests": 15}
    second.close()


# --- bounds ---------------------------------------------------------------------------------------


def test_a_long_run_stays_within_its_bytes(tmp_path: Path) -> None:
    """At every moment, segments, checkpoints and what is being written; and the figures hold."""
    first = service(tmp_path, limit=LEAST_LIMIT)
    for number in range(4_500):
        first.take(number)
        if number % 50 == 0:
            first.journal.tick()
            assert size_of(tmp_path) <= LEAST_LIMIT
    assert first.journal.health()["segments_lost"] == 0
    assert 0.7 * LEAST_LIMIT < size_of(tmp_path) <= LEAST_LIMIT
    assert first.journal.health()["bytes"] == size_of(tmp_path)
    before = shown(first.store)
    first.die()
    with restarted(tmp_path, limit=LEAST_LIMIT) as second:
        assert shown(second.store) == before
        assert len(list(tmp_path.glob("*.checkpoint"))) <= 2


def test_the_bound_holds_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is not yet one counts too."""
    monkeypatch.setattr(journal, "_PIECE", 4_096)
    first = service(tmp_path, limit=LEAST_LIMIT)
    most = 0
    real = checkpoint.lines

    def watched(*args: Any) -> Iterator[bytes]:
        nonlocal most
        for line in real(*args):
            yield line
            most = max(most, size_of(tmp_path))

    monkeypatch.setattr(journal, "lines", watched)
    for number in range(4_000):
        first.take(number)
        if number % 100 == 0:
            first.journal.tick()
    first.die()
    assert 0.9 * LEAST_LIMIT < most <= LEAST_LIMIT


def test_a_checkpoint_that_is_too_large_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with the variable to set; the requests are kept all the same."""
    first = service(tmp_path, limit=LEAST_LIMIT, keep=lambda: {"large": "x" * LEAST_LIMIT})
    first.take(0, 1, 2)
    with caplog.at_level(logging.WARNING):
        assert not first.journal.checkpoint()
        assert not first.journal.checkpoint()
    assert [r.getMessage() for r in caplog.records if "no checkpoint" in r.getMessage()] == [
        (
            f"otel_tracker: no checkpoint can be written to {tmp_path} (it needs more than a "
            f"quarter of OTEL_TRACKER_JOURNAL_BYTES, {LEAST_LIMIT}; set that higher); it is tried "
            "again every 10 s (logged once)"
        )
    ]
    assert "OTEL_TRACKER_JOURNAL_BYTES" in first.journal.health()["problem"]
    first.die()
    with restarted(tmp_path, limit=LEAST_LIMIT) as second:
        assert chunks(second.store) == 3


def test_without_checkpoints_the_oldest_go_and_that_is_counted(tmp_path: Path) -> None:
    """The bound is kept even then; a restart says where its figures begin."""
    first = service(tmp_path, limit=LEAST_LIMIT)
    first.take(*range(4_000))
    assert size_of(tmp_path) <= LEAST_LIMIT
    assert first.journal.health()["segments_lost"] > 0
    first.die()
    with restarted(tmp_path, limit=LEAST_LIMIT) as second:
        [note] = second.restored.notes
        assert (
            note == f"there is no checkpoint: the figures begin with {segments(tmp_path)[0].name}"
        )
        assert 0 < chunks(second.store) < 4_000


def test_a_request_larger_than_the_bound_allows_is_in_the_next_checkpoint(tmp_path: Path) -> None:
    """It is not written, counted so, and not lost."""
    first = service(tmp_path, limit=LEAST_LIMIT)
    large = ExportTraceServiceRequest()
    for number in range(1_000):
        large.MergeFrom(request(number, time.time_ns()))
    first.journal.take(large)
    assert first.journal.health()["requests_not_kept"] == 1
    first.journal.tick()
    first.die()
    with restarted(tmp_path, limit=LEAST_LIMIT) as second:
        assert chunks(second.store) == 1_000


# --- truncation and garbage -----------------------------------------------------------------------


def test_a_record_cut_off_anywhere_is_left_out_and_said(tmp_path: Path) -> None:
    """At every byte of the last record: the ones before it stand, and what comes is appended."""
    origin = tmp_path / "origin"
    first = service(origin)
    first.take(0, 1)
    [segment] = segments(origin)
    good = segment.stat().st_size
    first.take(2)
    whole = segment.stat().st_size
    first.die()
    for cut in range(good, whole + 1):
        copy = tmp_path / "copy"
        shutil.copytree(origin, copy)
        os.truncate(copy / segment.name, cut)
        with restarted(copy) as second:
            is_whole, is_torn = cut == whole, good < cut < whole
            assert chunks(second.store) == (3 if is_whole else 2)
            note = (
                f"{segment.name} ends in the middle of a record (its writer was killed, or still "
                "writes); what comes before it was read"
            )
            assert second.restored.notes == ((note,) if is_torn else ())
            assert second.journal.health()["damaged_files"] == 0
            assert (copy / segment.name).stat().st_size == (whole if is_whole else good)
            if cut % 50 == 0:
                second.take(3)
        if cut % 50 == 0:
            with restarted(copy) as third:
                assert third.restored.notes == ()
                assert chunks(third.store) == (4 if is_whole else 3)
        shutil.rmtree(copy)


def several_segments(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_SEGMENTS", 256)  # of 4 KiB
    first = service(path, limit=LEAST_LIMIT)
    first.take(*range(40))
    first.die()
    assert len(segments(path)) > 3


def test_a_damaged_segment_is_skipped_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is read; what was before the damage too. It is said, and counted."""
    several_segments(tmp_path, monkeypatch)
    second = segments(tmp_path)[1]
    damaged = bytearray(second.read_bytes())
    in_first = int.from_bytes(damaged[:4], "big") + 4
    damaged[in_first + 40] ^= 1
    second.write_bytes(damaged)
    with restarted(tmp_path, limit=LEAST_LIMIT) as after:
        assert after.restored.notes == (
            f"{second.name} is damaged from byte {in_first} on; the rest of it is left out",
        )
        assert after.journal.health()["damaged_files"] == 1
        assert after.journal.health()["notes"] == list(after.restored.notes)
        assert 20 < chunks(after.store) < 40


def test_a_segment_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removed it: the others are read."""
    several_segments(tmp_path, monkeypatch)
    gone = segments(tmp_path)[2]
    gone.unlink()
    with restarted(tmp_path, limit=LEAST_LIMIT) as after:
        assert after.restored.notes == (f"missing segments: 1 from {gone.name} on",)
        assert 20 < chunks(after.store) < 40


@settings(thorough, max_examples=50)
@given(st.data())
def test_garbage_in_any_file_ends_no_restart(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes overwritten, zeros as after a power cut, a file emptied: the service starts, appends
    and restarts, and says what it could not read."""
    path = tmp_path_factory.mktemp("garbage")
    first = service(path)
    for start in (0, 10):
        first.take(*range(start, start + 10))
        assert first.journal.checkpoint()
    first.take(*range(20, 30))
    first.die()
    names = sorted(file.name for file in path.iterdir())
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        text = bytearray((path / name).read_bytes())
        at = len(text) * data.draw(st.integers(0, 1_000)) // 1_000
        kind = data.draw(st.sampled_from(("noise", "zeros", "cut", "more")))
        if kind == "noise":
            noise = data.draw(st.binary(min_size=1, max_size=64))
            text[at : at + len(noise)] = noise
        elif kind == "zeros":
            text[at:] = bytes(len(text) - at)
        elif kind == "cut":
            del text[at:]
        else:
            text += data.draw(st.binary(min_size=1, max_size=300))
        (path / name).write_bytes(text)
    second = service(path)
    assert chunks(second.store) <= 30
    second.take(*range(30, 35))
    second.journal.tick()
    expected = shown(second.store)
    second.die()
    with restarted(path) as third:
        assert shown(third.store) == expected
        assert third.restored.notes == ()


# --- no disk --------------------------------------------------------------------------------------


def test_a_full_disk_never_stops_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It folds on, says so once and under health, tries again, and then lacks nothing."""
    clock = ManualClock(time.time_ns())
    first = service(tmp_path, clock)
    first.take(0, 1)
    real, full = os.writev, True

    def writev(descriptor: int, pieces: Any) -> int:
        if full:
            os.write(descriptor, bytes(pieces[1][:20]))  # as much as there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, pieces)

    def writev_fails(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fsync = os.fsync
    monkeypatch.setattr(os, "writev", writev)
    with caplog.at_level(logging.WARNING):
        first.take(2, 3, 4)
    assert chunks(first.store) == 5
    assert first.journal.health()["problem"] == "No space left on device"
    assert first.journal.health()["requests_not_kept"] == 3
    [told] = [r.getMessage() for r in caplog.records if "no journal is kept" in r.getMessage()]
    assert "No space left on device" in told
    assert "OTEL_TRACKER_JOURNAL_DIR" in told

    for number in range(5, 8):  # tries in vain: nothing more is said, and no file stays behind
        clock.advance(11)
        monkeypatch.setattr(os, "fsync", writev_fails)
        first.journal.tick()
        first.take(number)
        assert first.journal.health()["problem"] == "No space left on device"
    assert [file.name for file in segments(tmp_path)] == ["00000001.otlp"]
    assert sum("no journal is kept" in r.getMessage() for r in caplog.records) == 1
    monkeypatch.setattr(os, "fsync", fsync)
    full = False
    first.journal.tick()  # not so soon
    assert first.journal.health()["problem"] is not None
    clock.advance(11)
    first.journal.tick()
    assert first.journal.health()["problem"] is None
    first.take(8)
    before = shown(first.store)
    first.die()
    with restarted(tmp_path, clock) as second:
        assert chunks(second.store) == 9
        assert shown(second.store) == before
        assert second.restored.notes == ()


def test_a_disk_that_fills_in_the_middle_of_a_record(tmp_path: Path) -> None:
    """The kernel itself refuses, by a limit of the process: no half record stays behind."""
    script = f"""
        import json, resource, signal, time
        from pathlib import Path
        from otel_tracker.dashboard.journal import Journal
        from otel_tracker.receiver import Receiver
        from otel_tracker.state import State
        from otel_tracker.store import Store, SystemClock
        from tests.journal.requests import request

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        store = Store(State(), SystemClock())
        journal = Journal(Path({str(tmp_path)!r}), store, Receiver(store).fold)
        journal.open()
        journal.restore()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        for number in range(100):
            journal.take(request(number, time.time_ns()))
        failed = journal.health()
        size = (Path({str(tmp_path)!r}) / "00000001.otlp").stat().st_size
        assert not journal.checkpoint()
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert journal.checkpoint()
        journal.take(request(100, time.time_ns()))
        print(json.dumps([failed, size, journal.health()]))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    failed, size, healed = json.loads(done.stdout)
    assert failed["problem"] == "File too large"
    assert failed["requests"] + failed["requests_not_kept"] == 100
    assert failed["bytes"] == size <= 10_000
    assert healed["problem"] is None
    with restarted(tmp_path) as after:
        assert chunks(after.store) == 101
        assert after.restored.notes == ()


def test_a_directory_that_cannot_be_made_never_stops_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts and folds; once the directory can be made, nothing is missing there."""
    clock = ManualClock(time.time_ns())
    obstacle = tmp_path / "file"
    obstacle.write_text("no directory")
    with caplog.at_level(logging.WARNING):
        first = service(obstacle / "journal", clock)
        first.take(0, 1)
    assert chunks(first.store) == 2
    assert first.journal.health()["problem"] == f"Not a directory: {obstacle / 'journal'}"
    assert sum("no journal is kept" in r.getMessage() for r in caplog.records) == 1
    obstacle.unlink()
    clock.advance(11)
    first.journal.tick()
    first.take(2)
    first.die()
    with restarted(obstacle / "journal", clock) as second:
        assert chunks(second.store) == 3


def test_its_thread_writes_checkpoints_and_tries_again(tmp_path: Path) -> None:
    """Without anybody's help: first with no directory to write to, then with one."""
    obstacle = tmp_path / "file"
    obstacle.write_text("no directory")
    store = Store(State(SMALL), SystemClock())
    kept = Journal(obstacle, store, Receiver(store).fold)
    kept.open()
    kept._retry_ns = 0
    kept.take(request(0, time.time_ns()))
    obstacle.unlink()
    kept.start()
    until("a checkpoint", lambda: list(obstacle.glob("*.checkpoint")))
    kept.close()
    assert not any(t.name == "otel_tracker-journal" for t in threading.enumerate())
    with restarted(obstacle) as second:
        assert chunks(second.store) == 1


# --- the directory --------------------------------------------------------------------------------


def test_a_second_service_is_told_which_process_has_the_directory(tmp_path: Path) -> None:
    """And when that one is killed, the directory is free."""
    path = tmp_path / "journal"
    writer = start_writer(path, time.time_ns())
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready 0\n"
        with pytest.raises(JournalInUseError) as refused:
            service(path)
        assert str(refused.value) == (
            f"process {writer.pid} writes its journal to {path}; end that service, or set "
            "OTEL_TRACKER_JOURNAL_DIR to a directory of this one's own"
        )
    finally:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()
    with restarted(path, limit=LEAST_LIMIT) as after:
        assert after.restored.requests >= 0


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """Files 0600 in a directory 0700, whatever the umask."""
    before = os.umask(0)
    try:
        first = service(tmp_path / "state" / "journal")
        first.take(0)
        first.journal.close()
    finally:
        os.umask(before)
    path = tmp_path / "state" / "journal"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    kept = list(path.iterdir())
    assert len(kept) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in kept} == {0o600}


def test_files_of_others_stay_as_they_are(tmp_path: Path) -> None:
    """A name that is not the journal's is never read, counted or removed."""
    other = tmp_path / "notes.otlp"
    other.write_bytes(b"x" * LEAST_LIMIT)
    first = service(tmp_path, limit=LEAST_LIMIT)
    first.take(*range(2_000))
    first.journal.close()
    assert other.stat().st_size == LEAST_LIMIT


def test_where_it_is_kept(tmp_path: Path) -> None:
    """By its variable, else below XDG_STATE_HOME, else where that is by default."""
    assert directory({"OTEL_TRACKER_JOURNAL_DIR": str(tmp_path)}) == tmp_path
    assert directory({"XDG_STATE_HOME": "/state"}) == Path("/state/otel-tracker/journal")
    default = Path("~/.local/state/otel-tracker/journal").expanduser()
    assert directory({}) == directory({"XDG_STATE_HOME": "not/absolute"}) == default


@pytest.mark.parametrize("value", ["256 MiB", "-1", "0", "1000", "1e9", "²"])
def test_a_bad_number_of_bytes_is_a_warning_and_the_default(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the variable and what belongs there."""
    with caplog.at_level(logging.WARNING):
        assert limit_bytes({"OTEL_TRACKER_JOURNAL_BYTES": value}) == LIMIT
    assert "OTEL_TRACKER_JOURNAL_BYTES" in caplog.text
    assert limit_bytes({"OTEL_TRACKER_JOURNAL_BYTES": "2097152"}) == 2 << 20
    assert limit_bytes({}) == LIMIT


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_downtime_is_no_silence(tmp_path: Path, with_checkpoint: bool) -> None:
    """Work that had been silent for 20 s when the service went has 40 s left when it is back."""
    clock = ManualClock(time.time_ns())
    first = service(tmp_path, clock)
    first.take(*range(7))  # the second transaction's memory is open
    trace_id = TRACE_ID - TRACE_ID % (1 << 64) + 2
    if with_checkpoint:
        assert first.journal.checkpoint()
    clock.advance(20)
    first.journal.tick()
    first.die()

    later = ManualClock(clock.time_ns() + 3_600 * NS_PER_S, 77 * NS_PER_S)  # and another boot
    with restarted(tmp_path, later) as second:
        assert status(second.store, trace_id) is TransactionStatus.IN_PROGRESS
        later.advance(39)
        assert status(second.store, trace_id) is TransactionStatus.IN_PROGRESS
        later.advance(2)
        assert status(second.store, trace_id) is TransactionStatus.STALLED


def test_a_start_that_is_killed_at_once_was_not_alive(tmp_path: Path) -> None:
    """A crash loop after a torn record: what is open is no nearer to a stall than before."""
    clock = ManualClock(time.time_ns() - 5 * 3_600 * NS_PER_S)
    first = service(tmp_path, clock)
    first.take(*range(8))
    first.journal.tick()
    first.die()
    [segment] = segments(tmp_path)
    os.truncate(segment, segment.stat().st_size - 3)
    then_ns = clock.time_ns() + 10 * NS_PER_S
    os.utime(segment, ns=(then_ns, then_ns))
    for hour in range(1, 4):
        later = ManualClock(clock.time_ns() + hour * 3_600 * NS_PER_S, hour * 100 * NS_PER_S)
        with restarted(tmp_path, later) as again:
            trace_id = TRACE_ID - TRACE_ID % (1 << 64) + 2
            assert status(again.store, trace_id) is TransactionStatus.IN_PROGRESS
            assert again.restored.alive_ns == then_ns


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_what_had_stalled_still_has_and_is_no_news(tmp_path: Path, with_checkpoint: bool) -> None:
    """With its issue of the time at which it was found, and not a word of it a second time."""
    clock = ManualClock(time.time_ns())
    first = service(tmp_path, clock)
    first.take(*range(7))
    for _ in range(90):
        clock.advance(1)
        first.store.read(lambda state: None)
    first.journal.tick()
    if with_checkpoint:
        assert first.journal.checkpoint()
    before = shown(first.store)
    assert before["system_metrics"]["stalled_transactions"] == 1
    first.die()
    later = ManualClock(clock.time_ns() + 3_600 * NS_PER_S, 5_000 * NS_PER_S)
    with restarted(tmp_path, later) as second:
        after = shown(second.store)
        assert second.store.take_news() == []
        if not with_checkpoint:  # found when somebody looked, within the second
            for both in (before, after):
                [row] = both["recent_issues"]
                row["timestamp"] = row["timestamp"][:18]
                for pattern in both["issue_patterns"]:
                    pattern["first"], pattern["last"] = pattern["first"][:18], pattern["last"][:18]
        assert after == before


def test_a_wall_clock_that_was_set_back_leaves_no_silence_in_the_future(tmp_path: Path) -> None:
    """An hour back while the service ran: after the restart, work stalls after its limit."""
    clock = ManualClock(time.time_ns() + 3_600 * NS_PER_S)
    first = service(tmp_path, clock)
    first.take(*range(7))
    clock.step_wall(-3_600)
    first.journal.tick()
    first.die()
    with restarted(tmp_path, clock) as second:
        clock.advance(61)
        stalled = second.store.read(lambda s: len(s.by_status[TransactionStatus.STALLED]))
        assert stalled == 1


def test_a_worker_has_time_to_beat_again(tmp_path: Path) -> None:
    """After a restart none is lost before three beats are missing; one that was lost still is."""
    clock = ManualClock(time.time_ns())
    first = service(tmp_path, clock)

    def beat(worker: str) -> Beat:
        return Beat(worker, "notes", clock.time_ns(), clock.monotonic_ns(), 5 * NS_PER_S)

    first.store.read(lambda state: state.apply_beat(beat("host/1")))
    clock.advance(60)
    first.store.read(lambda state: state.apply_beat(beat("host/42")))
    assert first.journal.checkpoint()
    clock.advance(40)  # it beat on, which is not kept
    first.take(0)
    first.journal.tick()
    first.die()
    later = ManualClock(clock.time_ns() + 3_600 * NS_PER_S, 500 * NS_PER_S)
    # Reading takes a while itself.
    with restarted(tmp_path, later, progress=lambda *_: later.advance(40)) as second:

        def lost() -> frozenset[str]:
            return second.store.read(lambda state: state.workers.lost)

        assert lost() == {"host/1"}
        later.advance(14)
        assert lost() == {"host/1"}
        later.advance(2)
        assert lost() == {"host/1", "host/42"}


def test_users_have_their_real_age(tmp_path: Path) -> None:
    """Who was active an hour ago is not active now, though the service was down since."""
    clock = ManualClock(time.time_ns())
    first = service(tmp_path, clock)
    first.take(0)
    first.journal.close()
    later = ManualClock(clock.time_ns() + 3_600 * NS_PER_S, 5_000 * NS_PER_S)
    with restarted(tmp_path, later) as second:
        now = views.Now(later.monotonic_ns(), later.time_ns(), 0, 0)
        assert second.store.read(lambda state: views.active_users(state, now)) == 0


def test_pipelines_that_beats_declare_are_kept_soon(tmp_path: Path) -> None:
    """Beats are not kept; what they declare makes a checkpoint due within seconds."""
    clock = ManualClock(time.time_ns())
    first = service(tmp_path, clock)
    clock.advance(6)
    first.journal.tick()
    first.store.read(lambda state: state.add_pipeline(Pipeline("told", ("a",))))
    clock.advance(6)
    first.journal.tick()
    first.die()
    with restarted(tmp_path, clock) as second:
        assert "told" in second.store.read(lambda state: set(state.pipelines))


# --- replay and the Collector ---------------------------------------------------------------------


def replayed(*files: Path, limits: Limits = SMALL, **more: Any) -> tuple[Store, int]:
    clock = RecordedClock()
    store = Store(State(limits), clock)
    return store, sum(1 for _ in replay.replay(files, store, clock, **more))


def test_a_journal_is_replayed_in_its_own_time(tmp_path: Path) -> None:
    """A directory's segments give the figures that the service had, judged by its clock."""
    clock = ManualClock(time.time_ns() - 100 * DAY_NS)
    first = service(tmp_path, clock)
    for number in range(200):
        first.take(number)
        clock.advance(0.3)
    before = without_times(shown(first.store))
    first.journal.close()
    read_bytes: list[int] = []
    store, count = replayed(tmp_path, progress=read_bytes.append)
    assert count == 200
    assert read_bytes[-1] == replay.sizes([tmp_path]) == sum(
        file.stat().st_size for file in segments(tmp_path)
    )  # fmt: skip
    assert without_times(shown(store)) == before
    assert store.clock.time_ns() == clock.time_ns() - round(0.3 * NS_PER_S)


def test_silence_between_records_is_judged_as_it_was(tmp_path: Path) -> None:
    """Work that stalled for five minutes and came back has its resolved issue in a replay."""
    clock = ManualClock(time.time_ns() - DAY_NS)
    first = service(tmp_path, clock)
    first.take(*range(7))
    clock.advance(300)
    first.take(7)
    first.die()
    store, _ = replayed(tmp_path)
    [issue] = shown(store)["recent_issues"]
    assert issue["issue"] == "Transcription completed but memory processing stalled"
    assert issue["resolved"]


@pytest.mark.parametrize("form", ["lines", "document", "bom"])
def test_json_is_replayed(tmp_path: Path, form: str) -> None:
    """Lines, as a Collector writes them, of which a broken one is left out; or one document."""
    file = tmp_path / "spans.json"
    base_ns = time.time_ns() - DAY_NS
    documents = [as_json(request(number, base_ns + number * 10_000)) for number in range(4)]
    notes: list[str] = []
    if form == "document":
        file.write_text("\n".join(json.dumps(one, indent=1) for one in documents))
    else:
        start = "\ufeff" if form == "bom" else ""
        text = [json.dumps(one) for one in documents]
        text.insert(2, '{"resourceMetrics": []}')
        text.insert(2, '{"resourceSpans": [')
        file.write_text(start + "\n".join(text) + "\n")
    store, count = replayed(file, note=notes.append)
    assert (count, chunks(store)) == (4, 4)
    assert shown(store) == shown(folded(4, base_ns))
    assert notes == (
        [] if form == "document" else [f"{file}: no spans, or broken, and left out: 2 lines"]
    )


def as_json(one: ExportTraceServiceRequest) -> dict[str, Any]:
    """As OTLP/JSON has it: ids in hex."""
    document: dict[str, Any] = json_format.MessageToDict(one)
    for resource, plain in zip(one.resource_spans, document["resourceSpans"], strict=True):
        spans = plain["scopeSpans"][0]["spans"]
        for span, row in zip(resource.scope_spans[0].spans, spans, strict=True):
            row["traceId"], row["spanId"] = span.trace_id.hex(), span.span_id.hex()
            if span.parent_span_id:
                row["parentSpanId"] = span.parent_span_id.hex()
    return document


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1f\x8b\x08\x00abc", "is compressed; give it uncompressed"),
        (b"\x00\x00\x00\x09\x28\xb5\x2f\xfdabc", "is compressed; give it uncompressed"),
        (b"garbage, and more of it", "is damaged from byte 0 on"),
        (b"\x00\x00\x00\x20abc", "ends in the middle of a record"),
        (b"\x00\x00\x00\x04abcd", "broken and left out: 1 records"),
        (b"{", "ends in the middle of a record"),
        (b'{"a": 1}', "no spans, or broken, and left out"),
        (b'{\n"a": 1}', "holds something else than OTLP's traces"),
    ],
)
def test_what_is_no_recording_is_said(tmp_path: Path, content: bytes, says: str) -> None:
    """In one sentence, and nothing is raised."""
    file = tmp_path / "file"
    file.write_bytes(content)
    notes: list[str] = []
    _, count = replayed(file, tmp_path / "missing", note=notes.append)
    assert count == 0
    assert says in notes[0]
    assert notes[1] == f"{tmp_path / 'missing'} cannot be read: No such file or directory"


def test_one_span_with_a_wrong_clock_ends_no_silence(tmp_path: Path) -> None:
    """A time that is still to come moves a replay to now, and not to the year 9999."""
    ahead = request(0, time.time_ns() + 1_000 * DAY_NS)
    file = tmp_path / "spans.otlp"
    message = ahead.SerializeToString()
    file.write_bytes(len(message).to_bytes(4, "big") + message)
    store, _ = replayed(file)
    assert store.clock.time_ns() <= time.time_ns()


def test_a_replay_needs_its_clock_in_the_store() -> None:
    """Else all would be judged by today's."""
    store = Store(State(), SystemClock())
    with pytest.raises(ValueError, match="the store is on another clock"):
        next(replay.replay([], store, RecordedClock()))


def post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/x-protobuf"}
    call = urllib.request.Request(f"{url}/v1/traces", body, headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(call, timeout=10) as answer:  # noqa: S310
        assert answer.status == 200


FORMATS: Final = """
exporters:
  file/lines:
    path: ${env:OTELCOL_RECORD_DIR}/lines.json
    flush_interval: 100ms
service:
  pipelines:
    traces/lines:
      receivers: [otlp]
      exporters: [file/lines]
"""


def test_the_collectors_files_are_replayed_and_it_reads_our_records(tmp_path: Path) -> None:
    """The real file exporter, in both formats; our records, sent to it as they are on disk."""
    engine("otelcol")
    base_ns = time.time_ns()
    first = service(tmp_path / "journal")
    first.take(*range(30))
    expected = without_times(shown(first.store))
    first.die()
    overlay = tmp_path / "lines.yaml"
    overlay.write_text(FORMATS)
    records = []
    [segment] = segments(tmp_path / "journal")
    with segment.open("rb") as file:
        records = [one.message for one in replay.records(file, ours=True)]
    with Collector(tmp_path, extra_config=[RECORD, overlay]) as collector:
        for record in records:
            post(collector.http_url, record)
        spans = sum(
            len(r.scope_spans[0].spans)
            for n in range(30)
            for r in request(n, base_ns).resource_spans
        )
        until("all spans", lambda: len(collector.received()) == spans)
        lines_file = tmp_path / "records" / "lines.json"
        until("all lines", lambda: lines_file.read_bytes().count(b"\n") == 30)
    for name in ("received.otlp", "lines.json"):
        store, count = replayed(tmp_path / "records" / name)
        assert count == 30
        assert without_times(shown(store)) == expected


def test_every_reader_of_the_collectors_format_reads_ours() -> None:
    """Behind its length stands a request that protobuf parses as the one that came."""
    one = request(3, 1_000_000_000)
    prefix, *pieces = frame(one.SerializeToString(), 42)
    message = b"".join(pieces)
    assert int.from_bytes(prefix, "big") == len(message)
    parsed = ExportTraceServiceRequest.FromString(message)
    parsed.DiscardUnknownFields()
    assert parsed == one
