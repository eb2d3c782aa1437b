"""Messages on standard error beside the answers: inputs read, and options without effect."""

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from whoseblock.errors import PASSED_OVER
from whoseblock.printable import printable

if TYPE_CHECKING:
    from whoseblock.resolve import Resolver
    from whoseblock.sources.base import Reading
    from whoseblock.target import Target

__all__ = [
    "exit_passed_over",
    "is_passed_over",
    "print_error",
    "report",
    "report_options",
    "report_readings",
    "report_resolver",
]


def print_error(line: str) -> None:
    """Print a line on standard error, which may be closed."""
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def report(lines: Iterable[str]) -> None:
    """Write lines to standard error, escaped for a terminal."""
    for line in lines:
        print_error(f"whoseblock: {printable(line)}")


def report_readings(readings: "Iterable[Reading]") -> None:
    """Report every input without failures or with unrecognised errors."""
    report(f"{one.name}: {one.summary()}" for one in readings if not one.is_silent)


def is_passed_over(resolver: "Resolver", readings: "Iterable[Reading]") -> bool:
    """Return whether damaged lines of a report, or absent devices, had no answer."""
    return bool(resolver.absent) or any(one.broken for one in readings)


def exit_passed_over() -> None:
    """Exit with the code for `is_passed_over`."""
    import click

    click.get_current_context().exit(PASSED_OVER)


def report_resolver(resolver: "Resolver", target: "Target") -> None:
    """Report the device that failures were assumed to be of, and the number of skipped failures."""
    report(_resolver_lines(resolver, target))


def _resolver_lines(resolver: "Resolver", target: "Target") -> Iterator[str]:
    if resolver.assumed_device:
        yield f"failures of {resolver.assumed_device} are assumed to be of {target.path}"
    if count := resolver.outside:
        what = "failure" if count == 1 else "failures"
        yield f"{count} {what} outside of {target.path} skipped, because of --offset"
    for device, count in resolver.absent.most_common():
        what = "failure" if count == 1 else "failures"
        yield f"{count} {what} of {device} passed over: this machine has no such device"
    for (device, reason), count in resolver.unaddressed.most_common():
        what = "logical address" if count == 1 else "logical addresses"
        yield f"{count} {what} of {device} passed over: {reason}"
    for device, count in resolver.skipped.most_common():
        what = "failure" if count == 1 else "failures"
        yield f"{count} {what} of {device} skipped: not on {target.path}"
    if (device := resolver.device) and device not in resolver.named:
        if resolver.named:
            yield f"--device {device} had no effect: the failures are of other devices"
        elif target.host.find_device_folder(device) is None:
            yield f"--device {device} had no effect: no failure names a device"


def report_options(target: "Target") -> None:
    """Report options of the target without effect; call this after its leaves were opened."""
    report(_option_lines(target))


def _option_lines(target: "Target") -> Iterator[str]:
    for path in target.unused_members():
        yield (
            f"--member {path} had no effect: it shares no volume group, array or filesystem with"
            " the target"
        )
    for name, path in target.unused_opened():
        yield f"--member {name}={path} had no effect: there is no encrypted layer {name}"
    for role, why in target.unused_devices():
        yield f"--{role}-device had no effect: {why}"
