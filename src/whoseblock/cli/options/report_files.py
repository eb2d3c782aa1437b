"""Read the report files that options name, each with the parser of its form."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from whoseblock.cli.options.input_files import (
    read_chunks,
    read_document,
    read_lines,
    read_log_lines,
    start_reading,
)
from whoseblock.sources.base import Failure, Reading

if TYPE_CHECKING:
    from whoseblock.cli.options.failure_values import FailureOptions
    from whoseblock.sources.block_lists.failure_list import FailureList
    from whoseblock.sources.kernel_log.patterns import Units

__all__ = ["read_report_files", "read_report_lists"]


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
            reading = start_reading(file, readings)
            yield from read_mapfile(read_lines(file), reading.name, given.statuses, reading)
    if given.badblocks and given.block_size:
        from whoseblock.sources.block_lists.block_numbers import read_block_numbers

        for file in given.badblocks:
            reading = start_reading(file, readings)
            yield from read_block_numbers(read_lines(file), reading.name, given.block_size, reading)
    yield from _read_documents(given, page_size, readings)
    if given.dmesg:
        from whoseblock.sources.kernel_log.dmesg import read_dmesg

        for file in given.dmesg:
            reading = start_reading(file, readings)
            lines = read_log_lines(file, reading)
            yield from read_dmesg(lines, reading.name, page_size, reading, units)
    if given.pfns or given.addresses:
        from whoseblock.sources.memory import parse_pfn, parse_physical_address

        for number in given.pfns:
            yield parse_pfn(number, page_size)
        for address in given.addresses:
            yield parse_physical_address(address, page_size)


def read_report_lists(given: "FailureOptions", readings: list[Reading]) -> "Iterator[FailureList]":
    """Yield the failures of maps and lists of block numbers, many at once.

    The rest is as in `read_report_files`.
    """
    for file in given.mapfiles:
        from whoseblock.sources.block_lists.mapfile import read_map_lists

        reading = start_reading(file, readings)
        yield from read_map_lists(read_chunks(file), reading.name, given.statuses, reading)
    for file in given.badblocks:
        from whoseblock.sources.block_lists.block_numbers import read_block_number_lists

        reading = start_reading(file, readings)
        size = given.block_size or 0
        yield from read_block_number_lists(read_chunks(file), reading.name, size, reading)


def _read_documents(
    given: "FailureOptions", page_size: int, readings: list[Reading]
) -> Iterator[Failure]:
    if given.ndctl:
        from whoseblock.sources.programs.ndctl import read_ndctl

        for file in given.ndctl:
            reading = start_reading(file, readings)
            yield from read_ndctl(read_document(file), reading.name, reading)
    if given.smart:
        from whoseblock.sources.programs.smart import read_smart

        for file in given.smart:
            reading = start_reading(file, readings)
            yield from read_smart(read_document(file), reading.name, reading)
    yield from _read_events(given, page_size, readings)


def _read_events(
    given: "FailureOptions", page_size: int, readings: list[Reading]
) -> Iterator[Failure]:
    if given.cxl:
        from whoseblock.sources.programs.cxl import read_cxl

        for file in given.cxl:
            reading = start_reading(file, readings)
            yield from read_cxl(read_document(file), reading.name, page_size, reading)
    if given.md_badblocks:
        from whoseblock.sources.block_lists.md_badblocks import read_md_badblocks

        for file in given.md_badblocks:
            reading = start_reading(file, readings)
            yield from read_md_badblocks(read_lines(file), reading.name, reading)
    if given.rasdaemon:
        from whoseblock.sources.programs.rasdaemon import read_rasdaemon

        for path in given.rasdaemon:
            reading = Reading(path)
            readings.append(reading)
            yield from read_rasdaemon(path, page_size, reading, given.since)
