"""The driver of btrfs."""

from collections.abc import Iterable, Mapping, Sequence

from whoseblock.fs.driver import Driver, Probe, Volume
from whoseblock.media.base import Media

__all__ = ["DRIVER"]


class BtrfsDriver(Driver):
    """Knows btrfs on one device or several, and in images."""

    name = "btrfs"

    def probe(self, media: Media) -> Probe | None:
        """Identify the filesystem whose first superblock verifies; None if there is none."""
        from whoseblock.fs.btrfs.superblocks import begins_with_superblock

        sb = begins_with_superblock(media)
        return None if sb is None else Probe(self.name, sb.uuid_text, sb.device.device, sb.devices)

    def open(
        self,
        members: Sequence[Media],
        companions: Mapping[str, Media],
        doubts: Iterable[str] = (),
    ) -> Volume:
        """Open the filesystem on its devices; see `Driver.open`."""
        from whoseblock.fs.btrfs.filesystem import BtrfsFilesystem

        filesystem = BtrfsFilesystem(members, doubts)
        for other in companions.values():
            other.close()
        return filesystem


DRIVER = BtrfsDriver()
