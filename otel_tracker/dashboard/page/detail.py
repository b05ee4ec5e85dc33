"""One transaction: its attempts and waits as a timeline, errors, where it hangs, where to look on.

Pure: an answer of the API in, a tree of `nodes` out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from .client import Answer
from .nodes import Node, node
from .words import NEVER, Times, ago, many, moment, number

Json = Mapping[str, Any]

_EVENTS: Final = 100  # that are listed
_WORDS: Final = {
    "success": "ok", "skipped": "skipped", "failure": "failed", "cancelled": "cancelled",
    "abandoned": "abandoned", "interrupted": "interrupted",
}  # fmt: skip
_SHAPES: Final = {
    "success": "ok", "skipped": "skipped", "failure": "failed", "cancelled": "waiting",
    "abandoned": "failed", "interrupted": "lost",
}  # fmt: skip


def detail(answer: Answer, wanted: str, times: Times) -> Node:
    """One transaction.

    Args:
        answer: of ``/api/transactions/{id}``.
        wanted: the id that was asked for.
        times: how times are written.
    """
    if answer.data is None:
        return node(
            "section", "detail",
            node("h2", "", f"Transaction {wanted[:60]}", key="title"),
            node("p", "empty", answer.error or "No answer yet.", key="empty"),
        )  # fmt: skip
    one = answer.data
    return node(
        "section", "detail",
        _title(one, times),
        _facts(one),
        _timeline(one, times),
        *_errors(one),
        *_stacks(one, times),
        _issues(one, times),
        *_metadata(one),
        _recording(one),
        _events(one, times),
        key=one["id"],
    )  # fmt: skip


def _title(one: Json, times: Times) -> Node:
    state = "lost" if one["lost"] else one["status"]
    return node(
        "h2", "",
        node("span", f"badge s-{state}", state.replace("_", " ")),
        node("code", "", one["id"]),
        node("span", "", f"created {times.both(one['created_at'], seconds=True)}, last news "
             f"{times.past(one['updated_at'])}"),
        node("a", "close", "Close", opens=one["id"], title="close this transaction"),
        node("a", "close", "Download as JSON",
             saves=(f"transaction-{one['id']}.json", json.dumps(one, indent=2))),
        key="title",
    )  # fmt: skip


def _facts(one: Json) -> Node:
    jaeger = one["jaeger"]
    shown: list[tuple[str, Node | str]] = [
        ("issue", one["issue"] or "none"),
        ("user", one["user_id"] or NEVER),
        ("conversation", one["conversation_id"] or NEVER),
        ("audio", one["audio_uuid"] or NEVER),
        ("client", one["client_id"] or NEVER),
        ("pipeline", one["pipeline"] or "none declared"),
        ("service", one["service"] or NEVER),
        ("stands at", one["current_stage"]),
        ("trace id", one["trace_id"]),
        (
            "Jaeger",
            node("a", "", jaeger["url"], link=jaeger["url"])
            if jaeger["url"]
            else f"no link: {jaeger['reason']}",
        ),
    ]
    if one["error"]:
        shown.insert(1, ("error", one["error"]))
    if one["waiting"]:
        shown.insert(1, ("waits for", ", ".join(one["waiting"])))
    if one["elsewhere"]:
        shown.insert(1, ("handed over", "others carry on, and nothing was heard of them since"))
    if one["dropped_spans"]:
        shown.append(("let go", f"{number(one['dropped_spans'])} of its spans: it has too many"))
    return node(
        "dl", "facts",
        *(node("div", "", node("dt", "", name), node("dd", "", value), key=name)
          for name, value in shown),
        key="facts",
    )  # fmt: skip


# --- the timeline ---------------------------------------------------------------------------------


class _Scale:
    """Where a moment lies, from 0 to 1."""

    def __init__(self, one: Json, times: Times) -> None:
        ends = [moment(one["created_at"]), moment(one["updated_at"])]
        for row in one["attempts"]:
            ends += [moment(row["started_at"]), moment(row["ended_at"]) or times.as_of]
        for row in one["waits"]:
            ends += [moment(row["since"]), moment(row["until"]) or times.as_of]
        for row in one["stalls"]:
            ends += [moment(row["since"]), moment(row["told_at"])]
        known = [at for at in ends if at is not None]
        self.start = min(known)
        self.length = max((max(known) - self.start), timedelta(milliseconds=1))
        self._now = times.as_of

    def bar(self, since: str, until: str | None) -> dict[str, float]:
        begin, end = moment(since), moment(until) or self._now
        if begin is None:
            return {"--left": 0.0, "--width": 0.0}
        left = (begin - self.start) / self.length
        width = max(0.0, (end - begin) / self.length)
        return {
            "--left": round(min(1.0, max(0.0, left)), 4),
            "--width": round(min(1.0 - min(1.0, max(0.0, left)), width), 4),
        }


def _timeline(one: Json, times: Times) -> Node:
    scale = _Scale(one, times)
    rows = sorted(_lines(one, times, scale), key=lambda pair: pair[0])
    length = ago(scale.length.total_seconds())
    began = times.both(scale.start.isoformat(), seconds=True)
    return node(
        "div", "timeline",
        node("h3", "", "What happened", node("small", "", f"{length} from {began}"), key="title"),
        *(row for _, row in rows),
        key="timeline",
    )  # fmt: skip


def _lines(one: Json, times: Times, scale: _Scale) -> Iterator[tuple[str, Node]]:
    for row in one["attempts"]:
        yield row["started_at"], _attempt(row, times, scale)
    for row in one["waits"]:
        state = "waiting" if row["waiting"] else "ok"
        said = f"{'waits' if row['waiting'] else 'waited'} {ago(row['seconds'])} in its queue"
        yield row["since"], _line(
            f"queue → {row['stage']}", state, "queued", said,
            scale.bar(row["since"], row["until"]), times.utc(row["since"]), row["span_id"],
        )  # fmt: skip
    for row in one["stalls"]:
        said = row["reason"] or "silent too long"
        yield row["since"], _line(
            f"{row['stage']} stalled", "stalled", "stall told", said,
            scale.bar(row["since"], row["told_at"]), times.utc(row["since"]), row["span_id"],
        )  # fmt: skip


def _attempt(row: Json, times: Times, scale: _Scale) -> Node:
    open_state = row["state"] if row["state"] != "ended" else ""
    state = open_state or _SHAPES.get(row["outcome"], "ok")
    word = open_state or _WORDS.get(row["outcome"], str(row["outcome"]))
    said = ago(row["duration_seconds"])
    if row["inferred"]:
        said += ", taken as done since a later stage began"
    if open_state and row["silent_seconds"] is not None:
        said += f", silent for {ago(row['silent_seconds'])} of {ago(row['limit_seconds'])}"
    if row["audio_chunks"] is not None:
        said += f", {many(row['audio_chunks'], 'chunk')}, {number(row['audio_bytes'])} bytes"
    if row["error"]:
        said += f" — {row['error']}"
    if row["where"]:
        said += f" · {' / '.join(row['where'].split('/')[:3])}"
    name = row["stage"] + (f" [{row['key']}]" if row["key"] else "")
    if row["attempt"] > 1:
        name += f" #{row['attempt']}"
    bar = scale.bar(row["started_at"], row["ended_at"])
    return _line(name, state, word, said, bar, times.utc(row["started_at"]), row["span_id"])


def _line(
    name: str, state: str, word: str, said: str, bar: dict[str, float], began: str, key: str
) -> Node:
    return node(
        "div", "line",
        node("span", "name", name),
        node("span", f"badge s-{state}", word),
        node("span", "track", node("i", f"bar s-{state}", size=bar, title=f"{began} UTC")),
        node("span", "said", said, title=said),
        key=key,
    )  # fmt: skip


# --- what was said --------------------------------------------------------------------------------


def _errors(one: Json) -> Iterator[Node]:
    for row in one["attempts"]:
        if row["error"] or row["error_type"]:
            yield node(
                "p", "error",
                node("b", "", f"{row['stage']} #{row['attempt']}"),
                node("code", "", row["error_type"] or "error"),
                row["error"] or "without a message",
                key=f"error {row['span_id']}",
            )  # fmt: skip


def _stacks(one: Json, times: Times) -> Iterator[Node]:
    """Where it hung or failed; the newest first, each stack once."""
    seen: set[str] = set()
    for row in reversed(one["attempts"]):
        yield from _stack(row, f"Where {row['stage']} #{row['attempt']} "
                          f"{'failed' if row['state'] == 'ended' else 'hangs'}", seen)  # fmt: skip
    for row in reversed(one["stalls"]):
        yield from _stack(
            row, f"Where {row['stage']} hung at {times.utc(row['told_at'])} UTC", seen
        )
    if not seen and any(row["state"] in ("stalled", "lost") for row in one["attempts"]):
        yield node(
            "p", "empty",
            "No stack was sent: only the process that does the work can take one, when it tells a "
            "stall, and a lost one cannot.",
            key="no stack",
        )  # fmt: skip


def _stack(row: Json, title: str, seen: set[str]) -> Iterator[Node]:
    stack = row["stack"]
    if not stack or stack in seen:
        return
    seen.add(stack)
    yield node(
        "div", "stack", node("h3", "", title), node("pre", "", stack), key=f"stack {row['span_id']}"
    )


def _issues(one: Json, times: Times) -> Node | None:
    if not one["issues"]:
        return None
    return node(
        "div", "list",
        node("h3", "", "Issues", key="title"),
        *(node("p", "",
               node("span", f"badge s-{'ok' if row['resolved'] else 'failed'}",
                    "resolved" if row["resolved"] else "stands"),
               f"{times.utc(row['at'])} UTC · {row['issue']}"
               + (f" — {row['error']}" if row["error"] else ""),
               key=row["issue"])
          for row in one["issues"]),
        key="issues",
    )  # fmt: skip


def _metadata(one: Json) -> Iterator[Node]:
    """Names and values; what the process kept to itself is not here."""
    named = [("the transaction", one["metadata"])]
    named += [(f"{row['stage']} #{row['attempt']}", row["metadata"]) for row in one["attempts"]]
    shown = [(name, values) for name, values in named if values]
    if not shown:
        return
    rows = [
        node("div", "", node("dt", "", f"{name} · {key}"), node("dd", "", _value(value)),
             key=f"{n} {key}")
        for n, (name, values) in enumerate(shown)
        for key, value in values.items()
    ]  # fmt: skip
    yield node("div", "list", node("h3", "", "Metadata", key="title"),
               node("dl", "facts", *rows, key="rows"), key="metadata")  # fmt: skip


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _recording(one: Json) -> Node | None:
    if not one["recording"]:
        return None
    return node(
        "p", "list", "Others of its recording:",
        *(node("a", "", other[:8], opens=other, key=other) for other in one["recording"]),
        key="recording",
    )  # fmt: skip


def _events(one: Json, times: Times) -> Node | None:
    events = one["events"][-_EVENTS:]
    if not events:
        return None
    return node(
        "details", "list",
        node("summary", "", f"{many(len(one['events']), 'event')} as reported", key="title"),
        *(node("p", "",
               node("span", f"badge s-{'ok' if row['success'] else 'failed'}",
                    "ok" if row["success"] else "failed"),
               f"{times.both(row['timestamp'], seconds=True)} · {row['stage']}"
               + (f" — {row['error_message']}" if row["error_message"] else ""),
               key=str(n))
          for n, row in enumerate(events)),
        key="events",
    )  # fmt: skip
