"""An image served as a failing device by ``whoseblock emulate``, and never left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.mounts import loop_device, own_mount_namespace
from tests.support.tools import CHECKOUT, Missing

from whoseblock.ranges import ByteRange

__all__ = ["Emulated", "emulated", "need_fuse"]

_PATIENCE_S = 20


def need_fuse() -> None:
    """Raise `Missing` unless FUSE can be used here."""
    os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")
    try:
        import mfusepy  # noqa: F401 - whether libfuse is there shows here
    except (ImportError, OSError, AttributeError) as error:
        raise Missing(f"no FUSE: install the package libfuse3-3 ({error})") from error
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Missing("/dev/fuse is not here, or not for us")


@dataclass(frozen=True)
class Emulated:
    """The device that the process ``server`` serves at ``folder``."""

    folder: Path
    server: subprocess.Popen[bytes]

    @property
    def device(self) -> Path:
        return self.folder / "device"

    @property
    def control(self) -> Path:
        return self.folder / "control"

    def bad(self) -> list[ByteRange]:
        """Return all bad ranges of this moment, permanent ones too, ascending."""
        return [bad for _, bad in self._lines()]

    def permanent(self) -> list[ByteRange]:
        """Return those that nothing heals."""
        return [bad for mark, bad in self._lines() if mark == "permanent"]

    def _lines(self) -> Iterator[tuple[str, ByteRange]]:
        for line in self.control.read_text().splitlines():
            mark, text = line.split(" ")
            start, length = text.split("+")
            yield mark, ByteRange(int(start), int(length))

    def add(self, bad: ByteRange, *, permanent: bool = False) -> None:
        """Make one more range fail."""
        self.write("permanent" if permanent else "bad", bad)

    def write(self, *words: object) -> None:
        """Write one line to the file ``control``."""
        self.control.write_text(" ".join(map(str, words)))

    def statistics(self) -> dict[str, int]:
        """Return the numbers in the file ``statistics``."""
        lines = (self.folder / "statistics").read_text().splitlines()
        return {name: int(number) for name, number in map(str.split, lines)}

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Stop all answers, like a disk that hangs."""
        self.server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def loop(self, *, direct_io: bool = True) -> Iterator[Path]:
        """Provide a loop device over it, and detach it in any case."""
        option = f"--direct-io={'on' if direct_io else 'off'}"
        with loop_device(self.device, option) as device:
            yield Path(device)


@contextlib.contextmanager
def emulated(  # noqa: PLR0913 - as many as the command has
    image: Path,
    folder: Path,
    *options: str | Path,
    bad: Iterable[ByteRange] = (),
    permanent: Iterable[ByteRange] = (),
    in_place: bool = True,
    sector: int = 512,
) -> Iterator[Emulated]:
    """Serve an image at ``folder``; it is unmounted, and the process ended, in any case."""
    need_fuse()
    if os.geteuid() == 0:
        # Else a test that mounts something later would see but a copy of this mount.
        own_mount_namespace()
    words: list[str | Path] = [image, folder, f"--sector={sector}", *options]
    words += [f"--bad={one}" for one in map(str, bad)]
    words += [f"--permanent={one}" for one in map(str, permanent)]
    words += ["--in-place"] * in_place
    with subprocess.Popen(
        [sys.executable, "-m", "whoseblock", "emulate", *words],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stderr is not None
            if not server.stdout.readline():
                raise Missing(f"FUSE does not serve here: {server.stderr.read().decode()}")
            yield Emulated(folder, server)
        finally:
            _end(folder, server)


def _end(folder: Path, server: subprocess.Popen[bytes]) -> None:
    unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    if os.path.ismount(folder) or server.poll() is not None:
        subprocess.run([*unmount, folder], capture_output=True, check=False)
    server.terminate()
    try:
        server.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(_PATIENCE_S)
    # Even if a process still has it open, the mount must not stay.
    lazy = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*lazy, folder], capture_output=True, check=False)
