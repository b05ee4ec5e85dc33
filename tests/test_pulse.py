"""Is it broken, since when, for whom, and what is open: what the page says first at 3 a.m."""

from __future__ import annotations

from typing import Any, Final

import pytest

from otel_tracker.dashboard import queries
from otel_tracker.dashboard.service import Service
from otel_tracker.ids import format_id
from otel_tracker.model import to_iso
from otel_tracker.testing import ManualClock
from tests.test_dashboard_queries import WORKER, Spans, beat, feed, service, trace, wall

STAGES: Final = ["audio", "transcription", "memory"]


def advance(clock: ManualClock, to: float) -> None:
    clock.advance(to - (clock.time_ns() - wall(0)) / 1e9)


def started(at: float = 0) -> tuple[Service, ManualClock]:
    of, clock = service()
    if at:
        advance(clock, at)
    return of, clock


def dashboard(of: Service) -> dict[str, Any]:
    return of.read(queries.dashboard)


def pulse_of(of: Service) -> dict[str, Any]:
    (one,) = dashboard(of)["pulse"]
    return dict(one)


def well(of: Service, clock: ManualClock, count: int, every: float = 60, first: int = 1) -> float:
    """So many memories, one every so often; returns when the last of them came."""
    at = 0.0
    for number in range(count):
        at = number * every
        spans = Spans()
        spans.done(first + number, at)
        advance(clock, at + 10)
        feed(of, spans)
        of.sweep()
    return at + 2


def test_before_anything_came_there_is_no_pulse() -> None:
    """Nothing is said of what nobody runs."""
    of, _ = started()
    assert dashboard(of)["pulse"] == []
    assert dashboard(of)["open"] == {"total": 0, "rows": []}


def test_a_pipeline_that_goes_well_is_ok_and_says_how_often_it_succeeds() -> None:
    """A memory each minute: the usual interval, the last success, no trouble."""
    of, clock = started()
    last = well(of, clock, 5)
    one = pulse_of(of)
    assert one["state"] == "ok"
    assert (one["pipeline"], one["stages"], one["goal"]) == ("audio_pipeline", STAGES, "memory")
    assert one["last_success"] == to_iso(wall(last))
    assert one["usual_interval_seconds"] == pytest.approx(60)
    assert one["troubles"] == []
    assert not one["overdue"]


def test_a_night_without_recordings_is_quiet_and_not_ok() -> None:
    """Green never stands without memories: after an hour of nothing it is neither."""
    of, clock = started()
    well(of, clock, 5)
    clock.advance(2 * 3600)
    assert pulse_of(of)["state"] == "quiet"
    spans = Spans()
    spans.root(60, 7000, 7001)
    spans.stage(60, "transcription", 7000, 7001, otel_tracker__stage__outcome="skipped")
    feed(of, spans)
    clock.advance(10)
    assert pulse_of(of)["state"] == "quiet"  # a skip asks for no memory


def test_no_success_yet_is_never_ok() -> None:
    """Work that only began is a start; what fails from the first on is broken."""
    of, _ = started(10)
    spans = Spans()
    spans.root(1, 1)
    spans.stage(1, "transcription", 2)
    feed(of, spans)
    assert pulse_of(of)["state"] == "none"
    for number, state in ((2, "failing"), (3, "failing"), (4, "broken")):
        spans = Spans()
        spans.failed(number, 3)
        feed(of, spans)
        assert pulse_of(of)["state"] == state


def test_broken_says_since_when_how_many_recordings_and_whose() -> None:
    """Three failures after the last memory, of two users, and one more that waits."""
    of, clock = started()
    last = well(of, clock, 5)
    advance(clock, 600)
    spans = Spans()
    for number, user in ((21, "anna"), (22, "anna"), (23, "ben")):
        spans.failed(number, 500 + number, "database is locked", user__id=user)
    spans.root(24, 590, user__id="cleo")
    spans.add(24, "queued", 591, otel_tracker__stage="memory")
    feed(of, spans)
    one = pulse_of(of)
    assert one["state"] == "broken"
    assert one["last_success"] == to_iso(wall(last))
    assert one["since"] == {
        "recordings": 4, "users": 3, "in_progress": 1, "completed": 0, "failed": 3, "stalled": 0,
    }  # fmt: skip
    (trouble,) = one["troubles"]
    assert trouble["state"] == "failed"
    assert trouble["stage"] == "memory"
    assert (trouble["recordings"], trouble["users"], trouble["user_ids"]) == (3, 2, ["anna", "ben"])
    assert "database is locked" in f"{trouble['issue']} {trouble['error']}"
    assert trouble["example"] == format_id(trace(23))


