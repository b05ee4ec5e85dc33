"""One test for each row of the table that decides a transaction's status (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from otel_tracker import views
from otel_tracker.history import history, merge
from otel_tracker.ids import format_id
from otel_tracker.issues import MEMORY_FAILED, MEMORY_STALLED, NOTHING_AFTER_AUDIO
from otel_tracker.model import (
    AUDIO,
    AUDIO_PIPELINE,
    MEMORY,
    NO_PIPELINE,
    NS_PER_S,
    TRANSCRIPTION,
    Fact,
    Kind,
    Outcome,
    Pipeline,
    SocketFact,
    TransactionStatus,
    Who,
)
from otel_tracker.stalls import Patience
from otel_tracker.state import IssueFound, Limits, Stalled, State, StatusChange
from otel_tracker.verdict import Verdict, judge
from tests.facts import TRACE_ID, attempt, audio, ended, make, monotonic, root, wall

IN_PROGRESS = TransactionStatus.IN_PROGRESS
COMPLETED = TransactionStatus.COMPLETED
FAILED = TransactionStatus.FAILED
STALLED = TransactionStatus.STALLED

ID = format_id(TRACE_ID)


def at(
    second: float,
    *facts: Fact,
    pipeline: Pipeline = AUDIO_PIPELINE,
    patience: Patience | None = None,
    socket_open: bool = False,
    carried_on: bool = False,
) -> Verdict:
    """The verdict over `facts` at that second."""
    return judge(
        history(facts),
        pipeline,
        patience or Patience(),
        monotonic(second),
        ID,
        socket_open=socket_open,
        carried_on=carried_on,
    )


def issue(verdict: Verdict) -> str | None:
    return None if verdict.found is None else verdict.found.text


def stage(verdict: Verdict) -> str | None:
    return None if verdict.current_stage is None else verdict.current_stage.value


def next_s(verdict: Verdict) -> float | None:
    """The second at which the verdict changes by itself."""
    return None if verdict.next_ns is None else (verdict.next_ns - monotonic(0)) / NS_PER_S


# --- row 1: an attempt is open -------------------------------------------------------------------


def test_an_open_attempt_is_in_progress_within_its_limit() -> None:
    """A stage that is heard of is in progress up to the very moment of its limit."""
    verdict = at(59.999, root(), attempt(TRANSCRIPTION, 2, 0))
    assert (verdict.status, issue(verdict), next_s(verdict)) == (IN_PROGRESS, None, 60)
    assert stage(verdict) == "transcription_started"


def test_an_open_attempt_stalls_at_its_limit() -> None:
    """Silence of exactly the limit is a stall, and it names the last event."""
    verdict = at(60, root(), attempt(TRANSCRIPTION, 2, 0))
    assert verdict.status is STALLED
    assert issue(verdict) == f"Transaction {ID[:8]} stalled after transcription_started"
    assert [a.span_id for a in verdict.stalled] == [2]
    assert verdict.next_ns is None


def test_progress_brings_a_stalled_attempt_back() -> None:
    """A sign of life at second 59 puts the stall off to second 119."""
    facts = root(), attempt(TRANSCRIPTION, 2, 0, seen=59)
    assert at(118, *facts).status is IN_PROGRESS
    assert at(119, *facts).status is STALLED


@pytest.mark.parametrize("kind", [Kind.STALLED, Kind.RECOVERED])
def test_marks_of_a_stall_are_no_progress(kind: Kind) -> None:
    """`memory stalled` and `memory recovered` are about the attempt; neither is a sign of life."""
    mark = make(kind, 3, 60, 60, stage=MEMORY)
    assert at(61, root(), attempt(MEMORY, 2, 0), mark).status is STALLED


def test_a_wait_is_no_progress_of_an_open_attempt() -> None:
    """`memory queued` beside a silent open stage does not keep that stage alive."""
    wait = make(Kind.QUEUED, 3, 50, stage=MEMORY)
    assert at(61, root(), attempt(TRANSCRIPTION, 2, 0), wait).status is STALLED


def test_late_audio_is_no_progress_of_an_open_attempt() -> None:
    """Packets that go on coming do not hide that transcription hangs."""
    facts = root(), audio(2, 0, seen=90, chunks=9), attempt(TRANSCRIPTION, 3, 1)
    assert at(90, *facts).status is STALLED


def test_a_stage_has_the_limit_that_was_set_for_it() -> None:
    """An explicit limit wins over the pipeline's, and that over the default."""
    pipeline = Pipeline("own", ("fetch", "store"), {"fetch": 10})
    facts = root(), attempt("fetch", 2, 0)
    patience = Patience(by_stage_ns={"fetch": 900 * NS_PER_S})
    assert at(9, *facts, pipeline=pipeline).status is IN_PROGRESS
    assert at(10, *facts, pipeline=pipeline).status is STALLED
    assert at(899, *facts, pipeline=pipeline, patience=patience).status is IN_PROGRESS
    assert at(900, *facts, pipeline=pipeline, patience=patience).status is STALLED


