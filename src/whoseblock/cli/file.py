"""``whoseblock file``: report where the bytes of files are."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from whoseblock.cli.command import Command, is_given
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.cli.presentation.output import write_lines
from whoseblock.cli.presentation.progress import ProgressBar
from whoseblock.encode import encode_json
from whoseblock.errors import WhoseblockError
from whoseblock.printable import printable

if TYPE_CHECKING:
    from whoseblock.file_ranges import FileRange, FileSummary

__all__ = ["file"]


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock file /srv/db/table.dat               the disk's bytes of a file
  whoseblock file /srv/db/* --json                one object for each range
  whoseblock file /archive/a.iso --target old.img a file of an image""",
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--target",
    type=click.Path(readable=False),
    metavar="TARGET",
    help="Device or image that has the files; each PATH is then from the root of a filesystem on"
    " it.  All of its owners are read.",
)
@target_options
@click.option("--json", "as_json", is_flag=True, help="Write JSON Lines, one object per range.")
def file(
    paths: tuple[str, ...],
    target: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - click's
) -> None:
    """Report where the files at PATH are, in every layer.

    It is the reverse of lookup.  For a mounted filesystem the kernel is queried, without
    privileges; holes and extended attributes are left out.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressBar())
        found: Iterator[Iterator[FileRange | FileSummary]]
        if target is None:
            _check_options(options)
            from whoseblock.file_ranges import MountedFiles

            found = map(MountedFiles().find, paths)
        else:
            from whoseblock.file_ranges import find_in_target
            from whoseblock.lookup import Lookup
            from whoseblock.target import Target

            opened = stack.enter_context(Target(target, options_of(options)))
            finder = stack.enter_context(Lookup(opened.open_leaf))
            finder.progress = progress
            if opened.layer is None:  # pragma: no cover - a named target has a layer
                raise click.UsageError("missing TARGET")
            found = iter([find_in_target(finder, [opened.layer, *opened.members], paths)])
        errors: list[WhoseblockError] = []
        shown = _without_errors(found, errors)
        write_lines(map(encode_json, shown) if as_json else _table_lines(shown))
        for error in errors[:-1]:
            click.echo(f"whoseblock: {printable(str(error))}", err=True)
        if errors:
            raise errors[-1]


def _check_options(options: dict[str, Any]) -> None:
    """Raise a usage error for an option that says how a target is read."""
    context = click.get_current_context()
    for name in options:
        if is_given(context, name):
            option = next(one for one in context.command.params if one.name == name)
            raise click.UsageError(f"{option.opts[0]} has no effect without --target")


def _without_errors(
    found: "Iterable[Iterable[FileRange | FileSummary]]", errors: list[WhoseblockError]
) -> "Iterator[FileRange | FileSummary]":
    """Yield what was found; an error ends one part of it, and is added to ``errors``."""
    for part in found:
        try:
            yield from part
        except WhoseblockError as error:
            errors.append(error)


def _table_lines(found: "Iterable[FileRange | FileSummary]") -> Iterator[bytes]:
    from whoseblock.cli.presentation.file_table import file_lines

    return (line.encode(errors="backslashreplace") for line in file_lines(found))
