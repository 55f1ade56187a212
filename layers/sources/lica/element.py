"""Component of a LICA layout: its properties, and what follows from them without drawing."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from config.errors import SampleError
from layers.sources.lica.css import colour, px, shown, unset
from layers.sources.lica.text import clean

TYPES = ("IMAGE", "TEXT", "GROUP")
MAX_DEPTH = 24


class Element:
    """One component; its properties are at its top level in the release and under ``style`` in the GDB rows.

    Args:
        component: as parsed from JSON.
        where: its place for messages, such as ``components[3]``.

    Raises:
        SampleError: if it is no JSON object of a known type, or its children are no list.
    """

    def __init__(self, component: Any, where: str) -> None:
        if not isinstance(component, dict):
            raise SampleError(f"{where}: {shown(component)} is no object")
        self.component, self.where = component, where
        self.kind = str(component.get("type", "")).upper()
        if self.kind not in TYPES:
            raise SampleError(f"{where}.type: {shown(component.get('type'))} is none of {', '.join(TYPES)}")

    def get(self, key: str) -> Any:
        """A property; ``None`` if it is absent."""
        for holder in (self.component, self.component.get("style"), self.component.get("element")):
            if isinstance(holder, dict) and holder.get(key) is not None:
                return holder[key]
        return None

    def px(self, key: str, default: float | None = None) -> float:
        """A length in pixels, see :func:`layers.sources.lica.css.px`."""
        return px(self.get(key), f"{self.where}.{key}", default)

    @cached_property
    def children(self) -> list[Element]:
        """The components of a group, bottom to top; empty for the other types."""
        inner = self.component.get("components")
        if self.kind != "GROUP" or inner is None:
            return []
        if not isinstance(inner, list):
            raise SampleError(f"{self.where}.components: {shown(inner)} is no list")
        return [Element(child, f"{self.where}.components[{i}]") for i, child in enumerate(inner)]

    def count(self, depth: int = 1) -> int:
        """Number of components in it, including itself.

        Raises:
            SampleError: if groups are nested too deeply.
        """
        if depth > MAX_DEPTH:
            raise SampleError(f"{self.where}: groups nested more than {MAX_DEPTH} deep")
        return 1 + sum(child.count(depth + 1) for child in self.children)

    def _first(self, *keys: str) -> str:
        words = (clean(self.get(key)) for key in keys)
        return next((word for word in words if word.strip()), "")

    def text(self) -> str:
        """The text of a TEXT, before ``textTransform``."""
        return self._first("text", "content", "value")

    def words(self) -> str:
        """Description on one line: the text of a TEXT, else the layout's description of it or of its children."""
        if self.kind == "TEXT":
            return " ".join(self.text().split())
        own = " ".join(self._first("alt", "description").split())
        return own or ", ".join(filter(None, (child.words() for child in self.children)))

    def layer_kind(self) -> str:
        """Kind of its layer; a group of one kind has that kind, a group without content but a box is a shape."""
        if self.kind != "GROUP":
            return self.kind.lower()
        kinds = {child.layer_kind() for child in self.children} | ({"shape"} if self.paint() else set())
        return kinds.pop() if len(kinds) == 1 else "group"

    def paint(self) -> tuple[float, float, float, float] | None:
        """Fill colour of its box, straight RGBA in [0, 1]; ``None`` if there is none."""
        key = "backgroundColor" if unset(self.get("background")) else "background"
        return colour(self.get(key), f"{self.where}.{key}")
