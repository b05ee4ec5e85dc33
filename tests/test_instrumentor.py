"""The tracker in applications as they stand: nothing in their code, or one call of `instrument`."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_tracker import DebugSystemTracker, Pipeline, stage, transaction
from otel_tracker.instrumentor import OtelTrackerInstrumentor
from otel_tracker.testing import Harness, fresh_tracker
from tests.auto.notes import index, reading
from tests.otlp import ROOT, plain, receiver, tree

T = TypeVar("T")

APP: Final = "tests/auto/app.py"
STAGES: Final = {
    "tests.auto.notes.reading:fetch": "fetch",  # a coroutine function
    "tests.auto.notes.reading:sentences": "split",  # a generator
    "tests.auto.notes.reading:lines": "lines",  # an asynchronous generator
    "tests.auto.notes.index:Index.empty": "open",  # a class method
    "tests.auto.notes.index:Index.words": "words",  # a static method
    "tests.auto.notes.index:Index.add": "index",  # a method
    "tests.auto.notes.index:Index.Statistics.longest": "longest",  # of a class in a class
    "tests.auto.notes.index:Index.describe": "describe",  # inherited
}
ENTRIES: Final = ",".join(f"{target}={name}" for target, name in STAGES.items())
TRANSACTIONS: Final = "tests.auto.notes.pipeline:index_file=notes"
TEXT: Final = "It was dark. The ship came in!\nNobody saw it.\n"


# --- opentelemetry-instrument ---------------------------------------------------------------------


def prepared(*command: str, endpoint: str = "", **env: str) -> dict[str, Any]:
    """How `subprocess` runs Python with these arguments by ``opentelemetry-instrument``."""
    program = Path(sys.executable).with_name("opentelemetry-instrument")
    if not program.exists():
        message = f"{program.name} is not installed: pip install 'otel-tracker[auto]'"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    return {
        "args": [str(program), sys.executable, *command],
        "cwd": ROOT,
        "env": {
            **clean, "PYTHONPATH": str(ROOT),
            "OTEL_TRACES_EXPORTER": "otlp" if endpoint else "none",
            "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **env,
        },
    }  # fmt: skip


def instrumented(*command: str, endpoint: str = "", **env: str) -> tuple[str, str]:
    """What Python prints, run by ``opentelemetry-instrument``, on its two streams."""
    done = subprocess.run(
        **prepared(*command, endpoint=endpoint, **env),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A file to index."""
    path = tmp_path / "note.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_an_application_without_a_change_in_its_code(text: str) -> None:
    """Its functions are stages of one transaction: at the OTLP receiver and in the dashboard."""
    plainly = json.loads(
        instrumented(APP, text, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="otel_tracker")[0]
    )
    with receiver() as (endpoint, spans):
        out, err = instrumented(
            APP, text, endpoint=endpoint,
            OTEL_TRACKER_STAGES=ENTRIES, OTEL_TRACKER_TRANSACTIONS=TRANSACTIONS,
        )  # fmt: skip
        arrived = [plain(span) for span in spans]
    output = json.loads(out)
    assert "dashboard" not in plainly, "the run to compare with had the tracker in it"
    assert output["results"] == plainly["results"]
    assert err == ""

    assert tree(arrived) == sorted(
        [
            ("request", ""), ("answer", "request"), ("notes", ""),
            ("fetch", "notes"), ("disk", "fetch"), ("open", "notes"), ("split", "notes"),
            ("lines", "notes"), ("longest", "notes"), ("describe", "notes"),
            *[("index", "notes")] * 3, *[("words", "index")] * 3,
        ]
    )  # fmt: skip
    (root,) = [span for span in arrived if span.name == "notes"]
    (request,) = [span for span in arrived if span.name == "request"]
    assert root.attributes["otel_tracker.outcome"] == "success"
    assert root.attributes["user.id"] == "user-1", "ids are taken from parameters of their names"
    assert root.links == (request.trace_id,)

    dashboard = output["dashboard"]
    (row,) = dashboard["recent_transactions"]
    assert (row["status"], row["issue"]) == ("completed", None)
    assert dashboard["system_metrics"]["completed_transactions"] == 1
    assert {name: stage["done"] for name, stage in dashboard["stages"].items()} == {
        "fetch": 1, "open": 1, "split": 1, "index": 3, "words": 3, "lines": 1, "longest": 1,
        "describe": 1,
    }  # fmt: skip
    assert dashboard["health"]["export"]["provider"] == "application"
    assert dashboard["health"]["problems"] == {}


