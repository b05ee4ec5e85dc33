"""Speech to text with pocketsphinx and the English model inside its wheel. Nothing leaves here.

Knows nothing of the tracker: progress goes to a callback.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .audio import BYTES_PER_SECOND, SAMPLE_RATE


class Recognizer:
    """Recognises English speech; may be used from several threads at once.

    Loading the model takes about a third of a second and 100 MB a thread, at its first use.

    Raises:
        ImportError: pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._new_decoder: Callable[..., Any] = Decoder
        self._mine = threading.local()  # a decoder serves one thread

    def transcribe(self, pcm: bytes, on_progress: Callable[[float], None]) -> str:
        """What is said, in lower-case words; empty if nothing is.

        Args:
            pcm: 16 kHz, mono, signed 16-bit samples.
            on_progress: called for each second of audio with the share that is done, 0 to 1.

        Raises:
            RuntimeError: the decoder gave up.
        """
        decoder = self._decoder()
        decoder.start_utt()
        try:
            for start in range(0, len(pcm), BYTES_PER_SECOND):
                decoder.process_raw(pcm[start : start + BYTES_PER_SECOND])
                on_progress(min(1.0, (start + BYTES_PER_SECOND) / len(pcm)))
        finally:
            decoder.end_utt()
        best = decoder.hyp()
        return "" if best is None else str(best.hypstr).strip()

    def _decoder(self) -> Any:
        if not hasattr(self._mine, "decoder"):
            self._mine.decoder = self._new_decoder(samprate=SAMPLE_RATE, loglevel="FATAL")
            self._mine.loudness = self._mine.decoder.get_cmn(False)
        # The decoder goes on adapting to what it hears. Start each recording afresh: otherwise its
        # text depends on which recordings this thread happened to hear before.
        self._mine.decoder.set_cmn(self._mine.loudness)
        return self._mine.decoder
