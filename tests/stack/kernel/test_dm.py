"""Device-mapper's tables: as text, as the kernel's ioctl gives them, and byte by byte."""

import contextlib
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.machine_snapshots import FIXTURES

from whoseblock.errors import UnsupportedError
from whoseblock.stack.base import Layer, descend
from whoseblock.stack.kernel.dm import (
    DmTarget,
    add_mirror_states,
    cut_dm_segments,
    decode_dm_table,
    parse_dm_table,
)

SECTOR = 512


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.sampled_from(["8:1", "8:2"]), st.integers(0, 200)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["8:1", "8:2"]),
)
def test_linear_tables_byte_by_byte(lines: list[tuple[int, str, int]], device: str) -> None:
    # Where each sector of a device is in the volume: by the table, and by going through it.
    text, at = "", 0
    truth: dict[int, set[int]] = {}
    for length, on, start in lines:
        text += f"{at} {length} linear {on} {start}\n"
        for sector in range(length if on == device else 0):
            truth.setdefault(start + sector, set()).add(at + sector)
        at += length
    disk = Layer("disk", 512 * SECTOR, "disk", gap="gap")
    volume = Layer("volume", at * SECTOR, "volume")
    disk.segments = list(cut_dm_segments(device, disk.size, volume, parse_dm_table(text)))
    if not disk.segments:
        assert truth == {}
        return
    for sector in range(300):
        found = {
            landing.offset // SECTOR
            for landing in descend(disk, sector * SECTOR, SECTOR)
            if landing.layer is volume
        }
        assert found == truth.get(sector, set())


@given(
    stripes=st.integers(1, 5),
    chunk=st.sampled_from([1, 8, 128]),
    rows=st.integers(1, 6),
    which=st.integers(0, 4),
)
def test_striped_tables_byte_by_byte(stripes: int, chunk: int, rows: int, which: int) -> None:
    length = stripes * chunk * rows
    pairs = " ".join(f"8:{number} {100 + number}" for number in range(stripes))
    table = parse_dm_table(f"0 {length} striped {stripes} {chunk} {pairs}")
    which %= stripes
    disk, volume = Layer("disk", 1 << 30, "disk"), Layer("volume", length * SECTOR, "volume")
    disk.segments = list(cut_dm_segments(f"8:{which}", disk.size, volume, table))
    for sector in range(length):
        number, within = divmod(sector, chunk)
        row, column = divmod(number, stripes)
        if column == which:
            start = (100 + which + row * chunk + within) * SECTOR
            (landing,) = descend(disk, start, 1)
            assert (landing.layer, landing.offset) == (volume, sector * SECTOR)


@given(st.text(alphabet="0123456789: linearstpd\n-", max_size=200))
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    try:
        targets = parse_dm_table(text)
    except UnsupportedError:
        return
    volume = Layer("volume", 1 << 40, "volume")
    for segment in cut_dm_segments("8:1", 1 << 20, volume, targets):
        assert segment.length >= 0


def encoded(targets: list[DmTarget], *, room: int = 0) -> bytes:
    """Write targets as the kernel does: each names where the next begins."""
    body = b""
    for target in targets:
        text = " ".join(target.arguments).encode() + b"\0"
        text += bytes(-len(text) % 8)
        following = len(body) + 40 + len(text)
        start, length = target.start // SECTOR, target.length // SECTOR
        body += pack("<QQiI16s", start, length, 0, following, target.kind.encode()) + text
    size = 312 + len(body) + room
    head = pack("<3I2IIiII I Q", 4, 0, 0, 312 + len(body), 312, len(targets), 0, 0, 0, 0, 0)
    return (head.ljust(312, b"\0") + body).ljust(size, b"\0")


def test_the_ioctl_and_the_text_of_dmsetup_agree() -> None:
    lines: dict[str, str] = {}
    for line in (FIXTURES / "lvm-tables.txt").read_text().splitlines():
        name, _, table = line.partition(": ")
        lines[name] = lines.get(name, "") + table + "\n"
    for table in lines.values():
        targets = parse_dm_table(table)
        if all(target.kind != "crypt" for target in targets):
            assert decode_dm_table(encoded(targets, room=100)) == targets


