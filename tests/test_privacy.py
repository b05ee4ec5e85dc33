"""Canaries in every argument: what must not leave the process is in no exported byte."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from otel_tracker import DebugSystemTracker, PipelineStage
from otel_tracker.testing import Harness, fresh_tracker

TRANSCRIPTION_STARTED = PipelineStage.TRANSCRIPTION_STARTED
TRANSCRIPTION_COMPLETED = PipelineStage.TRANSCRIPTION_COMPLETED
MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED
CONVERSATION_ENDED = PipelineStage.CONVERSATION_ENDED

SECRETS = {
    "e-mail": ("zoe.canary@example.com", "canary"),
    "e-mail with a plus": ("zoe+canary@mail.example.co.uk", "canary"),
    "e-mail with an apostrophe": ("o'canary@example.com", "canary"),
    "e-mail in capitals": ("ZOE.CANARY@EXAMPLE.COM", "CANARY"),
    "e-mail beyond ASCII": ("zoë.canary@bücher.example", "canary"),
    "API key": ("sk-canary0123456789abcdef", "canary"),
    "GitHub token": ("ghp_canary0123456789abcdefghijkl", "canary"),
    "bearer": ("Authorization: Bearer canary0123456789", "canary"),
    "JWT": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.canary0123", "canary0123"),
    "password": ("password=canary-42", "canary"),
    "password in JSON": ('{"db_password": "canary 42"}', "canary"),
    "credentials in a URL": ("postgres://admin:canary42@db:5432/app", "canary"),
}
"""What a scrubber must know, and the part that must not be found."""

Call = Callable[[DebugSystemTracker, str], object]
"""A call that carries a canary, given one."""


def transaction(kind: DebugSystemTracker) -> str:
    return kind.create_transaction("user", "client", "conversation")


def session(kind: DebugSystemTracker) -> str:
    made = kind.start_memory_session("audio", "client", "user", "mail")
    kind.start_memory_processing(made)
    return made


PLACES: dict[str, Call] = {
    "user": lambda k, c: k.create_transaction(c, "client"),
    "client": lambda k, c: k.create_transaction("user", c),
    "conversation": lambda k, c: k.create_transaction("user", "client", c),
    "message": lambda k, c: k.track_event(transaction(k), MEMORY_COMPLETED, False, f"for {c}!"),
    "exception": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, False, KeyError(f"for {c}!")
    ),
    "message of an event that succeeded": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, True, c
    ),
    "message of the end": lambda k, c: k.track_event(
        transaction(k), CONVERSATION_ENDED, False, f"<{c}>"
    ),
    "message of a failed start": lambda k, c: k.track_event(
        transaction(k), MEMORY_STARTED, False, c
    ),
    "metadata": lambda k, c: k.track_event(transaction(k), MEMORY_COMPLETED, note=c),
    "metadata of a start": lambda k, c: k.track_event(transaction(k), MEMORY_STARTED, note=c),
    "metadata of the end": lambda k, c: k.track_event(transaction(k), CONVERSATION_ENDED, note=c),
    "metadata of audio": lambda k, c: k.track_event(
        transaction(k), PipelineStage.AUDIO_RECEIVED, note=c
    ),
    "metadata in a list": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, note=["a", c]
    ),
    "metadata in a dict": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, note={"a": {"b": [c, 1]}}
    ),
    "metadata as an exception": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, cause=ValueError(c)
    ),
    "metadata as a path": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, where=Path(f"/home/{c}/x")
    ),
    "metadata beyond the cut": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, note=f"{'word ' * 49}{c} and more"
    ),
    "name of metadata": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, metadata={c: 1}
    ),
    "name of metadata in a dict": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, sent={c: 1}
    ),
    "error_type": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, False, "boom", error_type=c
    ),
    "error.type": lambda k, c: k.track_event(
        transaction(k), MEMORY_COMPLETED, False, "boom", metadata={"error.type": c}
    ),
    "progress": lambda k, c: k.track_progress(started(k), "memory", note=c),
    "skip": lambda k, c: k.track_skipped(transaction(k), "memory", f"nothing from {c}"),
    "metadata of a skip": lambda k, c: k.track_skipped(transaction(k), "memory", "-", note=c),
    "socket": lambda k, c: socket(k, client=c),
    "session's recording": lambda k, c: k.start_memory_session(c, "client", "user", "mail"),
    "session's client": lambda k, c: k.start_memory_session("audio", c, "user", "mail"),
    "session's user": lambda k, c: k.start_memory_session("audio", "client", c, "mail"),
    "session's e-mail": lambda k, c: k.start_memory_session("audio", "client", "user", c),
    "session's error": lambda k, c: k.complete_memory_processing(session(k), False, f"for {c}"),
    "memory's id": lambda k, c: k.add_memory_extraction(session(k), "audio", c, "text"),
    "memory's type": lambda k, c: k.add_memory_extraction(session(k), "audio", "1", "text", c),
    "memory's metadata": lambda k, c: k.add_memory_extraction(
        session(k), "audio", "1", "text", "general", None, None, {"note": c}
    ),
    "attempt's type": lambda k, c: k.add_extraction_attempt(session(k), "audio", c, True),
    "attempt's error": lambda k, c: k.add_extraction_attempt(
        session(k), "audio", "first", False, f"for {c}"
    ),
    "attempt's model": lambda k, c: k.add_extraction_attempt(
        session(k), "audio", "first", True, None, 5, 5, None, c
    ),
    "segment's speaker": lambda k, c: k.add_transcript_segment(session(k), "audio", 1, c, "text"),
    "segment's method": lambda k, c: k.add_transcript_segment(
        session(k), "audio", 1, "speaker", "text", 1.0, c
    ),
    "unknown id": lambda k, c: k.track_event(c, MEMORY_STARTED),
    "a failure told after the root has ended": lambda k, c: k.track_event(
        ended(k), MEMORY_COMPLETED, False, c
    ),
}
"""Every place where a caller's text goes in, scrubbed on its way out."""

