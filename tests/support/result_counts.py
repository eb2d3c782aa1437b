"""A pytest plugin that writes the number of tests of each outcome, and the time of each test file.

It writes JSON to the file that the environment variable `PLACE` names.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

__all__ = ["OUTCOMES", "PLACE", "ResultCounts"]

PLACE = "WHOSEBLOCK_TALLY"
#: In the order in which pytest prints them.
OUTCOMES = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "error")


class ResultCounts:
    """The number of tests of each outcome and each reason to skip, and the seconds of each file."""

    def __init__(self) -> None:
        self.outcomes = Counter[str]()
        self.reasons = Counter[str]()
        self.seconds: dict[str, float] = {}

    def add(self, file: Path) -> None:
        """Add the counts that a run has written."""
        run = json.loads(file.read_text())
        self.outcomes.update(run["outcomes"])
        self.reasons.update(run["reasons"])
        self.seconds.update(run["seconds"])

    def slowest_files(self, count: int) -> list[tuple[str, float]]:
        """Return the test files that took longest, slowest first; all of them if `count` is 0."""
        files = sorted(self.seconds.items(), key=lambda item: (-item[1], item[0]))
        return files[: count or None]


def _seconds_of_files(reports: Iterable[object]) -> dict[str, float]:
    """Add up the time of each file's tests: setup, call and teardown.

    With pytest-xdist, these are the seconds of all workers together.
    """
    seconds: dict[str, float] = {}
    for report in reports:
        if isinstance(report, pytest.TestReport):
            file = report.nodeid.partition("::")[0]
            seconds[file] = seconds.get(file, 0.0) + report.duration
    return seconds


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Write the counts and times of this run."""
    stats = terminalreporter.stats
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in stats.get("skipped", ())
        if isinstance(report.longrepr, tuple)
    )
    run = {
        "outcomes": {one: len(stats.get(one, ())) for one in OUTCOMES},
        "reasons": reasons,
        "seconds": _seconds_of_files(chain.from_iterable(stats.values())),
    }
    Path(os.environ[PLACE]).write_text(json.dumps(run))
