"""Giving the files that share failed blocks other blocks, all together, and healing the old ones.

The replacement is written once.  A file of our own, the *keeper*, shares the failed blocks until
the end: first it keeps anybody from being given them anew, and once all owners have been given the
replacement it is alone with them.  Then they can be written in place through it, without freezing
anything: nobody else has them, and nobody can come to have them.  Only after that are they given
back, or kept in quarantine for ever.

Each owner is changed by exchanging its blocks with those of a copy of the replacement, which the
kernel does only if nobody changed the file since its mapping was looked at.  Where the kernel or
the filesystem cannot, a lease keeps others away from a file that nobody else has open.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from whoseblock.errors import MediaError
from whoseblock.fs.live import LiveFilesystem
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange
from whoseblock.respond import calls
from whoseblock.respond.device import Content, Device
from whoseblock.respond.owners import OpenOwner, has_still, owners_now, places_of, whole_blocks
from whoseblock.respond.reasons import ChangedError, NotHealedError, NotNowError, RefusedError

__all__ = ["Change", "Keeper", "Source", "overwrite", "relocate"]

#: How often a file is tried that others write to all the time.
_ATTEMPTS: Final = 5
_TEMPORARY: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


class Keeper:
    """A file of ours that shares a run of blocks: byte 0 of it is the run's first.

    Temporary, and gone when it is closed, unless it has a name (`whoseblock.respond.quarantine`).
    """

    def __init__(self, fs: LiveFilesystem, run: ByteRange, fd: int) -> None:
        self._fs = fs
        self.run = run
        self.fd = fd
        status = os.fstat(fd)
        self.inode = status.st_ino

    @classmethod
    def temporary(cls, fs: LiveFilesystem, run: ByteRange) -> "Keeper":
        """Make one without a name."""
        return cls(fs, run, _temporary(fs))

    def share(self, owner: OpenOwner) -> None:
        """Share the run that an owner has; raises `ChangedError` if it has it no more."""
        length = _length_in(owner, self.run)
        try:
            calls.clone_range(owner.fd, owner.place.offset, length, self.fd, 0)
        except OSError as error:
            if error.errno == errno.ETXTBSY:
                raise RefusedError(f"inode {owner.place.inode}: it is swap space") from error
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise RefusedError("the filesystem was made to share no blocks (reflink=0)") from error
        os.fsync(self.fd)
        if not self.has_run():
            raise ChangedError(f"inode {owner.place.inode} has no longer {self.run}")

    def has_run(self) -> bool:
        """Whether it has all of the run."""
        rows = owners_now(self._fs, self.run)
        return any(getattr(row, "inode", None) == self.inode for row in rows) and (
            sum(row.length for row in rows if getattr(row, "inode", None) == self.inode)
            == self.run.length
        )

    def is_alone(self) -> bool:
        """Whether it has all of the run, and nobody else any of it."""
        rows = owners_now(self._fs, self.run)
        return self.has_run() and all(getattr(row, "inode", None) == self.inode for row in rows)

    def heal(self, device: Device) -> None:
        """Write zeros over what fails of the run; raises `NotHealedError`.

        Only while it is alone with the run: the write then goes to the very blocks.
        """
        if not self.is_alone():
            raise ChangedError(f"others have {self.run}, too")
        content = device.content(self.run)
        try:
            _write_through(self.fd, 0, content, content.data)
        except (MediaError, OSError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise NotHealedError(f"the device does not take the write: {why}") from error
        if not self.has_run():
            raise NotHealedError("what was written went elsewhere")
        device.check_zero(content.failing)

    def close(self) -> None:
        """Give the run back."""
        with contextlib.suppress(OSError):
            calls.punch_hole(self.fd, 0, max(self.run.length, os.fstat(self.fd).st_size))
        os.close(self.fd)


class Source(NamedTuple):
    """A place in a file that holds a replacement."""

    fd: int
    offset: int


class Change(NamedTuple):
    """What a run of blocks held when the replacement was made, and that; None is a hole."""

    before: Content
    replacement: bytes | None


def relocate(  # noqa: PLR0913 - what, where, whose, for what
    fs: LiveFilesystem,
    device: Device,
    keeper: Keeper,
    owners: Sequence[OpenOwner],
    change: Change,
    source: Source | None = None,
) -> None:
    """Give every owner of the keeper's run the replacement in its place.

    ``source`` is a file that has it already, from an attempt that was broken off.  Raises
    `ChangedError` if an owner has something else there by now, and `NotNowError` if others do not
    let go of a file; those before it have been changed then.  The times and rights of the files
    stay.
    """
    with contextlib.ExitStack() as stack:
        good = _Replacement(fs, stack, change.replacement, source)
        for owner in owners:
            length = _length_in(owner, keeper.run)
            with _spare(fs, keeper.run.length) as spare:
                good.put_into(spare, length)
                os.fsync(spare)
                _Exchange(device, owner, change).run(spare, length)
        calls.sync_filesystem(fs.view.fd)


class _Replacement:
    """What the owners are given: written once, and shared by all."""

    def __init__(
        self,
        fs: LiveFilesystem,
        stack: contextlib.ExitStack,
        data: bytes | None,
        source: Source | None,
    ) -> None:
        self._fs = fs
        self._stack = stack
        self._data = data
        self._given = source
        # By their lengths: a last block that is not full is shared only up to the end of a file.
        self._written: dict[int, Source] = {}

    def put_into(self, spare: int, length: int) -> None:
        """Give a spare file the first ``length`` bytes, which then are all it has."""
        if self._data is None:
            os.ftruncate(spare, length)
        elif self._given is None or not _shares(self._given, length, spare):
            if length not in self._written:
                fd = self._stack.enter_context(_spare(self._fs, len(self._data)))
                _write(fd, self._data[:length])
                self._written[length] = Source(fd, 0)
            if not _shares(self._written[length], length, spare):
                _write(spare, self._data[:length])


def _shares(source: Source, length: int, spare: int) -> bool:
    """Let a spare file share what a file has; False if that cannot be."""
    try:
        calls.clone_range(source.fd, source.offset, length, spare, 0)
    except OSError as error:
        # No sharing here, or not from the middle of a block.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    return True


class _Exchange:
    """Gives one owner the blocks of a spare file in the place of the run."""

    def __init__(self, device: Device, owner: OpenOwner, change: Change) -> None:
        self._device = device
        self._owner = owner
        self._change = change
        self._block = change.before.run

    def run(self, spare: int, length: int) -> None:
        """Do it, however many others write to other parts of the file."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                # An error leaves the times and rights as others made them.
                with calls.keeping_attributes(self._owner.fd):
                    self._once(spare, length)
            except calls.BusyError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                return

    def _once(self, spare: int, length: int) -> None:
        file, start = self._owner.fd, self._owner.place.offset
        noted = calls.sample(file)
        if noted is not None:
            self.check()
            if calls.commit_range(file, start, length, spare, noted):
                return
        with calls.write_lease(file):
            self.check()
            calls.check_lease(file)
            if self._change.replacement is None:
                calls.punch_hole(file, start, self._block.length)
            else:
                calls.clone_range(spare, 0, length, file, start)

    def check(self) -> None:
        """See that the owner has the run still, and that it holds what it did.

        What others wrote before the kernel took note of the file may still be in memory: it is
        written out first, and then either the mapping or the content is another.
        """
        _flush(self._owner.fd)
        place = self._owner.place
        if not has_still(self._owner, self._block):
            raise ChangedError(f"inode {place.inode} has something else at {place.offset} by now")
        if self._device.content(self._block) != self._change.before:
            raise ChangedError(f"{self._block} holds something else by now")


