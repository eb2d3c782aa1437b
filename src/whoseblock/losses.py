"""The losses by failures: every byte is asked about once, and each file has its paths."""

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from whoseblock.fs.base import Answer, FileId, Paths
from whoseblock.fs.stream import LeadingRows
from whoseblock.query import Query, QueryList
from whoseblock.querying import QueryOptions, StreamItem
from whoseblock.ranges import RangeList, merge_list
from whoseblock.summary import FileLoss, Summary

if TYPE_CHECKING:
    from whoseblock.columns import PlacedColumns
    from whoseblock.lookup import Lookup
    from whoseblock.stack.base import Layer

__all__ = ["answer_once", "lost_files"]

#: A range of a terabyte has millions of owners: it is looked up in parts of this size.
_PART: Final = 64 << 20
#: The number of answers between two updates of the progress bar.
_REPORT_EVERY: Final = 1024


def answer_once(
    finder: "Lookup", asked: Iterable[Query | QueryList], summary: Summary
) -> "Iterator[tuple[Layer, StreamItem | PlacedColumns]]":
    """Answer all questions without paths, add the answers to ``summary``, and yield them.

    Each comes with the layer that it is about, the one that the questions name.
    """
    content = QueryOptions(paths=False)
    reported = 0
    for part in _once(asked, summary.notes):
        for item in finder.stream_columns(part, content):
            if isinstance(item, LeadingRows):
                summary.add_rows(item)
            elif isinstance(item, Answer):
                summary.add(item)
            else:
                summary.add_columns(item)
            yield part.layer, item
            if summary.questions >= reported:
                finder.progress("ranges answered", summary.questions, None)
                reported = summary.questions + _REPORT_EVERY


def _once(asked: Iterable[Query | QueryList], notes: dict[str, None]) -> Iterator[QueryList]:
    """Yield every byte once, however often it was reported, in parts that can be held.

    Remarks about the reports go to ``notes``.
    """
    found: dict[Layer, RangeList] = {}
    for one in asked:
        ranges = found.setdefault(one.layer, RangeList.of(()))
        if isinstance(one, Query):
            if one.remark:
                notes[one.remark] = None
            ranges.append(one.start, one.length)
        else:
            ranges.extend(one.ranges)
    for layer, ranges in found.items():
        once = merge_list(ranges, _PART)
        # A range with an origin may be past the end of its device.
        yield QueryList(layer, once, "summary", array("Q", [0]) * len(once), named=True)


def lost_files(
    finder: "Lookup", summary: Summary, *, paths: bool
) -> Iterator[tuple[FileLoss, Paths | None]]:
    """Yield each file of a summary, the largest loss first, with its paths if they are wanted.

    A path that may be missing makes the summary incomplete.
    """
    losses = summary.files
    known: dict[str, dict[FileId, Paths]] = {}
    if paths:
        files: dict[str, list[FileId]] = {}
        for loss in losses:
            files.setdefault(loss.layer, []).append(loss.file)
        known = {
            name: finder.paths_of(finder.layers[name], wanted) for name, wanted in files.items()
        }
    for loss in losses:
        found = known.get(loss.layer, {}).get(loss.file)
        if found is not None and not found.complete:
            summary.notes.update(dict.fromkeys(found.notes))
            summary.reasons.update(found.notes)
            summary.incomplete += 1
        yield loss, found
