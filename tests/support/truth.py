"""The facts about an image by an oracle, in one form for all oracles."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

__all__ = ["Inode", "Row", "Superblock", "Truth"]


class Row(NamedTuple):
    """One mapping of the filesystem's address space, whole."""

    start: int
    length: int
    #: "file", "free", "staging", "unknown", or the class of metadata.
    kind: str
    inode: int = 0
    offset: int = 0
    attr: bool = False
    extent_map: bool = False
    unwritten: bool = False
    #: The kernel's word, for whole rows; None from an oracle that does not say.
    shared: bool | None = None

    @property
    def end(self) -> int:
        return self.start + self.length


class Inode(NamedTuple):
    """An inode that exists.

    One that was unlinked while open has neither links nor paths; one that the filesystem keeps for
    itself, for quota perhaps, has links and yet no paths.
    """

    mode: int
    links: int
    paths: list[str]


@dataclass(frozen=True)
class Superblock:
    """The numbers that turn addresses into inodes, as xfs_db prints them."""

    block: int
    sector: int
    inode: int
    group_blocks: int
    groups: int
    blocks: int
    block_log: int  # of a group's size: sb_agblklog
    inodes_log: int  # of the inodes in a block: sb_inopblog

    @property
    def size(self) -> int:
        return self.blocks * self.block

    @property
    def group_size(self) -> int:
        return self.group_blocks * self.block

    def inode_at(self, byte: int) -> int:
        """Return the number of the inode that holds a byte of the device."""
        group, within = divmod(byte, self.group_size)
        return (group << (self.block_log + self.inodes_log)) + within // self.inode

    def group_of(self, inode: int) -> int:
        """Return the allocation group of an inode."""
        return inode >> (self.block_log + self.inodes_log)


@dataclass(frozen=True)
class Truth:
    """Everything that is known about one image."""

    image: Path
    superblock: Superblock
    rows: list[Row]
    inodes: dict[int, Inode]

    def save(self, path: Path) -> None:
        """Write it down for the other processes of the session; JSON keeps lone surrogates."""
        path.write_text(
            json.dumps(
                {
                    "image": str(self.image),
                    "superblock": asdict(self.superblock),
                    "rows": self.rows,
                    "inodes": self.inodes,
                }
            )
        )

    @classmethod
    def load(cls, path: Path) -> "Truth":
        """Read what `save` wrote."""
        told = json.loads(path.read_text())
        return cls(
            Path(told["image"]),
            Superblock(**told["superblock"]),
            [Row(*row) for row in told["rows"]],
            {int(number): Inode(*inode) for number, inode in told["inodes"].items()},
        )