def test_a_server_that_imports_the_application(text: str, tmp_path: Path) -> None:
    """uvicorn with FastAPI, which OpenTelemetry instruments too: a request is a transaction."""
    log = tmp_path / "uvicorn.log"
    with receiver() as (endpoint, spans), log.open("wb") as output:
        server = subprocess.Popen(
            **prepared(
                "-m", "uvicorn", "tests.auto.web:app", "--port", "0", endpoint=endpoint,
                OTEL_BSP_SCHEDULE_DELAY="100",
                OTEL_TRACKER_STAGES=ENTRIES, OTEL_TRACKER_TRANSACTIONS=TRANSACTIONS,
            ),
            stdout=output, stderr=output,
        )  # fmt: skip
        try:
            serves = until(lambda: re.search(r"http://127[.0-9]+:\d+", log.read_text("utf-8")), log)
            assert serves is not None
            url = serves[0]
            for user in ("ann", "ben"):
                answer = httpx.post(f"{url}/index", params={"path": text, "user_id": user})
                assert answer.json()["user"] == user
            dashboard = httpx.get(f"{url}/dashboard").json()
            until(lambda: [s.name for s in list(spans)].count("notes") == 2, log)
            until(lambda: "GET /dashboard" in [s.name for s in list(spans)], log)
        finally:
            server.kill()
            server.wait()
        arrived = [plain(span) for span in spans]
    assert dashboard["system_metrics"]["completed_transactions"] == 2
    assert dashboard["active_users"] == 2
    assert dashboard["stages"]["index"]["done"] == 6
    roots = [span for span in arrived if span.name == "notes"]
    requests = {span.trace_id for span in arrived if span.name == "POST /index"}
    assert [span.attributes["otel_tracker.outcome"] for span in roots] == ["success"] * 2
    assert len(requests) == 2
    assert {link for span in roots for link in span.links} == requests
    for root in roots:
        names = [span.name for span in arrived if span.trace_id == root.trace_id]
        assert sorted(names) == sorted(
            ["notes", "fetch", "disk", "open", "split", "lines", "longest", "describe"]
            + ["index", "words"] * 3
        )
    assert "otel_tracker" not in log.read_text("utf-8"), "there was nothing to tell"


def until(probe: Callable[[], T], log: Path, timeout_s: float = 30) -> T:
    """What `probe` says, as soon as it is something."""
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.05)
    return found


def test_without_entries_it_is_the_dashboard_alone(text: str) -> None:
    """Nothing is made of a function that nobody named; the application's spans are as they were."""
    with receiver() as (endpoint, spans):
        out, err = instrumented(APP, text, endpoint=endpoint)
        arrived = [plain(span) for span in spans]
    assert tree(arrived) == [("answer", "request"), ("disk", "request"), ("request", "")]
    assert json.loads(out)["dashboard"]["system_metrics"]["total_transactions"] == 0
    assert err == ""


def test_the_dashboard_is_exact_with_the_sdk_disabled(text: str) -> None:
    """OTEL_SDK_DISABLED makes no spans, and the figures are the same."""
    out, _ = instrumented(
        APP, text, OTEL_SDK_DISABLED="true",
        OTEL_TRACKER_STAGES=ENTRIES, OTEL_TRACKER_TRANSACTIONS=TRANSACTIONS,
    )  # fmt: skip
    dashboard = json.loads(out)["dashboard"]
    assert dashboard["system_metrics"]["completed_transactions"] == 1
    assert dashboard["stages"]["index"]["done"] == 3


@pytest.mark.parametrize("command", [[APP], ["-m", "tests.auto.app"]], ids=["file", "-m"])
@pytest.mark.parametrize("module", ["tests.auto.app", "__main__"])
def test_a_function_of_the_script_itself_is_told_at_once(
    command: list[str], module: str, text: str
) -> None:
    """Python runs the script as __main__, which ends when all is over: the line says what to do."""
    _, err = instrumented(*command, text, OTEL_TRACKER_STAGES=f"{module}:greet=greet")
    (line,) = err.splitlines()
    assert f"{module}:greet is in the script that Python runs" in line
    assert "python -c 'import " in line
    assert "never imported" not in line


def test_the_way_out_that_the_line_names(text: str) -> None:
    """Started by -c, the script is a module like any other."""
    out, err = instrumented(
        "-c",
        f"import json, tests.auto.app; print(json.dumps(tests.auto.app.main([{text!r}])))",
        OTEL_TRACKER_STAGES="tests.auto.app:greet=greet",
    )
    assert err == ""
    assert json.loads(out)["dashboard"]["stages"]["greet"]["done"] == 1


