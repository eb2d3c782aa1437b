"""Targets: devices of this machine, disks with partitions, and filesystems with several devices."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import lookup, whoseblock
from tests.support.disk_images import copy_range, partition
from tests.support.filled_images import Zoo
from tests.support.machine_snapshots import unpacked
from tests.support.mounts import frozen, loop_device, mounted
from tests.support.tools import need_loop_mounts, run, xfsprogs
from tests.support.xfs_images import MIB, sparse_file

from whoseblock.fs.mounted.fiemap import file_extents

SECTOR = 512


def ways(answer: dict[str, Any]) -> set[tuple[str, ...]]:
    return {tuple(step["layer"] for step in row["via"]) for row in answer["owners"]}


def test_a_loop_device_with_partitions(zoo: Zoo, tmp_path: Path) -> None:
    need_loop_mounts()
    truth = zoo.filled("4k")
    disk = sparse_file(tmp_path / "disk.img", 400 * MIB)
    size = truth.image.stat().st_size
    partition(disk, f"label: gpt\nstart=2053, size={size // SECTOR}\n")
    copy_range(truth.image, 0, disk, 2053 * SECTOR, size)
    row = next(row for row in truth.rows if row.kind == "file" and row.shared)
    place = 2053 * SECTOR + row.start
    (expected,) = lookup(disk, f"{place}+{SECTOR}")
    with loop_device(disk) as loop:
        name = loop.rpartition("/")[2]
        run(["partx", "--add", loop])
        try:
            part = Path(f"{loop}p1")
            for _ in range(50):
                if part.exists():
                    break
                time.sleep(0.1)
            (answer,) = lookup(loop, f"{place}+{SECTOR}")
            assert ways(answer) == {(name, f"{name}p1")}
            (alone,) = lookup(part, f"{row.start}+{SECTOR}")
            assert "via" not in alone
            log = tmp_path / "log"
            log.write_text(f"I/O error, dev {name}, sector {place // SECTOR} op 0x0:(READ)\n")
            (by_log,) = lookup("--dmesg", log)
            (of_part,) = lookup(part, "--dmesg", log)
            tree = whoseblock("stack", loop, "--bytes")
            wrong = whoseblock("lookup", loop, "0", "--at-filesystem")
            (header,) = lookup(loop, "1s")
        finally:
            run(["partx", "--delete", loop])
    for other in (answer, by_log, of_part):
        rows = [(row["start"], row["inode"], row["paths"]) for row in other["owners"]]
        assert rows == [(row["start"], row["inode"], row["paths"]) for row in expected["owners"]]
    assert by_log["origin"] == f"{log}, line 1"
    assert f"{2053 * SECTOR}+{size}  {name}p1  partition: xfs" in tree.stdout
    assert wrong.returncode == 6
    assert [row["what"] for row in header["owners"]] == ["primary GPT header"]


def test_a_filesystem_over_partitions_that_the_kernel_still_has(zoo: Zoo, tmp_path: Path) -> None:
    need_loop_mounts()
    truth = zoo.filled("4k")
    disk = sparse_file(tmp_path / "disk.img", 400 * MIB)
    partition(disk, "label: gpt\nstart=2053, size=100000\n")
    row = next(row for row in truth.rows if row.kind == "file" and row.shared)
    with loop_device(disk) as loop:
        run(["partx", "--add", loop])
        try:
            # mkfs would refuse a device of which partitions are in use, not one that has them.
            copy_range(truth.image, 0, Path(loop), 0, truth.image.stat().st_size)
            (answer,) = lookup(loop, f"{row.start}+{SECTOR}")
        finally:
            run(["partx", "--delete", loop])
    assert {owner["inode"] for owner in answer["owners"]} >= {row.inode}


def test_an_image_with_a_mounted_partition_queries_the_kernel(zoo: Zoo, tmp_path: Path) -> None:
    need_loop_mounts()
    truth = zoo.filled("4k")
    disk = sparse_file(tmp_path / "disk.img", 400 * MIB)
    size = truth.image.stat().st_size
    partition(disk, f"label: gpt\nstart=2048, size={size // SECTOR}\n")
    copy_range(truth.image, 0, disk, 2048 * SECTOR, size)
    (before,) = lookup(disk, "2048s")
    with mounted(disk, f"offset={2048 * SECTOR}", "ro", "norecovery"):
        (while_mounted,) = lookup(disk, "2048s")
        (raw,) = lookup(disk, "2048s", "--offline")
    assert before["complete"] is True
    assert while_mounted == before
    assert raw["complete"] is False
    assert any("it is mounted at" in note for note in raw["notes"])


def test_the_missing_end_of_an_image_is_unknown(session_folder: Path, tmp_path: Path) -> None:
    whole = unpacked("pmem-images", session_folder) / "pmem0.img"
    short = tmp_path / "short.img"
    short.write_bytes(b"")
    os.truncate(short, 200 * MIB)
    copy_range(whole, 0, short, 0, 200 * MIB)
    root = unpacked("pmem", session_folder)
    start = 0x100C00000 + 200 * MIB - 4096
    inside, beyond = (
        lookup(short, "--phys", hex(place), "--device", "pmem0", "--root", root)[0]
        for place in (start, start + 4096)
    )
    assert [owner["kind"] for owner in inside["owners"]] != ["unknown"]
    assert [owner["kind"] for owner in beyond["owners"]] == ["unknown"]
    assert beyond["complete"] is False


def test_a_failure_of_another_device_is_skipped_and_reported(zoo: Zoo, tmp_path: Path) -> None:
    need_loop_mounts()
    truth = zoo.filled("4k")
    log = tmp_path / "log"
    log.write_text("I/O error, dev nosuchdisk, sector 8\n")
    with loop_device(truth.image) as loop:
        done = whoseblock("lookup", loop, "--dmesg", log, "--json")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "1 failure of nosuchdisk skipped" in done.stderr
    assert whoseblock("lookup", "--dmesg", log).returncode == 3


def test_an_image_of_several_devices_must_be_named(zoo: Zoo, tmp_path: Path) -> None:
    truth = zoo.filled("4k")
    log = tmp_path / "log"
    log.write_text("I/O error, dev sda, sector 8\nI/O error, dev sdb, sector 16\n")
    done = whoseblock("lookup", truth.image, "--dmesg", log)
    assert done.returncode == 3
    assert "which of them" in done.stderr
    assert "--device" in done.stderr
    (answer,) = lookup(truth.image, "--dmesg", log, "--device", "sdb")
    assert (answer["start"], answer["via"][0]["layer"]) == (16 * SECTOR, "sdb")


def test_through_a_loop_device_into_the_filesystem_that_holds_its_file(
    zoo: Zoo, tmp_path: Path
) -> None:
    need_loop_mounts()
    truth = zoo.filled("4k")
    row = next(row for row in truth.rows if row.kind == "file" and not row.unwritten)
    outer = sparse_file(tmp_path / "outer.img", 600 * MIB)
    run([xfsprogs("mkfs.xfs"), "-q", "-m", "rmapbt=1,reflink=1", outer])
    with mounted(outer) as folder:
        root = Path(os.fsdecode(folder))
        inner, clone = root / "inner.img", root / "clone.img"
        sparse_file(inner, MIB + truth.image.stat().st_size)
        copy_range(truth.image, 0, inner, MIB, truth.image.stat().st_size)
        run(["cp", "--reflink=always", inner, clone])
        run(["sync", "-f", inner])
        loop = run(["losetup", "-f", "--show", "-o", str(MIB), inner]).decode().strip()
        try:
            question = f"{row.start}+{SECTOR}"
            (plain,) = lookup(loop, question)
            (deep,) = lookup(loop, question, "--through-loop")
            # Frozen, the outer filesystem's metadata is on its device.
            with frozen(folder):
                (raw,) = lookup(loop, question, "--through-loop", "--offline")
        finally:
            run(["losetup", "--detach", loop])
        numbers = {inner.stat().st_ino: "/inner.img", clone.stat().st_ino: "/clone.img"}
        extents = list(file_extents(str(inner), MIB + row.start, SECTOR))
    assert "via" not in plain
    for told in (deep, raw):
        # Beyond these, the outer image lies in a file too, on whatever disk this machine has.
        below = [owner for owner in told["owners"] if len(owner["via"]) == 3]
        # The file and its clone share the block; the answer has both.
        assert {owner["inode"]: owner["paths"] for owner in below} == {
            number: [path] for number, path in numbers.items()
        }
        for owner in below:
            assert owner["start"] == row.start
            assert owner["file_offset"] == MIB + row.start
            assert owner["via"][1] == {"layer": str(inner), "start": MIB + row.start}
            extent = extents[0]
            place = extent.physical + MIB + row.start - extent.logical
            assert owner["via"][2]["start"] == place
    assert all(len(owner["mounted_at"]) == 1 for owner in deep["owners"] if len(owner["via"]) == 3)
    # The filesystem on the loop device itself answers as before.
    own = [owner for owner in deep["owners"] if len(owner["via"]) == 1]
    assert [owner["inode"] for owner in own] == [owner["inode"] for owner in plain["owners"]]
    # The outer one is mounted, and was read behind the kernel's back.
    assert raw["complete"] is False
    assert any("mounted" in note for note in raw["notes"])


@pytest.fixture
def three_devices(tmp_path: Path) -> dict[str, Path]:
    """Provide an XFS with its log and its realtime section on other devices."""
    devices = {
        "data": sparse_file(tmp_path / "data.img", 400 * MIB),
        "log": sparse_file(tmp_path / "log.img", 128 * MIB),
        "realtime": sparse_file(tmp_path / "rt.img", 200 * MIB),
    }
    given = ["-l", f"logdev={devices['log']},size=64m", "-r", f"rtdev={devices['realtime']}"]
    run([xfsprogs("mkfs.xfs", newest=False), "-q", *given, devices["data"]])
    return devices


def test_the_log_is_an_address_space_of_its_own(three_devices: dict[str, Path]) -> None:
    options = ("--log-device", three_devices["log"], "--address-space", "log")
    inside, beyond = lookup(three_devices["data"], "0+4K", f"{64 * MIB - 512}+1024", *options)
    (row,) = inside["owners"]
    assert (row["kind"], row["what"], row["start"], row["length"]) == ("metadata", "log", 0, 4096)
    assert inside["complete"] is True
    assert row["via"] == [{"layer": "log.img", "start": 0}]
    assert [row["kind"] for row in beyond["owners"]] == ["metadata", "outside"]


def test_the_realtime_section_is_an_address_space_of_its_own(
    three_devices: dict[str, Path],
) -> None:
    options = ("--realtime-device", three_devices["realtime"], "--address-space", "realtime")
    (answer,) = lookup(three_devices["data"], "1M+4K", *options)
    # Its owners are not known here; that is said, and nothing is called free.
    assert [row["kind"] for row in answer["owners"]] == ["unknown"]
    assert answer["complete"] is False
    assert "realtime" in answer["notes"][0]


def test_an_address_space_needs_its_device(three_devices: dict[str, Path]) -> None:
    done = whoseblock("lookup", three_devices["data"], "0", "--address-space", "log")
    assert done.returncode == 3
    assert "--log-device" in done.stderr


def test_a_log_that_is_named_makes_the_answer_complete(three_devices: dict[str, Path]) -> None:
    (without,) = lookup(three_devices["data"], "0")
    (with_log,) = lookup(three_devices["data"], "0", "--log-device", three_devices["log"])
    assert without["complete"] is False
    assert not any("log" in note for note in with_log["notes"])


def test_a_log_found_on_a_disk_is_not_called_free(
    three_devices: dict[str, Path], tmp_path: Path
) -> None:
    disk = sparse_file(tmp_path / "disk.img", 300 * MIB)
    partition(disk, "label: gpt\nstart=4096, size=262144\n")
    copy_range(three_devices["log"], 0, disk, 4096 * SECTOR, 128 * MIB)
    (answer,) = lookup(disk, "4096s")
    assert [row["kind"] for row in answer["owners"]] == ["unknown"]
    assert "external log of the XFS filesystem" in answer["notes"][0]
