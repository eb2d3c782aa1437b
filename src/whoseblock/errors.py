"""The errors that whoseblock raises, each class with its exit code.

::

    WhoseblockError
    ├── TargetError            the target cannot be opened
    │   └── PrivilegeError     permission is denied, or a capability is missing
    │       └── JournalPrivilegeError  the same for the journal; also a JournalError
    ├── RangeSyntaxError       a range is not in the form START[+LENGTH]
    ├── MalformedError         a failure report is not in its format
    ├── OutOfDeviceError       a range ends past the device
    ├── NotAFilesystemError    no supported filesystem is on the target
    ├── UnsupportedError       a supported filesystem with an unsupported feature
    ├── JournalError           the journal cannot be opened, read or written
    ├── PolicyError            the policy file of the daemon is invalid
    ├── OutputError            standard output, or the file of --output, cannot be written
    ├── ArgumentError          an argument of the Python API has a wrong type or value
    ├── ClosedError            a filesystem was used after it was closed
    ├── LeftUndoneError        a repair step was skipped or failed
    ├── InUseError             another run carries out the plan
    ├── MissingExtraError      a library of an extra is not installed
    └── BlockError             required metadata is unreadable
        ├── MediaError         a required range of the medium is unreadable
        └── CorruptError       a metadata block is invalid

A message is one sentence; ``hint`` names what to do next. The documentation and the man page list
the exit codes of `exit_codes`.
"""

from collections.abc import Iterable
from typing import ClassVar, Final

from whoseblock.byte_range import ByteRange

__all__ = [
    "INCOMPLETE",
    "NEWS",
    "OUT_OF_MEMORY",
    "PASSED_OVER",
    "ArgumentError",
    "BlockError",
    "ClosedError",
    "CorruptError",
    "InUseError",
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

#: The exit code of ``watch --once`` if it succeeded and found new failures.
NEWS: Final = 20
#: The exit code if a report was answered, but damaged lines or absent devices were passed over.
PASSED_OVER: Final = 23
#: The exit code of ``lookup --fail-incomplete`` if an answer is incomplete.
INCOMPLETE: Final = 24
#: The exit code if memory is exhausted, of the machine or by a limit on the process.
OUT_OF_MEMORY: Final = 21


class WhoseblockError(Exception):
    """Another error."""

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
    """A range is not in the form START[+LENGTH]."""

    exit_code = 4


class MalformedError(WhoseblockError):
    """A failure report is not in its format.

    ``line`` is the line of the error, or ``path`` the JSON path of the value, if it is known.
    """

    exit_code = 11

    def __init__(
        self, name: str, line: int | None, expected: str, *, hint: str = "", path: str = ""
    ) -> None:
        self.name = name
        self.line = line
        self.path = path
        place = path if line is None else f"line {line}"
        where = f"{name}, {place}" if place else name
        super().__init__(f"{where}: expected {expected}", hint=hint)


class OutOfDeviceError(WhoseblockError):
    """A range ends past the end of the device."""

    exit_code = 5


class NotAFilesystemError(WhoseblockError):
    """No supported filesystem is on the target.

    ``reason`` is why not, or what there is instead; it ends the message, ``subject`` begins it.
    ``title`` is what there is instead, in a few words, "" if that is unknown.
    """

    exit_code = 6

    def __init__(self, subject: str, *, reason: str = "", hint: str = "", title: str = "") -> None:
        super().__init__(f"{subject}: {reason}" if reason else subject, hint=hint)
        self.subject = subject
        self.reason = reason
        self.title = title


class UnsupportedError(WhoseblockError):
    """The filesystem has an unsupported feature."""

    exit_code = 7


class OutputError(WhoseblockError):
    """The output cannot be written."""

    exit_code = 19


class ArgumentError(WhoseblockError):
    """An argument of the Python API has a wrong type or value."""

    exit_code = 17


class ClosedError(WhoseblockError):
    """A filesystem was used after it was closed."""

    exit_code = 18


class JournalError(WhoseblockError):
    """The journal cannot be opened, read or written.

    Callers that get this error before a change of a device must not make the change.
    """

    exit_code = 13


class JournalPrivilegeError(PrivilegeError, JournalError):
    """Permission to read or write the journal is denied."""


class PolicyError(WhoseblockError):
    """The policy file of the daemon is invalid."""

    exit_code = 16

    def __init__(self, name: str, line: int | None, what: str, *, hint: str = "") -> None:
        self.name = name
        self.line = line
        where = name if line is None else f"{name}, line {line}"
        super().__init__(f"{where}: {what}", hint=hint)


class LeftUndoneError(WhoseblockError):
    """A repair step was skipped or failed."""

    exit_code = 14


class InUseError(WhoseblockError):
    """Another run carries out the plan."""

    exit_code = 22


class MissingExtraError(WhoseblockError):
    """A library of an extra is not installed."""

    exit_code = 15


class BlockError(WhoseblockError):
    """Required metadata is unreadable."""

    exit_code = 8


class MediaError(BlockError):
    """A required range of the medium is unreadable.

    ``ranges`` are exactly the unreadable bytes: disjoint, ascending, in the address space of the
    medium. ``what`` is the name of the structure there, "" if it is unknown.
    """

    exit_code = 9

    def __init__(
        self, ranges: Iterable[ByteRange], reason: str = "input/output error", what: str = ""
    ) -> None:
        self.ranges = tuple(ranges)
        self.reason = reason
        where = ", ".join(str(bad) for bad in self.ranges)
        super().__init__(f"{what or 'the medium'} cannot be read at {where}: {reason}")


class CorruptError(BlockError):
    """A metadata block is invalid."""

    exit_code = 10

    def __init__(self, what: str, start: int, reason: str) -> None:
        self.start = start
        self.reason = reason
        super().__init__(f"{what} at byte {start}: {reason}")


def exit_codes() -> dict[int, str]:
    """Return every exit code with its meaning, in order."""
    codes = {0: "Success; see `complete` and `notes` for what may be missing."}
    pending: list[type[WhoseblockError]] = [WhoseblockError]
    while pending:
        error = pending.pop()
        if "exit_code" in vars(error):
            codes[error.exit_code] = (error.__doc__ or "").partition("\n")[0]
        pending += error.__subclasses__()
    codes[2] = "Wrong usage of the command line."
    codes[NEWS] = "`watch --once` found new failures."
    codes[OUT_OF_MEMORY] = "Out of memory."
    codes[PASSED_OVER] = "Damaged lines of a report, or absent devices, were passed over."
    codes[INCOMPLETE] = "`--fail-incomplete` was given, and an answer is incomplete."
    codes[130] = "Interrupted."
    codes[141] = "Broken pipe."
    return dict(sorted(codes.items()))
