"""The driver of ext2, ext3 and ext4."""

from collections.abc import Iterable, Mapping, Sequence

from whoseblock.errors import PrivilegeError, TargetError, UnsupportedError
from whoseblock.fs.driver import Driver, MountedDevice, MountedVolume, Probe, Volume
from whoseblock.media.base import Media
from whoseblock.media.mounts import Mount

__all__ = ["DRIVER"]


class Ext4Driver(Driver):
    """Knows ext2, ext3 and ext4 on devices, images and mounted."""

    name = "ext4"

    def probe(self, media: Media) -> Probe | None:
        """Identify the filesystem whose first superblock verifies; None if there is none."""
        from whoseblock.fs.ext4.superblocks import begins_with_superblock

        sb = begins_with_superblock(media)
        return None if sb is None else Probe(sb.name, sb.uuid_text)

    def open(
        self,
        members: Sequence[Media],
        companions: Mapping[str, Media],
        doubts: Iterable[str] = (),
    ) -> Volume:
        """Open the filesystem on the only member; see `Driver.open`."""
        from whoseblock.fs.ext4.filesystem import Ext4Filesystem

        (media,) = members
        filesystem = Ext4Filesystem(media, doubts)
        for other in companions.values():
            other.close()
        return filesystem

    def open_mounted(
        self, mounts: Sequence[Mount], process: int | None, device: MountedDevice
    ) -> MountedVolume | None:
        """Open a mounted filesystem; see `Driver.open_mounted`.

        If its device cannot be read here, or has features that are not known, only the kernel's
        own answers are available, and their note names the reason.
        """
        from whoseblock.fs.ext4.mounted.volume import MountedExt4
        from whoseblock.fs.mounted.volume import FsmapVolume

        try:
            return MountedExt4.open(mounts, process, device.size)
        except PrivilegeError:
            raise
        except (TargetError, UnsupportedError) as error:
            volume = FsmapVolume.open(mounts, process, device.size)
            volume.nameless = str(error)
            return volume


DRIVER = Ext4Driver()
