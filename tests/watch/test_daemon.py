"""The daemon as a citizen: what it says of itself, to whom, and what it costs when all is well."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from tests.support.tools import CHECKOUT, need_root, run
from tests.support.watch_daemon import Daemon, once, until, watching

from whoseblock.errors import PolicyError, TargetError
from whoseblock.watch.log import log_line
from whoseblock.watch.statistics import BUCKETS, Statistics
from whoseblock.watch.status.endpoints import MetricsPort
from whoseblock.watch.status.metrics import format_metrics
from whoseblock.watch.status.systemd import notify, watchdog_seconds
from whoseblock.watch.store.spool import Backlog


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Provide a folder like a machine with one disk, whose list of bad blocks is empty."""
    disk = tmp_path / "machine/sys/block/pmem0"
    disk.mkdir(parents=True)
    (disk / "badblocks").write_text("\n")
    (disk / "size").write_text("2048\n")
    (tmp_path / "machine/sys/class/block").mkdir(parents=True)
    (tmp_path / "machine/sys/class/block/pmem0").symlink_to(disk)
    return tmp_path / "machine"


def make_bad(machine: Path, *lines: str) -> None:
    new = machine / "new"
    new.write_text("".join(f"{line}\n" for line in lines) or "\n")
    new.rename(machine / "sys/block/pmem0/badblocks")


def events(daemon: Daemon, event: str) -> list[str]:
    return [line for line in daemon.log().splitlines() if f"event={event} " in line]


def test_a_list_is_read_again_at_an_interval(machine: Path, tmp_path: Path) -> None:
    with watching(tmp_path, "--root", machine, "--interval", "0.2") as daemon:
        make_bad(machine, "8 8")
        (history,) = until(daemon.histories)
        assert (history.failure.device, history.failure.start) == ("pmem0", 4096)
        until(lambda: events(daemon, "failure"))
        make_bad(machine)
        until(lambda: events(daemon, "healed"))
        assert daemon.histories()[0].failure.closed is not None
        daemon.stop()
    status = daemon.status()
    assert (status["pid"], status["counts"]["healed"]) == (None, 1)
    assert status["sources"]["kmsg"]["health"] == "No such file or directory"
    # Another daemon knows what the list held.
    make_bad(machine, "8 8")
    assert once(tmp_path, "--root", machine)[0] == 20
    assert once(tmp_path, "--root", machine)[0] == 0
    assert len(daemon.histories()) == 2


def test_status_in_words(machine: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    command = [sys.executable, "-m", "whoseblock", "status", "--state", state]
    none = subprocess.run(command, capture_output=True, cwd=CHECKOUT, check=False, text=True)
    assert none.returncode == TargetError.exit_code
    assert "no daemon runs" in none.stderr
    make_bad(machine, "8 8")
    with watching(tmp_path, "--root", machine) as daemon:
        until(lambda: daemon.status()["counts"]["unhealed"] == [1, 4096])
        text = run(command).decode()
        assert f"daemon     running, process {daemon.process.pid}, since 20" in text
        assert "policy     none: journal and log" in text
        assert "source     sysfs: watched; 1 list, 0 with change notification" in text
        assert "source     tracepoint: not watched; no tracefs" in text
        assert "failures   1 new, of 1 reports; 0 healed" in text
        assert "open       1 failures, of 4096 bytes" in text


def test_status_of_a_daemon_that_has_ended(machine: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "whoseblock", "status", "--state", str(tmp_path / "state")]
    words = {"stopped": "this was its state at the end", "killed": "it was killed"}
    for state, text in words.items():
        with watching(tmp_path, "--root", machine) as daemon:
            assert daemon.status()["state"] == "running"
            daemon.stop() if state == "stopped" else daemon.kill()
        assert daemon.status()["state"] == state
        done = subprocess.run(command, capture_output=True, cwd=CHECKOUT, check=False, text=True)
        assert done.returncode == TargetError.exit_code
        assert text in done.stdout
        assert "no daemon runs" in done.stderr


def test_the_status_omits_the_password_of_the_journal(machine: Path, tmp_path: Path) -> None:
    url = f"postgresql://user:secret@/fleet?host={tmp_path}"
    command: list[str | Path] = [sys.executable, "-m", "whoseblock", "watch", "--journal", url]
    command += ["--root", machine, "--state", tmp_path / "state"]
    status = tmp_path / "state/status.json"
    with subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.DEVNULL) as process:
        until(lambda: status.exists() or process.poll() is not None)
        process.kill()
    assert json.loads(status.read_bytes())["journal"] == url.replace("secret", "***")


