"""The page in a browser: what it shows of made-up spans, to whom, and what it never does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, expect

from otel_tracker.ids import format_id
from otel_tracker.model import NS_PER_S
from otel_tracker.testing import START_NS
from tests.browser import DESK, PHONE, Reader, Served, chromium, post, reading, served
from tests.test_dashboard_queries import Spans, trace

pytestmark = [
    pytest.mark.timeout(120),
    # These spans are made up here: the service and the page are all that is looked at, and they
    # take two minutes. The faults and the outages run with every SDK.
    pytest.mark.skipif(
        version("opentelemetry-sdk").startswith("1.30."),
        reason="the page looks alike with every SDK: it is looked at with the newest",
    ),
]

_REFRESH_S: Final = 0.2


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Served]:
    """One service and page for all of them; each test adds transactions of its own."""
    path = tmp_path_factory.mktemp("live")
    with served(path, refresh_s=_REFRESH_S) as one:
        for number in range(1, 6):
            feed(one, lambda spans, at, n=number: spans.done(n, at - 300 - n))
        yield one


# --- what is fed ----------------------------------------------------------------------------------


def now() -> float:
    """Now, in seconds since the moment that `Spans` counts from."""
    return time.time() - START_NS / NS_PER_S


def feed(to: Served, make: Any, service: str = "notes", version: str = "1.0") -> None:
    """Posts the spans that ``make(spans, now)`` makes."""
    spans = Spans(service, version)
    make(spans, now())
    post(to.api, "/v1/traces", spans.body)


def tid(number: int) -> str:
    """The transaction id of a number."""
    return format_id(trace(number))


def beat(to: Served, **more: Any) -> None:
    post(to.api, "/v1/beats", {
        "worker": "host-a/210", "service": "notes", "version": "1.0", "at_ns": time.time_ns(),
        "interval_s": 300,
        "pipelines": [{"name": "audio_pipeline", "stages": ["transcription", "memory"]}],
        **more,
    })  # fmt: skip


# --- nothing of a span is more than text ----------------------------------------------------------

HOSTILE: Final = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    "[a](javascript:alert(3))",
    "**bold** _it_ `code`",
    r"$\LaTeX$ :material/delete: :red[x]",
    "${alert(4)} {{7*7}} datum.x",
    "javascript:alert(5)",
    "&lt;b&gt; \ud7ff \u2603",
)
LONG: Final = "long " + "x" * 10_000
REVERSED: Final = "user\u202egnp.exe\u2066x"

_WHAT_RAN: Final = """() => {
  const found = [];
  const visit = (root) => {
    for (const one of root.querySelectorAll("*")) {
      if (one.shadowRoot) visit(one.shadowRoot);
      const made = "img[src=x], .otel-tracker script, .otel-tracker em, .otel-tracker b b, .katex";
      if (one.matches(made))
        found.push(one.outerHTML);
      if (/^javascript:/i.test(one.getAttribute("href") || "")) found.push(one.outerHTML);
      if (one.getAttributeNames().some((name) => name.startsWith("on"))) found.push(one.outerHTML);
    }
  };
  visit(document);
  return found;
}"""

_TEXTS: Final = """() => {
  const found = [];
  const visit = (root) => {
    for (const one of root.querySelectorAll("*")) {
      if (one.shadowRoot) visit(one.shadowRoot);
      if (!one.children.length) found.push(one.textContent);
      found.push(one.getAttribute("title") || "", one.getAttribute("aria-label") || "");
    }
  };
  visit(document);
  return found;
}"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Served]:
    """A service of its own: those names would be in all the others' way."""
    env = {"OTEL_TRACKER_JAEGER_URL": "javascript:alert(document.domain)"}
    with served(tmp_path_factory.mktemp("hostile"), refresh_s=_REFRESH_S, env=env) as one:
        yield one


