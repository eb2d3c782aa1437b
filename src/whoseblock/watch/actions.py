"""Doing what the policy says: each act is a step of a plan, journaled before and after.

A step that was planned by a daemon that was killed is done by the next one.  One that was begun is
not begun again: whether it was done nobody knows, and the journal says so.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol, cast

import msgspec
from msgspec import Struct, field

from whoseblock.errors import JournalError, WhoseblockError
from whoseblock.fs.base import Answer, FileOwner, Owner
from whoseblock.journal import Entry, Plan, PlannedStep, State, Step
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.watch.log import say
from whoseblock.watch.policy import ActionKind, Policy, Rule
from whoseblock.watch.state import StateFolder
from whoseblock.watch.statistics import Statistics, count

__all__ = ["BY_WATCH", "Actor", "Limits", "Responder", "choose"]

_HOUR: Final = 3600.0
BY_WATCH: Final = {"by": "watch"}
#: So much of what a program says is kept.
_SAID: Final = 2000


class Responder(Protocol):
    """Deals with a failure on the device itself."""

    def respond(self, failure: Entry, answer: Mapping[str, Any], how: Mapping[str, Any], /) -> str:
        """Zero free space, or restore a file; say what was done.

        ``answer`` is the last finding, as `lookup --json` has it, and ``how`` has ``with`` (zero,
        restore) and ``from``.  It looks for the owners again before it writes, plans and journals
        its own steps, and raises `WhoseblockError` if it did not succeed.
        """


class Limits(Struct):
    """When what was done, as far back as an hour, by kind."""

    done: dict[str, list[float]] = field(default_factory=dict)

    def take(self, kind: ActionKind, most: int) -> bool:
        """Count one more; False if there were as many as there may be."""
        now = time.time()
        recent = [at for at in self.done.get(kind, []) if now - _HOUR < at <= now]
        allowed = len(recent) < most
        self.done[kind] = [*recent, now] if allowed else recent
        return allowed


def choose(
    policy: Policy, answer: Answer, device: str, points: Mapping[str, set[str]]
) -> list[tuple[Rule, list[Owner]]]:
    """Say which rules there are for an answer, each with the owners that it is for.

    ``points`` are the places where the filesystem on a layer is mounted.
    """
    chosen: dict[int, tuple[Rule, list[Owner]]] = {}
    for row in answer:
        devices = {via.layer for via in row.via} if isinstance(row.via, tuple) else set()
        devices.add(device)
        where = set().union(*(points.get(name, set()) for name in devices))
        paths = set[str]()
        kind = row.kind
        if isinstance(row, FileOwner):
            kind = "unwritten" if row.unwritten else kind
            for names in (row.paths, row.mounted_at):
                paths |= set(names) if isinstance(names, tuple) else set()
        for number, rule in enumerate(policy.rules):
            if rule.fits(kind, devices, where, paths):
                chosen.setdefault(number, (rule, []))[1].append(row)
                break
    return [chosen[number] for number in sorted(chosen)]


class Actor:
    """Plans and does what is to be done, within the limits; raises `JournalError`."""

    def __init__(
        self, journal: Journal, run: Run, policy: Policy, state: StateFolder, responder: Responder
    ) -> None:
        self._journal = journal
        self._run = run
        self._policy = policy
        self._state = state
        self._responder = responder
        self._limits = state.load("limits.json", Limits) or Limits()

    def plan(self, failure: int, chosen: Iterable[tuple[Rule, list[Owner]]]) -> bool:
        """Plan what the rules say about a failure; whether there is anything."""
        steps = [
            PlannedStep(kind, _parameters(rule, kind, rows), failure)
            for rule, rows in chosen
            for kind in rule.does
        ]
        if steps:
            self._run.plan(steps, [failure], BY_WATCH)
        return bool(steps)

    def perform(self) -> Statistics:
        """Do what an earlier daemon planned and did not begin; say of what it began so."""
        done = Statistics()
        for plan in self._journal.unfinished():
            if plan.options == BY_WATCH:
                done.add(self._do(plan))
        return done

    def _do(self, plan: Plan) -> Statistics:
        done = Statistics()
        for step in plan.steps:
            if step.failure is None:
                continue
            outcome = self._step(step, step.failure)
            if outcome:
                count(done.actions, {f"{step.kind} {outcome}": 1})
        return done

    def _step(self, step: Step, failure: int) -> str:
        """Do one step if it is to be done; give in a word what became of it."""
        rule = step.parameters.get("rule")
        if step.state is State.STARTED:
            why = "whoever began it was killed, and nobody knows whether it was done"
            self._run.left(step.id, why)
            say("warning", "action-unknown", failure=failure, action=step.kind, rule=rule)
            return "unknown"
        if step.state is State.DONE:
            self._run.verified(step.id)
            return ""
        if step.state is not State.PLANNED:
            return ""
        kind = cast("ActionKind", step.kind)
        most = self._policy.limits.get(kind, 0)
        if not self._limits.take(kind, most):
            self._run.left(step.id, f"the policy allows {most} in an hour")
            say("warning", "action-limited", failure=failure, action=kind, rule=rule, limit=most)
            return "limited"
        self._state.save("limits.json", self._limits)
        self._run.started(step.id)
        try:
            said = self._perform(kind, step.parameters, failure)
        except JournalError:
            raise
        except (WhoseblockError, OSError, subprocess.SubprocessError) as error:
            self._run.failed(step.id, str(error))
            self._run.left(step.id, "the daemon does not try again")
            say("err", "action-failed", failure=failure, action=kind, rule=rule, why=str(error))
            return "failed"
        self._run.done(step.id, {"said": said})
        self._run.verified(step.id)
        say("notice", "action-done", failure=failure, action=kind, rule=rule, said=said or None)
        return "done"

    def _perform(self, kind: ActionKind, how: Mapping[str, Any], failure: int) -> str:
        history = self._journal.history(failure)
        answer = history.findings[-1].answer if history.findings else {}
        if kind == "exec":
            return _execute(how, history.failure, answer)
        if kind == "signal":
            return _signal(how)
        return self._responder.respond(history.failure, answer, how)


def _parameters(rule: Rule, kind: ActionKind, rows: Iterable[Owner]) -> dict[str, Any]:
    """Put down all that is needed to do a step, by whoever does it."""
    about: dict[str, Any] = {"rule": rule.name}
    if kind == "exec":
        return about | {"command": list(rule.exec), "timeout": rule.exec_timeout}
    if kind == "respond":
        return about | {"with": rule.respond, "from": rule.restore_from}
    targets: dict[tuple[int, int], str] = {}
    for row in rows:
        users = row.processes if isinstance(row, FileOwner) else ()
        for process in users if isinstance(users, tuple) else ():
            if (process.mappings and rule.signal_to in ("mapped", "all")) or (
                process.open and rule.signal_to in ("open", "all")
            ):
                targets[process.pid, process.start_time] = process.command
    processes = [[pid, start, command] for (pid, start), command in sorted(targets.items())]
    return about | {"signal": rule.signal, "processes": processes}


def _execute(how: Mapping[str, Any], failure: Entry, answer: Mapping[str, Any]) -> str:
    """Run a program, with what is known on its standard input; give the end of what it says."""
    about = {
        "failure": failure.id,
        "device": failure.device,
        "start": failure.start,
        "length": failure.length,
        "rule": how["rule"],
        "answer": answer,
    }
    environment = {
        **os.environ,
        "WHOSEBLOCK_FAILURE": str(failure.id),
        "WHOSEBLOCK_DEVICE": failure.device,
        "WHOSEBLOCK_START": str(failure.start),
        "WHOSEBLOCK_LENGTH": str(failure.length),
    }
    # It is nobody's business to tell systemd that we are well but ours.
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        environment.pop(name, None)
    done = subprocess.run(  # noqa: S603 - a list of words from a file of root's, and no shell
        how["command"],
        input=msgspec.json.encode(about),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=how["timeout"],
        env=environment,
        check=False,
        start_new_session=True,
    )
    said = done.stdout[-_SAID:].decode(errors="replace").strip()
    if done.returncode:
        raise WhoseblockError(f"{how['command'][0]} gave {done.returncode}: {said}")
    return said


def _signal(how: Mapping[str, Any]) -> str:
    """Send a signal to those processes that still are the ones that were found."""
    number = signal.Signals[how["signal"]]
    sent, gone = [], 0
    for pid, start, command in how["processes"]:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            gone += 1
            continue
        try:
            # The descriptor holds the process; only then is it looked at which one that is.
            if _start_time(pid) == start:
                signal.pidfd_send_signal(process, number)
                sent.append(f"{command}[{pid}]")
            else:
                gone += 1
        except ProcessLookupError:
            gone += 1
        finally:
            os.close(process)
    told = f"sent to {', '.join(sent) or 'nobody'}"
    return f"{told}; {gone} were gone" if gone else told


def _start_time(pid: int) -> int | None:
    """Give when a process started, in clock ticks since the boot (proc_pid_stat(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - a name of ours
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