def test_the_memory_sentence_comes_at_thirty_seconds_and_the_stall_at_sixty() -> None:
    """After a reported transcription 30 s of silence in memory are an issue, not yet a stall."""
    facts = root(), attempt(TRANSCRIPTION, 2, 0, 1), attempt(MEMORY, 3, 10)
    assert [(v.status, issue(v), next_s(v)) for v in (at(s, *facts) for s in (39, 40, 69, 70))] == [
        (IN_PROGRESS, None, 40),
        (IN_PROGRESS, MEMORY_STALLED, 70),
        (IN_PROGRESS, MEMORY_STALLED, 70),
        (STALLED, MEMORY_STALLED, None),
    ]


def test_an_explicit_limit_for_memory_replaces_both() -> None:
    """With 900 s for memory neither the sentence nor the stall comes before."""
    patience = Patience(by_stage_ns={MEMORY: 900 * NS_PER_S})
    facts = root(), attempt(TRANSCRIPTION, 2, 0, 1), attempt(MEMORY, 3, 10)
    assert issue(at(909, *facts, patience=patience)) is None
    late = at(910, *facts, patience=patience)
    assert (late.status, issue(late)) == (STALLED, MEMORY_STALLED)


def test_an_inferred_transcription_does_not_call_for_the_memory_sentence() -> None:
    """The documented sentences go by what was reported."""
    inferred = attempt(TRANSCRIPTION, 2, 0, 10, closed=False)
    verdict = at(80, root(), inferred, attempt(MEMORY, 3, 10))
    assert issue(verdict) == f"Transaction {ID[:8]} stalled after memory_started"


def test_open_work_wins_over_a_standing_failure() -> None:
    """A transaction that is being retried is in progress, and its old failure is no issue."""
    failed = attempt(MEMORY, 2, 0, 1, Outcome.FAILURE, error="boom")
    verdict = at(10, root(), failed, attempt(MEMORY, 3, 5))
    assert (verdict.status, issue(verdict)) == (IN_PROGRESS, None)


def test_a_stage_that_is_open_after_the_end_is_in_progress() -> None:
    """There is no "too late": memory runs after the conversation has closed."""
    facts = root(0, 5, Outcome.SUCCESS), attempt(TRANSCRIPTION, 2, 0, 4), attempt(MEMORY, 3, 6)
    assert at(7, *facts).status is IN_PROGRESS
    assert at(66, *facts).status is STALLED


def test_of_several_open_attempts_one_that_is_silent_is_a_stall() -> None:
    """One hanging branch is not hidden by another that works."""
    verdict = at(
        61,
        root(),
        attempt("fetch", 2, 0, key="left"),
        attempt("fetch", 3, 0, key="right", seen=60),
        pipeline=NO_PIPELINE,
    )
    assert verdict.status is STALLED
    assert [a.span_id for a in verdict.stalled] == [2]
    assert [a.span_id for a in verdict.running] == [3]


# --- nested, superseded --------------------------------------------------------------------------


def test_of_nested_attempts_the_innermost_is_judged() -> None:
    """An outer stage may be silent for as long as an inner one works."""
    outer = attempt("outer", 2, 0)
    inner = attempt("inner", 3, 10, seen=100, parent_id=2)
    verdict = at(159, root(), outer, inner, pipeline=NO_PIPELINE)
    assert verdict.status is IN_PROGRESS
    verdict = at(160, root(), outer, inner, pipeline=NO_PIPELINE)
    assert verdict.status is STALLED
    assert [a.stage for a in verdict.stalled] == ["inner"]


def test_the_end_of_an_inner_attempt_is_progress_of_the_outer_one() -> None:
    """When the inner stage has ended, the outer one's silence starts anew."""
    facts = (
        root(),
        attempt("outer", 2, 0),
        attempt("inner", 3, 10, 100, parent_id=2),
    )
    assert at(159, *facts, pipeline=NO_PIPELINE).status is IN_PROGRESS
    assert at(160, *facts, pipeline=NO_PIPELINE).status is STALLED


def test_a_replaced_attempt_is_forgotten_beyond_its_limit() -> None:
    """An attempt that nobody closed and that a later one replaced was given up, and is no stall."""
    facts = root(), attempt(MEMORY, 2, 0), attempt(MEMORY, 3, 10, 20)
    within = at(59, *facts)
    assert (within.status, next_s(within)) == (IN_PROGRESS, 60)
    assert at(60, *facts).status is COMPLETED


