"""`python -m benchmarks.peers [peer ...]`: measures each in its environment, prints one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ("opentelemetry", "logfire", "traceloop", "ddtrace")
SECONDS = 20  # for one peer


def main() -> None:
    peers = sys.argv[1:] or PEERS
    if unknown := set(peers) - set(PEERS):
        sys.exit(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    print(
        "Peers at their defaults, each against a bare OpenTelemetry span with the same five\n"
        "attributes, in turn in one process; medians, 10th to 90th percentile in brackets\n"
    )
    failed = [peer for peer in peers if not _show(peer)]
    if failed:
        print(f"\nnot measured, for the reasons above: {', '.join(failed)}")
        sys.exit(1)


def _show(peer: str) -> bool:
    """Measures one peer and prints its part of the table; False if that failed."""
    environment = f".venv-peer-{peer}"
    python = ROOT / environment / "bin" / "python"
    if not python.exists():
        print(f"{peer}: there is no {environment}; `make bench-peers` builds it")
        return True
    try:
        done = subprocess.run(
            [str(python), "-m", f"benchmarks.peers.{peer}"],
            cwd=ROOT,
            env=_clean(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        print(f"{peer}: given up after {SECONDS} s")
        return False
    except subprocess.CalledProcessError as error:
        print(f"{peer}: failed\n{error.stderr}")
        return False
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    versions = ", ".join(f"{name} {number}" for name, number in lines[0]["versions"].items())
    print(f"{peer} ({versions})")
    for line in lines:
        print(
            f"    {line['name']:<40}"
            f"{line['ratio']:5.2f}x [{line['low']:.2f} to {line['high']:.2f}]"
            f"  ({line['a_us']:.1f} µs against {line['b_us']:.1f} µs)"
        )
    return True


def _clean() -> dict[str, str]:
    """The environment without settings of the libraries: defaults are measured, nothing is sent."""
    prefixes = ("OTEL_", "LOGFIRE_", "TRACELOOP_", "DD_", "DATADOG_")
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}


if __name__ == "__main__":
    main()
