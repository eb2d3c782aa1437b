"""The files to check: Python and Markdown below the checkout, without those that are pending."""

from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent
_ROOTS = ("src", "tests", "tools", "bench", "demo", "docs")
#: Files that quote what the checker looks for.
_QUOTING = (TOP / "tests/tools/test_prose.py",)


def lines_of(name: str) -> list[str]:
    """Return the lines of a list beside this module, without comments and empty lines."""
    lines = (_HERE / name).read_text("utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def pending() -> list[Path]:
    """Return the paths that do not follow the rules yet."""
    return [TOP / line.strip() for line in lines_of("pending.txt")]


def _below(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    folders = [TOP / root for root in _ROOTS] if path.resolve() == TOP else [path]
    if path.resolve() == TOP:
        yield from sorted(path.glob("*.md"))
    for folder in folders:
        for suffix in ("py", "md"):
            yield from sorted(folder.rglob(f"*.{suffix}"))


def selected(paths: list[Path], left_out: list[Path]) -> list[Path]:
    """Return the files at and below *paths* that are not at or below *left_out*."""
    files = {file.resolve() for path in paths for file in _below(path)}
    left_out = [*left_out, *_QUOTING]
    return sorted(file for file in files if not any(file.is_relative_to(path) for path in left_out))
