"""Report the owners of failures, as ``whoseblock lookup`` does, without click."""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from whoseblock.cli.options.choices import Choices
from whoseblock.cli.options.failure_values import FailureOptions
from whoseblock.cli.options.reports import read_failures, read_lists
from whoseblock.cli.options.usage import usage_error
from whoseblock.cli.presentation.json_lines import json_chunks
from whoseblock.cli.presentation.notices import (
    is_passed_over,
    print_error,
    report_options,
    report_readings,
    report_resolver,
)
from whoseblock.cli.presentation.output import OutputFile, write_chunks
from whoseblock.cli.presentation.progress import ProgressBar
from whoseblock.errors import INCOMPLETE, PASSED_OVER
from whoseblock.fs.base import Answer
from whoseblock.fs.stream import AnswerColumns
from whoseblock.lookup import RESCAN_LIMIT, Lookup
from whoseblock.querying import QueryOptions
from whoseblock.resolve import Resolver
from whoseblock.target import Target, TargetOptions

if TYPE_CHECKING:
    from whoseblock.cli.presentation.summary import SummaryOutput
    from whoseblock.fs.stream import LeadingRows
    from whoseblock.query import Query, QueryList
    from whoseblock.sources.base import Reading
    from whoseblock.summary import Summary

__all__ = ["report_owners"]

_Item = TypeVar("_Item")


def report_owners(
    target: str | None, given: FailureOptions, choices: Choices, where: TargetOptions
) -> int:
    """Write the owners of failures to standard output, and messages to standard error.

    Return the exit code: not 0 if damaged lines of a report, or absent devices, had no answer, or
    if an answer is incomplete and that is to be a failure.  Raises `WhoseblockError` and its kin.
    """
    # NumPy is loaded for long lists.  Nothing here multiplies matrices, so that its library for it
    # need not start a thread on each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    output = _summary_output(choices, target)
    summary: Summary | None = None
    completeness = _Completeness(wanted=choices.fail_incomplete)
    readings: list[Reading] = []
    with Target(target, where) as opened, Lookup(opened.open_leaf) as finder:
        _check_mounted(opened, choices)
        with ProgressBar() as progress:
            finder.progress = progress
            finder.scans = not choices.no_scan
            finder.rescans = choices.scan
            finder.rescan_limit = 0 if choices.no_scan else RESCAN_LIMIT
            finder.max_owners = choices.max_owners
            resolver = Resolver(opened, device=where.device, offset=given.offset)
            asked = resolver.resolve(read_failures(given, opened, finder, readings))
            if output is not None:
                from whoseblock.cli.presentation.summary import new_summary, summarise

                wanted: Iterable[Query | QueryList] = asked
                if given.is_one_list:
                    wanted = resolver.resolve_lists(read_lists(given, opened, finder, readings))
                summary = new_summary(finder)
                lines: Iterable[bytes] = summarise(finder, summary, wanted, output)
                lines = (line + b"\n" for line in lines)
            elif choices.output is not None:
                lines = ()
                rows = completeness.watch(finder.stream(asked, _query_options(choices)))
                _write_table(choices.output, _counted(rows, progress), opened, finder)
            else:
                # If there are only ranges, report an invalid one before the first answer.
                content = _query_options(choices)
                if choices.as_json and given.is_one_list:
                    lists = resolver.resolve_lists(read_lists(given, opened, finder, readings))
                    columns = (
                        item for some in lists for item in finder.stream_columns(some, content)
                    )
                    lines = json_chunks(_counted(completeness.watch(columns), progress))
                else:
                    single = list(asked) if given.few else asked
                    chunks = json_chunks if choices.as_json else _table_chunks
                    answers = completeness.watch(finder.stream(single, content))
                    lines = chunks(_counted(answers, progress))
            write_chunks(lines)
        report_readings(readings)
        report_resolver(resolver, opened)
        report_options(opened)
        incomplete = completeness.incomplete if summary is None else bool(summary.incomplete)
        if incomplete and choices.fail_incomplete:
            return INCOMPLETE
        return PASSED_OVER if is_passed_over(resolver, readings) else 0


