"""The command ``otel-tracker``. It reads arguments and prints; the work is done elsewhere.

A subcommand is one function that adds its parser, listed in `_COMMANDS`, and one that runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
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
        "locked. Then the page shows it all, until Ctrl-C.",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILES",
        help="recordings of your own instead, in English: WAV, 16 kHz, mono, 16-bit",
    )  # fmt: skip
    parser.add_argument(
        "--once",
        action="store_true",
        help="end by itself: without it, the processes and the page stay up until Ctrl-C",
    )
    parser.add_argument(
        "--json", action="store_true",
        help="print the dashboard's data and a trace as JSON, and nothing else, on stdout; implies "
        "--once",
    )  # fmt: skip
    parser.add_argument(
        "--dir", type=Path, metavar="DIR",
        help="where memories, the journal and the debug dump are kept (default: a new temporary "
        "directory)",
    )  # fmt: skip
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    if _missing("demo", "pocketsphinx", "rich", "jiwer", "fastapi", "uvicorn", "websockets"):
        return 1
    from .demo import command, run

    recordings = run.own(arguments.files) if arguments.files else run.shipped()
    return command.run_demo(recordings, arguments.dir, as_json=arguments.json, once=arguments.once)


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
        "shows one view of them all, as a page and as JSON. OTEL_TRACKER_TOKEN is what everybody "
        "has to show; beyond this machine it is needed. Ctrl-C ends it.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=8500,
        help="of the service, which is sent to and read (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-page", dest="page", action="store_false",
        help="without the page for people; it needs the extra `dashboard`",
    )  # fmt: skip
    parser.add_argument(
        "--page-port", type=int, default=8501, help="of the page (default: %(default)s)"
    )
    parser.add_argument(
        "--refresh", type=_seconds, default=2.0, metavar="SECONDS",
        help="how often the page looks (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(command=_dashboard)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 3_600:
        raise argparse.ArgumentTypeError(f"{text!r}: use seconds from 0.1 to 3600")
    return seconds


def _dashboard(arguments: argparse.Namespace) -> int:
    if _missing("service", "uvicorn"):
        return 1
    from .dashboard.command import Options, serve

    return serve(
        Options(
            arguments.host, arguments.port, arguments.page, arguments.page_port, arguments.refresh
        )
    )


# --- replay ---------------------------------------------------------------------------------------


def _add_replay(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="show a recording: a journal, or a Collector's file",
        description="Shows what was recorded as the dashboard showed it then: ages and stalls are "
        "those of the last recorded moment. Read the journal of `otel-tracker dashboard`, or what "
        "a Collector's file exporter wrote.",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="a journal's directory, or files: its segments, what a Collector's file exporter "
        "wrote (`format: proto`, or JSON); several are read in this order",
    )  # fmt: skip
    parser.add_argument(
        "--id", default="", metavar="ID",
        help="one transaction in full: its id, or at least its first 8 characters",
    )  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print what the JSON API answers")
    how.add_argument("--page", action="store_true", help="open it on the page, until Ctrl-C")
    parser.add_argument(
        "--page-port", type=int, metavar="PORT",
        help="of the page (default: 8501, or a free one where that is taken)",
    )  # fmt: skip
    parser.set_defaults(command=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    if _missing("service", "uvicorn"):
        return 1
    from .dashboard import replay_command

    return replay_command.run(
        arguments.files,
        wanted=arguments.id,
        as_json=arguments.json,
        page=arguments.page,
        page_port=arguments.page_port,
    )


_COMMANDS: Final[tuple[Callable[[Subparsers], None], ...]] = (
    _add_demo, _add_doctor, _add_trace, _add_dashboard, _add_replay,
)  # fmt: skip
