"""The daemon while persistent memory fails: the discussion's own case, and all others."""

import json
import os
from pathlib import Path
from signal import SIGUSR1

import pytest
from tests.vm.guest.asking import (
    blocks_of,
    files_at,
    largest_free,
    metadata_of,
    owners_at,
    rows,
    way,
)
from tests.vm.guest.files import make_file, make_reserved, make_shared
from tests.vm.guest.holders import Users, holds_open, maps
from tests.vm.guest.layers import LINEAR_AT, in_partition, on_ext4, over_linear
from tests.vm.guest.machine import KernelLog, Undo, run, wait_for
from tests.vm.guest.pmem import (
    HUGE_PAGE,
    PAGE,
    Namespaces,
    make_dax,
    mount_afresh,
    poison_mapped,
    poison_pfn,
)
from tests.vm.guest.watching import LOG_AND_TRACE, Watch, answer_of, detail_of

from whoseblock.journal.records import FINAL, Step

MIB = 1 << 20


def test_a_page_that_two_files_share(
    namespaces: Namespaces, undo: Undo, kernel_log: KernelLog
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    at = 5 * PAGE
    users = Users.start(undo, folder, shared, at)
    watch = Watch(undo)
    watch.start()

    status = poison_mapped(shared.first, at)

    assert os.waitstatus_to_exitcode(status) == -7, "SIGBUS"
    (entry,) = watch.wait_for(1, LOG_AND_TRACE)
    offset = namespace.offset(namespace.pfn(shared.start + at))
    pfn = namespace.pfn(offset)
    failure = entry.failure
    assert (failure.device, failure.start, failure.length) == (namespace.disk, offset, PAGE)
    traced = detail_of(entry, "tracepoint")
    assert (traced["pfn"], traced["page"], traced["verdict"]) == (
        hex(pfn),
        "dax page",
        "Recovered",
    )
    assert kernel_log.verdicts(pfn) == ["dax page: Recovered"]
    answer = answer_of(entry)
    assert answer["complete"], answer["notes"]
    assert way(answer)[namespace.disk] == offset
    assert files_at(answer) == shared.names == owners_at(folder, offset)
    users.check(answer, shared)
    sources = watch.status()["sources"]
    assert all(sources[name]["watched"] for name in LOG_AND_TRACE)


def test_files_that_are_not_in_memory(
    namespaces: Namespaces, undo: Undo, kernel_log: KernelLog
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    folder = mount_afresh(namespace, folder, undo)
    watch = Watch(undo)
    watch.start()
    offset = shared.start + 7 * PAGE

    poison_pfn(namespace.pfn(offset))

    (entry,) = watch.wait_for(1, LOG_AND_TRACE)
    # The kernel names no file; the daemon does.
    assert detail_of(entry, "tracepoint")["verdict"] == "Recovered"
    assert not [line for line in kernel_log.lines if "Killing" in line or "inode" in line]
    assert files_at(answer_of(entry)) == shared.names == owners_at(folder, offset)


def test_free_and_unwritten_space_and_a_kill(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = make_dax(namespaces, undo)
    extent = make_reserved(folder)
    free = largest_free(folder)
    places = [free.start + free.length // 2 + number * 2 * PAGE for number in range(3)]
    watch = Watch(undo)
    watch.start()

    poison_pfn(namespace.pfn(extent.start + 3 * PAGE))
    poison_pfn(namespace.pfn(places[0]))
    watch.wait_for(2, LOG_AND_TRACE)
    watch.kill()
    # While no daemon runs; the kernel keeps it in the log and in the buffer of the killed one.
    poison_pfn(namespace.pfn(places[1]))
    watch.start()
    poison_pfn(namespace.pfn(places[2]))

    entries = watch.wait_for(4, LOG_AND_TRACE)
    unwritten, *unowned = entries
    (row,) = answer_of(unwritten)["owners"]
    assert row["unwritten"]
    assert (row["paths"], row["file_offset"]) == (["/reserved"], extent.offset + 3 * PAGE)
    assert [entry.failure.start for entry in unowned] == places
    for entry in unowned:
        assert [row["kind"] for row in answer_of(entry)["owners"]] == ["free"]
    before, between, after = (answer_of(entry) for entry in unowned)
    assert before["complete"], before["notes"]
    assert after["complete"], after["notes"]
    # What failed while no daemon ran is history, of which nothing is certain now.
    (note,) = between["notes"]
    assert note.startswith("history: ")
    # Ended in order and started once more, it finds nothing new, and nothing again.
    reports = [len(entry.reports) for entry in entries]
    assert watch.stop() == 0
    watch.start()
    assert [len(entry.reports) for entry in watch.wait_for(4)] == reports


@pytest.mark.parametrize("what", ["inodes", "log"])
def test_metadata_and_a_filesystem_elsewhere(what: str, namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = make_dax(namespaces, undo)
    other, elsewhere = make_dax(namespaces, undo, "elsewhere")
    make_shared(folder)
    spared = make_shared(elsewhere)
    extent = metadata_of(folder, what)
    offset = namespace.offset(namespace.pfn(extent.start + extent.length // 2))
    watch = Watch(undo)
    watch.start()

    poison_pfn(namespace.pfn(offset))

    # The filesystem is gone; the record is on another.
    (entry,) = watch.wait_for(1, LOG_AND_TRACE)
    with pytest.raises(OSError, match="Input/output error"):
        os.listdir(folder)
    assert (entry.failure.device, entry.failure.start) == (namespace.disk, offset)
    answer = answer_of(entry)
    assert [(row["kind"], row["what"]) for row in answer["owners"]] == [("metadata", what)]
    assert not answer["complete"], "what is still in the log is not on the disk"
    wait_for(lambda: "filesystem-ill" in watch.output)
    assert spared.first.read_bytes() == spared.second.read_bytes()
    (elsewhere / "new").write_bytes(b"it can be written")
    assert [entry.failure.device for entry in watch.entries()] == [namespace.disk] != [other.disk]


def test_bad_ranges_of_the_disk(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    free = largest_free(folder)
    middle = free.start + free.length // 2
    # One before it starts, one while it watches, one after it was killed.
    bad = [(shared.start + 9 * PAGE, 16), (middle, 8), (middle + MIB, 1)]
    watch = Watch(undo, "--interval", "2")
    for number, (start, count) in enumerate(bad, 1):
        if number == len(bad):
            watch.kill()
        namespace.bad_blocks.write_text(f"{start // 512} {count}")
        if number != 2:
            watch.start()
        watch.wait_for(number)

    entries = watch.entries()
    assert [(entry.failure.start, entry.failure.length) for entry in entries] == [
        (start, count * 512) for start, count in bad
    ]
    assert {report.source for entry in entries for report in entry.reports} == {"sysfs"}
    of_files, *unowned = (answer_of(entry) for entry in entries)
    assert files_at(of_files) == shared.names == owners_at(folder, bad[0][0])
    assert {row["file_offset"] for row in rows(of_files)} == {9 * PAGE}
    assert [[row["kind"] for row in answer["owners"]] for answer in unowned] == [["free"]] * 2


def test_a_partition(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = in_partition(namespaces, undo)
    file, start = make_file(folder)
    opener = holds_open(undo, file)
    watch = Watch(undo)
    watch.start()

    poison_mapped(file, 11 * PAGE)
    poison_pfn(namespace.pfn(MIB))

    # A page in no partition has no owner, and is not free.
    inside, outside = sorted(
        watch.wait_for(2, LOG_AND_TRACE), key=lambda entry: entry.failure.device, reverse=True
    )
    at = start + 11 * PAGE
    assert (inside.failure.device, inside.failure.start) == (f"{namespace.disk}p1", at)
    answer = answer_of(inside)
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == owners_at(folder, at) == {file.stat().st_ino: ["/file"]}
    assert [process["pid"] for process in rows(answer)[0]["processes"]] == [opener]
    assert (outside.failure.device, outside.failure.start) == (namespace.disk, MIB)
    assert [row["kind"] for row in answer_of(outside)["owners"]] == ["outside"]


def test_device_mapper(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder = over_linear(namespaces, undo)
    shared = make_shared(folder)
    at = shared.start + 13 * PAGE
    pfn = namespace.pfn(LINEAR_AT + at)
    watch = Watch(undo)
    watch.start()

    poison_pfn(pfn)

    # The kernel does not follow the failure through device-mapper.
    (entry,) = watch.wait_for(1, LOG_AND_TRACE)
    traced = detail_of(entry, "tracepoint")
    assert (traced["pfn"], traced["verdict"]) == (hex(pfn), "Failed")
    assert (entry.failure.device, entry.failure.start) == ("linear", at)
    answer = answer_of(entry)
    assert answer["complete"], answer["notes"]
    assert files_at(answer) == shared.names == owners_at(folder, at)


def test_a_page_of_a_file_on_ext4(namespaces: Namespaces, undo: Undo) -> None:
    namespace, file, unused = on_ext4(namespaces, undo)
    watch = Watch(undo)
    watch.start()

    poison_mapped(file, 3 * PAGE)
    poison_pfn(namespace.pfn(unused * PAGE))

    entries = watch.wait_for(2, LOG_AND_TRACE)
    known = {entry.failure.start: entry for entry in entries}
    unowned = known.pop(unused * PAGE)
    (of_file,) = known.values()
    assert {entry.failure.device for entry in entries} == {namespace.disk}
    assert [row["kind"] for row in answer_of(unowned)["owners"]] == ["free"]
    (row,) = answer_of(of_file)["owners"]
    assert row["paths"] == [f"/{file.name}"]
    assert answer_of(of_file)["complete"], answer_of(of_file)["notes"]


def test_a_policy_tells_who_uses_it(
    namespaces: Namespaces, undo: Undo, kernel_log: KernelLog
) -> None:
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder)
    at = 5 * PAGE
    mapper, opener = maps(undo, shared.second, at), holds_open(undo, shared.first)
    told = Path("/run/told")
    told.unlink(missing_ok=True)
    undo.callback(told.unlink, missing_ok=True)
    policy = Path("/run/policy.toml")
    policy.write_text(
        f"""
        [[rule]]
        name = "shared"
        filesystem = "{folder}"
        owner = "file"
        path = "{folder}/dir/*"
        signal = "SIGUSR1"
        signal-to = "mapped"
        exec = ["/bin/sh", "-c", "cat > {told}"]
        """
    )
    undo.callback(policy.unlink)
    watch = Watch(undo, "--policy", str(policy))
    watch.start()

    poison_mapped(shared.first, at)

    steps = wait_for(lambda: finished_steps(watch, 1), 300)
    assert {step.kind: step.state for step in steps} == {"exec": "verified", "signal": "verified"}
    answer = json.loads(told.read_text())
    for path in shared.names[shared.second.stat().st_ino]:
        assert f"{folder}{path}" in str(answer)
    # It did not ask for that signal, and has died of it.
    assert os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1]) == -SIGUSR1
    os.kill(opener, 0)

    # The kernel names the first page of a huge one when it kills, and then the one that failed.
    file = shared.first.with_name("huge")
    file.write_bytes(os.urandom(HUGE_PAGE))
    run(["sync", "-f", folder])
    (block,) = blocks_of(folder, file.stat().st_ino)
    mapper = maps(undo, file, at, mapped=HUGE_PAGE)
    bystander = maps(undo, file, 0)

    poison_mapped(file, at, mapped=HUGE_PAGE)

    wait_for(lambda: finished_steps(watch, 2), 300)
    assert os.waitstatus_to_exitcode(os.waitpid(mapper, 0)[1]) == -SIGUSR1
    assert [os.waitpid(pid, os.WNOHANG) for pid in (opener, bystander)] == [(0, 0)] * 2
    entries = watch.wait_for(2, LOG_AND_TRACE)
    assert [entry.failure.start for entry in entries] == [shared.start + at, block.start + at]
    head = f"Memory failure: {namespace.pfn(block.start):#x}: Sending SIGBUS"
    assert head in kernel_log.text
    (signal,) = detail_of(entries[1], "kmsg")["signals"]
    assert signal.startswith(head)


def finished_steps(watch: Watch, count: int) -> list[Step]:
    """Return the steps of so many plans once all are finished."""
    plans = [plan for entry in watch.entries() for plan in entry.plans]
    steps = [step for plan in plans for step in plan.steps]
    done = len(plans) >= count and all(step.state in FINAL for step in steps)
    return steps if done else []
