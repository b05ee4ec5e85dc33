"""What is configured, where each value comes from, and what of it looks like a slip."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from opentelemetry import environment_variables as api_variables
from opentelemetry.sdk import environment_variables as sdk_variables
from opentelemetry.sdk.resources import Resource

from ..diagnostics import Diagnostics
from ..exporting import batch_settings
from ..privacy import scrub
from ..settings import OPTIONS, STAGE_ENV_PREFIX, STAGE_OPTION_PREFIX, load
from .discretion import (
    DASHBOARD_URL,
    DEFAULT_METRICS_URL,
    HEADERS,
    METRICS_URL,
    OTLP,
    OTLP_TRACES,
    SECRETS,
    TOKEN,
    first_set,
    header_names,
    shown_url,
)
from .report import Setting
from .target import GRPC_PROTOCOL, HTTP_PROTOCOL, USUAL_PORTS, protocol_of

_SHOWN: Final = (
    ("exporter", ("OTEL_TRACES_EXPORTER",), "otlp where OTEL_EXPORTER_OTLP_… is set"),
    ("endpoint", (f"{OTLP_TRACES}ENDPOINT", f"{OTLP}ENDPOINT"), ""),
    ("protocol", (f"{OTLP_TRACES}PROTOCOL", f"{OTLP}PROTOCOL"), HTTP_PROTOCOL),
    ("headers", HEADERS, "none"),
    ("timeout", (f"{OTLP_TRACES}TIMEOUT", f"{OTLP}TIMEOUT"), "10 (seconds)"),
    ("certificate", (f"{OTLP_TRACES}CERTIFICATE", f"{OTLP}CERTIFICATE"), "the system's"),
    ("client_key", (f"{OTLP_TRACES}CLIENT_KEY", f"{OTLP}CLIENT_KEY"), "none"),
    (
        "client_certificate",
        (f"{OTLP_TRACES}CLIENT_CERTIFICATE", f"{OTLP}CLIENT_CERTIFICATE"),
        "none",
    ),
    ("insecure", (f"{OTLP_TRACES}INSECURE", f"{OTLP}INSECURE"), "by the endpoint's scheme"),
    ("compression", (f"{OTLP_TRACES}COMPRESSION", f"{OTLP}COMPRESSION"), "none"),
    ("sampler", ("OTEL_TRACES_SAMPLER",), "parentbased_always_on"),
    ("sampler_arg", ("OTEL_TRACES_SAMPLER_ARG",), "none"),
    ("sdk_disabled", ("OTEL_SDK_DISABLED",), "false"),
    ("resource_attributes", ("OTEL_RESOURCE_ATTRIBUTES",), "none"),
    ("bsp_export_timeout", ("OTEL_BSP_EXPORT_TIMEOUT",), "none (the tracker does not read it)"),
    ("collector_metrics_url", (METRICS_URL,), DEFAULT_METRICS_URL),
    ("dashboard_url", (DASHBOARD_URL,), "none"),
    ("token", (TOKEN,), "none"),
)
_FURTHER: Final = (
    "OTEL_TRACKER_READ_URL",
    "OTEL_TRACKER_STAGES",
    "OTEL_TRACKER_TRANSACTIONS",
    "OTEL_TRACKER_BIND",
)
"""Read by others of the project."""
_DISTRIBUTIONS: Final = (
    "otel-tracker",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-exporter-otlp-proto-grpc",
)
_LONGEST_TIMEOUT_S: Final = 600


def settings_of(environ: Mapping[str, str]) -> tuple[Setting, ...]:
    """Every value in force with its source. Of headers only the names, of secrets nothing."""
    rows = [_row(name, variables, default, environ) for name, variables, default in _SHOWN]
    service = Resource.create().attributes.get("service.name")
    source = first_set(environ, ("OTEL_SERVICE_NAME",))[0]
    if not source and "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        source = "OTEL_RESOURCE_ATTRIBUTES"
    rows.append(Setting("service_name", scrub(str(service)), source or "default"))
    rows += _batch_rows(environ)
    settings = load(environ=environ)
    for option in OPTIONS:
        if option.env in {variable for _, variables, _ in _SHOWN for variable in variables}:
            continue
        source = first_set(environ, (option.env,))[0]
        value = _plain(getattr(settings, option.name))
        rows.append(Setting(option.name, _shown(source, value), source or "default"))
    for stage, seconds in settings.stall_after_stage.items():
        source = next(
            (n for n in environ if n.lower() == f"{STAGE_ENV_PREFIX}{stage}".lower()), "default"
        )
        rows.append(Setting(f"{STAGE_OPTION_PREFIX}{stage}", _plain(seconds), source))
    return tuple(rows)


def _batch_rows(environ: Mapping[str, str]) -> list[Setting]:
    batch = batch_settings(Diagnostics(), environ)
    in_force = (
        ("schedule_delay", f"{batch.delay_s * 1000:.0f} (ms)"),
        ("max_queue_size", str(batch.queue_size)),
        ("max_export_batch_size", str(batch.batch_size)),
    )
    return [
        Setting(
            f"bsp_{name}", value, first_set(environ, (f"OTEL_BSP_{name.upper()}",))[0] or "default"
        )
        for name, value in in_force
    ]


def _row(
    name: str, variables: tuple[str, ...], default: str, environ: Mapping[str, str]
) -> Setting:
    source, value = first_set(environ, variables)
    if not source:
        if name == "endpoint":
            default = f"http://localhost:{USUAL_PORTS[protocol_of(environ)]}"
        return Setting(name, default, "default")
    return Setting(name, _shown(source, value), source)


def _shown(variable: str, value: str) -> str:
    if variable in SECRETS:
        return "(set, not shown)"
    if variable in HEADERS:
        return ", ".join(header_names(value)) + " (values not shown)"
    return shown_url(value) if "://" in value or variable.endswith("ENDPOINT") else scrub(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value) or "none"


def versions() -> dict[str, str | None]:
    """The versions of the distributions that matter; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