STAGES: dict[str, Call] = {
    "own stage, started": lambda k, c: k.track_event(transaction(k), f"{c}_started"),
    "own stage, completed": lambda k, c: k.track_event(transaction(k), c),
    "own stage, skipped": lambda k, c: k.track_skipped(transaction(k), c, "-"),
    "own stage, queued": lambda k, c: queued(k, stage=c),
}
"""Names of stages, which are the developer's own; a variable that slipped in is an accident."""


def started(kind: DebugSystemTracker) -> str:
    made = transaction(kind)
    kind.track_event(made, MEMORY_STARTED)
    return made


def ended(kind: DebugSystemTracker) -> str:
    made = transaction(kind)
    kind.track_event(made, CONVERSATION_ENDED)
    return made


def queued(kind: DebugSystemTracker, stage: str) -> None:
    made = transaction(kind)
    kind.track_queued(made, stage)
    kind.track_event(made, f"{stage}_started")


def socket(kind: DebugSystemTracker, client: str) -> None:
    kind.track_websocket_connected(client, client)
    kind.track_websocket_disconnected(client)
    transaction(kind)


FREE_TEXT: dict[str, Call] = {
    **{
        f"metadata {name}": lambda k, c, name=name: k.track_event(  # type: ignore[misc]
            transaction(k), TRANSCRIPTION_COMPLETED, metadata={name: c}
        )
        for name in (
            "transcript", "Transcript", "TEXT", "memory_text", "prompt", "llm_response", "message",
            "email", "name", "password", "api_key", "token", "content", "summary",
        )
    },
    "metadata in a list": lambda k, c: k.track_event(
        transaction(k), TRANSCRIPTION_COMPLETED, transcripts=[c, c]
    ),
    "metadata deep down": lambda k, c: k.track_event(
        transaction(k), TRANSCRIPTION_COMPLETED, result=[{"a": {"Transcript": c}}]
    ),
    "progress": lambda k, c: k.track_progress(started(k), "memory", transcript=c),
    "skip": lambda k, c: k.track_skipped(transaction(k), "memory", "-", transcript=c),
    "end": lambda k, c: k.track_event(transaction(k), CONVERSATION_ENDED, transcript=c),
    "audio": lambda k, c: k.track_event(
        transaction(k), PipelineStage.AUDIO_RECEIVED, True, transcript=c
    ),
}  # fmt: skip
"""Text under a sensitive name: it stays in, and is in the dump."""

