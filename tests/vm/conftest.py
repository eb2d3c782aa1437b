"""One boot for all scenarios of a file that were asked for, and what each of them took."""

from collections.abc import Callable

import pytest
from tests.vm.machine import GUEST, Group

_groups: dict[str, Group] = {}


@pytest.fixture
def run_group(request: pytest.FixtureRequest) -> Callable[[str], Group]:
    """Give the results of a file's scenarios, for which the first to ask has to wait."""

    def run(name: str) -> Group:
        if name not in _groups:
            items = (item for item in request.session.items if isinstance(item, pytest.Function))
            wanted = [one.callspec.params for one in items if hasattr(one, "callspec")]
            names = [str(one["name"]) for one in wanted if one.get("group") == name]
            _groups[name] = Group(GUEST / f"{name}.py", names)
        return _groups[name]

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, group in _groups.items():
        terminalreporter.section(f"{name}: {group.seconds:.0f} s in a virtual machine")
        for scenario, result in group.results.items():
            terminalreporter.write_line(f"{result.seconds:6.1f} s {result.outcome} {scenario}")
