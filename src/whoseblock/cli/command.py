"""The base of all verbs: a command that refuses repeated options."""

from collections import Counter

import click
from click.core import ParameterSource

__all__ = ["Command", "is_given"]


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


def is_given(context: click.Context, name: str) -> bool:
    """Return whether a parameter was on the command line."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE
