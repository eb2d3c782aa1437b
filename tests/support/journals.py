"""Journals for tests: what is written to them, and programs that write until they are stopped.

As a program, ``python -m tests.support.journals``: ``write URL HOST COUNT`` is one of many writers,
``killed FILE TIMES SEED`` has a writer killed again and again.
"""

import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import UNSET, UnsetType

from whoseblock.fs.base import Answer, FileOwner, Free, MetadataOwner, Owner
from whoseblock.journal import Host, NewReport, PlannedStep, open_journal
from whoseblock.journal.journal import Journal
from whoseblock.journal.limits import USUAL_LIMITS, Limits
from whoseblock.journal.run import Run
from whoseblock.ranges import ByteRange

__all__ = ["PAGE", "answer", "file_row", "opened", "report"]

PAGE = ByteRange(1257472, 4096)


@contextmanager
def opened(
    url: str, host: Host | None = None, limits: Limits = USUAL_LIMITS
) -> Iterator[tuple[Journal, Run]]:
    """Open a journal and begin a run."""
    with (
        open_journal(url, host=host, limits=limits) as journal,
        journal.begin_run(["a", "test"], "1.2.3") as run,
    ):
        yield journal, run


def report(source: str = "test", key: str | None = None) -> NewReport:
    """Make a report that says little."""
    return NewReport(source=source, key=key)


def file_row(
    *paths: str,
    inode: int = 131,
    mounted: tuple[str, ...] = (),
    subvolume: int | UnsetType = UNSET,
) -> FileOwner:
    """Make a row of a file that has the page."""
    return FileOwner(
        start=PAGE.start,
        length=PAGE.length,
        inode=inode,
        subvolume=subvolume,
        fork="data",
        what="data",
        file_offset=1 << 20,
        unwritten=False,
        shared=False,
        paths=paths,
        generation=4294967295,
        mounted_at=mounted,
    )


def answer(*rows: Owner, complete: bool = True, notes: tuple[str, ...] = ()) -> Answer:
    """Make an answer about the page."""
    free = (Free(start=PAGE.start, length=PAGE.length),)
    return Answer(PAGE.start, PAGE.length, complete, notes, rows or free)


def metadata_row() -> MetadataOwner:
    """Make a row of the filesystem's own."""
    return MetadataOwner(start=PAGE.start, length=PAGE.length, what="inodes", inodes=(128, 191))


# ------------------------------------------------------------------ programs


def write_many(url: str, host: str, count: int) -> None:
    """Journal failures with a step each; every other page is one that all writers of a host see."""
    with opened(url, Host(host, "0" * 32)) as (_, run):
        for number in range(count):
            where = ByteRange(4096 * number, 4096)
            key = f"{os.getpid()} {number}"
            noted = run.record_failure("pmem0", where, report(f"writer {os.getpid()}", key))
            if noted.new_failure:
                run.record_finding(noted.failure, answer(file_row(f"/{host}/{number}")))
            plan = run.plan([PlannedStep("zero", {"writer": os.getpid()})], [noted.failure])
            step = plan.steps[0].id
            run.started(step)
            run.done(step)
            run.verified(step)


def _write_until_killed(file: str, told: int) -> None:
    """Write to the pipe each event that is durable now, as it is in the journal."""
    with opened(file) as (_, run):
        for number in range(1 << 30):
            noted = run.record_failure("pmem0", ByteRange(4096 * number, 4096), report())
            os.write(told, f"failure {noted.failure}\n".encode())
            plan = run.plan([PlannedStep("zero", {})], [noted.failure])
            step = plan.steps[0].id
            os.write(told, f"planned {step}\n".encode())
            for act in (run.started, run.done, run.verified):
                event = act(step)
                os.write(told, f"{event.state} {step}\n".encode())
            run.close_failure(noted.failure, "dealt with")
            os.write(told, f"closed {noted.failure}\n".encode())


def kill_often(file: Path, times: int, seed: int) -> None:
    """Kill a writer at ``times`` random moments; return all events acknowledged as durable."""
    chance = random.Random(seed)
    for _ in range(times):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _write_until_killed(str(file), writer)
            os._exit(1)
        os.close(writer)
        try:
            # From the first commit on, or even while the journal is being opened.
            if chance.random() < 0.9:
                select.select([reader], [], [], 30)
            time.sleep(chance.random() ** 2 * 0.06)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as said:
            for line in said.read().splitlines(keepends=True):
                # A pipe takes a short line at once or not at all.
                sys.stdout.write(line.decode())


if __name__ == "__main__":
    _, what, *words = sys.argv
    if what == "write":
        write_many(words[0], words[1], int(words[2]))
    else:
        kill_often(Path(words[0]), int(words[1]), int(words[2]))
