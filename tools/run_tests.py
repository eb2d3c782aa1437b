"""``make test``: the tests that run side by side, then those that need the machine to themselves.

    python -m tools.run_tests WORKERS [ARGUMENTS OF PYTEST]

Both run whatever the result of the first.  The end lists why tests were skipped; the last line has
the sum.  With pytest's option ``--durations=N`` it also lists the N files whose tests took longest,
with the time of all their tests together.  Each named path goes to the run that it belongs to; if
all belong to one run, the other is left out.
"""

import os
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

import pytest
from tests.support.result_counts import OUTCOMES, PLACE, ResultCounts

ALONE = Path("tests/alone")
_WIDTH = 100


def _is_path(word: str) -> bool:
    return not word.startswith("-") and Path(word.partition("::")[0]).exists()


def _is_alone(word: str) -> bool:
    return Path(word.partition("::")[0]).resolve().is_relative_to(ALONE.resolve())


def _runs(workers: str, words: list[str]) -> list[list[str]]:
    """Return the arguments of each run."""
    paths = [word for word in words if _is_path(word)]
    options = [word for word in words if not _is_path(word)]
    alone = [word for word in paths if _is_alone(word)]
    others = [word for word in paths if not _is_alone(word)]
    runs = []
    if others or not paths:
        side_by_side = ["-n", workers, "--maxprocesses", "8", "--dist", "worksteal"]
        runs.append([*side_by_side, *options, *others])
    if alone or not paths:
        # Last, so that it holds whatever the options say.
        runs.append([*options, *(alone or [str(ALONE)]), "-n", "0"])
    return runs


def _files_to_time(words: list[str]) -> int | None:
    """Return the number that ``--durations`` asks for, or None without that option."""
    number = None
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name == "--durations":
            value = value if equals else following
            number = int(value) if value.isdecimal() else None
    return number


def _run(words: list[str], total: ResultCounts) -> int:
    """Run pytest, and add its counts to the total; return its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "counts"
        command = [sys.executable, "-m", "pytest", "-p", "tests.support.result_counts", *words]
        code = subprocess.call(command, env=os.environ | {PLACE: str(place)})
        if place.exists():
            total.add(place)
    return code


def main() -> int:
    """Run both; return the exit status of the first that failed."""
    begun, total, codes = time.monotonic(), ResultCounts(), []
    for words in _runs(sys.argv[1], sys.argv[2:]):
        codes.append(_run(words, total))
        if codes[-1] == pytest.ExitCode.INTERRUPTED:
            break
    timed = _files_to_time(sys.argv[2:])
    if timed is not None:
        print("\nseconds of each test file, all its tests together:")
        for file, seconds in total.slowest_files(timed):
            print(f"{seconds:>9.2f}  {file}")
    if total.reasons:
        print("\nskipped, and why:")
        for reason, count in total.reasons.most_common():
            print(f"  {count:>4}  {reason}")
    if len(codes) > 1:
        counts = total.outcomes
        told = ", ".join(f"{counts[one]} {one}" for one in OUTCOMES if counts[one])
        told = told or "no tests ran"
        line = f" both runs: {told} in {time.monotonic() - begun:.2f}s "
        print(f"{line:=^{_WIDTH}}")
    # That a choice of tests has none of one run is no fault.
    wrong = [
        code
        for code in codes
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    ]
    return wrong[0] if wrong else min(codes)


if __name__ == "__main__":
    sys.exit(main())
