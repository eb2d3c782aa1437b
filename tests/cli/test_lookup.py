"""``whoseblock lookup`` and what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.commands import whoseblock
from tests.support.xfs_images import sparse_copy

#: The modules of the package that one lookup on an image of a filesystem loads.
MOST_MODULES = 88
#: Other modules that take a millisecond or more each, and that it does not need.
COSTLY_MODULES = {
    "click",
    "ctypes",
    "dataclasses",
    "hashlib",
    "json",
    "locale",
    "logging",
    "random",
    "sqlite3",
    "tempfile",
}


def test_json_has_a_line_for_each_range_in_order(demo_image: Path) -> None:
    ranges = "# list\n14p\n\n0+512\n"
    done = whoseblock("lookup", demo_image, "307p", "--ranges", "-", "--json", stdin=ranges)
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["start"], one["length"]) for one in answers] == [
        (1257472, 4096),
        (57344, 4096),
        (0, 512),
    ]
    page, free, static = answers
    assert page["owners"] == [
        {
            "kind": "file", "start": 1257472, "length": 4096, "inode": 131, "fork": "data",
            "what": "data", "file_offset": 1048576, "unwritten": False, "shared": True,
            "paths": ["/a"],
        },
        {
            "kind": "file", "start": 1257472, "length": 4096, "inode": 262273, "fork": "data",
            "what": "data", "file_offset": 393216, "unwritten": False, "shared": True,
            "paths": ["/d/e/c"],
        },
    ]  # fmt: skip
    assert free["owners"] == [{"kind": "free", "start": 57344, "length": 4096}]
    assert static["owners"][0]["what"] == "static"
    assert all(one["complete"] is True and one["notes"] == [] for one in answers)


def test_no_paths_omits_the_key_paths(demo_image: Path) -> None:
    (line,) = whoseblock("lookup", demo_image, "307p", "--json", "--no-paths").stdout.splitlines()
    assert all("paths" not in owner for owner in json.loads(line)["owners"])


def test_a_range_is_needed(demo_image: Path) -> None:
    done = whoseblock("lookup", demo_image)
    assert done.returncode == 2
    assert "RANGE" in done.stderr


def _modules_loaded(*words: str | Path) -> set[str]:
    """Run a lookup, and return the names of all modules that the process loaded."""
    code = (
        "import sys; from whoseblock.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "lookup", *words], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [[], ["--json"], ["--summary"]])
def test_one_question_loads_neither_numpy_nor_rich(demo_image: Path, words: list[str]) -> None:
    assert not {"numpy", "rich"} & _modules_loaded(demo_image, "307p", *words)


def test_one_question_loads_few_modules(demo_image: Path) -> None:
    """Count modules, since the start of a process cannot be timed on a busy machine.

    Most of the time of one lookup is imports.  Import in the function what few lookups need.
    """
    loaded = _modules_loaded(demo_image, "307p", "--json")
    ours = sorted(name for name in loaded if name.startswith("whoseblock"))
    assert len(ours) <= MOST_MODULES, ours
    assert not COSTLY_MODULES & loaded


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", "line 9001: 'x' is not a range"),
        ("1" * 70_000, "line 9001: expected text in lines of"),
    ],
)
def test_an_invalid_line_of_a_long_list_is_reported_first(
    demo_image: Path, line: str, message: str
) -> None:
    ranges = "4096+512\n" * 9000 + line
    done = whoseblock("lookup", demo_image, "--ranges", "-", "--json", "--no-paths", stdin=ranges)
    assert done.stdout == ""
    assert message in done.stderr


def test_a_list_without_paths_has_the_same_answers(demo_image: Path) -> None:
    ranges = "".join(f"{page}p\n" for page in range(600)) + "# a comment\n0+16K\n307p"
    words = ["lookup", str(demo_image), "--ranges", "-", "--json"]
    bare = whoseblock(*words, "--no-paths", stdin=ranges).stdout.splitlines()
    full = whoseblock(*words, stdin=ranges).stdout.splitlines()
    assert len(bare) == 602
    for one, other in zip(map(json.loads, bare), map(json.loads, full), strict=True):
        for owner in other["owners"]:
            owner.pop("paths", None)
        assert one == other


@pytest.mark.parametrize("words", [[], ["--json"], ["--json", "--no-paths"], ["--summary"]])
@pytest.mark.parametrize("form", ["argument", "list"])
def test_an_incomplete_answer_may_be_a_failure(
    demo_image: Path, tmp_path: Path, words: list[str], form: str
) -> None:
    def code(image: Path, *more: str) -> int:
        given = ["307p", "100M"] if form == "argument" else ["--ranges", str(ranges)]
        done = whoseblock("lookup", image, *given, *words, *more)
        assert done.stdout
        return done.returncode

    ranges = tmp_path / "ranges"
    ranges.write_text("307p\n100M\n")
    # Without its first superblock, every answer about the image is incomplete.
    damaged = sparse_copy(demo_image, tmp_path / "damaged.img")
    with damaged.open("r+b") as file:
        file.write(bytes(512))
    assert code(demo_image, "--fail-incomplete") == 0
    assert code(damaged, "--fail-incomplete") == 24
    assert code(damaged) == 0
