"""The rows of an answer, from pieces and the paths of files."""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import UNSET, UnsetType

from whoseblock.fs.base import (
    Copy,
    FileId,
    FileOwner,
    Free,
    InlineFile,
    MetadataOwner,
    Outside,
    Owner,
    Paths,
    Unknown,
    Unreferenced,
)
from whoseblock.fs.btrfs.chunks import Place
from whoseblock.fs.btrfs.format.keys import is_file_tree, tree_name
from whoseblock.fs.btrfs.names.paths import PathFinder
from whoseblock.fs.btrfs.owners.finder import FilePiece, Piece, PlainPiece, TreePiece
from whoseblock.fs.btrfs.volume import Volume
from whoseblock.fs.driver import DeviceSegment

__all__ = ["RowMaker", "files_of", "path_faults"]


def files_of(pieces: Iterable[Piece]) -> dict[FileId, None]:
    """Return the files of pieces that may have names, each once."""
    files: dict[FileId, None] = {}
    for piece in pieces:
        if isinstance(piece, FilePiece):
            files[piece.part.file] = None
        elif isinstance(piece, TreePiece):
            files.update(dict.fromkeys(piece.inline))
    return {file: None for file in files if is_file_tree(file.subvolume)}


def path_faults(known: Mapping[FileId, Paths]) -> dict[str, None]:
    """Return why paths are missing."""
    return {note: None for paths in known.values() if not paths.complete for note in paths.notes}


class RowMaker:
    """Makes the rows of a volume; ``finder`` has the paths of its subvolumes."""

    def __init__(self, volume: Volume, finder: PathFinder) -> None:
        self.volume = volume
        self.finder = finder

    def rows(
        self,
        pieces: Iterable[Piece],
        known: Mapping[FileId, Paths],
        generations: Mapping[FileId, int] | None = None,
    ) -> tuple[Owner, ...]:
        """Return the row of each piece; ``known`` has the paths of files, if they were asked for.

        ``generations`` has those of the inodes of a mounted filesystem.
        """
        return tuple(self._row(piece, known, generations or {}) for piece in pieces)

    def _row(
        self, piece: Piece, known: Mapping[FileId, Paths], generations: Mapping[FileId, int]
    ) -> Owner:
        copies = tuple(self._copy(place) for place in piece.copies) or UNSET
        if isinstance(piece, FilePiece):
            if is_file_tree(piece.part.subvolume):
                return self._file_row(piece, known, generations, copies)
            return _cache_row(piece, copies)
        if isinstance(piece, TreePiece):
            inline = tuple(
                InlineFile(*file, known[file].paths if file in known else UNSET)
                for file in piece.inline
            )
            return MetadataOwner(
                piece.start,
                piece.length,
                "tree",
                piece.inodes or UNSET,
                piece.detail,
                piece.trees or UNSET,
                inline or UNSET,
                copies=copies,
                logical=piece.logical,
            )
        return _plain_row(piece, copies)

    def _copy(self, place: Place) -> Copy:
        return Copy(self.device_name(place.device), place.start)

    def device_name(self, device: int) -> str:
        """Return the name of a device by its number."""
        media = self.volume.devices.get(device)
        return media.name if media else f"missing device {device}"

    def segments(self, device: int) -> Iterator[DeviceSegment]:
        """Yield the chunks on a device; see `whoseblock.fs.driver.Volume.device_segments`."""
        for run in self.volume.chunks.runs(device, 0, self.volume.items[device].size):
            if run.chunk is not None:
                devices = dict.fromkeys(place.device for place in run.chunk.stripes)
                others = tuple(self.device_name(one) for one in devices if one != device)
                what = f"{run.chunk.description}, from logical address {run.chunk.start}"
                yield DeviceSegment(run.start, run.end - run.start, what, others)

    def _file_row(
        self,
        piece: FilePiece,
        known: Mapping[FileId, Paths],
        generations: Mapping[FileId, int],
        copies: tuple[Copy, ...] | UnsetType,
    ) -> Owner:
        part = piece.part
        paths = known.get(part.file)
        return FileOwner(
            piece.start,
            piece.length,
            part.inode,
            "data",
            "data",
            part.file_offset,
            part.is_unwritten,
            piece.shared,
            UNSET if paths is None else paths.paths,
            True if paths is not None and paths.unlinked else UNSET,
            UNSET if paths is None or not paths.detail else paths.detail,
            generations.get(part.file, UNSET),
            UNSET if paths is None else paths.mounted_at,
            subvolume=part.subvolume,
            subvolume_path=self._subvolume_path(part.subvolume) if known else UNSET,
            file_length=part.length if part.encoding else UNSET,
            encoding=part.encoding or UNSET,
            copies=copies,
            logical=piece.logical,
        )

    def _subvolume_path(self, subvolume: int) -> str | UnsetType:
        return self.finder.subvolume_path(subvolume) or UNSET


def _cache_row(piece: FilePiece, copies: tuple[Copy, ...] | UnsetType) -> Owner:
    """Return the row of data that no subvolume has.

    It is the cache of free space of older filesystems, or what a balance is moving.
    """
    tree = piece.part.subvolume
    return MetadataOwner(
        piece.start,
        piece.length,
        "tree",
        detail=f"data of the {tree_name(tree)}",
        trees=(tree,),
        copies=copies,
        logical=piece.logical,
    )


def _plain_row(piece: PlainPiece, copies: tuple[Copy, ...] | UnsetType) -> Owner:
    """Return the row of bytes that no file has."""
    start, length = piece.start, piece.length
    logical = UNSET if piece.logical is None else piece.logical
    if piece.kind == "free":
        return Free(start, length, logical=logical)
    if piece.kind == "unreferenced":
        return Unreferenced(start, length, piece.holders, copies=copies, logical=logical)
    if piece.kind == "static":
        return MetadataOwner(start, length, "static", detail=piece.detail, logical=logical)
    if piece.kind == "outside":
        return Outside(start, length, piece.detail)
    return Unknown(start, length, logical=logical)