def test_a_forgotten_inner_attempt_does_not_keep_its_outer_one_running() -> None:
    """Given up, an inner attempt no longer vouches for the stage around it, which then stalls."""
    facts = (
        root(),
        attempt("outer", 2, 0),
        attempt("inner", 3, 1, parent_id=2),
        attempt("inner", 4, 10, 20, parent_id=2),
    )
    assert at(70, *facts, pipeline=NO_PIPELINE).status is IN_PROGRESS
    verdict = at(10_000, *facts, pipeline=NO_PIPELINE)
    assert verdict.status is STALLED
    assert [a.stage for a in verdict.stalled] == ["outer"]


# --- row 2: a last attempt went wrong ------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "closed", "text"),
    [
        (Outcome.FAILURE, True, "Failed at transcription_completed: no speech"),
        (Outcome.ABANDONED, False, "Failed at transcription_started: no speech"),
        (Outcome.INTERRUPTED, False, "Failed at transcription_started: no speech"),
        (Outcome.CANCELLED, True, None),
    ],
)
def test_a_bad_last_attempt_is_a_failure(outcome: str, closed: bool, text: str | None) -> None:
    """Failed, abandoned and interrupted are failures with an issue; cancelled is one without."""
    bad = attempt(TRANSCRIPTION, 2, 0, 1, outcome, closed=closed, error="no speech")
    verdict = at(1, root(), bad)
    assert (verdict.status, issue(verdict)) == (FAILED, text)
    assert verdict.next_ns is None


def test_a_failure_without_a_message_is_an_unknown_error() -> None:
    """The documented words where nobody said what went wrong."""
    verdict = at(1, root(), attempt(TRANSCRIPTION, 2, 0, 1, Outcome.FAILURE))
    assert issue(verdict) == "Failed at transcription_completed: Unknown error"


def test_a_failed_start_says_so() -> None:
    """A `*_STARTED` reported as a failure fails at the start."""
    bad = attempt(MEMORY, 2, 0, 0, Outcome.FAILURE, closed=False, error="no model")
    assert issue(at(1, root(), bad)) == "Failed at memory_started: no model"


def test_memory_that_failed_after_a_transcription_has_the_documented_sentence() -> None:
    """Its message is kept beside the sentence, which does not show it."""
    verdict = at(
        9,
        root(),
        attempt(TRANSCRIPTION, 2, 0, 1),
        attempt(MEMORY, 3, 2, 3, Outcome.FAILURE, error="no space"),
    )
    assert verdict.found is not None
    assert (verdict.found.text, verdict.found.error) == (MEMORY_FAILED, "no space")


def test_the_memory_sentence_wins_over_an_earlier_failure() -> None:
    """What people search for comes first, then the first failure still standing."""
    fetch = attempt("fetch", 4, 0, 1, Outcome.FAILURE, error="first")
    memory = attempt(MEMORY, 3, 2, 3, Outcome.FAILURE, error="second")
    transcription = attempt(TRANSCRIPTION, 2, 0, 1)
    assert issue(at(9, root(), fetch, memory, transcription)) == MEMORY_FAILED
    assert issue(at(9, root(), fetch, memory)) == "Failed at fetch_completed: first"


def test_a_retry_that_went_well_puts_a_failure_right() -> None:
    """The newest attempt of each stage decides."""
    facts = (
        root(),
        attempt(MEMORY, 2, 0, 1, Outcome.FAILURE, error="busy"),
        attempt(MEMORY, 3, 2, 3),
    )
    assert (at(8, *facts).status, issue(at(8, *facts))) == (COMPLETED, None)


def test_a_success_of_another_key_puts_nothing_right() -> None:
    """Fan-out branches have attempts of their own."""
    left = attempt("fetch", 2, 0, 1, Outcome.FAILURE, key="left", error="boom")
    right = attempt("fetch", 3, 2, 3, key="right")
    again = attempt("fetch", 4, 4, 5, key="left")
    assert at(9, root(), left, right, pipeline=NO_PIPELINE).status is FAILED
    assert at(9, root(), left, right, again, pipeline=NO_PIPELINE).status is IN_PROGRESS


def test_attempts_that_begin_together_are_ordered_by_their_span_id() -> None:
    """A tie of start times has one answer, whichever fact came first."""
    bad = attempt(MEMORY, 8, 1, 2, Outcome.FAILURE, error="x")
    good = attempt(MEMORY, 9, 1, 2)
    assert at(20, root(), good, bad).status is COMPLETED
    assert at(20, root(), bad, good).status is COMPLETED
    earlier_id = attempt(MEMORY, 7, 1, 2)
    assert at(20, root(), bad, earlier_id).status is FAILED
    assert at(20, root(), earlier_id, bad).status is FAILED


def test_the_order_of_starts_decides_and_not_the_order_of_ends() -> None:
    """A slow first attempt that succeeds after the second one failed changes nothing."""
    slow = attempt(MEMORY, 2, 0, 50)
    second = attempt(MEMORY, 3, 10, 20, Outcome.FAILURE, error="x")
    assert at(60, root(), slow, second).status is FAILED


