"""``otel-tracker doctor``: sends a probe the way an application's spans go, and looks for it.

Every hop is asked, so that one examination names all that is broken; the first of them is the one
to mend first. Nothing waits longer than about 20 seconds in all, whatever the others do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ..settings import load
from . import configuration, endpoint
from .background import Background
from .destinations import Collector, Jaeger, follow, judge_dashboard
from .discretion import Captured, Veil, one_line, shown_url
from .endpoint import Finding
from .probe import SERVICE, Probe, Sender, choose_sender, make_probe, silence_grpc
from .report import Hop, Report, Setting
from .target import Target

__all__ = ["Hop", "Report", "Setting", "examine"]

SEND_S: Final = endpoint.LONGEST_S
ARRIVE_S: Final = 10.0
"""How long an accepted probe may take to Jaeger: a Collector sends in batches."""
DASHBOARD_S: Final = 3.0
_JAEGER_BY_S: Final = 15.0
_DASHBOARD_BY_S: Final = 17.0
"""After the start, so that all of it takes about 20 s where everybody is slow."""


def examine() -> Report:
    """Sends a probe as this process's environment asks for, and follows it."""
    environ = dict(os.environ)
    silence_grpc()
    veil = Veil(environ)
    with Captured(veil) as log:
        shown = configuration.settings_of(environ)
        jaeger = Jaeger(load(environ=environ).jaeger_url.strip().rstrip("/"))
        hints = configuration.hints_of(environ)
        sender = choose_sender(environ)
        hints += dict.fromkeys(log.messages)  # the options are read several times
        log.messages.clear()
        probe, hops = _follow_the_way(environ, sender, jaeger, log)
        told: dict[str, Any] = {"sent": False, "service": SERVICE}
        if probe is not None:
            told = {
                "sent": True,
                "service": SERVICE,
                "transaction_id": probe.transaction_id,
                "trace_id": probe.trace_hex,
                "spans": len(probe.spans),
                "spans_in_jaeger": jaeger.spans,
            }
    clean = tuple(
        replace(hop, finding=veil(hop.finding), fix=veil(hop.fix) if hop.fix else None)
        for hop in (sender.hop, *hops)
    )
    shown = tuple(replace(setting, value=veil(setting.value)) for setting in shown)
    return Report(clean, shown, tuple(map(veil, hints)), told, configuration.versions())


def _follow_the_way(
    environ: Mapping[str, str], sender: Sender, jaeger: Jaeger, log: Captured
) -> tuple[Probe | None, list[Hop]]:
    if sender.send is None:
        return None, [*_not_reached("nothing is sent"), judge_dashboard(environ, None, 0)]
    started = time.monotonic()
    probe = make_probe()
    collector = Collector.of(environ)
    hop = _send(sender, probe, log)
    if hop.state == "broken":
        rest = _not_reached("the probe did not get this far")[1:]
        return probe, [hop, *rest, judge_dashboard(environ, None, 0)]
    in_jaeger = follow(probe, collector, jaeger, until=_at_most(ARRIVE_S, started, _JAEGER_BY_S))
    until = _at_most(DASHBOARD_S, started, _DASHBOARD_BY_S)
    dashboard = judge_dashboard(environ, probe, until)
    has_dashboard = dashboard.state != "skipped"
    arrived = jaeger.spans > 0
    collector.settle(len(probe.spans), arrived=arrived, has_dashboard=dashboard.state == "ok")
    in_collector = collector.judge(len(probe.spans), arrived=arrived, has_dashboard=has_dashboard)
    return probe, [hop, in_collector, in_jaeger, dashboard]


def _at_most(seconds: float, started: float, by_s: float) -> float:
    """`seconds` from now, but not later than `by_s` after the start."""
    return min(time.monotonic() + seconds, started + by_s)


def _not_reached(why: str) -> list[Hop]:
    return [Hop("endpoint", "skipped", why), Hop("collector", "skipped", why),
            Hop("jaeger", "skipped", why)]  # fmt: skip


def _send(sender: Sender, probe: Probe, log: Captured) -> Hop:
    """Sends the probe; beside it, a look of our own at the endpoint says why it does not go."""
    send = sender.send
    assert send is not None  # noqa: S101
    started = time.monotonic()
    sending = Background(lambda: send(probe.spans))
    target = sender.target
    place = shown_url(target.url) if target else f"the exporter {sender.name}"
    finding = _look(target) if target else None
    left = SEND_S - (time.monotonic() - started)
    try:
        accepted: bool | None = sending.result(min(finding.patience_s, left) if finding else left)
    except TimeoutError:
        accepted = None
    except Exception as error:  # exporters of before 1.40 raise what they meet
        log.add(str(error))
        accepted = False
    if accepted and not (finding and finding.is_final):
        took_ms = 1000 * (time.monotonic() - started)
        return Hop("endpoint", "ok", f"{place} accepted the probe within {took_ms:.0f} ms")
    if finding is not None:
        told = one_line(log.veil(finding.told)) if finding.told.strip() else ""
        said = f'{finding.text}, and says "{told}"' if told else finding.text
        return Hop("endpoint", "broken", said, finding.fix)
    said = "has not accepted it within" if accepted is None else "did not accept the probe"
    said += f" {SEND_S:.0f} s" if accepted is None else ""
    # The first message has the reason; later ones say that it was tried again, and given up.
    return _refused(f"{place} {said}", target, log.messages[0] if log.messages else "")


def _look(target: Target) -> Finding | None:
    def look() -> Finding | None:
        proxy = endpoint.proxy_of(target)
        return endpoint.look_at_proxy(target, proxy) if proxy else endpoint.look(target)

    try:
        return Background(look).result(SEND_S)
    except Exception:  # a look that fails says nothing; the exporter has the word
        return None


def _refused(said: str, target: Target | None, told: str) -> Hop:
    """The probe was refused, and a look at the endpoint did not say why: its exporter's words."""
    fix = "look into the log of what listens there"
    proxy = endpoint.proxy_of(target) if target else None
    if proxy and target:
        said += f" (through the proxy that {proxy} names)"
        fix = f"export NO_PROXY={target.host}"
    elif target and target.bundle_variable and "certificate" in told.lower():
        said += f" ({target.bundle_variable} wins over {target.variable_for('CERTIFICATE')})"
        fix = f"export {target.bundle_variable}={target.ca_file}"
    return Hop("endpoint", "broken", f"{said}: {told}" if told else said, fix)
