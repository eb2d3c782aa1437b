"""Places where copies may be: paths, folders, commands, and no way out of a folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.copy_checks import BLOCK, check, damaged_pair, refused

from whoseblock.respond.copies.locations import (
    Candidate,
    Copies,
    CopyError,
    CopyFinder,
    FetchedCopies,
)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Provide a damaged file, and a good copy of it."""
    return damaged_pair(tmp_path)


def find(copies: Copies, paths: list[str], finding: bytes) -> list[Candidate]:
    return list(CopyFinder(copies, paths[0] if paths else "", finding, {}).candidates(paths))


def test_nothing_outside_of_the_folder_is_opened(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged, copy = pair
    folder = tmp_path / "folder"
    (folder / "sub" / "deeper").mkdir(parents=True)
    shutil.copy(copy, folder / "sub" / "deeper" / "file")
    (folder / "out").symlink_to(tmp_path)
    (folder / "up").symlink_to("..")
    (folder / "inside").symlink_to("sub")
    (folder / "sub" / "file").symlink_to(copy)

    def place(path: str) -> Candidate:
        return Candidate(path, str(folder))

    assert check(damaged, place("sub/deeper/file")) == 4 * BLOCK
    # Another file of the folder is not the one that was asked for, either.
    for path in ("out/copy", "up/copy", "inside/deeper/file"):
        refused(damaged, place(path), "is not a directory")
    refused(damaged, place("sub/file"), "a symbolic link, not a regular file")
    for path in (
        "../copy",
        "sub/../../copy",
        "",
        "sub//deeper/file",
        "./sub/deeper/file",
        str(copy),
    ):
        refused(damaged, place(path), "is not a valid path in a filesystem")
    # The folder itself is the user's word.
    (tmp_path / "alias").symlink_to(folder)
    assert check(damaged, Candidate("sub/deeper/file", str(tmp_path / "alias"))) == 4 * BLOCK


NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_names_are_any_bytes(pair: tuple[Path, Path], tmp_path: Path, names: list[bytes]) -> None:
    damaged, copy = pair
    folder = tmp_path / "any"
    shutil.rmtree(folder, ignore_errors=True)
    path = b"/".join(names)
    os.makedirs(os.path.join(os.fsencode(folder), os.path.dirname(path)))
    shutil.copy(os.fsencode(copy), os.path.join(os.fsencode(folder), path))
    (candidate,) = find(Copies(folder=str(folder)), ["/" + os.fsdecode(path)], b"{}")
    assert check(damaged, candidate) == 4 * BLOCK
    assert str(candidate).isprintable()


def test_a_path_may_be_longer_than_one_call_takes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged, copy = pair
    step = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=step)
        further = os.open("d" * 200, os.O_RDONLY, dir_fd=step)
        os.close(step)
        step = further
    os.link(copy, "file", dst_dir_fd=step)
    os.close(step)
    path = "/".join(["d" * 200] * 30 + ["file"])
    assert check(damaged, Candidate(path, str(tmp_path))) == 4 * BLOCK


def test_all_locations_are_tried_in_order() -> None:
    wanted = Copies(folder="/backup", file="/one", command="cat; printf /fetched")
    assert find(wanted, ["/a/b", "/c"], b"") == [
        Candidate("/one"),
        Candidate("a/b", "/backup"),
        Candidate("c", "/backup"),
        Candidate("/fetched"),
    ]
    assert find(Copies(), ["/a"], b"{}") == []


def test_a_command_runs_once_and_when_it_is_needed(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    finder = CopyFinder(Copies(file="/one", command=f"echo x >> {ran}; echo /two"), "/a", b"", {})
    first, second = finder.candidates(["/a"]), finder.candidates(["/b"])
    assert next(first) == next(second) == Candidate("/one")
    assert not ran.exists()
    assert next(first) == next(second) == Candidate("/two")
    assert ran.read_text() == "x\n"
    fetched: FetchedCopies = {}
    for _ in range(2):
        failing = CopyFinder(Copies(command=f"echo y >> {ran}; false"), "/a", b"", fetched)
        with pytest.raises(CopyError, match="failed with status 1"):
            list(failing.candidates(["/a"]))
    assert ran.read_text() == "x\ny\n"


def test_a_command_gets_the_finding_and_names_a_copy(tmp_path: Path) -> None:
    name = os.fsdecode(b"odd\xff\nname\n")
    finding = json.dumps({"start": 4096}).encode() * 9999
    script = f'cat > {tmp_path}/got; printf "%s\\n" "$WHOSEBLOCK_PATH"'
    (found,) = find(Copies(command=script), ["/" + name, "/other"], finding)
    # The shell drops no newline here, and we no more than the one that ends the line.
    assert found == Candidate("/" + name)
    assert (tmp_path / "got").read_bytes() == finding


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("exit 3", "failed with status 3"),
        ("kill -9 $$", "was ended by SIGKILL"),
        ("true", "printed no path"),
        ("printf %04096d 0", "printed more than a path"),
        ("yes", "printed more than 65536 bytes"),
    ],
)
def test_a_command_that_fails_is_reported(command: str, why: str) -> None:
    with pytest.raises(CopyError, match=why):
        list(find(Copies(command=command), ["/a"], b"{}" * (1 << 20)))


def test_a_command_that_takes_too_long_is_ended() -> None:
    copied = Copies(command="sleep 100 & sleep 100", command_s=0.5)
    with pytest.raises(CopyError, match=r"took longer than 0\.5 seconds"):
        list(find(copied, ["/a"], b"{}" * (1 << 20)))
