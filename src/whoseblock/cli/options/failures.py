"""The options for failures, in all supported forms of report; `failure_values` has their values."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

import click

from whoseblock.cli.command import GroupedOption
from whoseblock.cli.options.failure_values import STATUSES
from whoseblock.errors import PrivilegeError
from whoseblock.ranges import parse_range

__all__ = ["failure_options", "image_failure_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _InputFile(click.File):
    """A file to read; without permission the error is the same as for devices."""

    def __init__(self) -> None:
        super().__init__("r", encoding="utf-8", errors="surrogateescape")

    def convert(  # click's names and types
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401
        """Open a file; raises `PrivilegeError`, and `click.BadParameter` for other reasons."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            if isinstance(error.__context__, PermissionError):
                raise PrivilegeError(f"cannot open {value!r}: Permission denied") from error
            raise


def _check_statuses(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not value or not set(value) <= set("?*/-+"):
        raise click.BadParameter("one or more of ? * / - and +")
    return value


def _parse_time(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter("a time as 2026-11-24T17:19:55+01:00") from None


_option: Final = partial(click.option, cls=GroupedOption, group="Failures")

#: Forms with addresses in the named device or image.
_IMAGE_OPTIONS: Final = (
    _option(
        "--ranges",
        "ranges_file",
        type=_InputFile(),
        metavar="FILE",
        help="Read ranges from FILE, one per line; - is standard input, # starts a comment.",
    ),
    _option(
        "--mapfile",
        "mapfiles",
        type=_InputFile(),
        multiple=True,
        metavar="FILE",
        help="Read the unrescued blocks from FILE, a map of GNU ddrescue.",
    ),
    _option(
        "--mapfile-status",
        "statuses",
        default=STATUSES,
        callback=_check_statuses,
        show_default=True,
        metavar="CHARS",
        help="Statuses of the map to read: ? not tried, * not trimmed, / not scraped, - bad.",
    ),
    _option(
        "--badblocks",
        type=_InputFile(),
        multiple=True,
        metavar="FILE",
        help="Read block numbers from FILE, output of badblocks or dumpe2fs -b; see --block-size.",
    ),
    _option(
        "--block-size",
        type=click.IntRange(512, 1 << 20),
        metavar="BYTES",
        help="Unit of the numbers in --badblocks FILE, 1024 by default in badblocks, and of the"
        " lines Buffer I/O error in --dmesg FILE.",
    ),
)


def _parse_offset(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> int | None:
    if value is None:
        return None
    if "+" in value:
        raise click.BadParameter("one number, with K M G T s p as units: 1048576, 2048s")
    return parse_range(value).start


#: Forms that name the failed device, or that query the kernel.
_DEVICE_OPTIONS: Final = (
    _option(
        "--offset",
        callback=_parse_offset,
        metavar="BYTES",
        help="Where TARGET begins in the device that the failures are of; 2048s is in sectors.",
    ),
    _option(
        "--ndctl",
        type=_InputFile(),
        multiple=True,
        metavar="FILE",
        help="Read bad blocks from FILE, the output of ndctl list --media-errors.",
    ),
    _option(
        "--smart",
        type=_InputFile(),
        multiple=True,
        metavar="FILE",
        help="Read failed self-tests and logged errors from FILE, output of smartctl --json -x.",
    ),
    _option(
        "--cxl",
        type=_InputFile(),
        multiple=True,
        metavar="FILE",
        help="Read poison from FILE, the output of cxl list --regions --media-errors.",
    ),
    _option(
        "--md-badblocks",
        type=_InputFile(),
        multiple=True,
        metavar="FILE",
        help="Read bad blocks of a member from FILE, output of mdadm --examine-badblocks, or the"
        " file bad_blocks of TARGET in sysfs.",
    ),
    _option(
        "--rasdaemon",
        type=click.Path(dir_okay=False, readable=False),
        multiple=True,
        metavar="FILE",
        help="Read failed requests and pages from FILE, the database of rasdaemon.",
    ),
    _option(
        "--since",
        callback=_parse_time,
        metavar="TIME",
        help="Skip older rows of --rasdaemon FILE; TIME is as 2026-11-24 or 2026-11-24T17:19.",
    ),
    _option(
        "--dmesg",
        type=_InputFile(),
        multiple=True,
        metavar="FILE",
        help="Read memory failures and I/O errors from FILE, a kernel log.",
    ),
    _option(
        "--sysfs-badblocks",
        is_flag=True,
        help="Read the kernel's bad-blocks lists of TARGET, its disk and its region.",
    ),
    _option(
        "--pfn", "pfns", multiple=True, metavar="N", help="Page frame number of failed memory."
    ),
    _option(
        "--phys",
        "addresses",
        multiple=True,
        metavar="ADDRESS",
        help="Physical address of failed memory.",
    ),
)


def failure_options(command: _Command) -> _Command:
    """Add all options to a command, for `failure_values.FailureOptions.of`."""
    for option in reversed((*_IMAGE_OPTIONS, *_DEVICE_OPTIONS)):
        command = option(command)
    return command


def image_failure_options(command: _Command) -> _Command:
    """Add the options for failures of an image to a command."""
    for option in reversed(_IMAGE_OPTIONS):
        command = option(command)
    return command
