"""Where reads are answered from: this process's store, or a dashboard service elsewhere.

A page in a container of its own has an empty store, and would show zeros. With
``OTEL_TRACKER_READ_URL`` its reads ask the dashboard service instead, and have the same shapes.
docs/reading.md has what differs.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import queue
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any, Final, Generic, NoReturn, Protocol, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from . import views
from .ids import format_id
from .model import (
    MEMORY_SESSION,
    PipelineEvent,
    PipelineStage,
    SystemMetrics,
    Transaction,
    TransactionStatus,
    parse_event,
)
from .privacy import Privacy, scrub, text_of
from .publisher import Endpoint
from .sessions import SessionBook
from .state import State
from .store import Store

T = TypeVar("T")

logger: Final = logging.getLogger("otel_tracker")

TIMEOUT_S: Final = 1.0
"""One read in all: name, connection, every byte of the answer."""
PAUSE_S: Final = 1.0
"""After a failure reads answer at once; so much later one has it tried again, in the background."""
MAX_ANSWER: Final = 8 << 20
"""Bytes of all answers to one read."""
MOST_ROWS: Final = 500
"""Rows of one read: what the service gives in one page."""

_ANSWER_S: Final = TIMEOUT_S - 0.05  # so that the thread can say what was wrong
_DETAILS_S: Final = 0.5  # for single transactions of a list; the others come without their events
_KEPT: Final = 16 << 20  # bytes of last good answers
_QUIET_S: Final = 60.0  # between two warnings, where it comes and goes
_TRANSACTIONS: Final = "/api/transactions"


class Reader(Protocol):
    """Answers what the tracker's read methods ask. Copies; never raises."""

    def dashboard(self) -> dict[str, Any]:
        """`get_dashboard_data()`."""

    def transaction(self, trace_id: int) -> Transaction | None:
        """One transaction; None if it is not kept."""

    def user_transactions(self, user_id: str, limit: int) -> list[Transaction]:
        """The newest of one user, newest first."""

    def recent_transactions(self, limit: int) -> list[dict[str, Any]]:
        """Rows of the newest, newest first, with whole ids."""

    def metrics(self) -> SystemMetrics:
        """The totals."""

    def session_summary(self, audio_uuid: str) -> dict[str, Any] | None:
        """The newest memory session of a recording; None if none is kept."""

    def recent_sessions(self, limit: int) -> list[dict[str, Any]]:
        """Rows of the newest memory sessions, newest first."""

    def session_stats(self) -> dict[str, Any]:
        """Totals over all memory sessions."""


class StoreReader:
    """Answers from this process's store.

    Args:
        store: what is read.
        sessions: what the store does not hold of memory sessions.
        finish: adds to a dashboard what the tracker knows beside the store.
    """

    def __init__(
        self, store: Store, sessions: SessionBook, finish: Callable[[dict[str, Any]], None]
    ) -> None:
        self._store = store
        self._finish = finish
        self.session_summary = sessions.summary_of
        self.recent_sessions = sessions.recent
        self.session_stats = sessions.stats

    def now(self) -> views.Now:
        """The moment of a view."""
        store, clock = self._store, self._store.clock
        return views.Now(
            clock.monotonic_ns(), clock.time_ns(), store.started_ns, store.started_wall_ns
        )

    def dashboard(self) -> dict[str, Any]:
        """As `Reader`."""
        data = self._store.read(lambda state: views.dashboard(state, self.now()))
        self._finish(data)
        return data

    def transaction(self, trace_id: int) -> Transaction | None:
        """As `Reader`."""

        def copy(state: State) -> Transaction | None:
            tx = state.transactions.get(trace_id)
            return None if tx is None else views.transaction(tx)

        return self._store.read(copy)

    def user_transactions(self, user_id: str, limit: int) -> list[Transaction]:
        """As `Reader`."""
        return self._store.read(lambda state: views.user_transactions(state, user_id, limit))

    def recent_transactions(self, limit: int) -> list[dict[str, Any]]:
        """As `Reader`."""
        return self._store.read(lambda state: views.recent_transactions(state, limit))

    def metrics(self) -> SystemMetrics:
        """As `Reader`."""
        return self._store.read(lambda state: views.metrics(state, self.now()))


