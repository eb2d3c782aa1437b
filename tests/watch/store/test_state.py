"""Files that the daemon writes, in folders of other users, too."""

import os
from pathlib import Path

import pytest
from tests.support.tools import need_root

from whoseblock.watch.store.state import write_for_others

_USER = 65534


def test_a_file_for_others_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"old")
    target = tmp_path / "real/metrics"
    # The name itself is replaced, and not followed.
    target.symlink_to(elsewhere)
    for data in (b"first", b"second"):
        write_for_others(tmp_path / "link/metrics", data)
        assert target.read_bytes() == data
        assert not target.is_symlink()
        assert target.stat().st_mode & 0o777 == 0o644
    assert elsewhere.read_bytes() == b"old"
    assert os.listdir(tmp_path / "real") == ["metrics"]


@pytest.mark.parametrize("absolute", [False, True])
def test_a_link_of_another_user_is_not_followed(tmp_path: Path, *, absolute: bool) -> None:
    need_root()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
    os.chown(theirs, _USER, _USER)
    # A folder of the exporter's user is as good as one of ours.
    write_for_others(theirs / "metrics", b"text")
    assert (theirs / "metrics").read_bytes() == b"text"
    link = theirs / "link"
    link.symlink_to(ours if absolute else "../ours")
    write_for_others(link / "metrics", b"text")
    (ours / "metrics").unlink()
    os.chown(link, _USER, _USER, follow_symlinks=False)
    with pytest.raises(OSError, match="belongs to user"):
        write_for_others(link / "metrics", b"text")
    assert os.listdir(ours) == []


def test_a_path_without_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = os.listdir("/proc/self/fd")
    for name in ("file/metrics", "none/metrics", "loop/metrics"):
        with pytest.raises(OSError, match=r"Not a directory|No such file|Too many levels"):
            write_for_others(tmp_path / name, b"text")
    assert len(os.listdir("/proc/self/fd")) == len(before)
