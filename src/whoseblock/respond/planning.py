"""What can be done about failed bytes, owner by owner; nothing is done here.

The bytes that fail are found by reading, and widened to the blocks that the filesystem gives out.
Each run of blocks that has the same owners is one `Part`, with the one step that it calls for.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.fs.base import Answer, FileOwner, Free, MetadataOwner, Outside, Owner, Staging
from whoseblock.lookup import Asked, Lookup
from whoseblock.ranges import ByteRange
from whoseblock.respond.owners import QUARANTINE, is_nobodys, whole_blocks
from whoseblock.respond.sites import Site, failing_at, rows_by_layer
from whoseblock.target import Target

__all__ = ["CHANGES", "Act", "Options", "Part", "in_quarantine", "is_contested", "parts_of_answer"]


class Act(StrEnum):
    """What a step does."""

    #: Zero failed sectors that hold nobody's data.
    ZERO = "zero"
    #: Give every owner a good copy in another place, and zero what failed.
    RESTORE = "restore"
    #: Give every owner zeros instead, and zero what failed.
    PUNCH = "punch"
    #: Say what somebody else has to do.
    ADVISE = "advise"
    #: Nothing fails.
    NOTHING = "nothing"


#: The acts that write.
CHANGES: Final = frozenset({Act.ZERO, Act.RESTORE, Act.PUNCH})


@dataclass(frozen=True)
class Options:
    """What the user allows.

    ``copies`` says whether good copies were named; ``punch`` and ``quarantine`` as on the command
    line.
    """

    copies: bool = False
    punch: bool = False
    quarantine: bool = False


class Part(NamedTuple):
    """A run of blocks of a site, whose it is, what of it fails, and what is to be done.

    ``says`` is that in words: what the step would change, or what others have to do.
    """

    site: Site
    run: ByteRange
    failing: tuple[ByteRange, ...]
    owners: tuple[Owner, ...]
    act: Act
    says: str
    notes: tuple[str, ...] = ()


#: What repairs metadata, by what it is.
_REPAIRS: Final = {
    "log": "unmount and mount it; if that fails, xfs_repair -L, which loses the newest changes",
}
_REPAIR: Final = (
    "xfs_scrub MOUNTPOINT where the kernel has online repair; otherwise unmount, and xfs_repair"
    " DEVICE, on a copy first if more may fail"
)


def parts_of_answer(
    asked: Asked, answer: Answer, target: Target, finder: Lookup, options: Options
) -> Iterator[Part]:
    """Say what can be done about an answer, wherever its rows are."""
    contested = is_contested(answer)
    for site, rows in rows_by_layer(asked, answer, target, finder):
        for part in parts_of(site, rows, options):
            if contested and part.act in CHANGES:
                says = "more than one layer has these bytes, and only one can be right"
                yield part._replace(act=Act.ADVISE, says=f"{says}: nothing is done")
            else:
                yield part


def is_contested(answer: Answer) -> bool:
    """Whether several layers say whose the same bytes are.

    What is free in one of them, say a partition that a table still has, may be a file's in the
    other, a volume over the whole disk.
    """
    end, owner = -1, ""
    for row in sorted(answer, key=lambda row: row.start):
        layer = row.via[-1].layer if isinstance(row.via, tuple) else ""
        if row.start < end and layer != owner:
            return True
        if row.start + row.length > end:
            end, owner = row.start + row.length, layer
    return False


def parts_of(site: Site, rows: list[Owner], options: Options) -> Iterator[Part]:
    """Say what can be done about rows of one site."""
    filesystem = site.filesystem
    failing, why = failing_at(site, rows)
    if filesystem is None or why or not failing:
        act = Act.ADVISE if filesystem is None or why else Act.NOTHING
        says = why or "every sector can be read: nothing is to be done"
        if filesystem is None:
            says = "no filesystem that whoseblock knows: nothing is done"
        for part, owners in _same_owners(rows):
            yield Part(site, part, (), owners, act, says)
        return
    for run in whole_blocks(failing, filesystem.block_size):
        length = min(run.end, filesystem.device_size) - run.start
        answer = filesystem.owners(run.start, length)
        for part, owners in _same_owners(answer.owners):
            bad = tuple(_within(failing, part))
            if not bad:
                continue
            act, says = _act(site, owners, options)
            if not answer.complete and act is not Act.ADVISE:
                act, says = Act.ADVISE, "whose it is, is not certain: nothing is done"
            if act is not Act.PUNCH:
                yield Part(site, part, bad, owners, act, says, answer.notes)
                continue
            for low, high in _by_loss(part, bad, filesystem.block_size):
                mine = tuple(_clipped(row, low, high) for row in owners)
                piece = ByteRange(low, high - low)
                lost = tuple(_within(bad, piece))
                yield Part(site, piece, lost, mine, act, says, answer.notes)


def _by_loss(run: ByteRange, bad: Sequence[ByteRange], block: int) -> Iterator[tuple[int, int]]:
    """Cut a run between blocks that are lost as a whole, which become holes, and others."""
    edges = {run.start, run.end}
    for one in bad:
        low, high = -(-one.start // block) * block, one.end // block * block
        edges |= {low, high} if low < high else set()
    return pairwise(sorted(edges))


def _same_owners(rows: Sequence[Owner]) -> Iterator[tuple[ByteRange, tuple[Owner, ...]]]:
    """Cut rows at each other's edges; give the pieces with all that have them."""
    edges = sorted({edge for row in rows for edge in (row.start, row.start + row.length)})
    for low, high in pairwise(edges):
        here = tuple(
            _clipped(row, low, high)
            for row in rows
            if row.start <= low and high <= row.start + row.length
        )
        if here:
            yield ByteRange(low, high - low), here


