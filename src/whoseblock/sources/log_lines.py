"""Lines of a kernel log beside those that are read as failures: prefixes, other errors, the form.

An error in a form that is not read must not pass for a clean log, and neither must a file that is
no log at all.
"""

import re
from collections import Counter
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Reading
from whoseblock.stack.base import PHYSICAL_MEMORY

__all__ = ["HINTS", "PREFIX", "LogForm", "OtherErrors"]

#: What stands before a message in a log that was saved.
PREFIX: Final = re.compile(
    r"""\A
    (?:<\d{1,3}>)?                                      # dmesg --raw, /proc/kmsg
    (?:[a-z][a-z0-9]{1,8}\ *:[a-z]{1,8}\ *:\ )?         # dmesg --decode
    (?:
        \d{1,4},\d{1,20},\d{1,20},[^;]{1,200};          # /dev/kmsg
      | (?:1\ )?                                        # syslog, and journalctl -o short…
        (?: [A-Z][a-z]{2}\ [ \d]\d\ [\d:.]{8,20}
          | (?:[A-Z][a-z]{2}\ )?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:[-+\d.,:Z]{2,25}(?:\ [A-Z]{2,5})?
          | \d{1,12}\.\d{1,9}
          | \[[ \d.]{1,25}\]
        )
        \ \S{1,255}\ kernel(?::|\ -\ -\ -)[ ]
      | \d{4}-\d\d-\d\dT\d\d:\d\d:[-+\d.,:Z]{2,25}[ ]   # dmesg --time-format=iso
    )?
    (?:\[[^]]{1,60}\]\ ?){0,3}                          # the time; who spoke
    """,
    re.ASCII | re.VERBOSE,
)

#: One of these is in every line that `OtherErrors` counts, in lower case.
HINTS: Final = ("error", "fail", "corrupt", "sense", "bad ", "lost", "unable to fixup", "mismatch")
#: Words that report lost data by themselves.
_GRAVE: Final = re.compile(
    r"i/o error|medium error|hardware error|critical medium|unrecovered|uncorrect|corrupt"
    r"|medium or hardware|sense key|memory failure|checksum error|csum failed|unable to fixup"
    r"|failed command|lost .{0,16}write|not correctable|mismatch sector"
)
#: Words that do so in a line of something that stores.
_LIGHT: Final = re.compile(r"error(?!s=)|fail|bad (?:block|sector|page|area)|lost")
_STORES: Final = re.compile(
    r"\b(?:(?:sd|vd|xvd|hd)[a-z]{1,3}|(?:nvme|dm-|md|pmem|loop|mmcblk|sr|nbd|zd|ram)\d\w{0,8}"
    r"|ata\d{1,3}(?:\.\d\d)?|s[dr] \d+:\d+:\d+:\d+|scsi|xfs|ext[234](?:-fs)?|btrfs"
    r"|f2fs|jbd2|bcachefs|zfs|gfs2|ocfs2|raid\w{0,4}|device-mapper|bcache|nd_\w{1,12}|nfit"
    r"|cxl\w{0,8}|edac|mce|dax|blk\w{0,20})"
    r"(?!\w)"
)
#: The device that a line is about, where another line of the same fault may name the sector.
_ABOUT: Final = re.compile(
    r"\[(?P<scsi>[a-z]{2,4})\]|\bon dev (?P<buffer>[\w-]{1,64})|\b(?P<ata>ata)\d"
    r"|(?P<memory>\[hardware error\]|\bedac\b|\bmce\b|memory failure)"
)
#: What the kernel calls an error of the path, the target or the time; or has no data to lose.
_NO_LOSS: Final = re.compile(r"[\w /:]{1,60} error, dev ", re.ASCII)
_PARTITION: Final = re.compile(r"p?\d{1,4}", re.ASCII)
#: So many devices are told apart.
_MOST_DEVICES: Final = 256


class OtherErrors:
    """Lines that report errors in a form that is not read, by the device that they name.

    ``known`` are the devices of which a failure was read.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._first: dict[str, tuple[int, str]] = {}
        self._counts: Counter[str] = Counter()
        self._harmless = 0

    def look_at(self, number: int, line: str) -> None:
        """Count a line if it reports an error of storage or memory."""
        text = PREFIX.sub("", line, count=1)
        if _NO_LOSS.match(text):
            self._harmless += 1
            return
        lower = text.lower()
        if not _GRAVE.search(lower) and not (_LIGHT.search(lower) and _STORES.search(lower)):
            return
        about = self._about(lower)
        if about not in self._first and len(self._first) >= _MOST_DEVICES:
            about = ""
        self._first.setdefault(about, (number, text))
        self._counts[about] += 1

    @staticmethod
    def _about(lower: str) -> str:
        match = _ABOUT.search(lower)
        if match is None:
            return ""
        if match["memory"]:
            return PHYSICAL_MEMORY
        return match["scsi"] or match["buffer"] or match["ata"] or ""

    def count_in(self, reading: Reading) -> None:
        """Add the lines that no failure explains to a reading."""
        left = [about for about in self._first if not self._is_explained(about)]
        for about in sorted(left, key=lambda about: self._first[about][0]):
            number, text = self._first[about]
            reading.count_unrecognised(f"line {number}", text, self._counts[about])
        if self._harmless and not reading.failures:
            reports = "line reports" if self._harmless == 1 else "lines report"
            reading.remarks.append(
                f"{self._harmless} {reports} an error of the path, a timeout, or a request without"
                " data, which names no lost sector"
            )

    def _is_explained(self, about: str) -> bool:
        """Tell whether a failure of the device, or of its disk, was read beside these lines."""
        if about == "ata":
            return bool(self.known - {PHYSICAL_MEMORY})
        return about in self.known or any(
            about.startswith(disk) and _PARTITION.fullmatch(about, len(disk)) for disk in self.known
        )


class LogForm:
    """Whether what is read is a kernel log: binary data is refused unless a line is the kernel's.

    A log that a crash has damaged may have NULs in it, and is still one.
    """

    def __init__(self) -> None:
        self.is_log = False
        self._binary: tuple[int, str] | None = None

    def look_at(self, number: int, line: str) -> None:
        """Look for the prefix of a kernel message, and for what is no text."""
        text = line.rstrip("\r\n").replace("\t", " ")
        if text.isprintable():
            end = PREFIX.match(text)
            self.is_log = end is not None and any(map(str.isdigit, end[0]))
        elif self._binary is None:
            self._binary = number, line[:8]

    def check(self, name: str) -> None:
        """Raise `MalformedError` for binary data of which no line is the kernel's."""
        if self.is_log or self._binary is None:
            return
        number, begin = self._binary
        hint = next((hint for magic, hint in _PACKED.items() if begin.startswith(magic)), "")
        raise MalformedError(
            name,
            number,
            "a kernel log as text, as dmesg or journalctl -k prints it, and not binary data",
            hint=hint if number == 1 else "",
        )


#: How files begin in which logs are kept, as UTF-8 with lone surrogates, and how to read them.
_PACKED: Final = {
    "\x1b[": "it has colours: dmesg --color=never",
    "\x1f\udc8b": "it is compressed with gzip: zcat FILE | whoseblock … --dmesg -",
    "\udcfd7zXZ": "it is compressed with xz: xzcat FILE | whoseblock … --dmesg -",
    "(\udcb5/\udcfd": "it is compressed with zstd: zstdcat FILE | whoseblock … --dmesg -",
    "LPKSHHRH": "it is a journal: journalctl -k --file FILE | whoseblock … --dmesg -",
}
