"""Type checkers see through `stage` and `transaction`: mypy and basedpyright, on real files.

`typing_decorators.py` says what is right and what has to be told as wrong. Here every kind of
function, under every form of the decorators, is compared with the same function without one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = ROOT / "tests" / "typing_decorators.py"

Told = list[tuple[int, str, str]]
"""What a checker says: line, ``error`` or ``note``, and the message."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy_cache")


def command(name: str) -> str:
    """The path of a checker. One that is missing is a failure in continuous integration."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed beside {sys.executable}")
        pytest.skip(f"{name} is not installed beside {sys.executable}: types are not checked by it")
    return str(path)


def output_of(*arguments: str) -> str:
    """What a checker prints, whatever it found."""
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr or done.stdout  # 2 and more: it could not check
    return done.stdout


_LINE: Final = re.compile(r"[^:]+:(\d+): (error|note): (.*)")


def told_by_mypy(file: Path, cache: Path) -> Told:
    """As the project is checked."""
    printed = output_of(
        command("mypy"), "--cache-dir", str(cache), "--no-pretty", "--no-error-summary", str(file)
    )
    lines = [_LINE.fullmatch(line) for line in printed.splitlines()]
    return [(int(m[1]), m[2], m[3]) for m in lines if m is not None and file.name in m[0]]


def told_by_basedpyright(file: Path, cache: Path) -> Told:
    """As the file's first line asks for."""
    printed = output_of(
        command("basedpyright"), "--pythonpath", sys.executable, "--outputjson", str(file)
    )
    found: dict[str, Any] = json.loads(printed)
    assert found["summary"]["filesAnalyzed"] == 1
    return [
        (
            one["range"]["start"]["line"] + 1,
            "note" if one["severity"] == "information" else "error",
            f"{one['message']} [{one.get('rule', '')}]",
        )
        for one in found["generalDiagnostics"]
    ]


CHECKERS: Final[dict[str, Callable[[Path, Path], Told]]] = {
    "mypy": told_by_mypy,
    "basedpyright": told_by_basedpyright,
}
by_both = pytest.mark.parametrize("told_by", CHECKERS.values(), ids=CHECKERS)


@by_both
def test_what_is_right_passes_and_what_is_wrong_is_told(
    told_by: Callable[[Path, Path], Told], cache: Path
) -> None:
    """Not one error, and not one `ignore` that is not needed."""
    assert told_by(EXAMPLE, cache) == []


@by_both
def test_the_checkers_look_at_the_file(
    told_by: Callable[[Path, Path], Told], cache: Path, tmp_path: Path
) -> None:
    """A wrong type, a wrong argument and a needless `ignore` are each told: no line is let pass."""
    planted = [
        "\n",
        "assert_type(bare(1), str)\n",
        "bare(2, b=3)\n",
        "bare(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]\n",
    ]
    source = EXAMPLE.read_text()
    copy = tmp_path / "planted.py"
    copy.write_text(source + "".join(planted))
    end = source.count("\n")
    lines = {line - end for line, severity, _ in told_by(copy, cache) if severity == "error"}
    assert sorted(line for line in lines if line > 0) == [2, 3, 4]


# --- every kind of function, every form -----------------------------------------------------------

HEAD: Final = '''\
# pyright: strict
from __future__ import annotations
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, TypeVar, overload
from otel_tracker import pipeline, stage, transaction
T = TypeVar("T")
voice = pipeline("voice", "fetch")
class Thing:
    """Can be called."""
    def __call__(self, a: int, *, b: str = "") -> bytes: ...
def function(a: int, *, b: str = "") -> bytes: ...
'''

FORMS: Final = {
    "bare stage": "@stage",
    "stage without a name": "@stage()",
    "stage with a name": '@stage("memory")',
    "stage with options": '@stage("memory", key="a", queued_at="a", capture=("a",), rows=12)',
    "bare transaction": "@transaction",
    "transaction with a name": '@transaction("voice")',
    "transaction with options": '@transaction(voice, user_id="a", capture="a", source="upload")',
    "both": '@transaction\n@stage("memory")',
}

