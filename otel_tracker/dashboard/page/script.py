"""The page as Streamlit runs it: once for each reader, and its board again every few seconds."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Mapping
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from otel_tracker.dashboard.page import ADDRESS, REFRESH, TOKEN, charts
from otel_tracker.dashboard.page.board import board, strip
from otel_tracker.dashboard.page.client import Answer, Client
from otel_tracker.dashboard.page.detail import detail
from otel_tracker.dashboard.page.nodes import Node, node
from otel_tracker.dashboard.page.words import Times

_HERE: Final = Path(__file__).parent
_DRAW: Final = st.components.v2.component(
    "otel_tracker_board",
    html="",
    css=(_HERE / "draw.css").read_text(encoding="utf-8"),
    js=(_HERE / "draw.js").read_text(encoding="utf-8"),
)
_TRENDS_S: Final = 10.0
_ROWS: Final = "40"
_SILENT_AFTER: Final = 12.0
"""Seconds, and half of it in refreshes: then the page itself says that it stands still."""
_LONGEST_SEARCH: Final = 200
_PAGE_STYLE: Final = """<style>
  [data-testid="stMainBlockContainer"] { padding: 0.6rem 1rem 2rem; max-width: none; }
  [data-testid="stHeader"] { display: none; }
  [data-testid="stVerticalBlock"] { gap: 0.35rem; }
</style>"""


@st.cache_resource
def _client(url: str, token: str, refresh_s: float) -> Client:
    """One for all readers, so that more of them do not ask more."""
    return Client(url, token, fresh_s=refresh_s / 2)


def _let_in(token: str) -> bool:
    """Whether this reader has shown the token."""
    if not token or st.session_state.get("let_in"):
        return True
    with st.form("token", border=False):
        shown = st.text_input(
            "Token", type="password", max_chars=1_000,
            help="what OTEL_TRACKER_TOKEN is where the dashboard was started",
        )  # fmt: skip
        is_sent = st.form_submit_button("Open")
    if is_sent:
        if hmac.compare_digest(_bytes(shown), _bytes(token)):
            st.session_state["let_in"] = True
            st.rerun()
        time.sleep(1.0)  # whoever guesses is slow
        st.error("That is not the token.")
    return False


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # whatever a browser sends


def _zone() -> tzinfo | None:
    """The reader's, as the browser tells it."""
    name = st.context.timezone
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError):
        return None


def _chosen() -> str:
    """The transaction that the address names."""
    return str(st.query_params.get("id", ""))[:64]


def _open(key: str) -> None:
    """A click on a transaction: opens it, or closes it if it is open."""
    wanted = st.session_state[key].open
    if not wanted:
        return
    if _same(wanted, _chosen()):
        st.query_params.pop("id", None)
    else:
        st.query_params["id"] = wanted


def _same(one: str, other: str) -> bool:
    return one.replace("-", "").lower() == other.replace("-", "").lower()


def _draw(key: str, nodes: list[Node], *, silent_after_s: float = 0.0, focus: str = "") -> None:
    _DRAW(
        key=key,
        data={"nodes": nodes, "silent_after_s": silent_after_s, "focus": focus},
        on_open_change=lambda: _open(key),
    )


# --- reading --------------------------------------------------------------------------------------


def _read(client: Client, searched: str, *, by_recording: bool) -> dict[str, Answer]:
    return {
        "dashboard": client.get("/api/dashboard"),
        "issues": client.get("/api/issues", limit="50"),
        "rows": _rows(client, searched, by_recording=by_recording),
    }


def _rows(client: Client, searched: str, *, by_recording: bool) -> Answer:
    path = "/api/recordings" if by_recording else "/api/transactions"
    if not searched:
        return client.get(path, limit=_ROWS)
    return _search(client, path, searched)


def _search(client: Client, path: str, searched: str) -> Answer:
    """What has these words as a user, conversation, audio, client or id, or in an error."""
    name = "recordings" if path.endswith("recordings") else "transactions"
    rows: dict[str, Any] = {}
    matched = 0
    error = ""
    answer = Answer()
    if name == "transactions" and _is_id(searched):
        one = client.get(f"/api/transactions/{searched}")
        if one.data is not None:
            rows[one.data["id"]] = one.data
        elif "stands for" in one.error:
            error = one.error
    for by in ("user", "conversation", "client", "text"):
        answer = client.get(path, limit=_ROWS, **{by: searched})
        if answer.data is None:
            error = answer.error
            continue
        matched = max(matched, answer.data["matched"])
        for row in answer.data[name]:
            rows.setdefault(_key(row), row)
    found = {name: list(rows.values()), "matched": max(matched, len(rows))}
    return Answer(found, answer.fetched, answer.wall, error)


def _key(row: Mapping[str, Any]) -> str:
    return str(row.get("id") or row["transactions"][0]["id"])


