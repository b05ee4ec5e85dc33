"""A process that serves its own dashboard: ``init_debug_tracker(serve=…)``."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from otel_tracker import DebugSystemTracker, PipelineStage
from tests.engines import free_port, until
from tests.otlp import ROOT

LOCAL = "127.0.0.1:0"


@contextmanager
def serving(**options: Any) -> Iterator[tuple[DebugSystemTracker, str]]:
    """A tracker that serves, and where."""
    tracker = DebugSystemTracker(**{"serve": LOCAL, **options})
    try:
        yield tracker, str(tracker.get_dashboard_data()["health"]["serve"]["url"])
    finally:
        tracker.shutdown()


def get(url: str, token: str = "") -> Any:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def post(url: str) -> None:
    """An OTLP request without spans."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, b'{"resourceSpans": []}', headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        assert answer.status == 200


def state(tracker: DebugSystemTracker) -> Any:
    return tracker.get_dashboard_data()["health"]["serve"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def run(code: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, ended by itself."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        env=clean | environ, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


# --- what is served -------------------------------------------------------------------------------


def test_the_api_shows_what_the_tracker_shows() -> None:
    """Totals, rows, issues and stages are those of get_dashboard_data(), from the same store."""
    with serving() as (tracker, url):
        tid = tracker.create_transaction("user", "client", "talk")
        tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
        tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, False, "no space")
        tracker.track_websocket_connected("user", "client")
        there, here = get(f"{url}/api/dashboard"), tracker.get_dashboard_data()
        for name in ("recent_transactions", "recent_issues", "stages", "active_users"):
            assert there[name] == here[name], name
        assert there["system_metrics"] | {"uptime_hours": 0} == here["system_metrics"] | {
            "uptime_hours": 0
        }
        assert here["system_metrics"]["failed_transactions"] == 1
        assert here["system_metrics"]["active_websockets"] == 1
        one = get(f"{url}/api/transactions/{tid}")
        assert [event["stage"] for event in one["events"]] == ["memory_started", "memory_completed"]


def test_other_processes_may_feed_it_and_pages_read_it() -> None:
    """Its inlet takes what another tracker sends, and another one's reads answer from it."""
    with serving() as (tracker, url):
        other = DebugSystemTracker(url=url)
        page = DebugSystemTracker(read_url=url)
        try:
            mine, theirs = tracker.create_transaction("me"), other.create_transaction("you")
            other.track_event(theirs, PipelineStage.TRANSCRIPTION_COMPLETED, False, "no model")
            other.force_flush()
            until("both", lambda: tracker.get_transaction(theirs))
            assert {row["id"] for row in page.get_recent_transactions()} == {mine, theirs}
            until("the failure", lambda: page.get_system_metrics().failed_transactions == 1)
            assert tracker.get_system_metrics().failed_transactions == 1
        finally:
            other.shutdown()
            page.shutdown()


def test_a_stall_is_told_once_and_stands_in_the_trends() -> None:
    """The tracker's sweeper and the service both hear of it, neither twice, though both look."""
    told: list[Any] = []
    with serving(stall_after=0.3, on_stall=told.append) as (tracker, url):
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, PipelineStage.MEMORY_STARTED)

        def stalls() -> int:
            return sum(bar["stalled"] for bar in get(f"{url}/api/stages")["trends"]["outcomes"])

        until("the stall", lambda: told and stalls())
        for _ in range(3):
            tracker.sweep()
            assert stalls() == 1
        assert [row["transaction_id"] for row in told] == [tid]
        tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, False, "no")
        until("its end", lambda: stalls() == 0)
        failed = [bar["failed"] for bar in get(f"{url}/api/stages")["trends"]["outcomes"]]
        assert sum(failed) == 1


def test_every_change_reaches_both_whoever_looks_first() -> None:
    """Of 200 transactions that fail, each is one issue told and one in the trends."""
    told: list[Any] = []
    with serving(on_issue=told.append) as (tracker, url):
        for number in range(200):
            tid = tracker.create_transaction(f"user-{number}")
            tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, False, "no")
            if number % 50 == 0:
                get(f"{url}/api/health")
            elif number % 50 == 10:
                post(f"{url}/v1/traces")  # reads, and takes no news
            elif number % 50 == 25:
                tracker.sweep()

        def failures() -> int:
            return sum(bar["failed"] for bar in get(f"{url}/api/stages")["trends"]["outcomes"])

        assert failures() == 200
        until("each issue", lambda: len(told) >= 200)
        tracker.sweep()
        assert len({row["transaction_id"] for row in told}) == len(told) == 200


def test_a_stalled_row_has_the_stack_of_its_thread() -> None:
    """As get_dashboard_data() has it: where the work hangs now."""
    begun, over = threading.Event(), threading.Event()
    with serving(stall_after=0.2) as (tracker, url):
        tid = tracker.create_transaction("user")

        def hang_here() -> None:
            tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
            begun.set()
            over.wait(30)

        thread = threading.Thread(target=hang_here)
        thread.start()
        try:
            begun.wait(5)
            (row,) = until("the stall", lambda: get(f"{url}/api/dashboard")["stalled"])
            assert "hang_here" in row["stack"]
        finally:
            over.set()
            thread.join()


