"""The table of options: complete, read from keywords and environment, and never fatal."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from otel_tracker import PipelineStage, TransactionStatus, init_debug_tracker
from otel_tracker.settings import OPTIONS, Option, Settings, load
from otel_tracker.testing import fresh_tracker

OTHER: dict[str, tuple[str, Any]] = {
    "stall_after": ("90.5", 90.5),
    "settle": ("2", 2.0),
    "root_idle": ("30", 30.0),
    "queue_wait": ("600", 600.0),
    "recent_transactions": ("7", 7),
    "open_transactions": ("70", 70),
    "recent_issues": ("5", 5),
    "disabled": ("true", True),
    "export_text": ("0", False),
    "sensitive_keys": ("diagnosis, notes", ("diagnosis", "notes")),
    "hash_key": ("pepper", "pepper"),
    "link_caller": ("no", False),
    "url": ("http://dash:8500", "http://dash:8500"),
    "token": ("s3cret", "s3cret"),
    "read_url": ("http://dash:8500", "http://dash:8500"),
    "serve": ("127.0.0.1:8500", "127.0.0.1:8500"),
    "jaeger_url": ("https://jaeger.example", "https://jaeger.example"),
    "debug_dump_dir": ("/var/dumps", "/var/dumps"),
}
"""For each option another value: as the environment has it, and as the settings do."""

BAD: dict[str, tuple[Any, ...]] = {
    "seconds": ("soon", "", "-5", "0", "nan", "inf", None, [], object()),
    "count": ("many", "", "0", "-1", "1.5", 2.5, "99999999999", None, []),
    "flag": ("maybe", "", "2", None, []),
    "names": (7, None, {"a": 1}),
    "text": (None,),
}
"""For each kind of option what is no value of it, as a keyword."""

KINDS = {
    "s": "seconds", "transactions": "count", "issues": "count", "true/false": "flag",
    "names, comma-separated": "names", "text": "text", "URL": "text", "path": "text",
    "host:port": "text",
}  # fmt: skip
"""The kind of value by the table's unit."""

NAMES = [option.name for option in OPTIONS]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    """The table and Settings have the same names; limits of single stages are the one addition."""
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert sorted(fields) == sorted([*NAMES, "stall_after_stage"])
    assert len(set(NAMES)) == len(NAMES)
    assert sorted(OTHER) == sorted(NAMES)


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_a_row_of_the_table_is_complete(option: Option) -> None:
    """Each option has its environment variable, unit, meaning, and a default that is valid."""
    if option.name == "debug_dump_dir":
        assert option.env == "DEBUG_DUMP_DIR"
    else:
        assert option.env == f"OTEL_TRACKER_{option.name.upper()}"
    assert option.unit in KINDS
    assert option.meaning
    assert option.parse(option.default) == option.default
    assert getattr(load({}, {}), option.name) == option.default


def test_the_documented_defaults() -> None:
    """The numbers that the documentation promises."""
    s = load({}, {})
    assert (s.stall_after, s.settle, s.root_idle, s.queue_wait) == (60.0, 5.0, 60.0, 300.0)
    assert (s.recent_transactions, s.open_transactions, s.recent_issues) == (100, 10_000, 50)
    assert (s.disabled, s.export_text, s.link_caller) == (False, True, True)
    assert s.debug_dump_dir == "debug_dumps"


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_an_option_from_the_environment(option: Option, caplog: pytest.LogCaptureFixture) -> None:
    """Its variable sets the option and no other; an empty one is as good as none."""
    text, value = OTHER[option.name]
    assert load({}, {option.env: text}) == dataclasses.replace(load({}, {}), **{option.name: value})
    assert load({}, {option.env: "  "}) == load({}, {})
    assert warnings(caplog) == []


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_a_keyword_wins_over_the_environment(option: Option) -> None:
    """What the program says beats what its surroundings say."""
    text, value = OTHER[option.name]
    found = load({option.name: value}, {option.env: str(option.default)})
    assert getattr(found, option.name) == value
    assert getattr(load({option.name: text}, {}), option.name) == value


