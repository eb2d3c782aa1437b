"""The completion of each shell."""

import pytest
from tests.support.commands import whoseblock


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_every_shell(shell: str) -> None:
    done = whoseblock("completion", shell)
    assert done.returncode == 0
    assert "_WHOSEBLOCK_COMPLETE" in done.stdout
