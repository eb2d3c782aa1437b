"""The checks of a machine, on folders that stand for machines, and on this one."""

import shutil
from pathlib import Path

import pytest
from tests.support.tools import need_root

from whoseblock.doctor import machine
from whoseblock.doctor.base import Check, State
from whoseblock.doctor.machine import check_machine
from whoseblock.errors import MissingExtraError
from whoseblock.journal import open_journal
from whoseblock.stack.kernel.host import Host


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """Make a machine with one disk, and a mounted tracefs without events."""
    (tmp_path / "sys/block/sda").mkdir(parents=True)
    (tmp_path / "sys/block/sda/badblocks").touch()
    (tmp_path / "sys/kernel/tracing/instances").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nCapEff:\t0000000000200000\n")
    (tmp_path / "proc/self/mountinfo").write_text("")
    return tmp_path


def checks_of(top: Path, journal: Path | None = None) -> dict[str, Check]:
    found = list(check_machine(Host(str(top)), "1.0", None if journal is None else str(journal)))
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


def test_capabilities_are_those_of_the_process(top: Path) -> None:
    found = checks_of(top)
    assert found["CAP_SYS_ADMIN"].state is State.WORKS
    assert found["CAP_DAC_READ_SEARCH"].state is State.MISSING
    assert found["CAP_DAC_READ_SEARCH"].remedy


@pytest.mark.parametrize(
    "event", ["ras/memory_failure_event", "memory_failure/memory_failure_event"]
)
def test_a_tracepoint_is_found_at_each_of_its_places(top: Path, event: str) -> None:
    name = "tracepoint of memory failures"
    assert checks_of(top)[name].state is State.MISSING
    (top / "sys/kernel/tracing/events" / event).mkdir(parents=True)
    assert checks_of(top)[name].state is State.WORKS


def test_a_missing_tracefs_has_the_command_that_mounts_it(top: Path) -> None:
    (top / "sys/kernel/tracing/instances").rmdir()
    check = checks_of(top)["tracepoint of failed requests"]
    assert check.state is State.MISSING
    assert check.remedy.startswith("mount -t tracefs")


def test_lists_of_bad_blocks_are_counted(top: Path) -> None:
    assert checks_of(top)["lists of bad blocks"].detail == "of 1 disks"
    (top / "sys/block/sda/badblocks").unlink()
    assert checks_of(top)["lists of bad blocks"].state is State.MISSING


def test_a_missing_extra_has_its_remedy(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(name: str) -> None:
        raise MissingExtraError(f"{name} is missing", hint=f"install {name}")

    monkeypatch.setattr(machine, "check_extra", check)
    found = checks_of(top)
    assert found["extra study"].state is State.MISSING
    assert found["extra study"].remedy == "install study"
    assert found["journal"].state is State.MISSING


def test_a_missing_program_names_its_package(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    check = checks_of(top)["xfs_repair"]
    assert (check.state, check.remedy) == (State.MISSING, "install the package xfsprogs")


def test_no_journal_is_made(top: Path, tmp_path: Path) -> None:
    journal = tmp_path / "new" / "journal.sqlite"
    check = checks_of(top, journal)["journal"]
    assert (check.state, journal.parent.exists()) == (State.WORKS, False)


def test_a_journal_is_read(top: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    journal = folder / "journal.sqlite"
    open_journal(str(journal)).close()
    check = checks_of(top, journal)["journal"]
    assert check.state is State.WORKS
    assert "0 open failures" in check.detail


def test_a_file_that_is_no_journal_is_named(top: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o700)
    journal = folder / "journal.sqlite"
    journal.write_text("no database")
    check = checks_of(top, journal)["journal"]
    assert check.state is State.MISSING
    assert check.detail


def test_this_machine_reports_failures(tmp_path: Path) -> None:
    need_root()
    found = {
        one.name: one for one in check_machine(Host(), "1.0", str(tmp_path / "journal.sqlite"))
    }
    assert found["kernel log"].state is State.WORKS
    assert found["fanotify"].state is State.WORKS
    assert not list(tmp_path.iterdir())
