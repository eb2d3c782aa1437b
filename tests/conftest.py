"""Fixtures, and what happens to a test for which this machine lacks something.

Such a test is skipped, and says what would bring it.  With WHOSEBLOCK_REQUIRE_ALL=1 in the
environment it fails instead: where everything ought to be there, nothing may be skipped unseen.
"""

import fcntl
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from demo.demo import unpack
from hypothesis import HealthCheck, settings
from tests.support.filled_images import Zoo
from tests.support.postgresql_server import Postgres, server
from tests.support.tools import Missing

# How long an example takes is no property of it: other work may be done on this machine.
settings.register_profile(
    "untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")

#: What a test opens for the whole session, and does not close.
_MOST_LEFT_OPEN = 30

_REQUIRE_ALL = os.environ.get("WHOSEBLOCK_REQUIRE_ALL", "") not in ("", "0")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, Missing):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {call.excinfo.value}")
    if _REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"WHOSEBLOCK_REQUIRE_ALL is set, and this was not run: {why}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if _REQUIRE_ALL and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"WHOSEBLOCK_REQUIRE_ALL is set, and not collected: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide one folder that all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has a folder of its own within the session's.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zoo"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def journal_key(session_folder: Path) -> Iterator[Path]:
    """Keep the key of journals in the session's folder, not in the user's state folder."""
    key = session_folder / "journal.key"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHOSEBLOCK_KEY", str(key))
        yield key


@pytest.fixture(scope="session")
def zoo(session_folder: Path) -> Zoo:
    """Provide the filled images, each made at its first use."""
    return Zoo(session_folder)


@pytest.fixture(scope="session")
def demo_image(session_folder: Path) -> Path:
    """Return the demo's image, unpacked once a session; tests only read it."""
    image = session_folder / "demo.img"
    with (session_folder / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.exists():
            unpacking = image.with_suffix(".part")
            unpack(unpacking)
            unpacking.rename(image)
    return image


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Provide a PostgreSQL server that runs until this process ends."""
    with server() as started:
        yield started


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Fail a test that leaves many files open: an ordinary user may have 1024."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    left = len(os.listdir("/proc/self/fd")) - before
    assert left < _MOST_LEFT_OPEN, f"the test left {left} more files open"


@pytest.fixture
def ending_signals() -> Iterator[None]:
    """Reset signals for the children of tests, even if nohup or a shell's & ignores them."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(params=["sqlite", "postgresql"])
def journal_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Provide the URL of a journal that does not exist yet, in either kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "journal.sqlite")
    started: Postgres = request.getfixturevalue("postgres")
    return started.new_database()
