"""Show that copies from before random updates of a file are refused.

Files of several sizes are backed up with their times, and then updated at random places.  Each of
the updated blocks is taken for lost in turn, and the backup offered as its copy.

    python -m tools.stale_copies
    python -m tools.stale_copies --sizes 4K,1M --updates 1,10 --blocks 5
"""

import argparse
import mmap
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.ranges import ByteRange
from whoseblock.respond.copies.locations import Candidate, Copies, CopyError
from whoseblock.respond.copies.verification import verify_copy

__all__ = ["Counts", "main", "try_stale_copies"]

_BLOCK: Final = 4096
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20}
_PIECE: Final = 1 << 20


class Counts(NamedTuple):
    """Numbers of copies: offered, accepted, and accepted with ``--accept-older``."""

    offered: int
    accepted: int
    accepted_older: int


def try_stale_copies(folder: Path, size: int, updates: int, blocks: int, seed: str) -> Counts:
    """Back a file up, update it, and offer the backup for up to ``blocks`` updated blocks.

    Each is offered with and without ``--verify-whole``.  Half of the updates go through a mapping.
    """
    chance = random.Random(seed)  # noqa: S311 - the same files for the same seed
    path, copy = folder / "file", folder / "copy"
    with path.open("wb") as file:
        for at in range(0, size, _PIECE):
            file.write(chance.randbytes(min(_PIECE, size - at)))
        file.flush()
        # Only a fault on a clean page changes the time of a mapped file.
        os.fsync(file.fileno())
    shutil.copy2(path, copy)
    places = [chance.randrange(size) for _ in range(updates)]
    _update(path, places, chance)
    changed = sorted({at // _BLOCK * _BLOCK for at in places})
    offered = accepted = older = 0
    fd = os.open(path, os.O_RDWR)
    try:
        for at in chance.sample(changed, min(blocks, len(changed))):
            lost = [ByteRange(at, min(_BLOCK, size - at))]
            for whole in (False, True):
                offered += 1
                accepted += _is_accepted(fd, copy, lost, Copies(whole=whole))
                older += _is_accepted(fd, copy, lost, Copies(whole=whole, older=True))
    finally:
        os.close(fd)
    path.unlink()
    copy.unlink()
    return Counts(offered, accepted, older)


def _update(path: Path, places: Sequence[int], chance: random.Random) -> None:
    """Change a byte at each place, in turn by a write and through a mapping."""
    with path.open("r+b", 0) as file, mmap.mmap(file.fileno(), 0) as mapping:
        for number, at in enumerate(places):
            byte = mapping[at] ^ chance.randrange(1, 256)
            if number % 2:
                os.pwrite(file.fileno(), bytes([byte]), at)
            else:
                mapping[at] = byte
        mapping.flush()


def _is_accepted(fd: int, copy: Path, lost: Sequence[ByteRange], rules: Copies) -> bool:
    try:
        verify_copy(fd, Candidate(str(copy)), lost, rules).close()
    except CopyError:
        return False
    return True


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:], 1)
    return int(text.rstrip("KM")) * unit


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all sizes and numbers of updates; return 1 if a stale copy was accepted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="4K,64K,1M,16M,256M", help="sizes of files")
    parser.add_argument("--updates", default="1,10,100,1000", help="numbers of updates")
    parser.add_argument("--blocks", type=int, default=10, help="updated blocks to try of each file")
    parser.add_argument("--rounds", type=int, default=3, help="files of each kind")
    parser.add_argument("--folder", help="where to make the files")
    parser.add_argument("--seed", default="1")
    options = parser.parse_args(arguments)
    total = Counts(0, 0, 0)
    for size in options.sizes.split(","):
        for updates in map(int, options.updates.split(",")):
            found = Counts(0, 0, 0)
            for number in range(options.rounds):
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    seed = f"{options.seed} {size} {updates} {number}"
                    counts = try_stale_copies(
                        Path(folder), _bytes(size), updates, options.blocks, seed
                    )
                found = Counts(*map(sum, zip(found, counts, strict=True)))
            total = Counts(*map(sum, zip(total, found, strict=True)))
            print(
                f"{size:>5}, {updates:4} updates: {found.offered} stale copies offered,"
                f" {found.accepted} accepted, {found.accepted_older} with --accept-older",
                flush=True,
            )
    print(
        f"{total.offered} stale copies offered, {total.accepted} accepted,"
        f" {total.accepted_older} with --accept-older"
    )
    return int(total.accepted > 0)


if __name__ == "__main__":
    sys.exit(main())
