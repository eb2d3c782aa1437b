"""What happens to the files of a study: faults in some order, then a life with everything in it.

All of it follows from the seed and from the extents.
"""

import random
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.study.extents import Extent
from whoseblock.study.sizes import ENTRY_PAGES
from whoseblock.study.space import Space

__all__ = ["LIFE", "WORKLOADS", "Step", "Workload", "entries_of", "fault_in", "life"]


#: Where in an extent, in pages: none has more than 2**21 blocks on the disk, joined ones may.
_PLACE_BITS: Final = 40
_PLACE: Final = (1 << _PLACE_BITS) - 1


class Workload(NamedTuple):
    """How entries are faulted in: of at most so many pages, and in which order."""

    name: str
    entry_pages: int
    order: str


WORKLOADS: Final = (
    Workload("4 KiB, file order", 1, "file"),
    Workload("4 KiB, random", 1, "random"),
    Workload("2 MiB, file order", ENTRY_PAGES, "file"),
    Workload("2 MiB, random", ENTRY_PAGES, "random"),
)
#: Half of the files faulted in, then writes, cuts, evictions and clones, and failures in between.
LIFE: Final = Workload("life", 1, "random")

#: Of a thousand steps of a life after the faults.
_CHANCES: Final = {
    "write": 800,
    "truncate": 5,
    "evict": 5,
    "unmap": 10,
    "reflink": 30,
    "fault": 100,
    "fail": 50,
}


class Step(NamedTuple):
    """One thing that happens: to pages of a file, or to a page of the device."""

    what: str
    extent: Extent
    #: Of a reflink: the file that gets the extent, and where.
    to: tuple[int, int] = (0, 0)


def entries_of(extent: Extent, entry_pages: int) -> Iterator[Extent]:
    """Cut an extent into the entries that faults put in.

    A large entry needs the same alignment in the file and on the device; else it is small ones.
    """
    mapping, index, page, count = extent
    at = 0
    while at < count:
        size = 1
        aligned = (page + at) % entry_pages == 0 and (index + at) % entry_pages == 0
        if entry_pages > 1 and aligned and at + entry_pages <= count:
            size = entry_pages
        yield Extent(mapping, index + at, page + at, size)
        at += size


def fault_in(
    space: Space, workload: Workload, seed: int, mappings: list[int] | None = None
) -> Iterator[Extent]:
    """Give the entries of files, all unless said which, in the order of a workload."""
    extents = [
        extent
        for mapping in (space.mappings() if mappings is None else mappings)
        for extent in space.extents(mapping)
    ]
    if workload.order == "file":
        for extent in extents:
            yield from entries_of(extent, workload.entry_pages)
        return
    # A million entries in a row would be as large as all that the designs keep: each is only the
    # number of its extent, and where in it.
    order = array(
        "Q",
        (
            number << _PLACE_BITS | entry.first - extent.first
            for number, extent in enumerate(extents)
            for entry in entries_of(extent, workload.entry_pages)
        ),
    )
    random.Random(seed).shuffle(order)  # noqa: S311 - repeatable, not secret
    for packed in order:
        mapping, index, page, count = extents[packed >> _PLACE_BITS]
        at = packed & _PLACE
        yield next(
            entries_of(Extent(mapping, index + at, page + at, count - at), workload.entry_pages)
        )


def life(space: Space, seed: int, steps: int, others: list[tuple[int, int]]) -> Iterator[Step]:
    """Fault in half of the files, then change things; ``others`` are pages of metadata.

    Each step is made from what the filesystem is like when it is asked for.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    mappings = space.mappings()
    if not mappings:
        return
    known = sorted(rng.sample(mappings, -(-len(mappings) // 2)))
    for entry in fault_in(space, LIFE, seed, known):
        yield Step("fault", entry)
    names, weights = list(_CHANCES), list(_CHANCES.values())
    for what in rng.choices(names, weights, k=steps):
        if what == "fail":
            yield Step(what, Extent(0, 0, _any_page(rng, space, mappings, others), 1))
            continue
        mapping = rng.choice(known)
        if what in ("evict", "unmap"):
            yield Step(what, Extent(mapping, 0, 0, 0))
            continue
        extents = space.extents(rng.choice(mappings) if what == "reflink" else mapping)
        if not extents:
            continue
        extent = rng.choice(extents)
        at = rng.randrange(extent.length)
        count = min(rng.randint(1, 64), extent.length - at) if what == "reflink" else 1
        part = Extent(extent.mapping, extent.first + at, extent.page + at, count)
        if what == "truncate":
            # The rest of a random half of the file, at most.
            upto = extents[-1].first + extents[-1].length
            part = Extent(mapping, rng.randint(upto // 2, upto), 0, 0)
        if what == "reflink" and part.mapping == mapping:
            continue
        yield Step(what, part, (mapping, part.first))


def _any_page(
    rng: random.Random, space: Space, mappings: list[int], others: list[tuple[int, int]]
) -> int:
    """Choose a page to fail: of a file mostly, or of the metadata, or any at all."""
    kind = rng.random()
    if kind < 0.7:  # noqa: PLR2004 - seven in ten
        extents = space.extents(rng.choice(mappings))
        if extents:
            extent = rng.choice(extents)
            return extent.page + rng.randrange(extent.length)
    if kind < 0.8 and others:  # noqa: PLR2004 - as above
        page, count = rng.choice(others)
        return page + rng.randrange(count)
    return rng.randrange(space.pages)
