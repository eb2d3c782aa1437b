"""The processes that use lost data are searched after the owners are journaled."""

import os
from pathlib import Path

import pytest

from whoseblock.fs.base import Answer, FileOwner, Free, LayerLocation
from whoseblock.querying import FileDevices
from whoseblock.watch.attribution.process_search import (
    ProcessSearch,
    SearchLimits,
    may_have_users,
)
from whoseblock.watch.store.state import StateFolder


def answer(inode: int, layer: str = "sda") -> Answer:
    row = FileOwner(
        0,
        512,
        inode=inode,
        generation=1,
        fork="data",
        what="data",
        file_offset=0,
        unwritten=False,
        shared=False,
        paths=("/a",),
        via=(LayerLocation(layer, 0),),
    )
    return Answer(0, 1024, complete=True, notes=(), owners=(row, Free(512, 512)))


def users(found: Answer) -> object:
    row = found.owners[0]
    assert isinstance(row, FileOwner)
    if not isinstance(row.processes, tuple):
        return None
    return [one.pid for one in row.processes]


def test_the_processes_of_several_answers(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a")
    with path.open("rb") as file, StateFolder(tmp_path / "state") as state:
        status = os.fstat(file.fileno())
        devices = {"sda": FileDevices(frozenset({status.st_dev}), {})}
        questions = [(answer(status.st_ino), devices), (answer(status.st_ino, "sdb"), devices)]
        assert [may_have_users(*one) for one in questions] == [True, False]
        with ProcessSearch(state) as search:
            assert (search.fileno(), search.collect()) == (-1, None)
            for _ in range(2):
                search.start(questions)
                assert search.is_running
                assert search.fileno() >= 0
                first, second = search.collect(wait=True) or []
                assert users(first) == [os.getpid()]
                # Its filesystem is not mounted: no process was searched.
                assert users(second) is None
                assert first.complete
        with ProcessSearch(state, SearchLimits(search_s=-1.0)) as search:
            search.start(questions)
            (first, _) = search.collect(wait=True) or []
            assert users(first) == []
            assert any("could not be looked into in time" in note for note in first.notes)


@pytest.mark.parametrize("dies", [False, True])
def test_a_search_without_an_answer(tmp_path: Path, dies: bool) -> None:  # noqa: FBT001 - a parameter
    with (
        StateFolder(tmp_path / "state") as state,
        ProcessSearch(state, SearchLimits(answer_s=60.0 if dies else 0.0)) as search,
    ):
        search.start([(answer(1), {"sda": FileDevices(frozenset({1}), {})})])
        assert search._child is not None
        os.kill(search._child[0], 9 if dies else 19)
        (found,) = search.collect(wait=True) or []
        why = "died" if dies else "does not answer"
        assert found.notes == (f"the search for processes {why}",)
        assert found.complete
        assert not search.is_running
