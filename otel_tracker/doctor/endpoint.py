"""Why an endpoint does not take spans, by a look of our own at it.

The exporters say little ("Transient error StatusCode.UNAVAILABLE"), and each release says it in
other words. So the doctor greets the endpoint as the exporter would, and judges the answer.
"""

from __future__ import annotations

import importlib
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import gaierror
from typing import Any, Final
from urllib.parse import urlsplit

from . import wire
from .target import GRPC_PROTOCOL, HTTP_PROTOCOL, TRACES_PATH, USUAL_PORTS, Target
from .web import is_loopback, why
from .wire import Answer, Speaks

_PROXY_PORT: Final = 80
_EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_REFUSED: Final = (401, 403)
_WRONG_PATH: Final = (404, 405)
LONGEST_S: Final = 5.0
"""How long the endpoint may take for the probe."""
_SHORT_S: Final = 2.0
_CONTAINER_MARKS: Final = ("/.dockerenv", "/run/.containerenv")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an endpoint, and the line that mends it."""

    text: str
    fix: str | None = None
    told: str = ""
    """What the endpoint said itself, unabridged."""
    patience_s: float = 0.2
    """How long the exporter may take to get through in spite of it."""
    is_final: bool = False
    """The exporter takes it for success, and is wrong."""


def proxy_of(target: Target) -> str | None:
    """The variable of the proxy that the exporter goes through; None where it goes straight."""
    scheme = "https" if target.is_tls else "http"
    if urllib.request.proxy_bypass(target.host):
        return None
    if target.is_grpc and is_loopback(target.host):
        return None  # gRPC's own rules; not worth a guess
    return f"{scheme}_proxy" if scheme in urllib.request.getproxies() else None


def look_at_proxy(target: Target, variable: str) -> Finding | None:
    """Whether the proxy is there at all; more is not to be seen from here."""
    address = urllib.request.getproxies()[variable.removesuffix("_proxy")]
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname or wire.listens(parts.hostname, parts.port or _PROXY_PORT):
        return None
    return Finding(
        f"{target.place} is to be reached through the proxy that {variable} names, and nothing "
        "listens there",
        f"export NO_PROXY={target.host}",
    )


def look(target: Target) -> Finding | None:
    """What is wrong with the endpoint; None where nothing is to be seen. Takes up to 10 s."""
    try:
        return _over_tls(target) if target.is_tls else _in_plain_text(target)
    except gaierror as error:
        return Finding(
            f"the host name {target.host} does not resolve ({error.strerror or error})",
            f"export {target.variable}=http://<a host that is known>:{target.port}"
            + _where_to(target),
        )
    except ConnectionRefusedError:
        return _nothing_listens(target)
    except TimeoutError:
        return Finding(
            f"{target.place} does not answer an attempt to connect within {wire.CONNECT_S:.0f} s: "
            "a firewall, or an address where nobody is",
            f"export {target.variable}=http://<host>:{target.port}{_where_to(target)}",
        )
    except OSError as error:
        return Finding(f"no connection to {target.place}: {why(error)}", None)


def _usual_line(target: Target) -> str:
    port = USUAL_PORTS[target.protocol]
    host = target.host if port != target.port and wire.listens(target.host, port) else "<host>"
    return f"export {target.variable}=http://{host}:{port}{_where_to(target)}"


def _where_to(target: Target) -> str:
    return TRACES_PATH if target.is_for_traces_alone and not target.is_grpc else ""


def _nothing_listens(target: Target) -> Finding:
    text = f"nothing listens on {target.place}"
    found = [
        protocol
        for protocol in (target.protocol, _other(target.protocol))
        if USUAL_PORTS[protocol] != target.port and wire.listens(target.host, USUAL_PORTS[protocol])
    ]
    if found:
        ports = " and ".join(f"{USUAL_PORTS[p]} ({_name(p)})" for p in found)
        best = found[0]
        fix = target.export_line(scheme="http", port=USUAL_PORTS[best], protocol=best)
        if best != target.protocol:
            fix += f"\nexport {target.variable_for('PROTOCOL')}={best}"
        return Finding(f"{text}; of the usual ports of that host, {ports} does listen", fix)
    others = [str(port) for port in USUAL_PORTS.values() if port != target.port]
    text += f", nor on {' or '.join(others)}, where OTLP usually is"
    if is_loopback(target.host) and any(Path(mark).exists() for mark in _CONTAINER_MARKS):
        text += "; in a container, localhost is the container itself"
    fix = (
        "start the Collector or Jaeger there, or name the host where one runs:\n"
        f"export {target.variable}=http://<host>:{USUAL_PORTS[target.protocol]}{_where_to(target)}"
    )
    return Finding(text, fix)


def _other(protocol: str) -> str:
    return HTTP_PROTOCOL if protocol == GRPC_PROTOCOL else GRPC_PROTOCOL


def _name(protocol: str) -> str:
    return "gRPC" if protocol == GRPC_PROTOCOL else "HTTP"


# --- over plain text and over TLS -----------------------------------------------------------------


def _in_plain_text(target: Target) -> Finding | None:
    answer = wire.ask(target.host, target.port, _greeting(target))
    expected = Speaks.HTTP2 if target.is_grpc else Speaks.HTTP1
    is_odd = answer.speaks is not expected or answer.status == 400
    if is_odd and answer.speaks is not Speaks.HTTP2 and wire.is_tls(target.host, target.port):
        # Go's servers say 400 to plain text on a TLS port; most others hang up.
        return Finding(
            f"{target.place} speaks TLS, and the exporter sends plain text",
            target.export_line(scheme="https"),
        )
    return _judge(target, answer, None)


def _over_tls(target: Target) -> Finding | None:
    context = ssl.create_default_context()
    if target.ca_file and Path(target.ca_file).is_file():
        context.load_verify_locations(cafile=target.ca_file)
    if target.certificate_file and Path(target.certificate_file).is_file():
        context.load_cert_chain(target.certificate_file, target.key_file)
    context.set_alpn_protocols(["h2"] if target.is_grpc else ["http/1.1"])
    try:
        answer = wire.ask(target.host, target.port, _greeting(target), context)
    except ssl.SSLCertVerificationError as error:
        return Finding(
            f"the certificate of {target.place} is not trusted: {error.verify_message}",
            f"export {target.variable_for('CERTIFICATE')}=/path/to/the/authority.pem",
            patience_s=_SHORT_S,  # the exporters bring authorities of their own
        )
    except (ConnectionRefusedError, gaierror):
        raise
    except OSError as error:
        plain = wire.ask(target.host, target.port, _greeting(target))
        if plain.speaks in (Speaks.HTTP1, Speaks.HTTP2):
            return Finding(
                f"{target.place} speaks plain text, and the exporter speaks TLS to it",
                _plain_text_line(target),
            )
        if plain.speaks is Speaks.SILENCE:
            return _silence(target)
        return Finding(
            f"no TLS connection to {target.place}: {why(error)}",
            f"openssl s_client -connect {target.place}   # says more",
            patience_s=_SHORT_S,
        )
    return _judge(target, answer, context)


def _plain_text_line(target: Target) -> str:
    if target.url.startswith("http://"):  # it was told to be secure all the same
        return f"export {target.variable_for('INSECURE')}=true"
    return target.export_line(scheme="http")


def _greeting(target: Target) -> bytes:
    return wire.HTTP2_GREETING if target.is_grpc else _empty_request(target, target.path)


def _empty_request(target: Target, path: str) -> bytes:
    """An OTLP request without a span, with the headers that the exporter sends."""
    headers = {
        "host": target.place,
        "content-type": "application/x-protobuf",
        "content-length": "0",
        "connection": "close",
        **{key.lower(): value for key, value in target.headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST {path or '/'}{target.query} HTTP/1.1\r\n{head}\r\n"
    return request.encode("latin-1", "replace")


# --- the answer -----------------------------------------------------------------------------------


def _judge(target: Target, answer: Answer, tls: ssl.SSLContext | None) -> Finding | None:
    speaks = answer.speaks
    if speaks is Speaks.SILENCE:
        return _silence(target)
    if speaks is Speaks.HTTP2:
        return _judge_grpc(target) if target.is_grpc else _http_against_grpc(target)
    if speaks is Speaks.HTTP1:
        return _grpc_against_http(target) if target.is_grpc else _judge_http(target, answer, tls)
    wanted = "gRPC" if target.is_grpc else "HTTP"
    return Finding(
        f"{target.place} does not speak {wanted}; it speaks {speaks.value}",
        _usual_line(target),
        patience_s=_SHORT_S,
    )


def _silence(target: Target) -> Finding:
    return Finding(
        f"{target.place} accepts the connection and never answers: a program that hangs, or one "
        "that is no Collector",
        "restart what listens there, or name another:\n" + _usual_line(target),
        patience_s=LONGEST_S,
    )


def _http_against_grpc(target: Target) -> Finding:
    return Finding(
        f"{target.place} speaks gRPC, and the exporter sends HTTP to it",
        target.protocol_line(GRPC_PROTOCOL),
    )


def _grpc_against_http(target: Target) -> Finding:
    return Finding(
        f"{target.place} speaks HTTP/1.1, and the exporter sends gRPC to it",
        target.protocol_line(HTTP_PROTOCOL),
    )


def _judge_http(target: Target, answer: Answer, tls: ssl.SSLContext | None) -> Finding | None:
    status = answer.status
    text = _text_of(answer)
    said = f"{target.place} answers {status} {answer.reason}".rstrip()
    if 200 <= status < 300:
        if answer.content_type != "text/html":
            return None
        return Finding(
            f"{target.place} answers with a web page: it is no OTLP endpoint (the exporter takes "
            "that for success)",
            _usual_line(target),
            is_final=True,
        )
    if 300 <= status < 400:
        return Finding(
            f"{said}: it redirects to {answer.location or 'elsewhere'}, where no span follows",
            f"export {target.variable}=<the address it redirects to>",
            is_final=True,
        )
    if status in _REFUSED:
        return _credentials(target, said, text)
    if status in _WRONG_PATH:
        return _wrong_path(target, f"{said} to POST {target.path or '/'}", tls)
    return Finding(said, _overload_fix(status), text, patience_s=LONGEST_S)


def _overload_fix(status: int) -> str | None:
    if status in (429, 502, 503, 504):
        return "look into the Collector's log: it is overloaded, or what is behind it is down"
    return None


def _text_of(answer: Answer) -> str:
    """What an error says; OTLP's are a `google.rpc.Status`."""
    if answer.content_type == "text/html":
        return ""
    if answer.content_type == "application/x-protobuf":
        status: Any = importlib.import_module("google.rpc.status_pb2")  # it has no types
        try:
            return str(status.Status.FromString(answer.body).message)
        except Exception:  # protobuf's DecodeError, by whichever name this release has
            return ""
    return answer.body[:300].decode("utf-8", "replace")


