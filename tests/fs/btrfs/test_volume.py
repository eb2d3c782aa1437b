"""Several devices: some left out, mixed up, out of date or damaged; and the command line."""

import json
import mmap
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from tests.support.btrfs_damage import DamagedMedia, lies
from tests.support.btrfs_devices import Filesystem, make_filesystem, mounted_devices, places_of
from tests.support.btrfs_images import SECTOR, Claim, differences
from tests.support.tools import need_loop_mounts, run

import whoseblock
from whoseblock.cli.group import cli
from whoseblock.errors import NotAFilesystemError, UnsupportedError

MIB = 1 << 20


class Devices(NamedTuple):
    """A filesystem, the places of each tree block, and copies of the images before a change."""

    filesystem: Filesystem
    blocks: list[list[tuple[int, int]]]
    before: list[Path]


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    """Provide a filesystem on three devices."""
    need_loop_mounts()
    folder = tmp_path_factory.mktemp("btrfs")
    before = [folder / f"before{number}.img" for number in range(3)]

    def change(root: Path) -> None:
        run(["btrfs", "filesystem", "sync", root])
        for number, image in enumerate(before):
            run(["cp", "--sparse=always", folder / f"device{number + 1}.img", image])
        for number in range(24):
            (root / f"small{number}").write_bytes(b"y" * (number * 300 + 1))

    options = ["-n", "4096", "-d", "raid5", "-m", "raid1"]
    found = make_filesystem(folder, 3, *options, change=change)
    blocks = [places_of(found.dump, block) for block in found.dump.blocks]
    yield Devices(found, blocks, before)
    shutil.rmtree(folder)


def test_members_that_do_not_belong_together(devices: Devices, tmp_path: Path) -> None:
    one, two, _ = devices.filesystem.images
    with pytest.raises(UnsupportedError, match="are both device 2 of one btrfs filesystem"):
        whoseblock.open(one, members=[two, devices.before[1]])
    other = tmp_path / "other.img"
    with other.open("wb") as file:
        file.truncate(128 * MIB)
    with pytest.raises(UnsupportedError, match="no device of btrfs"):
        whoseblock.open(one, members=[other])
    run(["mkfs.btrfs", "-q", other])
    with pytest.raises(UnsupportedError, match="a device of another btrfs filesystem"):
        whoseblock.open(one, members=[other])
    with other.open("r+b") as file:
        file.truncate(300 * MIB)
    run(["mkfs.xfs", "-q", "-f", other])
    with pytest.raises(UnsupportedError, match="XFS is on one device"):
        whoseblock.open(other, members=[one])


def test_a_device_that_missed_changes(devices: Devices) -> None:
    one, two, three = devices.filesystem.images
    for members in ([one, devices.before[1], three], [devices.before[1], one, three]):
        with whoseblock.open(members[0], members=members[1:]) as fs:
            answer = fs.owners(0, fs.device_size)
        assert not answer.complete
        assert f"{devices.before[1]} has the state of generation" in answer.notes[0]
        assert "it missed changes" in answer.notes[0]
        number = 1 if members[0] == devices.before[1] else 0
        assert lies(devices.filesystem.truths[number], answer) == []
    assert two.exists()


def test_two_of_three_devices_are_missing(devices: Devices) -> None:
    for number, image in enumerate(devices.filesystem.images):
        with whoseblock.open(image) as fs:
            answer = fs.owners(0, fs.device_size)
        assert not answer.complete
        assert any("missing" in note or "--member" in note for note in answer.notes)
        assert lies(devices.filesystem.truths[number], answer) == []


