"""A page read by Python's own parser of HTML: its elements, its data, its text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "link", "img", "input", "br", "rect", "path"}


@dataclass
class Element:
    """An element of a page.

    Attributes:
        name: its tag.
        attributes: its attributes.
        text: all text in it.
    """

    name: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class PageParts(HTMLParser):
    """All elements of a page in order of their beginnings; refuses what is not well formed."""

    content: str
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)
        self._open: list[Element] = []
        self.feed(self.content)
        self.close()
        assert not self._open, [it.name for it in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), attrs
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, name: str) -> list[Element]:
        """Elements of a tag."""
        return [it for it in self.elements if it.name == name]

    def data(self, identity: str) -> Any:
        """Data of a script element, without constants that JSON lacks."""
        (element,) = (it for it in self.all("script") if it.attributes.get("id") == identity)
        assert element.attributes["type"] == "application/json"

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        return json.loads(element.text, parse_constant=refuse)

    def pairs(self) -> list[dict[str, Any]]:
        """Rows of a page of scores, as other formats have them."""
        names = self.data("names")
        return [
            {
                "image": names["images"][row[0]],
                "text": names["texts"][row[1]],
                "score": row[2],
                "probability": row[3],
            }
            for row in self.data("rows")
        ]
