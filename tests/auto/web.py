"""The application as a web service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from .notes import pipeline

app = FastAPI()


@app.post("/index")
async def index(path: str, user_id: str) -> dict[str, Any]:
    """Indexes a file."""
    return await pipeline.index_file(Path(path), user_id)


@app.get("/dashboard")
def dashboard() -> dict[str, Any]:
    """What the tracker shows, for the test."""
    tracker = sys.modules["otel_tracker"].get_debug_tracker()
    shown: dict[str, Any] = tracker.get_dashboard_data()
    return shown
