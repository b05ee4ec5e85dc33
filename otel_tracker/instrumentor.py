"""`OtelTrackerInstrumentor`: the tracker, stages and transactions in an application as it stands.

``opentelemetry-instrument python app.py`` finds it by its entry point. Which functions are stages
is said by ``OTEL_TRACKER_STAGES``: each is decorated when its module has been imported, so nothing
is imported for it. Only what has `otel-tracker[auto]` installed can import this file, and nothing
else in the package does.
"""

from __future__ import annotations

import atexit
import difflib
import inspect
import logging
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from .api import get_debug_tracker, init_debug_tracker
from .decorators import declared_on, stage, transaction
from .diagnostics import Diagnostics
from .model import is_name, parse_stage

try:
    from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
        BaseInstrumentor,
    )
    from wrapt import register_post_import_hook
except ImportError as error:
    raise ImportError(
        "otel_tracker.instrumentor needs opentelemetry-instrumentation; run: "
        "pip install 'otel-tracker[auto]'"
    ) from error

logger = logging.getLogger("otel_tracker")

STAGES_ENV: Final = "OTEL_TRACKER_STAGES"
TRANSACTIONS_ENV: Final = "OTEL_TRACKER_TRANSACTIONS"

_OTHER_SIGNALS: Final = ("meter_provider", "logger_provider")
"""What callers give to every instrumentor alike."""

_MAIN: Final = "__main__"


# --- which functions ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One function that is to be a stage or a transaction."""

    kind: str
    """``stage`` or ``transaction``."""
    module: str
    path: str
    """Within the module: ``function`` or ``Class.method``."""
    name: str
    """The stage's, or the pipeline's."""

    @property
    def target(self) -> str:
        """As it is written."""
        return f"{self.module}:{self.path}"

    def decorate(self, function: Any) -> Any:
        """What takes the function's place."""
        return (
            stage(self.name)(function) if self.kind == "stage" else transaction(self.name)(function)
        )


def read_entries(kind: str, given: object, source: str, diagnostics: Diagnostics) -> list[Entry]:
    """The entries of a mapping, or of text in the form of the environment variables.

    One that cannot be understood is a warning that shows the form. Of several for one function the
    last counts.

    Args:
        kind: ``stage`` or ``transaction``.
        given: what was set; None for nothing.
        source: where it was set, for the warnings.
        diagnostics: takes the warnings.
    """
    found: dict[str, Entry] = {}
    form = "stage" if kind == "stage" else "pipeline"
    for target, name, text in _items(given):
        entry = _entry(kind, target, name)
        if entry is None:
            _warn(
                diagnostics, text,
                f"{source}: %s is ignored; write package.module:function={form} or "
                f"package.module:Class.method={form}",
                text,
            )  # fmt: skip
            continue
        before = found.get(entry.target, entry)
        if before != entry:
            _warn(
                diagnostics, text,
                f"{source}: %s is named twice; it becomes %s, not %s",
                entry.target, entry.name, before.name,
            )  # fmt: skip
        found[entry.target] = entry
    return list(found.values())


def _items(given: object) -> list[tuple[object, object, str]]:
    """Targets and names, each with how it is written."""
    if isinstance(given, Mapping):
        return [(target, name, f"{target!r}: {name!r}") for target, name in given.items()]
    if isinstance(given, str):
        texts = [text.strip() for text in given.split(",") if text.strip()]
        parts = [(text.partition("="), text) for text in texts]
        return [(target.strip(), name.strip(), text) for (target, _, name), text in parts]
    return [] if given is None else [(None, None, f"<{type(given).__name__}>")]


def _entry(kind: str, target: object, name: object) -> Entry | None:
    if not isinstance(target, str):
        return None
    module, _, path = target.strip().partition(":")
    known = parse_stage(name) if kind == "stage" else name if isinstance(name, str) else None
    if not (known and is_name(known) and _is_dotted(module) and _is_dotted(path)):
        return None
    if "=" in known:  # a comma is missing
        return None
    return Entry(kind, module, path, known)


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


# --- putting them in, and back --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replaced:
    """A function that was replaced, and what to put back."""

    entry: Entry
    owner: Any
    """The module or class that has it."""
    attribute: str
    original: Any
    wrapped: Any
    is_inherited: bool
    """The class had it from a base: its own is removed again."""

    def put_back(self) -> bool:
        """Restores it where it is still ours; False where another decorator is above it by now."""
        now = vars(self.owner).get(self.attribute)
        if now is not self.wrapped:
            return not _is_below(self.wrapped, now)
        if self.is_inherited:
            delattr(self.owner, self.attribute)
        else:
            setattr(self.owner, self.attribute, self.original)
        return True


class NoFunctionError(Exception):
    """There is nothing to replace; the message says what there is."""


