"""The processes that use the blocks of a mounted filesystem, by the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.mapping_processes import running
from tests.support.mounts import mounted
from tests.support.system_calls import clone_range
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import Geometry, make_image

import whoseblock
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.stream import LeadingRows, join_rows
from whoseblock.media import mounts
from whoseblock.querying import QueryOptions, stream_owners

PAGE = 4096


def lookup(target: Path | bytes, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "whoseblock", "lookup", target, *arguments, "--json"],
        capture_output=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def users(owner: dict[str, Any]) -> dict[int, tuple[list[tuple[int, int, str]], int]]:
    """Return for each process its mappings with their rights, and its number of descriptors."""
    return {
        process["pid"]: (
            [
                (
                    mapping["address"],
                    mapping["length"],
                    ("s" if mapping["shared"] else "p") + ("w" if mapping["writable"] else "r"),
                )
                for mapping in process["mappings"]
            ],
            len(process["open"]),
        )
        for process in owner["processes"]
    }


def test_exactly_the_processes_that_use_the_part_are_named(tmp_path: Path) -> None:
    # One block that two files share, mapped and open in every way there is.
    need_loop_mounts()
    image = make_image(tmp_path / "image", Geometry("users", size=400 << 20))
    with mounted(image) as folder, ExitStack() as stack:
        root = Path(os.fsdecode(folder))
        (root / "folder").mkdir()
        one, link, clone = root / "one", root / "folder/link", root / "clone"
        one.write_bytes(os.urandom(64 * PAGE))
        os.sync()
        os.link(one, link)
        with one.open("rb") as source, clone.open("wb") as target:
            # Page 10 of the first is page 2 of the clone.
            clone_range(source.fileno(), 8 * PAGE, 16 * PAGE, target.fileno(), 0)
        os.sync()

        def run(program: str, path: Path, *more: str, under: tuple[str, ...] = ()) -> list[Any]:
            told: list[Any] = stack.enter_context(running(program, path, *more, under=under))
            return told

        whole = run("ready(map_file(0, 64 * PAGE))", one)
        part = run("ready(map_file(10 * PAGE, PAGE, READ | WRITE, PRIVATE))", link)
        run("ready(map_file(11 * PAGE, 20 * PAGE))", one)  # begins behind it
        run("ready(map_file(0, 10 * PAGE))", link)  # ends before it
        other = run("ready(map_file(PAGE, 4 * PAGE, READ | WRITE))", clone)
        apart = run("ready(map_file(9 * PAGE, 2 * PAGE))", link, under=("unshare", "--mount"))
        opened = run("kept = os.open(path, os.O_RDONLY); ready()", link)
        with whoseblock.open(root) as fs:
            whole_image = fs.owners(0, fs.size)
        row = next(
            row for row in whole_image if isinstance(row, FileOwner) and row.paths == ("/clone",)
        )
        start = row.start + 2 * PAGE - (row.file_offset or 0)
        answer = lookup(image, f"{start + 512}+512", "--processes", "--verify")
        of = {owner["paths"][-1]: users(owner) for owner in answer["owners"]}
        assert of == {
            "/one": {
                whole[0]: ([(whole[1] + 10 * PAGE + 512, 512, "sr")], 0),
                part[0]: ([(part[1] + 512, 512, "pw")], 0),
                apart[0]: ([(apart[1] + PAGE + 512, 512, "sr")], 0),
                opened[0]: ([], 1),
            },
            "/clone": {other[0]: ([(other[1] + PAGE + 512, 512, "sw")], 0)},
        }
        assert answer["verified"] is True
        assert answer["complete"] is True
        done = subprocess.run(
            [sys.executable, "-m", "whoseblock", "lookup", root, f"{start}+512"],
            capture_output=True,
            text=True,
            check=True,
        )
        for pid in (whole[0], part[0], apart[0], opened[0], other[0]):
            assert f"  used: process {pid} python" in done.stdout
        assert f"mapped at {part[1]:#x}+512 rw- private" in done.stdout
        # Without the option, processes are not searched.
        assert "processes" not in lookup(image, f"{start}+512")["owners"][0]


def test_a_change_during_the_query_is_reported(tmp_path: Path) -> None:
    # The file is deleted after the first answer, and before the owners are asked again.
    need_loop_mounts()
    image = make_image(tmp_path / "image", Geometry("change", size=400 << 20))
    with mounted(image) as folder, whoseblock.open(os.fsdecode(folder)) as fs:
        path = os.fsdecode(folder) + "/file"
        Path(path).write_bytes(os.urandom(16 * PAGE))
        os.sync()
        row = next(
            row
            for row in fs.owners(0, fs.size)
            if isinstance(row, FileOwner) and row.paths == ("/file",)
        )
        question = [(row.start, PAGE)]
        (steady,) = join_rows(stream_owners(fs, question, QueryOptions(verified=True)))
        assert (steady.verified, steady.complete) == (True, True)
        ask = type(fs).owners_stream
        asked: list[bool] = []

        def owners_stream(
            ranges: Iterable[tuple[int, int]], *, paths: bool = True
        ) -> Iterator[LeadingRows | Answer]:
            if asked:
                os.unlink(path)
                os.sync()
            asked.append(paths)
            return ask(fs, ranges, paths=paths)

        fs.owners_stream = owners_stream  # type: ignore[method-assign] # to see the calls
        (changed,) = join_rows(stream_owners(fs, question, QueryOptions(verified=True)))
    assert (changed.verified, changed.complete) == (False, False)
    assert any("changed" in note for note in changed.notes)
    assert [owner.kind for owner in changed] == ["file"]


def test_mounts_are_read_as_the_kernel_writes_them() -> None:
    text = r"""36 35 98:0 /mnt1 /mnt\1342\0401 rw shared:1 master:2 - ext3 /dev/ro\134ot rw,errors=x
37 35 7:300 / /a rw - xfs /dev/loop300 rw
not a mount
x 35 7:1 / /a rw - xfs /dev/loop1 rw
"""
    one, two = mounts.read_mounts(text)
    assert one == mounts.Mount(
        36, 35, os.makedev(98, 0), "/mnt1", "/mnt\\2 1", "ext3", "/dev/ro\\ot", ("rw", "errors=x")
    )
    assert (two.device, two.point) == (os.makedev(7, 300), "/a")
