"""The board: is the page to be believed, is it broken, where, what is stuck, what came lately.

Pure: answers of the API in, a tree of `nodes` out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from .client import Answer
from .nodes import Node, node
from .words import NEVER, Times, ago, clipped, many, number

Json = Mapping[str, Any]

STALE_S: Final = 15.0
"""An answer older than this is no live view any more."""

RECORDED_S: Final = 60.0
"""A fresh answer about a moment so long ago comes from `otel-tracker replay --page`."""

_RANK: Final = ("broken", "failing", "late", "empty", "none", "ok", "quiet")
"""Pipelines are shown in this order."""
_CELLS_OF: Final = 3  # pipelines that are shown with their cells
_SILENT_BEATS: Final = 1.5
_NAMED: Final = 3  # processes, users, exporters in one sentence
_QUEUE_LIMIT_S: Final = 300.0
"""A longer wait is an issue by itself: `queue_after` of the settings."""
_QUEUE_FACTOR: Final = 3
_REASONS: Final = 3
_IDLE_S: Final = 3_600.0
_ASKED_FOR_NOTHING: Final = "404"
"""Somebody opened a transaction that is not kept: no trouble of the service."""

_STATUS_WORDS: Final = {
    "in_progress": "in progress",
    "completed": "completed",
    "failed": "failed",
    "stalled": "stalled",
}


# --- 1. is the page to be believed ----------------------------------------------------------------


def strip(answer: Answer, now: float, times: Times | None, *, paused: bool, url: str) -> Node:
    """As of when this is, who reports, who fell silent, whose exports fail.

    Args:
        answer: of ``/api/dashboard``.
        now: seconds since 1970.
        times: how times are written; None while nothing was read.
        paused: nothing new is asked for.
        url: of the service.
    """
    if answer.data is None or times is None:
        reason = answer.error or "no answer yet"
        return node("div", "strip bad", _badge("failed", "UNREACHABLE"),
                    f"{url} — {reason}", key="strip")  # fmt: skip
    data = answer.data
    parts: list[Node | str | None] = [
        *_believed(answer, now, times, paused=paused),
        _reporting(data["processes"]),
        *_lost(data["workers"]),
        _silent(data["workers"]),
        *_exports(data["workers"], times),
        _own_troubles(data["health"]),
    ]
    bad = bool(answer.error)
    return node("div", f"strip {'bad' if bad else 'good'}", *parts, key="strip")


def _believed(
    answer: Answer, now: float, times: Times, *, paused: bool
) -> Iterable[Node | str | None]:
    as_of = times.both(answer.data["as_of"], seconds=True)
    age = now - answer.wall
    if answer.error:
        failing = times.both(_iso(answer.failing_since), seconds=True)
        yield _badge("failed", "UNREACHABLE")
        yield f"since {failing}: {answer.error}. All below is of {as_of}, {ago(age)} ago."
    elif paused:
        yield _badge("waiting", "PAUSED")
        yield f"All below is of {as_of}."
    elif age > STALE_S:
        yield _badge("stalled", "STALE")
        yield f"All below is of {as_of}, {ago(age)} ago."
    elif answer.wall - datetime.fromisoformat(answer.data["as_of"]).timestamp() > RECORDED_S:
        yield _badge("waiting", "RECORDED")
        yield f"As of {as_of}: all ages are those of then"
    else:
        yield _badge("ok", "LIVE")
        yield f"As of {as_of}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _reporting(processes: Json) -> str:
    alive = processes["alive"]
    if not alive and not processes["lost"]:
        return "No process reports by itself: what comes by a Collector is seen once it has ended"
    services = ", ".join(processes["services"][:_NAMED])
    said = many(alive, "process reports", "processes report")
    return f"{said} ({services})" if services else said


def _lost(workers: Sequence[Json]) -> Iterable[Node]:
    lost = [one for one in workers if one["state"] == "lost"]
    for one in lost[:_NAMED]:
        yield node(
            "span", "alarm", _badge("lost", "LOST"),
            f"{one['service'] or 'a process'} (process {one['process']} on {one['host']}), "
            f"silent for {ago(one['silent_seconds'])}",
            key=f"lost {one['worker']}",
        )  # fmt: skip
    if len(lost) > _NAMED:
        yield node("span", "alarm", f"and {len(lost) - _NAMED} more lost", key="lost more")


def _silent(workers: Sequence[Json]) -> Node | None:
    silent = [
        one for one in workers
        if one["state"] == "alive"
        and one["silent_seconds"] > _SILENT_BEATS * one["interval_seconds"]
    ]  # fmt: skip
    if not silent:
        return None
    names = ", ".join(f"{one['service'] or '?'} {one['process']}" for one in silent[:_NAMED])
    return node("span", "alarm", _badge("stalled", "SILENT"),
                f"{many(len(silent), 'process', 'processes')} missed a beat: {names}",
                key="silent")  # fmt: skip


def _exports(workers: Sequence[Json], times: Times) -> Iterable[Node]:
    failing = []
    for one in workers:
        exporters = _within(one["health"], "export", "exporters")
        for name, state in exporters.items() if isinstance(exporters, Mapping) else ():
            if isinstance(state, Mapping) and state.get("failing_since"):
                failing.append((str(state["failing_since"]), str(one["service"] or "?"), str(name)))
    for since, service, name in sorted(failing)[:1]:
        try:
            began = times.both(since)
        except ValueError:
            began = "?"
        yield node(
            "span", "alarm", _badge("failed", "EXPORT"),
            f"fails since {began} in {service} ({name})"
            + (f" and {len(failing) - 1} more" if len(failing) > 1 else "")
            + ": Jaeger misses what was traced since",
            key="export",
        )  # fmt: skip


def _within(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _own_troubles(health: Json) -> Node | None:
    intake = health.get("intake") or {}
    told = []
    if health.get("problems"):
        told.append(f"problems of its own: {', '.join(sorted(health['problems']))}")
    refusals = (intake.get("refused") or {}).items()
    refused = sum(count for status, count in refusals if status != _ASKED_FOR_NOTHING)
    if refused:
        told.append(f"{many(refused, 'request')} refused since its start")
    journal = intake.get("journal") or {}
    if journal.get("problem"):
        told.append(f"its journal is not kept, and a restart will not know: {journal['problem']}")
    if not told:
        return None
    return node("span", "alarm", _badge("stalled", "SERVICE"), "; ".join(told), key="service")


def _badge(state: str, word: str) -> Node:
    return node("b", f"badge s-{state}", word)


# --- 2. is it broken ------------------------------------------------------------------------------


def headline(pulse: Json, times: Times, *, alone: bool) -> Node:
    """One pipeline: is it broken, since when, for whom, and why."""
    goal = pulse["goal"] or "success"
    name = "" if alone else f"{pulse['pipeline'] or 'without a pipeline'}: "
    troubles = pulse["troubles"]
    reasons = [_reason(one, times) for one in troubles[:_REASONS]]
    if len(troubles) > _REASONS:
        more = many(len(troubles) - _REASONS, "pattern")
        reasons.append(node("p", "why", f"and {more} more below"))
    return node(
        "section", f"headline h-{pulse['state']}",
        node("h2", "", _badge(_SHAPE[pulse["state"]], _WORD[pulse["state"]]),
             name + _title(pulse, goal, times)),
        node("p", "since", _detail(pulse, goal, times)),
        *reasons,
        key=f"headline {pulse['pipeline']}",
    )  # fmt: skip


_SHAPE: Final = {
    "broken": "failed", "failing": "failed", "late": "stalled", "empty": "stalled",
    "none": "waiting", "quiet": "waiting", "ok": "ok",
}  # fmt: skip
_TROUBLE_SHAPE: Final = {"waiting": "stalled"}
_WORD: Final = {
    "broken": "BROKEN", "failing": "FAILING", "late": "LATE", "empty": "EMPTY",
    "none": "STARTING", "quiet": "QUIET", "ok": "OK",
}  # fmt: skip


def _title(pulse: Json, goal: str, times: Times) -> str:
    state, since_s = pulse["state"], pulse["seconds_since_success"]
    if state == "broken":
        return f"no {goal} for {ago(since_s)}" if since_s is not None else f"no {goal} so far"
    if state == "failing":
        return _for_whom(pulse)
    if state == "late":
        return f"the next {goal} is overdue, and nothing failed"
    if state == "empty":
        hour = pulse["last_hour"]
        return f"each {goal} of the last hour was empty: {number(hour['empty'])}"
    if state == "none":
        return f"no {goal} yet"
    if state == "quiet":
        under_way = pulse["since"]["in_progress"]
        return f"{number(under_way)} under way, none is late" if under_way else f"no {goal} is due"
    return f"last {goal} {times.past(pulse['last_success'])}"


def _for_whom(pulse: Json) -> str:
    worst, wrong = pulse["troubles"][0], pulse["wrong"]
    said = many(wrong["recordings"], "recording went wrong", "recordings went wrong")
    if wrong["users"] == 1 and worst["user_ids"]:
        return f"{said}, all of user {worst['user_ids'][0]}" + (
            f"; {many(worst['other_users'], 'other user')} went through"
            if worst["other_users"] else ""
        )  # fmt: skip
    return f"{said}, of {many(wrong['users'], 'user')}"


def _detail(pulse: Json, goal: str, times: Times) -> str:
    since, usual = pulse["since"], pulse["usual_interval_seconds"]
    if pulse["last_success"] is None:
        said = f"No {goal} since the service began"
    else:
        said = f"Last {goal} {times.both(pulse['last_success'])}"
        if usual is not None:
            said += f", usually every {ago(usual)}"
    said += (
        f"; since then {many(since['recordings'], 'recording')}, 0 {_plural(goal)}, "
        f"{many(since['users'], 'user')}"
        if since["recordings"]
        else "; nothing began since then"
    )
    now = [
        f"{number(since[status])} {_STATUS_WORDS[status]}"
        for status in ("in_progress", "failed", "stalled")
        if since[status]
    ]
    return said + (f" ({', '.join(now)})." if now else ".")


def _plural(goal: str) -> str:
    if goal.endswith("s"):
        return f"{goal}es"
    return f"{goal[:-1]}ies" if goal.endswith("y") else f"{goal}s"


def _reason(trouble: Json, times: Times) -> Node:
    state = str(trouble["state"])
    users = ", ".join(trouble["user_ids"][:_NAMED])
    if trouble["users"] > _NAMED:
        users += f" and {trouble['users'] - _NAMED} more"
    said = clipped(
        f"{trouble['issue']} — {trouble['error']}" if trouble["error"] else trouble["issue"]
    )
    whom = f"{many(trouble['users'], 'user')} ({users})" if users else "no user known"
    return node(
        "p", "why",
        _badge(_TROUBLE_SHAPE.get(state, state), state.upper()),
        node("a", "", said, opens=trouble["example"],
             title="open the newest of them"),
        f"{many(trouble['recordings'], 'recording')}, {whom}, "
        f"since {times.both(trouble['first'])}",
        key=trouble["pattern"],
    )  # fmt: skip


# --- 3. the pipeline as cells ---------------------------------------------------------------------


def cells(pulse: Json, data: Json, times: Times) -> Node:
    """Every stage and the queues before them, in order; the first sick one stands out."""
    made: list[tuple[bool, Node]] = []
    for stage in pulse["stages"]:
        flow = data["flow"].get(stage)
        if flow is not None and (flow["waiting"] or flow["usual_waiting_p50"] is not None):
            made.append(_queue_cell(stage, flow, pulse))
        made.append(_stage_cell(stage, flow, data["stages"].get(stage), pulse, times))
    first = next((n for n, (sick, _) in enumerate(made) if sick), -1)
    if first >= 0:
        made[first][1]["css"] += " first"
    return node("div", "cells", *(one for _, one in made), key=f"cells {pulse['pipeline']}")


def _queue_cell(stage: str, flow: Json, pulse: Json) -> tuple[bool, Node]:
    oldest, usual = flow["oldest_waiting_seconds"], flow["usual_waiting_p95"]
    limit = _QUEUE_LIMIT_S if usual is None else max(60.0, _QUEUE_FACTOR * usual)
    queued = [
        one for one in pulse["troubles"] if one["stage"] == stage and one["state"] == "waiting"
    ]
    sick = bool(queued) or (oldest is not None and oldest > min(limit, _QUEUE_LIMIT_S))
    lines = [
        _line("waiting", number(flow["waiting"])),
        _line("oldest", ago(oldest), bad=sick),
        _line("usual", ago(flow["usual_waiting_p50"])),
    ]
    return sick, _cell(f"queue → {stage}", "stalled" if sick else "ok",
                       "backed up" if sick else "flows", lines, sick=sick)  # fmt: skip


def _stage_cell(
    stage: str, flow: Json | None, tally: Json | None, pulse: Json, times: Times
) -> tuple[bool, Node]:
    if flow is None:
        lines = [_line("last success", NEVER)]
        troubled = _troubled(stage, pulse)
        state, word = _cell_state(stage, troubled, pulse, None)
        return bool(troubled), _cell(stage, state, word, lines, sick=bool(troubled))
    hour = flow["last_hour"]
    running = 0 if tally is None else tally["running"]
    troubled = _troubled(stage, pulse)
    state, word = _cell_state(stage, troubled, pulse, flow)
    oldest, usual = flow["oldest_running_seconds"], flow["usual_running_p50"]
    slow = oldest is not None and usual is not None and oldest > max(10.0, 3 * usual)
    came = running + hour["done"] + hour["failed"] + hour["skipped"] + hour["cancelled"]
    lines = [
        _line("running", number(running)
              + (f", oldest {ago(oldest)}" if oldest is not None else ""), bad=slow),
        _line("usual", f"{ago(usual)}, at most {ago(flow['usual_running_p95'])}"
              if usual is not None else NEVER),
        _line("last hour", f"{number(came)} in, {number(hour['done'])} done"),
        _line("failed", number(hour["failed"]), bad=hour["failed"] > 0),
        _line("skipped", f"{number(hour['skipped'])}, empty {number(hour['empty'])}"),
        _line("last success", _last(flow, times)),
    ]  # fmt: skip
    return bool(troubled), _cell(stage, state, word, lines, sick=bool(troubled))


def _troubled(stage: str, pulse: Json) -> list[Json]:
    """What is wrong in the stage itself, and not in its queue."""
    return [one for one in pulse["troubles"] if one["stage"] == stage and one["state"] != "waiting"]


def _last(flow: Json, times: Times) -> str:
    if flow["last_success"] is None:
        return NEVER
    return f"{times.utc(flow['last_success'])} UTC, {ago(flow['seconds_since_success'])} ago"


def _cell_state(
    stage: str, troubled: Sequence[Json], pulse: Json, flow: Json | None
) -> tuple[str, str]:
    for state in ("lost", "stalled", "failed"):
        count = sum(one["transactions"] for one in troubled if one["state"] == state)
        if count:
            return state, f"{number(count)} {state}"
    if flow is None or flow["last_success"] is None:
        return "waiting", "nothing yet"
    if pulse["overdue"] and stage == pulse["goal"]:
        return "stalled", "overdue"
    # Green would stand for hours over a stage that nothing reaches any more.
    return ("ok", "well") if flow["seconds_since_success"] <= _IDLE_S else ("waiting", "idle")


def _cell(name: str, state: str, word: str, lines: Iterable[Node], *, sick: bool) -> Node:
    return node(
        "section", f"cell{' sick' if sick else ''}",
        node("h3", "", name, node("span", f"badge s-{state}", word)),
        node("dl", "", *lines),
        key=name, label=f"{name}: {word}",
    )  # fmt: skip


def _line(name: str, value: str, *, bad: bool = False) -> Node:
    return node("div", "bad" if bad else "", node("dt", "", name), node("dd", "", value), key=name)


# --- 4. the totals --------------------------------------------------------------------------------


def metrics(data: Json, times: Times) -> Node:
    """The system metrics of the documentation."""
    system = data["system_metrics"]
    hours = system["uptime_hours"] * 3_600
    shown = [
        ("uptime", ago(hours)),
        ("transactions", number(system["total_transactions"])),
        ("active", number(system["active_transactions"])),
        ("completed", number(system["completed_transactions"])),
        ("failed", number(system["failed_transactions"])),
        ("stalled", number(system["stalled_transactions"])),
        ("websockets", number(system["active_websockets"])),
        ("audio chunks", number(system["total_audio_chunks"])),
        ("transcriptions", number(system["total_transcriptions"])),
        ("memories", number(system["total_memories"])),
        ("active users", number(data["active_users"])),
        ("last activity", times.past(system["last_activity"])),
    ]
    return node("dl", "metrics", *(_line(name, value) for name, value in shown), key="metrics")


# --- 5. issue patterns ----------------------------------------------------------------------------


def patterns(answer: Answer, times: Times, chosen: str) -> Node:
    """What goes wrong, new kinds first."""
    rows = [] if answer.data is None else answer.data["patterns"]
    body = [
        _table_row(
            one["pattern"],
            next(iter(one["examples"]), ""),
            chosen in one["examples"] and bool(chosen),
            node("span", "", node("b", "badge s-failed", "NEW") if one["new"] else None,
                 one["pattern"]),
            f"{number(one['count'])}" + (
                f", {number(one['unresolved'])} stand" if one["unresolved"] else ", resolved"
            ),
            times.utc(one["first"]),
            times.past(one["last"]),
        )
        for one in rows
    ]  # fmt: skip
    return _panel(
        "Issue patterns", "new ones first; a click opens the newest example",
        ("pattern", "count", "first (UTC)", "last"), body, "No issue was seen.",
    )  # fmt: skip


# --- 6. open work and what came lately ------------------------------------------------------------


def open_work(data: Json, chosen: str) -> Node:
    """What is open, oldest first."""
    opened = data["open"]
    body = [_open_row(one, chosen) for one in opened["rows"]]
    hidden = opened["total"] - len(body)
    note = "oldest first" + (f"; {number(hidden)} more are not shown" if hidden > 0 else "")
    return _panel(
        f"Open work: {number(opened['total'])}", note,
        ("recording", "state", "stage", "age (usual)", "try", "last progress", "host / process"),
        body, "Nothing is open.",
    )  # fmt: skip


def _open_row(one: Json, chosen: str) -> Node:
    tid = one["transaction_id"]
    usual = f" ({ago(one['usual_p50'])})" if one["usual_p50"] is not None else ""
    return _table_row(
        f"{tid} {one['span_id']}", tid, tid == chosen,
        _who(tid, one["user_id"], one["conversation_id"] or one["audio_uuid"]),
        node("span", f"badge s-{one['state']}", one["state"]),
        (one["stage"] or "between stages") + (f" [{one['key']}]" if one["key"] else ""),
        f"{ago(one['age_seconds'])}{usual}",
        NEVER if one["attempt"] is None else f"#{one['attempt']}",
        f"{ago(one['silent_seconds'])} ago",
        _place(one["where"]),
        title=one["issue"] or "",
    )  # fmt: skip


def _place(where: str | None) -> str:
    """Host and process of host/process/thread/task."""
    return NEVER if not where else " / ".join(where.split("/")[:2])


def _who(transaction_id: str, user: str, recording: str | None) -> Node:
    """The recording as people know it, and the transaction as Jaeger shows it."""
    return node(
        "span", "who",
        node("code", "", transaction_id[:8]),
        node("span", "", user or "no user", title=user),
        node("small", "", recording, title=recording) if recording else None,
    )  # fmt: skip


def transactions(answer: Answer, times: Times, chosen: str, searched: str) -> Node:
    """The newest transactions, or those that were looked for."""
    rows = [] if answer.data is None else answer.data["transactions"]
    body = [_recent_row(one, times, chosen) for one in rows]
    if searched:
        title = f"Found: {number(answer.data['matched'] if answer.data else 0)}"
        note, empty = f"for “{searched}”", _nothing_found(answer)
    else:
        title, note, empty = "Recent transactions", "newest first", "No transaction came yet."
    return _panel(title, note, ("recording", "status", "created (UTC)", "took", "at"), body, empty)


def _nothing_found(answer: Answer) -> str:
    return answer.error or (
        "Nothing that is kept has such a user, conversation, audio, client or id, or such words in "
        "an issue. Older ones may be in Jaeger."
    )


def _recent_row(one: Json, times: Times, chosen: str) -> Node:
    tid = one["id"]
    state = "lost" if one["lost"] else one["status"]
    told = one["issue"] or one["current_stage"]
    return _table_row(
        tid, tid, tid == chosen,
        _who(tid, one["user_id"], one["conversation_id"] or one["audio_uuid"]),
        node("span", f"badge s-{state}", _STATUS_WORDS.get(state, state)),
        times.utc(one["created_at"]),
        ago(one["duration_seconds"]),
        node("span", "told", told, title=f"{told} {one['error'] or ''}".strip()),
    )  # fmt: skip


def recordings(answer: Answer, times: Times, chosen: str, searched: str) -> Node:
    """Transactions that belong together, newest first."""
    rows = [] if answer.data is None else answer.data["recordings"]
    body = []
    for one in rows:
        newest = one["transactions"][0]
        tid = newest["id"]
        ids = one["conversation_ids"] or one["audio_uuids"]
        counts = ", ".join(
            f"{number(count)} {_STATUS_WORDS[status]}"
            for status, count in one["counts"].items()
            if count
        )
        told = "; ".join(one["issues"]) or newest["current_stage"]
        body.append(
            _table_row(
                ids[0] if ids else tid, tid, any(t["id"] == chosen for t in one["transactions"]),
                _who(tid, ", ".join(one["user_ids"]), ids[0] if ids else None),
                node("span", f"badge s-{one['status']}", _STATUS_WORDS[one["status"]]),
                times.utc(one["first"]),
                counts,
                node("span", "told", told, title=told),
            )
        )  # fmt: skip
    note = f"for “{searched}”" if searched else "newest first"
    empty = _nothing_found(answer) if searched else "No recording came yet."
    return _panel("Recordings", note, ("recording", "newest", "first (UTC)", "transactions", "at"),
                  body, empty)  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------


def _panel(title: str, note: str, columns: Sequence[str], rows: Sequence[Node], empty: str) -> Node:
    head = node("tr", "", *(node("th", "", name, key=name) for name in columns))
    table = node(
        "table", "", node("thead", "", head, key="head"), node("tbody", "", *rows, key="body"),
        key="table", label=title,
    )  # fmt: skip
    return node(
        "section", "panel",
        node("h3", "", title, node("small", "", note), key="title"),
        node("div", "scroll", table if rows else node("p", "empty", empty, key="empty"),
             key="scroll"),
    )  # fmt: skip


def _table_row(key: str, opens: str, chosen: bool, *cells: Node | str, title: str = "") -> Node:
    columns = [
        node("td", "", node("span", "told", cell) if isinstance(cell, str) else cell, key=str(n))
        for n, cell in enumerate(cells)
    ]
    return node("tr", "", *columns, key=key, opens=opens, chosen=chosen, title=title)


# --- the whole ------------------------------------------------------------------------------------


def board(
    answers: Mapping[str, Answer],
    times: Times,
    *,
    chosen: str = "",
    searched: str = "",
    by_recording: bool = False,
) -> list[Node]:
    """Everything below the strip.

    Args:
        answers: ``dashboard``, ``issues`` and ``rows``.
        times: how times are written.
        chosen: id of the transaction that is open.
        searched: what was looked for; empty for the newest.
        by_recording: whether ``rows`` are recordings.
    """
    data = answers["dashboard"].data
    ordered = sorted(data["pulse"], key=lambda one: _RANK.index(one["state"]))
    heads: list[Node] = []
    for place, one in enumerate(ordered):
        heads.append(headline(one, times, alone=len(ordered) == 1))
        if place < _CELLS_OF:
            heads.append(cells(one, data, times))
    if not ordered:
        heads.append(_nothing_yet())
    rows = (recordings if by_recording else transactions)(answers["rows"], times, chosen, searched)
    return [
        *heads,
        metrics(data, times),
        node(
            "div", "panels",
            {**open_work(data, chosen), "key": "open"},
            {**patterns(answers["issues"], times, chosen), "key": "patterns"},
            {**rows, "key": "rows"},
            key="panels",
        ),
    ]  # fmt: skip


def _nothing_yet() -> Node:
    return node(
        "section", "headline h-none",
        node("h2", "", _badge("waiting", "EMPTY"), "no transaction has come yet"),
        node("p", "since", "Set OTEL_TRACKER_URL in a process of yours, as the service says at its "
             "start, or let a Collector send to it: docs/deployment.md."),
        key="nothing",
    )  # fmt: skip
