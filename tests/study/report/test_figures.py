"""The figures of a study."""

from pathlib import Path

from tests.cli.test_study import run
from tests.support.tools import Missing

from whoseblock.study.results import StudyReport


def test_figures_are_drawn_reproducibly(
    demo_image: Path, report: StudyReport, tmp_path: Path
) -> None:
    try:
        from whoseblock.study.report.figures import draw

        drawn = list(draw(report, tmp_path / "new" / "folder"))
    except ImportError:
        raise Missing("matplotlib is not here: install the extra 'study'") from None
    assert {path.suffix for path in drawn} == {".svg", ".png"}
    assert len(drawn) == 14
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in draw(report, tmp_path / "again")] == before
    code, _, said = run(
        demo_image, "--no-times", "--steps=10", "--jobs=1", "--figures", tmp_path / "cli"
    )
    assert code == 0
    assert said.count("drew") == len(list((tmp_path / "cli").iterdir())) == 8
