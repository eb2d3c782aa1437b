"""Persistent memory in layers: a partition, device-mapper, and a filesystem that names nobody."""

from pathlib import Path

from tests.vm.guest.asking import files_at, one, owners_at, rows, way
from tests.vm.guest.files import make_file, make_shared
from tests.vm.guest.holders import holds_open
from tests.vm.guest.machine import KernelLog, Undo, make_xfs, mount, run, traced, wait_for
from tests.vm.guest.pmem import PAGE, Namespaces, poison_mapped, poison_pfn

_MIB = 1 << 20


def test_a_partition(namespaces: Namespaces, undo: Undo, kernel_log: KernelLog) -> None:
    namespace = namespaces.create(352)
    # Linux refuses DAX on a filesystem with reflink in a partition.
    run(["sfdisk", "-q", namespace.device], b"label: gpt\nstart=4096, size=655360\n")
    partition = f"{namespace.device}p1"
    wait_for(Path(partition).exists)
    make_xfs(partition, "-m", "reflink=0")
    folder = mount(undo, partition, "dax=always")
    file, start = make_file(folder)
    offset = 2 * _MIB + start + 11 * PAGE
    opener = holds_open(undo, file)

    poison_mapped(file, 11 * PAGE)

    pfn = namespace.pfn(offset)
    assert traced() == [(pfn, "dax page: Recovered")]
    assert "Sending SIGBUS" in kernel_log.text
    answer = one("--pfn", f"{pfn:#x}", "--processes")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == owners_at(folder, offset - 2 * _MIB)
    assert [row["paths"] for row in rows(answer)] == [["/file"]]
    assert way(answer)[namespace.disk] == offset
    assert way(answer)[f"{namespace.disk}p1"] == offset - 2 * _MIB
    assert [process["pid"] for process in rows(answer)[0]["processes"]] == [opener]


def test_a_page_in_no_partition(namespaces: Namespaces) -> None:
    namespace = namespaces.create(352)
    run(["sfdisk", "-q", namespace.device], b"label: gpt\nstart=4096, size=655360\n")

    poison_pfn(namespace.pfn(_MIB))

    answer = one("--pfn", f"{namespace.pfn(_MIB):#x}")
    assert answer["complete"], answer["notes"]
    assert [row["kind"] for row in answer["owners"]] == ["outside"]


def test_device_mapper(namespaces: Namespaces, undo: Undo) -> None:
    namespace = namespaces.create(352)
    run(["dmsetup", "create", "linear", "--table", f"0 655360 linear {namespace.device} 8192"])
    undo.then("dmsetup", "remove", "linear")
    make_xfs("/dev/mapper/linear", "-m", "reflink=1", "-d", "su=2m,sw=1")
    folder = mount(undo, "/dev/mapper/linear", "dax=always")
    shared = make_shared(folder)
    offset = 8192 * 512 + shared.start + 13 * PAGE
    pfn = namespace.pfn(offset)
    run(["umount", folder])
    folder = mount(undo, "/dev/mapper/linear", "dax=always")

    poison_pfn(pfn)

    # The kernel does not follow the failure through device-mapper.
    assert traced() == [(pfn, "dax page: Failed")]
    answer = one("--pfn", f"{pfn:#x}")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == shared.names == owners_at(folder, offset - 8192 * 512)
    assert way(answer)[namespace.disk] == offset
    assert way(answer)["linear"] == offset - 8192 * 512


def test_ext4_is_told_as_far_as_known(namespaces: Namespaces, undo: Undo) -> None:
    namespace = namespaces.create(64)
    run(["mkfs.ext4", "-q", "-b", "4096", namespace.device])
    folder = mount(undo, namespace.device, "dax=always")
    file = folder / "file"
    file.write_bytes(b"4" * _MIB)
    run(["sync", "-f", folder])

    poison_mapped(file, 3 * PAGE)

    ((pfn, verdict),) = traced()
    assert verdict == "dax page: Recovered"
    # ext4 tells what is free and what is its own, and of nothing else whose it is.
    answer = one("--pfn", f"{pfn:#x}", "--processes")
    assert not answer["complete"]
    assert answer["notes"]
    assert way(answer)[namespace.disk] == namespace.offset(pfn)
    (row,) = answer["owners"]
    assert row["kind"] == "unknown"
    unused = run(["debugfs", "-R", "ffb 1 9000", namespace.device]).split()[-1].decode()
    free = one(namespace.device, f"{unused}p")
    assert [row["kind"] for row in free["owners"]] == ["free"]