def test_failing_for_one_user_is_told_apart_from_broken() -> None:
    """Others go through, and it says how many of them."""
    of, clock = started()
    well(of, clock, 3)
    for number in range(30, 36):
        at = number * 10.0
        spans = Spans()
        if number % 2:
            spans.failed(number, at, "no such language", user__id="anna")
        else:
            spans.done(number, at, user__id=f"other-{number}")
        advance(clock, at + 5)
        feed(of, spans)
    of.sweep()
    clock.advance(10)
    one = pulse_of(of)
    assert one["state"] == "failing"
    (trouble,) = one["troubles"]
    assert trouble["user_ids"] == ["anna"]
    assert trouble["other_users"] == 2


def test_late_is_work_that_neither_fails_nor_ends() -> None:
    """The next memory is long overdue while one runs within its limit."""
    of, clock = started()
    well(of, clock, 5, every=5)
    of.take_beat(beat(at=100, pipelines=[
        {"name": "audio_pipeline", "stages": STAGES, "stall_after": {"memory": 3600}}
    ]))  # fmt: skip
    advance(clock, 100)
    spans = Spans()
    spans.root(50, 99)
    spans.stage(50, "transcription", 99, 99.5)
    spans.stage(50, "memory", 99.6)
    feed(of, spans)
    clock.advance(120)
    one = pulse_of(of)
    assert one["overdue"]
    assert one["state"] == "late"


def test_an_old_failure_is_no_trouble_of_now() -> None:
    """What failed two hours ago, before the last success, does not stand on the page."""
    of, clock = started()
    spans = Spans()
    spans.failed(1, 0)
    feed(of, spans)
    advance(clock, 7300)
    spans = Spans()
    spans.done(2, 7290)
    feed(of, spans)
    clock.advance(6)
    one = pulse_of(of)
    assert one["troubles"] == []
    assert one["state"] == "ok"


def test_skips_are_no_trouble() -> None:
    """A recording without words ends rightly before its memory."""
    of, clock = started()
    well(of, clock, 3)
    advance(clock, 200)
    spans = Spans()
    spans.root(9, 190, 195)
    spans.stage(9, "transcription", 190, 191, otel_tracker__stage__outcome="skipped")
    feed(of, spans)
    clock.advance(10)
    one = pulse_of(of)
    assert one["troubles"] == []
    assert one["since"]["completed"] == 1
    hour = dashboard(of)["flow"]["transcription"]["last_hour"]
    assert (hour["skipped"], hour["failed"], hour["done"]) == (1, 0, 3)


def test_a_queue_that_nobody_serves_is_a_trouble_of_its_own() -> None:
    """Nothing failed and nothing stalled, yet it waits longer than is normal."""
    of, clock = started()
    well(of, clock, 3)
    advance(clock, 200)
    spans = Spans()
    spans.root(9, 190)
    spans.stage(9, "transcription", 190, 191)
    spans.add(9, "queued", 192, otel_tracker__stage="memory")
    feed(of, spans)
    clock.advance(600)
    (trouble,) = pulse_of(of)["troubles"]
    assert (trouble["state"], trouble["stage"]) == ("waiting", "memory")


def test_what_hits_most_stands_before_single_mishaps() -> None:
    """Three odd failures do not hide that everything else hangs."""
    of, clock = started(100)
    spans = Spans()
    for number, error in enumerate(("no model", "no route", "no disk"), 1):
        spans.failed(number, 90, error)
    for number in range(10, 30):
        spans.root(number, 20)
        spans.stage(number, "memory", 21)
    feed(of, spans)
    clock.advance(60)
    troubles = pulse_of(of)["troubles"]
    assert (troubles[0]["state"], troubles[0]["transactions"]) == ("stalled", 20)


def test_a_stage_that_nobody_here_knows_is_no_trouble() -> None:
    """Its workers feed no dashboard: that it waits for ever is all that can be known."""
    of, clock = started()
    well(of, clock, 3)
    advance(clock, 200)
    spans = Spans()
    for number in range(20, 25):
        spans.done(number, 190)
        spans.add(number, "queued", 191, otel_tracker__stage="email")
    feed(of, spans)
    clock.advance(600)
    one = pulse_of(of)
    assert (one["troubles"], one["state"]) == ([], "ok")


