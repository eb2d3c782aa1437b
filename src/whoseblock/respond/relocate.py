"""Move the files that share failed blocks to other blocks, and zero the failed sectors.

The replacement is written once.  A temporary file, the *keeper*, shares the failed blocks until the
end, so that the filesystem cannot allocate them again.  Once all owners have the replacement, the
keeper alone has the failed blocks, and they are written in place through it without a freeze.  Then
they are freed, or kept in quarantine.

Each owner is changed by exchanging its blocks with those of a copy of the replacement.  The kernel
does that only if the file has not changed since its mapping was read.  Where the kernel or the
filesystem cannot exchange ranges, a lease keeps other processes from opening the file.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from whoseblock.errors import MediaError
from whoseblock.fs.base import FileOwner
from whoseblock.fs.driver import ExchangeSample, MountedVolume
from whoseblock.media.direct import DirectMedia
from whoseblock.ranges import ByteRange
from whoseblock.respond import syscalls
from whoseblock.respond.copies.page_cache import cached_pieces
from whoseblock.respond.device import Content, Device
from whoseblock.respond.exceptions import ChangedError, NotHealedError, NotNowError, RefusedError
from whoseblock.respond.owners import (
    REFUSALS,
    FilePosition,
    OpenOwner,
    owners_now,
    positions_of,
    rows_without,
    whole_blocks,
)
from whoseblock.respond.privileges import PrivilegeJournal, has_privileges

__all__ = [
    "NO_SPACE",
    "ContentChange",
    "Keeper",
    "Moved",
    "ReplacementSource",
    "flush",
    "overwrite",
    "relocate",
]

#: How often the exchange is tried with a file that other processes keep writing to.
_ATTEMPTS: Final = 5
#: How long a file is tried again that other processes use, and the pause before each time.
_PATIENCE_S: Final = 3.0
_PAUSE_S: Final = 0.1
#: The reason why an owner is left that needs blocks which the filesystem does not have.
NO_SPACE: Final = "no space is left on the filesystem"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TEMPORARY: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


class Keeper:
    """A file that has a run of blocks, alone or with others.

    It is temporary, unless it gets a name (`whoseblock.respond.quarantine`).
    """

    def __init__(self, fs: MountedVolume, run: ByteRange, fd: int) -> None:
        self._fs = fs
        self.run = run
        self.fd = fd
        self.file = fs.file_of(fd)
        self.is_temporary = True

    @classmethod
    def temporary(cls, fs: MountedVolume, run: ByteRange) -> "Keeper":
        """Create a keeper without a name."""
        return cls(fs, run, _temporary(fs))

    def share(self, owner: OpenOwner) -> None:
        """Share the run of an owner; raise `ChangedError` if the owner no longer has it."""
        length = _length_in(owner, self.run)
        try:
            syscalls.clone_range(owner.fd, owner.position.offset, length, self.fd, 0)
        except OSError as error:
            if error.errno == errno.ETXTBSY:
                raise RefusedError(f"{owner.position}: it is swap space") from error
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise RefusedError("files of the filesystem cannot share blocks (reflink)") from error
        os.fsync(self.fd)
        if not self.has_run():
            raise ChangedError(f"{owner.position} no longer has {self.run}")

    def has_run(self) -> bool:
        """Return whether it has all of the run."""
        rows = owners_now(self._fs, self.run)
        others = rows_without(rows, self.file)
        return sum(row.length for row in rows if row not in others) == self.run.length

    def is_alone(self) -> bool:
        """Return whether it has all of the run, and no other file any of it."""
        rows = owners_now(self._fs, self.run)
        return self.has_run() and not rows_without(rows, self.file)

    def heal(self, device: Device, failing: Sequence[ByteRange]) -> None:
        """Write zeros over the sectors of the run that fail; raise `NotHealedError`.

        The keeper must be the only owner, so that the write is not redirected to other blocks.
        Whole blocks are written, their readable sectors with their own content.
        """
        if not self.is_alone():
            raise ChangedError(f"{self.run} has other owners, too")
        content = device.content(self.run, failing)
        offset = self._offset()
        errors: list[str] = []
        with DirectMedia(self.fd, writable=True, reopen=False) as media:
            todo = whole_blocks(content.failing, max(media.write_align, self._fs.block_size))
            while todo:
                start, length = todo.pop(0)
                at = start - self.run.start
                try:
                    media.pwrite(offset + at, content.data[at : at + length])
                    media.sync()
                except (MediaError, OSError) as error:
                    blocks = range(start, start + length, self._fs.block_size)
                    if len(blocks) > 1:
                        # The others may heal.
                        todo = [ByteRange(one, self._fs.block_size) for one in blocks] + todo
                    else:
                        errors.append(getattr(error, "strerror", None) or str(error))
        if not self.has_run():
            raise NotHealedError("the filesystem redirected the write to other blocks")
        if errors:
            raise NotHealedError(f"the device refuses the write: {errors[0]}")
        device.check_zero(content.failing)

    def _offset(self) -> int:
        """Return where in the file the run is."""
        for row in owners_now(self._fs, self.run):
            if isinstance(row, FileOwner) and row.file == self.file and row.file_offset is not None:
                return row.file_offset - (row.start - self.run.start)
        raise ChangedError(f"{self.run} is no longer in its file")

    def trim(self, failing: Sequence[ByteRange]) -> None:
        """Free the blocks before the first and after the last that fails, if any does."""
        blocks = whole_blocks(failing, self._fs.block_size)
        if blocks:
            offset, run = self._offset(), self.run
            self.run = ByteRange(blocks[0].start, blocks[-1].end - blocks[0].start)
            if before := self.run.start - run.start:
                syscalls.punch_hole(self.fd, offset, before)
            if after := run.end - self.run.end:
                syscalls.punch_hole(self.fd, offset + run.length - after, after)

    def free(self) -> None:
        """Free all blocks of the file at once: the kernel does so only later when it is closed."""
        size = max(self.run.length, os.fstat(self.fd).st_size)
        syscalls.punch_hole(self.fd, 0, size)

    def close(self) -> None:
        """Free the run, unless it is in quarantine by now."""
        if self.is_temporary:
            with contextlib.suppress(OSError):
                self.free()
        os.close(self.fd)


class ReplacementSource(NamedTuple):
    """A file, and the offset in it at which it holds the replacement."""

    fd: int
    offset: int


class ContentChange(NamedTuple):
    """The content of a run when the replacement was made, and the replacement; None is a hole.

    Unless ``over_cache``, an owner is not changed if the page cache has other data than that.
    """

    before: Content
    replacement: bytes | None
    over_cache: bool = False

    @property
    def only_lost(self) -> bool:
        """Whether the replacement differs from the content in failed sectors only."""
        data = self.replacement
        return data is not None and data == self.before.with_lost(
            lambda at, length: data[at : at + length]
        )


class Moved(NamedTuple):
    """The owners that have other blocks now, and those that keep theirs, each with the reason."""

    changed: list[FilePosition]
    left: dict[FilePosition, str]


def relocate(  # noqa: PLR0913 - what, where, whose, for what
    fs: MountedVolume,
    device: Device,
    keeper: Keeper,
    owners: Sequence[OpenOwner],
    change: ContentChange,
    privileges: PrivilegeJournal,
    source: ReplacementSource | None = None,
) -> Moved:
    """Map the replacement into every owner in the place of the keeper's run.

    An owner that another process uses is tried again for seconds; one that maps other blocks by now
    is passed over.  ``source`` is a file that an interrupted attempt gave the replacement.
    ``privileges`` records what the kernel takes from a file and this puts back.
    """
    moved = Moved([], {})
    deadline = time.monotonic() + _PATIENCE_S
    with contextlib.ExitStack() as stack:
        good = _SharedReplacement(fs, stack, change.replacement, source)

        def exchange(owner: OpenOwner) -> None:
            length = _length_in(owner, keeper.run)
            with _spare(fs, keeper.run.length) as spare:
                good.put_into(spare, length)
                os.fsync(spare)
                _Exchange(fs, device, owner, change, privileges).run(spare, length)

        todo = list(owners)
        while todo:
            busy = [owner for owner in todo if _moves(owner, exchange, moved)]
            todo = busy if time.monotonic() < deadline else []
            if todo:
                time.sleep(_PAUSE_S)
        syscalls.sync_filesystem(fs.fileno())
    return moved


def _moves(owner: OpenOwner, exchange: Callable[[OpenOwner], None], moved: Moved) -> bool:
    """Exchange the blocks of an owner, and note the outcome; return whether to try it again."""
    position = owner.position
    try:
        exchange(owner)
    except _GoneError:
        moved.left.pop(position, None)
    except NotNowError as error:
        moved.left[position] = f"{position}: {error}"
        return True
    except RefusedError as error:
        moved.left[position] = str(error)
    except OSError as error:
        if error.errno in _FULL:
            moved.left[position] = NO_SPACE
            return False
        if error.errno not in REFUSALS:
            raise
        moved.left[position] = f"{position}: the kernel refuses: {error.strerror}"
    else:
        moved.left.pop(position, None)
        moved.changed.append(position)
    return False


class _SharedReplacement:
    """The replacement, written once and shared by all owners."""

    def __init__(
        self,
        fs: MountedVolume,
        stack: contextlib.ExitStack,
        data: bytes | None,
        source: ReplacementSource | None,
    ) -> None:
        self._fs = fs
        self._stack = stack
        self._data = data
        self._given = source
        # By their lengths: a last block that is not full is shared only up to the end of a file.
        self._written: dict[int, ReplacementSource] = {}

    def put_into(self, spare: int, length: int) -> None:
        """Make the first ``length`` bytes of the replacement the content of a spare file."""
        if self._data is None:
            os.ftruncate(spare, length)
        elif self._given is None or not _shares(self._given, length, spare):
            if length not in self._written:
                fd = self._stack.enter_context(_spare(self._fs, len(self._data)))
                _write(fd, self._data[:length])
                self._written[length] = ReplacementSource(fd, 0)
            if not _shares(self._written[length], length, spare):
                _write(spare, self._data[:length])


def _shares(source: ReplacementSource, length: int, spare: int) -> bool:
    """Make a spare file share the data of a file; return False if it cannot."""
    try:
        syscalls.clone_range(source.fd, source.offset, length, spare, 0)
    except OSError as error:
        # The filesystem cannot share blocks, or not from the middle of one.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    return True


class _BusyError(NotNowError):
    """The file was changed since it was sampled, perhaps in another part."""


class _GoneError(ChangedError):
    """The file maps other blocks by now."""


class _Exchange:
    """Exchanges the run in one owner with the blocks of a spare file."""

    def __init__(
        self,
        fs: MountedVolume,
        device: Device,
        owner: OpenOwner,
        change: ContentChange,
        privileges: PrivilegeJournal,
    ) -> None:
        self._fs = fs
        self._device = device
        self._owner = owner
        self._change = change
        self._privileges = privileges
        self._block = change.before.run

    def run(self, spare: int, length: int) -> None:
        """Exchange the blocks, and retry while other processes write to the file."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._once(spare, length)
            except _BusyError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                return

    def _once(self, spare: int, length: int) -> None:
        file = self._owner.fd
        sample = self._fs.sample_file(file)
        # A change of the mode or of the capabilities after the sample fails the exchange.
        if sample is not None and not has_privileges(file):
            self.check()
            if self._is_exchanged(spare, length, sample):
                return
        self.prepare_privileges(length)
        # To put the privileges back is safe only while no other process can change the file.
        with syscalls.write_lease(file), self.keeping_privileges(length):
            self.check()
            syscalls.check_lease(file)
            if sample is None or not self._is_exchanged(spare, length, sample):
                self._clone_over(spare, length)

    @contextlib.contextmanager
    def keeping_privileges(self, length: int) -> Iterator[None]:
        """Put privileges back that the kernel takes from the owner in the block, if it has any."""
        if not has_privileges(self._owner.fd):
            yield
            return
        with self._privileges.keeping(self._owner, self._new_data(length)):
            yield

    def _new_data(self, length: int) -> bytes:
        data = self._change.replacement or bytes(self._block.length)
        return data[:length]

    def prepare_privileges(self, length: int) -> None:
        """Prepare `keeping_privileges` before the file is leased, as it may take long."""
        self._privileges.prepare(self._owner, self._new_data(length))

    def _is_exchanged(self, spare: int, length: int, sample: ExchangeSample) -> bool:
        """Exchange the blocks; return False if the filesystem does not support it."""
        file, start = self._owner.fd, self._owner.position.offset
        try:
            return self._fs.exchange_range(file, start, length, spare, sample)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise _BusyError("another process is writing to it") from error
            raise

    def _clone_over(self, spare: int, length: int) -> None:
        file, start = self._owner.fd, self._owner.position.offset
        if self._change.replacement is None:
            syscalls.punch_hole(file, start, self._block.length)
        else:
            syscalls.clone_range(spare, 0, length, file, start)

    def check(self) -> None:
        """Raise `ChangedError` unless the owner still has the run with the same content.

        Earlier writes to the file may still be in memory.  Once they are flushed, they show as
        another mapping or as other content.
        """
        flush(self._owner.fd)
        position = self._owner.position
        # Only this file's mapping is read: a run may have thousands of owners.
        if not self._fs.still_maps(self._owner.fd, position.offset, self._block):
            raise _GoneError(f"{position} now maps other blocks at {position.offset}")
        if self._device.content(self._block) != self._change.before:
            raise ChangedError(f"{self._block} now holds other data")
        if not self._change.over_cache:
            self._check_cache()

    def _check_cache(self) -> None:
        # A write that could not be flushed is in memory alone.
        start = self._owner.position.offset
        good = self._change.replacement or bytes(self._block.length)
        for at, data in cached_pieces(
            self._owner.fd, start, self._block.length, self._fs.block_size
        ):
            if data != good[at - start : at - start + len(data)]:
                raise ChangedError(f"{self._owner.position} has newer data in memory")


