"""Every profile on several devices: each sector and each tagged block the kernel wrote."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.btrfs_damage import lies
from tests.support.btrfs_devices import Filesystem, make_filesystem, tag_of
from tests.support.btrfs_images import SECTOR, differences
from tests.support.tools import need_loop_mounts, run

from whoseblock.fs.base import Answer, FileOwner, MetadataOwner, Outside, Owner, Unreferenced
from whoseblock.fs.btrfs.chunks import ChunkMap
from whoseblock.fs.btrfs.driver import DRIVER
from whoseblock.fs.btrfs.filesystem import BtrfsFilesystem
from whoseblock.fs.btrfs.format.items import ChunkItem
from whoseblock.media.device import FileMedia

STRIPE = 64 << 10
MIB = 1 << 20


def convert(root: Path) -> None:
    """Convert a part of the data, and leave the rest in its old profile."""
    (root / "more").write_bytes(bytes(range(256)) * (60 * MIB // 256))
    os.sync()
    run(["btrfs", "balance", "start", "-f", "-dconvert=raid5,limit=1", "-mconvert=dup", root])


#: By name: the number of devices and the options of mkfs.btrfs.
FORMS: dict[str, tuple[int, str]] = {
    "RAID6, RAID1C4": (6, "-d raid6 -m raid1c4"),
    "RAID5, RAID1C3": (5, "-d raid5 -m raid1c3"),
    "RAID10": (4, "-d raid10 -m raid10"),
    "RAID0, RAID5": (3, "-d raid0 -m raid5"),
    "single, RAID6": (3, "-d single -m raid6"),
    "mixed RAID1": (2, "--mixed -d raid1 -m raid1"),
    "RAID1, half converted": (3, "-d raid1 -m raid1"),
}


@pytest.fixture(scope="module", params=FORMS)
def filesystem(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Filesystem]:
    """Provide a filesystem of each form; its images are removed in the end."""
    need_loop_mounts()
    count, options = FORMS[request.param]
    change = convert if "converted" in request.param else lambda _: None
    size = (300 if "converted" in request.param else 128) * MIB
    folder = tmp_path_factory.mktemp("btrfs")
    found = make_filesystem(folder, count, *options.split(), size=size, change=change)
    if "converted" in request.param:
        profiles = {profile for _, profile, _ in found.dump.profiles.values()}
        assert profiles >= {"RAID1", "RAID5", "DUP"}
    yield found
    for image in found.images:
        image.unlink()


def opened(images: Sequence[Path], first: int = 0) -> BtrfsFilesystem:
    """Open the filesystem on images; ranges are of the one with the index ``first``."""
    order = [images[first], *(image for image in images if image != images[first])]
    volume = DRIVER.open([FileMedia(image) for image in order], {})
    assert isinstance(volume, BtrfsFilesystem)
    return volume


def whole(images: Sequence[Path], first: int = 0) -> Answer:
    """Ask about all of a device."""
    with closing(opened(images, first)) as fs:
        (answer,) = fs.owners_many([(0, fs.device_size)])
    return answer


def test_every_sector_and_every_tagged_block(filesystem: Filesystem) -> None:
    raws = {str(image): image.read_bytes() for image in filesystem.images}
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    parity = 0
    for number, image in enumerate(filesystem.images):
        answer = whole(filesystem.images, number)
        assert answer.complete, answer.notes
        assert differences(filesystem.truths[number], answer) == []
        rows = by_sector(answer)
        raw = raws[str(image)]
        for at in range(0, len(raw), SECTOR):
            tag = tag_of(raw[at : at + SECTOR])
            if tag is None:
                continue
            for row in rows[at // SECTOR]:
                parity += isinstance(row, Outside)
                if not isinstance(row, FileOwner):
                    # Parity of a row with one block, or what was overwritten.
                    continue
                assert isinstance(row.paths, tuple)
                assert row.file_offset is not None
                if row.unlinked is not True:
                    offset = row.file_offset + max(at - row.start, 0)
                    assert (row.paths[0].rpartition("/")[2], offset) == tag
                    found[tag].add(f"{image} {at}")
                copies = row.copies if isinstance(row.copies, tuple) else ()
                for copy in copies:
                    start = copy.start + max(at - row.start, 0)
                    assert tag_of(raws[copy.layer][start : start + SECTOR]) == tag
                    found[tag].add(f"{copy.layer} {start}")
    assert len(found) > 2500
    profiles = {profile for _, profile, _ in filesystem.dump.profiles.values()}
    assert parity == 0 or profiles & {"RAID5", "RAID6"}


def by_sector(answer: Answer) -> dict[int, list[Owner]]:
    """Return the rows of each sector."""
    rows: dict[int, list[Owner]] = defaultdict(list)
    for row in answer:
        for sector in range(row.start // SECTOR, -(-(row.start + row.length) // SECTOR)):
            rows[sector].append(row)
    return rows


def test_a_logical_address_has_the_owners_of_its_places(filesystem: Filesystem) -> None:
    with closing(opened(filesystem.images)) as fs:
        space = fs.logical_addresses()
        rows = [
            row
            for row in fs.owners(0, fs.device_size)
            if isinstance(row, FileOwner | Unreferenced)
            or (isinstance(row, MetadataOwner) and row.what == "tree")
        ]
        assert len(rows) > 20
        for row in rows[:: max(len(rows) // 50, 1)]:
            assert isinstance(row.logical, int)
            (same,) = space.owners_many([(row.logical, 1)])
            twin = next(one for one in same if isinstance(one, type(row)))
            assert isinstance(twin.copies, tuple)
            assert (str(filesystem.images[0]), row.start) in {
                (one.layer, one.start) for one in twin.copies
            }
            if isinstance(row, FileOwner):
                assert row.file_offset is not None
                places = list(fs.locate_in_file(row.file, row.file_offset, SECTOR))
                assert any(at <= row.logical < at + size for at, size in places)
                files = {one.file for one in same if isinstance(one, FileOwner)}
                assert row.file in files
        (beyond,) = space.owners_many([(0, 1)])
        assert [one.kind for one in beyond] == ["outside"]


def test_without_one_device(filesystem: Filesystem) -> None:
    """Read the metadata from copies on the other devices, or rebuild it from parity."""
    answer = whole(filesystem.images[:-1])
    assert lies(filesystem.truths[0], answer) == []
    profiles = {profile for _, profile, _ in filesystem.dump.profiles.values()}
    if "DUP" not in profiles:
        assert differences(filesystem.truths[0], answer) == []
        # Of two mirrors, the other may have been changed alone.
        assert answer.complete is (len(filesystem.images) > 2), answer.notes
        missing = copies_on(answer, f"missing device {len(filesystem.images)}")
        assert missing == copies_on(whole(filesystem.images), str(filesystem.images[-1]))


def test_without_any_two_devices_of_raid6(tmp_path: Path) -> None:
    """Rebuild metadata from P and Q."""
    need_loop_mounts()
    made = make_filesystem(tmp_path, 5, "-d", "raid6", "-m", "raid6")
    for lost in combinations(range(5), 2):
        kept = [image for number, image in enumerate(made.images) if number not in lost]
        answer = whole(kept)
        assert answer.complete, (lost, answer.notes)
        first = made.images.index(kept[0])
        assert differences(made.truths[first], answer) == []


def copies_on(answer: Answer, layer: str) -> list[tuple[int, int]]:
    """Return the start of each row with a copy on a layer, and where that is."""
    return sorted(
        (row.start, copy.start)
        for row in answer
        if isinstance(row.copies, tuple)
        for copy in row.copies
        if copy.layer == layer
    )


PROFILES = {0: 1, 0x8: 3, 0x10: 2, 0x20: 2, 0x40: 6, 0x80: 5, 0x100: 6, 0x200: 3, 0x400: 4}


@given(
    st.sampled_from(sorted(PROFILES)), st.integers(1, 9), st.integers(1, 4), st.integers(0, 1 << 30)
)
def test_both_directions_agree(profile: int, stripes: int, rows: int, at: int) -> None:
    """Follow a logical address to its places, and each place back to the address."""
    parities = {0x80: 1, 0x100: 2}.get(profile, 0)
    count = stripes if profile in (0x8, 0x80, 0x100) else PROFILES[profile]
    count = stripes * 2 if profile == 0x40 else max(count, 1 + parities)
    # With one stripe of data, its parity is a copy.
    copied = parities and count == 1 + parities
    width = {0x8: count, 0x40: count // 2}.get(profile, count - parities if parities else 1)
    chunks = ChunkMap(4096)
    places = tuple((1 if profile == 0x20 else n + 1, (n + 1) << 30) for n in range(count))
    length = width * rows * STRIPE
    chunks.add(1 << 40, ChunkItem(length, STRIPE, 1 | profile, 2 if profile == 0x40 else 1, places))
    chunks.finish()
    assert not chunks.faults
    chunk = chunks.find(1 << 40)
    assert chunk is not None
    logical = chunk.start + at % length
    (part,) = chunk.parts(logical, 1)
    copies = [choice[0][0] for choice in part.choices if len(choice) == 1]
    assert len(set(copies)) == chunk.profile.copies or copied
    for device, start in copies:
        (run_,) = chunks.runs(device, start, start + 1)
        assert run_.chunk == chunk
        (cell,) = chunk.cells(run_.number, start, start + 1)
        assert (cell.logical, cell.parity) == (logical, "") or (copied and cell.parity)
    total = 0
    for number, (_, offset) in enumerate(places):
        for cell in chunk.cells(number, offset, offset + chunk.stripe_length):
            total += 0 if cell.parity else cell.length
    assert total == length * chunk.profile.copies


@pytest.mark.parametrize(
    ("kind", "sub", "count", "length", "why"),
    [
        (1 | 0x10, 1, 3, 1 << 20, "profile RAID1 with 3 stripes"),
        (1 | 0x18, 1, 2, 1 << 20, "unknown profile 0x18"),
        (1 | 0x20, 1, 2, 1 << 20, "profile DUP on several devices"),
        (1 | 0x40, 2, 3, 1 << 20, "profile RAID10 with 3 stripes"),
        (1 | 0x40, 1, 4, 1 << 20, "1 of which are equal"),
        (1 | 0x80, 1, 4, 1 << 20, "its length is not that of whole stripes"),
        (0, 1, 1, 1 << 20, "invalid length, place or type"),
    ],
)
def test_what_is_not_followed(kind: int, sub: int, count: int, length: int, why: str) -> None:
    chunks = ChunkMap(4096)
    places = tuple((number + 1, MIB) for number in range(count))
    chunks.add(1 << 30, ChunkItem(length, STRIPE, kind, sub, places))
    chunks.finish()
    assert chunks.find(1 << 30) is None
    assert why in chunks.faults[0]
