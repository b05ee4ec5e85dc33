"""Where the OTLP exporter sends: the environment as the exporter understands it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from opentelemetry.util.re import parse_env_headers

from .discretion import HEADERS, OTLP, OTLP_TRACES, first_set, shown_url

HTTP_PROTOCOL: Final = "http/protobuf"
GRPC_PROTOCOL: Final = "grpc"
TRACES_PATH: Final = "/v1/traces"
USUAL_PORTS: Final = {GRPC_PROTOCOL: 4317, HTTP_PROTOCOL: 4318}

_OTLP_EXPORTERS: Final = {
    "otlp": None,
    "otlp_proto_http": HTTP_PROTOCOL,
    "otlp_proto_grpc": GRPC_PROTOCOL,
}
"""The names in ``OTEL_TRACES_EXPORTER``, and the protocol of each; None: as it is configured."""
_BUNDLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class Target:
    """Where the OTLP exporter sends, as it will understand the environment."""

    protocol: str
    url: str
    """As the exporter uses it: over HTTP with the path of traces."""
    variable: str
    """The environment variable that gives it; the one to set where none does."""
    host: str
    port: int
    path: str
    query: str
    is_tls: bool
    headers: Mapping[str, str]
    set_variables: frozenset[str]
    """The names of the environment that have a value."""
    ca_file: str | None = None
    key_file: str | None = None
    certificate_file: str | None = None

    @property
    def is_grpc(self) -> bool:
        """Whether the exporter speaks gRPC; otherwise HTTP."""
        return self.protocol == GRPC_PROTOCOL

    @property
    def place(self) -> str:
        """Host and port."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def is_for_traces_alone(self) -> bool:
        """Whether the variable's value is taken as it stands, without a path being added."""
        return self.variable.startswith(OTLP_TRACES)

    @property
    def bundle_variable(self) -> str | None:
        """The variable of the requests library that newer HTTP exporters heed instead of ours."""
        if self.is_grpc or not (self.is_tls and self.ca_file):
            return None
        return next((name for name in _BUNDLES if name in self.set_variables), None)

    def variable_for(self, name: str) -> str:
        """The variable that decides PROTOCOL, HEADERS, CERTIFICATE or INSECURE here."""
        for variable in (OTLP_TRACES + name, OTLP + name):
            if variable in self.set_variables:
                return variable
        return (OTLP_TRACES if self.is_for_traces_alone else OTLP) + name

    def export_line(
        self, *, scheme: str = "", port: int = 0, path: str | None = None, protocol: str = ""
    ) -> str:
        """The line that sets this endpoint with something changed; see `protocol_line`."""
        scheme = scheme or ("https" if self.is_tls else "http")
        path = self.path if path is None else path
        if (protocol or self.protocol) == GRPC_PROTOCOL:
            path = ""
        elif not self.is_for_traces_alone:
            path = path.removesuffix(TRACES_PATH)
        elif not path.strip("/"):
            path = TRACES_PATH
        place = f"{_bracketed(self.host)}:{port or self.port}"
        return f"export {self.variable}={scheme}://{place}{path}"

    def protocol_line(self, protocol: str) -> str:
        """The lines that change the protocol, and the endpoint where that is needed for it."""
        line = f"export {self.variable_for('PROTOCOL')}={protocol}"
        if protocol == HTTP_PROTOCOL and self.is_for_traces_alone:
            line += "\n" + self.export_line(protocol=protocol)
        return line


def target_of(environ: Mapping[str, str], exporter: str = "otlp") -> Target | None:
    """Where the exporter will send; None for one that is not OTLP's.

    Raises:
        ValueError: the endpoint is no address that the exporter could use; the message says why,
            and in its second line what to set instead.
    """
    if exporter not in _OTLP_EXPORTERS:
        return None
    protocol = _OTLP_EXPORTERS[exporter] or protocol_of(environ)
    variable, value = first_set(environ, (f"{OTLP_TRACES}ENDPOINT", f"{OTLP}ENDPOINT"))
    value = value or f"http://localhost:{USUAL_PORTS[protocol]}"
    variable = variable or f"{OTLP}ENDPOINT"
    url, parts = value, _split(value)
    if protocol == HTTP_PROTOCOL:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            rest = value.split("://")[-1] or f"localhost:{USUAL_PORTS[protocol]}"
            raise ValueError(
                f"{variable}={shown_url(value)} is no http:// or https:// address\n"
                f"export {variable}=http://{shown_url(rest)}"
            )
        if not variable.startswith(OTLP_TRACES):
            url = value.removesuffix("/") + TRACES_PATH
            parts = _split(url)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
    else:
        is_tls = _grpc_uses_tls(parts.scheme, environ)
        if not parts.netloc:  # "localhost:4317": the exporter takes all of it as host and port
            parts = _split(f"//{value}")
        port = parts.port or 443
    if not parts.hostname:
        raise ValueError(
            f"{variable} names no host\nexport {variable}=http://localhost:{USUAL_PORTS[protocol]}"
        )
    return Target(
        protocol,
        url,
        variable,
        parts.hostname,
        port,
        parts.path,
        f"?{parts.query}" if parts.query else "",
        is_tls,
        _headers(environ, parts),
        frozenset(name for name, text in environ.items() if text.strip()),
        *(
            first_set(environ, (f"{OTLP_TRACES}{name}", f"{OTLP}{name}"))[1] or None
            for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
        ),
    )


def _headers(environ: Mapping[str, str], parts: SplitResult) -> dict[str, str]:
    headers = dict(parse_env_headers(first_set(environ, HEADERS)[1], liberal=True))
    if parts.username and "authorization" not in headers:  # as the HTTP exporter does
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    return headers


def protocol_of(environ: Mapping[str, str]) -> str:
    """The protocol that the tracker takes; whatever is not exactly ``grpc`` means HTTP."""
    _, value = first_set(environ, (f"{OTLP_TRACES}PROTOCOL", f"{OTLP}PROTOCOL"))
    return GRPC_PROTOCOL if value == GRPC_PROTOCOL else HTTP_PROTOCOL


def _grpc_uses_tls(scheme: str, environ: Mapping[str, str]) -> bool:
    if scheme == "https":
        return True
    _, insecure = first_set(environ, (f"{OTLP_TRACES}INSECURE", f"{OTLP}INSECURE"))
    return insecure.lower() != "true" if insecure else scheme != "http"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"the endpoint {shown_url(url)} is no address: {error}\n") from None
    return parts


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def missing_files(target: Target) -> str | None:
    """What is wrong with the files that TLS needs; None where they are all there."""
    for name, path in (
        ("CERTIFICATE", target.ca_file),
        ("CLIENT_KEY", target.key_file),
        ("CLIENT_CERTIFICATE", target.certificate_file),
    ):
        if path and target.is_tls and not Path(path).is_file():
            return f"{target.variable_for(name)} names {path}, and there is no such file"
    return None
