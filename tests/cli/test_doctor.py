"""``whoseblock doctor``: what it prints."""

import json
from pathlib import Path

from tests.support.commands import whoseblock
from tests.support.xfs_images import MIB, sparse_file


def test_lines_fit_a_terminal_and_names_cannot_write_to_it(tmp_path: Path) -> None:
    target = sparse_file(tmp_path / "a\x1b[31m disk", MIB)
    done = whoseblock("doctor", target, "--journal", tmp_path / "journal.sqlite")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    words = [line for line in done.stdout.splitlines() if len(line) > 80]
    # Only a single long word is longer.
    assert all(len(line.split()) <= 2 for line in words)
    assert "program\n" in done.stdout


def test_json_has_an_object_for_each_check(tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    done = whoseblock("doctor", "--json", "--journal", journal)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {frozenset(one) for one in found} == {
        frozenset(("area", "name", "state", "detail", "remedy"))
    }
    assert {one["state"] for one in found} <= {"works", "limited", "missing", "unknown"}
    assert [one["detail"] for one in found if one["area"] == "journal"] == [
        f"{journal} will be made when it is needed"
    ]
