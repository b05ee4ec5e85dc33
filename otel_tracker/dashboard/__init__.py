"""The dashboard service: one live view of many processes, by HTTP.

`service.py` holds it together and `app.py` is its ASGI application, which runs by itself or is
mounted in an application of the user's own:

    from otel_tracker.dashboard.app import api

    app.mount("/tracker", api(token="…"))
"""
