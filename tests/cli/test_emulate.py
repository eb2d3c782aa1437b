"""``whoseblock emulate`` as programs meet it: real FUSE and loop devices, against a model."""

import contextlib
import errno
import fcntl
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.emulated_device import Emulated, emulated, need_fuse
from tests.support.mounts import loop_device, loop_device_elsewhere
from tests.support.tools import need_root

from whoseblock.errors import OutOfDeviceError, RangeSyntaxError, TargetError, WhoseblockError
from whoseblock.ranges import ByteRange

SECTOR = 512
PAGE = 4096
SIZE = 1 << 20
COMMAND = [sys.executable, "-m", "whoseblock", "emulate"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random("emulate").randbytes(SIZE))
    return path


class Direct:
    """A file or device past every cache, in requests as they are asked for."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)

    def read(self, start: int, length: int) -> bytes | int:
        """Return the bytes, or the number of the error."""
        with mmap.mmap(-1, length) as buffer:
            try:
                count = os.preadv(self._fd, [buffer], start)
            except OSError as error:
                return error.errno or 0
            return buffer[:count]

    def write(self, start: int, data: bytes) -> int:
        """Write; give 0 or the number of the error."""
        with mmap.mmap(-1, len(data)) as buffer:
            buffer.write(data)
            try:
                count = os.pwritev(self._fd, [buffer], start)
            except OSError as error:
                return error.errno or 0
            assert count == len(data)
            return 0

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def reached(served: Emulated, way: str) -> Iterator[Direct]:
    """Provide the device as FUSE serves it, or through a loop device."""
    with contextlib.ExitStack() as stack:
        path = served.device
        if way != "fuse":
            path = stack.enter_context(served.loop(direct_io=way == "loop, direct"))
        yield stack.enter_context(contextlib.closing(Direct(path)))


every_way = pytest.mark.parametrize("way", ["fuse", "loop, direct", "loop, buffered"])


@every_way
def test_exactly_the_bad_sectors_fail_and_are_healed(image: Path, tmp_path: Path, way: str) -> None:
    original = image.read_bytes()
    bad, permanent = {3, 4, 100, 2047}, {50, 51, 900}
    ranges = [[ByteRange(n * SECTOR, SECTOR) for n in numbers] for numbers in (bad, permanent)]
    with (
        emulated(
            image, tmp_path / "at", bad=ranges[0], permanent=ranges[1], in_place=False
        ) as served,
        reached(served, way) as device,
    ):
        for number in range(SIZE // SECTOR):
            expected = original[number * SECTOR :][:SECTOR]
            found = device.read(number * SECTOR, SECTOR)
            assert found == (errno.EIO if number in bad | permanent else expected), number
        # Eight sectors at once fail for one of them.
        assert device.read(0, PAGE) == errno.EIO
        assert device.read(PAGE, PAGE) == original[PAGE : 2 * PAGE]
        for number in (3, 100, 2047):
            assert device.write(number * SECTOR, b"new" + bytes(SECTOR - 3)) == 0
            assert device.read(number * SECTOR, SECTOR) == b"new" + bytes(SECTOR - 3)
        device.sync()
        assert device.read(4 * SECTOR, SECTOR) == errno.EIO
        for number in permanent:
            assert device.write(number * SECTOR, bytes(SECTOR)) == errno.EIO
            assert device.read(number * SECTOR, SECTOR) == errno.EIO
        # Nothing of a write is done that touches a permanent sector.
        assert device.write(48 * SECTOR, bytes(PAGE)) == errno.EIO
        assert device.read(49 * SECTOR, SECTOR) == original[49 * SECTOR : 50 * SECTOR]
        left = [ByteRange(number * SECTOR, SECTOR) for number in (4, 900)]
        assert served.bad() == [left[0], ByteRange(50 * SECTOR, 2 * SECTOR), left[1]]
        assert served.permanent() == served.bad()[1:]
        assert (served.folder / "badblocks").read_text() == "4 1\n50 2\n900 1\n"
        counted = served.statistics()
        assert counted["sectors_healed"] == 3
        assert counted["writes_refused"] >= 4
        assert counted["reads_failed"] >= len(bad | permanent)
    assert image.read_bytes() == original


@every_way
def test_random_requests_agree_with_the_model(image: Path, tmp_path: Path, way: str) -> None:
    rng = random.Random(way)
    model = bytearray(image.read_bytes())
    marks = ["good"] * (SIZE // SECTOR)
    with emulated(image, tmp_path / "at") as served:
        with reached(served, way) as device:
            for _ in range(400):
                first = rng.randrange(len(marks) - 64)
                count = rng.choice([1, 1, 2, 7, 8, 64])
                span = slice(first * SECTOR, (first + count) * SECTOR)
                asked = marks[first : first + count]
                action = rng.choice(["read", "read", "write", "write", "bad", "permanent", "good"])
                if action == "read":
                    failing = {"bad", "permanent"} & set(asked)
                    expected = errno.EIO if failing else model[span]
                    assert device.read(span.start, count * SECTOR) == expected
                elif action == "write":
                    data = rng.randbytes(count * SECTOR)
                    failed = device.write(span.start, data)
                    assert failed == (errno.EIO if "permanent" in asked else 0)
                    if not failed:
                        model[span] = data
                        marks[first : first + count] = ["good"] * count
                elif rng.random() < (0.2 if action == "permanent" else 0.7):
                    served.write(action, f"{first}s+{count}s")
                    for number in range(first, first + count):
                        if action != "bad" or marks[number] != "permanent":
                            marks[number] = action
        for mark in ("bad", "permanent"):
            wanted = {number for number, one in enumerate(marks) if one == mark}
            lines = served.permanent() if mark == "permanent" else served.bad()
            if mark == "bad":
                lines = [one for one in lines if one not in served.permanent()]
            found = {at // SECTOR for one in lines for at in range(one.start, one.end, SECTOR)}
            assert found == wanted
    assert image.read_bytes() == model


def test_a_write_to_part_of_a_bad_sector_fails(image: Path, tmp_path: Path) -> None:
    original = image.read_bytes()
    bad = [ByteRange(PAGE, 1)]
    with emulated(image, tmp_path / "at", bad=bad) as served, served.device.open("r+b", 0) as file:
        for start, length in [(PAGE, 100), (PAGE - 10, 20), (PAGE + 500, 600)]:
            with pytest.raises(OSError, match="Input/output error") as error:
                os.pwrite(file.fileno(), bytes(length), start)
            assert error.value.errno == errno.EIO
        assert os.pread(file.fileno(), 512, PAGE - 512) == original[PAGE - 512 : PAGE]
        # A byte here and there, where nothing is bad, is fine.
        assert os.pwrite(file.fileno(), b"abc", 5) == 3
        assert os.pwrite(file.fileno(), bytes(SECTOR + 9), PAGE - 9) == SECTOR + 9
        assert served.bad() == []


def test_access_past_the_end_fails_as_on_a_device(image: Path, tmp_path: Path) -> None:
    with image.open("ab") as file:
        file.write(b"not a whole sector")
    with emulated(image, tmp_path / "at", in_place=False) as served:
        assert served.device.stat().st_size == SIZE
        with served.device.open("r+b", 0) as file:
            assert os.pread(file.fileno(), PAGE, SIZE - 10) == image.read_bytes()[SIZE - 10 : SIZE]
            assert os.pread(file.fileno(), PAGE, SIZE) == b""
            with pytest.raises(OSError, match="No space left"):
                os.pwrite(file.fileno(), b"x", SIZE)
            with pytest.raises(OSError, match="Invalid argument"):
                os.truncate(file.fileno(), 5)


@every_way
def test_sectors_of_4096_fail_and_heal_whole(image: Path, tmp_path: Path, way: str) -> None:
    bad = [ByteRange(PAGE + 7, 1)]
    with (
        emulated(image, tmp_path / "at", bad=bad, sector=4096) as served,
        reached(served, way) as device,
    ):
        assert served.bad() == [ByteRange(PAGE, PAGE)]
        assert (served.folder / "badblocks").read_text() == "8 8\n"
        assert device.read(2 * PAGE - SECTOR, SECTOR) == errno.EIO
        assert device.write(PAGE, bytes(SECTOR)) == errno.EIO
        assert device.write(PAGE, bytes(PAGE)) == 0
        assert device.read(PAGE, PAGE) == bytes(PAGE)


def test_the_control_file_takes_lines_while_it_runs(image: Path, tmp_path: Path) -> None:
    with emulated(image, tmp_path / "at") as served:
        served.control.write_text("bad 10p\npermanent 10s+4s\nbad 1000+1000\n")
        listed = "bad 512+1536\npermanent 5120+2048\nbad 40960+4096\n"
        assert served.control.read_text() == listed
        for wrong in ("bad", "bad 1p\nworse 2p", "bad 1M", "bad 2p\nbad 1M+1", b"\xff\n", "bad 1b"):
            with pytest.raises(OSError, match="Invalid argument"):
                served.control.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
            assert served.control.read_text() == listed
        # As a shell appends, and as one reads on in small pieces.
        subprocess.run(["sh", "-c", 'echo good 11s >> "$0"', served.control], check=True)
        with served.control.open("rb", 0) as file:
            first = file.read(20)
            served.add(ByteRange(0, 1))
            rest = b"".join(iter(lambda: file.read(7), b""))
        half = "bad 512+1536\npermanent 5120+512\npermanent 6144+1024\nbad 40960+4096\n"
        assert (first + rest).decode() == half
        assert served.bad()[0] == ByteRange(0, 2048)
        listing = served.control.read_text()
        served.write("clear")
        assert served.control.read_text() == ""
        served.control.write_text(listing)
        assert served.control.read_text() == listing
        for name in ("badblocks", "statistics"):
            with pytest.raises(PermissionError):
                os.close(os.open(served.folder / name, os.O_WRONLY))
        assert {path.name for path in served.folder.iterdir()} == {
            "device", "control", "badblocks", "statistics",
        }  # fmt: skip


def test_other_users_have_no_access(image: Path, tmp_path: Path) -> None:
    need_root()
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    with emulated(image, tmp_path / "at") as served:
        for name in ("", "device", "control"):
            command = ["setpriv", "--reuid=65534", "--clear-groups", "cat"]
            done = subprocess.run(
                [*command, served.folder / name], capture_output=True, check=False
            )
            assert b"Permission denied" in done.stderr


def test_the_folder_of_another_user_is_refused(image: Path, tmp_path: Path) -> None:
    # In another mount namespace its owner removes it, and with it the mount; then she makes a
    # device of her own there.
    need_root()
    folder = tmp_path / "served"
    folder.mkdir()
    os.chown(folder, 65534, -1)
    done = subprocess.run([*COMMAND, image, folder], capture_output=True, text=True, check=False)
    assert done.returncode == TargetError.exit_code
    assert "belongs to user 65534, who could replace the device" in done.stderr


def test_the_image_is_written_only_in_place(image: Path, tmp_path: Path) -> None:
    original = image.read_bytes()
    for in_place in (False, True):
        with emulated(image, tmp_path / "at", in_place=in_place) as served:
            with served.device.open("r+b", 0) as file:
                file.write(b"written")
                os.fsync(file.fileno())
            assert served.device.read_bytes() == b"written" + original[7:]
            assert image.read_bytes() == (b"written" if in_place else original[:7]) + original[7:]
    with emulated(image, tmp_path / "at", in_place=False) as served:
        assert served.device.read_bytes() == b"written" + original[7:]


def test_ranges_from_files_are_bad(image: Path, tmp_path: Path) -> None:
    ranges, rescue, blocks = tmp_path / "ranges", tmp_path / "map", tmp_path / "blocks"
    ranges.write_text("3s # one\n8p\n")
    rescue.write_text("0x0 + 1\n0x0 0x20000 +\n0x20000 0x400 -\n0x20400 0x100 ?\n0x20500 0x1 +\n")
    blocks.write_text("200\n")
    options = [f"--ranges={ranges}", f"--mapfile={rescue}", f"--badblocks={blocks}"]
    options += ["--mapfile-status=-", "--block-size=1024"]
    with emulated(image, tmp_path / "at", *options, bad=[ByteRange(0, 1)]) as served:
        assert served.bad() == [
            ByteRange(0, 512),
            ByteRange(3 * SECTOR, SECTOR),
            ByteRange(8 * PAGE, PAGE),
            ByteRange(0x20000, 0x400),
            ByteRange(200 * 1024, 1024),
        ]


def test_readers_and_writers_at_once(image: Path, tmp_path: Path) -> None:
    # Each writer has pages of its own; readers and a breaker go over all of them.
    count, pages = 4, SIZE // PAGE

    def write(device: Path, own: int) -> dict[int, bytes]:
        rng, last = random.Random(own), {}
        with contextlib.closing(Direct(device)) as file:
            for _ in range(120):
                page = rng.randrange(pages // count) * count + own
                last[page] = bytes([rng.randrange(256)]) * PAGE
                assert file.write(page * PAGE, last[page]) == 0
        return last

    def read(device: Path, seed: int) -> None:
        rng = random.Random(seed)
        with contextlib.closing(Direct(device)) as file:
            for _ in range(200):
                page = rng.randrange(pages)
                found = file.read(page * PAGE, PAGE)
                original_or_one_letter = (
                    found == errno.EIO
                    or found == original[page * PAGE : (page + 1) * PAGE]
                    or (isinstance(found, bytes) and len(set(found)) == 1)
                )
                assert original_or_one_letter

    original = image.read_bytes()
    with emulated(image, tmp_path / "at") as served:
        with served.loop() as loop, ThreadPoolExecutor(8) as threads:
            devices = [loop, served.device]
            jobs = [threads.submit(write, devices[own % 2], own) for own in range(count)]
            readers = [threads.submit(read, devices[seed % 2], seed) for seed in range(3)]
            rng = random.Random("breaker")
            for _ in range(60):
                served.add(ByteRange(rng.randrange(SIZE), 1))
            for reader in readers:
                reader.result()
            written = {page: data for job in jobs for page, data in job.result().items()}
        bad = served.bad()
    expected = bytearray(original)
    for page, data in written.items():
        expected[page * PAGE : (page + 1) * PAGE] = data
    assert image.read_bytes() == expected
    assert len(written) > 100
    # What was broken after its last write, or never written, is still listed.
    assert all(one.length % SECTOR == 0 for one in bad)


def end(command: list[str | Path], how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Serve, end it in some way, and give how it ended."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        lines = [it.stdout.readline() for _ in range(3)]
        try:
            assert (folder / "device").exists()
            if how == "umount":
                subprocess.run(["umount", folder], check=True)
            else:
                it.send_signal(signal.Signals[how])
            _, said = it.communicate(timeout=20)
        finally:
            it.kill()
            subprocess.run(["umount", "--lazy", folder], capture_output=True, check=False)
    return subprocess.CompletedProcess(command, it.returncode, "".join(lines), said)


@pytest.mark.usefixtures("ending_signals")
@pytest.mark.parametrize("how", ["umount", "SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("made", [False, True])
def test_every_end_is_clean_and_removes_its_files(
    image: Path,
    tmp_path: Path,
    how: str,
    made: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    need_root()
    need_fuse()
    folder = tmp_path / "a folder"
    if not made:
        folder.mkdir()
    done = end([*COMMAND, image, folder, "--bad", "307s"], how, folder)
    assert (done.returncode, done.stderr) == (0, "")
    first, loop, stop = done.stdout.splitlines()
    assert first == f"{folder}/device serves {image}, which is not changed: 1 of 2048 sectors bad"
    assert loop.endswith(f"losetup --find --show --direct-io=on '{folder}/device'")
    assert stop.endswith(f"umount '{folder}'")
    assert folder.exists() is not made


def test_the_background_server_returns_once_it_serves(image: Path, tmp_path: Path) -> None:
    need_root()
    need_fuse()
    folder = tmp_path / "at"
    # It does not hold its caller's output open.
    done = subprocess.run(
        [*COMMAND, image, folder, "--bad=0", "--background"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 of 2048 sectors bad" in done.stdout
        assert (folder / "control").read_text() == "bad 0+512\n"
    finally:
        subprocess.run(["umount", folder], check=True)
    for _ in range(100):
        if not folder.exists():
            return
        time.sleep(0.1)
    raise AssertionError("the folder that it made is still there")


@pytest.mark.parametrize("background", [[], ["--background"]])
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["/nonexistent", "{at}"], TargetError),
        (["{image}", "/nonexistent/at"], TargetError),
        (["{image}", "{image}"], TargetError),
        (["{image}", "{folder}"], TargetError),
        (["/dev/null", "{at}"], TargetError),
        (["{image}", "{at}", "--bad=1M"], OutOfDeviceError),
        (["{image}", "{at}", "--permanent=1M"], OutOfDeviceError),
        (["{image}", "{at}", "--bad=x"], RangeSyntaxError),
        (["{image}", "{at}", "--permanent=1b"], RangeSyntaxError),
    ],
)
def test_errors_are_a_sentence_and_a_code(
    image: Path,
    tmp_path: Path,
    words: list[str],
    error: type[WhoseblockError],
    background: list[str],
) -> None:
    at = tmp_path / "at"
    given = [word.format(image=image, at=at, folder=tmp_path) for word in words]
    done = subprocess.run(
        [*COMMAND, *given, *background], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (error.exit_code, "")
    assert done.stderr.startswith("whoseblock: ")
    assert len(done.stderr.splitlines()) <= 2
    assert not at.exists()


def test_a_missing_libfuse_names_its_package(image: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, image, tmp_path / "at", "--background"],
        env=os.environ | {"FUSE_LIBRARY_NAME": "no-such-library"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == TargetError.exit_code
    sentence, hint = done.stderr.splitlines()
    assert sentence.startswith("whoseblock: cannot use FUSE: ")
    assert hint == "hint: install the package libfuse3-3"
    assert not (tmp_path / "at").exists()


def emulate_in_place(image: Path, at: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [*COMMAND, image, at, "--in-place", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("use", ["loop device", "loop device elsewhere", "writer", "lock"])
def test_an_image_in_use_is_not_written_in_place(image: Path, tmp_path: Path, use: str) -> None:
    need_fuse()
    with contextlib.ExitStack() as stack:
        if use.startswith("loop"):
            attach = loop_device_elsewhere if use.endswith("elsewhere") else loop_device
            stack.enter_context(attach(image))
        else:
            file = stack.enter_context(image.open("r+b" if use == "writer" else "rb"))
            if use == "lock":
                fcntl.flock(file, fcntl.LOCK_SH)
        done = emulate_in_place(image, tmp_path / "at")
    assert done.returncode == TargetError.exit_code
    assert "must not be written" in done.stderr
    assert not (tmp_path / "at").exists()


def test_a_server_in_the_background_keeps_its_image_locked(image: Path, tmp_path: Path) -> None:
    need_root()
    need_fuse()
    first = emulate_in_place(image, tmp_path / "one", "--background")
    try:
        assert first.returncode == 0, first.stderr
        done = emulate_in_place(image, tmp_path / "two")
        assert done.returncode == TargetError.exit_code
        assert "must not be written" in done.stderr
        with image.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        subprocess.run(["umount", tmp_path / "one"], check=True)
    with image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def test_only_an_image_is_written_in_place(image: Path, tmp_path: Path) -> None:
    need_root()
    need_fuse()
    with loop_device(image) as device:
        done = subprocess.run(
            [*COMMAND, device, tmp_path / "at", "--in-place"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == TargetError.exit_code
        assert "not an image file" in done.stderr
        with emulated(Path(device), tmp_path / "at", in_place=False) as served:
            assert served.device.read_bytes() == image.read_bytes()


def test_written_blocks_are_whole_after_a_kill(image: Path, tmp_path: Path) -> None:
    need_root()
    expected = bytearray(image.read_bytes())
    folder = tmp_path / "at"
    with emulated(image, folder, bad=[ByteRange(0, PAGE)]) as served:
        device = Direct(served.device)
        for page in range(0, 100, 3):
            expected[page * PAGE : (page + 1) * PAGE] = bytes([page]) * PAGE
            assert device.write(page * PAGE, bytes([page]) * PAGE) == 0
        served.server.kill()
        served.server.wait()
        assert device.write(0, bytes(PAGE)) == errno.ENOTCONN
        with pytest.raises(OSError, match="not connected"):
            device.close()
        again = subprocess.run(
            [*COMMAND, image, folder], capture_output=True, text=True, check=False
        )
        assert again.returncode == TargetError.exit_code
        assert "umount" in again.stderr
        subprocess.run(["umount", folder], check=True)
    assert image.read_bytes() == expected
    assert list(folder.iterdir()) == []
