"""The house rules that a machine can check: floors, sizes, docstrings, and what files may name."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "src" / "whoseblock"
TESTS = TOP / "tests"
MAX_LINES = 600


class Room(NamedTuple):
    """Modules on one floor, and the highest floor that they may know besides themselves."""

    modules: tuple[str, ...]
    floor: int
    knows: int


# The table of ARCHITECTURE.md. A * stands for any name. Of the rooms that fit a module, the first
# is its own.
ROOMS = (
    Room(("watch.__main__",), 7, 7),
    Room(
        (
            *("byte_range", "closing", "encode", "errors", "extras", "printable"),
            *("process_stat", "process_text", "ranges"),
        ),
        0,
        -1,
    ),
    Room(("media",), 1, 0),
    Room(("signatures",), 1, 0),
    Room(("fs.layout", "fs.*.format"), 2, 0),
    Room(("fs",), 3, 2),
    Room(("stack",), 3, 1),
    Room(("sources",), 1, 0),
    Room(
        (
            *("columns", "file_ranges", "lookup", "losses", "members", "processes", "query"),
            *("querying", "resolve", "summary", "target"),
        ),
        4,
        3,
    ),
    Room(("journal", "respond"), 5, 4),
    Room(("tables",), 5, 4),
    Room(("watch",), 6, 5),
    Room(("study",), 6, 4),
    Room(("doctor", "report"), 7, 6),
    Room(("cli", "__main__"), 7, 7),
    # The package itself, which is the Python API: it shows anything but the command line.
    Room(("",), 7, 6),
)

# A format module takes bytes and gives records; it has no use for these.
INPUT_AND_OUTPUT = {"fcntl", "io", "mmap", "os", "pathlib", "shutil", "socket", "subprocess", "sys"}

# Lock files and scripts work with whatever mirror a machine has. In pieces: this file counts too.
REGISTRIES = [
    ".".join(pieces)
    for pieces in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("npmjs", "org"),
        ("crates", "io"),
    )
]


def module_name(path: Path) -> str:
    """Name a module from within the package; the package itself is ''."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


def room_of(module: str) -> Room:
    """Look a module up in the table."""
    names = module.split(".")
    for room in ROOMS:
        for pattern in room.modules:
            wanted = pattern.split(".")
            if len(wanted) <= len(names) and all(
                want in ("*", name) for want, name in zip(wanted, names, strict=False)
            ):
                return room
    raise LookupError(f"{module!r} has no room: add it to ARCHITECTURE.md, and here")


def imports(source: bytes, package: str) -> Iterator[str]:
    """Yield the full names of all imports, in functions and under TYPE_CHECKING too."""
    above = package.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*start, node.module] if node.module else start)
            # What is imported from a package is either a module in it or something that it shows.
            for full in (f"{base}.{alias.name}" for alias in node.names):
                yield full if full.removeprefix("whoseblock.") in MODULES else base


def imports_of(module: str) -> list[str]:
    """Return what a module of the package imports."""
    path = MODULES[module]
    package = ".".join(("whoseblock", *path.parent.relative_to(PACKAGE).parts))
    return list(imports(path.read_bytes(), package))


def upward(module: str, imported: list[str]) -> list[str]:
    """Return those imports that a module's floor does not allow."""
    own = room_of(module)
    inside = [name for name in imported if name.split(".")[0] == "whoseblock"]
    rooms = {name: room_of(name.removeprefix("whoseblock").removeprefix(".")) for name in inside}
    return [name for name, room in rooms.items() if room is not own and room.floor > own.knows]


def committed_files() -> dict[str, bytes]:
    """Return the files that are committed, or would be by ``git add``."""
    git = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP)]
    listing = [*git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listing, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("without git and a checkout the project's files are unknown")
    paths = (Path(name) for name in names.decode().split("\0") if name)
    return {str(path): (TOP / path).read_bytes() for path in paths if (TOP / path).is_file()}


@every_module
def test_imports_go_down_only(module: str) -> None:
    assert upward(module, imports_of(module)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ranges", b"import whoseblock.media"),
        ("media.device", b"from whoseblock.fs.base import Owner"),
        ("media.device", b"def late():\n    from whoseblock import lookup"),
        ("fs.xfs.format.ag", b"from ...base import Owner"),
        ("fs.xfs.format.ag", b"from whoseblock.media import FileMedia"),
        ("stack", b"from whoseblock.fs import base"),
        ("lookup", b"import whoseblock"),
        ("", b"import whoseblock.cli"),
    ],
)
def test_an_import_that_goes_up_is_seen(module: str, source: bytes) -> None:
    package = f"whoseblock.{module}".rpartition(".")[0]
    assert upward(module, list(imports(source, package))) != []


