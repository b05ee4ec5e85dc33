"""The arrows of docs/architecture.md, checked in the sources and by importing."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = ROOT / "otel_tracker"

CORE: Final = (
    "ids", "model", "history", "workers", "stalls", "issues", "verdict", "state", "views",
    "sessions", "store", "privacy",
)  # fmt: skip
"""What knows no OpenTelemetry: facts in, plain data out."""

ORDER: Final = (
    ("ids", "privacy", "stacks", "wrapping", "bounded", "outbox", "workers"),
    ("model",),
    ("history", "semconv", "diagnostics", "sessions", "dump"),
    ("stalls", "issues"),
    ("verdict",),
    ("state",),
    ("views", "store", "settings"),
    ("processor", "receiver"),
    ("handles", "exporting"),
    ("publisher",),
    ("telemetry", "remote"),
    ("spans",),
    ("recorder",),
    ("directory", "sweeper"),
    ("frames", "serving"),
    ("tracker",),
    ("debug_tracker",),
    ("api",),
    ("testing", "decorators"),
    ("instrumentor",),
    ("__init__",),
)
"""Each file imports from rows above its own. The demo and the command line are on top of all."""


def imports_of(module: str) -> set[str]:
    """Every module that a file of ours imports, functions' imports included, by its whole name."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "otel_tracker" if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            if name == "otel_tracker":  # from . import views: each name may be a file
                found.update(f"{name}.{alias.name}" for alias in node.names)
            else:
                found.add(name)
    return found


def ours(module: str) -> set[str]:
    """The files of ours that a file imports."""
    names = {name.split(".")[1] for name in imports_of(module) if name.startswith("otel_tracker.")}
    return {name for name in names if (PACKAGE / f"{name}.py").exists()}


def all_modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py"))


def test_the_check_sees_imports() -> None:
    """The reader of imports below is not blind: it finds those that are known to be there."""
    assert {"history", "issues", "model", "verdict", "ids"} <= ours("state")
    assert "opentelemetry.sdk.trace" in imports_of("processor")
    assert "debug_tracker" in ours("api")


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_opentelemetry(module: str) -> None:
    """Not by itself, and not by what it imports: nothing but the core and the standard library."""
    reached, todo = {module}, [module]
    while todo:
        one = todo.pop()
        outside = {name.split(".")[0] for name in imports_of(one)} - {"otel_tracker"}
        assert outside <= sys.stdlib_module_names, one
        for further in ours(one) - reached:
            reached.add(further)
            todo.append(further)
    assert reached <= set(CORE)


def test_arrows_run_one_way() -> None:
    """Every import goes up the documented order; so there is no cycle."""
    rank = {module: number for number, row in enumerate(ORDER) for module in row}
    against = [
        f"{module} imports {imported}"
        for module in rank
        for imported in ours(module)
        if rank.get(imported, len(ORDER)) >= rank[module]
    ]
    assert against == []


def test_the_order_names_every_file() -> None:
    """A new file has to be given its place; only the command line stands above all."""
    placed = {module for row in ORDER for module in row}
    assert set(all_modules()) - placed == {"__main__", "cli"}
    assert placed - set(all_modules()) == set()


def test_every_file_is_in_the_map_for_newcomers() -> None:
    """docs/architecture.md says of each file what it holds."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [m for m in all_modules() if m != "__init__" and f"`{m}.py`" not in text]
    assert missing == []


def test_no_file_imports_itself_by_a_detour() -> None:
    """Also within the demo, and with the imports inside functions, there is no cycle."""
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[here] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join(here.split(".")[: -node.level])
                base = f"{base}.{node.module}" if node.module else base
                graph[here].update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    assert "otel_tracker.demo.pipeline" in graph["otel_tracker.demo.run"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises where there is a cycle


def test_only_the_command_line_knows_the_demo() -> None:
    """The demo is an example: nobody who imports the library loads it."""
    users = [m for m in all_modules() if any("demo" in name for name in imports_of(m))]
    assert users == ["cli"]


def test_every_file_says_what_it_is_for() -> None:
    """It opens with a docstring."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path.relative_to(ROOT)


