"""What there is to show of a span, whatever it was read from (pure).

Spans come from anywhere: other processes, other languages, a file that somebody cut. So nothing is
taken for granted: texts are cut, and times that cannot be are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .. import semconv
from ..model import LATEST_NS

SPANS_AT_MOST: Final = 10_000
"""Spans of one trace that are kept and shown."""
ERROR: Final = "error"
"""The outcome of a failed span that tells none."""

_DETAILS_AT_MOST: Final = 16
_DETAIL_TEXT: Final = 200
_STACK_TEXT: Final = 4_000
_MESSAGE_TEXT: Final = 2_000
_OWN_TEXT: Final = 256
_OWN_KEYS: Final = ("otel_tracker.", "user.", "error.")
"""Attributes that are the tracker's, and shown by name."""
_NO_DETAILS: Final = (*_OWN_KEYS, "@jaeger")
"""Those, and a store's own."""


@dataclass(frozen=True, slots=True)
class Span:
    """What there is to show of a span."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits; a name of its own where a dump tells none. Never empty."""
    parent_id: str
    """Empty for a root."""
    name: str
    service: str
    process: str
    """Id of the process that did the work."""
    start_ns: int
    """Wall clock; 0 where the span tells an impossible time."""
    end_ns: int
    """0 while it is open."""
    outcome: str
    """As the tracker tells it; empty on a wait, and on a root whose end other processes tell."""
    error: str = ""
    error_type: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """The tracker's own, by which the spans are judged."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The application's own, at most 16."""
    host: str = ""
    stack: str = ""
    """Where it hung, the innermost call last."""

    @property
    def kind(self) -> str:
        """As in `Kind`; empty on a span that is not the tracker's."""
        return str(self.attributes.get(semconv.KIND, ""))

    @property
    def stage(self) -> str:
        """The stage that it is an attempt at, or speaks of."""
        return str(self.attributes.get(semconv.STAGE, ""))

    @property
    def attempt(self) -> int:
        """From 1; 0 where it is not told."""
        number = self.attributes.get(semconv.STAGE_ATTEMPT)
        return number if type(number) is int and number > 0 else 0

    @property
    def is_open(self) -> bool:
        """Whether it had not ended when it was read."""
        return self.end_ns == 0

    @property
    def duration_ns(self) -> int:
        """0 while it is open, and where its times make no sense."""
        return max(0, self.end_ns - self.start_ns) if self.end_ns and self.start_ns else 0

    @property
    def last_ns(self) -> int:
        """Wall clock of the last thing that is known of it."""
        return max(self.start_ns, self.end_ns)


def span_of(
    *,
    trace_id: str,
    span_id: str,
    parent_id: str,
    name: str,
    start_ns: int,
    end_ns: int,
    attributes: Mapping[str, Any],
    resource: Mapping[str, Any],
    failed: bool,
    message: str,
    stack: str = "",
) -> Span:
    """A span as OTLP tells it: texts are cut, times that cannot be are left out.

    Args:
        trace_id: hex.
        span_id: hex.
        parent_id: hex; empty or zeros for a root.
        name: anything.
        start_ns: wall clock.
        end_ns: wall clock; 0 while it is open.
        attributes: single values.
        resource: the process's attributes.
        failed: whether its status is ERROR.
        message: the description of its status.
        stack: what its `semconv.STACK_EVENT` holds.
    """
    own = {k: _cut(v, _OWN_TEXT) for k, v in attributes.items() if k.startswith(_OWN_KEYS)}
    host, process = place_of(own.get(semconv.WHERE))
    told = own.get(semconv.STAGE_OUTCOME) or own.get(semconv.OUTCOME)
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id if parent_id.strip("0") else "",
        name=name[:_OWN_TEXT],
        service=text_at(resource, "service.name"),
        process=process or text_at(resource, "process.pid"),
        start_ns=start_ns if 0 < start_ns <= LATEST_NS else 0,
        end_ns=end_ns if 0 < end_ns <= LATEST_NS else 0,
        outcome=told if isinstance(told, str) else ERROR if failed else "",
        error=message_of(message) if failed else "",
        error_type=str(own.get(semconv.ERROR_TYPE, "")),
        attributes=own,
        details=details_of(attributes),
        host=host or text_at(resource, "host.name"),
        stack=stack[-_STACK_TEXT:],
    )


def place_of(where: object) -> tuple[str, str]:
    """Host and process in host/process/thread/task; empty where it does not say."""
    parts = str(where).split("/")
    return (parts[0], parts[1]) if len(parts) > 1 else ("", "")


def text_at(values: Mapping[str, Any], key: str) -> str:
    """A name or a number as short text; empty for anything else."""
    value = values.get(key, "")
    return str(value)[:_OWN_TEXT] if isinstance(value, str | int) else ""


def message_of(value: object) -> str:
    """An error's description, cut; empty for what is no text."""
    return value[:_MESSAGE_TEXT] if isinstance(value, str) else ""


def details_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The application's own among them: at most 16, long texts cut."""
    own = [key for key in attributes if not key.startswith(_NO_DETAILS)][:_DETAILS_AT_MOST]
    return {key[:64]: _cut(attributes[key], _DETAIL_TEXT) for key in own}


def _cut(value: Any, length: int) -> Any:
    return value[:length] if isinstance(value, str) else value
