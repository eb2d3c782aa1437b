"""Read the failures that options name: ranges, report files, and the kernel's lists."""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Final, TextIO

import click

from whoseblock.cli.options.input_files import (
    name_of,
    read_chunks,
    read_document,
    read_lines,
    read_log_lines,
    read_tail,
)
from whoseblock.errors import PrivilegeError, WhoseblockError
from whoseblock.ranges import RangeList, parse_range, parse_range_text
from whoseblock.sources.base import Failure, Reading

if TYPE_CHECKING:
    from whoseblock.cli.options.failures import FailureOptions
    from whoseblock.lookup import Lookup
    from whoseblock.sources.kernel_log.patterns import Units
    from whoseblock.target import Target

__all__ = ["parse_ranges", "read_failures", "read_ranges", "read_report_files"]

#: The size of a target that has none of its own; see `Target`.
_NO_END: Final = (1 << 63) - 1


def read_failures(
    given: "FailureOptions", target: "Target", finder: "Lookup", readings: list[Reading]
) -> Iterator[Failure]:
    """Yield every failure: ranges first, then files, then the kernel's lists.

    A record for each input is appended to ``readings``.
    """
    yield from parse_ranges(given, _block_size(given, target, finder), readings)
    given = _compare_sizes(given, target)
    units = _find_units(given, target, finder) if given.dmesg else None
    yield from read_report_files(given, target.host.page_size, readings, units)
    if given.sysfs_badblocks:
        from whoseblock.sources.block_lists.sysfs import TRUNCATED, parse_bad_block_list

        for device, name, text in target.bad_block_lists():
            reading = Reading(name)
            readings.append(reading)
            page_size = target.host.page_size
            failures, truncated = parse_bad_block_list(text, page_size, device, name, reading)
            if truncated:
                click.echo(f"whoseblock: {name}: {TRUNCATED}", err=True)
            yield from failures


def _find_units(given: "FailureOptions", target: "Target", finder: "Lookup") -> "Units":
    """Return the units of the messages in a log, which may depend on a device or a filesystem.

    The devices of this machine are those of the log only if failures are looked up in them.
    """
    from whoseblock.sources.kernel_log.patterns import Units

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
    given: "FailureOptions", target: "Target", finder: "Lookup", readings: list[Reading]
) -> RangeList:
    """Return all ranges, if there are only ranges; see `FailureOptions.few`.

    A record of the ranges file is appended to ``readings``.
    """
    found = RangeList.of(())
    for ranges in _parse_range_lists(given, _block_size(given, target, finder), readings):
        found.extend(ranges)
    return found


def _block_size(given: "FailureOptions", target: "Target", finder: "Lookup") -> int | None:
    """Return the block size of the filesystem that ranges are of; None if it is unknown."""
    if given.of_the_target and target.layer is not None and not target.layer.segments:
        # Opening the target first reports an unreadable target before any other error.
        return finder.leaf(target.layer).block_size
    return None


def parse_ranges(
    given: "FailureOptions", block_size: int | None, readings: list[Reading]
) -> Iterator[Failure]:
    """Yield the failures written as ranges; ``block_size`` is the unit of the suffix ``b``.

    The record of the ranges file is appended to ``readings``.
    """
    for ranges in _parse_range_lists(given, block_size, readings):
        for start, length in ranges:
            yield Failure(start, length)


def _parse_range_lists(
    given: "FailureOptions", block_size: int | None, readings: list[Reading]
) -> Iterator[RangeList]:
    """Yield what `parse_ranges` does, many ranges at once."""
    yield RangeList.of(parse_range(text, block_size) for text in given.texts)
    if given.ranges_file is not None:
        reading = _start_reading(given.ranges_file, readings)
        for text in read_chunks(given.ranges_file):
            ranges = parse_range_text(text, reading.name, block_size, reading.read + 1)
            reading.read += text.count("\n") + (not text.endswith("\n"))
            reading.failures += len(ranges)
            yield ranges


