"""The one object behind inlet and API: spans and beats of many processes in, views out.

Every method may be called from any thread; each takes as long as its work, so an event loop calls
them on threads of their own.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from .. import semconv
from ..diagnostics import Diagnostics
from ..model import NS_PER_S, Fact, Pipeline
from ..privacy import MAX_KEY, plain, text_of
from ..receiver import (
    MAX_BODY,
    PROTOBUF,
    EncodingError,
    Read,
    TooLargeError,
    facts_of,
    parse,
    unpack,
)
from ..settings import Settings, load
from ..stalls import Patience
from ..state import State
from ..store import Clock, Store, SystemClock
from ..views import Now
from . import beats
from .beats import Told
from .trends import Detail, Order, Trends
from .view import View

if TYPE_CHECKING:
    from .journal import Journal, Restored

T = TypeVar("T")

NEW_PER_MINUTE: Final = 60_000
"""Transactions that may begin in a minute. More is a flood, or somebody's mistake."""
DETAILS: Final = 32 << 20
"""Bytes of metadata and stacks that are kept, about; the longest known transaction's go first."""
MOST_PIPELINES: Final = 200

DEFAULTS: Final = {"recent_transactions": 1_000, "recent_issues": 500, "open_transactions": 20_000}
"""A service keeps more than a process, unless its environment says how much."""

SWEEP_S: Final = 1.0

_SLICE: Final = 512  # spans folded at once, so that what they have to tell is heard soon
_MINUTE_NS: Final = 60 * NS_PER_S
_LET_GO_IDS: Final = 100_000
_MANY: Final = 1_000  # transactions, which are judged in less than a tenth of a second
_MUCH: Final = 1 << 20  # bytes of pipelines and limits, which are compared in a hundredth
_ATTRIBUTES: Final = 32  # of one span
_SPANS_OF_ONE: Final = 200  # transaction
_TEXT: Final = 1_024
_STACK: Final = 16_384
_STACK_EVENTS: Final = {
    semconv.STACK_EVENT: semconv.STACK,
    "exception": "exception.stacktrace",
}  # fmt: skip
_SHOWN_ALREADY: Final = ("otel_tracker.", "user.", "error.")
_METADATA: Final = "otel_tracker.metadata."
_OVERHEAD: Final = 300  # bytes of a detail beside its texts, about


class BodyError(ValueError):
    """A body that is not what its headers say."""


class BusyError(RuntimeError):
    """More than is taken at a time; try again.

    Attributes:
        retry_s: after so many seconds.
    """

    def __init__(self, message: str, retry_s: int) -> None:
        super().__init__(message)
        self.retry_s = retry_s


