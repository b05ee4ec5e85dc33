"""A recording as the live service would show it, at the last moment that was recorded.

Of a journal's directory the newest checkpoint counts where there is one: it has what the service
knew and the requests do not bring, such as pipelines, lost workers, and what was let go. The
requests before it are read all the same, for what no checkpoint keeps: metadata and stacks.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..model import LATEST_NS
from ..state import State
from ..trace.words import harmless
from .checkpoint import CheckpointError, Snapshot, forgive_workers, install, read
from .replay import SEGMENT, RecordedClock, expanded, pass_time, replay, sizes
from .service import Service, new_state, settings_of

_CHECKPOINT: Final = re.compile(r"([0-9]{8})-([0-9]{12})\.checkpoint")

_Place = tuple[int, int]
"""Segment and byte."""


class RecordingError(ValueError):
    """There is nothing to show; the message says why, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What was read. Nothing changes it any more, and no time passes in it."""

    service: Service
    """Its clock stands still at `until_ns`."""
    files: tuple[Path, ...]
    """All that was read; of a journal, its segments."""
    since_ns: int
    """Wall clock of the first request."""
    until_ns: int
    """Wall clock of the last moment that was recorded: "now" of all that is shown."""
    requests: int
    spans: int
    """Those with our attributes; one that was sent twice counts twice."""
    notes: tuple[str, ...]
    """What could not be read, in sentences that a terminal only shows."""


def load(files: Sequence[Path], progress: Callable[[int], None] | None = None) -> Recording:
    """Reads recordings into a service of their own.

    Args:
        files: a journal's directory; or, in the order of their time, segments of journals, what
            Collectors' file exporters wrote (``proto``, or JSON lines), and OTLP in JSON.
        progress: told how many bytes were read so far, of `replay.sizes`.

    Raises:
        RecordingError: there is no such file, or nothing in it that can be shown.
    """
    for path in files:
        _check(path)
    return _Reading(files).read(progress)


def _check(path: Path) -> None:
    name = harmless(str(path))
    if not path.exists():
        raise RecordingError(f"there is no {name}")
    if not path.is_dir():
        return
    try:
        names = [one.name for one in path.iterdir()]
    except OSError as error:
        raise RecordingError(f"{name} cannot be read: {error.strerror or error}") from error
    if not any(one.endswith(SEGMENT) or _CHECKPOINT.fullmatch(one) for one in names):
        raise RecordingError(
            f"{name} holds no journal (files such as 00000001{SEGMENT}); give the directory that "
            "`otel-tracker dashboard` prints, or the files themselves"
        )


class _Reading:
    """A recording being read."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._given = files
        self._notes: list[str] = []
        self._clock = RecordedClock()
        self._settings = settings_of()
        self._service = Service(self._settings, clock=self._clock)
        self._snapshot: Snapshot | None = None
        self._place: _Place = (0, 0)
        self._is_installed = False

    def read(self, progress: Callable[[int], None] | None) -> Recording:
        """All of it.

        Raises:
            RecordingError: there is nothing that can be shown.
        """
        # Of several recordings none knows what the others have: there the requests alone count.
        if len(self._given) == 1 and self._given[0].is_dir():
            self._find_checkpoint(self._given[0])
        store, fold = self._service.store, self._service.fold
        requests = spans = since_ns = 0
        with _without_collections():
            for moment in replay(
                self._given, store, self._clock,
                progress=progress, note=self._notes.append, fold=fold,
                look=self._service.sweep, before=self._before,
            ):  # fmt: skip
                since_ns = since_ns or moment.wall_ns
                requests += 1
                spans += moment.spans
            if self._snapshot is not None and not self._is_installed:
                self._install(self._snapshot)
        kept = store.read(lambda state: len(state.transactions))
        if not kept:
            raise RecordingError(self._nothing(requests))
        return Recording(
            self._service, tuple(expanded(self._given)), since_ns or self._clock.time_ns(),
            self._clock.time_ns(), requests, spans, tuple(self._notes),
        )  # fmt: skip

    def _nothing(self, requests: int) -> str:
        names = ", ".join(harmless(str(path)) for path in self._given)
        if requests:
            return (
                f"{names}: {requests} requests, and no span in them is one of otel_tracker's "
                "(attributes otel_tracker.…)"
            )
        if not sizes(self._given) and not self._notes:
            return f"{names}: empty"
        why = "; ".join(self._notes)
        return (
            f"{why or names + ': no spans'}. Give a journal, as `otel-tracker dashboard` keeps it, "
            "or what a Collector's file exporter wrote (`format: proto`, or JSON)"
        )

    # --- checkpoints --------------------------------------------------------------------------

    def _find_checkpoint(self, directory: Path) -> None:
        """The newest that can be read."""
        found = {
            (int(match[1]), int(match[2])): path
            for path in directory.iterdir()
            if (match := _CHECKPOINT.fullmatch(path.name))
        }
        for place in sorted(found, reverse=True):
            try:
                with found[place].open("rb") as file:
                    # By the recorded clock both clocks are one.
                    self._snapshot = read(file, lambda now_ns, wall_ns: wall_ns - now_ns)
            except (CheckpointError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                self._notes.append(f"{harmless(str(found[place]))} {why}; the one before is used")
            else:
                self._place = place
                return

    def _before(self, path: Path, start: int) -> None:
        snapshot = self._snapshot
        if snapshot is None or self._is_installed:
            return
        number = path.name.removesuffix(SEGMENT)
        if number.isdecimal() and (int(number), start) >= self._place:
            self._install(snapshot)
            # Beats are not kept: from here on nobody is lost for what was not written down.
            self._service.store.read(lambda state: forgive_workers(state, LATEST_NS))

    def _install(self, snapshot: Snapshot) -> None:
        service, store = self._service, self._service.store
        pass_time(self._clock, snapshot.wall_ns, service.sweep)
        since = store.started_ns, store.started_wall_ns
        store.reset(new_state(self._settings))
        if since[1]:
            store.started_ns, store.started_wall_ns = since

        def put(state: State) -> None:
            install(snapshot, state)

        store.read(put)
        store.take_news()  # it was told when it was news
        service.take_back(snapshot.more)
        self._is_installed = True


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Much is made and none of it is garbage: half of the time would go there."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