def test_a_failure_wins_over_an_end_that_was_told_as_a_success() -> None:
    """The caller's "done" does not hide what failed and stayed so."""
    verdict = at(
        9, root(0, 5, Outcome.SUCCESS), attempt(MEMORY, 2, 1, 2, Outcome.FAILURE, error="x")
    )
    assert (verdict.status, issue(verdict)) == (FAILED, "Failed at memory_completed: x")


def test_a_failure_after_the_end_counts() -> None:
    """Memory that fails after the conversation has closed is what people look for."""
    verdict = at(
        30,
        root(0, 5, Outcome.SUCCESS),
        attempt(TRANSCRIPTION, 2, 0, 4),
        attempt(MEMORY, 3, 10, 20, Outcome.FAILURE),
    )
    assert (verdict.status, issue(verdict)) == (FAILED, MEMORY_FAILED)


def test_a_failure_wins_over_a_wait_in_a_queue() -> None:
    """Queued for another try, a transaction stays failed until the try begins."""
    bad = attempt(MEMORY, 2, 0, 1, Outcome.FAILURE, error="x")
    wait = make(Kind.QUEUED, 3, 2, stage=MEMORY)
    assert at(9, root(), bad, wait).status is FAILED
    assert at(9, root(), bad, wait, attempt(MEMORY, 4, 8)).status is IN_PROGRESS


def test_the_end_told_as_a_failure_is_one() -> None:
    """With or without a stage that failed, and with its own message."""
    root_failed = root(0, 5, Outcome.FAILURE, error="gave up")
    told = ended(3, 5, Outcome.FAILURE, error="gave up")
    for end in (root_failed, told):
        verdict = at(9, end, attempt(MEMORY, 2, 1, 2))
        assert (verdict.status, issue(verdict)) == (FAILED, "Failed at conversation_ended: gave up")


def test_an_end_told_as_cancelled_has_no_issue() -> None:
    """People hang up: no issue and no alert, yet no success."""
    verdict = at(9, root(0, 5, Outcome.CANCELLED))
    assert (verdict.status, issue(verdict)) == (FAILED, None)


def test_the_newest_end_counts() -> None:
    """A verdict that changed is told again, and the newer one stands."""
    verdict = at(30, root(0, 5, Outcome.FAILURE), ended(3, 20, Outcome.SUCCESS))
    assert verdict.status is COMPLETED
    assert at(30, root(0, 5, Outcome.SUCCESS), ended(3, 20, Outcome.FAILURE)).status is FAILED


@pytest.mark.parametrize("outcome", ["", Outcome.INTERRUPTED, Outcome.ABANDONED])
def test_a_root_that_ended_without_a_verdict_says_nothing(outcome: str) -> None:
    """Only success, failure and cancelled on a root speak of the transaction."""
    verdict = at(9, root(0, 5, outcome, closed=False), attempt(TRANSCRIPTION, 2, 1, 2))
    assert verdict.status is IN_PROGRESS


def test_audio_that_came_after_a_failure_of_audio_puts_it_right() -> None:
    """A reported failure of audio is one attempt at it; packets afterwards are the next."""
    bad = attempt(AUDIO, 2, 0, 0, Outcome.FAILURE, closed=False, error="no signal")
    verdict = at(1, root(), bad)
    assert (verdict.status, issue(verdict)) == (FAILED, "Failed at audio_received: no signal")
    assert at(6, root(), bad, audio(3, 5)).status is IN_PROGRESS


# --- row 3: handed to a queue --------------------------------------------------------------------


def test_queued_work_waits_and_never_stalls() -> None:
    """IN_PROGRESS with a clock of its own; beyond the limit an issue, never a stall."""
    facts = root(), attempt(TRANSCRIPTION, 2, 0, 1), make(Kind.QUEUED, 3, 2, stage=MEMORY)
    early, late, much_later = at(301, *facts), at(302, *facts), at(100_000, *facts)
    assert [w.stage for w in early.waiting] == [MEMORY]
    assert (early.status, issue(early), next_s(early)) == (IN_PROGRESS, None, 302)
    text = "Queued for memory but not picked up by a worker"
    assert (late.status, issue(late), late.next_ns) == (IN_PROGRESS, text, None)
    assert (much_later.status, issue(much_later)) == (IN_PROGRESS, text)


def test_queued_work_is_taken_by_an_attempt_of_its_stage() -> None:
    """From the pick-up on the attempt is judged; an earlier attempt takes nothing."""
    wait = make(Kind.QUEUED, 3, 2, stage=MEMORY)
    assert at(10, root(), wait, attempt(TRANSCRIPTION, 4, 5, 6)).waiting == (wait,)
    assert at(10, root(), wait, attempt(MEMORY, 4, 0, 1)).waiting == (wait,)
    taken = at(10, root(), wait, attempt(MEMORY, 4, 5))
    assert (taken.waiting, taken.status) == ((), IN_PROGRESS)
    assert at(65, root(), wait, attempt(MEMORY, 4, 5)).status is STALLED


