"""A pytest plugin that writes how many tests had which outcome, as JSON, to a named file."""

import json
import os
from collections import Counter
from pathlib import Path

from _pytest.terminal import TerminalReporter

__all__ = ["OUTCOMES", "PLACE", "Tally"]

PLACE = "WHOSEBLOCK_TALLY"
#: In the order in which pytest prints them.
OUTCOMES = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "error")


class Tally:
    """How many tests had each outcome, and how many were skipped for each reason."""

    def __init__(self) -> None:
        self.outcomes = Counter[str]()
        self.reasons = Counter[str]()

    def add(self, file: Path) -> None:
        """Add the counts that a run has written."""
        run = json.loads(file.read_text())
        self.outcomes.update(run["outcomes"])
        self.reasons.update(run["reasons"])


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Write the counts of this run."""
    stats = terminalreporter.stats
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in stats.get("skipped", ())
        if isinstance(report.longrepr, tuple)
    )
    counts = {one: len(stats.get(one, ())) for one in OUTCOMES}
    Path(os.environ[PLACE]).write_text(json.dumps({"outcomes": counts, "reasons": reasons}))
