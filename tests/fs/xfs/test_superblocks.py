"""The choice of a superblock if copies and headers disagree with the first one."""

import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.filled_images import by_kernel
from tests.support.image_damage import Overlay
from tests.support.mounts import mounted
from tests.support.tools import Missing, need_loop_mounts, run, xfsprogs
from tests.support.truth import Truth
from tests.support.xfs_images import MIB, Geometry, make_image

import whoseblock
from whoseblock.errors import OutOfDeviceError
from whoseblock.fs.base import Answer
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media import FileMedia

SIZE = 96 * MIB
#: Of groups of 24 MiB: the last one whole, or half.
ENDS = {"whole": 96 * MIB, "half": 90 * MIB}
GROUP = 24 * MIB
MORE = ("-d", f"agsize={GROUP}")


def first_sector(image: Path) -> bytes:
    with image.open("rb") as file:
        return file.read(512)


def put(image: Path, start: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(start)
        file.write(data)


def fill(root: bytes, megabytes: int) -> None:
    for number in range(megabytes):
        with open(root + b"/file-%d" % number, "wb") as file:
            file.write(os.urandom(4096) * 256)


def files_of(truth: Truth) -> list[tuple[int, int]]:
    return [(row.start, row.length) for row in truth.rows if row.kind == "file"]


def kinds(answer: Answer) -> set[str]:
    return {row.kind for row in answer.owners}


# ---------------------------------------------------------------------- stale superblocks


@pytest.fixture(params=[*ENDS])
def grown(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes, int]:
    """Provide a grown filesystem, its old superblock, and its old end."""
    need_loop_mounts()
    end = ENDS[request.param]
    geometry = Geometry("grown", size=end, beyond=200 * MIB - end, more=MORE)
    image = make_image(tmp_path / "grown.img", geometry)
    before = first_sector(image)
    with mounted(image) as root:
        run([xfsprogs("xfs_growfs", newest=False), "-D", str(180 * MIB // 4096), os.fsdecode(root)])
        fill(root, 100)
    return image, before, end


def test_a_superblock_from_before_the_filesystem_was_grown(
    grown: tuple[Path, bytes, int],
) -> None:
    image, before, end = grown
    truth = by_kernel(image)
    beyond = [question for question in files_of(truth) if question[0] >= end]
    assert beyond
    asked = [(row.start, row.length) for row in truth.rows]
    with whoseblock.open(image) as fs:
        right = list(fs.owners_many(asked))
        assert all(answer.complete for answer in right)
    put(image, 0, before)
    with whoseblock.open(image) as fs:
        assert fs.size == 180 * MIB
        found = list(fs.owners_many(asked))
        assert [answer.owners for answer in found] == [answer.owners for answer in right]
        for answer in found:
            assert not answer.complete
            assert any(str(end) in note and str(fs.size) in note for note in answer.notes)
        for question in beyond[:20]:
            assert kinds(fs.owners(*question)) == {"file"}
        last = fs.owners(fs.size, 4096)
        assert kinds(last) == {"outside"}
        assert not last.complete


def test_only_the_header_of_a_later_group_says_that_it_was_grown(
    grown: tuple[Path, bytes, int],
) -> None:
    image, before, end = grown
    put(image, 0, before)
    # Every copy is lost, or from before.
    with image.open("r+b") as file:
        for start in range(GROUP, 200 * MIB, GROUP):
            file.seek(start)
            file.write(bytes(512))
    with whoseblock.open(image) as fs:
        assert fs.size == end
        answer = fs.owners(end, 4096)
        assert kinds(answer) == {"unknown"}
        assert not answer.complete
        assert any(str(end) in note for note in answer.notes)
        # The counters are as old, and they are the only word against the AGFs.
        other = fs.owners(0, 512)
        assert not other.complete
        assert all("the superblock counts" in note for note in other.notes)


def test_a_larger_device_without_a_trace_of_a_larger_filesystem(tmp_path: Path) -> None:
    for end in ENDS.values():
        geometry = Geometry("small", size=end, beyond=60 * MIB, more=MORE)
        image = make_image(tmp_path / "small.img", geometry)
        with whoseblock.open(image) as fs:
            answer = fs.owners(end - 4096, 4096 * 2)
            assert answer.complete
            assert answer.owners[-1].kind == "outside"
            assert fs.owners(end + GROUP, 4096).complete
            with pytest.raises(OutOfDeviceError):
                fs.owners(end + 60 * MIB, 1)
        image.unlink()


def test_garbage_behind_the_filesystem_is_no_trace(tmp_path: Path) -> None:
    # The headers of another filesystem, where this one's next group would be.
    geometry = Geometry("small", size=ENDS["whole"], beyond=60 * MIB, more=MORE)
    image = make_image(tmp_path / "small.img", geometry)
    other = make_image(tmp_path / "other.img", Geometry("other", size=SIZE * 2, more=MORE))
    with other.open("rb") as file:
        file.seek(ENDS["whole"])
        put(image, ENDS["whole"], file.read(4096))
    with whoseblock.open(image) as fs:
        answer = fs.owners(ENDS["whole"], 4096)
        assert answer.complete
        assert kinds(answer) == {"outside"}


def test_a_superblock_from_before_the_filesystem_was_shrunk(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "shrunk.img", Geometry("shrunk", size=SIZE, more=MORE))
    before = first_sector(image)
    growfs = xfsprogs("xfs_growfs")
    with mounted(image) as root:
        command: list[str | Path] = [growfs, "-D", str((SIZE - 4 * MIB) // 4096), os.fsdecode(root)]
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise Missing(f"this kernel does not shrink: {done.stderr.decode(errors='replace')}")
    with whoseblock.open(image) as fs:
        end = fs.size
        assert end == SIZE - 4 * MIB
        past = fs.owners(end, 4096)
        assert past.complete
        assert kinds(past) == {"outside"}
    truth = by_kernel(image)
    asked = [(row.start, row.length) for row in truth.rows if row.end <= end]
    with whoseblock.open(image) as fs:
        right = list(fs.owners_many(asked))
    put(image, 0, before)
    with whoseblock.open(image) as fs:
        found = list(fs.owners_many(asked))
        assert [answer.owners for answer in found] == [answer.owners for answer in right]
        assert not any(answer.complete for answer in found)
        past = fs.owners(end, 4096)
        assert kinds(past) == {"unknown"}
        assert not past.complete


def test_a_copy_that_missed_the_growth_is_not_used(grown: tuple[Path, bytes, int]) -> None:
    image, before, _ = grown
    # xfs_growfs ended before it wrote the copy of the group that is now the last.
    put(image, 7 * GROUP, before)
    with whoseblock.open(image) as fs:
        assert fs.size == 180 * MIB
        answer = fs.owners(fs.size - 4096, 8192)
        assert answer.complete
        assert answer.owners[-1].kind == "outside"


# ---------------------------------------------------------------------- former filesystems

#: The options of mkfs.xfs for the first filesystem, and for the second.
FORMER: list[tuple[Geometry, Geometry]] = [
    (Geometry("four", size=300 * MIB, groups=4), Geometry("three", size=300 * MIB, groups=3)),
    (Geometry("two", size=300 * MIB, groups=2), Geometry("odd", size=300 * MIB, group_blocks=9001)),
    (
        Geometry("1k", size=300 * MIB, groups=4, block=1024),
        Geometry("4k", size=300 * MIB, groups=5, sector=4096),
    ),
    (
        Geometry("4k", size=300 * MIB, groups=4),
        Geometry("1k", size=300 * MIB, group_blocks=61_003, block=1024),
    ),
    (
        Geometry("small", size=200 * MIB, beyond=100 * MIB, groups=4),
        Geometry("large", size=300 * MIB, groups=4, inode=1024),
    ),
]


@pytest.fixture(params=range(len(FORMER)))
def twice(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Provide an image that mkfs.xfs was run on twice.

    It wipes the copies of a filesystem whose first superblock it recognises; so that one is lost
    in between, as another filesystem or wipefs would have it.
    """
    before, after = FORMER[request.param]
    image = make_image(tmp_path / "twice.img", before)
    put(image, 0, bytes(4096))
    # Without -K mkfs.xfs would discard what was there, which a disk does not do.
    run([xfsprogs("mkfs.xfs"), "-q", "-f", "-K", "--unsupported", *after.options(), image])
    return image


def identity(image: Path | Overlay) -> tuple[str, int]:
    with whoseblock.open(image) as fs:
        assert isinstance(fs, XfsFilesystem)
        return fs.identity, fs.size


def test_a_former_filesystem_does_not_matter_to_an_intact_one(twice: Path) -> None:
    media = FileMedia(twice)
    with whoseblock.open(twice) as fs:
        for start in range(0, fs.size, 5 * MIB):
            answer = fs.owners(start, 4096)
            assert answer.complete, answer.notes
        size = media.size
        if size > fs.size:
            assert fs.owners(fs.size, size - fs.size).complete
    media.close()


@pytest.mark.parametrize("lost", [512, 4096, 65536, 1 << 20])
def test_the_copy_of_a_former_filesystem_is_not_used(twice: Path, lost: int) -> None:
    right = identity(twice)
    patched = Overlay(FileMedia(twice), {0: bytes(lost)})
    with whoseblock.open(patched) as fs:
        assert isinstance(fs, XfsFilesystem)
        assert (fs.identity, fs.size) == right
        answer = fs.owners(fs.size // 2, 4096)
        assert not answer.complete


def test_a_copy_that_no_header_confirms(tmp_path: Path) -> None:
    image = make_image(tmp_path / "bare.img", Geometry("bare", size=SIZE, groups=4))
    with closing(FileMedia(image)) as media:
        patches = {group * SIZE // 4 + 512: bytes(3 * 512) for group in range(4)}
        with whoseblock.open(Overlay(media, patches | {0: bytes(4096)})) as fs:
            notes = fs.owners(0, 512).notes
    assert any("may be of a former filesystem: 1 of 7" in note for note in notes), notes


def test_a_filesystem_whose_uuid_was_changed(tmp_path: Path) -> None:
    image = make_image(tmp_path / "renamed.img", Geometry("renamed", size=300 * MIB, groups=4))
    before = first_sector(image)
    run([xfsprogs("xfs_admin"), "-U", "generate", image])
    right = identity(image)
    with whoseblock.open(image) as fs:
        assert fs.owners(0, 300 * MIB).complete
    with closing(FileMedia(image)) as media:
        for lost in (512, 4096):
            assert identity(Overlay(media, {0: bytes(lost)})) == right
        # The first superblock missed it: its UUID is old, and everything else is right.
        with whoseblock.open(Overlay(media, {0: before})) as fs:
            assert fs.size == 300 * MIB
            assert kinds(fs.owners(299 * MIB, MIB)) == {"free"}
