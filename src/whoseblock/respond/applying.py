"""Plans in the journal, and doing what they say: journaled before, verified after."""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from whoseblock.errors import JournalError, WhoseblockError
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.journal.records import FINAL, NewReport, Plan, PlannedStep, State, Step
from whoseblock.journal.run import Run
from whoseblock.lookup import Asked
from whoseblock.ranges import ByteRange
from whoseblock.respond.acting import Memory, StepParameters, act, check, parameters_of
from whoseblock.respond.copies import Copies
from whoseblock.respond.notify import NotifyError, run_command, signal_processes
from whoseblock.respond.owners import many_open_files
from whoseblock.respond.planning import Act, Part
from whoseblock.respond.reasons import NotHealedError, RefusedError, UnguardedError
from whoseblock.respond.sites import Site

__all__ = ["Notice", "Outcome", "Planned", "apply", "journal_device", "record"]

#: The kinds of steps that tell others; `Act` has those that change something.
_EXEC, _SIGNAL = "exec", "signal"
#: What the journal keeps of the data that owners are given: its SHA-256.
_REPLACEMENT: Final = "replacement"
_DEALT_WITH: Final = "all that was planned is done and verified"
#: Of a file that must not be changed; swap space is busy text for the kernel, too.
_REFUSALS: Final = {errno.ETXTBSY, errno.EPERM, errno.EACCES, errno.EROFS}


class Planned(NamedTuple):
    """A failure that was asked about, whose it is, and what can be done."""

    asked: Asked
    answer: Answer
    parts: tuple[Part, ...]


class Notice(NamedTuple):
    """Whom to tell: a command for the shell, and a signal for who has the lost part mapped."""

    command: str | None = None
    signal: str | None = None


class Outcome(NamedTuple):
    """What became of a step, in words."""

    step: Step
    state: State
    says: str


def record(
    run: Run,
    planned: Sequence[Planned],
    copies: Copies | None,
    notice: Notice,
    options: Mapping[str, Any],
) -> Plan:
    """Journal failures, their owners, and what is planned.  Raises `JournalError`."""
    steps: list[PlannedStep] = []
    failures: list[int] = []
    for one in planned:
        asked = one.asked
        identity = next((part.site.identity for part in one.parts if part.site.identity), "")
        report = NewReport(source="respond", origin=asked.origin)
        where = ByteRange(asked.start, asked.length)
        target = str(options.get("target") or "")
        noted = run.record_failure(
            asked.layer.name, where, report, identity=identity, target=target
        )
        run.record_finding(noted.failure, one.answer)
        failures.append(noted.failure)
        steps += _notices(notice, noted.failure)
        for part in one.parts:
            if part.act is not Act.NOTHING:
                parameters = parameters_of(part, copies, quarantine=bool(options.get("quarantine")))
                kept = msgspec.to_builtins(parameters)
                steps.append(PlannedStep(str(part.act), kept, noted.failure))
    return run.plan(steps, failures, options)


def _notices(notice: Notice, failure: int) -> Iterator[PlannedStep]:
    if notice.command:
        yield PlannedStep(_EXEC, {"command": notice.command}, failure)
    if notice.signal:
        yield PlannedStep(_SIGNAL, {"signal": notice.signal}, failure)


def apply(
    run: Run,
    plan: Plan,
    find_site: Callable[[str], Site | None],
    ask: Callable[[int], Answer | None],
    journal_device: int | None,
) -> Iterator[Outcome]:
    """Do the steps of a plan that are not finished, one after another.

    ``find_site`` gives the site on a layer by its name, ``ask`` who owns a failure now.  Each
    outcome comes when it is in the journal; a failure of which nothing is left is closed.  Raises
    `JournalError` when the journal cannot be written: nothing more is done then.
    """
    doing = _Doing(find_site, ask, journal_device)
    open_failures = set(plan.failures)
    last = {step.failure: step.id for step in plan.steps}
    for step in plan.steps:
        state = step.state
        if state not in FINAL:
            if step.kind == Act.ADVISE:
                says = str(step.parameters.get("says", ""))
                run.left(step.id, says)
                outcome = Outcome(step, State.LEFT, says)
            else:
                # The last of its steps closes a failure, unless one before it was not done.
                ends = step.failure in open_failures and last.get(step.failure) == step.id
                outcome = _do(run, step, doing, ends=ends)
            state = outcome.state
            yield outcome
        if state is not State.VERIFIED and step.kind not in (_EXEC, _SIGNAL):
            open_failures.discard(step.failure or 0)
    for failure in sorted(open_failures):
        run.close_failure(failure, _DEALT_WITH)