def _credentials(target: Target, said: str, text: str) -> Finding:
    names = ", ".join(target.headers)
    sent = f"the headers sent were {names}" if names else "no headers were sent"
    said = f"{said}: the credentials are refused ({sent})"
    line = f'export {target.variable_for("HEADERS")}="authorization=Bearer%20<token>"'
    return Finding(said, line, text, patience_s=_SHORT_S)


def _wrong_path(target: Target, said: str, tls: ssl.SSLContext | None) -> Finding:
    path = target.path.rstrip("/")
    candidates = dict.fromkeys(
        (path + TRACES_PATH, path.removesuffix(TRACES_PATH) or TRACES_PATH, TRACES_PATH)
    )
    for candidate in candidates:
        if candidate == target.path:
            continue
        request = _empty_request(target, candidate)
        answer = _attempt(lambda r=request: wire.ask(target.host, target.port, r, tls))  # type: ignore[misc]
        if answer and answer.status and answer.status not in (*_WRONG_PATH, *range(300, 400)):
            return Finding(
                f"{said}: the path is wrong; {candidate} is there",
                target.export_line(path=candidate),
                patience_s=_SHORT_S,
            )
    return Finding(
        f"{said}, nor is {TRACES_PATH} there: it is no OTLP endpoint",
        _usual_line(target),
        patience_s=_SHORT_S,
    )