def test_a_lost_worker_comes_before_what_it_causes() -> None:
    """The queue waits for it, with more recordings, and stands below."""
    of, clock = started(100)
    of.take_beat(beat(at=100, open=[]))
    spans = Spans()
    for number in range(1, 5):
        spans.root(number, 90)
        spans.add(number, "queued", 91, otel_tracker__stage="memory")
    spans.root(9, 95, otel_tracker__where=f"{WORKER}/MainThread")
    spans.stage(9, "memory", 96, otel_tracker__where=f"{WORKER}/MainThread")
    feed(of, spans)
    clock.advance(400)
    states = [one["state"] for one in pulse_of(of)["troubles"]]
    assert states == ["lost", "waiting"]
    rows = dashboard(of)["open"]["rows"]
    lost = [row for row in rows if row["state"] == "lost"]
    assert [row["where"] for row in lost] == [f"{WORKER}/MainThread"]


def test_pipelines_stand_by_themselves() -> None:
    """One fails while the other goes well, and neither hides the other."""
    of, clock = started(50)
    pipelines = [{"name": "imports", "stages": ["fetch", "store"], "stall_after": {}}]
    of.take_beat(beat(at=50, pipelines=pipelines))
    spans = Spans()
    spans.done(1, 40)
    spans.root(2, 41, 45, otel_tracker__pipeline="imports")
    spans.stage(2, "fetch", 41, 42, otel_tracker__pipeline="imports", error="no route")
    feed(of, spans)
    clock.advance(10)
    states = {one["pipeline"]: one["state"] for one in dashboard(of)["pulse"]}
    assert states == {"audio_pipeline": "ok", "imports": "failing"}


def test_the_first_mishap_of_a_morning_wakes_nobody() -> None:
    """After hours of nothing a recording is not late at once, and a truncated file is no outage."""
    of, clock = started()
    well(of, clock, 5)
    morning = 8 * 3600
    advance(clock, morning)
    spans = Spans()
    spans.root(70, morning - 2)
    spans.stage(70, "transcription", morning - 2)
    feed(of, spans)
    assert pulse_of(of)["state"] == "quiet"
    spans = Spans()
    spans.failed(71, morning - 1, "truncated")
    feed(of, spans)
    assert pulse_of(of)["state"] == "failing"


def test_a_stage_name_that_two_pipelines_share_hides_nothing() -> None:
    """Memories of the one go well, and none of the other: that one is broken."""
    of, clock = started()
    of.take_beat(beat(pipelines=[{"name": "imports", "stages": ["memory"], "stall_after": {}}]))
    well(of, clock, 2)
    for number in range(100, 105):
        at = 100.0 + number
        spans = Spans()
        spans.failed(number, at)
        spans.root(100 + number, at, at + 1, otel_tracker__pipeline="imports")
        spans.stage(100 + number, "memory", at, at + 1, otel_tracker__pipeline="imports")
        advance(clock, at + 5)
        feed(of, spans)
        of.sweep()
    clock.advance(10)
    states = {one["pipeline"]: one["state"] for one in dashboard(of)["pulse"]}
    assert states == {"audio_pipeline": "broken", "imports": "ok"}


@pytest.mark.parametrize("ahead_s", [-180.0, 3600.0])
def test_a_worker_whose_clock_is_wrong_changes_nothing(ahead_s: float) -> None:
    """Its beats tell how wrong it is: all is well while it goes well, and then it is broken."""
    of, clock = started()
    where = f"{WORKER}/main"
    numbers = iter(range(1, 100))

    def work(count: int, *, goes_well: bool) -> None:
        for _ in range(count):
            clock.advance(5)
            now = (clock.time_ns() - wall(0)) / 1e9
            of.take_beat(beat(at=now + ahead_s))
            spans, number = Spans(), next(numbers)
            spans.root(number, now - 3 + ahead_s, now + ahead_s)
            spans.stage(
                number, "memory", now - 2 + ahead_s, now - 1 + ahead_s, otel_tracker__where=where,
                error="" if goes_well else "no model",
            )  # fmt: skip
            feed(of, spans)
        clock.advance(6)
        of.sweep()

    work(8, goes_well=True)
    one = pulse_of(of)
    assert one["state"] == "ok"
    assert 0 <= one["seconds_since_success"] < 10
    work(8, goes_well=False)
    one = pulse_of(of)
    assert one["state"] == "broken"
    assert 40 < one["seconds_since_success"] < 60


