"""Doing one step, from what the journal has of it; safe to repeat, wherever it was broken off.

Nothing of the plan is believed: who owns the blocks, what of them fails, and whether a copy is good
is found out anew each time.  The plan only says which owners may be changed.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

import msgspec

from whoseblock.encode import encode_json
from whoseblock.errors import MediaError, WhoseblockError
from whoseblock.fs.base import FileOwner, Filesystem
from whoseblock.fs.live import LiveFilesystem
from whoseblock.fs.recognise import open_filesystem
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange
from whoseblock.respond.copies import Copies, CopyError, Replacement, believe, find
from whoseblock.respond.device import Content
from whoseblock.respond.free import zero_mounted, zero_unmounted
from whoseblock.respond.owners import (
    OpenOwner,
    OpenOwners,
    Place,
    is_nobodys,
    owners_now,
    places_of,
)
from whoseblock.respond.planning import Act, Part, in_quarantine
from whoseblock.respond.quarantine import QuarantineKeeper
from whoseblock.respond.reasons import ChangedError, NotHealedError, NotNowError, RefusedError
from whoseblock.respond.relocate import Change, Keeper, Source, overwrite, relocate
from whoseblock.respond.sites import Site

__all__ = ["Memory", "StepParameters", "act", "check", "parameters_of"]

#: How often the owners of a run are looked at again of which others were changed meanwhile.
_ROUNDS = 4


class StepParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal keeps of a step, and all that is needed to do it.

    ``layer`` and ``identity`` name the filesystem, ``start`` and ``length`` the run of blocks in
    bytes of that layer; ``owners`` are the parts of files that may be changed.
    """

    layer: str
    identity: str
    start: int
    length: int
    owners: tuple[Place, ...] = ()
    copies: Copies | None = None
    quarantine: bool = False
    says: str = ""

    @property
    def run(self) -> ByteRange:
        """The run of blocks."""
        return ByteRange(self.start, self.length)


def parameters_of(part: Part, copies: Copies | None, *, quarantine: bool) -> StepParameters:
    """Say what is to be kept of the step that a part calls for."""
    places = tuple(
        Place(row.inode, row.generation, row.file_offset)
        for row in part.owners
        if isinstance(row, FileOwner)
        and row.file_offset is not None
        and isinstance(row.generation, int)
        and not in_quarantine(row)
    )
    return StepParameters(
        layer=part.site.layer.name,
        identity=part.site.identity,
        start=part.run.start,
        length=part.run.length,
        owners=places,
        copies=copies if part.act is Act.RESTORE else None,
        quarantine=quarantine and part.act in (Act.RESTORE, Act.PUNCH),
        says=part.says,
    )


class Done(NamedTuple):
    """What was done, in words and for the journal: the sectors that were written, and zeroed."""

    says: str
    zeroed: Sequence[ByteRange] = ()
    #: Sectors that are kept from use, and need not have healed.
    kept: Sequence[ByteRange] = ()


class Memory:
    """What the journal knows of the replacement that owners were given, by its digest.

    An attempt that was broken off may have given it to some of them.  What these have now is good
    for the others, too, only if it is the very same: they may have been written anew since.
    """

    def __init__(self, digest: str, note: Callable[[str], None]) -> None:
        self.digest = digest
        self._note = note

    def check(self, data: bytes, *, strict: bool) -> None:
        """Journal a replacement before anybody is given it.

        Raises `RefusedError` if others were given another one, if that is to be ``strict``.
        """
        digest = sha256(data).hexdigest()
        if strict and self.digest not in ("", digest):
            raise RefusedError("the good copy is not the one that other owners were given")
        if not self.digest:
            self._note(digest)
        self.digest = digest


def act(
    kind: Act, step: StepParameters, site: Site, journal_device: int | None, memory: Memory
) -> Done:
    """Do a step.

    ``journal_device`` is the number of the device that the journal is on, None if it is on none of
    this machine.  Raises the errors of `whoseblock.respond.reasons`.
    """
    if site.identity != step.identity:
        raise RefusedError(f"on {step.layer} is another filesystem than when it was planned")
    fs = site.mounted
    if fs is None:
        return _zero_unmounted(kind, step, site)
    with _quarantined(fs, step) as keeper:
        for number in range(_ROUNDS):
            rows = owners_now(fs, step.run)
            others = [row for row in rows if getattr(row, "inode", None) != _inode(keeper)]
            if is_nobodys(others):
                if keeper is not None and rows:
                    return _settle(site, keeper)
                return _zero(fs, step, site, journal_device)
            if kind is Act.ZERO:
                raise ChangedError(f"somebody has {step.run} by now")
            done = _Change(fs, site, step, kind, keeper, memory).run(in_place=number == 0)
            if done is not None:
                return done
    raise ChangedError("the owners change all the time")


def _inode(keeper: Keeper | None) -> int:
    return -1 if keeper is None else keeper.inode


