"""The way up through the layers, compared with the way down of every byte."""

from hypothesis import given
from hypothesis import strategies as st
from tests.stack.test_base import layers

from whoseblock.media.striping import Raid0, Raid1, Raid5, Raid10, Striping
from whoseblock.stack.ascent import ascend, layers_above
from whoseblock.stack.base import Layer, LayerOffset, LinearSegment, descend, reach
from whoseblock.stack.members import MemberSegment

Way = tuple[LayerOffset, ...]


def ways_down(top: Layer, leaf: Layer) -> set[Way]:
    """Return the way to each byte of a leaf, byte by byte."""
    return {
        mapping.via
        for byte in range(top.size)
        for mapping in descend(top, byte, 1)
        if mapping.layer is leaf
    }


def ways_up(top: Layer, leaf: Layer) -> set[Way]:
    found = set()
    at = 0
    for placement in ascend(layers_above([top]), leaf, 0, leaf.size):
        assert placement.start == at
        at += placement.length
        for way in placement.ways:
            for distance in range(placement.length):
                found.add(tuple(LayerOffset(name, start + distance) for name, start in way))
    assert at == leaf.size
    return {way for way in found if len(way) > 1 or leaf is top}


@given(layers())
def test_the_way_up_is_the_way_down(top: Layer) -> None:
    for layer in (found := reach(top)):
        # Storage behind a loop device is not looked for from below.
        layer.backing_segments = ()
        layer.name = f"{layer.name}.{sorted(map(id, found)).index(id(layer))}"
    for leaf in reach(top):
        if not leaf.segments:
            assert ways_up(top, leaf) == ways_down(top, leaf)


CHUNK, ROWS = 4, 6
STRIPINGS: list[tuple[Striping, int]] = [
    (Raid0(CHUNK, [ROWS, ROWS, ROWS]), 3 * ROWS * CHUNK),
    (Raid0(CHUNK, [ROWS, ROWS - 2]), (2 * ROWS - 2) * CHUNK),
    (Raid1(2, ROWS * CHUNK), ROWS * CHUNK),
    (Raid10(CHUNK, 4, 0x102, ROWS), 2 * ROWS * CHUNK),
    (Raid10(CHUNK, 3, 0x102, ROWS), 3 * ROWS // 2 * CHUNK),
    (Raid5(CHUNK, 3, 2), 2 * ROWS * CHUNK),
    (Raid5(CHUNK, 4, 2, 2), 2 * ROWS * CHUNK),
]


@given(st.sampled_from(STRIPINGS), st.integers(0, 3), st.integers(0, 5))
def test_every_copy_on_an_array_is_found(
    layout: tuple[Striping, int], offset: int, to_start: int
) -> None:
    striping, size = layout
    array = Layer("array", size + to_start, "md")
    disks = [Layer(f"disk{number}", 100, "disk") for number in range(striping.members)]
    for number, disk in enumerate(disks):
        disk.segments = [
            MemberSegment(offset, ROWS * CHUNK, array, striping, number, to_start),
        ]
    up = [
        tuple(LayerOffset(name, at + distance) for name, at in way)
        for placement in ascend(layers_above(disks), array, to_start, size)
        for way in placement.ways
        for distance in range(placement.length)
    ]
    assert len(up) == len(set(up))
    assert set(up) == set().union(*(ways_down(disk, array) for disk in disks))


def test_bytes_of_no_layer_are_where_they_are() -> None:
    disk, part = Layer("disk", 100, "disk"), Layer("part", 50, "partition")
    disk.segments = [LinearSegment(10, 20, part)]
    assert list(ascend(layers_above([disk]), part, 10, 20)) == [
        (10, 10, ((LayerOffset("disk", 20), LayerOffset("part", 10)),)),
        (20, 10, ((LayerOffset("part", 20),),)),
    ]


def test_a_range_over_many_windows_is_joined() -> None:
    disk, part = Layer("disk", 1 << 40, "disk"), Layer("part", 1 << 39, "partition")
    disk.segments = [LinearSegment(4096, 1 << 39, part)]
    (found,) = ascend(layers_above([disk]), part, 512, 1 << 30)
    assert found == (512, 1 << 30, ((LayerOffset("disk", 4608), LayerOffset("part", 512)),))
