"""The programs and privileges that tests ask for, and what to do when one is missing."""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "Missing",
    "btrfsprogs",
    "e2fsprogs",
    "find",
    "need_loop_mounts",
    "need_root",
    "package_of",
    "program",
    "run",
    "sees",
    "xfsprogs",
]

CHECKOUT = Path(__file__).resolve().parents[2]

#: Where `tools/xfsprogs` puts the newest xfsprogs; another folder can be named by the environment.
_NEWEST = Path(os.environ.get("WHOSEBLOCK_XFSPROGS") or CHECKOUT / "build" / "xfsprogs" / "bin")
#: The same for `tools/e2fsprogs`.
_NEWEST_E2FSPROGS = Path(
    os.environ.get("WHOSEBLOCK_E2FSPROGS") or CHECKOUT / "build" / "e2fsprogs" / "bin"
)
#: The same for `tools/btrfsprogs`.
_NEWEST_BTRFSPROGS = Path(
    os.environ.get("WHOSEBLOCK_BTRFSPROGS") or CHECKOUT / "build" / "btrfs-progs" / "bin"
)

#: Debian leaves the last two out of an ordinary user's PATH; mkfs.xfs and sfdisk are there.
_SYSTEM = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

#: Debian's package of each program that tests run, unless every Debian has it.
_PACKAGES = {
    name: package
    for package, names in {
        "attr": "getfattr setfattr",
        "btrfs-progs": "mkfs.btrfs",
        "chromium-driver": "chromedriver",
        "cryptsetup-bin": "cryptsetup veritysetup",
        "dmsetup": "dmsetup",
        "dosfstools": "mkfs.vfat",
        "e2fsprogs": "badblocks chattr debugfs dumpe2fs e2fsck filefrag lsattr mke2fs mkfs.ext4"
        " resize2fs tune2fs",
        "exfatprogs": "mkfs.exfat",
        "f2fs-tools": "mkfs.f2fs",
        "fdisk": "fdisk sfdisk",
        "fuse3": "fusermount3",
        "gddrescue": "ddrescue ddrescuelog",
        "gdisk": "sgdisk",
        "git": "git",
        "groff-base": "groff",
        "lvm2": "pvcreate vgcfgbackup vgcfgrestore vgcreate",
        "mdadm": "mdadm",
        "mount": "losetup mount swapoff swapon umount",
        "ndctl": "ndctl",
        "ntfs-3g": "mkntfs ntfsclone",
        "prometheus": "promtool",
        "qemu-utils": "qemu-img",
        "systemd": "journalctl systemctl systemd-analyze",
        "util-linux": "blkid dmesg mkswap partx setpriv unshare",
        "xfsprogs": "mkfs.xfs xfs_copy xfs_db xfs_io xfs_logprint xfs_mdrestore xfs_metadump"
        " xfs_repair",
        "xz-utils": "xz",
    }.items()
    for name in names.split()
}


class Missing(Exception):  # noqa: N818 - no error of ours: it becomes a skip
    """This machine lacks something; the message says what would bring it."""


def find(name: str) -> str | None:
    """Return the path of a program in PATH, /usr/sbin or /sbin, or None."""
    return shutil.which(name, path=_SYSTEM)


def package_of(name: str) -> str:
    """Return Debian's package of a program; its own name if it is not in the table."""
    return _PACKAGES.get(name, name)


def program(name: str) -> str:
    """Return the path of a program; raise `Missing`, which names its package, if there is none."""
    found = find(name)
    if found is None:
        raise Missing(f"{name} is not installed: install the package {package_of(name)}")
    return found


def run(command: Sequence[str | Path], stdin: bytes | None = None) -> bytes:
    """Run a program and return its standard output.

    Raises `Missing` if the program is not installed, `RuntimeError` with its words if it fails.
    """
    given: list[str | Path] = list(command)
    if isinstance(given[0], str) and os.sep not in given[0]:
        given[0] = program(given[0])
    done = subprocess.run(given, input=stdin, capture_output=True, check=False)
    if done.returncode:
        words = (done.stderr + done.stdout).decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(map(str, command))} gave {done.returncode}: {words}")
    return done.stdout


def xfsprogs(name: str, *, newest: bool = True) -> Path:
    """Find a program of xfsprogs: the newest that there is, or else the system's own."""
    ours = _NEWEST / name
    if newest and os.access(ours, os.X_OK):
        return ours
    found = find(name)
    if found is None:
        raise Missing(f"{name} is not installed: install xfsprogs, or run tools/xfsprogs")
    return Path(found)


def e2fsprogs(name: str, *, newest: bool) -> Path:
    """Find a program of e2fsprogs: the newest, or the system's own."""
    return _find_newest(name, _NEWEST_E2FSPROGS, "e2fsprogs") if newest else Path(program(name))


def btrfsprogs(name: str, *, newest: bool) -> Path:
    """Find a program of btrfs-progs: the newest, or the system's own."""
    return _find_newest(name, _NEWEST_BTRFSPROGS, "btrfsprogs") if newest else Path(program(name))


def _find_newest(name: str, folder: Path, tool: str) -> Path:
    ours = folder / name
    if not os.access(ours, os.X_OK):
        raise Missing(f"the newest {tool} are not here: run tools/{tool}")
    return ours


@functools.cache
def sees(option: str, *more: str, newest: bool = True) -> bool:
    """Return whether mkfs.xfs knows an option; -N writes nothing."""
    mkfs = xfsprogs("mkfs.xfs", newest=newest)
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(1 << 30)
        done = subprocess.run(
            [mkfs, "-N", "-f", option, *more, file.name], capture_output=True, check=False
        )
    return done.returncode == 0


#: The numbers of the capabilities that tests as root use, of linux/capability.h.
_CAPABILITIES = {"CAP_SYS_CHROOT": 18, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}


def need_root() -> None:
    """Raise `Missing` unless this process is root, and not one that a container restricts."""
    if os.geteuid() != 0:
        raise Missing("this needs root, to mount and to ask the kernel: run the tests as root")
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    lacking = [name for name, bit in _CAPABILITIES.items() if not int(effective, 16) >> bit & 1]
    if lacking:
        names = ", ".join(lacking)
        raise Missing(f"root has no {names} here: run the tests in a privileged container")


@functools.cache
def _loop_mounts_fail() -> str:
    """Try one loop mount of a fresh filesystem; what went wrong, or nothing."""
    from tests.support.mounts import mounted

    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "probe.xfs"
        with image.open("wb") as file:
            file.truncate(320 << 20)
        try:
            run([xfsprogs("mkfs.xfs", newest=False), "-q", "-m", "rmapbt=1", image])
            with mounted(image):
                return ""
        except RuntimeError as error:
            return str(error)


def need_loop_mounts() -> None:
    """Raise `Missing` unless XFS on a loop device can be mounted here."""
    need_root()
    if why := _loop_mounts_fail():
        raise Missing(f"XFS cannot be mounted from a loop device here ({why}): load xfs and loop")
