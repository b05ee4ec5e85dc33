"""Feeding a dashboard service: real processes and sockets, what they tell and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from otel_tracker.publisher import Endpoint
from tests.engines import free_port, until
from tests.otlp import ROOT
from tests.service import service

FORK_IS_MEANT = "ignore:This process:DeprecationWarning"
"""Newer Pythons warn of a fork beside threads."""

BEGIN = """
import json, os, sys, time
from otel_tracker import get_debug_tracker, stage, transaction

def say(what):
    sys.stdout.write(json.dumps(what) + "\\n")
    sys.stdout.flush()

def wait():
    sys.stdin.readline()
"""


@contextmanager
def process(code: str, url: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Python that feeds the service at `url`; waits where the code calls ``wait()``."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    made = subprocess.Popen(
        [sys.executable, "-W", FORK_IS_MEANT, "-c", BEGIN + textwrap.dedent(code)],
        env={
            **clean,
            "PYTHONPATH": str(ROOT),
            "OTEL_TRACKER_URL": url,
            "OTEL_SERVICE_NAME": "notes-worker",
            "OTEL_RESOURCE_ATTRIBUTES": "service.version=1.2.3",
            **env,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield made
    finally:
        made.kill()
        made.communicate()


def says(made: subprocess.Popen[str]) -> Any:
    assert made.stdout is not None
    line = made.stdout.readline()
    assert line, made.communicate()[1]
    return json.loads(line)


def go_on(made: subprocess.Popen[str]) -> None:
    assert made.stdin is not None
    made.stdin.write("\n")
    made.stdin.flush()


def ends(made: subprocess.Popen[str]) -> str:
    """What it logged, once it ended well."""
    _, logged = made.communicate(timeout=30)
    assert made.returncode == 0, logged
    return logged


def attribute(span: Any, key: str) -> Any:
    for pair in span.attributes:
        if pair.key == key:
            return getattr(pair.value, pair.value.WhichOneof("value"))
    return None


OPEN = """
with transaction(user_id="alice") as tx:
    say(tx.id)
    with stage("memory", model="llama3"):
        wait()
