"""The dashboard service: one live view of many processes, by HTTP.

`service.py` holds it together and `app.py` is its ASGI application, which runs by itself or is
mounted in an application of the user's own:

    from otel_tracker.dashboard import api

    app.mount("/tracker", api(token="…"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import api

__all__ = ["api"]


def __getattr__(name: str) -> Any:
    """`api`, once somebody asks for it: the page, and a tracker that only reads, do not."""
    if name == "api":
        from .app import api

        return api
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
