"""A page of HTML as a browser's parser sees it, for tests of what pages hold."""

import json
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "input"}


class Page(HTMLParser):
    """The page as a browser's parser sees it; fails on elements that are not closed in order."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(markup)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> dict[str, Any]:
        """What the page's script draws from."""
        (found,) = (text for attributes, text in self.scripts if attributes.get("id") == "figures")
        value: dict[str, Any] = json.loads(found)
        return value

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts.append((self.elements[-1][1], data))
        elif "style" not in self._open:
            self.words.append(data)
