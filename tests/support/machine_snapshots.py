"""The fixtures of real machines: what their kernels said, and what was on their disks.

tests/fixtures/stack/README.md says how they were made.
"""

import fcntl
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["FIXTURES", "facts", "tags", "unpacked"]

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "stack"

_TAG = b"WB-TAG "
#: Tags lie on sector boundaries: members of arrays need not begin on blocks.
_STEP = 512


def unpacked(name: str, folder: Path) -> Path:
    """Unpack a fixture once a session; give the folder."""
    target = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = folder / f"{name}.part"
            with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
                _extract(archive, part)
            part.rename(target)
    return target


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Extract all of an archive of ours.

    Debian 12's Python 3.11.2 has no filters yet; Python from 3.12 on warns without one.
    """
    if hasattr(tarfile, "tar_filter"):
        archive.extractall(folder, filter="tar")
    else:
        archive.extractall(folder)  # noqa: S202 - made by tools/stack_fixtures


def facts(name: str) -> Any:  # noqa: ANN401 - JSON
    """Return the facts about a fixture that were recorded beside it."""
    return json.loads((FIXTURES / f"{name}.facts.json").read_text())


def tags(image: Path) -> Iterator[tuple[int, str, int]]:
    """Yield every tag: where it lies, the volume it was written through, and its offset there."""
    data = image.read_bytes()
    at = data.find(_TAG)
    while at >= 0:
        if at % _STEP == 0:
            _, name, offset = data[at : data.index(b"\n", at)].split(b" ")
            yield at, name.decode(), int(offset)
        at = data.find(_TAG, at + len(_TAG))
