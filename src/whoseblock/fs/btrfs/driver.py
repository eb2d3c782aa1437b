"""The driver of btrfs."""

from collections.abc import Iterable, Mapping, Sequence

from whoseblock.fs.driver import Driver, MountedDevice, MountedVolume, Probe, Volume
from whoseblock.media.base import Media
from whoseblock.media.mounts import Mount

__all__ = ["DRIVER"]


class BtrfsDriver(Driver):
    """Knows btrfs on one device or several, in images and mounted."""

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

    def open_mounted(
        self, mounts: Sequence[Mount], process: int | None, device: MountedDevice
    ) -> MountedVolume | None:
        """Open a mounted filesystem; see `Driver.open_mounted`."""
        from whoseblock.fs.btrfs.mounted.volume import MountedBtrfs

        return MountedBtrfs.open(mounts, process, device.size, device.number)


DRIVER = BtrfsDriver()
