"""``lookup --report`` and ``journal report``."""

import json
import re
from pathlib import Path

import click
import pytest
from tests.cli.test_journal import fill
from tests.support.commands import whoseblock
from tests.support.disk_images import copy_range, partition
from tests.support.xfs_images import MIB, sparse_file

from whoseblock.cli.lookup import lookup
from whoseblock.cli.presentation.report import LOOKUP_ONLY
from whoseblock.cli.respond import respond


def totals_in(page: str) -> dict[str, int]:
    """Return the table of totals: the bytes of each kind, by the words of the page."""
    (table,) = re.findall(r'<table class="totals">(.*?)</table>', page, re.DOTALL)
    rows = re.findall(r'<th scope="row">(?:<svg.*?</svg>)?(.*?)</td>', table, re.DOTALL)
    pairs = (re.split(r"<[^>]*>|\n", row) for row in rows)
    return {words[0].strip(): int(words[-1]) for words in pairs}


def files_in(page: str) -> list[tuple[str, int]]:
    """Return the files of a page: path and bytes."""
    found = re.findall(
        r'<span class="name">(.*?)</span>.*?<td class="number" data-value="(\d+)">', page, re.DOTALL
    )
    return [(path, int(lost)) for path, lost in found]


@pytest.mark.parametrize("words", [["307p", "100M+1M"], ["0+300M"]])
def test_a_report_has_what_the_summary_has(
    demo_image: Path, tmp_path: Path, words: list[str]
) -> None:
    page = tmp_path / "page.html"
    done = whoseblock("lookup", demo_image, *words, "--report", page, "--json")
    assert (done.returncode, done.stderr) == (0, f"report in {page}\n")
    plain = whoseblock("lookup", demo_image, *words, "--summary", "--json")
    assert done.stdout == plain.stdout
    summary = json.loads(plain.stdout)
    text = page.read_text("utf-8")
    assert files_in(text) == [(file["path"], file["bytes"]) for file in summary["files"]]
    totals = totals_in(text)
    assert totals.pop("asked") == summary["bytes"]
    assert sorted(totals.values()) == sorted(filter(None, summary["totals"].values()))


def test_a_report_of_a_disk_has_its_layers_and_a_map_of_the_disk(
    demo_image: Path, tmp_path: Path
) -> None:
    disk = sparse_file(tmp_path / "disk.img", 400 * MIB)
    partition(disk, "label: gpt\nstart=2048, size=614400\n")
    copy_range(demo_image, 0, disk, MIB, 300 * MIB)
    page = tmp_path / "page.html"
    place = MIB + 307 * 4096
    done = whoseblock("lookup", disk, str(place), "--report", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text("utf-8")
    (way,) = re.findall(r'<ol class="way">(.*?)</ol>', text, re.DOTALL)
    assert re.findall(r"<b>(.*?)</b>", way) == ["disk.img", "disk.img1"]
    assert "xfs" in way
    (data,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    (areas,) = json.loads(data)["maps"]
    assert areas["size"] == 400 * MIB
    assert areas["starts"][0] == place
    assert f'data-map="0" data-start="{place}"' in text
    assert f"whoseblock respond {disk} {place} --restore-from DIRECTORY" in text


def test_the_command_of_the_repair_has_only_options_of_respond() -> None:
    def options(command: click.Command) -> dict[str, bool]:
        """Return the options of a command, and whether they take a value."""
        found = (one for one in command.params if isinstance(one, click.Option))
        return {name: not one.is_flag for one in found for name in one.opts}

    ours, theirs = options(lookup), options(respond)
    # --json is left out: people read the plan.
    differ = {name: ours[name] for name in ours if name not in theirs or name == "--json"}
    assert differ == LOOKUP_ONLY


def test_a_report_of_the_journal(tmp_path: Path) -> None:
    file, page = tmp_path / "journal.sqlite", tmp_path / "page.html"
    fill(str(file))
    done = whoseblock("journal", "report", page, "--journal", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"report in {page}\n")
    text = page.read_text("utf-8")
    assert files_in(text) == [(r"/=\x80\n\x1b[31m", 4096)]
    # One is unknown, since it was not looked up; one is free, by an incomplete answer.
    assert totals_in(text) == {"in files": 4096, "owner unknown": 512, "free": 4096, "asked": 8704}
    assert "Incomplete" in text
    assert text.count('<figure class="map"') == 3
    open_only = whoseblock("journal", "report", page, "--journal", file, "--open")
    assert open_only.returncode == 0
    assert page.read_text("utf-8").count('<figure class="map"') == 2


def test_files_that_cannot_be_a_report(demo_image: Path, tmp_path: Path) -> None:
    done = whoseblock("lookup", demo_image, "307p", "--report", tmp_path / "page.pdf")
    assert done.returncode == 2
    assert "must end in .html" in done.stderr
    done = whoseblock("lookup", demo_image, "307p", "--report", tmp_path / "none" / "page.html")
    assert "cannot write" in done.stderr
    for words in (["--verify"], ["--processes"], ["--output", "rows.parquet"]):
        done = whoseblock("lookup", demo_image, "307p", "--report", "page.html", *words)
        assert done.returncode == 2
        assert "has no effect" in done.stderr
