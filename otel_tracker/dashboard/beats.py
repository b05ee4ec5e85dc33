"""A beat as JSON: what a process says of itself every few seconds, read and written (pure).

What comes from a network is distrusted: everything is bounded, and what has a wrong type is
refused with a sentence that names the key. Keys that are not known are ignored, so that newer
senders get through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..model import LATEST_NS, NS_PER_S, Pipeline
from ..privacy import MAX_EXPORTED_TEXT, plain_metadata, text_of
from ..workers import Beat

MOST_OPEN: Final = 10_000
"""Open spans in one beat."""
MOST_SOCKETS: Final = 10_000
"""Open websockets of one process, over all its clients."""
MOST_PIPELINES: Final = 50
MOST_STAGES: Final = 100
"""Stages of one pipeline, and stages with a limit of their own."""
LONGEST_INTERVAL_S: Final = 3_600.0
LONGEST_LIMIT_S: Final = 31_536_000.0
"""A year."""
MOST_HEALTH: Final = 16_384
"""Bytes of a sender's health that are kept."""
MOST_TOLD: Final = 8 << 20
"""Bytes of what all processes told of themselves, about. One usually tells a kilobyte."""
MAX_BODY: Final = 4 << 20
"""Bytes of a beat; one with everything at its bound has 3 MB."""

_NAME: Final = 100  # bytes of a name beside its characters, about
_HEX: Final = frozenset("0123456789abcdefABCDEF")


class BeatError(ValueError):
    """A document that is no beat; the message names the key and what belongs there."""


@dataclass(frozen=True, slots=True)
class Told:
    """A beat, and what came with it."""

    beat: Beat
    pipelines: tuple[Pipeline, ...] = ()
    """Those that are declared there."""
    stall_after: Mapping[str, float] = field(default_factory=dict)
    """Seconds of silence that are normal, by stage, as its settings say."""
    health: Mapping[str, Any] = field(default_factory=dict)
    """Plain data about the sender's own troubles."""
    open: int = 0
    """How much is open there."""
    size: int = field(default=0, compare=False)
    """Bytes of its pipelines, limits and health, about."""


def read(document: object, seen_ns: int) -> Told:
    """The beat that `document`, parsed JSON, is.

    Args:
        document: as in docs/api.md.
        seen_ns: when it came, by this process's monotonic clock.

    Raises:
        BeatError: it is none.
    """
    if not isinstance(document, dict):
        raise BeatError("a beat is a JSON object; see POST /v1/beats in docs/api.md")
    worker = _text(document, "worker")
    host, _, process = worker.partition("/")
    if not host or not process or "/" in process or len(worker) > MAX_EXPORTED_TEXT:
        raise BeatError('"worker": use "host/process", such as "web-1/4711"')
    interval_s = _seconds(document.get("interval_s", 5.0), '"interval_s"', LONGEST_INTERVAL_S)
    beat = Beat(
        worker=worker,
        service=_text(document, "service")[:MAX_EXPORTED_TEXT],
        at_ns=_time(document.get("at_ns"), '"at_ns"'),
        seen_ns=seen_ns,
        interval_ns=max(1, round(interval_s * NS_PER_S)),
        started_ns=_time(document.get("started_ns", 0), '"started_ns"'),
        version=_text(document, "version")[:MAX_EXPORTED_TEXT],
        progress=_open(document.get("open", [])),
        sockets=_sockets(document.get("websockets", {})),
        is_last=_flag(document.get("is_last", False), '"is_last"'),
    )
    pipelines = _pipelines(document.get("pipelines", []))
    limits = _limits(document.get("stall_after", {}), '"stall_after"')
    health = _health(document.get("health", {}))
    size = _size(pipelines, limits, health)
    return Told(beat, pipelines, limits, health, len(beat.progress), size)


def _size(
    pipelines: tuple[Pipeline, ...], limits: Mapping[str, float], health: Mapping[str, Any]
) -> int:
    names = [*limits, *(pipeline.name for pipeline in pipelines)]
    for pipeline in pipelines:
        names += [*pipeline.stages, *pipeline.stall_after]
    return sum(_NAME + len(name) for name in names) + 2 * len(json.dumps(health))


