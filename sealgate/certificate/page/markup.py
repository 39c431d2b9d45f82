"""HTML and SVG elements from Python. Text becomes markup in one place, and is escaped there.

Trusts: element and attribute names, which are ours. Never: takes a plain `str` for markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from sealgate.terminal import printable

_VOID = frozenset({"meta", "br", "line", "circle", "rect", "path", "polyline"})


class Markup(str):
    """Text that is markup already; made only by `element`, `joined` and `document`."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Any value as text of a page: control and bidirectional characters replaced, the rest escaped."""
    return value if isinstance(value, Markup) else Markup(escape(printable(str(value)), quote=True))


def joined(parts: Iterable[object]) -> Markup:
    """Several parts one after the other."""
    return Markup("".join(text(part) for part in parts))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`. Attributes: None leaves one out, `_` is `-`, a last `_` is dropped."""
    shown = "".join(
        f' {_attribute(key)}="{text(_number(value))}"' for key, value in attributes.items() if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{shown}>" if name in ("meta", "br") else f"<{name}{shown}/>")
    return Markup(f"<{name}{shown}>{joined(children)}</{name}>")


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-") if key != "viewBox" else key


def _number(value: object) -> object:
    """Coordinates to a tenth: shorter pages, and the same on every machine."""
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
