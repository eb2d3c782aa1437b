"""Write docs/internals/signatures.md from the table of signatures.

Run it as ``make signatures``; a test compares the page with its output.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from whoseblock.signatures import SIGNATURES, Kind, Signature

__all__ = ["page"]

_HEADINGS: Final[dict[Kind, str]] = {
    "filesystem": "Filesystems",
    "encrypted": "Encrypted devices",
    "member": "Parts of other devices",
    "swap": "Swap space",
    "table": "Partition tables",
    "image": "Images in another format",
    "compressed": "Packed files",
    "other": "Others",
}

#: The line of the page after which the tables are written.
_MARKER: Final = "<!-- tables: make signatures -->\n"
_PAGE: Final = Path(__file__).resolve().parent.parent / "docs/internals/signatures.md"


def page() -> str:
    """Return the page, with the tables of the code."""
    text, marker, _ = _PAGE.read_text("utf-8").partition(_MARKER)
    return text + marker + "".join(_section(kind) for kind in _HEADINGS)


def _section(kind: Kind) -> str:
    rows = [row for one in SIGNATURES if one.kind == kind for row in _rows(one)]
    head = "| name | content | at byte | source | sample |\n|---|---|---|---|---|\n"
    return f"\n## {_HEADINGS[kind]}\n\n{head}{''.join(rows)}"


def _rows(one: Signature) -> Iterator[str]:
    places = ", ".join(dict.fromkeys(_place(offset) for offset, _ in one.places))
    title = f"{one.title}; {one.advice}" if one.advice else one.title
    title = title.replace("|", "\\|")
    yield f"| {one.name} | {title} | {places} | {one.source} | {one.sample or 'crafted'} |\n"


def _place(offset: int) -> str:
    return f"{-offset} before the end" if offset < 0 else str(offset)


if __name__ == "__main__":
    _PAGE.write_text(page(), "utf-8")
