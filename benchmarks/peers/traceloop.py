"""Traceloop at its defaults, but that nothing is sent."""

from __future__ import annotations

import contextlib
import os
import sys

from ._bare import ATTRIBUTES, Discard, measure, stage


def main() -> None:
    os.environ["TRACELOOP_TELEMETRY"] = "false"  # read on import by the releases that have it
    from traceloop.sdk import Traceloop
    from traceloop.sdk.decorators import task, workflow

    discard = Discard()
    with contextlib.redirect_stdout(sys.stderr):  # it greets
        Traceloop.init(app_name="bench", processor=discard)
    # It has no attributes of the caller's own: the five are recorded as arguments, in JSON.
    a_task, a_workflow = task("stage")(stage), workflow("stage")(stage)
    calls = measure("@task", lambda: a_task(**ATTRIBUTES), "traceloop-sdk")
    calls += measure("@workflow", lambda: a_workflow(**ATTRIBUTES), "traceloop-sdk")
    assert calls == discard.seen()


if __name__ == "__main__":
    main()