def test_modules_that_were_never_imported_are_one_line_at_exit(text: str) -> None:
    """It names them, and what may have been meant; one whose import failed is among them."""
    _, err = instrumented(
        "-c",
        "import contextlib, tests.auto.notes.reading\n"
        "with contextlib.suppress(ImportError): import tests.auto.notes.broken\n"
        "print('over', flush=True)",
        OTEL_TRACKER_STAGES="tests.auto.notes.readings:read=read,nothing.like_it:f=a,"
        "tests.auto.notes.broken:translate=translate",
    )
    (line,) = err.splitlines()
    assert "never imported, or failed to import, " in line
    assert "tests.auto.notes.readings (did you mean reading?), " in line
    assert "nothing.like_it, tests.auto.notes.broken; " in line


def test_a_module_that_fails_to_import_at_first(text: str) -> None:
    """The application gets its ImportError, and the stage when the import succeeds."""
    out, err = instrumented(
        "-c",
        textwrap.dedent(
            """
            try:
                import tests.auto.notes.broken
            except ImportError as error:
                print(error)
            from tests.auto.notes.broken import translate
            print(translate("yes"))
            from otel_tracker import get_debug_tracker
            print(get_debug_tracker().get_dashboard_data()["stages"]["translate"]["done"])
            """
        ),
        OTEL_TRACKER_STAGES="tests.auto.notes.broken:translate=translate",
    )
    assert out.splitlines() == ["the engine is not there yet", "YES", "1"]
    assert err == ""


def test_bad_entries_are_lines_and_nothing_else(text: str) -> None:
    """The program runs, and the good entry among them counts."""
    out, err = instrumented(
        APP, text,
        OTEL_TRACKER_STAGES="nonsense,tests.auto.notes.index:Index.add=index,"
        "tests.auto.notes.index:Index.adds=x",
    )  # fmt: skip
    first, second = err.splitlines()
    assert "OTEL_TRACKER_STAGES: nonsense is ignored; write package.module:function=stage" in first
    assert "tests.auto.notes.index:Index.adds cannot be a stage" in second
    assert "did you mean add?" in second
    dashboard = json.loads(out)["dashboard"]
    assert dashboard["stages"]["index"]["done"] == 3
    assert len(dashboard["health"]["problems"]) == 2


def test_a_forked_worker_that_imports_the_application(text: str) -> None:
    """Servers fork before they import: the child's functions are stages there."""
    out, _ = instrumented(
        "-c",
        textwrap.dedent(
            f"""
            import json, os
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
            else:
                from tests.auto import app
                print(app.main([{text!r}])["dashboard"]["stages"]["index"]["done"])
            """
        ),
        OTEL_TRACKER_STAGES=ENTRIES,
    )
    assert out.split() == ["3"]


# --- an application with an OpenTelemetry of its own ----------------------------------------------


def own_provider(sampler: str, *files: str, instrument: int, **env: str) -> dict[str, Any]:
    """What tests/auto/own_provider.py prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "tests/auto/own_provider.py", sampler, *files],
        env={
            **clean, "PYTHONPATH": str(ROOT), "INSTRUMENT": str(instrument),
            "OTEL_TRACKER_STAGES": ENTRIES, "OTEL_TRACKER_TRANSACTIONS": TRANSACTIONS, **env,
        },
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    output: dict[str, Any] = json.loads(done.stdout)
    return output


def theirs(output: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans that the application made itself."""
    return [span for span in output["spans"] if span["scope"] != "otel_tracker"]


@pytest.mark.parametrize("sampler", ["on", "off", "ratio 0", "parent", "parent off"])
def test_the_applications_own_telemetry_is_as_without(sampler: str, text: str) -> None:
    """Number, order, names, ids, attributes and resource of its spans, in a run with and without.

    A span that it makes inside a stage is that stage's child: its own id stays, its trace does not.
    Links to the transaction, by which the two find each other, are switched off.
    """
    without = own_provider(sampler, text, text, instrument=0)
    with_it = own_provider(sampler, text, text, instrument=1, OTEL_TRACKER_LINK_CALLER="false")
    before, after = theirs(without), theirs(with_it)
    assert len(before) == (6 if sampler in ("on", "parent") else 0)
    inside = {"trace": 0, "parent": 0}
    moved = [span for span in before if span["name"] == "disk"]
    assert [{**span, **inside} if span in moved else span for span in before] == [
        {**span, **inside} if span["name"] == "disk" else span for span in after
    ]
    assert all(span["trace"] > 1 << 64 for span in after if span["name"] == "disk")
    ours = [span for span in with_it["spans"] if span["scope"] == "otel_tracker"]
    assert len(ours) == (26 if before else 0), "our spans follow the application's sampler"
    assert {span["resource"] for span in ours} <= {"notes"}
    assert with_it["results"] == without["results"]
    assert with_it["dashboard"]["stages"]["index"]["done"] == 3, "the dashboard does not"


