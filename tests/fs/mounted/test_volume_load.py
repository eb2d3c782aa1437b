"""Queries while everything changes: no crash, and no owner that never had the range."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support import ext4_images
from tests.support.concurrent_changes import History, Key, Place
from tests.support.mounts import mounted
from tests.support.tools import CHECKOUT, need_loop_mounts
from tests.support.xfs_images import Geometry, make_image

import whoseblock
from whoseblock.fs.base import Answer, FileOwner

SECONDS = 60
#: A whole minute for the others, as for XFS with a reverse map, takes WHOSEBLOCK_LOAD_SECONDS=60.
OTHER_SECONDS = float(os.environ.get("WHOSEBLOCK_LOAD_SECONDS", "6"))
WORKERS = 3
#: Fewer steps of a worker, or fewer rows about its files, show nothing.
FEW = 20
#: Options of mke2fs.
EXT4 = {
    "ext4": "-t ext4 -b 4096",
    "ext2": "-t ext2 -b 1024",
    "no journal": "-t ext4 -b 4096 -O ^has_journal",
}


@pytest.mark.parametrize("parent", [True, False], ids=["parent", "noparent"])
def test_no_file_is_named_that_never_had_the_range(tmp_path: Path, *, parent: bool) -> None:
    need_loop_mounts()
    geometry = Geometry("churn", size=400 << 20, parent=parent)
    image = make_image(tmp_path / "churn.img", geometry)
    run_load(image, tmp_path, "xfs", SECONDS, clone=True)


@pytest.mark.parametrize("form", EXT4)
def test_no_file_of_ext4_is_named_that_never_had_the_range(tmp_path: Path, form: str) -> None:
    need_loop_mounts()
    image = ext4_images.make_image(tmp_path / "churn.img", 200 << 20, *EXT4[form].split())
    run_load(image, tmp_path, "ext4", OTHER_SECONDS)


@pytest.mark.parametrize("reflink", [True, False], ids=["reflink", "noreflink"])
def test_no_file_is_named_wrongly_without_a_reverse_map(tmp_path: Path, *, reflink: bool) -> None:
    need_loop_mounts()
    size = 400 << 20
    geometry = Geometry("churn", size=size, rmapbt=False, parent=False, reflink=reflink)
    image = make_image(tmp_path / "churn.img", geometry)
    run_load(image, tmp_path, "xfs", OTHER_SECONDS, clone=reflink)


def run_load(
    image: Path, tmp_path: Path, kind: str, seconds: float, *, clone: bool = False
) -> None:
    """Query a filesystem while three processes change it, and check each answer."""
    #: With each answer, from when until when it was looked for.
    told: list[tuple[Answer, float, float]] = []
    more = ["clone"] if clone else []
    with mounted(image, kind=kind) as folder:
        histories = [tmp_path / f"history-{number}" for number in range(WORKERS)]
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.concurrent_changes",
                 os.fsdecode(folder), f"w{number}", str(seconds), history, *more],
                cwd=CHECKOUT, stdout=subprocess.PIPE,
            )
            for number, history in enumerate(histories)
        ]  # fmt: skip
        rng = random.Random(image.name)
        with whoseblock.open(os.fsdecode(folder)) as fs:
            busy: list[int] = [0]

            def ask(start: int, length: int, *, paths: bool = True) -> None:
                begun = time.monotonic()
                answer = fs.owners(start, length, paths=paths)
                told.append((answer, begun, time.monotonic()))
                busy.extend(row.start for row in answer if isinstance(row, FileOwner))

            def ask_many(ranges: list[tuple[int, int]]) -> None:
                begun = time.monotonic()
                answers = list(fs.owners_many(ranges))
                told.extend((answer, begun, time.monotonic()) for answer in answers)

            end = time.monotonic() + seconds
            while time.monotonic() < end:
                near = rng.choice(busy)
                start = min(max(near + rng.randrange(-1 << 20, 1 << 20), 0), fs.size - 1)
                ask(start, min(rng.choice((512, 4096, 1 << 16)), fs.size - start))
                del busy[:-500]
                if rng.random() < 0.1:
                    some = rng.sample(busy, min(len(busy), 20))
                    ask_many([(place - place % 4096, 4096) for place in some])
                if rng.random() < 0.02:
                    ask(0, fs.size, paths=False)
            # Some files are found for certain, however slow the machine is.
            ask(0, fs.size, paths=False)
        steps = [int(worker.communicate()[0]) for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * WORKERS
    history = History.load(histories)
    answers = [answer for answer, _, _ in told]
    checked = sum(
        check(row, history, begun, ended)
        for answer, begun, ended in told
        for row in answer
        if isinstance(row, FileOwner)
    )
    complete = sum(answer.complete for answer in answers)
    # Were nothing found, or everything in doubt, nothing would be shown.
    assert min(steps) > FEW
    assert checked > FEW
    assert complete > len(told) / 2
    for answer in answers:
        assert covers(answer)
        assert answer.complete or answer.notes


def check(row: FileOwner, history: History, begun: float, ended: float) -> bool:
    """Compare one row with the history; False if it is not about one of its files."""
    if row.what != "data" or not isinstance(row.generation, int):
        return False
    key: Key = row.inode, row.generation
    assert key in history.names, row
    assert row.file_offset is not None
    place = Place(row.file_offset, row.start, row.length)
    # Only what is unwritten may be of a write that is not at rest.
    assert history.had(key, place) or (
        row.unwritten and history.may_have_had(key, place, begun, ended)
    ), row
    if isinstance(row.paths, tuple):
        assert set(row.paths) <= history.names[key], row
    return True


def covers(answer: Answer) -> bool:
    """Return whether the rows cover the range, whatever happened meanwhile."""
    place = answer.start
    for row in answer:
        if row.start > place:
            return False
        place = max(place, row.start + row.length)
    return place == answer.start + answer.length
