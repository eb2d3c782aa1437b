"""Process batches of reports: journal them, look up and journal owners, plan actions."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final, NamedTuple

from msgspec.structs import replace

from whoseblock.closing import Closing
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.journal import open_journal
from whoseblock.ranges import ByteRange, subtract
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.attribution.device_probe import (
    DeviceProbe,
    ProbeLimits,
    unknown_answer,
)
from whoseblock.watch.attribution.failure_records import (
    HISTORY,
    MAY_BE_HIT,
    FailureRecord,
    FailureRecords,
    coalesce_reports,
)
from whoseblock.watch.attribution.finder import LocationFinder
from whoseblock.watch.attribution.locations import find_identity
from whoseblock.watch.attribution.process_search import Devices, may_have_users
from whoseblock.watch.attribution.retry_queue import RETRY_DELAYS_S, RetryQueue
from whoseblock.watch.attribution.user_queue import Unsearched, UserQueue
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


class Setup(NamedTuple):
    """The configuration of a worker.

    ``journal`` is the URL, None for the default, and ``root`` the folder that has /sys and /proc.
    ``since`` is when the daemon started: reaction times are counted from then. Failures from before
    ``booted`` are history. Both are in seconds since 1970. ``responder`` writes to devices, None
    for the default, and ``version`` is that of whoseblock.  ``probe_limits`` and
    ``retry_delays_s`` are waiting times.
    """

    state: StateFolder
    policy: Policy
    journal: str | None = None
    root: str = "/"
    since: float = 0.0
    booted: float = 0.0
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
        self._finder = LocationFinder(
            setup.state, self._host, self._probe, self._records, setup.booted
        )
        self._statistics = Statistics()
        self._users = UserQueue(setup.state)
        self._undo.callback(self._users.close)
        #: The failures whose processes a killed worker did not search.
        self._resumed = self._users.left
        #: The device numbers of the filesystems that were queried last.
        self._devices: Devices = {}

    def count_unfinished(self) -> Statistics:
        """Return whether a killed daemon left planned steps, as statistics."""
        return Statistics(planned=int(self._journal.has_unfinished()))

    def perform(self, go_on: Callable[[], bool] = lambda: True) -> Statistics:
        """Perform the unfinished steps of this or an earlier daemon while ``go_on`` is true."""
        return self._actor.perform(go_on)

    def process(self, groups: Sequence[Sequence[Report]], *, wait: bool = True) -> Statistics:
        """Process reports, grouped as they arrived; return the counts.

        If not ``wait``, processes that use lost data are only searched by `search_users`.
        """
        self._statistics = Statistics()
        self._records.refresh(others_close=self._others_close)
        try:
            resumed, self._resumed = self._resumed, {}
            if resumed:
                self._record_all(resumed.values(), resumed=resumed.keys())
            self._process_groups(groups)
        finally:
            self._probe.release()
        self._users.save()
        if wait:
            self._search_users(wait=True)
        return self._statistics

    @property
    def search(self) -> int:
        """A descriptor that becomes readable when processes were found, -1 if none are searched."""
        return self._users.fileno()

    def search_users(self, *, wait: bool = False) -> Statistics:
        """Journal the processes that were found, plan actions, and search those that wait.

        If ``wait``, go on until none waits.
        """
        self._statistics = Statistics()
        self._search_users(wait=wait)
        return self._statistics

    def _search_users(self, *, wait: bool) -> None:
        while True:
            found = [
                # Another filesystem may have the numbers by now.
                one._replace(answer=one.before) if self._finder.was_replaced(one.failed) else one
                for one in self._users.collect(wait=wait)
            ]
            with self._journal.together():
                for one in found:
                    if one.finding is None:
                        continue
                    if one.finding:
                        self._run.complete_finding(one.finding, one.entry.number, one.answer)
                    else:
                        self._run.record_finding(one.entry.number, one.answer)
                    _log_users(one.entry, one.answer)
            self._plan([(one.entry, one.failed, one.answer) for one in found])
            if found:
                self._users.save()
            if not self._users.start() or not wait:
                return

    def retry_unknown(
        self, go_on: Callable[[], bool] = lambda: True, *, wait: bool = True
    ) -> Statistics:
        """Look up failures with unknown owners again that are due, while ``go_on`` is true.

        Their device may have appeared, their volumes may have been assembled. At least one is
        looked up. ``wait`` is as in `process`.
        """
        self._statistics = Statistics()
        self._records.refresh(others_close=self._others_close)
        try:
            for number, failed in self._retry_queue.iter_due():
                self._retry(number, failed)
                self._probe.release()
                if not go_on():
                    break
        finally:
            self._probe.release()
        self._retry_queue.save()
        self._users.save()
        if wait:
            self._search_users(wait=True)
        self._statistics.unanswered = self._retry_queue.next_due
        return self._statistics

    def _retry(self, number: int, failed: FailedRange) -> None:
        closed = self._journal.history(number).failure.closed is not None
        if closed or self._finder.was_replaced(failed):
            # Its disk may be gone for good, and the present one has nothing of it.
            self._retry_queue.remove(number)
            return
        for one in (failed, replace(failed, key=f"{failed.key}~")):
            self._finder.forget(one)
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
                        self._record_all([*waiting, *coalesce_reports(failed)])
                        self._save_lists(listed)
                        waiting, failed = [], []
                    listed[report.device] = report
                failed += self._failures_of(report)
            # Each group by itself: after a crash groups may be batched differently, and a coalesced
            # report has the key of its first report only.
            waiting += coalesce_reports(failed)
        self._record_all(waiting)
        self._save_lists(listed)

    def _record_all(self, reported: Collection[FailedRange], resumed: Collection[int] = ()) -> None:
        """Record failures by device: while one is queried, no other is open."""
        for device in dict.fromkeys(one.device for one in reported):
            self._record([one for one in reported if one.device == device], resumed=resumed)

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
        return Statistics(unhealed=self._journal.count_open())

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
            for place in self._finder.locate_range(device, *one):
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
            if self._finder.was_replaced(report):
                raise OSError("another disk has its name by now")  # noqa: TRY301 - said below
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
        for number, (device, start, length) in enumerate(found):
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
                device=device,
                start=start,
                length=length,
                origin=report.origin,
                detail=detail,
                past=report.past,
                disk=report.disk,
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

    def _record(
        self, reported: Iterable[FailedRange], again: int = 0, resumed: Collection[int] = ()
    ) -> dict[int, FailureRecord]:
        """Journal failures, look up the owners of new ones, and plan actions.

        The owners of record ``again`` are looked up in any case, and those of ``resumed`` records,
        whose processes were not searched before a kill. Returns the records by number.
        """
        records = self._journal_failures(reported)
        if records:
            self._statistics.latest = time.time()
        for number, (_, one) in records.items():
            self._retry_queue.hasten(number, one)
        wanted = [
            both
            for number, both in records.items()
            if number == again or number in resumed or self._needs_lookup(both[0])
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
                both.append(((entry, one), self._qualify(answer, entry, one)))
        found: dict[int, int] = {}
        with self._journal.together():
            for (entry, _), answer in both:
                found[entry.number] = self._run.record_finding(entry.number, answer)
        self._records.mark_looked_up((entry.number, answer.complete) for (entry, _), answer in both)
        for (entry, one), answer in both:
            self._count(answer, one)
            _log_failure(entry, one, answer)
            self._retry_queue.update(entry.number, one, answer, lost=entry.place.layer is None)
        if records.keys() != {again}:
            # Retries are saved together: until then, the queue has them as they were.
            self._retry_queue.save()
        self._defer(wanted, answers, dict.fromkeys(resumed, 0) | found)
        return {number: entry for number, (entry, _) in records.items()}

    def _journal_failures(
        self, reported: Iterable[FailedRange]
    ) -> dict[int, tuple[FailureRecord, FailedRange]]:
        """Journal failures; return the records by number, with their first reports."""
        reported = list(reported)
        self._finder.note_requests(reported)
        placed = [both for one in reported for both in self._finder.find(one)]
        records: dict[int, tuple[FailureRecord, FailedRange]] = {}
        with self._journal.together():
            for one, place in placed:
                for entry in self._records.record(one, place):
                    if entry.new:
                        count(self._statistics.failures, {place.device: 1})
                    before = records.get(entry.number)
                    # A failure of now counts more than one of the past.
                    if before is None or (before[1].past and not one.past):
                        records[entry.number] = (entry, one)
        for number, (entry, one) in records.items():
            outdated = self._is_outdated(entry, one)
            if outdated:
                entry = entry._replace(looked_up=False)  # noqa: PLW2901 - the same record
            if (entry.new or outdated) and entry.place.layer is None and not entry.place.why:
                # It was open when we checked, and another process has closed it meanwhile.
                entry = entry._replace(place=self._finder.relocate(entry.place, one))  # noqa: PLW2901
            records[number] = entry, one
        return records

    def _is_outdated(self, entry: FailureRecord, one: FailedRange) -> bool:
        """Return whether a failure of now has the record of one that was only history."""
        if one.past or entry.new or not entry.looked_up or entry.complete:
            return False
        return self._records.has_note(entry, HISTORY)

    def _defer(
        self,
        wanted: Sequence[tuple[FailureRecord, FailedRange]],
        answers: Sequence[Answer],
        findings: Mapping[int, int],
    ) -> None:
        """Plan actions at once where no process can use the lost data; search processes later."""
        at_once = []
        for (entry, one), answer in zip(wanted, answers, strict=True):
            qualified = self._qualify(answer, entry, one)
            if may_have_users(answer, self._devices):
                finding = findings.get(entry.number)
                devices = self._devices
                self._users.add(Unsearched(entry, one, qualified, qualified, devices, finding))
            else:
                at_once.append((entry, one, answer))
        self._plan(at_once)

    def _plan(self, wanted: Sequence[tuple[FailureRecord, FailedRange, Answer]]) -> None:
        """Plan the actions of the policy; the actor performs them in its own process."""
        if not self._setup.policy.rules or not wanted:
            return
        points = mount_points(self._host)
        with self._journal.together():
            for entry, one, answer in wanted:
                if not (entry.planned or one.past or entry.place.suspected):
                    chosen = match_rules(self._setup.policy, answer, entry.place.device, points)
                    self._statistics.planned += self._actor.plan(entry.number, chosen)

    def _qualify(self, answer: Answer, entry: FailureRecord, one: FailedRange) -> Answer:
        """Return what an answer is worth for a failure that is not of this moment."""
        if suspected := entry.place.suspected:
            note = f"{MAY_BE_HIT}: {suspected}"
            remarks = answer.notes if answer.complete and answer.notes else answer.remarks
            answer = replace(answer, complete=False, notes=(note, *answer.notes), remarks=remarks)
        if one.past:
            note = f"{HISTORY}: {one.past}; the owners are those of now"
            notes = (note, *answer.notes)
            remarks = answer.notes if answer.complete and answer.notes else answer.remarks
            return replace(answer, complete=False, notes=notes, remarks=remarks)
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
        self._devices = {}
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
                found, devices = self._probe.find_owners(device, questions)
                for name, numbers in devices.items():
                    self._devices[name] = numbers.joined(self._devices.get(name))
            except OSError as error:
                found = [unknown_answer(*question, str(error)) for question in questions]
            gone = "another disk got this name before the owners were known"
            found = [
                unknown_answer(*question, gone) if self._finder.was_replaced(one) else answer
                for (_, one), question, answer in zip(both, questions, found, strict=True)
            ]
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
    return f"it failed at {at}, and was looked up late: the owners are those of later"


def _log_failure(entry: FailureRecord, one: FailedRange, answer: Answer) -> None:
    """Log in one line what failed and who owns it."""
    kinds = dict.fromkeys(row.kind for row in answer)
    files: dict[str, None] = {}
    for row in answer:
        if isinstance(row, FileOwner):
            names = row.mounted_at or row.paths
            inode = (f"inode {row.inode}",)
            files |= dict.fromkeys(names if isinstance(names, tuple) and names else inode)
    log_event(
        "err",
        "failure",
        failure=entry.number,
        device=entry.place.device,
        start=entry.place.start,
        length=entry.place.length,
        source=one.source,
        owners=",".join(kinds),
        files=_some(list(files)),
        complete=str(answer.complete).lower(),
        history="true" if one.past else None,
        certain="false" if entry.place.suspected else None,
        verdict=one.detail.get("verdict"),
    )


def _log_users(entry: FailureRecord, answer: Answer) -> None:
    """Log which processes use the files of a failure."""
    pids: dict[str, None] = {}
    for row in answer:
        users = row.processes if isinstance(row, FileOwner) else ()
        if isinstance(users, tuple):
            pids |= dict.fromkeys(str(process.pid) for process in users)
    if pids:
        log_event("err", "failure-users", failure=entry.number, pids=_some(list(pids)))


def _some(names: Sequence[str]) -> str | None:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more if names else None