@contextlib.contextmanager
def _quarantined(fs: LiveFilesystem, step: StepParameters) -> Iterator[QuarantineKeeper | None]:
    """Open the file that has the blocks in quarantine, if they are to have one."""
    if not step.quarantine:
        yield None
        return
    with contextlib.closing(QuarantineKeeper(fs, step.run)) as keeper:
        yield keeper


def _zero_unmounted(kind: Act, step: StepParameters, site: Site) -> Done:
    if kind is not Act.ZERO:
        raise NotNowError("data of files is changed only while the filesystem is mounted: mount it")

    def afresh() -> Filesystem:
        return open_filesystem(site.layer.open())

    with contextlib.closing(site.device(writable=True, exclusive=True)) as device:
        return _zeroed(zero_unmounted(afresh, device, step.run))


def _zero(fs: LiveFilesystem, step: StepParameters, site: Site, journal_device: int | None) -> Done:
    if journal_device == fs.device:
        raise NotNowError(
            "the journal is on the filesystem that would have to be frozen: name another one with"
            " --journal"
        )
    with contextlib.closing(site.device(writable=True)) as device:
        return _zeroed(zero_mounted(fs, device, step.run))


def _zeroed(sectors: Sequence[ByteRange]) -> Done:
    if not sectors:
        return Done("nothing failed there any more")
    return Done(f"zeroed {', '.join(map(str, sectors))}", sectors)


def _settle(site: Site, keeper: Keeper) -> Done:
    """Heal blocks that only their keeper has, or keep them for good."""
    with contextlib.closing(site.device()) as device:
        failing = device.failing([keeper.run])
        if isinstance(keeper, QuarantineKeeper) and keeper.kept:
            return Done(f"{keeper.run} is in quarantine", kept=failing)
        healed = "zeroed"
        try:
            keeper.heal(device)
        except NotHealedError as error:
            if not isinstance(keeper, QuarantineKeeper):
                raise
            healed = str(error)
    if isinstance(keeper, QuarantineKeeper):
        keeper.keep()
        return Done(f"{keeper.run} is in quarantine, {healed}", kept=failing)
    return Done(f"zeroed {', '.join(map(str, failing))}, and gave it back", failing)


class _Change:
    """One attempt to give the owners of a run something else."""

    def __init__(  # noqa: PLR0913 - all that a step is about
        self,
        fs: LiveFilesystem,
        site: Site,
        step: StepParameters,
        kind: Act,
        keeper: QuarantineKeeper | None,
        memory: Memory,
    ) -> None:
        self._memory = memory
        self._fs = fs
        self._site = site
        self._step = step
        self._kind = kind
        self._keeper = keeper

    def run(self, *, in_place: bool) -> Done | None:
        """Do it; None if it has to be looked at anew: only some of the owners were there.

        ``in_place`` tries first whether writing heals the device.
        """
        run = self._step.run
        with contextlib.ExitStack() as stack:
            device = stack.enter_context(contextlib.closing(self._site.device()))
            files = stack.enter_context(OpenOwners(self._fs))
            owners = [files.open(place) for place in self._places()]
            content = device.content(run)
            if not content.failing:
                return Done("every sector can be read again: nothing was changed")
            others = self._changed_before(owners, files)
            change = Change(content, self._replacement(content, [*owners, *others]))
            if change.replacement is not None:
                self._memory.check(change.replacement, strict=self._kind is Act.RESTORE)
            if in_place and len(owners) == 1 and not others and self._may_overwrite(change):
                with contextlib.suppress(NotNowError):
                    if overwrite(self._fs, device, owners[0], change):
                        return Done(f"wrote {_list(content.failing)} anew in its place")
                    return None
            keeper: Keeper = self._keeper or stack.enter_context(
                contextlib.closing(Keeper.temporary(self._fs, run))
            )
            if not keeper.has_run():
                keeper.share(owners[0])
            relocate(self._fs, device, keeper, owners, change, _source(others, change))
            if not keeper.is_alone():
                return None
            done = _settle(self._site, keeper)
        what = "zeros" if self._kind is Act.PUNCH else "the good copy"
        whom = "the file" if len(owners) == 1 else f"{len(owners)} files"
        return done._replace(says=f"gave {what} to {whom}; {done.says}")

    def _may_overwrite(self, change: Change) -> bool:
        return self._keeper is None and self._kind is Act.RESTORE and change.replacement is not None

    def _places(self) -> list[Place]:
        """Give the owners that are there now; raises `ChangedError` if one was not planned."""
        run = self._step.run
        rows = [
            row
            for row in owners_now(self._fs, run)
            if getattr(row, "inode", None) != _inode(self._keeper)
        ]
        places = places_of(rows, run)
        if strangers := places - set(self._step.owners):
            inodes = ", ".join(str(place.inode) for place in sorted(strangers))
            raise ChangedError(f"inode {inodes} came to have it since it was planned: plan anew")
        return sorted(places)

    def _changed_before(self, owners: Sequence[OpenOwner], files: OpenOwners) -> list[OpenOwner]:
        """Open the planned owners that have something else by now.

        An attempt that was broken off may have given them the good copy, and theirs may be the
        only one there is.
        """
        if not self._memory.digest:
            return []
        here = {owner.place for owner in owners}
        found = []
        for place in self._step.owners:
            if place not in here:
                with contextlib.suppress(RefusedError):
                    found.append(files.open(place))
        return found

    def _replacement(self, content: Content, owners: Sequence[OpenOwner]) -> bytes | None:
        """Give what is to stand in the place of the run; None is a hole."""
        if self._kind is Act.PUNCH:
            # What can be read is not given up; only where nothing can, there is nothing to keep.
            return content.data if any(content.data) else None
        lost = {owner.place: _lost_of(owner, content) for owner in owners}
        if not any(lost.values()):
            return content.data
        copies = self._step.copies
        if copies is None:
            raise RefusedError("no good copy was named")
        finding = encode_json(self._fs.owners(*self._step.run)) if copies.command else b""
        found: bytes | None = None
        reasons: list[str] = []
        for owner in owners:
            for believed in self._believed(copies, owner, lost[owner.place], finding, reasons):
                with believed:
                    filled = _filled(content, owner, believed)
                if found not in (None, filled):
                    raise RefusedError("the copies of what the files share differ from one another")
                found = filled
        if found is None:
            raise RefusedError("; ".join(dict.fromkeys(reasons)) or "there is no copy")
        return found

    def _believed(
        self,
        copies: Copies,
        owner: OpenOwner,
        lost: Sequence[ByteRange],
        finding: bytes,
        reasons: list[str],
    ) -> Iterator[Replacement]:
        paths = self._fs.paths(owner.place.inode)
        try:
            for candidate in find(copies, paths.paths, finding):
                try:
                    yield believe(
                        owner.fd, candidate, lost, whole=copies.whole, window=copies.window
                    )
                except CopyError as error:
                    reasons.append(str(error))
        except CopyError as error:
            reasons.append(str(error))


