"""Parse the plainest lookups, ``lookup TARGET RANGE... [--json] [--no-paths]``, without click.

The import of click would take a sixth of the time of such a process.  click parses all other
command lines, and reports all that is wrong.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from whoseblock.cli.options.choices import Choices
    from whoseblock.cli.options.failure_values import FailureOptions
    from whoseblock.target import TargetOptions

__all__ = ["parse_plain"]

_JSON: Final = "--json"
_NO_PATHS: Final = "--no-paths"
#: The verb, the target and a range.
_FEWEST: Final = 3


def parse_plain(
    words: list[str],
) -> "tuple[str, FailureOptions, Choices, TargetOptions] | None":
    """Return the arguments of `report_owners.report_owners`; None if click must parse the words."""
    values = [word for word in words if not word.startswith("-")]
    flags = {word for word in words if word.startswith("-")}
    if words[:1] != ["lookup"] or len(values) < _FEWEST or not flags <= {_JSON, _NO_PATHS}:
        return None
    from whoseblock.cli.options.choices import Choices
    from whoseblock.cli.options.failure_values import FailureOptions
    from whoseblock.target import TargetOptions

    _, target, *ranges = values
    choices = Choices(as_json=_JSON in flags, no_paths=_NO_PATHS in flags)
    return target, FailureOptions(tuple(ranges)), choices, TargetOptions()
