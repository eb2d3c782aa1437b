"""The driver of XFS."""

from collections.abc import Iterable, Mapping, Sequence

from whoseblock.errors import UnsupportedError
from whoseblock.fs.driver import (
    AddressSpace,
    CompanionContent,
    Driver,
    MountedDevice,
    MountedVolume,
    Probe,
    Volume,
)
from whoseblock.media.base import Media
from whoseblock.media.mounts import Mount

__all__ = ["DRIVER"]


class XfsDriver(Driver):
    """Knows XFS on devices, images and mounted."""

    name = "xfs"

    def probe(self, media: Media) -> Probe | None:
        """Identify the filesystem whose first superblock verifies; None if there is none."""
        from uuid import UUID

        from whoseblock.fs.xfs.format.superblock import SUPERBLOCK
        from whoseblock.fs.xfs.superblocks import begins_with_superblock

        if not begins_with_superblock(media):
            return None
        head = media.pread(0, SUPERBLOCK.size)
        return Probe(self.name, str(UUID(bytes=SUPERBLOCK.unpack_from(head).uuid)))

    def open(
        self,
        members: Sequence[Media],
        companions: Mapping[str, Media],
        doubts: Iterable[str] = (),
    ) -> Volume:
        """Open the filesystem on the only member; see `Driver.open`."""
        from whoseblock.fs.xfs.filesystem import XfsFilesystem

        (media,) = members
        filesystem = XfsFilesystem(media, companions.get("log"), doubts)
        for role, other in companions.items():
            # The data section is read without the others.
            if role != "log":
                other.close()
        return filesystem

    def open_mounted(
        self, mounts: Sequence[Mount], process: int | None, device: MountedDevice
    ) -> MountedVolume | None:
        """Open a mounted filesystem for the kernel to answer; see `Driver.open_mounted`."""
        from whoseblock.fs.xfs.mounted.volume import MountedXfs

        return MountedXfs.open(mounts, process, device.size)

    def open_companion(self, role: str, media: Media, data: Media) -> AddressSpace:
        """Open the external log or the realtime device of the filesystem on ``data``."""
        from whoseblock.fs.xfs.external import OtherDevice
        from whoseblock.fs.xfs.filesystem import XfsFilesystem

        filesystem = XfsFilesystem(data)
        if role in filesystem.unused_companions:
            why = "its log is internal" if role == "log" else "it has no realtime section"
            raise UnsupportedError(f"the filesystem on {data.name} has no {role} device: {why}")
        return OtherDevice(filesystem.volume, media, role)

    def identify_companion(self, media: Media) -> CompanionContent | None:
        """Return whose external log a medium holds, None if it holds none."""
        from whoseblock.fs.xfs.external import log_owner

        owner = log_owner(media)
        if not owner:
            return None
        return CompanionContent("log", f"the external log of the XFS filesystem {owner}")


DRIVER = XfsDriver()
