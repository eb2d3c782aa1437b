"""A mounted XFS: owners, names and what repairs need, from the kernel."""

import errno
import os
from functools import cached_property
from uuid import UUID

from msgspec import UNSET, UnsetType

from whoseblock.fs.base import FileId, Owner
from whoseblock.fs.driver import Capability, ExchangeSample, ReverseMap
from whoseblock.fs.mounted.format import FS_XFLAG_REALTIME
from whoseblock.fs.mounted.recovery import unrecovered_by, unrecovered_note
from whoseblock.fs.mounted.view import OpenRoot, View
from whoseblock.fs.mounted.volume import FsmapVolume, no_answers
from whoseblock.fs.pieces import (
    AG,
    FILE,
    INODE_BTREE,
    INODES,
    REFCOUNT_BTREE,
    STATIC,
    UNKNOWN,
    Piece,
    row_of,
)
from whoseblock.fs.xfs.format.ag import AG_HEADERS
from whoseblock.fs.xfs.mounted import exchange, kernel
from whoseblock.fs.xfs.mounted.capture import capture
from whoseblock.fs.xfs.mounted.format import (
    XFS_DEV_DATA,
    XFS_FSOP_GEOM_FLAGS_EXCHANGE_RANGE,
    XFS_FSOP_GEOM_FLAGS_REFLINK,
    XFS_FSOP_GEOM_FLAGS_RMAPBT,
)
from whoseblock.fs.xfs.mounted.inodes import XfsInodes
from whoseblock.fs.xfs.mounted.owners import LiveOwners, MountedDevice
from whoseblock.fs.xfs.mounted.recovery import doubt_of_log
from whoseblock.fs.xfs.notes import REALTIME_REMARK, repair_advice
from whoseblock.ranges import ByteRange

__all__ = ["MountedXfs"]

#: Metadata that only a scan of the files distinguishes from them.
_BY_SCAN = frozenset({AG, INODE_BTREE, INODES, REFCOUNT_BTREE})


