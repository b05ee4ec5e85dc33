"""Makes the README's two pictures of the page: ``python -m scripts.screenshots``.

Nothing on them is made up: real processes feed a real service, the database that their memories go
into is locked, and Chromium looks at the page. It takes about a minute.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from tests.browser import APP, Notes, Reader, chromium, reading, served
from tests.otlp import ROOT

PICTURES: Final = ROOT / "docs" / "pictures"
LARGEST: Final = 250_000  # bytes: people read the README over slow lines
USERS: Final = ("alice", "bashir", "chen", "dora", "emeka", "fatima", "georg")
_GOOD: Final = 24
_SEED: Final = 7

_LIMITS: Final = {"OTEL_TRACKER_STALL_AFTER_MEMORY": "4"}


def main() -> None:
    """Makes both, or ends with an error."""
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="notes-")))
        notes = path / "notes"
        notes.mkdir()
        app = path / APP.name  # the stack shows where it lies, and that is nobody's home
        shutil.copy(APP, app)
        browser = stack.enter_context(chromium())
        service = stack.enter_context(served(path / "service", refresh_s=0.5, env=_LIMITS))
        web = stack.enter_context(Notes("web", notes, service.api, _LIMITS, app))
        worker = stack.enter_context(Notes("memory", notes, service.api, _LIMITS, app)).starts()
        reader = stack.enter_context(reading(browser, service.page, zone="Europe/Berlin"))
        _good_times(web)
        with closing(sqlite3.connect(notes / "memories.db", isolation_level=None)) as locked:
            locked.execute("BEGIN EXCLUSIVE")
            for number, user in enumerate(USERS[:4]):
                web.record(user, conversation=f"standup-{number}")
            reader.at(".h-broken").wait_for(timeout=30_000)
            worker.process.kill()
            # The next one waits for the lock as long as it takes, and hangs.
            stuck = {**_LIMITS, "NOTES_LOCK_WAIT_S": "600"}
            stack.enter_context(Notes("memory", notes, service.api, stuck, app)).starts()
            hangs = web.record("emeka", conversation="retro-9")
            for user in USERS[4:]:
                web.record(user, conversation=f"after-{user}")
            row = reader.row(hangs, "open")
            row.filter(has_text="stalled").wait_for(timeout=60_000)
            reader.strip.filter(has_text="LOST").wait_for(timeout=60_000)
            reader.page.reload()  # the charts are drawn anew only now and then
            reader.at("[data-testid=stVegaLiteChart]").nth(1).wait_for()
            reader.page.wait_for_timeout(2_000)  # they are drawn by now
            _take(reader, "dashboard")
            row.click()
            reader.detail.locator(".stack").wait_for()
            reader.page.wait_for_timeout(1_000)  # the page scrolls there
            _take(reader, "transaction")


def _good_times(web: Notes) -> None:
    """Recordings as on any day."""
    chance = random.Random(_SEED)  # noqa: S311 -- no secret
    for number in range(_GOOD):
        text = "silence" if number % 8 == 5 else "buy milk"
        web.record(chance.choice(USERS), text, f"note-{number}")
        time.sleep(chance.uniform(0.1, 0.5))


def _take(reader: Reader, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    file = PICTURES / f"{name}.png"
    reader.page.screenshot(path=file)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}: {size:,} bytes")
    if size > LARGEST:
        sys.exit(f"{file.name} has more than {LARGEST:,} bytes")


if __name__ == "__main__":
    main()
