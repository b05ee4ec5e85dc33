"""The debug dump: documented keys, whole or not at all, private, and JSON whatever went in."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from otel_tracker import PipelineStage
from otel_tracker.testing import Harness, fresh_tracker

MEMORY_STARTED = PipelineStage.MEMORY_STARTED
MEMORY_COMPLETED = PipelineStage.MEMORY_COMPLETED


@pytest.fixture
def t(tmp_path: Path) -> Iterator[Harness]:
    with fresh_tracker(debug_dump_dir=tmp_path / "dumps") as harness:
        yield harness


def strictly(path: Path) -> dict[str, Any]:
    """The file as strict JSON, without NaN and Infinity, in valid UTF-8."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads(path.read_bytes().decode(), parse_constant=refuse)
    return found


def test_documented_keys(t: Harness) -> None:
    """Every key that the dump's readers subscript is there, in the documented order."""
    transaction_id = t.tracker.create_transaction("user", "client", "conv_1")
    t.tracker.track_websocket_connected("user", "client")
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model", retry_count=2)
    t.advance(3_599)
    written = strictly(t.tracker.export_debug_dump())
    assert [key for key in written if key not in ("issue_patterns", "stages", "health")] == [
        "export_metadata", "system_metrics", "transactions", "recent_issues", "active_websockets",
        "user_activity",
    ]  # fmt: skip
    assert written["export_metadata"] == {
        "generated_at": "2026-01-01T01:00:00+00:00",
        "system_start_time": "2026-01-01T00:00:00+00:00",
        "uptime_hours": 1.0,
    }
    assert written["system_metrics"] == t.tracker.get_dashboard_data()["system_metrics"]
    (transaction,) = written["transactions"]
    assert list(transaction)[:9] == [
        "transaction_id", "user_id", "client_id", "conversation_id", "created_at", "updated_at",
        "status", "current_stage", "issue",
    ]  # fmt: skip
    (event,) = transaction["events"]
    assert list(event) == ["timestamp", "stage", "success", "error_message", "metadata"]
    assert written["active_websockets"] == ["client"]
    assert written["user_activity"]["user"].startswith("2026-01-01T00:00:01")
    (issue,) = written["recent_issues"]
    assert issue["transaction_id"] == transaction_id
    assert issue["user_id"] == "user"
    assert issue["issue"] == "Failed at memory_completed: no model"


def test_documented_values(t: Harness) -> None:
    """A transaction is written with what the dashboard shows, and its events as reported."""
    transaction_id = t.tracker.create_transaction("user", "client", "conv_1")
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_STARTED, model="small")
    t.advance(1)
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "no model", retry_count=2)
    (transaction,) = strictly(t.tracker.export_debug_dump())["transactions"]
    transaction = {key: transaction[key] for key in list(transaction)}
    assert {
        "transaction_id": transaction_id,
        "user_id": "user",
        "client_id": "client",
        "conversation_id": "conv_1",
        "created_at": "2026-01-01T00:00:00+00:00",
        "updated_at": "2026-01-01T00:00:02+00:00",
        "status": "failed",
        "current_stage": "memory_completed",
        "issue": "Failed at memory_completed: no model",
        "events": [
            {
                "timestamp": "2026-01-01T00:00:01+00:00",
                "stage": "memory_started",
                "success": True,
                "error_message": None,
                "metadata": {"model": "small"},
            },
            {
                "timestamp": "2026-01-01T00:00:02+00:00",
                "stage": "memory_completed",
                "success": False,
                "error_message": "no model",
                "metadata": {"retry_count": 2},
            },
        ],
    }.items() <= transaction.items()


def test_an_empty_tracker_dumps(t: Harness) -> None:
    """A dump before anything was tracked has every key too."""
    written = strictly(t.tracker.export_debug_dump())
    assert written["transactions"] == written["recent_issues"] == []
    assert written["active_websockets"] == []
    assert written["user_activity"] == {}
    assert written["system_metrics"]["last_activity"] is None


def test_the_history_is_complete(t: Harness) -> None:
    """More than the dashboard's ten are written: everything that is kept, oldest first."""
    ids = []
    for number in range(30):
        ids.append(t.tracker.create_transaction(f"user-{number}", "client"))
        t.clock.advance(1)
        t.tracker.track_event(ids[-1], MEMORY_COMPLETED, False, f"broken {'abcdef'[number % 6]}")
    written = strictly(t.tracker.export_debug_dump())
    assert [tx["transaction_id"] for tx in written["transactions"]] == ids
    assert [row["transaction_id"] for row in written["recent_issues"]] == ids
    assert len(written["user_activity"]) == 30


