"""A third driver, registered by one line, works wherever a filesystem does."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support import toy_filesystem
from tests.support.mounts import small_filesystem
from tests.support.tools import need_loop_mounts
from tests.support.toy_filesystem import BLOCK, make_toy

import whoseblock
from whoseblock.cli.group import cli
from whoseblock.errors import UnsupportedError
from whoseblock.fs import opening, registry
from whoseblock.fs.base import FileId, FileOwner
from whoseblock.fs.driver import Capability, MountedVolume
from whoseblock.lookup import Lookup, Query
from whoseblock.media.mounts import find_mounts
from whoseblock.respond import service
from whoseblock.respond.device import Device
from whoseblock.respond.service import PlanOptions
from whoseblock.target import Target, TargetOptions

SECTOR = 512
PART = 2048 * SECTOR
FILES = [(0, 11, 2, 3, 2 * BLOCK + 100, "plain"), (7, 11, 8, 1, 50, "inside")]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DRIVERS", [*registry.DRIVERS, toy_filesystem.REGISTRATION])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_toy(tmp_path / "toy.img", 16, FILES)


@pytest.fixture
def disk(image: Path, tmp_path: Path) -> Path:
    """Provide a disk whose only partition has the toy."""
    path = tmp_path / "disk.img"
    size = image.stat().st_size
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), PART // SECTOR, size // SECTOR)
    mbr = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    path.write_bytes(mbr.ljust(PART, b"\0") + image.read_bytes())
    return path


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def lookup(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("lookup", "--json", *arguments).splitlines()]


def test_an_image_is_opened_by_its_driver(image: Path) -> None:
    with whoseblock.open(image) as fs:
        assert (fs.name, fs.identity, fs.reverse_map) == ("toyfs", "toyfs the only one", "scan")
        assert fs.capabilities == frozenset()
        answer = fs.owners(0, 16 * BLOCK)
        kinds = [row.kind for row in answer]
        assert kinds == ["metadata", "free", "file", "free", "file", "free"]
        files = [row.file for row in answer if isinstance(row, FileOwner)]
        assert files == [FileId(0, 11), FileId(7, 11)]
        assert fs.paths(11, 7).paths == ("/inside",)
        free = [one for one in fs.allocation([(BLOCK, 4 * BLOCK)]) if one.is_free]
        assert [(one.start, one.length) for one in free] == [(BLOCK, BLOCK)]


def test_lookup_goes_through_the_stack(disk: Path) -> None:
    (answer,) = lookup(disk, f"{PART + 2 * BLOCK}+512")
    (row,) = answer["owners"]
    assert (row["kind"], row["inode"], row["paths"]) == ("file", 11, ["/plain"])
    assert row["via"][-1] == {"layer": "disk.img1", "start": 2 * BLOCK}
    assert "subvolume" not in row
    (answer,) = lookup(disk, f"{PART + 8 * BLOCK}+512")
    (row,) = answer["owners"]
    assert (row["subvolume"], row["inode"], row["paths"]) == (7, 11, ["/inside"])
    assert "7/11" in run("lookup", disk, f"{PART + 8 * BLOCK}+512")


def test_the_stack_is_shown(disk: Path) -> None:
    assert "disk.img1" in run("stack", disk)


def test_files_of_two_subvolumes_are_summed_up_apart(disk: Path) -> None:
    total = json.loads(run("lookup", "--summary", "--json", disk, f"{PART}+{16 * BLOCK}"))
    lost = {(one.get("subvolume"), one["inode"]): one for one in total["files"]}
    assert {key: one["bytes"] for key, one in lost.items()} == {
        (None, 11): 3 * BLOCK,
        (7, 11): BLOCK,
    }
    assert lost[None, 11]["data_bytes"] == 2 * BLOCK + 100
    assert lost[7, 11]["path"] == "/inside"
    assert total["totals"]["free"] == 11 * BLOCK


@pytest.fixture
def mounted_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Yield the device of a mount that claims to be a toy; tmpfs has no GETFSMAP either."""
    need_loop_mounts()
    with small_filesystem("tmpfs", tmp_path / "none", 1 << 20) as folder:
        device = folder.stat().st_dev
        process, mounts = find_mounts(device)
        toys = [mount._replace(kind="toyfs") for mount in mounts]
        monkeypatch.setattr(opening, "find_mounts", lambda _: (process, toys))
        yield device


