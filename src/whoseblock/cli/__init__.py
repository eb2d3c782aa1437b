"""The command line: one module for each verb, with arguments and presentation only."""

import gc
import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click

from whoseblock import __version__
from whoseblock.errors import OUT_OF_MEMORY, OutputError, WhoseblockError, exit_codes
from whoseblock.printable import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

__all__ = ["cli", "main", "report_error"]

#: The exit codes that a shell reports for a program ended by SIGPIPE, and by Ctrl-C.
_BROKEN_PIPE, _INTERRUPTED = 141, 130
#: The name in messages.
_STDOUT = "standard output"


def _exit_status() -> str:
    """Return the table of exit codes as a paragraph that click does not reflow."""
    lines = "".join(f"\n  {code:>3}  {meaning}" for code, meaning in exit_codes().items())
    return f"\b\nExit status:{lines}"


class _BrokenPipeError(Exception):
    """The reader of standard output has closed the pipe."""


#: Every verb; each is a command of the same name in a module of the same name.
_VERBS = (
    "completion",
    "doctor",
    "emulate",
    "file",
    "journal",
    "lookup",
    "map",
    "respond",
    "stack",
    "status",
    "study",
    "watch",
)


class _Group(click.Group):
    """A group that imports a verb on first use.

    It raises `_BrokenPipeError` for a broken pipe, where click would exit.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _VERBS:
            return None
        command = getattr(import_module(f"whoseblock.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _BrokenPipeError from None
        return result


@click.group(
    cls=_Group,
    epilog=_exit_status(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Find out whose block this is.

    For a poisoned page of persistent memory or a bad sector, report all owners: every file that
    shares it, with every path, or the metadata, or free space. Repair what can be repaired.
    """


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
        click.echo(f"whoseblock: {_STDOUT} is closed", err=True)
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
    click.echo(f"whoseblock: {printable(what)}", err=True)
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
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, WhoseblockError):
        click.echo(f"whoseblock: {printable(str(error))}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        return error.exit_code
    if isinstance(error, MemoryError):
        click.echo("whoseblock: out of memory", err=True)
        click.echo("hint: pass fewer or shorter ranges", err=True)
        return OUT_OF_MEMORY
    if isinstance(error, OSError):
        return _report_os_error(error)
    raise error


def main() -> None:
    """Run the command line; print an error as one sentence with a hint, and exit with its code."""
    # Answers are many small objects without cycles. With the default thresholds, the collector
    # would traverse all of them repeatedly, and take a quarter of the time of a long list.
    gc.set_threshold(100_000, 50, 100)
    _name_standard_output()
    try:
        code = cli.main(prog_name="whoseblock", standalone_mode=False) or 0
    except _BrokenPipeError:
        # The interpreter must not fail on the broken pipe again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except (click.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a bug is raised again
        code = report_error(error)
    _discard_output()
    sys.exit(code)
