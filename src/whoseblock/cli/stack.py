"""``whoseblock stack``: the layers of a target as a tree."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from whoseblock.cli.command import Command
from whoseblock.cli.targets import options_of, target_options
from whoseblock.cli.terminal import printable
from whoseblock.encode import encode_json
from whoseblock.errors import WhoseblockError

if TYPE_CHECKING:
    from whoseblock.lookup import Lookup
    from whoseblock.stack.base import Layer, Segment

__all__ = ["stack"]

#: A striped volume of many extents would fill pages; nobody reads more than this of one layer.
_MOST_SEGMENTS = 64


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  whoseblock stack disk.img                  partitions, volumes, and what is on them
  whoseblock stack /dev/nvme0n1              a disk of this machine
  whoseblock stack physical-memory           regions and namespaces of persistent memory
  whoseblock stack disk1.img --member disk2.img
  whoseblock stack pmem0 --root snapshot/    another machine's, from a snapshot of it""",
)
@click.argument("target", type=click.Path(readable=False))
@target_options
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def stack(target: str, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Show what is made of TARGET: a device, an image, or a layer by the kernel's name.

    Every layer with what it is made into, down to the filesystems; START+LENGTH are bytes of the
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
        if layer is None:  # pragma: no cover - a target that is named has a layer
            raise click.UsageError("Name a TARGET.")
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
    yield f"{printable(layer.name)}  {_about(layer, finder)}"
    yield from _below(layer, finder, "", (layer,))


def _below(
    layer: "Layer", finder: "Lookup", indent: str, above: "tuple[Layer, ...]"
) -> Iterator[str]:
    shown = layer.segments[:_MOST_SEGMENTS]
    left = len(layer.segments) - len(shown)
    for number, segment in enumerate(shown):
        last = number == len(shown) - 1 and not left
        branch, deeper = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield f"{indent}{branch}{segment.start}+{segment.length}  {_says(segment, finder)}"
        if segment.to is not None and segment.to not in above:
            yield from _below(segment.to, finder, indent + deeper, (*above, segment.to))
    if left:
        yield f"{indent}└─ and {left} more"


def _says(segment: "Segment", finder: "Lookup") -> str:
    if segment.to is None:
        return f"({printable(segment.what)})"
    label = f" {printable(segment.what)!r}" if segment.what else ""
    at = getattr(segment, "to_start", 0)
    offset = f" from its byte {at}" if at else ""
    return f"{printable(segment.to.name)}{offset}  {_about(segment.to, finder)}{label}"


def _about(layer: "Layer", finder: "Lookup") -> str:
    kind = printable(layer.kind)
    return kind if layer.segments else f"{kind}: {_content(layer, finder)}"


def _content(layer: "Layer", finder: "Lookup") -> str:
    """Say what is on a layer that nothing is made of."""
    try:
        return finder.leaf(layer).name
    except WhoseblockError as error:
        return printable(str(error))


def _tree(layer: "Layer", finder: "Lookup", above: "tuple[Layer, ...]") -> dict[str, Any]:
    tree: dict[str, Any] = {"layer": layer.name, "kind": layer.kind, "size": layer.size}
    if not layer.segments:
        try:
            tree["filesystem"] = finder.leaf(layer).name
        except WhoseblockError as error:
            tree["filesystem"], tree["why"] = None, str(error)
        return tree
    tree["segments"] = []
    for segment in layer.segments:
        told: dict[str, Any] = {"start": segment.start, "length": segment.length}
        if segment.what:
            told["what"] = segment.what
        if segment.to is not None and segment.to not in above:
            told["to"] = _tree(segment.to, finder, (*above, layer))
        tree["segments"].append(told)
    return tree
