"""Programs that tests need are found for every user, and a skip names what would bring them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import tools
from tests.support.tools import CHECKOUT, Missing, need_root, program, run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Restrict the search for programs to this folder."""
    monkeypatch.setattr(tools, "_SYSTEM", str(tmp_path))
    return tmp_path


def make(path: Path) -> Path:
    path.write_text("#!/bin/sh\necho here\n")
    path.chmod(0o755)
    return path


def test_programs_of_the_system_are_found_without_their_folder_in_path() -> None:
    words = "from tests.support.tools import _SYSTEM; print(_SYSTEM)"
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, check=True)
    assert "/usr/sbin" in done.stdout.decode().strip().split(":")


def test_an_installed_program_is_run(folder: Path) -> None:
    path = make(folder / "sfdisk")
    assert program("sfdisk") == str(path)
    assert run(["sfdisk", "--json"]) == b"here\n"
    assert run([path]) == b"here\n"


@pytest.mark.parametrize(
    ("name", "package"),
    [("sfdisk", "fdisk"), ("vgcreate", "lvm2"), ("mkfs.ext4", "e2fsprogs"), ("xyz", "xyz")],
)
@pytest.mark.usefixtures("folder")
def test_a_missing_program_is_reported_with_its_package(name: str, package: str) -> None:
    with pytest.raises(Missing, match=f"^{name} is not installed: install the package {package}$"):
        run([name, "--version"])


@pytest.mark.usefixtures("folder")
def test_xfsprogs_are_found_without_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "_NEWEST", tmp_path / "none")
    with pytest.raises(Missing, match=r"install xfsprogs, or run tools/xfsprogs$"):
        tools.xfsprogs("xfs_db")


@pytest.mark.parametrize("package", ["e2fsprogs", "btrfsprogs"])
def test_the_newest_programs_are_found_or_missing(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tools, f"_NEWEST_{package.upper()}", tmp_path)
    find = getattr(tools, package)
    with pytest.raises(Missing, match=rf"run tools/{package}$"):
        find("mkfs", newest=True)
    path = make(tmp_path / "mkfs")
    assert find("mkfs", newest=True) == path


def test_the_skip_of_a_user_names_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Missing, match=r"run the tests as root$"):
        need_root()


def test_the_skip_in_a_container_names_the_missing_capability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tools, "_CAPABILITIES", {"CAP_SYS_ADMIN": 63})
    with pytest.raises(Missing, match=r"no CAP_SYS_ADMIN here: .* privileged container$"):
        need_root()