def test_status_of_an_unusable_socket(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "whoseblock", "status", "--state", str(tmp_path)]
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as other:
        other.bind(str(tmp_path / "socket"))
        done = subprocess.run(command, capture_output=True, cwd=CHECKOUT, check=False, text=True)
    assert done.returncode == TargetError.exit_code
    assert "cannot be queried: Protocol wrong type" in done.stderr


@pytest.mark.parametrize("sent", [b"", b"{", b"x" * (1 << 20) + b"x"])
def test_a_status_that_is_none(tmp_path: Path, sent: bytes) -> None:
    command = [sys.executable, "-m", "whoseblock", "status", "--state", str(tmp_path)]
    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(tmp_path / "socket"))
        other.listen(1)
        with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=CHECKOUT) as process:
            peer, _ = other.accept()
            with peer, suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(sent)
            assert process.stderr is not None
            words = process.stderr.read()
    assert process.returncode == TargetError.exit_code
    assert (b"its status is too long" if len(sent) > 1 else b"is damaged") in words


def test_a_saved_status_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "status.json")
    command = [sys.executable, "-m", "whoseblock", "status", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, cwd=CHECKOUT, check=False, timeout=60)
    assert done.returncode == TargetError.exit_code
    assert b"is damaged" in done.stderr


def test_two_daemons_do_not_share_a_state(machine: Path, tmp_path: Path) -> None:
    with watching(tmp_path, "--root", machine):
        code, _, words = once(tmp_path, "--root", machine)
    assert code == TargetError.exit_code
    assert "another whoseblock watch" in words


def test_a_policy_is_reloaded_and_an_invalid_one_is_refused(machine: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[limits]\nexec = many\n")
    code, _, words = once(tmp_path, "--root", machine, "--policy", policy)
    assert code == PolicyError.exit_code
    assert "policy.toml, line 2" in words
    out = tmp_path / "out"
    # The first is at work yet when the policy is read again, and when there is more to do.
    rule = '[[rule]]\nexec = ["/bin/sh", "-c", "echo {} >> {}; sleep 1"]\n'
    policy.write_text(rule.format("first", out))
    options = ("--root", machine, "--policy", policy, "--interval", "0.2")
    with watching(tmp_path, *options) as daemon:
        policy.write_text("[[rule]]\nexec = 5\n")
        daemon.process.send_signal(signal.SIGHUP)
        (line,) = until(lambda: events(daemon, "policy-kept"))
        assert "line 2: must be a list of strings" in line
        assert "line 2" in daemon.status()["policy_fault"]
        make_bad(machine, "8 8")
        until(out.exists)
        policy.write_text(rule.format("second", out))
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: events(daemon, "policy-loaded"))
        make_bad(machine, "8 8", "100 1")
        until(lambda: out.read_text() == "first\nsecond\n")
        assert daemon.status()["policy_fault"] == ""
        daemon.stop()


