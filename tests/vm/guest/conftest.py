"""Fixtures of what runs in the virtual machine, and how the host learns of the outcome."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from tests.support.tools import Missing
from tests.vm.guest.disk import Disk
from tests.vm.guest.machine import KernelLog, Undo, clear_trace, modprobe
from tests.vm.guest.pmem import Namespaces

#: One JSON object a line, written out at once: the machine may not live to the end.
_RESULTS = Path(os.environ.get("WHOSEBLOCK_VM_RESULTS", "results.jsonl"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, Missing):
        # The host skips it, too.
        report.outcome = "skipped"
        report.longrepr = str(call.excinfo.value)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # Each phase has the sections of those before it, too.
    own = [one for one in report.sections if one[0].endswith(f" {report.when}") and one[1].strip()]
    said = [f"--- {title} ---\n{text}" for title, text in own]
    line = {
        "test": report.nodeid.partition("::")[2],
        "when": report.when,
        "outcome": report.outcome,
        "seconds": round(report.duration, 2),
        "text": "\n".join([report.longreprtext, *said]),
    }
    with _RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def undo() -> Iterator[Undo]:
    """Undo the changes of a scenario, the last first."""
    with Undo() as undoing:
        yield undoing


@pytest.fixture
def kernel_log() -> KernelLog:
    """Provide the kernel's messages from now on."""
    return KernelLog()


@pytest.fixture(scope="session")
def _nvdimm() -> Namespaces:
    modprobe("nd_pmem", "nfit", "xfs", "hwpoison_inject")
    return Namespaces()


@pytest.fixture
def namespaces(_nvdimm: Namespaces) -> Iterator[Namespaces]:
    """Provide persistent memory to make namespaces of; new ones have no poisoned page."""
    clear_trace()
    yield _nvdimm
    _nvdimm.destroy()


@pytest.fixture(scope="session")
def _scsi() -> Disk:
    modprobe("xfs", "dm-mod")
    return Disk(400)


@pytest.fixture
def disk(_scsi: Disk, undo: Undo) -> Disk:
    """Provide an ordinary disk, which has no errors afterwards."""
    undo.callback(_scsi.heal)
    return _scsi