def _flush(file: int) -> None:
    """Have what others wrote to a file on the device, where it then is the newer data."""
    try:
        os.fsync(file)
    except OSError as error:
        # Earlier writes failed, of which whoever wrote is told by this, too.
        if error.errno not in (errno.EIO, errno.ENOSPC):
            raise


def overwrite(fs: LiveFilesystem, device: Device, owner: OpenOwner, change: Change) -> bool:
    """Write what fails of a run anew in its place; False if the device does not heal by that.

    Nobody else may have the file open: raises `NotNowError`; raises `ChangedError` if the file has
    something else there by now, or shares it.
    """
    run, failing, _ = change.before
    if owner.place.offset + run.length > owner.size:
        # Whole blocks are written, and that would make the file longer.
        return False
    data = change.replacement or bytes(run.length)
    with calls.write_lease(owner.fd), calls.keeping_attributes(owner.fd):
        _Exchange(device, owner, change).check()
        if places_of(owners_now(fs, run), run) != {owner.place}:
            raise ChangedError(f"others have {run}, too")
        calls.check_lease(owner.fd)
        try:
            _write_through(owner.fd, owner.place.offset, change.before, data)
        except (MediaError, OSError):
            return False
        if places_of(owners_now(fs, run), run) != {owner.place}:
            raise ChangedError("what was written went elsewhere")
    return _reads_as(device, run, failing, data)


