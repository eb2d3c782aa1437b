"""``whoseblock stack``: show the layers of a target as a tree."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.cli.presentation.terminal import printable
from whoseblock.encode import encode_json
from whoseblock.errors import WhoseblockError

if TYPE_CHECKING:
    from whoseblock.fs.driver import AddressSpace, ReverseMap
    from whoseblock.lookup import Lookup
    from whoseblock.stack.base import Layer, Segment

__all__ = ["stack"]

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
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def stack(target: str, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Show the layers of TARGET, down to its filesystems.

    TARGET is a device, an image, or a layer by the kernel's name.  START+LENGTH are bytes of the
    layer above.
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
            for line in _lines(layer, finder):
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


def _lines(layer: "Layer", finder: "Lookup") -> Iterator[str]:
    yield f"{printable(layer.name)}  {_describe_layer(layer, finder)}"
    yield from _segment_lines(layer, finder, "", (layer,))


def _segment_lines(
    layer: "Layer", finder: "Lookup", indent: str, above: "tuple[Layer, ...]"
) -> Iterator[str]:
    shown = layer.segments[:_MAX_SEGMENTS]
    left = len(layer.segments) - len(shown)
    for number, segment in enumerate(shown):
        last = number == len(shown) - 1 and not left
        branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
        described = _describe_segment(segment, finder)
        yield f"{indent}{branch}{segment.start}+{segment.length}  {described}"
        if segment.to is not None and segment.to not in above:
            yield from _segment_lines(segment.to, finder, indent + deeper, (*above, segment.to))
    if left:
        yield f"{indent}└─ and {left} more"


def _describe_segment(segment: "Segment", finder: "Lookup") -> str:
    if segment.to is None:
        return f"({printable(segment.what)})"
    label = f" {printable(segment.what)!r}" if segment.what else ""
    at = getattr(segment, "to_start", 0)
    offset = f" from its byte {at}" if at else ""
    return f"{printable(segment.to.name)}{offset}  {_describe_layer(segment.to, finder)}{label}"


def _describe_layer(layer: "Layer", finder: "Lookup") -> str:
    kind = printable(layer.kind)
    return kind if layer.segments else f"{kind}: {_describe_content(layer, finder)}"


def _describe_content(layer: "Layer", finder: "Lookup") -> str:
    """Return the name of the filesystem on a leaf, or why there is none."""
    try:
        space = finder.leaf(layer)
    except WhoseblockError as error:
        return printable(str(error))
    return f"{space.name}{_OWNERS.get(_reverse_map(space) or '', '')}"


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