def journal_device(name: str) -> int | None:
    """Give the number of the device that a journal in a file is on; None if it is in no file."""
    try:
        return Path(name).stat().st_dev
    except (OSError, ValueError):
        return None


class _Doing(NamedTuple):
    find_site: Callable[[str], Site | None]
    ask: Callable[[int], Answer | None]
    journal_device: int | None


def _do(run: Run, step: Step, doing: _Doing, *, ends: bool) -> Outcome:
    if step.state is State.DONE:
        # Broken off before it was verified: it is safe to repeat.
        run.failed(step.id, "it was not verified")
    run.started(step.id)
    try:
        if step.kind in (_EXEC, _SIGNAL):
            says = _tell(step, doing)
            run.done(step.id, {"says": says})
            run.verified(step.id)
            return Outcome(step, State.VERIFIED, says)
        return _change(run, step, doing, ends=ends)
    except JournalError:
        raise
    except RefusedError as error:
        run.left(step.id, str(error))
        return Outcome(step, State.LEFT, str(error))
    except OSError as error:
        if error.errno in _REFUSALS:
            says = f"the kernel refuses: {error.strerror}"
            run.left(step.id, says)
            return Outcome(step, State.LEFT, says)
        run.failed(step.id, error.strerror or str(error))
        return Outcome(step, State.FAILED, error.strerror or str(error))
    except (NotHealedError, UnguardedError, NotifyError, WhoseblockError) as error:
        run.failed(step.id, str(error))
        return Outcome(step, State.FAILED, str(error))


def _change(run: Run, step: Step, doing: _Doing, *, ends: bool) -> Outcome:
    parameters = msgspec.convert(step.parameters, StepParameters)
    site = doing.find_site(parameters.layer)
    if site is None or site.filesystem is None:
        raise RefusedError(f"{parameters.layer} is not there, or no filesystem is on it")
    kind = Act(step.kind)
    told = [event.detail[_REPLACEMENT] for event in step.events if _REPLACEMENT in event.detail]
    memory = Memory(
        str(told[-1]) if told else "",
        lambda digest: _started(run, step, {_REPLACEMENT: digest}),
    )
    with many_open_files():
        done = act(kind, parameters, site, doing.journal_device, memory)
        run.done(step.id, {"says": done.says, "zeroed": done.zeroed, "kept": done.kept})
        seen = check(kind, parameters, site, done)
    closes = (step.failure, _DEALT_WITH) if ends and step.failure is not None else None
    run.verified(step.id, {"says": seen}, closes=closes)
    return Outcome(step, State.VERIFIED, f"{done.says}; {seen}")


def _started(run: Run, step: Step, detail: Mapping[str, Any]) -> None:
    run.started(step.id, detail)


def _tell(step: Step, doing: _Doing) -> str:
    answer = None if step.failure is None else doing.ask(step.failure)
    if answer is None:
        raise RefusedError("the failure cannot be looked up")
    if step.kind == _EXEC:
        run_command(str(step.parameters["command"]), answer)
        return "the command was run"
    users = {
        process.pid: process
        for row in answer
        if isinstance(row, FileOwner) and isinstance(row.processes, tuple)
        for process in row.processes
    }
    sent = signal_processes(str(step.parameters["signal"]), users.values())
    return ", ".join(f"process {pid}: {what}" for pid, what in sent) or "nobody has it mapped"
