"""The parser of plain lookups parses what it knows as click does."""

import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.cli import report_owners
from whoseblock.cli.group import cli
from whoseblock.cli.plain import parse_plain

#: Words with a meaning, and any others; the target exists, or not.
WORDS = st.one_of(
    st.sampled_from(
        ["lookup", "stack", "--json", "--no-paths", "--", "-", "--offline", "--js", "--json=1"]
    ),
    st.sampled_from(["/", "disk.img", "307p", "0x133000+4K", "", "-h", "--root", "é", "\udcff"]),
    st.text(st.characters(exclude_characters="\0"), max_size=8),
)
LINES = st.lists(WORDS, max_size=7).flatmap(
    lambda words: st.sampled_from([words, ["lookup", *words], ["lookup", "a", "1", *words]])
)


@given(words=LINES)
def test_plain_lookups_are_parsed_as_by_click(words: list[str]) -> None:
    plain = parse_plain(words)
    if plain is None:
        return
    calls: list[tuple[Any, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_owners, "report_owners", lambda *about: calls.append(about))
        cli.main(list(words), prog_name="whoseblock", standalone_mode=False)
    assert calls == [plain]


@pytest.mark.parametrize(
    ("words", "is_plain"),
    [
        (["lookup", "a", "1"], True),
        (["lookup", "a", "1", "2", "--json"], True),
        (["lookup", "--no-paths", "a", "--json", "1"], True),
        (["lookup", "a"], False),
        (["lookup", "a", "1", "--summary"], False),
        (["lookup", "--", "a", "1"], False),
        (["--json", "lookup", "a", "1"], False),
        (["stack", "a", "1"], False),
        ([], False),
    ],
)
def test_other_command_lines_are_left_to_click(words: list[str], *, is_plain: bool) -> None:
    assert (parse_plain(words) is not None) == is_plain


def test_the_version_is_that_of_click() -> None:
    command = [sys.executable, "-m", "whoseblock", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == CliRunner().invoke(cli, ["--version"], prog_name="whoseblock").output
