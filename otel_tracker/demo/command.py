"""``otel-tracker demo``: a run, its report, and then the page for as long as somebody looks."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from otel_tracker.dashboard.server import on_signals

from . import report
from .dashboard import Dashboard, DashboardError
from .processes import Services
from .run import Recording, Run, run

URL_ENV: Final = "OTEL_TRACKER_URL"
"""A dashboard service of the user's own: the demo then starts none."""

_LOOK_S: Final = 0.5


def run_demo(
    recordings: Sequence[Recording], directory: Path | None, *, as_json: bool, once: bool
) -> int:
    """Runs the demo.

    Args:
        recordings: what to send.
        directory: where its files go; a new temporary one by default.
        as_json: the dashboard's data on stdout, and nothing else; ends by itself.
        once: ends by itself; otherwise Ctrl-C or SIGTERM ends it, once the report is printed.

    Returns:
        The exit status: 0 done, 1 not done, or not as it should be (stderr says why).

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came before the report.
    """
    directory = directory or Path(tempfile.mkdtemp(prefix="otel-tracker-demo-"))
    try:
        with _ended_by_sigterm():
            return _Demo(recordings, directory, as_json=as_json, once=once or as_json).run()
    except (OSError, sqlite3.Error, DashboardError) as error:
        _say(str(error))
        return 1


class _Demo:
    """One run, from the first process to the last."""

    def __init__(
        self, recordings: Sequence[Recording], directory: Path, *, as_json: bool, once: bool
    ) -> None:
        self._recordings = recordings
        self._directory = directory
        self._as_json = as_json
        self._once = once
        # Taken away: this process looks on, and the others are told by us.
        self._url = os.environ.pop(URL_ENV, "").strip()
        self._dashboard: Dashboard | None = None
        self._status = 0

    def run(self) -> int:
        """The exit status."""
        if not self._url:
            self._dashboard = Dashboard(self._directory / "journal", page=not self._once)
        with self._dashboard or nullcontext(), ExitStack() as bars:
            if self._dashboard is not None:
                self._url = self._dashboard.url
            on_progress = bars.enter_context(report.progress_bars(self._recordings))

            def stay(result: Run, services: Services) -> None:
                bars.close()
                self._report(result)
                if not result.trouble:
                    self._idle(services)

            result = run(
                self._recordings, self._directory, on_progress,
                url=self._url, stay=None if self._once else stay,
            )  # fmt: skip
        if self._once:
            self._report(result)
        return self._status

    def _report(self, result: Run) -> None:
        if self._dashboard is not None:
            result.journal = self._dashboard.journal
        if self._as_json:
            report.print_report(result, sys.stderr, dashboard=False)
            _tell(json.dumps(result.as_json(), indent=2))
        else:
            report.print_report(result, sys.stdout, dashboard=True)
        for complaint in result.complaints():
            _say(complaint)
            self._status = 1

    # --- as long as somebody looks ----------------------------------------------------------------

    def _idle(self, services: Services) -> None:
        is_over = threading.Event()
        with on_signals(is_over.set):  # an end that was asked for is no failure
            self._invite(services)
            living = services.living
            while not is_over.is_set():
                services.hear(_LOOK_S)  # and passes on what they log
                gone = {pid: living[pid] for pid in living.keys() - services.living.keys()}
                for pid, name in gone.items():
                    _say(f"the process {name} ({pid}) ended; its loss is shown within 15 s")
                    del living[pid]
                if self._dashboard is not None:
                    try:
                        self._dashboard.check()
                    except DashboardError as error:
                        _say(str(error))
                        self._status = 1
                        return

    def _invite(self, services: Services) -> None:
        page, why = "", ""
        if self._dashboard is not None:
            page, why = self._dashboard.page_url(), self._dashboard.no_page
        names: dict[str, list[str]] = {}
        for pid, name in services.living.items():
            names.setdefault(name, []).append(str(pid))
        processes = ", ".join(f"{name} {' '.join(pids)}" for name, pids in names.items())
        if page:
            where = f"The page is at {page}"
        elif self._dashboard is None:
            where = f"The processes feed the dashboard service {self._url}; its page shows them"
        else:
            where = f"There is no page: {why}\nThe data is at {self._url}/api/dashboard"
        _tell(
            f"\n{where}\n"
            "These processes stay up and idle: end one with kill -9, and it is shown as lost:\n"
            f"  {processes}\n"
            "Ctrl-C ends it"
        )


def _say(sentence: str) -> None:
    sys.stderr.write(f"otel-tracker: {sentence}\n")
    sys.stderr.flush()


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM does what Ctrl-C does: all processes end, in order."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