def document_of(told: Told) -> dict[str, Any]:
    """A beat as the plain data that `read` takes."""
    beat = told.beat
    return {
        "worker": beat.worker,
        "service": beat.service,
        "version": beat.version,
        "at_ns": beat.at_ns,
        "interval_s": beat.interval_ns / NS_PER_S,
        "started_ns": beat.started_ns,
        "is_last": beat.is_last,
        "open": [[f"{t:032x}", f"{s:016x}", at_ns] for (t, s), at_ns in beat.progress.items()],
        "websockets": dict(beat.sockets),
        "pipelines": [
            {"name": p.name, "stages": list(p.stages), "stall_after": dict(p.stall_after)}
            for p in told.pipelines
        ],
        "stall_after": dict(told.stall_after),
        "health": dict(told.health),
    }


def _health(value: object) -> dict[str, Any]:
    health = plain_metadata(_object(value, '"health"', 100))
    size = len(json.dumps(health))
    return health if size <= MOST_HEALTH else {"…": f"left out: {size} bytes; say less"}


def _open(rows: object) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for row in _list(rows, '"open"', MOST_OPEN):
        if not isinstance(row, list) or len(row) != 3:
            raise BeatError('"open": each row is ["<32 hex trace id>", "<16 hex span id>", at_ns]')
        ids = _id(row[0], 32, "a trace id"), _id(row[1], 16, "a span id")
        found[ids] = max(found.get(ids, 0), _time(row[2], 'the time in "open"'))
    return found


def _id(value: object, digits: int, what: str) -> int:
    if not isinstance(value, str) or len(value) != digits or not _HEX.issuperset(value):
        raise BeatError(f'"open": {what} has {digits} hex digits')
    number = int(value, 16)
    if number == 0:
        raise BeatError(f'"open": {what} is not zero')
    return number


def _sockets(value: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for client, count in _object(value, '"websockets"', MOST_SOCKETS).items():
        if type(count) is not int or not 0 <= count <= MOST_SOCKETS:
            raise BeatError(f'"websockets": use a count from 0 to {MOST_SOCKETS} for each client')
        if count:
            found[text_of(client, MAX_EXPORTED_TEXT)] = count
    if sum(found.values()) > MOST_SOCKETS:
        raise BeatError(f'"websockets": at most {MOST_SOCKETS} in all')
    return found


def _pipelines(value: object) -> tuple[Pipeline, ...]:
    found = []
    for row in _list(value, '"pipelines"', MOST_PIPELINES):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise BeatError('"pipelines": each is {"name": …, "stages": […], "stall_after": {…}}')
        stages = _list(row.get("stages", []), 'the "stages" of a pipeline', MOST_STAGES)
        if not all(isinstance(stage, str) for stage in stages):
            raise BeatError('the "stages" of a pipeline are names')
        limits = _limits(row.get("stall_after", {}), 'the "stall_after" of a pipeline')
        try:
            found.append(Pipeline(row["name"], tuple(stages), limits))
        except ValueError as error:
            raise BeatError(f'"pipelines": {error}'[:300]) from error
    return tuple(found)


def _limits(value: object, what: str) -> dict[str, float]:
    limits = _object(value, what, MOST_STAGES)
    return {
        text_of(stage, MAX_EXPORTED_TEXT): _seconds(seconds, f"a limit in {what}", LONGEST_LIMIT_S)
        for stage, seconds in limits.items()
    }


def _seconds(value: object, what: str, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        raise BeatError(f"{what}: use a number of seconds greater than 0, at most {most:.0f}")
    return float(value) if math.isfinite(value) else most


def _time(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= LATEST_NS:
        raise BeatError(f"{what}: use whole nanoseconds since 1970")
    return value


def _flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise BeatError(f"{what}: use true or false")
    return value


def _text(document: Mapping[str, object], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise BeatError(f'"{key}": use text')
    return text_of(value)


def _object(value: object, what: str, most: int) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > most:
        raise BeatError(f"{what}: use a JSON object with at most {most} keys")
    return value


def _list(value: object, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise BeatError(f"{what}: use a list of at most {most}")
    return value
