"""Ordinary disks with medium errors: through LVM and md, and what the kernel log says of them."""

import os
from pathlib import Path

import pytest
from tests.vm.guest.asking import files_at, lookup, one, owners_at, rows, way
from tests.vm.guest.disk import Disk, read_direct
from tests.vm.guest.files import make_file, make_shared
from tests.vm.guest.machine import KernelLog, Undo, make_xfs, modprobe, mount, run
from tests.vm.guest.pmem import PAGE
from tests.vm.guest.volumes import (
    OVER_ERRORS,
    OVER_PARTITION,
    break_under,
    over_errors,
    over_partition,
)

_MIB = 1 << 20
#: What the kernel makes of a medium error, ENODATA; md and device-mapper make EIO of it.
_MEDIUM = "No data available"


def test_a_medium_error_of_a_disk(disk: Disk, undo: Undo, kernel_log: KernelLog) -> None:
    make_xfs(disk.device)
    folder = mount(undo, disk.device)
    shared = make_shared(folder)
    within = 0x21FA00  # the last page of a read of sixteen, and its sixth sector
    bad, request = shared.start + within, shared.start + within - within % (16 * PAGE)
    disk.fail(bad)

    with pytest.raises(RuntimeError, match=_MEDIUM):
        read_direct(shared.second, request - shared.start, 16 * PAGE)
    with pytest.raises(RuntimeError, match=_MEDIUM):
        read_direct(Path(disk.device), bad, 512)

    # The log says where the request began that failed, not how far into it the sector was.
    answers = lookup("--dmesg", "-", stdin=kernel_log.text)
    assert [answer["start"] for answer in answers] == [request, bad]
    answer = answers[1]
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == shared.names == owners_at(folder, bad)
    assert {row["file_offset"] for row in rows(answer)} == {within}


def test_a_medium_error_through_a_partition_and_lvm(
    disk: Disk, undo: Undo, kernel_log: KernelLog
) -> None:
    folder = over_partition(disk, undo)
    file, start = make_file(folder)
    at = start + 5 * PAGE
    bad = OVER_PARTITION + at
    disk.fail(bad)

    with pytest.raises(RuntimeError, match=_MEDIUM):
        read_direct(file, 5 * PAGE)

    (answer,) = lookup("--dmesg", "-", stdin=kernel_log.text)
    assert answer["complete"], answer["notes"]
    assert answer["start"] == bad
    assert files_at(answer) == owners_at(folder, at)
    assert [row["paths"] for row in rows(answer)] == [["/file"]]
    assert [step["start"] for step in answer["via"]] == [bad, bad - _MIB, at]


def test_the_error_target_under_lvm(disk: Disk, undo: Undo, kernel_log: KernelLog) -> None:
    folder = over_errors(disk, undo)
    file, start = make_file(folder)
    bad = (OVER_ERRORS + start + 5 * PAGE) // 512
    break_under(disk, bad * 512)

    with pytest.raises(RuntimeError, match="Input/output error"):
        read_direct(file, 5 * PAGE)

    # Device-mapper does not say in the log where: one has to know, and asks about the device.
    assert "error, dev" not in kernel_log.text
    answer = one("/dev/mapper/under", f"{bad}s+8s")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == owners_at(folder, start + 5 * PAGE)
    assert [row["paths"] for row in rows(answer)] == [["/file"]]


@pytest.mark.parametrize("parent", [0, 1])
def test_names_with_and_without_parent_pointers(disk: Disk, undo: Undo, parent: int) -> None:
    make_xfs(disk.device, "-n", f"parent={parent}")
    folder = mount(undo, disk.device)
    shared = make_shared(folder)
    deep = folder / "x" / "y\n" / "z"
    deep.mkdir(parents=True)
    os.link(shared.first, deep / "more")
    names = {**shared.names}
    names[shared.first.stat().st_ino] = ["/dir/a", "/x/y\n/z/more"]

    answer = one(disk.device, f"{shared.start + PAGE}+4096")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == names == owners_at(folder, shared.start + PAGE)
    shared.first.unlink()
    names[deep.joinpath("more").stat().st_ino] = ["/x/y\n/z/more"]
    again = one(disk.device, f"{shared.start + PAGE}+4096")
    assert files_at(again) == names


def test_a_mirror_of_md(disk: Disk, undo: Undo, kernel_log: KernelLog) -> None:
    table = b"label: gpt\nstart=2048, size=8192\nstart=10240\n"
    run(["sfdisk", "-q", "--wipe", "always", disk.device], table)
    member = disk.partition(2)
    modprobe("raid1")
    command = ["mdadm", "--create", "/dev/md0", "--run", "--force", "--level=1", "--bitmap=none"]
    run([*command, "--metadata=1.2", "--raid-devices=2", member, "missing"])
    undo.then("mdadm", "--stop", "/dev/md0")
    make_xfs("/dev/md0")
    folder = mount(undo, "/dev/md0")
    file, start = make_file(folder)
    data = int(Path("/sys/block/md0/md/rd0/offset").read_text()) * 512
    bad = 10240 * 512 + data + start + 6 * PAGE
    disk.fail(bad)

    with pytest.raises(RuntimeError, match="Input/output error"):
        read_direct(file, 6 * PAGE)

    answers = {a["start"]: a for a in lookup("--dmesg", "-", stdin=kernel_log.text)}
    answer = answers[bad]
    assert files_at(answer) == owners_at(folder, start + 6 * PAGE)
    assert [row["paths"] for row in rows(answer)] == [["/file"]]
    assert way(answer)["md0"] == start + 6 * PAGE


def test_a_member_that_was_removed_from_a_running_mirror(disk: Disk, undo: Undo) -> None:
    table = b"label: gpt\nstart=2048, size=65536\nsize=65536\n"
    run(["sfdisk", "-q", "--wipe", "always", disk.device], table)
    first, second = disk.partition(1), disk.partition(2)
    modprobe("raid1")
    command = ["mdadm", "--create", "/dev/md0", "--run", "--force", "--level=1", "--bitmap=none"]
    run([*command, "--assume-clean", "--metadata=1.2", "--raid-devices=2", first, second])
    undo.then("mdadm", "--stop", "/dev/md0")
    within = int(Path("/sys/block/md0/md/rd0/offset").read_text()) * 512 + 5 * PAGE
    assert "md0" in way(one(second, f"{within}+4096"))
    run(["mdadm", "/dev/md0", "--fail", second])
    # It has the state of the array when it failed.
    for remove in (False, True):
        if remove:
            run(["mdadm", "/dev/md0", "--remove", second])
        answer = one(second, f"{within}+4096")
        assert not answer["complete"]
        assert [row["kind"] for row in answer["owners"]] == ["unknown"]
        assert "md0" not in way(answer)
        words = "former member of md/0: it has" if remove else "faulty member of md0"
        assert any(words in note for note in answer["notes"]), answer["notes"]
    assert "md0" in way(one(first, f"{within}+4096"))
