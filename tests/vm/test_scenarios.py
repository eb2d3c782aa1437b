"""Real kernels: every scenario of tests/vm/guest is a test here, run in a virtual machine.

`make vm-test` runs them; `make test` does not.
"""

from collections.abc import Callable

import pytest
from tests.support.tools import Missing
from tests.vm.machine import GUEST_FILES, Group, scenarios


@pytest.mark.parametrize(
    ("group", "name"),
    [(file.stem, name) for file in GUEST_FILES for name in scenarios(file)],
)
def test_scenario(group: str, name: str, run_group: Callable[[str], Group]) -> None:
    result = run_group(group).result(name)
    if result.outcome == "skipped":
        raise Missing(result.text)
    if result.outcome != "passed":
        pytest.fail(f"{result.outcome} in the virtual machine:\n{result.text}", pytrace=False)
