"""The command ``otel-tracker``. It reads arguments and prints; the work is done elsewhere.

A subcommand is one function that adds its parser, listed in `_COMMANDS`, and one that runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    # What `add_subparsers` returns: argparse has no public name for it.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

INTERRUPTED: Final = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments without the program's name; the process's own by default.

    Returns:
        The exit status: 0 done, 1 not done (stderr says why), 130 interrupted.

    Raises:
        SystemExit: 2 for arguments that make no sense, 0 after ``--help`` and ``--version``.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`). The interpreter must not write to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    from .telemetry import package_version

    parser = argparse.ArgumentParser(
        prog="otel-tracker", description="See where a pipeline's transaction died."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {package_version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(subparsers)
    return parser


def _missing(extra: str, *modules: str) -> bool:
    """Says on stderr what to install if an optional library is missing."""
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        print(
            f"otel-tracker: {', '.join(absent)} not installed; "
            f"run: pip install 'otel-tracker[{extra}]'",
            file=sys.stderr,
        )
    return bool(absent)


# --- demo -----------------------------------------------------------------------------------------


def _add_demo(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="run a voice-notes service on recorded speech",
        description="Runs a voice-notes service of several processes: recordings are streamed to "
        "it, recognised and turned into memories, and the tracker watches. Without FILES, the "
        "shipped recordings: one of them is truncated, one is silent, and one finds its database "
        "locked.",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILES",
        help="recordings of your own instead, in English: WAV, 16 kHz, mono, 16-bit",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="print the dashboard's data and a trace as JSON, and nothing else, on stdout",
    )  # fmt: skip
    parser.add_argument(
        "--dir", type=Path, metavar="DIR",
        help="where memories and the debug dump are kept (default: a new temporary directory)",
    )  # fmt: skip
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    if _missing("demo", "pocketsphinx", "rich", "jiwer", "fastapi", "uvicorn", "websockets"):
        return 1
    from .demo import report, run

    recordings = run.own(arguments.files) if arguments.files else run.shipped()
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="otel-tracker-demo-"))
    try:
        with report.progress_bars(recordings) as on_progress:
            result = run.run(recordings, directory, on_progress)
    except (OSError, sqlite3.Error) as error:
        print(f"otel-tracker: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        report.print_report(result, sys.stderr, dashboard=False)
        print(json.dumps(result.as_json(), indent=2))
    else:
        report.print_report(result, sys.stdout, dashboard=True)
    complaints = result.complaints()
    for complaint in complaints:
        print(f"otel-tracker: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


# --- doctor ---------------------------------------------------------------------------------------


def _add_doctor(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="send a probe, and say where the way to Jaeger is broken",
        description="Says what is configured and where each value comes from, sends a probe the "
        "way an application's spans go, looks for it at every hop, and names the hop that is "
        "broken and the line that mends it. The exit status is 0 only when the way is whole.",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(command=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from . import doctor

    report = doctor.examine()
    print(json.dumps(report.as_json(), indent=2) if arguments.json else report.text())
    return 0 if report.is_whole else 1


# --- trace ----------------------------------------------------------------------------------------


def _add_trace(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "trace",
        help="print a transaction as a tree",
        description="Prints a transaction as a tree: every stage, attempt, wait and stall with its "
        "times, outcome and error. It is read from Jaeger, or from FILES.",
    )
    parser.add_argument(
        "id", metavar="ID",
        help="a transaction id, or a trace id; in FILES its first 8 characters will do",
    )  # fmt: skip
    parser.add_argument(
        "--file", action="append", type=Path, metavar="FILE", dest="files",
        help="read this file instead (may be repeated): a debug dump, or what a Collector's file "
        "exporter wrote, as JSON or protobuf",
    )  # fmt: skip
    parser.add_argument(
        "--jaeger", metavar="URL",
        help="where Jaeger's UI is (default: OTEL_TRACKER_JAEGER_URL, or http://localhost:16686)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the tree as JSON")
    parser.set_defaults(command=_trace)


def _trace(arguments: argparse.Namespace) -> int:
    from .trace import NotFoundError, find

    try:
        found = find(arguments.id, files=arguments.files, jaeger_url=arguments.jaeger)
    except NotFoundError as error:
        print(f"otel-tracker: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found.as_json(), indent=2) if arguments.json else found.text())
    return 0


# --- dashboard ------------------------------------------------------------------------------------


def _add_dashboard(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "dashboard",
        help="serve one live view of many processes",
        description="Takes what processes send it, at OTEL_TRACKER_URL or by a Collector, and "
        "answers with one view of them all, as JSON. OTEL_TRACKER_TOKEN is what everybody has to "
        "show; beyond this machine it is needed. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8500, help="(default: %(default)s)")
    parser.set_defaults(command=_dashboard)


def _dashboard(arguments: argparse.Namespace) -> int:
    if _missing("service", "uvicorn"):
        return 1
    from .dashboard.app import api
    from .dashboard.journal import JournalInUseError, directory, limit_bytes
    from .dashboard.server import is_loopback, run
    from .dashboard.service import Service

    service = Service()
    token = service.settings.token
    if not token and not is_loopback(arguments.host):
        print(
            f"otel-tracker: {arguments.host} can be reached from other machines, and anybody "
            "there could read and write; set OTEL_TRACKER_TOKEN, here and where it is used, or "
            "listen on 127.0.0.1",
            file=sys.stderr,
        )
        return 1

    path = directory()
    try:
        restored = service.open_journal(path, limit_bytes())
    except JournalInUseError as error:
        print(f"otel-tracker: {error}", file=sys.stderr)
        return 1
    for note in restored.notes:
        print(f"otel-tracker: {note}", file=sys.stderr)

    def say(url: str) -> None:
        print(
            f"What comes is kept in {path}\n"
            f"The dashboard's service listens at {url}; its paths: {url}/openapi.json\n"
            f"Feed it from your processes: OTEL_TRACKER_URL={url}"
            f"{' and the same OTEL_TRACKER_TOKEN' if token else ''}",
            flush=True,
        )

    try:
        run(api(service, token), arguments.host, arguments.port, on_listening=say)
    except OSError as error:
        print(f"otel-tracker: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        service.close()
    return 0


_COMMANDS: Final[tuple[Callable[[Subparsers], None], ...]] = (
    _add_demo, _add_doctor, _add_trace, _add_dashboard,
)  # fmt: skip
