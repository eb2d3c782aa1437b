"""Whether a log is clean, for every way in which a log comes to be, as xfs_logprint sees it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.image_damage import Overlay
from tests.support.mounts import loop_device, mounted
from tests.support.tools import need_loop_mounts, run, sees, xfsprogs
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_copy, sparse_file

from whoseblock.fs.xfs.format.log import BBSIZE
from whoseblock.fs.xfs.log import log_note
from whoseblock.fs.xfs.superblocks import open_superblock
from whoseblock.fs.xfs.volume import Volume
from whoseblock.media import FileMedia, Media

_STATE = re.compile(r"state: <(CLEAN|DIRTY)>")

#: Options of mkfs.xfs for the log: the smallest sizes, so that the log wraps.
LOGS = {
    "plain": Geometry("plain", size=64 * MIB, groups=2, parent=False),
    "stripe unit": Geometry(
        "stripe-unit", size=128 * MIB, groups=2, parent=False, more=("-l", "su=64k,size=32m")
    ),
    "sectors of 4096": Geometry("sectors", size=64 * MIB, groups=2, sector=4096, parent=False),
    "external": Geometry("external", size=128 * MIB, groups=2, parent=False),
}


class Logged(NamedTuple):
    """An image, and the device of its log if that is another one."""

    image: Path
    log: Path | None = None

    def copy(self, name: str) -> "Logged":
        image = sparse_copy(self.image, self.image.with_name(f"{name}.img"))
        return Logged(image, self.log and sparse_copy(self.log, image.with_suffix(".log")))

    def options(self) -> list[str | Path]:
        """Return the option that names the log's device to the programs of xfsprogs."""
        return [] if self.log is None else ["-l", self.log]

    def volume(self) -> tuple[Volume, Media | None]:
        media = FileMedia(self.image)
        log = None if self.log is None else FileMedia(self.log)
        return Volume(media, open_superblock(media)[0]), log


def is_clean(logged: Logged) -> bool:
    """Ask the program."""
    volume, log = logged.volume()
    note = log_note(volume, log)
    volume.media.close()
    if log is not None:
        log.close()
    assert not note or "the log is dirty" in note
    return not note


def by_logprint(logged: Logged, *, newest: bool = True) -> str:
    """Ask xfs_logprint: CLEAN, DIRTY, or nothing if it cannot tell."""
    command = [xfsprogs("xfs_logprint", newest=newest), "-t", *logged.options()]
    done = subprocess.run([*command, logged.image], capture_output=True, check=False)
    found = _STATE.search(done.stdout.decode(errors="replace"))
    return found[1] if found else ""


class Mount:
    """An image of a kind of `LOGS`, mounted as often as one likes."""

    def __init__(self, folder: Path, kind: str) -> None:
        geometry = LOGS[kind]
        log = None
        if kind == "external":
            log = sparse_file(folder / "first.log", 32 * MIB)
            more = ("-l", f"logdev={log},size=32m")
            geometry = Geometry("external", size=geometry.size, groups=2, parent=False, more=more)
        if sees("-i", "exchange=0"):
            # The system's xfs_repair may be too old for this feature.
            geometry = replace(geometry, more=(*geometry.more, "-i", "exchange=0"))
        self.logged = Logged(make_image(folder / "first.img", geometry), log)

    def use(self, logged: Logged, name: str, *, rounds: int, how: str = "") -> Logged:
        """Write; then copy the image while it is in use, or shut down, or unmount cleanly."""
        with ExitStack() as stack:
            options = []
            if logged.log is not None:
                options = [f"logdev={stack.enter_context(loop_device(logged.log))}"]
            root = stack.enter_context(mounted(logged.image, *options))
            for turn in range(rounds):
                folder = root + b"/folder %d" % turn
                os.mkdir(folder)
                for number in range(100):
                    (Path(os.fsdecode(folder)) / f"file-{number}").write_bytes(b"x")
                run(["sync", "-f", os.fsdecode(root)])
                shutil.rmtree(folder)
            run(["sync", "-f", os.fsdecode(root)])
            Path(os.fsdecode(root), "last").write_bytes(b"x" * rounds)
            if how == "in use":
                run(["sync", "-f", os.fsdecode(root)])
                return logged.copy(name)
            if how:
                run([xfsprogs("xfs_io"), "-x", "-c", how, os.fsdecode(root)])
        return logged.copy(name)


@pytest.fixture(scope="module", params=LOGS)
def states(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Logged]:
    """Provide images with logs that the kernel has written."""
    need_loop_mounts()
    folder = tmp_path_factory.mktemp("logs")
    mount = Mount(folder, request.param)
    found = {"fresh": mount.logged.copy("fresh")}
    found["used"] = mount.use(mount.logged, "used", rounds=1)
    found["in use"] = mount.use(mount.logged, "in-use", rounds=1, how="in use")
    shut = mount.logged.copy("going-down")
    found["shut down"] = mount.use(shut, "shut-down", rounds=1, how="shutdown -f")
    found["recovered"] = mount.use(shut, "recovered", rounds=0)
    # Each round writes about a megabyte.
    found["went round"] = mount.use(mount.logged, "went-round", rounds=60)
    found["went round, in use"] = mount.use(mount.logged, "round-in-use", rounds=30, how="in use")
    return found


def test_logs_that_the_kernel_wrote(states: dict[str, Logged]) -> None:
    dirty = {"in use", "shut down", "went round, in use"}
    for state, logged in states.items():
        assert by_logprint(logged) == ("DIRTY" if state in dirty else "CLEAN"), state
        assert is_clean(logged) is (state not in dirty), state


