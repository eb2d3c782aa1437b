"""An open journal: queries, and the runs that write to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from whoseblock.closing import Closing
from whoseblock.errors import JournalError
from whoseblock.journal import filtering, reading
from whoseblock.journal.authentication import Authenticator, not_authentic
from whoseblock.journal.database import Database
from whoseblock.journal.host import Host, this_host
from whoseblock.journal.limits import USUAL_LIMITS, Limits
from whoseblock.journal.location import locate
from whoseblock.journal.records import (
    Event,
    Filter,
    History,
    Overview,
    Plan,
    RecordedFailure,
    RunRecord,
)
from whoseblock.journal.run import Run
from whoseblock.journal.versions import prepare_tables

__all__ = ["Journal"]

_ALL: Final = Filter()


class Journal(Closing):
    """A journal; `whoseblock.journal.open_journal` opens it.

    ``name`` is its location without a password.  ``host`` is the machine that it is written for.
    Several threads may use it at a time.  Every method raises `JournalError`.
    """

    def __init__(
        self,
        url: str | None,
        *,
        write: bool,
        host: Host | None = None,
        limits: Limits = USUAL_LIMITS,
    ) -> None:
        location = locate(url, limits.server_wait_s)
        self._limits = limits
        self.name = location.name
        self.host = host or this_host()
        self._auth = Authenticator(self.host, make=write)
        self._database = Database(location, write=write, limits=limits)
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
        """Make the writes of this thread within the block one transaction, durable at its end.

        For many reports at once; acts on a device are journaled one by one.
        """
        with self._database.together():
            yield

    def begin_run(self, command: Sequence[str], version: str) -> Run:
        """Begin a run of this process and user.

        ``command`` is the command line, which is kept without passwords of URLs; ``version`` is
        that of whoseblock.
        """
        return Run(self._database, self._auth, self.host, command, version)

    def failures(self, wanted: Filter = _ALL) -> Iterator[Overview]:
        """Yield a summary of each failure that matches, the oldest first."""
        after = 0
        while True:
            with self._database.reading() as connection:
                ids = filtering.find(connection, wanted, after, self._limits.batch)
                found = reading.overviews(connection, ids) if ids else []
            yield from found
            if len(ids) < self._limits.batch:
                return
            after = ids[-1]

    def count_open(self) -> tuple[int, int]:
        """Return the number of open failures of this host, and of their bytes."""
        with self._database.reading() as connection:
            return reading.count_open(connection, self.host)

    def histories(self, wanted: Filter = _ALL) -> Iterator[History]:
        """Yield everything about each failure that matches, the oldest first."""
        after = 0
        while True:
            with self._database.reading() as connection:
                ids = filtering.find(connection, wanted, after, self._limits.histories)
                found = reading.histories(connection, self._auth, ids) if ids else []
            yield from found
            if len(ids) < self._limits.histories:
                return
            after = ids[-1]

    def history(self, failure: int) -> History:
        """Return everything about one failure: reports, owners, plans and outcomes."""
        with self._database.reading() as connection:
            found = reading.histories(connection, self._auth, [failure])
        if not found:
            raise JournalError(
                f"the journal {self.name!r} has no failure {failure}",
                hint="whoseblock journal list shows their numbers",
            )
        return found[0]

    def plan(self, number: int) -> Plan:
        """Return a plan in its present state."""
        with self._database.reading() as connection:
            found = reading.plan(connection, self._auth, number)
        if found is None:
            raise JournalError(f"the journal {self.name!r} has no plan {number}")
        return found

    def unfinished(self, device: str | None = None) -> list[Plan]:
        """Return the authentic plans of this host with unfinished steps, the oldest first.

        ``device`` is a name, an identity or a target, as in `Filter`.  A started step belongs to
        its run while that lives: see `is_running`.
        """
        return list(self._unfinished(device))

    def has_unfinished(self) -> bool:
        """Return whether `unfinished` returns any plan."""
        return any(self._unfinished(None))

    def _unfinished(self, device: str | None) -> Iterator[Plan]:
        with self._database.reading() as connection:
            for number in reading.unfinished_plans(connection, self.host, device):
                found = reading.plan(connection, self._auth, number)
                if found is not None and found.authentic:
                    yield found

    def doubtful(self) -> Iterator[Plan]:
        """Yield the plans in the name of this host and user that another program wrote or changed.

        Each was unfinished, or finished only by an event that is not authentic.  Reads all steps.
        """
        after: int | None = 0
        seen: set[int] = set()
        while after is not None:
            with self._database.reading() as connection:
                numbers, after = reading.doubtful_plans(
                    connection, self._auth, self.host, after, self._limits.batch
                )
                plans = [
                    reading.plan(connection, self._auth, number)
                    for number in numbers
                    if number not in seen
                ]
            seen |= numbers.keys()
            yield from (one for one in plans if one is not None and one.authentic is False)

    def failures_of(self, plan: Plan) -> dict[int, RecordedFailure]:
        """Return the failures of a plan by their numbers, as they were when it was made.

        Raises `JournalError` unless the plan in the journal is authentic.
        """
        with self._database.reading() as connection:
            found = reading.plan(connection, self._auth, plan.id)
            if found is None or not found.authentic:
                raise not_authentic(plan.id)
            return reading.failures_of(connection, {plan.id})

    def starts(self, kind: str) -> Iterator[Event]:
        """Yield the starts of steps of a kind on this host, the latest first."""
        before = None
        while True:
            with self._database.reading() as connection:
                found = reading.starts(connection, self.host, kind, before, self._limits.batch)
            yield from found.values()
            if len(found) < self._limits.batch:
                return
            before = min(found)

    def run_record(self, run: int) -> RunRecord:
        """Return one run."""
        with self._database.reading() as connection:
            found = reading.run_record(connection, run)
        if found is None:
            raise JournalError(f"the journal {self.name!r} has no run {run}")
        return found

    def is_running(self, run: int) -> bool:
        """Return whether a run lives, or may: one of another host that has not ended."""
        return self.run_record(run).may_live(self.host)
