"""The thread that makes silence speak: stalls, recoveries, issues, and roots that nobody ends.

Reads are right without it. It only tells: it reads, releases the lock, then logs, makes spans and
calls back, so that nothing of this runs on the application's threads or under the lock.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from .diagnostics import Diagnostics
from .handles import Handle
from .ids import format_id
from .issues import stall_reason
from .model import NS_PER_S, Fact, Outcome, TransactionStatus, Who, to_iso
from .recorder import Recorder
from .settings import Settings
from .state import IssueFound, News, Stalled, State, StatusChange, Tracked
from .store import Store

logger: Final = logging.getLogger("otel_tracker")

TICK_S: Final = 1.0
"""How often it looks; a reported failure wakes it at once."""

Callback = Callable[[dict[str, Any]], object]


class Callbacks:
    """Runs the application's callbacks one after the other, where they can hurt nobody.

    On a thread of their own: one that hangs holds up the later ones only, and those are bounded.

    Args:
        diagnostics: where a failing callback goes.
        inline: run them on the calling thread, for tests.
    """

    MAX_WAITING: Final = 1_000

    def __init__(self, diagnostics: Diagnostics, *, inline: bool) -> None:
        self._diagnostics = diagnostics
        self._inline = inline
        self._waiting: queue.SimpleQueue[tuple[str, Callback, dict[str, Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, name: str, callback: Callback, info: dict[str, Any]) -> None:
        """Calls back soon. Never raises and never waits."""
        if self._inline:
            self._run_one(name, callback, info)
            return
        if self._waiting.qsize() >= self.MAX_WAITING:
            self._diagnostics.warn(
                f"{name}_late", "the callback %s= is too slow; it misses the newest events", name
            )
            return
        self._waiting.put((name, callback, info))
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="otel-tracker-callbacks", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:
                self._thread = None

    def forget(self) -> None:
        """In a forked child there is no such thread."""
        self._waiting = queue.SimpleQueue()
        self._thread = None

    def _run(self) -> None:
        while True:
            self._run_one(*self._waiting.get())

    def _run_one(self, name: str, callback: Callback, info: dict[str, Any]) -> None:
        try:
            callback(info)
        except BaseException:  # sys.exit() in a callback must not end the later ones
            self._diagnostics.error(name, "the callback %s= raised; the tracker goes on", name)


class Sweeper:
    """Tells what changed, and ends roots that rest.

    Args:
        store: read for news and verdicts.
        recorder: makes the spans.
        diagnostics: where a failing callback goes.
        inline: callbacks run on the sweeping thread, for tests.
    """

    def __init__(
        self, store: Store, recorder: Recorder, diagnostics: Diagnostics, *, inline: bool = False
    ) -> None:
        self._callbacks = Callbacks(diagnostics, inline=inline)
        self._starting = threading.Lock()
        self._store = store
        self._recorder = recorder
        self._diagnostics = diagnostics
        self.on_stall: Callback | None = None
        self.on_issue: Callback | None = None
        self.closing = False
        """The process shuts down: what that interrupts is nobody's alarm."""
        self._wakes: queue.SimpleQueue[bool] = queue.SimpleQueue()  # its put is reentrant
        self._thread: threading.Thread | None = None
        self._sweeping = threading.Lock()

    # --- the thread -----------------------------------------------------------------------------

    def ensure_running(self) -> None:
        """Starts the thread where it does not run yet. Never raises, never blocks for long."""
        if self._thread is not None or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                self._start()
        finally:
            self._starting.release()

    def _start(self) -> None:
        thread = threading.Thread(
            target=_run, args=(weakref.ref(self), self._wakes), name="otel-tracker-sweeper",
            daemon=True,
        )  # fmt: skip
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            self._thread = None  # the next transaction tries again
            self._diagnostics.warn(
                "sweeper", "no thread can be started; stalls are seen when read, but not told"
            )

    def wake(self) -> None:
        """Something happened that should be told at once."""
        self._wakes.put(True)

    def stop(self) -> None:
        """Ends the thread after its current sweep."""
        if self._thread is not None:
            self._thread = None
            self._wakes.put(False)

    def forget(self) -> None:
        """In a forked child there is no such thread, and the locks may have been held."""
        self._thread = None
        self._wakes = queue.SimpleQueue()
        self._sweeping = threading.Lock()
        self._starting = threading.Lock()
        self._callbacks.forget()

    # --- one sweep ------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Tells the news and tidies the handles. Never raises. One at a time; others return."""
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            self._recorder.end_postponed()
            for news in self._store.take_news():
                self._tell(news)
            self._tidy()
        except Exception:
            self._diagnostics.error("sweep", "a sweep failed; the next one goes on")
        finally:
            self._sweeping.release()

    def _tell(self, news: News) -> None:
        if isinstance(news, StatusChange):
            self._tell_status(news)
        elif isinstance(news, IssueFound):
            found = news.found
            self._call("on_issue", self.on_issue, {
                **_about(news.trace_id, news.who),
                "issue": found.text,
                "error": found.error or None,
                "timestamp": to_iso(found.at_ns),
                "resolved": found.resolved,
            })  # fmt: skip
        elif isinstance(news, Stalled):
            self._tell_stall(news)

    def _tell_status(self, news: StatusChange) -> None:
        verdict = news.verdict
        stage = "none" if verdict.current_stage is None else verdict.current_stage.value
        found = verdict.found
        why = self._clean(found.text) if found is not None else ""
        if found is not None and found.error:
            why += f" ({self._clean(found.error)})"
        for attempt in verdict.stalled:
            why += f"; {self._clean(self._where_it_hangs(news.trace_id, attempt))}"
        bad = verdict.status in (TransactionStatus.FAILED, TransactionStatus.STALLED)
        logger.log(
            logging.WARNING if bad and found is not None and not self.closing else logging.INFO,
            "transaction %s: %s -> %s at %s%s",
            format_id(news.trace_id),
            news.old.value,
            verdict.status.value,
            stage,
            f": {why}" if why else "",
        )
        if verdict.status is TransactionStatus.STALLED and not verdict.stalled:
            text = "" if found is None else found.text
            self._call_stall(news.trace_id, news.who, None, text, news.since_ns, "")
            handle = self._recorder.handle(format_id(news.trace_id))
            if handle is not None:
                self._recorder.end_root(handle)

    def _clean(self, text: str) -> str:
        return self._recorder.settings.privacy.message(text)

    def _where_it_hangs(self, trace_id: int, attempt: Fact) -> str:
        """Since when, on which thread and on which line, as far as that is known here."""
        silent_ns = self._store.clock.monotonic_ns() - attempt.seen_ns
        text = f"{attempt.stage} silent for {silent_ns / NS_PER_S:.0f} s"
        if attempt.where:
            text += f" on {attempt.where}"
        stack = self._stack(trace_id, attempt)
        return f"{text}, {stack.splitlines()[-1]}" if stack else text

    def _stack(self, trace_id: int, attempt: Fact) -> str:
        handle = self._recorder.handle(format_id(trace_id))
        opened = None if handle is None else self._recorder.open_stage_of(handle, attempt.span_id)
        return "" if opened is None else opened.worker.stack()

    def _tell_stall(self, news: Stalled) -> None:
        attempt = news.attempt
        if news.recovered:
            logger.info("transaction %s: %s recovered", format_id(news.trace_id), attempt.stage)
            return
        handle = self._recorder.handle(format_id(news.trace_id))
        silent_ns = self._store.clock.monotonic_ns() - attempt.seen_ns
        stack = self._stack(news.trace_id, attempt)
        opened = None if handle is None else self._recorder.open_stage_of(handle, attempt.span_id)
        if handle is not None and opened is not None:
            reason = stall_reason(news.text, attempt.stage, silent_ns / NS_PER_S)
            self._recorder.tell_stall(handle, opened, reason, stack)
        self._call_stall(
            news.trace_id, attempt.who, attempt.stage, news.text, silent_ns, stack, attempt.where
        )

    def _call_stall(
        self,
        trace_id: int,
        who: Who,
        stage: str | None,
        issue: str,
        silent_ns: int,
        stack: str,
        where: str = "",
    ) -> None:
        info = {
            **_about(trace_id, who),
            "stage": stage,
            "issue": issue,
            "since": to_iso(self._store.clock.time_ns() - silent_ns),
            "silent_seconds": silent_ns / NS_PER_S,
            "stack": stack or None,
            "where": where or None,
        }
        self._call("on_stall", self.on_stall, info)

    def _call(self, name: str, callback: Callback | None, info: dict[str, Any]) -> None:
        if callback is not None and not self.closing:
            self._callbacks.call(name, callback, info)

    # --- roots that nobody ends -------------------------------------------------------------------

    def settle(self) -> None:
        """At shutdown: what has nothing open gets the verdict that it would have come to."""
        resting = [h for h in self._recorder.handles() if not h.is_working]
        stands = self._store.read(lambda state: _stands(state, resting, forever=True))
        for handle in resting:
            stand = stands.get(handle.trace_id)
            if stand is not None and stand.untold:
                self._recorder.tell_verdict(
                    handle, stand.outcome, error=stand.error, error_type=stand.error_type
                )

    def _tidy(self) -> None:
        settings = self._recorder.settings
        now_ns = self._store.clock.monotonic_ns()
        settle_ns = round(settings.settle * NS_PER_S)
        quiet = [h for h in self._recorder.handles() if now_ns - h.seen_ns >= settle_ns]
        if not quiet:
            return
        stands = self._store.read(lambda state: _stands(state, quiet))
        for handle in quiet:
            self._tidy_one(handle, stands.get(handle.trace_id), now_ns, settings)

    def _tidy_one(
        self, handle: Handle, stand: _Stand | None, now_ns: int, settings: Settings
    ) -> None:
        rests = now_ns - handle.seen_ns >= settings.root_idle * NS_PER_S
        if stand is not None and stand.socket_open and not stand.outcome:
            return
        is_free = not (handle.is_working or handle.blocks)
        if stand is not None and is_free and stand.untold and (stand.done or rests):
            self._recorder.tell_verdict(
                handle, stand.outcome, error=stand.error, error_type=stand.error_type
            )
        if rests and not handle.blocks:
            self._recorder.end_root(handle)
            self._recorder.end_audio(handle)
        if handle.root.get() is None and (rests or (stand is not None and stand.done)):
            self._recorder.drop(handle)


