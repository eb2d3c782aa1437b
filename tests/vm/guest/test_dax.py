"""The discussion's own case: persistent memory with DAX, and XFS with reflink on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.kernel_oracle import getfsmap
from tests.support.tools import CHECKOUT
from tests.vm.guest.asking import (
    blocks_of,
    files_at,
    largest_free,
    lookup,
    metadata_of,
    one,
    owners_at,
    rows,
    way,
)
from tests.vm.guest.files import make_reserved, make_shared
from tests.vm.guest.holders import Users
from tests.vm.guest.machine import KernelLog, Undo, run, traced, xfsprogs
from tests.vm.guest.pmem import PAGE, Namespaces, make_dax, mount_afresh, poison_mapped, poison_pfn

from whoseblock.errors import LeftUndoneError

RECOVERED = "dax page: Recovered"


def test_a_page_that_two_files_share(
    namespaces: Namespaces, undo: Undo, kernel_log: KernelLog
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    at = 5 * PAGE
    users = Users.start(undo, folder, shared, at)

    status = poison_mapped(shared.first, at)

    assert os.waitstatus_to_exitcode(status) == -7, "SIGBUS"
    pfn = namespace.pfn(shared.start + at)
    assert traced() == [(pfn, RECOVERED)]
    assert kernel_log.verdicts(pfn) == [RECOVERED]
    answer = one("--pfn", f"{pfn:#x}", "--processes")
    assert answer["complete"], answer["notes"]
    assert way(answer)[namespace.disk] == namespace.offset(pfn)
    assert files_at(answer) == shared.names == owners_at(folder, namespace.offset(pfn))
    users.check(answer, shared)


def test_a_page_of_files_that_are_not_in_memory(
    namespaces: Namespaces, undo: Undo, kernel_log: KernelLog
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    folder = mount_afresh(namespace, folder, undo)
    pfn = namespace.pfn(shared.start + 7 * PAGE)

    poison_pfn(pfn)

    # It is content, and says nothing of whom it concerns.
    assert traced() == [(pfn, RECOVERED)]
    assert kernel_log.verdicts(pfn) == [RECOVERED]
    assert not [line for line in kernel_log.lines if "Killing" in line or "inode" in line]
    answer = one("--pfn", f"{pfn:#x}")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == shared.names == owners_at(folder, namespace.offset(pfn))


def test_a_page_of_free_space(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = make_dax(namespaces, undo)
    make_shared(folder)
    largest = largest_free(folder)
    pfn = namespace.pfn(largest.start + largest.length // 2)

    poison_pfn(pfn)

    assert traced() == [(pfn, RECOVERED)]
    answer = one("--pfn", f"{pfn:#x}")
    assert answer["complete"], answer["notes"]
    assert [row["kind"] for row in answer["owners"]] == ["free"]
    assert answer["owners"][0]["length"] == PAGE


def test_a_page_of_unwritten_space(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = make_dax(namespaces, undo)
    extent = make_reserved(folder)
    pfn = namespace.pfn(extent.start + 3 * PAGE)

    poison_pfn(pfn)

    assert traced() == [(pfn, RECOVERED)]
    answer = one("--pfn", f"{pfn:#x}")
    assert answer["complete"], answer["notes"]
    (row,) = answer["owners"]
    assert row["unwritten"]
    assert (row["paths"], row["file_offset"]) == (["/reserved"], extent.offset + 3 * PAGE)


@pytest.mark.parametrize("what", ["static", "inodes", "log"])
def test_a_page_of_metadata(
    what: str, namespaces: Namespaces, undo: Undo, kernel_log: KernelLog
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    make_shared(folder)
    extent = metadata_of(folder, what)
    pfn = namespace.pfn(extent.start + extent.length // 2)
    offset = namespace.offset(pfn)

    poison_pfn(pfn)

    # The kernel takes the whole filesystem away, and answers no more questions about it.
    assert "Shutting down" in kernel_log.text or "shutdown" in kernel_log.text.lower()
    with pytest.raises(OSError, match="Input/output error"):
        getfsmap(os.fsencode(folder))
    answer = one("--pfn", f"{pfn:#x}")
    assert not answer["complete"]
    assert any("read instead" in note for note in answer["notes"]), answer["notes"]
    assert way(answer)[namespace.disk] == offset
    assert [(row["kind"], row["what"]) for row in answer["owners"]] == [("metadata", what)]


def test_bad_ranges_of_the_disk(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    free = largest_free(folder)
    bad = [(shared.start + 9 * PAGE, 16), (free.start + free.length // 2, 8)]
    for start, count in bad:
        namespace.bad_blocks.write_text(f"{start // 512} {count}")
    listed = [line.split() for line in namespace.bad_blocks.read_text().splitlines()]
    assert sorted((int(first) * 512, int(count)) for first, count in listed) == sorted(bad)
    with pytest.raises(OSError, match="Input/output error"):
        shared.second.read_bytes()

    answers = {answer["start"]: answer for answer in lookup("--sysfs-badblocks", namespace.device)}

    assert {start: answer["length"] for start, answer in answers.items()} == {
        start: count * 512 for start, count in bad
    }
    assert all(answer["complete"] for answer in answers.values())
    of_files, of_none = answers[bad[0][0]], answers[bad[1][0]]
    assert files_at(of_files) == shared.names == owners_at(folder, bad[0][0])
    assert {row["file_offset"] for row in rows(of_files)} == {9 * PAGE}
    assert [row["kind"] for row in of_none["owners"]] == ["free"]


def test_a_filesystem_on_another_namespace_is_left_alone(
    namespaces: Namespaces, undo: Undo
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    other, elsewhere = make_dax(namespaces, undo, "elsewhere")
    shared, spared = make_shared(folder), make_shared(elsewhere)
    pfn = namespace.pfn(metadata_of(folder, "inodes").start)

    poison_pfn(pfn)

    assert rows(one("--pfn", f"{pfn:#x}"), "metadata")
    assert spared.first.read_bytes() == spared.second.read_bytes()
    (elsewhere / "new").write_bytes(b"it can be written")
    twin = other.pfn(spared.start)
    answer = one("--pfn", f"{twin:#x}")
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == spared.names
    assert shared.start > 0


def test_shared_data_is_restored_though_the_memory_cannot_be_cleared(
    namespaces: Namespaces, undo: Undo
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    content = shared.first.read_bytes()
    copies = Path("/run/copies/dir")
    copies.mkdir(parents=True)
    undo.callback(shutil.rmtree, copies.parent)
    (copies / "a").write_bytes(content)
    status = shared.first.stat()
    os.utime(copies / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    bad = shared.start + 9 * PAGE
    namespace.bad_blocks.write_text(f"{bad // 512} 8")
    with pytest.raises(OSError, match="Input/output error"):
        shared.second.read_bytes()

    options = (
        *("--sysfs-badblocks", namespace.device, "--restore-from", str(copies.parent)),
        *("--apply", "--yes", "--journal", "/run/journal.sqlite"),
    )
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "respond", *options],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)

    # The emulated memory refuses writes to bad places: they stay bad, and go into quarantine.
    assert done.returncode == LeftUndoneError.exit_code
    assert "the device refuses the write" in done.stdout + done.stderr
    assert shared.first.read_bytes() == shared.second.read_bytes() == content
    of_files = [blocks_of(folder, path.stat().st_ino) for path in shared[:2]]
    assert [row.start for row in of_files[0]] == [row.start for row in of_files[1]]
    (row,) = one(namespace.device, f"{bad}+4096")["owners"]
    assert row["paths"] == [f"/.whoseblock-quarantine/{bad}+4096"]
    run(["umount", folder])
    run([xfsprogs("xfs_repair"), "-n", namespace.device])