KINDS: Final = {
    "function": "@\ndef NAME(a: int, /, b: str = '', *c: float, d: bool, **e: int) -> list[T]: ...",
    "coroutine": "@\nasync def NAME(a: int, *, b: str = '') -> bytes: ...",
    "generator": "@\ndef NAME(a: int) -> Generator[int, str, bytes]: ...",
    "iterator": "@\ndef NAME(a: int) -> Iterator[int]: ...",
    "async generator": "@\ndef NAME(a: int) -> AsyncGenerator[int, str]: ...",
    "function that gives an awaitable": "@\ndef NAME(a: int) -> Awaitable[int]: ...",
    "context manager": "@\n@contextmanager\ndef NAME(a: int) -> Iterator[bytes]: ...",
    "async context manager": "@\n@asynccontextmanager\nasync def NAME(a: int) -> "
    "AsyncIterator[bytes]:\n    yield b''",
    "generic function": "@\ndef NAME(a: T, *b: T) -> dict[str, T]: ...",
    "overloaded function": "@overload\ndef NAME(a: int) -> bytes: ...\n@overload\n"
    "def NAME(a: str) -> str: ...\n@\ndef NAME(a: int | str) -> bytes | str: ...",
    "method": "class NAME:\n    @\n    def call(self, a: int, *, b: str = '') -> bytes: ...",
    "async method": "class NAME:\n    @\n    async def call(self, a: int) -> bytes: ...",
    "generic method": "class NAME(Generic[T]):\n    @\n    def call(self, a: T) -> T: ...",
    "class method, above": "class NAME:\n    @\n    @classmethod\n"
    "    def call(cls, a: int) -> bytes: ...",
    "class method, below": "class NAME:\n    @classmethod\n    @\n"
    "    def call(cls, a: int) -> bytes: ...",
    "static method, above": "class NAME:\n    @\n    @staticmethod\n"
    "    def call(a: int) -> bytes: ...",
    "static method, below": "class NAME:\n    @staticmethod\n    @\n"
    "    def call(a: int) -> bytes: ...",
    "property": "class NAME:\n    @property\n    @\n    def call(self) -> bytes: ...",
}
"""Source of each, with ``@`` where the decorators go."""

OBJECTS: Final = {
    "object": "Thing()",
    "partial": "functools.partial(function, 1)",
    "lambda": "lambda: 3",
    "built-in": "len",
    "bound method": "Thing().__call__",
}
"""What is given to a decorator as a value."""


def sources() -> Iterator[tuple[str, str, str, list[str]]]:
    """Kind, form ("" for none), source, and the expressions whose types are to be the same."""
    forms = {"": "", **FORMS}
    number = 0
    for kind, source in KINDS.items():
        for form, decorators in forms.items():
            number += 1
            name = f"Name{number}x"
            lines: list[str] = []
            for line in source.replace("NAME", name).splitlines():
                if line.strip() == "@":
                    lines += [line.replace("@", one) for one in decorators.splitlines()]
                else:
                    lines.append(line)
            holder = f"{name}[int]" if "Generic" in source else name
            shown = [f"{holder}.call", f"{holder}().call"] if source[0] == "c" else [name]
            yield kind, form, "\n".join(lines), shown
    for kind, thing in OBJECTS.items():
        for form, decorators in forms.items():
            value = thing
            for one in reversed(decorators.splitlines()):
                value = f"{one[1:]}({value})"
            number += 1
            yield kind, form, f"Name{number}x = {value}", [f"Name{number}x"]


@by_both
def test_every_kind_keeps_its_type_under_every_form(
    told_by: Callable[[Path, Path], Told], cache: Path, tmp_path: Path
) -> None:
    """The type that a checker reveals is the one that it reveals of the undecorated function."""
    text = HEAD
    where: dict[tuple[str, str], list[int]] = {}
    for kind, form, source, shown in sources():
        text += f"{source}\n"
        for expression in shown:
            text += f"reveal_type({expression})\n"
            where.setdefault((kind, form), []).append(text.count("\n"))
    file = tmp_path / "kinds.py"
    file.write_text(text)
    revealed = {
        line: re.sub(r"Name\d+x", "Name", message.partition(" is ")[2])
        for line, severity, message in told_by(file, cache)
        if severity == "note"
    }
    types = {place: [revealed[line] for line in lines] for place, lines in where.items()}
    assert len(types) == (len(KINDS) + len(OBJECTS)) * (1 + len(FORMS))
    assert {place: of for place, of in types.items() if of != types[place[0], ""]} == {}
    # What a coroutine yields and is sent is nobody's business, and `Any` to both checkers.
    known = {
        one.replace("[Any, Any, ", "[").replace("[Any]", "") for of in types.values() for one in of
    }
    assert [one for one in known if re.search(r"\bAny\b|Unknown", one)] == []