def test_respond_refuses_every_act_with_a_sentence(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = image.read_bytes()
    monkeypatch.setattr(Device, "failing", lambda _, ranges: list(ranges))
    with (
        Target(str(image), TargetOptions()) as target,
        Lookup(target.open_leaf) as finder,
    ):
        assert target.layer is not None
        queries = [Query(block * BLOCK, BLOCK, target.layer) for block in (0, 1, 2)]
        options = PlanOptions(punch=True)
        found = list(service.plan(target, finder, queries, options))
        assert service.count_changes(found) == 0
        says = [proposal.says for one in found for proposal in one.proposals]
    assert "fsck.toyfs" in says[0]
    assert "cannot zero" in says[1]
    assert all("toyfs" in why for why in says[:2])
    assert len(says) == len(queries)
    assert image.read_bytes() == before


def test_a_mounted_one_is_refused_with_a_sentence(mounted_toy: int) -> None:
    with pytest.raises(UnsupportedError, match="toyfs"):
        opening.open_mounted(mounted_toy)


def test_a_companion_of_a_driver_without_one_is_refused(image: Path, disk: Path) -> None:
    done = CliRunner().invoke(
        cli, ["lookup", str(image), "0", "--log-device", str(disk), "--address-space", "log"]
    )
    assert isinstance(done.exception, UnsupportedError)
    assert "has no log device" in str(done.exception)


def test_another_filesystem_of_the_kernel_has_an_identity_and_no_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_loop_mounts()
    # As if ext4 had no driver.
    monkeypatch.setattr(registry, "DRIVERS", [toy_filesystem.REGISTRATION])
    with small_filesystem("ext4", tmp_path / "ext4", 16 << 20) as folder:
        with whoseblock.open(folder) as fs:
            assert isinstance(fs, MountedVolume)
            kind, _, name = fs.identity.partition(" ")
            assert kind == "ext4"
            assert name
            first = fs.identity
            assert fs.capabilities == frozenset[Capability]()
            assert fs.reverse_map == "none"
            assert "fsck.ext4" in fs.repair_advice(fs.owners(0, 512)[0])
        with whoseblock.open(folder) as fs:
            assert fs.identity == first


def test_two_filesystems_have_two_identities(tmp_path: Path) -> None:
    need_loop_mounts()
    with (
        small_filesystem("ext4", tmp_path / "a", 16 << 20) as one,
        small_filesystem("ext4", tmp_path / "b", 16 << 20) as other,
        whoseblock.open(one) as first,
        whoseblock.open(other) as second,
    ):
        assert first.identity != second.identity


def test_a_lookup_imports_only_the_driver_that_it_needs(image: Path) -> None:
    program = (
        "import sys; from tests.support import toy_filesystem; from whoseblock.fs import registry;"
        "registry.DRIVERS.append(toy_filesystem.REGISTRATION);"
        "from whoseblock.cli.group import cli;"
        "cli(['lookup', '--json', sys.argv[1], '0'], standalone_mode=False);"
        "print(*(name for name in sys.modules if name.startswith('whoseblock.fs.')"
        " or name in ('numpy', 'rich')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, image], capture_output=True, text=True, check=True
    )
    loaded = done.stderr.split()
    drivers = {one.module.rpartition(".")[0] for one in registry.DRIVERS}
    assert not [name for name in loaded for driver in drivers if name.startswith(f"{driver}.")]
    assert not {"numpy", "rich"} & set(loaded)