SESSION_TEXT: dict[str, Call] = {
    "memory's text": lambda k, c: k.add_memory_extraction(session(k), "audio", "1", c),
    "memory's prompt": lambda k, c: k.add_memory_extraction(
        session(k), "audio", "1", "text", extraction_prompt=c
    ),
    "memory's answer": lambda k, c: k.add_memory_extraction(
        session(k), "audio", "1", "text", llm_response=c
    ),
    "memory's metadata": lambda k, c: k.add_memory_extraction(
        session(k), "audio", "1", "text", metadata={"transcript": c}
    ),
    "attempt's prompt": lambda k, c: k.add_extraction_attempt(
        session(k), "audio", "first", True, prompt_used=c
    ),
    "segment": lambda k, c: k.add_transcript_segment(session(k), "audio", 1, "speaker", c),
    "conversation": lambda k, c: k.update_full_conversation(session(k), c),
    "e-mail": lambda k, c: k.start_memory_session("audio", "client", "user", c),
}
"""Text of a memory session: it stays in, and is in the summary."""

WORDS = "canary sings about the green bottle"


@pytest.fixture
def t(tmp_path: Path) -> Iterator[Harness]:
    with fresh_tracker(debug_dump_dir=tmp_path) as harness:
        yield harness


def exported(t: Harness) -> bytes:
    """Everything as it leaves: stalls told, all ended, every span in OTLP bytes."""
    t.advance(61)
    t.advance(61)
    t.tracker.shutdown()
    spans = t.finished_spans()
    payload: bytes = encode_spans(spans).SerializeToString()
    assert spans
    assert b"otel_tracker.transaction.id" in payload
    return payload


@pytest.mark.parametrize(("secret", "canary"), SECRETS.values(), ids=list(SECRETS))
def test_no_secret_leaves_from_a_message_or_metadata(t: Harness, secret: str, canary: str) -> None:
    """E-mail addresses and credentials are gone from messages and values, the words around stay."""
    transaction_id = transaction(t.tracker)
    text = f"before {secret} after"
    t.tracker.track_event(
        transaction_id, MEMORY_STARTED, note=text, several=[text], deep={"a": text}
    )
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, text)
    payload = exported(t)
    assert canary.encode() not in payload
    assert b"before" in payload


@pytest.mark.parametrize("call", PLACES.values(), ids=list(PLACES))
@pytest.mark.parametrize("secret", ["zoe.canary@example.com", "sk-canary0123456789abcdef"])
def test_no_secret_leaves_from_any_argument(t: Harness, call: Call, secret: str) -> None:
    """An e-mail address or a token is in no exported byte, whichever argument it came in by."""
    transaction(t.tracker)
    call(t.tracker, secret)
    assert b"canary" not in exported(t)


@pytest.mark.parametrize("call", STAGES.values(), ids=list(STAGES))
def test_no_email_leaves_as_the_name_of_a_stage(t: Harness, call: Call) -> None:
    """An e-mail address that a caller passes as a stage is in no exported byte."""
    transaction(t.tracker)
    call(t.tracker, "zoe.canary@example.com")
    assert b"canary" not in exported(t)


@pytest.mark.parametrize("call", [*PLACES.values(), *STAGES.values()], ids=[*PLACES, *STAGES])
def test_no_log_line_carries_an_email(
    t: Harness, caplog: pytest.LogCaptureFixture, call: Call
) -> None:
    """Changes of state, stalls, issues and warnings are logged without addresses."""
    caplog.set_level(logging.DEBUG, "otel_tracker")
    call(t.tracker, "zoe.canary@example.com")
    t.advance(61)
    t.tracker.shutdown()
    assert "canary" not in caplog.text


@pytest.mark.parametrize("call", FREE_TEXT.values(), ids=list(FREE_TEXT))
def test_text_under_a_sensitive_name_stays_in_the_process(t: Harness, call: Call) -> None:
    """Transcripts, prompts and the like are in the dump, whole, and in no exported byte."""
    call(t.tracker, WORDS)
    assert WORDS in t.tracker.export_debug_dump().read_text()
    assert b"canary" not in exported(t)


