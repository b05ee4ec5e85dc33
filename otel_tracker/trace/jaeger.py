"""A transaction in Jaeger, read over HTTP. What answers is distrusted: it may be no Jaeger."""

from __future__ import annotations

import http.client
import io
import ipaddress
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from ..stalls import Patience
from .found import Catch, Found
from .pieces import PIECE, BrokenError, Document
from .records import take_document
from .wanted import NotFoundError, Wanted
from .words import harmless

ANSWER_AT_MOST: Final = 64 << 20
"""Bytes of Jaeger's answer."""
CONNECT_S: Final = 10.0
"""Longest silence of Jaeger."""
ANSWER_S: Final = 60.0
"""Longest that its whole answer may take."""
_SETTING: Final = "give its address by --jaeger or OTEL_TRACKER_JAEGER_URL"


def read_jaeger(wanted: Wanted, url: str, patience: Patience) -> Found:
    """What Jaeger has of the wanted transaction.

    Args:
        wanted: its whole id.
        url: where Jaeger's UI is.
        patience: how long silence is normal.

    Raises:
        NotFoundError: it is not there, or what answers is no Jaeger.
    """
    if not wanted.is_whole:
        raise NotFoundError(
            f"Jaeger finds a transaction by its whole id, and {wanted.text} is a part of one; give "
            "all of it, or read files by --file"
        )
    base = _base_of(url)
    catch = Catch(wanted)
    # Unadjusted: no clocks moved, no duplicates renamed. The first spelling is that of Jaeger
    # before 2.16.
    query = "raw_traces=true&rawTraces=true"
    body = _get(base, f"{base}/api/v3/traces/{wanted.digits}?{query}")
    if body is not None:
        try:
            take_document(Document(io.BytesIO(body), ANSWER_AT_MOST), catch)
        except BrokenError as error:
            raise NotFoundError(
                f"what {base} answered is no trace ({error}): is it Jaeger 2? {_SETTING}"
            ) from error
    found = catch.found("jaeger", patience, f"{base}/trace/{wanted.digits}")
    if found is None:
        raise NotFoundError(
            f"Jaeger at {base} has no transaction {wanted.text}: none of its spans has ended and "
            "come yet, it was not sampled, or it is older than Jaeger keeps; for another Jaeger "
            f"{_SETTING}, and `otel-tracker doctor` tests the way there"
        )
    return found


def _base_of(url: str) -> str:
    shown = harmless(url)[:200]
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host or not _is_plain(url):
        raise NotFoundError(
            f"{shown!r} is no address of Jaeger; {_SETTING}, as in http://localhost:16686"
        )
    if "@" in parts.netloc:
        raise NotFoundError(
            "a name and a password in Jaeger's address are not supported; "
            "use an address that needs none"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _is_plain(url: str) -> bool:
    return url.isprintable() and " " not in url.strip()


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Speaks HTTP alone: follows no redirection, and asks no proxy for what is on this machine."""
    opener = urllib.request.OpenerDirector()
    proxies: dict[str, str] | None = {} if _is_loopback(urlsplit(url).hostname or "") else None
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),  # a proxy's own protocol
    ):
        opener.add_handler(handler)
    return opener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _get(base: str, url: str) -> bytes | None:
    """The body of Jaeger's answer; None where it says that there is no such trace."""
    try:
        with _opener(url).open(url, timeout=CONNECT_S) as answer:
            return _read_answer(base, answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404 and _is_jaegers(error.read(PIECE)):
                return None
            moved = error.headers.get("Location")
            why = f" (moved to {harmless(moved)[:200]})" if moved else ""
            raise NotFoundError(
                f"{base} answered {error.code}{why} to a request of Jaeger's API; {_SETTING}"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        why = harmless(str(reason)) or type(error).__name__
        raise NotFoundError(
            f"Jaeger does not answer at {base} ({why}); start it, or {_SETTING}; "
            "--file reads a dump or what a Collector wrote instead"
        ) from error


def _is_jaegers(body: bytes) -> bool:
    with suppress(ValueError, RecursionError):
        answer = json.loads(body)
        return isinstance(answer, dict) and isinstance(answer.get("error"), dict)
    return False


def _read_answer(base: str, answer: Any) -> bytes:
    deadline = time.monotonic() + ANSWER_S
    body = bytearray()
    while piece := answer.read1(PIECE):
        body += piece
        if len(body) > ANSWER_AT_MOST:
            raise NotFoundError(f"the trace at {base} is larger than {ANSWER_AT_MOST >> 20} MiB")
        if time.monotonic() > deadline:
            raise NotFoundError(f"Jaeger at {base} took longer than {ANSWER_S:.0f} s to answer")
    return bytes(body)
