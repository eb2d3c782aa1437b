"""``lookup --report`` and ``journal report``: write the page of HTML."""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from whoseblock import __version__
from whoseblock.cli.presentation.output import OutputFile
from whoseblock.extras import check_extra
from whoseblock.fs.base import Paths
from whoseblock.printable import printable
from whoseblock.report.content import Heading
from whoseblock.report.lookup import LookupReport
from whoseblock.summary import FileLoss, Summary

if TYPE_CHECKING:
    from whoseblock.columns import PlacedColumns
    from whoseblock.journal import History
    from whoseblock.lookup import Lookup
    from whoseblock.querying import StreamItem
    from whoseblock.report.content import Content
    from whoseblock.stack.base import Layer

__all__ = ["LOOKUP_ONLY", "ReportFile", "write_journal_report"]

#: The options of lookup that respond does not have; those with a value come with True.
LOOKUP_ONLY: Final = {
    "--fail-incomplete": False,
    "--json": False,
    "--max-owners": True,
    "--no-paths": False,
    "--no-scan": False,
    "--processes": False,
    "--scan": False,
    "--summary": False,
    "--output": True,
    "--report": True,
    "--verify": False,
}


def _report_file(path: str) -> OutputFile:
    """Return the file of a report.

    Raises `OutputError` if it cannot be created, `MissingExtraError` without Jinja2.
    """
    if not path.endswith((".html", ".htm")):
        raise click.UsageError("the FILE of a report must end in .html")
    check_extra("report")
    file = OutputFile(path)
    file.check()
    return file


class ReportFile:
    """The report of a lookup, which is collected from its answers and then written."""

    def __init__(self, path: str, target: str | None) -> None:
        self._file = _report_file(path)
        self._target = target
        self._report = LookupReport()

    def add(self, layer: "Layer", item: "StreamItem | PlacedColumns") -> None:
        """Add answers about a layer."""
        self._report.add(layer, item)

    def write(
        self,
        finder: "Lookup",
        summary: Summary,
        losses: Iterable[tuple[FileLoss, Paths | None]],
    ) -> None:
        """Write the page; raises `OutputError`."""
        about = "the failures reported" if self._target is None else self._target
        made_by = _heading(f"Damage report: {about}", _response(sys.argv[1:]))
        _write(self._file, self._report.content(made_by, finder, summary, losses))


def write_journal_report(path: str, histories: "Iterable[History]") -> None:
    """Write the page about failures of the journal."""
    from whoseblock.cli.presentation.history import owners_text, states_of, states_text
    from whoseblock.journal.stored_json import answer_of
    from whoseblock.report.content import Failure
    from whoseblock.report.journal import JournalReport

    file = _report_file(path)
    report = JournalReport()
    for history in histories:
        failure = history.failure
        answer = answer_of(history.findings[-1]) if history.findings else None
        owners = Counter(row.kind for row in answer.owners) if answer else {}
        line = Failure(
            failure.id,
            f"{failure.first_seen:%Y-%m-%d %H:%M:%S}",
            printable(failure.host),
            printable(failure.device),
            failure.start,
            failure.length,
            printable(owners_text(answer.complete if answer else None, owners)),
            states_text(failure, states_of(history)),
        )
        report.add(failure, answer, line)
    _write(file, report.content(_heading("Failures in the journal")))


def _heading(title: str, response: str = "") -> Heading:
    """Return the heading of a report that is made now by this command line."""
    return Heading(
        title=printable(title),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        host=printable(os.uname().nodename),
        version=__version__,
        command=printable(shlex.join(["whoseblock", *sys.argv[1:]])),
        response=response,
    )


def _write(file: OutputFile, content: "Content") -> None:
    """Write a page, and report its name on standard error."""
    from whoseblock.report.page import render

    file.write(render(content))
    click.echo(f"report in {printable(file.path)}", err=True)


def _response(words: list[str]) -> str:
    """Return the command line that plans the repair of what a lookup was asked about."""
    kept: list[str] = []
    skip = False
    for word in words[1:]:
        name = word.partition("=")[0]
        if skip:
            skip = False
        elif name in LOOKUP_ONLY:
            skip = LOOKUP_ONLY[name] and "=" not in word
        else:
            kept.append(word)
    copies = ["--restore-from", "DIRECTORY"]
    return printable(shlex.join(["whoseblock", "respond", *kept, *copies]))
