"""The trends, as Vega-Lite: outcomes in bars of five minutes, durations, new versions marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Json = Mapping[str, Any]
Spec = dict[str, Any]

_COLOURS: Final = {"completed": "#009E73", "failed": "#D55E00", "stalled": "#E69F00"}
"""As draw.css has them; the order in the bars and the legend tell them apart as well."""
_LINES: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_HEIGHT: Final = 180
_BAR: Final = 5  # pixels: 72 bars stand in 500
_VERSIONS: Final = 20
_NAME: Final = 60  # characters of a stage
_LEGEND: Final = {"orient": "top", "title": None}


def outcomes(trends: Json) -> Spec:
    """Transactions by outcome, over six hours."""
    rows = [
        {"at": bar["at"], "outcome": outcome, "order": place, "transactions": bar[outcome]}
        for bar in trends["outcomes"]
        for place, outcome in enumerate(_COLOURS)
    ]
    minutes = trends["bucket_seconds"] / 60
    bars = {
        "data": {"values": rows},
        "mark": {"type": "bar", "width": _BAR},
        "encoding": {
            "x": _time(trends),
            "y": {
                "field": "transactions",
                "type": "quantitative",
                "aggregate": "sum",
                "title": f"transactions in {minutes:.0f} min",
                "axis": {"tickMinStep": 1, "format": "d"},
            },
            "color": {
                "field": "outcome",
                "type": "nominal",
                "scale": {"domain": list(_COLOURS), "range": list(_COLOURS.values())},
                "legend": _LEGEND,
            },
            "order": {"field": "order"},
            "tooltip": [
                {"field": "at", "type": "temporal", "title": "from", "format": "%H:%M"},
                {"field": "outcome"},
                {"field": "transactions"},
            ],
        },
    }
    return _laid(bars, trends)


def durations(trends: Json) -> Spec | None:
    """How long the successes of each stage took; None while there were none."""
    rows = [
        {
            "at": bar["at"],
            "stage": stage[:_NAME],
            "share": share,
            "seconds": bar[share],
            "count": bar["count"],
        }
        for stage, bars in trends["durations"].items()
        for bar in bars
        for share in ("p50", "p95")
    ]
    if not rows:
        return None
    lines = {
        "data": {"values": rows},
        "mark": {"type": "line", "point": {"size": 24}},
        "encoding": {
            "x": _time(trends),
            "y": {
                "field": "seconds",
                "type": "quantitative",
                "title": "seconds: p50, dashed p95",
                "scale": {"type": "symlog"},
            },
            "color": {
                "field": "stage",
                "type": "nominal",
                "scale": {"range": list(_LINES)},
                "legend": _LEGEND,
            },
            "shape": {"field": "stage", "type": "nominal"},
            "strokeDash": {
                "field": "share",
                "type": "nominal",
                "scale": {"domain": ["p50", "p95"], "range": [[1, 0], [4, 3]]},
                "legend": None,
            },
            "tooltip": [
                {"field": "at", "type": "temporal", "title": "from", "format": "%H:%M"},
                {"field": "stage"},
                {"field": "share"},
                {"field": "seconds", "type": "quantitative", "format": ".3f"},
                {"field": "count", "title": "successes"},
            ],
        },
    }
    return _laid(lines, trends)


def changes(trends: Json) -> list[str]:
    """The new versions as texts, the newest first; times in UTC."""
    return [f"{one['at'][11:16]} UTC: {one['version']}" for one in reversed(_versions(trends))]


def _laid(chart: Spec, trends: Json) -> Spec:
    marks = {
        "data": {"values": _versions(trends)},
        "mark": {"type": "rule", "strokeDash": [4, 3], "size": 2, "color": "#888888"},
        "encoding": {
            "x": {"field": "at", "type": "temporal"},
            "tooltip": [
                {"field": "version", "title": "new version"},
                {"field": "at", "type": "temporal", "title": "at", "format": "%H:%M"},
            ],
        },
    }
    return {"layer": [chart, marks], "height": _HEIGHT}


def _versions(trends: Json) -> list[dict[str, str]]:
    """New versions within the six hours, oldest first; a service's first one is no change."""
    begin = trends["outcomes"][0]["at"]
    known: set[str] = set()
    found = []
    for one in reversed(trends["versions"]):
        if one["service"] in known and one["first_seen"] >= begin:
            found.append({"at": one["first_seen"], "version": f"{one['service']} {one['version']}"})
        known.add(one["service"])
    return found[-_VERSIONS:]


def _time(trends: Json) -> Spec:
    """The whole of the six hours, in the reader's time."""
    bars = trends["outcomes"]
    return {
        "field": "at",
        "type": "temporal",
        "title": None,
        "scale": {"domain": [bars[0]["at"], bars[-1]["at"]]},
        "axis": {"format": "%H:%M", "labelOverlap": True},
    }
