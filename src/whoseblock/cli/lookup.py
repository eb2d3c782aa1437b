"""``whoseblock lookup``: report the owners of ranges."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from whoseblock.cli.command import Command
from whoseblock.cli.options.failures import FailureOptions, failure_options
from whoseblock.cli.options.reports import read_failures, read_lists
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.cli.presentation.notices import (
    exit_passed_over,
    is_passed_over,
    report_options,
    report_readings,
    report_resolver,
)
from whoseblock.cli.presentation.output import OutputFile, write_chunks
from whoseblock.cli.presentation.progress import ProgressBar
from whoseblock.fs.base import MAX_OWNERS, Answer

if TYPE_CHECKING:
    from whoseblock.fs.stream import LeadingRows
    from whoseblock.lookup import Lookup
    from whoseblock.query import Query, QueryList
    from whoseblock.querying import QueryOptions
    from whoseblock.sources.base import Reading
    from whoseblock.target import Target

__all__ = ["lookup"]

_Item = TypeVar("_Item")


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
def lookup(target: str | None, ranges: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401
    """Report the owners of each RANGE of TARGET.

    The owners are all files that share the range, with every path, or metadata of the filesystem.
    Free space has no owner.  For a disk, the layers down to the filesystem are shown.
    """
    from whoseblock.cli.presentation.json_lines import json_chunks
    from whoseblock.lookup import RESCAN_LIMIT, Lookup
    from whoseblock.resolve import Resolver
    from whoseblock.target import Target

    # NumPy is loaded for long lists.  Nothing here multiplies matrices, so that its library for it
    # need not start a thread on each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    given = FailureOptions.of(ranges, options)
    given.check(target=target is not None)
    _check_options(options)
    output = _output_of(options["output"])
    where = options_of(options)
    readings: list[Reading] = []
    with Target(target, where) as opened, Lookup(opened.open_leaf) as finder:
        _check_mounted(opened, options)
        with ProgressBar() as progress:
            finder.progress = progress
            finder.scans = not options["no_scan"]
            finder.rescans = options["scan"]
            finder.rescan_limit = 0 if options["no_scan"] else RESCAN_LIMIT
            finder.max_owners = options["max_owners"]
            resolver = Resolver(opened, device=where.device, offset=given.offset)
            asked = resolver.resolve(read_failures(given, opened, finder, readings))
            if options["summary"] or output is not None:
                from whoseblock.cli.presentation.summary import summarise

                wanted: Iterable[Query | QueryList] = asked
                if given.is_one_list:
                    wanted = resolver.resolve_lists(read_lists(given, opened, finder, readings))
                lines: Iterable[bytes] = summarise(
                    finder,
                    wanted,
                    output,
                    paths=not options["no_paths"],
                    as_json=options["as_json"],
                )
                lines = (line + b"\n" for line in lines)
            elif options["output"] is not None:
                lines = ()
                answers = _counted(finder.stream(asked, _query_options(options)), progress)
                _write_table(options["output"], answers, opened, finder)
            else:
                # If there are only ranges, report an invalid one before the first answer.
                content = _query_options(options)
                if options["as_json"] and given.is_one_list:
                    lists = resolver.resolve_lists(read_lists(given, opened, finder, readings))
                    columns = (
                        item for some in lists for item in finder.stream_columns(some, content)
                    )
                    lines = json_chunks(_counted(columns, progress))
                else:
                    single = list(asked) if given.few else asked
                    chunks = json_chunks if options["as_json"] else _table_chunks
                    lines = chunks(_counted(finder.stream(single, content), progress))
            write_chunks(lines)
        report_readings(readings)
        report_resolver(resolver, opened)
        report_options(opened)
        if is_passed_over(resolver, readings):
            exit_passed_over()


def _check_options(options: dict[str, Any]) -> None:
    """Raise a usage error for options that have no effect together."""
    output = options["output"]
    if options["scan"] and options["no_scan"]:
        raise click.UsageError("--scan and --no-scan exclude each other")
    if output is not None and _is_table(output):
        from whoseblock.extras import check_extra

        check_extra("parquet")
        if options["summary"] or options["as_json"]:
            name = "--summary" if options["summary"] else "--json"
            raise click.UsageError(f"{name} has no effect with a table in --output")
    elif output is not None and not output.endswith((".csv", ".json")):
        raise click.UsageError("the FILE of --output must end in .csv, .json, .parquet or .arrow")
    for name in ("processes", "verify"):
        if not options[name]:
            continue
        if options["summary"] or output is not None:
            other = "--output" if output is not None else "--summary"
            raise click.UsageError(f"--{name} has no effect with {other}")
        if options["offline"]:
            raise click.UsageError(f"--{name} queries the kernel, but --offline does not; drop one")


def _output_of(output: str | None) -> OutputFile | None:
    """Return the file of a list, None if there is no file or if it is a table."""
    if output is None or _is_table(output):
        return None
    file = OutputFile(output)
    file.check()
    return file


def _is_table(output: str) -> bool:
    """Return whether the name of a file is that of a table."""
    return output.endswith((".parquet", ".arrow"))


def _write_table(
    output: str, answers: "Iterable[LeadingRows | Answer]", target: "Target", finder: "Lookup"
) -> None:
    """Write the rows of answers to a table, and say how many there are."""
    from whoseblock.tables.batches import Origin, record_batches
    from whoseblock.tables.files import write_table
    from whoseblock.tables.owner_map import find_origin

    host = os.uname().nodename
    if target.layer is None:
        origin = Origin(host, None, "")
    else:
        origin = find_origin(finder, target.layer, target.host, host)
    rows = write_table(Path(output), record_batches(answers, origin))
    click.echo(f"{rows} rows in {output}", err=True)


def _check_mounted(target: "Target", options: dict[str, Any]) -> None:
    """Raise a usage error for options that need the kernel if the target is not mounted.

    An unmounted filesystem is cached, so that a second query returns the same.
    """
    if target.is_mounted is False:
        for name in ("processes", "verify"):
            if options[name]:
                raise click.UsageError(
                    f"--{name} needs a mounted filesystem; nothing of {target.path} is mounted"
                )


def _query_options(options: dict[str, Any]) -> "QueryOptions":
    """Return the contents of the answers; the table of root includes processes."""
    from whoseblock.querying import QueryOptions

    processes = options["processes"] or (not options["as_json"] and os.geteuid() == 0)
    return QueryOptions(
        paths=not options["no_paths"],
        processes=processes,
        verified=options["verify"],
        bare=True,
    )


def _counted(answers: Iterable[_Item], progress: ProgressBar) -> Iterable[_Item]:
    """Show the number of answers, if progress is shown."""
    return _count_answers(answers, progress) if progress.shown else answers


def _count_answers(answers: Iterable[_Item], progress: ProgressBar) -> Iterator[_Item]:
    number = 0
    for item in answers:
        columns = getattr(item, "columns", None)
        number += isinstance(item, Answer) if columns is None else len(columns.questions)
        progress("ranges answered", number, None)
        yield item


def _table_chunks(answers: "Iterable[LeadingRows | Answer]") -> Iterator[bytes]:
    from whoseblock.cli.presentation.table import table_lines

    return (line.encode(errors="backslashreplace") + b"\n" for line in table_lines(answers))
