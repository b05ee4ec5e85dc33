"""The dashboard service that the demo's processes feed: ``otel-tracker dashboard`` as a child.

It ends with the demo, however that ends: the child's standard input is a pipe from the demo.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final, Self

from .processes import interrupt_held_back

PORT: Final = 8500
PAGE_PORT: Final = 8501

_LISTENS: Final = re.compile(r"service listens at (http://\S+?);?(?:\s|$)")
_PAGE: Final = re.compile(r"^The page: (http://\S+)")
_START_WITHIN_S: Final = 30.0
_PAGE_WITHIN_S: Final = 60.0
_END_WITHIN_S: Final = 8.0
_GOODBYE_S: Final = 2.0
"""The demo was killed: its processes end meanwhile, and have something to tell."""
_NO_PAGE: Final = "streamlit is not installed; run: pip install 'otel-tracker[dashboard]'"


class DashboardError(RuntimeError):
    """The service does not run; the message says why."""


class Dashboard:
    """The service with a journal of its own, and the page, as a context manager.

    Args:
        journal: the directory of its journal.
        page: with the page.

    Attributes:
        url: of the service, once it is entered.
        no_page: why there is no page, with what helps; empty where one was asked for and is there.
    """

    def __init__(self, journal: Path, *, page: bool) -> None:
        self.journal = journal
        self.url = ""
        self.no_page = _NO_PAGE if page and find_spec("streamlit") is None else ""
        self._has_page = page and not self.no_page
        self._found = {"service": "", "page": ""}
        self._said = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        port, page_port = _free(PORT), _free(PAGE_PORT)
        command = [sys.executable, "-m", __name__, "--port", str(port)]
        command += ["--page-port", str(page_port)] if self._has_page else ["--no-page"]
        environment = {**os.environ, "OTEL_TRACKER_JOURNAL_DIR": str(self.journal)}
        with interrupt_held_back():
            process = subprocess.Popen(  # noqa: S603 - itself
                command, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        self._process = process
        try:
            self._reader = threading.Thread(target=self._read, args=(process.stdout or (),))
            self._reader.start()
            self.url = self._wait_for("service", _START_WITHIN_S)
            if not self.url:
                raise DashboardError(f"the dashboard service did not start{self._how()}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join()
        if process.stdout is not None:
            process.stdout.close()

    def page_url(self) -> str:
        """Where the page is, once it answers; empty where there is none, and `no_page` says why."""
        if not self._has_page:
            return ""
        url = self._wait_for("page", _PAGE_WITHIN_S)
        if not url and not self.no_page:
            self.no_page = f"it did not start{self._how()}; what it wrote above says why"
        return url

    def check(self) -> None:
        """Sees whether the service runs.

        Raises:
            DashboardError: it does not.
        """
        if self._process is not None and self._process.poll() is not None:
            raise DashboardError(f"the dashboard service is gone{self._how()}")

    def _how(self) -> str:
        code = None if self._process is None else self._process.poll()
        return "" if code is None else f" (exit code {code})"

    def _read(self, out: Iterable[str]) -> None:
        """What it prints, line by line, until it ends."""
        for line in out:
            for what, pattern in (("service", _LISTENS), ("page", _PAGE)):
                match = pattern.search(line)
                if match and not self._found[what]:
                    with self._said:
                        self._found[what] = match[1]
                        self._said.notify_all()

    def _wait_for(self, what: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        with self._said:
            while not self._found[what] and time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    break
                self._said.wait(0.1)
            return self._found[what]


def _free(port: int) -> int:
    """`port`, or 0 where another program listens there."""
    from otel_tracker.dashboard.server import listen

    try:
        listen("127.0.0.1", port).close()
    except OSError:
        return 0
    return port


# --- in the child ---------------------------------------------------------------------------------


def _end_with(lifeline: IO[bytes]) -> None:
    while lifeline.read(1):
        pass
    time.sleep(_GOODBYE_S)
    # To the main thread, which sleeps in its event loop: nothing else would wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    sys.argv[1:1] = ["dashboard"]
    runpy.run_module("otel_tracker", run_name="__main__", alter_sys=True)
