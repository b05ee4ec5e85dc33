"""``otel-tracker dashboard``: the service, and the page as a child process beside it."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

from .app import api
from .journal import JournalInUseError, directory, limit_bytes
from .page_process import PORT as PAGE_PORT
from .page_process import REFRESH_S, PageProcess
from .server import HOST, PORT, is_loopback, run
from .service import Service

_RESTARTS: Final = 3
_STEADY_S: Final = 300.0
"""A page that ran so long and ends is started again as if it were the first time."""
_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """Of the command: where it listens, and whether there is a page."""

    host: str = HOST
    port: int = PORT
    page: bool = True
    page_port: int = PAGE_PORT
    refresh_s: float = REFRESH_S


def serve(options: Options) -> int:
    """Serves until Ctrl-C or SIGTERM.

    Returns:
        The exit status: 1 if it cannot serve, and stderr says why.
    """
    service = Service()
    token = service.settings.token
    if not token and not is_loopback(options.host):
        _complain(
            f"{options.host} can be reached from other machines, and anybody there could read and "
            "write; set OTEL_TRACKER_TOKEN, here and where it is used, or listen on 127.0.0.1"
        )
        return 1
    path = directory()
    try:
        restored = service.open_journal(path, limit_bytes())
    except JournalInUseError as error:
        _complain(str(error))
        return 1
    for note in restored.notes:
        _complain(note)
    keeper: _Keeper | None = None

    def begin(url: str) -> None:
        nonlocal keeper
        _say(
            f"What comes is kept in {path}\n"
            f"The dashboard's service listens at {url}; its paths: {url}/openapi.json\n"
            f"Feed it from your processes: OTEL_TRACKER_URL={url}"
            f"{' and the same OTEL_TRACKER_TOKEN' if token else ''}"
        )
        if options.page:
            keeper = _Keeper(_readable(url), token, options)
            keeper.start()

    try:
        run(api(service, token), options.host, options.port, on_listening=begin)
    except OSError as error:
        _complain(str(error.strerror))
        return 1
    finally:
        if keeper is not None:
            keeper.stop()
        service.close()
    return 0


def _readable(url: str) -> str:
    """Where the page, on this machine, reads the service that listens there."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


class _Keeper:
    """Keeps a page there, without which the inlet goes on as well.

    Args:
        url: the service's.
        token: what both demand.
        options: of the command.
    """

    def __init__(self, url: str, token: str, options: Options) -> None:
        self._page = PageProcess(
            url, token, options.host, options.page_port, refresh_s=options.refresh_s
        )
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="otel-tracker-page", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the page."""
        self._is_over.set()
        self._page.stop()
        self._thread.join(timeout=1.0)

    def _keep(self) -> None:
        tries = 0
        while not self._is_over.is_set():
            began = time.monotonic()
            if not self._run():
                return
            tries = 1 if time.monotonic() - began > _STEADY_S else tries + 1
            if tries > _RESTARTS:
                _complain(
                    "the page ended again and is not started any more; the service goes on, and "
                    f"its API answers. The page's last words:\n{self._page.last_words()}"
                )
                return
            _complain("the page ended; it is started again")

    def _run(self) -> bool:
        """Runs it once; whether it should be started again."""
        try:
            url = self._page.start()
        except (OSError, RuntimeError) as error:
            if self._is_over.is_set():
                return False
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            _complain(f"there is no page: {why}. The service goes on without it (--no-page)")
            return False
        if self._is_over.is_set():
            self._page.stop()
            return False
        _say(f"The page: {url}")
        while self._page.is_running:
            if self._is_over.wait(_LOOK_S):
                return False
        return not self._is_over.is_set()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"otel-tracker: {text}\n")
