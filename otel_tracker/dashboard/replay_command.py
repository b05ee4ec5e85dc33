"""``otel-tracker replay``: a recording in the terminal, as JSON, or on the page."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TextIO

from ..model import NS_PER_S, TransactionStatus, to_datetime
from ..trace import Found, NotFoundError, find
from ..trace.about import judge
from ..trace.dumps import ns_of, of_row
from ..trace.words import harmless, in_encoding, span_time
from . import queries
from .app import Message, Receive, Scope, Send, api
from .queries import Filter, QueryError, UnknownError
from .recording import Recording, RecordingError, load
from .replay import sizes

PAGE_PORT: Final = 8501

_NEWEST: Final = 10
_OPEN_AT_MOST: Final = 50
_PATTERNS_AT_MOST: Final = 20
_CELL: Final = 60
_LINE_EVERY_S: Final = 2.0
_LOOK_S: Final = 0.5
_STATUSES: Final = ("total", "active", "completed", "failed", "stalled")


def run(
    files: Sequence[Path],
    *,
    wanted: str = "",
    as_json: bool = False,
    page: bool = False,
    page_port: int | None = None,
) -> int:
    """Reads recordings and shows them as of their last moment.

    Args:
        files: as `recording.load` takes them.
        wanted: a transaction's id, or its first 8 characters: that one in full.
        as_json: what the API answers, instead of text.
        page: on the page, until Ctrl-C.
        page_port: of the page; by default 8501, or a free one where that is taken.

    Returns:
        The exit status: 0 done, 1 not done (stderr says why).
    """
    try:
        with _progress(sizes(files)) as progress:
            recording = load(files, progress)
    except RecordingError as error:
        _say(str(error))
        return 1
    for note in recording.notes:
        _say(note)
    if page:
        return _show_page(recording, page_port)
    try:
        _tell(_text(recording, wanted, as_json=as_json))
    except NotFoundError as error:
        _say(str(error))
        return 1
    return 0


def _text(recording: Recording, wanted: str, *, as_json: bool) -> str:
    """What is printed.

    Raises:
        NotFoundError: the wanted transaction is not in the recording.
    """
    if not as_json:
        return one_in_full(recording, wanted) if wanted else report(recording)
    if not wanted:
        return json.dumps(recording.service.read(queries.dashboard), indent=2)
    try:
        document = _document(recording, wanted)
    except (QueryError, UnknownError) as error:
        raise NotFoundError(harmless(str(error))) from error
    return json.dumps(document, indent=2)


def _say(sentence: str) -> None:
    _tell(f"otel-tracker: {sentence}", sys.stderr)


def _tell(text: str, out: TextIO | None = None) -> None:
    out = out or sys.stdout
    out.write(in_encoding(text, getattr(out, "encoding", None) or "utf-8") + "\n")
    out.flush()


# --- progress -------------------------------------------------------------------------------------


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how far the reading is; yields what is told the bytes."""
    if sys.stderr.isatty() and find_spec("rich") is not None:
        with _bar(total) as tell:
            yield tell
    else:
        yield _lines(total)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        bar = bars.add_task("", total=total or None)
        yield lambda read: bars.update(bar, completed=read)


def _lines(total: int, clock: Callable[[], float] = time.monotonic) -> Callable[[int], None]:
    """Without a terminal: a line every two seconds, so none for what is read at once."""
    told_at = clock()

    def tell(read: int) -> None:
        nonlocal told_at
        if clock() - told_at >= _LINE_EVERY_S:
            told_at = clock()
            share = f" of {total / 1e6:.1f} MB ({100 * read // total} %)" if total else " MB"
            _say(f"read {read / 1e6:.1f}{share}")

    return tell


# --- the report -----------------------------------------------------------------------------------