class Replacements:
    """The functions that one `instrument` replaces, now and when their modules are imported.

    No lock is needed: whoever replaces a function notes it and then looks whether it is all over,
    and whoever ends it says so and then puts back what is noted.

    Args:
        entries: stages before transactions: of one function, the transaction is around the stage.
        diagnostics: where entries that lead nowhere go.
    """

    def __init__(self, entries: Iterable[Entry], diagnostics: Diagnostics) -> None:
        self._diagnostics = diagnostics
        self._waiting: dict[str, list[Entry]] = {}
        """By the module that was not imported yet."""
        for entry in entries:
            self._waiting.setdefault(entry.module, []).append(entry)
        self._replaced: list[Replaced] = []
        self._is_over = False

    def begin(self) -> None:
        """Replaces what is imported already, and waits for the rest."""
        atexit.register(self._tell_missing)
        for module in list(self._waiting):
            if module == _MAIN:
                self._in_script(self._waiting.pop(module))
                continue
            if module not in sys.modules and is_script(module):
                # Another module may import a copy of it by its name: the hook below waits for that.
                self._in_script(self._waiting[module])
            register_post_import_hook(partial(self._imported, module), module)

    def end(self) -> None:
        """Puts everything back; what is imported from here on stays as it is."""
        self._is_over = True
        atexit.unregister(self._tell_missing)
        for replaced in reversed(self._replaced):
            self._put_back(replaced)

    def _imported(self, name: str, module: ModuleType) -> None:
        """Called by the import system: an exception here would be the import's.

        `name` is the one that was asked for: `os.path` calls itself otherwise.
        """
        try:
            if not self._is_over:
                for entry in self._waiting.pop(name, ()):
                    self._replace(entry, module)
        except Exception:
            self._diagnostics.error("instrumentor", "functions of a module could not be replaced")

    def _in_script(self, entries: list[Entry]) -> None:
        """Of the script itself there is no end of an import: only what it has by now can be had."""
        main = sys.modules[_MAIN]
        for entry in entries:
            try:
                _find(main, entry.path)
            except NoFunctionError:
                module = entry.module if entry.module != _MAIN else "app"
                _warn(
                    self._diagnostics, entry.target,
                    "%s is in the script that Python runs, and cannot be replaced before that "
                    "calls it. Move it to a module that the script imports, start the script as "
                    f"python -c 'import {module}; {module}.main()', decorate it with "
                    f"@{entry.kind}, or call OtelTrackerInstrumentor().instrument() below it",
                    entry.target,
                )  # fmt: skip
            else:
                self._replace(entry, main)

    def _replace(self, entry: Entry, module: ModuleType) -> None:
        try:
            owner, original = _find(module, entry.path)
            if (entry.kind, entry.name) in declared_on(original):
                logger.info("otel_tracker: %s is decorated already", entry.target)
                return
            attribute = entry.path.rpartition(".")[2]
            wrapped = entry.decorate(original)
            replaced = Replaced(
                entry, owner, attribute, original, wrapped, attribute not in vars(owner)
            )
            setattr(owner, attribute, wrapped)
        except Exception as error:  # whatever a metaclass or a built-in type says to it
            _warn(
                self._diagnostics, entry.target,
                f"%s cannot be a {entry.kind}: %s", entry.target, str(error),
            )  # fmt: skip
            return
        self._replaced.append(replaced)
        if self._is_over:
            self._put_back(replaced)
        else:
            logger.info("otel_tracker: %s is the %s %r", entry.target, entry.kind, entry.name)

    def _put_back(self, replaced: Replaced) -> None:
        target = replaced.entry.target
        try:
            if not replaced.put_back():
                _warn(
                    self._diagnostics, f"{target} stays",
                    f"%s stays a {replaced.entry.kind}: something else has decorated it since",
                    target,
                )  # fmt: skip
        except Exception:
            self._diagnostics.error("instrumentor", "%s could not be put back", target)

    def _tell_missing(self) -> None:
        """At exit: a module that nobody imported is a slip, or is used in other processes."""
        modules = [m for m in self._waiting if not is_script(m)]
        if modules:
            self._diagnostics.warn(
                "never_imported",
                f"{STAGES_ENV} and {TRANSACTIONS_ENV}: this process never imported, or failed to "
                "import, %s; nothing of that was tracked here",
                ", ".join(module + _near_module(module) for module in modules),
            )


def _find(module: ModuleType, path: str) -> tuple[Any, Any]:
    """Who has the attribute at `path`, and the attribute as it is kept there.

    Raises:
        NoFunctionError: there is none.
    """
    *outer, name = path.split(".")
    owner: Any = module
    for part in outer:
        owner = _raw(owner, part)
        if not isinstance(owner, type | ModuleType):
            kind = type(owner)
            raise NoFunctionError(
                f"{part} is an object of {kind.__qualname__}; name the method of its class: "
                f"{kind.__module__}:{kind.__qualname__}.{name}"
            )
    return owner, _raw(owner, name)