def test_memories_without_anything_in_them_are_no_memories() -> None:
    """All of the last hour were empty: that is neither broken nor well."""
    of, clock = started()
    for number in range(1, 6):
        spans = Spans()
        spans.root(number, number, number + 1)
        spans.stage(number, "memory", number, number + 1, memory_count=0)
        advance(clock, number + 2)
        feed(of, spans)
    clock.advance(10)
    one = pulse_of(of)
    assert (one["state"], one["last_hour"]) == ("empty", {"done": 5, "empty": 5})
    spans = Spans()
    spans.root(9, 15, 16)
    spans.stage(9, "memory", 15, 16, memory_count=2)
    feed(of, spans)
    clock.advance(10)
    assert pulse_of(of)["state"] == "ok"


def test_all_users_are_counted_although_few_are_named() -> None:
    """Ten users are hit: five names, and the number ten."""
    of, _ = started(100)
    spans = Spans()
    for number in range(1, 11):
        spans.failed(number, 50, user__id=f"user-{number}")
    feed(of, spans)
    one = pulse_of(of)
    assert one["wrong"] == {"recordings": 10, "users": 10}
    assert len(one["troubles"][0]["user_ids"]) == 5


def test_pipelines_named_by_job_are_bounded() -> None:
    """A thousand names: the busiest fifty are told of, and each is looked at once."""
    of, _ = started(10)
    for first in range(1, 1001, 250):
        spans = Spans()
        for number in range(first, first + 250):
            spans.root(number, 5, otel_tracker__pipeline=f"job-{number}")
        feed(of, spans)
    assert len(dashboard(of)["pulse"]) == 50


# --- open work ------------------------------------------------------------------------------------


def test_open_work_stands_oldest_first_with_its_age_against_the_usual() -> None:
    """Two running attempts and a wait; the second try of one says so."""
    of, clock = started()
    well(of, clock, 6)
    advance(clock, 1000)
    spans = Spans()
    spans.root(41, 940, user__id="user-own")
    spans.stage(41, "memory", 941, 950, error="once")
    spans.stage(41, "memory", 960, otel_tracker__where="host-a/7/MainThread")
    spans.root(42, 990)
    spans.stage(42, "transcription", 991)
    spans.root(43, 970)
    spans.stage(43, "transcription", 971, 972)
    spans.add(43, "queued", 973, otel_tracker__stage="memory")
    feed(of, spans)
    found = dashboard(of)["open"]
    assert found["total"] == 3
    rows = found["rows"]
    assert [row["transaction_id"] for row in rows] == [format_id(trace(n)) for n in (41, 43, 42)]
    first = rows[0]
    assert first["age_seconds"] == pytest.approx(40)
    assert (first["stage"], first["attempt"], first["user_id"]) == ("memory", 2, "user-own")
    assert first["usual_p50"] == pytest.approx(1)
    assert first["state"] == "slow"
    assert rows[1]["state"] == "waiting"
    assert rows[1]["attempt"] is None


def test_a_long_queue_does_not_hide_what_is_stuck() -> None:
    """300 wait for longer than the one that stalled, which is shown all the same."""
    of, _ = started(1000)
    spans = Spans()
    for number in range(100, 400):
        spans.root(number, 10)
        spans.add(number, "queued", 11, otel_tracker__stage="memory")
    spans.root(7, 900)
    spans.stage(7, "memory", 901)
    feed(of, spans)
    found = dashboard(of)["open"]
    assert found["total"] == 301
    assert len(found["rows"]) == 50
    assert [r["transaction_id"] for r in found["rows"] if r["state"] == "stalled"] == [
        format_id(trace(7))
    ]
    ages = [row["age_seconds"] for row in found["rows"]]
    assert ages == sorted(ages, reverse=True)


def test_an_open_recording_is_shown_as_audio() -> None:
    """Its socket is open and packets come: it runs, and nothing of it is stuck."""
    of, _ = started(30)
    of.take_beat(beat(at=30, websockets={"client-3": 1}))
    spans = Spans()
    spans.root(3, 20)
    spans.add(3, "audio", 20, otel_tracker__stage="audio")
    feed(of, spans)
    (row,) = dashboard(of)["open"]["rows"]
    assert (row["stage"], row["state"]) == ("audio", "running")
