"""What may be shown: the names of variables, and no secret, whoever repeats it.

Secrets are the values of headers, tokens, and users with passwords in URLs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Final, Self
from urllib.parse import unquote

from ..privacy import scrub

JAEGER_URL: Final = "OTEL_TRACKER_JAEGER_URL"
METRICS_URL: Final = "OTEL_TRACKER_COLLECTOR_METRICS_URL"
DASHBOARD_URL: Final = "OTEL_TRACKER_URL"
TOKEN: Final = "OTEL_TRACKER_TOKEN"  # noqa: S105 -- the name of a variable
DEFAULT_METRICS_URL: Final = "http://localhost:8888/metrics"

OTLP: Final = "OTEL_EXPORTER_OTLP_"
OTLP_TRACES: Final = "OTEL_EXPORTER_OTLP_TRACES_"
HEADERS: Final = (f"{OTLP_TRACES}HEADERS", f"{OTLP}HEADERS")
SECRETS: Final = (TOKEN, "OTEL_TRACKER_HASH_KEY")

_SHORTEST_SECRET: Final = 6
"""Shorter values of headers ("true", "eu-1") would take half the report with them."""


def first_set(environ: Mapping[str, str], names: Iterable[str]) -> tuple[str, str]:
    """The first of these variables that has a value, and the value; ("", "") where none has."""
    for name in names:
        value = environ.get(name, "").strip()
        if value:
            return name, value
    return "", ""


def shown_url(url: str) -> str:
    """A URL without user, password and query."""
    url = re.sub(r"(?<=://)[^/@\s]*@|^[^/@\s:]*:[^/@\s]*@", "[redacted]@", url)
    return scrub(re.sub(r"\?.*", "?[redacted]", url, flags=re.DOTALL))


def header_names(value: str) -> list[str]:
    """The names in a value of ``OTEL_EXPORTER_OTLP_HEADERS``."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    return [p.split("=", 1)[0].strip() if "=" in p else "(a part without =)" for p in parts]


def one_line(text: str) -> str:
    """What somebody else said (an exporter, a server, an error), fit to be shown."""
    return scrub(" ".join(text.split()))


class Veil:
    """Takes the secrets of the environment out of what is shown: others may repeat them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        words: set[str] = set()
        for name in HEADERS:
            for part in environ.get(name, "").split(","):
                value = part.split("=", 1)[-1].strip()
                for text in (value, unquote(value)):
                    words.update((text, *text.split()))
        words.update(environ.get(name, "").strip() for name in SECRETS)
        addresses = ""
        for value in environ.values():
            if "://" in value:
                userinfo, _, rest = value.split("://", 1)[1].rpartition("@")
                words.update((userinfo, unquote(userinfo), unquote(userinfo.split(":", 1)[-1])))
                addresses += rest.split("/", 1)[0] + " "
        # "collector.production" is to stay readable with a header x-environment=production.
        kept = (
            word
            for word in words
            if len(word) >= _SHORTEST_SECRET
            and word not in addresses
            and word.lower() not in ("bearer", "digest")
        )
        longest_first = sorted(kept, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """`text` without the environment's secrets."""
        return self._secrets.sub("[redacted]", text)


class Captured(logging.Handler):
    """What the exporter and the tracker log while the block runs; it is not printed."""

    def __init__(self, veil: Veil) -> None:
        super().__init__(logging.WARNING)
        self.veil = veil
        self.messages: list[str] = []
        self._before: list[tuple[logging.Logger, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the message."""
        self.add(record.getMessage())

    def add(self, message: str) -> None:
        """Keeps what an exporter said."""
        # Secrets go before the cut: no half of one is left at the end.
        self.messages.append(one_line(self.veil(message)))

    def __enter__(self) -> Self:
        for name in ("opentelemetry", "otel_tracker", "urllib3", "requests", "grpc"):
            logger = logging.getLogger(name)
            self._before.append((logger, logger.propagate))
            logger.propagate = False
            logger.addHandler(self)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for logger, propagate in self._before:
            logger.removeHandler(self)
            logger.propagate = propagate
