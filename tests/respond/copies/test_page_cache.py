"""The page cache of a file on a device that fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.failing_filesystem import BLOCK, EXCHANGE, bench, forget, pattern, write_file

from whoseblock.respond.copies.page_cache import cached_pieces


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_NOATIME)
    try:
        yield fd
    finally:
        os.close(fd)


def cached(fd: int, start: int, length: int) -> dict[int, bytes]:
    return dict(cached_pieces(fd, start, length, BLOCK))


def test_cached_bytes_are_read_without_the_device(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("file", 8 * BLOCK + 100)
        path = write_file(served.root / "file", content)
        # Dirty pages are cached, too, and stay after the writeback.
        with opened(path) as fd:
            assert b"".join(cached(fd, 0, 9 * BLOCK).values()) == content
        served.sync()
        served.served.add(served.place(path, 2, 3))
        before = served.served.statistics()
        with opened(path) as fd:
            got = cached(fd, 2 * BLOCK + 512, 2 * BLOCK)
            assert sorted(got) == [2 * BLOCK + 512, 3 * BLOCK, 4 * BLOCK]
            assert b"".join(got.values()) == content[2 * BLOCK + 512 : 4 * BLOCK + 512]
            # Up to the end of the file, and no further.
            assert cached(fd, 8 * BLOCK, BLOCK) == {8 * BLOCK: content[8 * BLOCK :]}
            assert cached(fd, 9 * BLOCK, BLOCK) == {}
            forget(path)
            assert cached(fd, 0, 9 * BLOCK) == {}
        assert served.served.statistics() == before


def test_data_that_could_not_be_written_is_cached(tmp_path: Path) -> None:
    with bench(tmp_path, EXCHANGE) as served:
        path = write_file(served.root / "file", pattern("file", 8 * BLOCK))
        place = served.place(path, 2)
        served.fail(place, permanent=True)
        new = pattern("new", BLOCK)
        with opened(path) as fd:
            os.pwrite(fd, new, 2 * BLOCK)
            with contextlib.suppress(OSError):
                os.fsync(fd)
            assert cached(fd, BLOCK, 3 * BLOCK) == {2 * BLOCK: new}


def test_a_kernel_that_does_not_count_cached_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before Linux 6.5. A number that no system call has stands for it.
    from whoseblock.respond.copies import page_cache

    with bench(tmp_path, EXCHANGE) as served:
        content = pattern("file", 8 * BLOCK)
        path = write_file(served.root / "file", content)
        served.sync()
        with opened(path) as fd:
            monkeypatch.setattr(page_cache, "_CACHESTAT", 100_000)
            assert b"".join(cached(fd, 0, 8 * BLOCK).values()) == content
            served.fail(served.place(path, 2))
            assert cached(fd, 2 * BLOCK, BLOCK) == {}