def _attempt(work: Callable[[], Answer]) -> Answer | None:
    try:
        return work()
    except OSError:
        return None


def _judge_grpc(target: Target) -> Finding | None:
    code, details = _grpc_status(target)
    said = f"{target.place} answers {code}"
    if code == "OK":
        return None
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return _credentials(target, said, details)
    if code == "UNIMPLEMENTED":
        return Finding(
            f"{target.place} speaks gRPC and takes no traces: it is no OTLP endpoint",
            _usual_line(target),
        )
    return Finding(said, None, details, patience_s=LONGEST_S)


def _grpc_status(target: Target) -> tuple[str, str]:
    """The status of an export without a span, and its details."""
    grpc: Any = importlib.import_module("grpc")  # it has no types
    if target.is_tls:
        files = (target.ca_file, target.key_file, target.certificate_file)
        read = [Path(f).read_bytes() if f and Path(f).is_file() else None for f in files]
        channel = grpc.secure_channel(target.place, grpc.ssl_channel_credentials(*read))
    else:
        channel = grpc.insecure_channel(target.place)
    with channel:
        call = channel.unary_unary(_EXPORT_METHOD)
        metadata = tuple((key.lower(), value) for key, value in target.headers.items())
        try:
            call(b"", timeout=wire.ANSWER_S, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name, str(error.details() or "")
        except ValueError as error:  # a header that gRPC does not take
            return "INVALID_ARGUMENT", str(error)
    return "OK", ""
