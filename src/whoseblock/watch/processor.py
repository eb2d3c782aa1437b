"""Process batches of reports: journal them, look up and journal owners, plan actions."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from whoseblock.closing import Closing
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.journal import Filter, open_journal
from whoseblock.ranges import ByteRange, subtract
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.attribution.device_probe import (
    DeviceProbe,
    ProbeLimits,
    unknown_answer,
)
from whoseblock.watch.attribution.failure_records import (
    FailureRecord,
    FailureRecords,
    coalesce_reports,
)
from whoseblock.watch.attribution.locations import FailureLocation, find_identity
from whoseblock.watch.attribution.retry_queue import RETRY_DELAYS_S, RetryQueue
from whoseblock.watch.log import log_event
from whoseblock.watch.policy.actor import Actor, Responder
from whoseblock.watch.policy.device_response import DeviceResponder
from whoseblock.watch.policy.rule_matching import match_rules, mount_points
from whoseblock.watch.policy.rules import Policy
from whoseblock.watch.statistics import Statistics, count
from whoseblock.watch.store.reports import (
    BadBlockList,
    EventsLost,
    FailedFileRange,
    FailedRange,
    FilesystemError,
    Report,
)
from whoseblock.watch.store.state import HandledLists, StateFolder

__all__ = ["Processor", "Setup"]

#: At most this many owners of a failure are named in its log line.
_MAX_NAMED: Final = 5
#: Failures from this many seconds before the start may have had other owners.
_LATE_S: Final = 60.0
#: The size of the cache of locations.
_MAX_LOCATED: Final = 10_000


class Setup(NamedTuple):
    """The configuration of a worker.

    ``journal`` is the URL, None for the default, and ``root`` the folder that has /sys and /proc.
    ``since`` is when the daemon started: reaction times are counted from then. ``responder`` writes
    to devices, None for the default, and ``version`` is that of whoseblock.  ``probe_limits`` and
    ``retry_delays_s`` are waiting times.
    """

    state: StateFolder
    policy: Policy
    journal: str | None = None
    root: str = "/"
    since: float = 0.0
    responder: Responder | None = None
    version: str = ""
    probe_limits: ProbeLimits = ProbeLimits()
    retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S


class Processor(Closing):
    """Processes batches; raises `JournalError` if the journal is unusable.

    What was done before an error is done again by the next processor, with the same result.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._undo = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._undo.close)
            self._journal = self._undo.enter_context(open_journal(setup.journal))
            run = self._journal.begin_run(sys.argv, setup.version)
            self._run = self._undo.enter_context(run)
            undo.pop_all()
        self._lists = setup.state.load("lists.json", HandledLists) or HandledLists()
        responder = setup.responder or DeviceResponder(self._journal, self._run)
        self._actor = Actor(self._journal, self._run, setup.policy, setup.state, responder)
        self._records = FailureRecords(self._journal, self._run)
        self._host = Host(setup.root)
        probe = DeviceProbe(setup.state, setup.root, setup.probe_limits)
        self._probe = self._undo.enter_context(probe)
        self._retry_queue = RetryQueue(setup.state, setup.retry_delays_s)
        #: The actor closes records in a process of its own.
        self._others_close = any(rule.respond for rule in setup.policy.rules)
        self._located: dict[tuple[str, int, int], list[FailureLocation]] = {}
        self._statistics = Statistics()

    def count_unfinished(self) -> Statistics:
        """Return whether a killed daemon left planned steps, as statistics."""
        return Statistics(planned=int(self._journal.has_unfinished()))

    def perform(self, go_on: Callable[[], bool] = lambda: True) -> Statistics:
        """Perform the unfinished steps of this or an earlier daemon while ``go_on`` is true."""
        return self._actor.perform(go_on)

    def process(self, groups: Sequence[Sequence[Report]]) -> Statistics:
        """Process reports, grouped as they arrived; return the counts."""
        self._statistics = Statistics()
        self._records.refresh(others_close=self._others_close)
        try:
            self._process_groups(groups)
        finally:
            self._probe.release()
        return self._statistics

    def retry_unknown(self) -> Statistics:
        """Look up failures with unknown owners again that are due.

        Their device may have appeared, their volumes may have been assembled.
        """
        self._statistics = Statistics()
        self._records.refresh(others_close=self._others_close)
        try:
            for number, failed in self._retry_queue.iter_due():
                self._retry(number, failed)
        finally:
            self._probe.release()
        self._retry_queue.save()
        self._statistics.unanswered = self._retry_queue.next_due
        return self._statistics

    def _retry(self, number: int, failed: FailedRange) -> None:
        if self._journal.history(number).failure.closed is not None:
            self._retry_queue.remove(number)
            return
        for one in (failed, replace(failed, key=f"{failed.key}~")):
            self._located.pop(one.where, None)
            records = self._record([one], again=number)
            if records:
                break
            # It belongs to another record, since its identity differs, and needs a key for that.
        known = all(one.place.layer is not None for one in records.values())
        if records and known and number not in records:
            others = ", ".join(map(str, sorted(records)))
            self._run.close_failure(number, f"it is failure {others}")
            self._records.drop_cache()
            self._retry_queue.remove(number)

    def _process_groups(self, groups: Iterable[Sequence[Report]]) -> None:
        waiting: list[FailedRange] = []
        listed: dict[str, BadBlockList] = {}
        for group in groups:
            failed: list[FailedRange] = []
            for report in group:
                count(self._statistics.reports, {report.source: 1})
                if isinstance(report, BadBlockList):
                    if report.key <= self._lists.keys.get(report.device, ""):
                        # The process that handled it was killed before it dropped the spool file.
                        continue
                    if report.device in listed:
                        # New ranges of the list may vanish again: journal them before that.
                        self._record([*waiting, *coalesce_reports(failed)])
                        self._save_lists(listed)
                        waiting, failed = [], []
                    listed[report.device] = report
                failed += self._failures_of(report)
            # Each group by itself: after a crash groups may be batched differently, and a coalesced
            # report has the key of its first report only.
            waiting += coalesce_reports(failed)
        self._record(waiting)
        self._save_lists(listed)

    def _save_lists(self, listed: dict[str, BadBlockList]) -> None:
        """Save the lists whose failures are journaled."""
        for device, one in listed.items():
            self._lists.ranges[device] = one.ranges
            self._lists.keys[device] = one.key
        if listed:
            self._setup.state.save("lists.json", self._lists)
        listed.clear()

    def _failures_of(self, report: Report) -> Iterable[FailedRange]:
        """Return the failed ranges of a report."""
        match report:
            case FailedRange():
                return (report,)
            case FailedFileRange():
                return self._resolve_file_range(report)
            case BadBlockList():
                return self._compare_list(report)
            case _:
                self._log_report(report)
                return ()

    def count_unhealed(self) -> Statistics:
        """Count the open records of this host."""
        ranges = size = 0
        for one in self._journal.failures(Filter(host=self._journal.host.name, open=True)):
            ranges += 1
            size += one.failure.length
        return Statistics(unhealed=(ranges, size))

    # ------------------------------------------------------------------ reports

    def _log_report(self, report: EventsLost | FilesystemError) -> None:
        """Log a report that is not journaled, since it concerns no bytes."""
        at = datetime.fromtimestamp(report.at, UTC).isoformat(timespec="milliseconds")
        if isinstance(report, EventsLost):
            count(self._statistics.lost, {report.source: report.count or 1})
            known = report.count or None
            log_event(
                "err", "events-lost", source=report.source, at=at, count=known, why=report.what
            )
        else:
            count(self._statistics.ill, {report.source: 1})
            place = report.place or None
            log_event(
                "err", "filesystem-ill", source=report.source, at=at, place=place, what=report.what
            )

    def _compare_list(self, listed: BadBlockList) -> Iterator[FailedRange]:
        """Yield the new ranges of a list, and close the records that it no longer has."""
        device = listed.device
        before = self._lists.ranges.get(device, ())
        identity = find_identity(self._host, device)
        if self._lists.identities.get(device, identity) != identity:
            # Another device has this name now: the list of the former says nothing about it.
            before = ()
        self._lists.identities[device] = identity
        gone = _subtract_all(before, listed.ranges)
        for one in gone:
            for place in self._locate((device, *one)):
                healed = self._records.close_healed(place)
                self._statistics.healed += healed
                if healed:
                    where = {"device": place.device, "start": place.start, "length": place.length}
                    log_event("notice", "healed", **where, failures=healed)
        if gone:
            # A failure there from now on must not count as healed if this list is processed again.
            self._lists.ranges[device] = tuple(_subtract_all(before, gone))
            self._setup.state.save("lists.json", self._lists)
        for new in _subtract_all(listed.ranges, before):
            yield FailedRange(
                source=listed.source,
                at=listed.at,
                key=f"{listed.key}:{new.start}",
                device=device,
                start=new.start,
                length=new.length,
                origin=listed.origin,
            )

    def _resolve_file_range(self, report: FailedFileRange) -> Iterator[FailedRange]:
        """Yield the device ranges of a failed file range."""
        try:
            found = self._probe.find_extents(report)
        except FileNotFoundError:
            # It has no data to lose, and its blocks may be another's. The failed request has a
            # report of its own, with the place.
            part = {"start": report.start, "length": report.length}
            place = report.place or None
            log_event("notice", "file-gone", place=place, inode=report.inode, **part)
            return
        except OSError as error:
            found, why = [], str(error)
        else:
            why = "the file has no blocks there"
        for number, (start, length) in enumerate(found):
            detail = {
                **({"subvolume": report.subvolume} if report.subvolume else {}),
                "inode": report.inode,
                "file_offset": report.start,
                "file_length": report.length,
                **report.detail,
            }
            yield FailedRange(
                source=report.source,
                at=report.at,
                key=f"{report.key}:{number}",
                device=report.device,
                start=start,
                length=length,
                origin=report.origin,
                detail=detail,
            )
        if not found:
            what = (
                f"{report.length} bytes from {report.start} of inode {report.inode} failed, but"
                f" their location on the device is unknown: {why}"
            )
            self._log_report(
                FilesystemError(source=report.source, at=report.at, place=report.place, what=what)
            )

    # ------------------------------------------------------------------ records

    def _record(self, reported: Iterable[FailedRange], again: int = 0) -> dict[int, FailureRecord]:
        """Journal failures, look up the owners of new ones, and plan actions.

        The owners of record ``again`` are looked up in any case. Returns the records by number.
        """
        records = self._journal_failures(reported)
        self._statistics.latest = time.time() if records else None
        for number in records:
            self._retry_queue.hasten(number)
        wanted = [
            both
            for number, both in records.items()
            if number == again or self._needs_lookup(both[0])
        ]
        answers = self._look_up_owners(wanted)
        both = []
        for (entry, one), answer in zip(wanted, answers, strict=True):
            if entry.number == again and self._retry_queue.postpone(
                again, answer, lost=entry.place.layer is None
            ):
                # The journal says already that the owners are unknown.
                continue
            if not entry.looked_up or entry.number == again:
                both.append(((entry, one), answer))
        with self._journal.together():
            for (entry, one), answer in both:
                self._run.record_finding(entry.number, self._add_late_note(answer, one))
        self._records.mark_looked_up(entry.number for (entry, _), _ in both)
        for (entry, one), answer in both:
            self._count(answer, one)
            _log_failure(entry, one, answer)
            self._retry_queue.update(entry.number, one, answer, lost=entry.place.layer is None)
        self._retry_queue.save()
        self._plan(wanted, answers)
        return {number: entry for number, (entry, _) in records.items()}

    def _journal_failures(
        self, reported: Iterable[FailedRange]
    ) -> dict[int, tuple[FailureRecord, FailedRange]]:
        """Journal failures; return the records by number, with their first reports."""
        placed = [(one, place) for one in reported for place in self._find_locations(one.where)]
        records: dict[int, tuple[FailureRecord, FailedRange]] = {}
        with self._journal.together():
            for one, place in placed:
                for entry in self._records.record(one, place):
                    if entry.new:
                        count(self._statistics.failures, {place.device: 1})
                    records.setdefault(entry.number, (entry, one))
        for number, (entry, one) in records.items():
            if entry.new and entry.place.layer is None and not entry.place.why:
                # It was open when we checked, and another process has closed it meanwhile.
                records[number] = entry._replace(place=self._relocate(entry.place, one)), one
        return records

    def _plan(
        self, wanted: Sequence[tuple[FailureRecord, FailedRange]], answers: Sequence[Answer]
    ) -> None:
        """Plan the actions of the policy; the actor performs them in its own process."""
        if not self._setup.policy.rules:
            return
        points = mount_points(self._host)
        with self._journal.together():
            for (entry, _), answer in zip(wanted, answers, strict=True):
                if not entry.planned:
                    chosen = match_rules(self._setup.policy, answer, entry.place.device, points)
                    self._statistics.planned += self._actor.plan(entry.number, chosen)

    def _find_locations(self, where: tuple[str, int, int]) -> list[FailureLocation]:
        """Return where a failure is, without touching a device if its records are complete.

        Reading a failing device makes the kernel report it again. If that led to another read, it
        would never end.
        """
        places = self._located.get(where)
        if places is None or not all(map(self._records.covers, places)):
            places = self._locate(where)
            if len(self._located) >= _MAX_LOCATED:
                self._located.clear()
            if not any(place.why for place in places):
                # Later the names may lead to another device: it is located anew before a query.
                self._located[where] = [place._replace(layer=None) for place in places]
        return places

    def _relocate(self, place: FailureLocation, one: FailedRange) -> FailureLocation:
        """Find the layer of a cached location."""
        self._located.pop(one.where, None)
        for fresh in self._locate(one.where):
            if (
                fresh.device == place.device
                and fresh.start <= place.start < fresh.start + fresh.length
            ):
                return place._replace(layer=fresh.layer, why=fresh.why)
        return place._replace(why="its location has just changed")

    def _locate(self, where: tuple[str, int, int]) -> list[FailureLocation]:
        """Return where a failure is: on its own device if that does not answer."""
        device, start, length = where
        try:
            return self._probe.locate(device, start, length)
        except OSError as error:
            identity = find_identity(self._host, device)
            return [FailureLocation(device, identity, start, length, None, str(error))]

    def _add_late_note(self, answer: Answer, one: FailedRange) -> Answer:
        """Add a note to the answer if the failure is older than the daemon."""
        if one.at >= self._setup.since - _LATE_S:
            return answer
        return replace(answer, notes=(*answer.notes, _late_note(one)))

    def _needs_lookup(self, entry: FailureRecord) -> bool:
        """Return whether the owners are looked up: the first time, or to resume after a kill."""
        if not entry.looked_up:
            return True
        if entry.place.layer is None and not entry.place.why:
            # Known from before, and not located anew.
            return False
        return entry.replayed and not entry.planned and bool(self._setup.policy.rules)

    def _look_up_owners(self, wanted: Sequence[tuple[FailureRecord, FailedRange]]) -> list[Answer]:
        """Look up the owners of all records, those of one device together."""
        answers: dict[int, Answer] = {}
        asked: dict[str, list[tuple[FailureRecord, FailedRange]]] = defaultdict(list)
        for entry, one in wanted:
            place = entry.place
            if place.layer is None:
                answers[entry.number] = unknown_answer(place, one.origin, place.why)
            else:
                asked[one.device].append((entry, one))
        for device, both in asked.items():
            questions = [(entry.place, one.origin) for entry, one in both]
            try:
                found = self._probe.find_owners(device, questions)
            except OSError as error:
                found = [unknown_answer(*question, str(error)) for question in questions]
            answers.update(zip((entry.number for entry, _ in both), found, strict=True))
        return [answers[entry.number] for entry, _ in wanted]

    def _count(self, answer: Answer, one: FailedRange) -> None:
        kinds: dict[str, int] = defaultdict(int)
        for row in answer:
            unwritten = isinstance(row, FileOwner) and row.unwritten
            kinds["unwritten" if unwritten else row.kind] += row.length
        count(self._statistics.bytes, kinds)
        if one.at >= self._setup.since:
            self._statistics.add_reaction(max(time.time() - one.at, 0.0))

    def close(self) -> None:
        """End the run, and close the journal."""
        self._undo.close()