@pytest.mark.parametrize("call", SESSION_TEXT.values(), ids=list(SESSION_TEXT))
def test_text_of_a_memory_session_stays_in_the_process(t: Harness, call: Call) -> None:
    """A session's texts are in its summary, whole, and in no exported byte."""
    call(t.tracker, WORDS)
    assert WORDS in json.dumps(t.tracker.get_session_summary("audio"))
    assert b"canary" not in exported(t)


def test_messages_and_values_are_whole_in_the_process(t: Harness) -> None:
    """Scrubbing is for what leaves: issue and dump have the message as it was given."""
    transaction_id = transaction(t.tracker)
    text = "no mailbox zoe.canary@example.com"
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, text, note=text)
    assert t.issue(transaction_id) == f"Failed at memory_completed: {text}"
    assert t.tracker.export_debug_dump().read_text().count(text) >= 2


def test_numbers_and_booleans_leave(t: Harness) -> None:
    """A number says nothing about a person: it leaves under any name."""
    transaction_id = transaction(t.tracker)
    t.tracker.track_event(
        transaction_id,
        MEMORY_COMPLETED,
        True,
        transcript_length=500,
        tokens=7,
        text=True,
        ratio=0.5,
    )
    exported(t)
    (span,) = [s for s in t.spans() if s["name"] == "memory"]
    found = {k: span["attributes"][k] for k in ("transcript_length", "tokens", "text", "ratio")}
    assert found == {"transcript_length": 500, "tokens": 7, "text": True, "ratio": 0.5}


def test_strings_leave_scrubbed_and_cut(t: Harness) -> None:
    """What may leave is cut at 256 characters, and says where something was taken out."""
    transaction_id = transaction(t.tracker)
    t.tracker.track_event(
        transaction_id, MEMORY_COMPLETED, False, "x" * 500, note="y" * 500, to="a@b.example is out"
    )
    (span,) = [s for s in t.spans() if s["name"] == "memory"]
    assert len(span["attributes"]["note"]) == len(span["description"]) == 256
    assert span["attributes"]["to"] == "[email] is out"


@pytest.mark.parametrize("secret", ["zoe.canary.of.the.mine@example.com", "sk-canary0123456789"])
def test_no_half_of_a_secret_is_left_at_a_cut(t: Harness, secret: str) -> None:
    """However long the text and wherever the secret lies in it, no part of it leaves."""
    for before in range(0, 1_100, 3):
        for filler in ("w ", "someone-with-a-long-name@a-long-domain-name.example.com "):
            text = (filler * 1_100)[:before] + " " + secret + " end"
            t.tracker.track_event(transaction(t.tracker), MEMORY_COMPLETED, False, text)
    assert b"canary" not in exported(t)


def test_a_user_id_that_is_an_email_leaves_as_a_hash(t: Harness) -> None:
    """user.hash stands for it: the same for the same address, and never with user.id."""
    for user in ("Zoe@example.com", "zoe@example.com ", "adam@example.com", "42"):
        t.tracker.track_event(t.tracker.create_transaction(user, "c"), CONVERSATION_ENDED)
    attributes = [s["attributes"] for s in t.spans()]
    hashes = [a.get("user.hash") for a in attributes]
    assert [a.get("user.id") for a in attributes].count(None) == 3
    assert sorted(hashes.count(h) for h in set(hashes)) == [1, 1, 2]
    assert [a["user.id"] for a in attributes if "user.id" in a] == ["42"]
    kept = {
        tx["user_id"]
        for tx in json.loads(t.tracker.export_debug_dump().read_text())["transactions"]
    }
    assert "Zoe@example.com" in kept


def test_the_hash_can_be_keyed() -> None:
    """With hash_key= nobody can try addresses against the hash without the key."""
    hashes = []
    for key in ("", "one", "two", "two"):
        with fresh_tracker(hash_key=key) as t:
            transaction_id = t.tracker.create_transaction("zoe@example.com", "c")
            t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
            hashes.append(t.spans()[0]["attributes"]["user.hash"])
    assert len(set(hashes)) == 3
    assert hashes[2] == hashes[3]


