"""The base of all verbs: a command that refuses repeated options, and shows options in groups."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import click
from click.core import ParameterSource

__all__ = ["Command", "GroupedOption", "is_given", "option_groups"]

#: The group of options that are in no other.
_OWN: Final = "Options"


class GroupedOption(click.Option):
    """An option that the help shows under a heading of its own."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:  # noqa: ANN401 - click's
        super().__init__(*args, **attributes)
        self.group = group


def option_groups(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the headings of a command's options, each with names and meanings.

    The command's own options come first.
    """
    groups: dict[str, list[tuple[str, str]]] = {_OWN: []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            title = parameter.group if isinstance(parameter, GroupedOption) else _OWN
            groups.setdefault(title, []).append(record)
    yield from groups.items()


class Command(click.Command):
    """A command that refuses repeated options, of which click would silently use the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; raises `click.UsageError` for an option with two values."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            counts = Counter(
                parameter.opts[0]
                for parameter in order
                if isinstance(parameter, click.Option)
                and not (parameter.multiple or parameter.is_flag or parameter.count)
            )
            for name, count in counts.items():
                if count > 1:
                    what = f"{name} is given {count} times, but takes one value"
                    raise click.UsageError(what, ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in their groups."""
        for title, records in option_groups(self, ctx):
            with formatter.section(title):
                formatter.write_dl(records)


def is_given(context: click.Context, name: str) -> bool:
    """Return whether a parameter was on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE
