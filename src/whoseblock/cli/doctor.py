"""``whoseblock doctor``: what works here, what is missing, and the remedy."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from whoseblock import __version__
from whoseblock.cli.command import Command
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.encode import encode_json
from whoseblock.printable import printable

if TYPE_CHECKING:
    from whoseblock.doctor.base import Check

__all__ = ["doctor"]

_WIDTH = 80
_MIN_WIDTH = 40
#: The columns before a name.
_INDENT = 11


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock doctor                this machine
  whoseblock doctor /dev/sda       this machine, and what is on a disk
  whoseblock doctor /srv --json    for a program""",
)
@click.argument("target", required=False, type=click.Path(readable=False))
@target_options
@click.option("--journal", metavar="URL", help="Journal to check, instead of the usual one.")
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON Lines, one object for each check."
)
def doctor(target: str | None, as_json: bool, journal: str | None, **options: Any) -> None:  # noqa: ANN401
    """Check what works on this machine, and for TARGET.

    What is missing or limited has a remedy, if there is one.  Nothing is changed.  The exit code is
    0 even if something is missing: not everything is needed for every task.
    """
    from whoseblock.doctor.machine import check_machine
    from whoseblock.lookup import Lookup
    from whoseblock.target import Target

    where = options_of(options)
    with Target(target, where) as opened, Lookup(opened.open_leaf) as finder:
        checks = check_machine(opened.host, __version__, journal)
        if opened.layer is not None:
            from whoseblock.doctor.target import check_target

            checks = _both(checks, check_target(opened.layer, finder))
        if as_json:
            for check in checks:
                click.echo(encode_json(check))
        else:
            width = max(shutil.get_terminal_size((_WIDTH, 0)).columns, _MIN_WIDTH)
            for line in _lines(checks, width):
                click.echo(line.encode(errors="backslashreplace"))


def _both(first: "Iterable[Check]", second: "Iterable[Check]") -> "Iterator[Check]":
    yield from first
    yield from second


def _lines(checks: "Iterable[Check]", width: int) -> Iterator[str]:
    """Yield the checks as text, grouped by area."""
    for number, (area, group) in enumerate(groupby(checks, key=lambda one: one.area)):
        if number:
            yield ""
        yield printable(area)
        for check in group:
            state = f"  {check.state}".ljust(_INDENT)
            text = f"{check.name}: {check.detail}"
            yield from _wrapped(state, " " * _INDENT, printable(text), width)
            if check.remedy:
                arrow = " " * _INDENT + "→ "
                yield from _wrapped(arrow, " " * len(arrow), printable(check.remedy), width)


def _wrapped(first: str, indent: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]