def test_nothing_of_a_span_is_anything_but_text(browser: Browser, hostile: Served) -> None:
    """HTML, Markdown, LaTeX, icons and scripts in every field: shown as written, nothing runs."""
    first, live = 1_000, hostile
    for number, text in enumerate(HOSTILE, first):

        def make(spans: Spans, at: float, n: int = number, bad: str = text) -> None:
            spans.root(
                n, at - 9, at - 1, user__id=bad, otel_tracker__conversation__id=f"c {bad}",
                otel_tracker__pipeline=f"p {bad}",
            )  # fmt: skip
            spans.stage(n, f"s {bad}"[:60], at - 8, at - 7, otel_tracker__pipeline=f"p {bad}")
            spans.stage(
                n, "memory", at - 6, at - 2, error=f"e {bad}", error__type=f"t {bad}",
                stack=f"k {bad}", otel_tracker__where=f"h {bad}/1/main",
                otel_tracker__pipeline=f"p {bad}", **{f"meta {bad}": f"v {bad}"},
            )  # fmt: skip

        feed(live, make, f"svc {text}", "1.0")
        feed(live, lambda s, at, n=number: s.stage(n, "again", at - 8, at - 7), f"svc {text}", "2")
    with reading(browser, live.page) as reader:
        for number, text in enumerate(HOSTILE, first):
            row = reader.row(tid(number))
            expect(row).to_contain_text(text)
            row.click()
            expect(reader.detail).to_contain_text(tid(number))
            for prefix in ("", "c ", "p ", "s ", "e ", "t ", "k ", "v ", "meta "):
                expect(reader.detail).to_contain_text(f"{prefix}{text}"[:50])
            assert reader.detail.locator("a[href]").count() == 0
            expect(reader.detail).to_contain_text("no link: no Jaeger is known here")
            downloaded, name = download(reader)
            assert downloaded["id"] == tid(number)
            assert downloaded["user_id"] == text
            assert name == f"transaction-{tid(number)}.json"
        reader.page.get_by_text("Recordings", exact=True).click()
        expect(reader.at("[data-key=rows] h3")).to_contain_text("Recordings")
        reader.page.get_by_placeholder("Find").fill(HOSTILE[0])
        reader.page.keyboard.press("Enter")
        expect(reader.at("[data-key=rows] h3")).to_contain_text(HOSTILE[0])
        charts = reader.at("[data-testid=stVegaLiteChart]")
        expect(charts).to_have_count(2)
        charts.last.scroll_into_view_if_needed()
        for place in range(20):  # tooltips
            charts.first.hover(position={"x": 60 + 30 * place, "y": 100}, force=True)
        assert reader.page.evaluate(_WHAT_RAN) == []
        reader.shows("hostile-names", full=True)


def test_long_and_reversed_names_stay_in_their_place(browser: Browser, hostile: Served) -> None:
    """10,000 characters widen nothing, and a right-to-left override turns nothing around."""
    live = hostile

    def make(spans: Spans, at: float) -> None:
        spans.root(1_100, at - 9, None, user__id=LONG, otel_tracker__conversation__id=LONG)
        spans.stage(1_100, "memory", at - 6, at - 2, error=LONG, stack=LONG, note=LONG)
        spans.root(1_101, at - 9, None, user__id=REVERSED, otel_tracker__conversation__id=REVERSED)
        spans.stage(1_101, "memory", at - 6, at - 2, error=REVERSED, stack=REVERSED, note=REVERSED)

    feed(live, make)
    for size in (DESK, PHONE):
        with reading(browser, live.page, size=size) as reader:
            for number in (1_100, 1_101):
                reader.row(tid(number)).click()
                expect(reader.detail).to_contain_text(tid(number))
                assert is_within(reader), (size, number)
                row = reader.row(tid(number)).bounding_box()
                assert row is not None
                assert row["height"] < 150, row
            turned = [t for t in reader.page.evaluate(_TEXTS) if re.search(TURNS, t)]
            assert turned == []
            expect(reader.detail).to_contain_text("gnp.exe")


def download(reader: Reader) -> tuple[dict[str, Any], str]:
    """What the button brings, and the name it proposes."""
    with reader.page.expect_download() as coming:
        reader.page.get_by_role("button", name="Download as JSON").click()
    return json.loads(coming.value.path().read_text()), coming.value.suggested_filename


TURNS: Final = "[\u202a-\u202e\u2066-\u2069\u200e\u200f]"


def is_within(reader: Reader) -> bool:
    """Whether the page cannot be scrolled sideways."""
    return bool(
        reader.page.evaluate("""() => {
          const all = [document.scrollingElement, ...document.querySelectorAll("[data-testid]")];
          return all.every((one) => one.scrollWidth <= window.innerWidth + 1);
        }""")
    )


# --- what the address names -----------------------------------------------------------------------


def test_the_address_names_a_transaction(browser: Browser, live: Served) -> None:
    """32 digits, a UUID, its first 8, in capitals: opened; what is none is said, as text."""
    whole = tid(3)
    with reading(browser, live.page) as reader:
        for form in (whole.replace("-", ""), whole, whole[:8], whole.upper()):
            reader.page.goto(f"{live.page}/?id={form}")
            expect(reader.detail).to_contain_text(whole)
            expect(reader.detail).to_contain_text("What happened")
            expect(reader.row(whole)).to_have_attribute("aria-selected", "true")
        for garbage in (
            "0123456789abcdef0123456789abcdef", "fffffff0",
            "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E",
            "..%2F..%2Fhealthz", "%00", "a%20b%3Fc%23d", "x" * 3_000,
        ):  # fmt: skip
            reader.page.goto(f"{live.page}/?id={garbage}")
            expect(reader.detail).to_be_visible()
            expect(reader.detail.locator(".empty")).not_to_be_empty()
            expect(reader.strip).to_contain_text("LIVE")
            assert reader.page.evaluate(_WHAT_RAN) == []


