"""From a page frame number to the owners of a page of persistent memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.commands import lookup
from tests.support.machine_snapshots import FIXTURES, facts, unpacked

from whoseblock.fs.base import Outside
from whoseblock.lookup import Lookup, Query
from whoseblock.ranges import PHYSICAL_MEMORY, parse_range
from whoseblock.sources.memory import parse_pfn
from whoseblock.stack.base import Layer, LayerOffset, descend
from whoseblock.stack.kernel.devices import BlockDevices
from whoseblock.stack.kernel.host import Host
from whoseblock.stack.kernel.nvdimm import PersistentMemory
from whoseblock.target import Target, TargetOptions

PAGE = 4096


def memory_of(root: Path) -> Layer:
    host = Host(root)
    return PersistentMemory(host, BlockDevices(host)).make_memory_layer()


def make_tree(root: Path, attributes: dict[str, str]) -> Path:
    """Make a tree of attributes by hand, with the links that sysfs has."""
    for name, text in attributes.items():
        path = root / "sys/devices/ndbus0/region0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    nd = root / "sys/bus/nd/devices"
    block = root / "sys/class/block"
    nd.mkdir(parents=True)
    block.mkdir(parents=True)
    for name in ("region0", "region0/namespace0.0", "region0/pfn0.0"):
        (nd / Path(name).name).symlink_to(f"../../../devices/ndbus0/{name}")
    for name in ("pmem0", "pmem0/pmem0p1"):
        (block / Path(name).name).symlink_to(f"../../devices/ndbus0/region0/pfn0.0/block/{name}")
    return root


@pytest.fixture
def seen_in_2020(tmp_path: Path) -> Path:
    """Provide the machine of the worked example, with numbers of a real kernel."""
    return make_tree(
        tmp_path / "root",
        {
            "resource": "0x100000000",
            "size": str(1 << 30),
            "namespace0.0/resource": "0x101000000",
            "namespace0.0/size": str(512 << 20),
            "pfn0.0/resource": "0x101200000",
            "pfn0.0/size": str(510 << 20),
            "pfn0.0/mode": "pmem",
            "pfn0.0/namespace": "namespace0.0",
            "pfn0.0/block/pmem0/dev": "259:0",
            "pfn0.0/block/pmem0/size": str((510 << 20) // 512),
            "pfn0.0/block/pmem0/pmem0p1/dev": "259:1",
            "pfn0.0/block/pmem0/pmem0p1/partition": "1",
            "pfn0.0/block/pmem0/pmem0p1/start": "2048",
            "pfn0.0/block/pmem0/pmem0p1/size": "1000000",
        },
    )


def test_page_307_is_offset_1257472() -> None:
    assert parse_range("307p") == (1257472, PAGE)


def test_the_worked_example_of_the_discussion(seen_in_2020: Path) -> None:
    failure = parse_pfn("0x10140a", PAGE)
    (landing,) = descend(memory_of(seen_in_2020), failure.start, failure.length)
    assert landing.via == (
        LayerOffset(PHYSICAL_MEMORY, 0x10140A000),
        LayerOffset("namespace0.0", 0x40A000),
        LayerOffset("pmem0", 0x20A000),
        LayerOffset("pmem0p1", 0x20A000 - 2048 * 512),
    )


def test_memory_outside_of_files_is_named(seen_in_2020: Path) -> None:
    memory = memory_of(seen_in_2020)
    told = {
        place: [(one.what, one.certain) for one in descend(memory, place, 1)]
        for place in (0x100000000, 0x101000000, 0x101001000, 0x101002000, 0x1011FFFFF)
    }
    assert told == {
        0x100000000: [("region0: in no namespace", True)],
        0x101000000: [("padding of the namespace", True)],
        0x101001000: [("info block of namespace0.0", True)],
        0x101002000: [("memory map of namespace0.0", True)],
        0x1011FFFFF: [("memory map of namespace0.0", True)],
    }


def test_a_page_of_ordinary_memory_may_cache_a_file(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/iomem").write_text("00001000-0009ffff : System RAM\n")
    with Target(None, TargetOptions(root=str(tmp_path))) as target:
        failure = parse_pfn("0x10", PAGE)
        layer = target.layer_of(PHYSICAL_MEMORY)
        with Lookup(target.open_leaf) as finder:
            (answer,) = finder.answers([Query(failure.start, failure.length, layer, named=True)])
    (row,) = answer
    assert isinstance(row, Outside)
    assert row.what == "System RAM: no filesystem"
    assert not answer.complete
    assert answer.notes[0].startswith("a page of ordinary memory may hold changes of a file")


def test_memory_that_the_kernel_does_not_list_is_unknown(seen_in_2020: Path) -> None:
    (landing,) = descend(memory_of(seen_in_2020), 1 << 40, PAGE)
    assert not landing.certain


def test_every_mode_of_a_namespace_on_a_real_kernel(session_folder: Path) -> None:
    memory = memory_of(unpacked("pmem", session_folder))
    ends = {}
    for segment in memory.segments:
        if segment.to is not None:
            *_, last = descend(memory, segment.start + segment.length - PAGE, 1)
            ends[segment.to.name] = (last.via[-1].layer, last.what, last.certain)
    assert ends["namespace0.0"] == ("pmem0", "", True)
    assert ends["namespace0.2"] == ("pmem0.2", "", True)
    assert ends["namespace0.3"][1:] == ("device-dax dax0.3: no filesystem", True)
    assert "BTT" in ends["namespace0.4"][1]
    assert not ends["namespace0.4"][2]


def test_a_page_that_the_kernel_poisoned_is_traced_to_every_path(session_folder: Path) -> None:
    known = facts("pmem")
    root = unpacked("pmem", session_folder)
    image = unpacked("pmem-images", session_folder) / "pmem0.img"
    there = ["--device", "pmem0", "--root", str(root)]
    (by_pfn,) = lookup(str(image), "--pfn", known["pfn"], *there)
    place = known["physical_by_fiemap"] + known["file_offset"]
    (by_offset,) = lookup(str(image), f"{place}+{PAGE}", *there)
    start = int(known["pfn"], 16) * PAGE
    assert by_pfn["via"] == [
        {"layer": "physical-memory", "start": start},
        {"layer": "namespace0.0", "start": start - 0x100000000},
        {"layer": "pmem0", "start": place},
    ]
    for answer, begin in ((by_pfn, start), (by_offset, place)):
        assert answer["start"] == begin
        owners = {owner["inode"]: owner for owner in answer["owners"]}
        assert sorted(owners) == sorted(known["files"].values())
        paths = sorted(path for owner in owners.values() for path in owner["paths"])
        assert paths == known["paths"]
        for owner in owners.values():
            assert (owner["start"], owner["length"]) == (begin, PAGE)
            assert owner["file_offset"] == known["file_offset"]
            assert owner["shared"] is True


def test_the_kernel_log_leads_to_the_same_page(session_folder: Path) -> None:
    known = facts("pmem")
    root = unpacked("pmem", session_folder)
    image = unpacked("pmem-images", session_folder) / "pmem0.img"
    log = FIXTURES / "pmem.dmesg.txt"
    (answer,) = lookup(str(image), "--dmesg", str(log), "--device", "pmem0", "--root", str(root))
    assert answer["start"] == int(known["pfn"], 16) * PAGE
    assert {owner["inode"] for owner in answer["owners"]} == set(known["files"].values())
    assert answer["origin"].startswith(f"{log}, line ")


def test_the_kernels_own_lists_of_bad_blocks(session_folder: Path) -> None:
    root = unpacked("pmem", session_folder)
    image = unpacked("pmem-images", session_folder) / "pmem0.img"
    answers = lookup(str(image), "--sysfs-badblocks", "--device", "pmem0", "--root", str(root))
    assert [(answer["start"], answer["length"]) for answer in answers] == [(100000 * 512, 8 * 512)]
    assert {answer["via"][0]["layer"] for answer in answers} == {"pmem0"}


def test_the_disks_list_is_about_its_partition_as_far_as_it_reaches(
    session_folder: Path, tmp_path: Path
) -> None:
    root = unpacked("pmem", session_folder)
    image = tmp_path / "part.img"
    with image.open("wb") as file:
        file.truncate(20000 * 512)
    options = ["--sysfs-badblocks", "--json", "--device", "pmem0.1p1", "--root", str(root)]
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "lookup", str(image), *options],
        capture_output=True,
        check=False,
    )
    (answer,) = map(json.loads, done.stdout.splitlines())
    # The list has 2100 4 and 40 2, in sectors of the disk; the partition begins at 2050.
    assert (answer["start"], answer["length"]) == (2100 * 512, 4 * 512)
    assert answer["via"] == [
        {"layer": "pmem0.1", "start": 2100 * 512},
        {"layer": "pmem0.1p1", "start": 50 * 512},
    ]
    assert b"1 failure of pmem0.1 skipped" in done.stderr


def test_without_a_target_a_page_names_its_own_way(session_folder: Path) -> None:
    (answer,) = lookup(
        "--pfn", facts("pmem")["pfn"], "--root", str(unpacked("pmem", session_folder))
    )
    assert [step["layer"] for step in answer["via"]] == ["physical-memory", "namespace0.0", "pmem0"]
    # A snapshot has no content: the bytes are unknown, and not reported as free.
    assert [owner["kind"] for owner in answer["owners"]] == ["unknown"]
    assert answer["complete"] is False
