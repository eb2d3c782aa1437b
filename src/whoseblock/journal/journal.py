"""A journal that is open: what can be asked of it, and where a run that writes to it begins."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from whoseblock.closing import Closing
from whoseblock.errors import JournalError
from whoseblock.journal import reading
from whoseblock.journal.database import Database
from whoseblock.journal.host import Host, this_host
from whoseblock.journal.places import place_of
from whoseblock.journal.records import Event, Filter, History, Overview, Plan, RunRecord
from whoseblock.journal.run import Run
from whoseblock.journal.versions import prepare_tables

__all__ = ["Journal"]

#: So many failures are read at a time.
_BATCH: Final = 256
#: And so many with everything about them, which may be much.
_HISTORIES: Final = 64
_ALL: Final = Filter()


class Journal(Closing):
    """A journal; `whoseblock.journal.open_journal` opens it.

    ``name`` says where it is, without a password.  ``host`` is the machine that it is written for.
    Several threads may use it at a time.  Every method raises `JournalError`.
    """

    def __init__(self, url: str | None, *, write: bool, host: Host | None = None) -> None:
        place = place_of(url)
        self.name = place.name
        self.host = host or this_host()
        self._database = Database(place, write=write)
        try:
            prepare_tables(self._database)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make what this thread writes within the block durable at its end, all of it or nothing.

        For many reports at once; what is done to a device is journaled act by act.
        """
        with self._database.together():
            yield

    def begin_run(self, command: Sequence[str], version: str) -> Run:
        """Begin to write, as this process of this user.

        ``command`` is the command line, which is kept without passwords of URLs; ``version`` is
        that of whoseblock.
        """
        return Run(self._database, self.host, command, version)

    def failures(self, wanted: Filter = _ALL) -> Iterator[Overview]:
        """Give the failures that are wanted in a few words each, the oldest first."""
        after = 0
        while True:
            with self._database.reading() as connection:
                ids = reading.find(connection, wanted, after, _BATCH)
                found = reading.overviews(connection, ids) if ids else []
            yield from found
            if len(ids) < _BATCH:
                return
            after = ids[-1]

    def histories(self, wanted: Filter = _ALL) -> Iterator[History]:
        """Give everything about the failures that are wanted, the oldest first."""
        after = 0
        while True:
            with self._database.reading() as connection:
                ids = reading.find(connection, wanted, after, _HISTORIES)
                found = reading.histories(connection, ids) if ids else []
            yield from found
            if len(ids) < _HISTORIES:
                return
            after = ids[-1]

    def history(self, failure: int) -> History:
        """Give everything about one failure: reports, owners, plans, and what became of them."""
        with self._database.reading() as connection:
            found = reading.histories(connection, [failure])
        if not found:
            raise JournalError(
                f"the journal {self.name!r} has no failure {failure}",
                hint="whoseblock journal list shows their numbers",
            )
        return found[0]

    def plan(self, number: int) -> Plan:
        """Give a plan as it stands now."""
        with self._database.reading() as connection:
            found = reading.plan(connection, number)
        if found is None:
            raise JournalError(f"the journal {self.name!r} has no plan {number}")
        return found

    def unfinished(self, device: str | None = None) -> list[Plan]:
        """Give the plans of this host with steps in no final state, the oldest first.

        ``device`` is a name, an identity or a target, as in `Filter`.  A step that is started is in
        the hands of its run as long as that lives: see `is_running`.
        """
        with self._database.reading() as connection:
            numbers = reading.unfinished_plans(connection, self.host, device)
            return [one for number in numbers if (one := reading.plan(connection, number))]

    def has_unfinished(self) -> bool:
        """Whether there are plans that `unfinished` gives."""
        with self._database.reading() as connection:
            return bool(reading.unfinished_plans(connection, self.host, None))

    def starts(self, kind: str) -> Iterator[Event]:
        """Give when steps of a kind were started on this host, the latest first."""
        before = None
        while True:
            with self._database.reading() as connection:
                found = reading.starts(connection, self.host, kind, before, _BATCH)
            yield from found.values()
            if len(found) < _BATCH:
                return
            before = min(found)

    def run_record(self, run: int) -> RunRecord:
        """Give one run."""
        with self._database.reading() as connection:
            found = reading.run_record(connection, run)
        if found is None:
            raise JournalError(f"the journal {self.name!r} has no run {run}")
        return found

    def is_running(self, run: int) -> bool:
        """Whether a run still goes on, or may: one of another host that did not end."""
        return self.run_record(run).may_live(self.host)
