"""What the Collector and Jaeger received, searched byte by byte for what should not be there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.engines import RECORD, Collector, Jaeger, engines_or_skip, fetch, until
from tests.otlp import ROOT

MARK: Final = re.compile(rb"canary(secret|text|free)\d{4}x", re.IGNORECASE)


@dataclass(frozen=True)
class Searched:
    """Marks by family: what was planted, and what came where."""

    planted: dict[str, list[str]]
    spans: int
    collector: dict[str, set[str]]
    jaeger: dict[str, set[str]]
    log: dict[str, set[str]]


def marks(raw: bytes) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"secret": set(), "text": set(), "free": set()}
    for match in MARK.finditer(raw):
        found[match[1].decode().lower()].add(match[0].decode().lower())
    return found


def search(tmp_path: Path, **env: str) -> Searched:
    with (
        Jaeger(tmp_path) as jaeger,
        Collector(tmp_path, jaeger=jaeger, extra_config=[RECORD]) as collector,
    ):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        done = subprocess.run(
            [sys.executable, "-m", "tests.canaries"],
            env={
                **clean,
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_url,
                "OTEL_SERVICE_NAME": "canaries",
                "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
                **env,
            },
            cwd=ROOT,
            capture_output=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        said = json.loads(done.stdout)
        until("all spans in the Collector", lambda: len(collector.received()) >= said["exported"])
        received = b"".join(p.read_bytes() for p in tmp_path.glob("records/received*"))
        traces = {span.trace_id for span in collector.received()}
        until(
            "all spans in Jaeger",
            lambda: sum(len(jaeger.traces(one) or []) for one in traces) >= said["exported"],
            timeout_s=60,
        )
        answers = [fetch(f"{jaeger.ui_url}/api/v3/traces/{one}") for one in traces]
        assert {status for status, _ in answers} == {200}
        in_jaeger = "".join(body for _, body in answers).encode()
    return Searched(
        said["planted"], said["exported"], marks(received), marks(in_jaeger), marks(done.stderr)
    )


pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """With settings as they are."""
    engines_or_skip()
    return search(tmp_path_factory.mktemp("default"))


@pytest.fixture(scope="module")
def without_text(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """With text kept in the process."""
    engines_or_skip()
    return search(tmp_path_factory.mktemp("textless"), OTEL_TRACKER_EXPORT_TEXT="false")


def test_the_scan_is_not_blind(default: Searched) -> None:
    """Many were planted; free words, which may leave, are found in the Collector and Jaeger."""
    assert len(default.planted["secret"]) > 500
    assert len(default.planted["text"]) > 25
    assert default.spans > 300
    assert len(default.collector["free"]) >= 3
    assert default.jaeger["free"] == default.collector["free"]


def test_no_address_or_credential_leaves(default: Searched) -> None:
    """From no argument, attribute, name or error message."""
    assert default.collector["secret"] == set()
    assert default.jaeger["secret"] == set()


def test_no_transcript_memory_or_prompt_leaves(default: Searched) -> None:
    """Wherever the API takes them."""
    assert default.collector["text"] == set()
    assert default.jaeger["text"] == set()


def test_with_text_switched_off_nothing_at_all_leaves(without_text: Searched) -> None:
    """No secret, no text, and no free word either."""
    nothing: dict[str, set[str]] = {"secret": set(), "text": set(), "free": set()}
    assert without_text.spans > 300
    assert without_text.collector == nothing
    assert without_text.jaeger == nothing


def test_the_log_has_no_secret_either(default: Searched, without_text: Searched) -> None:
    """Warnings and issues in the application's log are cleaned as spans are."""
    assert default.log["secret"] == default.log["text"] == set()
    assert without_text.log == {"secret": set(), "text": set(), "free": set()}
