"""A small sample of the adversarial round, which `python -m tools.adversary` runs at length."""

import subprocess
import sys
from pathlib import Path

from tests.support.tools import CHECKOUT, need_loop_mounts
from tools.adversary.damaged import run_cases
from tools.adversary.healthy import Outcome, Round
from tools.adversary.wounds import WEIGHTS


def test_damaged_images_give_no_wrong_answer(tmp_path: Path) -> None:
    need_loop_mounts()
    tally = run_cases(tmp_path, 1, range(300), ["1k-parent", "grown-noparent"], lambda _: None)
    assert not tally.wrong, "\n".join(map(str, tally.wrong[:5]))
    assert set(tally.cases) == set(WEIGHTS), "some kind of damage was never drawn"
    assert sum(tally.answers.values()) > 3000
    # Damage that no answer shows would test nothing.
    assert sum(tally.incomplete.values()) > 300


def test_odd_healthy_images_are_answered_as_the_kernel_does(tmp_path: Path) -> None:
    need_loop_mounts()
    outcomes: list[Outcome] = []
    asked = Round(tmp_path, 1, 400, outcomes.append)
    asked.planned(range(9, 11))
    for outcome in outcomes:
        assert not outcome.skipped, outcome.skipped
        assert not outcome.wrong, outcome.wrong[:3]
        assert outcome.questions > 400


def test_the_help_of_the_program() -> None:
    command = [sys.executable, "-m", "tools.adversary", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    for part in ("healthy", "special", "damaged"):
        assert part in done.stdout
