"""Block devices as a running kernel describes them."""

import json
from pathlib import Path

from tests.support.machine_snapshots import FIXTURES, facts, unpacked

from whoseblock.stack.base import descend
from whoseblock.stack.kernel.devices import BlockDevices
from whoseblock.stack.kernel.host import Host

SECTOR = 512


def test_partitions_of_a_real_disk_are_those_of_lsblk(session_folder: Path) -> None:
    known = facts("disk")
    root = unpacked("disk", session_folder)
    text = (FIXTURES / "disk.lsblk.json").read_text()
    (disk,) = (
        device for device in json.loads(text)["blockdevices"] if device["name"] == known["disk"]
    )
    layer = BlockDevices(Host(root)).find_layer(known["disk"])
    assert layer.size == disk["size"]
    assert [
        (segment.to.name, segment.start // SECTOR, segment.length)
        for segment in layer.segments
        if segment.to is not None
    ] == [(part["name"], part["start"], part["size"]) for part in disk["children"]]


def test_swap_is_named(session_folder: Path) -> None:
    layer = BlockDevices(Host(unpacked("disk", session_folder))).find_layer(facts("disk")["swap"])
    (landing,) = descend(layer, 0, SECTOR)
    assert (landing.what, landing.certain) == ("swap space", True)
