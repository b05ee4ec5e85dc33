"""This process's own dashboard, served as JSON from a thread beside its work: ``serve=``.

What the API shows leaves the process, so it is cleaned as spans are: whoever reads it sees what a
dashboard service would have been sent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from .dashboard import queries
from .dashboard.app import Api, Receive, Scope, Send, api
from .dashboard.queries import Filter
from .dashboard.service import Service
from .dashboard.view import View
from .privacy import Privacy
from .settings import Settings
from .state import State
from .store import Store

if TYPE_CHECKING:
    from .dashboard.server import Serving

T = TypeVar("T")

logger: Final = logging.getLogger("otel_tracker")

_STOP_S: Final = 2.0
_HASH_DIGITS: Final = 32

_TEXTS: Final = frozenset({"issue", "issues", "error", "error_message", "reason", "pattern"})
_IDS: Final = frozenset(
    {"client_id", "conversation_id", "conversation_ids", "audio_uuid", "audio_uuids"}
)
_USERS: Final = frozenset({"user_id", "user_ids"})
_METADATA: Final = "otel_tracker.metadata."


class OwnService(Service):
    """A service over a tracker's own store.

    Args:
        settings: the tracker's.
        store: likewise.
        health: the tracker's own health.
        add_stacks: adds to stalled rows where their threads hang.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        health: Callable[[], Mapping[str, Any]],
        add_stacks: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        super().__init__(settings, store=store)
        self._health = health
        self._add_stacks = add_stacks

    def read(self, query: Callable[[View], T]) -> T:
        """As `Service.read`, with what only the tracker knows, and cleaned as for export."""
        if isinstance(query, partial) and isinstance(query.keywords.get("wanted"), Filter):
            query = partial(query, wanted=self._meant(query.keywords["wanted"]))
        answer: Any = super().read(query)
        if query is queries.dashboard:
            self._add_stacks(answer["stalled"])
            self._add_health(answer["health"])
        elif query is queries.health:
            self._add_health(answer)
        return cast(T, cleaned(answer, self.settings.privacy))

    def _add_health(self, health: dict[str, Any]) -> None:
        own = self._health()
        for name in ("disabled", "export", "publisher"):
            health[name] = own[name]
        health["problems"] = dict(Counter(health["problems"]) + Counter(own["problems"]))

    def _meant(self, wanted: Filter) -> Filter:
        """The filter for a user who is shown as a hash."""
        if len(wanted.user) != _HASH_DIGITS:
            return wanted
        user = self.settings.privacy.user

        def find(state: State) -> str:
            return next((one for one in state.users if user(one)[1] == wanted.user), wanted.user)

        return replace(wanted, user=self.store.read(find))


def cleaned(value: Any, privacy: Privacy, key: str = "") -> Any:
    """An answer of the API as it may leave the process.

    Args:
        value: plain data.
        privacy: what may leave.
        key: under which it stands.
    """
    if isinstance(value, dict):
        if key == "metadata":
            return {
                name.removeprefix(_METADATA): one for name, one in privacy.attributes(value).items()
            }
        return {name: cleaned(one, privacy, name) for name, one in value.items()}
    if isinstance(value, list):
        return [cleaned(one, privacy, key) for one in value]
    if isinstance(value, str):
        if key in _TEXTS:
            return privacy.message(value)
        if key in _USERS:
            return privacy.user(value)[1]
        if key in _IDS:
            return privacy.identifier(value)
    return value


