"""Who may ask for a page without a token: this machine's browsers, by its own names."""

from __future__ import annotations

from collections.abc import Container
from typing import Final
from urllib.parse import urlsplit

from ..app import Receive, Scope, Send, is_loopback_name, name_in_host
from ..deadlines import Application

_REFUSAL: Final = (
    b"Without a token the page answers to localhost alone; set OTEL_TRACKER_TOKEN where the "
    b"dashboard is started."
)


class LoopbackOnly:
    """Refuses whoever asks by another name, or from another site's page.

    A page anywhere on the web can point a name of its own at this machine, or open a socket to it.
    Streamlit lets the first pass, and asks a server on the internet before it refuses the second.

    Args:
        app: what is guarded.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection, as ASGI has it."""
        if scope["type"] not in ("http", "websocket") or _is_local(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"x-content-type-options", b"nosniff")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})


class ReadOnly:
    """Refuses what would leave something here: Streamlit takes files from any session.

    Args:
        app: what is guarded.
        but: paths that are let through.
    """

    def __init__(self, app: Application, but: Container[str] = ()) -> None:
        self._app = app
        self._but = but

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection, as ASGI has it."""
        writes = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if not writes or scope["path"] in self._but:
            await self._app(scope, receive, send)
            return
        headers = [(b"content-length", b"0"), (b"allow", b"GET, HEAD, OPTIONS")]
        await send({"type": "http.response.start", "status": 405, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _is_local(scope: Scope) -> bool:
    headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = [name_in_host(value) for name, value in headers if name == b"host"]
    origins = [_name_in_origin(value) for name, value in headers if name == b"origin"]
    return len(hosts) == 1 and all(is_loopback_name(name) for name in (*hosts, *origins))


def _name_in_origin(origin: str) -> str:
    try:
        return (urlsplit(origin).hostname or "").lower()
    except ValueError:
        return ""
