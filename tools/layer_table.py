"""Write docs/internals/layers.md from the code that follows layers.

Run it as ``make layers``; a test compares the page with its output.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from whoseblock.signatures import SIGNATURES
from whoseblock.stack.formats.md import FOREIGN_ARRAYS, LEVELS
from whoseblock.stack.formats.partitions import SECTOR_SIZES
from whoseblock.stack.images.volumes import FOLLOWED_SEGMENTS
from whoseblock.stack.kernel.dm import FOLLOWED_TARGETS

__all__ = ["page"]

#: The line of the page after which the table is written.
_MARKER: Final = "<!-- table: make layers -->\n"
_PAGE: Final = Path(__file__).resolve().parent.parent / "docs/internals/layers.md"
_NAMED: Final = "named"


class _Row(NamedTuple):
    """A layer, what is done about it in images and on a running machine, and how to go on."""

    layer: str
    offline: str
    live: str
    go_on: str = ""


def page() -> str:
    """Return the page, with the table of the code."""
    text, marker, _ = _PAGE.read_text("utf-8").partition(_MARKER)
    head = "\n| layer | in images | running | how to go on |\n|---|---|---|---|\n"
    return text + marker + head + "".join(f"| {' | '.join(row)} |\n" for row in _rows())


def _rows() -> Iterator[_Row]:
    followed, kernel = "followed", "followed, as the kernel has it"
    sizes = " or ".join(map(str, SECTOR_SIZES))
    yield _Row(f"GPT, its backup; sectors of {sizes} bytes", followed, kernel)
    unit = "`--sector-size`, if the size of sectors is not clear"
    yield _Row("MBR with logical partitions", followed, kernel, unit)
    for segment, how in FOLLOWED_SEGMENTS.items():
        missing = "`--member` for each of the other disks"
        yield _Row(f"LVM segment {segment}", f"followed {how}", "see device-mapper", missing)
    yield _Row("LVM segment of another type", _NAMED, "see device-mapper", "activate the group")
    for target, how in FOLLOWED_TARGETS.items():
        yield _Row(f"device-mapper {target}", "", f"followed, {how}")
    go_on = "name the volume that it maps"
    yield _Row("device-mapper target of another kind", "", _NAMED, go_on)
    for name in LEVELS.values():
        others = "`--member` for each of the other disks"
        yield _Row(f"md {name}", "followed, superblocks 0.90, 1.0, 1.1, 1.2", followed, others)
    yield _Row("md while it is reshaped", _NAMED, _NAMED, "wait until it is finished")
    former = "named, with event counts"
    yield _Row("former member of an md array", former, former, "name a current member")
    for kind, _, _ in FOREIGN_ARRAYS:
        go_on = "assemble it with mdadm, and name its volume"
        yield _Row(f"member of an {kind}", _NAMED, followed, go_on)
    opened = "followed with an image of the opened volume"
    go_on = "`--member CLEAR=IMAGE`"
    yield _Row("LUKS1, LUKS2", opened, "followed, if it is open", go_on)
    go_on = "open it, and name the volume"
    what = "LUKS with checksums of sectors, during reencryption, or with a detached header"
    yield _Row(what, _NAMED, "as its holders in the kernel", go_on)
    for one in SIGNATURES:
        if one.kind in ("encrypted", "member") and one.advice and not _is_layer(one.name):
            yield _Row(one.title, _NAMED, "as its holder in the kernel", one.advice)
    modes = "followed: fsdax and raw namespaces"
    yield _Row("persistent memory", "", modes, "sector mode (BTT) is named")
    yield _Row("loop device", "", "followed with `--through-loop`")


def _is_layer(name: str) -> bool:
    """Return whether a signature is that of a layer with rows of its own."""
    return name in ("LVM2_member", "linux_raid_member", "crypto_LUKS")


if __name__ == "__main__":
    _PAGE.write_text(page(), "utf-8")