def report(recording: Recording) -> str:
    """Totals, stages, issues, what is stuck or open, and the newest transactions."""
    service = recording.service
    data = service.read(queries.dashboard)
    in_progress = Filter(status=frozenset({TransactionStatus.IN_PROGRESS}), limit=queries.MOST_ROWS)
    opened = service.read(lambda view: queries.transactions(view, in_progress))
    newest = service.read(lambda view: queries.transactions(view, Filter(limit=_NEWEST)))
    parts = [
        _head(recording),
        _totals(data["system_metrics"]),
        _stages(data["stages"]),
        _issues(data["issue_patterns"]),
        _stuck(data, opened["transactions"], recording.until_ns),
        _newest(newest),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(recording: Recording) -> str:
    lasted = span_time(recording.until_ns - recording.since_ns)
    return (
        f"Recorded, as of {_clock(recording.until_ns)}\n"
        f"  from {_clock(recording.since_ns)} on, {lasted}: {recording.requests} requests, "
        f"{recording.spans} spans of otel_tracker"
    )


def _totals(metrics: dict[str, Any]) -> str:
    names = ("packets", "transcripts", "memories")
    keys = ("audio_chunks", "transcriptions", "memories")
    row = [str(metrics[f"{status}_transactions"]) for status in _STATUSES]
    row += [str(metrics[f"total_{key}"]) for key in keys]
    return _table("Transactions", (*_STATUSES, *names), [row], right=range(8))


def _stages(stages: dict[str, Any]) -> str:
    titles = (
        "stage", "running", "done", "failed", "skipped", "median", "95 % within", "last success",
    )  # fmt: skip
    rows = [
        [
            name,
            *(str(row[count]) for count in ("running", "done", "failed", "skipped")),
            *("" if row[part] is None else _length(row[part]) for part in ("p50", "p95")),
            _time(row["last_success"]),
        ]
        for name, row in stages.items()
    ]
    return _table("Stages", titles, rows, right=range(1, 7))


def _issues(patterns: list[dict[str, Any]]) -> str:
    rows = [
        [str(row["count"]), str(row["unresolved"]), _time(row["last"]), row["pattern"]]
        for row in patterns[:_PATTERNS_AT_MOST]
    ]
    titles = ("count", "open", "last", "issue")
    shown = _table("Issues", titles, rows, right=range(2), more=len(patterns) - len(rows))
    return shown or "No issues."


def _stuck(data: dict[str, Any], opened: list[dict[str, Any]], now_ns: int) -> str:
    """What is stuck, what waits, and what is open, each with how long it is so."""
    rows, seen = [], set()
    for state in ("stalled", "waiting"):
        for row in data[state]:
            seen.add(row["transaction_id"])
            what = row["stage"] or row["current_stage"]
            why = row.get("issue") or ""
            if row.get("where"):
                why += f" ({row['where']})"
            age = _length(row["silent_seconds"])
            rows.append([age, state, what, row["user_id"], row["transaction_id"], why])
    for row in reversed(opened):
        if row["id"] not in seen:
            age = span_time(max(0, now_ns - ns_of(row["created_at"])))
            what = row["current_stage"]
            rows.append([age, "open", what, row["user_id"], row["id"], row["issue"] or ""])
    title = f"Stuck, waiting or open (ages as of {_clock(now_ns)})"
    titles = ("for", "state", "stage", "user", "transaction", "issue")
    more = len(rows) - _OPEN_AT_MOST
    shown = _table(title, titles, rows[:_OPEN_AT_MOST], right=range(1), more=more)
    return shown or "Nothing is stuck, waiting or open."


def _newest(page: dict[str, Any]) -> str:
    rows = [
        [
            _time(row["created_at"]),
            row["id"],
            row["user_id"],
            row["status"],
            row["current_stage"],
            _length(row["duration_seconds"]),
            row["issue"] or "",
        ]
        for row in page["transactions"]
    ]
    titles = ("created", "transaction", "user", "status", "stage", "took", "issue")
    more = page["matched"] - len(rows)
    return _table("Newest transactions", titles, rows, right=(5,), more=more)


def _table(
    title: str,
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int] = (),
    more: int = 0,
) -> str:
    """Columns as wide as they need; the last one is not cut. Empty without rows."""
    cells = [
        [harmless(one if n == len(row) - 1 else _cut(one)) for n, one in enumerate(row)]
        for row in rows
    ]
    if not cells:
        return ""
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    flush = set(right)
    lines = [title]
    for row in (titles, *cells):
        padded = (
            cell.rjust(width) if n in flush else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"  {'  '.join(padded)}".rstrip())
    if more > 0:
        lines.append(f"  … and {more} more")
    return "\n".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _length(seconds: float) -> str:
    return span_time(round(seconds * NS_PER_S))