def _clipped(row: Owner, low: int, high: int) -> Owner:
    if isinstance(row, FileOwner) and row.file_offset is not None:
        offset = row.file_offset + low - row.start
        return replace(row, start=low, length=high - low, file_offset=offset)
    return replace(row, start=low, length=high - low)


def _within(ranges: Iterable[ByteRange], run: ByteRange) -> Iterator[ByteRange]:
    for one in ranges:
        low, high = max(one.start, run.start), min(one.end, run.end)
        if low < high:
            yield ByteRange(low, high - low)


def _act(site: Site, owners: Sequence[Owner], options: Options) -> tuple[Act, str]:
    kept = [row for row in owners if in_quarantine(row)]
    if kept and len(kept) == len(owners):
        return Act.NOTHING, "in quarantine: nobody is given it"
    if kept and not options.quarantine:
        return Act.ADVISE, "putting it into quarantine was broken off: --quarantine goes on with it"
    if is_nobodys(owners):
        return Act.ZERO, _zeroing(site, owners)
    data = [row for row in owners if isinstance(row, FileOwner) and row.what == "data"]
    if len(data) == len(owners):
        return _data(site, len(data) - len(kept), options)
    return Act.ADVISE, _advice(owners[0])


def in_quarantine(row: Owner) -> bool:
    """Whether a row is a file that keeps failed blocks for ever."""
    return (
        isinstance(row, FileOwner)
        and isinstance(row.paths, tuple)
        and any(path.startswith(f"/{QUARANTINE}/") for path in row.paths)
    )


def _zeroing(site: Site, owners: Sequence[Owner]) -> str:
    what = "free space" if isinstance(owners[0], Free) else "space never written"
    how = "freeze the filesystem, ask again" if site.mounted else "take the device alone, ask again"
    return (
        f"{what}: {how}, zero exactly the failed sectors, and see that the device gives them back"
    )


def _data(site: Site, owners: int, options: Options) -> tuple[Act, str]:
    if not (options.copies or options.punch or options.quarantine):
        return Act.ADVISE, (
            "data of files, and no good copy: name one with --restore-from, or give it up with"
            " --punch"
        )
    if not site.mounted:
        return Act.ADVISE, "data of files is changed only while the filesystem is mounted: mount it"
    many = "both files" if owners == 2 else f"all {owners} files"  # noqa: PLR2004 - two are both
    files = "the file" if owners == 1 else f"{many}, which go on sharing it"
    first = "put the failed blocks into quarantine; " if options.quarantine else ""
    after = "zero what failed" if options.quarantine else "zero what failed, and give it back"
    if options.copies:
        return (
            Act.RESTORE,
            f"{first}write the good copy once elsewhere, give it to {files}; {after}",
        )
    return Act.PUNCH, f"{first}give zeros to {files} for what cannot be read; {after}"


def _advice(owner: Owner) -> str:
    match owner:
        case MetadataOwner(what=what):
            return f"metadata ({what}): {_REPAIRS.get(what, _REPAIR)}"
        case FileOwner(what=what):
            return f"the file's {what}, which is metadata: {_REPAIR}"
        case Staging():
            return "reserved for a copy-on-write: sync, or unmount and mount it, and ask again"
        case Outside(what=what):
            return f"in no filesystem ({what}): nothing is done"
        case _:
            return "nobody knows whose it is: nothing is done"
