"""The errors that whoseblock raises, with their exit codes.

::

    WhoseblockError
    ├── TargetError            the target cannot be opened
    │   └── PrivilegeError     permission is denied, or a capability is missing
    │       └── JournalPrivilegeError  the same for the journal; also a JournalError
    ├── RangeSyntaxError       a range is not written as START[+LENGTH]
    ├── MalformedError         an input with failures is not in its format
    ├── OutOfDeviceError       a range ends past the device
    ├── NotAFilesystemError    no known filesystem is on the target
    ├── UnsupportedError       a known filesystem with an unknown feature
    ├── JournalError           the journal cannot be opened, read or written
    ├── PolicyError            the policy of the daemon is invalid
    ├── OutputError            standard output, or the file of --output, cannot be written
    ├── ArgumentError          an argument of the Python API is of a wrong type or value
    ├── ClosedError            a filesystem was used after it was closed
    ├── LeftUndoneError        a repair step was skipped or failed
    ├── MissingExtraError      a library that this part needs is not installed
    └── BlockError             required metadata is unreadable
        ├── MediaError         the medium cannot be read
        └── CorruptError       it does not verify

A message is one sentence; ``hint`` is the next step.  The tables of exit codes in the documentation
and in the man page come from `exit_codes`.
"""

from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from whoseblock.ranges import ByteRange

__all__ = [
    "NEWS",
    "OUT_OF_MEMORY",
    "ArgumentError",
    "BlockError",
    "ClosedError",
    "CorruptError",
    "JournalError",
    "JournalPrivilegeError",
    "LeftUndoneError",
    "MalformedError",
    "MediaError",
    "MissingExtraError",
    "NotAFilesystemError",
    "OutOfDeviceError",
    "OutputError",
    "PolicyError",
    "PrivilegeError",
    "RangeSyntaxError",
    "TargetError",
    "UnsupportedError",
    "WhoseblockError",
    "exit_codes",
]

#: The exit code of a successful sweep that found new failures.
NEWS: Final = 20
#: The exit code if the machine, or a limit of the process, allows no more memory.
OUT_OF_MEMORY: Final = 21


class WhoseblockError(Exception):
    """Any other failure of whoseblock."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class TargetError(WhoseblockError):
    """The target cannot be opened."""

    exit_code = 3


class PrivilegeError(TargetError):
    """Permission is denied, or a capability is missing."""

    exit_code = 12

    def __init__(self, message: str, *, hint: str = "try as root") -> None:
        super().__init__(message, hint=hint)


class RangeSyntaxError(WhoseblockError):
    """A range is not written as START[+LENGTH]."""

    exit_code = 4


class MalformedError(WhoseblockError):
    """An input with failures is not in its format."""

    exit_code = 11

    def __init__(self, name: str, line: int | None, expected: str, *, hint: str = "") -> None:
        self.name = name
        self.line = line
        where = name if line is None else f"{name}, line {line}"
        super().__init__(f"{where}: expected {expected}", hint=hint)


class OutOfDeviceError(WhoseblockError):
    """A range ends past the end of the device."""

    exit_code = 5


class NotAFilesystemError(WhoseblockError):
    """No filesystem that whoseblock knows is on the target."""

    exit_code = 6


class UnsupportedError(WhoseblockError):
    """The filesystem has a feature that whoseblock does not know."""

    exit_code = 7


class OutputError(WhoseblockError):
    """The output cannot be written."""

    exit_code = 19


class ArgumentError(WhoseblockError):
    """An argument of the Python API is of a wrong type or value."""

    exit_code = 17


class ClosedError(WhoseblockError):
    """A filesystem was used after it was closed."""

    exit_code = 18


class JournalError(WhoseblockError):
    """The journal cannot be opened, read or written.

    A caller that gets it before an act on a device must not act.
    """

    exit_code = 13


class JournalPrivilegeError(PrivilegeError, JournalError):
    """Permission to read or write the journal is denied."""


class PolicyError(WhoseblockError):
    """The policy of the daemon is invalid."""

    exit_code = 16

    def __init__(self, name: str, line: int | None, what: str, *, hint: str = "") -> None:
        self.name = name
        self.line = line
        where = name if line is None else f"{name}, line {line}"
        super().__init__(f"{where}: {what}", hint=hint)


class LeftUndoneError(WhoseblockError):
    """A repair step was skipped or failed."""

    exit_code = 14


class MissingExtraError(WhoseblockError):
    """A library that only this part of whoseblock needs is not installed."""

    exit_code = 15


class BlockError(WhoseblockError):
    """Required metadata is unreadable."""

    exit_code = 8


class MediaError(BlockError):
    """A required range of the medium is unreadable.

    ``ranges`` are exactly the bytes that failed: disjoint, ascending, in the address space of the
    medium.  ``what`` names the structure at that place, if the reader knows it.
    """

    exit_code = 9

    def __init__(
        self, ranges: "Iterable[ByteRange]", reason: str = "input/output error", what: str = ""
    ) -> None:
        self.ranges = tuple(ranges)
        self.reason = reason
        where = ", ".join(str(bad) for bad in self.ranges)
        super().__init__(f"{what or 'the medium'} cannot be read at {where}: {reason}")


class CorruptError(BlockError):
    """A metadata block does not verify."""

    exit_code = 10

    def __init__(self, what: str, start: int, reason: str) -> None:
        self.start = start
        self.reason = reason
        super().__init__(f"{what} at byte {start}: {reason}")


def exit_codes() -> dict[int, str]:
    """Return every exit code with its meaning, in order."""
    codes = {0: "Every question was answered; see `complete` and `notes` for what is missing."}
    todo: list[type[WhoseblockError]] = [WhoseblockError]
    while todo:
        error = todo.pop()
        if "exit_code" in vars(error):
            codes[error.exit_code] = (error.__doc__ or "").partition("\n")[0]
        todo += error.__subclasses__()
    codes[2] = "The command line is wrong."
    codes[NEWS] = "`watch --once` found new failures."
    codes[OUT_OF_MEMORY] = "Out of memory."
    codes[130] = "Interrupted."
    codes[141] = "Broken pipe."
    return dict(sorted(codes.items()))
