"""The collector: one loop that waits only for the kernel.

It reads the sources, writes their reports to the spool and starts a worker to process them. Once in
an interval it reads everything again that can be read again.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Struct

from whoseblock.encode import encode_json
from whoseblock.errors import PolicyError, PrivilegeError, TargetError
from whoseblock.stack.kernel.host import Host
from whoseblock.watch.clock import booted_at
from whoseblock.watch.log import log_event
from whoseblock.watch.policy.file import PolicyFile
from whoseblock.watch.policy.rules import Policy
from whoseblock.watch.sources.base import Source
from whoseblock.watch.sources.disk_numbers import DiskNumbers, adopt_socket
from whoseblock.watch.sources.history import mark_history
from whoseblock.watch.sources.mounts import MountTable
from whoseblock.watch.sources.source_set import RETROSPECTIVE, SourceSet
from whoseblock.watch.statistics import Statistics
from whoseblock.watch.status.endpoints import MetricsPort, StatusSocket
from whoseblock.watch.status.systemd import notify, take_descriptors, watchdog_seconds
from whoseblock.watch.store.reports import EventsLost, Report
from whoseblock.watch.store.spool import Spool
from whoseblock.watch.store.state import (
    HandledLists,
    StateFolder,
    write_atomically,
    write_for_others,
)
from whoseblock.watch.worker import (
    HelperProcess,
    perform_steps,
    process_spool,
    return_free_memory,
    start_actor,
    start_worker,
)

if TYPE_CHECKING:
    from whoseblock.watch.processor import Setup

__all__ = ["Daemon", "Options", "sweep_once"]

#: Delays in seconds before a failed worker is restarted.
_RETRY_S: Final = (1.0, 5.0, 15.0, 60.0)
#: Seconds to wait for the worker at the end; the systemd unit allows a minute.
_TIMEOUT_S: Final = 45.0
#: Seconds to read at the end what the kernel still has.
_DRAIN_S: Final = 5.0


#: The file of the last status in the state folder.
_STATUS: Final = "status.json"


class _LastStatus(Struct):
    state: str


class Options(NamedTuple):
    """The options of the daemon; see ``whoseblock watch --help``."""

    state: Path
    policy: Path | None = None
    journal: str | None = None
    interval: float = 60.0
    metrics_port: tuple[str, int] | None = None
    metrics_file: Path | None = None
    root: str = "/"
    version: str = ""


class Daemon:
    """The daemon; `run` returns after SIGTERM or SIGINT.

    Raises `TargetError` if the state folder is unusable, and `PolicyError`.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._host = Host(options.root)
        self._undo = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._undo.close)
            self._state = self._undo.enter_context(StateFolder(options.state))
            self._policy_file = PolicyFile(options.policy, self._state, here=self._host.live)
            self._policy, self._policy_fault = self._load_policy()
            undo.pop_all()
        self._spool = _open_spool(self._state)
        self._started = time.time()
        self._statistics = Statistics()
        self._worker: HelperProcess | None = None
        self._actor: HelperProcess | None = None
        self._has_acts = False
        self._failures = 0
        self._retry_at: float | None = None
        self._ending = False
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        #: The polled descriptors of sources, by name.
        self._polled: dict[str, int] = {}
        #: Reports that the spool had no room for, by source.
        self._unspooled: dict[str, list[Report]] = {}

    def _load_policy(self) -> tuple[Policy, PolicyError | None]:
        """Return the policy, or after a crash the last valid one with the error of the file."""
        try:
            return self._policy_file.load(), None
        except PolicyError as error:
            kept = self._policy_file.load_kept() if self._has_crashed() else None
            if kept is None:
                raise
            log_event("err", "policy-kept", why=str(error), hint=error.hint or None)
            return kept, error

    def _has_crashed(self) -> bool:
        """Return whether the last daemon did not stop by itself."""
        status = self._state.load(_STATUS, _LastStatus)
        return status is not None and status.state == "killed"

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT."""
        with self._undo:
            self._watched_since = time.monotonic()
            passed = adopt_socket(take_descriptors().values())
            self._disks = DiskNumbers(self._host, announcements=passed)
            self._undo.callback(self._disks.close)
            if self._disks.fileno() >= 0:
                self._register(self._disks.fileno(), self._disks.read)
            elif self._host.live:
                log_event("warning", "disk-events", watched=False, why="no socket for them")
            self._sources = SourceSet(self._host, self._state)
            self._undo.callback(self._sources.close)
            self._catch_signals()
            if self._host.live:
                self._mounts = MountTable()
                self._undo.callback(self._mounts.close)
                self._register(self._mounts.fileno(), self._mounts_changed)
                self._mounts_changed()
            self._open_endpoints()
            self._sweep()
            # For reports that wait, steps that an earlier daemon left, and to check the journal.
            self._wake_worker()
            self._save_status("killed")
            notify("READY=1", f"STATUS=watching: {', '.join(self._sources.open)}")
            log_event(
                "info",
                "watching",
                sources=",".join(self._sources.open),
                interval=self._options.interval,
                state=self._options.state,
            )
            return_free_memory()
            try:
                self._loop()
            finally:
                self._end()

    # ------------------------------------------------------------------ the loop

    def _register(
        self, descriptor: int, handler: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        self._poll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def _unregister(self, descriptor: int) -> None:
        with suppress(OSError, ValueError):
            self._poll.unregister(descriptor)
        self._handlers.pop(descriptor, None)

    def _loop(self) -> None:
        watchdog = watchdog_seconds()
        # A sweep feeds the watchdog, so it has to come twice in its time.
        interval = self._options.interval
        interval = interval if watchdog is None else min(interval, watchdog / 2)
        sweep_at = time.monotonic() + interval
        while not self._ending:
            until = sweep_at if self._retry_at is None else min(sweep_at, self._retry_at)
            for descriptor, _ in self._poll.poll(max(until - time.monotonic(), 0)):
                if handler := self._handlers.get(descriptor):
                    handler()
            now = time.monotonic()
            if self._retry_at is not None and now >= self._retry_at:
                self._retry_at = None
                self._wake_worker()
            if now >= sweep_at:
                sweep_at = now + interval
                notify("WATCHDOG=1")
                self._sweep()

    def _catch_signals(self) -> None:
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._undo.callback(os.close, read_end)
        self._undo.callback(os.close, write_end)

        def caught() -> None:
            for number in os.read(read_end, 64):
                if number == signal.SIGHUP:
                    self._reload()
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self._ending = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # The number arrives through the pipe; without a handler the signal would end the
            # process.
            before = signal.signal(number, lambda *_: None)
            self._undo.callback(signal.signal, number, before)
        before_fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, before_fd)
        self._register(read_end, caught)

    def _reload(self) -> None:
        """Reload the policy; if it is invalid, keep the old one."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._policy = self._policy_file.load()
        except PolicyError as error:
            self._policy_fault = error
            log_event("err", "policy-kept", why=str(error), hint=error.hint or None)
        else:
            self._policy_fault = None
            log_event("notice", "policy-loaded", rules=len(self._policy.rules))
            # The next worker and actor get the new policy.
            if self._worker is not None:
                self._worker.dismiss()
            if self._actor is not None:
                self._actor.dismiss()
                self._has_acts = True
        notify("READY=1")

    # ------------------------------------------------------------------ sources

    def _mounts_changed(self) -> None:
        for source, fault in self._sources.mounts_changed(list(self._mounts.read().values())):
            self._close_source(source, fault)

    def _sweep(self) -> None:
        """Read again what can be read again, and open sources that were missing."""
        self._check_state()
        self._disks.refresh()
        for source in self._sources.open_missing():
            self._start_polling(source)
        for source in self._sources:
            self._read_source(source, source.sweep)
        self._sources.save_position()
        self._retry_if_due()
        if self._has_acts:
            self._wake_actor()
        self._write_metrics()

    def _check_state(self) -> None:
        """Raise `TargetError` if the state folder is gone: reports could not be kept."""
        if self._state.has_vanished and not self._ending:
            raise TargetError(
                f"the state folder {str(self._state.path)!r} was removed or replaced while it was"
                " in use",
                hint="start whoseblock watch again: it makes a new one, and reads the log again",
            )

    def _start_polling(self, source: Source) -> None:
        """Poll a source, and read it when it is readable."""
        if source.fileno() >= 0 and source.name not in self._polled:
            self._polled[source.name] = source.fileno()
            self._register(source.fileno(), lambda: self._read_source(source, source.read))

    def _read_events(self, traced: Source) -> None:
        self._read_source(traced, traced.read, others=False)

    def _stop_polling(self, source: Source) -> None:
        self._unregister(self._polled.pop(source.name, -1))

    def _close_source(self, source: Source, fault: Exception) -> None:
        """Close a source that failed, until the next sweep."""
        self._stop_polling(source)
        self._sources.close_failed(source, fault)

    def _read_source(
        self, source: Source, read: Callable[[], Iterable[Report]], *, others: bool = True
    ) -> None:
        """Spool what a source reports; after lost events, sweep all ``others``.

        If the spool has no room, the source is not read until it has: the kernel buffers further
        events and counts those that it drops.
        """
        if self._sources.open.get(source.name) is not source:
            # It was closed meanwhile.
            return
        if source.name in self._unspooled:
            if not self._spool_reports(source, self._unspooled.pop(source.name)):
                return
            self._start_polling(source)
        reports: list[Report] = []
        fault: Exception | None = None
        try:
            # Reports from before an error count.
            for report in read():
                reports.append(report)  # noqa: PERF402 - see above
        except Exception as error:  # noqa: BLE001 - what is wrong with one source ends no other
            fault = error
        reports = mark_history(reports, self._disks, self._watched_since)
        # The log lacks the length of failed requests: their events are to be spooled first.
        self._sources.await_events(reports, self._read_events)
        spooled = self._spool_reports(source, reports)
        if fault is not None:
            self._close_source(source, fault)
        if others and spooled and any(isinstance(report, EventsLost) for report in reports):
            for other in self._sources:
                if other is not source:
                    self._read_source(other, other.sweep, others=False)

    def _spool_reports(self, source: Source, reports: list[Report]) -> bool:
        """Write reports to the spool, or else hold them until the next sweep."""
        try:
            self._spool.put(reports)
        except OSError as error:
            self._unspooled[source.name] = reports
            self._stop_polling(source)
            waiting = len(reports)
            self._check_state()
            log_event(
                "err", "spool-failed", source=source.name, waiting=waiting, why=error.strerror
            )
            return False
        self._sources.mark_spooled(source, len(reports))
        if reports:
            self._wake_worker()
        return True

    @property
    def _health(self) -> dict[str, tuple[bool, str]]:
        """Whether each source is watched, and its state in a few words."""
        why = "paused until the spool has room for its reports"
        return self._sources.health | dict.fromkeys(self._unspooled, (False, why))

    # ------------------------------------------------------------------ the worker

    def _wake_worker(self) -> None:
        """Wake the worker, or start one."""
        if self._worker is not None:
            self._worker.wake()
        elif self._retry_at is None and not self._ending:
            self._worker = start_worker(self._spool, self._setup, self._state.lock)
            self._register(self._worker.fileno(), self._read_worker)

    def _retry_if_due(self) -> None:
        """Start a worker if retries are due; checking at each sweep is enough."""
        due = self._statistics.unanswered
        if due and time.time() >= due and self._worker is None:
            self._wake_worker()

    def _wake_actor(self) -> None:
        """Start the actor, which performs planned steps."""
        self._has_acts = True
        if self._actor is None and not self._ending:
            self._has_acts = False
            self._actor = start_actor(self._setup, self._state.lock)
            self._register(self._actor.fileno(), self._read_actor)

    def _setup(self) -> "Setup":
        from whoseblock.watch.processor import Setup

        return Setup(
            state=self._state,
            policy=self._policy,
            journal=self._options.journal,
            root=self._options.root,
            since=self._started,
            booted=booted_at(),
            version=self._options.version,
        )

    def _read_worker(self) -> None:
        worker = self._worker
        if worker is None:
            return
        counts, lives = worker.read()
        for statistics in counts:
            self._statistics.add(statistics)
            if statistics.batches:
                self._failures = 0
            if statistics.planned:
                self._wake_actor()
        if counts:
            self._write_metrics()
        if lives:
            return
        self._unregister(worker.fileno())
        code = worker.wait()
        self._worker = None
        if code:
            wait = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
            self._failures += 1
            self._retry_at = time.monotonic() + wait
            log_event(
                "err", "worker-ended", code=code, again_in=wait, backlog=self._spool.backlog.batches
            )
        elif self._spool.has_more:
            # The report arrived after the worker's last check.
            self._wake_worker()

    def _read_actor(self) -> None:
        actor = self._actor
        if actor is None:
            return
        counts, lives = actor.read()
        for statistics in counts:
            self._statistics.add(statistics)
        if lives:
            return
        self._unregister(actor.fileno())
        code = actor.wait()
        self._actor = None
        if code:
            # Perform what it left after the next sweep.
            self._has_acts = True
            log_event("err", "actor-ended", code=code)
        elif self._has_acts:
            # They were planned after the actor's last check.
            self._wake_actor()

    def _end(self) -> None:
        """Wait a while for worker and actor to finish, and save the position."""
        notify("STOPPING=1")
        self._ending = True
        self._drain()
        deadline = time.monotonic() + _TIMEOUT_S
        for helper in (self._worker, self._actor):
            if helper is not None:
                helper.dismiss()
        while helpers := [one for one in (self._worker, self._actor) if one is not None]:
            left = max(deadline - time.monotonic(), 0)
            select.select(helpers, [], [], left)
            self._read_worker()
            self._read_actor()
            if not left:
                break
        for helper in helpers:
            # The next daemon resumes from here.
            helper.kill()
        self._sources.save_position()
        self._save_status("stopped")
        log_event("info", "stopped", backlog=self._spool.backlog.batches)

    def _drain(self) -> None:
        """Read what the sources still have: some of it is lost when they are closed."""
        deadline = time.monotonic() + _DRAIN_S
        more = True
        while more and time.monotonic() < deadline:
            for source in self._sources:
                self._read_source(source, source.read)
            more = bool(select.select(list(self._polled.values()), [], [], 0)[0])
        for name, reports in self._unspooled.items():
            log_event("err", "not-kept", source=name, count=len(reports))

    # ------------------------------------------------------------------ what others ask

    def _open_endpoints(self) -> None:
        status = StatusSocket(self._options.state / "socket", lambda: _encode(self.status()))
        self._undo.callback(status.close)
        self._register(status.fileno(), status.serve)
        if self._options.metrics_port is not None:
            port = MetricsPort(
                *self._options.metrics_port, self._metrics, self._register, self._unregister
            )
            self._undo.callback(port.close)
            self._register(port.fileno(), port.accept)

    def _save_status(self, state: str) -> None:
        """Save the last status, to be shown when the daemon no longer runs."""
        status = self.status() | {"state": state, "pid": None}
        with suppress(OSError):
            write_atomically(self._options.state / _STATUS, _encode(status), durable=False)

    def status(self) -> dict[str, Any]:
        """Return the status as `whoseblock status` shows it, without passwords."""
        from whoseblock.journal.host import without_passwords

        journal = self._options.journal
        backlog, actor = self._spool.backlog, self._actor
        return {
            "state": "running",
            "pid": os.getpid(),
            "started": self._started,
            "now": time.time(),
            "journal": None if journal is None else without_passwords([journal])[0],
            "policy": None if self._options.policy is None else str(self._options.policy),
            "policy_fault": str(self._policy_fault or ""),
            "rules": len(self._policy.rules),
            "interval": self._options.interval,
            "sources": {
                name: {"watched": watched, "health": health}
                for name, (watched, health) in self._health.items()
            },
            "backlog": backlog.batches,
            "backlog_seconds": backlog.seconds,
            "worker": None if self._worker is None else self._worker.pid,
            "worker_failures": self._failures,
            "actor": None if actor is None else {"pid": actor.pid, "since": actor.started},
            "counts": self._statistics,
        }

    def _metrics(self) -> bytes:
        from whoseblock.watch.status.metrics import format_metrics

        return format_metrics(self._statistics, self._health, self._spool.backlog)

    def _write_metrics(self) -> None:
        if self._options.metrics_file is not None:
            try:
                # Metrics from before a crash are useless, so they need no fsync.
                write_for_others(self._options.metrics_file, self._metrics())
            except OSError as error:
                log_event("warning", "metrics-failed", why=error.strerror)


