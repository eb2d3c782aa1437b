"""The committed results, and docs/study.md, which shows them."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from bench.study import render
from tests.support.tools import CHECKOUT

from whoseblock.study.report.arithmetic import break_even
from whoseblock.study.results import StudyReport
from whoseblock.study.sizes import rmap_reserve

RESULTS = CHECKOUT / "docs" / "study" / "results.json"
DOCUMENT = CHECKOUT / "docs" / "study.md"


def test_the_document_shows_the_results_beside_it() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert render(text, json.loads(RESULTS.read_text("utf-8"))) == text, "run make study"


def test_the_document_shows_every_figure() -> None:
    text = DOCUMENT.read_text("utf-8")
    shown = set(re.findall(r"!\[[^\]]+\]\(study/([\w-]+\.svg)\)", text))
    assert shown == {path.name for path in RESULTS.parent.glob("*.svg")}
    assert {Path(name).stem for name in shown} == {
        path.stem for path in RESULTS.parent.glob("*.png")
    }


def test_the_committed_designs_agree() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    report = msgspec.convert(results["report"], StudyReport)
    assert report.disagreements == 0
    assert all(one.associations >= 1_000_000 for one in report.workloads[:4])
    # Each page of every entry was compared when it came, and all of them in the end.
    some = (*report.workloads, *report.sweep, *(one.result for one in report.pieces))
    assert all(one.checked >= one.associations + one.pages for one in some)
    # What it took when it was measured: nothing is timed here.
    assert results["processors"] == 2
    assert results["whole"] < 60
    assert report.processor_seconds < 2 * 60


def test_the_committed_results_follow_the_formulas() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    report, paid = msgspec.convert(results["report"], StudyReport), results["price"]
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


def test_the_results_support_the_words_of_the_document() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    report, paid = msgspec.convert(results["report"], StudyReport), results["price"]
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