# --- rows come in ---------------------------------------------------------------------------------


def test_selection_and_scroll_hold_over_sixty_refreshes(browser: Browser, live: Served) -> None:
    """The open transaction stays open, by its id, and nothing jumps while sixty rows come in."""
    first = 2_000

    def begin(spans: Spans, at: float, number: int) -> None:
        spans.root(number, at - 3, None)
        spans.stage(number, "transcription", at - 2, None)

    for number in range(first, first + 60):
        feed(live, lambda s, at, n=number: begin(s, at, n))
    chosen = tid(first + 30)
    with reading(browser, live.page) as reader:
        row = reader.row(chosen, "open")
        row.scroll_into_view_if_needed()
        row.click()
        expect(reader.detail).to_contain_text(chosen)
        expect(reader.at(".detail h2")).to_be_in_viewport()
        inner = reader.at("[data-key=open] .scroll")
        inner.evaluate("one => one.scrollTop = 300")
        reader.page.mouse.wheel(0, 120)
        reader.page.wait_for_timeout(500)
        opened = reader.at(".detail h2").bounding_box()
        assert opened is not None
        for number in range(60):
            feed(live, lambda s, at, n=first + 100 + number: begin(s, at, n))
            expect(reader.row(tid(first + 100 + number))).to_have_count(1)
            expect(reader.at("tr[aria-selected=true]").first).to_have_attribute("data-open", chosen)
            assert inner.evaluate("one => one.scrollTop") == 300
            stands = reader.at(".detail h2").bounding_box()
            assert stands is not None
            assert abs(stands["y"] - opened["y"]) < 3, number
        assert set(reader.at("tr[aria-selected=true]").evaluate_all(
            "all => all.map((one) => one.dataset.open)"
        )) == {chosen}  # fmt: skip
        assert f"id={chosen}" in reader.page.url
        expect(reader.detail).to_contain_text(chosen)
        expect(reader.detail).to_have_count(1)
        # In the table of the newest, what is looked at stays where it is too.
        newest = reader.at("[data-key=rows] .scroll")
        newest.scroll_into_view_if_needed()
        newest.evaluate("one => one.scrollTop = 200")
        watched = reader.row(tid(first + 150))
        before = watched.bounding_box()
        assert before is not None
        for number in range(5):
            feed(live, lambda s, at, n=first + 200 + number: begin(s, at, n))
            expect(reader.row(tid(first + 200 + number))).to_have_count(1)
        after = watched.bounding_box()
        assert after is not None
        assert abs(after["y"] - before["y"]) < 3, (before, after)


def test_paused_it_stands_still(browser: Browser, live: Served) -> None:
    """Neither rows nor the clock move, and it says so; then it goes on."""
    with reading(browser, live.page) as reader:
        expect(reader.strip).to_contain_text("LIVE")
        reader.page.get_by_text("Pause", exact=True).click()
        expect(reader.strip).to_contain_text("PAUSED")
        expect(reader.strip).to_contain_text("All below is of")
        said, rows = reader.strip.inner_text(), reader.table("rows").count()
        feed(live, lambda s, at: s.done(3_000, at - 3))
        reader.page.wait_for_timeout(2_000)
        assert reader.strip.inner_text() == said
        assert reader.table("rows").count() == rows
        expect(reader.row(tid(3_000))).to_have_count(0)
        # What is clicked opens all the same.
        reader.table("rows").first.click()
        expect(reader.detail).to_be_visible()
        expect(reader.strip).to_contain_text("PAUSED")
        reader.page.get_by_text("Pause", exact=True).click()
        expect(reader.strip).to_contain_text("LIVE")
        expect(reader.row(tid(3_000))).to_have_count(1)