# --- one exchange ---------------------------------------------------------------------------------


class ReadError(Exception):
    """Nothing that can be shown came; the message says why, and what to do."""


class _AbsentError(Exception):
    """The service says that it does not keep that."""


class _Incoming(io.RawIOBase):
    """What comes on a socket, until a deadline, however slowly it drips."""

    def __init__(self, one: _Timed) -> None:
        self._one = one

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._one.in_time().recv_into(buffer)


class _Timed:
    """The part of a socket that `http.client` uses; each operation has what is left of the time."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left

    def in_time(self) -> socket.socket:
        self._sock.settimeout(self._left())
        return self._sock

    def sendall(self, data: bytes) -> None:
        self.in_time().sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self))

    def close(self) -> None:
        """Nothing: `http.client` closes before the answer is read; `_Line` does it after."""


class _Line:
    """A connection to a dashboard service, for some requests and until a deadline.

    Args:
        endpoint: the service.
        timeout_s: for all of it.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        import http.client  # most processes never read from elsewhere

        self._deadline = time.monotonic() + timeout_s
        self._bytes = 0
        self._parts = parts = urlsplit(endpoint.url)
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._headers = {"accept": "application/json", **endpoint.headers}
        self._http = http.client.HTTPConnection(parts.hostname or "", self._port)
        self._http.auto_open = 0  # it would wait as long as it likes
        self._broken = http.client.HTTPException
        self._sock: socket.socket | None = None

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            TimeoutError: none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def close(self) -> None:
        """Hangs up."""
        self._http.close()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connect(self) -> socket.socket:
        """To the first address of the name that answers."""
        host, failure = self._parts.hostname or "", OSError("its name has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, self._port, type=socket.SOCK_STREAM
        ):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self.left())
                sock.connect(address)
                if self._parts.scheme == "https":
                    import ssl

                    sock.settimeout(self.left())
                    return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise failure

    def get(self, path: str, **parameters: object) -> bytes:
        """The body of an answer.

        Raises:
            ReadError: it is none.
            _AbsentError: it says that there is no such thing.
            OSError: nobody answers, or not in time.
        """
        target = self._parts.path.rstrip("/") + path
        if parameters:
            target += "?" + urlencode(parameters, errors="replace")
        if self._http.sock is None:  # the first, or it said that it would hang up
            self.close()
            self._sock = self._connect()
            self._http.sock = _Timed(self._sock, self.left)
        left = MAX_ANSWER - self._bytes
        try:
            self._http.request("GET", target, headers=self._headers)
            response = self._http.getresponse()
            told = response.length or 0
            body = b"" if told > left else response.read(left + 1)
        except self._broken as error:
            raise ReadError(f"what answers there speaks no HTTP ({type(error).__name__})") from None
        if told > left or len(body) > left:
            raise ReadError(f"the answer has more than {MAX_ANSWER >> 20} MiB")
        self._bytes += len(body)
        if response.status != 200:
            _refuse(response.status, body)
        return body


def _refuse(status: int, body: bytes) -> NoReturn:
    """Says what an answer that is no success means."""
    message = ""
    with contextlib.suppress(ReadError, KeyError, TypeError):
        message = scrub(text_of(_json(body)["error"]["message"], 200))
    if status == 404 and message:
        raise _AbsentError
    if not message and status in (401, 403):
        message = "set OTEL_TRACKER_TOKEN to what the service has"
    raise ReadError(f"it answers {status}: {message or 'is that the URL of a dashboard service?'}")


