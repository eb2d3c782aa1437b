"""The description of targets without an XFS, and their hints."""

import gzip
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import Missing

import whoseblock
from whoseblock.errors import NotAFilesystemError
from whoseblock.fs.signatures import find_content
from whoseblock.media.device import FileMedia


def refused(path: Path) -> NotAFilesystemError:
    with pytest.raises(NotAFilesystemError) as caught:
        whoseblock.open(path)
    assert "name the partition" not in caught.value.hint
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["mkfs.exfat"], "exFAT"),
        (["mkswap"], "swap space"),
    ],
)
def test_formats_of_other_tools_are_named(tmp_path: Path, command: list[str], what: str) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(20 << 20)
    program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        raise Missing(f"{command[0]} is not here")
    subprocess.run([program, *command[1:], path], check=True, capture_output=True)
    assert f"it looks like {what}" in str(refused(path))


def test_the_hint_for_a_compressed_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.img.gz"
    path.write_bytes(gzip.compress(bytes(1 << 20)))
    error = refused(path)
    assert "packed by gzip" in str(error)
    assert "unpack" in error.hint


def test_zeros_and_an_empty_file_are_distinguished(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    assert "it is empty" in str(refused(path))
    path.write_bytes(bytes(1 << 20))
    assert "it begins with zeros" in str(refused(path))


def test_an_unrecognised_target_keeps_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * (1 << 20))
    assert "superblock at byte 0" in str(refused(path))


@given(st.binary(max_size=600))
def test_arbitrary_first_bytes_are_handled(head: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(head)
        file.flush()
        media = FileMedia(file.name)
        found = find_content(media)
        media.close()
    assert found is None or (found.what.startswith("it ") and found.hint)
