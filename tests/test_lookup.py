"""Questions about layers that are put together by hand: splitting, joining, and several owners."""

from functools import partial
from pathlib import Path

import pytest
from tests.support.expected_rows import Expectation
from tests.support.filled_images import Zoo

from whoseblock.errors import NotAFilesystemError, OutOfDeviceError
from whoseblock.fs.base import FileOwner, LayerLocation, Outside, Unknown
from whoseblock.fs.opening import open_volume
from whoseblock.lookup import Lookup, Query
from whoseblock.media.device import FileMedia
from whoseblock.stack.base import Layer, LinearSegment, UnmappedSegment, descend


def image_layer(name: str, image: Path) -> Layer:
    return Layer(name, image.stat().st_size, "image", open_media=partial(FileMedia, image))


@pytest.fixture
def lookup() -> Lookup:
    return Lookup(lambda layer: open_volume([layer.open()]))


def test_a_failure_in_two_filesystems_returns_the_owners_of_both(zoo: Zoo, lookup: Lookup) -> None:
    # Two volumes over the same part of a disk, as device-mapper lets one make them.
    first, second = zoo.filled("4k"), zoo.filled("1k")
    disk = Layer("disk", 1 << 40, "disk")
    disk.segments = [
        LinearSegment(4096, first.image.stat().st_size, image_layer("one", first.image)),
        LinearSegment(12288, second.image.stat().st_size, image_layer("two", second.image)),
    ]
    # Where both have files.
    row = next(
        row
        for row in first.rows
        if row.kind == "file"
        and any(
            other.kind == "file" and other.start <= row.start - 8192 < other.end
            for other in second.rows
        )
    )
    with lookup:
        (answer,) = lookup.answers([Query(row.start + 4096, 512, disk)])
    expected = {
        "one": Expectation(first).rows(row.start, 512),
        "two": Expectation(second).rows(row.start - 8192, 512),
    }
    for name, rows in expected.items():
        mine = [owner for owner in answer if owner.via and owner.via[-1].layer == name]
        assert [owner.kind for owner in mine] == [one["kind"] for one in rows]
        inodes = [owner.inode for owner in mine if isinstance(owner, FileOwner)]
        assert inodes == [one["inode"] for one in rows if one["kind"] == "file"]
    assert {owner.start for owner in answer} == {row.start + 4096}


def test_an_unknown_layer_is_unknown_and_the_rest_is_answered(zoo: Zoo, lookup: Lookup) -> None:
    truth = zoo.filled("4k")
    disk = Layer("disk", 1 << 40, "disk")
    disk.segments = [
        UnmappedSegment(0, 512, "MBR"),
        UnmappedSegment(512, 512, "a thin pool", certain=False, remark="a remark"),
        LinearSegment(1024, 4096, image_layer("part", truth.image)),
    ]
    with lookup:
        (answer,) = lookup.answers([Query(256, 1000, disk)])
    assert answer.complete is False
    assert [(type(row), row.start, row.length) for row in answer.owners[:2]] == [
        (Outside, 256, 256),
        (Unknown, 512, 512),
    ]
    assert answer.owners[2].via == (LayerLocation("disk", 1024), LayerLocation("part", 0))
    assert "disk: a thin pool" in answer.notes
    assert "a remark" in answer.notes


def test_layers_in_a_circle_are_an_end() -> None:
    one, two = Layer("one", 1000, "disk"), Layer("two", 1000, "disk")
    one.segments, two.segments = [LinearSegment(0, 1000, two)], [LinearSegment(0, 1000, one)]
    (landing,) = descend(one, 10, 20)
    assert landing.layer is None
    assert not landing.certain
    assert len(landing.via) < 100


def test_a_range_from_the_command_line_must_be_on_the_device(zoo: Zoo, lookup: Lookup) -> None:
    layer = image_layer("image", zoo.filled("4k").image)
    with lookup, pytest.raises(OutOfDeviceError):
        list(lookup.answers([Query(layer.size, 1, layer)]))


def test_a_range_from_a_file_may_be_past_the_device(zoo: Zoo, lookup: Lookup) -> None:
    layer = image_layer("image", zoo.filled("4k").image)
    with lookup:
        (answer,) = lookup.answers([Query(layer.size - 512, 1024, layer, "a map")])
    assert [row.start for row in answer][-1] == layer.size
    assert isinstance(answer.owners[-1], Outside)
    assert answer.origin == "a map"


def test_a_layer_without_a_filesystem_is_opened_once() -> None:
    asked = []

    def nothing(layer: Layer) -> None:
        asked.append(layer)
        raise NotAFilesystemError("nothing here")

    layer = Layer("empty", 4096, "disk")
    disk = Layer("disk", 8192, "disk")
    disk.segments = [LinearSegment(0, 4096, layer)]
    with Lookup(nothing) as lookup:  # type: ignore[arg-type]
        answers = list(lookup.answers([Query(0, 512, disk), Query(512, 512, disk)]))
    assert asked == [layer]
    assert [answer.notes for answer in answers] == [("empty: nothing here",)] * 2