def test_a_wait_that_its_worker_tells_as_well_is_one_wait() -> None:
    """Its sender left it open, and the worker ended it, with the moment that it was told."""
    sent = make(Kind.QUEUED, 3, 2, stage=MEMORY)
    told = make(Kind.QUEUED, 5, 2.4, 4, stage=MEMORY)
    other = make(Kind.QUEUED, 5, 1, 4, stage=MEMORY)
    assert at(10, root(), sent, told).waiting == (told,)  # until its attempt is heard of
    assert at(10, root(), sent, told, attempt(MEMORY, 6, 4)).waiting == ()
    assert at(10, root(), sent, other).waiting == (other, sent)
    here = make(Kind.QUEUED, 3, 2, stage=MEMORY, where="host-a/1/main")
    behind = make(Kind.QUEUED, 5, -1, -0.99999, stage=MEMORY, where="host-b/2/main")
    running = attempt(MEMORY, 6, -0.99999, where="host-b/2/main")
    assert at(10, root(), here, behind, running).waiting == ()  # its clock is 3 s behind


def test_a_quick_worker_whose_clock_is_behind_has_taken_what_waits() -> None:
    """A minute, between hosts; on one host there is one clock, and nothing earlier takes it."""
    wait = make(Kind.QUEUED, 3, 2, stage=MEMORY, where="host-a/1/main")
    there = attempt(MEMORY, 4, 1.9, 1.95, where="host-b/7/main")
    here = attempt(MEMORY, 4, 1.9, 1.95, where="host-a/7/main")
    earlier = attempt(MEMORY, 4, -58.5, 1.95, where="host-b/7/main")
    failed = attempt(MEMORY, 4, 0.9, 1.95, Outcome.FAILURE, where="host-b/7/main")
    assert at(10, root(), wait, failed).waiting == (wait,)  # and was queued again
    assert at(10, root(), wait, there).waiting == ()
    assert at(10, root(), wait, here).waiting == (wait,)
    assert at(10, root(), wait, earlier).waiting == (wait,)


def test_each_attempt_takes_one_wait_whatever_its_clock() -> None:
    """The part before went well; the next one, queued soon after it, is taken by nobody."""
    first = make(Kind.QUEUED, 3, 2, stage=MEMORY, where="host-a/1/main")
    then = make(Kind.QUEUED, 4, 20, stage=MEMORY, where="host-a/1/main")
    done = attempt(MEMORY, 5, 5, 9, where="host-b/7/main")
    assert at(60, root(), first, done, then).waiting == (then,)
    later = attempt(MEMORY, 6, 21, 22, where="host-b/7/main")
    assert at(60, root(), first, done, then, later).waiting == ()


def test_an_end_that_another_process_told_is_the_end_of_the_wait() -> None:
    """A worker may end a transaction without a stage; the sender's own end leaves the work open."""
    wait = make(Kind.QUEUED, 3, 2, stage=MEMORY, where="host-a/1/main")

    def told(where: str) -> Fact:
        return make(Kind.ENDED, 5, 4, 4, outcome=Outcome.SUCCESS, where=where)

    assert at(10, root(), wait, told("host-b/7/main")).status is COMPLETED
    assert at(10, root(), wait, told("host-a/1/other")).waiting == (wait,)


def test_queued_work_waits_even_after_the_end() -> None:
    """The end of the conversation does not make waiting work done."""
    verdict = at(10, root(0, 5, Outcome.SUCCESS), make(Kind.QUEUED, 3, 2, stage=MEMORY))
    assert (verdict.status, len(verdict.waiting)) == (IN_PROGRESS, 1)


def test_work_handed_over_is_elsewhere() -> None:
    """The sender may never hear more: neither a stall nor an issue, however long it takes."""
    facts = (
        root(0, 2),
        attempt(TRANSCRIPTION, 2, 0, 1),
        make(Kind.QUEUED, 3, 2, stage=MEMORY),
        make(Kind.HANDED_OVER, 4, 2, 2),
    )
    for verdict in (at(10, *facts), at(100_000, *facts)):
        assert (verdict.status, issue(verdict), verdict.elsewhere) == (IN_PROGRESS, None, True)


def test_work_that_comes_back_after_a_hand_over_is_judged_again() -> None:
    """An attempt seen here since then is no longer elsewhere."""
    handed = make(Kind.HANDED_OVER, 4, 2, 2)
    assert at(10, root(0, 2), handed, attempt(MEMORY, 5, 5)).elsewhere is False
    assert at(65, root(0, 2), handed, attempt(MEMORY, 5, 5)).status is STALLED
    assert at(20, root(0, 2), handed, attempt(MEMORY, 5, 5, 6)).status is COMPLETED