def test_the_health_of_the_tracker_is_shown() -> None:
    """Its exporters and problems, beside what the inlet took."""
    with serving() as (tracker, url):
        tracker.track_event("no id", PipelineStage.MEMORY_STARTED)
        tracker.create_transaction("user")
        mine = tracker.get_dashboard_data()["health"]
        for health in (get(f"{url}/api/dashboard")["health"], get(f"{url}/api/health")):
            assert health["export"] == mine["export"]
            assert health["export"]["provider"] == "own"
            assert health["problems"] == mine["problems"] != {}
            assert health["publisher"] is None
            assert "intake" in health


def test_what_leaves_is_cleaned_as_spans_are() -> None:
    """Addresses, credentials and sensitive metadata are in the process, and not in any answer."""
    with serving() as (tracker, url):
        tid = tracker.create_transaction("ann@example.com", "bob@example.com", "talk-1")
        tracker.track_event(
            tid, PipelineStage.TRANSCRIPTION_COMPLETED, False, "cannot reach joe@example.com",
            transcript="the milk is sour", chunks=3, note="password=hunter22",
        )  # fmt: skip
        mine = tracker.get_transaction(tid)
        assert mine is not None
        assert "milk" in str(mine.events)
        (shown,) = get(f"{url}/api/transactions")["transactions"]
        paths = ("dashboard", "transactions", f"transactions/{tid}", "recordings", "issues")
        for path in paths:
            text = json.dumps(get(f"{url}/api/{path}"))
            for secret in ("ann@", "bob@", "joe@", "milk", "hunter22"):
                assert secret not in text, path
        (event,) = get(f"{url}/api/transactions/{tid}")["events"]
        assert event["metadata"]["chunks"] == 3
        by_hash = get(f"{url}/api/transactions?user={shown['user_id']}")["transactions"]
        assert [row["id"] for row in by_hash] == [tid]


def test_a_tracker_does_not_feed_itself() -> None:
    """One OTEL_TRACKER_URL for all processes: the one that serves has its own data already."""
    port = free_port()
    url = f"http://localhost:{port}"
    with serving(serve=f"127.0.0.1:{port}", url=url) as (tracker, _):
        tracker.track_websocket_connected("user", "client")
        assert tracker.get_dashboard_data()["health"]["publisher"] is None
        assert get(f"{url}/api/workers")["workers"] == []
        assert get(f"{url}/api/dashboard")["system_metrics"]["active_websockets"] == 1