def _json(text: bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ReadError(
            "the answer is no JSON: is that the service's URL (port 8500), not its page's?"
        ) from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _reason(error: BaseException) -> str:
    """Why nothing came, for people."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, ReadError):
        return str(error)
    if isinstance(error, OSError):
        text = scrub(error.strerror or str(error) or type(error).__name__)
        return text[:1].lower() + text[1:]
    return f"the answer is not what a dashboard service says ({type(error).__name__})"


# --- what is shown where nothing is known ---------------------------------------------------------


class Unknown(float):
    """A number that is not known: a NaN that any format takes, and shows as ``?``.

    A page formats what it is given; ``f"{nan:,d}"`` would raise in it.
    """

    __slots__ = ()

    def __new__(cls) -> Self:
        """There is nothing to give."""
        return super().__new__(cls, math.nan)

    def __format__(self, spec: str, /) -> str:
        return "?"

    def __str__(self) -> str:
        return "?"

    def __reduce__(self) -> tuple[type[Unknown], tuple[()]]:
        return Unknown, ()


UNKNOWN: Final = Unknown()

_NUMBERS: Final = (
    "uptime_hours", "total_transactions", "active_transactions", "completed_transactions",
    "failed_transactions", "stalled_transactions", "active_websockets", "total_audio_chunks",
    "total_transcriptions", "total_memories",
)  # fmt: skip
_ROW: Final = ("id", "user_id", "status", "current_stage", "created_at", "issue")
_ISSUE: Final = ("timestamp", "transaction_id", "user_id", "issue")
_STATS: Final = (
    "total_sessions", "successful_sessions", "failed_sessions", "success_rate",
    "total_transcripts", "total_memories", "avg_processing_time_seconds", "memories_per_session",
)  # fmt: skip
_ABSENT: Final = (
    "user_email", "full_conversation", "transcript_count", "transcript_segments",
    "memory_extractions", "extraction_attempts",
)  # fmt: skip
"""Of a memory session what stays in the process that had it."""


def _no_dashboard() -> dict[str, Any]:
    return {
        "system_metrics": {**dict.fromkeys(_NUMBERS, UNKNOWN), "last_activity": None},
        "recent_transactions": [],
        "recent_issues": [],
        "active_users": UNKNOWN,
        "issue_patterns": [],
        "stalled": [],
        "waiting": [],
        "stages": {},
        "health": {"last_success": None, "dropped": {}},
    }


# --- the reader -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Good:
    """The last good answer to one read."""

    texts: Sequence[bytes]
    at: float
    """Monotonic seconds."""


@dataclass(slots=True)
class _Outage:
    """The service is away."""

    error: str
    since: float
    """Monotonic seconds."""
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Answer(Generic[T]):
    """What a read comes to."""

    value: T | None
    """None: nothing was ever read."""
    age_s: float | None = None
    error: str = ""
    """Why it is not the newest."""


class RemoteReader:
    """Answers from a dashboard service, in the shapes of `StoreReader`.

    A read takes `TIMEOUT_S` at most. Once one has failed, reads answer at once from what was read
    last, until a try in the background gets through.

    Args:
        endpoint: the service.
        privacy: says under which names users are known there.
        here: this process's own health.
    """

    def __init__(
        self, endpoint: Endpoint, privacy: Privacy, here: Callable[[], dict[str, Any]] = dict
    ) -> None:
        self._endpoint = endpoint
        self._url = scrub(endpoint.url)
        self._privacy = privacy
        self._here = here
        self._good: OrderedDict[str, _Good] = OrderedDict()
        self._outage: _Outage | None = None
        self._warned_at = -math.inf
        self._is_told = False
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: a thread that is not there may have held the lock."""
        self._lock = threading.RLock()  # a signal handler may read, too
        self._is_trying = False

    # --- reads ------------------------------------------------------------------------------------

    def dashboard(self) -> dict[str, Any]:
        """As `Reader`; ``health.read`` says how old it is, and so does an issue where it is old."""
        answer = self._dashboard()
        data = answer.value or _no_dashboard()
        data["health"]["read"] = {
            "url": self._url,
            "as_of": data.get("as_of"),
            "stale_seconds": answer.age_s,
            "error": answer.error or None,
        }
        data["health"]["here"] = self._here()
        if answer.error:
            issues = data["recent_issues"]
            data["recent_issues"] = [*issues[1 - views.RECENT :], self._issue(answer)]
        return data

    def metrics(self) -> SystemMetrics:
        """As `Reader`."""
        data = self._dashboard().value
        row = (data or _no_dashboard())["system_metrics"]
        as_of = datetime.now(UTC) if data is None else datetime.fromisoformat(data["as_of"])
        hours, last = row["uptime_hours"], row["last_activity"]
        return SystemMetrics(
            system_start_time=as_of if data is None else as_of - timedelta(hours=hours),
            uptime_seconds=UNKNOWN if data is None else hours * 3600,
            total_transactions=row["total_transactions"],
            active_transactions=row["active_transactions"],
            completed_transactions=row["completed_transactions"],
            failed_transactions=row["failed_transactions"],
            stalled_transactions=row["stalled_transactions"],
            active_websockets=row["active_websockets"],
            total_audio_chunks_processed=row["total_audio_chunks"],
            total_transcriptions=row["total_transcriptions"],
            total_memories_created=row["total_memories"],
            last_activity=None if last is None else datetime.fromisoformat(last),
        )

    def transaction(self, trace_id: int) -> Transaction | None:
        """As `Reader`."""
        path = f"{_TRANSACTIONS}/{quote(format_id(trace_id))}"

        def fetch(line: _Line) -> list[bytes]:
            try:
                return [line.get(path)]
            except _AbsentError:
                return []

        def build(texts: Sequence[bytes]) -> Transaction | None:
            return _transaction(_json(texts[0])) if texts else None

        return self._ask(path, fetch, build).value

    def user_transactions(self, user_id: str, limit: int) -> list[Transaction]:
        """As `Reader`; at most 500, and the events of as many as half a second allows."""
        user = self._privacy.user(user_id)[1]
        rows = self._rows({"user": user}, limit).value
        return [_transaction(row) for row in rows or ()]

    def recent_transactions(self, limit: int) -> list[dict[str, Any]]:
        """As `Reader`; at most 500."""
        count = min(limit, MOST_ROWS)
        if count < 1:
            return []

        def build(texts: Sequence[bytes]) -> list[dict[str, Any]]:
            rows = [{key: row[key] for key in _ROW} for row in _json(texts[0])["transactions"]]
            return [{**row, "user_id": row["user_id"][-6:]} for row in rows]

        fetch = _getting(_TRANSACTIONS, limit=count)
        return self._ask(f"recent {count}", fetch, build).value or []

    def session_summary(self, audio_uuid: str) -> dict[str, Any] | None:
        """As `Reader`, without what stays in the process that had the session: ``absent``."""
        wanted = self._privacy.identifier(audio_uuid)
        if not wanted:
            return None
        rows = self._rows(
            {"conversation": wanted, "pipeline": MEMORY_SESSION.name}, 1,
            lambda row: bool(row["audio_uuid"] == wanted),
            of_how_many=MOST_ROWS,
        ).value  # fmt: skip
        if not rows:
            return None
        nothing: dict[str, Any] = {
            "transcript_segments": [], "memory_extractions": [], "extraction_attempts": [],
        }  # fmt: skip
        return {**_session(rows[0]), **nothing}

    def recent_sessions(self, limit: int) -> list[dict[str, Any]]:
        """As `Reader`; at most 500."""
        return [_session(row) for row in self._sessions(limit).value or ()]

    def session_stats(self) -> dict[str, Any]:
        """As `Reader`, of the newest 500 sessions."""
        rows = self._sessions(MOST_ROWS, details=False).value
        count = Counter(_went_well(row) for row in rows or ())
        total, done = count.total(), count[True]
        stats: dict[str, Any] = dict.fromkeys(_STATS, UNKNOWN)
        if rows is not None:
            stats["total_sessions"] = total
            stats["successful_sessions"] = done
            stats["failed_sessions"] = count[False]
            stats["success_rate"] = 100.0 * done / total if total else 0.0
        return stats

    # --- what they are made of --------------------------------------------------------------------

    def _dashboard(self) -> _Answer[dict[str, Any]]:
        def build(texts: Sequence[bytes]) -> dict[str, Any]:
            return _checked(_json(texts[0]))

        return self._ask("dashboard", _getting("/api/dashboard"), build)

    def _sessions(self, limit: int, *, details: bool = True) -> _Answer[list[dict[str, Any]]]:
        return self._rows({"pipeline": MEMORY_SESSION.name}, limit, details=details)

    def _rows(
        self,
        parameters: Mapping[str, str],
        limit: int,
        takes: Callable[[Mapping[str, Any]], bool] = bool,
        *,
        of_how_many: int = 0,
        details: bool = True,
    ) -> _Answer[list[dict[str, Any]]]:
        """The newest rows that `takes` takes, each with all that is known of it while time allows.

        Args:
            parameters: of the request.
            limit: how many.
            takes: what the request cannot ask for.
            of_how_many: rows that are looked at; `limit` by default.
            details: False for the rows alone.
        """
        count = min(limit, MOST_ROWS)
        if count < 1:
            return _Answer([])

        def rows_of(text: bytes) -> list[dict[str, Any]]:
            return [row for row in _json(text)["transactions"] if takes(row)][:count]

        def fetch(line: _Line) -> list[bytes]:
            text = line.get(_TRANSACTIONS, **parameters, limit=of_how_many or count)
            return [text, *_details(line, (row["id"] for row in rows_of(text) if details))]

        def build(texts: Sequence[bytes]) -> list[dict[str, Any]]:
            whole = [_json(text) if text else None for text in texts[1:]]
            rows = [full or row for row, full in zip_longest(rows_of(texts[0]), whole)]
            for row in rows:
                _transaction(row)  # raises for what is none
            return rows

        key = f"rows {count} {of_how_many} {details} {sorted(parameters.items())}"
        return self._ask(key, fetch, build)

    def _issue(self, answer: _Answer[Any]) -> dict[str, Any]:
        """What an old page can show of it, which does not know ``health.read``."""
        shown = (
            "nothing is known; see OTEL_TRACKER_READ_URL"
            if answer.age_s is None
            else f"what is shown is {answer.age_s:.0f} s old"
        )
        return {
            "timestamp": datetime.now(UTC).isoformat(),
            "transaction_id": "",
            "user_id": "",
            "issue": f"Dashboard service {self._url} cannot be read ({answer.error}): {shown}",
            "resolved": False,
            "error": answer.error,
        }

    # --- asking -----------------------------------------------------------------------------------

    def _ask(
        self,
        key: str,
        fetch: Callable[[_Line], list[bytes]],
        build: Callable[[Sequence[bytes]], T],
    ) -> _Answer[T]:
        """What `build` makes of the newest answer that is to be had in time.

        Args:
            key: names the read.
            fetch: asks the service.
            build: makes the result of what came, anew each time: a caller may change it.
        """
        with self._lock:
            outage = self._outage
            if outage is None:
                error = ""
            else:
                error = outage.error
                if time.monotonic() >= outage.retry_at and not self._is_trying:
                    self._is_trying = True
                    self._start(lambda: self._try_again(key, fetch, build))
        if outage is None:
            error = self._try_now(key, fetch, build)
        with self._lock:
            good = self._good.get(key)
        if good is None:
            return _Answer(None, error=error)
        age_s = time.monotonic() - good.at if error else 0.0
        return _Answer(build(good.texts), age_s, error)

    def _try_now(
        self,
        key: str,
        fetch: Callable[[_Line], list[bytes]],
        build: Callable[[Sequence[bytes]], object],
    ) -> str:
        """Waits for an answer. Why there is none, or nothing."""
        done: queue.SimpleQueue[str] = queue.SimpleQueue()
        if not self._start(lambda: done.put(self._try(key, fetch, build))):
            return self._failed("this process can start no thread")
        try:
            return done.get(timeout=TIMEOUT_S)
        except queue.Empty:
            return self._failed(_reason(TimeoutError()))

    def _try_again(
        self,
        key: str,
        fetch: Callable[[_Line], list[bytes]],
        build: Callable[[Sequence[bytes]], object],
    ) -> None:
        try:
            self._try(key, fetch, build)
        finally:
            self._is_trying = False

    def _start(self, work: Callable[[], None]) -> bool:
        try:
            threading.Thread(target=work, name="otel-tracker-read", daemon=True).start()
        except RuntimeError:
            self._is_trying = False
            return False
        return True

    def _try(
        self,
        key: str,
        fetch: Callable[[_Line], list[bytes]],
        build: Callable[[Sequence[bytes]], object],
    ) -> str:
        try:
            if self._endpoint.flaw:
                raise ReadError(f"OTEL_TRACKER_READ_URL leads nowhere; {self._endpoint.flaw}")
            with contextlib.closing(_Line(self._endpoint, _ANSWER_S)) as line:
                texts = fetch(line)
            build(texts)
        except _AbsentError:
            return self._failed("it answers 404: is that the URL of a dashboard service?")
        except Exception as error:
            return self._failed(_reason(error))
        self._succeeded(key, texts)
        return ""

    def _failed(self, error: str) -> str:
        now = time.monotonic()
        with self._lock:
            outage = self._outage
            if outage is None:
                outage = self._outage = _Outage(error, now)
                self._is_told = False
            outage.error, outage.retry_at = error, now + PAUSE_S
            tells = not self._is_told and now - self._warned_at > _QUIET_S
            if tells:
                self._is_told, self._warned_at = True, now
        if tells:
            _log(
                "otel_tracker: the dashboard service %s cannot be read (%s); reads answer what was "
                "read last, and health.read says so; see docs/reading.md",
                self._url,
                error,
            )
        return error

    def _succeeded(self, key: str, texts: Sequence[bytes]) -> None:
        now = time.monotonic()
        with self._lock:
            outage, self._outage = self._outage, None
            is_told, self._is_told = self._is_told, False
            self._good[key] = _Good(texts, now)
            self._good.move_to_end(key)
            while sum(len(t) for one in self._good.values() for t in one.texts) > _KEPT:
                self._good.popitem(last=False)
        if outage is not None and is_told:
            _log(
                "otel_tracker: the dashboard service %s is read again after %.0f s",
                self._url,
                now - outage.since,
            )


def _log(message: str, *args: object) -> None:
    with contextlib.suppress(Exception):  # a handler of the application's may raise
        logger.warning(message, *args)


def _getting(path: str, **parameters: object) -> Callable[[_Line], list[bytes]]:
    return lambda line: [line.get(path, **parameters)]


def _details(line: _Line, ids: Iterable[str]) -> Iterator[bytes]:
    """All that is known of each, one after the other; nothing once half of the time is over."""
    for one in ids:
        if line.left() < TIMEOUT_S - _DETAILS_S:
            return
        try:
            yield line.get(f"{_TRANSACTIONS}/{quote(one)}")
        except _AbsentError:  # let go meanwhile
            yield b""


# --- what the service says, as the tracker has it -------------------------------------------------


def _checked(document: Any) -> dict[str, Any]:
    """A dashboard with every key that a page subscripts.

    Raises:
        ReadError: it is none.
    """
    try:
        metrics = document["system_metrics"]
        for name in _NUMBERS:
            _need(metrics[name], int, float)
        if metrics["last_activity"] is not None:
            datetime.fromisoformat(metrics["last_activity"])
        datetime.fromisoformat(document["as_of"])
        _need(document["active_users"], int)
        for name, keys in (("recent_transactions", _ROW), ("recent_issues", _ISSUE)):
            _need(document[name], list)
            for row in document[name]:
                for key in keys:
                    if not (key == "issue" and row[key] is None):
                        _need(row[key], str)
        for name in ("issue_patterns", "stalled", "waiting"):
            _need(document[name], list)
        for name in ("stages", "health"):
            _need(document[name], dict)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ReadError("the answer is no dashboard's; are service and page one version?") from None
    return dict(document)


def _need(value: object, *kinds: type) -> None:
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError


def _transaction(row: Mapping[str, Any]) -> Transaction:
    """A copy of what ``GET /api/transactions/{id}`` says; of a row of the list, without events."""
    stage = parse_event(None if row["current_stage"] == "none" else row["current_stage"])
    return Transaction(
        transaction_id=row["id"],
        user_id=row["user_id"],
        client_id=row["client_id"] or "",
        conversation_id=row["conversation_id"],
        created_at=datetime.fromisoformat(row["created_at"]),
        updated_at=datetime.fromisoformat(row["updated_at"]),
        events=tuple(_events(row)),
        status=TransactionStatus(row["status"]),
        current_stage=None if stage is None else stage.event,
        issue=row["issue"],
        pipeline=row["pipeline"] or "",
    )


def _events(row: Mapping[str, Any]) -> Iterator[PipelineEvent]:
    of_attempt = {
        (attempt["stage"], at): attempt["metadata"]
        for attempt in row.get("attempts", ())
        for at in (attempt["started_at"], attempt["ended_at"])
        if at is not None
    }
    for event in row.get("events", ()):
        found = parse_event(event["stage"])
        if found is None:
            raise ReadError("an event without a name")
        metadata = of_attempt.get((found.stage, event["timestamp"]), {})
        yield PipelineEvent(
            timestamp=datetime.fromisoformat(event["timestamp"]),
            stage=found.event,
            success=event["success"],
            error_message=event["error_message"],
            metadata={**metadata, **event["metadata"]},
        )


def _session(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a memory session, from its transaction."""
    started = completed = success = error = None
    if "events" not in row:  # a row of the list: how it came to this is not known
        success = _went_well(row)
        completed = None if success is None else _epoch(row["updated_at"])
        error = (row["error"] or row["issue"]) if success is False else None
    for event in row.get("events", ()):
        if event["stage"] == PipelineStage.MEMORY_STARTED.value:
            started = _epoch(event["timestamp"])
        elif event["stage"] == PipelineStage.MEMORY_COMPLETED.value:
            completed = _epoch(event["timestamp"])
            success, error = event["success"], event["error_message"]
    return {
        "session_id": row["id"],
        "audio_uuid": row["audio_uuid"] or "",
        "client_id": row["client_id"] or "",
        "user_id": row["user_id"],
        "user_email": None,
        "session_start_time": _epoch(row["created_at"]),
        "session_end_time": completed,
        "transcript_count": None,
        "full_conversation": None,
        "memory_processing_started": started,
        "memory_processing_completed": completed,
        "memory_processing_success": success,
        "memory_processing_error": error,
        "absent": list(_ABSENT),
    }


def _went_well(row: Mapping[str, Any]) -> bool | None:
    """How a session ended; None where it has not. A good end rests before it counts as one."""
    if row["status"] == TransactionStatus.FAILED.value:
        return False
    is_over = row["current_stage"] == PipelineStage.MEMORY_COMPLETED.value
    return True if is_over or row["status"] == TransactionStatus.COMPLETED.value else None


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
