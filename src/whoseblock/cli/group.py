"""The group of all verbs, as click parses the command line."""

import sys
from importlib import import_module

import click

from whoseblock import __version__
from whoseblock.cli import ClosedPipeError
from whoseblock.errors import exit_codes

__all__ = ["cli"]


def _exit_status() -> str:
    """Return the table of exit codes as a paragraph that click does not reflow."""
    lines = "".join(f"\n  {code:>3}  {meaning}" for code, meaning in exit_codes().items())
    return f"\b\nExit status:{lines}"


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

    It raises `ClosedPipeError` for a broken pipe, where click would exit.
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a verb; the error for an unknown one names those with a similar name."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            if similar := get_close_matches(args[0], _VERBS):
                hint = f"{error.message} (Did you mean {' or '.join(similar)}?)"
                raise click.UsageError(hint, ctx) from None
            raise

    def invoke(self, ctx: click.Context) -> object:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise ClosedPipeError from None
        return result


@click.group(
    cls=_Group,
    epilog=_exit_status(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Find out whose block this is.

    For a poisoned page of persistent memory or a bad sector, report all owners: every file that
    shares it, with every path, or the metadata, or free space. Repair what can be repaired.
    """
