import re
from collections.abc import Iterator

import click
import pytest
from tests.support.commands import whoseblock

from whoseblock import __version__
from whoseblock.cli.group import cli

WIDTH = 80


def contexts(
    command: click.Command, name: str, above: click.Context | None
) -> Iterator[click.Context]:
    context = click.Context(
        command,
        info_name=name,
        parent=above,
        terminal_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield context
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below is not None
            yield from contexts(below, word, context)


@pytest.mark.parametrize(
    "context", list(contexts(cli, "whoseblock", None)), ids=lambda it: it.command_path
)
def test_help_fits_a_terminal_of_80_columns(context: click.Context) -> None:
    text = context.get_help()
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    # click ends a summary that is too long for the list of commands so.
    assert "..." not in text.partition("Commands:")[2]


def test_a_mistyped_verb_has_a_suggestion() -> None:
    done = whoseblock("lokup")
    assert done.returncode == 2
    assert "No such command 'lokup'. (Did you mean lookup?)" in done.stderr
    assert "Did you mean" not in whoseblock("zzz").stderr


def test_the_version_in_both_forms() -> None:
    assert (
        whoseblock("-V").stdout == whoseblock("--version").stdout == f"whoseblock {__version__}\n"
    )


def test_options_are_shown_in_groups() -> None:
    text = whoseblock("lookup", "--help").stdout
    parts = re.split(r"^(Options|Failures|Target):$", text, flags=re.MULTILINE)
    assert parts[1::2] == ["Options", "Failures", "Target"]
    for part, option in zip(parts[2::2], ("--json", "--mapfile", "--offline"), strict=True):
        assert f"  {option} " in part
        assert text.count(f"\n  {option} ") == 1