def flush(file: int) -> None:
    """Flush what other processes wrote to a file, so that the device holds the newest data."""
    try:
        os.fsync(file)
    except OSError as error:
        # An earlier write of another process failed; its own descriptor gets the error, too.
        if error.errno not in (errno.EIO, errno.ENOSPC):
            raise


def overwrite(
    fs: MountedVolume,
    device: Device,
    owner: OpenOwner,
    change: ContentChange,
    privileges: PrivilegeJournal,
) -> bool:
    """Rewrite the failed sectors of a run in place; return False if that does not heal them.

    Raises `NotNowError` if another process has the file open, and `ChangedError` if the file maps
    other blocks by now, or shares these.
    """
    run, failing, _ = change.before
    if owner.position.offset + run.length > owner.size:
        # Whole blocks are written, which would extend the file.
        return False
    data = change.replacement or bytes(run.length)
    exchange = _Exchange(fs, device, owner, change, privileges)
    exchange.prepare_privileges(run.length)
    with syscalls.write_lease(owner.fd), exchange.keeping_privileges(run.length):
        exchange.check()
        if positions_of(owners_now(fs, run), run) != {owner.position}:
            raise ChangedError(f"{run} has other owners, too")
        syscalls.check_lease(owner.fd)
        try:
            _write_through(owner.fd, owner.position.offset, change.before, data)
        except (MediaError, OSError):
            return False
        if positions_of(owners_now(fs, run), run) != {owner.position}:
            raise ChangedError("the filesystem redirected the write to other blocks")
    return _reads_as(device, run, failing, data)