def test_the_end_of_the_conversation_is_not_the_end_of_what_was_handed_over() -> None:
    """Memory runs after the conversation has closed: told there, the end says nothing of it."""
    facts = root(0, 2), make(Kind.HANDED_OVER, 4, 2, 2), ended(5, 30)
    verdict = at(31, *facts)
    assert (verdict.status, verdict.elsewhere) == (IN_PROGRESS, True)


# --- row 4: done ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [root(0, 5, Outcome.SUCCESS), ended(9, 5)])
def test_an_end_that_was_told_is_done_at_once(end: Fact) -> None:
    """No settling: the caller said so."""
    verdict = at(5, end, attempt(TRANSCRIPTION, 2, 0, 4))
    assert (verdict.status, issue(verdict)) == (COMPLETED, None)
    assert stage(verdict) == "conversation_ended"


def test_the_last_declared_stage_is_done_after_it_has_settled() -> None:
    """Real callers hardly ever tell the end: a success of memory and 5 s of quiet will do."""
    facts = root(), attempt(MEMORY, 2, 0, 10)
    before = at(14.9, *facts)
    assert (before.status, next_s(before)) == (IN_PROGRESS, 15)
    assert at(15, *facts).status is COMPLETED


def test_news_puts_settling_off() -> None:
    """Settling counts from the newest fact, whichever it was."""
    facts = root(), attempt(MEMORY, 2, 0, 10), attempt("tags", 3, 9, 13)
    assert at(17, *facts).status is IN_PROGRESS
    assert at(18, *facts).status is COMPLETED


def test_an_inferred_success_of_the_last_stage_counts_for_the_status() -> None:
    """What a caller never reported may still be what the status goes by."""
    verdict = at(20, root(), attempt(MEMORY, 2, 0, 10, closed=False))
    assert verdict.status is COMPLETED


def test_a_skip_is_done_whatever_is_missing() -> None:
    """Rightly nothing to do in the last attempted stage: no later stage is missed."""
    facts = root(), attempt(TRANSCRIPTION, 2, 0, 10, Outcome.SKIPPED, error="empty")
    assert at(14, *facts).status is IN_PROGRESS
    verdict = at(15, *facts)
    assert (verdict.status, issue(verdict)) == (COMPLETED, None)
    assert at(10_000, *facts).status is COMPLETED


def test_every_key_of_the_last_stage_must_be_done() -> None:
    """A fan-out is done when all its branches are."""
    pipeline = Pipeline("own", ("fetch",))
    left = attempt("fetch", 2, 0, 1, key="left")
    right = attempt("fetch", 3, 0, 50, key="right")
    open_right = attempt("fetch", 3, 0, key="right")
    assert at(10, root(), left, open_right, pipeline=pipeline).status is IN_PROGRESS
    assert at(55, root(), left, right, pipeline=pipeline).status is COMPLETED


def test_without_declared_stages_only_the_end_is_done() -> None:
    """Such a transaction neither stalls between stages nor completes by itself."""
    facts = root(), attempt("fetch", 2, 0, 1)
    assert at(100_000, *facts, pipeline=NO_PIPELINE).status is IN_PROGRESS
    assert at(2, *facts, ended(3, 2), pipeline=NO_PIPELINE).status is COMPLETED


def test_late_audio_moves_nothing() -> None:
    """Packets after the end are counted; status and current stage stay."""
    facts = root(0, 5, Outcome.SUCCESS), attempt(MEMORY, 2, 0, 4), audio(3, 0, seen=50, chunks=9)
    verdict = at(51, *facts)
    assert (verdict.status, stage(verdict)) == (COMPLETED, "conversation_ended")


# --- row 5: only audio ---------------------------------------------------------------------------


def test_while_the_socket_is_open_silence_after_audio_is_no_stall() -> None:
    """Nobody speaks for an hour: that is what people do."""
    verdict = at(3600, root(), audio(2, 0, seen=10), socket_open=True)
    assert (verdict.status, verdict.next_ns) == (IN_PROGRESS, None)


def test_an_open_socket_excuses_no_open_stage() -> None:
    """Once a stage was attempted, it is judged as ever."""
    facts = root(), audio(2, 0, seen=10), attempt(TRANSCRIPTION, 3, 10)
    assert at(70, *facts, socket_open=True).status is STALLED


def test_audio_that_another_transaction_carried_on_is_done() -> None:
    """One recording made three transactions: the one with audio alone is not stuck."""
    over, still_open = audio(2, 0, 10), audio(2, 0, seen=10)
    assert at(10, root(), over, carried_on=True).status is COMPLETED
    assert at(14, root(), still_open, carried_on=True).status is IN_PROGRESS
    assert at(15, root(), still_open, carried_on=True).status is COMPLETED
    assert at(15, root(), still_open, carried_on=True, socket_open=True).status is IN_PROGRESS


