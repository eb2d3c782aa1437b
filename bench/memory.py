"""The most memory that a lookup takes where there are many questions, many owners, or both."""

import os
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
from bench.images import BLOCK, made, make_empty
from bench.measure import Command, Result, Table, peak_memory
from bench.xfs import image

__all__ = ["LIMIT", "measure_all"]

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
    """A case for an image; ``forms`` are the names of the outputs.

    ``forms_mounted`` are those of the case on the mounted image.
    """

    what: str
    image: Path
    ranges: list[tuple[int, int]]
    forms: tuple[str, ...]
    forms_mounted: tuple[str, ...] = ()


def measure_all(folder: Path) -> Iterator[Result | Table]:
    """Measure the peak of whole processes."""
    rows = []
    for case in _cases(folder):
        ranges = folder / "memory-ranges.txt"
        ranges.write_text("".join(f"{start}+{length}\n" for start, length in case.ranges))
        for result, seconds in _peaks(case, ranges):
            rows.append((result.what, len(case.ranges), seconds, result.ours))
            yield result
    yield Table("memory", ("case", "questions", "seconds", "MiB"), rows)


def _peaks(case: _Case, ranges: Path) -> Iterator[tuple[Result, float]]:
    """Measure a case on the image, and mounted; return each result with the seconds it took."""
    for form in case.forms:
        yield _peak(f"{case.what}, {form}", case.image, ranges, form)
    if case.forms_mounted:
        with mounted(case.image, "ro", "norecovery") as root:
            for form in case.forms_mounted:
                yield _peak(f"{case.what}, mounted, {form}", os.fsdecode(root), ranges, form)


def _peak(what: str, target: Path | str, ranges: Path, form: str) -> tuple[Result, float]:
    command: Command = [*_LOOKUP, target, "--ranges", ranges, *_FORMS[form]]
    begun = time.perf_counter()
    peak = peak_memory(command)
    seconds = time.perf_counter() - begun
    return Result(what, peak / MIB, LIMIT / MIB, "MiB", peak / LIMIT, 1, at_least=False), seconds


def _cases(folder: Path) -> Iterator[_Case]:
    everything = tuple(_FORMS)
    path = _made(folder, f"sharers-{SHARERS}", _sharers)
    pages = _shared_pages(path)
    many = [pages[number % len(pages)] for number in range(SHARERS)]
    what = f"{SHARERS // 10:,} ranges of {SHARERS:,} sharers"
    yield _Case(what, path, many[::10], everything, everything)
    what = f"{SHARERS:,} ranges of {SHARERS:,} sharers"
    without_paths = ("JSON without paths", "summary")
    yield _Case(what, path, many, ("JSON", *without_paths), without_paths)
    path = _made(folder, f"clones-{CLONES}", _clones)
    pages = _shared_pages(path)[:PAGES]
    what = f"{len(pages):,} pages of {CLONES} clones"
    yield _Case(what, path, pages, everything, without_paths)
    path = image(folder, f"extents-{EXTENTS}")
    whole = [(0, path.stat().st_size)]
    what = f"one range over {EXTENTS:,} extents"
    yield _Case(what, path, whole, everything, everything)
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
    def make(path: Path) -> None:
        make_empty(path, 2 << 30, "-d", "agcount=4")
        with mounted(path) as root:
            fill(root)

    return made(folder, name, make)


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