# --- where it does not serve ----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])  # noqa: S104
def test_beyond_this_machine_it_wants_a_token(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without one it does not listen, and says what to set."""
    with serving(serve=f"[{host}]:{free_port()}") as (tracker, _):
        assert state(tracker)["url"] is None
        assert "OTEL_TRACKER_TOKEN" in state(tracker)["error"]
        (line,) = warnings(caplog)
        assert "not served" in line
        assert "OTEL_TRACKER_TOKEN" in line
        assert tracker.create_transaction("user")


def test_with_a_token_it_answers_to_that_alone() -> None:
    """Everything but the token is refused, on this machine too."""
    with serving(token="right") as (_, url):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"{url}/api/dashboard")
        assert refused.value.code == 401
        refused.value.close()
        assert get(f"{url}/api/dashboard", "right")["active_users"] == 0


def test_a_port_that_is_taken_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A warning with the fix; the tracker works."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with serving(serve=address) as (tracker, _):
            assert state(tracker)["error"].startswith(f"cannot listen on {address}: another")
            assert "choose another port" in warnings(caplog)[0]
            assert tracker.create_transaction("user")


@pytest.mark.parametrize("address", ["here", "127.0.0.1:", ":8500", "http://127.0.0.1:1", "a:b"])
def test_an_address_that_is_none(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """A warning that shows one; nothing raises."""
    with serving(serve=address) as (tracker, _):
        assert "127.0.0.1:8500" in state(tracker)["error"]
        assert "127.0.0.1:8500" in warnings(caplog)[0]


def test_without_uvicorn_it_says_what_to_install() -> None:
    """A warning that names the extra; every call works."""
    done = run(
        """
        import sys
        sys.modules["uvicorn"] = None
        from otel_tracker import init_debug_tracker
        tracker = init_debug_tracker(serve="127.0.0.1:0")
        print(tracker.get_dashboard_data()["health"]["serve"])
        """
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'otel-tracker[service]'" in done.stderr
    assert "pip install" in done.stdout


def test_a_disabled_tracker_does_not_serve(caplog: pytest.LogCaptureFixture) -> None:
    """Every call does nothing: so does this."""
    tracker = DebugSystemTracker(serve=LOCAL, disabled=True)
    assert "serve" not in tracker.get_dashboard_data()["health"]
    assert warnings(caplog) == []
    tracker.shutdown()


# --- its life -------------------------------------------------------------------------------------


def test_shutdown_ends_it_and_init_begins_it_again() -> None:
    """The port is free in between; what was tracked is there again, and no thread is left over."""
    done = run(
        """
        import json, socket, sys, threading, urllib.request
        from otel_tracker import get_debug_tracker, init_debug_tracker, shutdown_debug_tracker

        address = f"127.0.0.1:{sys.argv[1]}"
        def total():
            with urllib.request.urlopen(f"http://{address}/api/dashboard", timeout=5) as answer:
                return json.load(answer)["system_metrics"]["total_transactions"]
        seen = []
        for _ in range(3):
            tracker = init_debug_tracker(serve=address)
            assert init_debug_tracker() is tracker
            tracker.create_transaction("user")
            seen.append(total())
            shutdown_debug_tracker()
            assert tracker.get_dashboard_data()["health"]["serve"] == {
                "url": None, "error": "it has ended"}
            socket.create_server(("127.0.0.1", int(sys.argv[1]))).close()
        ours = ("server", "service", "intake", "reads", "close")
        left = [t.name for t in threading.enumerate() if any(name in t.name for name in ours)]
        print(seen, left)
        """,
        str(free_port()),
    )
    assert done.stdout == "[1, 2, 3] []\n", done.stderr
    assert done.stderr == ""


def test_the_environment_will_do_and_the_process_ends_at_once() -> None:
    """OTEL_TRACKER_SERVE serves from the first call; an exit waits for nothing and says nothing."""
    done = run(
        """
        import time
        from otel_tracker import get_debug_tracker
        tracker = get_debug_tracker()
        print(tracker.get_dashboard_data()["health"]["serve"]["url"])
        """,
        OTEL_TRACKER_SERVE="127.0.0.1:0",
    )
    assert done.stdout.startswith("http://127.0.0.1:"), done.stderr
    assert (done.returncode, done.stderr) == (0, "")


def test_options_move_it() -> None:
    """Another address is another port; the same one changes nothing; none ends it."""
    with serving() as (tracker, first):
        tracker.configure(serve=LOCAL, stall_after=7)
        assert state(tracker)["url"] == first
        port = free_port()
        tracker.configure(serve=f"127.0.0.1:{port}")
        assert state(tracker) == {"url": f"http://127.0.0.1:{port}", "error": None}
        with pytest.raises(OSError, match="refused"):
            get(f"{first}/healthz")
        assert get(f"http://127.0.0.1:{port}/healthz") == {"status": "ok"}
        tracker.configure(serve="")
        assert "serve" not in tracker.get_dashboard_data()["health"]
        with pytest.raises(OSError, match="refused"):
            get(f"http://127.0.0.1:{port}/healthz")


def test_a_forked_child_does_not_serve() -> None:
    """It says so, tracks for itself, and may serve elsewhere; the parent goes on."""
    done = run(
        """
        import json, os, urllib.request, warnings
        from otel_tracker import init_debug_tracker

        def total(url):
            with urllib.request.urlopen(f"{url}/api/dashboard", timeout=5) as answer:
                return json.load(answer)["system_metrics"]["total_transactions"]

        tracker = init_debug_tracker(serve="127.0.0.1:0")
        url = tracker.get_dashboard_data()["health"]["serve"]["url"]
        tracker.create_transaction("user")
        assert total(url) == 1
        warnings.simplefilter("ignore")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                health = tracker.get_dashboard_data()["health"]
                assert health["serve"] == {"url": None, "error": "its parent process serves"}
                tracker.create_transaction("user")
                assert tracker.get_system_metrics().total_transactions == 1
                init_debug_tracker(serve="127.0.0.1:0 ")
                own = tracker.get_dashboard_data()["health"]["serve"]["url"]
                tracker.create_transaction("user")
                assert own != url and total(own) == 2, (own, url)
                tracker.shutdown()
                code = 0
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), total(url))
        """
    )
    assert done.stdout == "0 1\n", done.stderr


def test_serving_costs_the_writers_nothing_of_note() -> None:
    """Readers of the API do not hold up a call: the slowest of many takes no quarter second."""
    with serving() as (tracker, url):
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                get(f"{url}/api/dashboard")

        reader = threading.Thread(target=read)
        reader.start()
        try:
            slowest = 0.0
            for _ in range(300):
                before = time.monotonic()
                tid = tracker.create_transaction("user")
                tracker.track_event(tid, PipelineStage.MEMORY_STARTED)
                tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED)
                slowest = max(slowest, time.monotonic() - before)
        finally:
            over.set()
            reader.join()
        assert slowest < 0.25
        assert tracker.get_system_metrics().total_transactions == 300
