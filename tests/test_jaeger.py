"""What people see in Jaeger: the demo and every kind of story, through a real Collector."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.engines import Collector, Jaeger, Span, engines_or_skip, until
from tests.otlp import ROOT

SERVER: Final = 2
INTERNAL: Final = 1
ERROR: Final = 2
SERVICE: Final = "stories"

SEARCHES: Final = ROOT / "docs" / "jaeger.md"


@dataclass(frozen=True)
class Told:
    """The engines, and the ids (dashed) of what was told through them."""

    jaeger: Jaeger
    endpoint: str
    ids: dict[str, str]
    demo: dict[str, Any]

    def spans(self, story: str) -> list[Span]:
        """The trace of a story."""
        return self.jaeger.traces(self.trace_id(story)) or []

    def trace_id(self, story: str) -> str:
        return self.ids[story].replace("-", "")


def environment(endpoint: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    return {
        **clean,
        "PYTHONPATH": str(ROOT),
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_TRACKER_STALL_AFTER": "1",
    }


def begun(story: str, endpoint: str, said: str = "") -> tuple[subprocess.Popen[str], Any]:
    """A story that stays open, and what it says when it is as far as it gets."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stories", story],
        env=environment(endpoint),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(said)
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        end(process)
    return process, json.loads(line)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """All stories and the demo, told once, and in Jaeger."""
    engines_or_skip()
    tmp_path = tmp_path_factory.mktemp("engines")
    with Jaeger(tmp_path) as jaeger, Collector(tmp_path, jaeger=jaeger) as collector:
        endpoint = collector.http_url
        done = subprocess.run(
            [sys.executable, "-m", "tests.stories"],
            env=environment(endpoint),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ids = json.loads(done.stdout)

        owner, ids["killed_owner"] = begun("killed_owner", endpoint)
        end(owner)
        sender, (ids["killed_worker"], carrier) = begun("handed_over", endpoint)
        sender.communicate(timeout=30)
        worker, _ = begun("killed_worker", endpoint, json.dumps(carrier) + "\n")
        end(worker)

        demo = subprocess.run(
            [sys.executable, "-m", "otel_tracker", "demo", "--json", "--dir", tmp_path / "demo"],
            env={**environment(endpoint), "OTEL_TRACKER_STALL_AFTER": ""},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert demo.returncode == 0, demo.stderr
        yield Told(jaeger, endpoint, ids, json.loads(demo.stdout))


pytestmark = pytest.mark.timeout(240)  # the first one waits for the engines and the demo


# --- the demo -------------------------------------------------------------------------------------


def test_every_trace_of_the_demo_is_whole(told: Told) -> None:
    """Three processes, one root each, every span below it, and ids on every stage."""
    found = told.jaeger.search("voice-notes-web", "voice_notes")
    assert len(found) == told.demo["system_metrics"]["total_transactions"] == 9
    services = set()
    for trace_id in found:
        spans = told.jaeger.traces(trace_id) or []
        assert_is_whole(spans)
        transaction_id = str(uuid.UUID(trace_id))
        services |= {span.service for span in spans}
        for span in spans:
            assert span.attributes["otel_tracker.transaction.id"] == transaction_id
            assert span.attributes["otel_tracker.where"].count("/") >= 2
        assert root_of(spans).service == "voice-notes-web"
        assert root_of(spans).attributes["user.id"]
    assert services == {"voice-notes-web", "voice-notes-transcriber", "voice-notes-memory"}


def _hex(transaction_id: str) -> str:
    return transaction_id.replace("-", "")


def assert_is_whole(spans: list[Span]) -> None:
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans), "a span is there twice"
    root = root_of(spans)
    assert root.kind == SERVER
    for span in spans:
        if span is not root:
            assert span.parent_id in ids, f"{span.name} hangs from nothing"
            assert span.kind == INTERNAL, span.name
        assert span.end_ns > span.start_ns, span.name
        assert (span.status == ERROR) == bool(span.description), span.name
        assert (span.status == ERROR) == ("error.type" in span.attributes), span.name
        if "otel_tracker.stage" in span.attributes and "otel_tracker.kind" not in span.attributes:
            assert "otel_tracker.stage.outcome" in span.attributes, span.name
        assert not [key for key in span.attributes if key.startswith("gen_ai.")]


def root_of(spans: list[Span]) -> Span:
    roots = [span for span in spans if not span.parent_id]
    assert len(roots) == 1, [span.name for span in roots]
    return roots[0]


# --- stories --------------------------------------------------------------------------------------


def names(spans: list[Span]) -> list[str]:
    return sorted(span.name for span in spans)


def test_a_success(told: Told) -> None:
    """One span a stage; the root has the verdict and no error."""
    spans = told.spans("success")
    assert_is_whole(spans)
    assert names(spans) == ["audio", "audio_pipeline", "memory", "transcription"]
    root = root_of(spans)
    assert root.attributes["otel_tracker.outcome"] == "success"
    assert root.status == 0
    audio = next(span for span in spans if span.name == "audio")
    assert audio.attributes["otel_tracker.audio.chunks"] == 3
    assert audio.attributes["otel_tracker.audio.bytes"] == 9_600


def test_a_failure_is_an_error_with_its_reason_on_attempt_and_root(told: Told) -> None:
    """Whoever opens the trace reads why, without unfolding it."""
    spans = told.spans("failed_twice")
    assert_is_whole(spans)
    attempts = [span for span in spans if span.name == "memory"]
    assert [span.attributes["otel_tracker.stage.attempt"] for span in attempts] == [1, 2]
    assert {span.status for span in attempts} == {ERROR}
    assert {span.description for span in attempts} == {"model answered 503"}
    root = root_of(spans)
    assert (root.status, root.attributes["otel_tracker.outcome"]) == (ERROR, "failure")
    assert root.description == "model answered 503"


def test_a_retry_that_helped_leaves_the_root_without_error(told: Told) -> None:
    """The failed attempt is seen, the transaction is none that failed."""
    spans = told.spans("retried")
    assert_is_whole(spans)
    attempts = [span for span in spans if span.name == "memory"]
    outcomes = [span.attributes["otel_tracker.stage.outcome"] for span in attempts]
    assert outcomes == ["failure", "success"]
    assert (root_of(spans).status, attempts[0].status, attempts[1].status) == (0, ERROR, 0)


def test_a_skip_is_no_error(told: Told) -> None:
    """It has a name of its own and its reason."""
    spans = told.spans("skipped")
    assert_is_whole(spans)
    skip = next(span for span in spans if span.name == "memory skipped")
    assert skip.status == 0
    assert skip.attributes["otel_tracker.stage.skip_reason"] == "nothing was said"


def test_an_exception_is_told_with_its_type(told: Told) -> None:
    """On the stage that it left, and the root."""
    spans = told.spans("raised")
    assert_is_whole(spans)
    failed = next(span for span in spans if span.name == "transcription")
    assert failed.attributes["error.type"] == "ConnectionError"
    assert "transcriber went away" in failed.description


def test_a_stall_and_its_recovery_are_in_the_tree(told: Told) -> None:
    """Both hang from the root; the stall has the stack of the thread as an event."""
    spans = told.spans("recovered")
    root = root_of(spans)
    stall = next(span for span in spans if span.name == "memory stalled")
    recovery = next(span for span in spans if span.name == "memory recovered")
    assert stall.parent_id == recovery.parent_id == root.span_id
    assert (stall.status, stall.attributes["error.type"]) == (ERROR, "stalled")
    (event,) = stall.events
    assert event[0] == "stack"
    assert "stories.py" in str(event[1])
    assert "told.wait" not in str(event[1])  # lines of source stay where they are
    assert recovery.start_ns >= stall.end_ns


def test_a_stall_is_there_while_the_transaction_is_open(told: Told) -> None:
    """Within 5 s of the deadline that it missed; nothing that is open is there itself."""
    process, transaction_id = begun("stalled", told.endpoint)
    opened = time.monotonic()
    try:
        limit_s = 1.0
        found = until(
            "the stall in Jaeger",
            lambda: told.jaeger.search(
                SERVICE, "memory stalled", {"otel_tracker.transaction.id": transaction_id}
            ),
        )
        took_s = time.monotonic() - opened - limit_s
        assert process.poll() is None
        assert found == [_hex(transaction_id)]
        assert took_s < 5
        # The owner ends the root when a stall is told: the trace has a name.
        spans = told.jaeger.wait_for(_hex(transaction_id), 3)
        assert names(spans) == ["audio_pipeline", "memory stalled", "transcription"]
        assert root_of(spans).name == "audio_pipeline"
    finally:
        end(process)


def test_a_killed_owner_leaves_a_trace_that_can_be_found(told: Told) -> None:
    """Its root never comes; what had ended has all the ids."""
    spans = told.jaeger.wait_for(told.trace_id("killed_owner"))
    assert names(spans) == ["transcription"]
    for tags in (
        {"user.id": "ivan"},
        {"otel_tracker.conversation.id": "conversation-9"},
        {"otel_tracker.transaction.id": told.ids["killed_owner"]},
    ):
        assert told.trace_id("killed_owner") in told.jaeger.search(SERVICE, None, tags)


def test_a_killed_worker_leaves_the_trace_with_its_root(told: Told) -> None:
    """What was handed over has its name, the wait, and what the worker had finished."""
    spans = told.jaeger.wait_for(told.trace_id("killed_worker"), 3)
    assert names(spans) == ["audio_pipeline", "transcription", "transcription queued"]
    root = root_of(spans)
    assert "otel_tracker.outcome" not in root.attributes
    assert {span.parent_id for span in spans if span is not root} == {root.span_id}


# --- searches -------------------------------------------------------------------------------------


def documented() -> list[tuple[str, str, str, str]]:
    """The rows of the table of searches in docs/jaeger.md."""
    table = SEARCHES.read_text(encoding="utf-8").split("## Searches")[1].split("## Reading")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    cells = [tuple(cell.strip().strip("`") for cell in row) for row in rows[2:]]
    return [(cell[0], cell[1], cell[2], cell[3]) for cell in cells]


FINDS: Final = {
    "everything of a user": {"failed_twice"},
    "a conversation, all its transactions": {"failed_twice"},
    "a transaction whose root never came": {"killed_owner"},
    "transactions that failed in the end": {"failed_twice", "raised"},
    "attempts that failed, also where a retry helped": {"failed_twice", "raised", "retried"},
    "failed attempts at one stage": {"failed_twice", "retried"},
    "one kind of exception": {"raised"},
    "everything that stalled": {"recovered", "slow"},
    "a stage that stalled": {"recovered", "slow"},
    "stalls that resolved themselves": {"recovered", "slow"},
    "what was rightly skipped": {"skipped"},
    "a slow stage": {"slow", "recovered"},
    "second and later attempts": {"failed_twice", "retried"},
    "what waited in a queue": {"killed_worker"},
    "what one pipeline did": {
        *("success", "failed_twice", "retried", "skipped", "slow", "raised", "recovered"),
        "killed_worker",
    },
}
"""Which stories each search of docs/jaeger.md finds, and no other."""


@pytest.mark.parametrize("row", documented(), ids=lambda row: row[0])
def test_the_documented_search_finds_what_it_says(told: Told, row: tuple[str, ...]) -> None:
    """Each line of docs/jaeger.md, by the search that Jaeger's form makes."""
    what, operation, tags, duration = row
    told.jaeger.wait_for(told.trace_id("killed_worker"), 3)
    attributes = dict([tags.split("=", 1)]) if tags else {}
    for key, value in attributes.items():
        if value == "<transaction id>":
            attributes[key] = told.ids["killed_owner"]
    found = told.jaeger.search(
        SERVICE, operation or None, attributes, float(duration.rstrip("s")) if duration else None
    )
    stories = {_hex(tid): story for story, tid in told.ids.items()}
    assert {stories[one] for one in found if one in stories} == FINDS[what]


def test_every_search_has_an_expectation() -> None:
    """A search that is added to the document is added here."""
    assert {row[0] for row in documented()} == set(FINDS)


def test_the_ui_file_shows_ids_as_the_dashboard_does() -> None:
    """Eight digits, and a link from each transaction to the dashboard."""
    settings = json.loads((ROOT / "deploy" / "jaeger-ui.json").read_text(encoding="utf-8"))
    assert settings["traceIdDisplayLength"] == 8
    keys = {link.get("key") for link in settings["linkPatterns"]}
    assert {"otel_tracker.transaction.id", "otel_tracker.conversation.id"} <= keys
    for link in settings["linkPatterns"]:
        # Placeholders are #{names}, nothing else of Jaeger's template language.
        assert re.fullmatch(r"(?:[^#]|#\{[\w.]+\})*", link["url"])


def test_the_whole_trace_as_it_is_read(told: Told, tmp_path: Path) -> None:
    """`otel-tracker trace` prints what Jaeger has."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "otel_tracker", "trace"),
            *(told.ids["failed_twice"], "--jaeger", told.jaeger.ui_url),
        ],
        env=environment(told.endpoint),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("memory (attempt 2)") == 1
    assert done.stdout.count("model answered 503") >= 2
    assert "Transcription completed but memory creation failed" in done.stdout
