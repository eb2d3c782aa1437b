"""A mounted ext2, ext3 or ext4: owners and names, each confirmed by the kernel."""

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import Final

from msgspec.structs import replace

from whoseblock.errors import BlockError, NotAFilesystemError, TargetError
from whoseblock.fs.base import Owner, Paths, distinct
from whoseblock.fs.driver import ReverseMap
from whoseblock.fs.ext4.format.superblock import (
    COMPAT_HAS_JOURNAL,
    EXT4_VALID_FS,
    INCOMPAT_RECOVER,
)
from whoseblock.fs.ext4.mounted.batch import Settled, near_runs, settle
from whoseblock.fs.ext4.mounted.inodes import Ext4Inodes, facts_of
from whoseblock.fs.ext4.mounted.kernel import open_root
from whoseblock.fs.ext4.mounted.metadata import LiveMetadata
from whoseblock.fs.ext4.mounted.owners import LiveOwners
from whoseblock.fs.ext4.names.paths import PathFinder, internal_files
from whoseblock.fs.ext4.notes import UNCLEAN_NOTE, common_doubts, repair_advice
from whoseblock.fs.ext4.owners.rows import make_row
from whoseblock.fs.mounted import kernel
from whoseblock.fs.mounted.records import piece_of
from whoseblock.fs.mounted.recovery import unrecovered_by, unrecovered_note
from whoseblock.fs.mounted.view import OpenRoot, View, inode_at
from whoseblock.fs.mounted.volume import FsmapVolume
from whoseblock.fs.pieces import FILE, LOG, UNKNOWN, Piece
from whoseblock.fs.scan.engine import Wanted
from whoseblock.media.device import FileMedia
from whoseblock.media.mounts import device_node

__all__ = ["MountedExt4"]

#: Questions up to this many bytes are answered together.
_SHORT: Final = 1 << 20
#: From so many files on, the blocks of directories are searched for all of them at once.
_MANY: Final = 8


