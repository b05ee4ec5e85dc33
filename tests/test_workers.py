"""Processes that feed a service: their beats, and what becomes of the work of one that is lost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from otel_tracker.model import NS_PER_S, Kind, Pipeline, TransactionStatus
from otel_tracker.state import State
from otel_tracker.verdict import Verdict
from otel_tracker.workers import BEATS, MOST_WORKERS, Beat, Workers, worker_of
from tests.facts import MONOTONIC_NS, TRACE_ID, attempt, make, monotonic, root, wall

HERE = "host-1/4711"
WHERE = f"{HERE}/MainThread"


def beat(
    at: float,
    worker: str = HERE,
    *,
    progress: Mapping[tuple[int, int], float] | None = None,
    sockets: Mapping[str, int] | None = None,
    is_last: bool = False,
) -> Beat:
    return Beat(
        worker,
        "notes-memory",
        wall(at),
        monotonic(at),
        5 * NS_PER_S,
        progress={ids: wall(seconds) for ids, seconds in (progress or {}).items()},
        sockets=sockets or {},
        is_last=is_last,
    )


def verdict(state: State, at: float, trace_id: int = TRACE_ID) -> Verdict:
    state.advance(monotonic(at), wall(at))
    return state.transactions[trace_id].verdict


def running_at(where: str = WHERE) -> State:
    """A transaction whose memory runs in a worker that beat at second 2."""
    state = State()
    state.apply(root(0, 1))
    state.apply(attempt("memory", 2, 2, where=where))
    state.apply_beat(beat(2))
    return state


def test_a_worker_is_named_by_host_and_process() -> None:
    """Whatever thread or task did the work."""
    assert worker_of("host-1/4711/MainThread/task-3") == HERE
    assert worker_of("") == worker_of("nowhere") == ""


def test_work_of_a_worker_that_falls_silent_is_lost() -> None:
    """STALLED three beats after its last one, long before the stage's own limit, and named."""
    state = running_at()
    before = verdict(state, 2 + BEATS * 5 - 0.1)
    assert before.status is TransactionStatus.IN_PROGRESS
    after = verdict(state, 2 + BEATS * 5)
    assert after.status is TransactionStatus.STALLED
    assert [fact.span_id for fact in after.lost] == [2]
    assert after.found is not None
    assert after.found.text == (
        "Worker lost in memory: notes-memory (process 4711 on host-1) went silent"
    )
    assert state.workers.lost == {HERE}


def test_beats_keep_it_alive() -> None:
    """As long as they come, silence in the stage is judged by the stage's limit alone."""
    state = running_at()
    for second in range(5, 60, 5):
        state.apply_beat(beat(second))
        assert verdict(state, second).status is TransactionStatus.IN_PROGRESS
    state.apply_beat(beat(60))
    stalled = verdict(state, 63)
    assert (stalled.status, stalled.lost) == (TransactionStatus.STALLED, ())


def test_progress_comes_with_the_beat() -> None:
    """A long stage that goes on is no stall, though no span of it comes."""
    state = running_at()
    for second in range(5, 300, 5):
        state.apply_beat(beat(second, progress={(TRACE_ID, 2): second - 1}))
        assert verdict(state, second).status is TransactionStatus.IN_PROGRESS


def test_a_worker_that_comes_back_takes_its_work_up_again() -> None:
    """It was frozen, not dead: the transaction runs on, and its issue is resolved."""
    state = running_at()
    assert verdict(state, 30).status is TransactionStatus.STALLED
    state.apply_beat(beat(31, progress={(TRACE_ID, 2): 31}))
    back = verdict(state, 31)
    assert (back.status, back.lost) == (TransactionStatus.IN_PROGRESS, ())
    assert state.workers.lost == set()
    assert [found.resolved for found in state.transactions[TRACE_ID].found.values()] == [True]


def test_work_that_another_worker_took_up_is_not_lost() -> None:
    """A retry elsewhere, and its end, count; the dead attempt is forgotten."""
    state = running_at()
    assert verdict(state, 30).status is TransactionStatus.STALLED
    state.apply(attempt("memory", 3, 31, where="host-2/9/MainThread"))
    assert verdict(state, 31).status is TransactionStatus.IN_PROGRESS
    state.apply(attempt("memory", 3, 31, 33, where="host-2/9/MainThread"))
    assert verdict(state, 60).status is TransactionStatus.COMPLETED


