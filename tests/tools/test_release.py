"""The packages of a release: reproducible, and checked for missing and unexpected files."""

import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.tools import CHECKOUT, Missing, program
from tools.release.building import build, copy_sources, unpack
from tools.release.checks import check_sdist, check_wheel

EPOCH = 1_700_000_000


class Built(NamedTuple):
    sources: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    program("git")
    if not (CHECKOUT / ".git").exists():
        raise Missing("a release is built from a checkout with .git")
    folder = tmp_path_factory.mktemp("release")
    sources = copy_sources(folder / "sources")
    return Built(sources, *build(sources, folder, EPOCH))


def rewritten(wheel: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    """Copy a wheel with other contents of some files, or without those for which there is None."""
    path = target / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(path, "w") as archive:
        names = dict.fromkeys([*source.namelist(), *changes])
        for name in names:
            content = changes[name] if name in changes else source.read(name)
            if content is not None:
                archive.writestr(name, content)
    return path


def test_the_same_sources_in_another_folder_become_the_same_bytes(
    built: Built, tmp_path: Path
) -> None:
    again = build(copy_sources(tmp_path / "elsewhere"), tmp_path, EPOCH)
    assert [path.read_bytes() for path in again] == [
        built.sdist.read_bytes(),
        built.wheel.read_bytes(),
    ]


def test_built_packages_pass_the_checks(built: Built) -> None:
    assert check_sdist(built.sdist, built.sources) == []
    assert check_wheel(built.wheel, built.sources) == []


def test_a_wheel_with_other_files_is_reported(built: Built, tmp_path: Path) -> None:
    changes = {
        "whoseblock/py.typed": None,
        "whoseblock/ranges.py": b"pass\n",
        "tests/test_ranges.py": b"pass\n",
    }
    problems = check_wheel(rewritten(built.wheel, tmp_path, changes), built.sources)
    assert problems == [
        "the wheel lacks whoseblock/py.typed",
        "the wheel holds tests/test_ranges.py, which is unexpected",
        "the wheel holds another whoseblock/ranges.py than the project",
    ]


def test_a_wheel_with_other_metadata_is_reported(built: Built, tmp_path: Path) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name)
    changed = text.replace(b"Requires-Dist: click>=8.2\n", b"").replace(b"Apache-2.0", b"MIT")
    problems = check_wheel(rewritten(built.wheel, tmp_path, {name: changed}), built.sources)
    assert [problem.partition(" is ")[0] for problem in problems[:1]] == [
        "the wheel: License-Expression"
    ]
    assert problems[-1].startswith("the wheel: without extras it requires ")


def test_a_source_distribution_without_a_file_is_reported(built: Built, tmp_path: Path) -> None:
    unpack(built.sdist, tmp_path)
    (top,) = tmp_path.iterdir()
    (top / "docs" / "man" / "whoseblock.1").unlink()
    path = tmp_path / built.sdist.name
    with tarfile.open(path, "w:gz") as archive:
        archive.add(top, top.name)
    assert check_sdist(path, built.sources) == [
        f"the source distribution lacks {top.name}/docs/man/whoseblock.1"
    ]
