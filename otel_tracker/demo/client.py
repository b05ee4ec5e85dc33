"""A phone: sends one recording over a WebSocket, as it is recorded."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from .audio import AudioError, packets, size_of

_PATIENCE_S: Final = 30.0
"""How long the server may take to answer: at first it is still starting."""


def send(
    address: tuple[str, int],
    user_id: str,
    path: Path,
    on_begin: Callable[[str], None],
    on_progress: Callable[[float], None],
) -> None:
    """Sends a recording from its first packet to its last.

    Args:
        address: host and port of the server.
        user_id: whose recording it is.
        path: where it is; that it cannot be read is told to the server.
        on_begin: called with the transaction's id before anything is sent.
        on_progress: called with the share that is sent, 0 to 1.

    Raises:
        OSError: the server cannot be reached, or does not answer.
        websockets.exceptions.WebSocketException: the connection was lost.
    """
    from websockets.sync.client import connect

    host, port = address
    who = {"user_id": user_id, "client_id": f"{user_id}-phone", "file_name": path.name}
    # Connected by hand: a proxy that the environment names is not for loopback.
    connection = socket.create_connection(address, timeout=_PATIENCE_S)
    url = f"ws://{host}:{port}/recordings?{urlencode(who)}"
    with connect(url, sock=connection, open_timeout=_PATIENCE_S, close_timeout=5) as websocket:
        on_begin(str(websocket.recv(timeout=_PATIENCE_S)))
        error = None
        sent = 0
        try:
            size = size_of(path)
            for packet in packets(path):
                websocket.send(packet)
                sent += len(packet)
                on_progress(sent / size)
        except AudioError as problem:
            error = str(problem)
        websocket.send(json.dumps({"error": error}))
        # The server closes the connection when it has queued the recording.
        for _ in websocket:
            pass
    if error is not None:
        raise AudioError(error)