def test_after_uninstrument_it_runs_as_if_nothing_had_been(text: str) -> None:
    """The second half of a run is span for span that of a run without the tracker."""
    without = own_provider("on", text, text, instrument=0)
    halved = own_provider("on", text, text, instrument=2)
    assert len(halved["spans"]) == 3 + 13 + 3
    assert halved["spans"][-3:] == without["spans"][-3:]


# --- in this process ------------------------------------------------------------------------------


@pytest.fixture
def t() -> Iterator[Harness]:
    """A fresh tracker as the shared one; what a test leaves instrumented is taken back."""
    with fresh_tracker(use_as_shared=True) as harness:
        yield harness
        if OtelTrackerInstrumentor().is_instrumented_by_opentelemetry:
            OtelTrackerInstrumentor().uninstrument()


def instrument(t: Harness, **options: Any) -> None:
    OtelTrackerInstrumentor().instrument(tracer_provider=t.provider, **options)


def uninstrument() -> None:
    OtelTrackerInstrumentor().uninstrument()


def done(t: Harness) -> dict[str, int]:
    """How many attempts at each stage went well."""
    stages = t.tracker.get_dashboard_data()["stages"]
    return {name: row["done"] for name, row in stages.items()}


def raw(target: str) -> Any:
    """The attribute as its module or class keeps it; None where it has none of its own."""
    module, _, path = target.partition(":")
    *outer, name = path.split(".")
    owner: Any = sys.modules[module]
    for part in outer:
        owner = getattr(owner, part)
    return vars(owner).get(name)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes modules that can be imported until the test is over."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(name: str, source: str) -> None:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        importlib.invalidate_caches()

    yield write
    for name in names:
        sys.modules.pop(name, None)


async def use_everything() -> None:
    """Calls each function of STAGES."""
    await reading.fetch(ROOT / "LICENSE")
    for sentence in reading.sentences("One. Two."):
        index.Index.words(sentence)
    assert [line async for line in reading.lines("one\ntwo")] == ["one", "two"]
    made = index.Index.empty()
    assert type(made) is index.Index
    assert made.add(1, "three words here") == 3
    assert index.Index.Statistics().longest(made) == "words"
    assert made.describe() == "Index"
    assert index.Base().describe() == "Base"


def test_functions_of_every_kind_and_the_exact_originals_back(t: Harness) -> None:
    """Each is a stage while instrumented; after it the very same object is in its place."""
    before = {target: raw(target) for target in STAGES}
    instrument(t, stages=STAGES)
    assert all(raw(target) is not before[target] for target in STAGES)
    asyncio.run(use_everything())
    expected = dict.fromkeys(STAGES.values(), 1) | {"words": 3}
    assert done(t) == expected, "the base's own method is none: the entry names the derived class"

    uninstrument()
    assert all(raw(target) is before[target] for target in STAGES)
    assert "describe" not in vars(index.Index)
    asyncio.run(use_everything())
    assert done(t) == expected


def test_a_module_is_taken_when_it_is_imported(t: Harness, module: Callable[..., None]) -> None:
    """Before whoever imports a name from it gets that; and it is not us who imports it."""
    module("late_one", "def work():\n    return 'done'\n")
    module("late_user", "from late_one import work\n")
    instrument(t, stages={"late_one:work": "work"})
    assert "late_one" not in sys.modules
    user = importlib.import_module("late_user")
    assert user.work() == "done"
    assert done(t) == {"work": 1}


