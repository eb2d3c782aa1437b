"""Arguments of the Python API: whole numbers and open filesystems, or an error of ours."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo.demo import unpack
from hypothesis import given
from hypothesis import strategies as st
from tests.support.mounts import mounted
from tests.support.tools import need_loop_mounts

import whoseblock
from whoseblock.errors import ArgumentError, ClosedError, OutOfDeviceError
from whoseblock.fs.driver import Volume

Open = Callable[[], Volume]


@pytest.fixture(scope="module", params=["offline", "mounted"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    image = tmp_path_factory.mktemp("arguments") / "disk.img"
    unpack(image)
    if request.param == "offline":
        yield lambda: whoseblock.open(image, offline=True)
        return
    need_loop_mounts()
    with mounted(image, "ro", "norecovery") as folder:
        yield lambda: whoseblock.open(os.fsdecode(folder))


@pytest.fixture(scope="module")
def fs(opened: Open) -> Iterator[Volume]:
    with opened() as filesystem:
        yield filesystem


NO_NUMBERS = (1.5, 1.0, True, False, "1", b"1", None, [1], np.float64(1), np.bool_(1), 1j, object())
ODD = st.sampled_from(NO_NUMBERS)
NUMBERS = st.integers() | st.sampled_from([0, 1, 1 << 62, 1 << 63, 1 << 64, 10**5000, -(10**5000)])
ANYTHING: st.SearchStrategy[Any] = NUMBERS | ODD | st.integers(0, 100).map(np.uint64)


@given(ANYTHING, ANYTHING)
def test_any_range_is_answered_or_refused(fs: Volume, start: Any, length: Any) -> None:  # noqa: ANN401
    right = True
    for value in (start, length):
        right = right and isinstance(value, int | np.integer) and not isinstance(value, bool)
    right = right and start >= 0 and length > 0 and int(start) + int(length) <= fs.device_size
    # Only one that is short, so that it is quickly answered.
    right_and_long = right and length > 1 << 20
    if right_and_long:
        return
    for ask in (
        lambda: fs.owners(start, length, paths=False),
        lambda: next(fs.owners_many([(start, length)], paths=False)),
        lambda: fs.owners_of([start], [length]),
    ):
        if right:
            assert ask()
        else:
            with pytest.raises((ArgumentError, OutOfDeviceError)):
                ask()


@given(NUMBERS | ODD)
def test_any_inode_is_answered_or_refused(fs: Volume, inode: Any) -> None:  # noqa: ANN401
    right = isinstance(inode, int) and not isinstance(inode, bool) and 0 <= inode < 1 << 64
    for ask in (
        lambda: fs.paths(inode),
        lambda: fs.paths_many([inode])[inode],
        lambda: fs.file_size(inode),
    ):
        if right:
            ask()
        else:
            with pytest.raises(ArgumentError):
                ask()


@pytest.mark.parametrize(
    ("start", "length", "error", "words"),
    [
        (0, 0, OutOfDeviceError, "a range without bytes is nowhere on"),
        (0, -1, OutOfDeviceError, "a range without bytes is nowhere on"),
        (1.5, 2, ArgumentError, "start must be a whole number, not float"),
        (True, 1, ArgumentError, "start must be a whole number, not bool"),
        (0, None, ArgumentError, "length must be a whole number, not NoneType"),
        (-1, 1, OutOfDeviceError, r"the range -1\+1 is not within"),
        pytest.param(10**5000, 1, OutOfDeviceError, "the range past 2", id="huge"),
    ],
)
def test_the_sentence_is_clear(
    fs: Volume,
    start: Any,  # noqa: ANN401
    length: Any,  # noqa: ANN401
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        fs.owners(start, length)


@pytest.mark.parametrize("ranges", [None, 5, [5], [(1, 2, 3)], ["ab"], [None], "ab", [(1,)]])
def test_an_argument_that_is_no_list_of_ranges_is_refused(fs: Volume, ranges: Any) -> None:  # noqa: ANN401
    with pytest.raises(ArgumentError):
        list(fs.owners_many(ranges))


@pytest.mark.parametrize(
    ("starts", "lengths"),
    [
        (None, None),
        (5, 5),
        ([1], [1, 2]),
        ([[1]], [[1]]),
        ([1.5], [1]),
        ("1", "1"),
        ([[1], [2, 3]], [1]),
    ],
)
def test_an_argument_that_is_no_column_is_refused(fs: Volume, starts: Any, lengths: Any) -> None:  # noqa: ANN401
    with pytest.raises(ArgumentError):
        fs.owners_of(starts, lengths)


@pytest.mark.parametrize("inodes", [None, 5, "ab", [None]])
def test_an_argument_that_is_no_list_of_inodes_is_refused(fs: Volume, inodes: Any) -> None:  # noqa: ANN401
    with pytest.raises(ArgumentError):
        fs.paths_many(inodes)


def test_integers_of_numpy_are_whole_numbers(fs: Volume) -> None:
    wanted = fs.owners(1257472, 4096)
    kinds: tuple[Any, ...] = (np.int64, np.uint64, np.int32)
    for kind in kinds:
        assert fs.owners(kind(1257472), kind(4096)) == wanted
        columns = fs.owners_of(np.array([1257472], kind), np.array([4096], kind))
        assert columns.inode.tolist() == [row.inode for row in wanted]  # type: ignore[attr-defined]
    assert type(fs.owners(kinds[0](0), kinds[0](1)).start) is int
    assert fs.paths(kinds[0](131)) == fs.paths(131)
    assert next(fs.owners_many(np.array([[0, 1]]))) == fs.owners(0, 1)
    assert fs.owners_of([], []).start.size == 0


def test_after_close_every_question_is_refused(opened: Open) -> None:
    fs = opened()
    begun = fs.owners_many((at * 4096, 1) for at in range(1 << 17))
    next(begun)
    fs.close()
    fs.close()
    for ask in (
        lambda: fs.owners(0, 1),
        lambda: list(fs.owners_many([(0, 1)])),
        lambda: fs.owners_of([0], [1]),
        lambda: fs.paths(131),
        lambda: fs.paths_many([131]),
        lambda: fs.file_size(131),
    ):
        with pytest.raises(ClosedError, match="is closed") as caught:
            ask()
        assert caught.value.hint


def test_a_closed_device_is_not_another_file(tmp_path: Path) -> None:
    from whoseblock.media.device import FileMedia

    path = tmp_path / "file"
    path.write_bytes(b"right")
    media = FileMedia(path)
    media.close()
    # The next file gets the number of the descriptor.
    other = FileMedia(Path(__file__))
    media.close()
    with pytest.raises(ClosedError):
        media.pread(0, 5)
    assert other.pread(0, 3) == b'"""'
    other.close()