# --- who looks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "said"),
    [
        ("Asia/Kolkata", r"As of (\d\d):(\d\d):\d\d UTC \((\d\d):(\d\d):\d\d local\)"),
        ("UTC", r"As of \d\d:\d\d:\d\d UTC(?! \()"),
    ],
)
def test_times_are_utc_and_the_readers(
    browser: Browser, live: Served, zone: str, said: str
) -> None:
    """Both where they differ; once where they do not."""
    with reading(browser, live.page, zone=zone) as reader:
        expect(reader.strip).to_contain_text(re.compile(said))
        found = re.search(said, reader.strip.inner_text())
        assert found is not None
        if found.groups():
            utc_h, utc_m, local_h, local_m = map(int, found.groups())
            assert (60 * local_h + local_m - 60 * utc_h - utc_m) % 1_440 == 330


CONTRAST: Final = """(least) => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => {
    const a = top[3];
    return [...[0, 1, 2].map((n) => top[n] * a + below[n] * (1 - a)), 1];
  };
  const up = (one) => one.parentElement || (one.getRootNode().host ?? null);
  const behind = (one) => {
    const layers = [];
    for (let at = one; at; at = up(at)) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((value) => {
      const v = value / 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const poor = {};
  const visit = (root) => {
    for (const one of root.querySelectorAll("*")) {
      if (one.shadowRoot) visit(one.shadowRoot);
      const text = [...one.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("");
      if (!text.trim() || !one.closest(".otel-tracker") || !one.getClientRects().length) continue;
      let opacity = 1;
      for (let at = one; at; at = up(at)) opacity *= Number(getComputedStyle(at).opacity);
      const back = behind(one);
      const ink = rgba(getComputedStyle(one).color);
      const [high, low] = [light(over([...ink.slice(0, 3), ink[3] * opacity], back)), light(back)]
        .sort((x, y) => y - x);
      const ratio = (high + 0.05) / (low + 0.05);
      if (ratio < least) {
        const name = one.tagName.toLowerCase() + "." + one.className;
        poor[name] = `${ratio.toFixed(2)} ${text.slice(0, 30)}`;
      }
    }
  };
  visit(document);
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark(browser: Browser, live: Served, scheme: Any) -> None:
    """Every text against what is behind it: a contrast of 4.5, as WCAG AA asks."""

    def make(spans: Spans, at: float) -> None:
        spans.root(4_000, at - 9, None)
        spans.stage(4_000, "transcription", at - 9, at - 8)
        spans.stage(4_000, "memory", at - 7, at - 6, error="no model", stack="File notes.py")

    feed(live, make)
    with reading(browser, live.page, color_scheme=scheme) as reader:
        reader.row(tid(4_000)).click()
        expect(reader.detail.locator(".stack")).to_be_visible()
        back = reader.page.evaluate(
            "getComputedStyle(document.querySelector('.stApp')).backgroundColor"
        )
        assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark"), back
        reader.shows(f"scheme-{scheme}", full=True)
        assert reader.page.evaluate(CONTRAST, 4.5) == {}


def test_colour_never_stands_alone(browser: Browser, live: Served) -> None:
    """Each state has a word beside its colour, in every table, cell and bar."""
    feed(live, lambda s, at: s.failed(4_100, at - 9))
    with reading(browser, live.page) as reader:
        reader.row(tid(4_100)).click()
        expect(reader.detail).to_be_visible()
        words = reader.at(".badge").evaluate_all("all => all.map((one) => one.textContent.trim())")
        assert len(words) > 10
        assert all(re.search(r"[A-Za-z]{2}", word) for word in words), words
        expect(reader.at(".detail .line .bar")).to_have_count(1)
        expect(reader.at(".detail .line .badge")).to_have_text("failed")
        assert reader.at(".cell").count() == reader.at(".cell .badge").count()


_FOCUSED: Final = """() => {
  let at = document.activeElement;
  while (at.shadowRoot) at = at.shadowRoot.activeElement;
  return at ? [at.tagName, at.dataset.open || ""] : ["", ""];
}"""


def test_the_keyboard_will_do(browser: Browser, live: Served) -> None:
    """Tab reaches a row, Enter opens it, the arrow goes on, Enter again closes."""
    feed(live, lambda s, at: s.failed(4_200, at - 9, "no microphone"))
    feed(live, lambda s, at: s.failed(4_201, at - 9, "no headphones"))  # a pattern of its own
    with reading(browser, live.page) as reader:
        expect(reader.row(tid(4_200))).to_have_count(1)
        expect(reader.row(tid(4_201))).to_have_count(1)
        for _ in range(60):
            reader.page.keyboard.press("Tab")
            tag, wanted = reader.page.evaluate(_FOCUSED)
            if tag == "TR":
                break
        else:
            raise AssertionError("no row was reached")
        reader.page.keyboard.press("Enter")
        expect(reader.detail).to_contain_text(wanted)
        assert reader.page.evaluate(_FOCUSED) == ["TR", wanted]
        reader.page.keyboard.press("ArrowDown")
        _, below = reader.page.evaluate(_FOCUSED)
        assert below != wanted
        reader.page.keyboard.press("Enter")
        expect(reader.detail).to_contain_text(below)
        reader.page.keyboard.press("Enter")
        expect(reader.detail).to_have_count(0)
        assert "id=" not in reader.page.url


# --- search and recordings ------------------------------------------------------------------------


def test_search_finds_by_user_conversation_id_and_error(browser: Browser, live: Served) -> None:
    """Each brings that one transaction alone; what is not there is said."""

    def make(spans: Spans, at: float) -> None:
        who = {"user__id": "zoe", "otel_tracker__conversation__id": "conv-of-zoe"}
        spans.failed(5_000, at - 9, "quota exceeded for whisper", **who)

    feed(live, make)
    with reading(browser, live.page) as reader:
        field = reader.page.get_by_placeholder("Find")
        whole = tid(5_000)
        for words in (
            "zoe",
            "conv-of-zoe",
            whole,
            whole.replace("-", ""),
            whole[:8],
            "quota exceed",
        ):
            field.fill(words)
            field.press("Enter")
            expect(reader.at("[data-key=rows] h3")).to_contain_text(f"for “{words}”")
            expect(reader.table("rows")).to_have_count(1)
            expect(reader.row(whole)).to_have_count(1)
        field.fill("nobody at all")
        field.press("Enter")
        expect(reader.at("[data-key=rows] .empty")).to_contain_text("Older ones may be in Jaeger")
        field.fill("")
        field.press("Enter")
        expect(reader.at("[data-key=rows] h3")).to_contain_text("Recent transactions")


def test_transactions_of_one_recording_are_one_row(browser: Browser, live: Served) -> None:
    """Three transactions of a conversation: one recording, and from each the others are reached."""
    for number in range(5_100, 5_103):
        feed(
            live, lambda s, at, n=number: s.done(n, at - 9, otel_tracker__conversation__id="rec-1")
        )
    with reading(browser, live.page) as reader:
        for number in range(5_100, 5_103):
            expect(reader.row(tid(number))).to_have_count(1)
        reader.page.get_by_text("Recordings", exact=True).click()
        row = reader.table("rows").filter(has_text="rec-1")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("3 completed")
        row.click()
        others = reader.detail.locator("p.list [data-open]")
        expect(others).to_have_count(2)
        other = others.first.get_attribute("data-open")
        others.first.click()
        expect(reader.at(".detail h2")).to_contain_text(str(other))
        expect(row).to_have_attribute("aria-selected", "true")


# --- how much fits --------------------------------------------------------------------------------


PARTS: Final = (
    ".strip[data-key=strip]", ".headline", ".cells", ".metrics", "[data-key=patterns]",
    "[data-key=open]", "[data-key=rows]",
)  # fmt: skip


def test_all_of_the_board_is_on_one_screen_and_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    """With 50 open rows and 50 patterns: six parts in 1440 by 900; 390 is wide enough for each."""
    with served(tmp_path) as one:
        beat(one)

        def make(spans: Spans, at: float) -> None:
            for n in range(5):
                spans.done(n + 1, at - 400 - 40 * n)
            for n in range(50):
                spans.root(100 + n, at - 120 - n, None)
                spans.stage(100 + n, "transcription", at - 119 - n, at - 100)
                spans.stage(100 + n, "memory", at - 99, None, otel_tracker__where="host-a/210/main")
            for n in range(50):
                kind = "abcdefghijklmnopqrstuvwxyz"[n % 26] * (1 + n // 26) + "x"
                spans.root(200 + n, at - 60, at - 50)
                spans.stage(200 + n, f"step {kind}", at - 60, at - 51, error=f"{kind} is out")

        feed(one, make)
        with reading(browser, one.page) as reader:
            expect(reader.table("open")).to_have_count(50)
            expect(reader.table("patterns")).to_have_count(50)
            reader.shows("desk-full")
            for part in PARTS:
                box = reader.at(part).first.bounding_box()
                assert box is not None
                assert box["y"] >= 0, (part, box)
                assert box["y"] + box["height"] <= DESK[1], (part, box)
            assert is_within(reader)
        with reading(browser, one.page, size=PHONE, is_mobile=True, has_touch=True) as reader:
            expect(reader.table("open")).to_have_count(50)
            assert is_within(reader)
            reader.shows("phone")
            reader.table("open").first.tap()
            expect(reader.detail).to_contain_text("What happened")
            assert is_within(reader)
            reader.shows("phone-detail", full=True)
