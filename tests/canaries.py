"""Puts a marked secret or text into everything that the public API takes, and exports all of it.

``python -m tests.canaries`` prints what it planted, as one line of JSON: marks by family.

- ``secret``: e-mail addresses and credentials; in every argument, attribute, error and name.
- ``text``: transcripts, memory texts and prompts; wherever the API takes them.
- ``free``: words in messages, reasons and metadata, which leave unless text is switched off.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, Final

from otel_tracker import (
    PipelineStage,
    current_stage,
    get_debug_tracker,
    init_debug_tracker,
    stage,
    transaction,
)

_numbers: Final = count(1)
planted: Final[dict[str, list[str]]] = defaultdict(list)

_SECRETS: Final[tuple[Callable[[str], str], ...]] = (
    lambda mark: f"{mark}@leak.example",
    lambda mark: f"Bearer {mark}AbCdEf0123",
    lambda mark: f"sk-live-{mark}0123456789",
    lambda mark: f"https://user:{mark}@host.example/path",
    lambda mark: f"password={mark}",
    lambda mark: f'{{"api_key": "{mark}"}}',
    lambda mark: f"eyJhbGciOiJIUzI1NiJ9.{mark}0123456789.c2lnbmF0dXJl",
)


def _mark(family: str) -> str:
    mark = f"canary{family}{next(_numbers):04d}x"
    planted[family].append(mark)
    return mark


def secrets() -> Iterator[str]:
    """One of each kind, each with a mark of its own."""
    for form in _SECRETS:
        yield form(_mark("secret"))


def secret() -> str:
    """All kinds in one sentence."""
    return "see " + " and ".join(secrets())


def text() -> str:
    """What a person said, or a model."""
    return f"my doctor said {_mark('text')} yesterday"


def free() -> str:
    """Words that no scrubber knows."""
    return f"the model answered {_mark('free')}"


# --- the drop-in API ------------------------------------------------------------------------------


def every_argument_of_every_method() -> None:
    """Each argument in turn is a secret, the others are what they should be."""
    tracker = get_debug_tracker()
    tid = tracker.create_transaction("user", "client", "conversation")
    session = tracker.start_memory_session("audio-1", "client", "user", "")
    sound: dict[str, Any] = {
        "transaction_id": tid,
        "session_id": session,
        "audio_uuid": "audio-1",
        "user_id": "user",
        "client_id": "client",
        "stage": "memory_started",
        "limit": 10,
        "timeout_millis": 10,
        "timeout_s": 10,
    }
    skipped = {
        "shutdown",
        "detach",
        "configure",
        "declare",
        "export_debug_dump",
        "sweep",
        "force_flush",
    }
    for name, method in inspect.getmembers(tracker, inspect.ismethod):
        if name.startswith("_") or name in skipped:
            continue
        parameters = [
            p
            for p in inspect.signature(method).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        for planted_in in range(len(parameters)):
            for bad in (secret(), *secrets()):
                values = [sound.get(p.name, "x") for p in parameters]
                values[planted_in] = bad
                method(*values)
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(method).parameters.values()):
            values = [sound.get(p.name, "x") for p in parameters]
            for bad in secrets():
                method(*values, note=bad, nested={"deep": [bad]}, metadata={"more": bad})
                method(*values, **{bad[:40]: 1})


def events_with_messages() -> None:
    """Errors, reasons and metadata, as callers give them."""
    tracker = get_debug_tracker()
    for message in (secret(), *secrets(), free()):
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, PipelineStage.TRANSCRIPTION_COMPLETED, False, message)
        tracker.track_event(
            tid, PipelineStage.MEMORY_COMPLETED, False, ValueError(message), detail=message
        )
        tracker.track_event(tid, PipelineStage.AUDIO_RECEIVED, True, note=message, chunk_size=3)
        tracker.track_skipped(tid, "memory", message)
        tracker.track_progress(tid, "memory", step=message)
        tracker.track_event(tid, PipelineStage.CONVERSATION_ENDED, False, message)
    for key in ("transcript", "text", "memory", "prompt", "response", "messages", "llm_response"):
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, PipelineStage.MEMORY_STARTED, **{key: text()})
        tracker.track_event(tid, PipelineStage.MEMORY_COMPLETED, metadata={key: [text()]})
        tracker.track_audio_chunk(tid, 3, **{key: text()})
        tracker.track_event(tid, PipelineStage.CONVERSATION_ENDED)


def memory_sessions() -> None:
    """Transcripts, memories, prompts and answers wherever the API takes them."""
    tracker = get_debug_tracker()
    mail = next(iter(secrets()))
    session = tracker.start_memory_session("audio-2", "client", mail, mail)
    tracker.start_memory_processing(session)
    tracker.add_transcript_segment(session, 1, "speaker", text())
    tracker.update_full_conversation(session, text())
    tracker.add_memory_extraction(
        session, "audio-2", "memory-1", text(), "general", text(), text(), {"note": text()}
    )
    tracker.add_extraction_attempt(
        session, "audio-2", "first", False, secret(), 12, 300, text(), "model-1"
    )
    tracker.complete_memory_processing(session, False, free())


# --- blocks and decorators ------------------------------------------------------------------------


def blocks() -> None:
    """Attributes, exceptions, ids and reasons of stages and transactions."""
    for bad in (secret(), *secrets()):
        with (
            suppress(Exception),
            transaction(user_id=bad, client_id=bad, conversation_id=bad) as tx,
        ):
            tx.set(note=bad, nested={"a": bad})
            with suppress(Exception), stage("memory", key=bad, detail=bad) as attempt:
                attempt.set(found=bad)
                attempt.progress(step=bad)
                raise RuntimeError(bad)
            with stage("store") as attempt:
                attempt.skip(bad)
            with stage("send") as attempt:
                attempt.fail(bad, error_type=bad)
            tx.end(False, bad)
        with transaction(carrier={"traceparent": bad}), stage("odd", transaction_id=bad):
            pass
        with suppress(Exception), transaction(bad), stage(bad):
            pass
        kind = type(bad[:60], (Exception,), {})
        with suppress(Exception), stage("odd"):
            raise kind("of a class with a secret name")
    with suppress(Exception), stage("memory"):
        raise RuntimeError(free())
    with stage("memory") as attempt:
        attempt.fail(free())

    @stage("memory", capture=("model",))
    def remember(words: str, model: str, prompt: str) -> str:
        current_stage().set(transcript=text(), summary=text())
        return text()

    remember(text(), free(), text())
    remember(words=text(), model=secret(), prompt=text())

    @transaction
    def handle(user_id: str, recording: str) -> None:
        raise ValueError(secret())

    with suppress(Exception):
        handle(next(iter(secrets())), recording=text())


def a_stall() -> None:
    """The stack of a thread that hangs has no values of its variables and no source."""
    told = threading.Event()
    init_debug_tracker(on_stall=lambda stall: told.set(), stall_after=0.1)
    spoken = text()
    with transaction(user_id="user"), stage("memory", note=free()):
        assert spoken
        told.wait(10)


def main() -> None:
    every_argument_of_every_method()
    events_with_messages()
    memory_sessions()
    blocks()
    a_stall()
    assert get_debug_tracker().force_flush(30_000)
    state = get_debug_tracker().get_dashboard_data()["health"]["export"]["exporters"]["otlp"]
    sys.stdout.write(json.dumps({"planted": planted, "exported": state["exported"]}) + "\n")


if __name__ == "__main__":
    main()
