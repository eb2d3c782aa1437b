"""The options that select how a target is read."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from whoseblock.cli.command import GroupedOption
from whoseblock.fs.registry import companions

if TYPE_CHECKING:
    from whoseblock.target import TargetOptions

__all__ = ["options_of", "target_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_option: Final = partial(click.option, cls=GroupedOption, group="Target")
#: The role of each companion that a filesystem may need, with the help for its option.
_ROLES: Final = {companion.role: companion.help for companion in companions()}
_COMPANION_OPTIONS: Final = tuple(
    _option(f"--{role}-device", type=click.Path(readable=False), metavar="DEVICE", help=explanation)
    for role, explanation in _ROLES.items()
)

_OPTIONS: Final = (
    _option(
        "--at-filesystem",
        is_flag=True,
        help="Read TARGET as the device of a filesystem; do not search partitions or volumes.",
    ),
    _option(
        "--offline",
        is_flag=True,
        help="Read the on-disk metadata even if mounted; it may be out of date.",
    ),
    _option(
        "--through-loop",
        is_flag=True,
        help="Follow a loop device into the filesystem that holds its file.",
    ),
    _option(
        "--member",
        "members",
        multiple=True,
        type=click.Path(readable=False),
        metavar="IMAGE",
        help="Another disk or image of the same volume group, array or filesystem; or LAYER=IMAGE,"
        " what the encrypted LAYER shows if it is opened; may be repeated.",
    ),
    _option(
        "--device",
        default="",
        metavar="NAME",
        help="Kernel's name of the device that TARGET is, or is a copy of: sda, pmem0.",
    ),
    _option(
        "--sector-size",
        "sector",
        type=click.Choice(["512", "4096"]),
        help="Size of the sectors that the partition table counts, if it is not clear.",
    ),
    *_COMPANION_OPTIONS,
    _option(
        "--address-space",
        type=click.Choice(["data", *_ROLES, "logical"]),
        default="data",
        show_default=True,
        help="Device of the filesystem that offsets refer to, or its own logical addresses.",
    ),
    _option(
        "--root",
        default="/",
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="Read /sys and /proc below DIR, an unpacked snapshot of a machine.",
    ),
)


def target_options(command: _Command) -> _Command:
    """Add the options to a command, which passes its values to `options_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_of(options: Mapping[str, Any]) -> "TargetOptions":
    """Return the options of a target from all options of a command."""
    from whoseblock.target import TargetOptions

    members, opened = _split_members(options["members"])
    given = {role: options[f"{role}_device"] for role in _ROLES}
    space = options["address_space"]
    return TargetOptions(
        members=members,
        opened=opened,
        at_filesystem=options["at_filesystem"],
        offline=options["offline"],
        through_loop=options["through_loop"],
        device=options["device"],
        companions={role: path for role, path in given.items() if path is not None},
        address_space=None if space == "data" else space,
        root=options["root"],
        sector=None if options["sector"] is None else int(options["sector"]),
    )


def _split_members(texts: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Separate the paths of members from opened volumes, which are ``LAYER=PATH``.

    A path with an equals sign is that of a member if there is such a file.
    """
    members: list[str] = []
    opened: dict[str, str] = {}
    for text in texts:
        layer, equals, path = text.partition("=")
        if not equals or not layer or not path or Path(text).exists():
            members.append(text)
        elif layer in opened:
            raise click.UsageError(f"--member names {layer} twice")
        else:
            opened[layer] = path
    return tuple(members), opened
