"""A journal that cannot be kept refuses, in a sentence with a hint, and takes up again later."""

import contextlib
import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.journals import PAGE, answer, file_row, opened, report
from tests.support.mounts import small_filesystem
from tests.support.postgresql_server import Postgres, server
from tests.support.tools import need_root
from tests.support.tools import run as run_program

from whoseblock.errors import JournalError, MissingExtraError
from whoseblock.journal import Limits, PlannedStep, State, open_journal
from whoseblock.journal.faults import as_journal_error
from whoseblock.journal.journal import Journal
from whoseblock.journal.location import locate
from whoseblock.journal.run import Run
from whoseblock.ranges import ByteRange


def step_of(run: Run) -> int:
    """Make a failure with a plan; give its one step."""
    failure = run.record_failure("pmem0", PAGE, report()).failure
    return run.plan([PlannedStep("zero", {})], [failure]).steps[0].id


def state_of(journal: Journal) -> State:
    """Return the state of that step."""
    return journal.history(1).plans[0].steps[0].state


def refusal(of: object) -> JournalError:
    """See that the journal refuses; give the error, which has a sentence and a hint."""
    assert callable(of)
    with pytest.raises(JournalError) as caught:
        of()
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "sqlalche" not in str(caught.value)
    return caught.value


def fill(ballast: Path) -> None:
    """Write to a file until not one byte more is taken."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_refuses(tmp_path: Path, kind: str) -> None:
    need_root()
    with (
        small_filesystem(kind, tmp_path / "image", 4 << 20) as folder,
        opened(str(folder / "journal.sqlite")) as (journal, run),
    ):
        step = step_of(run)
        fill(folder / "ballast")
        # What the log already has room for is still durable; soon nothing is.
        written: list[int] = []

        def write_more() -> None:
            for number in range(10_000):
                run.record_failure("sda", ByteRange(number, 1), report("x" * 1000))
                written.append(number)

        error = refusal(write_more)
        assert re.search("full disk|cannot be read or written", str(error))
        assert re.search("room|full", error.hint)
        refusal(lambda: run.record_finding(1, answer(file_row("/" + "x" * 100_000))))
        assert len(list(journal.failures())) == len(written) + 1
        assert state_of(journal) is State.PLANNED
        (folder / "ballast").unlink()
        run.started(step)
        assert state_of(journal) is State.STARTED


def test_a_new_journal_on_a_full_disk(tmp_path: Path) -> None:
    need_root()
    with small_filesystem("tmpfs", tmp_path / "image", 64 << 10) as folder:
        refusal(lambda: open_journal(str(folder / "journal.sqlite")))


def test_a_filesystem_that_is_read_only(tmp_path: Path) -> None:
    need_root()
    with small_filesystem("tmpfs", tmp_path / "image", 4 << 20) as folder:
        file = str(folder / "journal.sqlite")
        with opened(file) as (_, run):
            step_of(run)
        run_program(["mount", "-o", "remount,ro", folder])
        refusal(lambda: open_journal(file))
        refusal(lambda: open_journal(str(folder / "new" / "journal.sqlite")))
        with open_journal(file, write=False) as journal:
            assert state_of(journal) is State.PLANNED
        run_program(["mount", "-o", "remount,rw", folder])
        with opened(file) as (journal, _):
            assert state_of(journal) is State.PLANNED


def test_a_file_that_is_no_journal(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    file.write_bytes(b"once upon a time" * 1000)
    for write in (True, False):
        assert "not a SQLite database" in str(refusal(lambda: open_journal(str(file), write=write)))  # noqa: B023 - called at once
    assert file.read_bytes() == b"once upon a time" * 1000
    file.unlink()
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE addresses (name)")
    other.close()
    assert "not a journal" in str(refusal(lambda: open_journal(str(file))))


def test_a_damaged_journal(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with opened(str(file)) as (_, run):
        step_of(run)
    size = file.stat().st_size
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(b"\xa5" * (size - 4096))
    assert "is damaged" in str(refusal(lambda: open_journal(str(file))))
    with file.open("r+b") as damaged:
        damaged.truncate(100)
    refusal(lambda: open_journal(str(file)))


def test_a_removed_file_of_the_spool(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with opened(str(file)) as (journal, run):
        step = step_of(run)
        file.rename(tmp_path / "elsewhere")
        assert "removed or replaced" in str(refusal(lambda: run.started(step)))
        assert not file.exists()
        file.touch()
        assert "removed or replaced" in str(refusal(lambda: run.started(step)))
        assert state_of(journal) is State.PLANNED
        (tmp_path / "elsewhere").rename(file)
        run.started(step)


def test_a_missing_journal_is_not_created(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    error = refusal(lambda: open_journal(str(folder / "journal.sqlite"), write=False))
    assert "there is no journal yet" in str(error)
    assert not folder.exists()
    (tmp_path / "empty").touch()
    assert "no journal yet" in str(
        refusal(lambda: open_journal(str(tmp_path / "empty"), write=False))
    )
    assert (tmp_path / "empty").stat().st_size == 0
    refusal(lambda: open_journal(str(tmp_path)))
    (tmp_path / "file").touch()
    refusal(lambda: open_journal(str(tmp_path / "file" / "journal.sqlite")))


def test_other_users_cannot_read_the_files(tmp_path: Path) -> None:
    file = tmp_path / "new" / "journal.sqlite"
    with opened(str(file)) as (_, run):
        step_of(run)
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert {one.stat().st_mode & 0o777 for one in file.parent.iterdir()} == {0o600}


def test_another_writer_for_too_long(tmp_path: Path) -> None:
    file = str(tmp_path / "journal.sqlite")
    with opened(file, limits=Limits(writer_wait_s=0.2)) as (journal, run):
        step = step_of(run)
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert "by another process" in str(refusal(lambda: run.started(step)))
        # Readers do not wait.
        assert state_of(journal) is State.PLANNED
        other.execute("COMMIT")
        other.close()
        run.started(step)


def test_the_error_that_ends_a_run_is_not_hidden_by_the_journal(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"

    def interrupted() -> None:
        with opened(str(file)):
            file.unlink()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(JournalError, match="removed"), opened(str(file)):
        file.unlink()


# ------------------------------------------------------------------ PostgreSQL


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """Provide a server that tests may stop."""
    with server() as started:
        yield started


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_stops(
    own_server: Postgres, how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    url = own_server.new_database()
    with opened(url) as (journal, run):
        step = step_of(run)
        own_server.stop(how)
        try:
            refusal(lambda: run.started(step))
            refusal(lambda: run.started(step))
            refusal(lambda: list(journal.failures()))
            refusal(lambda: open_journal(url))
        finally:
            own_server.start()
        assert state_of(journal) is State.PLANNED
        run.started(step)
        assert state_of(journal) is State.STARTED
    assert caplog.records == []


def test_a_connection_that_is_cut(own_server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    url = own_server.new_database()
    with opened(url) as (journal, run):
        step = step_of(run)
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> 'postgres'"
        own_server.sql(cut)
        # The server is there: a new connection is made without a word.
        run.started(step)
        assert state_of(journal) is State.STARTED
    assert caplog.records == []


def test_an_unresponsive_server(own_server: Postgres) -> None:
    need_root()
    limits = Limits(server_wait_s=1)
    url = own_server.new_database()
    with opened(url, limits=limits) as (journal, run):
        step = step_of(run)
        with own_server.paused():
            refusal(lambda: run.started(step))
            refusal(lambda: open_journal(url, limits=limits))
        assert state_of(journal) is State.PLANNED
        run.started(step)


def test_another_session_for_too_long(own_server: Postgres) -> None:
    url = own_server.new_database()
    database = url.split("/")[3].partition("?")[0]
    with opened(url, limits=Limits(writer_wait_s=1)) as (_, run):
        step = step_of(run)
        hold = "BEGIN; SELECT id FROM steps FOR UPDATE; SELECT pg_sleep(8)"
        holder = threading.Thread(target=own_server.sql, args=(hold, database))
        holder.start()
        try:
            while "pg_sleep" not in own_server.sql(
                "SELECT query FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            ):
                pass
            assert "by another process" in str(refusal(lambda: run.started(step)))
        finally:
            holder.join()
        run.started(step)


def test_a_process_with_read_access_only(own_server: Postgres) -> None:
    url = own_server.new_database()
    database = url.split("/")[3].partition("?")[0]
    own_server.sql("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    reader = url.replace("postgres@", "reader@")
    assert "no journal yet" in str(refusal(lambda: open_journal(reader, write=False)))
    with opened(url) as (_, run):
        step_of(run)
    refusal(lambda: list(open_journal(reader, write=False).failures()))
    own_server.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", database)
    with open_journal(reader, write=False) as journal:
        assert state_of(journal) is State.PLANNED
    with open_journal(reader) as journal:
        assert "does not permit" in str(refusal(lambda: journal.begin_run([], "1")))
    own_server.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with open_journal(url) as journal:
        assert "cannot be written" in str(refusal(lambda: journal.begin_run([], "1")))


def test_passwords(own_server: Postgres) -> None:
    own_server.sql("DROP ROLE IF EXISTS careful; CREATE ROLE careful SUPERUSER LOGIN")
    own_server.sql("ALTER ROLE careful PASSWORD 's3cr3t/@:é%'")
    own_server.ask_for_password("careful")
    url = own_server.new_database().replace("postgres@", "careful:s3cr3t%2F%40%3A%C3%A9%25@")
    # The server reads its rules when it comes to it.
    deadline = time.monotonic() + 10
    wrong = url.replace("s3cr3t", "s3cr3t2")
    while True:
        # A server that closes the connection at once may be quicker than its own reason.
        try:
            open_journal(wrong).close()
        except JournalError as refused:
            error = refused
            if "refuses this user" in str(error):
                break
        assert time.monotonic() < deadline
    assert "s3cr3t" not in f"{error} {error.hint}"
    with opened(url) as (journal, run):
        step_of(run)
        assert state_of(journal) is State.PLANNED
        assert "s3cr3t" not in journal.name


def test_a_database_or_a_server_that_is_not_there(own_server: Postgres) -> None:
    assert "does not exist" in str(refusal(lambda: open_journal(own_server.url("nothing"))))
    for url in ("postgresql://u@/d?host=/nonexistent", "postgresql://u:secret@127.0.0.1:1/d"):
        error = refusal(lambda: open_journal(url))  # noqa: B023 - called at once
        assert "cannot be reached" in str(error)
        assert "secret" not in f"{error} {error.hint}"


def _farewell(of_driver: ModuleType) -> None:
    """Refuse as pg8000 does when the server is quicker to hang up than it is to say goodbye."""
    try:
        raise of_driver.DatabaseError(
            {"S": "FATAL", "C": "3D000", "M": 'database "d" does not exist'}
        )
    finally:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _farewell_as_network_error(of_driver: ModuleType) -> None:
    """Break the connection in the same way, so that the driver detects it."""
    try:
        _farewell(of_driver)
    except OSError as broken:
        raise of_driver.InterfaceError("network error") from broken


@pytest.mark.parametrize("refuse", [_farewell, _farewell_as_network_error])
def test_a_refusal_is_reported_despite_the_broken_connection(
    refuse: Callable[[ModuleType], None],
) -> None:
    # The reason comes with the refusal; what the driver raises in the end is a broken pipe.
    url = "postgresql://u:secret@db.example/d"
    of_driver = import_module("pg8000.exceptions")
    with pytest.raises((OSError, of_driver.InterfaceError)) as caught:
        refuse(of_driver)
    error = as_journal_error(caught.value, locate(url))
    assert "does not exist: database" in str(error)
    assert error.hint == "create the database: createdb NAME"


def test_without_the_driver_there_is_a_sentence(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pg8000'] = None\nfrom whoseblock.cli import main; main()"
    url = "postgresql://u:secret@localhost/d"
    done = subprocess.run(
        [sys.executable, "-c", code, "journal", "list", "--journal", url],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == MissingExtraError.exit_code
    sentence, hint = done.stderr.splitlines()
    assert "needs pg8000; install whoseblock[postgresql]" in sentence
    assert "whoseblock[postgresql]" in hint
    assert "secret" not in done.stderr
