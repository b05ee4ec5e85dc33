"""The service as an ASGI application: `api()` runs by itself, or is mounted in another one.

Written against ASGI itself: a dozen fixed paths need no framework, and an application that mounts
it need not have ours. Whatever takes time is done on threads, so that the event loop is free:
spans on one, in order; beats and reads on two others, which wait for no queue of spans.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import parse_qsl

from ..receiver import JSON, MAX_BODY, EncodingError, TooLargeError
from . import beats, openapi, queries
from .beats import BeatError
from .queries import QueryError, UnknownError
from .service import BodyError, BusyError, Service, unpacked
from .view import View

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger: Final = logging.getLogger("otel_tracker")

IN_FLIGHT: Final = 4 * MAX_BODY
"""Bytes of bodies that are being read or wait for their turn, over all requests."""
WAITING: Final = 256
"""Requests that wait for a thread."""
READING: Final = 32
"""Different questions that wait for an answer: who asks wants to know now."""
BODY_S: Final = 30.0
"""Seconds in which a body must have come."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)
_TRACES: Final = "/v1/traces"
_BEATS: Final = "/v1/beats"
_HEALTHZ: Final = "/healthz"
_OPENAPI: Final = "/openapi.json"
_ONE: Final = "/api/transactions/"

_FILTERS: Final = (
    "user", "conversation", "client", "pipeline", "status", "stage", "text", "since", "until",
)  # fmt: skip
_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "/api/dashboard": (),
    "/api/transactions": (*_FILTERS, "limit", "cursor"),
    "/api/recordings": (*_FILTERS, "limit"),
    "/api/issues": ("limit",),
    "/api/stages": (),
    "/api/workers": (),
    "/api/health": (),
}
"""The paths that read, and the parameters that each takes."""


_STATUS: Final[Mapping[type[Exception], int]] = {
    TooLargeError: 413,
    EncodingError: 415,
    UnknownError: 404,
    QueryError: 400,
    BeatError: 400,
    BodyError: 400,
}


_Question = tuple[str, bytes]
"""A path and its query string."""


class HTTPError(Exception):
    """A request that is answered by an error.

    Attributes:
        status: of HTTP.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)


class _GoneError(Exception):
    """The client went away."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def api(service: Service | None = None, token: str = "", *, hosts: Iterable[str] = ()) -> Api:
    """The service's HTTP interface, as an ASGI application: docs/api.md has the routes.

    Args:
        service: what it serves; a new one by default.
        token: what ``Authorization: Bearer …`` must bring, on everything but ``/healthz``.
        hosts: without a token, names under which it may be asked for beside ``localhost``: a web
            page anywhere can point a name of its own at this machine. ``"*"`` for any, where
            something else guards it.
    """
    return Api(service or Service(), token, hosts)


