"""Data without a copy, given up with ``--punch``: what can be read stays, the rest is zeros."""

import os
from pathlib import Path

import pytest
from tests.support.failing_filesystem import (
    BLOCK,
    KINDS,
    Bench,
    Facts,
    back_up,
    bench,
    pattern,
    write_file,
)
from tests.support.shared_blocks import share_five
from tests.support.system_calls import clone_range
from tests.support.xfs_images import Geometry

from whoseblock.ranges import ByteRange

kinds = pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)


def zeroed(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + bytes(length) + content[start + length :]


def holes(path: Path) -> list[int]:
    """Return the numbers of the blocks that are holes by SEEK_HOLE and SEEK_DATA."""
    found: list[int] = []
    at = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            at = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            if at >= size:
                break
            try:
                end = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                end = size
            found += range(at // BLOCK, -(-end // BLOCK))
            at = end
    return found


@kinds
def test_a_whole_block_becomes_a_hole_in_all_owners(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        contents = {path: five.copy_of(path, served).read_bytes() for path in five.files}
        served.fail(five.place)
        before = served.everything(but=five.files)
        said = served.apply(five.place, "--punch")
        assert "zeros to 5 files" in said
        for path, number in five.files.items():
            now = Facts.of(path)
            assert path.read_bytes() == zeroed(contents[path], number * BLOCK, BLOCK)
            assert number in holes(path)
            assert now._replace(digest="") == five.facts[path]._replace(digest="")
        assert served.everything(but=five.files) == before
        assert {row.kind for row in served.owners(five.place)} == {"free"}
        assert served.served.bad() == []


@kinds
def test_readable_bytes_of_a_block_are_kept(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        five = share_five(served, tmp_path / "copies")
        contents = {path: five.copy_of(path, served).read_bytes() for path in five.files}
        lost = ByteRange(five.place.start + 1536, 512)
        served.fail(lost)
        before = served.everything(but=five.files)
        served.apply(lost, "--punch")
        for path, number in five.files.items():
            assert path.read_bytes() == zeroed(contents[path], number * BLOCK + 1536, 512)
            assert number not in holes(path)
        # It is shared still, by all.
        (place,) = {served.place(path, number) for path, number in five.files.items()}
        assert len(served.owners(place)) == 5
        assert served.everything(but=five.files) == before
        assert served.served.bad() == []


@kinds
def test_lost_blocks_become_holes_beside_damaged_ones(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        content = pattern("file", 12 * BLOCK + 5)
        path = write_file(served.root / "file", content)
        first = served.place(path, 2, 5).start
        # All of blocks 2, 4 and 5, and a sector each of 3 and 6.
        bad = [
            ByteRange(first, BLOCK + 512),
            ByteRange(first + 2 * BLOCK, 2 * BLOCK + 512),
        ]
        served.fail(*bad)
        served.apply(ByteRange(first, 5 * BLOCK), "--punch")
        expected = zeroed(content, 2 * BLOCK, BLOCK + 512)
        expected = zeroed(expected, 4 * BLOCK, 2 * BLOCK + 512)
        assert path.read_bytes() == expected
        assert holes(path) == [2, 4, 5]
        assert served.served.bad() == []


@kinds
@pytest.mark.parametrize("quarantine", [[], ["--quarantine"]], ids=["not-asked", "quarantine"])
def test_permanent_blocks_are_punched(
    tmp_path: Path, kind: Geometry, quarantine: list[str]
) -> None:
    with bench(tmp_path, kind) as served:
        content = pattern("file", 12 * BLOCK)
        path = write_file(served.root / "file", content)
        place = served.place(path, 4)
        served.fail(place, permanent=True)
        served.apply(place, "--punch", *quarantine, code=0 if quarantine else 14)
        assert path.read_bytes() == zeroed(content, 4 * BLOCK, BLOCK)
        assert holes(path) == [4]
        (row,) = served.owners(place)
        # They stay in quarantine even if that was not asked for.
        (kept,) = (served.root / ".whoseblock-quarantine").iterdir()
        assert (row.kind, row.inode) == ("file", kept.stat().st_ino)


@kinds
@pytest.mark.parametrize("words", [["--punch"], ["copy"]], ids=["punch", "restore"])
def test_the_last_block_is_not_full(tmp_path: Path, kind: Geometry, words: list[str]) -> None:
    # A file and its clone end at byte 700 of the block; its sectors 1 and 5 fail.
    with bench(tmp_path, kind) as served:
        content = pattern("file", 5 * BLOCK + 700)
        path = write_file(served.root / "file", content)
        clone = served.root / "clone"
        with path.open("rb") as source, clone.open("w+b") as target:
            clone_range(source.fileno(), 0, 0, target.fileno(), 0)
        copy = back_up(path, tmp_path / "good", content)
        place = served.place(path, 5)
        bad = [ByteRange(place.start + 512, 512), ByteRange(place.start + 2560, 512)]
        served.fail(*bad)
        given = ["--restore-file", copy] if words == ["copy"] else words
        served.apply(place, *given)
        expected = content if words == ["copy"] else content[: 5 * BLOCK + 512] + bytes(188)
        assert path.read_bytes() == clone.read_bytes() == expected
        assert served.place(path, 5) == served.place(clone, 5)
        assert served.served.bad() == []


@kinds
@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
def test_only_bytes_past_the_end_are_lost(
    tmp_path: Path,
    kind: Geometry,
    shared: bool,  # noqa: FBT001 - of the test
) -> None:
    # No copy is needed for them: the very one that was named is no good.
    with bench(tmp_path, kind) as served:
        content = pattern("file", 5 * BLOCK + 700)
        path = write_file(served.root / "file", content)
        clone = served.root / "clone"
        if shared:
            with path.open("rb") as source, clone.open("w+b") as target:
                clone_range(source.fileno(), 0, 0, target.fileno(), 0)
        copy = write_file(tmp_path / "no good", b"none")
        place = served.place(path, 5)
        facts = Facts.of(path)
        served.fail(ByteRange(place.start + 1024, 512))
        served.apply(place, "--restore-file", copy)
        assert Facts.of(path) == facts
        assert served.served.bad() == []
        if shared:
            assert clone.read_bytes() == content
            assert served.place(path, 5) == served.place(clone, 5)


@kinds
def test_a_file_that_has_the_block_twice(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        content = pattern("file", 8 * BLOCK)
        path = write_file(served.root / "file", content)
        with path.open("r+b") as file:
            clone_range(file.fileno(), 2 * BLOCK, BLOCK, file.fileno(), 6 * BLOCK)
        copy = back_up(path, tmp_path / "good", path.read_bytes())
        facts = Facts.of(path)
        place = served.place(path, 2)
        served.fail(ByteRange(place.start, 512))
        served.apply(place, "--restore-file", copy)
        assert Facts.of(path) == facts
        assert served.place(path, 2) == served.place(path, 6) != place
        assert served.served.bad() == []


def plain_file(served: Bench, tmp_path: Path) -> tuple[Path, Path, ByteRange]:
    content = pattern("file", 9 * BLOCK)
    path = write_file(served.root / "file", content)
    return path, back_up(path, tmp_path / "good", content), served.place(path, 3)


@kinds
def test_data_of_one_file_is_written_anew_in_its_place(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        path, copy, place = plain_file(served, tmp_path)
        path.chmod(0o6711)
        facts, rows = Facts.of(path), served.rows_of(path)
        served.fail(ByteRange(place.start + 512, 512))
        said = served.apply(place, "--restore-file", copy)
        assert "in place" in said
        assert Facts.of(path) == facts
        assert served.rows_of(path) == rows
        assert served.served.bad() == []


@kinds
def test_data_of_one_file_that_heals_only_in_part_moves(tmp_path: Path, kind: Geometry) -> None:
    with bench(tmp_path, kind) as served:
        path, copy, place = plain_file(served, tmp_path)
        served.fail(ByteRange(place.start + 512, 512))
        permanent = ByteRange(place.start + 2048, 512)
        served.fail(permanent, permanent=True)
        served.apply(place, "--restore-file", copy, code=14)
        assert path.read_bytes() == copy.read_bytes()
        assert served.place(path, 3) != place
        assert served.served.bad() == [permanent]


@kinds
def test_an_open_file_is_moved(tmp_path: Path, kind: Geometry) -> None:
    # Without the exchange of ranges that is not possible, and is said.
    with bench(tmp_path, kind) as served:
        path, copy, place = plain_file(served, tmp_path)
        served.fail(ByteRange(place.start + 512, 512))
        exchanges = "exchange=1" in kind.more
        with path.open("rb"):
            said = served.apply(place, "--restore-file", copy, code=0 if exchanges else 14)
        if exchanges:
            assert path.read_bytes() == copy.read_bytes()
            assert served.place(path, 3) != place
        else:
            assert "has it open" in said
            assert served.place(path, 3) == place
            assert served.served.bad() == [ByteRange(place.start + 512, 512)]
