"""``whoseblock stack``: show the layers of a target as a tree."""

import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.encode import encode_json
from whoseblock.errors import NotAFilesystemError, WhoseblockError
from whoseblock.printable import printable, rounded

if TYPE_CHECKING:
    from whoseblock.fs.driver import AddressSpace, DeviceSegment, ReverseMap
    from whoseblock.lookup import Lookup
    from whoseblock.stack.base import Layer, Segment

__all__ = ["stack"]

#: The columns of a terminal whose width is unknown, and the fewest that lines are broken for.
_WIDTH = 80
_MIN_WIDTH = 40
#: Limit on the segments shown of a layer; a striped volume may have very many.
_MAX_SEGMENTS = 64
#: What is added to the name of a filesystem, by how its owners are found.
_OWNERS = {"scan": " (owners by a scan of its inodes)", "none": " (no reverse map: owners unknown)"}


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock stack disk.img                  partitions, volumes, filesystems
  whoseblock stack /dev/nvme0n1              a disk of this machine
  whoseblock stack physical-memory           persistent memory by address
  whoseblock stack disk1.img --member disk2.img
  whoseblock stack pmem0 --root snapshot/    a device of another machine""",
)
@click.argument("target", type=click.Path(readable=False))
@target_options
@click.option("--bytes", "as_bytes", is_flag=True, help="Show starts and lengths in bytes.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def stack(
    target: str,
    as_json: bool,
    as_bytes: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Show the layers of TARGET, down to its filesystems.

    TARGET is a device, an image, or a layer by the kernel's name.  START +LENGTH are in the layer
    above, rounded in units of 1024 unless --bytes is given.
    """
    from whoseblock.lookup import Lookup
    from whoseblock.target import Target

    where = options_of(options)
    by_name = "/" not in target and _is_layer_name(target, where.root)
    with (
        Target(None if by_name else target, where) as opened,
        Lookup(opened.open_leaf) as finder,
    ):
        layer = opened.layer_of(target) if by_name else opened.layer
        if layer is None:  # pragma: no cover - a named target has a layer
            raise click.UsageError("missing TARGET")
        if as_json:
            click.echo(encode_json(_tree(layer, finder, ())))
        else:
            width = shutil.get_terminal_size((_WIDTH, 0)).columns
            for line in _Tree(finder, width, as_bytes=as_bytes).lines(layer):
                click.echo(line.encode(errors="backslashreplace"))
        if finder.denied is not None:
            raise finder.denied


def _is_layer_name(target: str, root: str) -> bool:
    from pathlib import Path

    from whoseblock.stack.kernel.host import Host

    if Path(target).exists():
        return False
    known = Host(root).find_device_folder(target) is not None
    return known or target == "physical-memory" or target.startswith("region")


