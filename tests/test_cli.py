"""The command `otel-tracker`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from otel_tracker import cli

ROOT = Path(__file__).parent.parent
MODULE = [sys.executable, "-W", "error", "-m", "otel_tracker"]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def command(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Makes `otel-tracker probe` call `run`."""

    def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        subparsers.add_parser("probe").set_defaults(command=run)

    monkeypatch.setattr(cli, "_COMMANDS", (add,))


def test_module_and_help() -> None:
    """`python -m otel_tracker --help` is the command, and lists the subcommands."""
    done = subprocess.run(
        [*MODULE, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: otel-tracker")
    assert "demo" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` names the program and its version."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("otel-tracker ")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--nonsense"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments that make no sense end with status 2 and the usage on stderr."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: ")


def test_a_subcommand_gives_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a subcommand returns is the exit status."""
    command(monkeypatch, lambda _arguments: 7)
    assert cli.main(["probe"]) == 7


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with the status that shells know, and no traceback."""

    def interrupted(_arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    command(monkeypatch, interrupted)
    assert cli.main(["probe"]) == 130


def test_reader_that_went_away() -> None:
    """Output into a closed pipe (`| head`) ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    code = (
        "import sys; from otel_tracker import cli\n"
        "def add(s): s.add_parser('probe').set_defaults(command=lambda a: print('hello') or 0)\n"
        "cli._COMMANDS = (add,)\n"
        "sys.exit(cli.main(['probe']))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("library", ["pocketsphinx", "rich", "jiwer"])
def test_missing_library(library: str) -> None:
    """Without an optional library the demo says what to install, and does not trace back."""
    done = run_python(
        f"import sys; sys.modules[{library!r}] = None\n"
        "from otel_tracker.cli import main; sys.exit(main(['demo']))"
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"otel-tracker: {library} not installed; run: pip install 'otel-tracker[demo]'\n"
    )


def test_import_is_light() -> None:
    """The command line and the demo's modules load no optional library by being imported."""
    done = run_python(
        "import sys, otel_tracker.cli, otel_tracker.demo.report, otel_tracker.demo.run\n"
        "print([n for n in ('pocketsphinx', 'rich', 'jiwer', 'streamlit') if n in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_unusable_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that cannot be made is one sentence on stderr and status 1."""
    file = tmp_path / "file"
    file.touch()
    assert cli.main(["demo", "--dir", str(file / "below"), str(tmp_path / "a.wav")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "otel-tracker: " in captured.err
    assert str(file / "below") in captured.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_dashboard_serves_until_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """It says where it is and how to feed it, answers, and ends with status 0 and no word."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    clean["OTEL_TRACKER_JOURNAL_DIR"] = str(tmp_path)
    process = subprocess.Popen(
        [*MODULE, "dashboard", "--port", "0"],
        cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(3))
        url = said.strip().rpartition("=")[2]
        assert f"OTEL_TRACKER_URL={url}" in said
        with urllib.request.urlopen(f"{url}/healthz", timeout=20) as answer:  # noqa: S310
            assert answer.status == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.communicate()


def test_dashboard_is_not_shown_to_a_network_without_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An address beyond loopback needs one, and the error says how to give it."""
    monkeypatch.delenv("OTEL_TRACKER_TOKEN", raising=False)
    assert cli.main(["dashboard", "--host", "0.0.0.0", "--port", "0"]) == 1  # noqa: S104
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "set OTEL_TRACKER_TOKEN" in captured.err


def test_dashboard_on_a_port_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, and one line that names the address and the way out."""
    monkeypatch.setenv("OTEL_TRACKER_JOURNAL_DIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["dashboard", "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"otel-tracker: cannot listen on 127.0.0.1:{port}: another program")
    assert error.count("\n") == 1