def test_after_a_crash_the_last_valid_policy_applies(machine: Path, tmp_path: Path) -> None:
    out, policy = tmp_path / "out", tmp_path / "policy.toml"
    good = f'[[rule]]\nexec = ["/bin/sh", "-c", "echo done >> {out}"]\n'
    policy.write_text(good)
    options: tuple[str | Path, ...] = ("--root", machine, "--policy", policy, "--interval", "0.2")
    with watching(tmp_path, *options) as daemon:
        daemon.kill()
    policy.write_text("[[rule]]\nexec = 5\n")
    with watching(tmp_path, *options) as daemon:
        assert "line 2: must be a list of strings" in events(daemon, "policy-kept")[0]
        assert "line 2" in daemon.status()["policy_fault"]
        make_bad(machine, "8 8")
        until(out.exists)
        daemon.kill()
    # One that another user could have written is not followed.
    kept = tmp_path / "state/policy.json"
    kept.chmod(0o666)
    assert once(tmp_path, *options)[0] == TargetError.exit_code
    command: list[str | Path] = [sys.executable, "-m", "whoseblock", "watch", *options]
    command += ["--state", tmp_path / "state"]
    assert subprocess.run(command, check=False, cwd=CHECKOUT).returncode == TargetError.exit_code
    kept.chmod(0o600)
    with watching(tmp_path, *options) as daemon:
        daemon.stop()
    # It has stopped by itself: the user who starts it next sees the error.
    assert subprocess.run(command, check=False, cwd=CHECKOUT).returncode == PolicyError.exit_code


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000, "0x" + "f" * 5000])
def test_no_policy_ends_the_daemon(machine: Path, tmp_path: Path, value: str) -> None:
    # Its name is not UTF-8, and the status has it.
    policy = tmp_path / "caf\udce9.toml"
    policy.touch()
    with watching(tmp_path, "--root", machine, "--policy", policy) as daemon:
        policy.write_text(f"[limits]\nexec = {value}\n")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: events(daemon, "policy-kept"))
        assert daemon.status()["policy"] == str(policy)
        command: list[str | Path] = [sys.executable, "-m", "whoseblock", "status"]
        command += ["--state", daemon.state]
        assert rb"caf\xe9.toml, 0 rules" in run(command)
        daemon.stop()


def test_an_unavailable_journal_loses_no_report(machine: Path, tmp_path: Path) -> None:
    make_bad(machine, "8 8")
    (tmp_path / "journal.sqlite").mkdir()
    with watching(tmp_path, "--root", machine) as daemon:
        until(lambda: events(daemon, "worker-ended"))
        status = daemon.status()
        assert (status["backlog"], status["worker_failures"] > 0) == (1, True)
        assert 0 < status["backlog_seconds"] < 60
        (tmp_path / "journal.sqlite").rmdir()
        until(daemon.histories)
        daemon.stop()


