"""``python -m whoseblock.cli.man``: the man page, generated from the help texts."""

import inspect
import sys
from collections.abc import Iterator

import click

from whoseblock import __version__
from whoseblock.cli.group import cli
from whoseblock.errors import exit_codes

__all__ = ["man_page"]

#: The same as in `whoseblock.cli.cli`: click caches the help option of a command on first use.
_HELP = ["-h", "--help"]


def man_page() -> str:
    """Return whoseblock(1) in the man(7) macros of roff."""
    lines = [
        f'.TH WHOSEBLOCK 1 "" "whoseblock {__version__}" "User Commands"',
        ".SH NAME",
        r"whoseblock \- whose block is this?",
        ".SH SYNOPSIS",
    ]
    commands = list(_commands(cli, ""))
    for name, command in commands:
        if isinstance(command, click.Group):
            continue
        usage = " ".join(
            command.collect_usage_pieces(click.Context(command, help_option_names=_HELP))
        )
        lines += [".B whoseblock", f".B {_text(name)}", _text(usage), ".br"]
    lines += [".SH DESCRIPTION", *_paragraphs(cli.help or "")]
    for name, command in commands:
        lines += [f".SH {_text(name.upper())}", *_paragraphs(command.help or "")]
        lines += _options(command)
        lines += _paragraphs(command.epilog or "")
    lines.append(".SH EXIT STATUS")
    for code, meaning in exit_codes().items():
        lines += [".TP", f".B {code}", _text(meaning)]
    return "\n".join(lines) + "\n"


def _commands(group: click.Group, above: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its name below ``whoseblock``, a group before its members."""
    context = click.Context(group, help_option_names=_HELP)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:  # pragma: no cover - every listed command exists
            continue
        yield above + name, command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{above}{name} ")


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command, help_option_names=_HELP)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option):
            names, meaning = record
            yield from (".TP", f".B {_text(names)}", _text(meaning))


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the lines of paragraphs; a paragraph marked for click keeps its line breaks."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines = paragraph.removeprefix("\b\n").split("\n")
            yield from (".PP", ".nf", *map(_text, lines), ".fi")
        else:
            yield from (".PP", _text(paragraph))


def _text(text: str) -> str:
    """Escape text that roff would interpret, line by line."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(
        rf"\&{line}" if line[:1] in {".", "'"} else line for line in escaped.split("\n")
    )


if __name__ == "__main__":
    sys.stdout.write(man_page())
