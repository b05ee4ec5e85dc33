"""The web process: takes recordings over WebSockets, packet by packet, and queues them.

This is a part to copy. One connection is one recording and one transaction.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, WebSocket

from otel_tracker import ActiveTransaction, PipelineStage, get_debug_tracker, transaction

from .audio import LONGEST_BYTES, AudioError
from .pipeline import VOICE_NOTES, Recorded

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


def application(jobs: Queue[Recorded]) -> FastAPI:
    """The application: ``/recordings?user_id=…&client_id=…&file_name=…`` takes a recording.

    The server tells the transaction's id; the client sends the file in binary packets, and last
    ``{"error": null}``, or what went wrong on its side.
    """
    web = FastAPI()
    tracker = get_debug_tracker()

    @web.websocket("/recordings")
    async def receive(websocket: WebSocket, user_id: str, client_id: str, file_name: str) -> None:
        await websocket.accept()
        # Connections and packets are no stages: events of the drop-in API fit them.
        tracker.track_websocket_connected(user_id, client_id)
        try:
            with transaction(
                VOICE_NOTES,
                user_id=user_id,
                client_id=client_id,
                conversation_id=PurePath(file_name).stem,
            ) as tx:
                await websocket.send_text(tx.id)
                try:
                    recording = await _receive_all(websocket, tx)
                except AudioError as error:
                    tracker.track_event(tx.id, PipelineStage.AUDIO_RECEIVED, False, str(error))
                    tx.end(success=False, error=error)
                else:
                    tx.queued("transcription")
                    jobs.put(Recorded(tx.carrier(), user_id, file_name, recording))
                    tx.hand_over()
            await websocket.close()
        finally:
            tracker.track_websocket_disconnected(client_id)

    return web


async def _receive_all(websocket: WebSocket, tx: ActiveTransaction) -> bytes:
    tracker = get_debug_tracker()
    recording = bytearray()
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise AudioError("the connection was lost")
        packet = message.get("bytes")
        if packet is None:
            error = json.loads(message["text"])["error"]
            if error is not None:
                raise AudioError(error)
            return bytes(recording)
        tracker.track_audio_chunk(tx.id, len(packet))
        recording += packet
        if len(recording) > LONGEST_BYTES:
            raise AudioError("the recording is too long")


def server(jobs: Queue[Recorded]) -> uvicorn.Server:
    """What serves the application."""
    config = uvicorn.Config(
        application(jobs),
        log_config=None,  # the process has set up logging
        timeout_graceful_shutdown=1,
        ws_max_size=1 << 16,
    )
    return uvicorn.Server(config)
