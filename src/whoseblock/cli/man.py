"""``python -m whoseblock.cli.man FOLDER``: the man pages, generated from the help texts."""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from whoseblock import __version__
from whoseblock.cli.command import option_groups
from whoseblock.cli.group import cli
from whoseblock.errors import exit_codes

__all__ = ["man_pages"]

#: The same as in `whoseblock.cli.group`: click caches the help option of a command on first use.
_HELP = ["-h", "--help"]
_ENVIRONMENT: Final = {
    "WHOSEBLOCK_JOURNAL": "The journal of journal, respond and watch, unless --journal names one.",
    "WHOSEBLOCK_KEY": "The key that proves that plans in the journal are of this host, in place"
    " of the file key in the state folder.",
    "XDG_STATE_HOME": "The state folder of a user is whoseblock below this folder, by default below"
    " ~/.local/state.",
    "NO_COLOR": "Without a color in the progress bar.",
}
_FILES: Final = {
    "/var/lib/whoseblock": "The state folder of root: journal.sqlite, the key, and the spool and"
    " the state of the daemon.",
    "/etc/whoseblock/policy.toml": "The usual place for the policy of the daemon; watch --policy"
    " names it.",
    "/etc/systemd/system/whoseblock-watch.service": "The unit that watch --install-unit writes.",
}


def man_pages() -> dict[str, str]:
    """Return whoseblock(1) and a page for each verb in the man(7) macros of roff, by file name."""
    context = click.Context(cli, help_option_names=_HELP)
    verbs = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    pages = {"whoseblock.1": "\n".join(_overview(verbs)) + "\n"}
    for name, command in verbs.items():
        if command is not None:
            lines = _verb_page(name, command, [other for other in verbs if other != name])
            pages[f"whoseblock-{name}.1"] = "\n".join(lines) + "\n"
    return pages


def _overview(verbs: dict[str, click.Command | None]) -> Iterator[str]:
    yield from _title("whoseblock", "whose block is this?")
    yield from (".SH SYNOPSIS", ".B whoseblock", r"\fICOMMAND\fR [\fIARGUMENT\fR]...")
    yield from (".SH DESCRIPTION", *_paragraphs(cli.help or ""))
    yield ".SH COMMANDS"
    for name, command in verbs.items():
        if command is not None:
            yield from (".TP", rf"\fBwhoseblock\-{_text(name)}\fR(1)", _text(_summary(command)))
    yield from (".SH OPTIONS", *_options(cli))
    yield from _ending(list(verbs))


def _verb_page(name: str, command: click.Command, others: list[str]) -> Iterator[str]:
    summary = _summary(command)
    yield from _title(f"whoseblock-{name}", summary[:1].lower() + summary[1:].removesuffix("."))
    yield ".SH SYNOPSIS"
    parts = list(_commands(command, name))
    for full, part in parts:
        if not isinstance(part, click.Group):
            context = click.Context(part, help_option_names=_HELP)
            usage = " ".join(part.collect_usage_pieces(context))
            yield from (rf"\fBwhoseblock {_text(full)}\fR {_text(usage)}", ".br")
    yield from (".SH DESCRIPTION", *_paragraphs(command.help or ""))
    if len(parts) == 1:
        yield from (".SH OPTIONS", *_options(command), *_paragraphs(command.epilog or ""))
    for full, part in parts[1:]:
        yield from (f".SH {_text(full.upper())}", *_paragraphs(part.help or ""))
        yield from (*_options(part), *_paragraphs(part.epilog or ""))
    yield from _ending(others)


def _summary(command: click.Command) -> str:
    return (command.help or "").partition("\n")[0]


def _title(name: str, purpose: str) -> Iterator[str]:
    yield f'.TH {_text(name.upper())} 1 "" "whoseblock {__version__}" "User Commands"'
    yield from (".SH NAME", rf"{_text(name)} \- {_text(purpose)}")


def _ending(others: list[str]) -> Iterator[str]:
    """Yield the sections that all pages have; ``others`` are the verbs to refer to."""
    for heading, entries in (
        ("ENVIRONMENT", _ENVIRONMENT),
        ("FILES", _FILES),
        ("EXIT STATUS", exit_codes()),
    ):
        yield f".SH {heading}"
        for name, meaning in entries.items():
            yield from (".TP", f".B {_text(str(name))}", _text(meaning))
    names = ["whoseblock", *(f"whoseblock-{name}" for name in others)]
    # Names are not hyphenated.
    yield from (".SH SEE ALSO", ".nh", ", ".join(rf"\fB{_text(name)}\fR(1)" for name in names))


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all commands below it, with their names below ``whoseblock``."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, help_option_names=_HELP)
        for below in command.list_commands(context):
            if (found := command.get_command(context, below)) is not None:
                yield from _commands(found, f"{name} {below}")


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command, help_option_names=_HELP)
    for number, (title, records) in enumerate(option_groups(command, context)):
        if number:
            yield f".SS {_text(title)}"
        for names, meaning in records:
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


def main() -> None:
    """Write the pages into the folder that is the argument."""
    folder = Path(sys.argv[1])
    pages = man_pages()
    for old in folder.glob("*.1"):
        if old.name not in pages:
            old.unlink()
    for name, page in pages.items():
        (folder / name).write_text(page, "utf-8")


if __name__ == "__main__":
    main()
