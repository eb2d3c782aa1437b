"""Without permission: one exit code and one hint, whatever it is denied for."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from demo.demo import unpack
from tests.support.mounts import loop_device, mounted
from tests.support.tools import CHECKOUT, Missing, need_loop_mounts, need_root

from whoseblock.errors import PrivilegeError

_NOBODY = ["setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set=-all"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def _python() -> str:
    """Find a Python of our version that another user may run: ours may be in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        version = "import sys; print(sys.version_info[:2])"
        done = subprocess.run(
            [*_NOBODY, python, "-c", version], capture_output=True, text=True, check=False, cwd="/"
        )
        if done.stdout.strip() == str(sys.version_info[:2]):
            return python
    raise Missing("no Python of this version that another user may run")


@pytest.fixture(scope="module")
def run() -> Run:
    need_root()
    python = _python()
    libraries = Path(msgspec.__file__ or "").parents[1]
    environment = {
        "PYTHONPATH": f"{CHECKOUT / 'src'}:{libraries}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.environ["PATH"],
        "HOME": "/",
    }

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_NOBODY, python, "-m", "whoseblock", *words],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd="/",
        )

    return run


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Iterator[dict[str, str]]:
    del run
    need_loop_mounts()
    folder = tmp_path_factory.mktemp("permission")
    image = folder / "disk.img"
    unpack(image)
    image.chmod(0o600)
    for path in (folder, *folder.parents):
        # pytest keeps its folders from others.
        if path.stat().st_uid == 0 and "pytest" in str(path):
            path.chmod(0o755)
    secret = folder / "secret"
    secret.mkdir(mode=0o700)
    log = folder / "kernel.log"
    log.write_text("[1.0] usb 1-1: new device\n")
    log.chmod(0o600)
    public = folder / "zeros.img"
    public.write_bytes(bytes(1 << 20))
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(image))
        mount = stack.enter_context(mounted(image, "ro", "norecovery"))
        # Of the user, who must reach it whatever other runs of pytest do to their folder.
        own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kmsg = own / "dev/kmsg"
        kmsg.parent.mkdir()
        kmsg.write_text("3,5,100,-;usb 1-1: new device\n")
        kmsg.chmod(0o600)
        for path in (own, kmsg.parent):
            os.chown(path, 65534, -1)
        yield {
            "image": str(image),
            "device": device,
            "mount": os.fsdecode(mount),
            "secret": str(secret / "x"),
            "log": str(log),
            "zeros": str(public),
            "own": str(own),
        }


@pytest.mark.parametrize(
    "words",
    [
        "lookup {device} 307p",
        "lookup {device} 307p --offline",
        "lookup {image} 307p",
        "lookup {mount} 307p",
        "lookup {secret} 307p",
        "lookup {zeros} 307p --member {image}",
        "lookup {zeros} 307p --log-device {image}",
        "lookup {zeros} --dmesg {log}",
        "stack {device}",
        "stack {device} --offline",
        "stack {image}",
        "respond {mount} 307p --journal {secret}",
        "respond {image} 307p --journal {secret}",
        "respond --resume --journal {secret}",
        "journal list --journal {secret}",
        "journal list --journal {log}",
        "emulate {image} {secret}",
        "study {image}",
        "status --state {secret}",
        "watch --once --root {own} --state {own}/state --journal {own}/journal.sqlite",
    ],
)
def test_denied_permission_has_one_exit_code_and_one_hint(
    run: Run, places: dict[str, str], words: str
) -> None:
    done = run(*(word.format(**places) for word in words.split()))
    assert done.returncode == PrivilegeError.exit_code, done.stderr
    *_, message, hint = done.stderr.splitlines()
    assert message.startswith("whoseblock: ")
    assert hint.startswith("hint: try as root")
