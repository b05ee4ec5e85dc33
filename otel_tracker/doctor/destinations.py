"""Where the probe should turn up: the Collector's own figures, Jaeger, the dashboard service."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from . import web, wire
from .discretion import (
    DASHBOARD_URL,
    DEFAULT_METRICS_URL,
    JAEGER_URL,
    METRICS_URL,
    TOKEN,
    shown_url,
)
from .probe import Probe
from .report import Hop, State

_READ_S: Final = 1.5
_PAUSE_S: Final = 0.2
_GIVE_UP_S: Final = 1.5
"""How long a Jaeger that cannot be reached is tried."""
_SETTLE_S: Final = 5.0
"""How long the Collector's queue may take before it counts as stuck: it sends in batches."""
_COUNT_S: Final = 1.0
"""The Collector counts a moment after it has sent."""
_UI_PORT: Final = 16686


# --- the Collector --------------------------------------------------------------------------------

_SAMPLE: Final = re.compile(
    r"^otelcol_(receiver_accepted_spans|receiver_refused_spans|exporter_sent_spans"
    r"|exporter_send_failed_spans|exporter_enqueue_failed_spans|exporter_queue_size)"
    r"\w*(?:\{(.*)\})? (\S+)",
    re.MULTILINE,
)
_EXPORTER: Final = re.compile(r'(?:^|,)exporter="([^"]*)"')
_OTHER_SIGNAL: Final = re.compile(r'data_type="(?!traces)')


@dataclass(frozen=True, slots=True)
class Figures:
    """What a Collector says of itself: spans in, and spans out by exporter."""

    accepted: float = 0
    refused: float = 0
    sent: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    queued: Counter[str] = field(default_factory=Counter)

    def since(self, before: Figures) -> Figures:
        """What was added; queues are as they are now."""
        # Also what was not added is an exporter with a figure of zero.
        sent = Counter({name: self.sent[name] - before.sent[name] for name in self.sent})
        return Figures(
            self.accepted - before.accepted,
            self.refused - before.refused,
            sent,
            self.failed - before.failed,
            self.queued,
        )


def parse_figures(text: str) -> Figures | None:
    """The figures in a Collector's metrics (Prometheus text); None where it has none of its own."""
    if "otelcol_" not in text:
        return None
    totals: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    by_name = {
        "exporter_sent_spans": sent,
        "exporter_send_failed_spans": failed,
        "exporter_enqueue_failed_spans": failed,
        "exporter_queue_size": queued,
    }
    for name, labels, number in _SAMPLE.findall(text):
        if _OTHER_SIGNAL.search(labels):
            continue
        exporter = _EXPORTER.search(labels)
        target = by_name.get(name)
        key = name if target is None else (exporter[1] if exporter else "")
        counts: Counter[str] = totals if target is None else target
        counts[key] += float(number)  # type: ignore[assignment]  # a Counter of floats is one too
    for name in queued:
        sent[name] += 0  # an exporter that has never sent has no such figure
    return Figures(
        totals["receiver_accepted_spans"], totals["receiver_refused_spans"], sent, failed, queued
    )