def _compare_sizes(given: "FailureOptions", target: "Target") -> "FailureOptions":
    """Add a doubt to the layer of a target for each map that is of a device of another size.

    Return the options with the maps at their beginning: of a pipe that is a copy.
    """
    layer = target.layer
    if layer is None or given.offset is not None or not given.mapfiles:
        return given
    from whoseblock.sources.block_lists.mapfile import find_map_end

    files = []
    for mapfile in given.mapfiles:
        file, tail = read_tail(mapfile)
        end = find_map_end(tail)
        if end is None or layer.size in (end, _NO_END):
            pass
        elif layer.size_certain or end < layer.size:
            doubt = (
                f"{name_of(mapfile)} covers {end} bytes, and {layer.name} has {layer.size}: it"
                " may be of another device; --offset says where in that device this one begins"
            )
            layer.doubts += (doubt,)
        files.append(file)
    return given._replace(mapfiles=tuple(files))


def read_report_files(
    given: "FailureOptions", page_size: int, readings: list[Reading], units: "Units | None" = None
) -> Iterator[Failure]:
    """Yield every failure of the report files; raises `MalformedError`.

    A record for each file is appended to ``readings``; ``units`` are those of kernel logs.
    """
    # Import only the parsers that are needed.
    if given.mapfiles:
        from whoseblock.sources.block_lists.mapfile import read_mapfile

        for file in given.mapfiles:
            reading = _start_reading(file, readings)
            yield from read_mapfile(read_lines(file), reading.name, given.statuses, reading)
    if given.badblocks and given.block_size:
        from whoseblock.sources.block_lists.block_numbers import read_block_numbers

        for file in given.badblocks:
            reading = _start_reading(file, readings)
            yield from read_block_numbers(read_lines(file), reading.name, given.block_size, reading)
    yield from _read_documents(given, page_size, readings)
    if given.dmesg:
        from whoseblock.sources.kernel_log.dmesg import read_dmesg

        for file in given.dmesg:
            reading = _start_reading(file, readings)
            lines = read_log_lines(file, reading)
            yield from read_dmesg(lines, reading.name, page_size, reading, units)
    if given.pfns or given.addresses:
        from whoseblock.sources.memory import parse_pfn, parse_physical_address

        for number in given.pfns:
            yield parse_pfn(number, page_size)
        for address in given.addresses:
            yield parse_physical_address(address, page_size)


def _read_documents(
    given: "FailureOptions", page_size: int, readings: list[Reading]
) -> Iterator[Failure]:
    if given.ndctl:
        from whoseblock.sources.programs.ndctl import read_ndctl

        for file in given.ndctl:
            reading = _start_reading(file, readings)
            yield from read_ndctl(read_document(file), reading.name, reading)
    if given.smart:
        from whoseblock.sources.programs.smart import read_smart

        for file in given.smart:
            reading = _start_reading(file, readings)
            yield from read_smart(read_document(file), reading.name, reading)
    yield from _read_events(given, page_size, readings)


def _read_events(
    given: "FailureOptions", page_size: int, readings: list[Reading]
) -> Iterator[Failure]:
    if given.cxl:
        from whoseblock.sources.programs.cxl import read_cxl

        for file in given.cxl:
            reading = _start_reading(file, readings)
            yield from read_cxl(read_document(file), reading.name, page_size, reading)
    if given.md_badblocks:
        from whoseblock.sources.block_lists.md_badblocks import read_md_badblocks

        for file in given.md_badblocks:
            reading = _start_reading(file, readings)
            yield from read_md_badblocks(read_lines(file), reading.name, reading)
    if given.rasdaemon:
        from whoseblock.sources.programs.rasdaemon import read_rasdaemon

        for path in given.rasdaemon:
            reading = Reading(path)
            readings.append(reading)
            yield from read_rasdaemon(path, page_size, reading, given.since)


def _start_reading(file: TextIO, readings: list[Reading]) -> Reading:
    reading = Reading(name_of(file))
    readings.append(reading)
    return reading
