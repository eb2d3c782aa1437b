"""Zero failed sectors of free and unwritten blocks, so that the device heals.

Whether the blocks are still unowned is checked when they cannot be allocated any more: while a
mounted filesystem is frozen, or while the device of an unmounted one is open exclusively.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import Answer
from whoseblock.fs.driver import MountedVolume, Volume
from whoseblock.ranges import ByteRange
from whoseblock.respond import syscalls
from whoseblock.respond.device import Device
from whoseblock.respond.exceptions import ChangedError, NotHealedError, RefusedError
from whoseblock.respond.freezing import frozen
from whoseblock.respond.owners import is_unowned, owners_now, whole_blocks

__all__ = ["zero_mounted", "zero_unmounted"]

#: So many bytes are zeroed in one write.
_PIECE: Final = 1 << 20
#: The filesystem is thawed for a moment after this time, so that other processes go on.
_WHILE_S: Final = 1.0


def zero_mounted(fs: MountedVolume, device: Device, run: ByteRange) -> list[ByteRange]:
    """Zero the failed sectors of an unowned run, and return them.

    While the filesystem is frozen, only the device is written, and no module is imported: its file
    may be on that filesystem.  Raises `ChangedError` if the run has an owner by now, `NotNowError`
    if the filesystem cannot be frozen or the device cannot be written, and `NotHealedError`.
    """
    syscalls.sync_filesystem(fs.fileno())
    failing = device.failing([run])
    blocks = whole_blocks(failing, fs.block_size)
    # This loads everything that the check needs before the filesystem freezes.
    _check_unowned(fs, blocks)
    todo = list(_pieces(failing))
    unhealed: list[str] = []
    while todo:
        with frozen(fs.fileno()) as hold:
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


def _pieces(ranges: Sequence[ByteRange]) -> Iterator[ByteRange]:
    for start, length in ranges:
        for at in range(start, start + length, _PIECE):
            yield ByteRange(at, min(_PIECE, start + length - at))


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
    device.zero(list(_pieces(failing)))
    return failing


def _check_answer(answer: Answer) -> None:
    if not answer.complete:
        raise RefusedError(f"the owners are not certain: {answer.notes[0]}")
    if not is_unowned(answer):
        raise ChangedError(f"{answer.start}+{answer.length} has an owner")