def test_a_module_imported_after_uninstrument_is_left_alone(
    t: Harness, module: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """The hook that waits for it cannot be removed; it does nothing, and tells nothing."""
    module("too_late", "def work():\n    return 'done'\n")
    instrument(t, stages={"too_late:work": "work", "too_late:nowhere": "work"})
    uninstrument()
    imported = importlib.import_module("too_late")
    assert not hasattr(imported.work, "__wrapped__")
    assert warnings_of(caplog) == []


def test_uninstrument_in_the_middle_of_an_import(t: Harness, module: Callable[..., None]) -> None:
    """A module that takes the tracker out itself, while it is waited for, stays as it is."""
    module(
        "turncoat",
        """
        from otel_tracker.instrumentor import OtelTrackerInstrumentor

        def work():
            return "done"

        OtelTrackerInstrumentor().uninstrument()
        """,
    )
    instrument(t, stages={"turncoat:work": "work"})
    assert not hasattr(importlib.import_module("turncoat").work, "__wrapped__")


def test_uninstrument_in_the_middle_of_a_replacement(
    t: Harness, module: Callable[..., None]
) -> None:
    """As another thread may call it: what was put in meanwhile is taken out again."""
    module(
        "racing",
        """
        from otel_tracker.instrumentor import OtelTrackerInstrumentor

        class Meta(type):
            def __setattr__(cls, name, value):
                super().__setattr__(name, value)
                if OtelTrackerInstrumentor().is_instrumented_by_opentelemetry:
                    OtelTrackerInstrumentor()._is_instrumented_by_opentelemetry = False
                    OtelTrackerInstrumentor()._uninstrument()

        class Work(metaclass=Meta):
            def work(self):
                return "done"
        """,
    )
    instrument(t, stages={"racing:Work.work": "work"})
    racing = importlib.import_module("racing")
    assert not hasattr(racing.Work.work, "__wrapped__")


def test_a_transaction_around_its_stages(t: Harness, module: Callable[..., None]) -> None:
    """Of one function that is both, the transaction is around the stage."""
    module(
        "both_kinds",
        """
        def inner():
            pass

        def handle(user_id):
            inner()
        """,
    )
    instrument(
        t,
        transactions={"both_kinds:handle": "voice"},
        stages={"both_kinds:handle": "handle", "both_kinds:inner": "inner"},
    )
    importlib.import_module("both_kinds").handle("ann")
    assert [(s["name"], s["parent"]) for s in t.spans()] == [
        ("voice", None), ("handle", "voice"), ("inner", "handle"),
    ]  # fmt: skip
    assert [row.user_id for row in t.tracker.get_user_transactions("ann")] == ["ann"]
    uninstrument()
    assert not hasattr(sys.modules["both_kinds"].handle, "__wrapped__")


def test_a_transaction_is_of_the_pipeline_that_the_application_declared(
    t: Harness, module: Callable[..., None]
) -> None:
    """By its name: leaving the function before the last declared stage is no end."""
    t.tracker.declare(Pipeline("notes", ("read", "store")))
    module("declared_run", "def handle(): read()\ndef read(): pass\n")
    instrument(
        t, transactions={"declared_run:handle": "notes"}, stages={"declared_run:read": "read"}
    )
    importlib.import_module("declared_run").handle()
    (row,) = t.tracker.get_recent_transactions()
    assert (row["status"], row["current_stage"]) == ("in_progress", "read_completed")


def test_a_module_that_has_another_name_too(t: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `os.path`, which calls itself posixpath."""
    monkeypatch.setitem(sys.modules, "another_name", index)
    original = vars(index.Index)["words"]
    instrument(t, stages={"another_name:Index.words": "words"})
    index.Index.words("one")
    uninstrument()
    assert done(t) == {"words": 1}
    assert vars(index.Index)["words"] is original


def test_a_module_that_is_reloaded_has_its_originals(
    t: Harness, module: Callable[..., None]
) -> None:
    """As docs/auto-instrumentation.md says; taking the tracker out then leaves them alone."""
    module("reloaded", "def work(): pass\n")
    instrument(t, stages={"reloaded:work": "work"})
    imported = importlib.import_module("reloaded")
    assert hasattr(imported.work, "__wrapped__")
    importlib.reload(imported)
    anew = imported.work
    assert not hasattr(anew, "__wrapped__")
    uninstrument()
    assert imported.work is anew


def test_the_environment_and_keywords(
    t: Harness, module: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keywords win; without them the environment counts, spaces and empty places and all."""
    monkeypatch.setenv("OTEL_TRACKER_STAGES", " reading_env:a = first , ,reading_env:b=second,")
    module("reading_env", "def a(): pass\ndef b(): pass\ndef c(): pass\n")
    imported = importlib.import_module("reading_env")
    instrument(t)
    imported.a(), imported.b(), imported.c()
    assert done(t) == {"first": 1, "second": 1}
    uninstrument()
    instrument(t, stages={"reading_env:c": "memory_completed"})
    imported.a(), imported.b(), imported.c()
    assert done(t) == {"first": 1, "second": 1, "memory": 1}, "an event names its stage"


def test_instrument_and_uninstrument_again_and_again(
    t: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """Each round counts once and gives the original back; a second call of either is a log line."""
    target = "tests.auto.notes.index:Index.words"
    original = raw(target)
    for _ in range(3):
        instrument(t, stages={target: "words"})
        instrument(t, stages={target: "words"})
        index.Index.words("one")
        uninstrument()
        uninstrument()
        assert raw(target) is original
        index.Index.words("one")
    assert done(t) == {"words": 3}
    assert [s["name"] for s in t.spans()].count("words") == len(t.spans()) / 2 == 3
    told = [r.getMessage() for r in caplog.records if "Attempting to" in r.getMessage()]
    assert len(told) == 6


# --- what is left alone, and what is told ---------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_function_that_is_decorated_already(t: Harness, module: Callable[..., None]) -> None:
    """With the same stage it is left alone, also below another decorator; with others it is not."""
    module(
        "decorated",
        """
        import functools
        from otel_tracker import stage, transaction

        def logged(function):
            @functools.wraps(function)
            def call(*args):
                return function(*args)
            return call

        @stage("memory")
        def same(): pass

        @stage("other")
        @stage("memory")
        def twice(): pass

        @logged
        @stage("memory")
        def below(): pass

        @stage
        def by_its_name(): pass

        class Work:
            @classmethod
            @stage("memory")
            def inside(cls): pass

            @stage("memory")
            @staticmethod
            def outside(): pass

        partly = stage("memory")(functools.partial(same))

        @stage("other")
        def different(): pass

        @transaction("memory")
        def of_another_kind(): pass
        """,
    )
    imported = importlib.import_module("decorated")
    same = ["same", "twice", "below", "Work.inside", "Work.outside", "partly"]
    others = ["different", "of_another_kind"]
    stages = {f"decorated:{path}": "memory" for path in (*same, *others)}
    stages["decorated:by_its_name"] = "by_its_name"
    before = {target: raw(target) for target in stages}
    instrument(t, stages=stages)
    changed = [target for target in stages if raw(target) is not before[target]]
    assert changed == [f"decorated:{path}" for path in others]
    imported.different()
    assert done(t) == {"memory": 1, "other": 1}


@pytest.mark.parametrize(
    "entry",
    [
        "voice.asr", "voice.asr:transcribe", "voice.asr:transcribe=", "voice.asr=transcription",
        ":transcribe=transcription", "voice.asr:=transcription", "=transcription", "=", ":",
        "voice..asr:transcribe=transcription", "voice/asr.py:transcribe=transcription",
        "voice.asr:transcribe()=transcription", "voice.asr:a:b=transcription",
        "voice.asr:transcribe=\x00", "voice.asr:transcribe=" + "x" * 500,
        "voice.asr:f=a voice.asr:g=b",
    ],
)  # fmt: skip
def test_an_entry_that_is_none(
    entry: str, t: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning names it and the form; the others count."""
    good = "tests.auto.notes.index:Index.words=words"
    monkeypatch.setattr(os, "environ", {**os.environ, "OTEL_TRACKER_STAGES": f"{entry},{good}"})
    instrument(t)
    (line,) = warnings_of(caplog)
    assert line.startswith(f"otel_tracker: OTEL_TRACKER_STAGES: {entry.strip()[:20]}")
    assert "write package.module:function=stage" in line
    index.Index.words("one")
    assert done(t) == {"words": 1}


@pytest.mark.parametrize(
    "stages",
    [
        {1: "stage"}, {"voice.asr:f": None}, {"voice.asr:f": 3}, {None: None}, ["voice.asr:f"], 7,
        {"voice.asr:f": ["memory"]},
    ],
)  # fmt: skip
def test_stages_that_are_none(stages: Any, t: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is given, `instrument` does not raise, and one warning names the form."""
    instrument(t, stages=stages)
    (line,) = warnings_of(caplog)
    assert "instrument(stages=…)" in line
    assert "write package.module:function=stage" in line


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere", "the module odd has no nowhere"),
        ("transcribe_audoi", "did you mean transcribe_audio?"),
        ("Engine.rum", "Engine has no rum (did you mean run?)"),
        ("Engin.run", "did you mean Engine"),
        ("engine.run", "engine is an object of Engine; name the method of its class: odd:Engine.r"),
        ("Engine", "decorate its methods"),
        ("Engine.ready", "put it under @property"),
        ("LIMIT", "is none"),
        ("count.bit_length", "count is an object of int"),
        ("int.bit_length", "the module odd has no int"),
        ("Number.bit_length", "immutable type"),
        ("Frozen.run", "no changes, please"),
    ],
)  # fmt: skip
def test_an_attribute_that_is_not_there_or_no_function(
    path: str, told: str, t: Harness, module: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """One warning at once names the entry and what is there instead; nothing raises."""
    module(
        "odd",
        """
        LIMIT = "60"
        count = 3
        Number = int

        def transcribe_audio(): pass

        class Engine:
            def run(self): pass

            @property
            def ready(self): return True

        engine = Engine()

        class Meta(type):
            def __setattr__(cls, name, value):
                raise RuntimeError("no changes, please")

        class Frozen(metaclass=Meta):
            def run(self): pass
        """,
    )
    instrument(t, stages={f"odd:{path}": "work"})
    importlib.import_module("odd")
    (line,) = warnings_of(caplog)
    assert f"odd:{path} cannot be a stage: " in line
    assert told in line


def test_one_function_under_two_entries(t: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """The last counts, and the line says so; twice the same is no contradiction."""
    words = "tests.auto.notes.index:Index.words"
    instrument(t, stages=f"{words}=first,{words}=second,{words}=second")
    (line,) = warnings_of(caplog)
    assert f"{words} is named twice; it becomes second, not first" in line
    index.Index.words("one")
    assert done(t) == {"second": 1}


def test_a_function_that_something_else_has_decorated_since(
    t: Harness, module: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Another's decorator is not thrown away; the line says what stays, and it stays one stage."""
    module("shared_out", "def above(): pass\ndef gone(): pass\n")
    imported = importlib.import_module("shared_out")
    stages = {"shared_out:above": "above", "shared_out:gone": "gone"}
    instrument(t, stages=stages)
    ours = imported.above

    @functools.wraps(ours)
    def theirs() -> None:
        ours()

    vars(imported)["above"] = theirs
    del imported.gone
    uninstrument()
    assert imported.above is theirs
    assert not hasattr(imported, "gone")
    (line,) = warnings_of(caplog)
    assert "shared_out:above stays a stage" in line
    instrument(t, stages={"shared_out:above": "above"})
    imported.above()
    assert done(t) == {"above": 1}


def test_an_option_that_does_not_exist(t: Harness) -> None:
    """It is the TypeError of init_debug_tracker, and nothing was done; the right call works."""
    words = "tests.auto.notes.index:Index.words"
    original = raw(words)
    with pytest.raises(TypeError, match="did you mean 'stall_after'"):
        instrument(t, stages={words: "words"}, stal_after=3)
    assert raw(words) is original
    assert not OtelTrackerInstrumentor().is_instrumented_by_opentelemetry
    instrument(t, stages={words: "words"}, stall_after_words=7, meter_provider=None)
    assert raw(words) is not original
    assert t.tracker.settings.stall_after_stage == {"words": 7.0}


# --- OpenTelemetry before and after ---------------------------------------------------------------


def exporting_provider() -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def test_uninstrument_leaves_opentelemetry_as_it_was(t: Harness) -> None:
    """No fact is taken and no span made any more, what was open has ended, and calls answer."""
    provider, exporter = exporting_provider()
    tracer = provider.get_tracer("application")

    def marked() -> int:
        with tracer.start_as_current_span("x", attributes={"otel_tracker.stage": "theirs"}):
            running: int = t.tracker.get_dashboard_data()["stages"]["theirs"]["running"]
            return running

    OtelTrackerInstrumentor().instrument(tracer_provider=provider)
    assert marked() == 1
    left_open = t.tracker.create_transaction("ann")
    t.tracker.track_event(left_open, "memory_started")
    with transaction("run"), stage("open"):
        uninstrument()
        ended = ["x", "memory", "audio_pipeline", "open", "run"]
        assert [span.name for span in exporter.get_finished_spans()] == ended
        with stage("within"):
            pass
    assert [span.name for span in exporter.get_finished_spans()] == ended
    exporter.clear()
    before = done(t)
    assert (before["theirs"], before["within"]) == (1, 1)

    assert marked() == 0
    assert done(t) == before
    assert [span.name for span in exporter.get_finished_spans()] == ["x"]
    t.tracker.track_event(left_open, "memory_completed")
    t.tracker.track_event(t.tracker.create_transaction("ann"), "memory_completed")
    with stage("direct"):
        marked()
    assert [span.name for span in exporter.get_finished_spans()] == ["x", "x"]
    assert all(span.parent is None for span in exporter.get_finished_spans())
    assert done(t)["direct"] == 1, "the dashboard goes on counting what is told to it"
    assert done(t)["theirs"] == 1

    ours = provider.get_tracer("otel_tracker", trace_version())
    assert ours.id_generator is provider.id_generator  # type: ignore[attr-defined]
    assert ours.sampler is provider.sampler  # type: ignore[attr-defined]


def trace_version() -> str:
    from otel_tracker.telemetry import package_version

    return package_version()


def test_instrument_again_on_the_same_provider_and_on_another(t: Harness) -> None:
    """Each span is counted once, and made by the provider that is given, or by none of them."""
    first, of_first = exporting_provider()
    second, of_second = exporting_provider()
    for provider in (first, first, second):
        OtelTrackerInstrumentor().instrument(tracer_provider=provider)
        with stage("work"):
            pass
        with provider.get_tracer("x").start_as_current_span(
            "y", attributes={"otel_tracker.stage": "z"}
        ):
            pass
        uninstrument()
    OtelTrackerInstrumentor().instrument()
    with stage("work"):
        pass
    uninstrument()
    assert [span.name for span in of_first.get_finished_spans()] == ["work", "transaction", "y"] * 2
    assert [span.name for span in of_second.get_finished_spans()] == ["work", "transaction", "y"]
    assert done(t) == {"work": 4, "z": 3}


def test_another_tracker_on_the_same_provider_is_not_disturbed(t: Harness) -> None:
    """Newer SDKs give both the same tracer: it keeps the ids and the sampler of the other."""
    other = DebugSystemTracker(t.provider, run_sweeper=False)
    instrument(t)
    with stage("ours"):
        pass
    uninstrument()
    transaction_id = other.create_transaction("ann")
    other.track_event(transaction_id, "memory_completed")
    other.shutdown()
    spans = [span.get_span_context() for span in t.finished_spans()]
    assert f"{spans[-1].trace_id:032x}" == transaction_id.replace("-", "")  # type: ignore[union-attr]
    assert len(spans) == 4


def test_uninstrument_leaves_no_thread_and_no_last_word() -> None:
    """Its thread ends, a read does not start it again, and at exit nothing is told of modules."""
    assert (
        python(
            """
            import threading, time
            from opentelemetry.sdk.trace import TracerProvider
            from otel_tracker import get_debug_tracker
            from otel_tracker.instrumentor import OtelTrackerInstrumentor
            from opentelemetry import trace

            trace.set_tracer_provider(TracerProvider())
            OtelTrackerInstrumentor().instrument(stages={"nothing.like_it:work": "work"})
            running = threading.active_count()
            OtelTrackerInstrumentor().uninstrument()
            deadline = time.monotonic() + 5
            while threading.active_count() > 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            get_debug_tracker().get_dashboard_data()
            print(running, threading.active_count())
            """
        )
        == "2 1"
    )


def test_uninstrument_with_an_endpoint_that_hangs() -> None:
    """Where the tracker has a provider of its own, taking it out takes 5 s at most."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        program = """
            import time
            from otel_tracker import stage
            from otel_tracker.instrumentor import OtelTrackerInstrumentor
            OtelTrackerInstrumentor().instrument()
            for _ in range(600):
                with stage("work"):
                    pass
            started = time.monotonic()
            OtelTrackerInstrumentor().uninstrument()
            print(time.monotonic() - started, flush=True)
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)  # the exit itself is bounded elsewhere
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={
                **clean, "PYTHONPATH": str(ROOT),
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{deaf.getsockname()[1]}",
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 1 < float(done.stdout) < 6.5, done.stdout + done.stderr


# --- where it stands ------------------------------------------------------------------------------


def python(code: str) -> str:
    """What `code` prints, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_package_never_imports_it() -> None:
    """Neither it nor what the extra brings costs anybody a start who does not use it."""
    assert (
        python(
            """
        import sys
        import otel_tracker, otel_tracker.testing, otel_tracker.cli
        with otel_tracker.stage("work"):
            pass
        names = ("otel_tracker.instrumentor", "opentelemetry.instrumentation")
        print([name for name in names if name in sys.modules])
        """
        )
        == "[]"
    )


def test_without_the_extra_the_error_names_it() -> None:
    """The ImportError says what to install."""
    assert python(
        """
        import sys
        sys.modules["opentelemetry.instrumentation"] = None  # Python's own mark of what cannot be
        try:
            import otel_tracker.instrumentor
        except ImportError as error:
            print(error)
        """
    ) == (
        "otel_tracker.instrumentor needs opentelemetry-instrumentation; run: "
        "pip install 'otel-tracker[auto]'"
    )


def test_the_entry_point_leads_to_it() -> None:
    """opentelemetry-instrument finds it, and no library has to be there for it."""
    (entry,) = [
        e for e in entry_points(group="opentelemetry_instrumentor") if e.name == "otel_tracker"
    ]
    assert entry.load() is OtelTrackerInstrumentor
    assert OtelTrackerInstrumentor().instrumentation_dependencies() == ()
