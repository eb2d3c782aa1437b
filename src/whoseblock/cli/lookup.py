"""``whoseblock lookup``: who owns these ranges?"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.failures import Given, failure_options, failures_of
from whoseblock.cli.notices import report_options, report_readings, report_resolver
from whoseblock.cli.output import OutputFile, write_chunks
from whoseblock.cli.progress import ProgressBar
from whoseblock.cli.targets import options_of, target_options
from whoseblock.fs.base import Answer

if TYPE_CHECKING:
    from whoseblock.asking import Wish
    from whoseblock.fs.stream import LeadingRows
    from whoseblock.sources.base import Reading
    from whoseblock.target import Target

__all__ = ["lookup"]


@click.command(
    cls=Command,
    epilog="""\b
Ranges are START[+LENGTH]: decimal or 0x…, with an optional suffix:
  none bytes    K M G T powers of 1024    s 512-byte sectors
  p 4096-byte pages    b filesystem blocks, from the start of TARGET
LENGTH defaults to one unit of START's suffix; for K M G T to one byte.

\b
TARGET is a filesystem's device or image, a whole disk or its image with partitions, LVM or
md on it, a mount point, or nothing when the failure names its own device.  Where it is
mounted, the kernel is asked, which takes root.

\b
Examples:
  whoseblock lookup disk.img 307p              the 307th page
  whoseblock lookup /dev/sda 2456s+8s          eight sectors of a disk with partitions
  whoseblock lookup /srv 307p --processes      a page of what is mounted there, and who uses it
  whoseblock lookup disk.img 0x133000+4K 1G    two ranges
  whoseblock lookup disk.img --ranges bad.txt --json
  whoseblock lookup rescued.img --mapfile rescued.map --summary
  whoseblock lookup rescued.img --mapfile rescued.map --output damaged.csv
  whoseblock lookup --pfn 0x10140a             a page of persistent memory
  dmesg | whoseblock lookup --dmesg -          all that the kernel has complained of
  smartctl --json -x /dev/sda | whoseblock lookup /dev/sda --smart -""",
)
@click.argument("target", required=False, type=click.Path(readable=False))
@click.argument("ranges", nargs=-1, metavar="[RANGE]...")
@failure_options
@target_options
@click.option("--json", "as_json", is_flag=True, help="Write JSON Lines, one object a range.")
@click.option("--no-paths", is_flag=True, help="Name files by inode only, which is faster.")
@click.option(
    "--processes",
    is_flag=True,
    help="Say who has the part of a file mapped, or the file open; root's table does.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Ask for the owners again in the end, and say if they changed meanwhile.",
)
@click.option(
    "--summary",
    is_flag=True,
    help="Write what each file lost, and totals, instead of every range.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, readable=False),
    metavar="FILE",
    help="Write the list of --summary to FILE, as CSV or JSON by its suffix.",
)
def lookup(target: str | None, ranges: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
    """Say who owns each RANGE of TARGET, a device or an image.

    Every file that shares the range with every path, or which metadata, or nobody; and the way
    from the device that was asked about down to the filesystem.
    """
    from whoseblock.cli.json_lines import json_chunks
    from whoseblock.lookup import Lookup
    from whoseblock.resolve import Resolver
    from whoseblock.target import Target

    given = Given.of(ranges, options)
    given.check(target=target is not None)
    _check_options(options)
    output = None if options["output"] is None else OutputFile(options["output"])
    if output is not None:
        output.check()
    where = options_of(options)
    readings: list[Reading] = []
    with Target(target, where) as opened, Lookup(opened.open_leaf) as finder:
        _check_mounted(opened, options)
        with ProgressBar() as progress:
            finder.progress = progress
            resolver = Resolver(opened, device=where.device)
            asked = resolver.resolve(failures_of(given, opened, finder, readings))
            if options["summary"] or output is not None:
                from whoseblock.cli.summary import summarise

                lines: Iterable[bytes] = summarise(
                    finder, asked, output, paths=not options["no_paths"], as_json=options["as_json"]
                )
                lines = (line + b"\n" for line in lines)
            else:
                # A wrong range is said before the first is answered, if there are but ranges.
                wanted = list(asked) if given.few else asked
                answers = finder.stream(wanted, _wish(options))
                if progress.shown:
                    answers = _counted(answers, progress)
                lines = json_chunks(answers) if options["as_json"] else _table_chunks(answers)
            write_chunks(lines)
        report_readings(readings)
        report_resolver(resolver, opened)
        report_options(opened)


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options that have no effect together, with a usage error."""
    output = options["output"]
    if output is not None and not output.endswith((".csv", ".json")):
        raise click.UsageError("the FILE of --output must end in .csv or .json.")
    for name in ("processes", "verify"):
        if not options[name]:
            continue
        if options["summary"] or output is not None:
            other = "--output" if output is not None else "--summary"
            raise click.UsageError(f"--{name} has no effect with {other}.")
        if options["offline"]:
            raise click.UsageError(f"--{name} asks the kernel, and --offline does not: drop one.")


def _check_mounted(target: "Target", options: dict[str, Any]) -> None:
    """Refuse what only the kernel can answer about a target that is not mounted.

    What was read of a filesystem that is not mounted is kept, and is the same when asked again.
    """
    if target.is_mounted is False:
        for name in ("processes", "verify"):
            if options[name]:
                raise click.UsageError(
                    f"--{name} needs a mounted filesystem, and nothing of {target.path} is mounted."
                )


def _wish(options: dict[str, Any]) -> "Wish":
    """Say what the answers are to have; the table has all that one may see."""
    from whoseblock.asking import Wish

    processes = options["processes"] or (not options["as_json"] and os.geteuid() == 0)
    return Wish(paths=not options["no_paths"], processes=processes, verified=options["verify"])


def _counted(
    answers: "Iterable[LeadingRows | Answer]", progress: ProgressBar
) -> "Iterator[LeadingRows | Answer]":
    number = 0
    for item in answers:
        number += isinstance(item, Answer)
        progress("ranges answered", number, None)
        yield item


def _table_chunks(answers: "Iterable[LeadingRows | Answer]") -> Iterator[bytes]:
    from whoseblock.cli.table import table_lines

    return (line.encode(errors="backslashreplace") + b"\n" for line in table_lines(answers))