@dataclass(slots=True)
class Collector:
    """A Collector's own metrics, read before the probe and after it."""

    url: str
    is_named: bool
    """Whether somebody said where they are."""
    before: Figures | None = None
    after: Figures | None = None
    trouble: str = ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Collector:
        """The one that the environment names, or the usual one; read once."""
        url = environ.get(METRICS_URL, "").strip()
        collector = cls(url or DEFAULT_METRICS_URL, bool(url))
        collector.before = collector._read()
        return collector

    def read(self) -> None:
        """Reads it again."""
        if self.before is not None:
            self.after = self._read() or self.after

    def _read(self) -> Figures | None:
        try:
            page = web.get(self.url, _READ_S)
        except (OSError, ValueError) as error:
            self.trouble = web.why(error) if isinstance(error, OSError) else str(error)
            return None
        figures = parse_figures(page.body.decode("utf-8", "replace"))
        if figures is None:
            self.trouble = f"status {page.status}, and no figures of a Collector"
        return figures

    def since(self) -> Figures | None:
        """What happened since the probe was sent; None where nothing is known."""
        if self.before is None or self.after is None:
            return None
        return self.after.since(self.before)

    def is_done(self, spans: int, *, with_dashboard: bool = False) -> bool:
        """Whether no more is to be expected of it."""
        figures = self.since()
        if figures is None or figures.accepted < spans:
            return True
        names = figures.sent if with_dashboard else _to_jaeger(figures)
        return all(figures.sent[name] >= spans for name in names)

    def settle(self, spans: int, *, arrived: bool, has_dashboard: bool) -> None:
        """Reads it until it has counted what has arrived, for a moment."""
        until = time.monotonic() + _COUNT_S
        self.read()
        while (
            arrived
            and not self.is_done(spans, with_dashboard=has_dashboard)
            and time.monotonic() < until
        ):
            time.sleep(_PAUSE_S)
            self.read()

    def judge(self, spans: int, *, arrived: bool, has_dashboard: bool) -> Hop:
        """How it stands, given whether the probe is in Jaeger.

        Args:
            spans: how many were sent.
            arrived: whether Jaeger has them.
            has_dashboard: whether it is anybody's concern what does not go to Jaeger.
        """
        shown = shown_url(self.url)
        figures = self.since()
        if figures is None:
            fix = f"export {METRICS_URL}=http://<collector>:8888/metrics"
            if self.is_named:
                return Hop("collector", "warning", f"no figures at {shown}: {self.trouble}", fix)
            finding = f"no Collector's figures at {shown} (OTLP may go straight to Jaeger)"
            return Hop("collector", "skipped", finding, None if arrived else fix)
        if figures.accepted < spans:
            return self._was_not_passed(figures, shown, arrived=arrived)
        said = f"accepted {figures.accepted:.0f} spans"
        concern = sorted(figures.sent) if has_dashboard else _to_jaeger(figures)
        told = "; ".join(_describe(name, figures) for name in concern) or "no exporter of it counts"
        stuck = [name for name in concern if figures.sent[name] < spans]
        if arrived or not stuck:  # a name that is not Jaeger's may lead to it all the same
            state: State = "warning" if stuck else "ok"
            return Hop("collector", state, f"{said}; {told}", _mend(stuck[0]) if stuck else None)
        to_jaeger = [name for name in _to_jaeger(figures) if name in stuck]
        if not to_jaeger:
            return Hop("collector", "warning", f"{said}; {told}", _mend(stuck[0]))
        lost = [name for name in to_jaeger if figures.queued[name] or figures.failed[name]]
        if not lost:
            return Hop(
                "collector", "broken",
                f"{said}, and sends nothing on: a processor drops the probe (a filter, sampling)",
                "look into service.pipelines.traces.processors of the Collector's configuration",
            )  # fmt: skip
        return Hop(
            "collector", "broken", f"{said}, and does not get them to Jaeger; {told}",
            _mend(lost[0]),
        )  # fmt: skip

    def _was_not_passed(self, figures: Figures, shown: str, *, arrived: bool) -> Hop:
        if figures.refused > 0 and not arrived:
            return Hop(
                "collector", "broken", f"it refused {figures.refused:.0f} spans (memory_limiter?)",
                "look into the Collector's log, and give it more memory",
            )  # fmt: skip
        finding = f"the figures at {shown} do not move: the probe does not pass that Collector"
        if arrived:
            return Hop("collector", "skipped", f"{finding} (OTLP goes straight to Jaeger)")
        return Hop(
            "collector", "warning", finding, f"export {METRICS_URL}=http://<collector>:8888/metrics"
        )


def _to_jaeger(figures: Figures) -> list[str]:
    named = [name for name in figures.sent if "jaeger" in name.lower()]
    return named or list(figures.sent)


def _describe(name: str, figures: Figures) -> str:
    parts = [f"its exporter {name} has sent {figures.sent[name]:.0f}"]
    if figures.failed[name]:
        parts.append(f"has failed to send {figures.failed[name]:.0f}")
    if figures.queued[name]:
        parts.append("has work waiting in its queue")
    return ", ".join(parts)


def _mend(exporter: str) -> str:
    line = (
        "start what it sends to, or mend its address in the Collector's configuration:\n"
        f"exporters: {{{exporter}: {{endpoint: <host>:<port>}}}}"
    )
    if "jaeger" in exporter:
        line += "\nexport JAEGER_OTLP_ENDPOINT=<jaeger>:4317   # collector-config.yaml reads it"
    if "dashboard" in exporter:
        line += f"\nexport {DASHBOARD_URL}=http://<dashboard>:8500   # likewise"
    return line