# --- hints ----------------------------------------------------------------------------------------


def hints_of(environ: Mapping[str, str]) -> list[str]:
    """What looks like a slip: names that nobody reads, values that nobody understands."""
    hints = [
        f"{given} is set, and nothing reads it; did you mean {meant}? "
        f'unset {given}; export {meant}="…"'
        for given, meant in near_misses(environ).items()
    ]
    name, value = first_set(environ, (f"{OTLP_TRACES}PROTOCOL", f"{OTLP}PROTOCOL"))
    if name and value not in (HTTP_PROTOCOL, GRPC_PROTOCOL):
        hints.append(
            f"{name}={scrub(value)} is no protocol that is supported here, so {HTTP_PROTOCOL} is "
            f"used; export {name}={'grpc' if 'grpc' in value.lower() else HTTP_PROTOCOL}"
        )
    name, value = first_set(environ, (f"{OTLP_TRACES}TIMEOUT", f"{OTLP}TIMEOUT"))
    if name and not value.isdecimal():
        hints.append(f"{name}={scrub(value)} is no whole number of seconds; export {name}=10")
    elif name and int(value) > _LONGEST_TIMEOUT_S:
        hints.append(f"{name}={value} is in seconds, not milliseconds; export {name}=10")
    name, value = first_set(environ, (f"{OTLP_TRACES}COMPRESSION", f"{OTLP}COMPRESSION"))
    if name and value.lower() not in ("none", "gzip", "deflate"):
        hints.append(f"{name}={scrub(value)} is no compression; export {name}=gzip")
    if any("(a part" in n for n in header_names(first_set(environ, HEADERS)[1])):
        hints.append(
            f"{first_set(environ, HEADERS)[0]} has a part that is not name=value, which is not "
            "sent; write name=value,name=value, and a space in a value as %20"
        )
    if str(Resource.create().attributes.get("service.name")).startswith("unknown_service"):
        hints.append(
            "the application has no name, and Jaeger lists it as unknown_service; "
            "export OTEL_SERVICE_NAME=my-service"
        )
    return hints


def near_misses(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that are set and that nobody reads, each with the name that was meant."""
    known = {
        name
        for module in (api_variables, sdk_variables)
        for name in vars(module)
        if name.startswith("OTEL_")
    }
    known.update(option.env for option in OPTIONS)
    known.update(variable for _, variables, _ in _SHOWN for variable in variables)
    known.update(_FURTHER)
    found = {}
    for name in environ:
        upper = name.upper()
        if not upper.startswith(("OTEL_", "OTLP_", "OPENTELEMETRY_")):
            continue
        if name in known or name.startswith((STAGE_ENV_PREFIX, "OTEL_PYTHON_")):
            continue
        near = difflib.get_close_matches(upper, sorted(known), n=1, cutoff=0.87)
        if near:
            found[name] = near[0]
    return found
