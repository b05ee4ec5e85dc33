"""Reading over HTTP: bounded in time and size, without redirects, without proxy to loopback."""

from __future__ import annotations

import ipaddress
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from .background import within

MOST_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """An answer. Its body is cut at `MOST_BYTES`."""

    status: int
    content_type: str
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to somebody else."""

    def redirect_request(self, *_args: Any) -> None:
        return None


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def get(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Page:
    """What is at `url`, with whatever status.

    Raises:
        OSError: it cannot be read within `timeout_s` seconds; the message says why.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OSError("it is no http:// or https:// address")
    handlers: list[Any] = [_NoRedirects()]
    if is_loopback(parts.hostname):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 -- see above

    def read() -> Page:
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                kind = answer.headers.get_content_type()
                return Page(answer.status, kind, answer.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                kind = error.headers.get_content_type()
                return Page(error.code, kind, error.read(MOST_BYTES))
        except urllib.error.URLError as error:
            reason = error.reason
            raise (reason if isinstance(reason, OSError) else OSError(str(reason))) from None
        except (HTTPException, ValueError) as error:
            raise OSError(f"what answers there does not speak HTTP ({error!r})") from None

    return within(timeout_s, read)


def why(error: OSError) -> str:
    """An error of a connection in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    return error.strerror or str(error) or type(error).__name__
