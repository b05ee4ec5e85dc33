"""Fair timing on a noisy machine: rivals in turn, many short rounds, the median of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Ratio(NamedTuple):
    """`a` against `b`: the median of the pairwise ratios, and both medians in microseconds."""

    ratio: float
    low: float
    """10th percentile of the ratios."""
    high: float
    """90th percentile of the ratios."""
    a_us: float
    b_us: float


def compare(
    a: Callable[[], object], b: Callable[[], object], *, calls: int = 40, rounds: int = 150
) -> Ratio:
    """Times `calls` calls of each in turn, `rounds` times, after a warm-up that is not counted."""
    for _ in range(3 * calls):
        a()
        b()
    pairs = [(_time(a, calls), _time(b, calls)) for _ in range(rounds)]
    return _ratio(pairs)


def _time(work: Callable[[], object], calls: int) -> int:
    started_ns = time.perf_counter_ns()
    for _ in range(calls):
        work()
    return (time.perf_counter_ns() - started_ns) // calls


def compare_timed(
    rivals: Mapping[str, Callable[[], int]], against: Callable[[], int], *, rounds: int = 400
) -> dict[str, Ratio]:
    """The same for work that times itself: each of `rivals` in turn, and `against`, each round.

    Args:
        rivals: by name; each returns nanoseconds.
        against: what all are compared with.
        rounds: a tenth of them goes uncounted before.
    """
    pairs: dict[str, list[tuple[int, int]]] = {name: [] for name in rivals}
    for number in range(rounds + rounds // 10):
        base = against()
        for name, run in rivals.items():
            taken = run()
            if number >= rounds // 10:
                pairs[name].append((taken, base))
    return {name: _ratio(found) for name, found in pairs.items()}


def _ratio(pairs: list[tuple[int, int]]) -> Ratio:
    ratios = sorted(x / y for x, y in pairs)
    return Ratio(
        statistics.median(ratios),
        ratios[len(pairs) // 10],
        ratios[-1 - len(pairs) // 10],
        statistics.median(x for x, _ in pairs) / 1_000,
        statistics.median(y for _, y in pairs) / 1_000,
    )
