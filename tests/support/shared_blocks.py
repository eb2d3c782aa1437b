"""One block that five files share at different offsets, for tests of what becomes of it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support import system_calls
from tests.support.failing_filesystem import Bench, Facts, pattern, write_file

from whoseblock.ranges import ByteRange

__all__ = ["Five", "share_five"]

#: ``struct vfs_cap_data`` of version 2: cap_net_bind_service, permitted and effective.
_CAPABILITY = bytes.fromhex("01000002000400000000000000000000000000 00".replace(" ", ""))
_DAY_NS = 86400 * 10**9


@dataclass(frozen=True)
class Five:
    """The files, each with the number of its block that is shared; ``copies`` has good copies."""

    files: dict[Path, int]
    place: ByteRange
    copies: Path
    content: bytes
    facts: dict[Path, Facts]

    def copy_of(self, path: Path, bench: Bench) -> Path:
        return self.copies / path.relative_to(bench.root)

    def keep_only(self, path: Path, bench: Bench) -> Path:
        """Remove all copies but one and that of the other user's file ``c``; return the one."""
        for other in self.files:
            if other != path and other.name != "c":
                self.copy_of(other, bench).unlink()
        return self.copy_of(path, bench)

    def check_whole(self, bench: Bench) -> None:
        """See that all are as they were, and share one extent in another place."""
        for path, facts in self.facts.items():
            assert Facts.of(path) == facts, path
        places = {bench.place(path, number) for path, number in self.files.items()}
        assert len(places) == 1
        (new,) = places
        assert new.start + new.length <= self.place.start or self.place.end <= new.start
        owners = [row for row in bench.owners(new) if row.kind == "file"]
        assert len(owners) == len(self.files)
        assert all(row.shared for row in owners)


def share_five(bench: Bench, copies: Path, count: int = 1) -> Five:
    """Make five files that share ``count`` blocks, and others, and good copies of all five."""
    root, block = bench.root, bench.block
    shared = pattern("shared", count * block)
    at = {"a": 0, "deep/er/b": 3, "c": 16, "large/d": 1000, "last": 5}
    first = root / "a"
    for name, number in at.items():
        path = root / name
        write_file(path, pattern(f"before {name}", min(number, 40) * block), 0)
        if path == first:
            write_file(path, shared, 0)
        else:
            with first.open("rb") as source, path.open("r+b") as target:
                system_calls.clone_range(
                    source.fileno(), 0, count * block, target.fileno(), number * block
                )
        if name != "last":
            write_file(path, pattern(f"after {name}", 3 * block + 77), (number + count) * block)
    files = {root / name: number for name, number in at.items()}
    os.link(root / "deep/er/b", root / "hard link")
    os.link(root / "deep/er/b", root / "large/another link")
    os.chown(root / "c", 1234, 4321)
    (root / "c").chmod(0o6755)
    os.setxattr(root / "c", "user.note", b"kept")
    os.setxattr(root / "c", "security.capability", _CAPABILITY)
    (root / "last").chmod(0o400)
    for number in range(6):
        write_file(root / "others" / f"{number}", pattern(f"other {number}", 9 * block + number))
    bench.sync()
    for number, path in enumerate(files, 1):
        copy = copies / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--reflink=never", path, copy], check=True)
        status = path.stat()
        times = (status.st_atime_ns - number * _DAY_NS, number * _DAY_NS + 123456789)
        os.utime(path, ns=times)
        os.utime(copy, ns=times)
    bench.sync()
    places = {bench.place(path, number, count) for path, number in files.items()}
    assert len(places) == 1
    return Five(files, places.pop(), copies, shared, {path: Facts.of(path) for path in files})
