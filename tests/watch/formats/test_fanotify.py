"""Events of fanotify about errors of filesystems."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.watch.formats.fanotify import FanotifyError, read_fanotify


def fanotify_event(mask: int, infos: bytes) -> bytes:
    return struct.pack("=IBBHQii", 24 + len(infos), 3, 0, 24, mask, -1, 1) + infos


FSID = bytes(range(8))
INFO_ERROR = struct.pack("=BBHiI", 5, 0, 12, 117, 3)
INFO_EXT4 = struct.pack("=BBH8sIiII", 1, 0, 28, FSID, 8, 1, 12, 4711)
INFO_XFS = struct.pack("=BBH8sIiQI", 1, 0, 32, FSID, 12, 0x81, 2**40, 9)
INFO_NO_FILE = struct.pack("=BBH8sIi", 1, 0, 20, FSID, 0, 0)


@pytest.mark.parametrize(
    ("infos", "event"),
    [
        (INFO_ERROR + INFO_EXT4, FanotifyError(FSID, 12, 4711, 117, 3)),
        (INFO_XFS + INFO_ERROR, FanotifyError(FSID, 2**40, 9, 117, 3)),
        (INFO_ERROR + INFO_NO_FILE, FanotifyError(FSID, 0, 0, 117, 3)),
    ],
)
def test_errors_of_filesystems(infos: bytes, event: FanotifyError) -> None:
    full = fanotify_event(0x4000, b"")
    assert list(read_fanotify(fanotify_event(0x8000, infos) + full)) == [event, None]


@given(st.binary(max_size=200))
def test_arbitrary_fanotify_events_are_parsed_or_ignored(data: bytes) -> None:
    list(read_fanotify(data))
    list(read_fanotify(fanotify_event(0x8000, data)))
