"""The spool: durable, bounded, and the same for every reader."""

import gc
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json

from whoseblock.errors import TargetError
from whoseblock.ranges import ByteRange
from whoseblock.watch.store.reports import (
    BadBlockList,
    EventsLost,
    FailedFileRange,
    FailedRange,
    FilesystemError,
    Report,
)
from whoseblock.watch.store.spool import Spool
from whoseblock.watch.store.state import HandledLists, StateFolder


def failed(start: int, key: str = "") -> FailedRange:
    return FailedRange(source="kmsg", at=1.5, key=key, device="sda", start=start, length=512)


def test_reports_are_read_in_order_until_they_are_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put([failed(0), failed(512, key="own")])
    spool.put([failed(1024)])
    batch = spool.take(2)
    assert [
        [one.start for one in group if isinstance(one, FailedRange)] for group in batch.groups
    ] == [[0, 512]]
    first, second = batch.groups[0]
    assert first.key.endswith(":0")
    assert second.key == "own"
    # Another process, after a crash, reads the same.
    again = Spool(tmp_path / "spool")
    assert again.take(100).groups[:1] == batch.groups
    spool.drop(batch.files)
    (left,) = again.take(100).groups
    assert [one.start for one in left if isinstance(one, FailedRange)] == [1024]
    assert again.backlog.batches == 1
    assert 0 < again.backlog.seconds < 60


