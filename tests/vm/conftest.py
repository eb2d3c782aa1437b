"""One boot for all scenarios of a file that were asked for, and what each of them took."""

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tests.vm.machine import GUEST, Group, need_machine

#: An emulated machine keeps one processor busy, and takes three gigabytes of memory.
_MOST = min(os.cpu_count() or 1, 4)

_groups: dict[str, Future[Group]] = {}


@pytest.fixture
def run_group(request: pytest.FixtureRequest) -> Callable[[str], Group]:
    """Provide the results of a file's scenarios; the first request waits for them."""
    if not _groups:
        need_machine()
        wanted = defaultdict(list)
        for item in request.session.items:
            if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
                params = item.callspec.params
                wanted[str(params["group"])].append(str(params["name"]))
        pool = ThreadPoolExecutor(_MOST)
        # The daemon's take longest, and are last in the alphabet.
        for name in sorted(wanted, reverse=True):
            _groups[name] = pool.submit(Group, GUEST / f"{name}.py", wanted[name])
        pool.shutdown(wait=False)
    return lambda name: _groups[name].result()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, future in sorted(_groups.items()):
        if not future.done() or future.exception():
            continue
        group = future.result()
        terminalreporter.section(f"{name}: {group.seconds:.0f} s in a virtual machine")
        for scenario, result in group.results.items():
            terminalreporter.write_line(f"{result.seconds:6.1f} s {result.outcome} {scenario}")
