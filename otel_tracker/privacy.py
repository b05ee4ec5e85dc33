"""What may leave the process, and how it is cleaned (pure).

Two steps. `plain` makes any value plain data of bounded size, for the process's own memory and
dumps. `attributes` makes of plain data what a span may carry: numbers and booleans as they are,
strings scrubbed and cut, nothing under a sensitive name. Free text can hold what no scrubber knows
(a name in an error message): ``OTEL_TRACKER_EXPORT_TEXT=false`` keeps all of it in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

AttributeValue = str | bool | int | float | list[str] | list[bool] | list[int] | list[float]

MAX_EXPORTED_TEXT: Final = 256
"""Longest string that leaves, in characters."""
MAX_EXPORTED_KEYS: Final = 64
"""Most metadata keys on one span: the SDK drops the oldest attributes beyond 128, ours first."""
MAX_KEY: Final = 64
MAX_KEPT_TEXT: Final = 8_192
"""Longest string that is kept in the process, in characters."""
MAX_KEPT_ITEMS: Final = 100
MAX_KEPT_DEPTH: Final = 5
MAX_KEPT_NODES: Final = 1_000
"""Most values within one metadata value."""
_NUMBERS: Final = frozenset({bool, int, float})
_MAX_INT: Final = 1 << 63  # OTLP carries 64-bit integers

SENSITIVE_KEYS: Final = frozenset(
    [
        "access_token",
        "api_key",
        "apikey",
        "auth",
        "authorization",
        "bearer",
        "client_secret",
        "completion",
        "completions",
        "content",
        "cookie",
        "cookies",
        "credential",
        "credentials",
        "email",
        "e_mail",
        "email_address",
        "full_conversation",
        "full_name",
        "input",
        "llm_response",
        "memory",
        "memory_text",
        "memories",
        "message",
        "messages",
        "mail",
        "name",
        "output",
        "passphrase",
        "passwd",
        "password",
        "phone",
        "phone_number",
        "private_key",
        "prompt",
        "prompts",
        "prompt_used",
        "extraction_prompt",
        "refresh_token",
        "response",
        "secret",
        "segment",
        "segments",
        "session_token",
        "summary",
        "text",
        "token",
        "tokens",
        "transcript",
        "transcript_text",
        "transcription",
        "transcripts",
        "user_email",
        "user_name",
        "username",
    ]
)
"""Metadata under exactly these names (in lower case) stays in the process."""

_SCRUB: Final = re.compile(
    r"""
      (?P<email>[\w.%+\-']{1,64}(?:@|%40)[\w\-]{1,63}(?:\.[\w\-]{1,63}){1,8})
    | (?P<userinfo>(?<=://)[^\s/]{1,256}@)
    | (?P<jwt>\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{4,}(?:\.[A-Za-z0-9_\-]*)?)
    | (?P<known>\b(?:sk|pk|rk|ghp|gho|ghu|ghs|ghr|github_pat|glpat|xox[abprs]|AKIA|ASIA|AIza|hf|dg)
        [_\-]?[A-Za-z0-9_\-]{14,})
    | (?P<scheme>\b(?:bearer|basic|digest|token)\s+)(?P<after_scheme>[A-Za-z0-9+/=._~\-]{8,})
    | (?P<pair>["'\\]{0,8}\b[A-Za-z_\-]{0,32}(?:password|passwd|passphrase|pwd|secret|token|cookie
        |api[_\-]?key|apikey|authorization|access[_\-]?key|private[_\-]?key|credential)s?
        ["'\\]{0,8}\s{0,3}[=:]\s{0,3})
        (?P<after_pair>\\{0,4}"[^"]*(?:"|$)|\\{0,4}'[^']*(?:'|$)
        |(?:(?:bearer|basic|digest)\s+)?[^\s,;&"']+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SCRUBBED: Final = 4_096
_LONGEST_SECRET: Final = 640
"""In characters; what the pattern above takes for an address is no longer."""
_REDACTED: Final = "[redacted]"
_LOOKS_LIKE_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")

_RESERVED_PREFIXES: Final = (
    "otel_tracker.",
    "otel.",
    "user.",
    "gen_ai.",  # turns Jaeger's page into its GenAI view, which hides errors
    "service.",
    "exception.",
)
_RESERVED_KEYS: Final = frozenset({"error", "error.type", "span.kind", "internal.span.format"})


# --- plain data -----------------------------------------------------------------------------------


def plain_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Metadata as plain data: str keys; None, bool, int, float, str, lists and dicts of them."""
    result: dict[str, Any] = {}
    for key, value in metadata.items():
        if len(result) >= MAX_KEPT_ITEMS:
            result["…"] = f"{len(metadata) - MAX_KEPT_ITEMS} more"
            break
        if type(key) is str and _is_plain(key) and _is_plain(value):
            result[key] = value
        else:
            result[_plain_key(key)] = plain(value)
    return result


def _is_plain(value: Any) -> bool:
    """Whether it may be kept as it is: what nearly all metadata is, so it is asked first."""
    kind = type(value)
    if kind is str:
        return len(value) <= MAX_KEY and value.isascii()
    return kind in _NUMBERS and -_MAX_INT <= value < _MAX_INT


def merged_metadata(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Plain metadata that adds up over calls: the newer value wins, the oldest names go."""
    merged = {**old, **new}
    for key in list(merged)[: max(0, len(merged) - MAX_KEPT_ITEMS)]:
        del merged[key]
    return merged


def plain(value: Any, depth: int = 0, budget: list[int] | None = None) -> Any:
    """Any value as plain data of bounded size. Never raises.

    What has no plain form, or raises while it is looked at, becomes its class's name in angle
    brackets: a `repr` may raise, run long or tell secrets. So does all that comes after the first
    `MAX_KEPT_NODES` values within it: lists that share items unfold to very many.
    """
    budget = [MAX_KEPT_NODES] if budget is None else budget
    budget[0] -= 1
    try:
        return _plain(value, depth, budget) if budget[0] >= 0 else f"<{type(value).__name__}>"
    except Exception:
        return f"<{type(value).__name__}>"


def _plain(value: Any, depth: int, budget: list[int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return plain(value.value, depth + 1, budget) if depth < MAX_KEPT_DEPTH else value.name
    if isinstance(value, int):
        return int(value) if -_MAX_INT <= value < _MAX_INT else _big_int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, str):
        return _clean_text(str.__str__(value)[: MAX_KEPT_TEXT + 1], MAX_KEPT_TEXT)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{type(value).__name__} of {len(value)} bytes>"
    if type(value) in (datetime, date, time):
        return value.isoformat()
    if type(value) in (UUID, Decimal, timedelta) or isinstance(value, PurePath):
        return str(value)
    if isinstance(value, BaseException):
        return exception_text(value)
    if depth >= MAX_KEPT_DEPTH:
        return f"<{type(value).__name__}>"
    if isinstance(value, dict):
        return _plain_dict(value, depth, budget)
    if isinstance(value, list | tuple | set | frozenset):
        items = [
            plain(item, depth + 1, budget)
            for item, _ in zip(value, range(MAX_KEPT_ITEMS), strict=False)
        ]
        return items if len(value) <= MAX_KEPT_ITEMS else [*items, f"<{len(value)} items in all>"]
    return f"<{type(value).__name__}>"


def _plain_dict(value: dict[Any, Any], depth: int, budget: list[int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in value.items():
        if len(result) >= MAX_KEPT_ITEMS:
            result["…"] = f"{len(value) - MAX_KEPT_ITEMS} more"
            break
        result[_plain_key(key)] = plain(item, depth + 1, budget)
    return result


def _plain_key(key: Any) -> str:
    if isinstance(key, str):
        return _clean_text(str.__str__(key), MAX_KEY)
    if key is None or isinstance(key, bool | int | float):
        return str(key)[:MAX_KEY]
    return f"<{type(key).__name__}>"


def _big_int(value: int) -> str:
    # str() of a huge int is slow, and an error beyond 4,300 digits.
    return str(int(value)) if value.bit_length() <= 256 else f"<int of {value.bit_length()} bits>"


def _clean_text(text: str, limit: int = MAX_KEPT_TEXT) -> str:
    """`text` cut at `limit`, without lone surrogates: those cannot be encoded at export."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


def text_of(value: object, limit: int = MAX_KEPT_TEXT) -> str:
    """A message or an id as text, whatever the caller gave; empty for None."""
    if value is None:
        return ""
    made = plain(value)
    return _clean_text(made if isinstance(made, str) else str(made), limit)


def id_text(value: object) -> str:
    """An id as text: a user's may be an ObjectId, a UUID or a number. Empty for None."""
    if isinstance(value, str):
        return _clean_text(str.__str__(value), MAX_EXPORTED_TEXT)
    if value is None:
        return ""
    try:
        return _clean_text(str(value), MAX_EXPORTED_TEXT)
    except Exception:  # its own __str__ raised: the id is lost, the transaction is not
        return f"<{type(value).__name__}>"


def exception_text(error: BaseException, depth: int = 0) -> str:
    """``str(error)``, or the class's name where that is empty or raises.

    A group says what is in it: by itself it only says how many there are.
    """
    try:
        text = str(error)
    except Exception:
        text = ""
    if isinstance(error, BaseExceptionGroup) and depth < 3:
        first = error.exceptions[:3]
        inner = [f"{type(e).__name__}: {exception_text(e, depth + 1)}" for e in first]
        text = "; ".join([text, *inner])
    return _clean_text(text, MAX_KEPT_TEXT) or type(error).__name__


def error_type_of(error: BaseException) -> str:
    """The class of an exception for ``error.type``: with its module, unless that is `builtins`."""
    kind = type(error)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


# --- what leaves ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Privacy:
    """The rules of one tracker.

    Args:
        export_text: False keeps all free text in the process: messages, string metadata, stacks.
        sensitive_keys: names whose values stay in, in lower case.
        hash_key: keys the hash of user ids that look like e-mail addresses, so that nobody can try
            addresses against it.
    """

    export_text: bool = True
    sensitive_keys: frozenset[str] = SENSITIVE_KEYS
    hash_key: str = ""

    def attributes(self, metadata: Mapping[str, Any]) -> dict[str, AttributeValue]:
        """Plain metadata as span attributes: cleaned, and without what must not leave."""
        result: dict[str, AttributeValue] = {}
        for key, value in metadata.items():
            cleaned: AttributeValue | None
            if type(value) in _NUMBERS:
                cleaned = value
            elif value is None or key.lower() in self.sensitive_keys:
                continue
            else:
                cleaned = self._value(value)
            if cleaned is not None:
                if len(result) >= MAX_EXPORTED_KEYS:
                    break
                result[attribute_key(key)] = cleaned
        return result

    def both(self, metadata: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, AttributeValue]]:
        """Metadata as plain data, and what of it may leave: one pass where all of it is simple."""
        plain: dict[str, Any] = {}
        exported: dict[str, AttributeValue] = {}
        if len(metadata) > MAX_EXPORTED_KEYS:
            plain = plain_metadata(metadata)
            return plain, self.attributes(plain)
        for key, value in metadata.items():
            name = _simple_key(key) if type(key) is str else ""
            if not name or not _is_plain(value):
                plain = plain_metadata(metadata)
                return plain, self.attributes(plain)
            plain[key] = value
            if type(value) is not str:
                exported[name] = value
            elif self.export_text and key.lower() not in self.sensitive_keys:
                exported[name] = _scrub_short(value)
        return plain, exported

    def message(self, text: str) -> str:
        """An error message as it may leave."""
        return scrub(text) if self.export_text else ""

    def identifier(self, text: str) -> str:
        """A client's, conversation's or recording's id as it may leave."""
        return scrub(text)

    def user(self, user_id: str) -> tuple[str, str]:
        """The attribute and value for a user id: ``user.id``, or ``user.hash`` for an e-mail."""
        if "@" in user_id and _LOOKS_LIKE_EMAIL.search(user_id):
            digest = hashlib.blake2b(
                user_id.strip().lower().encode(), key=self.hash_key.encode()[:64], digest_size=16
            )
            return "user.hash", digest.hexdigest()
        return "user.id", scrub(user_id)

    def _value(self, value: Any) -> AttributeValue | None:
        if isinstance(value, str):
            return scrub(value) if self.export_text else None
        if isinstance(value, list) and value:
            for kind in (bool, int, float):
                if all(type(item) is kind for item in value):
                    return value
            if not self.export_text:
                return None
            if all(isinstance(item, str) for item in value):
                return [scrub(item) for item in value]
        if not self.export_text or not value:
            return None
        return scrub(json.dumps(self._clean(value), ensure_ascii=False))

    def _clean(self, value: Any) -> Any:
        """Nested data, each string scrubbed before JSON escapes its quotes."""
        if isinstance(value, str):
            return scrub(value)
        if isinstance(value, dict):
            return {
                scrub(key): self._clean(item)
                for key, item in value.items()
                if type(item) in _NUMBERS or key.lower() not in self.sensitive_keys
            }
        if isinstance(value, list):
            return [self._clean(item) for item in value]
        return value


def with_extra_keys(keys: Iterable[str]) -> frozenset[str]:
    """The sensitive names and the user's own."""
    return SENSITIVE_KEYS | {key.strip().lower() for key in keys if key.strip()}


@lru_cache(maxsize=1024)
def attribute_key(key: str) -> str:
    """The attribute for a metadata name: itself, unless that name means something else."""
    if key in _RESERVED_KEYS or key.startswith(_RESERVED_PREFIXES) or not key:
        return f"otel_tracker.metadata.{scrub(key)}"
    return scrub(key)


@lru_cache(maxsize=1024)
def _simple_key(key: str) -> str:
    """The attribute for a metadata name that is kept as it is; "" for one that is not."""
    return attribute_key(key) if _is_plain(key) else ""


def scrub(text: str) -> str:
    """`text` without e-mail addresses and credentials, cut at 256 characters."""
    if len(text) <= MAX_EXPORTED_TEXT:
        return _scrub_short(text)
    # Scrub before the cut, so that no half of a secret is left at its end. The scrub is bounded by
    # a cut of its own, behind which the last word goes: it may be half a secret.
    head = text[:_SCRUBBED]
    if len(text) > _SCRUBBED:
        head = head.rsplit(None, 1)[0][: _SCRUBBED - _LONGEST_SECRET]
    return _cut(_scrub_text(head), MAX_EXPORTED_TEXT)


@lru_cache(maxsize=4096)
def _scrub_short(text: str) -> str:
    return _cut(_scrub_text(text), MAX_EXPORTED_TEXT)


def _scrub_text(text: str) -> str:
    return _SCRUB.sub(_replacement, text)


def _replacement(match: re.Match[str]) -> str:
    if match["email"]:
        return "[email]"
    if match["userinfo"]:
        return f"{_REDACTED}@"
    kept = match["scheme"] or match["pair"] or ""
    return f"{kept}{_REDACTED}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