def _open_spool(state: StateFolder) -> Spool:
    lists = state.load("lists.json", HandledLists) or HandledLists()
    return Spool(state.path / "spool", least=lists.last)


def _encode(status: dict[str, Any]) -> bytes:
    return encode_json(status) + b"\n"


def sweep_once(options: Options) -> Statistics:
    """Sweep what can be read again once, process it, and return the counts.

    Raises what `Daemon` raises, and `JournalError`.
    """
    from whoseblock.watch.processor import Setup

    total = Statistics()
    host = Host(options.root)
    with StateFolder(options.state) as state:
        policy = PolicyFile(options.policy, state, here=host.live).load()
        spool = _open_spool(state)
        sources = SourceSet(host, state, RETROSPECTIVE)
        fault: OSError | None = None
        disks = DiskNumbers(host)
        began = time.monotonic()

        def put(reports: Sequence[Report]) -> None:
            spool.put(mark_history(reports, disks, began))

        try:
            for source in sources.open_missing():
                try:
                    _spool_all(source, sources, put)
                except OSError as error:
                    # Process what waits all the same: it makes room for the next sweep.
                    fault = error
            setup = Setup(
                state,
                policy,
                options.journal,
                options.root,
                since=time.time(),
                booted=booted_at(),
                version=options.version,
            )
            process_spool(spool, lambda: setup, total.add, lambda **_: spool.has_more)
            if total.planned:
                perform_steps(lambda: setup, total.add)
        finally:
            sources.close()
            disks.close()
    if fault is not None:
        raise TargetError(f"incomplete sweep: {fault.strerror}") from fault
    if sources.denied:
        names = ", ".join(sorted(sources.denied))
        raise PrivilegeError(f"incomplete sweep: permission denied for {names}")
    return total


def _spool_all(source: Source, sources: SourceSet, put: Callable[[Sequence[Report]], None]) -> None:
    """Spool everything that a source reports at present; raises OSError."""
    read = source.sweep
    more = True
    while more:
        reports = list(read())
        put(reports)
        sources.mark_spooled(source, len(reports))
        more = source.fileno() >= 0 and bool(select.select([source], [], [], 0)[0])
        read = source.read