class OwnDashboard:
    """Serves a tracker's own dashboard where its settings say. Never raises.

    Args:
        open_store: gives the store as a service may read it.
        health: the tracker's own health.
        add_stacks: adds to stalled rows where their threads hang.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        health: Callable[[], Mapping[str, Any]],
        add_stacks: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._open_store = open_store
        self._health = health
        self._add_stacks = add_stacks
        self._lock = threading.RLock()
        self._serving: Serving | None = None
        self._service: Service | None = None
        self._api: Api | None = None
        self._stands: tuple[str, str] = ("", "")
        """Address and token with which it serves, or tried to."""
        self._url = ""
        self._error = ""

    def use(self, settings: Settings) -> None:
        """Begins to serve, moves, or ends, as the settings say."""
        wanted = (settings.serve.strip(), settings.token)
        with self._lock:
            if self._service is not None:
                self._service.settings = settings
            if self._serving is not None and self._serving.is_running and wanted == self._stands:
                return
            self.stop()
            self._stands = wanted
            try:
                self._error = self._start(settings) if wanted[0] else ""
            except OSError as error:
                self._error = error.strerror or str(error)
            except Exception as error:
                self._error = str(error) or type(error).__name__
            if self._error:
                logger.warning("otel_tracker: the dashboard is not served: %s", self._error)

    def _start(self, settings: Settings) -> str:
        """Begins to serve. Why it does not, or nothing."""
        try:
            from .dashboard.server import Serving, is_loopback
        except ImportError as error:
            return f"{error.name or error} is missing; run: pip install 'otel-tracker[service]'"
        address = _address(settings.serve)
        if address is None:
            return f"serve={settings.serve!r} is no address; use one such as 127.0.0.1:8500"
        host, port = address
        if not settings.token and not is_loopback(host):
            return (
                f"{host} can be reached from other machines, and anybody there could read and "
                "write; set OTEL_TRACKER_TOKEN, here and where it is used, or use 127.0.0.1"
            )
        service = OwnService(settings, self._open_store(), self._health, self._add_stacks)
        own = api(service, settings.token)  # once ended it cannot begin again: each time another

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            # At the interpreter's exit a lifespan could not end any more: no event loop can start
            # a thread there. So the life of both is looked after here; raising is how ASGI
            # says that an application has no lifespan.
            if scope["type"] == "lifespan":
                raise NotImplementedError
            await own(scope, receive, send)

        serving = Serving(application, host, port)
        self._url = serving.start()
        service.start()
        self._serving, self._service, self._api = serving, service, own
        logger.info("otel_tracker: the dashboard is served at %s", self._url)
        return ""

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """Ends it; its port is free then."""
        with self._lock:
            serving, self._serving = self._serving, None
            service, self._service = self._service, None
            own, self._api = self._api, None
            self._url, self._error = "", "it has ended"
        if serving is None or service is None or own is None:
            return
        deadline = time.monotonic() + timeout_s
        if not serving.stop(timeout_s):
            logger.warning("otel_tracker: the dashboard's server took over %g s to end", timeout_s)

        def close() -> None:
            own.close()
            service.close()

        closing = threading.Thread(target=close, name="otel-tracker-close", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and with it those threads
            closing.start()
            closing.join(max(0.1, deadline - time.monotonic()))

    def after_fork(self) -> None:
        """In a forked child, which does not serve."""
        self._lock = threading.RLock()
        self._serving = self._service = self._api = None
        self._url, self._error = "", "its parent process serves"

    def is_at(self, url: str) -> bool:
        """Whether `url` leads here."""
        if not self._url:
            return False
        try:
            own, other = urlsplit(self._url), urlsplit(url)
            return own.port == other.port and other.hostname in (own.hostname, *_HERE)
        except ValueError:
            return False

    def state(self) -> dict[str, Any]:
        """For ``health.serve``: ``url``, or the ``error`` that it is not served for."""
        serving = self._serving
        if serving is not None and not serving.is_running:
            return {"url": None, "error": "its server ended; the log has why"}
        return {"url": self._url or None, "error": None if self._url else self._error or None}


_HERE: Final = ("localhost", "127.0.0.1", "::1")


def _address(text: str) -> tuple[str, int] | None:
    """Host and port; None where it is not both. A port alone is on this machine."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    if not host or "/" in host or not (port.isascii() and port.isdigit() and len(port) < 6):
        return None
    return host, int(port)