def test_it_is_private(t: Harness) -> None:
    """Nobody else may read it (0600), whatever the umask."""
    before = os.umask(0)
    try:
        path = t.tracker.export_debug_dump()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_its_name(t: Harness, tmp_path: Path) -> None:
    """It is debug_dump_<timestamp>.json in DEBUG_DUMP_DIR, which is made when needed."""
    path = t.tracker.export_debug_dump()
    assert isinstance(path, Path)
    assert path.parent == tmp_path / "dumps"
    assert path.name.startswith("debug_dump_20260101_000000")
    assert path.suffix == ".json"


def test_the_directory_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DEBUG_DUMP_DIR is read, and parents that are missing are made."""
    monkeypatch.setenv("DEBUG_DUMP_DIR", str(tmp_path / "a" / "b"))
    with fresh_tracker() as t:
        assert t.tracker.export_debug_dump().parent == tmp_path / "a" / "b"


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the variable it is debug_dumps in the working directory, as documented."""
    monkeypatch.delenv("DEBUG_DUMP_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with fresh_tracker() as t:
        assert t.tracker.export_debug_dump().resolve().parent == tmp_path / "debug_dumps"


def test_names_are_unique_when_the_clock_stands_still(t: Harness) -> None:
    """Fifty dumps of one moment, from eight threads, are fifty whole files and nothing else."""
    t.tracker.create_transaction("user", "client")
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: t.tracker.export_debug_dump(), range(50)))
    assert len(set(paths)) == 50
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)
    assert all(len(strictly(path)["transactions"]) == 1 for path in paths)


def test_a_dump_that_fails_leaves_no_file(t: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full in the middle, neither half a dump nor a temporary file is left."""

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    first = t.tracker.export_debug_dump()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            t.tracker.export_debug_dump()
    assert list(first.parent.iterdir()) == [first]


def test_no_half_file_is_ever_seen(t: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks while a dump is written sees no debug_dump_*.json that is not whole."""
    t.tracker.create_transaction("user", "client")
    first = t.tracker.export_debug_dump()
    seen: list[list[Path]] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(sorted(first.parent.glob("debug_dump_*.json")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    t.tracker.export_debug_dump()
    assert seen == [[first]]


@pytest.mark.parametrize("below", ["", "below", "below/further"])
def test_an_unwritable_directory_is_a_clear_error(tmp_path: Path, below: str) -> None:
    """It is an OSError of the dump alone, which names the path and DEBUG_DUMP_DIR."""
    file = tmp_path / "a file"
    file.write_text("untouched")
    with fresh_tracker(debug_dump_dir=file / below) as t:
        transaction_id = t.tracker.create_transaction("user", "client")
        with pytest.raises(OSError, match="DEBUG_DUMP_DIR") as raised:
            t.tracker.export_debug_dump()
        assert str(file) in str(raised.value)
        assert raised.value.errno
        assert t.tracker.get_transaction(transaction_id) is not None
    assert file.read_text() == "untouched"
    assert list(tmp_path.iterdir()) == [file]


class Hostile:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("hostile")


def _cyclic() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("-inf"), 10**400, object(), Hostile(), b"\xff", {1, 2}, _cyclic(),
        "\ud800", "\x00\u2028</script>", {("a", 1): None}, {float("nan"): 1}, threading.Lock(),
        MEMORY_STARTED, KeyError("k"), "x" * 100_000, [[[[[[[[[["deep"]]]]]]]]]], range(10**9),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_it_is_strict_json_whatever_the_metadata(t: Harness, value: object) -> None:
    """Whatever a caller puts into metadata, the dump is one whole file of strict JSON."""
    transaction_id = t.tracker.create_transaction("user", "client")
    t.tracker.track_event(transaction_id, MEMORY_STARTED, value=value, deep=[{"value": value}])
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, metadata={"value": value, "other": 1})
    path = t.tracker.export_debug_dump()
    (transaction,) = strictly(path)["transactions"]
    assert len(transaction["events"]) == 2
    assert "value" in transaction["events"][0]["metadata"]
    assert list(path.parent.iterdir()) == [path]


def test_text_is_readable_in_it(t: Harness) -> None:
    """Text beyond ASCII is written as itself: people read dumps, and search in them."""
    transaction_id = t.tracker.create_transaction("user", "client")
    t.tracker.track_event(transaction_id, MEMORY_COMPLETED, False, "kein Gerät 🎙")
    assert "kein Gerät 🎙" in t.tracker.export_debug_dump().read_text(encoding="utf-8")
