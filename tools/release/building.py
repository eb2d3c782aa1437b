"""Building the packages so that the same commit always becomes the same bytes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import whoseblock

__all__ = ["TOP", "build", "commit_time", "copy_sources", "is_clean", "unpack", "version"]

TOP = Path(__file__).resolve().parents[2]


def _git(*words: str) -> bytes:
    command = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP), *words]
    return subprocess.run(command, capture_output=True, check=True).stdout


def version() -> str:
    """Return the version, from its single source."""
    return whoseblock.__version__


def is_clean() -> bool:
    """Return whether everything in the checkout is committed."""
    return not _git("status", "--porcelain")


def commit_time() -> int:
    """Return the time of the last commit, in seconds since 1970."""
    return int(_git("log", "-1", "--format=%ct"))


def copy_sources(target: Path) -> Path:
    """Copy the files of the project, without ignored ones, to `target`; return it."""
    listing = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listing.decode().split("\0")):
        if (TOP / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, target / name)
    return target


def _hatchling(kind: str, sources: Path, target: Path, epoch: int) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C.UTF-8"}
    subprocess.run(command, cwd=sources, env=environment, capture_output=True, check=True)


def unpack(sdist: Path, folder: Path) -> None:
    """Extract a source distribution; Debian 12's Python 3.11.2 has no filters for members."""
    subprocess.run(["tar", "--extract", "--file", sdist, "--directory", folder], check=True)


def build(sources: Path, target: Path, epoch: int) -> list[Path]:
    """Build the source distribution, and the wheel from it; return the path of each."""
    _hatchling("sdist", sources, target, epoch)
    (sdist,) = target.glob("*.tar.gz")
    folder = target / "unpacked"
    folder.mkdir()
    unpack(sdist, folder)
    (unpacked,) = folder.iterdir()
    _hatchling("wheel", unpacked, target, epoch)
    (wheel,) = target.glob("*.whl")
    return [sdist, wheel]