EXPORT_TEXT_PLACES: dict[str, Call] = {
    name: call
    for name, call in {**PLACES, **FREE_TEXT, **SESSION_TEXT}.items()
    if name.split()[0] in ("message", "exception", "metadata", "progress", "skip", "a")
    or name in ("session's error", "attempt's error", "memory's metadata", *SESSION_TEXT)
}


@pytest.mark.parametrize("call", EXPORT_TEXT_PLACES.values(), ids=list(EXPORT_TEXT_PLACES))
def test_export_text_false_keeps_all_free_text_in(tmp_path: Path, call: Call) -> None:
    """With OTEL_TRACKER_EXPORT_TEXT=false no message, reason or string metadata leaves."""
    with fresh_tracker(export_text=False, debug_dump_dir=tmp_path) as t:
        call(t.tracker, WORDS)
        payload = exported(t)
        assert b"canary" not in payload
        assert b"bottle" not in payload


def test_export_text_false_still_exports_what_jaeger_needs(tmp_path: Path) -> None:
    """Ids, numbers, outcome, status and error.type leave all the same."""
    with fresh_tracker(export_text=False, debug_dump_dir=tmp_path) as t:
        transaction_id = transaction(t.tracker)
        t.tracker.track_event(transaction_id, MEMORY_STARTED)
        t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, WORDS, retry_count=2)
        t.tracker.track_event(transaction_id, CONVERSATION_ENDED)
        (memory,) = [s for s in t.spans() if s["name"] == "memory"]
        assert memory["status"] == "ERROR"
        assert memory["attributes"]["retry_count"] == 2
        assert memory["attributes"]["otel_tracker.transaction.id"] == transaction_id
        assert memory["attributes"]["otel_tracker.stage.outcome"] == "failure"
        assert memory["attributes"]["user.id"] == "user"
        assert "error.type" in memory["attributes"]


def test_export_text_false_keeps_stacks_in() -> None:
    """The stack of a stall is text too."""
    for export_text in (True, False):
        with fresh_tracker(export_text=export_text) as t:
            t.tracker.track_event(transaction(t.tracker), MEMORY_STARTED)
            t.advance(61)
            (stall,) = [s for s in t.spans() if s["name"] == "memory stalled"]
            assert bool(stall["events"]) is export_text


@pytest.mark.parametrize("given", ["diagnosis, Notes", ["diagnosis", "NOTES"]])
def test_sensitive_keys_are_extensible(given: Any) -> None:
    """Names of the user's own stay in as well, in any case; the built-in ones still do."""
    with fresh_tracker(sensitive_keys=given) as t:
        t.tracker.track_event(
            transaction(t.tracker), MEMORY_COMPLETED,
            Diagnosis=WORDS, notes=WORDS, transcript=WORDS, deep={"DIAGNOSIS": WORDS}, other="kept",
        )  # fmt: skip
        payload = exported(t)
        assert b"canary" not in payload
        assert b"kept" in payload


def test_sensitive_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_TRACKER_SENSITIVE_KEYS adds names without a line of code."""
    monkeypatch.setenv("OTEL_TRACKER_SENSITIVE_KEYS", "diagnosis,notes")
    with fresh_tracker() as t:
        t.tracker.track_event(transaction(t.tracker), MEMORY_COMPLETED, notes=WORDS)
        assert b"canary" not in exported(t)


@pytest.mark.parametrize(
    "name", ["otel_tracker.outcome", "user.id", "error.type", "gen_ai.prompt", "otel_tracker.kind"]
)
def test_metadata_cannot_pass_itself_off_as_ours(t: Harness, name: str) -> None:
    """Metadata under a name that means something else leaves under another one."""
    transaction_id = transaction(t.tracker)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, metadata={name: "theirs"})
    (span,) = [s for s in t.spans() if s["name"] == "memory"]
    assert span["attributes"].get(name) != "theirs"
    assert span["attributes"][f"otel_tracker.metadata.{name}"] == "theirs"


def test_spans_of_the_application_are_not_touched(t: Harness) -> None:
    """What the application itself puts on its spans is its own business."""
    tracer = t.provider.get_tracer("theirs")
    with tracer.start_as_current_span("their span") as span:
        span.set_attribute("mail", "zoe@example.com")
    (found,) = t.spans()
    assert found["attributes"] == {"mail": "zoe@example.com"}
