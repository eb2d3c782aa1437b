"""The table of forms in the documentation is made of the code."""

from tests.support.tools import CHECKOUT

from whoseblock.sources.forms import FORMS, render

TABLE = CHECKOUT / "docs" / "internals" / "forms.md"
PARSERS = CHECKOUT / "src" / "whoseblock" / "sources"
#: Modules of the package that are no parsers of a form, besides those for `kernel_log.dmesg`.
OTHERS = ("base", "programs.documents", "forms", "block_lists.failure_list")


def test_the_committed_tables_are_up_to_date() -> None:
    assert TABLE.read_text() == render(), "run make forms"


def test_every_parser_is_in_the_table() -> None:
    paths = (path.relative_to(PARSERS).with_suffix("") for path in PARSERS.rglob("*.py"))
    modules = {".".join(path.parts) for path in paths if path.name != "__init__"} - set(OTHERS)
    of_logs = {one for one in modules if one.startswith("kernel_log.")} - {"kernel_log.dmesg"}
    assert modules - of_logs == {one.module for one in FORMS}
