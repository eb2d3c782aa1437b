"""Layers of the real kernel: partitions, device-mapper, encryption, a filesystem without owners."""

from pathlib import Path

import pytest
from tests.vm.guest.asking import Json, files_at, lookup, one, owners_at, rows, way
from tests.vm.guest.encrypted import make_encrypted
from tests.vm.guest.files import make_file, make_shared
from tests.vm.guest.holders import holds_open
from tests.vm.guest.layers import (
    LINEAR_AT,
    PARTITION_AT,
    in_partition,
    on_ext4,
    over_linear,
    partitioned,
)
from tests.vm.guest.machine import KernelLog, Undo, mount, run, traced
from tests.vm.guest.pmem import PAGE, Namespaces, poison_mapped, poison_pfn

_MIB = 1 << 20


def test_a_partition(namespaces: Namespaces, undo: Undo, kernel_log: KernelLog) -> None:
    namespace, folder = in_partition(namespaces, undo)
    file, start = make_file(folder)
    offset = PARTITION_AT + start + 11 * PAGE
    opener = holds_open(undo, file)

    poison_mapped(file, 11 * PAGE)

    pfn = namespace.pfn(offset)
    assert traced() == [(pfn, "dax page: Recovered")]
    assert "Sending SIGBUS" in kernel_log.text
    answer = one("--pfn", f"{pfn:#x}", "--processes")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == owners_at(folder, offset - PARTITION_AT)
    assert [row["paths"] for row in rows(answer)] == [["/file"]]
    assert way(answer)[namespace.disk] == offset
    assert way(answer)[f"{namespace.disk}p1"] == offset - PARTITION_AT
    assert [process["pid"] for process in rows(answer)[0]["processes"]] == [opener]


def test_a_page_in_no_partition(namespaces: Namespaces) -> None:
    namespace = partitioned(namespaces)

    poison_pfn(namespace.pfn(_MIB))

    answer = one("--pfn", f"{namespace.pfn(_MIB):#x}")
    assert answer["complete"], answer["notes"]
    assert [row["kind"] for row in answer["owners"]] == ["outside"]


def test_device_mapper(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = over_linear(namespaces, undo)
    shared = make_shared(folder)
    offset = LINEAR_AT + shared.start + 13 * PAGE
    pfn = namespace.pfn(offset)
    run(["umount", folder])
    folder = mount(undo, "/dev/mapper/linear", "dax=always")

    poison_pfn(pfn)

    # The kernel does not follow the failure through device-mapper.
    assert traced() == [(pfn, "dax page: Failed")]
    answer = one("--pfn", f"{pfn:#x}")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == shared.names == owners_at(folder, offset - LINEAR_AT)
    assert way(answer)[namespace.disk] == offset
    assert way(answer)["linear"] == offset - LINEAR_AT


def test_a_page_of_a_file_on_ext4(namespaces: Namespaces, undo: Undo) -> None:
    namespace, file, unused = on_ext4(namespaces, undo)

    poison_mapped(file, 3 * PAGE)

    ((pfn, verdict),) = traced()
    assert verdict == "dax page: Recovered"
    answer = one("--pfn", f"{pfn:#x}", "--processes")
    assert answer["complete"], answer["notes"]
    assert way(answer)[namespace.disk] == namespace.offset(pfn)
    (row,) = answer["owners"]
    assert row["paths"] == [f"/{file.name}"]
    free = one(namespace.device, f"{unused}p")
    assert [row["kind"] for row in free["owners"]] == ["free"]


def _file_offsets(answers: list[Json]) -> list[int]:
    """Return the offset in the file ``/file`` that each answer reports."""
    found = [rows(answer) for answer in answers]
    assert [row["paths"] for (row,) in found] == [["/file"]] * len(answers)
    return [row["file_offset"] for (row,) in found]


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_an_encrypted_volume(undo: Undo, kind: str) -> None:
    made = make_encrypted(undo, kind)
    places = made.places()
    expected = [number * PAGE for number in range(len(places))]
    ranges = "".join(f"{place}+4096\n" for place in (8192, *places))

    # Live, by the table of device-mapper.
    header, *answers = lookup(made.device, "--ranges", "-", stdin=ranges)
    assert _file_offsets(answers) == expected
    assert way(answers[0])["clear"] == made.start
    assert header["complete"], header["notes"]
    assert "header and keys" in header["owners"][0]["what"]

    # By the content: a block of ciphertext that changes is the one that the lookup named.
    for number in (0, 7, len(places) - 1):
        made.damage(places[number])
    assert made.damaged_blocks(undo) == [0, 7, len(places) - 1]

    # Closed, with a copy of the opened volume.
    clear = Path("/run/clear.img")
    run(["cp", "--sparse=always", made.volume, clear])
    made.close()
    member = f"CLEAR={clear}"
    again, *answers = lookup(str(made.image), "--ranges", "-", "--member", member, stdin=ranges)
    assert _file_offsets(answers) == expected
    assert again["owners"][0]["what"] == header["owners"][0]["what"]
