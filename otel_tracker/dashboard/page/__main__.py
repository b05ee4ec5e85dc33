"""``python -m otel_tracker.dashboard.page``: serves the page. `page_process.py` starts it."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from . import ADDRESS, REFRESH, TOKEN
from .guard import LoopbackOnly, ReadOnly

_INLETS = ("/v1/traces", "/v1/beats")
"""Paths of the service: whoever takes the page's port for it is told."""


def main() -> None:
    """Serves until it is ended, or until whoever started it is gone."""
    parser = argparse.ArgumentParser(prog="python -m otel_tracker.dashboard.page")
    parser.add_argument("--reads", required=True, help="URL of the dashboard service")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--refresh", type=float, default=2.0, help="seconds between two looks")
    arguments = parser.parse_args()
    os.environ[ADDRESS] = arguments.reads
    os.environ[REFRESH] = str(arguments.refresh)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import streamlit as st
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def misdirected(_: Request) -> JSONResponse:
        message = (
            f"this is the page; send to the service itself: OTEL_TRACKER_URL={arguments.reads}"
        )
        return JSONResponse({"error": {"status": 421, "message": message}}, 421)

    inlets = [Route(path, misdirected, methods=["GET", "POST"]) for path in _INLETS]
    guards = [Middleware(ReadOnly, but=_INLETS)]
    if not os.environ.get(TOKEN):
        guards.insert(0, Middleware(LoopbackOnly))
    st.App(Path(__file__).with_name("script.py"), routes=inlets, middleware=guards).run(
        config={
            "server.address": arguments.host,
            "server.port": arguments.port,
            "server.headless": True,
            # Its check of origins asks a server on the internet for this machine's address. Without
            # a token `LoopbackOnly` stands before it; with one, every session has to show that.
            "server.enableCORS": False,
            "server.enableXsrfProtection": False,
            # Nothing is watched: a watcher would throw modules out while they are in use.
            "server.fileWatcherType": "none",
            "server.runOnSave": False,
            # No "magic", which would show the script's own strings.
            "runner.magicEnabled": False,
            "browser.gatherUsageStats": False,
            "client.toolbarMode": "minimal",
            # What went wrong in the page is in its log, and no reader's business.
            "client.showErrorDetails": "none",
            # Where it listens everywhere, its welcome asks the internet for this machine's address.
            "logger.hideWelcomeMessage": True,
            # What a config.toml of the user's own Streamlit project may say otherwise.
            "global.developmentMode": False,
            "server.baseUrlPath": "",
            "server.sslCertFile": "",
            "server.sslKeyFile": "",
        }
    )


def _end_with_parent() -> None:
    """Standard input ends when whoever started it does, however that came."""
    while os.read(sys.stdin.fileno(), 1024):  # no buffer, whose lock would abort an exit
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