FILESYSTEMS = {path.parent.name for path in (PACKAGE / "fs").glob("*/driver.py")}


def filesystems_known(imported: list[str]) -> set[str]:
    """Return the filesystems whose modules are imported."""
    names = {name.split(".")[2] for name in imported if name.startswith("whoseblock.fs.")}
    return names & FILESYSTEMS


def own_filesystem(module: str) -> set[str]:
    """Return the filesystem to whose package a module belongs, if it does."""
    return set(module.split(".")[1:2]) & FILESYSTEMS if module.startswith("fs.") else set()


@every_module
def test_only_a_filesystem_imports_its_modules(module: str) -> None:
    assert filesystems_known(imports_of(module)) <= own_filesystem(module)


def test_an_import_of_a_filesystem_is_seen() -> None:
    for source in (
        b"from whoseblock.fs.xfs import XfsFilesystem",
        b"def late():\n    import whoseblock.fs.xfs.driver",
    ):
        assert filesystems_known(list(imports(source, "whoseblock"))) == {"xfs"}
    assert own_filesystem("lookup") == own_filesystem("fs.mounted.kernel") == set()


def test_one_line_names_the_module_of_each_filesystem() -> None:
    naming: dict[str, list[str]] = {name: [] for name in FILESYSTEMS}
    for module, path in MODULES.items():
        for line in path.read_text().splitlines():
            for name in FILESYSTEMS - own_filesystem(module):
                if f'"whoseblock.fs.{name}' in line:
                    naming[name].append(module)
    assert naming == {name: ["fs.registry"] for name in FILESYSTEMS}


# These name no filesystem, not even in a message or a comment.
NEUTRAL = (
    "lookup", "querying", "target", "summary", "processes", "fs.base", "fs.driver", "fs.pieces",
    "fs.arrays", "fs.stream", "fs.arguments", "stack", "journal", "cli.lookup",
    "cli.plain", "cli.report_owners", "cli.options.choices", "cli.options.failure_values",
    "cli.options.targets", "cli.presentation.summary", "cli.presentation.table",
)  # fmt: skip


@every_module
def test_the_core_names_no_filesystem(module: str) -> None:
    if any(module == name or module.startswith(f"{name}.") for name in NEUTRAL):
        text = MODULES[module].read_text().lower()
        assert [name for name in (*FILESYSTEMS, "ext4", "btrfs") if name in text] == []


@every_module
def test_format_modules_do_no_input_or_output(module: str) -> None:
    if room_of(module).floor == 2:
        assert {name.split(".")[0] for name in imports_of(module)} & INPUT_AND_OUTPUT == set()


@every_module
def test_every_module_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_bytes()))


# The rooms of a package, from the bottom up, and those that each may import. A module outside of
# the package's folders is a room of its own.
PACKAGES: dict[str, dict[str, set[str]]] = {
    "sources": {
        "base": set(),
        "memory": {"base"},
        "block_lists": {"base"},
        "kernel_log": {"base"},
        "programs": {"base", "kernel_log"},
        "forms": {"kernel_log"},
    },
    "stack": {
        "base": set(),
        "ascent": {"base"},
        "formats": set(),
        "members": {"base"},
        "kernel": {"base", "formats", "members"},
        "images": {"base", "formats", "members"},
        "mounted": {"kernel"},
    },
    "study": {
        "sizes": set(),
        "counts": set(),
        "base": {"counts"},
        "results": set(),
        "simulation": {"base", "sizes"},
        "trackers": {"base", "counts", "simulation", "sizes"},
        "report": {"results", "simulation", "sizes"},
        "measurements": {"base", "results", "simulation", "sizes", "trackers"},
        "study": {"measurements", "report", "results", "simulation"},
    },
    "watch": {
        "log": set(),
        "clock": set(),
        "children": set(),
        "statistics": set(),
        "formats": set(),
        "store": set(),
        "sources": {"formats", "store", "log", "clock", "children"},
        "attribution": {"store", "log", "children"},
        "policy": {"attribution", "store", "statistics", "log", "clock"},
        "status": {"store", "statistics"},
        "unit": {"store"},
        "processor": {"policy", "attribution", "store", "statistics", "log"},
        "worker": {"processor", "store", "statistics", "log", "children"},
        "daemon": {
            *("worker", "processor", "status", "policy", "sources", "store"),
            *("statistics", "log", "clock"),
        },
        "process": {"daemon"},
        "__main__": {"process"},
    },
}