class Api:
    """An ASGI application. Made by `api`.

    Where a server runs its lifespan, `Service.start` and `close` are called. Where none does
    (mounted in another application), silence is judged with the next request, to the same result.
    """

    def __init__(self, service: Service, token: str = "", hosts: Iterable[str] = ()) -> None:
        self.service = service
        self._token = token.encode()
        self._hosts = frozenset(host.lower() for host in hosts)
        self._intake = ThreadPoolExecutor(1, "otel-tracker-intake")
        self._reads = ThreadPoolExecutor(2, "otel-tracker-reads")
        self._bytes = 0
        self._waiting = 0
        self._asked: dict[_Question, asyncio.Task[_Answer]] = {}
        """Questions that wait for a thread."""
        self._failed = False
        self._is_closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection, as ASGI has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def close(self) -> None:
        """Ends its threads, once they have done what waits. Later requests are answered by 503."""
        self._is_closed = True
        self._intake.shutdown()
        self._reads.shutdown()

    # --- the lifespan -----------------------------------------------------------------------------

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.service.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(self.close)
                await asyncio.to_thread(self.service.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    # --- one request ------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._answer(scope, receive)
        except _GoneError:
            return
        except HTTPError as error:
            answer = _error(error.status, str(error), error.headers)
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("otel_tracker: the dashboard API failed (logged once)")
            answer = _error(500, "a defect of the dashboard service; its log has the traceback")
        if answer.status >= 400:
            self.service.refuse(answer.status)
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    (b"content-type", answer.content_type),
                    (b"content-length", str(len(answer.body)).encode()),
                    *_HEADERS,
                    *answer.headers,
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> _Answer:
        path, method = _path(scope), str(scope["method"])
        headers = _headers(scope["headers"])
        if path == _HEALTHZ:
            _only(method, "GET")
            return _json(openapi.ALIVE)
        self._authorize(headers)
        if path == _TRACES:
            _only(method, "POST")
            return await self._take_spans(headers, receive)
        if path == _BEATS:
            _only(method, "POST")
            return await self._take_beat(headers, receive)
        if path == _OPENAPI:
            _only(method, "GET")
            return _json(openapi.document(scope.get("root_path", "")))
        query = _query_of(path, method, scope.get("query_string", b""))
        return await self._ask((path, scope.get("query_string", b"")), query)

    def _authorize(self, headers: Mapping[bytes, bytes]) -> None:
        if not self._token:
            self._check_host(headers.get(b"host", b""))
            return
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(shown.strip(), self._token):
            raise HTTPError(
                401,
                "show the service's token: Authorization: Bearer <OTEL_TRACKER_TOKEN>",
                [(b"www-authenticate", b"Bearer")],
            )

    def _check_host(self, header: bytes) -> None:
        """Without a token: a page on the web must not reach it by a name that points here."""
        host = name_in_host(header.decode("latin-1"))
        if "*" in self._hosts or host in self._hosts or is_loopback_name(host):
            return
        raise HTTPError(
            403,
            "without a token the service answers to localhost alone; set OTEL_TRACKER_TOKEN, or "
            'name the host: api(hosts=["…"])',
        )

    # --- writing ----------------------------------------------------------------------------------

    async def _take_spans(self, headers: Mapping[bytes, bytes], receive: Receive) -> _Answer:
        kind = _text(headers, b"content-type")
        encoding = _text(headers, b"content-encoding")
        async with self._body(headers, receive, MAX_BODY) as body:
            await self._run(self._intake, self.service.take_spans, body, kind, encoding)
        # An empty ExportTraceServiceResponse, in the form of the request.
        if kind.partition(";")[0].strip().lower() == JSON:
            return _Answer(200, b"{}")
        return _Answer(200, b"", b"application/x-protobuf")

    async def _take_beat(self, headers: Mapping[bytes, bytes], receive: Receive) -> _Answer:
        kind = _text(headers, b"content-type").partition(";")[0].strip().lower()
        if kind != JSON:
            raise HTTPError(415, f"content type {kind[:60]!r} is not taken; use {JSON}")
        encoding = _text(headers, b"content-encoding")
        async with self._body(headers, receive, beats.MAX_BODY) as body:
            return await self._run(self._reads, self._beat, body, encoding)

    def _beat(self, body: bytes, encoding: str) -> _Answer:
        text = unpacked(body, encoding, beats.MAX_BODY)
        try:
            document = json.loads(text, parse_constant=_no_number)
        except RecursionError:
            raise BodyError("the JSON is nested too deep") from None
        except ValueError:
            raise BodyError("the body is no JSON in UTF-8") from None
        return _json(self.service.take_beat(document))

    @contextlib.asynccontextmanager
    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, most: int) -> Any:
        """The body of a request; its bytes count until it is done with."""
        told = headers.get(b"content-length", b"")
        if told.isdigit() and (len(told) > 15 or int(told) > most):
            raise HTTPError(413, f"the body has more than {most} bytes; send smaller batches")
        parts: list[bytes] = []
        size = 0
        try:
            try:
                async with asyncio.timeout(BODY_S):
                    while True:
                        message = await receive()
                        if message["type"] != "http.request":
                            raise _GoneError
                        part = message.get("body", b"")
                        size += len(part)
                        self._bytes += len(part)
                        if size > most:
                            raise HTTPError(
                                413, f"the body has more than {most} bytes; send smaller batches"
                            )
                        if self._bytes > IN_FLIGHT:
                            raise _busy()
                        parts.append(part)
                        if not message.get("more_body", False):
                            break
            except TimeoutError:
                raise HTTPError(408, f"the body did not come within {BODY_S:.0f} s") from None
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self._bytes -= size

    # --- reading ----------------------------------------------------------------------------------

    async def _ask(self, question: _Question, query: Callable[[View], Any]) -> _Answer:
        """The answer; whoever asks the same before it is looked up shares it."""
        asked = self._asked.get(question)
        if asked is None:
            if len(self._asked) >= READING:
                raise _busy()
            asked = asyncio.create_task(self._run(self._reads, self._read, question, query))
            self._asked[question] = asked
            asked.add_done_callback(partial(self._is_answered, question))
        return await asyncio.shield(asked)

    def _is_answered(self, question: _Question, asked: asyncio.Task[_Answer]) -> None:
        if self._asked.get(question) is asked:
            del self._asked[question]
        if not asked.cancelled():
            asked.exception()  # where nobody waits any more, nobody else looks at it

    def _read(self, question: _Question, query: Callable[[View], Any]) -> _Answer:
        self._asked.pop(question, None)  # who asks from now on may want what comes from now on
        return _json(self.service.read(query))

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
        """Does it on a thread of `pool`; what it refuses becomes the answer."""
        if self._is_closed:
            raise HTTPError(503, "the service is shutting down")
        if self._waiting >= WAITING:
            raise _busy()
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args))
        except (BusyError, ValueError, UnknownError) as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self._waiting -= 1


