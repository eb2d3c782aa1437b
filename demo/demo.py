"""Poison an emulated persistent memory in several places, look up the owners, and repair.

The image is a real XFS (see README.md beside this). Only page 307 is named here; the demo finds the
other pages by looking up the owners of the whole device while it is healthy. The exit status is not
0 if a result is wrong. The repair is in recovery.py, what it needs in needs.py.
"""

import lzma
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from demo.needs import describe as describe_needs
from demo.needs import needs
from demo.recovery import recover

import whoseblock
from whoseblock.errors import MediaError
from whoseblock.fs.base import Answer, FileOwner, Free, MetadataOwner, Owner
from whoseblock.media import EmulatedPmem, FileMedia
from whoseblock.ranges import ByteRange, parse_range
from whoseblock.study.study import Plan, study

IMAGE = Path(__file__).with_name("image.xfs.xz")
PAGE = 4096
# Each page of the files in the image says which page of which file it is.
PAGE_TEXT = re.compile(rb"(?P<title>[\x20-\x7e]+), page (?P<number>\d+)(?=\n)")


class Failure(NamedTuple):
    """A page to poison, what it holds, and the check of every row of the answer."""

    what: str
    page: ByteRange
    expected: Callable[[Owner], bool]


def is_shared_data(row: Owner) -> bool:
    """Return whether it is file data with more than one owner."""
    return isinstance(row, FileOwner) and row.what == "data" and row.shared


def is_private_data(row: Owner) -> bool:
    """Return whether it is written data of one file with one name."""
    return is_data(row, names=1) and not is_shared_data(row)


def is_data_of_many_names(row: Owner) -> bool:
    """Return whether it is data of a file with hard links."""
    return is_data(row, names=3)


def is_data(row: Owner, names: int) -> bool:
    """Return whether it is written data of a file with so many names."""
    return (
        isinstance(row, FileOwner)
        and row.what == "data"
        and not row.unwritten
        and isinstance(row.paths, tuple)
        and len(row.paths) == names
    )


def is_unwritten(row: Owner) -> bool:
    """Return whether it is preallocated space of a file, never written."""
    return isinstance(row, FileOwner) and row.unwritten


def is_free(row: Owner) -> bool:
    """Return whether it is free space."""
    return isinstance(row, Free)


def is_space_btree(row: Owner) -> bool:
    """Return whether it is a block of an allocation group's space btrees."""
    return isinstance(row, MetadataOwner) and row.what == "ag"


def is_inodes(row: Owner) -> bool:
    """Return whether it is a block of inodes."""
    return isinstance(row, MetadataOwner) and row.what == "inodes"


def last_page(rows: Sequence[Owner], like: Callable[[Owner], bool], which: int = 0) -> ByteRange:
    """Return the last page of the first row (or another) of a kind."""
    row = [row for row in rows if like(row)][which]
    return ByteRange(row.start + row.length - PAGE, PAGE)


def choose(rows: Sequence[Owner]) -> list[Failure]:
    """Choose the pages to poison, given the owners of the whole device."""
    return [
        Failure("data that two files share", parse_range("307p"), is_shared_data),
        Failure("data of one file", last_page(rows, is_private_data), is_private_data),
        Failure(
            "data of a file with three names",
            last_page(rows, is_data_of_many_names),
            is_data_of_many_names,
        ),
        Failure("preallocated space", last_page(rows, is_unwritten), is_unwritten),
        Failure("free space", last_page(rows, is_free), is_free),
        # The first row is the two btrees of the free space, by place and by size.
        Failure("a btree of the free space", last_page(rows, is_space_btree), is_space_btree),
        Failure("a block of inodes", last_page(rows, is_inodes, -1), is_inodes),
    ]


def unpack(target: Path) -> None:
    """Uncompress the image, leaving holes where it is empty."""
    with lzma.open(IMAGE) as packed, target.open("wb") as image:
        while piece := packed.read(1 << 20):
            if piece.count(0) == len(piece):
                image.seek(len(piece), os.SEEK_CUR)
            else:
                image.write(piece)
        image.truncate()