class Wounds:
    """Three devices with damaged tree blocks; ``raws`` are their bytes, then those of before."""

    def __init__(self, devices: Devices, raws: Sequence[mmap.mmap], rnd: random.Random) -> None:
        self._blocks = devices.blocks
        self._size = devices.filesystem.dump.node_size
        self._raws = raws
        self._rnd = rnd
        self._edits: list[dict[int, bytes]] = [{}, {}, {}]
        self._lost: list[set[int]] = [set(), set(), set()]

    def media(self) -> list[DamagedMedia]:
        """Return the devices."""
        return [
            DamagedMedia(self._raws[number], self._edits[number], self._lost[number], f"/{number}")
            for number in range(3)
        ]

    def add(self) -> None:
        """Damage one tree block on one of its devices, or on both."""
        kind = self._rnd.choice(("bit", "zeros", "lost", "another", "old", "device"))
        for device, at in self._rnd.choice(self._blocks)[: self._rnd.choice((1, 1, 2))]:
            if kind == "lost":
                self._lost[device - 1].add(at)
            else:
                place, data = self._damaged(kind, device, at)
                self._edits[device - 1][place] = data

    def _damaged(self, kind: str, device: int, at: int) -> tuple[int, bytes]:
        raw, size = self._raws[device - 1], self._size
        if kind == "bit":
            inside = at + self._rnd.randrange(size)
            return inside, bytes([raw[inside] ^ 1 << self._rnd.randrange(8)])
        if kind == "another":
            other, place = self._rnd.choice(self._blocks)[0]
            return at, self._raws[other - 1][place : place + size]
        if kind == "old":
            return at, self._raws[device + 2][at : at + size]
        if kind == "device":
            # From here on the device has what another has there.
            return at, self._raws[device % 3][at : at + min(MIB, len(raw) - at)]
        return at, bytes(size)


def damage_case(devices: Devices, seed: int) -> tuple[list[str], bool]:
    """Return every wrong word about a device of a damaged filesystem, and if all was complete."""
    rnd = random.Random(f"devices {seed}")
    with ExitStack() as undo:
        raws = []
        for image in (*devices.filesystem.images, *devices.before):
            file = undo.enter_context(image.open("rb"))
            raws.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            undo.callback(raws[-1].close)
        wounds = Wounds(devices, raws, rnd)
        for _ in range(rnd.choice((1, 2, 4, 12))):
            wounds.add()
        media, first = wounds.media(), rnd.randrange(3)
        truth = devices.filesystem.truths[first]
        owned = [n for n, claims in enumerate(truth.claims) if claims != {Claim("free")}]
        sectors = [rnd.choice(owned) for _ in range(25)]
        sectors += [rnd.randrange(len(truth.claims)) for _ in range(5)]
        wrong: list[str] = []
        complete = True
        try:
            fs = whoseblock.open(media.pop(first), members=media)
        except (NotAFilesystemError, UnsupportedError):
            return [], False
        with closing(fs):
            for answer in fs.owners_many((one * SECTOR, SECTOR) for one in sectors):
                wrong += (differences if answer.complete else lies)(truth, answer)
                complete &= answer.complete
    return [f"case {seed}: {one}" for one in wrong[:5]], complete


def test_damage_leads_to_no_wrong_word(devices: Devices) -> None:
    found = [damage_case(devices, seed) for seed in range(60)]
    assert [wrong for wrong, _ in found] == [[]] * 60
    assert {complete for _, complete in found} == {True, False}


def test_a_tree_block_is_read_from_the_other_mirror(devices: Devices) -> None:
    device = devices.blocks[0][0][0]
    lost = {at for places in devices.blocks for number, at in places if number == device}
    others = [*devices.filesystem.images]
    raw = others.pop(device - 1).read_bytes()
    with whoseblock.open(DamagedMedia(raw, {}, lost), members=others) as fs:
        answer = fs.owners(0, fs.device_size)
    assert answer.complete
    assert any("was read from its copy at byte" in note for note in answer.notes)
    assert differences(devices.filesystem.truths[device - 1], answer) == []


