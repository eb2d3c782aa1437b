"""The options with which failures are given, in whatever form one has them."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TextIO, TypeVar

import click

from whoseblock.ranges import parse_range, parse_ranges
from whoseblock.sources.base import Failure

if TYPE_CHECKING:
    from whoseblock.lookup import Lookup
    from whoseblock.target import Target

__all__ = ["Given", "failure_options", "failures_of", "image_failure_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STATUSES: Final = "?*/-"


def _file() -> click.File:
    return click.File("r", encoding="utf-8", errors="surrogateescape")


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

    def check(self, *, target: bool) -> None:
        """Refuse what makes no question, with a usage error."""
        if not (self.of_the_target or self.names_devices or self.sysfs_badblocks):
            raise click.UsageError("Give a RANGE, or a FILE with failures: see --help.")
        if not target and (self.of_the_target or self.sysfs_badblocks):
            raise click.UsageError("Name the TARGET that the ranges are of.")
        if self.badblocks and self.block_size is None:
            raise click.UsageError(
                "--badblocks needs --block-size: badblocks counts 1024 bytes unless it got -b."
            )

    def ranges_asked(self, block_size: int | None) -> Iterator[Failure]:
        """Give the ranges that were written as ranges; ``block_size`` is what ``b`` means."""
        for text in self.texts:
            yield Failure(*parse_range(text, block_size))
        if self.ranges_file is not None:
            for start, length in parse_ranges(
                self.ranges_file, name_of(self.ranges_file), block_size
            ):
                yield Failure(start, length)

    def failures(self, page_size: int) -> Iterator[Failure]:
        """Give every failure from the files that tell of some; raises `MalformedError`."""
        # Each module is loaded only for what was given.
        if self.mapfiles:
            from whoseblock.sources.mapfile import read_mapfile

            for file in self.mapfiles:
                yield from read_mapfile(file, name_of(file), self.statuses)
        if self.badblocks and self.block_size:
            from whoseblock.sources.badblocks import read_badblocks

            for file in self.badblocks:
                yield from read_badblocks(file, name_of(file), self.block_size)
        yield from self._documents()
        if self.dmesg:
            from whoseblock.sources.dmesg import read_dmesg

            for file in self.dmesg:
                yield from read_dmesg(file, name_of(file), page_size)
        if self.pfns or self.addresses:
            from whoseblock.sources.memory import failure_of_address, failure_of_pfn

            for number in self.pfns:
                yield failure_of_pfn(number, page_size)
            for address in self.addresses:
                yield failure_of_address(address, page_size)

    def _documents(self) -> Iterator[Failure]:
        if self.ndctl:
            from whoseblock.sources.ndctl import read_ndctl

            for file in self.ndctl:
                yield from read_ndctl(file.read(), name_of(file))
        if self.smart:
            from whoseblock.sources.smart import read_smart

            for file in self.smart:
                yield from read_smart(file.read(), name_of(file))


def failures_of(given: Given, target: "Target", finder: "Lookup") -> Iterator[Any]:
    """Give every failure, in the order of the help: what is written out, files, the kernel's."""
    block_size = None
    if given.of_the_target and target.layer is not None and not target.layer.segments:
        # What cannot be opened at all is said before anything else is.
        block_size = finder.leaf(target.layer).block_size
    yield from given.ranges_asked(block_size)
    yield from given.failures(target.host.page_size)
    if given.sysfs_badblocks:
        from whoseblock.sources.sysfs import CUT_OFF, read_sysfs_badblocks, whole_lines

        for device, name, text in target.bad_block_lists():
            lines, cut = whole_lines(text, target.host.page_size)
            if cut:
                click.echo(f"whoseblock: {name}: {CUT_OFF}", err=True)
            yield from read_sysfs_badblocks(lines, device, name)


def name_of(file: TextIO) -> str:
    """Say what to call a file in a message."""
    name = getattr(file, "name", "-")
    return "standard input" if name in ("-", "<stdin>") else str(name)
