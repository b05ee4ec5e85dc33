"""The documents tell the truth about what can be checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otel_tracker.settings import OPTIONS, Option
from otel_tracker.testing import fresh_tracker

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.name)
def test_every_option_is_documented(option: Option) -> None:
    """docs/settings.md has a row for each option with its variable, unit and meaning."""
    rows = (ROOT / "docs/settings.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in rows if line.startswith(f"| `{option.name}` |")]
    assert f"`{option.env}`" in row
    assert f"| {option.unit} |" in row
    assert row.endswith(f"| {option.meaning} |")


def test_every_key_of_the_dashboard_is_documented() -> None:
    """docs/dashboard-data.md names each key that get_dashboard_data() has, nested ones too."""
    text = (ROOT / "docs/dashboard-data.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z_0-9]+", text))
    with fresh_tracker() as t:
        transaction_id = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(transaction_id, "memory_started")
        t.tracker.track_queued(t.tracker.create_transaction("user", "client"), "memory")
        failed = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(failed, "memory_completed", False, "boom")
        t.advance(61)
        data = t.tracker.get_dashboard_data()
    nested = [data["system_metrics"], data["health"], data["stages"]["memory"]]
    for rows in ("recent_transactions", "recent_issues", "issue_patterns", "stalled", "waiting"):
        assert data[rows], rows
        nested.append(data[rows][0])
    keys = {key for part in (data, *nested) for key in part}
    assert keys <= named, keys - named


def test_the_readme_opens_with_the_two_commands() -> None:
    """A newcomer needs two commands, and they come first."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = text.index("```console")
    assert text.index("$ make demo") < text.index("$ make test")
    assert first < text.index("$ make demo") < text.index("\n## ")


def test_links_in_documents_lead_somewhere() -> None:
    """Every relative link of the documents names a file that exists."""
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), (document.name, target)
