"""The permissions of the systemd unit: enough for the daemon, and no more."""

import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.failing_filesystem import (
    BLOCK,
    KINDS,
    PLAIN,
    Facts,
    back_up,
    bench,
    pattern,
    write_file,
)
from tests.support.mounts import loop_device
from tests.support.system_calls import clone_range
from tests.support.systemd_unit import SOCKET, UNIT, as_the_unit, capabilities
from tests.support.tools import CHECKOUT, need_loop_mounts, program, run
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.errors import TargetError
from whoseblock.ranges import ByteRange
from whoseblock.watch.unit import compose_unit, find_program, install_unit

#: cap_net_raw in the permitted set, as in linux/capability.h.
CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0)


def whoseblock(*words: object, without: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command with the capabilities of the unit, and without openat2."""
    python = [sys.executable, "-m"]
    command = [*as_the_unit(without), *python, "tests.support.without_openat2"]
    command += [*python, "whoseblock", *map(str, words)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def test_every_capability_is_explained() -> None:
    text = UNIT.read_text("utf-8")
    explained = text[: text.index("\nCapabilityBoundingSet=")]
    assert re.findall(r"CAP_[A-Z_]+", explained) == capabilities()
    guide = (CHECKOUT / "docs/guides/watch.md").read_text("utf-8")
    assert set(re.findall(r"CAP_[A-Z_]+", guide)) <= set(capabilities())


def test_the_unit_allows_every_device() -> None:
    settings = re.findall(r"^([A-Za-z]+=.*)", UNIT.read_text("utf-8"), re.MULTILINE)
    # All block devices, of drivers that are loaded later, too: tests/vm/guest/test_unit.py.
    allowed = [one for one in settings if one.startswith("DeviceAllow=")]
    assert allowed == [
        f"DeviceAllow={one}" for one in ("block-* rw", "/dev/kmsg r", "char-misc rw")
    ]
    assert not [one for one in settings if one.startswith("PrivateDevices")]


@pytest.mark.parametrize("network", [False, True])
def test_systemd_accepts_the_unit_and_calls_it_secure(tmp_path: Path, *, network: bool) -> None:
    analyze = program("systemd-analyze")
    words = ["/bin/true", "watch", "--policy", "/a b/%i $HOME;\"\\'\n\udcff\u00e9"]
    unit = tmp_path / UNIT.name
    # Whether a man page is installed is no matter of the unit.
    text = compose_unit(words, network=network).replace("Documentation=man:whoseblock(1)\n", "")
    unit.write_text(text, "utf-8")
    shutil.copy(SOCKET, tmp_path)
    done = subprocess.run([analyze, "verify", unit], capture_output=True, check=False, text=True)
    complaints = [line for line in done.stderr.splitlines() if unit.stem in line]
    assert (done.returncode, complaints) == (0, []), done.stderr
    rated = run([analyze, "security", "--no-pager", "--offline=true", unit]).decode()
    exposure = re.search(r"exposure level for .*: ([0-9.]+)", rated)
    assert exposure is not None, rated
    # Rounded up.
    assert float(exposure[1]) < (4.0 if network else 3.0), rated


def test_install_unit(tmp_path: Path) -> None:
    unit = tmp_path / "whoseblock-watch.service"
    options = ["--policy", "policy.toml", "--state", "/srv/50%"]
    called = Path(sys.executable).with_name("whoseblock")

    def install(*more: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [called, "watch", *options, *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = install("--install-unit", str(unit))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"wrote {unit} and whoseblock-watch.socket\n"
        "start it: systemctl daemon-reload && systemctl enable --now whoseblock-watch\n"
    )
    written = unit.read_text("utf-8")
    line = f"ExecStart={called} watch --policy {tmp_path}/policy.toml --state /srv/50%%"
    assert written == UNIT.read_text("utf-8").replace(
        "ExecStart=/usr/local/bin/whoseblock watch", line
    )
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    socket = unit.with_suffix(".socket")
    assert socket.read_bytes() == SOCKET.read_bytes()
    assert stat.S_IMODE(socket.stat().st_mode) == 0o644
    assert install("--install-unit", "-").stdout == written
    # A metrics port needs a network.
    socket.write_text("changed")
    done = install("--metrics-port", "9719", "--install-unit", str(unit))
    assert f"the former unit is {unit}.old\n" in done.stdout
    assert f"the former unit is {socket}.old\n" in done.stdout
    assert Path(f"{unit}.old").read_text("utf-8") == written
    assert "\nPrivateNetwork=yes" not in unit.read_text("utf-8")
    assert install("--once", "--install-unit", str(unit)).returncode == 2
    secret = install("--journal", "postgresql://u:s3cret@host/d", "--install-unit", "-")
    assert secret.returncode == 13
    assert "s3cret" not in secret.stdout + secret.stderr


def test_install_unit_of_a_program_that_others_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    called = folder / "whoseblock"
    called.write_text(f'#!/bin/sh\nexec {sys.executable} -m whoseblock "$@"\n')
    called.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(called)])
    assert find_program() == [str(called)]
    with pytest.raises(TargetError, match="other users may write to"):
        install_unit("", [str(called)], tmp_path / "unit")
    assert [one.name for one in tmp_path.iterdir()] == ["open"]
    # What needs this shell's environment does not run as a service.
    called.write_text("#!/bin/sh\nexec $PYTHON\n")
    with pytest.raises(TargetError, match="does not start without the environment"):
        find_program()


def test_a_filesystem_mounted_only_in_a_container(tmp_path: Path) -> None:
    need_loop_mounts()
    image = make_image(tmp_path / "disk", Geometry("container", size=64 * MIB, parent=True))
    (tmp_path / "at").mkdir()
    with loop_device(image) as loop:
        script = f"mount {loop} {tmp_path}/at && echo x > {tmp_path}/at/f && sync && echo && read x"
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as container:
            assert container.stdout is not None
            assert container.stdin is not None
            assert container.stdout.readline() == b"\n"
            done = whoseblock("lookup", loop, "0+512", "--json")
            container.stdin.close()
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["complete"], answer["notes"]
    assert "only in the mount namespace of process" in answer["notes"][0]


@pytest.mark.parametrize("kind", KINDS[:2], ids=lambda kind: kind.name)
@pytest.mark.parametrize("shared", [False, True], ids=["in place", "shared"])
def test_a_restored_file_of_another_user_keeps_its_rights(
    tmp_path: Path, kind: Geometry, *, shared: bool
) -> None:
    with bench(tmp_path, kind) as served:
        content = pattern("file", 9 * BLOCK)
        path = write_file(served.root / "file", content)
        if shared:
            with path.open("rb") as one, (served.root / "other").open("wb") as two:
                clone_range(one.fileno(), 0, len(content), two.fileno(), 0)
            os.chown(served.root / "other", 65534, 65533)
        os.chown(path, 65534, 65533)
        path.chmod(0o6711)
        os.setxattr(path, "security.capability", CAPABILITY)
        copy = back_up(path, tmp_path / "good", content)
        facts = Facts.of(path)
        place = served.place(path, 3)
        served.fail(ByteRange(place.start + 512, 512))
        done = whoseblock(
            *("respond", served.root, place, "--restore-file", copy, "--apply", "--yes"),
            *("--journal", served.journal),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert served.served.bad() == []
        assert Facts.of(path) == facts


def test_free_space_is_zeroed(tmp_path: Path) -> None:
    with bench(tmp_path, KINDS[0]) as served:
        lost = ByteRange(served.free(1).start, 512)
        served.fail(lost)
        words = (served.root, lost, "--apply", "--yes", "--journal", served.journal)
        done = whoseblock("respond", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert served.served.bad() == []


def test_a_denied_lease_does_not_mean_that_the_file_is_open(tmp_path: Path) -> None:
    with bench(tmp_path, PLAIN) as served:
        content = pattern("file", 9 * BLOCK)
        path = write_file(served.root / "file", content)
        os.chown(path, 65534, 65534)
        copy = back_up(path, tmp_path / "good", content)
        place = served.place(path, 3)
        served.fail(place)
        words = (served.root, place, "--restore-file", copy, "--apply", "--yes")
        done = whoseblock("respond", *words, "--journal", served.journal, without="CAP_LEASE")
        assert done.returncode == 14
        assert "a lease on a file of another user needs CAP_LEASE" in done.stdout
        assert served.served.bad() == [place]
