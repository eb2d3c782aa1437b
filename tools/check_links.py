"""``python -m tools.check_links FOLDER``: check the links within the pages of a site.

Each must lead to a file of the site, and its fragment to an element there.
"""

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

__all__ = ["broken_links"]


class _Page(HTMLParser):
    """The identifiers and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if name := values.get("id"):
            self.ids.add(name)
        if tag == "a" and (link := values.get("href")):
            self.links.append(link)


def broken_links(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each page with a link in it that leads nowhere."""
    pages = {path: _Page(path.read_text("utf-8")) for path in folder.resolve().rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme:
                continue
            name, fragment = urldefrag(link)
            to = (path.parent / unquote(name)).resolve() if name else path
            if to not in pages:
                if not to.exists():
                    yield path, link
            elif fragment and unquote(fragment) not in pages[to].ids:
                yield path, link


def main() -> int:
    """Report broken links; the exit status is 1 if there are any."""
    found = list(broken_links(Path(sys.argv[1])))
    for path, link in found:
        print(f"{path}: {link}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
