"""The application as a script: indexes the files it is given, and prints what came out.

The dashboard, where the tracker is in the process, is printed with it for the test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.auto.notes import pipeline


def greet(name: str) -> str:
    """A function of the script itself."""
    return f"hello {name}"


def main(arguments: list[str]) -> dict[str, object]:
    """Runs it."""
    results = [pipeline.handle(Path(name), "user-1") for name in arguments]
    output: dict[str, object] = {"results": results, "greeting": greet("notes")}
    if "otel_tracker" in sys.modules:
        from otel_tracker import get_debug_tracker

        output["dashboard"] = get_debug_tracker().get_dashboard_data()
    return output


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))  # noqa: T201 -- it is a program
