"""The command: advice, notifications, and the content of the journal."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from demo.demo import unpack
from tests.support.failing_filesystem import BLOCK, Bench, Facts, bench, pattern, write_file
from tests.support.mapping_processes import running
from tests.support.mounts import frozen, small_filesystem
from tests.support.shared_blocks import share_five

from whoseblock.cli.group import cli
from whoseblock.errors import JournalError
from whoseblock.journal import open_journal
from whoseblock.ranges import ByteRange
from whoseblock.respond import execution
from whoseblock.respond.repair import carry_out
from whoseblock.respond.steps import ActResult

EVERYTHING = ["--punch", "--quarantine"]


def test_metadata_is_not_written_and_the_plan_names_its_repair(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        for number in range(300):
            (served.root / f"a file with a long name {number:0100}").touch()
        big = write_file(served.root / "big", b"")
        with big.open("r+b") as file:
            for number in range(600):
                os.pwrite(file.fileno(), b"x", number * 2 * BLOCK)
        served.sync()
        top = served.root.stat().st_ino
        rows = served.rows()
        found = {}
        for row in rows:
            if row.kind == "file" and row.inode == top and not row.attr and not row.extent_map:
                found["directory"] = row
            elif row.kind == "file" and row.extent_map:
                found["extent-map"] = row
            elif row.kind not in ("file", "free", "staging"):
                found.setdefault(row.kind, row)
        assert {"directory", "extent-map", "log", "ag", "static", "inodes"} <= set(found)
        # The kernel writes changed metadata up to half a minute later, and a write heals a sector.
        with frozen(os.fsencode(served.root)):
            for name, row in found.items():
                bad = ByteRange(row.start, 512)
                served.served.add(bad)
                counts = served.served.statistics()
                said = served.apply(bad, *EVERYTHING, code=14)
                assert "skipped: advise" in said
                assert "xfs_repair" in said, name
                assert name in said
                assert served.served.statistics()["sectors_healed"] == counts["sectors_healed"]
                assert served.served.bad() == [bad]
                # It is readable again before the filesystem itself falls over it.
                served.served.write("good", bad)


def test_past_the_end_of_the_filesystem(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        size = served.image.stat().st_size
        done = served.respond(ByteRange(size, 512), "--apply", "--yes")
        assert done.returncode == 5
        assert not served.states()


def test_json_is_lines_and_the_journal_holds_the_same(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start + 512, 512)
        free = served.free(1)
        served.fail(lost, free)
        done = served.respond(
            lost, free, "--restore-from", five.copies, "--apply", "--yes", "--json"
        )
        assert done.returncode == 0, done.stderr
        plan, *outcomes = map(json.loads, done.stdout.splitlines())
        assert [step["kind"] for step in plan["steps"]] == ["restore", "zero"]
        assert [one["state"] for one in outcomes] == ["verified", "verified"]
        first, second = served.journaled()
        assert (first.failure.start, first.failure.length) == lost
        assert (second.failure.start, second.failure.length) == free
        assert first.failure.closed is not None
        owners = first.findings[-1].answer["owners"]
        assert {path for row in owners for path in row["paths"]} == {
            "/a", "/c", "/deep/er/b", "/hard link", "/large/another link", "/large/d", "/last",
        }  # fmt: skip
        assert served.states() == [["planned", "started", "done", "verified"]] * 2
        # What the owners are given is noted once it is known, and so is what one of them may lose
        # until it has that again.
        events = first.plans[0].steps[0].events
        assert [(str(event.state), sorted(event.detail)) for event in events] == [
            ("planned", []),
            ("started", []),
            ("started", ["copies", "replacement"]),
            ("started", ["privileges"]),
            ("started", ["privileges"]),
            ("done", ["copies", "kept", "owners", "says", "zeroed"]),
            ("verified", ["says"]),
        ]
        assert first.runs[0].uid == 0
        assert "respond" in first.runs[0].command
        assert first.runs[0].version


def test_a_journal_on_the_frozen_filesystem_is_refused(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        journal = served.root / "journal.sqlite"
        bad = served.free(1)
        served.fail(bad)
        said = served.apply(bad, "--journal", journal, code=14)
        assert "journal is on the filesystem" in said
        assert served.served.bad() == [bad]


def test_a_full_disk_below_the_journal_keeps_the_device_as_it_is(tmp_path: Path) -> None:
    with (
        bench(tmp_path) as served,
        small_filesystem("tmpfs", tmp_path / "small", 512 << 10) as folder,
    ):
        journal = folder / "journal.sqlite"
        bad = served.free(1)
        assert served.respond(bad, "--journal", journal).returncode == 0
        filler = folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", 0) as file:
            while file.write(bytes(4096)):
                pass
        served.fail(bad)
        counts = served.served.statistics()["sectors_healed"]
        for _ in range(2):
            done = served.respond(bad, "--journal", journal, "--apply", "--yes")
            assert done.returncode == JournalError.exit_code, done.stdout + done.stderr
            assert served.served.bad() == [bad]
            assert served.served.statistics()["sectors_healed"] == counts


def test_a_disk_that_fills_during_a_step_leaves_its_outcome_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        bench(tmp_path) as served,
        small_filesystem("tmpfs", tmp_path / "small", 512 << 10) as folder,
    ):
        bad = served.free(1)
        served.fail(bad)
        filler = folder / "filler"

        def fill_after(*arguments: Any) -> ActResult:  # noqa: ANN401 - those of any act
            result = carry_out(*arguments)
            with contextlib.suppress(OSError), filler.open("wb", 0) as file:
                while file.write(bytes(4096)):
                    pass
            return result

        monkeypatch.setattr(execution, "carry_out", fill_after)
        words = ["respond", str(served.root), f"{bad.start}+{bad.length}", "--apply", "--yes"]
        words += ["--journal", str(folder / "journal.sqlite")]
        done = CliRunner().invoke(cli, words)
        assert isinstance(done.exception, JournalError), done.output
        said = f"not journaled: zero {bad}: zeroed {bad}"
        assert str(done.exception).startswith(said)
        assert served.served.bad() == []


def test_the_command_gets_the_finding(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        path = write_file(served.root / "file", pattern("file", 4 * BLOCK))
        place = served.place(path, 2)
        served.fail(place)
        told = tmp_path / "told"
        command = f"cat > {told}; test ! -e {tmp_path}/fail"
        served.apply(place, "--exec", command, "--punch")
        (row,) = json.loads(told.read_text())["owners"]
        assert (row["paths"], row["file_offset"]) == (["/file"], 2 * BLOCK)
        # If it fails, that is said, and what can be done is done all the same.
        (tmp_path / "fail").touch()
        place = served.place(path, 1)
        served.fail(place)
        said = served.apply(place, "--exec", command, "--punch", code=14)
        assert "failed: exec" in said
        assert "verified: punch" in said
        assert served.served.bad() == []


HEARS = """
signal.signal(signal.SIGUSR1, lambda number, frame: open(more[0], "a").write(f"{pid} "))
"""


def test_the_signal_reaches_processes_that_mapped_the_lost_part(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        path = write_file(served.root / "file", pattern("file", 16 * BLOCK))
        place = served.place(path, 2)
        heard = tmp_path / "heard"
        heard.touch()
        served.fail(place)
        mapped = HEARS + f"map_file({2 * BLOCK}, PAGE); ready()"
        elsewhere = HEARS + f"map_file({8 * BLOCK}, PAGE); ready()"
        opened = HEARS + "kept = open(path); ready()"
        with (
            running(mapped, path, str(heard)) as (pid,),
            running(elsewhere, path, str(heard)),
            running(opened, path, str(heard)),
        ):
            done = served.respond(place, "--signal", "USR1", "--apply", "--yes")
            assert done.returncode == 14
            assert f"process {pid}: sent" in done.stdout
        assert heard.read_text().split() == [str(pid)]


def test_the_plan_names_the_processes_that_use_the_lost_part(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        path = write_file(served.root / "file", pattern("file", 16 * BLOCK))
        other = write_file(served.root / "other", pattern("other", BLOCK))
        place = served.place(path, 2, 4)
        lost = ByteRange(place.start + 512, 512), ByteRange(place.start + 2 * BLOCK, 512)
        served.fail(*lost)
        mapped, opened = f"map_file({2 * BLOCK}, PAGE); ready()", "kept = open(path); ready()"
        with (
            running(mapped, path) as (mapping,),
            running(opened, path) as (opening,),
            running("map_file(0, PAGE); ready()", other),
        ):
            said = served.respond(place).stdout
        first, second = said.split("of which")[1:]
        assert [f"{name} by process" in first for name in ("mapped", "open")] == [True, True]
        assert f"mapped by process {mapping} " in first
        assert f"mapped by process {mapping} " not in second
        for part in (first, second):
            assert f"open by process {opening} " in part
            assert part.count("by process") == (2 if part is first else 1)


def test_readable_blocks_are_not_written(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        five = share_five(served, tmp_path / "copies")
        rows = served.rows()
        counts = served.served.statistics()["writes"]
        for where in (five.place, served.free(3)):
            said = served.apply(where, *EVERYTHING, "--restore-from", five.copies)
            assert "no action needed" in said
        assert served.rows() == rows
        assert served.served.statistics()["writes"] == counts
        assert {path: Facts.of(path) for path in five.files} == five.facts


def test_a_dry_run_on_readable_sectors_records_no_failure(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    unpack(image)
    url = str(tmp_path / "journal.sqlite")
    wanted = [f"{page}p" for page in range(300, 320)]
    words = ["respond", str(image), *wanted, "--journal", url, "--exec", "false"]
    done = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"plan": None, "failures": [], "steps": []}
    assert "dry run" not in CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    with open_journal(url, write=False) as journal:
        assert list(journal.failures()) == []


def test_without_apply_a_mounted_device_is_not_written(tmp_path: Path) -> None:
    with bench(tmp_path) as served:
        five = share_five(served, tmp_path / "copies")
        served.fail(five.place)
        before = _at_rest(served)
        done = served.respond(five.place, *EVERYTHING, "--restore-from", five.copies)
        assert done.returncode == 0
        assert "dry run" in done.stdout
        assert _at_rest(served) == before
        assert served.states() == [["planned"]]


def _at_rest(served: Bench) -> tuple[bytes, int]:
    served.sync()
    return served.image.read_bytes(), served.served.statistics()["writes"]