def test_targets_that_lead_back_are_refused() -> None:
    # Three targets in a ring were decoded a million times, in 400 MiB.
    ring = bytearray(encoded([DmTarget(0, SECTOR, "linear", ("8:1", "0"))] * 3))
    ring[20:24] = (1 << 20).to_bytes(4, "little")
    ring[312 + 2 * 48 + 20 : 312 + 2 * 48 + 24] = bytes(4)
    with pytest.raises(UnsupportedError, match="earlier target"):
        decode_dm_table(bytes(ring))


def test_an_encryption_key_is_not_kept() -> None:
    crypt = DmTarget(0, SECTOR, "crypt", ("aes-xts-plain64", "secret", "0", "8:1", "0"))
    (target,) = decode_dm_table(encoded([crypt]))
    assert "secret" not in target.arguments
    assert target.arguments[3:] == ("8:1", "0")


@given(st.binary(min_size=312, max_size=600))
def test_an_arbitrary_answer_is_parsed_or_refused(answer: bytes) -> None:
    with contextlib.suppress(UnsupportedError):
        decode_dm_table(answer)


@pytest.mark.parametrize(
    ("state", "doubted"),
    [("2 8:2 8:1 3/8 1 AA 1 core", True), ("2 8:2 8:1 8/8 1 AA 1 core", False), ("2 8:2", True)],
)
def test_the_destination_of_a_pvmove_is_doubted_until_it_is_a_copy(
    state: str, *, doubted: bool
) -> None:
    table = parse_dm_table("0 64 mirror core 1 8 2 8:2 0 8:1 16")
    targets = add_mirror_states(table, parse_dm_table(f"0 64 mirror {state}"))
    for device, start, doubts in (("8:2", 0, False), ("8:1", 16, doubted)):
        disk, volume = Layer("disk", 1 << 20, "disk"), Layer("volume", 64 * SECTOR, "volume")
        disk.segments = list(cut_dm_segments(device, disk.size, volume, targets))
        (found,) = descend(disk, start * SECTOR, 512)
        assert found.layer is volume
        assert bool(found.doubts) == doubts
        # A copy that is not whole is no remedy.
        assert bool(found.remarks) != doubts


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("0 8 crypt aes-xts-plain64 000 0 8:1 16", 16),
        ("0 8 flakey 8:1 16 1 1", 16),
        ("0 8 delay 8:1 16 100", 16),
        ("0 8 mirror core 2 64 nosync 2 8:2 0 8:1 16 1 handle_errors", 16),
        ("0 8 raid raid1 3 0 region_size 1024 2 8:2 8:3 8:4 8:1", 0),
        ("0 8 multipath 0 0 1 1 service-time 0 2 1 8:2 1 8:1 1", 0),
        ("0 8 snapshot-origin 8:1", 0),
    ],
)
def test_targets_that_do_not_transform_data(line: str, start: int) -> None:
    disk, volume = Layer("disk", 1 << 20, "disk"), Layer("volume", 8 * SECTOR, "volume")
    disk.segments = list(cut_dm_segments("8:1", disk.size, volume, parse_dm_table(line)))
    (landing,) = descend(disk, start * SECTOR + 3, 1)
    assert (landing.layer, landing.offset) == (volume, 3)


@pytest.mark.parametrize(
    "line",
    [
        "0 8 thin-pool 8:2 8:1 128 0",
        "0 8 snapshot 8:1 8:2 P 8",
        "0 8 raid raid5_ls 3 128 region_size 1024 3 - 8:1 - 8:2 - 8:3",
        "0 8 cache 8:1 8:2 8:3 512 0 default 0",
        "0 8 linear 8:1",
        "0 8 striped 2 128 8:1 0",
    ],
)
def test_targets_that_are_not_followed_are_unknown(line: str) -> None:
    disk, volume = Layer("disk", 1 << 20, "disk"), Layer("volume", 8 * SECTOR, "volume")
    disk.segments = list(cut_dm_segments("8:1", disk.size, volume, parse_dm_table(line)))
    (landing,) = descend(disk, 5000, 1)
    assert landing.layer is None
    assert not landing.certain