def _refusal(error: Exception) -> HTTPError | None:
    """The answer that an exception means; None where it is a defect."""
    if isinstance(error, BusyError):
        # Not 429: OpenTelemetry's older exporters take that for final, and drop the spans.
        return HTTPError(503, str(error), [(b"retry-after", str(error.retry_s).encode())])
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return HTTPError(status, str(error))
    return None


def _query_of(path: str, method: str, query_string: bytes) -> Callable[[View], Any]:
    """What a GET asks for.

    Raises:
        HTTPError: nothing that there is.
    """
    if path.startswith(_ONE):
        _only(method, "GET")
        _parameters(query_string, ())
        return partial(queries.transaction, text=path.removeprefix(_ONE))
    if path not in _PARAMETERS:
        raise HTTPError(404, f"there is no {path[:100]!r}; {_OPENAPI} has the paths")
    _only(method, "GET")
    parameters = _parameters(query_string, _PARAMETERS[path])
    try:
        return _queries(path, parameters)
    except QueryError as error:
        raise HTTPError(400, str(error)) from None


def _queries(path: str, parameters: Mapping[str, str]) -> Callable[[View], Any]:
    if path == "/api/transactions":
        return partial(queries.transactions, wanted=queries.filter_of(parameters))
    if path == "/api/recordings":
        return partial(queries.recordings, wanted=queries.filter_of(parameters))
    if path == "/api/issues":
        return partial(queries.issues, limit=queries.limit_of(parameters))
    return {
        "/api/dashboard": queries.dashboard,
        "/api/stages": queries.stages,
        "/api/workers": queries.workers,
        "/api/health": queries.health,
    }[path]


def _parameters(query_string: bytes, known: tuple[str, ...]) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, max_num_fields=50,
            encoding="utf-8", errors="strict",
        )  # fmt: skip
    except ValueError:
        raise HTTPError(400, "the query string is not understood") from None
    parameters = {}
    for name, value in pairs:
        if name not in known:
            takes = f"use {', '.join(known)}" if known else "there is none"
            raise HTTPError(400, f"no parameter {name[:60]!r} here; {takes}")
        if name in parameters:
            raise HTTPError(400, f"{name}: given twice; once is enough")
        parameters[name] = value
    return parameters


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """By name; of one that is given twice both, with a comma, as HTTP reads that."""
    headers: dict[bytes, bytes] = {}
    for given, value in pairs:
        name = given.lower()
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _path(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path


def _only(method: str, wanted: str) -> None:
    if method == wanted or (method == "HEAD" and wanted == "GET"):
        return
    raise HTTPError(405, f"use {wanted}", [(b"allow", wanted.encode())])


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")


def name_in_host(header: str) -> str:
    """The name in a ``Host`` header, without its port."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_loopback_name(host: str) -> bool:
    """Whether a name or address, in small letters, stands for this machine."""
    try:
        return host in _LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _busy() -> HTTPError:
    return HTTPError(503, "too much at once; send again in a second", [(b"retry-after", b"1")])


def _json(document: Any) -> _Answer:
    return _Answer(200, json.dumps(document, allow_nan=False, separators=(",", ":")).encode())


def _error(status: int, message: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> _Answer:
    body = json.dumps({"error": {"status": status, "message": message}}).encode()
    return _Answer(status, body, headers=tuple(headers))
