"""Zero failed sectors of free and unwritten blocks, so that the device heals.

Whether the blocks are still unowned is checked when they cannot be allocated any more.  Free blocks
of a mounted filesystem are allocated for an unlinked file.  Where that is not possible, the
filesystem is frozen: for blocks that a file has and never wrote, and where the allocator cannot be
led to the blocks.  The device of an unmounted filesystem is open exclusively.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import Answer, Free
from whoseblock.fs.driver import Capability, MountedVolume, Volume
from whoseblock.ranges import ByteRange
from whoseblock.respond import syscalls
from whoseblock.respond.device import Device
from whoseblock.respond.exceptions import (
    ChangedError,
    NotHealedError,
    RefusedError,
)
from whoseblock.respond.freezing import USUAL_LIMITS, FreezeJournal, frozen
from whoseblock.respond.owners import is_unowned, owners_now, whole_blocks
from whoseblock.respond.quarantine import Settlement, keeper_of, settle, work_folder
from whoseblock.respond.relocate import Keeper

__all__ = ["zero_mounted", "zero_unmounted"]

#: So many bytes are zeroed in one write.
_PIECE: Final = 1 << 20
#: So many bytes are captured together.
_CAPTURED: Final = 16 << 20
#: How often free blocks are captured until the filesystem is frozen instead.
_ATTEMPTS: Final = 2
_NOT_KEPT: Final = (
    "{} cannot be allocated to a file in quarantine now: resume the step later, or plan the repair"
    " without --quarantine, which zeroes these blocks while the filesystem is frozen"
)
#: The filesystem is thawed for a moment after this time, so that other processes go on.
_WHILE_S: Final = 1.0


def zero_mounted(  # noqa: PLR0913 - the blocks, and how they are zeroed
    fs: MountedVolume,
    device: Device,
    run: ByteRange,
    open_to_freeze: Callable[[], Device],
    freeze: FreezeJournal,
    *,
    quarantine: bool,
) -> Settlement:
    """Zero the failed sectors of an unowned run.

    With ``quarantine``, free blocks stay in quarantine; without, those that do not heal.
    ``open_to_freeze`` opens the device for writing while the filesystem is frozen, which
    ``freeze`` records.  Raises `ChangedError` if the run has an owner by now, `NotNowError` if the
    filesystem cannot be changed or the device cannot be written, and `NotHealedError`.
    """
    syscalls.sync_filesystem(fs.fileno())
    failing = device.failing([run])
    says: list[str] = []
    kept: list[ByteRange] = []
    unhealed: list[str] = []
    left: list[ByteRange] = []
    refused: list[str] = []
    for block in _pieces(whole_blocks(failing, fs.block_size), _CAPTURED):
        try:
            with _keeper_of(fs, block) as keeper:
                if keeper is None:
                    refused += [_NOT_KEPT.format(block)] if quarantine else []
                    left += [] if quarantine else [block]
                    continue
                here = list(_within(failing, keeper.run))
                done = settle(fs, device, keeper, here, quarantine=quarantine, trim=True)
            says.append(done.says)
            kept += done.kept
        except NotHealedError as error:
            unhealed.append(str(error))
    if left:
        with contextlib.closing(open_to_freeze()) as writable:
            try:
                says.append(f"zeroed {_listed(_zero_frozen(fs, writable, left, freeze))}")
            except NotHealedError as error:
                unhealed.append(f"{error}; {_listed(left)}: not in quarantine, may be allocated")
    if unhealed or refused:
        raise NotHealedError("; ".join(dict.fromkeys(unhealed + refused)))
    return Settlement("; ".join(says) or "no sector fails there any more", failing, kept)


def _within(ranges: Sequence[ByteRange], run: ByteRange) -> Iterator[ByteRange]:
    for one in ranges:
        low, high = max(one.start, run.start), min(one.end, run.end)
        if low < high:
            yield ByteRange(low, high - low)


def _listed(ranges: Sequence[ByteRange]) -> str:
    return ", ".join(map(str, ranges))


@contextlib.contextmanager
def _keeper_of(fs: MountedVolume, block: ByteRange) -> Iterator[Keeper | None]:
    """Provide the only file that has failed blocks; None if the filesystem must be frozen.

    Raises `ChangedError` if another file has them.
    """
    keeper: Keeper | None = keeper_of(fs, block)
    if keeper is None:
        _check_unowned(fs, [block])
        keeper = _capture(fs, block)
    try:
        yield keeper
    finally:
        if keeper is not None:
            keeper.close()


def _capture(fs: MountedVolume, block: ByteRange) -> Keeper | None:
    """Put free blocks into an unlinked file; return None if that is not possible."""
    if Capability.CAPTURE not in fs.capabilities or fs.is_read_only or fs.root_fd is None:
        return None
    if not all(isinstance(row, Free) for row in owners_now(fs, block)):
        return None
    with work_folder(fs) as folder:
        for _attempt in range(_ATTEMPTS):
            with contextlib.suppress(OSError):
                if (file := fs.capture(block, folder)) is not None:
                    return Keeper(fs, block, file)
            # The kernel does not allocate again what was just freed until its log is written.
            syscalls.sync_filesystem(fs.fileno())
    return None


def _zero_frozen(
    fs: MountedVolume, device: Device, blocks: Sequence[ByteRange], freeze: FreezeJournal
) -> list[ByteRange]:
    """Zero the failed sectors of unowned blocks while the filesystem is frozen; return them.

    Only the device is written meanwhile, and no module is imported: its file may be on that
    filesystem.
    """
    failing = device.failing(blocks)
    # This loads everything that the check needs before the filesystem freezes.
    _check_unowned(fs, blocks)
    todo = list(_pieces(failing, _PIECE))
    unhealed: list[str] = []
    while todo:
        with frozen(fs.fileno(), USUAL_LIMITS, freeze.note) as hold:
            _check_unowned(fs, whole_blocks(todo, fs.block_size))
            until = time.monotonic() + _WHILE_S
            hold.check()
            while todo:
                try:
                    device.zero([todo.pop(0)])
                except NotHealedError as error:
                    unhealed.append(str(error))
                if time.monotonic() > until:
                    break
    if unhealed:
        raise NotHealedError("; ".join(dict.fromkeys(unhealed)))
    return failing


def _pieces(ranges: Sequence[ByteRange], most: int) -> Iterator[ByteRange]:
    for start, length in ranges:
        for at in range(start, start + length, most):
            yield ByteRange(at, min(most, start + length - at))


def _check_unowned(fs: MountedVolume, blocks: Sequence[ByteRange]) -> None:
    for one in blocks:
        if not is_unowned(owners_now(fs, one)):
            raise ChangedError(f"{one} now has an owner")


def zero_unmounted(
    open_filesystem: Callable[[], Volume], device: Device, run: ByteRange
) -> list[ByteRange]:
    """Zero the failed sectors of an unowned run, and return them.

    ``device`` is open exclusively, and ``open_filesystem`` opens the filesystem on it anew.  Raises
    `RefusedError` unless the filesystem reports the blocks as unowned and is certain of it (with a
    dirty log it is not), and the errors of `zero_mounted`.
    """
    failing = device.failing([run])
    try:
        with contextlib.closing(open_filesystem()) as fs:
            for one in whole_blocks(failing, fs.block_size):
                _check_answer(fs.owners(*one, paths=False))
    except WhoseblockError as error:
        raise RefusedError(f"the filesystem cannot be read: {error}") from error
    device.zero(list(_pieces(failing, _PIECE)))
    return failing


def _check_answer(answer: Answer) -> None:
    if not answer.complete:
        raise RefusedError(f"the owners are not certain: {answer.notes[0]}")
    if not is_unowned(answer):
        raise ChangedError(f"{answer.start}+{answer.length} has an owner")
