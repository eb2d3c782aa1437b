"""Ten thousand failures at once, of files and of free space; and the same with kills in between."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.support.kernel_oracle import getfsmap
from tests.support.repair_cases import subtract_all
from tests.support.watch_daemon import peak_memory
from tests.vm.guest.asking import Json, files_at, largest_free, rows
from tests.vm.guest.files import Shared, make_shared
from tests.vm.guest.machine import Undo, run, wait_for
from tests.vm.guest.pmem import PAGE, Namespace, Namespaces, make_dax, poison_pfn
from tests.vm.guest.watching import Watch, answer_of

from whoseblock.ranges import ByteRange, merge

MIB = 1 << 20
COUNT = 10_000
OF_FILES = 6_000
#: What the daemon, collector and worker together, may have at most in memory.
MOST_BYTES = 300 * MIB
#: As long as there is something new in the journal, it goes on.
PATIENCE_S = 120.0


def places_of(folder: Path, shared: Shared) -> list[int]:
    """Return pages of two files and of free space, in turn, none of them twice."""
    free = largest_free(folder)
    files = [shared.start + number * PAGE for number in range(OF_FILES)]
    begin = -(-free.start // PAGE) * PAGE
    others = [begin + number * PAGE for number in range(COUNT - OF_FILES)]
    assert others[-1] + PAGE <= free.end
    return [*others[:1000], *files, *others[1000:]]


def peak_of(pid: int) -> int:
    """Return the most bytes that a process and all below it had in memory, each at its worst."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = peak_memory(pid)
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):
            total += peak_of(int(child))
    return total


def wait_until_all_is_dealt_with(watch: Watch) -> Iterator[int]:
    """Wait as long as anything waits, and give the memory meanwhile."""
    end, before = time.monotonic() + PATIENCE_S, None
    while True:
        yield peak_of(watch.pid)
        left = sorted(one.name for one in (watch.folder / "state/spool").glob("*.reports"))
        if not left:
            return
        if left != before:
            end, before = time.monotonic() + PATIENCE_S, left
        assert time.monotonic() < end, f"{len(left)} batches wait, and nothing happens"
        time.sleep(1)


def lost_events(watch: Watch) -> int:
    """Return the number of events of the tracepoint that the daemon reported as lost.

    The kernel's log and the health monitor have no room for most, and lose nothing that matters.
    """
    told = re.findall(r"event=events-lost source=tracepoint .*count=(\d+)", watch.output)
    return sum(map(int, told))


def check(  # noqa: PLR0913 - all of them describe one run
    watch: Watch,
    namespace: Namespace,
    folder: Path,
    shared: Shared,
    bad: list[int],
    *,
    kills: bool = False,
) -> int:
    """Hold the journal against what failed, and every owner against GETFSMAP.

    Gives the bytes that failed and are not in the journal.
    """
    entries = watch.entries()
    failed = [ByteRange(place, PAGE) for place in bad]
    found = list(merge(entry.failure.range for entry in entries))
    assert sum(entry.failure.length for entry in entries) == length_of(found), "nothing twice"
    assert not subtract_all(found, failed), "nothing that did not fail"
    assert {entry.failure.device for entry in entries} == {namespace.disk}
    of_files = [
        ByteRange(row.start, row.length)
        for row in getfsmap(os.fsencode(folder))
        if row.kind == "file"
    ]
    # Of pages side by side the health monitor makes one event: an entry may have many.
    for entry in entries:
        whole, answer = entry.failure.range, answer_of(entry)
        # What failed just before a kill may be read by the next daemon, as history.
        in_doubt = [note for note in answer["notes"] if not note.startswith("history: ")]
        assert not in_doubt
        assert answer["complete"] or (kills and answer["notes"])
        of_none = subtract_all([whole], of_files)
        assert ranges_of(rows(answer, "free")) == of_none
        assert ranges_of(rows(answer)) == subtract_all([whole], of_none)
        assert {row["kind"] for row in answer["owners"]} <= {"file", "free"}
        if of_none != [whole]:
            assert files_at(answer) == shared.names
            assert {row["start"] - row["file_offset"] for row in rows(answer)} == {shared.start}
    return length_of(subtract_all(failed, found))


def ranges_of(owners: list[Json]) -> list[ByteRange]:
    return list(merge(ByteRange(row["start"], row["length"]) for row in owners))


def length_of(ranges: list[ByteRange]) -> int:
    return sum(one.length for one in ranges)


def make(namespaces: Namespaces, undo: Undo) -> tuple[Namespace, Path, Shared, list[int]]:
    """Make what will fail; the kernel's messages stay off the console, which is slow."""
    run(["dmesg", "-n", "1"])
    namespace, folder = make_dax(namespaces, undo)
    shared = make_shared(folder, OF_FILES * PAGE // MIB + 1)
    return namespace, folder, shared, places_of(folder, shared)


def test_ten_thousand_at_once(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder, shared, places = make(namespaces, undo)
    watch = Watch(undo)
    watch.start()
    began = time.monotonic()

    for place in places:
        poison_pfn(namespace.pfn(place))

    failing = time.monotonic() - began
    peak = max(wait_until_all_is_dealt_with(watch))
    print(
        f"{len(places)} pages failed in {failing:.0f} s, and were journaled after"
        f" {time.monotonic() - began:.0f} s; at most {peak / MIB:.0f} MiB"
    )
    assert check(watch, namespace, folder, shared, places) == 0
    assert peak < MOST_BYTES
    assert watch.status()["backlog"] == 0


def test_killed_in_the_middle(namespaces: Namespaces, undo: Undo) -> None:
    namespace, folder, shared, places = make(namespaces, undo)
    watch = Watch(undo)
    watch.start()
    for number, place in enumerate(places, 1):
        poison_pfn(namespace.pfn(place))
        if number % 2_500 == 0:
            # In the middle of its work, with as much in the spool and in the kernel as there is.
            watch.kill()
            watch.start()
    for _ in wait_until_all_is_dealt_with(watch):
        pass
    wait_for(lambda: watch.status()["backlog"] == 0)

    missing = check(watch, namespace, folder, shared, places, kills=True) // PAGE
    print(f"{missing} are missing, {lost_events(watch)} were said to be lost")
    assert missing <= lost_events(watch)
