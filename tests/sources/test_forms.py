"""The table of forms in the documentation is made of the code."""

from pathlib import Path

from tests.support.tools import CHECKOUT

from whoseblock.sources.forms import FORMS, render

TABLE = CHECKOUT / "docs" / "internals" / "forms.md"
PARSERS = CHECKOUT / "src" / "whoseblock" / "sources"
#: Modules of the package that are no parsers of a form.
OTHERS = ("base", "documents", "forms", "__init__")


def test_the_committed_tables_are_up_to_date() -> None:
    assert TABLE.read_text() == render(), "run make forms"


def test_every_parser_is_in_the_table() -> None:
    modules = {Path(one).stem for one in PARSERS.glob("*.py")} - set(OTHERS)
    assert {one for one in modules if not one.startswith("log_")} == {one.module for one in FORMS}
