"""Carry out one repair step from its parameters in the journal; safe to repeat after any crash.

A step trusts nothing of the plan but which owners may be changed.  It looks up again who owns the
blocks, which sectors fail, and whether a copy is good.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from whoseblock.errors import MediaError, WhoseblockError
from whoseblock.fs.base import FileId
from whoseblock.fs.driver import MountedVolume, Volume
from whoseblock.fs.opening import open_volume
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange
from whoseblock.respond.copies.locations import FetchedCopies, Preference
from whoseblock.respond.copies.page_cache import has_unwritten
from whoseblock.respond.copies.replacement import (
    Replacement,
    Replacements,
    find_replacements,
)
from whoseblock.respond.device import Content, Device
from whoseblock.respond.exceptions import (
    ChangedError,
    NotHealedError,
    NotNowError,
    OwnerOutcome,
    PartlyDoneError,
    RefusedError,
)
from whoseblock.respond.freezing import FreezeJournal, check_not_frozen
from whoseblock.respond.owners import (
    FilePosition,
    OpenOwner,
    OpenOwners,
    describe_file,
    is_unowned,
    owners_now,
    positions_of,
    rows_without,
)
from whoseblock.respond.planning import (
    READ_ONLY,
    Act,
    why_protected,
    why_unsupported,
)
from whoseblock.respond.quarantine import QuarantineKeeper, keeper_of, settle
from whoseblock.respond.relocate import (
    NO_SPACE,
    ContentChange,
    Keeper,
    Moved,
    ReplacementSource,
    flush,
    overwrite,
    relocate,
)
from whoseblock.respond.sites import Site
from whoseblock.respond.steps import ActResult, StepParameters, StepRecords
from whoseblock.respond.zeroing import zero_mounted, zero_unmounted

__all__ = ["carry_out", "verify"]

#: How often the owners of a run are looked up again when others change them meanwhile.
_ROUNDS = 4
#: So many files, and sources of data, are named in an outcome; the journal has all sources.
_NAMED = 3
#: So many reasons are named.
_REASONS = 10


def carry_out(
    kind: Act,
    step: StepParameters,
    site: Site,
    journal_device: int | None,
    records: StepRecords,
) -> ActResult:
    """Carry out an act, and return what it did.

    ``journal_device`` is the ``st_dev`` of the journal's file, None if it is no file of this
    machine.  Raises the errors of `whoseblock.respond.exceptions`.
    """
    _check_filesystem(kind, step, site)
    fs = site.mounted
    if fs is None:
        return _zero_unmounted(step, site)
    records.freeze.thaw_left(fs.fileno(), read_only=fs.is_read_only)
    if fs.root_fd is not None:
        # Any write to a frozen filesystem waits, and cannot be killed.
        check_not_frozen(fs.root_fd)
    privileges = records.privileges
    try:
        privileges.put_back(fs)
        result = _change_owners(kind, step, site, fs, journal_device, records)
        # What the interrupted attempt was to write is there only now.
        privileges.put_back(fs)
    except RefusedError as error:
        if not privileges.outstanding:
            raise
        files = ", ".join(describe_file(record.file) for record in privileges.outstanding)
        raise PartlyDoneError(f"{error}; capabilities of {files} are not put back yet") from error
    if lost := privileges.forget_rest():
        return result._replace(says=f"{result.says}; {lost}")
    return result


def _change_owners(  # noqa: PLR0913 - as `carry_out`
    kind: Act,
    step: StepParameters,
    site: Site,
    fs: MountedVolume,
    journal_device: int | None,
    records: StepRecords,
) -> ActResult:
    if kind is Act.ZERO:
        return _zero(fs, step, site, journal_device, records.freeze)
    with _quarantined(fs, step) as keeper:
        attempt = _Attempt(fs, site, step, kind, keeper, records)
        for number in range(_ROUNDS):
            rows = owners_now(fs, step.run)
            others = rows_without(rows, _file_of(keeper))
            if is_unowned(others):
                if keeper is not None and rows:
                    return _settle(fs, site, keeper, step)
                return _zero(fs, step, site, journal_device, records.freeze)
            result = attempt.run(in_place=number == 0)
            if result is not None:
                return result
    raise ChangedError("the owners keep changing")


def _check_filesystem(kind: Act, step: StepParameters, site: Site) -> None:
    """Raise `RefusedError` unless the step is for this filesystem, which supports the act."""
    if not step.identity or not site.identity:
        raise RefusedError(f"{step.layer}: the identity of its filesystem is unknown")
    if site.identity != step.identity:
        raise RefusedError(f"{step.layer} holds another filesystem than when it was planned")
    if site.filesystem is None:
        raise RefusedError(f"{step.layer} has no known filesystem")
    if site.mounted is None and kind is not Act.ZERO:
        raise NotNowError("file data is changed only while the filesystem is mounted: mount it")
    if why := why_unsupported(kind, site.filesystem, quarantine=step.quarantine):
        raise RefusedError(why)
    if why := why_protected(kind, site.filesystem, write_read_only=step.write_read_only):
        raise NotNowError(why)


def _file_of(keeper: Keeper | None) -> FileId | None:
    return None if keeper is None else keeper.file


@contextlib.contextmanager
def _quarantined(fs: MountedVolume, step: StepParameters) -> Iterator[QuarantineKeeper | None]:
    """Open the file that keeps the blocks in quarantine, if the step asks for one or has one."""
    keeper = QuarantineKeeper(fs, step.run) if step.quarantine else keeper_of(fs, step.run)
    if keeper is None:
        yield None
        return
    with contextlib.closing(keeper):
        yield keeper


def _zero_unmounted(step: StepParameters, site: Site) -> ActResult:
    def afresh() -> Volume:
        return open_volume([site.layer.open()])

    with contextlib.closing(site.device(writable=True, exclusive=True)) as device:
        return _zeroed(zero_unmounted(afresh, device, step.run))


def _zero(
    fs: MountedVolume,
    step: StepParameters,
    site: Site,
    journal_device: int | None,
    freeze: FreezeJournal,
) -> ActResult:
    def open_to_freeze() -> Device:
        if journal_device in fs.devices:
            raise NotNowError(
                "the journal is on the filesystem that has to be frozen: name another journal with"
                " --journal"
            )
        return site.device(writable=True)

    with contextlib.closing(site.device()) as device:
        settled = zero_mounted(
            fs, device, step.run, open_to_freeze, freeze, quarantine=step.quarantine
        )
    result = ActResult(*settled)
    if result.zeroed and fs.is_read_only:
        return result._replace(says=f"{result.says}, although {READ_ONLY}")
    return result


def _zeroed(sectors: Sequence[ByteRange]) -> ActResult:
    if not sectors:
        return ActResult("no sector fails there any more")
    return ActResult(f"zeroed {', '.join(map(str, sectors))}", sectors)


def _settle(fs: MountedVolume, site: Site, keeper: Keeper, step: StepParameters) -> ActResult:
    """Zero blocks that only their keeper has, or keep them in quarantine."""
    with contextlib.closing(site.device()) as device:
        failing = device.failing([keeper.run])
        return ActResult(*settle(fs, device, keeper, failing, quarantine=step.quarantine))


class _Wanted(NamedTuple):
    """The owners to change, those that were changed before, those that are left, and the data."""

    owners: Sequence[OpenOwner]
    others: Sequence[OpenOwner]
    left: Mapping[FilePosition, str]
    found: Replacements


class _Attempt:
    """Attempts to give the owners of a run other blocks."""

    def __init__(  # noqa: PLR0913 - all that a step is about
        self,
        fs: MountedVolume,
        site: Site,
        step: StepParameters,
        kind: Act,
        keeper: QuarantineKeeper | None,
        records: StepRecords,
    ) -> None:
        self._digest, self._privileges, _ = records
        self._fs = fs
        self._site = site
        self._step = step
        self._kind = kind
        self._keeper = keeper
        # The next attempt does not run the user's command again.
        self._fetched: FetchedCopies = {}

    def run(self, *, in_place: bool) -> ActResult | None:
        """Change the owners; return None if the run has others by now and needs another attempt.

        ``in_place`` first tries whether writing the failed sectors heals the device.
        """
        run = self._step.run
        with contextlib.ExitStack() as stack:
            device = stack.enter_context(contextlib.closing(self._site.device()))
            files = stack.enter_context(OpenOwners(self._fs))
            owners, left = files.open_those_that_may_change(self._positions())
            others = self._changed_before([*(owner.position for owner in owners), *left], files)
            if not owners:
                raise self._undone(Moved([], left), others)
            if not self._flush(owners):
                return None
            content = device.content(run)
            if not content.failing:
                return ActResult("every sector is readable again: nothing was changed")
            found = self._find(content, owners, others, every_owner=not left)
            left |= found.left
            change = self._change(content, found.found[0])
            alone = len(owners) == 1 and not others and not left
            if in_place and alone and self._may_overwrite(owners[0], change):
                with contextlib.suppress(NotNowError):
                    if overwrite(self._fs, device, owners[0], change, self._privileges):
                        says = f"rewrote {_list(content.failing)} in place{_from(found)}"
                        return ActResult(says, sources=found.sources)
                    return None
            keeper: Keeper = self._keeper or stack.enter_context(
                contextlib.closing(Keeper.temporary(self._fs, run))
            )
            return self._move(device, keeper, content, _Wanted(owners, others, left, found))

    def _move(
        self, device: Device, keeper: Keeper, content: Content, wanted: _Wanted
    ) -> ActResult | None:
        """Change the owners, as `run` does, while the keeper has the run."""
        owners, others, left, found = wanted
        if not keeper.has_run() and not _share(keeper, owners):
            return None
        moved = self._relocate(device, keeper, content, found, others)
        moved.left.update(left)
        done = self._describe(found, len(moved.changed))
        if moved.left:
            raise self._undone(moved, others, done)
        if not keeper.is_alone():
            return None
        result = _settle(self._fs, self._site, keeper, self._step)
        says = f"{done}; {result.says}"
        return result._replace(says=says, sources=found.sources, owners=_outcomes(moved))

    def _relocate(
        self,
        device: Device,
        keeper: Keeper,
        content: Content,
        found: Replacements,
        others: Sequence[OpenOwner],
    ) -> Moved:
        """Map the replacements into their owners."""
        moved = Moved([], {})
        for one in found.found:
            change = self._change(content, one)
            source = _source(others, change)
            some = relocate(self._fs, device, keeper, one.owners, change, self._privileges, source)
            moved.changed.extend(some.changed)
            moved.left.update(some.left)
        return moved

    def _undone(self, moved: Moved, others: Sequence[OpenOwner], done: str = "") -> Exception:
        """Return the error for owners that were left: the step is taken again if any was not."""
        reasons = _reasons(moved.left)
        if not moved.changed and not others and NO_SPACE not in moved.left.values():
            return RefusedError(reasons)
        says = f"{done}; left: {reasons}" if moved.changed else f"left: {reasons}"
        return PartlyDoneError(says, _outcomes(moved))

    def _flush(self, owners: Sequence[OpenOwner]) -> bool:
        """Flush the owners; return False if one of them got other blocks by that."""
        for owner in owners:
            flush(owner.fd)
        return all(
            self._fs.still_maps(owner.fd, owner.position.offset, self._step.run) for owner in owners
        )

    def _find(
        self,
        content: Content,
        owners: Sequence[OpenOwner],
        others: Sequence[OpenOwner],
        *,
        every_owner: bool,
    ) -> Replacements:
        """Find the replacements, and journal where they are from."""
        restores = self._kind is Act.RESTORE
        copies = self._step.copies
        if restores and copies is None:
            raise RefusedError("no good copy was named")
        found = find_replacements(
            self._fs,
            content,
            owners,
            others,
            copies if restores else None,
            self._digest.digest,
            self._fetched,
            every_owner=every_owner,
        )
        if not found.found:
            raise self._undone(Moved([], dict(found.left)), others)
        first = found.found[0]
        # A hole is journaled, too: the next attempt must know that there was one before.
        strict = restores and not first.certain
        self._digest.check(first.data or b"", found.sources, strict=strict)
        return found

    def _change(self, content: Content, replacement: Replacement) -> ContentChange:
        copies = self._step.copies
        over_cache = copies is not None and copies.prefer is Preference.COPY
        return ContentChange(content, replacement.data, over_cache=over_cache)

    def _describe(self, found: Replacements, count: int) -> str:
        given = "the good copy"
        if self._kind is Act.PUNCH:
            given = "zeros, and what the page cache has," if found.sources else "zeros"
        whom = "the file" if count == 1 else f"{count} files"
        return f"gave {given} to {whom}{_from(found)}"

    def _may_overwrite(self, owner: OpenOwner, change: ContentChange) -> bool:
        """Return whether the failed sectors may be rewritten in place, and only these.

        Readable sectors are not rewritten, so the page cache must have nothing newer there.  The
        write drops pages around it from the cache, too: these must be on the device.
        """
        run, fd, offset = self._step.run, owner.fd, owner.position.offset
        return (
            self._keeper is None
            and self._kind is Act.RESTORE
            and change.only_lost
            and not has_unwritten(fd, ByteRange(offset, run.length), self._fs.block_size)
        )

    def _positions(self) -> list[FilePosition]:
        """Return the present owners; raise `ChangedError` if one of them was not planned."""
        run = self._step.run
        rows = rows_without(owners_now(self._fs, run), _file_of(self._keeper))
        positions = positions_of(rows, run)
        if strangers := positions - set(self._step.owners):
            new = ", ".join(map(str, sorted(strangers)))
            raise ChangedError(f"{new} is a new owner since it was planned: plan again")
        return sorted(positions)

    def _changed_before(
        self, present: Sequence[FilePosition], files: OpenOwners
    ) -> list[OpenOwner]:
        """Open the planned owners that map other blocks by now.

        An interrupted attempt may have given them the good copy, and theirs may be the only one.
        """
        if not self._digest.digest:
            return []
        found = []
        for position in sorted(set(self._step.owners) - set(present)):
            with contextlib.suppress(RefusedError):
                found.append(files.open(position))
        return found


def _share(keeper: Keeper, owners: Sequence[OpenOwner]) -> bool:
    """Share the run of the first owner that still has it; return False if none does."""
    for owner in owners:
        with contextlib.suppress(ChangedError):
            keeper.share(owner)
            return True
    return False


def _outcomes(moved: Moved) -> tuple[OwnerOutcome, ...]:
    changed = [
        OwnerOutcome(file.subvolume, file.inode, offset, changed=True)
        for file, _, offset in moved.changed
    ]
    left = [
        OwnerOutcome(file.subvolume, file.inode, offset, changed=False, because=because)
        for (file, _, offset), because in moved.left.items()
    ]
    return (*changed, *left)


def _reasons(left: Mapping[FilePosition, str]) -> str:
    """Name the owners that were left, and why, the first of many."""
    owners: dict[str, list[str]] = {}
    for position, why in left.items():
        owners.setdefault(why, []).append(str(position))
    reasons = [f"{_first(names)}: {why}" for why, names in owners.items()]
    return _first(reasons, _REASONS, "; ")


def _from(found: Replacements) -> str:
    """Name the sources of the data, the first of many."""
    return f" (from {_first(list(map(str, found.sources)))})" if found.sources else ""


def _first(names: Sequence[str], count: int = _NAMED, separator: str = ", ") -> str:
    """Join the first names of a list, and tell how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{separator.join(names[:count])}{more}"


