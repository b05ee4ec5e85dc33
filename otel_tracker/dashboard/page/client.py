"""Reads the dashboard service's API for all who look at the page."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

TIMEOUT_S: Final = 3.0
"""For one answer. The service answers within milliseconds; more means that it hangs."""
MOST_BYTES: Final = 32 << 20
"""Of an answer: a transaction of 200 spans with long stacks has a few."""
_PAUSE_S: Final = 1.0
"""After a failure nothing is asked for so long: the page must not hang at every element."""
_KEPT: Final = 200  # answers
_TURNS: Final = 8  # questions that are asked at a time


class ReadError(Exception):
    """The service did not answer as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said to one question, as far as is known."""

    data: Any = None
    """None if it never answered."""
    fetched: float = 0.0
    """When, by this process's monotonic clock."""
    wall: float = 0.0
    """When, seconds since 1970."""
    error: str = ""
    """Why it did not answer just now; empty while it does."""
    failing_since: float = 0.0
    """Seconds since 1970, of the first failure after `data` came."""
    status: int = 200
    """The HTTP status of a refusal."""


class Client:
    """Asks one service, each question once for all who look.

    Args:
        url: the service's.
        token: what it wants to see.
        fresh_s: an answer stays good for so long.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        fresh_s: float = 0.5,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a service; use http://127.0.0.1:8500")
        self.url = url.rstrip("/")
        self._is_tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._fresh_s = fresh_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._turns = [threading.Lock() for _ in range(_TURNS)]
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._failed_at = -_PAUSE_S
        self._error = ""

    def get(self, path: str, **query: str) -> Answer:
        """The newest answer to ``GET path?query``: a fresh one, or the last good one and why.

        One thread asks a question at a time. A refusal (404 and the like) has no data and its
        `status`.
        """
        question = quote(path)
        if query:
            question += "?" + urlencode(query)
        asked = self._clock()
        with self._turns[hash(question) % _TURNS]:
            known = self._known(question)
            # What came while this one waited for its turn is new enough: where the service is slow
            # all would wait for each other otherwise.
            if known.data is not None and not known.error and asked - known.fetched < self._fresh_s:
                return known
            if self._clock() - self._failed_at < _PAUSE_S:
                answer = self._failed(known, self._error)
            else:
                answer = self._ask(question, known)
            self._keep(question, answer)
            return answer

    def _known(self, question: str) -> Answer:
        with self._lock:
            return self._answers.get(question, Answer())

    def _keep(self, question: str, answer: Answer) -> None:
        with self._lock:
            self._answers[question] = answer
            self._answers.move_to_end(question)
            if len(self._answers) > _KEPT:
                self._answers.popitem(last=False)

    def _ask(self, question: str, known: Answer) -> Answer:
        try:
            status, document = self._fetch(question)
        except ReadError as error:
            self._failed_at, self._error = self._clock(), str(error)
            return self._failed(known, self._error)
        if status >= 500:
            return self._failed(known, _message(document, status))
        if status != 200:
            # A refusal is an answer about this question alone.
            return Answer(error=_message(document, status), status=status, wall=time.time())
        return Answer(document, self._clock(), time.time())

    @staticmethod
    def _failed(known: Answer, error: str) -> Answer:
        return replace(known, error=error, failing_since=known.failing_since or time.time())

    def _fetch(self, question: str) -> tuple[int, Any]:
        kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_s)
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request("GET", self._prefix + question, headers=headers)
            response = connection.getresponse()
            return response.status, self._document(response)
        except (OSError, http.client.HTTPException) as error:
            reason = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
            raise ReadError(reason or type(error).__name__) from error
        finally:
            connection.close()

    def _document(self, response: http.client.HTTPResponse) -> Any:
        deadline = self._clock() + self._timeout_s
        parts: list[bytes] = []
        size = 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise ReadError(f"its answer has more than {MOST_BYTES} bytes")
            if self._clock() > deadline:
                raise ReadError("it did not answer in time")
        try:
            return json.loads(b"".join(parts))
        except ValueError:
            raise ReadError("what answers there is no dashboard service") from None


def _message(document: Any, status: int) -> str:
    if isinstance(document, Mapping) and isinstance(document.get("error"), Mapping):
        return str(document["error"].get("message", ""))[:500] or f"status {status}"
    return f"status {status}"
