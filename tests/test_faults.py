"""Export when things break: real processes, the Collector and Jaeger as they ship, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.engines import Collector, Jaeger, engines_or_skip, free_port, until
from tests.otlp import ROOT

APP: Final = Path(__file__).parent / "faults" / "app.py"

FORK_IS_MEANT: Final = "ignore:This process:DeprecationWarning"
"""Newer Pythons warn of a fork beside threads."""

SPANS: Final = 10_000
BURST: Final = {"transactions": 200, "stages": 49}
"""Makes `SPANS` spans: 200 traces of 50."""

pytestmark = [
    pytest.mark.usefixtures("_engines"),
    pytest.mark.timeout(240),  # real outages take their time
]


@pytest.fixture(scope="module")
def _engines() -> None:
    engines_or_skip()


class App:
    """tests/faults/app.py in a process of its own, that exports to `endpoint`."""

    def __init__(self, endpoint: str, options: dict[str, Any], **env: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", FORK_IS_MEANT, str(APP), json.dumps(options)],
            env={
                **clean,
                "PYTHONPATH": str(ROOT),
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_SERVICE_NAME": "faults",
                **env,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def says(self) -> dict[str, Any]:
        """The next line of what it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        said: dict[str, Any] = json.loads(line)
        return said

    def tell(self, line: str) -> None:
        """Answers it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ends(self, timeout_s: float = 60) -> tuple[int, str, float]:
        """Exit status, what it logged, and how many seconds it took from here."""
        started = time.monotonic()
        _, logged = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, logged, time.monotonic() - started


def in_jaeger(jaeger: Jaeger, ids: Iterable[str], spans: int, timeout_s: float = 60) -> int:
    """Spans of these transactions that Jaeger has, as soon as each has `spans`, or time is up."""
    deadline = time.monotonic() + timeout_s
    found = 0
    for one in ids:
        trace_id = one.replace("-", "")
        while len(got := jaeger.traces(trace_id) or []) < spans and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len({span.span_id for span in got}) == len(got), "a span is there twice"
        found += len(got)
    return found


def warnings(logged: str) -> list[str]:
    """The lines of the log, which goes to stderr as Python's last resort."""
    return [line for line in logged.splitlines() if line.strip()]


def test_a_collector_that_is_killed_and_restarted_costs_nothing(tmp_path: Path) -> None:
    """10,000 spans, half of them while nobody listens: all are in Jaeger, and two lines tell it."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        half = {"transactions": 100, "stages": 49, "rounds": 2}
        with App(collector.http_url, half) as app:
            first = app.says()
            collector.kill()
            app.tell("go")
            second = app.says()
            # Longer than the exporter's own tries within one call.
            time.sleep(12)
            collector.start()
            app.tell("go")
            code, logged, _ = app.ends()
        assert code == 0
        assert in_jaeger(jaeger, [*first["ids"], *second["ids"]], 50) == SPANS
        told = warnings(logged)
        assert len(told) == 2, told
        assert "none was lost" in told[1]


def test_jaeger_down_for_a_minute_behind_a_live_collector_loses_nothing(tmp_path: Path) -> None:
    """The Collector's queue on disk keeps 10,000 spans whose application is long gone."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        jaeger.kill()
        down = time.monotonic()
        with App(collector.http_url, BURST) as app:
            said = app.says()
            code, logged, _ = app.ends()
        assert (code, warnings(logged)) == (0, [])
        # In the middle of it the Collector restarts, too: it is killed, not asked.
        collector.kill()
        collector.start()
        time.sleep(max(0.0, 60 - (time.monotonic() - down)))
        jaeger.start()
        assert in_jaeger(jaeger, said["ids"], 50) == SPANS


@contextmanager
def black_hole() -> Iterator[str]:
    """An endpoint that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for one in taken:
                one.close()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_never_answers_holds_nobody_up_and_is_counted(protocol: str) -> None:
    """The work goes on and ends, the shutdown is bounded, and each of 10,000 spans is counted."""
    with black_hole() as endpoint:
        env = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        with App(endpoint, {**BURST, "end": "shutdown"}, **env) as app:
            worked, ended = app.says(), app.says()
            code, logged, left = app.ends()
    assert code == 0
    assert ended["took"] < 5.5
    assert left < 3
    state = ended["state"]
    assert state["exported"] == 0
    assert state["lost"]["shutdown"] + state["waiting"] == SPANS
    assert worked["state"]["waiting"] == SPANS
    told = warnings(logged)
    assert 1 <= len(told) <= 2, told
    assert f"{SPANS} spans could not be sent" in told[-1]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nobody_listening_is_one_line_and_a_bounded_exit(protocol: str) -> None:
    """The application's log is not flooded, and its exit, which nobody asked for, takes 5 s."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    env = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with App(endpoint, BURST, **env) as app:
        app.says()
        code, logged, left = app.ends()
    assert code == 0
    assert left < 6.5
    told = warnings(logged)
    assert len(told) <= 2, told
    assert f"{SPANS} spans could not be sent" in told[-1]