def _filled(content: Content, owner: OpenOwner, replacement: Replacement) -> bytes:
    """Fill in what a copy has; raises `RefusedError` if it cannot be read any more."""
    try:
        return content.with_lost(_reader(owner.place.offset, replacement))
    except CopyError as error:
        raise RefusedError(str(error)) from error


def _source(others: Sequence[OpenOwner], change: Change) -> Source | None:
    """Find a file that an earlier attempt gave the very replacement: it is to stay shared."""
    data, run = change.replacement, change.before.run
    if data is None:
        return None
    for owner in others:
        # The last block of a file is rarely full.
        length = min(run.length, owner.size - owner.place.offset)
        with contextlib.suppress(MediaError, WhoseblockError), DirectMedia(owner.fd) as media:
            if length > 0 and media.pread(owner.place.offset, length) == data[:length]:
                return Source(owner.fd, owner.place.offset)
    return None


def _reader(offset: int, replacement: Replacement) -> Callable[[int, int], bytes]:
    return lambda at, length: replacement.read(offset + at, length)


def _lost_of(owner: OpenOwner, content: Content) -> list[ByteRange]:
    """Give what a file lost of its own bytes: the last block is rarely full."""
    lost = []
    for start, length in content.failing:
        low = owner.place.offset + start - content.run.start
        high = min(low + length, owner.size)
        if low < high:
            lost.append(ByteRange(low, high - low))
    return lost


def _list(ranges: Sequence[ByteRange]) -> str:
    return ", ".join(map(str, ranges))


def check(kind: Act, step: StepParameters, site: Site, done: Done) -> str:
    """See that what was done is so, asking device and filesystem once more; say what was seen.

    Raises `NotHealedError` if the device does not give back what was zeroed, and `ChangedError` if
    an owner that was to be changed still has what failed.
    """
    with contextlib.closing(site.device()) as device:
        failing = [bad for bad in device.failing([step.run]) if bad not in done.kept]
    if failing and not done.kept:
        raise NotHealedError(f"{_list(failing)} still cannot be read")
    fs = site.mounted
    if fs is None or kind is Act.ZERO:
        return "every sector can be read"
    _check_owners(fs, step)
    if not done.kept:
        return "every sector can be read"
    if places_of(owners_now(fs, step.run), step.run) & set(step.owners):
        raise ChangedError(f"not all owners of {step.run} were changed")
    return "no file but the one in quarantine has it"


def _check_owners(fs: LiveFilesystem, step: StepParameters) -> None:
    """See that the planned owners can be read where they could not, and that none has what failed.

    One that is gone by now has nothing to lose.
    """
    with OpenOwners(fs) as files:
        for place in step.owners:
            with contextlib.suppress(ChangedError):
                owner = files.open(place)
                length = min(step.length, owner.size - place.offset)
                with DirectMedia(owner.fd) as media:
                    if media.failing(place.offset, max(length, 0)):
                        raise NotHealedError(f"inode {place.inode} cannot be read there yet")