# --- Jaeger ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Jaeger:
    """Jaeger's API, asked for the probe."""

    url: str
    spans: int = 0
    trouble: str = ""
    """Why it could not be asked."""
    was_asked: bool = False

    def ask(self, trace_hex: str) -> None:
        """Asks once."""
        self.trouble = ""
        try:
            page = web.get(f"{self.url}/api/v3/traces/{trace_hex}", _READ_S)
        except (OSError, ValueError) as error:
            self.trouble = web.why(error) if isinstance(error, OSError) else str(error)
            return
        answer = page.json()
        if page.status in (401, 403):
            self.trouble = f"it answers {page.status}: somebody asks for credentials before it"
        elif not isinstance(answer, dict):
            self.trouble = f"what answers there ({page.status} {page.content_type}) is not Jaeger"
        elif page.status == 404 and "error" in answer:
            self.was_asked = True
        elif page.status == 200 and "result" in answer:
            self.was_asked = True
            self.spans = max(self.spans, _count_spans(answer["result"]))
        else:
            self.trouble = f"it answers {page.status}"

    def judge(self, trace_hex: str, spans: int, took_s: float) -> Hop:
        """How it stands after it was asked for a while."""
        shown = shown_url(self.url)
        if self.spans >= spans:
            place = f"{shown}/trace/{trace_hex}"
            return Hop("jaeger", "ok", f"has the probe, {took_s:.1f} s after it left: {place}")
        if self.spans:
            return Hop("jaeger", "warning", f"has {self.spans} of the probe's {spans} spans")
        if not self.was_asked:
            return Hop(
                "jaeger", "unknown",
                f"the probe was accepted, but Jaeger could not be asked at {shown}: {self.trouble}",
                self._address_line(),
            )  # fmt: skip
        return Hop(
            "jaeger", "broken",
            f"Jaeger at {shown} does not have the probe after {took_s:.0f} s",
            "see that what accepted the probe sends to this Jaeger, or name the one it sends to:\n"
            f"export {JAEGER_URL}=http://<jaeger>:{_UI_PORT}",
        )  # fmt: skip

    def _address_line(self) -> str:
        host = _host_of(self.url)
        is_there = host and wire.listens(host, _UI_PORT)
        return f"export {JAEGER_URL}=http://{host if is_there else '<jaeger>'}:{_UI_PORT}"


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _count_spans(result: Any) -> int:
    if not isinstance(result, dict):
        return 0
    scopes = (
        scope
        for resource in result.get("resourceSpans", [])
        for scope in resource.get("scopeSpans", [])
    )
    return sum(len(scope.get("spans", [])) for scope in scopes)


def follow(probe: Probe, collector: Collector, jaeger: Jaeger, until: float) -> Hop:
    """Waits for the probe in Jaeger, with an eye on the Collector.

    Args:
        probe: it was sent and accepted.
        collector: was read before.
        jaeger: where it should arrive.
        until: the moment to give up, on `time.monotonic`.
    """
    started = time.monotonic()
    spans = len(probe.spans)
    while True:
        jaeger.ask(probe.trace_hex)
        collector.read()
        took_s = time.monotonic() - started
        if jaeger.spans >= spans or time.monotonic() + _PAUSE_S > until:
            return jaeger.judge(probe.trace_hex, spans, took_s)
        is_settled = collector.is_done(spans) or took_s > _SETTLE_S
        if jaeger.trouble and took_s > _GIVE_UP_S and is_settled:
            return jaeger.judge(probe.trace_hex, spans, took_s)
        time.sleep(_PAUSE_S)


# --- the dashboard service ------------------------------------------------------------------------


def judge_dashboard(environ: Mapping[str, str], probe: Probe | None, until: float) -> Hop:
    """Whether the dashboard service is up, lets us in, and has the probe (where one was sent)."""
    url = environ.get(DASHBOARD_URL, "").strip().rstrip("/")
    if not url:
        return Hop("dashboard", "skipped", f"{DASHBOARD_URL} is not set")
    shown = shown_url(url)
    token = environ.get(TOKEN, "").strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        health = web.get(f"{url}/healthz", _READ_S)
        if health.status != 200:
            raise OSError(f"/healthz answers {health.status}")
    except (OSError, ValueError) as error:
        reason = web.why(error) if isinstance(error, OSError) else str(error)
        return Hop(
            "dashboard", "broken", f"no dashboard service at {shown}: {reason}",
            f"start it, or export {DASHBOARD_URL}=http://<where it runs>:8500, or unset it",
        )  # fmt: skip
    if probe is None:
        return Hop("dashboard", "unknown", f"{shown} is up; no probe was sent")
    return _ask_dashboard(url, headers, probe, until)


def _ask_dashboard(url: str, headers: Mapping[str, str], probe: Probe, until: float) -> Hop:
    shown = shown_url(url)
    while True:
        try:
            page = web.get(f"{url}/api/transactions/{probe.transaction_id}", _READ_S, headers)
        except OSError as error:
            return Hop("dashboard", "broken", f"{shown} is up and does not answer: {error}")
        if page.status in (401, 403):
            had = "is not the one it wants" if headers else "is not set"
            return Hop(
                "dashboard", "broken", f"{shown} answers {page.status}: {TOKEN} {had}",
                f"export {TOKEN}=<the token that the service was started with>",
            )  # fmt: skip
        if page.status == 200 and isinstance(page.json(), dict):
            return Hop("dashboard", "ok", f"{shown} has the probe")
        if time.monotonic() + _PAUSE_S > until:
            return Hop(
                "dashboard", "warning",
                f"{shown} is up and does not have the probe ({page.status}): the Collector does "
                "not feed it",
                f"export {DASHBOARD_URL}={shown}   # for the Collector as well",
            )  # fmt: skip
        time.sleep(_PAUSE_S)
