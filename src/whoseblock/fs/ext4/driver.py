"""The driver of ext2, ext3 and ext4."""

from collections.abc import Iterable, Mapping, Sequence

from whoseblock.fs.driver import Driver, Probe, Volume
from whoseblock.media.base import Media

__all__ = ["DRIVER"]


class Ext4Driver(Driver):
    """Knows ext2, ext3 and ext4 on devices and images; mounted, the kernel answers alone."""

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


DRIVER = Ext4Driver()