def _subtract_all(ranges: Iterable[ByteRange], others: Iterable[ByteRange]) -> list[ByteRange]:
    left = list(ranges)
    for one in others:
        left = subtract(left, one)
    return left


def _late_note(one: FailedRange) -> str:
    at = datetime.fromtimestamp(one.at, UTC).isoformat(timespec="seconds")
    return f"it failed at {at}, before it was watched: the owners are those of later"


def _log_failure(entry: FailureRecord, one: FailedRange, answer: Answer) -> None:
    """Log in one line what failed and who owns it."""
    kinds = dict.fromkeys(row.kind for row in answer)
    files: dict[str, None] = {}
    pids: dict[int, None] = {}
    for row in answer:
        if isinstance(row, FileOwner):
            names = row.mounted_at or row.paths
            inode = (f"inode {row.inode}",)
            files |= dict.fromkeys(names if isinstance(names, tuple) and names else inode)
            users = row.processes if isinstance(row.processes, tuple) else ()
            pids |= dict.fromkeys(process.pid for process in users)
    fields: dict[str, Any] = {}
    for name, values in (("files", list(files)), ("pids", list(map(str, pids)))):
        more = f" and {len(values) - _MAX_NAMED} more" if len(values) > _MAX_NAMED else ""
        fields[name] = ", ".join(values[:_MAX_NAMED]) + more if values else None
    log_event(
        "err",
        "failure",
        failure=entry.number,
        device=entry.place.device,
        start=entry.place.start,
        length=entry.place.length,
        source=one.source,
        owners=",".join(kinds),
        **fields,
        complete=str(answer.complete).lower(),
        verdict=one.detail.get("verdict"),
    )
