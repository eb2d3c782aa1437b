"""The man page that is installed is the one that the command line makes."""

import subprocess
from pathlib import Path

from tests.support.tools import CHECKOUT, program

from whoseblock.cli.man import man_page

PAGE = CHECKOUT / "docs" / "man" / "whoseblock.1"


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text() == man_page(), "run make man"


def test_man_has_nothing_to_complain_about(tmp_path: Path) -> None:
    page = tmp_path / "whoseblock.1"
    page.write_text(man_page())
    done = subprocess.run(
        [program("groff"), "-man", "-ww", "-Tutf8", "-Kutf8", "-P-cbou", page],
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    for heading in (b"NAME", b"SYNOPSIS", b"LOOKUP", b"COMPLETION", b"EXIT STATUS"):
        assert heading in done.stdout
