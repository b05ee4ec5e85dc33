"""Every option in one table: its name, environment variable, unit, default and meaning.

A bad value is a clear warning and the default: a telemetry setting must never stop an application.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .model import NS_PER_S, parse_stage
from .privacy import Privacy, with_extra_keys
from .stalls import Patience
from .state import Limits

logger = logging.getLogger("otel_tracker")


def _seconds(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]  # ValueError and TypeError are the answer
    if not (math.isfinite(number) and number > 0):
        raise ValueError("use a number of seconds greater than 0")
    return number


def _count(value: object) -> int:
    number = int(value) if isinstance(value, int | str) and value is not True else 0
    if not 1 <= number <= 1_000_000:
        raise ValueError("use a whole number from 1 to 1000000")
    return number


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ValueError("use true or false")


def _text(value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError("use text")
    return os.fspath(value)


def _names(value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple | set | frozenset):
        raise TypeError("use names separated by commas")
    return tuple(str(item).strip() for item in items if str(item).strip())


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table."""

    name: str
    env: str
    unit: str
    default: Any
    parse: Callable[[object], Any]
    meaning: str


_PATIENCE: Final = Patience()
_LIMITS: Final = Limits()

OPTIONS: Final = (
    Option(
        "stall_after", "OTEL_TRACKER_STALL_AFTER", "s", _PATIENCE.stage_ns / NS_PER_S, _seconds,
        "silence after which an open stage, or a missing one, is a stall",
    ),
    Option(
        "settle", "OTEL_TRACKER_SETTLE", "s", _PATIENCE.settle_ns / NS_PER_S, _seconds,
        "quiet after which work that looks done is done, when nobody told the end",
    ),
    Option(
        "root_idle", "OTEL_TRACKER_ROOT_IDLE", "s", 60.0, _seconds,
        "time without news after which a root span is ended, so that Jaeger can name the trace",
    ),
    Option(
        "queue_wait", "OTEL_TRACKER_QUEUE_WAIT", "s", _PATIENCE.queue_ns / NS_PER_S, _seconds,
        "wait for a worker beyond which it is an issue",
    ),
    Option(
        "recent_transactions", "OTEL_TRACKER_RECENT_TRANSACTIONS", "transactions", _LIMITS.finished,
        _count, "finished transactions kept",
    ),
    Option(
        "open_transactions", "OTEL_TRACKER_OPEN_TRANSACTIONS", "transactions", _LIMITS.open, _count,
        "unfinished transactions kept",
    ),
    Option(
        "recent_issues", "OTEL_TRACKER_RECENT_ISSUES", "issues", _LIMITS.issues, _count,
        "issues kept",
    ),
    Option(
        "disabled", "OTEL_TRACKER_DISABLED", "true/false", False, _flag,
        "every call answers and does nothing",
    ),
    Option(
        "export_text", "OTEL_TRACKER_EXPORT_TEXT", "true/false", True, _flag,
        "false keeps all free text in the process",
    ),
    Option(
        "sensitive_keys", "OTEL_TRACKER_SENSITIVE_KEYS", "names, comma-separated", (), _names,
        "further metadata names whose values stay in the process",
    ),
    Option(
        "hash_key", "OTEL_TRACKER_HASH_KEY", "text", "", _text,
        "keys the hash that stands for a user id that is an e-mail address",
    ),
    Option(
        "link_caller", "OTEL_TRACKER_LINK_CALLER", "true/false", True, _flag,
        "link a transaction and the span it was created in to each other",
    ),
    Option(
        "url", "OTEL_TRACKER_URL", "URL", "", _text,
        "the dashboard service that this process feeds, such as http://localhost:8500",
    ),
    Option(
        "token", "OTEL_TRACKER_TOKEN", "text", "", _text,
        "what the dashboard service wants to be shown",
    ),
    Option(
        "read_url", "OTEL_TRACKER_READ_URL", "URL", "", _text,
        "the dashboard service that reads are answered from; for a page's process only",
    ),
    Option(
        "serve", "OTEL_TRACKER_SERVE", "host:port", "", _text,
        "where this process serves its own dashboard as JSON, such as 127.0.0.1:8500",
    ),
    Option(
        "jaeger_url", "OTEL_TRACKER_JAEGER_URL", "URL", "http://localhost:16686", _text,
        "where trace_url() points",
    ),
    Option(
        "debug_dump_dir", "DEBUG_DUMP_DIR", "path", "debug_dumps", _text,
        "where export_debug_dump() writes; made when needed",
    ),
)  # fmt: skip