class _Tree:
    """The tree of layers in lines of at most ``width`` columns, if names are not longer."""

    def __init__(self, finder: "Lookup", width: int, *, as_bytes: bool) -> None:
        self._finder = finder
        self._width = max(width, _MIN_WIDTH)
        self._as_bytes = as_bytes

    def lines(self, layer: "Layer") -> Iterator[str]:
        """Yield the lines of a layer and of all layers below."""
        size = "" if self._as_bytes else f"  {rounded(layer.size)}"
        below = "│  " if layer.segments else ""
        first = f"{printable(layer.name)}{size}  {self._describe_layer(layer)}"
        yield from self._wrapped("", below, first)
        yield from self._segments(layer, "", (layer,))

    def _wrapped(self, first: str, indent: str, text: str) -> Iterator[str]:
        """Yield a text in lines, the first one with ``first`` before it, others indented."""
        # Names and places are separated by two spaces, which stay in a line that needs no break.
        if len(first) + len(text) <= self._width:
            yield first + text
            return
        yield from textwrap.wrap(
            text,
            self._width,
            initial_indent=first,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _segments(self, layer: "Layer", indent: str, above: "tuple[Layer, ...]") -> Iterator[str]:
        shown = layer.segments[:_MAX_SEGMENTS]
        left = len(layer.segments) - len(shown)
        if not layer.segments:
            yield from self._device_segments(layer, indent)
        for number, segment in enumerate(shown):
            last = number == len(shown) - 1 and not left
            branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
            text = f"{self._place(segment)}  {self._describe_segment(segment)}"
            yield from self._wrapped(indent + branch, indent + deeper, text)
            if segment.to is not None and segment.to not in above:
                yield from self._segments(segment.to, indent + deeper, (*above, segment.to))
        if left:
            yield f"{indent}└─ and {left} more"

    def _device_segments(self, layer: "Layer", indent: str) -> Iterator[str]:
        """Yield a line for each part of a device that has addresses of its filesystem."""
        segments = _device_segments(self._finder, layer)
        shown = segments[:_MAX_SEGMENTS]
        left = len(segments) - len(shown)
        for number, segment in enumerate(shown):
            last = number == len(shown) - 1 and not left
            branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
            others = ", ".join(map(printable, segment.others))
            shared = f", with {others}" if others else ""
            text = f"{self._place(segment)}  {printable(segment.what)}{shared}"
            yield from self._wrapped(indent + branch, indent + deeper, text)
        if left:
            yield f"{indent}└─ and {left} more"

    def _place(self, segment: "Segment | DeviceSegment") -> str:
        if self._as_bytes:
            return f"{segment.start}+{segment.length}"
        return f"{rounded(segment.start)} +{rounded(segment.length)}"

    def _describe_segment(self, segment: "Segment") -> str:
        if segment.to is None:
            return f"({printable(segment.what)})"
        label = f" {printable(segment.what)!r}" if segment.what else ""
        at = getattr(segment, "to_start", 0)
        number = str(at) if self._as_bytes else rounded(at)
        offset = f" from its byte {number}" if at else ""
        return f"{printable(segment.to.name)}{offset}  {self._describe_layer(segment.to)}{label}"

    def _describe_layer(self, layer: "Layer") -> str:
        kind = printable(layer.kind)
        return kind if layer.segments else f"{kind}: {self._describe_content(layer)}"

    def _describe_content(self, layer: "Layer") -> str:
        """Return the name of the filesystem on a leaf, or what is there instead."""
        try:
            space = self._finder.leaf(layer)
        except NotAFilesystemError as error:
            return printable(error.title or str(error))
        except WhoseblockError as error:
            return printable(str(error))
        return f"{space.name}{_OWNERS.get(_reverse_map(space) or '', '')}"


def _device_segments(finder: "Lookup", layer: "Layer") -> "list[DeviceSegment]":
    """Return the parts of a device that have addresses of its filesystem."""
    from whoseblock.fs.driver import Volume

    try:
        space = finder.leaf(layer)
    except WhoseblockError:
        return []
    return list(space.device_segments()) if isinstance(space, Volume) else []


def _reverse_map(space: "AddressSpace") -> "ReverseMap | None":
    """Return how the owners of a filesystem are found; None for a companion of one."""
    from whoseblock.fs.driver import Volume

    return space.reverse_map if isinstance(space, Volume) else None


def _tree(layer: "Layer", finder: "Lookup", above: "tuple[Layer, ...]") -> dict[str, Any]:
    tree: dict[str, Any] = {"layer": layer.name, "kind": layer.kind, "size": layer.size}
    if not layer.segments:
        try:
            space = finder.leaf(layer)
            tree["filesystem"] = space.name
            if reverse_map := _reverse_map(space):
                tree["reverse_map"] = reverse_map
        except WhoseblockError as error:
            tree["filesystem"], tree["why"] = None, str(error)
            if title := getattr(error, "title", ""):
                tree["content"] = title
        parts = [one._asdict() for one in _device_segments(finder, layer)]
        if parts:
            tree["segments"] = parts
        return tree
    tree["segments"] = []
    for segment in layer.segments:
        entry: dict[str, Any] = {"start": segment.start, "length": segment.length}
        if segment.what:
            entry["what"] = segment.what
        if segment.to is not None and segment.to not in above:
            entry["to"] = _tree(segment.to, finder, (*above, layer))
        tree["segments"].append(entry)
    return tree