class _Completeness:
    """Whether an answer that passes is incomplete, if that is ``wanted``."""

    def __init__(self, *, wanted: bool) -> None:
        self.incomplete = False
        self._wanted = wanted

    def watch(self, answers: Iterable[_Item]) -> Iterable[_Item]:
        """Return the answers, which are looked at as they pass."""
        return self._look_at(answers) if self._wanted else answers

    def _look_at(self, answers: Iterable[_Item]) -> Iterator[_Item]:
        for item in answers:
            self.incomplete |= not _is_complete(item)
            yield item


def _is_complete(item: object) -> bool:
    """Return whether all answers in an item of a stream are complete."""
    if isinstance(item, Answer):
        return item.complete
    columns = getattr(item, "columns", item)
    if not isinstance(columns, AnswerColumns):
        return True
    plain = bool(columns.is_odd.all()) or columns.common.complete
    odd = columns.is_odd.nonzero()[0].tolist()
    return plain and all(columns.answer(number).complete for number in odd)


def _summary_output(choices: Choices, target: str | None) -> "SummaryOutput | None":
    """Return the form and the files of a summary; None if no summary is wanted.

    Raises `OutputError` if one of them cannot be created.
    """
    no_file = choices.output is None and choices.report is None
    if choices.is_table or (no_file and not choices.summary):
        return None
    from whoseblock.cli.presentation.summary import SummaryOutput

    file = page = None
    if choices.output is not None:
        file = OutputFile(choices.output)
        file.check()
    if choices.report is not None:
        from whoseblock.cli.presentation.report import ReportFile

        page = ReportFile(choices.report, target)
    return SummaryOutput(choices.as_json, not choices.no_paths, file, page)


def _write_table(
    output: str, answers: "Iterable[LeadingRows | Answer]", target: Target, finder: Lookup
) -> None:
    """Write the rows of answers to a table, and say how many there are."""
    from pathlib import Path

    from whoseblock.tables.batches import Origin, record_batches
    from whoseblock.tables.files import write_table
    from whoseblock.tables.owner_map import find_origin

    host = os.uname().nodename
    if target.layer is None:
        origin = Origin(host, None, "")
    else:
        origin = find_origin(finder, target.layer, target.host, host)
    rows = write_table(Path(output), record_batches(answers, origin))
    print_error(f"{rows} rows in {output}")


def _check_mounted(target: Target, choices: Choices) -> None:
    """Raise a usage error for options that need the kernel if the target is not mounted.

    An unmounted filesystem is cached, so that a second query returns the same.
    """
    if target.is_mounted is False:
        for name in ("processes", "verify"):
            if getattr(choices, name):
                raise usage_error(
                    f"--{name} needs a mounted filesystem; nothing of {target.path} is mounted"
                )


def _query_options(choices: Choices) -> QueryOptions:
    """Return the contents of the answers; the table of root includes processes."""
    processes = choices.processes or (not choices.as_json and os.geteuid() == 0)
    return QueryOptions(
        paths=not choices.no_paths,
        processes=processes,
        verified=choices.verify,
        bare=True,
    )


def _counted(answers: Iterable[_Item], progress: ProgressBar) -> Iterable[_Item]:
    """Show the number of answers, if progress is shown."""
    return _count_answers(answers, progress) if progress.shown else answers


def _count_answers(answers: Iterable[_Item], progress: ProgressBar) -> Iterator[_Item]:
    number = 0
    for item in answers:
        columns = getattr(item, "columns", None)
        number += isinstance(item, Answer) if columns is None else len(columns.questions)
        progress("ranges answered", number, None)
        yield item


def _table_chunks(answers: "Iterable[LeadingRows | Answer]") -> Iterator[bytes]:
    from whoseblock.cli.presentation.table import table_lines

    return (line.encode(errors="backslashreplace") + b"\n" for line in table_lines(answers))
