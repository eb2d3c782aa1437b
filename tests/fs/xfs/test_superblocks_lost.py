"""A filesystem whose first superblock is lost is still found, by a copy."""

import pytest
from tests.support.filled_images import Zoo
from tests.support.truth import Truth

import whoseblock
from whoseblock.errors import NotAFilesystemError, UnsupportedError
from whoseblock.fs.xfs.format.checksum import crc_matches
from whoseblock.fs.xfs.format.superblock import XFS_SB_CRC_OFF
from whoseblock.media import EmulatedPmem, FileMedia, Media
from whoseblock.ranges import ByteRange

#: One whose groups are as mkfs.xfs would divide it, and one whose groups are not.
NAMES = ["populated-4k-noparent", "populated-1k"]


class Patched:
    """An image in which some bytes are others."""

    def __init__(self, base: Media, start: int, data: bytes) -> None:
        self._base, self._start, self._data = base, start, data
        self.name, self.size = base.name, base.size

    def pread(self, offset: int, length: int) -> bytes:
        block = bytearray(self._base.pread(offset, length))
        for at, byte in enumerate(self._data, self._start - offset):
            if 0 <= at < length:
                block[at] = byte
        return bytes(block)

    def close(self) -> None:
        self._base.close()


@pytest.fixture(params=NAMES)
def truth(zoo: Zoo, request: pytest.FixtureRequest) -> Truth:
    return zoo.any(request.param)


def _file_rows(truth: Truth) -> list[tuple[int, int]]:
    return [(row.start, row.length) for row in truth.rows if row.kind == "file"][:50]


def _lost(truth: Truth, how: str) -> Media:
    media = FileMedia(truth.image)
    if how == "poisoned":
        return EmulatedPmem(media, [ByteRange(0, 512)])
    if how == "zeros":
        return Patched(media, 0, bytes(512))
    return Patched(media, 200, b"\xff" * 8)


@pytest.mark.parametrize("how", ["poisoned", "zeros", "garbled"])
def test_answers_equal_those_of_the_intact_image_and_are_incomplete(truth: Truth, how: str) -> None:
    with whoseblock.open(truth.image) as whole, whoseblock.open(_lost(truth, how)) as lost:
        for question in _file_rows(truth):
            answer = lost.owners(*question)
            assert answer.owners == whole.owners(*question).owners
            assert not answer.complete
            assert "copy of the superblock" in answer.notes[0]


def test_a_target_of_another_format_is_not_searched(truth: Truth) -> None:
    other = Patched(FileMedia(truth.image), 0, b"LABELONE" + bytes(504))
    with pytest.raises(NotAFilesystemError):
        whoseblock.open(other)


def test_an_unknown_feature_is_refused(truth: Truth) -> None:
    sector = bytearray(FileMedia(truth.image).pread(0, 512))
    # sb_features_incompat is the big-endian word at byte 216; its highest bit means nothing yet.
    sector[216] |= 0x80
    sector[XFS_SB_CRC_OFF : XFS_SB_CRC_OFF + 4] = _crc(bytes(sector))
    with pytest.raises(UnsupportedError, match="0x80000"):
        whoseblock.open(Patched(FileMedia(truth.image), 0, bytes(sector)))


def _crc(sector: bytes) -> bytes:
    from fastcrc.crc32 import iscsi

    plain = sector[:XFS_SB_CRC_OFF] + bytes(4) + sector[XFS_SB_CRC_OFF + 4 :]
    crc = iscsi(plain).to_bytes(4, "little")
    assert crc_matches(plain[:XFS_SB_CRC_OFF] + crc + plain[XFS_SB_CRC_OFF + 4 :], XFS_SB_CRC_OFF)
    return crc