def describe(row: Owner) -> list[str]:
    """Return the lines that describe an owner."""
    match row:
        case FileOwner(paths=tuple() as paths):
            note = ": never written, no data lost" if row.unwritten else ""
            where = f"inode {row.inode}, offset {row.file_offset}{note}"
            return [f"{paths[0]:<32} {where}", *(f"{path:<32} the same" for path in paths[1:])]
        case MetadataOwner(inodes=(first, last)):
            return [f"{'the filesystem itself':<32} inodes {first} to {last}"]
        case MetadataOwner():
            return [f"{'the filesystem itself':<32} {row.what}"]
        case Free():
            return [f"{'no owner':<32} free space: safe to zero"]
        case _:
            return [row.kind]


def read(medium: EmulatedPmem, page: ByteRange) -> str:
    """Read a page; return how that failed, or nothing."""
    try:
        medium.pread(*page)
    except MediaError as error:
        return str(error) if error.ranges == (page,) else ""
    return ""


def is_right(failure: Failure, answer: Answer, lost: bytes) -> bool:
    """Return whether an answer is as expected, and agrees with the page before."""
    enough = 2 if failure.expected is is_shared_data else 1
    if not answer.complete or len(answer) < enough or not all(map(failure.expected, answer)):
        return False
    said = PAGE_TEXT.match(lost)
    offsets = [row.file_offset for row in answer if isinstance(row, FileOwner)]
    return said is None or int(said["number"]) * PAGE in offsets


class Outcome(NamedTuple):
    """The number of wrong answers, and the pages that can be repaired."""

    wrong: int
    shared: ByteRange
    free: ByteRange


def run(image: Path) -> Outcome:
    """Poison the image, look up the owners, and print them."""
    medium = EmulatedPmem(FileMedia(image))
    with whoseblock.open(medium) as fs:
        failures = choose(fs.owners(0, fs.size).owners)
        contents = [medium.pread(*failure.page) for failure in failures]

    medium = EmulatedPmem(FileMedia(image), poison=[failure.page for failure in failures])
    size = medium.size >> 20
    print(f"\n{size} MiB of persistent memory with XFS; {len(failures)} pages are poisoned.")
    wrong = 0
    with whoseblock.open(medium) as fs:
        for failure, lost in zip(failures, contents, strict=True):
            error = read(medium, failure.page)
            answer = fs.owners(*failure.page)
            print(f"\npage {failure.page.start // PAGE}: {error or 'could be read!'}")
            print(f"  it was {failure.what}:")
            for row in answer:
                print(*(f"    {line}" for line in describe(row)), sep="\n")
            for note in answer.notes:
                print(f"  note: {note}")
            if said := PAGE_TEXT.match(lost):
                print(f'  before it failed, the page said "{said[0].decode()}"')
            if not error or not is_right(failure, answer, lost):
                wrong += 1
                print("  WRONG: this is not what was expected")
        reads = sum(fs.reads.values())
    print(f"\nThe lookups read {reads} metadata blocks.")
    pages = {failure.expected: failure.page for failure in failures}
    return Outcome(wrong, pages[is_shared_data], pages[is_free])


def compare_designs(image: Path) -> int:
    """Compare the three designs of the study on the same image; return the disagreements."""
    plan = Plan(str(image), sweep_pages=0, life_steps=1000, timed=False)
    report = study(plan)
    life = report.workloads[-1]
    print("\nThree ways to find owners, on the same image (whoseblock study measures more):")
    for everything, half in zip(report.workloads[0].trackers, life.trackers, strict=True):
        found = half.failures
        print(
            f"  {everything.design:<10}  {everything.memory:>6,} bytes of kernel memory;"
            f" {found.told} of {found.told + found.missed} owners found,"
            f" {found.free} free pages cleared"
        )
    print("  (memory with every file mapped in; lookups while half of the files are)")
    return sum(one.disagreements for one in report.workloads)


def main() -> int:
    """Run the demo on a scratch copy of the image."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    found = needs()
    print(describe_needs(found), flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "image.xfs"
        unpack(image)
        failures = run(image)
        wrong = failures.wrong or recover(image, failures.shared, failures.free, found)
        wrong += compare_designs(image)
    print(f"\nFinished in {time.monotonic() - began:.1f} s.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
