"""Runs the page as a child process, so that whoever looks at it never slows the inlet."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final

from .page import TOKEN

HOST: Final = "127.0.0.1"
PORT: Final = 8501
REFRESH_S: Final = 2.0

_START_S: Final = 60.0
"""Streamlit takes seconds to import, and more on a busy machine."""
_STOP_S: Final = 5.0
_HEALTH: Final = "/_stcore/health"
_HOME: Final = Path(__file__).parents[2]


class PageProcess:
    """The page, which reads a dashboard service and is served by a process of its own.

    It ends with this process, however that ends.

    Args:
        api_url: the service.
        token: what the page shows the service and demands of its readers; empty for none.
        host: the address to listen on.
        port: 0 takes a free one.
        refresh_s: seconds between two looks at the service.
    """

    def __init__(
        self,
        api_url: str,
        token: str = "",
        host: str = HOST,
        port: int = PORT,
        refresh_s: float = REFRESH_S,
    ) -> None:
        self._api_url = api_url
        self._token = token
        self._host = host
        self._port = port
        self._refresh_s = refresh_s
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[str] = deque(maxlen=50)

    @property
    def is_running(self) -> bool:
        """Whether it serves."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of its process; None before `start`."""
        return None if self._process is None else self._process.pid

    def start(self) -> str:
        """Starts it.

        Returns:
            Its URL, which answers by now.

        Raises:
            OSError: it cannot listen there, or no process can be started.
            RuntimeError: Streamlit is not installed, or did not come up; it says what to do.
        """
        if find_spec("streamlit") is None:
            raise RuntimeError(
                "streamlit is not installed; run: pip install 'otel-tracker[dashboard]'"
            )
        port = _free(self._host, self._port)
        # The child finds us where we are, and looks nowhere else: `-P`, since a `secrets.py` in the
        # directory where somebody types the command must not stand for Python's own.
        paths = (str(_HOME), os.environ.get("PYTHONPATH", ""))
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        environment.pop(TOKEN, None)
        if self._token:
            environment[TOKEN] = self._token
        process = subprocess.Popen(  # noqa: S603 -- this interpreter, and our own words
            [
                sys.executable, "-P", "-m", "otel_tracker.dashboard.page", "--reads", self._api_url,
                "--host", self._host, "--port", str(port), "--refresh", str(self._refresh_s),
            ],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is for us to pass on
        )  # fmt: skip
        self._process = process
        threading.Thread(target=self._listen, args=(process.stdout,), daemon=True).start()
        atexit.register(self.stop)
        self._wait(process, port)
        name = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{name}:{port}"

    def stop(self) -> None:
        """Ends it, within seconds."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def last_words(self) -> str:
        """The end of what it wrote."""
        return "\n".join(self._said)

    def _listen(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed meanwhile
            for line in pipe:
                self._said.append(line.decode(errors="replace").rstrip())

    def _wait(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + _START_S
        while not _answers(self._host, port):
            if process.poll() is not None:
                raise RuntimeError(f"the page ended at once: {self.last_words() or 'in silence'}")
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the page did not come up within {_START_S:.0f} s")
            time.sleep(0.05)


def _free(host: str, port: int) -> int:
    """That port, if nobody listens there; a free one for 0.

    Raises:
        OSError: it is taken, or is none of ours.
    """
    from .server import listen

    with listen(host, port) as listening:
        return int(listening.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=1.0)
    try:
        connection.request("GET", _HEALTH)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable(host: str) -> str:
    """Where a program on this machine reaches what listens at `host`."""
    if host in ("", "0.0.0.0"):  # noqa: S104 -- compared, not bound
        return "127.0.0.1"
    return "::1" if host == "::" else socket.gethostbyname(host) if ":" not in host else host