"""


def test_what_is_open_is_told_while_it_is_open() -> None:
    """A transaction at once, its stage after a second, both with what is known of them."""
    with service() as fed, process(OPEN, fed.url) as made:
        transaction_id = says(made)
        until("the root, open", lambda: fed.named("transaction", ended=False), 5)
        (memory,) = until("the stage, open", lambda: fed.named("memory", ended=False), 5)
        assert memory.trace_id.hex() == transaction_id.replace("-", "")
        assert attribute(memory, "otel_tracker.stage") == "memory"
        assert attribute(memory, "user.id") == "alice"
        assert attribute(memory, "model") == "llama3"
        go_on(made)
        assert ends(made) == ""
        assert (
            len(fed.named("memory", ended=True)) == len(fed.named("transaction", ended=True)) == 1
        )
        assert len(fed.named("memory", ended=False)) == 1


def test_short_stages_are_told_once_ended() -> None:
    """What lasts less than a second costs the service one span."""
    code = """
    for _ in range(50):
        with transaction(), stage("quick"):
            pass
    """
    with service() as fed:
        with process(code, fed.url) as made:
            ends(made)
        assert len(fed.named("quick", ended=True)) == 50
        assert fed.named("quick", ended=False) == []


def test_it_beats_and_says_goodbye() -> None:
    """Who it is, what is open with its newest sign of life, and at the end that it leaves."""
    code = """
    tracker = get_debug_tracker()
    tracker.track_websocket_connected("alice", "phone")
    with transaction(user_id="alice") as tx, stage("memory") as s:
        say(tx.id)
        wait()
        s.progress()
        wait()
    """
    with service() as fed, process(code, fed.url, OTEL_TRACKER_STALL_AFTER_MEMORY="900") as made:
        transaction_id = says(made)
        first = until("a beat", lambda: list(fed.beats), 5)[0]
        assert first["worker"].endswith(f"/{made.pid}")
        assert (first["interval_s"], first["is_last"]) == (5.0, False)
        beat = until(
            "a beat with the open stage",
            lambda: [b for b in list(fed.beats) if len(b["open"]) == 2],
            10,
        )[0]
        assert (beat["service"], beat["version"]) == ("notes-worker", "1.2.3")
        assert {row[0] for row in beat["open"]} == {transaction_id.replace("-", "")}
        assert beat["websockets"] == {"phone": 1}
        assert beat["stall_after"] == {"memory": 900.0}
        assert "audio_pipeline" in {p["name"] for p in beat["pipelines"]}
        go_on(made)
        stage_id = fed.named("memory", ended=False)[0].span_id.hex()
        before = next(row[2] for row in beat["open"] if row[1] == stage_id)
        until(
            "progress in a beat",
            lambda: [
                row
                for b in list(fed.beats)
                for row in b["open"]
                if row[1] == stage_id and row[2] > before
            ],
            10,
        )
        go_on(made)
        ends(made)
        assert fed.beats[-1]["is_last"] is True
        assert fed.beats[-1]["open"] == []


def test_a_service_that_began_anew_is_told_again() -> None:
    """It names what it does not know; the open spans come once more."""
    with service() as fed, process(OPEN, fed.url) as made:
        says(made)
        (memory,) = until("the stage, open", lambda: fed.named("memory", ended=False), 5)
        fed.unknown = [7, [{"a": 1}, 7], [memory.trace_id.hex(), memory.span_id.hex()]]
        until("it is told again", lambda: len(fed.named("memory", ended=False)) == 2, 10)


def test_sampled_out_and_fed_all_the_same() -> None:
    """The application's provider samples nothing; the dashboard shows everything."""
    code = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
    trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
    with transaction(), stage("memory"):
        pass
    with trace.get_tracer("app").start_as_current_span("of the application"):
        pass
    """
    with service() as fed:
        with process(code, fed.url) as made:
            assert ends(made) == ""
        assert sorted(span.name for span in fed.spans) == ["memory", "transaction"]


def test_the_applications_other_spans_stay_its_own() -> None:
    """Spans without our attributes are not sent, also where they are sampled."""
    code = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(TracerProvider())
    with trace.get_tracer("app").start_as_current_span("of the application"):
        with transaction(), stage("memory"):
            pass
        attributes = {"otel_tracker.stage": "by hand"}
        with trace.get_tracer("app").start_as_current_span("by hand", attributes=attributes):
            pass
    """
    with service() as fed:
        with process(code, fed.url) as made:
            ends(made)
        assert sorted(span.name for span in fed.spans) == ["by hand", "memory", "transaction"]


def test_audio_is_told_with_its_counts_while_it_comes() -> None:
    """Once a beat, not once a chunk."""
    code = """
    tracker = get_debug_tracker()
    tid = tracker.create_transaction("alice", "phone")
    tracker.track_audio_chunk(tid, 100)
    say(tid)
    wait()
    for _ in range(1000):
        tracker.track_audio_chunk(tid, 100)
    wait()
    """
    with service() as fed, process(code, fed.url) as made:
        says(made)
        until("audio, open", lambda: fed.named("audio", ended=False), 5)
        go_on(made)
        newest = until(
            "its count",
            lambda: [
                span
                for span in fed.named("audio", ended=False)
                if attribute(span, "otel_tracker.audio.chunks") == 1_001
            ],
            10,
        )[-1]
        assert attribute(newest, "otel_tracker.audio.bytes") == 100_100
        assert len(fed.named("audio", ended=False)) <= 3


def test_a_token_is_shown() -> None:
    """On spans and beats alike."""
    with service() as fed:
        with process(OPEN, fed.url, OTEL_TRACKER_TOKEN="s3cret-token") as made:
            says(made)
            until("the stage, open", lambda: fed.named("memory", ended=False), 5)
        assert fed.authorizations == {"Bearer s3cret-token"}


def test_a_service_that_is_away_costs_two_lines_and_no_wait() -> None:
    """It comes later, and is told what ended meanwhile and what is open."""
    port = free_port()
    code = """
    started = time.monotonic()
    for _ in range(1000):
        with transaction(), stage("before"):
            pass
    say(time.monotonic() - started)
    with transaction(), stage("memory"):
        wait()
    """
    with process(code, f"http://127.0.0.1:{port}") as made:
        says(made)
        time.sleep(3)  # an outage takes its time: the exporter has tried
        with service(port) as fed:
            until("what ended before", lambda: len(fed.named("before", ended=True)) == 1_000, 20)
            until("what is open", lambda: fed.named("memory", ended=False), 10)
            until("a beat", lambda: fed.beats, 10)
            go_on(made)
            logged = ends(made)
    lines = [line for line in logged.splitlines() if line.strip()]
    assert len(lines) == 2, logged
    assert "cannot be exported by the dashboard service" in lines[0]
    assert "none was lost" in lines[1]