def invoke(*arguments: object) -> str:
    """Run the command line, which must succeed."""
    done = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_line(devices: Devices) -> None:
    one, two, three = devices.filesystem.images
    members = ["--member", two, "--member", three]
    tree = json.loads(invoke("stack", "--json", one, *members))
    assert tree["filesystem"] == "btrfs"
    lengths = {
        at: length
        for at, length, _ in (
            (offset, length // (2 if profile == "RAID5" else 1), profile)
            for length, profile, stripes in devices.filesystem.dump.profiles.values()
            for device, offset in stripes
            if device == 1
        )
    }
    assert {part["start"]: part["length"] for part in tree["segments"]} == lengths
    assert "data RAID5, from logical address" in " ".join(invoke("stack", one, *members).split())
    claims = devices.filesystem.truths[0].claims
    sector = next(n for n, some in enumerate(claims) if {one.kind for one in some} == {"file"})
    (row, *_) = json.loads(invoke("lookup", "--json", one, f"{sector}p", *members))["owners"]
    space = ["--address-space", "logical", *members]
    (same, *_) = json.loads(invoke("lookup", "--json", one, row["logical"], *space))["owners"]
    assert (same["inode"], same["paths"]) == (row["inode"], row["paths"])
    assert {"layer": str(one), "start": sector * SECTOR} in same["copies"]
    assert same["start"] == same["logical"] == row["logical"]


def test_messages_of_the_kernel(devices: Devices, tmp_path: Path) -> None:
    """Look up a place on a device and the logical address of the same message's block."""
    one, two, three = devices.filesystem.images
    claims = devices.filesystem.truths[0].claims
    sector = next(n for n, some in enumerate(claims) if {one.kind for one in some} == {"file"})
    members = ["--member", two, "--member", three]
    (row, *_) = json.loads(invoke("lookup", "--json", one, f"{sector}p", *members))["owners"]
    log = tmp_path / "kernel.log"
    begin = "[   10.1] BTRFS error (device sdb): "
    address = row["logical"]
    fixup = f"unable to fixup (regular) error at logical 1 on dev /dev/sdb physical {sector * 4096}"
    lines = (
        fixup,
        f"parent transid verify failed on logical {address} mirror 1 wanted 26779 found 25801",
        f"csum failed root {row['subvolume']} ino {row['inode']} off {row['file_offset']} csum 0x1",
        "csum failed root 5 ino 999999 off 0 csum 0x1",
        f"bad tree block start, want {1 << 60} have 0",
    )
    log.write_text("".join(f"{begin}{line}\n" for line in lines))
    done = CliRunner().invoke(
        cli, list(map(str, ("lookup", "--json", one, "--dmesg", log, *members)))
    )
    assert done.exit_code == 0, done.output
    physical, logical, in_file = map(json.loads, done.stdout.splitlines())
    assert (in_file["start"], in_file["length"]) == (address, SECTOR)
    assert (physical["start"], logical["start"]) == (sector * SECTOR, row["logical"])
    for answer in (physical, logical, in_file):
        assert answer["owners"][0]["paths"] == row["paths"]
        assert answer["owners"][0]["inode"] == row["inode"]
    assert "1 logical address of sdb passed over: btrfs" in done.stderr
    assert "inode 999999 of subvolume 5 has no data there" in done.stderr
    # A plan has no step there.
    planned = CliRunner().invoke(
        cli, ["respond", str(one), "--dmesg", str(log), "--journal", str(tmp_path / "j.db")]
    )
    assert planned.exception is None or isinstance(planned.exception, SystemExit), planned.output


def test_other_devices_of_this_machine_are_found(devices: Devices) -> None:
    with mounted_devices(devices.filesystem.images) as (loops, _):
        answer = json.loads(invoke("lookup", "--json", "--offline", loops[1], "22M+1M"))
        rows = answer["owners"]
        tree = json.loads(invoke("stack", "--json", "--offline", loops[1]))
    assert rows[0]["kind"] != "unknown"
    names = {name for part in tree["segments"] for name in part["others"]}
    assert names == {loop for loop in loops if loop != loops[1]}
    assert all("missing" not in note for note in answer["notes"])