def test_audio_alone_stalls_with_its_own_sentence() -> None:
    """Nothing came after it, and nobody carried it on."""
    facts = root(), audio(2, 0, 10)
    assert at(69, *facts).status is IN_PROGRESS
    verdict = at(70, *facts)
    assert (verdict.status, issue(verdict)) == (STALLED, NOTHING_AFTER_AUDIO)
    assert (stage(verdict), verdict.stalled) == ("audio_received", ())


# --- row 6: a declared stage is missing ----------------------------------------------------------


def test_a_missing_stage_is_a_stall_after_the_limit() -> None:
    """Between stages too: transcription is done, and memory never began."""
    facts = root(), attempt(TRANSCRIPTION, 2, 0, 10)
    assert [(v.status, issue(v)) for v in (at(s, *facts) for s in (39, 40, 69, 70))] == [
        (IN_PROGRESS, None),
        (IN_PROGRESS, MEMORY_STALLED),
        (IN_PROGRESS, MEMORY_STALLED),
        (STALLED, MEMORY_STALLED),
    ]


def test_a_missing_stage_after_an_inferred_one_names_the_last_event() -> None:
    """Without a reported transcription it is the general sentence."""
    verdict = at(99, root(), attempt(TRANSCRIPTION, 2, 0, 10, closed=False))
    assert issue(verdict) == f"Transaction {ID[:8]} stalled after transcription_started"


def test_a_transaction_without_any_event_stalls_after_an_unknown_stage() -> None:
    """The documented words where no event ever came."""
    verdict = at(60, root())
    assert (verdict.status, verdict.current_stage) == (STALLED, None)
    assert issue(verdict) == f"Transaction {ID[:8]} stalled after unknown stage"


def test_a_pipeline_that_never_reports_audio_does_not_miss_it() -> None:
    """Once a later stage was attempted, audio counts as there."""
    facts = root(), attempt(TRANSCRIPTION, 2, 0, 1), attempt(MEMORY, 3, 2, 3)
    assert at(8, *facts).status is COMPLETED


def test_the_limit_of_a_missing_stage_is_that_stages_own() -> None:
    """Waiting for `store` lasts as long as `store` may be silent."""
    pipeline = Pipeline("own", ("fetch", "store"), {"store": 200})
    facts = root(), attempt("fetch", 2, 0, 1)
    assert at(200, *facts, pipeline=pipeline).status is IN_PROGRESS
    assert at(201, *facts, pipeline=pipeline).status is STALLED


# --- the same through the state ------------------------------------------------------------------


def kept(*facts: Fact | SocketFact, limits: Limits | None = None) -> State:
    state = State(limits)
    for fact in facts:
        if isinstance(fact, SocketFact):
            state.apply_socket(fact)
        else:
            state.apply(fact)
    return state


def status_at(state: State, second: float, trace_id: int = TRACE_ID) -> TransactionStatus:
    state.advance(monotonic(second), wall(second))
    return state.transactions[trace_id].verdict.status


def test_an_open_copy_after_the_ended_one_changes_nothing() -> None:
    """A finished copy beats an open one, also where it came first."""
    state = kept(root(), attempt(MEMORY, 2, 0, 10), attempt(MEMORY, 2, 0, seen=8))
    assert status_at(state, 20) is COMPLETED
    assert (state.stages[MEMORY].running, state.stages[MEMORY].done) == (0, 1)


def test_a_stall_is_news_once_and_so_is_its_recovery() -> None:
    """The sweeper hears of each change once, however often somebody looks."""
    state = kept(root(), attempt(MEMORY, 2, 0))
    for second in (10, 60, 61, 62):
        status_at(state, second)
    state.apply(attempt(MEMORY, 2, 0, seen=63))
    for second in (63, 64):
        status_at(state, second)
    changes = [
        (news.old, news.verdict.status)
        for news in state.news
        if isinstance(news, StatusChange) and news.old is not None
    ]
    assert changes == [(IN_PROGRESS, STALLED), (STALLED, IN_PROGRESS)]
    assert [n.recovered for n in state.news if isinstance(n, Stalled)] == [False, True]
    assert [n.attempt.span_id for n in state.news if isinstance(n, Stalled)] == [2, 2]
    assert len([n for n in state.news if isinstance(n, IssueFound)]) == 1


def test_an_issue_whose_cause_is_gone_is_resolved_and_stays() -> None:
    """The row of a stall that recovered is marked, not removed."""
    state = kept(root(), attempt(MEMORY, 2, 0))
    status_at(state, 60)
    [row] = views.recent_issues(state, 10)
    assert row["resolved"] is False
    state.apply(attempt(MEMORY, 2, 0, 70))
    assert status_at(state, 80) is COMPLETED
    [row] = views.recent_issues(state, 10)
    assert row["resolved"] is True
    assert row["issue"] == f"Transaction {ID[:8]} stalled after memory_started"


