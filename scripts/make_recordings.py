#!/usr/bin/env python3
"""Speaks the demo's recordings with flite and sox, as recordings/manifest.json describes them.

Needs both programs (Debian: ``apt-get install flite sox``). The same flite and sox always write the
same bytes, so a run that changes nothing in the manifest changes no file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).resolve().parent.parent / "otel_tracker" / "demo" / "recordings"
SAMPLE_RATE = 16_000
HEADER_BYTES = 44
WAV = ("-r", str(SAMPLE_RATE), "-c", "1", "-b", "16")
ROOM_NOISE = ("brownnoise", "vol", "0.01")  # digital silence would be too easy


def call(program: str, *arguments: str) -> None:
    """Runs a program; its failure ends this one."""
    path = shutil.which(program)
    if path is None:
        sys.exit(f"{program} is not installed; on Debian: apt-get install flite sox")
    subprocess.run([path, *arguments], check=True)


def make(row: dict[str, Any], scratch: Path) -> None:
    """Writes one recording of the manifest."""
    target = RECORDINGS / row["file"]
    # sox -R: the dither's random numbers are the same every time.
    if row["voice"] is None:
        seconds = str(row["silence_seconds"])
        call("sox", "-R", "-n", *WAV, str(target), "synth", seconds, *ROOM_NOISE)
    else:
        spoken = str(scratch / "spoken.wav")
        call("flite", "-voice", row["voice"], "-t", row["spoken"], "-o", spoken)
        call("sox", "-R", spoken, *WAV, str(target))
    if "cut_to_seconds" in row:
        # The header keeps promising the whole: what an upload leaves that broke off.
        kept = HEADER_BYTES + round(row["cut_to_seconds"] * SAMPLE_RATE) * 2
        target.write_bytes(target.read_bytes()[:kept])


def main() -> None:
    """Writes every recording of the manifest."""
    with tempfile.TemporaryDirectory() as scratch:
        for row in json.loads((RECORDINGS / "manifest.json").read_text("utf-8")):
            make(row, Path(scratch))


if __name__ == "__main__":
    main()