def settings_of(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a service: those of the environment, and larger bounds by default."""
    environ = os.environ if environ is None else environ
    names = {name: f"OTEL_TRACKER_{name.upper()}" for name in DEFAULTS}
    unset = {
        name: DEFAULTS[name] for name, env in names.items() if not environ.get(env, "").strip()
    }
    return load(unset, environ)


class Service:
    """One store for many processes.

    Args:
        settings: `settings_of` the environment by default.
        store: what is fed; a new one by default.
        clock: of a new store.
        new_per_minute: transactions that may begin in a minute.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        store: Store | None = None,
        clock: Clock | None = None,
        new_per_minute: int = NEW_PER_MINUTE,
    ) -> None:
        self.settings = settings_of() if settings is None else settings
        self.store = store or Store(new_state(self.settings), clock or SystemClock())
        self.diagnostics = Diagnostics()
        self._journal: Journal | None = None
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._read_already: dict[int, list[_Found]] = {}
        """By the id of a request that is under way."""
        self._new = _Window(new_per_minute)
        self._count: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        # What follows is touched under the store's lock alone.
        self._trends = Trends()
        self._order = Order()
        self._details = _Details()
        self._told: dict[str, Told] = {}
        """By worker; who beat last comes last."""
        self._told_bytes = 0
        """Of what they told, about."""
        self._lost: frozenset[str] = frozenset()
        """Workers whose limits do not count."""
        self._limits_changed = False
        """They are still to be applied."""
        self._limits_ns = -NS_PER_S

    # --- life -------------------------------------------------------------------------------------

    def open_journal(self, path: Path, limit: int) -> Restored:
        """Takes back what a service before this one kept there, and keeps what comes from now on.

        Args:
            path: a directory, made when needed.
            limit: bytes of all its files.

        Raises:
            JournalInUseError: another service has it.
        """
        from .journal import Journal  # its lock is Unix's: a service without it runs anywhere

        journal = Journal(
            path, self.store, self.fold,
            look=self.sweep, keep=self.keep, take_back=self.take_back, limit=limit,
        )  # fmt: skip
        journal.open()
        restored = journal.restore()
        journal.start()
        self._journal = journal
        return restored

    def start(self) -> None:
        """Starts a thread that judges silence every second, whether anybody looks or not."""
        if self._thread is None:
            self._is_over.clear()
            self._thread = threading.Thread(
                target=self._run, name="otel-tracker-service", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Ends its thread, and the journal with a last checkpoint."""
        self._is_over.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()

    def _run(self) -> None:
        while not self._is_over.wait(SWEEP_S):
            try:
                self.sweep()
            except Exception:
                self.diagnostics.error("sweep", "what came due could not be judged; it goes on")

    # --- in ---------------------------------------------------------------------------------------

    def take_spans(self, body: bytes, content_type: str = PROTOBUF, encoding: str = "") -> int:
        """Takes an ``ExportTraceServiceRequest``, as exporters post it.

        Args:
            body: as it came.
            content_type: its header's value.
            encoding: likewise, of ``Content-Encoding``.

        Returns:
            How many of its spans carry our attributes.

        Raises:
            TooLargeError: it unpacks to more than 16 MiB, or begins too many transactions at once.
            EncodingError: a content type or encoding that is not known here.
            BusyError: too many transactions began in this minute.
            BodyError: it is no request.
        """
        message = unpacked(body, encoding, MAX_BODY)
        request = _parsed(message, content_type)
        found = self._look_at(request)
        self._admit({one.fact.trace_id for one in found})
        self._read_already[id(request)] = found
        try:
            if self._journal is None:
                taken = self.fold(request)
            else:
                is_protobuf = content_type.partition(";")[0].strip().lower() == PROTOBUF
                taken = self._journal.take(request, message if is_protobuf else None)
        finally:
            self._read_already.pop(id(request), None)
        self._count.update(requests=1, spans=taken)
        return taken

    def fold(self, request: ExportTraceServiceRequest) -> int:
        """Takes a request that was accepted before; returns how many of its spans are ours."""
        found = self._read_already.get(id(request))
        if found is None:
            found = self._look_at(request)
        self._remember(found)
        for start in range(0, len(found), _SLICE):
            for one in found[start : start + _SLICE]:
                self.store.put(one.fact)
            self.sweep()
        return len(found)

    def _look_at(self, request: ExportTraceServiceRequest) -> list[_Found]:
        return [_Found(one.fact, _detail(one)) for one in facts_of(request, self.store.clock)]

    def take_beat(self, document: object) -> dict[str, Any]:
        """Takes a sign of life of a process: parsed JSON, as in docs/api.md.

        Returns:
            ``{"unknown": [[trace id, span id], …]}``: what is open there and not known here; the
            sender should send it again.

        Raises:
            BeatError: it is no beat.
        """
        told = beats.read(document, self.store.clock.monotonic_ns())
        unknown = self.store.read(lambda state: self._take(told, state))
        self._count.update(beats=1)
        return {"unknown": [[f"{trace:032x}", f"{span:016x}"] for trace, span in unknown]}

    def refuse(self, status: int) -> None:
        """Counts a request that was refused with this HTTP status."""
        self._refused[str(status)] += 1

    def sweep(self) -> None:
        """Judges what came due, and notes what is news: every second, and after each write."""
        self.store.read(self._note)

    def keep(self) -> dict[str, Any]:
        """What a restart needs beside the state: the trends, as plain data."""
        return {"trends": self.store.read(self._trends.plain)}

    def take_back(self, kept: Mapping[str, Any]) -> None:
        """Takes what `keep` gave, after a restart."""
        self.store.read(lambda _: self._trends.take_back(kept.get("trends")))

    # --- out --------------------------------------------------------------------------------------

    def read(self, query: Callable[[View], T]) -> T:
        """What `query` makes of the state as of now. It must copy what it returns, and be quick."""
        return self.store.read(lambda state: query(self._view(state)))

    # --- under the lock ---------------------------------------------------------------------------

    def _now(self) -> Now:
        clock, store = self.store.clock, self.store
        return Now(clock.monotonic_ns(), clock.time_ns(), store.started_ns, store.started_wall_ns)

    def _note(self, state: State) -> None:
        self._trends.take(state, self._now(), self._details.spans)
        self._order.take(state)
        self._details.forget(state)
        if self._limits_changed or self._lost != state.workers.lost:
            self._apply_limits(state)

    def _view(self, state: State) -> View:
        self._note(state)
        self._forget_workers(state)
        return View(
            state=state,
            now=self._now(),
            trends=self._trends,
            order=self._order,
            details=self._details.spans,
            told=self._told,
            intake=self._intake(),
            jaeger_url=self.settings.jaeger_url,
        )

    def _intake(self) -> dict[str, Any]:
        return {
            "requests": self._count["requests"],
            "spans": self._count["spans"],
            "beats": self._count["beats"],
            "refused": dict(self._refused),
            "refused_new_transactions": self._new.refused,
            "new_transactions_per_minute": self._new.most,
            "new_transactions_this_minute": self._new.count(self.store.clock.monotonic_ns()),
            "details_dropped": self._details.dropped,
            "journal": None if self._journal is None else plain(self._journal.health()),
            "problems": dict(self.diagnostics.counts),
        }

    def _admit(self, ids: set[int]) -> None:
        def admit(state: State) -> None:
            new = sum(not state.knows(trace_id) for trace_id in ids)
            self._new.admit(new, self.store.clock.monotonic_ns())

        self.store.read(admit)

    def _remember(self, found: list[_Found]) -> None:
        wall_ns = self.store.clock.time_ns()
        versions = {(one.detail.service, one.detail.version) for one in found}

        def remember(_: State) -> None:
            for service, version in versions:
                self._trends.seen(service, version, wall_ns)
            for one in found:
                self._details.put(one)

        self.store.read(remember)

    def _take(self, told: Told, state: State) -> list[tuple[int, int]]:
        beat = told.beat
        newest = state.workers.get(beat.worker)
        if newest is not None and beat.at_ns < newest.beat.at_ns:
            return []  # it was overtaken
        before = self._told.pop(beat.worker, None)
        unknown = state.apply_beat(beat)
        worker = state.workers.get(beat.worker)
        if worker is not None:
            # What was open has been looked at; of a thousand workers it would be a gigabyte.
            worker.beat = replace(worker.beat, progress={})
            self._told[beat.worker] = replace(told, beat=worker.beat)
            self._bound_told()
        if before is None:
            self._forget_workers(state)
        self._trends.seen(beat.service, beat.version, self.store.clock.time_ns())
        same = before is not None and not beat.is_last and _same_limits(before, told)
        if not same or state.workers.lost != self._lost:
            self._limits_changed = True
            self._apply_limits(state)
        return unknown

    def _bound_told(self) -> None:
        """What those told that were silent longest goes; it comes again with their next beats."""
        self._told_bytes = sum(told.size for told in self._told.values())
        too_many = self._told_bytes - beats.MOST_TOLD
        for name, told in list(self._told.items()) if too_many > 0 else ():
            if too_many > 0 and told.size:
                too_many -= told.size
                self._told[name] = Told(told.beat, open=told.open)
                self.diagnostics.warn(
                    "told_by_workers", "processes tell more pipelines, limits and health than %d "
                    "bytes; the rest is left out; look at /api/workers", beats.MOST_TOLD,
                )  # fmt: skip

    def _forget_workers(self, state: State) -> None:
        for name in [name for name in self._told if state.workers.get(name) is None]:
            del self._told[name]

    def _apply_limits(self, state: State) -> None:
        """All is judged anew by them: where that takes long, at most once a second."""
        now_ns = self.store.clock.monotonic_ns()
        is_much = len(state.transactions) > _MANY or self._told_bytes > _MUCH
        if is_much and now_ns - self._limits_ns < NS_PER_S:
            return
        self._limits_changed, self._limits_ns = False, now_ns
        self._lost = state.workers.lost
        living = [told for name, told in self._told.items() if name not in self._lost]
        if not _merge(living, state, self.settings.patience):
            self.diagnostics.warn(
                "pipelines", "more than %d pipelines are declared; the rest is left out",
                MOST_PIPELINES,
            )  # fmt: skip


def new_state(settings: Settings) -> State:
    """An empty state with a service's bounds."""
    limits = replace(settings.limits, let_go_ids=_LET_GO_IDS)
    return State(limits, settings.patience)


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """As `receiver.unpack`.

    Raises:
        TooLargeError: it unpacks to more than `limit` bytes.
        EncodingError: an encoding that is not known.
        BodyError: it is not so encoded.
    """
    try:
        return unpack(body, encoding, limit)
    except (TooLargeError, EncodingError):
        raise
    except ValueError as error:
        raise BodyError(str(error)) from error


def _parsed(message: bytes, content_type: str) -> ExportTraceServiceRequest:
    try:
        return parse(message, content_type)
    except (TooLargeError, EncodingError):
        raise
    except ValueError as error:
        raise BodyError(str(error)) from error


# --- what is taken --------------------------------------------------------------------------------


class _Window:
    """How many transactions may begin in a minute."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.refused = 0
        """Transactions that were sent back; one that is sent again counts again."""
        self._since_ns = 0
        self._count = 0

    def count(self, now_ns: int) -> int:
        """How many began in this minute."""
        if now_ns - self._since_ns >= _MINUTE_NS or now_ns < self._since_ns:
            self._since_ns, self._count = now_ns, 0
        return self._count

    def admit(self, new: int, now_ns: int) -> None:
        """Counts `new` ones.

        Raises:
            BusyError: they are more than may begin now.
            TooLargeError: they are more than may ever begin at once.
        """
        if new > self.most:
            raise TooLargeError(
                f"more than {self.most} transactions begin in one request; send smaller batches"
            )
        if new and self.count(now_ns) + new > self.most:
            self.refused += new
            left_s = (self._since_ns + _MINUTE_NS - now_ns) // NS_PER_S + 1
            raise BusyError(
                f"more than {self.most} transactions begin in a minute; send again in {left_s} s, "
                "and look for what creates so many",
                left_s,
            )
        self._count += new


def _same_limits(one: Told, other: Told) -> bool:
    return one.pipelines == other.pipelines and one.stall_after == other.stall_after


def _merge(living: list[Told], state: State, own: Patience) -> bool:
    """Brings pipelines and limits up to date: the longest limit of any living worker counts.

    What no living worker declares stays as it was: an orderly restart changes no verdict. False
    where there were too many pipelines.
    """
    changed, fits = False, True
    for pipeline in _merged(living):
        if pipeline == state.pipelines.get(pipeline.name):
            continue
        if pipeline.name not in state.pipelines and len(state.pipelines) >= MOST_PIPELINES:
            fits = False
            continue
        state.add_pipeline(pipeline)
        changed = True
    patience = state.patience
    if living:
        by_stage = dict(own.by_stage_ns)
        for told in living:
            for stage, seconds in told.stall_after.items():
                by_stage[stage] = max(by_stage.get(stage, 0), round(seconds * NS_PER_S))
        patience = replace(patience, by_stage_ns=by_stage)
    if changed or patience != state.patience:
        state.set_patience(patience)
    return fits


def _merged(living: Iterable[Told]) -> list[Pipeline]:
    """Each declared pipeline once: the stages of the newest process, the longest limits of all."""
    found: dict[str, Pipeline] = {}
    for told in sorted(living, key=lambda t: (t.beat.started_ns, t.beat.worker)):
        for pipeline in told.pipelines:
            before = found.get(pipeline.name)
            limits = dict(pipeline.stall_after)
            if before is not None:
                for stage, seconds in before.stall_after.items():
                    limits[stage] = max(limits.get(stage, 0.0), seconds)
            found[pipeline.name] = replace(pipeline, stall_after=limits)
    return list(found.values())


# --- what spans say beyond their facts ------------------------------------------------------------


class _Found(NamedTuple):
    """A span with our attributes, and what it says beyond its fact."""

    fact: Fact
    detail: Detail


def _detail(one: Read) -> Detail:
    attributes = _own(one.attributes)
    stack = _stack(one.span) if one.span.events else ""
    size = _OVERHEAD + len(stack) + sum(len(k) + _size(v) for k, v in attributes.items())
    return Detail(one.service, one.version, attributes, stack, one.fact.ended, size)


def _own(of_span: Mapping[str, Any]) -> dict[str, Any]:
    """The application's own attributes, as far as they are kept."""
    kept: dict[str, Any] = {}
    for key, value in of_span.items():
        if key.startswith(_SHOWN_ALREADY) and not key.startswith(_METADATA):
            continue
        kept[_text(key.removeprefix(_METADATA), MAX_KEY)] = _value(value)
        if len(kept) == _ATTRIBUTES:
            break
    return kept


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value, _TEXT)
    if isinstance(value, float):
        return plain(value)  # not every number is one of JSON
    return [_value(one) for one in value] if isinstance(value, list) else value


