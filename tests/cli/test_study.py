"""``whoseblock study``, what it prints, and what follows from the numbers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from bench.study import render
from demo.demo import unpack
from tests.support.tools import CHECKOUT, Missing

from whoseblock.errors import MissingExtraError, OutOfDeviceError, TargetError
from whoseblock.study.arithmetic import break_even, extrapolate
from whoseblock.study.dax import DaxDevice, Pagemap
from whoseblock.study.results import EntryTime, FailureTime, Report
from whoseblock.study.sizes import rmap_reserve
from whoseblock.study.sources import MadeUpSource
from whoseblock.study.study import Plan, study
from whoseblock.study.table import Table, as_markdown, as_text, size, tables

RESULTS = CHECKOUT / "docs" / "study" / "results.json"
DOCUMENT = CHECKOUT / "docs" / "study.md"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("study") / "disk.img"
    unpack(image)
    return image


@pytest.fixture(scope="module")
def report(demo: Path) -> Report:
    plan = Plan(str(demo), sweep_pages=64, life_steps=500)
    return study(plan)


def run(*words: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "study", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "src"), **(environment or {})},
    )
    return done.returncode, done.stdout, done.stderr


def test_without_times_every_run_is_the_same(demo: Path) -> None:
    words = (demo, "--no-times", "--steps=300")
    code, printed, _ = run(*words, "--jobs=1")
    assert code == 0
    assert "disagreements".upper() in printed
    assert run(*words, "--jobs=2")[:2] == (0, printed)
    assert run(*words, "--jobs=1", "--seed=1")[1] != printed


def test_json_is_the_report(demo: Path) -> None:
    code, printed, _ = run(demo, "--json", "--no-times", "--steps=300", "--jobs=1")
    assert code == 0
    found = msgspec.json.decode(printed, type=Report)
    assert [one.disagreements for one in found.workloads] == [0] * 5
    assert [one.sharing for one in found.sweep] == [1, 2, 4, 8, 16, 32, 64]
    assert not found.times
    assert not found.failure_times


def test_another_image_can_be_swept(demo: Path) -> None:
    code, printed, _ = run(demo, "--sweep", demo, "--json", "--no-times", "--steps=10", "--jobs=1")
    assert code == 0
    assert [one["extents"] for one in json.loads(printed)["sweep"]] == ["disk.img"]


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    code, printed, said = run(tmp_path / "none")
    assert (code, printed) == (TargetError.exit_code, "")
    assert "cannot open" in said


def test_pictures(demo: Path, report: Report, tmp_path: Path) -> None:
    try:
        from whoseblock.study.figures import draw

        drawn = list(draw(report, tmp_path / "new" / "folder"))
    except ImportError:
        raise Missing("matplotlib is not here: install the extra 'study'") from None
    assert {path.suffix for path in drawn} == {".svg", ".png"}
    assert len(drawn) == 14
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in draw(report, tmp_path / "again")] == before
    code, _, said = run(demo, "--no-times", "--steps=10", "--jobs=1", "--figures", tmp_path / "cli")
    assert code == 0
    assert said.count("drew") == len(list((tmp_path / "cli").iterdir())) == 8


def test_without_matplotlib_pictures_are_refused_at_once(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name=__name__)\n")
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT / 'src'}"}
    code, printed, said = run(demo, "--figures", tmp_path / "none", environment=path)
    assert (code, printed) == (MissingExtraError.exit_code, "")
    assert "whoseblock[study]" in said


def test_the_sweep_follows_the_formula(report: Report) -> None:
    table = next(one for one in tables(report) if one.name == "sweep")
    for row in table.rows:
        assert float(row[2]) == float(row[3])


def test_break_even_by_hand(report: Report) -> None:
    put_in = {"per page": 2e-6, "per extent": 2e-6, "on demand": 1e-6}
    taken_out = {"per page": 1.5e-6, "per extent": 1e-6, "on demand": 0.5e-6}
    entry = EntryTime("x", 1.0, 10, 1e-6, put_in, 1e-6, taken_out)
    failures = (
        FailureTime("per page", 1, 1e-6, 0),
        FailureTime("per extent", 1, 2e-4, 0),
        FailureTime("on demand, cold", 1, 101e-6, 3, median=1e-6, worst=1e-3),
    )
    some = msgspec.structs.replace(report, times=(entry,), failure_times=failures)
    # A million entries cost 1 s more to put in, and 1 s to take out; a failure saves 100 µs. Per
    # extent it never pays.
    assert break_even(some) == pytest.approx({"per page": 20_000})
    assert break_even(some, 10)["per page"] == pytest.approx(2e6 / 1009)
    assert break_even(msgspec.structs.replace(report, times=())) == {}


def test_larger_devices_are_like_the_image(demo: Path, report: Report) -> None:
    size = demo.stat().st_size
    for one in extrapolate(report):
        assert one.memory["per page"] == pytest.approx(256 * 96 / size * one.size, rel=1e-6)
        assert one.memory["on demand"] == 0
        assert 0 < one.on_disk < one.kept_back < one.size / 50
    titles = [table.title for table in tables(report) if table.name == "extrapolated"]
    assert "not measured" in titles[0]


def test_shares_are_of_the_device(demo: Path, report: Report) -> None:
    size, named = demo.stat().st_size, {one.name: one for one in tables(report)}
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


def test_what_is_not_known_is_left_empty(report: Report) -> None:
    rows = next(one for one in tables(report) if one.name == "failure-times").rows
    assert [row[3:5] + row[6:] for row in rows if row[0].endswith("at once")] == [("", "", "", "")]
    assert all(all(row) for row in rows if not row[0].endswith("at once"))


def test_a_leaf_that_is_lost_is_in_the_table(report: Report) -> None:
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
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_a_device_without_a_holder_knows_nothing() -> None:
    with MadeUpSource(10, 2, seed=1) as source:
        media = source.media()
        outcome = Pagemap(0x100, DaxDevice(media)).memory_failure(0x101)
        assert (outcome.kind, outcome.cleared) == ("unknown", False)
        media.close()


def test_other_page_frames_are_refused() -> None:
    with MadeUpSource(10, 2, seed=1) as source:
        media = source.media()
        pagemap = Pagemap(0x100, DaxDevice(media))
        for pfn in (0xFF, 0x100 + source.extents.pages):
            with pytest.raises(OutOfDeviceError, match=f"{pfn:#x}"):
                pagemap.memory_failure(pfn)
        media.close()


# ---------------------------------------------------------------------- the document


def test_the_document_shows_the_results_beside_it() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert render(text, json.loads(RESULTS.read_text("utf-8"))) == text, "run make study"


def test_the_document_shows_every_picture() -> None:
    text = DOCUMENT.read_text("utf-8")
    shown = set(re.findall(r"!\[[^\]]+\]\(study/([\w-]+\.svg)\)", text))
    assert shown == {path.name for path in RESULTS.parent.glob("*.svg")}
    assert {Path(name).stem for name in shown} == {
        path.stem for path in RESULTS.parent.glob("*.png")
    }


def test_what_is_committed_agreed_with_itself() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    report = msgspec.convert(results["report"], Report)
    assert report.disagreements == 0
    assert all(one.associations >= 1_000_000 for one in report.workloads[:4])
    # Each page of every entry was compared when it came, and all of them in the end.
    some = (*report.workloads, *report.sweep, *(one.result for one in report.pieces))
    assert all(one.checked >= one.associations + one.pages for one in some)
    # What it took when it was measured: nothing is timed here.
    assert results["processors"] == 2
    assert results["whole"] < 60
    assert report.processor_seconds < 2 * 60


def test_what_is_committed_follows_the_formulas() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    report, paid = msgspec.convert(results["report"], Report), results["price"]
    # Of 1 GiB in four groups, one of which has a log of 64 MiB; and four roots from the beginning.
    kept = 3 * rmap_reserve(65_536) + rmap_reserve(65_536 - 16_384) + 4
    assert paid["space_without"] - paid["space_with"] == kept * 4096
    # An owner's record is 40 bytes, an extent's 192, a page's root 16.
    for one in report.pieces:
        sharing = round(one.result.sharing)
        per_page, per_extent, _ = (tracker.memory for tracker in one.result.trackers)
        assert per_page == one.result.pages * (16 + 40 * sharing)
        assert per_extent == one.result.pages // one.length * (192 + 40 * sharing)
    whole = report.workloads[0].trackers[0].memory
    assert whole / 2 < report.in_folios < whole


def test_numbers_that_the_document_says_in_words() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    report, paid = msgspec.convert(results["report"], Report), results["price"]
    # "about twice as long", "about a hundred microseconds", "twice the transactions, two and a half
    # times the buffers"
    assert 1.5 < paid["time"] < 2.6
    assert 50e-6 < paid["write_with"] - paid["write_without"] < 200e-6
    ratios = [with_it / without for with_it, without in paid["work"].values()]
    assert ratios[0] == pytest.approx(2, abs=0.2)
    assert all(ratio == pytest.approx(2.6, abs=0.3) for ratio in ratios[1:])
    # "many thousands of failures in a million faults"
    assert all(failures > 5000 for failures in break_even(report).values())
    # "per page pays sooner than per extent"
    found = break_even(report)
    assert found["per page"] < found["per extent"]
    # "a few microseconds"
    shared = [one.seconds for one in report.write_times if one.writes]
    assert len(shared) == len(report.write_times) - 1
    assert all(1e-6 < one["per page"] < 6e-6 for one in shared)
    assert all(1e-6 < one["per extent"] < 8e-6 for one in shared)
    # On demand adds least.
    for time in report.times:
        assert all(time.added["on demand"] <= added for added in time.added.values())
        assert all(time.out_added["on demand"] <= added for added in time.out_added.values())
    # "which soon is more than struct page", "a fraction of that", "a fifth of what is kept back"
    per_page, per_extent, _ = (tracker.memory for tracker in report.workloads[0].trackers)
    assert per_page > 64 * report.upkeep.size / 4096
    assert per_extent < per_page / 2
    assert 0.2 < per_extent / report.upkeep.kept_bytes < 0.3
    # "twenty to thirty times"
    assert 20 < report.upkeep.kept_bytes / report.upkeep.rmap_bytes < 30
    # "below the third page", "below the second"
    for sharing, pays in ((2, 3), (8, 2)):
        some = [one for one in report.pieces if round(one.result.sharing) == sharing]
        dearer = {
            one.length
            for one in some
            if one.result.trackers[1].memory > one.result.trackers[0].memory
        }
        assert dearer == {length for length in (one.length for one in some) if length < pays}
