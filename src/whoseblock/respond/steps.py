"""The parameters of a step, its records in the journal, and its result."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

import msgspec

from whoseblock.ranges import ByteRange
from whoseblock.respond.copies.locations import Copies
from whoseblock.respond.copies.replacement import CopySource
from whoseblock.respond.exceptions import OwnerOutcome, RefusedError
from whoseblock.respond.freezing import FreezeJournal
from whoseblock.respond.owners import FilePosition, position_of
from whoseblock.respond.planning import CHANGES, Act, PlanOptions, Proposal
from whoseblock.respond.privileges import PrivilegeJournal
from whoseblock.respond.quarantine import in_quarantine

__all__ = ["ActResult", "ReplacementDigest", "StepParameters", "StepRecords", "parameters_of"]


class StepParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a step in the journal: all that it takes to carry it out.

    ``layer`` and ``identity`` name the filesystem; a step that changes something has both.
    ``start`` and ``length`` are the run of blocks in bytes of that layer.  ``owners`` are the
    positions in files that may be changed.  ``write_read_only`` allows to write to the device of a
    filesystem that is mounted read-only.
    """

    layer: str
    identity: str
    start: int
    length: int
    owners: tuple[FilePosition, ...] = ()
    copies: Copies | None = None
    quarantine: bool = False
    write_read_only: bool = False
    says: str = ""

    @property
    def run(self) -> ByteRange:
        """The run of blocks."""
        return ByteRange(self.start, self.length)


def parameters_of(proposal: Proposal, options: PlanOptions) -> StepParameters:
    """Return the parameters of the step that a proposal calls for."""
    fs = proposal.site.filesystem
    rows = (row for row in proposal.owners if not in_quarantine(row, fs))
    positions = tuple(filter(None, map(position_of, rows)))
    return StepParameters(
        layer=proposal.site.layer.name,
        identity=proposal.site.identity,
        start=proposal.run.start,
        length=proposal.run.length,
        owners=positions,
        copies=options.copies if proposal.act is Act.RESTORE else None,
        quarantine=options.quarantine and proposal.act in CHANGES,
        write_read_only=options.write_read_only and proposal.act is Act.ZERO,
        says=proposal.says,
    )


class ActResult(NamedTuple):
    """The result of an act, in words and in sectors.

    ``zeroed`` are the sectors that were zeroed.  ``kept`` are those that a quarantine keeps out of
    use, and that may still fail.  ``sources`` are where the data of the owners is from, ``owners``
    their outcomes.
    """

    says: str
    zeroed: Sequence[ByteRange] = ()
    kept: Sequence[ByteRange] = ()
    sources: Sequence[CopySource] = ()
    owners: tuple[OwnerOutcome, ...] = ()


class ReplacementDigest:
    """The SHA-256 of the data that owners are given, as the journal has it.

    An interrupted attempt may have changed some of the owners.  The others must get the same data,
    and what the first ones hold now may have been written since.
    """

    def __init__(self, digest: str, note: Callable[[str, Sequence[CopySource]], None]) -> None:
        self.digest = digest
        self._note = note

    def check(self, data: bytes, sources: Sequence[CopySource], *, strict: bool) -> None:
        """Journal the digest of a replacement and its sources before any owner is changed.

        Raises `RefusedError` if ``strict`` and an earlier attempt used other data.
        """
        digest = sha256(data).hexdigest()
        if strict and self.digest not in ("", digest):
            raise RefusedError("the good copy differs from the one that other owners were given")
        if not self.digest:
            self._note(digest, sources)
        self.digest = digest


class StepRecords(NamedTuple):
    """The records that an interrupted attempt left in the journal, and that this one continues."""

    replacement: ReplacementDigest
    privileges: PrivilegeJournal
    freeze: FreezeJournal
