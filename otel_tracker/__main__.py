"""``python -m otel_tracker``: the same as the command ``otel-tracker``."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