def test_the_environment_is_the_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker reads the variables when it is made."""
    monkeypatch.setenv("OTEL_TRACKER_STALL_AFTER", "7")
    with fresh_tracker() as t:
        assert t.tracker.settings.stall_after == 7.0


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option in OPTIONS for value in BAD[KINDS[option.unit]]],
    ids=lambda value: value.name if isinstance(value, Option) else repr(value)[:20],
)
def test_a_bad_value_is_a_warning_and_the_default(
    option: Option, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The program goes on with the default, and one line names option, unit and default."""
    assert load({option.name: value}, {}) == load({}, {})
    (message,) = warnings(caplog)
    assert option.name in message
    assert option.unit in message
    assert repr(option.default) in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (option, value)
        for option in OPTIONS
        for value in BAD[KINDS[option.unit]]
        if isinstance(value, str) and value
    ],
    ids=lambda value: value.name if isinstance(value, Option) else repr(value)[:20],
)
def test_a_bad_variable_is_a_warning_and_the_default(
    option: Option, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same for the environment, where the line names the variable."""
    assert load({}, {option.env: value}) == load({}, {})
    (message,) = warnings(caplog)
    assert option.env in message


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("stal_after", "stall_after"),
        ("recent_transaction", "recent_transactions"),
        ("dump_dir", "debug_dump_dir"),
        ("exporttext", "export_text"),
        ("hashkey", "hash_key"),
    ],
)
def test_an_unknown_option_names_the_nearest(name: str, nearest: str) -> None:
    """A misspelt option is a TypeError that says what was meant."""
    with pytest.raises(TypeError, match=rf"{name}.*{nearest}"):
        load({name: 1}, {})


def test_an_unknown_option_like_no_other_lists_them() -> None:
    """Where no option is near, the message has them all."""
    with pytest.raises(TypeError) as raised:
        load({"zzz": 1}, {})
    assert all(re.search(rf"\b{name}\b", str(raised.value)) for name in NAMES)


def test_init_with_an_unknown_option_changes_nothing() -> None:
    """The misspelt call raises, and the tracker goes on as it was, also with later calls."""
    with fresh_tracker(use_as_shared=True, stall_after=7) as t:
        with pytest.raises(TypeError, match="stall_after"):
            init_debug_tracker(settle=1, stall_aftr=9)
        assert t.tracker.settings.settle == 5.0
        init_debug_tracker(settle=2)
        assert (t.tracker.settings.settle, t.tracker.settings.stall_after) == (2.0, 7.0)


# --- limits of single stages ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ({}, {}, {}),
        ({}, {"OTEL_TRACKER_STALL_AFTER_MEMORY": "900"}, {"memory": 900.0}),
        ({}, {"OTEL_TRACKER_STALL_AFTER_MY_STAGE": "9"}, {"my_stage": 9.0}),
        ({"stall_after_memory": 900}, {}, {"memory": 900.0}),
        ({"stall_after_stage": {"memory": 900, "fetch": "3"}}, {}, {"memory": 900.0, "fetch": 3.0}),
        ({"stall_after_Memory": 9}, {}, {"memory": 9.0}),
        ({"stall_after_stage": {"Speech To Text": 9}}, {}, {"speech to text": 9.0}),
        ({"stall_after_memory": 1}, {"OTEL_TRACKER_STALL_AFTER_MEMORY": "9"}, {"memory": 1.0}),
        ({"stall_after_fetch": 1}, {"OTEL_TRACKER_STALL_AFTER_MEMORY": "9"},
         {"fetch": 1.0, "memory": 9.0}),
    ],
)  # fmt: skip
def test_limits_of_stages(
    options: dict[str, Any], environ: dict[str, str], expected: dict[str, float]
) -> None:
    """A stage's own limit comes from its variable or keyword, and the keyword wins."""
    assert load(options, environ).stall_after_stage == expected


@pytest.mark.parametrize("by", ["environment", "keyword", "mapping", "init"])
def test_a_stage_stalls_at_its_own_limit(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of one stage holds for it, and for no other."""
    options: dict[str, Any] = {}
    if by == "keyword":
        options["stall_after_fetch"] = 5
    elif by == "mapping":
        options["stall_after_stage"] = {"fetch": 5}
    elif by == "environment":
        monkeypatch.setenv("OTEL_TRACKER_STALL_AFTER_FETCH", "5")
    with fresh_tracker(use_as_shared=True, **options) as t:
        if by == "init":
            init_debug_tracker(stall_after_fetch=5)
        fetch = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(fetch, "fetch_started")
        memory = t.tracker.create_transaction("user", "client")
        t.tracker.track_event(memory, PipelineStage.MEMORY_STARTED)
        t.advance(4.999)
        assert t.status(fetch) is TransactionStatus.IN_PROGRESS
        t.advance(0.001)
        assert t.status(fetch) is TransactionStatus.STALLED
        t.advance(54.999)
        assert t.status(memory) is TransactionStatus.IN_PROGRESS
        t.advance(0.001)
        assert t.status(memory) is TransactionStatus.STALLED


@pytest.mark.parametrize("value", ["soon", 0, -1, float("nan"), None])
def test_a_bad_limit_of_a_stage_is_a_warning(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A stage with a bad limit has the general one."""
    assert load({"stall_after_memory": value}, {}).stall_after_stage == {}
    (message,) = warnings(caplog)
    assert "stall_after_memory" in message


@pytest.mark.parametrize("value", [5, "memory=5", ["memory"]])
def test_limits_that_are_no_mapping_are_a_warning(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    """stall_after_stage= takes a mapping, and says so."""
    assert load({"stall_after_stage": value}, {}).stall_after_stage == {}
    (message,) = warnings(caplog)
    assert "stall_after_stage" in message


# --- what options do ------------------------------------------------------------------------------


def test_init_keeps_what_it_does_not_name() -> None:
    """Options given earlier stay in force through later calls."""
    with fresh_tracker(use_as_shared=True, stall_after=7) as t:
        init_debug_tracker(settle=1)
        init_debug_tracker()
        assert (t.tracker.settings.stall_after, t.tracker.settings.settle) == (7.0, 1.0)


def test_a_lower_limit_lets_go_at_once() -> None:
    """recent_transactions= and recent_issues= hold for what is kept already."""
    with fresh_tracker(use_as_shared=True) as t:
        for number in range(20):
            t.clock.advance(1)
            transaction_id = t.tracker.create_transaction("user", "client")
            t.tracker.track_event(
                transaction_id,
                PipelineStage.MEMORY_COMPLETED,
                False,
                "abcdefghijklmnopqrst"[number],
            )
        init_debug_tracker(recent_transactions=3, recent_issues=2)
        assert len(t.tracker.get_recent_transactions(100)) == 3
        assert len(t.tracker.get_dashboard_data()["recent_issues"]) == 2
        assert t.tracker.metrics.failed_transactions == 20


def test_disabled_answers_and_does_nothing(tmp_path: Path) -> None:
    """With OTEL_TRACKER_DISABLED every call answers as ever, and nothing is tracked or exported."""
    with fresh_tracker(disabled=True, debug_dump_dir=tmp_path) as t:
        transaction_id = t.tracker.create_transaction("user", "client")
        assert transaction_id
        t.tracker.track_event(transaction_id, PipelineStage.MEMORY_STARTED)
        session = t.tracker.start_memory_session("audio", "client", "user", "mail")
        assert session
        t.tracker.complete_memory_processing(session, True)
        assert t.tracker.get_transaction(transaction_id) is None
        assert t.tracker.get_session_summary("audio") is None
        data = t.tracker.get_dashboard_data()
        assert data["system_metrics"]["total_transactions"] == 0
        assert data["health"]["disabled"] is True
        assert t.tracker.export_debug_dump().exists()
    assert t.finished_spans() == []


@pytest.mark.parametrize("url", ["https://jaeger.example", "https://jaeger.example/"])
def test_the_trace_url(url: str) -> None:
    """trace_url() leads to the trace by the 32 digits that Jaeger takes."""
    with fresh_tracker(jaeger_url=url) as t:
        transaction_id = t.tracker.create_transaction("user", "client")
        digits = transaction_id.replace("-", "")
        assert t.tracker.trace_url(transaction_id) == f"https://jaeger.example/trace/{digits}"