def arrows(module: str, imported: list[str]) -> set[str]:
    """Return the other rooms of its package that a module imports."""
    package, own = module.split(".")[:2]
    inside = f"whoseblock.{package}."
    return {name.split(".")[2] for name in imported if name.startswith(inside)} - {own}


@pytest.mark.parametrize(
    "module", [name for name in MODULES if "." in name and name.split(".")[0] in PACKAGES]
)
def test_rooms_import_as_the_table_of_their_package_says(module: str) -> None:
    package, room = module.split(".")[:2]
    assert arrows(module, imports_of(module)) <= PACKAGES[package][room]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_of_a_package_has_no_upward_and_no_unused_arrow(package: str) -> None:
    below: set[str] = set()
    for room, known in PACKAGES[package].items():
        assert known <= below
        below.add(room)
    used = {room: set[str]() for room in PACKAGES[package]}
    for module in MODULES:
        if module.startswith(f"{package}."):
            used[module.split(".")[1]] |= arrows(module, imports_of(module))
    assert used == PACKAGES[package]


def test_an_arrow_that_the_table_of_a_package_lacks_is_seen() -> None:
    source = b"from whoseblock.watch.policy.rules import Rule"
    found = arrows("watch.store.spool", list(imports(source, "whoseblock.watch.store")))
    assert not found <= PACKAGES["watch"]["store"]


#: Folders of tests that mirror no folder of the package, and why.
OTHER_TESTS = {
    "scenarios": "tests that cross the packages",
    "alone": "tests that need the kernel's log to themselves",
    "vm": "tests that run in virtual machines",
    "fixtures": "files that tests read",
}
#: Folders of tests that mirror other folders than the package's.
OTHER_SOURCES = {"support": TESTS / "support", "tools": TOP / "tools"}
#: Test files without a module of their name, and what they test.
WITHOUT_MODULE = {
    "test_docs.py": "the README, docs/ and the other documents",
    "test_structure.py": "the rules of the house",
    "watch/test_share.py": "the files in share/",
    "watch/test_soak.py": "the daemon as a process, for a long time",
}


def module_of(test: Path) -> Path | None:
    """Return the module or package that a test file tests by its name.

    ``a/test_b.py`` tests ``a/b.py`` or the package ``a/b/``; ``a/test_a.py`` tests the package
    ``a/`` as a whole; ``a/test_b_aspect.py`` and ``a/test_a_aspect.py`` test an aspect of these.
    """
    folder = test.parent
    top = OTHER_SOURCES.get(folder.parts[0]) if folder.parts else None
    source = top.joinpath(*folder.parts[1:]) if top else PACKAGE / folder
    name = test.stem.removeprefix("test_")
    words = name.split("_")
    modules = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    found = [source / f"{module}{ending}" for module in modules for ending in (".py", "")]
    if folder.name in modules:
        found.append(source)
    return next((path for path in found if path.exists()), None)


def test_every_test_file_is_where_its_module_is() -> None:
    files = [path.relative_to(TESTS) for path in sorted(TESTS.rglob("test_*.py"))]
    mirrored = [path for path in files if path.parts[0] not in OTHER_TESTS]
    assert {str(path) for path in mirrored if module_of(path) is None} == set(WITHOUT_MODULE)


@pytest.mark.parametrize(
    ("test", "tested"),
    [
        ("test_ranges.py", "ranges.py"),
        ("fs/xfs/test_btree.py", "fs/xfs/btree.py"),
        ("sources/test_sources.py", "sources"),
        ("test_processes_races.py", "processes.py"),
        ("cli/test_cli_interrupt.py", "cli"),
        ("test_btree.py", None),
        ("stack/test_ranges.py", None),
    ],
)
def test_the_path_of_a_test_file_names_its_module(test: str, tested: str | None) -> None:
    assert module_of(Path(test)) == (PACKAGE / tested if tested else None)


def test_no_program_is_long() -> None:
    programs = {name: text for name, text in committed_files().items() if name.endswith(".py")}
    lines = {name: text.count(b"\n") for name, text in programs.items()}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_no_file_names_a_package_registry() -> None:
    named = [
        (name, registry)
        for name, text in committed_files().items()
        for registry in REGISTRIES
        if registry.encode() in text
    ]
    assert named == []