class MountedXfs(FsmapVolume):
    """The XFS that a `View` shows; raises as `FsmapVolume` does."""

    open_root: OpenRoot | None = staticmethod(kernel.open_root)

    def __init__(self, view: View, device_size: int) -> None:
        # With an internal realtime section, devices have no dev_t of their own.
        super().__init__(view, device_size, XFS_DEV_DATA)
        try:
            self.geometry = kernel.geometry(view.fd)
        except OSError as error:
            raise no_answers(view, error) from error
        self.size = self.known_size = self.geometry.size
        self.block_size = self.geometry.blocksize
        self.inodes = self._inodes = XfsInodes(view.fd, self.geometry)
        self._owners: LiveOwners | None = None

    @cached_property
    def identity(self) -> str:
        """The identity of the filesystem, whatever its device is called."""
        return f"xfs {UUID(bytes=self.geometry.uuid)}"

    @property
    def reverse_map(self) -> ReverseMap:
        """The way owners are found: in the reverse-mapping btree, or by a scan of all inodes."""
        return "index" if self.geometry.flags & XFS_FSOP_GEOM_FLAGS_RMAPBT else "scan"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The capabilities that repairs may rely on: none without a reverse map."""
        if self.reverse_map == "scan":
            return frozenset()
        found = {
            Capability.ZERO_FREE,
            Capability.FREEZE,
            Capability.CAPTURE,
            Capability.OVERWRITE,
            Capability.QUARANTINE,
        }
        if self.geometry.flags & XFS_FSOP_GEOM_FLAGS_REFLINK:
            found.add(Capability.REFLINK)
        if self.geometry.flags & XFS_FSOP_GEOM_FLAGS_EXCHANGE_RANGE:
            found.add(Capability.EXCHANGE_RANGE)
        return frozenset(found)

    @cached_property
    def unreplayed_log(self) -> str:
        """The reason why the kernel does not know changes that are in the log, "" if it does."""
        option = unrecovered_by(self.view.options)
        state = doubt_of_log(self.view.device, self.view.options) if option else ""
        return unrecovered_note(option, state) if state else ""

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes of every answer that do not make it incomplete."""
        if not self.geometry.rtblocks:
            return super().remarks
        return (REALTIME_REMARK, *super().remarks)

    # ------------------------------------------------------------------ without a reverse map

    def _prepare(self, ranges: list[tuple[int, int]]) -> None:
        """Scan the inodes once for all ranges, if there is no reverse map."""
        if self.reverse_map == "index":
            return
        if self._owners is not None:
            self._owners.close()
        fd, fsid = self.view.fd, self._inodes.fsid
        mounted = MountedDevice(fd, fsid, self.geometry, self._device, self.view.device)
        self._owners = LiveOwners(mounted, self._report, may_scan=self.scans)
        ask = super()._ask
        self._owners.prepare(piece for one in ranges for piece in ask(*one, []))

    def _report(self, inodes: int) -> None:
        status = os.fstatvfs(self.view.fd)
        self.progress("inodes scanned", inodes, status.f_files - status.f_ffree)

    def _ask(self, start: int, length: int, notes: list[str]) -> list[Piece]:
        """Ask the kernel once, and find the owners of what it does not know."""
        pieces = super()._ask(start, length, notes)
        if self._owners is None:
            return pieces
        found = self._owners.resolve(pieces, notes)
        return sorted(found, key=lambda one: (one.start, one.inode, one.file_offset))

    def _remarks_on(self, pieces: list[Piece]) -> tuple[str, ...]:
        """Return the remark that owners were found by a scan, if any were."""
        if self._owners is None or not self._owners.remark:
            return ()
        took = any(piece.kind in {FILE, UNKNOWN} or piece.what in _BY_SCAN for piece in pieces)
        return (self._owners.remark,) if took else ()

    def close(self) -> None:
        """Close the filesystem; a second time has no effect."""
        super().close()
        if self._owners is not None:
            self._owners.close()

    # ------------------------------------------------------------------ rows

    def _metadata_row(self, piece: Piece) -> Owner:
        inodes: tuple[int, int] | UnsetType = UNSET
        detail: str | UnsetType = UNSET
        if piece.what == INODES:
            inodes = self.geometry.inodes_within(piece.start, piece.length)
        elif piece.what == STATIC:
            detail = self._headers_at(piece)
        return row_of(piece, None, inodes=inodes, detail=detail)

    def _headers_at(self, piece: Piece) -> str:
        """Name the headers of an allocation group that a piece of static metadata touches."""
        sector = self.geometry.sectsize
        agno, offset = divmod(piece.start, self.geometry.ag_bytes)
        first, last = offset // sector, (offset + piece.length - 1) // sector
        names = AG_HEADERS[first : last + 1] or ("header block",)
        return f"{', '.join(names)} of AG {agno}"

    def open_file(self, file: FileId, generation: int, flags: int) -> int:
        """Open a file by its handle; raises OSError, FileNotFoundError if it is gone."""
        fsid = self._inodes.fsid
        return kernel.open_invisibly(self.view.fd, fsid, file.inode, generation, flags)

    def data_companion(self, fd: int) -> str:
        """Return the role of the companion that has the data of an open file, "" for no other."""
        # An internal realtime section is on the device itself, and extents are placed there.
        if not any(option.startswith("rtdev=") for option in self.view.options):
            return ""
        facts = self._inodes.facts(os.fstat(fd).st_ino)
        if facts is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return "realtime" if facts.xflags & FS_XFLAG_REALTIME else ""

    def sample_file(self, fd: int) -> ExchangeSample | None:
        """Sample the state of an open file for `exchange_range`; None if that is unsupported."""
        return exchange.sample_file(fd)

    def exchange_range(
        self, fd: int, file_offset: int, length: int, other: int, sample: ExchangeSample
    ) -> bool:
        """Exchange blocks of an open file with those that ``other`` has from its byte 0 on."""
        return exchange.exchange_range(fd, file_offset, length, other, sample)

    def capture(self, run: ByteRange, work: int) -> int | None:
        """Return the descriptor of an unlinked file that has free blocks at its byte 0."""
        if self.root_fd is None:
            return None
        for extent in self.free_extents(run):
            if extent.start <= run.start and run.end <= extent.end:
                return capture(self.root_fd, work, self.geometry, run, extent)
        return None

    def repair_advice(self, row: Owner) -> str:
        """Return what repairs a row that is metadata, of the filesystem or of a file."""
        return repair_advice(row)
