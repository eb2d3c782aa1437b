"""Feed damaged reports to the parser of every form, and check what it does with them.

``python -m tools.fuzz_forms [--inputs 50000] [--seed 1] [FORM]...``

A parser may refuse a report with an error of the hierarchy that quotes a few dozen characters. Any
other exception, a range past the largest offset, a long message, or memory without a bound is a
fault. Each input is a real report with random damage; the seed makes it repeatable.
"""

import argparse
import random
import re
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

from whoseblock.errors import WhoseblockError
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading
from whoseblock.sources.block_lists.block_numbers import read_block_numbers
from whoseblock.sources.block_lists.mapfile import read_mapfile
from whoseblock.sources.block_lists.md_badblocks import read_md_badblocks
from whoseblock.sources.block_lists.sysfs import parse_bad_block_list
from whoseblock.sources.kernel_log.dmesg import read_dmesg
from whoseblock.sources.kernel_log.messages import PATTERNS
from whoseblock.sources.kernel_log.patterns import Units
from whoseblock.sources.kernel_log.sequences import SEQUENCES
from whoseblock.sources.memory import parse_pfn, parse_physical_address
from whoseblock.sources.programs.cxl import read_cxl
from whoseblock.sources.programs.ndctl import read_ndctl
from whoseblock.sources.programs.rasdaemon import read_rasdaemon
from whoseblock.sources.programs.smart import read_smart

__all__ = ["FORMS", "fuzz"]

_FIXTURES: Final = Path(__file__).parent.parent / "tests" / "fixtures"
#: Limit on the memory of the process, beside what it has, in bytes.
_MEMORY: Final = 1 << 29
#: Limits on messages, in characters.
_LONGEST_ERROR: Final = 400
_LONGEST_SUMMARY: Final = 64 * 400

_TOKENS: Final = (
    *("0", "-1", "0x", "0xffffffffffffffff", "18446744073709551616", "9" * 40, "\u0661", "1e400"),
    *("\0", "\n", "\r", "\x1b[31m", "\ufeff", "\udc80", " ", "\t", ":", ",", "[", "]", "{"),
    *("}", '"'),
    *("NaN", "null", "true", "[" * 200, "# ", "I/O error, dev ", "Memory failure: 0x", "x" * 5000),
    *("kernel: ", "> ", "BTRFS ", "XFS (", " @ LBA ", "CDB: Read(10) 28", "{1}[Hardware Error]: "),
)  # fmt: skip

_NUMBER: Final = re.compile(r"(?:0x)?[0-9a-f]*[0-9][0-9a-f]*", re.ASCII)

_Parser = Callable[[str, Reading], Iterable[Failure]]


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _read_memory(text: str, _: Reading) -> Iterable[Failure]:
    yield parse_pfn(text.strip(), 4096)
    yield parse_physical_address(text.strip(), 4096)


def _read_log(text: str, reading: Reading) -> Iterable[Failure]:
    units = Units(4096, lambda _: 4096, lambda _: 1024, 4096)
    return read_dmesg(_lines(text), "log", reading=reading, units=units)


def _read_database(text: str, reading: Reading) -> Iterable[Failure]:
    """Write a text as the values of rows, or as the bytes of the file."""
    with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
        path = Path(folder, "ras-mc_event.db")
        rows = [line.split("|") for line in _lines(text)]
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("PRAGMA journal_mode=MEMORY")
            database.execute("PRAGMA synchronous=OFF")
            columns = "timestamp TEXT, dev, sector, nr_sector, error, rwbs"
            database.execute(f"CREATE TABLE disk_errors (id INTEGER PRIMARY KEY, {columns})")
            database.execute(
                "CREATE TABLE cxl_poison_event (id INTEGER PRIMARY KEY, timestamp TEXT, hpa,"
                " dpa_length, trace_type)"
            )
            for row in rows:
                values = [_as_value(one) for one in (*row, "", "", "", "", "", "")[:6]]
                names = "timestamp, dev, sector, nr_sector, error, rwbs"
                database.execute(
                    f"INSERT INTO disk_errors ({names}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
                    values,
                )
                names = "timestamp, hpa, dpa_length, trace_type"
                database.execute(
                    f"INSERT INTO cxl_poison_event ({names}) VALUES (?, ?, ?, ?)",  # noqa: S608
                    values[:4],
                )
        if len(text) % 4 == 0:
            data = bytearray(path.read_bytes())
            for at in range(0, len(text), 7):
                data[hash(text[at : at + 7]) % len(data)] = at & 0xFF
            path.write_bytes(data)
        yield from read_rasdaemon(str(path), 4096, reading)


