"""A look at a port with a few bytes: whether anybody listens there, and what they speak."""

from __future__ import annotations

import re
import socket
import ssl
import time
from dataclasses import dataclass
from enum import Enum
from typing import Final

CONNECT_S: Final = 2.0
ANSWER_S: Final = 2.0
_MOST_BYTES: Final = 16_384

_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_EMPTY_SETTINGS: Final = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
HTTP2_GREETING: Final = _HTTP2_PREFACE + _EMPTY_SETTINGS
"""How a gRPC client begins."""

_FRAME_HEADER: Final = 9  # bytes: length (3), type, flags, stream (4)
_FIRST_FRAMES: Final = (4, 7)  # SETTINGS, GOAWAY
_TLS_ALERT: Final = 0x15


class Speaks(Enum):
    """What an answer looks like."""

    HTTP1 = "HTTP/1.1"
    HTTP2 = "gRPC (HTTP/2)"
    TLS = "TLS"
    CLOSED = "nothing: it closes the connection"
    SILENCE = "nothing"
    OTHER = "another protocol"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; the rest is told for HTTP/1.1 alone."""

    speaks: Speaks
    status: int = 0
    reason: str = ""
    content_type: str = ""
    location: str = ""
    body: bytes = b""
    """Its first bytes."""


def listens(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Whether a connection is accepted."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def ask(host: str, port: int, data: bytes, tls: ssl.SSLContext | None = None) -> Answer:
    """What is answered to `data`.

    Raises:
        OSError: no connection; `ssl.SSLError` and others of its kind for no TLS handshake.
    """
    with socket.create_connection((host, port), CONNECT_S) as plain:
        if tls is None:
            return _talk(plain, data)
        plain.settimeout(ANSWER_S)
        with tls.wrap_socket(plain, server_hostname=host) as secured:
            return _talk(secured, data)


def is_tls(host: str, port: int) -> bool:
    """Whether TLS is spoken there, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent, and nothing believed
    try:
        with socket.create_connection((host, port), CONNECT_S) as plain:
            plain.settimeout(ANSWER_S)
            with context.wrap_socket(plain, server_hostname=host):
                return True
    except ssl.SSLError as error:
        # A server that asks for a client's certificate, or refuses ours, has spoken TLS.
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _talk(connection: socket.socket, data: bytes) -> Answer:
    deadline = time.monotonic() + ANSWER_S
    received = b""
    closed = False
    try:
        connection.sendall(data)
        while len(received) < _MOST_BYTES and not _is_enough(received):
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            chunk = connection.recv(4096)
            if not chunk:
                closed = True
                break
            received += chunk
    except TimeoutError:
        pass
    except OSError:
        closed = True  # a reset is how gRPC servers take leave of a stranger
    return _understand(received, closed=closed)


def _is_enough(received: bytes) -> bool:
    if _is_http2(received):
        return True
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = re.search(rb"(?im)^content-length:\s*(\d+)", head)
    return length is not None and len(body) >= int(length[1])


def _is_http2(received: bytes) -> bool:
    return (
        len(received) >= _FRAME_HEADER
        and received[3] in _FIRST_FRAMES
        and received[5:_FRAME_HEADER] == bytes(4)
    )


def _understand(received: bytes, *, closed: bool) -> Answer:
    if not received:
        return Answer(Speaks.CLOSED if closed else Speaks.SILENCE)
    if _is_http2(received):
        return Answer(Speaks.HTTP2)
    if received[0] == _TLS_ALERT and received[1:2] == b"\x03":
        return Answer(Speaks.TLS)
    first = re.match(rb"HTTP/1\.[01] (\d{3}) ?([^\r\n]*)", received)
    if first is None:
        return Answer(Speaks.OTHER)
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(
        Speaks.HTTP1,
        int(first[1]),
        first[2].decode("latin-1"),
        _header(head, b"content-type").lower(),
        _header(head, b"location"),
        body[:_MOST_BYTES],
    )


def _header(head: bytes, name: bytes) -> str:
    found = re.search(rb"(?im)^" + name + rb":\s*([^\r\n;]*)", head)
    return found[1].decode("latin-1").strip() if found else ""
