"""The demo after its report: the page and the processes stay up until somebody ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

from otel_tracker.demo import dashboard
from otel_tracker.demo.dashboard import Dashboard, DashboardError
from tests.engines import fetch, free_port, missing, until
from tests.otlp import ROOT
from tests.test_dashboard_processes import dashboard as live_service
from tests.test_demo import write_wav

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into Linux's /proc"),
    pytest.mark.timeout(120),
]

ENDED_S: Final = 12
"""A process that does not end within 8 s is killed."""


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
        return json.load(answer)


def descendants(of: int) -> set[int]:
    """All processes below this one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set[int](), {of}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@dataclass(frozen=True)
class Idle:
    """The demo, its report printed."""

    process: subprocess.Popen[str]
    said: str
    pids: frozenset[int]
    """All of its processes, the page's too."""
    workers: dict[str, list[int]]

    def is_gone(self) -> bool:
        return not any(is_alive(pid) for pid in self.pids)


@contextmanager
def idle(tmp_path: Path, **env: str) -> Iterator[Idle]:
    """Runs it on a recording of silence until it waits; ends all of it in any case."""
    file = write_wav(tmp_path / "quiet.wav")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "DEBUG_DUMP"))}
    command = [sys.executable, "-W", "error", "-m", "otel_tracker", "demo", str(file)]
    pids: set[int] = set()
    with (tmp_path / "stderr").open("w") as err:
        process = subprocess.Popen(
            [*command, "--dir", str(tmp_path / "kept")],
            env={**clean, **env}, cwd=ROOT, stdout=subprocess.PIPE, stderr=err, text=True,
            start_new_session=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C ends it"):
                break
        else:
            raise AssertionError((tmp_path / "stderr").read_text())
        pids = descendants(process.pid) | {process.pid}
        workers = {
            name: [int(pid) for pid in numbers.split()]
            for name, numbers in re.findall(r"(voice-notes-[a-z]+) ([\d ]+)", lines[-2])
        }
        yield Idle(process, "".join(lines), frozenset(pids), workers)
    finally:
        for pid in pids | descendants(process.pid) | {process.pid}:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_the_page_and_the_processes_stay_until_ctrl_c(tmp_path: Path) -> None:
    """The page answers, its service knows all processes; one that is killed is told; then 0."""
    if find_spec("streamlit") is None:
        missing("streamlit is not installed")
    with idle(tmp_path) as demo:
        page = re.search(r"^The page is at (http://127\.0\.0\.1:\d+)$", demo.said, re.MULTILINE)
        assert page, demo.said
        assert fetch(f"{page[1]}/_stcore/health")[0] == 200
        assert sorted(demo.workers) == [
            "voice-notes-memory", "voice-notes-transcriber", "voice-notes-web",
        ]  # fmt: skip
        assert sum(map(len, demo.workers.values())) == 4
        assert len(demo.pids) >= 7  # and the demo itself, the service and the page
        [victim] = demo.workers["voice-notes-memory"]
        os.kill(victim, signal.SIGKILL)
        told = f"the process voice-notes-memory ({victim}) ended"
        until("its loss", lambda: told in (tmp_path / "stderr").read_text(), 10)
        began = time.monotonic()
        os.killpg(demo.process.pid, signal.SIGINT)  # as a terminal does
        assert demo.process.wait(ENDED_S) == 0
        assert time.monotonic() - began < ENDED_S
        until("the end of all", demo.is_gone, 5)
    err = (tmp_path / "stderr").read_text()
    assert "Traceback" not in err
    assert err.count("ended; its loss is shown") == 1


def test_nothing_is_left_of_a_demo_that_is_killed(tmp_path: Path) -> None:
    """Its processes notice, the service and the page too."""
    with idle(tmp_path) as demo:
        demo.process.kill()
        demo.process.wait(ENDED_S)
        until("the end of all", demo.is_gone, ENDED_S)
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_a_service_of_the_users_own_is_fed_until_sigterm(tmp_path: Path) -> None:
    """OTEL_TRACKER_URL names one: the demo starts none, and that one knows what was done."""
    with live_service(tmp_path / "journal", free_port()) as (url, _):
        with idle(tmp_path, OTEL_TRACKER_URL=url) as demo:
            assert f"The processes feed the dashboard service {url}; its page shows" in demo.said
            [row] = until(
                "its end",
                lambda: get(f"{url}/api/transactions?status=completed")["transactions"],
                10,
            )
            assert row["user_id"] == "you"
            # One that has done nothing yet says nothing yet.
            until("their beats", lambda: len(get(f"{url}/api/workers")["workers"]) >= 2, 10)
            demo.process.terminate()
            assert demo.process.wait(ENDED_S) == 0
            until("the end of all", demo.is_gone, 5)
        assert get(f"{url}/api/workers")["workers"] == []  # they said goodbye
    assert not (tmp_path / "kept" / "journal").exists()
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def test_without_streamlit_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is there all the same."""
    monkeypatch.setattr(dashboard, "find_spec", lambda _name: None)
    with Dashboard(tmp_path, page=True) as one:
        assert one.page_url() == ""
        assert one.no_page == (
            "streamlit is not installed; run: pip install 'otel-tracker[dashboard]'"
        )
        assert get(f"{one.url}/healthz")["status"] == "ok"


def test_taken_ports_and_a_service_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another program has the port, a free one is used; a service that is gone is told."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(dashboard, "PORT", taken)
        with Dashboard(tmp_path, page=False) as one:
            assert not one.url.endswith(f":{taken}")
            one.check()
            [pid] = descendants(os.getpid()) & {
                int(stat.parent.name)
                for stat in Path("/proc").glob("[0-9]*/cmdline")
                if b"otel_tracker.demo.dashboard" in stat.read_bytes()
            }
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(DashboardError, match=r"the dashboard service is gone .*-9"):
                until("its end", one.check, 5)


def test_a_service_that_cannot_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ends at once; the demo says so instead of waiting."""
    monkeypatch.setattr(dashboard, "_free", lambda _port: -1)
    with (
        pytest.raises(DashboardError, match=r"the dashboard service did not start \(exit code"),
        Dashboard(tmp_path, page=False),
    ):
        pass