def cleared(states: dict[str, Logged], *, newest: bool) -> Iterator[tuple[str, Logged]]:
    """Yield images whose log was cleared, in every possible way."""

    def program(name: str) -> Path:
        return xfsprogs(name, newest=newest)

    for state, logged in states.items():
        copy = logged.copy("repaired")
        run([program("xfs_repair"), "-L", *copy.options(), copy.image])
        yield f"{state}, xfs_repair -L", copy
        if state in ("in use", "shut down", "went round, in use"):
            continue
        copy = logged.copy("another-uuid")
        more = [] if copy.log is None else [copy.log]
        run([program("xfs_admin"), "-U", "generate", copy.image, *more])
        yield f"{state}, xfs_admin -U", copy
        if logged.log is not None:
            # The programs below do not copy such a filesystem.
            continue
        for option in ([], ["-d"]):
            copy = Logged(sparse_file(logged.image.with_name("copied.img"), 0))
            run([program("xfs_copy"), *option, logged.image, copy.image])
            yield f"{state}, xfs_copy {option}", copy
        dump = logged.image.with_name("dump")
        copy = Logged(sparse_file(logged.image.with_name("restored.img"), 0))
        run([program("xfs_db"), "-c", f"metadump -o {dump}", logged.image])
        run([program("xfs_mdrestore"), dump, copy.image])
        dump.unlink()
        yield f"{state}, xfs_metadump", copy


@pytest.mark.parametrize("newest", [True, False])
def test_logs_that_were_cleared(states: dict[str, Logged], *, newest: bool) -> None:
    count = 0
    for way, logged in cleared(states, newest=newest):
        assert by_logprint(logged, newest=newest) == "CLEAN", way
        assert is_clean(logged), way
        count += 1
    assert count >= 10


# ---------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def damaged(states: dict[str, Logged]) -> dict[str, Logged]:
    """Provide images to be damaged: as they are, and with the log cleared."""
    copy = states["went round"].copy("to-be-damaged")
    more = [] if copy.log is None else [copy.log]
    run([xfsprogs("xfs_admin"), "-U", "generate", copy.image, *more])
    return states | {"cleared": copy}


class Place(NamedTuple):
    """A log on its device."""

    media: Media
    start: int
    blocks: int

    def read(self, block: int) -> bytes:
        return self.media.pread(self.start + block % self.blocks * BBSIZE, BBSIZE)


def place(volume: Volume, log: Media | None) -> Place:
    """Find the log."""
    sb = volume.sb
    start = volume.fsb_to_byte(sb.logstart) if log is None else 0
    assert start is not None
    return Place(log or volume.media, start, sb.logblocks * sb.blocksize // BBSIZE)


def interesting(where: Place) -> list[int]:
    """Find where records begin and where the cycle changes."""
    found = [0]
    before = -1
    for block in range(where.blocks):
        raw = where.read(block)
        header = raw[:4] == b"\xfe\xed\xba\xbe"
        cycle = int.from_bytes(raw[4:8] if header else raw[:4], "big")
        if header or cycle != before:
            found.append(block)
        before = cycle
    return found


# The first block is that of the last record, or of one that neither the kernel nor xfs_logprint can
# place: the end of the log was never written, so that no later pass has begun.
@pytest.mark.parametrize("state", ["fresh", "recovered"])
def test_a_first_block_of_a_later_pass(states: dict[str, Logged], state: str) -> None:
    volume, log = states[state].volume()
    where = place(volume, log)
    header = where.read(0)
    later = int.from_bytes(header[4:8], "big") + 1
    patched = Overlay(
        where.media, {where.start: header[:4] + later.to_bytes(4, "big") + header[8:]}
    )
    assert not log_note(volume, log)
    note = log_note(Volume(patched, volume.sb)) if log is None else log_note(volume, patched)
    assert "the log is dirty" in note
    volume.media.close()
    if log is not None:
        log.close()


_CHANGES = ("zero", "older cycle", "newer cycle", "from elsewhere", "no header", "garbage")


@settings(max_examples=60)
@given(data=st.data())
def test_no_dirty_log_is_called_clean_whatever_is_damaged(
    damaged: dict[str, Logged], data: st.DataObject
) -> None:
    logged = damaged[data.draw(st.sampled_from(sorted(damaged)), label="state")]
    volume, log = logged.volume()
    where = place(volume, log)
    places = interesting(where)
    patches: dict[int, bytes] = {}
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        near = data.draw(st.sampled_from([*places[-30:], *places[:30]]), label="near")
        at = (near + data.draw(st.integers(-4, 4), label="beside")) % where.blocks
        raw = where.read(at)
        word = 4 if raw[:4] == b"\xfe\xed\xba\xbe" else 0
        cycle = int.from_bytes(raw[word : word + 4], "big")
        change = data.draw(st.sampled_from(_CHANGES), label="change")
        if change == "zero":
            raw = bytes(BBSIZE)
        elif change == "from elsewhere":
            raw = where.read(data.draw(st.sampled_from(places), label="from"))
        elif change == "no header":
            raw = raw[4:8] + raw[4:]
        elif change == "garbage":
            raw = b"\xff" * BBSIZE
        else:
            cycle = max(0, cycle + (1 if change == "newer cycle" else -1))
            raw = raw[:word] + cycle.to_bytes(4, "big") + raw[word + 4 :]
        patches[where.start + at * BBSIZE] = raw
    patched = Overlay(where.media, patches)
    note = log_note(Volume(patched, volume.sb)) if log is None else log_note(volume, patched)
    if not note:
        copy = logged.copy("damaged")
        with (copy.log or copy.image).open("r+b") as file:
            for start, raw in patches.items():
                file.seek(start)
                file.write(raw)
        assert by_logprint(copy) == "CLEAN"
    volume.media.close()
    if log is not None:
        log.close()
