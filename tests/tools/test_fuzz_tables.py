"""A sample of the inputs that `python -m tools.fuzz_tables` tries at length."""

from pathlib import Path

import pytest
from tests.support.tools import program
from tools.fuzz_tables import FORMATS, run_fuzzer


@pytest.mark.parametrize("name", FORMATS)
def test_changed_tables_cost_no_more_than_an_error(name: str, session_folder: Path) -> None:
    program("sfdisk")
    outcomes = list(run_fuzzer(name, session_folder, 60, 18))
    assert not [(one.number, one.wrong) for one in outcomes if one.wrong]
    # Both what is refused and what is followed.
    assert len({one.result for one in outcomes}) > 1
