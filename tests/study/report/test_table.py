"""The tables of a study."""

from pathlib import Path

import pytest

from whoseblock.study.report.table import Table, as_markdown, as_text, size, tables
from whoseblock.study.results import StudyReport


def test_the_sweep_follows_the_formula(report: StudyReport) -> None:
    table = next(one for one in tables(report) if one.name == "sweep")
    for row in table.rows:
        assert float(row[2]) == float(row[3])


def test_percentages_are_of_the_device(demo_image: Path, report: StudyReport) -> None:
    size, named = demo_image.stat().st_size, {one.name: one for one in tables(report)}
    rows = {row[0]: row[1:] for row in named["short"].rows}
    assert rows["kernel memory, of the device"] == (
        f"{256 * 96 / size:.2%}", f"{2 * (192 + 2 * 40) / size:.2%}", "0.00%",
    )  # fmt: skip
    assert rows["kernel memory, of that of struct page"][0] == f"{256 * 96 / (size / 64):.2f}"
    life = report.workloads[-1].life
    assert life is not None
    found = life.linux.told / (life.linux.told + life.linux.missed)
    assert rows["the same, as Linux does it"] == ("", "", f"{found:.0%}")
    assert named["memory"].rows[0][-2:] == (f"{256 * 96 / 983:.1f}", f"{256 * 96 / size:.2%}")


def test_unknown_times_are_left_empty(report: StudyReport) -> None:
    rows = next(one for one in tables(report) if one.name == "failure-times").rows
    assert [row[3:5] + row[6:] for row in rows if row[0].endswith("at once")] == [("", "", "", "")]
    assert all(all(row) for row in rows if not row[0].endswith("at once"))


def test_the_table_shows_the_worst_lost_leaf(report: StudyReport) -> None:
    disk = next(one for one in tables(report) if one.name == "disk")
    rows = {row[0]: row[1] for row in disk.rows}
    assert rows["the worst leaf lost, and asked about its pages"] == (
        "10,000 of 10,000 answers say that they are incomplete, 0 are wrong"
    )
    assert rows["pages that the worst leaf tells of"] == "19,200, 25% of the device"


def test_tables_as_text_and_as_markdown() -> None:
    table = Table("n", "A title", ("name", "many"), [("a", "1,000"), ("longer", "5")], "A note.")
    assert list(as_text([table, table]))[:6] == [
        "A title",
        "  NAME     MANY",
        "  a       1,000",
        "  longer      5",
        "  A note.",
        "",
    ]
    assert list(as_markdown(table)) == [
        "| name | many |", "|---|---:|", "| a | 1,000 |", "| longer | 5 |", "", "A note.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (2048, "2.0 KiB"), (3 << 30, "3.0 GiB"), (6 << 40, "6.00 TiB")],
)
def test_sizes_are_shown_with_units(count: int, text: str) -> None:
    assert size(count) == text
