"""The page of a report: what it may not contain, whatever the names are."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.printable import printable
from whoseblock.report.content import Content, Failure, LayerLine, LostFile, shown_path
from whoseblock.report.device_map import DeviceMap
from whoseblock.report.page import render

NASTY = "</script><script>alert(1)</script><!--\"'&{{ 7 * 7 }}\u202e\x00\x1b[31m\udcff"
#: Elements without content, which have no end.
_VOID = {"meta", "input"}


def content(name: str) -> Content:
    """Make a report in which all text is hostile."""
    drawn = DeviceMap(printable(name), 1 << 20)
    drawn.add(4096, 8192, "file")
    drawn.add(65536, 512, "free")
    text = printable(name)
    lost = LostFile(
        shown_path(name), (text,), text, "131", text, 8192, 1, 9000, 0.5, shared=True, first=(0, 1)
    )
    return Content(
        *(text, text, text, text, text, text),
        asked=8704,
        complete=False,
        totals={"file": 8192, "free": 512},
        metadata={text: 1},
        reasons=[text],
        remarks=[text],
        ways=[[LayerLine(text, text, 1)]],
        maps=[drawn],
        files=[lost],
        failures=[Failure(1, text, text, text, 0, 512, text, text)],
    )


class _Reader(HTMLParser):
    """Reads a page: its elements, their attributes, and what is in scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]][-1] += data
        else:
            self.texts.append(data)

    def error(self, message: str) -> None:
        raise AssertionError(message)


def page_of(name: str) -> str:
    return b"".join(render(content(name))).decode()


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = page_of(NASTY)
    read = _Reader(page)
    assert read.open == []
    names = {name for name, _ in read.attributes}
    assert not names & {"src", "href", "srcset", "action", "style", "background", "data"}
    assert not [name for name in names if name.startswith("on")]
    (data, script), (style,) = read.inside["script"], read.inside["style"]
    assert "http" not in style.replace("http-equiv", "")
    assert re.findall(r"https?://[^\"' ]*", script) == ["http://www.w3.org/2000/svg"]
    policy = next(value for _, value in read.attributes if value and "default-src" in value)
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; style-src {hashes[0]}; script-src {hashes[1]};"
        " base-uri 'none'; form-action 'none'"
    )
    areas = json.loads(data)["maps"][0]
    assert areas["starts"] == [4096, 65536]
    assert areas["lengths"] == [8192, 512]


def test_a_page_shows_a_name_as_a_terminal_does() -> None:
    text = "".join(_Reader(page_of(NASTY)).texts)
    assert printable(NASTY) in text
    assert "{{ 7 * 7 }}" in text
    assert "\u202e" not in text


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_no_name_changes_the_elements_of_a_page(name: str) -> None:
    read = _Reader(page_of(name or "x"))
    assert read.tags == TAGS
    assert printable(name) in "".join(read.texts)


TAGS = _Reader(page_of("plain")).tags
