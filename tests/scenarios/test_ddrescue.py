"""A rescue as people do it: ddrescue, its map as it came, and the files that were damaged."""

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

from tests.support.failing_image import failing_device
from tests.support.filled_images import Zoo
from tests.support.mounts import mounted
from tests.support.tools import program, run
from tests.support.truth import Row

from whoseblock.ranges import ByteRange, merge

SECTOR = 512


def contents(image: Path) -> dict[int, str]:
    """Return a digest of every file's content, as the kernel reads it, by inode."""
    digests = {}
    with mounted(image, "ro", "norecovery") as root:
        for path in Path(root.decode()).rglob("*"):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                digests[status.st_ino] = digest(path)
    return digests


def digest(path: Path) -> str:
    """Digest what a file has data for: some have holes of terabytes."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        at = 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < hole:
                data = os.pread(file.fileno(), min(hole - at, 1 << 20), at)
                found.update(b"%d:" % at + data)
                at += len(data)
    return found.hexdigest()


def is_plain_data(row: Row, modes: dict[int, int]) -> bool:
    """Return whether a row is written data of a regular file, where a rescue leaves a hole."""
    return (
        row.kind == "file"
        and stat.S_ISREG(modes[row.inode])
        and not (row.attr or row.extent_map or row.unwritten)
    )


def test_the_damaged_files_are_those_whose_contents_differ(zoo: Zoo, tmp_path: Path) -> None:
    program("ddrescue")
    truth = zoo.to_mount("4k")
    rng = random.Random("ddrescue")
    modes = {number: inode.mode for number, inode in truth.inodes.items()}
    data = [row for row in truth.rows if is_plain_data(row, modes)]
    shared = [row for row in data if row.shared]
    free = [row for row in truth.rows if row.kind == "free" and row.length > 1 << 20]
    unwritten = [row for row in truth.rows if row.kind == "file" and row.unwritten]
    chosen = [*rng.sample(data, 150), *rng.sample(shared, 30), *free[:3], *unwritten[:3]]
    bad = []
    original = truth.image.read_bytes()
    for row in chosen:
        start = row.start + rng.randrange(row.length // SECTOR) * SECTOR
        end = min(start + rng.randint(1, 20) * SECTOR, row.end)
        # What holds zeros anyway differs in nothing when it is lost.
        sectors = range(start, end, SECTOR)
        if row not in data or all(any(original[at : at + SECTOR]) for at in sectors):
            bad.append(ByteRange(start, end - start))
    rescued, rescue_map = tmp_path / "rescued.img", tmp_path / "rescued.map"
    with failing_device(truth.image, tmp_path / "media", bad) as device:
        run(["ddrescue", "--sector-size=512", "--sparse", device, rescued, rescue_map])
    # What ddrescue found bad is what was bad, to the sector.
    lines = (line.split() for line in rescue_map.read_text().splitlines() if "-" in line.split())
    found = [ByteRange(int(start, 16), int(length, 16)) for start, length, _ in lines]
    assert found == merge(bad)
    options = ["--mapfile", str(rescue_map), "--summary", "--json"]
    answer = subprocess.run(
        [sys.executable, "-m", "whoseblock", "lookup", str(rescued), *options],
        capture_output=True,
        check=True,
    )
    told = json.loads(answer.stdout)
    damaged = {file["inode"] for file in told["files"] if file["data_bytes"]}
    before, after = contents(truth.image), contents(rescued)
    differing = {inode for inode, digest in before.items() if after[inode] != digest}
    assert damaged == differing
    assert len(damaged) > 20
    assert told["complete"] is True
    assert sum(told["totals"].values()) == told["bytes"]
    for file in told["files"]:
        assert sorted(file["paths"]) == sorted(truth.inodes[file["inode"]].paths)
