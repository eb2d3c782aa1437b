"""Zeroing failed sectors that hold nobody's data, so that the device heals.

Nobody's are free blocks, and blocks of files that were never written.  Whether they still are is
asked when nobody can take them any more: on a mounted filesystem while it is frozen, on another one
while its device is ours alone.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import Answer, Filesystem
from whoseblock.fs.live import LiveFilesystem
from whoseblock.ranges import ByteRange
from whoseblock.respond import calls
from whoseblock.respond.device import Device
from whoseblock.respond.freezing import frozen
from whoseblock.respond.owners import is_nobodys, owners_now, whole_blocks
from whoseblock.respond.reasons import ChangedError, NotHealedError, RefusedError

__all__ = ["zero_mounted", "zero_unmounted"]

#: Zeroed at once.
_PIECE: Final = 1 << 20
#: So long others wait for a frozen filesystem before it is thawed for a moment.
_WHILE_S: Final = 1.0


def zero_mounted(fs: LiveFilesystem, device: Device, run: ByteRange) -> list[ByteRange]:
    """Zero what fails of a run that nobody has; give the sectors that were zeroed.

    Raises `ChangedError` if somebody has it by now, `NotNowError` if the filesystem cannot be
    frozen or the device not be written, and `NotHealedError`.  Nothing but the device is written
    while the filesystem is frozen, and nothing of what we import may come from it then.
    """
    calls.sync_filesystem(fs.view.fd)
    failing = device.failing([run])
    blocks = whole_blocks(failing, fs.block_size)
    # All that is needed below is loaded and has been run once when the filesystem freezes.
    _check_nobodys(fs, blocks)
    todo = list(_pieces(failing))
    unhealed: list[str] = []
    while todo:
        with frozen(fs.view.fd) as hold:
            _check_nobodys(fs, whole_blocks(todo, fs.block_size))
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


def _check_nobodys(fs: LiveFilesystem, blocks: Sequence[ByteRange]) -> None:
    for one in blocks:
        if not is_nobodys(owners_now(fs, one)):
            raise ChangedError(f"somebody has {one} by now")


def zero_unmounted(
    open_filesystem: Callable[[], Filesystem], device: Device, run: ByteRange
) -> list[ByteRange]:
    """Zero what fails of a run that nobody has; give the sectors that were zeroed.

    ``device`` is ours alone, and ``open_filesystem`` reads afresh what is on it.  Raises
    `RefusedError` unless the filesystem's log is clean and both its reverse mapping and its
    free-space btree say that nobody has the blocks; raises as `zero_mounted`.
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
        raise RefusedError(f"whose it is, is not certain: {answer.notes[0]}")
    if not is_nobodys(answer):
        raise ChangedError(f"somebody has {answer.start}+{answer.length}")