def _clock(wall_ns: int) -> str:
    return f"{to_datetime(wall_ns):%Y-%m-%d %H:%M:%S} UTC"


def _time(iso: str | None) -> str:
    return "" if iso is None else f"{to_datetime(ns_of(iso)):%m-%d %H:%M:%S}"


# --- one transaction ------------------------------------------------------------------------------


def one_in_full(recording: Recording, wanted: str) -> str:
    """The tree of its spans, with what was known of it at the end of the recording.

    Raises:
        NotFoundError: it is not in the recording, or several begin like that.
    """
    try:
        document: dict[str, Any] | None = _document(recording, wanted)
    except (QueryError, UnknownError):
        document = None  # the files may know it still, and what is no id they say best
    try:
        id_ = wanted if document is None else str(document["id"])
        found = find(id_, files=recording.files)
    except NotFoundError:
        if document is None:
            raise
        found = _of_document(document, recording.until_ns)
    return _as_of(found, document, recording).text()


def _document(recording: Recording, wanted: str) -> dict[str, Any]:
    return recording.service.read(lambda view: queries.transaction(view, wanted))


def _of_document(document: dict[str, Any], now_ns: int) -> Found:
    """Where its spans were let go and a checkpoint has it: from what that kept."""
    trace_id = document["trace_id"]
    waits = [
        {
            "span_id": row["span_id"], "kind": "queued", "stage": row["stage"],
            "started_at": row["since"], "ended_at": row["until"],
        }
        for row in document["waits"]
    ]  # fmt: skip
    row = {**document, "attempts": [*document["attempts"], *waits]}
    tree, about = of_row(row, trace_id, now_ns)
    note = "its spans were let go from the journal: this is what the checkpoint kept of them"
    return Found(trace_id, tree, about, "file", notes=(note,))


def _as_of(found: Found, document: dict[str, Any] | None, recording: Recording) -> Found:
    """Judged as of the recording: by today's clock all that is open would have stalled."""
    now_ns = recording.until_ns
    about = found.about
    if not about.as_of_ns:
        about = judge(found.trace_id, found.tree, now_ns, recording.service.settings.patience)
    known: dict[str, Any] = {} if document is None else document
    made = replace(
        about,
        status=known.get("status") or about.status,
        issue=(known.get("issue") or "") if known else about.issue,
        as_of_ns=now_ns,
    )
    return replace(found, about=made)


# --- on the page ----------------------------------------------------------------------------------


def _show_page(recording: Recording, port: int | None) -> int:
    from .page_process import PageProcess
    from .server import Serving, on_signals

    as_of = _clock(recording.until_ns)
    serving = Serving(ReadOnly(api(recording.service), as_of), port=0)
    is_over = threading.Event()
    with on_signals(is_over.set):
        page: PageProcess | None = None
        try:
            url = serving.start()
            page = PageProcess(url, port=_free(PAGE_PORT) if port is None else port)
            at = page.start()
            _tell(
                f"The page is at {at}: recorded, as of {as_of}\n"
                f"Its data: {url}/api/dashboard\n"
                "Ctrl-C ends it"
            )
            while not is_over.wait(_LOOK_S):
                if not page.is_running:
                    _say("the page's process ended; what it wrote above says why")
                    return 1
        except (OSError, RuntimeError) as error:
            _say(_reason(error))
            return 1
        finally:
            if page is not None:
                page.stop()
            serving.stop()
    return 0


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _free(port: int) -> int:
    """`port`, or 0 where another program listens there: a live page, most likely."""
    from .server import listen

    try:
        listen("127.0.0.1", port).close()
    except OSError:
        return 0
    return port


class ReadOnly:
    """An application for a recording: it answers who reads, and refuses who writes.

    Args:
        application: ASGI 3.
        as_of: the recording's last moment, for people.
    """

    def __init__(self, application: Callable[..., Any], as_of: str) -> None:
        self._application = application
        message = (
            f"this is a recording, as of {as_of}: nothing can be added to it; send to a live "
            "service, as `otel-tracker dashboard` starts it"
        )
        self._refusal = json.dumps({"error": {"status": 403, "message": message}}).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection, as ASGI has it."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._application(scope, receive, send)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self._refusal)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        start: Message = {"type": "http.response.start", "status": 403, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": self._refusal})