def _write_through(file: int, offset: int, content: Content, data: bytes) -> None:
    """Write the failed sectors of a run through the file that has it at ``offset``.

    For files that have ever shared blocks, the kernel takes only whole blocks with O_DIRECT; good
    sectors of a block are then rewritten with their own content.
    """
    run = content.run
    # Opening the file again would break the lease.
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


def _temporary(fs: MountedVolume) -> int:
    """Create a file without a name; it is removed when its descriptor is closed."""
    root = fs.root_fd
    if root is None:
        raise RefusedError("the root of the filesystem cannot be reached")
    try:
        # Ranges are exchanged only within one mount: that on which the owners are opened.
        return os.open(".", _TEMPORARY, 0o600, dir_fd=root)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise NotNowError(f"cannot create a temporary file there: {error.strerror}") from error


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    at = 0
    while at < len(view):
        at += os.pwrite(file, view[at:], at)
    os.fsync(file)
    # The new blocks may be on bad sectors, too.
    with DirectMedia(file, reopen=False) as media:
        if media.pread(0, len(data)) != data:
            raise NotHealedError("the new blocks do not read back as written")


@contextlib.contextmanager
def _spare(fs: MountedVolume, length: int) -> Iterator[int]:
    """Open a temporary file of up to ``length`` bytes; free its blocks when the block ends."""
    file = _temporary(fs)
    try:
        yield file
    finally:
        _free_and_close(file, length)


def _free_and_close(file: int, length: int) -> None:
    """Free the blocks that a spare file got in exchange, and close it."""
    with contextlib.suppress(OSError):
        syscalls.punch_hole(file, 0, length)
    os.close(file)


def _length_in(owner: OpenOwner, run: ByteRange) -> int:
    """Return how many bytes of a run are before the end of the file."""
    length = min(run.length, owner.size - owner.position.offset)
    if length <= 0:
        raise RefusedError(f"{owner.position} has {run} past its end")
    return length
