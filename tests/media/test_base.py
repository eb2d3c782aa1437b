"""Holes of sparse images, and of what is mapped to them."""

from pathlib import Path

from whoseblock.media.base import next_data
from whoseblock.media.device import FileMedia
from whoseblock.media.mapped import Copy, MappedMedia, MappedRun

STEP = 1 << 16


def test_a_hole_ends_where_data_begins(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 * STEP)
        file.seek(4 * STEP)
        file.write(b"x")
    media = FileMedia(path)
    # A filesystem without holes reports data everywhere.
    assert next_data(media, 0) in (0, 4 * STEP)
    assert next_data(media, 4 * STEP) == 4 * STEP
    for start in range(0, 16 * STEP, STEP // 2):
        until = min(next_data(media, start), media.size)
        assert media.pread(start, until - start) == bytes(until - start)
    media.close()


def test_a_mapped_hole_is_one_in_every_run(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 * STEP)
        file.seek(4 * STEP)
        file.write(b"x")
    media = FileMedia(path)
    hole, data = Copy(media, 8 * STEP), Copy(media, 4 * STEP)

    def locate(copies: list[tuple[Copy, ...]]) -> MappedMedia:
        runs = [MappedRun(STEP, one) for one in copies]
        return MappedMedia("volume", len(runs) * STEP, lambda start, _: runs[start // STEP :])

    whole = 2 * STEP if next_data(media, 0) else 0
    assert next_data(locate([(hole,), (hole,)]), 0) == whole
    assert next_data(locate([(hole,), (data,)]), 0) == min(whole, STEP)
    # Copies may differ, and a missing one cannot be read.
    assert next_data(locate([(hole, data), (hole,)]), 0) == 0
    assert next_data(locate([(Copy(None, 0),), (hole,)]), 0) == 0
    media.close()


def test_media_without_holes_have_data_everywhere() -> None:
    class Memory:
        name, size = "memory", STEP

        def pread(self, offset: int, length: int) -> bytes:
            return bytes(length) if offset < self.size else b""

        def close(self) -> None:
            pass

    assert next_data(Memory(), 512) == 512
