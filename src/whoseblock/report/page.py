"""Make the page of a report: one file of HTML that needs no network, and no scripts to be read.

The style and the script are in the page, and its Content-Security-Policy allows them by their
SHA-256 only (https://www.w3.org/TR/CSP3/#framework-directive-source-list). Text is escaped by the
template; the data of the script is JSON in which no ``<`` is left.
"""

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from whoseblock.encode import encode_json
from whoseblock.extras import import_extra
from whoseblock.printable import rounded
from whoseblock.report.content import MAX_FILES, Content
from whoseblock.report.device_map import CELLS, COLUMNS, DeviceMap
from whoseblock.summary import KINDS

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["render"]

#: What the kinds mean, for people.
MEANING: Final = {
    "file": "in files",
    "metadata": "metadata of the filesystem",
    "unknown": "owner unknown",
    "unreferenced": "in no file: no data is lost",
    "unwritten": "never written: no data is lost",
    "staging": "reserved for a copy-on-write",
    "free": "free",
    "outside": "outside of any filesystem",
}
#: Where a browser cannot show a number of bytes exactly: JSON numbers are doubles.
_MAX_NUMBER: Final = 1 << 53


def render(content: Content) -> Iterator[bytes]:
    """Yield the page in pieces, as UTF-8.

    Raises `MissingExtraError` if Jinja2 is not installed.
    """
    style, script = _read("page.css"), _read("page.js")
    data = encode_json({"kinds": KINDS, "meaning": MEANING, "maps": [*map(_areas, content.maps)]})
    pieces = _template().generate(
        content=content,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=data.decode().replace("<", "\\u003c"),
        kinds=KINDS,
        meaning=MEANING,
        bar=list(_bar(content)),
        drawings=[_drawing(drawn) for drawn in content.maps],
        max_files=MAX_FILES,
        columns=COLUMNS,
        rows=CELLS // COLUMNS,
    )
    for piece in pieces:
        yield piece.encode()


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _template() -> "Template":
    jinja2 = import_extra("report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["size"] = _size
    environment.filters["percent"] = "{:.1%}".format
    template: Template = environment.from_string(_read("page.html"))
    return template


def _size(number: int) -> str:
    """Return a number of bytes for people: 512 B, 16 KiB, 1.95 TiB."""
    text = rounded(number)
    return f"{text} B" if text[-1].isdigit() else f"{text[:-1]} {text[-1]}iB"


def _hash(text: str) -> str:
    """Return what the policy of a page calls a style or a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _bar(content: Content) -> Iterator[tuple[str, float, float]]:
    """Yield the kinds with their start and width in a bar of 1000."""
    total = sum(content.totals.values())
    start = 0.0
    for kind, count in content.totals.items():
        width = 1000 * count / total if total else 0.0
        yield kind, round(start, 2), round(width, 2)
        start += width


def _drawing(drawn: DeviceMap) -> list[dict[str, Any]]:
    """Return the cells of an overview: column, row, the worst kind, and the text."""
    cells = []
    for number, kinds in drawn.cells():
        start = number * drawn.cell
        words = ", ".join(MEANING[kind].partition(":")[0] for kind in kinds)
        cells.append(
            {
                "x": number % COLUMNS,
                "y": number // COLUMNS,
                "kind": kinds[0],
                "text": f"from {start:#x}, {_size(drawn.cell)}: {words}",
            }
        )
    return cells


def _areas(drawn: DeviceMap) -> dict[str, Any]:
    """Return the areas of a map for the script: starts, lengths, kinds."""
    areas = drawn.areas
    order = sorted(range(len(areas.starts)), key=areas.starts.__getitem__)
    order = [number for number in order if areas.starts[number] < _MAX_NUMBER]
    return {
        "size": drawn.size,
        "cell": drawn.cell,
        "starts": [areas.starts[number] for number in order],
        "lengths": [areas.lengths[number] for number in order],
        "kinds": [areas.kinds[number] for number in order],
    }
