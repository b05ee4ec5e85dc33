"""ddtrace at its defaults but for its own telemetry, in front of an agent that discards.

The documented way to send nothing is a filter that drops every trace. It also spares the caller the
sampling, the tags and the encoding that come after it, which are most of the work, so both are
measured: OpenTelemetry's batch processor defers its encoding, ddtrace's writer does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ._bare import ATTRIBUTES, measure


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "agent")
        command = [sys.executable, "-m", "benchmarks.peers._agent", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"listening\n"
            calls = _measure(f"unix://{path}")
            seen, _ = agent.communicate()
    assert int(seen) == calls, f"{seen!r} traces of {calls} came"


def _measure(agent_url: str) -> int:
    """Returns how many traces the agent must have seen."""
    # Read on import.
    os.environ["DD_TRACE_AGENT_URL"] = agent_url
    os.environ["DD_INSTRUMENTATION_TELEMETRY_ENABLED"] = "false"
    os.environ["DD_REMOTE_CONFIGURATION_ENABLED"] = "false"
    from ddtrace.trace import TraceFilter, tracer

    def managed() -> None:
        with tracer.trace("stage") as span:
            span.set_tags(ATTRIBUTES)

    def inner() -> None:
        tracer.current_span().set_tags(ATTRIBUTES)

    decorated: Callable[[], None] = tracer.wrap("stage")(inner)

    calls = measure("with tracer.trace", managed, "ddtrace")
    calls += measure("@tracer.wrap", decorated, "ddtrace")

    class DropAll(TraceFilter):  # type: ignore[misc]  # not installed where types are checked
        dropped = 0

        def process_trace(self, trace: list[object]) -> None:
            self.dropped += 1

    drop = DropAll()
    tracer.configure(trace_processors=[drop])
    filtered = measure("with tracer.trace, dropped by a filter", managed, "ddtrace")
    filtered += measure("@tracer.wrap, dropped by a filter", decorated, "ddtrace")
    assert drop.dropped == filtered
    tracer.shutdown()
    return calls


if __name__ == "__main__":
    main()