def _write_through(file: int, offset: int, content: Content, data: bytes) -> None:
    """Write what fails of a run through the file that has it at ``offset``.

    Of files that have ever shared blocks the kernel writes only whole blocks past the cache, so
    that good neighbours within a block are written, too, as they were.
    """
    run = content.run
    # Not opened anew: a lease would keep even us from it.
    with DirectMedia(file, writable=True, reopen=False) as media:
        for start, length in whole_blocks(content.failing, media.write_align):
            at = start - run.start
            media.pwrite(offset + at, data[at : at + length])
        media.sync()


def _reads_as(device: Device, run: ByteRange, sectors: Sequence[ByteRange], data: bytes) -> bool:
    try:
        for start, length in sectors:
            at = start - run.start
            if device.read(start, length) != data[at : at + length]:
                return False
        device.check_list(sectors)
    except (MediaError, NotHealedError):
        return False
    return True


# ---------------------------------------------------------------------- spare files


def _temporary(fs: LiveFilesystem) -> int:
    """Make a file without a name; it ends with its descriptor."""
    if fs.view.top is None:
        raise RefusedError("the root of the filesystem cannot be reached")
    try:
        # On the mount that the owners are opened on: ranges are exchanged only within one.
        return os.open(".", _TEMPORARY, 0o600, dir_fd=fs.view.top)
    except OSError as error:
        raise NotNowError(f"no file can be made there: {error.strerror}") from error


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    at = 0
    while at < len(view):
        at += os.pwrite(file, view[at:], at)
    os.fsync(file)
    # A medium that fails in one place may fail in another, too: nobody is given what is not there.
    with DirectMedia(file, reopen=False) as media:
        if media.pread(0, len(data)) != data:
            raise NotHealedError("what was written elsewhere does not read as it was written")


@contextlib.contextmanager
def _spare(fs: LiveFilesystem, length: int) -> Iterator[int]:
    """Make a temporary file of up to ``length`` bytes, which is given back in the end."""
    file = _temporary(fs)
    try:
        yield file
    finally:
        _give_back(file, length)


def _give_back(file: int, length: int) -> None:
    """Let go of a spare file and of what it was given in exchange, at once."""
    with contextlib.suppress(OSError):
        calls.punch_hole(file, 0, length)
    os.close(file)


def _length_in(owner: OpenOwner, run: ByteRange) -> int:
    """Give how much of a run lies before the end of a file: the last block is rarely full."""
    length = min(run.length, owner.size - owner.place.offset)
    if length <= 0:
        raise RefusedError(f"inode {owner.place.inode} has {run} past its end")
    return length
