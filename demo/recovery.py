"""Repair what failed: the last part of the demo.

As root, with FUSE and XFS in the kernel, it emulates a failing disk and mounts it.  ``whoseblock
respond`` then zeroes a free page, and restores a page that two files share once for both.  With
FUSE alone the emulated disk stays unmounted, and only the free page is repaired.
Without FUSE the free page is repaired in the image, through the Python API.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from demo.needs import Need, missing

import whoseblock
from whoseblock.errors import MediaError
from whoseblock.fs.driver import Volume
from whoseblock.journal import NewReport, PlannedStep, open_journal
from whoseblock.media import EmulatedPmem, FileMedia
from whoseblock.ranges import ByteRange, subtract

__all__ = ["recover"]

_CHECKOUT = Path(__file__).resolve().parents[1]
_COMMAND = [sys.executable, "-m", "whoseblock"]
#: Both share the 307th page; the copy is one of the first.
_SHARERS = ("a", "d/e/c")


class _CannotError(Exception):
    """This machine lacks something for the whole of it."""


def recover(image: Path, shared: ByteRange, free: ByteRange, found: list[Need]) -> int:
    """Make both pages fail, and recover as much as this machine can.

    ``image`` is a scratch copy, and changed.  ``found`` is what `needs` returned.  Returns how many
    results were wrong.
    """
    print("\nThe repair")
    scratch = image.parent
    os.environ["WHOSEBLOCK_JOURNAL"] = str(scratch / "journal.sqlite")
    os.environ["WHOSEBLOCK_KEY"] = str(scratch / "key")
    try:
        wrong = _on_a_mounted_disk(image, shared, free, found)
    except _CannotError as reason:
        print(f"  skipped here: restoring the shared page on a mounted disk:\n    {reason}")
        try:
            wrong = _on_an_unmounted_disk(image, shared, free, found)
        except _CannotError as further:
            print(f"  skipped here: a device that fails:\n    {further}")
            wrong = _on_the_image(image, free)
    print("\nThe journal:")
    _run("journal", "list")
    return wrong


def _run(*arguments: str | Path) -> int:
    """Run whoseblock and show what it prints; return its exit code."""
    done = subprocess.run([*_COMMAND, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    print(*(f"  {line}" for line in done.stdout.splitlines()), sep="\n")
    return done.returncode


# ---------------------------------------------------------------------- on a mounted disk


def _on_a_mounted_disk(image: Path, shared: ByteRange, free: ByteRange, found: list[Need]) -> int:
    if why := missing(found, mount=True):
        raise _CannotError(why)
    # In a mount namespace of its own nothing is left behind, whatever happens.
    program = [sys.executable, "-m", "demo.recovery", str(image), str(shared), str(free)]
    sys.stdout.flush()
    done = subprocess.run(["unshare", "--mount", *program], cwd=_CHECKOUT, check=False)
    if done.returncode == _LACKING:
        raise _CannotError("for the reason above")
    return done.returncode


#: What the program below ends with if the machine lacks something.
_LACKING = 77


@contextlib.contextmanager
def _served(image: Path, failing: Path, *options: str) -> Iterator[None]:
    """Serve an image as a device that can fail."""
    failing.mkdir()
    unmount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    _call([*_COMMAND, "emulate", image, failing, "--in-place", "--background", *options])
    try:
        yield
    finally:
        _call([*unmount, failing])


@contextlib.contextmanager
def _mounted(image: Path, failing: Path, mount: Path) -> Iterator[None]:
    """Mount an image from a device that can fail."""
    mount.mkdir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_served(image, failing))
        loop = _call(["losetup", "--find", "--show", "--direct-io=on", failing / "device"])
        stack.callback(_call, ["losetup", "--detach", loop])
        _call(["mount", "-t", "xfs", "-o", "nouuid", loop, mount])
        stack.callback(_call, ["umount", mount])
        yield


def _call(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _CannotError((done.stderr or done.stdout).strip())
    return done.stdout.strip()


def _main(image: Path, shared: str, free: str) -> int:
    """Recover a mounted filesystem, in a namespace that is ours alone."""
    scratch = image.parent
    failing, mount, backup = scratch / "failing", scratch / "mount", scratch / "backup"
    try:
        with _mounted(image, failing, mount):
            backup.mkdir()
            shutil.copy2(mount / _SHARERS[0], backup / _SHARERS[0])
            before = [(mount / name).read_bytes() for name in _SHARERS]
            (failing / "control").write_text(f"bad {shared}\nbad {free}\n")
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
            print("  The disk is mounted, and both pages fail. One file has a backup.\n")
            options = ("--restore-from", backup, "--apply", "--yes")
            wrong = _run("respond", mount, shared, free, *options)
            wrong += before != [(mount / name).read_bytes() for name in _SHARERS]
            wrong += bool((failing / "control").read_text())
            print("\n  ", end="")
            print(
                "WRONG: see above"
                if wrong
                else "Both files are as before, and every page can be read."
            )
    except _CannotError as reason:
        print(f"  {reason}")
        return _LACKING
    return min(wrong, 1)


# ---------------------------------------------------------------------- on an unmounted disk


def _on_an_unmounted_disk(
    image: Path, shared: ByteRange, free: ByteRange, found: list[Need]
) -> int:
    """Zero the free page of a device that fails; the shared one is only planned for."""
    if why := missing(found, mount=False):
        raise _CannotError(why)
    failing = image.parent / "failing"
    with _served(image, failing, f"--bad={shared}", f"--bad={free}"):
        print("  The disk is not mounted, and both pages fail.\n")
        wrong = _run("respond", failing / "device", str(shared))
        wrong += _run("respond", failing / "device", str(free), "--apply", "--yes")
        left = (failing / "control").read_text().strip()
    wrong += left != f"bad {shared}"
    print(
        "\n  WRONG: see above"
        if wrong
        else "\n  The free page can be read again. The shared page needs a mount and a backup."
    )
    return wrong


# ---------------------------------------------------------------------- on the image


class _Pmem:
    """The device of the step: persistent memory that heals when it is written."""

    def __init__(self, medium: EmulatedPmem) -> None:
        self._medium = medium

    def failing(self, ranges: Sequence[ByteRange]) -> list[ByteRange]:
        return [one for one in self._medium.poison if ranges != subtract(ranges, one)]

    def zero(self, sectors: Sequence[ByteRange]) -> None:
        for start, length in sectors:
            self._medium.pwrite(start, bytes(length))
            if any(self._medium.pread(start, length)):
                raise MediaError([ByteRange(start, length)])


def _on_the_image(image: Path, free: ByteRange) -> int:
    """Zero a failed free page of an image that is not mounted."""
    from whoseblock.respond.zeroing import zero_unmounted

    medium = EmulatedPmem(FileMedia(image, writable=True), poison=[free])

    def afresh() -> Volume:
        return whoseblock.open(_Kept(medium))

    with open_journal() as journal, journal.begin_run(["demo"], whoseblock.__version__) as run:
        report = NewReport(source="demo", origin="poisoned by the demo")
        noted = run.record_failure("pmem", free, report)
        with afresh() as fs:
            run.record_finding(noted.failure, fs.owners(*free))
        step = PlannedStep("zero", {"start": free.start, "length": free.length}, noted.failure)
        (planned,) = run.plan([step], [noted.failure]).steps
        run.started(planned.id)
        zeroed = zero_unmounted(afresh, _Pmem(medium), free)  # type: ignore[arg-type] # only what it calls is there
        run.done(planned.id)
        if medium.poison:
            return 1
        run.verified(planned.id)
        run.close_failure(noted.failure, "every sector of it can be read")
    print(f"  page {free.start // 4096} is free space: zeroed {zeroed[0]}; it can be read again")
    return 0


class _Kept(EmulatedPmem):
    """The same medium, which stays open when the filesystem on it is closed."""

    def __init__(self, medium: EmulatedPmem) -> None:
        self._medium = medium
        self.name, self.size = medium.name, medium.size

    def pread(self, offset: int, length: int) -> bytes:
        return self._medium.pread(offset, length)

    def close(self) -> None:
        pass


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), *sys.argv[2:]))
