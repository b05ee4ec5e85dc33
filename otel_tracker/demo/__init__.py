"""A voice-notes pipeline that works: recorded speech, recognised, turned into memories, tracked.

Read `pipeline` first: it is how a pipeline of one's own reports to the tracker. Only `run` and
`report` know that this is a demo. Run it with ``otel-tracker demo``.
"""
