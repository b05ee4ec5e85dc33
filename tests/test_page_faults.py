"""Three o'clock in the morning: real faults in real processes, each read off the page as text."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import APP, EMPTY, Notes, Reader, Served, chromium, reading, served
from tests.engines import free_port

HANGING: Final = '        connection.execute("CREATE TABLE IF NOT EXISTS memories (text)")'
HOST: Final = socket.gethostname()

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@contextmanager
def night(
    browser: Browser, path: Path, *, workers: bool = True, env: Mapping[str, str] = EMPTY
) -> Iterator[tuple[Reader, Notes, Notes | None, Served]]:
    """The page, and an application of a web process and a worker, in which nothing is wrong yet."""
    notes = path / "notes"
    notes.mkdir()
    with ExitStack() as stack:
        one = stack.enter_context(served(path / "service", env=env))
        web = stack.enter_context(Notes("web", notes, one.api, env))
        worker = None
        if workers:
            worker = stack.enter_context(Notes("memory", notes, one.api, env)).starts()
            for user in ("ann", "ben", "eve"):
                web.record(user, conversation=f"first-{user}")
        reader = stack.enter_context(reading(browser, one.page))
        if workers:
            expect(reader.headline).to_contain_text("OK")
            expect(reader.headline).to_contain_text("last memory")
            expect(reader.at(".metrics")).to_contain_text("3memories")
        yield reader, web, worker, one


TIME: Final = r"\d\d:\d\d UTC \(\d\d:\d\d local\)"


def test_a_memory_worker_that_is_killed(browser: Browser, tmp_path: Path) -> None:
    """LOST, which process on which host, since when, for whom, in which stage, and what queues."""
    with night(browser, tmp_path) as (reader, web, worker, _):
        assert worker is not None
        held = web.record("dora", "hold")
        row = reader.row(held, "open")
        expect(row).to_contain_text("running")
        expect(row).to_contain_text(f"{HOST} / {worker.process.pid}")
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()
        queued = web.record("ann", "after it")
        # Is the page to be believed?
        expect(reader.strip).to_contain_text("LIVE", timeout=30_000)
        expect(reader.strip).to_contain_text(
            re.compile(
                rf"LOST.*notes-memory \(process {worker.process.pid} on {HOST}\), silent for"
            ),
            timeout=30_000,
        )
        expect(reader.strip).to_contain_text("1 process reports (notes-web)")
        # Is it broken, since when, for whom?
        expect(reader.headline).to_contain_text("FAILING")
        expect(reader.headline).to_contain_text("1 recording went wrong, all of user dora")
        why = reader.at(".why").first
        expect(why).to_contain_text("LOST")
        expect(why).to_contain_text("Worker lost in memory")
        expect(why).to_contain_text(f"process {worker.process.pid}")
        expect(why).to_contain_text(re.compile(f"1 recording, 1 user .dora., since {TIME}"))
        # What is stuck, where?
        expect(reader.cell("memory")).to_contain_text("1 lost")
        expect(row).to_contain_text("lost")
        expect(row).to_contain_text("memory")
        expect(row).to_contain_text(f"{HOST} / {worker.process.pid}")
        expect(reader.cell("queue → memory")).to_contain_text(re.compile(r"waiting\s*1"))
        expect(reader.row(queued, "open")).to_contain_text("waiting")
        reader.shows("fault-worker-killed")
        # Where to look next?
        row.click()
        expect(reader.detail).to_contain_text("lost")
        expect(reader.detail).to_contain_text("Worker lost in memory")
        expect(reader.detail).to_contain_text(f"{HOST} / {worker.process.pid} / MainThread")
        expect(reader.detail).to_contain_text("No stack was sent")
        expect(reader.detail).to_contain_text("no link: its processes export nothing")
        reader.shows("fault-worker-killed-detail", full=True)


def test_a_database_that_is_locked(browser: Browser, tmp_path: Path) -> None:
    """BROKEN, no memory since when, for whom, and the error; in the same page green when mended."""
    exports = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    with night(browser, tmp_path, env=exports) as (reader, web, _, _):
        database = tmp_path / "notes" / "memories.db"
        with closing(sqlite3.connect(database, isolation_level=None)) as locked:
            locked.execute("BEGIN EXCLUSIVE")
            ids = [web.record(user, "lost to it") for user in ("ann", "ben", "eve", "ann")]
            expect(reader.headline).to_contain_text("BROKEN")
            expect(reader.headline).to_contain_text("no memory for")
            expect(reader.headline).to_contain_text(re.compile(f"Last memory {TIME}"))
            expect(reader.headline).to_contain_text("0 memories, 3 users (4 failed)")
            why = reader.at(".why").first
            expect(why).to_contain_text("FAILED")
            expect(why).to_contain_text("memory creation failed — database is locked")
            expect(why).to_contain_text(re.compile(rf"3 users \(ann, .*since {TIME}"))
            expect(reader.cell("memory")).to_contain_text("4 failed")
            expect(reader.cell("transcription")).to_contain_text("well")
            pattern = reader.table("patterns").first
            expect(pattern).to_contain_text("NEW")
            expect(pattern).to_contain_text("4, 4 stand")
            reader.shows("fault-database-locked")
            why.locator("[data-open]").click()
            expect(reader.detail).to_contain_text(ids[-1])
            expect(reader.detail.locator(".error")).to_contain_text("memory #1")
            expect(reader.detail.locator(".error")).to_contain_text("sqlite3.OperationalError")
            expect(reader.detail.locator(".error")).to_contain_text("database is locked")
            link = f"http://localhost:16686/trace/{ids[-1].replace('-', '')}"
            expect(reader.detail.locator(f'a[href="{link}"]')).to_have_text(link)
            reader.shows("fault-database-locked-detail", full=True)
        web.record("ben", "after it")
        expect(reader.headline.locator("h2")).to_contain_text("OK")
        expect(reader.headline).not_to_contain_text("BROKEN")


def test_a_database_that_hangs(browser: Browser, tmp_path: Path) -> None:
    """STALLED while it still hangs, with the line of code on which it does, host and process."""
    limits = {"OTEL_TRACKER_STALL_AFTER_MEMORY": "1.5", "NOTES_LOCK_WAIT_S": "60"}
    with night(browser, tmp_path, env=limits) as (reader, web, worker, _):
        assert worker is not None
        database = tmp_path / "notes" / "memories.db"
        with closing(sqlite3.connect(database, isolation_level=None)) as locked:
            locked.execute("BEGIN EXCLUSIVE")
            hangs = web.record("dora", "hangs")
            row = reader.row(hangs, "open")
            expect(row).to_contain_text("stalled")
            expect(row).to_contain_text(f"{HOST} / {worker.process.pid}")
            expect(reader.headline).to_contain_text("FAILING")
            expect(reader.at(".why").first).to_contain_text("STALLED")
            expect(reader.at(".why").first).to_contain_text("memory processing stalled")
            expect(reader.at(".why").first).to_contain_text("dora")
            expect(reader.cell("memory")).to_contain_text("1 stalled")
            expect(reader.cell("memory")).to_contain_text("running1, oldest")
            row.click()
            stack = reader.detail.locator(".stack")
            line = 1 + APP.read_text().splitlines().index(HANGING)
            expect(stack).to_contain_text(f"notes.py:{line} in save")
            reader.shows("fault-database-hangs", full=True)
        expect(reader.headline).to_contain_text("OK")
        expect(reader.detail).to_contain_text("completed")
        expect(row).to_have_count(0)


def test_transcription_that_fails_for_one_user(browser: Browser, tmp_path: Path) -> None:
    """FAILING, and not broken: all of one user, others went through, in which stage and why."""
    with night(browser, tmp_path) as (reader, web, _, _):
        for number in range(2):
            broken = web.record("dora", "garbled", f"dora-{number}")
            for user in ("ann", "ben"):
                web.record(user, "well", f"{user}-{number}")
        expect(reader.headline).to_contain_text("FAILING")
        expect(reader.headline).to_contain_text(
            "2 recordings went wrong, all of user dora; 2 other users went through"
        )
        why = reader.at(".why").first
        expect(why).to_contain_text("FAILED")
        expect(why).to_contain_text("Failed at transcription_completed: cannot decode")
        expect(reader.cell("transcription")).to_contain_text("2 failed")
        expect(reader.cell("memory")).to_contain_text("well")
        reader.shows("fault-one-user")
        why.locator("[data-open]").click()
        expect(reader.detail).to_contain_text(broken)
        expect(reader.detail.locator(".error")).to_contain_text("TranscriptionError")
        expect(reader.detail.locator(".error")).to_contain_text("expected 16000 Hz, found 8000 Hz")


def test_green_never_stands_without_memories(browser: Browser, tmp_path: Path) -> None:
    """Nothing fails, but no worker runs: never OK. Skips are normal, and by themselves no red."""
    with night(browser, tmp_path, workers=False) as (reader, web, _, one):
        expect(reader.headline).to_contain_text("EMPTY")
        web.record("ann")
        expect(reader.headline).to_contain_text("no memory yet")
        expect(reader.headline.locator(".s-ok")).to_have_count(0)
        expect(reader.at(".h-ok")).to_have_count(0)
        with Notes("memory", tmp_path / "notes", one.api) as worker:
            worker.starts()
            expect(reader.headline.locator("h2")).to_contain_text("OK")
            for number in range(5):
                web.record("eve", "silence", f"quiet-{number}")
            expect(reader.cell("memory")).to_contain_text("skipped5,")
            expect(reader.headline.locator("h2")).to_contain_text("OK")
            expect(reader.at(".s-failed, .s-stalled, .sick")).to_have_count(0)
            reader.shows("skips-are-normal")
