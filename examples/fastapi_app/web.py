"""The web process: takes recordings by HTTP and WebSocket, decodes them, and queues the rest."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, FastAPI, Header, HTTPException, Request, Response, WebSocket
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.websockets import WebSocketDisconnect

from otel_tracker import (
    current_stage,
    current_transaction,
    get_debug_tracker,
    init_debug_tracker,
    shutdown_debug_tracker,
    stage,
    transaction,
)

from .shared import RECORDINGS, put, set_up_opentelemetry

provider = set_up_opentelemetry()

# Who it is comes in a header, as from a proxy that has checked it. In the URL it would be exported:
# OpenTelemetry's instrumentation keeps the whole URL, and the tracker cleans only its own spans.
User = Annotated[str, Header(alias="X-User")]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Uvicorn waits for requests and background tasks before the part behind the yield."""
    init_debug_tracker()
    yield
    shutdown_debug_tracker()  # first: it ends open spans, and the provider exports them
    provider.shutdown()


app = FastAPI(lifespan=lifespan)
# Without exclude_spans each packet of a WebSocket is a span, beside the stages in their trace.
FastAPIInstrumentor.instrument_app(
    app, excluded_urls="/debug/,/v1/traces", exclude_spans=["receive", "send"]
)


@stage("decode")
def decode(recording: bytes) -> bytes:
    """The samples of a WAV file.

    What is raised is the reason on the dashboard. It must not quote what somebody said or wrote:
    OpenTelemetry's instrumentation exports it as it is, on the span of the background task.
    """
    with wave.open(io.BytesIO(recording)) as wav:
        if wav.getsampwidth() != 2 or wav.getnchannels() != 1:
            raise ValueError("a recording has to be mono, 16-bit")
        pcm: bytes = wav.readframes(wav.getnframes())
        current_stage().set(seconds=wav.getnframes() / wav.getframerate())
        return pcm


def decode_and_queue(recording: bytes) -> None:
    """Runs in a thread, within the transaction that the request has begun."""
    pcm = decode(recording)
    tx = current_transaction()
    tx.queued("loudness")  # from here on it waits for a worker, which is no stall
    put(tx.carrier(), pcm)
    tx.hand_over()


@app.post("/recordings", status_code=202)
async def upload(request: Request, background: BackgroundTasks, user: User) -> dict[str, str]:
    """Takes a whole recording, and answers before anything is done with it."""
    recording = await request.body()
    with transaction(RECORDINGS, user_id=user) as tx:
        # The task runs when this block has been left, so it is bound to the transaction. Leaving
        # is no end, since stages of the pipeline are still to come.
        background.add_task(tx.bind(decode_and_queue), recording)
    return {"transaction_id": tx.id}


@app.websocket("/recordings/live")
async def stream(
    websocket: WebSocket, user: User, client: Annotated[str, Header(alias="X-Client")]
) -> None:
    """Takes a recording packet by packet; an empty packet is its end."""
    await websocket.accept()
    tracker = get_debug_tracker()
    tracker.track_websocket_connected(user, client)  # while it is open, silence is no stall
    try:
        with transaction(RECORDINGS, user_id=user, client_id=client) as tx:
            await websocket.send_text(tx.id)
            recording = bytearray()
            try:
                while packet := await websocket.receive_bytes():
                    tracker.track_audio_chunk(tx.id, len(packet))
                    recording += packet
            except WebSocketDisconnect:
                tx.end(success=False, error="the client hung up")
                return
            await asyncio.to_thread(decode_and_queue, bytes(recording))  # context goes along
        await websocket.close()
    finally:
        tracker.track_websocket_disconnected(client)


# Both routes are for operators, not for the internet.


@app.get("/debug/pipeline")
def dashboard() -> dict[str, Any]:
    """What is going on: totals, rows, issues and stalls."""
    return get_debug_tracker().get_dashboard_data()


@app.post("/v1/traces")
async def spans_of_workers(request: Request) -> Response:
    """Workers post their spans here too: a dashboard knows what its own process has heard."""
    try:
        get_debug_tracker().receiver.take(await request.body())
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return Response(media_type="application/x-protobuf")