def _source(others: Sequence[OpenOwner], change: ContentChange) -> ReplacementSource | None:
    """Find a file that holds the replacement from an earlier attempt, so that it stays shared."""
    data, run = change.replacement, change.before.run
    if data is None:
        return None
    for owner in others:
        # The last block of a file is rarely full.
        length = min(run.length, owner.size - owner.position.offset)
        with contextlib.suppress(MediaError, WhoseblockError), DirectMedia(owner.fd) as media:
            if length > 0 and media.pread(owner.position.offset, length) == data[:length]:
                return ReplacementSource(owner.fd, owner.position.offset)
    return None


def _list(ranges: Sequence[ByteRange]) -> str:
    return ", ".join(map(str, ranges))


def verify(kind: Act, step: StepParameters, site: Site, result: ActResult) -> str:
    """Verify the result of an act with the device and the filesystem; return what was seen.

    Raises `NotHealedError` if a sector still fails, and `ChangedError` if an owner that was to be
    changed still has the failed blocks.
    """
    with contextlib.closing(site.device()) as device:
        failing = [bad for bad in device.failing([step.run]) if bad not in result.kept]
    if failing and not result.kept:
        raise NotHealedError(f"{_list(failing)} still cannot be read")
    fs = site.mounted
    if fs is None or kind is Act.ZERO:
        return "the filesystem does not allocate it" if result.kept else "every sector is readable"
    _check_owners(fs, step)
    if not result.kept:
        return "every sector is readable"
    if positions_of(owners_now(fs, step.run), step.run) & set(step.owners):
        raise ChangedError(f"not all owners of {step.run} were changed")
    return "no file but the one in quarantine has it"


def _check_owners(fs: MountedVolume, step: StepParameters) -> None:
    """Raise `NotHealedError` if a planned owner is still not readable there.

    A file that is gone by now is passed over.
    """
    with OpenOwners(fs) as files:
        for position in step.owners:
            with contextlib.suppress(ChangedError):
                owner = files.open(position)
                length = min(step.length, owner.size - position.offset)
                with DirectMedia(owner.fd) as media:
                    if media.failing(position.offset, max(length, 0)):
                        raise NotHealedError(f"{position} cannot be read there yet")
