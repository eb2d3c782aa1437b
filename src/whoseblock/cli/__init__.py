"""The command line: one module for each verb, nothing but arguments and presentation."""

import gc
import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click

from whoseblock import __version__
from whoseblock.cli.terminal import printable
from whoseblock.errors import OUT_OF_MEMORY, OutputError, WhoseblockError, exit_codes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

__all__ = ["cli", "main"]

#: What a shell reports of a program that SIGPIPE ended; and of one that Ctrl-C did.
_BROKEN_PIPE, _INTERRUPTED = 141, 130
#: What messages call it.
_STDOUT = "standard output"


def _exit_status() -> str:
    """Write the registry of exit codes as a paragraph that click leaves as it is."""
    lines = "".join(f"\n  {code:>3}  {meaning}" for code, meaning in exit_codes().items())
    return f"\b\nExit status:{lines}"


class _ReaderGoneError(Exception):
    """Whoever read our output has gone."""


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
    """A group that loads a verb when it is asked for, so that none waits for the others.

    It tells us of a broken pipe, where click would end the program by itself.
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
    """Whose block is this?

    From a page of persistent memory that is poisoned, or a sector that has gone bad, to everything
    that owned it: every file that shares it with every path, or which metadata, or nobody.
    """


class _StandardOutput(io.FileIO):
    """Standard output, of which an error says what could not be written."""

    def write(self, data: "Buffer") -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _name_standard_output() -> None:
    """Have errors of standard output carry its name.

    Without one, the next file or device that is opened would get its number, and the output.
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
    """Report an error of the system that nothing has put into words; return the exit code."""
    what = error.strerror or str(error)
    code = WhoseblockError.exit_code
    if error.filename == _STDOUT:
        what, code = f"cannot write {_STDOUT}: {what}", OutputError.exit_code
    elif error.filename is not None:
        what = f"{os.fsdecode(error.filename)}: {what}"
    click.echo(f"whoseblock: {printable(what)}", err=True)
    return code


def _give_up_output() -> None:
    """Keep the interpreter from flushing an output at its end that cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line; errors become one sentence, a hint, and an exit code."""
    # Answers are many small objects without cycles: at its usual pace the collector would look at
    # all of them again and again, and take a quarter of the time of a long list.
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
        # The reader has gone; the interpreter must not find that out again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except MemoryError:
        click.echo("whoseblock: out of memory", err=True)
        click.echo("hint: ask about fewer ranges at once, or about shorter ones", err=True)
        code = OUT_OF_MEMORY
    except OSError as error:
        code = _report_os_error(error)
    except (click.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    _give_up_output()
    sys.exit(code)
