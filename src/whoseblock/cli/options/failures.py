"""The options for failures, in all supported forms of report."""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TextIO, TypeVar

import click

from whoseblock.errors import MalformedError, PrivilegeError, WhoseblockError
from whoseblock.ranges import RangeList, parse_range, parse_range_text
from whoseblock.sources.base import MAX_LINE, Failure, Reading

if TYPE_CHECKING:
    from whoseblock.lookup import Lookup
    from whoseblock.sources.log_patterns import Units
    from whoseblock.target import Target

__all__ = [
    "FailureOptions",
    "failure_options",
    "image_failure_options",
    "read_failures",
    "read_ranges",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STATUSES: Final = "?*/-"
#: So many characters of a list of ranges are parsed at once, up to the end of the line.
_CHUNK: Final = 1 << 15
#: The characters at the end of a map in which its last block is.
_TAIL: Final = 1 << 12
#: The size of a target that has none of its own; see `Target`.
_NO_END: Final = (1 << 63) - 1
#: Limit on the length of a document, in characters.
_MAX_DOCUMENT: Final = 1 << 26


class _InputFile(click.File):
    """A file to read; without permission the error is the same as for devices."""

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


def _file() -> click.File:
    return _InputFile("r", encoding="utf-8", errors="surrogateescape")


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


#: Forms with addresses in the named device or image.
_IMAGE_OPTIONS: Final = (
    click.option(
        "--ranges",
        "ranges_file",
        type=_file(),
        metavar="FILE",
        help="Read ranges from FILE, one per line; - is standard input, # starts a comment.",
    ),
    click.option(
        "--mapfile",
        "mapfiles",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Read the unrescued blocks from FILE, a map of GNU ddrescue.",
    ),
    click.option(
        "--mapfile-status",
        "statuses",
        default=_STATUSES,
        callback=_check_statuses,
        show_default=True,
        metavar="CHARS",
        help="Statuses of the map to read: ? not tried, * not trimmed, / not scraped, - bad.",
    ),
    click.option(
        "--badblocks",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Read block numbers from FILE, output of badblocks or dumpe2fs -b; see --block-size.",
    ),
    click.option(
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
    click.option(
        "--offset",
        callback=_parse_offset,
        metavar="BYTES",
        help="Where TARGET begins in the device that the failures are of; 2048s is in sectors.",
    ),
    click.option(
        "--ndctl",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Read bad blocks from FILE, the output of ndctl list --media-errors.",
    ),
    click.option(
        "--smart",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Read failed self-tests and logged errors from FILE, output of smartctl --json -x.",
    ),
    click.option(
        "--cxl",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Read poison from FILE, the output of cxl list --regions --media-errors.",
    ),
    click.option(
        "--md-badblocks",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Read bad blocks of a member from FILE, output of mdadm --examine-badblocks, or the"
        " file bad_blocks of TARGET in sysfs.",
    ),
    click.option(
        "--rasdaemon",
        type=click.Path(dir_okay=False, readable=False),
        multiple=True,
        metavar="FILE",
        help="Read failed requests and pages from FILE, the database of rasdaemon.",
    ),
    click.option(
        "--since",
        callback=_parse_time,
        metavar="TIME",
        help="Skip older rows of --rasdaemon FILE; TIME is as 2026-11-24 or 2026-11-24T17:19.",
    ),
    click.option(
        "--dmesg",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Read memory failures and I/O errors from FILE, a kernel log.",
    ),
    click.option(
        "--sysfs-badblocks",
        is_flag=True,
        help="Read the kernel's bad-blocks lists of TARGET, its disk and its region.",
    ),
    click.option(
        "--pfn", "pfns", multiple=True, metavar="N", help="Page frame number of failed memory."
    ),
    click.option(
        "--phys",
        "addresses",
        multiple=True,
        metavar="ADDRESS",
        help="Physical address of failed memory.",
    ),
)


def failure_options(command: _Command) -> _Command:
    """Add all options to a command, for `FailureOptions.of`."""
    for option in reversed((*_IMAGE_OPTIONS, *_DEVICE_OPTIONS)):
        command = option(command)
    return command


def image_failure_options(command: _Command) -> _Command:
    """Add the options for failures of an image to a command."""
    for option in reversed(_IMAGE_OPTIONS):
        command = option(command)
    return command


class FailureOptions(NamedTuple):
    """The values of the options; the fields have the names of the options."""

    texts: tuple[str, ...]
    ranges_file: TextIO | None
    mapfiles: tuple[TextIO, ...]
    statuses: str
    badblocks: tuple[TextIO, ...]
    block_size: int | None
    ndctl: tuple[TextIO, ...] = ()
    smart: tuple[TextIO, ...] = ()
    dmesg: tuple[TextIO, ...] = ()
    cxl: tuple[TextIO, ...] = ()
    md_badblocks: tuple[TextIO, ...] = ()
    rasdaemon: tuple[str, ...] = ()
    since: datetime | None = None
    sysfs_badblocks: bool = False
    pfns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    offset: int | None = None

    @classmethod
    def of(cls, texts: tuple[str, ...], options: Mapping[str, Any]) -> Self:
        """Select these options from all options of a command."""
        return cls(texts, **{name: options[name] for name in cls._fields[1:] if name in options})

    @property
    def few(self) -> bool:
        """Whether there are only ranges in TARGET, and no other form."""
        reports = self.names_devices or self.mapfiles or self.badblocks or self.sysfs_badblocks
        return self.offset is None and not reports

    @property
    def names_devices(self) -> bool:
        """Whether there is a form that names the failed device."""
        files = (self.ndctl, self.smart, self.dmesg, self.cxl, self.md_badblocks, self.rasdaemon)
        return any(files) or bool(self.pfns or self.addresses)

    @property
    def of_the_target(self) -> bool:
        """Whether there is a form with addresses in TARGET."""
        return bool(self.texts or self.ranges_file or self.mapfiles or self.badblocks)

    def check(self, *, target: bool, needed: bool = True) -> None:
        """Raise a usage error for missing failures, and for options without effect."""
        if self.statuses != _STATUSES and not self.mapfiles:
            raise click.UsageError("--mapfile-status has no effect without --mapfile")
        if self.block_size is not None and not (self.badblocks or self.dmesg):
            raise click.UsageError("--block-size has no effect without --badblocks or --dmesg")
        if self.since is not None and not self.rasdaemon:
            raise click.UsageError("--since has no effect without --rasdaemon")
        if needed and not (self.of_the_target or self.names_devices or self.sysfs_badblocks):
            raise click.UsageError("missing RANGE or failure report; see --help")
        if self.offset is not None and not (target and (self.of_the_target or self.names_devices)):
            raise click.UsageError("--offset has no effect without TARGET and failures of it")
        if not target and (self.of_the_target or self.sysfs_badblocks):
            raise click.UsageError("missing TARGET of the ranges")
        if self.badblocks and self.block_size is None:
            raise click.UsageError("--badblocks needs --block-size; badblocks uses 1024 without -b")

    def parse_given_ranges(
        self, block_size: int | None, readings: list[Reading]
    ) -> Iterator[Failure]:
        """Yield the failures written as ranges; ``block_size`` is the unit of the suffix ``b``.

        The record of the ranges file is appended to ``readings``.
        """
        for ranges in self.parse_range_lists(block_size, readings):
            for start, length in ranges:
                yield Failure(start, length)

    def parse_range_lists(
        self, block_size: int | None, readings: list[Reading]
    ) -> Iterator[RangeList]:
        """Yield what `parse_given_ranges` does, many ranges at once."""
        yield RangeList.of(parse_range(text, block_size) for text in self.texts)
        if self.ranges_file is not None:
            reading = _start_reading(self.ranges_file, readings)
            for text in _chunks(self.ranges_file):
                ranges = parse_range_text(text, reading.name, block_size, reading.read + 1)
                reading.read += text.count("\n") + (not text.endswith("\n"))
                reading.failures += len(ranges)
                yield ranges

    def compare_sizes(self, target: "Target") -> Self:
        """Add a doubt to the layer of a target for each map that is of a device of another size.

        Return the options with the maps at their beginning: of a pipe that is a copy.
        """
        layer = target.layer
        if layer is None or self.offset is not None or not self.mapfiles:
            return self
        from whoseblock.sources.mapfile import find_map_end

        files = []
        for given in self.mapfiles:
            file, tail = _read_tail(given)
            end = find_map_end(tail)
            if end is None or layer.size in (end, _NO_END):
                pass
            elif layer.size_certain or end < layer.size:
                doubt = (
                    f"{name_of(given)} covers {end} bytes, and {layer.name} has {layer.size}: it"
                    " may be of another device; --offset says where in that device this one begins"
                )
                layer.doubts += (doubt,)
            files.append(file)
        return self._replace(mapfiles=tuple(files))

    def read_reports(
        self, page_size: int, readings: list[Reading], units: "Units | None" = None
    ) -> Iterator[Failure]:
        """Yield every failure of the report files; raises `MalformedError`.

        A record for each file is appended to ``readings``; ``units`` are those of kernel logs.
        """
        # Import only the parsers that are needed.
        if self.mapfiles:
            from whoseblock.sources.mapfile import read_mapfile

            for file in self.mapfiles:
                reading = _start_reading(file, readings)
                yield from read_mapfile(_lines(file), reading.name, self.statuses, reading)
        if self.badblocks and self.block_size:
            from whoseblock.sources.block_numbers import read_block_numbers

            for file in self.badblocks:
                reading = _start_reading(file, readings)
                yield from read_block_numbers(_lines(file), reading.name, self.block_size, reading)
        yield from self._read_documents(page_size, readings)
        if self.dmesg:
            from whoseblock.sources.dmesg import read_dmesg

            for file in self.dmesg:
                reading = _start_reading(file, readings)
                lines = _log_lines(file, reading)
                yield from read_dmesg(lines, reading.name, page_size, reading, units)
        if self.pfns or self.addresses:
            from whoseblock.sources.memory import parse_pfn, parse_physical_address

            for number in self.pfns:
                yield parse_pfn(number, page_size)
            for address in self.addresses:
                yield parse_physical_address(address, page_size)

    def _read_documents(self, page_size: int, readings: list[Reading]) -> Iterator[Failure]:
        if self.ndctl:
            from whoseblock.sources.ndctl import read_ndctl

            for file in self.ndctl:
                reading = _start_reading(file, readings)
                yield from read_ndctl(_document(file), reading.name, reading)
        if self.smart:
            from whoseblock.sources.smart import read_smart

            for file in self.smart:
                reading = _start_reading(file, readings)
                yield from read_smart(_document(file), reading.name, reading)
        yield from self._read_events(page_size, readings)

    def _read_events(self, page_size: int, readings: list[Reading]) -> Iterator[Failure]:
        if self.cxl:
            from whoseblock.sources.cxl import read_cxl

            for file in self.cxl:
                reading = _start_reading(file, readings)
                yield from read_cxl(_document(file), reading.name, page_size, reading)
        if self.md_badblocks:
            from whoseblock.sources.md_badblocks import read_md_badblocks

            for file in self.md_badblocks:
                reading = _start_reading(file, readings)
                yield from read_md_badblocks(_lines(file), reading.name, reading)
        if self.rasdaemon:
            from whoseblock.sources.rasdaemon import read_rasdaemon

            for path in self.rasdaemon:
                reading = Reading(path)
                readings.append(reading)
                yield from read_rasdaemon(path, page_size, reading, self.since)


def _start_reading(file: TextIO, readings: list[Reading]) -> Reading:
    reading = Reading(name_of(file))
    readings.append(reading)
    return reading


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; raises `MalformedError` for one that is too long."""
    number = 0
    while line := _read(file.readline, file, MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            expected = f"text in lines of less than {MAX_LINE} characters"
            raise MalformedError(name_of(file), number, expected)
        yield line


def _log_lines(file: TextIO, reading: Reading) -> Iterator[str]:
    """Yield the lines of a log; count one that is too long, and yield an empty line instead."""
    number = 0
    while line := _read(file.readline, file, MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and line[-1] != "\n":
            expected = f"less than {MAX_LINE} characters"
            reading.count_broken(f"line {number}", line, expected)
            while (line := _read(file.readline, file, MAX_LINE)) and line[-1] != "\n":
                pass
            line = "\n"
        yield line


def _chunks(file: TextIO) -> Iterator[str]:
    """Yield the text of a file, many whole lines at once; raises what `_lines` does."""
    number = 0
    while text := _read(file.read, file, _CHUNK):
        if not text.endswith("\n"):
            text += _read(file.readline, file, MAX_LINE)
        number += text.count("\n")
        last = text.rfind("\n", 0, -1) + 1
        if len(text) - last >= MAX_LINE:
            expected = f"text in lines of less than {MAX_LINE} characters"
            raise MalformedError(name_of(file), number + (text[-1] != "\n"), expected)
        yield text


class _PipeCopy(io.TextIOWrapper):
    """A copy of a pipe in a temporary file, with the name of the pipe in messages."""

    def __init__(self, name: str) -> None:
        import tempfile

        super().__init__(
            tempfile.TemporaryFile(),  # noqa: SIM115 - closed with this object
            encoding="utf-8",
            errors="surrogateescape",
        )
        self._name = name

    @property
    def name(self) -> str:
        """The name of the pipe."""
        return self._name


def _read_tail(file: TextIO) -> tuple[TextIO, str]:
    """Return the last characters of a file, and the file at its former position; a copy of a pipe.

    Raises `MalformedError` for a pipe that is too long.
    """
    if not file.seekable():
        copy = _PipeCopy(name_of(file))
        length = 0
        while text := _read(file.read, file, _CHUNK):
            length += copy.write(text)
            if length > _MAX_DOCUMENT:
                expected = f"a map of less than {_MAX_DOCUMENT} characters in a pipe"
                raise MalformedError(copy.name, None, expected)
        copy.seek(0)
        file = copy
    position = file.tell()
    end = file.seek(0, os.SEEK_END)
    # Positions of a file in UTF-8 are bytes.
    file.seek(max(end - _TAIL, position))
    try:
        tail = _read(file.read, file, 2 * _TAIL)
    finally:
        file.seek(position)
    return file, tail


def _document(file: TextIO) -> str:
    """Read a whole file; raises `MalformedError` for one that is too long."""
    text = _read(file.read, file, _MAX_DOCUMENT)
    if len(text) == _MAX_DOCUMENT:
        expected = f"a document of less than {_MAX_DOCUMENT} characters"
        raise MalformedError(name_of(file), None, expected)
    return text


def _read(read: Callable[[int], str], file: TextIO, most: int) -> str:
    try:
        return read(most)
    except OSError as error:
        raise WhoseblockError(f"cannot read {name_of(file)}: {error.strerror}") from error


def read_failures(
    given: FailureOptions, target: "Target", finder: "Lookup", readings: list[Reading]
) -> Iterator[Failure]:
    """Yield every failure: ranges first, then files, then the kernel's lists.

    A record for each input is appended to ``readings``.
    """
    yield from given.parse_given_ranges(_block_size(given, target, finder), readings)
    given = given.compare_sizes(target)
    units = _find_units(given, target, finder) if given.dmesg else None
    yield from given.read_reports(target.host.page_size, readings, units)
    if given.sysfs_badblocks:
        from whoseblock.sources.sysfs import TRUNCATED, parse_bad_block_list

        for device, name, text in target.bad_block_lists():
            reading = Reading(name)
            readings.append(reading)
            page_size = target.host.page_size
            failures, truncated = parse_bad_block_list(text, page_size, device, name, reading)
            if truncated:
                click.echo(f"whoseblock: {name}: {TRUNCATED}", err=True)
            yield from failures


def _find_units(given: FailureOptions, target: "Target", finder: "Lookup") -> "Units":
    """Return the units of the messages in a log, which may depend on a device or a filesystem.

    The devices of this machine are those of the log only if failures are looked up in them.
    """
    from whoseblock.sources.log_patterns import Units

    is_own = target.root is None or target.is_device

    @cache
    def logical_block(device: str) -> int | None:
        return target.host.logical_block_size(device) if is_own else None

    @cache
    def filesystem_block(device: str) -> int | None:
        try:
            layer = target.layer_of(device) if is_own else target.root
            space = None if layer is None or layer.segments else finder.leaf(layer)
        except PrivilegeError:
            raise
        except WhoseblockError:
            return None
        return space.block_size if space is not None and space.name.startswith("ext") else None

    return Units(target.host.page_size, logical_block, filesystem_block, given.block_size)


def read_ranges(
    given: FailureOptions, target: "Target", finder: "Lookup", readings: list[Reading]
) -> RangeList:
    """Return all ranges, if there are only ranges; see `FailureOptions.few`.

    A record of the ranges file is appended to ``readings``.
    """
    found = RangeList.of(())
    for ranges in given.parse_range_lists(_block_size(given, target, finder), readings):
        found.extend(ranges)
    return found


def _block_size(given: FailureOptions, target: "Target", finder: "Lookup") -> int | None:
    """Return the block size of the filesystem that ranges are of; None if it is unknown."""
    if given.of_the_target and target.layer is not None and not target.layer.segments:
        # Opening the target first reports an unreadable target before any other error.
        return finder.leaf(target.layer).block_size
    return None


def name_of(file: TextIO) -> str:
    """Return the name of a file in messages."""
    name = getattr(file, "name", "-")
    return "standard input" if name in ("-", "<stdin>") else str(name)