def _raw(owner: Any, name: str) -> Any:
    """Not as `getattr` gives it: a class method would be bound already."""
    for place in owner.__mro__ if isinstance(owner, type) else (owner,):
        if name in vars(place):
            return vars(place)[name]
    where = owner.__qualname__ if isinstance(owner, type) else f"the module {owner.__name__}"
    raise NoFunctionError(f"{where} has no {name}{_near(name, dir(owner))}")


def _near_module(module: str) -> str:
    """Among what is imported beside the first part of the name that is not."""
    parts = module.split(".")
    known = len(parts) - 1
    while known and ".".join(parts[:known]) not in sys.modules:
        known -= 1
    prefix = "".join(f"{part}." for part in parts[:known])
    beside = {
        m.removeprefix(prefix).split(".")[0] for m in list(sys.modules) if m.startswith(prefix)
    }
    return _near(parts[known], beside - {parts[known]})


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.65)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _is_below(wrapped: Any, function: Any) -> bool:
    """Whether `function` leads to `wrapped` by ``__wrapped__``."""
    try:
        return inspect.unwrap(function, stop=lambda one: one is wrapped) is wrapped
    except ValueError:  # a ring
        return False


def is_script(module: str) -> bool:
    """Whether `module` is what Python runs as ``__main__``, as far as that is known yet.

    Before the script begins, where ``opentelemetry-instrument`` calls us, only the command line
    tells.
    """
    main: Any = sys.modules.get(_MAIN)
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return bool(spec.name == module)
    if sys.argv[:1] == ["-m"]:  # Python has not looked for it yet
        arguments = sys.orig_argv
        return module in arguments and arguments[arguments.index(module) - 1].endswith("m")
    file = Path(getattr(main, "__file__", None) or (sys.argv[:1] or [""])[0])
    parts = module.split(".")
    return (
        file.suffix == ".py" and list(file.absolute().with_suffix("").parts[-len(parts) :]) == parts
    )


def _warn(diagnostics: Diagnostics, about: str, message: str, *args: object) -> None:
    """Each entry has a kind of its own: every one is logged."""
    diagnostics.warn(f"instrumentor: {about}", message, *args)


# --- OpenTelemetry's way in -----------------------------------------------------------------------


class OtelTrackerInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Starts the tracker, and makes stages and transactions of functions as they stand.

    ``OtelTrackerInstrumentor().instrument(stages={"voice.asr:transcribe": "transcription"})``, or
    ``opentelemetry-instrument`` and the environment. There is one of it in a process.

    `instrument` takes:

    - ``tracer_provider``: as for `init_debug_tracker`.
    - ``stages``: a mapping of functions (``"package.module:function"``,
      ``"package.module:Class.method"``) to stages; by default what ``OTEL_TRACKER_STAGES`` says.
    - ``transactions``: the same to pipelines; by default ``OTEL_TRACKER_TRANSACTIONS``.
    - every other option of `init_debug_tracker`; one that does not exist is a `TypeError`.

    `uninstrument` puts the functions back, ends what is open within 5 s, and leaves OpenTelemetry
    as it was. It takes no options.
    """

    _replacements: Replacements | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: what is instrumented is the application itself.

        The SDK is a requirement of this package, which pip has checked, and the check here would
        refuse the SDK's pre-releases.
        """
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        given = {
            kind: _given(kind, env, kwargs.pop(f"{kind}s", None))
            for kind, env in (("stage", STAGES_ENV), ("transaction", TRANSACTIONS_ENV))
        }
        for name in _OTHER_SIGNALS:
            kwargs.pop(name, None)
        diagnostics = init_debug_tracker(**kwargs).frames.diagnostics
        try:
            entries = [
                entry
                for kind, (value, source) in given.items()
                for entry in read_entries(kind, value, source, diagnostics)
            ]
            self._replacements = Replacements(entries, diagnostics)
            self._replacements.begin()
        except Exception:
            # `opentelemetry-instrument` would give up on the instrumentations after this one too.
            diagnostics.error("instrumentor", "functions could not be replaced")

    def _uninstrument(self, **kwargs: Any) -> None:
        replacements, self._replacements = self._replacements, None
        if replacements is not None:
            replacements.end()
        get_debug_tracker().detach()


def _given(kind: str, env: str, value: object) -> tuple[object, str]:
    """What is set for this kind, and where: a keyword wins over the environment."""
    if value is None:
        return os.environ.get(env), env
    return value, f"instrument({kind}s=…)"
