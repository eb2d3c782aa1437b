"""Look up every tagged block of disks that tools/stack_fixtures made, and judge the answers.

Each 4096-byte block of a volume was written through the kernel with the name of the volume and the
offset in it.  Where a disk has such a tag, the layers must lead from there to that offset of that
volume, or say that they do not know.  The images are looked up, and with a snapshot of the kernel's
view also the devices.

    SCALE=10 tools/stack_fixtures/make FOLDER hard
    python -m tools.tagged_blocks FOLDER
"""

import argparse
import re
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.machine_snapshots import tags

from whoseblock.stack.base import Layer, RangeMapping, descend
from whoseblock.stack.kernel.devices import BlockDevices
from whoseblock.stack.kernel.host import Host
from whoseblock.target import Target, TargetOptions

__all__ = [
    "Judgement",
    "Tally",
    "count",
    "find_groups",
    "judge_devices",
    "judge_images",
    "main",
    "read_pairs",
]

BLOCK: Final = 4096
#: Snapshots, and the devices whose volumes were active when they were taken.
_SNAPSHOTS: Final = {
    "hard-imsm": ("early", "middle", "atomic", "mix", "kind", "imsm", "ddf"),
    "hard-kicked": ("kicked", "kicked5"),
    "hard-rebuild": ("replace", "rebuild"),
}


class Judgement(NamedTuple):
    """A block of a disk, its tag, what was answered, and how that is to be judged."""

    disk: str
    start: int
    volume: str
    offset: int
    answer: str
    verdict: str


class Tally(NamedTuple):
    """The number of blocks for each verdict, and the wrong answers."""

    counts: Counter[str]
    wrong: list[Judgement]


def judge_images(images: Sequence[Path]) -> Iterator[Judgement]:
    """Look up each tag in the images of the disks of one group or array."""
    options = TargetOptions(members=tuple(map(str, images[1:])))
    with Target(str(images[0]), options) as target:
        for image, layer in zip(images, [target.root, *target.members], strict=True):
            if layer is not None:
                yield from _judge(image, layer, _offline_names)


def judge_devices(
    images: Iterable[Path], root: Path, loops: Mapping[str, str], arrays: Mapping[str, str]
) -> Iterator[Judgement]:
    """Look up each tag in the devices of a snapshot.

    ``loops`` has the device of each image, and ``arrays`` the name of each array's device.
    """
    devices = BlockDevices(Host(root))
    for image in images:
        layer = devices.find_layer(loops[image.name])
        yield from _judge(image, layer, lambda volume: (volume, arrays.get(volume, "")))


def _offline_names(volume: str) -> tuple[str, ...]:
    return volume.replace("-", "/", 1), f"md/{volume}"


def _judge(
    image: Path, layer: Layer, names_of: Callable[[str], tuple[str, ...]]
) -> Iterator[Judgement]:
    for start, volume, offset in tags(image):
        for found in descend(layer, start, BLOCK):
            answer = f"{found.layer.name}+{found.offset}" if found.layer else found.what
            right = found.layer is not None and found.layer.name in names_of(volume)
            verdict = _verdict(found, layer, right=right and found.offset == offset)
            yield Judgement(image.name, start, volume, offset, answer, verdict)


def _verdict(found: RangeMapping, disk: Layer, *, right: bool) -> str:
    if not found.certain or found.layer is disk:
        return "unknown"
    if found.doubts:
        return "doubted"
    if right:
        return "right"
    return "outside" if found.layer is None else "wrong"


def count(judgements: Iterable[Judgement]) -> Tally:
    """Count verdicts; the content of a block that is called unused must be elsewhere."""
    counts: Counter[str] = Counter()
    placed: set[tuple[str, int]] = set()
    unused: dict[tuple[str, int], list[Judgement]] = defaultdict(list)
    wrong = []
    for one in judgements:
        counts[one.verdict] += 1
        if one.verdict == "right":
            placed.add((one.volume, one.offset))
        elif one.verdict == "outside":
            unused[one.volume, one.offset].append(one)
        elif one.verdict == "wrong":
            wrong.append(one)
    for key, some in unused.items():
        if key not in placed:
            wrong += some
    return Tally(counts, wrong)


def find_groups(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each group or array by its name."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for image in sorted(folder.glob("*.img")):
        if named := re.fullmatch(r"hard-(\w+)[a-d]|(\w+)-[0-9]|(lvm)-[ab]", image.stem):
            groups[named[1] or named[2] or named[3]].append(image)
    return groups


def read_pairs(path: Path) -> dict[str, str]:
    """Read a file with two words in each line."""
    words = (line.split() for line in path.read_text().splitlines())
    return {one: other.rpartition("/")[2] for one, other in words}


def _judge_all(folder: Path, scratch: Path) -> Iterator[tuple[str, Iterable[Judgement]]]:
    groups = find_groups(folder)
    for name, images in groups.items():
        yield f"{name}, images", judge_images(images)
    for snapshot, names in _SNAPSHOTS.items():
        archive = folder / f"{snapshot}.tar.xz"
        if not archive.exists():
            continue
        with tarfile.open(archive) as packed:
            packed.extractall(scratch / snapshot, filter="tar")
        loops = read_pairs(folder / "hard-loops.txt")
        arrays = {one: md for md, one in read_pairs(folder / "hard-names.txt").items()}
        for name in names:
            judged = judge_devices(groups[name], scratch / snapshot, loops, arrays)
            yield f"{name}, devices", judged


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what tools/stack_fixtures/make made")
    options = parser.parse_args(arguments)
    total: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, judgements in _judge_all(options.folder, Path(scratch)):
            tally = count(judgements)
            print(f"{name}: {dict(tally.counts)}", flush=True)
            for one in tally.wrong[:5]:
                print(f"  WRONG {one}", flush=True)
            total += tally.counts
            wrong += len(tally.wrong)
    print(f"{sum(total.values())} blocks: {dict(total)}, {wrong} wrong")
    return 1 if wrong or not total else 0


if __name__ == "__main__":
    sys.exit(main())