def _text(text: str, most: int) -> str:
    """As `text_of`; nearly all of it is short and simple."""
    return text if len(text) <= most and text.isascii() else text_of(text, most)


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(60 + _size(one) for one in value)
    return len(value) if isinstance(value, str) else 8


def _stack(span: Span) -> str:
    """Where it hung, or where its exception came from."""
    for event in span.events:
        wanted = _STACK_EVENTS.get(event.name)
        if wanted is not None:
            text = _text_at(event.attributes, wanted)
            if text:
                return text
    return ""


def _text_at(pairs: Iterable[KeyValue], wanted: str) -> str:
    for pair in pairs:
        if pair.key == wanted:
            return text_of(pair.value.string_value[: _STACK + 1], _STACK)
    return ""


class _Details:
    """What the newest spans say beyond their facts, by trace and span id; bounded in bytes."""

    def __init__(self, most: int = DETAILS) -> None:
        self.spans: OrderedDict[int, dict[int, Detail]] = OrderedDict()
        self.dropped = 0
        """Spans whose details were let go."""
        self._most = most
        self._size = 0

    def put(self, one: _Found) -> None:
        """Keeps it, unless the span has told its end already."""
        trace_id, span_id = one.fact.trace_id, one.fact.span_id
        of_trace = self.spans.setdefault(trace_id, {})
        known = of_trace.get(span_id)
        if known is not None and known.ended and not one.detail.ended:
            return
        if known is None and len(of_trace) >= _SPANS_OF_ONE:
            self.dropped += 1
            return
        of_trace[span_id] = one.detail
        self._size += one.detail.size - (0 if known is None else known.size)
        while self._size > self._most:
            _, gone = self.spans.popitem(last=False)
            self._size -= sum(detail.size for detail in gone.values())
            self.dropped += len(gone)

    def forget(self, state: State) -> None:
        """Lets go of what belongs to transactions that are kept no longer, now and then."""
        if len(self.spans) > 1.25 * len(state.transactions) + 500:
            for trace_id in [one for one in self.spans if one not in state.transactions]:
                self._size -= sum(detail.size for detail in self.spans.pop(trace_id).values())
