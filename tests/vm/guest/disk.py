"""The kernel's virtual disk scsi_debug, with medium errors in chosen places."""

import json
from pathlib import Path

from tests.vm.guest.machine import modprobe, run, wait_for

__all__ = ["Disk", "read_direct"]

_PARAMETERS = Path("/sys/module/scsi_debug/parameters")
_DRIVER = Path("/sys/bus/pseudo/drivers/scsi_debug")
_MEDIUM_ERROR = 2  # SDEBUG_OPT_MEDIUM_ERR in drivers/scsi/scsi_debug.c


class Disk:
    """A disk in memory."""

    def __init__(self, mebibytes: int) -> None:
        modprobe("sd_mod")
        run(["modprobe", "scsi_debug", f"dev_size_mb={mebibytes}", "opts=0", "delay=0"])
        self.name = wait_for(self._find)

    @staticmethod
    def _find() -> str:
        listed = json.loads(run(["lsblk", "--json", "-d", "-o", "NAME,MODEL"]))["blockdevices"]
        names = [one["name"] for one in listed if "scsi_debug" in (one["model"] or "")]
        return str(names[0]) if names else ""

    @property
    def device(self) -> str:
        return f"/dev/{self.name}"

    def partition(self, number: int) -> str:
        """Return the device of a partition once the kernel has made it."""
        path = f"{self.device}{number}"
        wait_for(Path(path).exists)
        return path

    @staticmethod
    def fail(offset: int, sectors: int = 1) -> None:
        """Make reads of sectors fail with a medium error."""
        (_PARAMETERS / "medium_error_start").write_text(str(offset // 512))
        (_PARAMETERS / "medium_error_count").write_text(str(sectors))
        (_DRIVER / "opts").write_text(str(_MEDIUM_ERROR))

    def heal(self) -> None:
        """Read everywhere again, and forget what was on it."""
        (_DRIVER / "opts").write_text("0")
        run(["wipefs", "-qaf", self.device])
        run(["blockdev", "--rereadpt", self.device])


def read_direct(file: Path, offset: int, length: int = 4096) -> None:
    """Read from the medium, not from memory; raises RuntimeError if it cannot be read."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    where = [f"bs={length}", f"skip={offset // length}", "count=1"]
    run(["dd", f"if={file}", "of=/dev/null", *where, "iflag=direct"])
