"""Read failures from the database of rasdaemon, ``ras-mc_event.db``.

The tables are those of ras-record.c. ``disk_errors`` has failed requests, in 512-byte sectors, with
their length. Before version 0.8.3 rasdaemon decoded the number of the device wrongly: 8:16 became
0:2064. No block device has the major number 0, so such a number is recognised and corrected.
``memory_failure_event`` has page frame numbers, and the tables of CXL have addresses of the host.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote as quote_uri

from whoseblock.errors import MalformedError, PrivilegeError, WhoseblockError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import MAX_OFFSET, Failure, Reading, parse_number, shorten
from whoseblock.sources.kernel_log.readers import WHOLE_REQUEST_REMARK
from whoseblock.sources.programs.cxl import INTERLEAVE_REMARK

__all__ = ["read_rasdaemon"]

_SECTOR: Final = 512
_MAGIC: Final = b"SQLite format 3\0"
_EXPECTED: Final = "a database of rasdaemon"
#: The errors that blame the medium; the others of blk_errors are of the path or the target.
_MEDIUM: Final = frozenset({"critical medium error", "I/O error", "protection error"})
#: The bits of a minor number that rasdaemon before 0.8.3 kept: the kernel's number of a device is
#: MAJOR << 20 | MINOR, and it was decoded with the macros of the C library.
_MINOR_BITS: Final = 8
#: Bit 0 of the descriptor of a CXL event: the error is uncorrectable.
_UNCORRECTABLE: Final = 1
_NO_ADDRESS: Final = (1 << 64) - 1
#: Limit on the addresses of poison that may yet be cleared.
_MAX_POISON: Final = 1 << 17
#: A database of rasdaemon has at least one of them.
_TABLES: Final = frozenset({"mc_event", "disk_errors", "memory_failure_event", "cxl_poison_event"})
_TIME: Final = "%Y-%m-%d %H:%M:%S %z"

_Row = tuple[Any, ...]


def read_rasdaemon(
    path: str, page_size: int = 4096, reading: Reading | None = None, since: datetime | None = None
) -> Iterator[Failure]:
    """Yield every failed request and page; ``since`` skips older rows.

    ``reading`` counts the rows. The database is not locked or written. Raises `MalformedError`, and
    `WhoseblockError` for a file that cannot be read.
    """
    reading = reading or Reading(path)
    reading.unit, reading.units = "row", "rows"
    _check_file(path)
    uri = f"file:{quote_uri(str(Path(path).absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as database:
            database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            yield from _Database(database, path, page_size, reading, since).read()
    except (sqlite3.Error, OverflowError) as error:
        raise MalformedError(path, None, f"{_EXPECTED} ({shorten(str(error))})") from error
    except UnicodeDecodeError as error:
        # sqlite3 decodes the names in its own messages strictly.
        raise MalformedError(path, None, f"{_EXPECTED} with a valid schema") from error


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - also of a pipe
            begin = file.read(len(_MAGIC))
    except PermissionError as error:
        raise PrivilegeError(f"cannot open {path!r}: Permission denied") from error
    except OSError as error:
        raise WhoseblockError(f"cannot read {path!r}: {error.strerror}") from error
    if begin != _MAGIC:
        raise MalformedError(path, None, _EXPECTED)
    for suffix in ("-journal", "-wal"):
        beside = Path(path + suffix)
        if beside.exists() and beside.stat().st_size:
            raise MalformedError(
                path,
                None,
                f"a database without {path}{suffix}: it is being written",
                hint="copy it first: sqlite3 FILE '.backup COPY'",
            )


class _Database:
    """Reads the tables of one database."""

    def __init__(
        self,
        database: sqlite3.Connection,
        name: str,
        page_size: int,
        reading: Reading,
        since: datetime | None,
    ) -> None:
        self._database = database
        self._name = name
        self._page = page_size
        self._reading = reading
        self._since = since
        self._tables = {
            name
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }

    def read(self) -> Iterator[Failure]:
        """Yield the failures of every table."""
        for failure in chain(self._read_disks(), self._read_memory(), self._read_cxl()):
            self._reading.failures += 1
            yield failure
        self._count_corrected()
        if not self._tables & _TABLES:
            raise MalformedError(self._name, None, _EXPECTED)

    def _select(self, table: str, *columns: str) -> Iterator[_Row]:
        """Yield the id and the columns of each row since the time; nothing without the columns."""
        if table not in self._tables:
            return
        known = {row[1] for row in self._database.execute(f"PRAGMA table_info({table})")}
        if not {"id", "timestamp", *columns} <= known:
            self._reading.count_unrecognised(table, f"no columns {', '.join(columns)}")
            return
        # The names are constants of this module.
        query = f"SELECT id, timestamp, {', '.join(columns)} FROM {table} ORDER BY id"  # noqa: S608
        for number, time, *values in self._database.execute(query):
            if self._is_recent(time):
                self._reading.read += 1
                yield number, *values

    def _is_recent(self, time: object) -> bool:
        if self._since is None or not isinstance(time, str):
            return True
        try:
            at = datetime.strptime(time.strip(), _TIME)  # noqa: DTZ007 - %z is in the format
        except ValueError:
            return True
        return at >= self._since

    def _read_disks(self) -> Iterator[Failure]:
        columns = ("dev", "sector", "nr_sector", "error", "rwbs")
        for number, dev, sector, count, error, rwbs in self._select("disk_errors", *columns):
            where = f"disk_errors {number}"
            if error not in _MEDIUM:
                if error == "unknown block error":
                    self._reading.count_unrecognised(where, f"{dev}, sector {sector}: {error}")
                continue
            kind = rwbs.decode("ascii", "replace") if isinstance(rwbs, bytes) else str(rwbs or "")
            # Discards and flushes lose no data.
            if kind[:1] not in ("R", "W", ""):
                continue
            device = _decode_device(dev)
            is_place = isinstance(sector, int) and isinstance(count, int) and sector >= 0
            if device is None or not is_place or not 0 <= count < 1 << 32:
                self._reading.count_broken(where, f"dev {dev}, sector {sector}, {count} sectors")
                continue
            start, length = sector * _SECTOR, max(count, 1) * _SECTOR
            if start + length <= MAX_OFFSET:
                origin = f"{self._name}, {where}"
                yield Failure(start, length, device, origin, WHOLE_REQUEST_REMARK)

    def _read_memory(self) -> Iterator[Failure]:
        for number, pfn in self._select("memory_failure_event", "pfn"):
            page = parse_number(pfn) if isinstance(pfn, str) else None
            if page is None or (page + 1) * self._page > MAX_OFFSET:
                self._reading.count_broken(f"memory_failure_event {number}", f"pfn {pfn}")
                continue
            origin = f"{self._name}, memory_failure_event {number}"
            yield Failure(page * self._page, self._page, PHYSICAL_MEMORY, origin)

    def _read_cxl(self) -> Iterator[Failure]:
        poison: dict[int, Failure] = {}
        columns = ("hpa", "dpa_length", "trace_type")
        for number, hpa, length, kind in self._select("cxl_poison_event", *columns):
            failure = self._make_page(f"cxl_poison_event {number}", hpa, length)
            if failure is None:
                continue
            if kind == "Clear":
                poison.pop(hpa, None)
            elif len(poison) < _MAX_POISON:
                poison[hpa] = failure
            else:
                yield failure
        yield from poison.values()
        for table in ("cxl_general_media_event", "cxl_dram_event"):
            for number, hpa, descriptor in self._select(table, "hpa", "descriptor"):
                if isinstance(descriptor, int) and descriptor & _UNCORRECTABLE:
                    failure = self._make_page(f"{table} {number}", hpa, 1)
                    if failure is not None:
                        yield failure

    def _make_page(self, where: str, hpa: object, length: object) -> Failure | None:
        """Return the page at an address of the host; count an address that is none."""
        address = hpa % (1 << 64) if isinstance(hpa, int) else _NO_ADDRESS
        if address >= MAX_OFFSET - self._page:
            reason = "which is in a memory device, outside of every region"
            self._reading.count_unplaced(where, f"hpa {hpa}", reason)
            return None
        whole = isinstance(length, int) and address % self._page + length <= self._page
        start = address - address % self._page
        origin = f"{self._name}, {where}"
        remark = "" if whole else INTERLEAVE_REMARK
        return Failure(start, self._page, PHYSICAL_MEMORY, origin, remark)

    def _count_corrected(self) -> None:
        """Count errors of memory that were not corrected; older versions cut their address."""
        for number, kind, address in self._select("mc_event", "err_type", "address"):
            if kind not in ("Corrected", "Info", "Deferred"):
                reason = "because older versions of rasdaemon store 32 bits of it"
                self._reading.count_unplaced(f"mc_event {number}", f"{address}", reason)


def _decode_device(dev: object) -> str | None:
    """Return MAJOR:MINOR of a device; None if it cannot be known."""
    major, colon, minor = dev.partition(":") if isinstance(dev, str) else ("", "", "")
    first, second = parse_number(major), parse_number(minor)
    if not colon or first is None or second is None or max(first, second) >= 1 << 32:
        return None
    if first == 0:
        first, second = second >> _MINOR_BITS, second & 0xFF
    elif second >> _MINOR_BITS:
        # Either a large number, or a wrongly decoded one of a device whose number is large.
        return None
    return f"{first}:{second}"