def test_a_full_queue_is_counted_to_the_span(tmp_path: Path) -> None:
    """What Jaeger has and what health counts as lost are all that there were."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        collector.kill()
        small = {"OTEL_BSP_MAX_QUEUE_SIZE": "1000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200"}
        with App(collector.http_url, {**BURST, "rounds": 1, "end": "shutdown"}, **small) as app:
            said = app.says()
            collector.start()
            app.tell("go")
            ended = app.says()
            code, logged, _ = app.ends()
        state = ended["state"]
        lost = state["lost"]["queue_full"]
        assert code == 0
        assert lost > 5_000
        assert (state["lost"]["refused"], state["lost"]["shutdown"], state["waiting"]) == (0, 0, 0)
        assert state["exported"] == SPANS - lost
        # In whole traces the newest are there; what is missing is exactly what was counted.
        until(
            "the last trace in Jaeger",
            lambda: len(jaeger.traces(said["ids"][-1].replace("-", "")) or []) == 50,
        )
        kept = until("all that was kept", lambda: _settled(jaeger, said["ids"], SPANS - lost))
        assert kept == SPANS - lost
        # Told, whether the outage was noticed or was over before anything was sent.
        assert str(lost) in logged
        assert "were lost" in logged


def _settled(jaeger: Jaeger, ids: list[str], wanted: int) -> int | None:
    found = sum(len(jaeger.traces(one.replace("-", "")) or []) for one in ids)
    return found if found >= wanted else None


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_burst_of_all_at_once_arrives_whole(tmp_path: Path, protocol: str) -> None:
    """10,000 spans as fast as they can be made, and a process that ends right after."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        endpoint = collector.http_url if protocol != "grpc" else f"http://{collector.grpc}"
        with App(endpoint, BURST, OTEL_EXPORTER_OTLP_PROTOCOL=protocol) as app:
            said = app.says()
            code, logged, _ = app.ends()
        assert (code, warnings(logged)) == (0, [])
        assert in_jaeger(jaeger, said["ids"], 50) == SPANS


def test_sigterm_that_the_application_handles_loses_nothing(tmp_path: Path) -> None:
    """As servers and workers do: the handler leads to an orderly exit, also out of open work."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        with App(collector.http_url, {**BURST, "end": "sigterm"}) as app:
            said = app.says()
            opened = app.says()["open"]
            app.process.send_signal(signal.SIGTERM)
            code, logged, left = app.ends()
        # One line: what became of the open transaction. It is no trouble of the export's.
        assert code == 0
        assert [opened in line for line in warnings(logged)] == [True]
        assert left < 6
        assert in_jaeger(jaeger, said["ids"], 50) == SPANS
        spans = jaeger.wait_for(opened.replace("-", ""), 2)
        outcomes = {s.attributes.get("otel_tracker.stage.outcome") for s in spans}
        assert outcomes & {"cancelled", "interrupted"}


def test_sigkill_loses_at_most_the_last_moments(tmp_path: Path) -> None:
    """What ended two seconds before is in Jaeger; the open transaction is found by its stages."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        steady = {"transactions": 60, "stages": 4, "pause_s": 0.1, "end": "sigkill"}
        with App(collector.http_url, steady) as app:
            ended = [app.says() for _ in range(40)]
            app.process.kill()
            killed = time.time()
            app.process.wait()
        early = [one["id"] for one in ended if one["at"] < killed - 2]
        assert len(early) >= 15
        assert in_jaeger(jaeger, early, 5, timeout_s=15) == 5 * len(early)


def test_os_exit_loses_what_was_not_flushed_and_nothing_else(tmp_path: Path) -> None:
    """A worker that leaves by ``os._exit`` flushes first; then all of it is there."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        with App(collector.http_url, {**BURST, "end": "flush, os._exit"}) as app:
            said, flushed = app.says(), app.says()
            code, logged, _ = app.ends()
        assert (code, warnings(logged)) == (0, [])
        assert flushed["is_sent"] is True
        assert (flushed["state"]["exported"], flushed["state"]["waiting"]) == (SPANS, 0)
        assert in_jaeger(jaeger, said["ids"], 50) == SPANS


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_forked_children_and_their_parent_each_send_their_own(
    tmp_path: Path, protocol: str
) -> None:
    """A pre-fork server: ten processes, 10,000 spans, none lost and none sent twice."""
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        endpoint = collector.http_url if protocol != "grpc" else f"http://{collector.grpc}"
        options = {"transactions": 20, "stages": 49, "fork": 9}
        with App(endpoint, options, OTEL_EXPORTER_OTLP_PROTOCOL=protocol) as app:
            said = app.says()
            code, logged, _ = app.ends()
        assert (code, warnings(logged)) == (0, [])
        assert len(said["ids"]) == len(set(said["ids"])) == 200
        assert in_jaeger(jaeger, said["ids"], 50) == SPANS
        accepted = sum(
            count
            for name, count in collector.metrics().items()
            if name.startswith("otelcol_receiver_accepted_spans")
        )
        assert accepted == SPANS
