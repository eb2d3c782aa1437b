"""Check what can be found out about a target: its layers, and the filesystems on them."""

from collections.abc import Iterator

from whoseblock.doctor.base import Check, State
from whoseblock.errors import NotAFilesystemError, PrivilegeError, WhoseblockError
from whoseblock.fs.driver import AddressSpace, Capability, MountedVolume, Volume
from whoseblock.lookup import Lookup
from whoseblock.stack.base import Layer

__all__ = ["check_target"]

#: What each capability is for.
_ACTS = {
    Capability.ZERO_FREE: "zero free space",
    Capability.FREEZE: "freeze it meanwhile",
    Capability.CAPTURE: "give free blocks to a file",
    Capability.REFLINK: "restore shared data once for all files",
    Capability.EXCHANGE_RANGE: "exchange blocks, unless the file changed",
    Capability.MOVE_EXTENT: "exchange blocks",
    Capability.OVERWRITE: "overwrite in place",
    Capability.QUARANTINE: "keep a bad block in quarantine",
}
_OWNERS = {
    "index": (State.WORKS, "in its reverse map"),
    "scan": (State.LIMITED, "by reading all inodes, since it has no reverse map"),
    "none": (State.MISSING, "it has no reverse map, and no scan of it is possible here"),
}


def check_target(layer: Layer, finder: Lookup) -> Iterator[Check]:
    """Check a layer and all layers below; reads only what opening a filesystem reads."""
    seen: set[Layer] = set()
    todo = [layer]
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        if one.segments:
            todo += [below.to for below in reversed(one.segments) if below.to is not None]
            yield Check(one.name, one.kind, State.WORKS, f"{one.size} bytes, of other layers")
        else:
            yield from _check_leaf(one, finder)


def _check_leaf(layer: Layer, finder: Lookup) -> Iterator[Check]:
    try:
        space = finder.leaf(layer)
    except PrivilegeError as error:
        yield Check(layer.name, "content", State.UNKNOWN, str(error), error.hint)
    except NotAFilesystemError as error:
        yield Check(layer.name, "content", State.MISSING, error.title or str(error), error.hint)
    except WhoseblockError as error:
        yield Check(layer.name, "content", State.MISSING, str(error), error.hint)
    else:
        yield from _check_space(layer.name, space)


def _check_space(name: str, space: AddressSpace) -> Iterator[Check]:
    if not isinstance(space, Volume):
        yield Check(name, "content", State.WORKS, f"another device of a filesystem: {space.name}")
        return
    mounted = space.mount_point if isinstance(space, MountedVolume) else ""
    way = f"mounted at {mounted}" if mounted else "not mounted; read from the disk"
    yield Check(name, "filesystem", State.WORKS, f"{space.name}, {way}")
    state, detail = _OWNERS[space.reverse_map]
    yield Check(name, "owners", state, detail)
    for doubt in space.doubts:
        yield Check(name, "complete answers", State.LIMITED, doubt)
    if not space.doubts:
        yield Check(name, "complete answers", State.WORKS, "nothing is known that prevents them")
    acts = [text for capability, text in _ACTS.items() if capability in space.capabilities]
    detail = "; ".join(acts) or "nothing of it can be changed safely as it is"
    state = State.WORKS if acts and mounted else State.LIMITED
    remedy = "" if mounted else "mount it: most repairs go through the kernel"
    yield Check(name, "repairs", state, detail, remedy)
