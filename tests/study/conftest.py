"""Fixtures of the tests of the study."""

from pathlib import Path

import pytest

from whoseblock.study.results import StudyReport
from whoseblock.study.study import Plan, study


@pytest.fixture(scope="session")
def report(demo_image: Path) -> StudyReport:
    """Return the report of a short study of the demo's image."""
    plan = Plan(str(demo_image), sweep_pages=64, life_steps=500)
    return study(plan)
