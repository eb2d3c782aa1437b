"""``lookup --summary`` and its files: what each file lost, for people, spreadsheets, shells."""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from whoseblock.cli.presentation.output import OutputFile
from whoseblock.encode import encode_json
from whoseblock.fs.base import Paths
from whoseblock.losses import answer_once, lost_files
from whoseblock.printable import printable
from whoseblock.summary import KINDS, FileLoss, Summary

if TYPE_CHECKING:
    from whoseblock.cli.presentation.report import ReportFile
    from whoseblock.lookup import Lookup
    from whoseblock.query import Query, QueryList

__all__ = ["SummaryOutput", "cell", "new_summary", "quoted", "summarise"]

#: The first characters of formulas in spreadsheets.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_MEANING: Final = {
    "file": "in files (bytes that several files share are counted once)",
    "metadata": "in the filesystem's metadata",
    "unknown": "with unknown owners",
    "unreferenced": "in parts of extents that no file refers to: no data is lost",
    "unwritten": "allocated but never written: no data is lost",
    "staging": "reserved for a copy-on-write",
    "free": "free",
    "outside": "outside of any filesystem",
}


class _File(Struct, frozen=True):
    """One line of the list.

    ``bytes`` are those of the device that were lost, ``data_bytes`` those of them that the file
    has before its end, and ``share`` is their part of its ``size``.
    """

    path: str
    layer: str
    inode: int
    what: str
    bytes: int
    ranges: int
    data_bytes: int
    size: int | None
    share: float | None
    shared: bool
    shell: str
    paths: tuple[str, ...] | UnsetType = UNSET
    subvolume: int | UnsetType = UNSET


class SummaryOutput(NamedTuple):
    """The form of a summary, and the files to write with it; None for those not wanted."""

    as_json: bool = False
    paths: bool = True
    list: OutputFile | None = None
    report: "ReportFile | None" = None


def new_summary(finder: "Lookup") -> Summary:
    """Return an empty summary of the answers of a lookup."""
    return Summary(lambda name, file: finder.file_size(finder.layers[name], file))


def summarise(
    finder: "Lookup",
    summary: Summary,
    asked: "Iterable[Query | QueryList]",
    output: SummaryOutput,
) -> Iterator[bytes]:
    """Ask everything, write the files that are wanted, and yield the lines of the summary.

    ``asked`` are single questions, or lists of them.  ``summary`` is empty, and then filled.
    """
    report = output.report
    for layer, item in answer_once(finder, asked, summary):
        if report is not None:
            report.add(layer, item)
    losses = list(lost_files(finder, summary, paths=output.paths))
    lost = [_file(*loss) for loss in losses]
    if output.list is not None:
        output.list.write(_list_lines(output.list, lost))
    if report is not None:
        report.write(finder, summary, losses)
    if output.as_json:
        yield encode_json(_totals(summary) | {"files": lost})
    else:
        for line in _page(summary, lost):
            yield line.encode(errors="backslashreplace")


def _file(loss: FileLoss, paths: Paths | None) -> _File:
    names = paths.paths if paths else ()
    first = names[0] if names else ""
    return _File(
        first,
        loss.layer,
        loss.file.inode,
        loss.what,
        loss.lost,
        loss.ranges,
        loss.within,
        loss.size,
        loss.share,
        loss.shared,
        quoted(first) if first else "",
        names,
        loss.subvolume,
    )


def _totals_shown(summary: Summary) -> dict[str, int]:
    """Return the totals by kind; unreferenced bytes exist on few kinds of filesystem."""
    return {
        kind: count for kind, count in summary.totals.items() if count or kind != "unreferenced"
    }


def _totals(summary: Summary) -> dict[str, Any]:
    return {
        "bytes": summary.asked,
        "complete": not summary.incomplete,
        "notes": list(summary.notes),
        "remarks": [note for note in summary.notes if note not in summary.reasons],
        "totals": _totals_shown(summary),
        "metadata": dict(summary.metadata),
    }


# ------------------------------------------------------------------ for people


def _page(summary: Summary, files: list[_File]) -> Iterator[str]:
    rows = [("BYTES LOST", "RANGES", "SHARE", "INODE", "WHAT", "PATH")]
    several = len({file.layer for file in files}) > 1
    for file in files:
        share = "" if file.share is None else f"{file.share:.1%}"
        path = printable(file.path) if file.path else "(no path)"
        if isinstance(file.paths, tuple) and len(file.paths) > 1:
            path += f"  (and {len(file.paths) - 1} more)"
        what = f"{file.what}, shared" if file.shared else file.what
        where = f"{file.layer}: " if several else ""
        row = (str(file.bytes), str(file.ranges), share, _inode_of(file), what, where + path)
        rows.append(row)
    if files:
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        for row in rows:
            cells = [row[0].rjust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2])]
            cells += [row[3].rjust(widths[3]), row[4].ljust(widths[4])]
            yield "  ".join([*cells, row[5]]).rstrip()
        yield ""
    width = max(len(str(summary.asked)), 10)
    for kind in KINDS:
        if count := summary.totals[kind]:
            detail = ""
            if kind == "metadata":
                parts = (f"{what} {size}" for what, size in sorted(summary.metadata.items()))
                detail = f": {', '.join(parts)}"
            yield f"{count:>{width}}  {_MEANING[kind]}{detail}"
    yield f"{summary.asked:>{width}}  asked"
    for note in summary.notes:
        title = "incomplete" if note in summary.reasons else "note"
        yield f"  {title}: {printable(note)}"


def _inode_of(file: _File) -> str:
    return f"{file.subvolume}/{file.inode}" if isinstance(file.subvolume, int) else str(file.inode)


# ------------------------------------------------------------------ for programs


def _list_lines(output: OutputFile, files: list[_File]) -> Iterator[bytes]:
    """Yield the list in pieces, in the form that the suffix of the file names."""
    if output.path.endswith(".json"):
        # One file a line, which tools that go by lines can read too.
        lines = b",\n".join(encode_json(file) for file in files)
        yield b"[\n" + lines + b"\n]\n" if files else b"[]\n"
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name in _File.__struct_fields__ if name not in ("shell", "paths")]
    if not any(isinstance(file.subvolume, int) for file in files):
        names.remove("subvolume")
    writer.writerow([*names, "shell", "other_paths"])
    for file in files:
        others = file.paths[1:] if isinstance(file.paths, tuple) else ()
        cells = [cell(getattr(file, name)) for name in names]
        writer.writerow([*cells, file.shell, " ".join(map(quoted, others))])
    yield text.getvalue().encode()


def cell(value: object) -> object:
    """Make a cell of a spreadsheet that is text and nothing else; it keeps to its line."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    return value


def quoted(path: str) -> str:
    r"""Quote a path so that a shell takes it for one word: ``'it is'``, ``$'two\nlines'``."""
    if path.isprintable() and path.isascii() and "'" not in path:
        return path if path.replace("/", "").replace("_", "").isalnum() else f"'{path}'"
    pieces = []
    for byte in path.encode("utf-8", "surrogateescape"):
        char = chr(byte)
        plain = 0x20 <= byte < 0x7F and char not in "'\\"  # noqa: PLR2004 - printable ASCII
        # Octal, always of three digits: it ends where it ends, whatever follows.
        pieces.append(char if plain else f"\\{byte:03o}")
    return f"$'{''.join(pieces)}'"
