"""Judge an answer about a damaged image by the truth of the healthy one."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tests.support.expected_rows import Expectation

from whoseblock.fs.base import (
    Answer,
    FileOwner,
    Free,
    MetadataOwner,
    Owner,
    Paths,
    Unknown,
)
from whoseblock.ranges import ByteRange, merge

__all__ = ["Judge", "Verdict"]

Key = tuple[Any, ...]

_UNIMPORTANT = (None,)


class Verdict(NamedTuple):
    """A fault of an answer: a class for the table, and the details."""

    fault: str
    expected: str
    actual: str


class Judge:
    """Knows the right answers of one image."""

    def __init__(self, expectation: Expectation) -> None:
        self.expectation = expectation
        self._known: dict[tuple[int, int], list[Key]] = {}
        truth = expectation.truth
        free = [ByteRange(row.start, row.length) for row in truth.rows if row.kind == "free"]
        self._free = merge(free)
        self._free_starts = [part.start for part in self._free]

    def right(self, question: tuple[int, int]) -> list[Key]:
        """Return the right rows of a question, without paths."""
        known = self._known.get(question)
        if known is None:
            known = [_key_of_dict(row) for row in self.expectation.rows(*question, paths=False)]
            if len(self._known) > 4000:
                self._known.clear()
            self._known[question] = known
        return known

    def judge(self, question: tuple[int, int], answer: Answer, *, strict: bool) -> Verdict | None:
        """Return what is wrong with the rows, and with the paths if the answer has any.

        *strict* is for damage that no checksum survives: then even an incomplete answer
        must not hold a wrong word.
        """
        if fault := _form(question, answer):
            return Verdict(f"form: {fault}", "", _show(answer.owners))
        if wrong := self._never_free(answer):
            fault = "free, but used" if answer.complete else "free, but used (incomplete)"
            return Verdict(fault, _rows(self.right(question)), wrong)
        right = self.right(question)
        rows = [_key(row) for row in answer.owners]
        if answer.complete and sorted(rows, key=repr) != sorted(right, key=repr):
            return Verdict(_difference(rows, right), _rows(right, rows), _rows(rows, right))
        if strict and not answer.complete:
            true = set(right)
            # What cannot be read may leave the sharing and the kind of a file open.
            true |= {(*row[:8], False) for row in right if row[0] == "file"}
            true |= {(*row[:5], "unknown", *row[6:]) for row in true if row[0] == "file"}
            for row, key in zip(answer.owners, rows, strict=True):
                if isinstance(row, Unknown | Free) or key in true:
                    continue
                # A part of what the filesystem has in one run may be known.
                if key not in self.right((row.start, row.length)):
                    return Verdict("invented (incomplete)", _rows(right), repr(key))
        return self._paths(answer, strict=strict)

    def paths(self, inode: int, found: Paths, *, strict: bool) -> Verdict | None:
        """Return what is wrong with the paths of an inode that exists."""
        right = self.expectation.paths(inode)
        if found.complete and list(found.paths) != right:
            missing = [path for path in right if path not in found.paths]
            more = [path for path in found.paths if path not in right]
            fault = "wrong path" if more else "path missing"
            return Verdict(fault, f"inode {inode}: {missing[:2]}", repr(more[:2]))
        if strict and not set(found.paths) <= set(right):
            return Verdict("invented path (incomplete)", repr(right[:3]), repr(found.paths[:3]))
        return None

    def _paths(self, answer: Answer, *, strict: bool) -> Verdict | None:
        for row in answer.owners:
            if not isinstance(row, FileOwner) or not isinstance(row.paths, tuple):
                continue
            if row.inode not in self.expectation.truth.inodes:
                if answer.complete or strict:
                    return Verdict("path of no file", "", _show([row]))
                continue
            found = Paths(row.paths, complete=answer.complete)
            if verdict := self.paths(row.inode, found, strict=strict):
                return verdict
            links = self.expectation.truth.inodes[row.inode].links
            if answer.complete and bool(row.unlinked) is not (links == 0):
                return Verdict("wrong path", f"{links} links", _show([row]))
        return None

    def _never_free(self, answer: Answer) -> str:
        for row in answer.owners:
            if isinstance(row, Free):
                at = bisect_right(self._free_starts, row.start) - 1
                if at < 0 or row.start + row.length > self._free[at].end:
                    return _show([row])
        return ""


def _form(question: tuple[int, int], answer: Answer) -> str:
    """Return what is wrong with the form of an answer: it is clipped, ordered, without a hole."""
    start, length = question
    if (answer.start, answer.length) != question:
        return "another range"
    at, before, fault = start, start, ""
    for row in answer.owners:
        if row.length <= 0 or row.start < start or row.start + row.length > start + length:
            fault = "rows not clipped"
        elif row.start > at:
            fault = "a hole"
        elif row.start < before:
            fault = "out of order"
        elif isinstance(row, Unknown) and answer.complete:
            fault = "unknown, yet complete"
        before = row.start
        at = max(at, row.start + row.length)
    if at != start + length:
        fault = "a hole at the end"
    if not answer.complete and not answer.notes:
        fault = "incomplete without a note"
    return fault


def _key(row: Owner) -> Key:
    if isinstance(row, FileOwner):
        return (
            *("file", row.start, row.length, row.inode, row.fork, row.what, row.file_offset),
            *(row.unwritten, row.shared),
        )
    if isinstance(row, MetadataOwner):
        inodes = tuple(row.inodes) if isinstance(row.inodes, tuple) else _UNIMPORTANT
        return ("metadata", row.start, row.length, row.what, inodes)
    return (row.kind, row.start, row.length)


def _key_of_dict(row: dict[str, Any]) -> Key:
    if row["kind"] == "file":
        names = "kind start length inode fork what file_offset unwritten shared".split()
        return tuple(row[name] for name in names)
    if row["kind"] == "metadata":
        inodes = tuple(row["inodes"]) if row.get("inodes") else _UNIMPORTANT
        return ("metadata", row["start"], row["length"], row["what"], inodes)
    return (row["kind"], row["start"], row["length"])


def _difference(rows: Sequence[Key], right: Sequence[Key]) -> str:
    """Name the worst difference between rows and the right ones."""
    ours, theirs = {_owner(row) for row in rows}, {_owner(row) for row in right}
    if any(row[0] == "outside" for row in set(rows).difference(right)):
        return "outside, but owned"
    if ours < theirs:
        return "owner missing"
    if ours - theirs:
        return "wrong owner" if theirs - ours else "owner too many"
    without_flags = sorted(row[:7] for row in rows if row[0] == "file")
    if without_flags == sorted(row[:7] for row in right if row[0] == "file"):
        return "wrong flag"
    return "wrong place"


def _owner(row: Key) -> Key:
    return ("file", row[3]) if row[0] == "file" else (row[0], *row[3:4])


def _rows(rows: Iterable[Key], but: Iterable[Key] = ()) -> str:
    left_out = set(but)
    return "; ".join(map(repr, [row for row in rows if row not in left_out][:4]))


def _show(rows: Iterable[Owner]) -> str:
    return "; ".join(map(repr, list(rows)[:3]))
