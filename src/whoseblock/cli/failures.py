"""The options with which failures are given, in whatever form one has them."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TextIO, TypeVar

import click

from whoseblock.errors import MalformedError, PrivilegeError, WhoseblockError
from whoseblock.ranges import parse_range, parse_ranges
from whoseblock.sources.base import Failure, Reading

if TYPE_CHECKING:
    from whoseblock.lookup import Lookup
    from whoseblock.target import Target

__all__ = ["Given", "failure_options", "failures_of", "image_failure_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STATUSES: Final = "?*/-"
#: No line of any form is longer, in characters; binary data may have no end of a line at all.
_LONGEST_LINE: Final = 1 << 16
#: No program prints a longer document, in characters.
_LONGEST_DOCUMENT: Final = 1 << 28


class _InputFile(click.File):
    """A file to read; without permission the error is that of all other files and devices."""

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


#: The forms whose addresses are those of the device or image that is named.
_OF_THE_IMAGE: Final = (
    click.option(
        "--ranges",
        "ranges_file",
        type=_file(),
        metavar="FILE",
        help="Read more ranges from FILE, one a line; - is standard input, # starts a comment.",
    ),
    click.option(
        "--mapfile",
        "mapfiles",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Take what GNU ddrescue did not rescue from its map FILE.",
    ),
    click.option(
        "--mapfile-status",
        "statuses",
        default=_STATUSES,
        callback=_check_statuses,
        show_default=True,
        metavar="CHARS",
        help="Which of the map's statuses count: ? not tried, * not trimmed, / not scraped, - bad.",
    ),
    click.option(
        "--badblocks",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Take the block numbers that badblocks or dumpe2fs -b printed; needs --block-size.",
    ),
    click.option(
        "--block-size",
        type=click.IntRange(512, 1 << 20),
        metavar="BYTES",
        help="What the numbers in --badblocks FILE count; badblocks counts 1024 unless told.",
    ),
)

#: The forms that say themselves which device failed, or that ask the kernel.
_OF_ANY: Final = (
    click.option(
        "--ndctl",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Take the bad blocks in the output of ndctl list --media-errors.",
    ),
    click.option(
        "--smart",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Take the addresses of failed self-tests and logged errors from smartctl --json -x.",
    ),
    click.option(
        "--dmesg",
        type=_file(),
        multiple=True,
        metavar="FILE",
        help="Take memory failures and I/O errors from a kernel log.",
    ),
    click.option(
        "--sysfs-badblocks",
        is_flag=True,
        help="Take the kernel's present bad-blocks lists of TARGET, its disk, its region.",
    ),
    click.option(
        "--pfn", "pfns", multiple=True, metavar="N", help="Take a page frame number of memory."
    ),
    click.option(
        "--phys",
        "addresses",
        multiple=True,
        metavar="ADDRESS",
        help="Take the page of memory at a physical address.",
    ),
)


def failure_options(command: _Command) -> _Command:
    """Add the options to a command, which passes what it was given to `Given`."""
    for option in reversed((*_OF_THE_IMAGE, *_OF_ANY)):
        command = option(command)
    return command


def image_failure_options(command: _Command) -> _Command:
    """Add those options that tell of failures of the image that a command is given."""
    for option in reversed(_OF_THE_IMAGE):
        command = option(command)
    return command


class Given(NamedTuple):
    """What was given on the command line; the fields are the names of the options."""

    texts: tuple[str, ...]
    ranges_file: TextIO | None
    mapfiles: tuple[TextIO, ...]
    statuses: str
    badblocks: tuple[TextIO, ...]
    block_size: int | None
    ndctl: tuple[TextIO, ...] = ()
    smart: tuple[TextIO, ...] = ()
    dmesg: tuple[TextIO, ...] = ()
    sysfs_badblocks: bool = False
    pfns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: tuple[str, ...], options: Mapping[str, Any]) -> Self:
        """Take what belongs here from all options of a command."""
        return cls(texts, **{name: options[name] for name in cls._fields[1:] if name in options})

    @property
    def few(self) -> bool:
        """Whether there are only ranges, which people and programs write by hand."""
        return not (self.names_devices or self.mapfiles or self.badblocks or self.sysfs_badblocks)

    @property
    def names_devices(self) -> bool:
        """Whether some form is given that says itself which device failed."""
        return bool(self.ndctl or self.smart or self.dmesg or self.pfns or self.addresses)

    @property
    def of_the_target(self) -> bool:
        """Whether some form is given whose addresses are those of TARGET."""
        return bool(self.texts or self.ranges_file or self.mapfiles or self.badblocks)

    def check(self, *, target: bool, needed: bool = True) -> None:
        """Refuse what makes no question, and options without effect, with a usage error."""
        if self.statuses != _STATUSES and not self.mapfiles:
            raise click.UsageError("--mapfile-status has no effect without --mapfile.")
        if self.block_size is not None and not self.badblocks:
            raise click.UsageError("--block-size has no effect without --badblocks.")
        if needed and not (self.of_the_target or self.names_devices or self.sysfs_badblocks):
            raise click.UsageError("Give a RANGE, or a FILE with failures: see --help.")
        if not target and (self.of_the_target or self.sysfs_badblocks):
            raise click.UsageError("Name the TARGET that the ranges are of.")
        if self.badblocks and self.block_size is None:
            raise click.UsageError(
                "--badblocks needs --block-size: badblocks counts 1024 bytes unless it got -b."
            )

    def ranges_asked(self, block_size: int | None, readings: list[Reading]) -> Iterator[Failure]:
        """Yield the ranges that were written as ranges; ``block_size`` is what ``b`` means.

        ``readings`` gets the record of what was read of a file.
        """
        for text in self.texts:
            yield Failure(*parse_range(text, block_size))
        if self.ranges_file is not None:
            reading = _begin(self.ranges_file, readings)
            lines = _counted(_lines(self.ranges_file), reading)
            for start, length in parse_ranges(lines, reading.name, block_size):
                reading.failures += 1
                yield Failure(start, length)

    def failures(self, page_size: int, readings: list[Reading]) -> Iterator[Failure]:
        """Yield every failure from the files that report some; raises `MalformedError`.

        ``readings`` gets a record for each file of what was read of it.
        """
        # Each module is loaded only for what was given.
        if self.mapfiles:
            from whoseblock.sources.mapfile import read_mapfile

            for file in self.mapfiles:
                reading = _begin(file, readings)
                yield from read_mapfile(_lines(file), reading.name, self.statuses, reading)
        if self.badblocks and self.block_size:
            from whoseblock.sources.block_numbers import read_block_numbers

            for file in self.badblocks:
                reading = _begin(file, readings)
                yield from read_block_numbers(_lines(file), reading.name, self.block_size, reading)
        yield from self._documents(readings)
        if self.dmesg:
            from whoseblock.sources.dmesg import read_dmesg

            for file in self.dmesg:
                reading = _begin(file, readings)
                yield from read_dmesg(_lines(file), reading.name, page_size, reading)
        if self.pfns or self.addresses:
            from whoseblock.sources.memory import parse_pfn, parse_physical_address

            for number in self.pfns:
                yield parse_pfn(number, page_size)
            for address in self.addresses:
                yield parse_physical_address(address, page_size)

    def _documents(self, readings: list[Reading]) -> Iterator[Failure]:
        if self.ndctl:
            from whoseblock.sources.ndctl import read_ndctl

            for file in self.ndctl:
                reading = _begin(file, readings)
                yield from read_ndctl(_document(file), reading.name, reading)
        if self.smart:
            from whoseblock.sources.smart import read_smart

            for file in self.smart:
                reading = _begin(file, readings)
                yield from read_smart(_document(file), reading.name, reading)


def _begin(file: TextIO, readings: list[Reading]) -> Reading:
    reading = Reading(name_of(file))
    readings.append(reading)
    return reading


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file; raises `MalformedError` for one that no program writes."""
    number = 0
    while line := _read(file.readline, file, _LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE:
            expected = f"text in lines of less than {_LONGEST_LINE} characters"
            raise MalformedError(name_of(file), number, expected)
        yield line


def _document(file: TextIO) -> str:
    """Read a file whole; raises `MalformedError` for one that no program writes."""
    text = _read(file.read, file, _LONGEST_DOCUMENT)
    if len(text) == _LONGEST_DOCUMENT:
        expected = f"a document of less than {_LONGEST_DOCUMENT} characters"
        raise MalformedError(name_of(file), None, expected)
    return text


def _read(read: Callable[[int], str], file: TextIO, most: int) -> str:
    try:
        return read(most)
    except OSError as error:
        raise WhoseblockError(f"cannot read {name_of(file)}: {error.strerror}") from error


def _counted(lines: Iterator[str], reading: Reading) -> Iterator[str]:
    for line in lines:
        reading.read += 1
        yield line


def failures_of(
    given: Given, target: "Target", finder: "Lookup", readings: list[Reading]
) -> Iterator[Failure]:
    """Yield every failure, in the order of the help: what is written out, files, the kernel's.

    ``readings`` gets a record for each input of what was read of it.
    """
    block_size = None
    if given.of_the_target and target.layer is not None and not target.layer.segments:
        # What cannot be opened at all is said before anything else is.
        block_size = finder.leaf(target.layer).block_size
    yield from given.ranges_asked(block_size, readings)
    yield from given.failures(target.host.page_size, readings)
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


def name_of(file: TextIO) -> str:
    """Say what to call a file in a message."""
    name = getattr(file, "name", "-")
    return "standard input" if name in ("-", "<stdin>") else str(name)
