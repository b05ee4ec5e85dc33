"""What a query of the service looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..model import NS_PER_S, Fact
from ..state import State
from ..views import Now
from .beats import Told
from .trends import NO_DETAIL, Detail, Order, Trends


@dataclass(frozen=True, slots=True)
class View:
    """What a query looks at. All of it is held still while it does."""

    state: State
    now: Now
    trends: Trends
    order: Order
    details: Mapping[int, Mapping[int, Detail]]
    """By trace and span id."""
    told: Mapping[str, Told]
    """What living and lost workers told with their newest beat."""
    intake: Mapping[str, Any]
    """What came and what was refused."""
    jaeger_url: str = ""

    def detail(self, trace_id: int, span_id: int) -> Detail:
        """What that span said beyond its fact."""
        return self.details.get(trace_id, {}).get(span_id, NO_DETAIL)


def age_s(fact: Fact, now: Now) -> float:
    """Seconds since its start, by the monotonic clock."""
    started_ns = fact.seen_ns - (fact.at_ns - fact.start_ns)
    return max(0, now.monotonic_ns - started_ns) / NS_PER_S
