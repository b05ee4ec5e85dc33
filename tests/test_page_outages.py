"""The page when something of it is away: it never looks alive while it is not, and comes back."""

from __future__ import annotations

import os
import re
import signal
import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, expect

from otel_tracker.dashboard.page_process import PageProcess
from otel_tracker.model import NS_PER_S
from otel_tracker.testing import START_NS
from tests.browser import Reader, Served, chromium, get, is_up, post, reading, served
from tests.engines import free_port, until
from tests.test_dashboard_queries import Spans

pytestmark = pytest.mark.timeout(120)

TOKEN: Final = "right-5f2c0a"
AT: Final = r"\d\d:\d\d:\d\d UTC \(\d\d:\d\d:\d\d local\)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


def work(to: Served, number: int, token: str = "") -> None:
    """Feeds one transaction of which everything went well."""
    spans = Spans()
    spans.done(number, time.time() - START_NS / NS_PER_S - 5, user__id=f"user-{number}")
    post(to.api, "/v1/traces", spans.body, token)


def completed(reader: Reader, count: int) -> None:
    """Waits until the page shows so many."""
    figure = reader.at(".metrics > [data-key=completed]")
    expect(figure).to_contain_text(re.compile(rf"{count}\s*$"))


def test_the_service_comes_late_stops_hangs_and_returns(browser: Browser, tmp_path: Path) -> None:
    """Never started, empty, live, hanging, killed, back: one page that stays open says each."""
    port = free_port()
    page = PageProcess(f"http://127.0.0.1:{port}", port=free_port(), refresh_s=0.3)
    with ExitStack() as stack:
        stack.callback(page.stop)
        url = page.start()
        reader = stack.enter_context(reading(browser, url, waits_for=".strip"))
        # Never started.
        expect(reader.strip).to_contain_text("UNREACHABLE")
        expect(reader.strip).to_contain_text(f"http://127.0.0.1:{port}")
        expect(reader.headline).to_contain_text("The dashboard service does not answer")
        expect(reader.headline).to_contain_text("`otel-tracker dashboard`")
        expect(reader.at(".metrics, .panels, .s-ok")).to_have_count(0)
        reader.shows("never-started")
        with served(tmp_path, page=False, port=port) as one:
            # Empty.
            expect(reader.strip).to_contain_text("LIVE")
            expect(reader.headline).to_contain_text("no transaction has come yet")
            expect(reader.headline).to_contain_text("OTEL_TRACKER_URL")
            expect(reader.at("[data-key=open]")).to_contain_text("Nothing is open.")
            expect(reader.at("[data-key=patterns]")).to_contain_text("No issue was seen.")
            expect(reader.at("[data-key=rows]")).to_contain_text("No transaction came yet.")
            expect(reader.headline.locator(".s-ok")).to_have_count(0)
            reader.shows("empty")
            work(one, 1)
            completed(reader, 1)
            # It hangs.
            one.process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            expect(reader.strip).to_contain_text("UNREACHABLE")
            expect(reader.strip).to_contain_text("did not answer in time")
            assert time.monotonic() - began < 10
            expect(reader.strip).to_contain_text(re.compile(f"since {AT}: .* All below is of {AT}"))
            expect(reader.at(".dim .metrics")).to_be_visible()  # what was known is still there
            reader.shows("hanging")
            one.process.send_signal(signal.SIGCONT)
            expect(reader.strip).to_contain_text("LIVE")
            expect(reader.at(".dim")).to_have_count(0)
            # It is killed.
            one.process.kill()
            expect(reader.strip).to_contain_text("UNREACHABLE")
            expect(reader.strip).to_contain_text("refused")
            expect(reader.strip).to_contain_text(re.compile(f"since {AT}: .* All below is of {AT}"))
            completed(reader, 1)
            reader.shows("killed")
        with served(tmp_path, page=False, port=port) as one:
            expect(reader.strip).to_contain_text("LIVE")
            completed(reader, 1)
            work(one, 2)
            completed(reader, 2)


def test_the_pages_own_server_is_killed(browser: Browser, tmp_path: Path) -> None:
    """The page itself says that it stands still, in whatever light; its service starts it again."""
    with served(tmp_path) as one:
        work(one, 1)
        with reading(browser, one.page) as reader:
            completed(reader, 1)
            gone = reader.at(".strip.gone").first
            expect(gone).to_be_hidden()
            killed = one.page_pid
            os.kill(killed, signal.SIGSTOP)  # the socket stays open, and nothing comes
            began = time.monotonic()
            expect(gone).to_be_visible(timeout=25_000)
            assert 5 < time.monotonic() - began < 20
            expect(gone).to_contain_text(re.compile(r"not refreshed for \d+ s: it shows the past"))
            reader.shows("page-killed")
            os.kill(killed, signal.SIGCONT)
            expect(gone).to_be_hidden()
            os.kill(killed, signal.SIGKILL)
            until("another page", lambda: one.page_pid != killed and is_up(one.page), 20)
            expect(gone).to_be_hidden()
            work(one, 2)
            completed(reader, 2)


def test_without_the_token_nothing_is_shown(browser: Browser, tmp_path: Path) -> None:
    """A wrong one is refused by page and API; the right one shows all, and no address has it."""
    with served(tmp_path, env={"OTEL_TRACKER_TOKEN": TOKEN}) as one:
        work(one, 7, TOKEN)
        for wrong in ("", "wrong", TOKEN[:-1]):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(one.api, "/api/dashboard", wrong)
        assert get(one.api, "/api/dashboard", TOKEN)["active_users"] is not None
        with reading(browser, one.page, waits_for="input[type=password]") as reader:
            field = reader.at("input[type=password]")
            for wrong in ("wrong", TOKEN[:-1], TOKEN.upper()):
                field.fill(wrong)
                field.press("Enter")
                expect(reader.page.get_by_text("That is not the token.")).to_be_visible()
                expect(reader.at(".otel-tracker")).to_have_count(0)
                assert "user-7" not in reader.page.content()
                reader.page.reload()
                field.wait_for()
            reader.shows("token")
            field.fill(TOKEN)
            field.press("Enter")
            completed(reader, 1)
            expect(reader.table("rows")).to_contain_text("user-7")
            assert TOKEN not in reader.page.url
            assert TOKEN not in reader.page.content()
        with reading(browser, one.page, waits_for="input[type=password]") as reader:
            expect(reader.at(".otel-tracker")).to_have_count(0)  # another reader is asked as well
        page = PageProcess(one.api, "another", port=free_port(), refresh_s=0.3)
        try:
            url = page.start()
            with reading(browser, url, waits_for="input[type=password]") as reader:
                reader.at("input[type=password]").fill("another")
                reader.at("input[type=password]").press("Enter")
                expect(reader.headline).to_contain_text("another OTEL_TRACKER_TOKEN")
                expect(reader.at(".metrics")).to_have_count(0)
        finally:
            page.stop()
