"""What the terminal shows: progress bars while it works, and the report at the end.

Texts come from recordings and file names: they are printed as they are, never as markup.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from .run import Recording, Run, word_error_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_BAR: Final = {"audio": (0.0, 0.2), "transcription": (0.2, 0.9), "memory": (0.9, 1.0)}
"""Each stage's part of a recording's bar, by about what it takes."""
_WAITING: Final = ("queued", "stalled")
_STYLES: Final = {
    "completed": "green",
    "failed": "red",
    "skipped": "cyan",
    "stalled": "yellow",
    "in_progress": "blue",
}


# --- while it works -------------------------------------------------------------------------------


@contextmanager
def progress_bars(
    recordings: Sequence[Recording],
) -> Iterator[Callable[[Recording, str, float], None]]:
    """A bar for each recording, on stderr; yields what `run.run` calls. Any thread may call it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[stage]}", markup=False),
        TimeElapsedColumn(),
    )
    bars = Progress(*columns, console=Console(file=sys.stderr), redirect_stdout=False)
    ids = {
        id(r): bars.add_task("", start=False, visible=False, total=1, name=r.path.name, stage="")
        for r in recordings
    }
    lock = threading.Lock()

    def show(recording: Recording, stage: str, share: float) -> None:
        with lock:
            bar = ids[id(recording)]
            bars.start_task(bar)  # a second start changes nothing
            bars.update(bar, stage=stage, visible=True)
            if stage in _BAR:
                begin, end = _BAR[stage]
                bars.update(bar, completed=begin + (end - begin) * share)
            elif stage not in _WAITING:
                bars.update(bar, completed=1)
                bars.stop_task(bar)

    with bars:
        yield show


# --- at the end -----------------------------------------------------------------------------------


def print_report(result: Run, out: TextIO, *, dashboard: bool) -> None:
    """Prints what came of the run, as tables and sentences.

    Args:
        result: of `run.run`.
        out: where to; plain text where that is no terminal.
        dashboard: False leaves out what `get_dashboard_data()` says by itself.
    """
    from rich.console import Console

    console = Console(file=out, highlight=False, markup=False, emoji=False)
    if dashboard:
        _print_dashboard(console, result.data)
    _print_transcripts(console, result)
    if dashboard:
        _print_issues(console, result.data["recent_issues"])
    _print_stalls(console, result)
    _print_trace(console, result)
    _print_where(console, result)


def _print_dashboard(console: Console, data: dict[str, Any]) -> None:
    metrics = data["system_metrics"]
    totals = _table(
        "Dashboard",
        *("total", "active", "completed", "failed", "stalled"),
        *("packets", "transcripts", "memories"),
    )
    totals.add_row(
        *(
            str(metrics[f"{status}_transactions"])
            for status in ("total", "active", "completed", "failed", "stalled")
        ),
        *(
            str(metrics[f"total_{thing}"])
            for thing in ("audio_chunks", "transcriptions", "memories")
        ),
    )
    console.print(totals)

    stages = _table("Stages", "stage", "done", "failed", "skipped", "median s", "95 % within s")
    for name, row in data["stages"].items():
        counts = (str(row[outcome]) for outcome in ("done", "failed", "skipped"))
        stages.add_row(name, *counts, *(_seconds(row[share]) for share in ("p50", "p95")))
    console.print(stages)

    recent = _table("Recent transactions", "id", "user", "status", "stage", "issue")
    for row in data["recent_transactions"]:
        status = _text(row["status"], _STYLES.get(row["status"], ""))
        recent.add_row(row["id"], row["user_id"], status, row["current_stage"], row["issue"] or "")
    console.print(recent)


def _print_transcripts(console: Console, result: Run) -> None:
    table = _table("Transcripts", "recording", "user", "heard", "word errors", "memories")
    for recording, note in zip(result.recordings, result.notes, strict=True):
        rate = word_error_rate([recording], [note])
        table.add_row(
            recording.path.name,
            recording.user_id,
            note.transcript or _text("no speech" if note.error is None else "failed", "dim"),
            "" if rate is None else f"{rate:.1%}",
            "\n".join(f"{memory.kind}: {memory.text}" for memory in note.memories),
        )
    console.print(table)
    overall = word_error_rate(result.recordings, result.notes)
    if overall is not None:
        console.print(f"Word error rate of all transcripts: {overall:.1%}")


def _print_issues(console: Console, issues: list[dict[str, Any]]) -> None:
    console.print("\nIssues" if issues else "\nNo issues.", style="bold")
    for row in issues:
        at = datetime.fromisoformat(row["timestamp"]).astimezone()
        state = "resolved" if row["resolved"] else "open"
        line = f"{at:%H:%M:%S}  {row['user_id']:8}  {state:8}  {row['issue']}"
        console.print(line, soft_wrap=True)  # commands and paths stay whole, to be copied


def _print_stalls(console: Console, result: Run) -> None:
    for recording, note in zip(result.recordings, result.notes, strict=True):
        stall = result.stall_of(note)
        if stall is None:
            continue
        why = ", its database locked by another connection" if recording.database_locked else ""
        after = stall.recovered_after_s
        ended = "It did not go on." if after is None else f"It recovered {after:.1f} s later."
        lines = (
            f"\n{note.path.name} stalled in {stall.stage}{why}.",
            f"Told after {stall.silent_s:.1f} s of silence, in {stall.where} at {stall.line}.",
            ended,
        )
        for line in lines:
            console.print(line, soft_wrap=True)


def _print_trace(console: Console, result: Run) -> None:
    crossing = result.crossing()
    if not crossing:
        return
    note = crossing[0]
    console.print(f"\nTrace of {note.path.name}", style="bold")
    lines = [("span", "service", "process", "at s", "for s", "outcome")]
    for row in result.trace_of(note).rows():
        span = " " * row["depth"] + row["span"]
        times = (f"{row[key]:.3f}" for key in ("start", "duration"))
        lines.append((span, row["service"], row["process"], *times, row["outcome"]))
    # Not a table: that would cut names where a terminal is narrow.
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        console.print("  ".join(cells).rstrip(), soft_wrap=True)
    console.print(
        f"One root and every span under it: so it is for {len(result.whole())} of "
        f"{len(result.notes)} transactions. {len(crossing)} of them crossed three processes.",
        soft_wrap=True,
    )


def _print_where(console: Console, result: Run) -> None:
    lines = [
        f"\nMemories:   {result.directory / 'memories'}",
        f"Debug dump: {result.dump}",
    ]
    if result.journal is not None:
        lines.append(f"Journal:    {result.journal} (otel-tracker replay {result.journal})")
    if "otlp" not in result.exporters:
        lines.append(
            "Jaeger:     nothing was sent. Start Jaeger, set "
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318, and run this again for links."
        )
    else:
        lines.append("Jaeger:")
        for note, url in zip(result.notes, result.trace_urls, strict=True):
            lines.append(f"  {note.path.name}: {url}")
    for line in lines:
        console.print(line, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=f"\n{title}", title_justify="left", title_style="bold")
    table.box, table.show_edge, table.pad_edge = box.SIMPLE_HEAD, False, False
    for column in columns:
        table.add_column(column)
    return table


def _text(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(text, style)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