def _is_id(text: str) -> bool:
    digits = text.replace("-", "")
    return 8 <= len(digits) <= 32 and all(c in "0123456789abcdefABCDEF" for c in digits)


def _frozen(
    client: Client, searched: str, *, by_recording: bool, paused: bool
) -> dict[str, Answer]:
    """What is shown: the newest, or while paused what was there when the reader stopped it."""
    if not paused:
        read = _read(client, searched, by_recording=by_recording)
        st.session_state["shown"] = read
        return read
    kept: dict[str, Answer] | None = st.session_state.get("shown")
    if kept is None:
        kept = st.session_state["shown"] = _read(client, searched, by_recording=by_recording)
    question = (searched, by_recording)
    if st.session_state.get("shown_question", question) != question:
        kept = {**kept, "rows": _rows(client, searched, by_recording=by_recording)}
        st.session_state["shown"] = kept
    st.session_state["shown_question"] = question
    return kept


# --- what is drawn --------------------------------------------------------------------------------


def _board(
    client: Client, searched: str, refresh_s: float, *, by_recording: bool, paused: bool
) -> None:
    answers = _frozen(client, searched, by_recording=by_recording, paused=paused)
    main = answers["dashboard"]
    times = None
    if main.data is not None:
        times = Times(datetime.fromisoformat(main.data["as_of"]), _zone())
    top = strip(main, time.time(), times, paused=paused, url=client.url)
    silent = 0.0 if paused else max(_SILENT_AFTER, 6 * refresh_s)
    if times is None:
        _draw("board", [top, _nothing_read(client.url, main)], silent_after_s=silent)
        return
    chosen = _chosen()
    below = board(
        answers, times, chosen=_whole(client, chosen), searched=searched, by_recording=by_recording
    )
    css = "dim" if main.error else ""
    _draw("board", [top, node("div", css, *below, key="below")], silent_after_s=silent)
    if chosen:
        _one(client, chosen, times)


def _whole(client: Client, chosen: str) -> str:
    """The id in full: an address may have it in 32 digits, or only the first 8 of them."""
    if not chosen:
        return ""
    known = client.get(f"/api/transactions/{chosen}").data
    return chosen if known is None else str(known["id"])


def _one(client: Client, chosen: str, times: Times) -> None:
    answer = client.get(f"/api/transactions/{chosen}")
    shown = detail(answer, chosen, times)
    _draw("detail", [shown], focus=chosen)


def _nothing_read(url: str, answer: Answer) -> Node:
    refused = "token" in answer.error
    advice = (
        "The page was started with another OTEL_TRACKER_TOKEN than the service."
        if refused
        else "Is it running? `otel-tracker dashboard` starts both the service and this page. It is "
        "asked again every few seconds, and this page fills when it answers."
    )
    return node(
        "section", "headline h-none",
        node("h2", "", "The dashboard service does not answer"),
        node("p", "since", f"This page reads {url}: {answer.error or 'no answer yet'}."),
        node("p", "since", advice),
        key="below",
    )  # fmt: skip


def _trends(client: Client) -> None:
    answer = client.get("/api/dashboard")
    if answer.data is None:
        return
    trends = answer.data["trends"]
    st.text("The last six hours")
    left, right = st.columns(2)
    left.vega_lite_chart(charts.outcomes(trends), width="stretch", key="outcomes")
    lines = charts.durations(trends)
    if lines is None:
        right.text("No stage has succeeded yet.")
    else:
        right.vega_lite_chart(lines, width="stretch", key="durations")
    changed = charts.changes(trends)
    if changed:
        st.text("New versions (dashed lines): " + " · ".join(changed))


def main() -> None:
    """Draws the page for one reader."""
    st.set_page_config("otel-tracker", layout="wide", initial_sidebar_state="collapsed")
    st.html(_PAGE_STYLE)
    token, refresh_s = os.environ.get(TOKEN, ""), float(os.environ[REFRESH])
    if not _let_in(token):
        return
    client = _client(os.environ[ADDRESS], token, refresh_s)
    find, show, pause = st.columns([6, 3, 1.4], vertical_alignment="center")
    searched = find.text_input(
        "Find", key="find", max_chars=_LONGEST_SEARCH, label_visibility="collapsed",
        placeholder="Find a user, conversation, audio, client or id, or words of an error",
    ).strip()  # fmt: skip
    shown = show.segmented_control(
        "Show", ["Transactions", "Recordings"], default="Transactions", key="show",
        label_visibility="collapsed",
    )  # fmt: skip
    paused = pause.toggle("Pause", key="pause")
    st.fragment(_board, run_every=None if paused else refresh_s)(
        client, searched, refresh_s, by_recording=shown == "Recordings", paused=paused
    )
    st.fragment(_trends, run_every=None if paused else _TRENDS_S)(client)


main()
