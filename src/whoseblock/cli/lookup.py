"""``whoseblock lookup``: who owns these ranges?"""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TextIO

import click

from whoseblock.cli.progress import ProgressBar
from whoseblock.fs.base import Answer
from whoseblock.ranges import parse_range, parse_ranges

__all__ = ["lookup"]

#: So many lines are written at once.
_LINES_A_WRITE = 512


@click.command(
    epilog="""\b
Ranges are START[+LENGTH]: decimal or 0x…, with an optional suffix:
  none bytes    K M G T powers of 1024    s 512-byte sectors
  p 4096-byte pages    b filesystem blocks, from the start of TARGET
LENGTH defaults to one unit of START's suffix; for K M G T to one byte.

\b
Examples:
  whoseblock lookup disk.img 307p              the 307th page
  whoseblock lookup /dev/pmem0 2456s+8s        eight sectors
  whoseblock lookup disk.img 0x133000+4K 1G    two ranges
  whoseblock lookup disk.img --ranges bad.txt --json"""
)
@click.argument("target", type=click.Path())
@click.argument("ranges", nargs=-1, metavar="[RANGE]...")
@click.option(
    "--ranges",
    "ranges_file",
    type=click.File("r", encoding="utf-8", errors="surrogateescape"),
    help="Read more ranges from FILE, one a line; - is standard input, # starts a comment.",
    metavar="FILE",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON Lines, one object a range.")
@click.option("--no-paths", is_flag=True, help="Name files by inode only, which is faster.")
@click.option(
    "--log-device",
    type=click.Path(),
    metavar="DEVICE",
    help="Where an XFS filesystem keeps an external log, to tell whether it is clean.",
)
def lookup(  # noqa: PLR0913 - one for each argument
    target: str,
    ranges: tuple[str, ...],
    ranges_file: TextIO | None,
    as_json: bool,
    no_paths: bool,
    log_device: str | None,
) -> None:
    """Say who owns each RANGE of TARGET, a device or an image with a filesystem.

    Every file that shares the range with every path, or which metadata, or nobody.
    """
    from whoseblock.lookup import lookup as owners_of
    from whoseblock.lookup import open_filesystem

    if not ranges and ranges_file is None:
        raise click.UsageError("Give a RANGE, or --ranges FILE.")
    with open_filesystem(target, log_device=log_device) as filesystem, ProgressBar() as progress:
        filesystem.progress = progress
        asked = list(
            chain(
                (parse_range(text, filesystem.block_size) for text in ranges),
                parse_ranges(ranges_file or (), _name_of(ranges_file), filesystem.block_size),
            )
        )
        answers = owners_of(filesystem, asked, paths=not no_paths)
        if progress.shown:
            answers = _counted(answers, len(asked), progress)
        lines = _json_lines(answers) if as_json else _table_lines(answers)
        _write(lines)


def _name_of(file: TextIO | None) -> str:
    return getattr(file, "name", "standard input")


def _counted(answers: Iterable[Answer], total: int, progress: ProgressBar) -> Iterator[Answer]:
    for number, answer in enumerate(answers, 1):
        progress("ranges answered", number, total)
        yield answer


def _json_lines(answers: Iterable[Answer]) -> Iterator[bytes]:
    import msgspec

    encode = msgspec.json.Encoder().encode
    for answer in answers:
        try:
            yield encode(answer)
        except UnicodeEncodeError:
            # Lone surrogates stand for bytes that are not UTF-8; only this way are they escaped.
            import json

            yield json.dumps(msgspec.to_builtins(answer)).encode()


def _table_lines(answers: Iterable[Answer]) -> Iterator[bytes]:
    from whoseblock.cli.table import table_lines

    return (line.encode(errors="backslashreplace") for line in table_lines(answers))


def _write(lines: Iterable[bytes]) -> None:
    """Write lines to standard output, many at once."""
    pending: list[bytes] = []
    for line in lines:
        pending.append(line)
        if len(pending) >= _LINES_A_WRITE:
            sys.stdout.buffer.write(b"\n".join(pending) + b"\n")
            pending.clear()
    if pending:
        sys.stdout.buffer.write(b"\n".join(pending) + b"\n")
    sys.stdout.buffer.flush()