#: Where databases are made, in memory if possible.
_FOLDER: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


def _as_value(text: str) -> object:
    text = text.strip("\n")
    if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 19:
        return int(text)
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _fixture(*names: str) -> list[str]:
    return [(_FIXTURES / name).read_text(errors="surrogateescape") for name in names]


def _log_seeds() -> list[str]:
    samples = [one.sample for one in PATTERNS] + [line for one in SEQUENCES for line in one.sample]
    plain = "".join(f"[{at:>5}.000001] {line}\n" for at, line in enumerate(samples))
    syslog = "".join(f"Nov 24 17:19:55 host kernel: {line}\n" for line in samples)
    records = "".join(
        f'{{"MESSAGE": "{line.translate({34: None})}", "_TRANSPORT": "kernel"}}\n'
        for line in samples
    )
    export = "".join(f"__CURSOR=x\nMESSAGE={line}\n_TRANSPORT=kernel\n\n" for line in samples)
    dmesg = '{\n   "dmesg": [\n' + "},{\n".join(
        f'"pri": 3,\n"msg": "{line.translate({34: None})}"\n' for line in samples
    )
    return [plain, syslog, records, export, dmesg, *_fixture("sources/loop.dmesg.txt")]


_CXL: Final = (
    '[{"region":"region5","resource":"0xf110000000","interleave_ways":2,"interleave_granularity":'
    '4096,"media_errors":[{"offset":"0x1000","length":64}]},{"memdev":"mem9","media_errors":['
    '{"dpa":"0x40000000","length":64}]}]'
)
_SUPERCLONE: Final = (
    "# Disk progress log file created by HDDSuperClone version 2.3\n# sectorsize  \t512\n"
    "0x0009a0 \t0x40\n0x000000 \t0x000998 \t0x7f \t0x0 \t0x0\n0x000998 \t0x8 \t0x40 \t0x0 \t0x3\n"
)
_OLD_MAP: Final = (
    "# Rescue Logfile. Created by GNU ddrescue version 1.2\n0x0 0x200 +\n0x200 0x200 -\n"
    "0x400 -1 ?\n"
)
_RAS: Final = (
    "2026-11-24 17:19:55 +0100|8:16|2456|8|critical medium error|R\n"
    "2026-11-24 17:19:55 +0100|1030808960|64|List|x|y\n2026|0:2064|1|1|I/O error|WS\n"
)