def output_of(code: str, *, pythonpath: Path = ROOT) -> Any:
    """The JSON that `code` prints, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**clean, "PYTHONPATH": str(pythonpath)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_core_runs_where_opentelemetry_cannot_be_imported() -> None:
    """A fold, a verdict and a view, with an import hook that forbids OpenTelemetry."""
    result = output_of(
        f"""
        import importlib, json, sys, types

        class Forbid:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "opentelemetry":
                    raise ImportError(f"{{name}} is not for the core")

        sys.meta_path.insert(0, Forbid())
        package = types.ModuleType("otel_tracker")  # its __init__ imports everything
        package.__path__ = [{str(PACKAGE)!r}]
        sys.modules["otel_tracker"] = package
        core = {{name: importlib.import_module("otel_tracker." + name) for name in {CORE!r}}}

        model, state = core["model"], core["state"].State()
        trace_id = core["ids"].new_trace_id()
        state.apply(model.Fact(trace_id, 2, model.Kind.STAGE, 1, 2, 2, True, stage="memory",
                               outcome="failure", error="no space", opened=True, closed=True))
        state.advance(3, 3)
        now = core["views"].Now(3, 3, 0, 0)
        row = core["views"].dashboard(state, now)["recent_transactions"][0]
        loaded = [name for name in sys.modules if name.startswith("opentelemetry")]
        print(json.dumps([row["status"], row["issue"], loaded]))
        """
    )
    assert result == ["failed", "Failed at memory_completed: no space", []]


def test_exporters_are_imported_only_when_they_are_used() -> None:
    """They cost 0.1 s and 20 to 40 MB; most processes never export from here."""
    result = output_of(
        """
        import json, sys
        from otel_tracker import get_debug_tracker

        tracker = get_debug_tracker()
        tid = tracker.create_transaction("user", "client")
        tracker.track_event(tid, "memory_completed")
        tracker.get_dashboard_data()
        heavy = ("opentelemetry.exporter", "grpc", "requests", "google.protobuf", "streamlit")
        print(json.dumps([name for name in heavy if name in sys.modules]))
        """
    )
    assert result == []


def test_the_public_face_is_what_it_says() -> None:
    """`from otel_tracker import *` brings the sorted names of __all__, and nothing private."""
    result = output_of(
        """
        import json
        import otel_tracker
        names = {}
        exec("from otel_tracker import *", names)
        names.pop("__builtins__")
        print(json.dumps([sorted(names), otel_tracker.__all__]))
        """
    )
    got, declared = result
    assert got == declared == sorted(declared)
    assert {
        "DebugSystemTracker",
        "PipelineEvent",
        "PipelineStage",
        "SystemMetrics",
        "Transaction",
        "TransactionStatus",
        "get_debug_tracker",
        "init_debug_tracker",
        "shutdown_debug_tracker",
    } <= set(got)


def test_importing_starts_nothing() -> None:
    """No thread, no provider, no log line and no file: only a first call does."""
    result = output_of(
        """
        import json, logging, threading
        records = []
        class Keep(logging.Handler):
            def emit(self, record):
                records.append(record.getMessage())
        logging.getLogger().addHandler(Keep())
        logging.getLogger().setLevel(logging.DEBUG)
        import otel_tracker, otel_tracker.testing
        from opentelemetry import trace
        print(json.dumps([threading.active_count(), records,
                          type(trace.get_tracer_provider()).__name__]))
        """
    )
    assert result == [1, [], "ProxyTracerProvider"]


MACHINE: Final = re.compile(
    rb"[p]ypi[.](?:org|python)|[p]ythonhosted[.]org|[n]pmjs[.]|[c]rates[.]io|[p]roxy[.]golang"
    rb"|--(?:extra-)?index-[u]rl|/(?:[h]ome|[U]sers)/[A-Za-z_]|(?<![\w.])/[r]oot/|[A-Z]:\\[U]sers"
)
"""Hosts of package registries, and homes of people; the brackets keep it from finding itself."""


@pytest.mark.parametrize(
    "text",
    [
        "index = https://py pi.org/simple", "https://files.python hosted.org/x.whl", "/ho me/ann/x",
        "--extra-index- url=https://example.com", "/Us ers/ann/x", "a=/ro ot/x", "C:\\Us ers\\x",
    ],
)  # fmt: skip
def test_the_check_sees_a_machine(text: str) -> None:
    """The pattern of the next test is not blind."""
    assert MACHINE.search(text.replace(" ", "").encode())
    assert not MACHINE.search(text.encode())


def test_no_file_tells_of_the_machine_it_was_written_on() -> None:
    """No tracked text names a registry's host or somebody's home: elsewhere both are wrong."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    if "pyproject.toml" not in names:
        pytest.skip("the checkout is another project's")
    texts = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    found = {
        f"{name}: {match[0].decode()}"
        for name, text in texts.items()
        if b"\0" not in text
        for match in [MACHINE.search(text)]
        if match
    }
    assert found == set()