def test_names_that_are_not_utf_8_are_stored_readably(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    place = "/mnt/caf\udce9"
    ill = FilesystemError(
        source="fanotify", at=1.5, place=place, what="x", detail={place: [place, 5, None]}
    )
    spool.put([ill, failed(0, key="own")])
    ((told, other),) = spool.take(9).groups
    assert isinstance(told, FilesystemError)
    assert told.place == r"/mnt/caf\udce9"
    assert told.detail == {told.place: [told.place, 5, None]}
    assert other == failed(0, key="own")


def test_keys_ascend_though_the_clock_be_set_back(tmp_path: Path) -> None:
    later = 10**19
    spool = Spool(tmp_path / "spool", least=later)
    spool.put([failed(0)])
    spool.put([failed(0)])
    keys = [group[0].key for group in Spool(tmp_path / "spool").take(9).groups]
    assert keys == [f"{later + 1:020d}:0", f"{later + 2:020d}:0"]
    assert HandledLists(keys={"a": keys[1], "b": "none"}).last == later + 2


def test_a_full_spool_accepts_nothing_until_there_is_room(tmp_path: Path) -> None:
    first = Spool(tmp_path / "first")
    first.put([failed(0)])
    size = first.take(1).files[0].stat().st_size
    count = 4
    # There is room as long as no more than this waits.
    spool = Spool(tmp_path / "spool", most_bytes=(count - 1) * size)
    for start in range(count):
        spool.put([failed(start)])
    with pytest.raises(OSError, match="the spool is full"):
        spool.put([failed(4)])
    kept = spool.take(1000)
    assert len(kept.groups) == count
    spool.drop(kept.files[:1])
    spool.put([failed(7)])
    assert len(spool.take(1000).groups) == count


def test_what_was_dealt_with_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The writer gets no notification: the other process drops it.
    # Without waiting for the disk.
    monkeypatch.setattr("whoseblock.watch.store.spool.write_atomically", Path.write_bytes)
    spool = Spool(tmp_path / "spool")
    other = Spool(tmp_path / "spool")

    def events(number: int) -> int:
        for start in range(number):
            spool.put([failed(start)])
            other.drop(other.take(1).files)
        gc.collect()
        # Not what other tests left running, nor the caches of Python.
        folders = ("watch/store", "tests/watch")
        ours = [
            tracemalloc.Filter(inclusive=True, filename_pattern=f"*/{one}/*") for one in folders
        ]
        kept = tracemalloc.take_snapshot().filter_traces(ours)
        return sum(one.size for one in kept.traces)

    tracemalloc.start()
    try:
        before = events(10)
        assert events(1000) - before < 32 << 10
    finally:
        tracemalloc.stop()


def test_a_damaged_file_of_the_spool_is_reported_as_lost(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put([failed(0)])
    (file,) = spool.take(1).files
    file.write_bytes(file.read_bytes()[:-5])
    ((lost,),) = spool.take(1).groups
    assert isinstance(lost, EventsLost)
    assert "cannot read" in lost.what


def test_a_half_written_file_is_no_report(tmp_path: Path) -> None:
    Spool(tmp_path / "spool")
    (tmp_path / "spool" / ".1.reports.abc").write_bytes(b"[")
    spool = Spool(tmp_path / "spool")
    assert not spool.has_more
    assert list((tmp_path / "spool").iterdir()) == []


def test_one_daemon_at_a_time(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state"), pytest.raises(TargetError, match="another"):
        StateFolder(tmp_path / "state")
    with StateFolder(tmp_path / "state") as state:
        assert state.load("lists.json", HandledLists) is None
        state.save("lists.json", HandledLists({"a": (ByteRange(0, 1),)}))
        assert state.load("lists.json", HandledLists) == HandledLists({"a": (ByteRange(0, 1),)})
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="Not a directory"):
        StateFolder(tmp_path / "file" / "state")


def test_a_state_folder_that_another_user_could_write_to(tmp_path: Path) -> None:
    # The daemon would write to whatever a link there leads to, and believe what it reads.
    folder = tmp_path / "state"
    with StateFolder(folder):
        pass
    for mode in (0o1777, 0o770):
        folder.chmod(mode)
        with pytest.raises(TargetError, match=r"is not safe to use: .* mode") as error:
            StateFolder(folder)
        assert error.value.hint
    folder.chmod(0o700)
    # What was put there before is not believed either.
    (folder / "trace").symlink_to(tmp_path / "victim")
    with pytest.raises(TargetError, match=r"trace' is not a regular file"):
        StateFolder(folder)
    (folder / "trace").unlink()
    (folder / "spool").mkdir(mode=0o777)
    (folder / "spool").chmod(0o777)
    with pytest.raises(TargetError, match=r"spool', mode 0777"):
        StateFolder(folder)
    assert not (tmp_path / "victim").exists()


TEXT = st.text(max_size=10)
NUMBER = st.integers(0, 2**63 - 1)
COMMON = {"source": TEXT, "at": st.floats(0, 1e10), "key": TEXT}
REPORTS = st.one_of(
    st.builds(FailedRange, **COMMON, device=TEXT, start=NUMBER, length=NUMBER, origin=TEXT),
    st.builds(
        BadBlockList,
        **COMMON,
        device=TEXT,
        ranges=st.lists(st.builds(ByteRange, NUMBER, NUMBER), max_size=3).map(tuple),
    ),
    st.builds(
        FailedFileRange,
        **COMMON,
        device=TEXT,
        place=TEXT,
        inode=NUMBER,
        generation=NUMBER,
        start=NUMBER,
        length=NUMBER,
    ),
    st.builds(FilesystemError, **COMMON, place=TEXT, what=TEXT),
    st.builds(EventsLost, **COMMON, count=NUMBER, what=TEXT),
)


@given(st.lists(REPORTS, max_size=5).map(tuple))
def test_reports_are_read_as_they_were_written(reports: tuple[Report, ...]) -> None:
    assert json.decode(json.encode(reports), type=tuple[Report, ...]) == reports


def test_a_long_backlog_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(20):
        spool.put([EventsLost(source="s", at=float(number), count=1, what="w")])
    listings = 0
    waiting = Spool._waiting

    def counted(self: Spool) -> list[Path]:
        nonlocal listings
        listings += 1
        return waiting(self)

    monkeypatch.setattr(Spool, "_waiting", counted)
    seen: list[float] = []
    while (batch := spool.take(3)).files:
        seen += [report.at for group in batch.groups for report in group]
        spool.drop(batch.files)
        if len(seen) == 6:
            # One that comes meanwhile is taken last.
            spool.put([EventsLost(source="s", at=99.0, count=1, what="w")])
    assert seen == [*map(float, range(20)), 99.0]
    assert listings <= 6
