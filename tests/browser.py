"""The page of the dashboard service in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.request import Request, urlopen

from tests.engines import executable, free_port, missing
from tests.otlp import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Locator, Page

FLAGS: Final = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""Nothing that Chromium would do by itself: what it asks for, the page asked for."""

APP: Final = ROOT / "tests" / "pages" / "notes.py"
"""The application that the faults are planted in."""

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
DESK: Final = (1440, 900)
PHONE: Final = (390, 844)
FAR_AWAY: Final = "Asia/Kolkata"
"""A zone whose clock is off by half an hour too."""

EMPTY: Final[Mapping[str, str]] = {}
REFRESH_S: Final = 0.3
SHOWN_MS: Final = 15_000
"""For what should be on the page within a refresh; the machine may be busy."""

_START_S: Final = 60.0
_TELLS_ERRORS: Final = """
  new MutationObserver(() => {
    for (const one of document.querySelectorAll("[data-testid=stException]"))
      console.error("the page's script failed: " + one.textContent);
  }).observe(document, {childList: true, subtree: true});
"""
"""Streamlit shows an exception of the script's, perhaps for one refresh only."""


def pictures() -> Path:
    """Where screenshots are left, for whoever looks at a failed run; CI keeps them."""
    path = ROOT / os.environ.get("OTEL_TRACKER_SCREENSHOTS", "artefacts/screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; the test is skipped without one, and in CI it fails.

    It is to be closed before tests of other modules run: while Playwright is open, no other event
    loop can run on this thread.
    """
    for package in ("playwright", "streamlit"):
        if find_spec(package) is None:
            missing(f"{package} is not installed; run: pip install -r requirements/dev.txt")
    program = executable("chromium", "chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SHOWN_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


# --- what is looked at ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """`otel-tracker dashboard`, which answers: the service, and the page where there is one."""

    api: str
    page: str
    process: subprocess.Popen[str]

    @property
    def page_pid(self) -> int:
        """Of the page's process."""
        (pid,) = _children(self.process.pid)
        return pid


def _children(of: int) -> set[int]:
    """The processes that one of its threads started."""
    files = Path(f"/proc/{of}/task").glob("*/children")
    return {int(pid) for file in files for pid in file.read_text().split()}


@contextmanager
def served(
    path: Path,
    *,
    page: bool = True,
    port: int = 0,
    refresh_s: float = REFRESH_S,
    env: Mapping[str, str] = EMPTY,
) -> Iterator[Served]:
    """Runs the command as a user does, and kills it at the end.

    Args:
        path: where its journal is kept.
        page: whether it has one.
        port: of the service; 0 takes a free one.
        refresh_s: seconds between two looks of the page.
        env: further environment variables.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "otel_tracker", "dashboard", "--port", str(port)]
    command += (
        ["--page-port", str(free_port()), "--refresh", str(refresh_s)] if page else ["--no-page"]
    )
    path.mkdir(parents=True, exist_ok=True)
    with (path / "stderr").open("w") as err:
        process = subprocess.Popen(
            command,
            env={**clean(), "OTEL_TRACKER_JOURNAL_DIR": str(path / "journal"), **env},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    try:
        api = _said(process, "The dashboard's service listens at ").partition(";")[0]
        url = _said(process, "The page: ") if page else ""
        yield Served(api, url, process)
    finally:
        pages = _children(process.pid) if process.poll() is None else set()
        process.kill()
        process.communicate()
        for pid in pages:  # it would end by itself, unless a test has stopped it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def clean() -> dict[str, str]:
    """The environment without anything that would configure us."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "DEBUG_DUMP"))}


def _said(process: subprocess.Popen[str], start: str) -> str:
    """What stands behind `start` on the next line that begins so."""
    assert process.stdout is not None
    began = time.monotonic()
    for line in process.stdout:
        if line.startswith(start):
            return line.removeprefix(start).strip()
        assert time.monotonic() - began < _START_S
    raise AssertionError(f"it ended without having said {start!r}")


def post(api: str, path: str, body: bytes | dict[str, Any], token: str = "") -> Any:
    """Posts spans (protobuf) or a beat (JSON)."""
    kind = "application/x-protobuf" if isinstance(body, bytes) else "application/json"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
    request = Request(api + path, data, headers)  # noqa: S310 - loopback
    with urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
        return answer.read()


def get(api: str, path: str, token: str = "") -> Any:
    """What the API says."""
    request = Request(api + path, headers={"Authorization": f"Bearer {token}"})  # noqa: S310
    with urlopen(request, timeout=10) as answer:  # noqa: S310 - loopback
        return json.load(answer)


# --- what feeds it --------------------------------------------------------------------------------


class Notes:
    """tests/pages/notes.py as one process, that feeds a service."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        api: str,
        env: Mapping[str, str] = EMPTY,
        app: Path = APP,
    ) -> None:
        self.kind = kind
        self.process = subprocess.Popen(
            [sys.executable, str(app), kind, str(directory)],
            env={
                **clean(),
                "PYTHONPATH": str(ROOT),
                "OTEL_TRACKER_URL": api,
                "OTEL_SERVICE_NAME": f"notes-{kind}",
                **env,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def _says(self, name: str) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.kind} ended"
        return str(json.loads(line)[name])

    def starts(self) -> Self:
        """Waits until a worker looks for notes."""
        self._says("works")
        return self

    def record(self, user: str, text: str = "buy milk", conversation: str = "") -> str:
        """The id of a recording that a web process has begun with."""
        assert self.process.stdin is not None
        told = {"user": user, "text": text, "conversation": conversation or f"conv-{user}-{text}"}
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return self._says("id")


# --- who looks ------------------------------------------------------------------------------------


@dataclass
class Reader:
    """One person's browser window, and what it asked the network for."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    """Hosts of all requests and web sockets."""
    errors: list[str] = field(default_factory=list)
    """Exceptions of scripts, of the browser's and the page's, and dialogs."""

    def hears(self, kind: str, text: str) -> None:
        """What a script wrote to the console; that a server is away is no error of the page's."""
        if kind == "error" and "the page's script failed" in text:
            self.errors.append(text)

    def at(self, part: str) -> Locator:
        """Part of the page by its CSS selector; shadow roots are no borders for it."""
        return self.page.locator(part)

    def meets(self, dialog: Dialog) -> None:
        """Something that was shown has run."""
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    @property
    def strip(self) -> Locator:
        """Is the page to be believed?"""
        return self.at(".strip[data-key=strip]")

    @property
    def headline(self) -> Locator:
        """Is it broken?"""
        return self.at(".headline")

    @property
    def detail(self) -> Locator:
        """The transaction that is open."""
        return self.at(".detail")

    def cell(self, name: str) -> Locator:
        """A stage, or the queue before it."""
        return self.at(f'.cell[data-key="{name}"]')

    def table(self, name: str) -> Locator:
        """Rows of ``open``, ``patterns`` or ``rows``."""
        return self.at(f"[data-key={name}] tbody tr")

    def row(self, transaction_id: str, table: str = "rows") -> Locator:
        """The row, or rows, of a transaction."""
        return self.at(f'[data-key={table}] tbody tr[data-open="{transaction_id}"]')

    def shows(self, picture: str, *, full: bool = False) -> None:
        """Leaves a screenshot."""
        self.page.screenshot(path=pictures() / f"{picture}.png", full_page=full)


@contextmanager
def reading(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = DESK,
    zone: str = FAR_AWAY,
    waits_for: str = ".metrics",
    **options: Any,
) -> Iterator[Reader]:
    """Opens the page, and waits for part of it; at the end proves that nothing went elsewhere.

    Args:
        browser: of `chromium`.
        url: of the page.
        size: of the window, in pixels.
        zone: of the reader's clock.
        waits_for: CSS selector.
        options: further ones of Playwright's contexts, such as ``color_scheme="dark"``.
    """
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, timezone_id=zone, **options
    )
    try:
        context.add_init_script(_TELLS_ERRORS)
        page = context.new_page()
        reader = Reader(page)
        context.on("request", lambda one: reader.hosts.add(one.url.split("/")[2]))
        page.on("websocket", lambda one: reader.hosts.add(one.url.split("/")[2]))
        page.on("pageerror", lambda error: reader.errors.append(str(error)))
        page.on("console", lambda one: reader.hears(one.type, one.text))
        page.on("dialog", reader.meets)
        page.goto(url)
        page.locator(waits_for).first.wait_for(timeout=30_000)
        yield reader
        outside = {h for h in reader.hosts if h.rpartition(":")[0] not in LOOPBACK}
        assert not outside, outside
        assert not reader.errors, reader.errors
    finally:
        context.close()


def is_up(url: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = url.rpartition("/")[2].partition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False
