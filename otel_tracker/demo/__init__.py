"""A voice-notes service that works: speech by WebSocket, recognised, remembered, and tracked.

Read `web` and `workers` first: they are how an application of one's own reports to the tracker, and
`pipeline` is what they share. `audio`, `recognizer` and `memories` do the work and know nothing of
it; `processes` runs them. Only the other files know that this is a demo: `client` sends, `watch`
and `traces` look on, `dashboard` starts the service that they feed, `run`, `report` and `command`
bring it together. Run it with ``otel-tracker demo``.
"""
