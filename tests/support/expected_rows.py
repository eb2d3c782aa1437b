"""From what an oracle knows of whole rows to the answer that one question must get.

Written from the contract alone, and simply: it shares nothing with the program.
"""

import stat
from bisect import bisect_right
from collections import defaultdict
from typing import Any

from tests.support.truth import Row, Truth

__all__ = ["Expectation", "normal"]

#: Rows are found through buckets of this many bytes that they touch.
_BUCKET = 1 << 18

_METADATA = {"static", "log", "ag", "inode-btree", "inodes", "refcount-btree"}

#: What the contract binds; an answer may say more.
_FIELDS = {
    "file": "kind start length inode fork what file_offset unwritten shared paths".split(),
    "metadata": "kind start length what inodes".split(),
}


def normal(row: dict[str, Any], *, paths: bool = True) -> dict[str, Any]:
    """Reduce a row of an answer to what the contract binds."""
    names = _FIELDS.get(row["kind"], ["kind", "start", "length"])
    kept = {name: row.get(name) for name in names if name != "inodes" or row.get("inodes")}
    if row["kind"] == "file":
        if not paths:
            del kept["paths"]
        elif row.get("unlinked"):
            kept["unlinked"] = True
    # From Python they come as tuples, from JSON as lists.
    for name in kept.keys() & {"inodes", "paths"}:
        kept[name] = list(kept[name] or ())
    return kept


class Expectation:
    """The right answers for one image."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self._buckets: dict[int, list[Row]] = defaultdict(list)
        for row in truth.rows:
            for bucket in range(row.start // _BUCKET, (row.end - 1) // _BUCKET + 1):
                self._buckets[bucket].append(row)
        self._shared_starts, self._shared_ends = _overlaps(truth.rows)
        self._paths = {
            number: sorted(inode.paths, key=lambda path: path.encode("utf-8", "surrogateescape"))
            for number, inode in truth.inodes.items()
        }

    def rows(self, start: int, length: int, *, paths: bool = True) -> list[dict[str, Any]]:
        """Return the rows of the answer to one question, in order."""
        end = start + length
        touched = {
            row
            for bucket in range(start // _BUCKET, (end - 1) // _BUCKET + 1)
            for row in self._buckets.get(bucket, ())
            if row.start < end and start < row.end
        }
        found = [self._row(row, max(row.start, start), min(row.end, end)) for row in touched]
        size = self.truth.superblock.size
        if end > size:
            first = max(start, size)
            found.append({"kind": "outside", "start": first, "length": end - first})
        found.sort(key=lambda row: (row["start"], row.get("inode", 0), row.get("file_offset") or 0))
        return [normal(row, paths=paths) for row in found]

    def paths(self, inode: int) -> list[str]:
        """Return every path of an inode, in byte order."""
        return self._paths[inode]

    def is_shared(self, start: int, end: int) -> bool:
        """Return whether more than one mapping holds some byte of a range."""
        at = bisect_right(self._shared_starts, end - 1)
        return at > 0 and self._shared_ends[at - 1] > start

    def _row(self, row: Row, start: int, end: int) -> dict[str, Any]:
        place = {"start": start, "length": end - start}
        if row.kind in _METADATA:
            told = {"kind": "metadata", **place, "what": row.kind}
            if row.kind == "inodes":
                block = self.truth.superblock
                told["inodes"] = [block.inode_at(start), block.inode_at(end - 1)]
            return told
        if row.kind != "file":
            return {"kind": row.kind, **place}
        mode, links, _ = self.truth.inodes[row.inode]
        paths = self._paths[row.inode]
        if row.extent_map:
            what = "extent-map"
        elif row.attr:
            what = "xattr"
        elif stat.S_ISDIR(mode):
            what = "directory"
        elif stat.S_ISLNK(mode):
            what = "symlink"
        else:
            what = "data"
        return {
            "kind": "file",
            **place,
            "inode": row.inode,
            "fork": "attr" if row.attr else "data",
            "what": what,
            "file_offset": None if row.extent_map else row.offset + start - row.start,
            "unwritten": row.unwritten,
            "shared": self.is_shared(start, end),
            "paths": paths,
            "unlinked": links == 0,
        }


def _overlaps(rows: list[Row]) -> tuple[list[int], list[int]]:
    """Return the overlaps of mappings of file data: starts and ends, disjoint and ascending."""
    edges: dict[int, int] = defaultdict(int)
    for row in rows:
        if row.kind == "file" and not row.attr and not row.extent_map:
            edges[row.start] += 1
            edges[row.end] -= 1
    starts: list[int] = []
    ends: list[int] = []
    depth = 0
    for place in sorted(edges):
        before, depth = depth, depth + edges[place]
        if before < 2 <= depth:
            starts.append(place)
        elif depth < 2 <= before:
            ends.append(place)
    return starts, ends