def test_the_end_of_a_lost_attempt_beats_its_loss() -> None:
    """Its span was on the way when the worker died."""
    state = running_at()
    assert verdict(state, 30).status is TransactionStatus.STALLED
    state.apply(attempt("memory", 2, 2, 4, where=WHERE))
    assert verdict(state, 60).status is TransactionStatus.COMPLETED


def test_an_open_root_of_a_lost_worker_is_lost_too() -> None:
    """Killed between two stages, of a pipeline that declares none: nobody will tell the end."""
    state = State(pipelines={"free": Pipeline("free")})
    who = root(0).who._replace(pipeline="free")
    state.apply(root(0, where=WHERE, who=who))
    state.apply(attempt("fetch", 2, 1, 2, where=WHERE, who=who))
    state.apply_beat(beat(2))
    assert verdict(state, 10).status is TransactionStatus.IN_PROGRESS
    lost = verdict(state, 17)
    assert lost.status is TransactionStatus.STALLED
    assert lost.found is not None
    assert lost.found.text == "Worker lost: notes-memory (process 4711 on host-1) went silent"


def test_a_worker_that_says_goodbye_is_not_lost() -> None:
    """It ended what was open by itself."""
    state = running_at()
    state.apply_beat(beat(3, is_last=True))
    state.apply(attempt("memory", 2, 2, 3, outcome="interrupted", where=WHERE))
    assert list(state.workers) == []
    assert verdict(state, 60).lost == ()


def test_what_is_open_there_and_unknown_here_is_asked_for() -> None:
    """After a restart of the service; what was let go stays so."""
    state = running_at()
    asked = state.apply_beat(beat(5, progress={(TRACE_ID, 2): 5, (TRACE_ID, 99): 5, (7, 8): 5}))
    assert asked == [(TRACE_ID, 99), (7, 8)]


def test_sockets_are_those_of_the_newest_beats() -> None:
    """Added up over workers, gone with a worker that is lost, told anew by one that comes back."""
    state = State()
    state.apply_beat(beat(0, sockets={"phone": 2, "laptop": 1}))
    state.apply_beat(beat(0, "host-2/9", sockets={"phone": 1}))
    assert (state.open_websockets, state.open_sockets("phone")) == (4, 3)
    state.apply_beat(beat(5, sockets={"phone": 1}))
    assert state.open_websockets == 2
    state.apply_beat(beat(10, "host-2/9", is_last=True, sockets={"phone": 1}))
    assert state.open_websockets == 1
    state.advance(monotonic(30), wall(30))
    assert state.open_websockets == 0
    state.apply_beat(beat(31, sockets={"phone": 1}))
    assert state.open_websockets == 1


def test_a_late_beat_changes_nothing() -> None:
    """Requests may overtake each other."""
    state = State()
    state.apply_beat(beat(10, sockets={"phone": 1}))
    assert state.apply_beat(beat(5, progress={(7, 8): 5})) == []
    assert state.open_websockets == 1
    (worker,) = state.workers
    assert worker.beat.at_ns == wall(10)


def test_audio_that_goes_on_is_no_loss_of_anything() -> None:
    """A worker whose only open span is audio: nothing came after it, and the worker is lost."""
    state = State()
    state.apply(root(0, where=WHERE))
    state.apply(make(Kind.AUDIO, 5, 0, stage="audio", opened=True, where=WHERE))
    state.apply_beat(beat(0, sockets={"client1": 1}))
    assert verdict(state, 10).status is TransactionStatus.IN_PROGRESS
    assert verdict(state, 20).status is TransactionStatus.STALLED


def test_workers_are_bounded() -> None:
    """Beyond the limit the longest silent one goes, and is counted."""
    workers = Workers()
    for number in range(MOST_WORKERS + 5):
        workers.take(beat(number, f"host/{number}"))
    assert len(list(workers)) == MOST_WORKERS
    assert workers.dropped == 5
    workers.advance(MONOTONIC_NS + 10**15)
    assert len(workers.lost) == MOST_WORKERS


@pytest.mark.parametrize("at", [0.0, 14.9, 15.0])
def test_the_moment_of_the_loss_is_the_third_beat_that_is_due(at: float) -> None:
    """Not before: a beat may be late."""
    workers = Workers()
    workers.take(beat(0))
    assert bool(workers.advance(monotonic(at))) == (at >= 15)
