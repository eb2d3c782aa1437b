"""The table of all forms of failure: option, program, versions, unit and parser.

``docs/internals/forms.md`` is made of it, with the messages of kernel logs.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from whoseblock.sources.kernel_log.messages import PATTERNS
from whoseblock.sources.kernel_log.patterns import Units
from whoseblock.sources.kernel_log.sequences import SEQUENCES

__all__ = ["FORMS", "Form", "render"]


class Form(NamedTuple):
    """A form of report; ``module`` is its parser in this package, ``sample`` a part of a report."""

    option: str
    program: str
    versions: str
    unit: str
    module: str
    sample: str


FORMS: Final = (
    Form(
        "--mapfile",
        "GNU ddrescue, ddrescuelog",
        "1.0 and later",
        "bytes",
        "block_lists.mapfile",
        "0x00133000  0x00001000  -",
    ),
    Form(
        "--mapfile",
        "HDDSuperClone, progress log",
        "all",
        "sectors of the size in the log",
        "block_lists.superclone",
        "0x000998 0x000008 0x40 0x0 0x3110400",
    ),
    Form(
        "--badblocks",
        "badblocks, dumpe2fs -b, lists for e2fsck -l",
        "all",
        "--block-size",
        "block_lists.block_numbers",
        "307",
    ),
    Form(
        "--sysfs-badblocks",
        "the kernel, /sys/block/*/badblocks",
        "4.4 and later",
        "512-byte sectors",
        "block_lists.sysfs",
        "2456 8",
    ),
    Form(
        "--ndctl",
        "ndctl list --media-errors",
        "59 and later",
        "512-byte sectors",
        "programs.ndctl",
        '"badblocks":[{"offset":2456,"length":8}]',
    ),
    Form(
        "--smart",
        "smartctl --json -x",
        "7.0 and later",
        "logical blocks",
        "programs.smart",
        '"lba":2456',
    ),
    Form(
        "--dmesg",
        "dmesg, journalctl, syslog, logread",
        "see below",
        "see below",
        "kernel_log.dmesg",
        "[ 1201.118070] critical medium error, dev sdb, sector 2456 …",
    ),
    Form(
        "--md-badblocks",
        "mdadm --examine-badblocks, /sys/block/md*/md/dev-*/bad_blocks",
        "metadata 1.x",
        "512-byte sectors of the member",
        "block_lists.md_badblocks",
        "2456 for 8 sectors",
    ),
    Form(
        "--rasdaemon",
        "rasdaemon, ras-mc_event.db",
        "with SQLite",
        "512-byte sectors, pages, bytes",
        "programs.rasdaemon",
        "8:16|2456|8|critical medium error|R",
    ),
    Form(
        "--cxl",
        "cxl list --regions --media-errors",
        "79 and later",
        "bytes of the region",
        "programs.cxl",
        '{"offset":"0x1000","length":64,"source":"Injected"}',
    ),
    Form(
        "--pfn, --phys", "page frame numbers, addresses", "all", "pages, bytes", "memory", "0x133"
    ),
)

_HEAD: Final = """# Forms of failure and messages of the kernel

These tables are made of the code (`make forms`).

## Forms

| option | program | versions | unit | part of a report |
|---|---|---|---|---|
"""
_LOG_HEAD: Final = """
## Messages of the kernel

A message follows a known prefix, or is a field of a record. The column "place" has four values.
`yes`: the range is looked up. `with unit`: it is looked up if the size of a block is known, from
the log, sysfs, the filesystem or `--block-size`. `unknown`: the line is counted with the reason.
`no loss`: the line is passed over. The last column names a public log that has the sample.

| message | unit | place | kernel | versions | sample | seen in |
|---|---|---|---|---|---|---|
"""


def render() -> str:
    """Return the tables as Markdown."""
    return _HEAD + "".join(_form_rows()) + _LOG_HEAD + "".join(_message_rows())


def _form_rows() -> Iterator[str]:
    for one in FORMS:
        cells = (f"`{one.option}`", one.program, one.versions, one.unit, _code(one.sample))
        yield f"| {' | '.join(cells)} |\n"


def _message_rows() -> Iterator[str]:
    for one in PATTERNS:
        cells = (one.name, one.unit or "-", _place(one.sample), one.source, one.versions)
        yield f"| {' | '.join((*cells, _code(one.sample), one.seen))} |\n"
    for several in SEQUENCES:
        cells = (several.name, several.unit, "yes", several.source, several.versions)
        samples = "<br>".join(map(_code, several.sample))
        yield f"| {' | '.join((*cells, samples, several.seen))} |\n"


def _place(sample: str) -> str:
    """Return whether a message has a place, as its reader says of the sample."""
    from whoseblock.sources.kernel_log.messages import find_pattern
    from whoseblock.sources.kernel_log.patterns import Harmless, Located

    pattern = find_pattern(sample)
    match = pattern.match(sample) if pattern else None
    if pattern is None or match is None:
        raise ValueError(sample)
    found = pattern.read(match, Units())
    if isinstance(found, Located):
        return "yes"
    if isinstance(found, Harmless):
        return "no loss"
    sized = Units(4096, lambda _: 512, lambda _: 512, 512)
    if isinstance(pattern.read(match, sized), Located):
        return "with unit"
    return f"unknown, {found.reason}"


def _code(text: str) -> str:
    return f"`{text.strip()}`".replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")  # noqa: T201 - the Makefile writes it to the file
