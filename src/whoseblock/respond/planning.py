"""Decide what can be done about failed bytes, owner by owner; nothing is written here.

The failed sectors are found by reading, and widened to the blocks that the filesystem allocates.
Each run of blocks with the same owners becomes one `Proposal` with the one act that it calls for.
"""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.fs.base import (
    Answer,
    FileId,
    FileOwner,
    Free,
    MetadataOwner,
    Outside,
    Owner,
    Process,
    Staging,
    Unreferenced,
)
from whoseblock.fs.driver import Capability, MountedVolume, Volume
from whoseblock.lookup import Lookup, Query
from whoseblock.ranges import ByteRange
from whoseblock.respond.copies.locations import Copies
from whoseblock.respond.owners import is_unowned, whole_blocks, why_not_direct
from whoseblock.respond.quarantine import in_quarantine
from whoseblock.respond.sites import Site, failing_at, rows_by_layer
from whoseblock.target import Target

__all__ = [
    "CHANGES",
    "READ_ONLY",
    "Act",
    "Decision",
    "PlanOptions",
    "Proposal",
    "decide",
    "is_contested",
    "proposals_at",
    "proposals_for",
    "why_protected",
    "why_unsupported",
]


class Act(StrEnum):
    """The action of a step."""

    #: Zero failed sectors of free or unwritten blocks.
    ZERO = "zero"
    #: Move every owner to other blocks with a good copy, and zero the failed sectors.
    RESTORE = "restore"
    #: Move every owner to other blocks with zeros, and zero the failed sectors.
    PUNCH = "punch"
    #: Report what the user has to do.
    ADVISE = "advise"
    #: No sector fails.
    NOTHING = "nothing"


#: The acts that write to the device or to a file.
CHANGES: Final = frozenset({Act.ZERO, Act.RESTORE, Act.PUNCH})


@dataclass(frozen=True)
class PlanOptions:
    """The acts that the user allows, and the programs and processes to notify.

    ``copies`` says where good data is, None if the user named no place.  ``punch`` allows zeros in
    the place of data without a copy.  ``quarantine`` keeps the failed blocks in a file.
    ``command`` is a shell command that receives each finding; ``signal`` is the name of a signal
    for the processes that map the lost part of a file.  ``write_read_only`` allows to write to the
    device of a filesystem that is mounted read-only.
    """

    copies: Copies | None = None
    punch: bool = False
    quarantine: bool = False
    command: str | None = None
    signal: str | None = None
    write_read_only: bool = False


class Decision(NamedTuple):
    """An act, and in words what it changes, or why nothing is changed and what the user can do."""

    act: Act
    says: str


class Proposal(NamedTuple):
    """A run of blocks of a site, its owners, its failed sectors, and what can be done about them.

    ``run`` and ``failing`` are bytes of the site's layer.  ``says`` is as in `Decision`.
    """

    site: Site
    run: ByteRange
    failing: tuple[ByteRange, ...]
    owners: tuple[Owner, ...]
    act: Act
    says: str
    notes: tuple[str, ...] = ()


#: Said of a filesystem in plans and outcomes.
READ_ONLY: Final = "the filesystem is mounted read-only"
#: What an act does, for messages.
_VERBS: Final = {
    Act.ZERO: "zero free blocks",
    Act.RESTORE: "restore file data",
    Act.PUNCH: "replace file data by zeros",
}


def proposals_for(
    asked: Query, answer: Answer, target: Target, finder: Lookup, options: PlanOptions
) -> Iterator[Proposal]:
    """Propose an act for each run of blocks of an answer, in whatever layer its rows are."""
    contested = is_contested(answer)
    for site, rows in rows_by_layer(asked, answer, target, finder):
        for proposal in proposals_at(site, rows, options):
            if contested and proposal.act in CHANGES:
                says = "several layers claim these bytes, and only one can be right"
                yield proposal._replace(act=Act.ADVISE, says=f"{says}: nothing is changed")
            else:
                yield proposal


