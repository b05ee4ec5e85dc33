"""The fold as a function of the set of facts: whatever their order, their number, or the time."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_tracker import views
from otel_tracker.history import history, merge
from otel_tracker.ids import format_id
from otel_tracker.model import (
    AUDIO,
    AUDIO_PIPELINE,
    MEMORY,
    NO_PIPELINE,
    TRANSCRIPTION,
    AudioCount,
    Fact,
    Kind,
    Outcome,
    Pipeline,
    SocketFact,
    TransactionStatus,
    Who,
    to_iso,
)
from otel_tracker.stalls import Patience
from otel_tracker.state import Dropped, Limits, State
from otel_tracker.verdict import FOREVER_NS, Verdict, judge
from tests.facts import TRACE_ID, attempt, audio, ended, make, monotonic, root, wall

thorough: Final = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # the same examples in every run: a build must not fail by chance
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
quick: Final = settings(thorough, max_examples=40)

OWN: Final = Pipeline("own", ("fetch", "store"), {"fetch": 10.0})
LAST_S: Final = 150
"""No generated fact is later than this second."""

# --- sets of facts -------------------------------------------------------------------------------

seconds = st.integers(0, 100)
lengths = st.integers(0, 50)


@st.composite
def copies(draw: st.DrawFn, whole: Fact) -> list[Fact]:
    """A span as it may be told: its newest copy, and before it copies from when it was open."""
    told = [whole]
    if draw(st.booleans()):
        start_seen_ns = whole.seen_ns - (whole.at_ns - whole.start_ns)
        first = replace(
            whole,
            ended=False,
            at_ns=whole.start_ns,
            seen_ns=start_seen_ns,
            outcome="",
            error="",
            error_type="",
            closed=False,
            reported_failure=False,
        )
        half_ns = (whole.at_ns - whole.start_ns) // 2
        halfway = replace(first, at_ns=first.at_ns + half_ns, seen_ns=first.seen_ns + half_ns)
        if whole.kind is Kind.AUDIO:
            chunks = whole.audio.chunks // 2
            first = replace(first, audio=AudioCount())
            halfway = replace(halfway, audio=AudioCount(chunks, 100 * chunks, 100 * bool(chunks)))
        told += [first, halfway]
    return told


@st.composite
def attempts(draw: st.DrawFn, trace_id: int, span_id: int, parents: list[int], who: Who) -> Fact:
    """One attempt at a stage: open or over, nested or not."""
    start = draw(seconds)
    is_over = draw(st.booleans())
    outcome = draw(st.sampled_from(sorted(Outcome.ALL)))
    length = draw(lengths)
    told = outcome not in (Outcome.ABANDONED, Outcome.INTERRUPTED) and draw(st.booleans())
    return attempt(
        draw(st.sampled_from((TRANSCRIPTION, MEMORY, "fetch"))),
        span_id,
        start,
        start + length if is_over else None,
        outcome,
        seen=start + length,
        key=draw(st.sampled_from(("", "", "left"))),
        error=draw(st.sampled_from(("", "timeout after 3 s", "boom"))) if is_over else "",
        opened=draw(st.booleans()),
        closed=is_over and told,
        reported_failure=is_over and outcome == Outcome.FAILURE,
        parent_id=draw(st.sampled_from(parents)),
        trace_id=trace_id,
        who=who,
    )


@st.composite
def transactions(draw: st.DrawFn, trace_id: int, client: str = "client1") -> list[Fact]:
    """What may be told of one transaction, some of it more than once, in no order that matters."""
    whole = Who(
        draw(st.sampled_from(("", "user1", "user2"))),
        draw(st.sampled_from(("", client))),
        draw(st.sampled_from(("", "", "talk"))),
        "",
        draw(st.sampled_from((AUDIO_PIPELINE.name, OWN.name, NO_PIPELINE.name, "unheard of"))),
    )
    known = draw(st.sampled_from((whole, Who(pipeline=whole.pipeline))))
    ids = itertools.count(trace_id + 1)
    common: dict[str, Any] = {"trace_id": trace_id, "who": known}
    spans: list[Fact] = []
    if draw(st.booleans()):
        outcome = draw(st.sampled_from(("", "success", "failure", "cancelled", "interrupted")))
        over = draw(st.booleans())
        spans.append(root(0, draw(seconds) if over else None, outcome if over else "",
                          trace_id=trace_id, who=whole))  # fmt: skip
    parents = [trace_id & (1 << 64) - 1]
    for _ in range(draw(st.integers(0, 4))):
        span_id = next(ids)
        spans.append(draw(attempts(trace_id, span_id, parents, known)))
        parents.append(span_id)
    if draw(st.booleans()):
        start = draw(seconds)
        chunks = draw(st.integers(0, 5))
        over = draw(st.booleans())
        newest = start + draw(lengths)
        spans.append(audio(next(ids), start, newest if over else None, seen=newest,
                           chunks=chunks, **common))  # fmt: skip
    for kind in draw(st.lists(st.sampled_from((Kind.QUEUED, Kind.HANDED_OVER, Kind.ENDED,
                                               Kind.STALLED, Kind.RECOVERED, Kind.DETAIL)),
                              max_size=3)):  # fmt: skip
        start = draw(seconds)
        if kind is Kind.ENDED:
            outcome = draw(st.sampled_from(("success", "failure", "cancelled")))
            spans.append(ended(next(ids), start, outcome, closed=draw(st.booleans()), **common))
        elif kind is Kind.QUEUED:
            taken = start + draw(lengths) if draw(st.booleans()) else None
            spans.append(make(kind, next(ids), start, taken, stage=MEMORY, **common))
        else:
            spans.append(make(kind, next(ids), start, start, stage=MEMORY, **common))
    return [copy for span in spans for copy in draw(copies(span))]


@st.composite
def fact_sets(draw: st.DrawFn, most: int = 3) -> list[Fact]:
    """What may be told of several transactions, whose clients and recordings may be the same."""
    facts: list[Fact] = []
    for number in range(draw(st.integers(1, most))):
        client = draw(st.sampled_from(("client1", "client2")))
        facts += draw(transactions(TRACE_ID + 1_000 * number, client))
    return facts


shuffles = st.randoms(use_true_random=False)


def shuffled(facts: Sequence[Fact], rnd: random.Random) -> list[Fact]:
    """The same facts in another order, some of them twice."""
    several = [*facts, *(fact for fact in facts if rnd.random() < 0.4)]
    rnd.shuffle(several)
    return several


# --- what they come to ---------------------------------------------------------------------------


def new_state(limits: Limits | None = None, sockets: Iterable[str] = ()) -> State:
    state = State(limits, pipelines={OWN.name: OWN})
    for client in sockets:
        state.apply_socket(SocketFact(client, "", True, wall(0), monotonic(0)))
    return state


def now_at(second: float) -> views.Now:
    return views.Now(monotonic(second), wall(second), monotonic(0), wall(0))


def seen(state: State, second: float) -> dict[str, Any]:
    """Everything that a dump shows, but for the order in which transactions were first heard of."""
    result = views.dump(state, now_at(second))
    result["transactions"].sort(key=lambda row: row["transaction_id"])
    result["stalled"] = sorted(
        views.stalled(state, now_at(second)), key=lambda r: (r["transaction_id"], r["span_id"])
    )
    result["waiting"] = sorted(views.waiting(state, now_at(second)), key=str)
    for pattern in result["issue_patterns"]:
        pattern["examples"].sort()
    del result["user_activity"]  # has a test of its own
    return result


def figures(state: State, second: float) -> dict[str, Any]:
    """Statuses and tallies alone: what does not depend on when somebody looked."""
    whole = seen(state, second)
    rows = whole["transactions"]
    return {
        "status": {row["transaction_id"]: row["status"] for row in rows},
        "stage": {row["transaction_id"]: row["current_stage"] for row in rows},
        "issue": {row["transaction_id"]: row["issue"] for row in rows},
        "metrics": whole["system_metrics"],
        "stages": whole["stages"],
        "waiting": whole["waiting"],
    }


def folded(facts: Iterable[Fact], second: float, sockets: Iterable[str] = ()) -> State:
    state = new_state(sockets=sockets)
    for fact in facts:
        state.apply(fact)
    state.advance(monotonic(second), wall(second))
    return state


@thorough
@given(fact_sets(), shuffles, st.integers(0, 600), st.sets(st.sampled_from(["client1"])))
def test_any_order_and_number_of_the_same_facts_gives_the_same_dump(
    facts: list[Fact], rnd: random.Random, later: int, sockets: set[str]
) -> None:
    """Statuses, issues, patterns, tallies and events depend on the set of facts alone."""
    second = LAST_S + later
    expected = seen(folded(facts, second, sockets), second)
    for _ in range(3):
        assert seen(folded(shuffled(facts, rnd), second, sockets), second) == expected


@thorough
@given(fact_sets(), shuffles, st.integers(0, 600))
def test_looking_after_every_fact_changes_no_status_and_no_tally(
    facts: list[Fact], rnd: random.Random, later: int
) -> None:
    """A read in between leaves no trace in where things stand in the end."""
    second = LAST_S + later
    expected = figures(folded(facts, second), second)
    state = new_state()
    for fact in shuffled(facts, rnd):
        state.apply(fact)
        state.advance(monotonic(second), wall(second))
    assert figures(state, second) == expected


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_five_spans_of_one_transaction_in_all_their_orders(order: tuple[int, ...]) -> None:
    """An interrupted root, a failure, its retry elsewhere and the end: done in any order."""
    facts = [
        root(0, 40, Outcome.INTERRUPTED),
        attempt(TRANSCRIPTION, 2, 5, 20),
        attempt(MEMORY, 3, 50, 60, Outcome.FAILURE, error="no space"),
        attempt(MEMORY, 4, 70, 90),
        ended(5, 95),
    ]
    state = new_state()
    for index in order:
        state.apply(facts[index])
        state.advance(monotonic(100), wall(100))
    [row] = views.recent_transactions(state, 10)
    assert (row["status"], row["issue"]) == ("completed", None)
    assert row["current_stage"] == "conversation_ended"


@quick
@given(st.lists(st.tuples(st.sampled_from(("user1", "user2", "user3")), seconds), max_size=6))
def test_who_is_active_does_not_depend_on_the_order_of_arrival(
    activity: list[tuple[str, int]],
) -> None:
    """A user is as active as the newest fact says, also where an older one arrives after it."""
    state = new_state()
    newest: dict[str, int] = {}
    for number, (user, second) in enumerate(activity):
        newest[user] = max(second, newest.get(user, 0))
        state.apply(root(second, trace_id=TRACE_ID + number, who=Who(user)))
    now = now_at(350)  # activity before second 50 is too old
    assert views.active_users(state, now) == sum(second >= 50 for second in newest.values())
    assert views.dump(state, now)["user_activity"] == {
        user: to_iso(wall(second)) for user, second in newest.items()
    }


# --- the invariant -------------------------------------------------------------------------------


def check_invariant(state: State, ever: set[int]) -> None:
    """Every figure against a count made anew."""
    metrics = views.metrics(state, now_at(0))
    parts = (
        metrics.active_transactions,
        metrics.completed_transactions,
        metrics.failed_transactions,
        metrics.stalled_transactions,
    )
    assert metrics.total_transactions == sum(parts) == len(ever)
    assert min(parts) >= 0
    kept = Counter(tx.verdict.status for tx in state.transactions.values())
    assert {s: len(ids) for s, ids in state.by_status.items()} == {
        s: kept[s] for s in TransactionStatus
    }
    running: Counter[str] = Counter()
    for tx in state.transactions.values():
        for fact in tx.facts.values():
            if fact.kind in (Kind.STAGE, Kind.AUDIO) and not fact.ended:
                running[fact.stage] += 1
    for name, tally in state.stages.items():
        if name != "(others)":
            assert tally.running == running[name], name
        figures = (tally.running, tally.done, tally.inferred, tally.failed, tally.skipped)
        assert min(figures) >= 0
    assert min(state.audio_chunks, state.transcriptions, state.memories) >= 0
    assert all(pattern.unresolved >= 0 for pattern in state.issues.patterns.values())


@thorough
@given(fact_sets(most=5), shuffles)
def test_the_figures_add_up_at_every_step(facts: list[Fact], rnd: random.Random) -> None:
    """total = active + completed + failed + stalled, and no figure is ever negative."""
    state = new_state()
    for second, fact in enumerate(shuffled(facts, rnd)):
        state.apply(fact)
        state.advance(monotonic(4 * second), wall(4 * second))
        check_invariant(state, set(state.transactions))
    chunks = {fact.span_id: 0 for fact in facts if fact.kind is Kind.AUDIO}
    for fact in facts:
        if fact.kind is Kind.AUDIO:
            chunks[fact.span_id] = max(chunks[fact.span_id], fact.audio.chunks)
    assert state.audio_chunks == sum(chunks.values())


@thorough
@given(fact_sets(most=6), shuffles)
def test_the_figures_add_up_while_transactions_are_let_go(
    facts: list[Fact], rnd: random.Random
) -> None:
    """The invariant holds with next to nothing kept: what is let go lives on in the totals."""
    state = new_state(Limits(finished=1, open=2, issues=2, facts_of_one=3, users=1, stages=2))
    ever: set[int] = set()
    late = 0
    for second, fact in enumerate(shuffled(facts, rnd)):
        is_late = fact.trace_id in ever and fact.trace_id not in state.transactions
        late += is_late
        ever.add(fact.trace_id)
        before = views.metrics(state, now_at(0)) if is_late else None
        state.apply(fact)
        if before is not None:
            assert views.metrics(state, now_at(0)) == before
        state.advance(monotonic(4 * second), wall(4 * second))
        check_invariant(state, ever)
        assert len(state.transactions) <= 3
        assert all(len(tx.facts) <= 3 for tx in state.transactions.values())
    assert state.dropped[Dropped.LATE_FACTS] == late
    gone = state.dropped[Dropped.FINISHED] + state.dropped[Dropped.OPEN]
    assert gone == len(ever) - len(state.transactions)


# --- merging -------------------------------------------------------------------------------------


@st.composite
def versions(draw: st.DrawFn) -> Fact:
    """A copy of one span, by whoever told it: anything that copies may differ in, differs."""
    kind = draw(st.sampled_from((Kind.STAGE, Kind.AUDIO)))
    is_over = draw(st.booleans())
    return Fact(
        TRACE_ID,
        7,
        kind,
        wall(0),
        wall(draw(st.integers(0, 2))),
        monotonic(draw(st.integers(0, 2))),
        is_over,
        Who(draw(st.sampled_from(("", "user1"))), draw(st.sampled_from(("", "client1")))),
        AUDIO if kind is Kind.AUDIO else MEMORY,
        "",
        draw(st.sampled_from(("success", "failure"))) if is_over else "",
        draw(st.sampled_from(("", "boom"))),
        draw(st.sampled_from(("", "OSError"))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
        1,
        AudioCount(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        draw(st.sampled_from(({}, {"a": 1}))),
        draw(st.sampled_from(({}, {"b": [1]}))),
        draw(st.sampled_from(("", "host/1/main"))),
    )


@thorough
@given(st.lists(versions(), min_size=3, max_size=3))
def test_merge_is_a_join(three: list[Fact]) -> None:
    """Merging copies of a span is commutative, associative and idempotent."""
    a, b, c = (replace(fact, kind=three[0].kind, stage=three[0].stage) for fact in three)
    assert merge(a, a) == a
    assert merge(a, replace(a)) == a
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), b) == merge(a, b)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@quick
@given(st.lists(versions(), min_size=1, max_size=5))
def test_merge_keeps_what_a_later_copy_knows(several: list[Fact]) -> None:
    """An end stays, the newest sign of life wins, audio only grows, known ids are not lost."""
    several = [replace(f, kind=several[0].kind, stage=several[0].stage) for f in several]
    merged = several[0]
    for fact in several[1:]:
        merged = merge(merged, fact)
    assert merged.ended == any(f.ended for f in several)
    assert merged.seen_ns == max(f.seen_ns for f in several)
    assert merged.who.user_id == max(f.who.user_id for f in several)
    assert merged.who.client_id == max(f.who.client_id for f in several)
    if merged.kind is Kind.AUDIO:
        assert merged.audio == max(f.audio for f in several)
        assert merged.at_ns == max(f.at_ns for f in several)


# --- time ----------------------------------------------------------------------------------------

_UNTIL_HEARD: Final = frozenset({TransactionStatus.IN_PROGRESS})
"""Only from here does time alone lead anywhere."""


def verdict_at(facts: list[Fact], now_ns: int, pipeline: Pipeline, **around: Any) -> Verdict:
    one: dict[int, Fact] = {}
    for fact in facts:
        one[fact.span_id] = merge(one[fact.span_id], fact) if fact.span_id in one else fact
    return judge(history(one.values()), pipeline, Patience(), now_ns, format_id(TRACE_ID), **around)


def told(verdict: Verdict) -> tuple[object, ...]:
    found = verdict.found
    return (
        verdict.status,
        verdict.current_stage,
        found and found.text,
        {a.span_id for a in verdict.stalled},
    )


@thorough
@given(
    transactions(TRACE_ID),
    st.sampled_from((AUDIO_PIPELINE, OWN, NO_PIPELINE)),
    st.booleans(),
    st.booleans(),
)
def test_time_alone_moves_a_verdict_only_when_it_said_so(
    facts: list[Fact], pipeline: Pipeline, socket_open: bool, carried_on: bool
) -> None:
    """`next_ns` is when a verdict may change, not sooner; and what is settled stays as it is."""
    if not facts:
        return
    now_ns = monotonic(LAST_S)
    around = {"socket_open": socket_open, "carried_on": carried_on}
    for _ in range(20):
        verdict = verdict_at(facts, now_ns, pipeline, **around)
        if verdict.next_ns is None:
            assert told(verdict_at(facts, FOREVER_NS, pipeline, **around)) == told(verdict)
            return
        assert verdict.next_ns > now_ns
        just_before = verdict_at(facts, verdict.next_ns - 1, pipeline, **around)
        assert told(just_before) == told(verdict)
        then = verdict_at(facts, verdict.next_ns, pipeline, **around)
        if then.status is not verdict.status:
            assert verdict.status in _UNTIL_HEARD
        now_ns = verdict.next_ns
    pytest.fail("a verdict that never comes to rest")


@quick
@given(fact_sets(), st.lists(st.integers(1, 200), max_size=6))
def test_advancing_in_small_steps_or_at_once_comes_to_the_same(
    facts: list[Fact], steps: list[int]
) -> None:
    """Deadlines are kept without a sweep: a state that slept reads as one that was looked at."""
    second = LAST_S
    state = folded(facts, second)
    for step in steps:
        second += step
        state.advance(monotonic(second), wall(second))
    assert figures(state, second) == figures(folded(facts, second), second)


# --- bounds --------------------------------------------------------------------------------------

FEW: Final = Limits(
    finished=5, open=7, issues=6, facts_of_one=8, let_go_ids=9, users=4, sockets=3, stages=4
)


def flood(state: State, transactions: int, *, over: bool) -> None:
    for number in range(transactions):
        trace_id = TRACE_ID + 1_000 * number
        who = Who(f"user{number}", f"client{number}", f"talk{number}", f"audio{number}")
        common: dict[str, Any] = {"trace_id": trace_id, "who": who}
        state.apply(root(number, **common))
        state.apply(audio(trace_id + 1, number, chunks=2, **common))
        for tried in range(20):
            state.apply(
                attempt(
                    f"stage{number}" if tried == 0 else MEMORY,
                    trace_id + 2 + tried,
                    number + tried / 100,
                    number + tried / 100 + 0.001 if over else None,
                    Outcome.FAILURE,
                    error="".join(random.Random(number).choices("abcdefghij", k=12)),
                    **common,
                )
            )
        state.apply_socket(
            SocketFact(f"client{number}", f"user{number}", True, wall(number), monotonic(number))
        )
        if number % 10 == 0:
            state.advance(monotonic(number), wall(number))
    state.advance(monotonic(transactions), wall(transactions))


@pytest.mark.parametrize("over", [True, False])
def test_a_flood_leaves_everything_bounded_and_counted(over: bool) -> None:
    """No collection grows beyond its limit, whatever comes; what is let go is counted."""
    state = new_state(FEW)
    flood(state, 1_500, over=over)
    kept = len(state.transactions)
    assert kept <= FEW.finished + FEW.open
    assert all(len(tx.facts) <= FEW.facts_of_one for tx in state.transactions.values())
    assert len(state.users) <= FEW.users
    assert len(state.sockets) <= FEW.sockets
    assert len(state.stages) <= FEW.stages + 1
    assert len(state.issues.newest(1_000)) <= FEW.issues
    assert len(state.issues.patterns) <= 200
    assert len(state.news) <= 10_000
    assert len(state._let_go_ids) <= FEW.let_go_ids
    assert len(state._due) <= 4 * kept + 1_000
    assert len(state._by_client) <= kept
    assert len(state._by_recording) <= 2 * kept
    assert len(state._only_audio) <= kept
    assert not state._dirty
    metrics = views.metrics(state, now_at(1_500))
    assert metrics.total_transactions == 1_500
    dropped = views.health(state)["dropped"]
    assert dropped["finished_transactions" if over else "open_transactions"] == 1_500 - kept
    assert dropped["users"] == 1_500 - FEW.users
    assert dropped["sockets"] == 1_500 - FEW.sockets
    assert dropped["stage_names"] > 0
    if over:
        assert dropped["issue_patterns"] > 0


def test_conflicting_ids_of_one_transaction_leave_nothing_behind() -> None:
    """A trace whose spans name different clients is let go whole: no read stumbles over it."""
    state = new_state(Limits(finished=1, open=1))
    for number in range(3):
        trace_id = TRACE_ID + 1_000 * number
        state.apply(attempt(MEMORY, 2, number, number + 0.5, trace_id=trace_id,
                            who=Who(client_id="one")))  # fmt: skip
        state.apply(root(number, trace_id=trace_id, who=Who(client_id="another")))
        state.advance(monotonic(60), wall(60))
    state.apply(audio(2, 70, trace_id=TRACE_ID + 9_000, who=Who(client_id="one")))
    state.advance(monotonic(70), wall(70))
    indexed = {trace_id for ids in state._by_client.values() for trace_id in ids}
    assert indexed <= set(state.transactions)


def test_late_facts_of_what_was_let_go_are_dropped_and_counted() -> None:
    """A transaction that is no longer kept is not born again by its stragglers."""
    state = new_state(Limits(finished=1, open=1))
    first = [root(0, 1, Outcome.SUCCESS), attempt(MEMORY, 2, 0, 1)]
    for fact in first:
        state.apply(fact)
    state.advance(monotonic(1), wall(1))
    state.apply(root(2, 3, Outcome.SUCCESS, trace_id=TRACE_ID + 1_000))
    state.advance(monotonic(3), wall(3))
    assert list(state.transactions) == [TRACE_ID + 1_000]

    before = views.metrics(state, now_at(3))
    state.apply(attempt(MEMORY, 3, 3, 4, Outcome.FAILURE))
    state.apply(audio(4, 3))
    state.advance(monotonic(600), wall(600))

    assert views.metrics(state, now_at(3)) == before
    assert views.health(state)["dropped"] == {"late_facts": 2, "finished_transactions": 1}


def test_facts_over_the_limit_of_one_transaction_are_counted() -> None:
    """With every fact still needed the newest is refused, and the row and the health say so."""
    state = new_state(Limits(facts_of_one=3))
    for span_id in range(2, 7):
        state.apply(attempt(f"s{span_id}", span_id, span_id))
    state.advance(monotonic(10), wall(10))
    [tx] = state.transactions.values()
    assert len(tx.facts) == 3
    assert tx.dropped_facts == 2
    assert state.dropped[Dropped.FACTS_OF_ONE] == 2


def test_a_loop_of_retries_keeps_its_newest_attempts() -> None:
    """Beyond the limit replaced attempts go first: the newest decides, and every one is counted."""
    state = new_state(Limits(facts_of_one=5))
    for number in range(100):
        state.apply(attempt(MEMORY, 2 + number, number, number + 0.5, Outcome.FAILURE, error="x"))
    state.apply(attempt(MEMORY, 200, 200, 201))
    state.advance(monotonic(300), wall(300))
    [tx] = state.transactions.values()
    assert tx.verdict.status is TransactionStatus.COMPLETED
    assert len(tx.facts) == 5
    assert (state.stages[MEMORY].failed, state.stages[MEMORY].done) == (100, 1)
