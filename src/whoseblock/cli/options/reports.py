"""Read the failures that options name: ranges, report files, and the kernel's lists."""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

from whoseblock.cli.presentation.notices import print_error
from whoseblock.errors import PrivilegeError, WhoseblockError
from whoseblock.ranges import RangeList, parse_range, parse_range_text
from whoseblock.sources.base import Failure, Reading

if TYPE_CHECKING:
    from whoseblock.cli.options.failure_values import FailureOptions
    from whoseblock.lookup import Lookup
    from whoseblock.sources.block_lists.failure_list import FailureList
    from whoseblock.sources.kernel_log.patterns import Units
    from whoseblock.target import Target

__all__ = ["parse_ranges", "read_failures", "read_lists"]

#: The size of a target that has none of its own; see `Target`.
_NO_END: Final = (1 << 63) - 1
#: So many failures of a list are looked up together: one scan may answer all of them.
_MOST: Final = 1 << 20


def read_failures(
    given: "FailureOptions", target: "Target", finder: "Lookup", readings: list[Reading]
) -> Iterator[Failure]:
    """Yield every failure: ranges first, then files, then the kernel's lists.

    A record for each input is appended to ``readings``.
    """
    yield from parse_ranges(given, _block_size(given, target, finder), readings)
    if given.few:
        return
    from whoseblock.cli.options.report_files import read_report_files

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
                print_error(f"whoseblock: {name}: {TRUNCATED}")
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


def read_lists(
    given: "FailureOptions", target: "Target", finder: "Lookup", readings: list[Reading]
) -> "Iterator[FailureList]":
    """Yield the failures of the one list that there is; see `FailureOptions.is_one_list`.

    Ranges are all parsed before the first is returned.  A record of the file is appended to
    ``readings``.
    """
    from whoseblock.sources.block_lists.failure_list import FailureList

    # Opening the target first reports an unreadable target before any other error.
    block_size = _block_size(given, target, finder)
    found = FailureList.of("", ())
    if not (given.mapfiles or given.badblocks):
        for ranges in _parse_range_lists(given, block_size, readings):
            found.ranges.extend(ranges)
        yield found
        return
    from whoseblock.cli.options.report_files import read_report_lists

    for some in read_report_lists(_compare_sizes(given, target), readings):
        if found.lines and len(found.lines) + len(some.lines) > _MOST:
            yield found
            found = FailureList.of("", ())
        found.ranges.extend(some.ranges)
        found.lines.extend(some.lines)
        found = found._replace(report=some.report)
    yield found


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
        from whoseblock.cli.options.input_files import read_chunks, start_reading

        reading = start_reading(given.ranges_file, readings)
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
    from whoseblock.cli.options.input_files import name_of, read_tail
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
