"""Partition tables against sfdisk, which wrote them; and damaged ones."""

import json
import struct
import subprocess
import tracemalloc
import zlib
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.disk_images import partition
from tests.support.mounts import loop_device
from tests.support.tools import program, run
from tests.support.xfs_images import MIB, sparse_file

from whoseblock.media.device import FileMedia
from whoseblock.media.pmem import EmulatedPmem
from whoseblock.ranges import ByteRange
from whoseblock.stack.base import descend
from whoseblock.stack.formats.partitions import Partition, PartitionTable, read_partition_table
from whoseblock.target import Target, TargetOptions

SECTOR = 512
SECTORS = 64 * MIB // SECTOR
#: Where sfdisk lets the first partition of a GPT begin, and how much it keeps at the end.
FIRST, KEPT = 34, 34


class Layout(NamedTuple):
    label: str
    script: str


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Return tables with partitions at any sector, of any size, in ascending order."""
    label = draw(st.sampled_from(["gpt", "dos"]))
    most = draw(st.integers(1, 20)) if label == "gpt" else draw(st.integers(1, 3))
    edges = sorted(draw(st.sets(st.integers(2048, 40_000), min_size=2 * most, max_size=2 * most)))
    lines = [
        f"start={start}, size={end - start}"
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    if label == "dos" and draw(st.booleans()):
        logical = draw(st.integers(1, 6))
        lines.append("start=50001, size=70000, type=5")
        at = 50001
        for _ in range(logical):
            at += draw(st.integers(2049, 4500))
            size = draw(st.integers(1, 5000))
            lines.append(f"start={at}, size={size}, type=83")
            at += size + 1
    return Layout(label, f"label: {label}\n" + "\n".join(lines) + "\n")


def made(layout: Layout, folder: Path) -> Path:
    program("sfdisk")  # before there is an image without a table
    image = sparse_file(folder / "disk.img", SECTORS * SECTOR)
    partition(image, layout.script)
    return image


def by_sfdisk(image: Path) -> list[tuple[int, int, int]]:
    """Return number, start and length of every partition, extended ones excepted."""
    done = subprocess.run([program("sfdisk"), "--json", image], capture_output=True, check=False)
    if done.returncode:
        return []
    table = json.loads(done.stdout)["partitiontable"]
    unit = table.get("sectorsize", SECTOR)
    return [
        (
            int(str(part["node"]).removeprefix(str(image))),
            part["start"] * unit,
            part["size"] * unit,
        )
        for part in table.get("partitions", [])
        if part["type"] not in ("5", "f", "85")
    ]


def ours(partitions: tuple[Partition, ...]) -> list[tuple[int, int, int]]:
    return [(part.number, part.start, part.length) for part in partitions]


def read(image: Path) -> PartitionTable:
    with closing(FileMedia(image)) as media:
        table = read_partition_table(media)
    assert table is not None
    return table


@settings(max_examples=60)
@given(layout=layouts())
def test_every_table_agrees_with_sfdisk(
    layout: Layout, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = made(layout, tmp_path_factory.mktemp("disk"))
    table = read(image)
    assert ours(table.partitions) == by_sfdisk(image)
    assert table.kind == {"gpt": "gpt", "dos": "mbr"}[layout.label]
    assert table.notes == ()
    # No part of the table is said to be in a partition, nor the other way round.
    spans = [(part.start, part.start + part.length) for part in table.partitions]
    spans += [(one.start, one.start + one.length) for one in table.structures]
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


DISK = Layout("gpt", "label: gpt\nstart=2050, size=10001\nstart=20000, size=3333, name=two\n")
LOGICAL = Layout(
    "dos",
    "label: dos\nstart=63, size=10001\nstart=20001, size=90000, type=5\n"
    "start=20064, size=3333\nstart=30077, size=3333\nstart=50077, size=4444\n",
)


@pytest.mark.parametrize("layout", [DISK, LOGICAL], ids=["gpt", "mbr"])
@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_table_is_never_read_as_another(
    layout: Layout, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"damaged-{layout.label}"
    folder.mkdir(exist_ok=True)
    image = folder / "disk.img"
    if not image.exists():
        made(layout, folder)
    right = read(image)
    table_sectors = sorted(
        {
            sector
            for one in right.structures
            for sector in range(one.start // SECTOR, (one.start + one.length) // SECTOR)
        }
    )
    lost = data.draw(st.sets(st.sampled_from(table_sectors), min_size=1, max_size=6))
    poison = [ByteRange(at * SECTOR, SECTOR) for at in lost]
    with closing(EmulatedPmem(FileMedia(image), poison)) as media:
        table = read_partition_table(media)
    if table is None:
        return
    known = set(ours(right.partitions))
    assert set(ours(table.partitions)) <= known
    if set(ours(table.partitions)) < known:
        # What is not known any more is not said to be no partition.
        unsure = [one for one in table.structures if not one.certain]
        for _, start, length in known - set(ours(table.partitions)):
            assert any(
                one.start <= start and start + length <= one.start + one.length for one in unsure
            )
        assert table.notes


def test_a_gpt_whose_primary_is_lost_is_read_from_its_backup(tmp_path: Path) -> None:
    image = made(DISK, tmp_path)
    right = read(image)
    with closing(EmulatedPmem(FileMedia(image), [ByteRange(0, 34 * SECTOR)])) as media:
        table = read_partition_table(media)
    assert table is not None
    assert table.partitions == right.partitions
    assert table.notes == ("the primary GPT is invalid: the backup is used",)


def test_a_changed_byte_in_a_gpt_is_detected(tmp_path: Path) -> None:
    image = made(DISK, tmp_path)
    right = read(image)
    with image.open("r+b") as file:
        file.seek(2 * SECTOR + 32)
        file.write(b"\xff")
    table = read(image)
    assert table.partitions == right.partitions
    assert table.notes


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "disk.img", 64 * MIB)
    program("sgdisk")
    with loop_device(image, "--sector-size=4096") as loop:
        run(["sgdisk", "--set-alignment=1", "--new=1:301:1000", "--new=3:2000:2999", loop])
    assert ours(read(image).partitions) == [
        (1, 301 * 4096, 700 * 4096),
        (3, 2000 * 4096, 1000 * 4096),
    ]


def test_a_boot_sector_of_a_filesystem_is_no_table(tmp_path: Path) -> None:
    image = sparse_file(tmp_path / "fat.img", MIB)
    sector = bytearray(512)
    sector[54:62] = b"FAT16   "
    sector[446:462] = bytes([0x80, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0])
    sector[510:] = b"\x55\xaa"
    image.write_bytes(bytes(sector) + bytes(MIB - 512))
    with closing(FileMedia(image)) as media:
        assert read_partition_table(media) is None


def test_extended_boot_records_in_a_circle(tmp_path: Path) -> None:
    image = made(LOGICAL, tmp_path)
    with image.open("r+b") as file:
        file.seek(20001 * SECTOR + 446 + 16)
        link = bytearray(file.read(16))
        # The first record names itself as the next: 0 sectors from the start of the extended one.
        link[8:12] = bytes(4)
        file.seek(20001 * SECTOR + 446 + 16)
        file.write(link)
    table = read(image)
    assert [part.number for part in table.partitions] == [1, 5]
    assert "is out of range or repeated" in table.notes[0]
    assert any(not one.certain for one in table.structures)


@settings(max_examples=200)
@given(data=st.binary(min_size=512, max_size=4096))
def test_arbitrary_bytes_are_parsed_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = tmp_path_factory.getbasetemp() / "noise.img"
    image.write_bytes(data[:510] + b"\x55\xaa" + data[510:] + bytes(100_000))
    with closing(FileMedia(image)) as media:
        table = read_partition_table(media)
    for part in table.partitions if table else ():
        # A hybrid ISO image has a partition from byte 0, which Linux makes one of, too.
        assert 0 <= part.start < 512 + len(data) + 100_000
        assert part.length > 0


# ------------------------------------------------------------------ entries that do not fit


def entry(kind: int, first: int, sectors: int, boot: int = 0) -> bytes:
    """Return an entry of an MBR; sfdisk refuses to write some of those that exist."""
    return struct.pack("<B3xB3xII", boot, kind, first, sectors)


def mbr(folder: Path, *entries: bytes, size: int = MIB) -> Path:
    image = sparse_file(folder / "mbr.img", size)
    with image.open("r+b") as file:
        file.seek(446)
        file.write(b"".join(entries).ljust(64, b"\0") + b"\x55\xaa")
    return image


def by_libblkid(image: Path) -> list[tuple[int, int, int]]:
    """Return number, start and length of the partitions that libblkid finds in an image.

    They are those of Linux, with which a virtual machine agreed about each case below; Linux cuts
    them at the end of the disk, and leaves out what begins there.
    """
    columns = ["--raw", "--noheadings", "--output", "NR,START,SECTORS"]
    lines = run([program("partx"), *columns, image]).decode().splitlines()
    rows = [tuple(map(int, line.split())) for line in lines]
    return [(number, start * SECTOR, size * SECTOR) for number, start, size in rows]


#: MBRs of a disk of 2048 sectors, and what is said of them.
ODD = {
    "type 0": ([entry(0, 63, 100), entry(0x83, 200, 100)], ""),
    "interrupted copy": ([entry(0x83, 63, 500), entry(0x83, 1000, 9000)], "past the end"),
    "one past the end": ([entry(0x83, 1000, 1049)], "ends 512 bytes past the end"),
    "begins past the end": ([entry(0x83, 63, 100), entry(7, 4096, 9)], "begins past the end"),
    "empty entry": ([entry(0x83, 63, 100), entry(0x83, 0, 0), entry(0x82, 500, 0)], ""),
    "isohybrid": ([entry(0x17, 0, 1500, 0x80), entry(0xEF, 300, 40)], "overlaps"),
    "overlap": ([entry(0x83, 63, 500), entry(0x83, 400, 500), entry(0x83, 1200, 9)], "overlaps"),
}


@pytest.mark.parametrize("name", ODD)
def test_each_entry_of_an_mbr_stands_for_itself(name: str, tmp_path: Path) -> None:
    entries, said = ODD[name]
    image = mbr(tmp_path, *entries)
    table = read(image)
    words = [*table.notes, *(part.doubt for part in table.partitions)]
    assert said in " ".join(words)
    assert bool(said) == any(words)
    assert ours(table.partitions) == [row for row in by_libblkid(image) if row[1] < MIB]


def test_only_partitions_that_overlap_are_doubted(tmp_path: Path) -> None:
    table = read(mbr(tmp_path, *ODD["overlap"][0]))
    assert [bool(part.doubt) for part in table.partitions] == [True, True, False]


def gpt_with(image: Path, *entries: tuple[int, int]) -> None:
    """Replace the entries of both tables, and make the checksums right again."""
    with image.open("r+b") as file:
        for header_at in (SECTOR, image.stat().st_size - SECTOR):
            file.seek(header_at)
            header = bytearray(file.read(92))
            (at,) = struct.unpack_from("<Q", header, 72)
            array = b"".join(
                struct.pack("<16s16sQQQ72s", b"t" * 16, b"u" * 16, first, last, 0, b"")
                for first, last in entries
            ).ljust(128 * 128, b"\0")
            file.seek(at * SECTOR)
            file.write(array)
            struct.pack_into("<I", header, 88, zlib.crc32(array))
            struct.pack_into("<I", header, 16, 0)
            struct.pack_into("<I", header, 16, zlib.crc32(header))
            file.seek(header_at)
            file.write(header)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([(0, SECTORS - 1)], "overlaps the partition table"),
        ([(34, SECTORS - 34)] * 128, "overlaps partition"),
        ([(0, SECTORS - 1)] * 128, "overlaps"),
        ([(2048, 4095), (1 << 55, 1 << 56), (1 << 63, (1 << 64) - 1)], "begins past the end"),
        ([(2048, (1 << 64) - 1)], "bytes past the end"),
    ],
    ids=["from 0", "128 of all", "128 from 0", "beyond 2**63", "without end"],
)
def test_a_hostile_gpt_is_bounded(
    entries: list[tuple[int, int]], said: str, tmp_path: Path
) -> None:
    image = made(DISK, tmp_path)
    gpt_with(image, *entries)
    table = read(image)
    assert any(said in one for one in (*table.notes, *(part.doubt for part in table.partitions)))
    tracemalloc.start()
    try:
        with Target(str(image), TargetOptions()) as target:
            assert target.root is not None
            for start in (0, 2048 * SECTOR, 63 * MIB):
                found = list(descend(target.root, start, 4096))
                # None of the partitions has content, so that the only certain answer is a table.
                assert all(one.doubts or one.layer or "GPT" in one.what or "MBR" in one.what
                           or one.what == "unpartitioned" for one in found)  # fmt: skip
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
