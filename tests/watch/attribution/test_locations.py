"""A location is addressed by the names of the layers that lead to it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from whoseblock.errors import NotAFilesystemError, TargetError
from whoseblock.fs.driver import Volume
from whoseblock.lookup import Lookup
from whoseblock.stack.base import Layer, LinearSegment
from whoseblock.target import Target, TargetOptions
from whoseblock.watch.attribution.device_probe import DeviceProbe
from whoseblock.watch.attribution.locations import FailureLocation, follow_names, locate
from whoseblock.watch.store.state import StateFolder

MIB = 1 << 20


def refuse(layer: Layer) -> Volume:
    raise NotAFilesystemError(f"nothing is on {layer.name}")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """Provide the target of a machine with ``sda``, which has four partitions of 1 MiB."""
    disk = tmp_path / "sys/block/sda"
    disk.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    names = tmp_path / "sys/class/block"
    names.mkdir(parents=True)
    (names / "sda").symlink_to(disk)
    (disk / "size").write_text(f"{5 * MIB // 512}\n")
    for number in range(1, 5):
        part = disk / f"sda{number}"
        part.mkdir()
        for name, value in (
            ("partition", number),
            ("start", number * MIB // 512),
            ("size", MIB // 512),
        ):
            (part / name).write_text(f"{value}\n")
        (names / part.name).symlink_to(part)
    with Target(None, TargetOptions(root=str(tmp_path))) as opened:
        yield opened


def add_volumes(target: Target) -> None:
    """Put a volume with the same name on the partitions 1 and 2."""
    for number in (1, 2):
        volume = Layer("vg/root", MIB, "logical volume")
        target.layer_of(f"sda{number}").segments = [LinearSegment(0, MIB, volume)]


def test_names_lead_to_the_located_layer(target: Target) -> None:
    add_volumes(target)
    with Lookup(refuse) as finder:
        # The end of partition 2, partition 3, and bytes of the disk that are in no partition.
        found = locate(target, finder, ("sda", 3 * MIB - 512, 2 * MIB + 512))
        assert [(one.layer, one.device, one.start, one.length) for one in found] == [
            (("sda", "sda2", "vg/root"), "vg/root", MIB - 512, 512),
            (("sda", "sda3"), "sda3", 0, MIB),
            (("sda", "sda4"), "sda4", 0, MIB),
        ]
        (head,) = locate(target, finder, ("sda", 0, 512))
        assert (head.layer, head.device) == (("sda",), "sda")
    assert follow_names(target, ("sda",)) is target.layer_of("sda")
    assert follow_names(target, ("sda", "sda3")) is target.layer_of("sda3")
    # Two volumes have one name, and lie below different partitions.
    first, second = (follow_names(target, ("sda", f"sda{one}", "vg/root")) for one in (1, 2))
    assert first is not second
    assert second is target.layer_of("sda2").segments[0].to


def test_names_that_lead_to_no_single_layer_are_refused(target: Target) -> None:
    with pytest.raises(TargetError, match=r"^sda leads to no layer called 'sda9'$"):
        follow_names(target, ("sda", "sda9"))
    with pytest.raises(TargetError, match="no block device 'sdb'"):
        follow_names(target, ("sdb", "sdb1"))
    add_volumes(target)
    target.layer_of("sda1").segments += target.layer_of("sda2").segments
    with pytest.raises(TargetError, match=r"^sda1 leads to several layers called 'vg/root'$"):
        follow_names(target, ("sda", "sda1", "vg/root"))


def test_a_child_that_was_started_anew_answers_for_the_same_layers(
    tmp_path: Path, target: Target
) -> None:
    root = str(target.host.root)

    def locate_part(probe: DeviceProbe, number: int) -> FailureLocation:
        (found,) = probe.locate("sda", number * MIB, 512)
        return found

    with StateFolder(tmp_path / "state") as state, DeviceProbe(state, root) as probe:
        located = [locate_part(probe, number) for number in (1, 2, 3)]
        ((pid, _),) = probe._children.values()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionError):
            locate_part(probe, 4)
        # The new child has located another partition first.
        locate_part(probe, 4)
        gone = FailureLocation("sda9", "", 512, 512, ("sda", "sda9"))
        questions = [(one, "log:1") for one in located]
        (*answers, missing), _ = probe.find_owners("sda", [*questions, (gone, "log:2")])
    for number, answer in enumerate(answers, 1):
        (row,) = answer
        assert isinstance(row.via, tuple)
        assert [via.layer for via in row.via] == [f"sda{number}"]
    assert not missing.complete
    assert missing.notes == ("sda leads to no layer called 'sda9'",)
    assert missing.origin == "log:2"
