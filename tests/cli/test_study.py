"""``whoseblock study`` and what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
from tests.support.tools import CHECKOUT

from whoseblock.errors import MissingExtraError, TargetError
from whoseblock.study.results import StudyReport


def run(*words: str | Path, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "study", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "src"), **(environment or {})},
    )
    return done.returncode, done.stdout, done.stderr


def test_without_times_equal_runs_print_the_same(demo_image: Path) -> None:
    words = (demo_image, "--no-times", "--steps=300")
    code, printed, _ = run(*words, "--jobs=1")
    assert code == 0
    assert "disagreements".upper() in printed
    assert run(*words, "--jobs=2")[:2] == (0, printed)
    assert run(*words, "--jobs=1", "--seed=1")[1] != printed


def test_json_is_the_report(demo_image: Path) -> None:
    code, printed, _ = run(demo_image, "--json", "--no-times", "--steps=300", "--jobs=1")
    assert code == 0
    found = msgspec.json.decode(printed, type=StudyReport)
    assert [one.disagreements for one in found.workloads] == [0] * 5
    assert [one.sharing for one in found.sweep] == [1, 2, 4, 8, 16, 32, 64]
    assert not found.times
    assert not found.failure_times


def test_another_image_can_be_swept(demo_image: Path) -> None:
    code, printed, _ = run(
        demo_image, "--sweep", demo_image, "--json", "--no-times", "--steps=10", "--jobs=1"
    )
    assert code == 0
    assert [one["extents"] for one in json.loads(printed)["sweep"]] == [demo_image.name]


def test_an_image_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    code, printed, said = run(tmp_path / "none")
    assert (code, printed) == (TargetError.exit_code, "")
    assert "cannot open" in said


def test_without_matplotlib_figures_are_refused_at_once(demo_image: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name=__name__)\n")
    path = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT / 'src'}"}
    code, printed, said = run(demo_image, "--figures", tmp_path / "none", environment=path)
    assert (code, printed) == (MissingExtraError.exit_code, "")
    assert "whoseblock[study]" in said
