"""A damaged line of a report, or a device that is absent, costs that line and not the rest."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.commands import Run, runner_in

SECTOR = "[1.0] I/O error, dev sdb, sector 2456\n"
OTHER = "[2.0] I/O error, dev sdb, sect\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("notices")
    unpack(folder / "disk.img")
    (folder / "other.img").write_bytes(bytes(1 << 20))
    return runner_in(folder)


@pytest.mark.parametrize("verb", ["lookup", "respond"])
def test_a_damaged_line_of_a_log_is_passed_over(run: Run, tmp_path: Path, verb: str) -> None:
    journal = ["--journal", str(tmp_path / "journal")] if verb == "respond" else []
    done = run(verb, "disk.img", "--dmesg", "-", "--json", *journal, stdin=OTHER + SECTOR)
    assert done.returncode == 23, done.stderr
    assert done.stdout
    assert "1 line was passed over as damaged: line 1: I/O error, dev sdb, sect, " in done.stderr


def test_a_line_that_is_too_long_is_passed_over(run: Run) -> None:
    text = "[1.0] I/O error, dev " + "x" * (1 << 20) + "\n"
    done = run("lookup", "disk.img", "--dmesg", "-", "--json", stdin=text + SECTOR)
    assert done.returncode == 23, done.stderr
    assert json.loads(done.stdout)["start"] == 2456 * 512
    assert len(done.stderr) < 500


def test_failures_of_absent_devices_are_passed_over(run: Run) -> None:
    absent = "[1.0] I/O error, dev sdqq, sector 8\n"
    memory = "[2.0] Memory failure: 0x1: recovery action for x: Ignored\n"
    done = run("lookup", "--dmesg", "-", "--json", stdin=absent * 2 + memory)
    if done.returncode == 12:
        pytest.skip("the addresses of memory need root")
    assert done.returncode == 23, done.stderr
    assert json.loads(done.stdout)["start"] == 4096
    assert "1 failure of sdqq passed over: this machine has no such device" in done.stderr
    # There is nothing else: an error, as before.
    done = run("lookup", "--dmesg", "-", stdin=absent)
    assert done.returncode == 3
    assert "no block device 'sdqq'" in done.stderr


def test_the_filesystem_above_a_disk_does_not_make_the_image_ambiguous(run: Run) -> None:
    above = (
        '[1.0] XFS (dm-0): metadata I/O error in "xfs_x" at daddr 0x8 len 8 error 5\n'
        "[1.0] md/raid:md3: read error not correctable (sector 8 on sdb1).\n"
    )
    done = run("lookup", "disk.img", "--dmesg", "-", "--json", stdin=above + SECTOR)
    assert done.returncode == 0, done.stderr
    assert [json.loads(one)["start"] for one in done.stdout.splitlines()] == [2456 * 512]
    assert "1 failure of dm-0 skipped: not on disk.img" in done.stderr
    assert "failures of sdb are assumed to be of disk.img" in done.stderr
    # Alone, they name the device.
    done = run("lookup", "disk.img", "--dmesg", "-", "--json", stdin=above.splitlines()[0])
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert (answer["start"], answer["length"]) == (4096, 4096)


def test_the_unit_of_the_page_cache_is_the_users(run: Run) -> None:
    line = "[1.0] Buffer I/O error on dev sdb, logical block 307, async page read\n"
    done = run("lookup", "disk.img", "--dmesg", "-", "--json", stdin=line)
    assert (done.returncode, done.stdout) == (0, "")
    assert "at an unknown place, because the size of its blocks is not logged" in done.stderr
    done = run("lookup", "disk.img", "--dmesg", "-", "--block-size", "4096", "--json", stdin=line)
    assert json.loads(done.stdout)["start"] == 307 * 4096


def test_every_other_form_leads_to_the_same_block(run: Run, tmp_path: Path) -> None:
    database = tmp_path / "ras-mc_event.db"
    with closing(sqlite3.connect(database)) as made, made:
        columns = "id INTEGER PRIMARY KEY, timestamp TEXT, dev TEXT, sector, nr_sector, error, rwbs"
        made.execute(f"CREATE TABLE disk_errors ({columns})")
        row = (1, "2026-11-24 17:19:55 +0100", "8:16", 2456, 8, "I/O error", "R")
        made.execute("INSERT INTO disk_errors VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    superclone = (
        "# Disk progress log file created by HDDSuperClone version 2.3\n# sectorsize  \t512\n"
        "0x998 \t0x40\n0x0 0x998 0x7f 0x0 0x0\n0x998 0x8 0x40 0x0 0x0\n0x9a0 0x95660 0x7f 0x0 0x0\n"
    )
    forms = (
        (["--md-badblocks", "-"], "2456 8\n"),
        (["--md-badblocks", "-"], "Bad-blocks on /dev/sdb1:\n    2456 for 8 sectors\n"),
        (["--badblocks", "-", "--block-size", "1024"], "1228-1231 # a scratch\n"),
        (["--mapfile", "-"], superclone),
        (["--rasdaemon", str(database), "--since", "2026-11-24T17:00+01:00"], ""),
    )
    for words, text in forms:
        done = run("lookup", "disk.img", *words, "--json", stdin=text)
        assert done.returncode == 0, done.stderr
        (answer,) = map(json.loads, done.stdout.splitlines())
        assert (answer["start"], answer["length"]) == (2456 * 512, 4096)
    done = run("lookup", "disk.img", "--rasdaemon", str(database), "--since", "2026-11-25")
    assert (done.returncode, done.stdout) == (0, "")
    for words in (["--since", "x"], ["--since", "2026-11-25"]):
        assert run("lookup", "disk.img", "1p", *words).returncode == 2
