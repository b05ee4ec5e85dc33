"""A recording as a client sends it and as the server takes it: packets out, samples in.

Knows WAV; knows nothing of the tracker or of speech.
"""

from __future__ import annotations

import io
import shlex
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SAMPLE_RATE: Final = 16_000
"""Samples a second that the recogniser was trained on."""
BYTES_PER_SECOND: Final = SAMPLE_RATE * 2
"""One channel of 16-bit samples."""

_PACKET_S: Final = 0.1
_PACE: Final = 20
"""Packets come that many times faster than someone speaks."""
_LONGEST_S: Final = 600
LONGEST_BYTES: Final = _LONGEST_S * BYTES_PER_SECOND
"""What is longer is refused."""
_UNKNOWN_LENGTH: Final = 0x7FFF_0000
"""Bytes: programs that write a WAV into a pipe cannot know its length and claim about this much."""


class AudioError(ValueError):
    """A recording that cannot be understood; the message says why and what helps."""


def size_of(path: Path) -> int:
    """The file's length in bytes.

    Raises:
        AudioError: there is no such file, or it is longer than ten minutes of audio.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise AudioError(f"{path.name} cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise AudioError(f"{path.name} is no file")
    if size > LONGEST_BYTES:
        raise AudioError(f"{path.name} is longer than {_LONGEST_S // 60} minutes")
    return size


def packets(path: Path) -> Iterator[bytes]:
    """The file as a phone would stream it: 100 ms at a time, only faster.

    Raises:
        AudioError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            while packet := file.read(round(_PACKET_S * BYTES_PER_SECOND)):
                yield packet
                time.sleep(_PACKET_S / _PACE)
    except OSError as error:
        raise AudioError(f"{path.name} cannot be read: {error.strerror}") from error


def samples(recording: bytes, name: str) -> bytes:
    """The samples of a whole WAV file: 16 kHz, mono, signed 16-bit.

    Args:
        recording: the file's bytes.
        name: what to call it in a message.

    Raises:
        AudioError: it is empty, no WAV, in another format, or shorter than its header promises.
    """
    if not recording:
        raise AudioError(f"{name} is empty")
    try:
        with wave.open(io.BytesIO(recording), "rb") as wav:
            rate, channels, width = wav.getframerate(), wav.getnchannels(), wav.getsampwidth()
            promised = wav.getnframes() * channels * width
            data = wav.readframes(wav.getnframes())
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends too early"
        raise AudioError(f"{name} is no WAV of 16-bit samples ({reason}); {_cure(name)}") from error
    if (rate, channels, width) != (SAMPLE_RATE, 1, 2):
        found = f"{rate} Hz, {channels} channel{'s' if channels > 1 else ''}, {width * 8}-bit"
        raise AudioError(f"{name} is {found}, not {SAMPLE_RATE} Hz, mono, 16-bit; {_cure(name)}")
    # A recogniser takes a truncated file without a word and returns fewer words.
    if len(data) < promised < _UNKNOWN_LENGTH:
        raise AudioError(
            f"{name} is truncated: its header promises {promised / BYTES_PER_SECOND:.1f} s "
            f"and {len(data) / BYTES_PER_SECOND:.1f} s came"
        )
    return data


def _cure(name: str) -> str:
    source, target = shlex.quote(name), shlex.quote(f"{Path(name).stem}-16k.wav")
    return f"convert it: sox {source} -r {SAMPLE_RATE} -c 1 -b 16 {target}"
