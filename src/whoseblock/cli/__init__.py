"""The command line: one module for each verb, with arguments and presentation only.

click is imported only for command lines that `whoseblock.cli.plain` does not parse.
"""

import gc
import io
import os
import sys
from typing import TYPE_CHECKING

from whoseblock import __version__
from whoseblock.cli.presentation.notices import print_error
from whoseblock.errors import OUT_OF_MEMORY, OutputError, WhoseblockError
from whoseblock.printable import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

__all__ = ["ClosedPipeError", "main", "report_error"]

#: The exit codes that a shell reports for a program ended by SIGPIPE, and by Ctrl-C.
_BROKEN_PIPE, _INTERRUPTED = 141, 130
#: The name in messages.
_STDOUT = "standard output"


class ClosedPipeError(Exception):
    """The reader of standard output has closed the pipe."""


class _StandardOutput(io.FileIO):
    """Standard output whose errors carry its name."""

    def write(self, data: "Buffer") -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _name_standard_output() -> None:
    """Replace standard output by one whose errors carry its name, and refuse a closed one.

    If it is closed, the next file or device that is opened would get its number, and the output.
    """
    old: object = sys.stdout
    if old is None:
        print_error(f"whoseblock: {_STDOUT} is closed")
        sys.exit(OutputError.exit_code)
    if isinstance(old, io.TextIOWrapper):
        old.flush()
        raw = _StandardOutput(old.fileno(), "wb", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=old.encoding,
            errors=old.errors,
            line_buffering=old.line_buffering,
        )


def _report_os_error(error: OSError) -> int:
    """Report an error of a system call that no module has handled; return the exit code."""
    what = error.strerror or str(error)
    code = WhoseblockError.exit_code
    if error.filename == _STDOUT:
        what, code = f"cannot write {_STDOUT}: {what}", OutputError.exit_code
    elif error.filename is not None:
        what = f"{os.fsdecode(error.filename)}: {what}"
    print_error(f"whoseblock: {printable(what)}")
    return code


def _discard_output() -> None:
    """Stop the interpreter from flushing unwritable output when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: BaseException) -> int:
    """Report an error as one sentence with a hint; return the exit code.

    Raises it again if it is a bug.
    """
    if isinstance(error, WhoseblockError):
        print_error(f"whoseblock: {printable(str(error))}")
        if error.hint:
            print_error(f"hint: {error.hint}")
        return error.exit_code
    if isinstance(error, MemoryError):
        print_error("whoseblock: out of memory")
        print_error("hint: pass fewer or shorter ranges")
        return OUT_OF_MEMORY
    if isinstance(error, OSError):
        return _report_os_error(error)
    import click

    if isinstance(error, click.Abort):
        return _INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    raise error


def _run(words: list[str]) -> int:
    """Run a command line; return the exit code."""
    if words in (["--version"], ["-V"]):
        sys.stdout.write(f"whoseblock {__version__}\n")
        return 0
    from whoseblock.cli.plain import parse_plain

    plain = parse_plain(words)
    if plain is None:
        from whoseblock.cli.group import cli

        return cli.main(words, prog_name="whoseblock", standalone_mode=False) or 0
    from whoseblock.cli.report_owners import report_owners

    return report_owners(*plain)


def main() -> None:
    """Run the command line; print an error as one sentence with a hint, and exit with its code."""
    # Answers are many small objects without cycles. With the default thresholds, the collector
    # would traverse all of them repeatedly, and take a quarter of the time of a long list.
    gc.set_threshold(100_000, 50, 100)
    _name_standard_output()
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except (BrokenPipeError, ClosedPipeError):
        # The interpreter must not fail on the broken pipe again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except KeyboardInterrupt:
        print_error("")
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a bug is raised again
        code = report_error(error)
    _discard_output()
    # The interpreter would search all objects for garbage once more before it ends.
    gc.freeze()
    sys.exit(code)