def test_audio_is_carried_on_by_another_transaction_of_the_conversation() -> None:
    """The recording decides, whichever of the two was heard of first."""
    who = Who("u", "c", "talk", "", "audio_pipeline")
    other = TRACE_ID + 1_000
    only_audio = [root(0, who=who), audio(2, 0, 10, who=who)]
    work = [
        root(500, trace_id=other, who=who),
        attempt(MEMORY, 12, 500, 501, trace_id=other, who=who),
    ]
    for facts in (only_audio + work, work + only_audio):
        assert status_at(kept(*facts), 600) is COMPLETED
    state = kept(*only_audio)
    assert status_at(state, 400) is STALLED
    for fact in work:
        state.apply(fact)
    assert status_at(state, 600) is COMPLETED


@pytest.mark.parametrize(
    ("begun", "expected"), [(5, COMPLETED), (70, COMPLETED), (71, STALLED), (-1, STALLED)]
)
def test_without_ids_audio_is_carried_on_by_the_same_client_within_a_minute(
    begun: float, expected: TransactionStatus
) -> None:
    """Begun while the audio was open or within a minute after: otherwise it is another matter."""
    other = TRACE_ID + 1_000
    facts = [
        root(0),
        audio(2, 0, 10),
        root(begun, trace_id=other),
        attempt(MEMORY, 12, begun, begun + 1, trace_id=other),
    ]
    assert status_at(kept(*facts), 200) is expected


def test_another_clients_work_carries_no_audio_on() -> None:
    """Two people speak at the same time."""
    other, who = TRACE_ID + 1_000, Who("user2", "client2", "", "", "audio_pipeline")
    facts = [
        root(0),
        audio(2, 0, 10),
        root(5, trace_id=other, who=who),
        attempt(MEMORY, 12, 5, 6, trace_id=other, who=who),
    ]
    assert status_at(kept(*facts), 200) is STALLED


def test_a_socket_that_closes_ends_the_excuse() -> None:
    """While the client is connected its silence is no stall; afterwards it is."""
    opened = SocketFact("client1", "user1", True, wall(0), monotonic(0))
    closed = SocketFact("client1", "", False, wall(300), monotonic(300))
    state = kept(opened, root(), audio(2, 0, seen=10))
    assert status_at(state, 299) is IN_PROGRESS
    state.apply_socket(closed)
    assert status_at(state, 300) is STALLED


def test_the_second_of_two_connections_keeps_the_excuse() -> None:
    """Two connections with one client id, one closes: one is left."""
    opened = SocketFact("client1", "user1", True, wall(0), monotonic(0))
    closed = SocketFact("client1", "", False, wall(1), monotonic(1))
    state = kept(opened, opened, root(), audio(2, 0, seen=10), closed)
    assert status_at(state, 299) is IN_PROGRESS
    assert sum(state.sockets.values()) == 1
    state.apply_socket(closed)
    state.apply_socket(closed)
    assert sum(state.sockets.values()) == 0
    assert status_at(state, 300) is STALLED


def test_what_is_let_go_while_open_is_counted_as_it_would_have_ended() -> None:
    """Never heard of again: stalled, unless it only had to settle."""
    facts: Sequence[Fact] = (
        root(0),
        root(1, trace_id=TRACE_ID + 1_000),
        attempt(MEMORY, 12, 1, 2, trace_id=TRACE_ID + 1_000),
        root(2, trace_id=TRACE_ID + 2_000),
    )
    state = kept(*facts, limits=Limits(open=1))
    state.advance(monotonic(3), wall(3))
    assert list(state.transactions) == [TRACE_ID + 2_000]
    assert dict(state.let_go) == {STALLED: 1, COMPLETED: 1}


def test_a_failed_transaction_counts_once_however_often_it_fails() -> None:
    """Figures move by the difference between old and new status."""
    state = kept(root())
    for number in range(5):
        state.apply(attempt(MEMORY, 2 + number, number, number + 0.5, Outcome.FAILURE, error="x"))
        state.advance(monotonic(number + 1), wall(number + 1))
    state.apply(root(0, 9, Outcome.FAILURE))
    state.advance(monotonic(10), wall(10))
    counts = {status: len(ids) for status, ids in state.by_status.items()}
    assert counts == {IN_PROGRESS: 0, COMPLETED: 0, FAILED: 1, STALLED: 0}
    [pattern] = state.issues.by_last_seen()
    assert (pattern.text, pattern.transactions) == ("Failed at memory_completed: x", 1)


def test_the_merge_of_two_audio_spans_counts_both() -> None:
    """Audio after a hand-over is a second span: both counts are in the total."""
    state = kept(root(), audio(2, 0, 5, chunks=3), audio(3, 10, chunks=4), audio(3, 10, chunks=6))
    assert status_at(state, 11) is IN_PROGRESS
    assert state.audio_chunks == 9
    assert merge(audio(3, 10, chunks=4), audio(3, 10, chunks=6)).audio.chunks == 6
