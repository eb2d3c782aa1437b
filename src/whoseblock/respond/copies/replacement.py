"""Decide what each owner of failed blocks gets: from the page cache, from a copy, or zeros.

The page cache of a file comes first: it has what the device lost, or newer data that could not be
written.  Each owner gets only data that counts for it (`whoseblock.respond.copies.authority`).
An owner without such data is left as it is, with the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from whoseblock.encode import encode_json
from whoseblock.errors import MediaError, WhoseblockError
from whoseblock.fs.driver import MountedVolume
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange, merge, subtract
from whoseblock.respond.copies.authority import Standing, standing_of, user_of
from whoseblock.respond.copies.locations import (
    Copies,
    CopyError,
    CopyFinder,
    FetchedCopies,
    Preference,
)
from whoseblock.respond.copies.page_cache import cached_pieces
from whoseblock.respond.copies.verification import VerifiedCopy, time_of, verify_copy
from whoseblock.respond.device import Content
from whoseblock.respond.owners import FilePosition, OpenOwner

__all__ = ["CopySource", "Replacement", "Replacements", "find_replacements"]


class CopySource(NamedTuple):
    """The source of replaced data, for the outcome and the journal.

    ``modified`` is the copy's modification time, ``compared`` how many bytes of the damaged file it
    equals, ``whole`` whether the whole file was compared.  The page cache has none of these.
    """

    name: str
    modified: str = ""
    compared: int = 0
    whole: bool = False

    def __str__(self) -> str:
        """Describe the source in words."""
        if not self.modified:
            return self.name
        where = "in the whole file" if self.whole else "around the loss"
        return f"{self.name}, modified at {self.modified}, equal in {self.compared} bytes {where}"


class Replacement(NamedTuple):
    """The data for a run of blocks, and the owners that get it; None is a hole.

    ``certain`` data is what the page cache of each of these owners has.
    """

    data: bytes | None
    owners: tuple[OpenOwner, ...]
    certain: bool


class Replacements(NamedTuple):
    """The replacements for a run, the sources of their data, and the reasons for owners left."""

    found: tuple[Replacement, ...]
    sources: tuple[CopySource, ...]
    left: Mapping[FilePosition, str]


@dataclass
class _Known:
    """Data of an owner in a run: ``data`` holds it in the ranges ``parts`` of the run."""

    name: str
    owner: OpenOwner
    standing: Standing
    lost: list[ByteRange]
    data: bytes
    parts: list[ByteRange] = field(default_factory=list)
    #: The page cache differs from what is readable: it has newer data than the device.
    newer: bool = False

    def missing(self) -> list[ByteRange]:
        return _without(self.lost, self.parts)


class _Memory(NamedTuple):
    # The run with what the page cache has, where that is from, and what of the loss is missing.
    data: bytes
    sources: list[CopySource]
    missing: list[ByteRange]


class _Copy(NamedTuple):
    # The lost bytes by a verified copy: ``data`` is the run with them.
    source: CopySource
    data: bytes


def find_replacements(  # noqa: PLR0913 - what is lost, whose it is, and what may be used
    fs: MountedVolume,
    content: Content,
    owners: Sequence[OpenOwner],
    others: Sequence[OpenOwner],
    copies: Copies | None,
    digest: str,
    fetched: FetchedCopies,
    *,
    every_owner: bool,
) -> Replacements:
    """Find the data that each owner of a run gets.

    ``others`` are owners that an interrupted attempt has changed; ``digest`` is the SHA-256 of what
    it gave them, "" if unknown.  Copies of their files may be the only ones.  Without ``copies``,
    zeros replace what the page cache does not have.  The owners must be flushed.  ``fetched`` has
    the results of the command, and gets new ones.  ``every_owner`` tells that no other file shares
    the run.
    """
    known = [_cached(owner, content, fs.block_size) for owner in owners]
    witnesses = {
        (one.standing, one.data, tuple(one.parts)): one
        for one in [*known, *_given_before(others, content, digest)]
        if one.parts and not one.newer
    }
    # Thousands of files may have the same data in memory.
    chooser = _Chooser(content, copies, list(witnesses.values()), known)
    if copies is not None and copies.named and any(one.lost for one in known):
        chooser.verify_copies(fs, [*owners, *others], fetched, every_owner=every_owner)
    return chooser.choose()


class _Chooser:
    """Chooses the data of each owner."""

    def __init__(
        self,
        content: Content,
        copies: Copies | None,
        witnesses: Sequence[_Known],
        known: Sequence[_Known],
    ) -> None:
        self._content = content
        self._copies = copies
        self._prefer = copies.prefer if copies is not None else None
        self._witnesses = witnesses
        self._known = known
        self._verified: dict[FilePosition, list[_Copy]] = {one.owner.position: [] for one in known}
        self._reasons: dict[FilePosition, list[str]] = {one.owner.position: [] for one in known}
        self._sources: dict[CopySource, None] = {}
        # Copies of thousands of owners have the same content, which is kept once.
        self._contents: dict[bytes, bytes] = {}

    # ------------------------------------------------------------------ copies

    def verify_copies(
        self,
        fs: MountedVolume,
        files: Sequence[OpenOwner],
        fetched: FetchedCopies,
        *,
        every_owner: bool,
    ) -> None:
        """Verify the copies of all files, and note for which owners each one counts."""
        copies = self._copies or Copies()
        finding = encode_json(fs.owners(*self._content.run)) if copies.command else b""
        names = [fs.paths(file.position.file.inode, file.position.file.subvolume) for file in files]
        first = next((path for found in names for path in found.paths), "")
        finder = CopyFinder(copies, first, finding, fetched)
        single = every_owner and len({standing_of(file.fd).uid for file in files}) == 1
        for file, found in zip(files, names, strict=True):
            lost = _lost_of(file, self._content)
            if not lost:
                continue
            try:
                for candidate in finder.candidates(found.paths):
                    try:
                        with verify_copy(file.fd, candidate, lost, copies) as verified:
                            named = candidate.folder is None
                            self._note(file, verified, named=named, single=single)
                    except CopyError as error:
                        self._refuse(file, str(error))
            except CopyError as error:
                self._refuse(file, str(error))

    def _refuse(self, file: OpenOwner, why: str) -> None:
        """Record why a copy of a file is not used, if the file still needs one."""
        if file.position in self._reasons:
            self._reasons[file.position].append(why)

    def _note(self, file: OpenOwner, verified: VerifiedCopy, *, named: bool, single: bool) -> None:
        offset = file.position.offset
        data = self._content.with_lost(lambda at, length: verified.read(offset + at, length))
        data = self._contents.setdefault(data, data)
        status, standing = verified.status(), standing_of(file.fd)
        user = user_of(status)
        copies = self._copies or Copies()
        source = CopySource(
            f"the copy {verified.candidate}",
            time_of(status.st_mtime_ns),
            verified.compared,
            copies.whole,
        )
        for one in self._known:
            position = one.owner.position
            if named:
                why = one.standing.why_not_given(user, single_user=single)
            else:
                why = one.standing.why_not_owner(user)
            other = position.file != file.position.file
            if not why and other and not standing.counts_for(one.standing):
                # Its bytes are those of the file that it was verified with, even if root owns it.
                why = (
                    f"counts only for files of user {standing.uid} with the same rights, not for"
                    f" this file of user {one.standing.uid}"
                )
            if why:
                self._reasons[position].append(f"{source.name} {why}")
            else:
                self._verified[position].append(_Copy(source, data))

    # ------------------------------------------------------------------ choosing

    def choose(self) -> Replacements:
        """Return the replacements; those that are not certain come first."""
        chosen: dict[bytes, list[_Known]] = {}
        certain: dict[bytes, list[_Known]] = {}
        copied: dict[FilePosition, bytes] = {}
        left: dict[FilePosition, str] = {}
        for one in self._known:
            try:
                data = self._data_of(one, certain, copied)
            except CopyError as error:
                left[one.owner.position] = str(error)
                continue
            if data is not None:
                chosen.setdefault(data, []).append(one)
        self._drop_contradictions(chosen, copied, left)
        for data in certain.keys() & chosen.keys():
            chosen[data] += certain.pop(data)
        found = [self._replacement(*item, certain=False) for item in chosen.items()]
        found += [self._replacement(*item, certain=True) for item in certain.items()]
        return Replacements(tuple(found), tuple(self._sources), left)

    def _replacement(self, data: bytes, known: Sequence[_Known], *, certain: bool) -> Replacement:
        # A hole replaces only a run of which nothing is readable.
        hole = self._copies is None and not any(data)
        return Replacement(None if hole else data, tuple(one.owner for one in known), certain)

    def _data_of(
        self,
        one: _Known,
        certain: dict[bytes, list[_Known]],
        copied: dict[FilePosition, bytes],
    ) -> bytes | None:
        """Return the data for an owner, or add it to ``certain``; raise `CopyError` for none."""
        copy = self._copy_for(one)
        if copy is not None and self._prefer is Preference.COPY:
            return self._use(one, copy, copied)
        memory = self._remembered(one)
        if copy is not None and _differ(memory.data, copy.data, _without(one.lost, memory.missing)):
            if self._prefer is None:
                raise CopyError(
                    f"the page cache and {copy.source.name} differ: pass --prefer cache or --prefer"
                    " copy"
                )
            copy = None
        if memory.missing and self._copies is not None:
            return self._filled(one, memory, copy, copied)
        self._sources.update(dict.fromkeys(memory.sources))
        if one.lost and not one.missing():
            certain.setdefault(memory.data, []).append(one)
            return None
        return memory.data

    def _filled(
        self,
        one: _Known,
        memory: _Memory,
        copy: _Copy | None,
        copied: dict[FilePosition, bytes],
    ) -> bytes:
        """Return what memory has, with the rest from a copy; raise `CopyError` without one."""
        position = one.owner.position
        if one.newer:
            raise CopyError("the page cache has newer data, but not of all that was lost")
        if copy is None:
            reasons = dict.fromkeys(self._reasons[position])
            raise CopyError("; ".join(reasons) or "there is no copy")
        if not memory.sources:
            return self._use(one, copy, copied)
        self._sources.update(dict.fromkeys(memory.sources))
        data = bytearray(memory.data)
        for start, length in memory.missing:
            data[start : start + length] = copy.data[start : start + length]
        return self._use(one, copy._replace(data=bytes(data)), copied)

    def _use(self, one: _Known, copy: _Copy, copied: dict[FilePosition, bytes]) -> bytes:
        self._sources[copy.source] = None
        copied[one.owner.position] = copy.data
        return copy.data

    def _copy_for(self, one: _Known) -> _Copy | None:
        """Return the copy for an owner, None without one; raise `CopyError` if they differ."""
        verified = self._verified[one.owner.position]
        if not verified:
            return None
        first = verified[0]
        for other in verified[1:]:
            if _differ(first.data, other.data, one.lost):
                raise CopyError(f"{first.source.name} and {other.source.name} differ")
        return first

    def _remembered(self, one: _Known) -> _Memory:
        """Return what memory has of the run of an owner.

        What other files have counts only if all of them agree.
        """
        missing = one.missing()
        own = one.newer or bool(_common(one.lost, one.parts))
        memory = _Memory(one.data, [CopySource(one.name)] if own else [], missing)
        if one.newer or not missing:
            return memory
        witnesses = [
            other
            for other in self._witnesses
            if other.standing.counts_for(one.standing) and _common(missing, other.parts)
        ]
        if not witnesses:
            return memory
        data, sources = bytearray(one.data), list(memory.sources)
        for other in witnesses:
            seen = _common(missing, other.parts)
            for start, length in seen:
                data[start : start + length] = other.data[start : start + length]
            sources += [CopySource(other.name)] if seen else []
            missing = _without(missing, seen)
        if any(
            _differ(data, other.data, _common(memory.missing, other.parts)) for other in witnesses
        ):
            return memory
        return _Memory(bytes(data), sources, missing)

    def _drop_contradictions(
        self,
        chosen: dict[bytes, list[_Known]],
        copied: Mapping[FilePosition, bytes],
        left: dict[FilePosition, str],
    ) -> None:
        """Leave owners whose copies differ from those of others: the block was the same for all.

        Files of root get what root's copy has, so that no user can prevent that.
        """
        groups = set(copied.values()) & set(chosen)
        if len(groups) < 2:  # noqa: PLR2004 - two that differ
            return
        roots = {data for data in groups if any(one.standing.uid == 0 for one in chosen[data])}
        kept = roots if len(roots) == 1 else set()
        for data in groups - kept:
            for one in chosen.pop(data):
                left[one.owner.position] = (
                    "the copies of what the files share differ from one another"
                )


# ---------------------------------------------------------------------- memory


def _cached(owner: OpenOwner, content: Content, block: int) -> _Known:
    """Read what the page cache has of an owner in a run."""
    offset, length = owner.position.offset, content.run.length
    known = _Known(
        f"the page cache of {owner.position}",
        owner,
        standing_of(owner.fd),
        _lost_in_run(owner, content),
        content.data,
    )
    failing = [ByteRange(bad.start - content.run.start, bad.length) for bad in content.failing]
    data = bytearray()
    for at, piece in cached_pieces(owner.fd, offset, length, block):
        # Most owners have nothing there, and share the content of the run.
        data = data or bytearray(content.data)
        part = ByteRange(at - offset, len(piece))
        data[part.start : part.end] = piece
        known.parts.append(part)
    if data:
        known.parts = merge(known.parts)
        known.data = bytes(data)
        known.newer = _differ(known.data, content.data, _without(known.parts, failing))
    return known


def _given_before(others: Sequence[OpenOwner], content: Content, digest: str) -> Iterator[_Known]:
    """Yield the data that owners still have from an interrupted attempt."""
    for owner in others:
        if not digest or owner.size - owner.position.offset < content.run.length:
            continue
        try:
            with DirectMedia(owner.fd) as media:
                data = media.pread(owner.position.offset, content.run.length)
        except (MediaError, WhoseblockError):
            continue
        if sha256(data).hexdigest() == digest:
            name = f"what {owner.position} was given before"
            whole = [ByteRange(0, content.run.length)]
            yield _Known(name, owner, standing_of(owner.fd), [], data, whole)


# ---------------------------------------------------------------------- ranges


def _lost_of(owner: OpenOwner, content: Content) -> list[ByteRange]:
    """Return the failed ranges in bytes of the file, up to its end."""
    offset = owner.position.offset
    return [ByteRange(offset + start, length) for start, length in _lost_in_run(owner, content)]


def _lost_in_run(owner: OpenOwner, content: Content) -> list[ByteRange]:
    """Return the failed ranges in bytes of the run, up to the end of the file."""
    end = owner.size - owner.position.offset
    edges = (
        (bad.start - content.run.start, min(bad.end - content.run.start, end))
        for bad in content.failing
    )
    return [ByteRange(low, high - low) for low, high in edges if low < high]


def _without(ranges: Sequence[ByteRange], cuts: Sequence[ByteRange]) -> list[ByteRange]:
    left = list(ranges)
    for cut in cuts:
        left = subtract(left, cut)
    return left


def _common(ranges: Sequence[ByteRange], others: Sequence[ByteRange]) -> list[ByteRange]:
    return _without(ranges, _without(ranges, others))


def _differ(one: bytes | bytearray, other: bytes | bytearray, parts: Sequence[ByteRange]) -> bool:
    return any(
        one[start : start + length] != other[start : start + length] for start, length in parts
    )
