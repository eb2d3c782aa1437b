"""The most memory that a lookup takes where there are many questions, many owners, or both."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.support import system_calls
from tests.support.crafted_images import (
    DEPTH,
    GIB,
    LINKS,
    NLINK,
    claim_groups,
    forge_directory,
    forge_inode,
    make_large,
    make_links,
)
from tests.support.mounts import mounted
from tests.support.xfs_images import Geometry, make_image

import whoseblock
from bench.images import BLOCK, make_empty
from bench.measure import Command, Result, Table, peak_memory
from bench.xfs import image

__all__ = ["measure_all"]

MIB: Final = 1 << 20
#: The whole process may have so much resident, whatever is asked.
LIMIT: Final = 300 * MIB

SHARERS: Final = 5000
CLONES: Final = 100
FILES: Final = 400
PAGES: Final = 65_536
EXTENTS: Final = 1_000_000

_LOOKUP: Final = [sys.executable, "-m", "whoseblock", "lookup"]
_FORMS: Final = {
    "JSON": ("--json",),
    "JSON without paths": ("--json", "--no-paths"),
    "summary": ("--summary",),
    "table": (),
}


class _Case(NamedTuple):
    """A case for an image; ``forms`` are the names of the outputs."""

    what: str
    image: Path
    ranges: list[tuple[int, int]]
    forms: tuple[str, ...]


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Measure the peak of whole processes."""
    rows = []
    for case in _cases(folder):
        ranges = folder / "memory-ranges.txt"
        ranges.write_text("".join(f"{start}+{length}\n" for start, length in case.ranges))
        with whoseblock.open(case.image) as filesystem:
            owners = sum(
                len(item.owners) for item in filesystem.owners_stream(case.ranges, paths=False)
            )
        for form in case.forms:
            command: Command = [*_LOOKUP, case.image, "--ranges", ranges, *_FORMS[form]]
            begun = time.perf_counter()
            peak = peak_memory(command)
            seconds = time.perf_counter() - begun
            what = f"{case.what}, {form}"
            rows.append((what, len(case.ranges), owners, seconds, peak / MIB))
            yield Result(what, peak / MIB, LIMIT / MIB, "MiB", peak / LIMIT, 1, at_least=False)
    yield Table("memory", ("case", "questions", "rows", "seconds", "MiB"), rows)


def _cases(folder: Path) -> Iterator[_Case]:
    everything = tuple(_FORMS)
    path = _made(folder, f"sharers-{SHARERS}", _sharers)
    pages = _shared_pages(path)
    many = [pages[number % len(pages)] for number in range(SHARERS)]
    yield _Case(f"{SHARERS // 10:,} ranges of {SHARERS:,} sharers", path, many[::10], everything)
    what = f"{SHARERS:,} ranges of {SHARERS:,} sharers"
    yield _Case(what, path, many, ("JSON without paths", "summary"))
    path = _made(folder, f"clones-{CLONES}", _clones)
    pages = _shared_pages(path)[:PAGES]
    what = f"{len(pages):,} pages of {CLONES} clones"
    yield _Case(what, path, pages, everything)
    path = image(folder, f"extents-{EXTENTS}")
    whole = [(0, path.stat().st_size)]
    yield _Case(f"one range over {EXTENTS:,} extents", path, whole, everything)
    yield from _crafted(folder)


def _crafted(folder: Path) -> Iterator[_Case]:
    """Make images that promise more than they hold; each is forged anew."""
    whole = ("JSON", "summary")
    path = folder / "crafted-directory.img"
    named = make_large(path)
    forge_directory(path, named["/evil"], 7)
    forge_inode(path, named["/file"], (NLINK, (2).to_bytes(4, "big")))
    yield _Case("a directory of 14 million blocks", path, [(0, path.stat().st_size)], whole)
    path = make_image(folder / "crafted-groups.img", Geometry("small", size=300 * MIB, inode=512))
    claim_groups(path, 16 * GIB)
    yield _Case("a superblock that claims half a million groups", path, [(0, 16 * GIB)], whole)
    path = folder / "crafted-links.img"
    data = make_links(path, parent=True)
    yield _Case(f"{LINKS:,} links, {DEPTH:,} deep", path, [data], whole)


def _made(folder: Path, name: str, fill: Callable[[bytes], None]) -> Path:
    path = folder / f"{name}.img"
    if not path.exists():
        print(f"making {path.name} …", file=sys.stderr)
        unfinished = path.with_suffix(".unfinished")
        make_empty(unfinished, 2 << 30, "-d", "agcount=4")
        with mounted(unfinished) as root:
            fill(root)
        unfinished.rename(path)
    return path


def _sharers(root: bytes) -> None:
    """Make one extent of many files."""
    _share(root + b"/shared", root + b"/first", 16 * BLOCK, SHARERS)


def _share(folder: bytes, name: bytes, size: int, count: int) -> None:
    """Make a file, and let others in ``folder`` share it: ``count`` with the first."""
    Path(folder.decode()).mkdir()
    Path(name.decode()).write_bytes(b"s" * size)
    with Path(name.decode()).open("rb") as source:
        for number in range(count - 1):
            with Path(folder.decode(), str(number)).open("wb") as target:
                system_calls.clone_range(source.fileno(), 0, size, target.fileno(), 0)


def _clones(root: bytes) -> None:
    """Make a folder of files, and clones of each in as many other folders."""
    size = -(-PAGES // FILES) * BLOCK
    for number in range(FILES):
        name = root + b"/golden-%d" % number
        _share(root + b"/clones-of-%d" % number, name, size, CLONES + 1)


def _shared_pages(path: Path) -> list[tuple[int, int]]:
    """Return the pages that files share, each once."""
    with whoseblock.open(path) as filesystem:
        arrays = filesystem.owners_of([0], [filesystem.device_size])
    shared = arrays.shared
    columns = arrays.start[shared].tolist(), arrays.length[shared].tolist()
    extents = sorted(set(zip(*columns, strict=True)))
    return [
        (page, BLOCK) for start, length in extents for page in range(start, start + length, BLOCK)
    ]
