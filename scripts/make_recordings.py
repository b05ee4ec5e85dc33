#!/usr/bin/env python3
"""Speaks the demo's recordings with flite and sox, as recordings/manifest.json describes them.

Needs both programs (Debian: ``apt-get install flite sox``). The same flite and sox always write the
same bytes, so a run that changes nothing in the manifest changes no file.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).resolve().parent.parent / "otel_tracker" / "demo" / "recordings"
SAMPLE_RATE = 16_000
HEADER_BYTES = 44
WAV = ["-r", str(SAMPLE_RATE), "-c", "1", "-b", "16"]
SOX = ["sox", "-R"]  # -R: the dither's random numbers are the same every time
ROOM_NOISE = ["brownnoise", "vol", "0.01"]  # digital silence would be too easy


def make(row: dict[str, Any], scratch: Path) -> None:
    """Writes one recording.

    Raises:
        subprocess.CalledProcessError: flite or sox failed; it said why on stderr.
    """
    target = RECORDINGS / row["file"]
    if row["voice"] is None:
        seconds = str(row["silence_seconds"])
        subprocess.run([*SOX, "-n", *WAV, str(target), "synth", seconds, *ROOM_NOISE], check=True)
    else:
        spoken = scratch / "spoken.wav"
        flite = ["flite", "-voice", row["voice"], "-t", row["spoken"], "-o", str(spoken)]
        subprocess.run(flite, check=True)
        subprocess.run([*SOX, str(spoken), *WAV, str(target)], check=True)
    cut = row.get("cut_to_seconds")
    if cut is not None:
        # The header keeps promising the whole: what an upload leaves that broke off.
        kept = HEADER_BYTES + round(cut * SAMPLE_RATE) * 2
        target.write_bytes(target.read_bytes()[:kept])


def main() -> None:
    """Writes every recording of the manifest and prints what it wrote."""
    total = 0
    with tempfile.TemporaryDirectory() as scratch:
        for row in json.loads((RECORDINGS / "manifest.json").read_text("utf-8")):
            make(row, Path(scratch))
            size = (RECORDINGS / row["file"]).stat().st_size
            total += size
            print(f"{row['file']:14} {size:7,} bytes")
    print(f"{'total':14} {total:7,} bytes")


if __name__ == "__main__":
    main()
