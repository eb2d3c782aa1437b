"""The man pages that are installed are those that the command line makes."""

import subprocess
from pathlib import Path

import pytest
from tests.support.tools import CHECKOUT, program

from whoseblock.cli.man import man_pages

FOLDER = CHECKOUT / "docs" / "man"
PAGES = man_pages()


def test_the_committed_pages_are_up_to_date() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == PAGES, "run make man"


@pytest.mark.parametrize("name", PAGES)
def test_man_has_nothing_to_complain_about(name: str, tmp_path: Path) -> None:
    page = tmp_path / name
    page.write_text(PAGES[name])
    done = subprocess.run(
        [program("groff"), "-man", "-ww", "-Tutf8", "-Kutf8", "-P-cbou", page],
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    text = done.stdout.decode()
    lines = text.splitlines()
    headings = [line for line in lines if line.isupper() and not line.startswith(" ")]
    first, last = ["NAME", "SYNOPSIS", "DESCRIPTION"], ["ENVIRONMENT", "FILES", "EXIT STATUS"]
    assert headings[:3] == first
    assert headings[-4:] == [*last, "SEE ALSO"]
    assert name.removesuffix(".1") in text
    # All other pages are named.
    see = " ".join(text.partition("SEE ALSO")[2].split()).replace("- ", "-")
    others = {other.removesuffix(".1") for other in PAGES} - {name.removesuffix(".1")}
    assert all(f"{other}(1)" in see for other in others)


def test_every_option_of_a_verb_is_in_its_page() -> None:
    for words in ("--mapfile", "--report", "--max-owners", "307p"):
        assert words.replace("-", r"\-") in PAGES["whoseblock-lookup.1"]
    assert r"journal report" in PAGES["whoseblock-journal.1"]