STAGE_ENV_PREFIX: Final = "OTEL_TRACKER_STALL_AFTER_"
STAGE_OPTION_PREFIX: Final = "stall_after_"
"""``OTEL_TRACKER_STALL_AFTER_MEMORY=900``, or ``stall_after_memory=900``: one stage's own limit."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options in force. Units are those of the table."""

    stall_after: float
    settle: float
    root_idle: float
    queue_wait: float
    recent_transactions: int
    open_transactions: int
    recent_issues: int
    disabled: bool
    export_text: bool
    sensitive_keys: tuple[str, ...]
    hash_key: str
    link_caller: bool
    url: str
    token: str
    read_url: str
    serve: str
    jaeger_url: str
    debug_dump_dir: str
    stall_after_stage: Mapping[str, float]

    @property
    def patience(self) -> Patience:
        """How long silence is normal."""
        return Patience(
            stage_ns=round(self.stall_after * NS_PER_S),
            by_stage_ns={s: round(v * NS_PER_S) for s, v in self.stall_after_stage.items()},
            settle_ns=round(self.settle * NS_PER_S),
            queue_ns=round(self.queue_wait * NS_PER_S),
        )

    @property
    def limits(self) -> Limits:
        """How much is kept."""
        return Limits(
            finished=self.recent_transactions,
            open=self.open_transactions,
            issues=self.recent_issues,
        )

    @property
    def privacy(self) -> Privacy:
        """What may leave the process."""
        return Privacy(
            export_text=self.export_text,
            sensitive_keys=with_extra_keys(self.sensitive_keys),
            hash_key=self.hash_key,
        )


def load(
    options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings from keywords, then the environment, then the defaults.

    Args:
        options: by option name, or ``stall_after_<stage>``; they win over the environment.
        environ: the environment; the process's own by default.

    Raises:
        TypeError: an option of a name that does not exist; the message says the nearest one.
    """
    given = dict(options or {})
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {option.name: option.default for option in OPTIONS}
    for option in OPTIONS:
        if option.name in given:
            _take(values, option.name, given.pop(option.name), option, f"{option.name}=")
        elif environ.get(option.env, "").strip():
            _take(values, option.name, environ[option.env], option, option.env)
    values["stall_after_stage"] = _stage_limits(given, environ)
    if given:
        names = [option.name for option in OPTIONS]
        name = next(iter(given))
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(names)}"
        raise TypeError(f"init_debug_tracker() has no option {name!r}; {hint}")
    return Settings(**values)


def _take(values: dict[str, Any], name: str, value: object, option: Option, source: str) -> None:
    try:
        values[name] = option.parse(value)
    except (ValueError, TypeError, OverflowError) as error:
        logger.warning(
            "otel_tracker: %s %r is no good (%s); using the default, %r (unit: %s)",
            source, value, error, option.default, option.unit,
        )  # fmt: skip


def _stage_limits(given: dict[str, Any], environ: Mapping[str, str]) -> dict[str, float]:
    limits: dict[str, Any] = {}
    general = OPTIONS[0]
    for name, value in environ.items():
        if name.startswith(STAGE_ENV_PREFIX) and value.strip():
            _take(limits, name.removeprefix(STAGE_ENV_PREFIX).lower(), value, general, name)
    mapping = given.pop("stall_after_stage", {})
    if isinstance(mapping, Mapping):
        for stage, value in mapping.items():
            name = parse_stage(stage) or str(stage)
            _take(limits, name, value, general, f"stall_after_stage[{stage!r}]")
    else:
        logger.warning(
            "otel_tracker: stall_after_stage=%r is no mapping of stages to seconds; it is ignored",
            mapping,
        )
    for name in [n for n in given if n.startswith(STAGE_OPTION_PREFIX)]:
        stage = name.removeprefix(STAGE_OPTION_PREFIX).lower()
        _take(limits, stage, given.pop(name), general, f"{name}=")
    return limits