#: Every form: its parser, and the reports that are damaged.
FORMS: Final[dict[str, tuple[_Parser, Callable[[], list[str]]]]] = {
    "mapfile": (
        lambda text, reading: read_mapfile(_lines(text), "map", "?*/-", reading),
        lambda: [*_fixture("sources/rescue.map", "sources/stopped.map"), _OLD_MAP],
    ),
    "superclone": (
        lambda text, reading: read_mapfile(_lines(text), "map", "?*/-", reading),
        lambda: [_SUPERCLONE],
    ),
    "badblocks": (
        lambda text, reading: read_block_numbers(_lines(text), "list", 4096, reading),
        lambda: ["# x\n7\n9-11 # y\n1000\n"],
    ),
    "sysfs": (
        lambda text, reading: parse_bad_block_list(text, 4096, "d", "list", reading)[0],
        lambda: ["8 8\n2456 8\n"],
    ),
    "md-badblocks": (
        lambda text, reading: read_md_badblocks(_lines(text), "list", reading),
        lambda: ["Bad-blocks on /dev/sdb1:\n     2456 for 8 sectors\n", "8 8\n"],
    ),
    "ndctl": (
        lambda text, reading: read_ndctl(text, "list", reading),
        lambda: _fixture("sources/ndctl-bad.json", "stack/pmem.ndctl.json"),
    ),
    "cxl": (lambda text, reading: read_cxl(text, "list", 4096, reading), lambda: [_CXL]),
    "smart": (
        lambda text, reading: read_smart(text, "list", reading),
        lambda: _fixture(
            *(f"sources/smart-{kind}-failed.json" for kind in ("ata", "nvme", "scsi"))
        ),
    ),
    "dmesg": (_read_log, _log_seeds),
    "memory": (_read_memory, lambda: ["0x10140a", "1057234"]),
    "rasdaemon": (_read_database, lambda: [_RAS]),
}


def _change_number(text: str, at: int, rng: random.Random) -> str:
    """Replace the next number after a place."""
    match = _NUMBER.search(text, at)
    if match is None:
        return text
    number = rng.choice(
        ("0", "1", "-1", "7" * 15, str(1 << 63), str(1 << 64), "0xfffffffffffffff0")
    )
    return text[: match.start()] + number + text[match.end() :]


def _damage(text: str, seeds: list[str], rng: random.Random) -> str:
    """Return a report with up to eight random changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at, end = sorted(rng.randint(0, len(text)) for _ in range(2))
        end = min(end, at + rng.choice((1, 4, 40, 4000)))
        kind = rng.randrange(8)
        if kind == 0:
            text = text[:at] + text[end:]
        elif kind == 1:
            text = text[:at] + rng.choice(_TOKENS) + text[end:]
        elif kind == 2:
            text = text[:end] + text[at:end] + text[end:]
        elif kind == 3:
            text = text[:at]
        elif kind == 4:
            other = rng.choice(seeds)
            start = rng.randint(0, len(other))
            text = text[:at] + other[start : start + rng.choice((8, 80, 800))] + text[at:]
        elif kind in (5, 6):
            text = _change_number(text, at, rng)
        else:
            text = text[:at] + chr(rng.randrange(1, 256)) + text[at + 1 :]
    return text


def fuzz(form: str, inputs: int, seed: int) -> int:
    """Feed damaged reports to a parser; return how many it refused.

    Raises AssertionError for a fault, with the input, and whatever else the parser raises.
    """
    parse, make_seeds = FORMS[form]
    seeds = make_seeds()
    rng = random.Random(f"{form} {seed}")  # noqa: S311 - not for secrets
    refused = 0
    for _ in range(inputs):
        text = _damage(rng.choice(seeds), seeds, rng)
        reading = Reading("report")
        try:
            for one in parse(text, reading):
                _require(0 <= one.start < one.start + one.length <= MAX_OFFSET, str(one), text)
        except WhoseblockError as error:
            refused += 1
            _require(len(str(error)) + len(error.hint) < _LONGEST_ERROR, str(error), text)
        _require(len(reading.summary()) < _LONGEST_SUMMARY, reading.summary(), text)
    return refused


def _require(condition: bool, what: str, text: str) -> None:  # noqa: FBT001
    if not condition:
        raise AssertionError(what[:1000], text[:4000])


def main() -> None:
    """Run the fuzzing of the forms that the command line names, by default all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("forms", nargs="*", metavar="FORM", help=", ".join(FORMS))
    parser.add_argument("--inputs", type=int, default=50_000, help="inputs of each form")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    options = parser.parse_args()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    for form in options.forms or FORMS:
        begin = time.monotonic()
        refused = fuzz(form, options.inputs, options.seed)
        seconds = time.monotonic() - begin
        sys.stdout.write(
            f"{form}: {options.inputs} inputs, {refused} refused, no fault, {seconds:.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
