"""A sample of the rounds of `tools.stale_copies`."""

from pathlib import Path

import pytest
from tools.stale_copies import main, try_stale_copies


@pytest.mark.parametrize("size", [4096, 3 << 20])
@pytest.mark.parametrize("updates", [1, 100])
def test_no_stale_copy_is_accepted_by_default(tmp_path: Path, size: int, updates: int) -> None:
    counts = try_stale_copies(tmp_path, size, updates, 5, "sample")
    assert counts.offered >= 2
    assert counts.accepted == 0
    if updates == 1 and size > 4096:
        # By the comparison alone each would be.
        assert counts.accepted_older == counts.offered


def test_the_program_reports_and_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sizes", "64K", "--updates", "1", "--rounds", "1", "--folder", str(tmp_path)]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "2 stale copies offered, 0 accepted, 2 with --accept-older"
    )
    assert not list(tmp_path.iterdir())