class MountedExt4(FsmapVolume):
    """The ext2, ext3 or ext4 that a `View` shows; raises as `FsmapVolume` does.

    The inodes are read from the device, which must be in /dev.
    """

    open_root: OpenRoot | None = staticmethod(open_root)

    def __init__(self, view: View, device_size: int) -> None:
        super().__init__(view, device_size)
        path = device_node(view.device)
        if path is None:
            raise TargetError(f"the device of {view.point!r} has no node in /dev here")
        self._live = _open_metadata(path)
        sb = self._live.sb
        self.block_size = sb.block_size
        self.size = self.known_size = self._live.volume.size
        self.inodes = self._inodes = Ext4Inodes(view.fd, self._live)
        self._owners: LiveOwners | None = None
        self._settled = Settled({}, {})

    @property
    def identity(self) -> str:
        """The kind and UUID of the filesystem, as on the disk."""
        return f"{self._live.sb.name} {self._live.sb.uuid_text}"

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found: by a scan of the inodes."""
        return "scan"

    @property
    def reads(self) -> Counter[str]:
        """The number of questions to the kernel, and of metadata blocks read, by kind."""
        return self.asked + self._live.volume.reads

    @cached_property
    def unreplayed_log(self) -> str:
        """The reason why the kernel does not know changes that are in the journal, "" if it does.

        Only a mount without recovery leaves the flag of a journal to replay on the disk and does
        not replay it.
        """
        option = unrecovered_by(self.view.options)
        if not option or not self._live.sb.incompat & INCOMPAT_RECOVER:
            return ""
        return unrecovered_note(option, "its journal is dirty")

    @property
    def doubts(self) -> tuple[str, ...]:
        """The reasons why every answer is incomplete.

        That the journal has changes is none: the kernel has them in the same buffers.
        """
        sb, live = self._live.sb, self._live
        notes = [*super().doubts, *live.notes, *common_doubts(live.volume, live.fixed)]
        unclean = not sb.state & EXT4_VALID_FS and not sb.compat & COMPAT_HAS_JOURNAL
        if unclean and "ro" in self.view.options:
            # Mounted for writing, it is never marked as clean.
            notes.append(UNCLEAN_NOTE)
        return distinct(notes)

    # ------------------------------------------------------------------ owners

    def _prepare(self, ranges: list[tuple[int, int]]) -> None:
        """Scan the inodes once for all ranges."""
        owners = LiveOwners(self._live, self.view.fd, self._report, may_scan=self.scans)
        self._owners = owners
        self.size = self.known_size = self._live.volume.size
        self._settled = Settled({}, {})
        short = {one for one in ranges if one[1] <= _SHORT}
        if len(short) > 1:
            # The question that fails reports why.
            with contextlib.suppress(OSError):
                self._settled = settle(owners, short, self._read_pieces)
            # Those that are not settled had their scan.
            ranges = [one for one in ranges if one not in short]
        ask = super()._ask
        pieces = (piece for one in ranges for piece in ask(*one, []))
        owners.prepare(owners.clusters(owners.segments(pieces)))

    def _read_pieces(self, asked: Wanted) -> list[Piece]:
        """Ask the kernel for ranges of bytes, those near each other at once; raises OSError."""
        pieces: list[Piece] = []
        near = self._live.sb.blocks_per_group * self.block_size
        for low, high in near_runs(asked, near):
            last = min(high, self.size)
            self.asked["fsmap"] += 1
            records = kernel.fsmap(self.view.fd, self._device, low, last) if low < last else ()
            for record in records:
                parts = asked.within(record.physical, record.physical + record.length)
                pieces += (piece_of(record, *part) for part in parts)
        pieces.sort()
        found: list[Piece] = []
        at = 0
        for low, high in zip(asked.lows, asked.highs, strict=True):
            reach = low
            while at < len(pieces) and pieces[at].start < high:
                piece, at = pieces[at], at + 1
                if reach < piece.start:
                    found += self._gap(reach, piece.start, [], failed=False)
                found.append(piece)
                reach = piece.end
            if reach < high:
                found += self._gap(reach, high, [], failed=False)
        return found

    def _find(self, start: int, length: int) -> tuple[list[Piece], list[str]]:
        """Return the pieces of a range, of which nothing is missing if the batch has settled it."""
        pieces = self._settled.answers.get((start, length))
        if pieces is None:
            return super()._find(start, length)
        for piece in pieces:
            if piece.kind == FILE:
                inode = self._settled.inodes[piece.inode]
                self._facts[piece.inode] = facts_of(piece.inode, inode)
        return pieces, []

    def _report(self, inodes: int) -> None:
        self.progress("inodes scanned", inodes, self._live.sb.inodes_count)

    def _ask(self, start: int, length: int, notes: list[str]) -> list[Piece]:
        """Ask the kernel once, and find the owners of what it does not know."""
        pieces = super()._ask(start, length, notes)
        if self._owners is None:
            return pieces
        found = self._owners.resolve(start, length, pieces)
        notes += found.notes
        return found.pieces

    def _note_unaccounted(self, _low: int, _length: int) -> str:
        """Return no note: where the kernel leaves a record out, inodes decide."""
        return ""

    def _remarks_on(self, pieces: list[Piece]) -> tuple[str, ...]:
        """Return the remark that owners were found by a scan, if any were."""
        if self._owners is None or not self._owners.remark:
            return ()
        took = any(piece.kind in {FILE, UNKNOWN} or piece.what == LOG for piece in pieces)
        return (self._owners.remark,) if took else ()

    def _metadata_row(self, piece: Piece) -> Owner:
        return make_row(self._live.volume, self._live.fixed, piece, None)

    def _paths_of(self, inodes: Mapping[int, int | None]) -> dict[int, Paths]:
        """Return the paths of inodes; those of the filesystem itself have none."""
        internal = internal_files(self._live.volume)
        found: dict[int, Paths] = {}
        others: dict[int, int | None] = {}
        for inode, generation in inodes.items():
            if inode in internal:
                found[inode] = Paths(detail=internal[inode])
            else:
                others[inode] = generation
        if len(others) > _MANY and self.view.root is not None:
            found |= self._paths_by_blocks(others, self.view.root)
            others = {inode: one for inode, one in others.items() if inode not in found}
        for inode, paths in super()._paths_of(others).items():
            is_nokey = any(self._is_nokey(inode, os.fsencode(path)) for path in paths.paths)
            found[inode] = replace(paths, encrypted_name=True) if is_nokey else paths
        return found

    def _paths_by_blocks(self, inodes: Mapping[int, int | None], root: int) -> dict[int, Paths]:
        """Return the paths of inodes of which the blocks of directories have all.

        Each must lead to the inode, which must then have as many names.  Others are left out.
        """
        finder = PathFinder(self._live.volume, self._live.scan, self.progress)
        found: dict[int, Paths] = {}
        for inode, paths in finder.find(inodes).items():
            generation = inodes[inode]
            if generation is None or not paths.complete or not paths.paths:
                continue
            names = [os.fsencode(path) for path in paths.paths]
            # Moved or gone by now, or encrypted and shown by the kernel with its key.
            with contextlib.suppress(OSError):
                if all(inode_at(root, name[1:]) == inode for name in names) and (
                    self._inodes.has_names(inode, generation, len(names))
                ):
                    places = tuple(
                        place for name in names for place in self.view.places(name, inode)
                    )
                    found[inode] = replace(paths, mounted_at=places)
        return found

    def _is_nokey(self, inode: int, path: bytes) -> bool:
        """Return whether the last name of a path is of an encrypted directory without its key."""
        folder, _, name = path.rpartition(b"/")
        if not name or self.view.root is None:
            return False
        try:
            if not self._inodes.is_encrypted(inode):
                return False
            above = inode_at(self.view.root, folder[1:])
            return self._inodes.is_nokey_name(inode, above, name)
        except OSError:
            # Moved by now.
            return False

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return repair_advice(row)

    def close(self) -> None:
        """Close the filesystem; a second time has no effect."""
        super().close()
        self._live.close()


def _open_metadata(path: str) -> LiveMetadata:
    media = FileMedia(path, keep_cache=True)
    with ExitStack() as undo:
        undo.callback(media.close)
        try:
            live = LiveMetadata(media)
        except NotAFilesystemError as error:
            raise BlockError(f"the metadata of the mounted filesystem: {error}") from error
        undo.pop_all()
    return live