def is_contested(answer: Answer) -> bool:
    """Return whether several layers report owners of the same bytes.

    Bytes that are free in one of them, such as a stale partition, may belong to a file in the
    other, such as a volume over the whole disk.
    """
    end, owner = -1, ""
    for row in sorted(answer, key=lambda row: row.start):
        layer = row.via[-1].layer if isinstance(row.via, tuple) else ""
        if row.start < end and layer != owner:
            return True
        if row.start + row.length > end:
            end, owner = row.start + row.length, layer
    return False


def proposals_at(site: Site, rows: list[Owner], options: PlanOptions) -> Iterator[Proposal]:
    """Propose an act for each run of blocks of one site; ``rows`` are the owners to look at."""
    filesystem = site.filesystem
    failing, why = failing_at(site, rows)
    if filesystem is None or why or not failing:
        act = Act.ADVISE if filesystem is None or why else Act.NOTHING
        says = why or "every sector is readable: no action needed"
        if filesystem is None:
            says = "no filesystem that whoseblock knows: nothing is changed"
        for run, owners in _same_owners(rows):
            yield Proposal(site, run, (), owners, act, says)
        return
    users = _users_of(rows)
    for blocks in whole_blocks(failing, filesystem.block_size):
        length = min(blocks.end, filesystem.device_size) - blocks.start
        answer = filesystem.owners(blocks.start, length)
        for run, owners in _same_owners([_with_processes(row, users) for row in answer.owners]):
            bad = tuple(_within(failing, run))
            if not bad:
                continue
            act, says = decide(owners, options, filesystem, complete=answer.complete)
            if act is not Act.PUNCH:
                yield Proposal(site, run, bad, owners, act, says, answer.notes)
                continue
            for low, high in _by_loss(run, bad, filesystem.block_size):
                clipped = tuple(_clipped(row, low, high) for row in owners)
                piece = ByteRange(low, high - low)
                lost = tuple(_within(bad, piece))
                yield Proposal(site, piece, lost, clipped, act, says, answer.notes)


def _users_of(rows: Iterable[Owner]) -> dict[FileId, dict[int, Process]]:
    """Collect the processes that use the bytes of rows, by file and pid."""
    users: dict[FileId, dict[int, Process]] = defaultdict(dict)
    for row in rows:
        if isinstance(row, FileOwner) and isinstance(row.processes, tuple):
            for process in row.processes:
                known = users[row.file].get(process.pid)
                mappings = (*known.mappings, *process.mappings) if known else process.mappings
                users[row.file][process.pid] = replace(process, mappings=mappings)
    return users


def _with_processes(row: Owner, users: Mapping[FileId, Mapping[int, Process]]) -> Owner:
    """Add the processes to a row that map its part of the file, or have the file open."""
    if not isinstance(row, FileOwner) or row.file not in users:
        return row
    start, length = row.lost or (0, 0)
    found = []
    for process in users[row.file].values():
        mappings = tuple(
            one
            for one in process.mappings
            if one.file_offset < start + length and start < one.file_offset + one.length
        )
        if mappings or process.open:
            found.append(replace(process, mappings=mappings))
    return replace(row, processes=tuple(found))


