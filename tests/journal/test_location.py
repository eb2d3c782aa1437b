"""The place of the journal, the identity of its writers, and the secrecy of passwords."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.journals import opened
from tests.support.tools import need_root

from whoseblock.errors import JournalError
from whoseblock.journal import open_journal
from whoseblock.journal.host import Process, lives, this_host, this_process, without_passwords
from whoseblock.journal.location import VARIABLE, locate


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "PGUSER", "PGPASSWORD", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert locate(None).file == Path("/var/lib/whoseblock/journal.sqlite")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    within = Path("whoseblock/journal.sqlite")
    assert locate(None).file == tmp_path / ".local/state" / within
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert locate(None).file == tmp_path / ".local/state" / within
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert locate(None).file == tmp_path / "state" / within
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert locate(None).file == tmp_path / "mine"
    assert locate("other").file == Path.cwd() / "other"
    assert locate("sqlite:////a/b").file == Path("/a/b")
    assert locate("sqlite:///a/b").file == Path.cwd() / "a/b"


def test_urls_of_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    place = locate("postgresql://me:p%40ss@db.example:5433/fleet")
    assert place.name == "postgresql://db.example:5433/fleet"
    assert (place.url.drivername, place.url.password) == ("postgresql+pg8000", "p@ss")
    assert "ssl_context" not in place.arguments
    socket = locate("postgres:///fleet?host=/run/postgresql")
    assert socket.arguments["unix_sock"] == "/run/postgresql/.s.PGSQL.5432"
    assert socket.name == "postgresql:///run/postgresql:5432/fleet"
    assert locate("postgresql://h/d?port=7&sslmode=disable").arguments["ssl_context"] is False
    assert locate("postgresql://h/d?sslmode=require").arguments["ssl_context"] is True
    verified = locate("postgresql://h/d?sslmode=verify-full").arguments["ssl_context"]
    assert verified.check_hostname
    assert locate("postgresql://[::1]/d").name == "postgresql://[::1]:5432/d"
    monkeypatch.setenv("PGUSER", "alice")
    monkeypatch.setenv("PGPASSWORD", "from the environment")
    assert locate("postgresql://h/d").url.username == "alice"
    assert locate("postgresql://h/d").url.password == "from the environment"  # noqa: S105 - no secret


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:secret@h/d",
        "postgresql://me:secret@h",
        "postgresql://me:sec@secret@h/d",
        "postgresql://me:secret@h:secret/d",
        "postgresql://me:secret@h/d?password=secret",
        "postgresql://me:secret@h/d?sslmode=no",
        "postgresql://me:secret@h/d?sslmode=verify-full&sslrootcert=/nonexistent",
        "postgresql://me:secret@h/d?host=a&host=b",
        "postgresql+psycopg://me:secret@h/d",
        "://secret",
        "sqlite://secret",
        "/",
    ],
)
def test_an_invalid_journal_location_is_reported_without_secrets(url: str) -> None:
    with pytest.raises(JournalError) as caught:
        locate(url)
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@given(st.text(st.characters(exclude_characters=" "), min_size=4))
def test_command_lines_lose_their_passwords(password: str) -> None:
    words = ["respond", "--journal", f"postgresql://me:{password}@h/d", f"x?password={password}"]
    shown = without_passwords(words)
    assert shown[0] == "respond"
    assert shown[2] == "postgresql://me:***@h/d"
    plain = not set("&\n\t\r") & set(password) and not any(map(str.isspace, password))
    assert not plain or shown[3] == "x?password=***"


def test_a_password_is_nowhere_in_the_journal(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with (
        open_journal(str(file)) as journal,
        journal.begin_run(["--journal=postgresql://me:s3cr3t@h/d"], "1") as run,
    ):
        assert journal.run_record(run.id).command == ("--journal=postgresql://me:***@h/d",)
    assert b"s3cr3t" not in file.read_bytes()


def test_the_user_and_host_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    with opened(str(tmp_path / "journal.sqlite")) as (journal, run):
        record = journal.run_record(run.id)
        assert (record.sudo_user, record.host) == ("alice", this_host().name)
        assert record.machine_id == this_host().machine_id
        assert journal.is_running(run.id)


def test_whether_a_process_is_alive() -> None:
    us = this_process()
    assert lives(us)
    boot, namespace, started = us.name.split(" ")
    assert not lives(Process(us.pid, f"other {namespace} {started}"))
    assert not lives(Process(us.pid, f"{boot} {namespace} 1"))
    # Another namespace has other numbers: the state of the process is unknown.
    assert lives(Process(us.pid, f"{boot} other 1"))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        while Path(f"/proc/{ended.pid}/stat").read_text().split(")")[1].split()[0] != "Z":
            pass
        assert not lives(Process(ended.pid, us.name))


def test_a_folder_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    need_root()
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff ?#%41")
    with opened(f"{folder}/journal.sqlite") as (journal, _):
        assert list(journal.failures()) == []
    assert sorted(os.listdir(os.fsencode(folder))) == [b"journal.sqlite"]
