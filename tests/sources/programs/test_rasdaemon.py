"""The database of rasdaemon, made with the tables of its ras-record.c."""

import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from whoseblock.errors import MalformedError, WhoseblockError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import Reading
from whoseblock.sources.programs.rasdaemon import read_rasdaemon

TIME = "2026-11-24 17:19:55 +0100"
#: The statements that ras_mc_create_table() executes, of rasdaemon 0.8.5.
TABLES = (
    (
        "mc_event (id INTEGER PRIMARY KEY, timestamp TEXT, err_count INTEGER, err_type TEXT,"
        " err_msg TEXT, label TEXT, mc INTEGER, top_layer INTEGER, middle_layer INTEGER,"
        " lower_layer INTEGER, address INTEGER, grain INTEGER, syndrome INTEGER,"
        " driver_detail TEXT)"
    ),
    (
        "disk_errors (id INTEGER PRIMARY KEY, timestamp TEXT, dev TEXT, sector INTEGER, nr_sector"
        " INTEGER, error TEXT, rwbs TEXT, cmd TEXT)"
    ),
    (
        "memory_failure_event (id INTEGER PRIMARY KEY, timestamp TEXT, pfn TEXT, page_type TEXT,"
        " action_result TEXT)"
    ),
    (
        "cxl_poison_event (id INTEGER PRIMARY KEY, timestamp TEXT, memdev TEXT, host TEXT,"
        " serial INTEGER, trace_type TEXT, region TEXT, region_uuid TEXT, hpa INTEGER, dpa INTEGER,"
        " dpa_length INTEGER, source TEXT, flags INTEGER, overflow_ts TEXT)"
    ),
    (
        "cxl_general_media_event (id INTEGER PRIMARY KEY, timestamp TEXT, dpa INTEGER, descriptor"
        " INTEGER, hpa INTEGER, region TEXT)"
    ),
)


class Database:
    """A database with rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.execute(*(f"CREATE TABLE IF NOT EXISTS {table}" for table in TABLES))

    def execute(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as database, database:
            for statement in statements:
                database.execute(statement)

    def add(self, table: str, **values: object) -> None:
        values = {"timestamp": TIME} | values
        marks = ", ".join("?" * len(values))
        with closing(sqlite3.connect(self.path)) as database, database:
            statement = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"  # noqa: S608
            database.execute(statement, tuple(values.values()))

    def disk(self, dev: object = "8:16", **values: object) -> None:
        row = {"sector": 2456, "nr_sector": 8, "error": "critical medium error", "rwbs": "R"}
        self.add("disk_errors", dev=dev, **(row | values))

    def read(self, since: str = "") -> tuple[list[tuple[str, int, int]], Reading]:
        reading = Reading(str(self.path))
        time = datetime.fromisoformat(since) if since else None
        found = read_rasdaemon(str(self.path), 4096, reading, time)
        return [(one.device, one.start, one.length) for one in found], reading


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "ras ?#%.db")


def test_a_failed_request_has_its_length(database: Database) -> None:
    database.disk()
    database.disk("259:3", sector=0, nr_sector=2048, error="I/O error", rwbs="WS")
    found, reading = database.read()
    assert found == [("8:16", 2456 * 512, 8 * 512), ("259:3", 0, 2048 * 512)]
    assert reading.summary() == "2 failures in 2 rows"


@pytest.mark.parametrize(
    ("dev", "device"),
    [
        # Written by versions before 0.8.3: gnu_dev_major and gnu_dev_minor of MAJOR << 20 | MINOR.
        ("0:2064", "8:16"),
        ("0:66304", "259:0"),
        ("0:65025", "254:1"),
        ("253:255", "253:255"),
        # One of both, and nothing tells which.
        ("1:66304", None),
        ("259:256", None),
        ("x", None),
        ("8", None),
        (None, None),
        (f"8:{'9' * 30}", None),
    ],
)
def test_the_device_of_older_versions_is_corrected(
    database: Database, dev: object, device: str | None
) -> None:
    database.disk(dev)
    found, reading = database.read()
    assert [one[0] for one in found] == ([] if device is None else [device])
    assert reading.broken == (device is None)


def test_errors_of_the_path_and_discards_are_passed_over(database: Database) -> None:
    database.disk(error="timeout error")
    database.disk(error="critical target error")
    database.disk(rwbs="D")
    database.disk(rwbs="FF")
    database.disk(error="unknown block error")
    found, reading = database.read()
    assert (found, reading.read, reading.unrecognised) == ([], 5, 1)


def test_a_page_of_memory_is_found(database: Database) -> None:
    database.add("memory_failure_event", pfn="0x10140a", page_type="dax page", action_result="x")
    database.add("memory_failure_event", pfn="0xzz")
    database.add("memory_failure_event", pfn=f"0x{'f' * 16}")
    found, reading = database.read()
    assert (found, reading.broken) == ([(PHYSICAL_MEMORY, 0x10140A000, 4096)], 2)


def test_poison_that_was_cleared_is_none(database: Database) -> None:
    for hpa, kind in (
        (0xF110001040, "List"),
        (0xF110002000, "Inject"),
        (0xF110002000, "Clear"),
        (-1, "List"),
    ):
        database.add("cxl_poison_event", hpa=hpa, dpa_length=64, trace_type=kind)
    database.add("cxl_general_media_event", hpa=0xF110005000, descriptor=1)
    database.add("cxl_general_media_event", hpa=0xF110006000, descriptor=2)
    found, reading = database.read()
    assert found == [
        (PHYSICAL_MEMORY, 0xF110001000, 4096),
        (PHYSICAL_MEMORY, 0xF110005000, 4096),
    ]
    assert "outside of every region" in reading.summary()


def test_an_address_that_may_be_cut_is_unknown(database: Database) -> None:
    database.add("mc_event", err_type="Uncorrected", address=0x710B3400)
    database.add("mc_event", err_type="Corrected", address=0x710B3400)
    found, reading = database.read()
    assert found == []
    assert sum(one.count for one in reading.unplaced.values()) == 1


def test_older_rows_are_skipped(database: Database) -> None:
    database.disk()
    database.disk(sector=8, timestamp="2026-11-25 01:00:00 +0900")
    database.disk(sector=16, timestamp="?")
    # 17:00 on the day before, in the zone of the first.
    assert [one[1] for one in database.read("2026-11-24T17:10:00+01:00")[0]] == [2456 * 512, 8192]
    assert len(database.read()[0]) == 3


def test_other_files_are_refused(database: Database, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as made, made:
        made.execute("CREATE TABLE x (y)")
    damaged = tmp_path / "damaged.db"
    database.disk()
    damaged.write_bytes(database.path.read_bytes()[:4096] + b"\xff" * 40960)
    (tmp_path / "text").write_text("SQLite")
    names = tmp_path / "names.db"
    names.write_bytes(database.path.read_bytes().replace(b"CREATE TABLE", b"CR\xd9\xff\xfe TABLE"))
    for path in (other, damaged, tmp_path / "text", names):
        with pytest.raises(MalformedError):
            list(read_rasdaemon(str(path)))
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(WhoseblockError):
            list(read_rasdaemon(str(missing)))
    Path(f"{database.path}-wal").write_bytes(b"x")
    with pytest.raises(MalformedError, match="it is being written"):
        database.read()


def test_a_view_in_place_of_a_table_is_not_executed(database: Database) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x AS id FROM n"
    database.execute("DROP TABLE disk_errors", f"CREATE VIEW disk_errors AS {endless}")
    assert database.read()[0] == []