class _Stand:
    """Where a transaction stands, as far as the end of its spans needs to know."""

    __slots__ = ("done", "error", "error_type", "outcome", "socket_open", "untold")

    def __init__(
        self,
        tx: Tracked,
        stages: tuple[str, ...],
        status: TransactionStatus,
        *,
        socket_open: bool,
    ) -> None:
        standing = tx.history.standing(stages)
        self.outcome = ""
        if status is TransactionStatus.COMPLETED:
            self.outcome = Outcome.SUCCESS
        elif status is TransactionStatus.FAILED:
            cancelled = standing and all(f.outcome == Outcome.CANCELLED for f in standing)
            self.outcome = Outcome.CANCELLED if cancelled else Outcome.FAILURE
        self.done = status is TransactionStatus.COMPLETED
        end = tx.history.end
        self.untold = bool(self.outcome) and (end is None or end.outcome != self.outcome)
        self.error = "" if tx.verdict.found is None else tx.verdict.found.text
        self.error_type = standing[0].error_type if standing else ""
        self.socket_open = socket_open


def _stands(state: State, handles: list[Handle], *, forever: bool = False) -> dict[int, _Stand]:
    found = {}
    for handle in handles:
        tx = state.transactions.get(handle.trace_id)
        if tx is not None:
            client = tx.who.client_id
            found[handle.trace_id] = _Stand(
                tx,
                state.pipeline_of(tx).stages,
                state.status_forever(tx)
                if forever and not tx.verdict.elsewhere
                else tx.verdict.status,
                socket_open=bool(client) and state.open_sockets(client) > 0,
            )
    return found


def _about(trace_id: int, who: Who) -> dict[str, Any]:
    return {
        "transaction_id": format_id(trace_id),
        "user_id": who.user_id,
        "client_id": who.client_id,
        "conversation_id": who.conversation_id or None,
    }


def _run(reference: weakref.ref[Sweeper], wakes: queue.SimpleQueue[bool]) -> None:
    """Sweeps until told to stop, or until the tracker is gone: it must not keep that alive."""
    while True:
        goes_on = True
        with contextlib.suppress(queue.Empty):
            goes_on = wakes.get(timeout=TICK_S)
            while not wakes.empty():  # many failures at once need one sweep
                goes_on = wakes.get_nowait() and goes_on
        sweeper = reference()
        if sweeper is None or not goes_on:
            return
        sweeper.sweep()
        del sweeper
