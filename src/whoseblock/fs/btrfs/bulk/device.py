"""Ranges of a device as logical addresses, where a chunk has its bytes in one piece there."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from whoseblock.fs.btrfs.bulk.owners import SingleOwners, find_single_owners
from whoseblock.fs.btrfs.chunks import Place, StripeRun
from whoseblock.fs.btrfs.format.superblock import COPIES, SUPERBLOCK_SIZE
from whoseblock.fs.btrfs.owners.finder import FilePiece
from whoseblock.fs.btrfs.owners.references import FilePart
from whoseblock.fs.btrfs.volume import Volume

__all__ = ["DeviceOwners", "find_on_device"]


class DeviceOwners(NamedTuple):
    """The single owners of ranges of a device, with their logical addresses and their chunks."""

    owners: SingleOwners
    logical: NDArray[np.uint64]
    run: NDArray[np.int64]
    runs: list[StripeRun]

    def piece(self, number: int, start: int, length: int) -> FilePiece:
        """Return the row of a question that has a single owner."""
        owners, run = self.owners, self.runs[self.run[number]]
        part = FilePart(
            int(owners.subvolume[number]),
            int(owners.inode[number]),
            int(owners.file_offset[number]),
            0,
            length,
            bool(owners.unwritten[number]),
            "",
        )
        copies: tuple[Place, ...] = ()
        logical = int(self.logical[number])
        if run.chunk is not None and len(run.chunk.stripes) > 1:
            inside = logical - run.chunk.start
            others = (one for index, one in enumerate(run.chunk.stripes) if index != run.number)
            copies = tuple(Place(device, at + inside) for device, at in others)
        return FilePiece(start, length, part, shared=False, copies=copies, logical=logical)


def find_on_device(
    volume: Volume, device: int, start: NDArray[np.int64], length: NDArray[np.int64]
) -> DeviceOwners:
    """Return the owners of ranges of a device that have a single one."""
    runs = [
        one
        for one in volume.chunks.runs(device, 0, volume.items[device].size)
        if one.chunk is not None and not one.chunk.profile.is_striped
    ]
    lows = np.array([one.start for one in runs], np.int64)
    highs = np.array([one.end for one in runs], np.int64)
    logicals = np.array([one.chunk.start for one in runs if one.chunk], np.int64)
    run = np.searchsorted(lows, start, "right") - 1
    end = start + length
    inside = run >= 0
    if volume.device_faults.get(device) or not runs:
        return DeviceOwners(
            SingleOwners.empty(len(start)), np.zeros(len(start), np.uint64), run, runs
        )
    inside &= end <= highs[run]
    for offset in COPIES:
        inside &= (end <= offset) | (start >= offset + SUPERBLOCK_SIZE)
    logical = (logicals[run] + start - lows[run])[inside].astype(np.uint64)
    chunk_end = (logicals[run] + highs[run] - lows[run])[inside].astype(np.uint64)
    volume.reader.take_remarks()
    found = find_single_owners(volume, logical, length[inside].astype(np.uint64), chunk_end)
    if volume.reader.take_remarks():
        # A block was read from a copy: the answers to single questions say for which.
        return DeviceOwners(SingleOwners.empty(len(start)), start.astype(np.uint64), run, runs)
    places = np.flatnonzero(inside)
    owners = SingleOwners.empty(len(start))
    for whole, some in zip(owners, found, strict=True):
        whole[places] = some
    every = np.zeros(len(start), np.uint64)
    every[places] = logical
    return DeviceOwners(owners, every, run, runs)