def fill(path: Path) -> None:
    """Leave no room on a filesystem."""
    with path.open("wb", 0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_state_folder_without_room_loses_nothing(machine: Path, tmp_path: Path) -> None:
    need_root()
    state = tmp_path / "state"
    state.mkdir()
    (machine / "dev").mkdir()
    log = machine / "dev/kmsg"
    log.touch()
    run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", state])
    try:
        with watching(tmp_path, "--root", machine, "--interval", "0.2") as daemon:
            until(lambda: daemon.status()["worker"] is None)
            full = state / "full"
            fill(full)
            make_bad(machine, "8 8")
            log.write_text("3,5,100,-;critical medium error, dev pmem0, sector 100\n")
            until(lambda: len({line.split()[1] for line in events(daemon, "spool-failed")}) == 2)
            sources = daemon.status()["sources"]
            assert not sources["sysfs"]["watched"]
            assert sources["kmsg"]["health"] == "paused until the spool has room for its reports"
            full.unlink()
            until(lambda: len(daemon.histories()) == 2)
            daemon.stop()
        assert daemon.status()["sources"]["kmsg"]["health"] == "read up to message 5"
        assert daemon.status()["counts"]["lost"] == {}
        # Of a daemon that ends before there is room the next one hears.
        with watching(tmp_path, "--root", machine, "--interval", "0.2") as daemon:
            until(lambda: daemon.status()["worker"] is None)
            fill(full)
            before = len(events(daemon, "spool-failed"))
            log.write_text("3,6,200,-;critical medium error, dev pmem0, sector 200\n")
            until(lambda: len(events(daemon, "spool-failed")) > before)
            daemon.stop()
        full.unlink()
        assert once(tmp_path, "--root", machine)[0] == 20
        assert len(daemon.histories()) == 3
    finally:
        run(["umount", state])


@pytest.mark.parametrize("by", ["time", "report"])
def test_a_state_folder_that_vanished_ends_the_daemon(
    machine: Path, tmp_path: Path, by: str
) -> None:
    interval = "0.2" if by == "time" else "86400"
    (machine / "dev").mkdir()
    os.mkfifo(machine / "dev/kmsg")
    with (
        watching(tmp_path, "--root", machine, "--interval", interval) as daemon,
        (machine / "dev/kmsg").open("wb", 0) as log,
    ):
        until(lambda: daemon.status()["worker"] is None)
        daemon.state.rename(tmp_path / "gone")
        if by == "report":
            log.write(b"3,5,100,-;critical medium error, dev pmem0, sector 100\n")
        assert daemon.process.wait(20) == TargetError.exit_code
        assert "/state' was removed or replaced while it was in use" in daemon.log()
    # The next one makes another.
    with watching(tmp_path, "--root", machine) as daemon:
        daemon.stop()


def test_a_spool_that_vanished_is_made_again(machine: Path, tmp_path: Path) -> None:
    with watching(tmp_path, "--root", machine, "--interval", "0.2") as daemon:
        until(lambda: daemon.status()["worker"] is None)
        (daemon.state / "spool").rmdir()
        make_bad(machine, "8 8")
        until(daemon.histories)
        daemon.stop()


# ------------------------------------------------------------------ systemd


def test_systemd_is_notified(machine: Path, tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        # The watchdog is for another process: its parent does not know the number of this one.
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "6000000",
            "JOURNAL_STREAM": "8:1",
        }
        options = ("--root", machine)
        with watching(tmp_path, *options, environment=environment) as daemon:
            ready = listener.recv(1000).decode()
            assert ready.startswith("READY=1\nSTATUS=watching: ")
            before = time.monotonic()
            assert listener.recv(1000) == b"WATCHDOG=1"
            assert listener.recv(1000) == b"WATCHDOG=1"
            assert time.monotonic() - before < 2 * 6
            daemon.process.send_signal(signal.SIGHUP)
            messages = [listener.recv(1000).decode() for _ in range(3)]
            assert any(re.match(r"RELOADING=1\nMONOTONIC_USEC=\d+$", one) for one in messages)
            daemon.stop()
            rest = b""
            while b"STOPPING=1" not in rest:
                rest = listener.recv(1000)
        assert daemon.log().startswith("<")


def test_no_notification_without_a_listener(tmp_path: Path) -> None:
    assert not notify("READY=1", environment={})
    assert not notify("READY=1", environment={"NOTIFY_SOCKET": str(tmp_path / "none")})
    assert watchdog_seconds({}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_seconds({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}) == 2.0


def test_no_name_breaks_a_line_of_the_log() -> None:
    line = log_line("failure", files='/a b\n"\x1b[0m', why=None, start=1, seconds=0.5, empty="")
    assert line == (r'event=failure files="/a b\n\"\u001b[0m" start=1 seconds=0.500 empty=""')


# ------------------------------------------------------------------ Prometheus


def test_metrics_on_a_port_and_in_a_file(machine: Path, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    make_bad(machine, "8 8")
    file = tmp_path / "whoseblock.prom"
    options = ("--root", machine, "--metrics-port", str(port), "--metrics-file", file)
    with watching(tmp_path, *options) as daemon:
        until(lambda: daemon.status()["counts"]["unhealed"])
        # A client that sends nothing delays no other.
        with closing(socket.create_connection(("127.0.0.1", port))):
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        for line in (
            'whoseblock_failures_total{device="pmem0"} 1.0',
            'whoseblock_failed_bytes_total{owner="unknown"} 4096.0',
            "whoseblock_unhealed_ranges 1.0",
            "whoseblock_unhealed_bytes 4096.0",
            'whoseblock_source_up{source="sysfs"} 1.0',
            'whoseblock_source_up{source="kmsg"} 0.0',
            'whoseblock_reaction_seconds_bucket{le="+Inf"} 1.0',
        ):
            assert line in text.splitlines(), text
        assert until(file.read_text).splitlines() == text.splitlines()
        assert file.stat().st_mode & 0o777 == 0o644
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/secret", timeout=10)
        daemon.stop()


def test_metrics_over_ipv6_and_a_request_in_two_packets(machine: Path, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    try:
        with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as free:
            port = free.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error.strerror}")
    with watching(tmp_path, "--root", machine, "--metrics-port", f"[::1]:{port}") as daemon:
        with closing(socket.create_connection(("::1", port), timeout=20)) as peer:
            peer.sendall(b"GET /met")
            # The daemon has read it when it answers another one.
            with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=20) as answer:
                assert answer.status == 200
            peer.sendall(b"rics HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert peer.recv(12) == b"HTTP/1.1 200"
        daemon.stop()


@pytest.mark.parametrize("where", ["::1", "::1:9719", "fe80::1:9719", "[::1]", "[::1:9719", "x]:1"])
def test_an_address_of_ipv6_is_in_brackets(tmp_path: Path, where: str) -> None:
    code, _, words = once(tmp_path, "--root", tmp_path, "--metrics-port", where)
    assert (code, f"{where!r} is not [ADDRESS:]PORT" in words) == (2, True), words


def test_a_slow_reader_receives_all_metrics() -> None:
    body = b'whoseblock_failures_total{device="sda"} 1.0\n' * 200_000
    handlers: dict[int, Callable[[], None]] = {}

    def on(descriptor: int, handler: Callable[[], None], _: int) -> None:
        handlers[descriptor] = handler

    def off(descriptor: int) -> None:
        del handlers[descriptor]

    port = MetricsPort("127.0.0.1", 0, lambda: body, on, off)
    with closing(port), closing(socket.create_connection(("127.0.0.1", port.port))) as peer:
        peer.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        port.accept()
        (descriptor,) = handlers
        select.select([descriptor], [], [], 20)
        got = b""
        while handlers:
            handlers[descriptor]()
            got += peer.recv(1 << 20)
        while piece := peer.recv(1 << 20):
            got += piece
    head, _, told = got.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    assert told == body


def test_every_count_is_a_metric() -> None:
    pytest.importorskip("prometheus_client")
    statistics = Statistics(
        reports={"kmsg": 3},
        lost={"tracepoint": 2},
        ill={"fanotify": 1},
        actions={"exec done": 1, "signal limited": 2},
    )
    for seconds in (0.001, 0.3, 1000):
        statistics.add_reaction(seconds)
    more = Statistics(reports={"kmsg": 1}, unhealed=(1, 512))
    statistics.add(more)
    text = format_metrics(statistics, {}, Backlog(7, 61.0)).decode()
    for line in (
        'whoseblock_reports_total{source="kmsg"} 4.0',
        'whoseblock_lost_events_total{source="tracepoint"} 2.0',
        'whoseblock_ill_filesystems_total{source="fanotify"} 1.0',
        'whoseblock_actions_total{action="signal",outcome="limited"} 2.0',
        f'whoseblock_reaction_seconds_bucket{{le="{BUCKETS[0]}"}} 1.0',
        'whoseblock_reaction_seconds_bucket{le="0.5"} 2.0',
        'whoseblock_reaction_seconds_bucket{le="+Inf"} 3.0',
        "whoseblock_backlog_batches 7.0",
        "whoseblock_backlog_seconds 61.0",
    ):
        assert line in text.splitlines()


# ------------------------------------------------------------------ costs nothing


def test_the_collector_loads_nothing_heavy() -> None:
    program = (
        "import sys, whoseblock.cli.watch, whoseblock.watch.daemon\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, check=True, text=True
    )
    heavy = {"sqlalchemy", "alembic", "numpy", "prometheus_client", "rich", "fastcrc", "hashlib"}
    assert not heavy & set(json.loads(done.stdout.replace("'", '"')))


def switches(daemon: Daemon) -> int:
    """Return the number of times that the daemon has gone to sleep."""
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.MULTILINE)[0])


def test_an_idle_daemon_sleeps(machine: Path, tmp_path: Path) -> None:
    with watching(tmp_path, "--root", machine, "--interval", "1000") as daemon:
        until(lambda: daemon.status()["worker"] is None)
        before = switches(daemon)
        time.sleep(2)
        assert switches(daemon) == before
        threads = list(Path(f"/proc/{daemon.process.pid}/task").iterdir())
        assert len(threads) == 1
