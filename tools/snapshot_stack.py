#!/usr/bin/env python3
"""Save what the kernel says of this machine's devices, so that others can look at their stack.

    tools/snapshot_stack.py machine.tar.xz

The archive has small text files and symbolic links of /sys and /proc:

- block devices with their partitions, holders, device-mapper names, md and loop attributes, and
  bad blocks;
- the regions and namespaces of persistent memory;
- /proc/iomem, mountinfo, mdstat, partitions and swaps.
Device-mapper's tables, which are no files, are added as dm-tables/dm-N, without keys.  Unpacked, it
stands in for / in ``whoseblock stack --root DIR``.

No content of any device is read, and no serial number; but mountinfo and the backing files of loop
devices name folders: look at it before you send it.  Run it as root, or half of it will be missing.
It needs nothing but Python 3.8.
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

LINKS = ["block", "class/block", "dev/block", "bus/nd/devices", "bus/dax/devices"]
PROC = ["partitions", "mdstat", "self/mountinfo", "iomem", "swaps"]

BLOCK = "dev size ro partition start removable badblocks uevent alignment_offset".split()
QUEUE = "logical_block_size physical_block_size hw_sector_size rotational dax".split()
LOOP = "backing_file offset sizelimit autoclear partscan dio".split()
MD = (
    "level layout chunk_size component_size raid_disks metadata_version reshape_position"
    " array_state array_size degraded sync_action uuid"
).split()
MD_MEMBER = "slot offset size state errors bad_blocks recovery_start".split()
ND = (
    "resource size mode align namespace uuid sector_size badblocks mappings type nstype devtype"
    " set_cookie available_size holder_class holder force_raw uevent mapping0 target_node"
    " page_offset id"
).split()

#: Attributes of sysfs are a page at most.
MOST = 64 * 1024


def attributes(folder: Path) -> Iterator[Path]:
    """Yield the files and links that are saved of one device."""
    names = {"dm": "name uuid suspended".split(), "loop": LOOP, "queue": QUEUE, "md": MD}
    yield from (folder / name for name in BLOCK + ND)
    for group, members in names.items():
        yield from (folder / group / name for name in members)
    for group in ("holders", "slaves"):
        yield folder / group
        yield from sorted((folder / group).glob("*"))
    for member in sorted((folder / "md").glob("dev-*")):
        yield from (member / name for name in [*MD_MEMBER, "block"])
    yield from sorted((folder / "md").glob("rd*"))


def save(archive: tarfile.TarFile, path: Path) -> None:
    """Add a file, a folder or a link by its full path; pass over what cannot be read."""
    entry = tarfile.TarInfo(str(path).lstrip("/"))
    try:
        if path.is_symlink():
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)  # noqa: PTH115 - 3.8
            archive.addfile(entry)
        elif path.is_dir():
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        elif path.is_file():
            with path.open("rb") as file:
                data = file.read(MOST)
            add(archive, entry.name, data)
    except OSError:
        # Not there, not now, or not for us: a device may not have what its neighbour has.
        return


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file with a content of our own."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def main() -> None:
    """Write the archive that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if "--help" in sys.argv else 2)
    with tarfile.open(sys.argv[1], "w:xz") as archive:
        devices = set()
        for group in LINKS:
            for link in sorted(Path("/sys", group).glob("*")):
                save(archive, link)
                devices.add(link.resolve())
        for device in sorted(devices):
            save(archive, device)
            for path in attributes(device):
                save(archive, path)
        for name in PROC:
            save(archive, Path("/proc", name))
        for volume in sorted(Path("/sys/block").glob("dm-*")):
            name = (volume / "dm" / "name").read_text().strip()
            # Without --showkeys dmsetup writes zeros in place of keys.
            done = subprocess.run(["dmsetup", "table", name], stdout=subprocess.PIPE, check=False)
            add(archive, f"dm-tables/{volume.name}", done.stdout)
    print(f"{sys.argv[1]} written: look at it before you send it")


if __name__ == "__main__":
    main()
