"""The requirements of the last part of the demo, and those that this machine meets."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["Need", "describe", "missing", "needs"]

#: Debian leaves /usr/sbin out of an ordinary user's PATH.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class Need(NamedTuple):
    """One requirement: ``hint`` is empty if this machine has it, else says how to get it.

    ``mount`` tells whether only the repair of a mounted filesystem needs it.
    """

    name: str
    hint: str
    mount: bool


def needs() -> list[Need]:
    """List what the repair needs, with what is missing here."""
    return [
        Need("libfuse", _libfuse(), mount=False),
        Need("/dev/fuse", _fuse_device(), mount=False),
        Need("fusermount3 or root", _fusermount(), mount=False),
        Need("root", "" if os.geteuid() == 0 else "run: sudo make demo", mount=True),
        Need("mount namespaces", _namespace(), mount=True),
        Need("loop devices", _loop(), mount=True),
        Need("XFS in the kernel", _xfs(), mount=True),
    ]


def missing(found: list[Need], *, mount: bool) -> str:
    """Return what is missing, as one sentence, or an empty string.

    Without ``mount``: of what a failing device needs that is not mounted.
    """
    return "; ".join(
        f"no {need.name} ({need.hint})" for need in found if need.hint and (mount or not need.mount)
    )


def describe(found: list[Need]) -> str:
    """Return the lines that the demo prints before it starts."""
    lines = [
        "The demo works on scratch files and needs no root. Its last part repairs what failed.",
        "On a mounted filesystem, where it can restore a page that two files share, that needs:",
        *(f"  {need.name:<20} {_state(need)}" for need in found),
    ]
    if not missing(found, mount=True):
        lines.append("This machine has everything.")
    elif not missing(found, mount=False):
        lines.append("Here it repairs an unmounted device instead: free space, and no shared page.")
    else:
        lines.append("Here it repairs the image file instead: free space, and no shared page.")
    return "\n".join(lines)


def _state(need: Need) -> str:
    return f"missing: {need.hint}" if need.hint else "present"


def _libfuse() -> str:
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        import mfusepy  # noqa: F401 - it loads libfuse
    except (ImportError, OSError, AttributeError):
        return "install the package libfuse3-3"
    return ""


def _fuse_device() -> str:
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return ""
    return "load the kernel module fuse; in a container, pass the device in"


def _fusermount() -> str:
    if os.geteuid() == 0 or shutil.which("fusermount3", path=_PATH):
        return ""
    return "install the package fuse3"


def _namespace() -> str:
    if os.geteuid() != 0:
        return ""
    unshare = shutil.which("unshare", path=_PATH)
    if unshare is None:
        return "install the package util-linux"
    done = subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False)
    return "a container must be privileged" if done.returncode else ""


def _loop() -> str:
    if not all(shutil.which(name, path=_PATH) for name in ("losetup", "mount", "umount")):
        return "install the package mount"
    if not Path("/dev/loop-control").exists():
        return "load the kernel module loop; in a container, pass its devices in"
    return ""


def _xfs() -> str:
    if "\txfs\n" in Path("/proc/filesystems").read_text():
        return ""
    probe = shutil.which("modprobe", path=_PATH)
    if probe is not None:
        words = [probe, "--dry-run", "--quiet", "xfs"]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return ""
    return "a kernel with XFS, built in or as the module xfs"
