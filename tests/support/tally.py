"""A plugin of pytest: how many tests came out how, as JSON, where the environment says."""

import json
import os
from pathlib import Path

from _pytest.terminal import TerminalReporter

__all__ = ["OUTCOMES", "PLACE"]

PLACE = "WHOSEBLOCK_TALLY"
#: In the order in which pytest tells them.
OUTCOMES = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "error")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Write the counts of this run."""
    counts = {one: len(terminalreporter.stats.get(one, ())) for one in OUTCOMES}
    Path(os.environ[PLACE]).write_text(json.dumps(counts))
