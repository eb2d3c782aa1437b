"""Change partition tables, superblocks and metadata at random, and look disks up with them.

Checksums are made right again, so that the changes reach what is behind them.  No input may raise
anything but an error of whoseblock, or take more memory or time than a limit.

    python -m tools.fuzz_tables                    50,000 inputs of each format
    python -m tools.fuzz_tables --inputs 200 --format gpt --seed 7
"""

import argparse
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal, NamedTuple

from tests.support.machine_snapshots import unpacked

from whoseblock.errors import MediaError, WhoseblockError
from whoseblock.media.base import Media
from whoseblock.ranges import ByteRange
from whoseblock.stack.base import Layer, descend
from whoseblock.stack.formats.partitions import read_partition_table
from whoseblock.stack.images.assembly import Assembly
from whoseblock.stack.kernel.dm import cut_dm_segments, decode_dm_table, parse_dm_table

__all__ = ["FORMATS", "Fuzzer", "Outcome", "main", "run_fuzzer"]

_MIB: Final = 1 << 20
_SECTOR: Final = 512
#: The size of a disk: as little as an input needs.
_SHORT: Final = 2 * _MIB
#: Numbers at which fields overflow.
_EDGES: Final = (
    0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 4096, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1,
    1 << 44, 1 << 54, 1 << 55, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
#: Limits for one input.
MAX_SECONDS: Final = 20
MAX_GROWTH: Final = 192 * _MIB
#: Mappings of a range that are looked at.
_MAX_MAPPINGS: Final = 20_000


class _BytesMedia:
    """A medium in memory."""

    def __init__(self, name: str, data: bytes | bytearray) -> None:
        self.name = name
        self.size = len(data)
        self._data = data

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``, or raise `MediaError`."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise MediaError([ByteRange(max(offset, 0), max(length, 1))], "past the end")
        return bytes(self._data[offset : offset + length])

    def close(self) -> None:
        """Close the medium."""


class Fuzzer(NamedTuple):
    """Changes inputs of one format.

    ``regions`` are the ranges of ``data`` that are changed, ``repair`` makes checksums right.
    """

    data: bytes
    regions: tuple[tuple[int, int], ...]
    repair: Callable[[bytearray], None]
    change: Callable[[bytearray, tuple[int, int], random.Random], None]


def _change_bytes(data: bytearray, region: tuple[int, int], chance: random.Random) -> None:
    start, length = region
    for _ in range(chance.randint(1, 6)):
        width = chance.choice((1, 2, 4, 8))
        at = start + chance.randrange(max(length // width, 1)) * width
        number = chance.choice(_EDGES) if chance.random() < 0.6 else chance.getrandbits(64)
        if chance.random() < 0.2:
            number = int.from_bytes(data[at : at + 8], "little") + chance.choice((-1, 1, 8, -8))
        order: Literal["big", "little"] = "big" if chance.random() < 0.05 else "little"
        value = (number & ((1 << 8 * width) - 1)).to_bytes(width, order)
        data[at : at + width] = value
    if chance.random() < 0.05:
        del data[chance.randrange(len(data) // 2, len(data)) :]


_TOKEN: Final = re.compile(rb'"[^"]*"|[\w.+-]+|[{}\[\]=,]')


def _change_text(data: bytearray, region: tuple[int, int], chance: random.Random) -> None:
    """Replace tokens by others, mostly of the same class."""
    start, length = region
    text = bytes(data[start : start + length]).rstrip(b"\0")
    for _ in range(chance.randint(1, 4)):
        tokens = list(_TOKEN.finditer(text))
        if not tokens:
            break
        values = [token for token in tokens if _class_of(token[0]) in (1, 2)]
        one = chance.choice(values if values and chance.random() < 0.8 else tokens)
        if chance.random() < 0.9:
            tokens = [other for other in tokens if _class_of(other[0]) == _class_of(one[0])]
        new = chance.choice(tokens)[0]
        if one[0].isdigit() and chance.random() < 0.6:
            new = b"%d" % chance.choice(_EDGES)
        if chance.random() < 0.02:
            new = b""
        text = text[: one.start()] + new + text[one.end() :]
    data[start : start + length] = text[:length].ljust(length, b"\0")


def _class_of(token: bytes) -> int:
    return (token[:1] == b'"') + 2 * token.isdigit() + 4 * (token[:1] in b"{}[]=,")


def _repair_nothing(data: bytearray) -> None:
    """Change nothing: the format has no checksums."""


def _repair_gpt(data: bytearray) -> None:
    for at in (_SECTOR, len(data) - _SECTOR):
        if at < 0 or data[at : at + 8] != b"EFI PART":
            continue
        size, lba, count, each = (
            *struct.unpack_from("<I", data, at + 12),
            *struct.unpack_from("<QII", data, at + 72),
        )
        if count * each < _MIB and lba * _SECTOR < len(data):
            entries = data[lba * _SECTOR : lba * _SECTOR + count * each]
            struct.pack_into("<I", data, at + 88, zlib.crc32(entries))
        struct.pack_into("<I", data, at + 16, 0)
        struct.pack_into("<I", data, at + 16, zlib.crc32(data[at : at + min(size, 512)]))


def _repair_md(data: bytearray) -> None:
    (devices,) = struct.unpack_from("<I", data, 4096 + 220)
    size = 256 + 2 * min(devices, 1920)
    data[4096 + 216 : 4096 + 220] = bytes(4)
    raw = data[4096 : 4096 + size]
    total = sum(struct.unpack(f"<{size // 4}I", raw[: size // 4 * 4]))
    total += struct.unpack("<H", raw[-2:])[0] if size % 4 else 0
    struct.pack_into("<I", data, 4096 + 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)


def _repair_md_0_90(data: bytearray) -> None:
    at = len(data) // 65536 * 65536 - 65536
    if at < 0:
        return
    words = list(struct.unpack_from("<1024I", data, at))
    total = sum(words) - words[38]
    struct.pack_into("<I", data, at + 4 * 38, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)


def _crc(data: bytes | bytearray) -> int:
    """Return LVM's checksum."""
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _repair_lvm(data: bytearray) -> None:
    struct.pack_into("<I", data, _SECTOR + 16, _crc(data[_SECTOR + 20 : 2 * _SECTOR]))
    offset, size = struct.unpack_from("<QQ", data, 4096 + 40)
    if offset + size < _MIB:
        text = bytes(data[4096 + offset : 4096 + offset + size])
        struct.pack_into("<I", data, 4096 + 56, _crc(text))
    struct.pack_into("<I", data, 4096, _crc(data[4100 : 4096 + _SECTOR]))


def _lvm(folder: Path, *, text: bool) -> Fuzzer:
    data = (unpacked("hard-images", folder) / "hard-middlea.img").read_bytes()[:_SHORT]
    offset, size = struct.unpack_from("<QQ", data, 4096 + 40)
    if text:
        return Fuzzer(data, ((4096 + offset, size),), _repair_lvm, _change_text)
    return Fuzzer(data, ((_SECTOR, 160), (4096, 80)), _repair_lvm, _change_bytes)


def _table(folder: Path, script: str, *regions: tuple[int, int]) -> Fuzzer:
    image = folder / "table.img"
    image.write_bytes(bytes(_SHORT))
    sfdisk = ["/usr/sbin/sfdisk", "--quiet", "--no-reread", str(image)]
    subprocess.run(sfdisk, input=script.encode(), check=True)
    repair = _repair_gpt if "gpt" in script else _repair_nothing
    return Fuzzer(image.read_bytes(), regions, repair, _change_bytes)


def _gpt(folder: Path) -> Fuzzer:
    script = "label: gpt\nstart=2050, size=501\nstart=2600, size=333\nstart=3000, size=99\n"
    return _table(folder, script, (_SECTOR, 92), (1024, 512), (_SHORT - _SECTOR, 92), (446, 66))


def _mbr(folder: Path) -> Fuzzer:
    script = (
        "label: dos\nstart=63, size=1001\nstart=1101, size=2900, type=5\n"
        "start=1164, size=333\nstart=1777, size=333\nstart=2377, size=444\n"
    )
    fuzzer = _table(folder, script)
    table = read_partition_table(_BytesMedia("disk", fuzzer.data))
    records = [record.start for record in table.structures] if table else []
    if len(records) != 4:  # the MBR and three extended boot records
        raise ValueError(f"{len(records)} boot records")
    return fuzzer._replace(regions=tuple((at + 446, 66) for at in records))


def _md(folder: Path) -> Fuzzer:
    data = (unpacked("hard-images", folder) / "hard-kicked5a.img").read_bytes()[:_SHORT]
    return Fuzzer(data, ((4096, 272),), _repair_md, _change_bytes)


def _md_0_90(folder: Path) -> Fuzzer:
    data = (unpacked("md-images", folder) / "raid5old-0.img").read_bytes()
    at = len(data) // 65536 * 65536 - 65536
    return Fuzzer(
        data, ((at, 280), (at + 512, 512), (at + 3968, 128)), _repair_md_0_90, _change_bytes
    )


_DM_TABLE: Final = (
    b"0 6144 mirror core 1 4096 2 7:0 4096 7:1 2048\n6144 6144 linear 7:0 12288\n"
    b"12288 8192 striped 2 128 7:0 20480 7:1 8192\n"
    b"20480 1024 raid raid1 3 0 region_size 1024 2 7:2 7:0 7:3 7:1\n"
    b"21504 64 crypt aes-xts-plain64 - 0 7:0 0\n21568 9 multipath 0 0 1 1 service-time 0 2 2 7:0 1"
)


def _dm(_: Path) -> Fuzzer:
    table = _DM_TABLE + b"\n21600 9 thin-pool 7:0 7:1 128 0\n"
    return Fuzzer(table, ((0, len(table)),), _repair_nothing, _change_text)


def _dm_ioctl(_: Path) -> Fuzzer:
    targets = b""
    for line in _DM_TABLE.splitlines():
        start, length, kind, arguments = line.split(b" ", 3)
        text = arguments + bytes(8 - len(arguments) % 8)
        end = len(targets) + 40 + len(text)
        targets += struct.pack("<QQiI16s", int(start), int(length), 0, end, kind) + text
    count = len(_DM_TABLE.splitlines())
    header = struct.pack(
        "<3I2IIiIIIQ128s129s7x", 4, 0, 0, 312 + len(targets), 312, count, *[0] * 5, b"", b""
    )
    data = header + targets
    return Fuzzer(data, ((0, 64), (312, len(targets))), _repair_nothing, _change_bytes)


FORMATS: Final[dict[str, Callable[[Path], Fuzzer]]] = {
    "gpt": _gpt,
    "mbr": _mbr,
    "lvm-label": lambda folder: _lvm(folder, text=False),
    "lvm-text": lambda folder: _lvm(folder, text=True),
    "md": _md,
    "md-0.90": _md_0_90,
    "dm": _dm,
    "dm-ioctl": _dm_ioctl,
}


def _begins_with_xfs(media: Media) -> bool:
    try:
        return media.pread(0, 4) == b"XFSB"
    except WhoseblockError:
        return False


def _look_up(layer: Layer, chance: random.Random) -> Counter[str]:
    """Return how often the mappings of some ranges were of each kind."""
    found: Counter[str] = Counter()
    starts = [0, 4096, _MIB, layer.size - 4096, *(chance.randrange(layer.size) for _ in range(4))]
    for start in starts:
        for one in islice(descend(layer, max(start, 0), 8192), _MAX_MAPPINGS):
            found["followed" if one.layer else "certain" if one.certain else "unknown"] += 1
    return found


def _try_disk(data: bytearray, chance: random.Random) -> Counter[str]:
    media = _BytesMedia("disk", data)
    layer = Layer("disk", media.size, "image", open_media=lambda: media)
    assembly = Assembly(_begins_with_xfs)
    assembly.add(layer, media)
    assembly.finish()
    return _look_up(layer, chance)


def _try_dm(data: bytes, chance: random.Random, *, ioctl: bool) -> Counter[str]:
    targets = decode_dm_table(data) if ioctl else parse_dm_table(data.decode("utf-8", "replace"))
    volume = Layer("volume", 30000 * _SECTOR, "volume")
    layer = Layer("disk", 16 * _MIB, "disk")
    layer.segments = list(islice(cut_dm_segments("7:0", layer.size, volume, targets), 1000))
    return _look_up(layer, chance)


class Outcome(NamedTuple):
    """The outcome of an input: ``result`` for statistics, ``wrong`` a fault or "".

    ``growth`` is by how many bytes its peak was above the memory before it.
    """

    number: int
    result: str
    wrong: str
    growth: int


def run_fuzzer(name: str, folder: Path, inputs: int, seed: int) -> Iterator[Outcome]:
    """Yield the outcome of each input."""
    fuzzer = FORMATS[name](folder)
    for number in range(inputs):
        chance = random.Random(f"{seed} {name} {number}")  # noqa: S311 - the same inputs for the same seed
        data = bytearray(fuzzer.data)
        for _ in range(chance.randint(1, 3)):
            fuzzer.change(data, chance.choice(fuzzer.regions), chance)
        if chance.random() < 0.9 and len(data) >= min(len(fuzzer.data), _MIB):
            fuzzer.repair(data)
        _reset_peak()
        before, started = _memory("VmRSS"), time.process_time()
        wrong = ""
        try:
            if name.startswith("dm"):
                found = _try_dm(bytes(data), chance, ioctl=name == "dm-ioctl")
            else:
                found = _try_disk(data, chance)
            result = "+".join(sorted(found))
        except WhoseblockError as error:
            result = type(error).__name__
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            result, wrong = "error", f"{type(error).__name__}: {str(error)[:200]}"
        growth = _memory("VmHWM") - before
        if growth > MAX_GROWTH:
            wrong = wrong or f"memory grew by {growth // _MIB} MiB"
        if time.process_time() - started > MAX_SECONDS:
            wrong = wrong or f"it took {time.process_time() - started:.0f} s of a processor"
        yield Outcome(number, result, wrong, growth)


def _memory(field: str) -> int:
    """Return a field of proc_pid_status(5) in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split(maxsplit=1)[0]) * 1024


def _reset_peak() -> None:
    """Start a new measurement of the peak, VmHWM; see proc_pid_clear_refs(5)."""
    Path("/proc/self/clear_refs").write_text("5")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=50_000, help="of each format (50000)")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.format or FORMATS:
            results: Counter[str] = Counter()
            highest, largest = 0, Outcome(0, "", "", 0)
            for one in run_fuzzer(name, Path(folder), options.inputs, options.seed):
                results[one.result] += 1
                largest = max(largest, one, key=attrgetter("growth"))
                highest = max(highest, _memory("VmHWM"))
                if one.wrong:
                    failed += 1
                    if failed < 20:
                        print(f"{name} {one.number}: {one.wrong}", flush=True)
            print(
                f"{name}: {sum(results.values())} inputs, {dict(results.most_common(6))}, peak"
                f" {highest / _MIB:.0f} MiB, most for one input {largest.growth / _MIB:.1f} MiB"
                f" (input {largest.number})",
                flush=True,
            )
    print(f"{failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
