"""``whoseblock lookup``: report the owners of ranges; `report_owners` does it."""

from typing import Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.options.choices import Choices
from whoseblock.cli.options.failure_values import FailureOptions
from whoseblock.cli.options.failures import failure_options
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.fs.base import MAX_OWNERS

__all__ = ["lookup"]


@click.command(
    cls=Command,
    epilog="""\b
Ranges are START[+LENGTH]: decimal or 0x…, with an optional suffix:
  (none)   bytes                 s  512-byte sectors
  K M G T  powers of 1024        p  4096-byte pages
  b        filesystem blocks, from the start of TARGET
LENGTH defaults to one unit of START's suffix; for K M G T to one byte.

\b
TARGET is the device or image of a filesystem, a whole disk or its image with
partitions, LVM or md, or a mount point.  It is omitted if the failure names
its device.  If it is mounted, the kernel is queried, which needs root.

\b
Examples:
  whoseblock lookup disk.img 307p              one page
  whoseblock lookup /dev/sda 2456s+8s          eight sectors of a disk
  whoseblock lookup /srv 307p --processes      with the processes that use it
  whoseblock lookup disk.img 0x133000+4K 1G    two ranges
  whoseblock lookup disk.img --ranges bad.txt --json
  whoseblock lookup rescued.img --mapfile rescued.map --summary
  whoseblock lookup rescued.img --mapfile rescued.map --output damaged.csv
  whoseblock lookup rescued.img --mapfile rescued.map --output rows.parquet
  whoseblock lookup rescued.img --mapfile rescued.map --report damage.html
  whoseblock lookup --pfn 0x10140a             a page of persistent memory
  dmesg | whoseblock lookup --dmesg -          all failures in the kernel log
  smartctl --json -x /dev/sda | whoseblock lookup /dev/sda --smart -""",
)
@click.argument("target", required=False, type=click.Path(readable=False))
@click.argument("ranges", nargs=-1, metavar="[RANGE]...")
@failure_options
@target_options
@click.option("--json", "as_json", is_flag=True, help="Write JSON Lines, one object per range.")
@click.option("--no-paths", is_flag=True, help="Report files by inode only, which is faster.")
@click.option(
    "--no-scan",
    is_flag=True,
    help="Do not read all inodes to find owners where there is no reverse map, or a damaged one.",
)
@click.option(
    "--scan",
    is_flag=True,
    help="Read all inodes to find owners where a reverse map is damaged, even if they are many.",
)
@click.option(
    "--max-owners",
    type=click.IntRange(min=1),
    default=MAX_OWNERS,
    show_default=True,
    metavar="N",
    help="List at most N owners of one extent, which thousands of snapshots may share.",
)
@click.option(
    "--fail-incomplete",
    is_flag=True,
    help="Exit with code 24 if an owner or a path may be missing in an answer.",
)
@click.option(
    "--processes",
    is_flag=True,
    help="Report processes that map the range or have the file open; default in root's table.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Query the owners again at the end and report changes.",
)
@click.option(
    "--summary",
    is_flag=True,
    help="Report the loss of each file, and totals, instead of every range.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Write the list of --summary to FILE, .csv or .json; or the rows of all answers to a"
    " table, .parquet or .arrow.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Write a report for people to FILE, .html: a map, the lost files, what can be done.",
)
def lookup(target: str | None, ranges: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
    """Report the owners of each RANGE of TARGET.

    The owners are all files that share the range, with every path, or metadata of the filesystem.
    Free space has no owner.  For a disk, the layers down to the filesystem are shown.
    """
    given = FailureOptions.of(ranges, options)
    given.check(target=target is not None)
    choices = Choices(**{name: options[name] for name in Choices._fields})
    choices.check(offline=options["offline"])
    where = options_of(options)
    from whoseblock.cli.report_owners import report_owners

    if code := report_owners(target, given, choices, where):
        click.get_current_context().exit(code)
