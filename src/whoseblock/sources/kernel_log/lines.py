"""Recognise kernel logs, and errors in unsupported forms.

An error in an unsupported form must not pass for a clean log, and neither must a file that is not a
log.
"""

import re
from collections import Counter
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import Reading
from whoseblock.sources.kernel_log.prefixes import has_time

__all__ = ["LogForm", "OtherErrors"]

#: Words that report lost data by themselves.
_LOSS_WORDS: Final = re.compile(
    r"i/o error|medium error|hardware error|critical medium|unrecovered|uncorrect|corrupt"
    r"|medium or hardware|sense key|memory failure|checksum error|csum failed|unable to fixup"
    r"|failed command|lost .{0,16}write|not correctable|mismatch sector"
)
#: Words that report lost data in a line device storage.
_ERROR_WORDS: Final = re.compile(r"error(?!s=)|fail|bad (?:block|sector|page|area)|lost")
_STORAGE_WORDS: Final = re.compile(
    r"\b(?:(?:sd|vd|xvd|hd)[a-z]{1,3}|(?:nvme|dm-|md|pmem|loop|mmcblk|sr|nbd|zd|ram)\d\w{0,8}"
    r"|ata\d{1,3}(?:\.\d\d)?|s[dr] \d+:\d+:\d+:\d+|scsi|xfs|ext[234](?:-fs)?|btrfs"
    r"|f2fs|jbd2|bcachefs|zfs|gfs2|ocfs2|raid\w{0,4}|device-mapper|bcache|nd_\w{1,12}|nfit"
    r"|cxl\w{0,8}|edac|mce|dax|blk\w{0,20})"
    r"(?!\w)"
)
#: The device of a line; another line of the same fault may name the sector.
_DEVICE: Final = re.compile(
    r"\[(?P<scsi>[a-z]{2,4})\]|\bon dev (?P<buffer>[\w-]{1,64})|\b(?P<ata>ata)\d"
    r"|(?P<memory>\[hardware error\]|\bedac\b|\bmce\b|memory failure)"
)
#: Errors of the path or the target, timeouts, and requests without data.
_NO_LOSS: Final = re.compile(r"[\w /:]{1,60} error, dev [^\s,]{1,64}, sector \d", re.ASCII)
_PARTITION: Final = re.compile(r"p?\d{1,4}", re.ASCII)
#: Limit on the number of devices that are counted separately.
_MAX_DEVICES: Final = 256


class OtherErrors:
    """Counts the lines that report errors in an unsupported form, by device.

    ``known`` are the devices of the failures that were read.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._first: dict[str, tuple[int, str]] = {}
        self._counts: Counter[str] = Counter()
        self._harmless = 0

    def examine(self, number: int, text: str) -> None:
        """Count a message, without its prefix, if it reports an error of storage or memory."""
        if _NO_LOSS.match(text):
            self._harmless += 1
            return
        lower = text.lower()
        if not _LOSS_WORDS.search(lower) and not (
            _ERROR_WORDS.search(lower) and _STORAGE_WORDS.search(lower)
        ):
            return
        device = self._find_device(lower)
        if device not in self._first and len(self._first) >= _MAX_DEVICES:
            device = ""
        self._first.setdefault(device, (number, text))
        self._counts[device] += 1

    @staticmethod
    def _find_device(lower: str) -> str:
        match = _DEVICE.search(lower)
        if match is None:
            return ""
        if match["memory"]:
            return PHYSICAL_MEMORY
        return match["scsi"] or match["buffer"] or match["ata"] or ""

    def report_to(self, reading: Reading) -> None:
        """Add the lines that no failure explains to a reading."""
        left = [device for device in self._first if not self.is_explained(device)]
        for device in sorted(left, key=lambda device: self._first[device][0]):
            number, text = self._first[device]
            reading.count_unrecognised(f"line {number}", text, self._counts[device])
        if self._harmless and not reading.failures:
            reports = "line reports" if self._harmless == 1 else "lines report"
            reading.remarks.append(
                f"{self._harmless} {reports} an error of the path, a timeout, or a request without"
                " data, which names no lost sector"
            )

    def is_explained(self, device: str) -> bool:
        """Return whether a failure of the device, or of its disk, was read."""
        if device == "ata":
            return bool(self.known - {PHYSICAL_MEMORY})
        return device in self.known or any(
            device.startswith(disk) and _PARTITION.fullmatch(device, len(disk))
            for disk in self.known
        )


class LogForm:
    """Checks whether the input is a kernel log.

    Binary data are refused unless at least one line is the kernel's. A log damaged by a crash may
    contain NULs and is still a log.
    """

    def __init__(self) -> None:
        self.is_log = False
        self._binary: tuple[int, str] | None = None

    def examine(self, number: int, line: str) -> None:
        """Check a line for the prefix of a kernel message, and for binary data."""
        text = line.rstrip("\r\n").replace("\t", " ").replace("\ufeff", "")
        if text.isprintable():
            self.is_log = has_time(text)
        elif self._binary is None:
            self._binary = number, line[:8]

    def check(self, name: str) -> None:
        """Raise `MalformedError` for binary data without a line of the kernel."""
        if self.is_log or self._binary is None:
            return
        number, begin = self._binary
        hint = next((hint for magic, hint in _MAGIC_HINTS.items() if begin.startswith(magic)), "")
        raise MalformedError(
            name,
            number,
            "a kernel log as text, as dmesg or journalctl -k prints it, and not binary data",
            hint=hint if number == 1 else "",
        )


#: How to read other forms of logs, by their first bytes as UTF-8 with lone surrogates.
_MAGIC_HINTS: Final = {
    "\udcff\udcfe": "it is UTF-16: iconv -f UTF-16 FILE | whoseblock … --dmesg -",
    "\x1f\udc8b": "it is compressed with gzip: zcat FILE | whoseblock … --dmesg -",
    "\udcfd7zXZ": "it is compressed with xz: xzcat FILE | whoseblock … --dmesg -",
    "(\udcb5/\udcfd": "it is compressed with zstd: zstdcat FILE | whoseblock … --dmesg -",
    "LPKSHHRH": "it is a journal: journalctl -k --file FILE | whoseblock … --dmesg -",
}
