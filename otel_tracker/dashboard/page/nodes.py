"""What the page draws: a tree of plain data, which ``draw.js`` makes into elements.

Text is set as text, never as HTML or Markdown, whatever a span said.
"""

from __future__ import annotations

import re
from typing import Any, Final

Node = dict[str, Any]
"""``tag``; ``css`` class; ``text`` or ``children``; ``key`` among its siblings; ``open``: the id of
the transaction that a click opens; ``link``: an address; ``save``: the ``name`` and ``text`` of a
file that a click keeps; ``size``: CSS custom properties, numbers;
``title`` and ``label``: for whoever points at it, or cannot see it."""


_TURNS: Final = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """A text in which nothing turns the direction of what follows: that is spelled out."""
    return _TURNS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def node(
    tag: str,
    css: str = "",
    *children: Node | str | None,
    key: str = "",
    opens: str = "",
    link: str = "",
    saves: tuple[str, str] | None = None,
    title: str = "",
    label: str = "",
    size: dict[str, float] | None = None,
    chosen: bool | None = None,
) -> Node:
    """One element. A text among several children becomes a ``span``; None is left out.

    Args:
        tag: of HTML; ``draw.js`` knows which are allowed.
        css: its class.
        children: elements or texts.
        key: tells it among its siblings from one drawing to the next, so that it keeps its place.
        opens: id of the transaction that a click on it opens.
        link: an ``http`` or ``https`` address.
        saves: name and text of a file that a click on it keeps.
        title: what is shown to whoever points at it.
        label: what a screen reader says.
        size: custom properties of CSS, such as ``{"--left": 0.5}``.
        chosen: whether it is what is open now.
    """
    made: Node = {"tag": tag}
    given = {
        "css": css, "key": key, "open": opens, "link": link, "title": plain(title),
        "label": plain(label), "size": size,
    }  # fmt: skip
    made.update({name: value for name, value in given.items() if value})
    if saves is not None:
        made["save"] = {"name": saves[0], "text": saves[1]}
    if chosen is not None:
        made["chosen"] = chosen
    there = [one for one in children if one is not None]
    if len(there) == 1 and isinstance(there[0], str):
        made["text"] = plain(there[0])
    elif there:
        made["children"] = [
            {"tag": "span", "text": plain(one)} if isinstance(one, str) else one for one in there
        ]
    return made


def text_of(tree: Node) -> str:
    """All that a tree says, in order, with spaces between elements."""
    parts = [str(tree.get("text", ""))]
    parts += [text_of(child) for child in tree.get("children", ())]
    return " ".join(part for part in parts if part)