def _by_loss(run: ByteRange, bad: Sequence[ByteRange], block: int) -> Iterator[tuple[int, int]]:
    """Cut a run between blocks that are lost as a whole, which become holes, and others."""
    edges = {run.start, run.end}
    for one in bad:
        low, high = -(-one.start // block) * block, one.end // block * block
        edges |= {low, high} if low < high else set()
    return pairwise(sorted(edges))


def _same_owners(rows: Sequence[Owner]) -> Iterator[tuple[ByteRange, tuple[Owner, ...]]]:
    """Cut rows at each other's edges; yield each piece with all its owners."""
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
    if isinstance(row, FileOwner) and row.file_offset is not None and not why_not_direct(row):
        offset = row.file_offset + low - row.start
        return replace(row, start=low, length=high - low, file_offset=offset)
    return replace(row, start=low, length=high - low)


def _within(ranges: Iterable[ByteRange], run: ByteRange) -> Iterator[ByteRange]:
    for one in ranges:
        low, high = max(one.start, run.start), min(one.end, run.end)
        if low < high:
            yield ByteRange(low, high - low)


def decide(
    owners: Sequence[Owner], options: PlanOptions, filesystem: Volume, *, complete: bool = True
) -> Decision:
    """Decide what to do about failed sectors of a run whose owners are ``owners``.

    ``filesystem`` has the run, and ``complete`` says whether the owners are certain.
    """
    decision = _decide(owners, options, filesystem)
    if decision.act in CHANGES:
        if why := why_unsupported(decision.act, filesystem, quarantine=options.quarantine):
            return Decision(Act.ADVISE, f"{why}: nothing is changed")
        if why := why_protected(decision.act, filesystem, write_read_only=options.write_read_only):
            return Decision(Act.ADVISE, why)
    if not complete and decision.act is not Act.ADVISE:
        return Decision(Act.ADVISE, "the owners are not certain: nothing is changed")
    return decision


def why_unsupported(act: Act, filesystem: Volume, *, quarantine: bool = False) -> str:
    """Return why a filesystem does not support an act, "" if it does.

    With ``quarantine``, the act keeps the failed blocks in a file.
    """
    verb = _VERBS[act]
    needed: list[set[Capability]] = []
    if act is Act.ZERO:
        needed.append({Capability.ZERO_FREE})
        if isinstance(filesystem, MountedVolume):
            needed.append({Capability.FREEZE})
            if quarantine:
                needed += {Capability.CAPTURE}, {Capability.QUARANTINE}
    elif quarantine:
        verb += " and keep the failed blocks in quarantine"
        needed += {Capability.REFLINK}, {Capability.QUARANTINE}
    elif act is Act.RESTORE:
        # The blocks of one file may heal when they are written in place.
        needed.append({Capability.REFLINK, Capability.OVERWRITE})
    else:
        needed.append({Capability.REFLINK})
    has = filesystem.capabilities
    missing = [" or ".join(sorted(choice)) for choice in needed if not choice & has]
    if not missing:
        return ""
    return f"whoseblock cannot {verb} on this {filesystem.name} without {' and '.join(missing)}"


def why_protected(act: Act, filesystem: Volume, *, write_read_only: bool) -> str:
    """Return why the way in which a filesystem is mounted forbids an act, "" if it does not."""
    if not isinstance(filesystem, MountedVolume):
        return ""
    if filesystem.unreplayed_log:
        return filesystem.unreplayed_log
    if not filesystem.is_read_only:
        return ""
    if act is not Act.ZERO:
        return f"{READ_ONLY}, and file data is changed only while it is writable: remount it"
    if write_read_only:
        return ""
    return f"{READ_ONLY}: nothing is written; remount it, or pass --write-read-only"


def _decide(owners: Sequence[Owner], options: PlanOptions, filesystem: Volume) -> Decision:
    kept = [row for row in owners if in_quarantine(row, filesystem)]
    if kept and len(kept) == len(owners):
        return Decision(Act.NOTHING, "in quarantine: the filesystem does not allocate it again")
    if kept and not options.quarantine:
        return Decision(
            Act.ADVISE, "an interrupted step was moving it into quarantine: pass --quarantine"
        )
    for row in owners:
        if why := why_not_direct(row):
            return Decision(Act.ADVISE, f"{why}: nothing is changed")
    if is_unowned(owners):
        return _decide_unowned(owners, options, filesystem)
    others = [row for row in owners if not (isinstance(row, FileOwner) and row.what == "data")]
    if not others:
        return _decide_data(len(owners) - len(kept), options, filesystem)
    return Decision(Act.ADVISE, _advice(others[0], options, filesystem))


def _decide_unowned(owners: Sequence[Owner], options: PlanOptions, filesystem: Volume) -> Decision:
    if options.quarantine and (why := _why_not_kept(owners, filesystem)):
        return Decision(Act.ADVISE, f"{why}, or plan the repair without --quarantine")
    says = _describe_zeroing(owners, filesystem, quarantine=options.quarantine)
    return Decision(Act.ZERO, says)


def _why_not_kept(owners: Sequence[Owner], filesystem: Volume) -> str:
    """Return why unowned blocks cannot be put into quarantine, "" if they can."""
    if not isinstance(filesystem, MountedVolume):
        return "free blocks are put into quarantine only while the filesystem is mounted: mount it"
    for row in owners:
        if isinstance(row, FileOwner):
            path = "FILE"
            if isinstance(row.paths, tuple) and row.paths:
                path = shlex.quote(f"{(filesystem.mount_point or '').rstrip('/')}{row.paths[0]}")
            place = f"--offset {row.file_offset} --length {row.length}"
            return (
                "space that a file never wrote cannot be put into quarantine: free it first, with:"
                f" fallocate --punch-hole {place} {path}"
            )
    return ""


def _describe_zeroing(owners: Sequence[Owner], filesystem: Volume, *, quarantine: bool) -> str:
    free = isinstance(owners[0], Free)
    how, after = "open the device exclusively", ""
    if isinstance(filesystem, MountedVolume):
        how = "freeze the filesystem"
        if filesystem.is_read_only:
            after = f"; {READ_ONLY}, and its device is written nevertheless"
        elif free and Capability.CAPTURE in filesystem.capabilities:
            how = "allocate it for an unlinked file, or freeze the filesystem"
            after = "; keep it in quarantine" if quarantine else ""
    what = "free space" if free else "space never written"
    return (
        f"{what}: {how}, query the owners again, zero exactly the failed sectors, and read them"
        f" back{after}"
    )


def _act_on_data(options: PlanOptions) -> Act:
    """Return the act on file data for which the options ask, `Act.ADVISE` for none."""
    if options.copies:
        return Act.RESTORE
    return Act.PUNCH if options.punch or options.quarantine else Act.ADVISE


def _decide_data(files: int, options: PlanOptions, filesystem: Volume) -> Decision:
    """Decide what to do about data of ``files`` files, of which none is in quarantine."""
    mounted = isinstance(filesystem, MountedVolume)
    wanted = _act_on_data(options)
    if wanted is Act.ADVISE:
        why = why_unsupported(Act.RESTORE, filesystem) if mounted else ""
        copy = (
            "file data without a good copy: pass --restore-from to name one, --restore-cached to"
            " use what the page cache has, or --punch to give the data up"
        )
        return Decision(Act.ADVISE, f"{why}: nothing is changed" if why else copy)
    if not mounted:
        return Decision(
            Act.ADVISE, "file data is changed only while the filesystem is mounted: mount it"
        )
    many = "both files" if files == 2 else f"all {files} files"  # noqa: PLR2004 - two are both
    owners = "the file" if files == 1 else f"{many}, which stay shared"
    first = "put the failed blocks into quarantine; " if options.quarantine else ""
    after = "zero the failed sectors" + ("" if options.quarantine else ", and free them")
    if options.copies:
        copy = "the good copy" if options.copies.named else "what the page cache has"
        return Decision(
            Act.RESTORE,
            f"{first}write {copy} to other blocks once, map it into {owners}; {after}",
        )
    return Decision(Act.PUNCH, f"{first}map zeros into {owners} for what cannot be read; {after}")


def _advice(owner: Owner, options: PlanOptions, filesystem: Volume) -> str:
    match owner:
        case MetadataOwner(what=what):
            return f"metadata ({what}): {filesystem.repair_advice(owner)}"
        case FileOwner(what=what):
            return f"the file's {what}, which is metadata: {filesystem.repair_advice(owner)}"
        case Staging():
            return "reserved for a copy-on-write: sync, or unmount and mount it, and query it again"
        case Unreferenced():
            return "allocated, but no file refers to these bytes: no data is lost"
        case Outside(what=what):
            return f"in no filesystem ({what}): nothing is changed"
        case _:
            return f"the owners are unknown{_why_no_act(options, filesystem)}: nothing is changed"


def _why_no_act(options: PlanOptions, filesystem: Volume) -> str:
    """Return why no act could follow even if the owners of a run were known."""
    if not isinstance(filesystem, MountedVolume):
        return ""
    act = _act_on_data(options)
    why = why_unsupported(
        Act.RESTORE if act is Act.ADVISE else act, filesystem, quarantine=options.quarantine
    )
    return f", and {why}" if why else ""
