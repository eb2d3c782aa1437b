"""Limits of the search for layers."""

from pathlib import Path

import pytest
from tests.support.disk_images import partition
from tests.support.xfs_images import MIB, sparse_file

from whoseblock.media.device import FileMedia
from whoseblock.stack.base import Layer, descend
from whoseblock.stack.images import assembly
from whoseblock.stack.images.assembly import Assembly


def test_layers_past_the_limit_are_uncertain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "_MAX_LAYERS", 3)
    path = sparse_file(tmp_path / "disk.img", 8 * MIB)
    partition(path, "label: dos\nstart=2048, size=2048\nstart=4096, size=2048\nstart=8192\n")
    media = FileMedia(path)
    disks = [Layer(name, media.size, "image", open_media=media.reopened) for name in "ab"]
    search = Assembly(lambda _: False)
    search.add(disks[0], media)
    search.finish()
    found = [one for at in (1, 2, 4) for one in descend(disks[0], at * MIB, 512)]
    assert [one.layer is not None or one.certain for one in found] == [True, True, False]
    assert found[2].what == "one of too many layers, which are not followed"
    search.add(disks[1], media)
    search.finish()
    (last,) = descend(disks[1], MIB, 512)
    assert last.layer is disks[1]
    assert last.doubts == (
        "b: there are too many layers: it was not searched for partitions and volumes",
    )
    media.close()