def test_a_service_that_never_comes_does_not_hold_up_the_exit() -> None:
    """One line at the start, one at the end, within the bound of any shutdown."""
    code = """
    with transaction(), stage("memory"):
        pass
    """
    with process(code, f"http://127.0.0.1:{free_port()}") as made:
        started = time.monotonic()
        logged = ends(made)
    assert time.monotonic() - started < 8
    assert len([line for line in logged.splitlines() if line.strip()]) <= 2


def test_a_bad_url_is_one_warning() -> None:
    """It names the form."""
    with process("get_debug_tracker()", "localhost:8500") as made:
        logged = ends(made)
    assert "OTEL_TRACKER_URL='localhost:8500' leads nowhere" in logged
    assert "http://localhost:8500" in logged


@pytest.mark.parametrize(
    ("url", "is_good"),
    [
        ("http://localhost:8500", True),
        ("https://dash.example/prefix/", True),
        ("localhost:8500", False),
        ("ftp://localhost", False),
        ("http://", False),
        ("http://host:99999", False),
    ],
)
def test_what_is_a_url(url: str, is_good: bool) -> None:
    """HTTP, a host, and a port that there is."""
    assert (Endpoint(url).flaw == "") == is_good


def test_a_forked_worker_that_leaves_without_a_word_is_not_missed() -> None:
    """A work-horse of a second's job says nothing of itself, only what it did."""
    code = """
    get_debug_tracker()
    wait()
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            with transaction(), stage("short"):
                pass
            get_debug_tracker().force_flush(5000)
            os._exit(0)
        os.waitpid(pid, 0)
    say(os.getpid())
    """
    with service() as fed:
        with process(code, fed.url) as made:
            until("a beat of the parent", lambda: fed.beats, 10)
            go_on(made)
            parent = says(made)
            ends(made)
        assert len(fed.named("short", ended=True)) == 3
        assert {int(beat["worker"].split("/")[1]) for beat in fed.beats} == {parent}


def test_a_forked_worker_with_a_long_job_beats_while_it_lasts() -> None:
    """And says goodbye when it flushes, though it leaves by os._exit."""
    code = """
    get_debug_tracker()
    pid = os.fork()
    if pid == 0:
        with transaction(), stage("long"):
            time.sleep(2.5)
        get_debug_tracker().force_flush(5000)
        os._exit(0)
    os.waitpid(pid, 0)
    say(pid)
    """
    with service() as fed:
        with process(code, fed.url) as made:
            child = says(made)
            ends(made)
        assert len(fed.named("long", ended=False)) == 1
        of_child = [b for b in fed.beats if b["worker"].endswith(f"/{child}")]
        assert [beat["is_last"] for beat in of_child] == [False, True]


def test_health_says_how_it_goes() -> None:
    """Where to, what was sent, and when the service last took a beat; None without a service."""
    code = """
    with transaction(), stage("memory"):
        pass
    get_debug_tracker().force_flush(5000)
    say(get_debug_tracker().get_dashboard_data()["health"]["publisher"])
    """
    with service() as fed, process(code, fed.url) as made:
        state = says(made)
    assert state["url"] == fed.url
    assert state["exported"] >= 2
    assert state["last_beat"] is not None
    with process(code, "") as made:
        assert says(made) is None


def test_with_the_sdk_off_nothing_is_told_not_even_a_wait() -> None:
    """A wait needs no span, and leaves no sooner than one."""
    code = """
    with transaction(user_id="alice") as tx:
        tx.queued("memory")
        waiting = get_debug_tracker().get_dashboard_data()["waiting"]
    get_debug_tracker().force_flush(2_000)
    say(len(waiting))
    """
    with service() as fed, process(code, fed.url, OTEL_SDK_DISABLED="true") as made:
        assert says(made) == 1  # the process itself knows
        ends(made)
        assert fed.spans == []
