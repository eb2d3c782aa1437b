"""The command line: one module for each verb, with arguments and presentation only."""

import gc
import io
import os
import sys
from importlib import import_module
from textwrap import fill
from typing import TYPE_CHECKING

import click

from whoseblock import __version__
from whoseblock.cli.terminal import printable
from whoseblock.errors import OUT_OF_MEMORY, OutputError, WhoseblockError, exit_codes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

__all__ = ["cli", "main"]

#: The exit codes that a shell reports for a program that SIGPIPE or Ctrl-C ended.
_BROKEN_PIPE, _INTERRUPTED = 141, 130
#: The name in messages.
_STDOUT = "standard output"
#: The width of paragraphs that click does not wrap; it indents them by two columns.
_WIDTH = 76


def _exit_status() -> str:
    """Return the registry of exit codes as a paragraph that click does not wrap."""
    codes = exit_codes().items()
    lines = "\n".join(
        fill(meaning, _WIDTH, initial_indent=f"  {code:>3}  ", subsequent_indent=" " * 7)
        for code, meaning in codes
    )
    return f"\b\nExit status:\n{lines}"


class _ReaderGoneError(Exception):
    """The reader of standard output has exited."""


#: Every verb; each is a command of the same name in a module of the same name.
_VERBS = (
    "completion",
    "emulate",
    "journal",
    "lookup",
    "respond",
    "stack",
    "status",
    "study",
    "watch",
)


class _Group(click.Group):
    """A group that loads only the verb in use.

    It raises an error for a broken pipe, where click would exit.
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
            raise _ReaderGoneError from None
        return result


@click.group(
    cls=_Group,
    epilog=_exit_status(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """Report who owns a failed range of a storage device, and repair what can be repaired.

    The owners of a poisoned page of persistent memory, or of a bad sector, are all files that share
    it, with every path, or metadata of the filesystem.  Free space has no owner.
    """


class _StandardOutput(io.FileIO):
    """Standard output; its errors name it."""

    def write(self, data: "Buffer") -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _name_standard_output() -> None:
    """Replace standard output by one whose errors carry its name.

    If it is closed, exit: the next file or device that is opened would get its number, and the
    output.
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
    """Report an error of the system that has no message of its own; return the exit code."""
    what = error.strerror or str(error)
    code = WhoseblockError.exit_code
    if error.filename == _STDOUT:
        what, code = f"cannot write {_STDOUT}: {what}", OutputError.exit_code
    elif error.filename is not None:
        what = f"{os.fsdecode(error.filename)}: {what}"
    click.echo(f"whoseblock: {printable(what)}", err=True)
    return code


def _give_up_output() -> None:
    """Prevent the interpreter from flushing an unwritable output at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line; errors become one sentence, a hint, and an exit code."""
    # Answers are many small objects without cycles.  With its default thresholds, the collector
    # would scan them repeatedly, a quarter of the time of a long list.
    gc.set_threshold(100_000, 50, 100)
    _name_standard_output()
    try:
        code = cli.main(prog_name="whoseblock", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except WhoseblockError as error:
        click.echo(f"whoseblock: {printable(str(error))}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        code = error.exit_code
    except _ReaderGoneError:
        # The interpreter must not fail again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except MemoryError:
        click.echo("whoseblock: out of memory", err=True)
        click.echo("hint: look up fewer or shorter ranges at once", err=True)
        code = OUT_OF_MEMORY
    except OSError as error:
        code = _report_os_error(error)
    except (click.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    _give_up_output()
    sys.exit(code)
