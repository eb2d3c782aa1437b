"""Carry out the steps of a plan in the journal: journaled before, verified after."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgspec

from whoseblock.errors import JournalError, WhoseblockError
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.journal.records import FINAL, Plan, State, Step
from whoseblock.journal.run import Run
from whoseblock.respond.copies.replacement import CopySource
from whoseblock.respond.exceptions import (
    BusyError,
    NotHealedError,
    NotNowError,
    OwnerOutcome,
    PartlyDoneError,
    RefusedError,
    UnguardedError,
)
from whoseblock.respond.freezing import FreezeJournal, FreezeRecord
from whoseblock.respond.notify import NotifyError, run_command, signal_processes
from whoseblock.respond.owners import REFUSALS, raised_file_limit
from whoseblock.respond.planning import Act
from whoseblock.respond.privileges import FilePrivileges, PrivilegeJournal
from whoseblock.respond.repair import carry_out, verify
from whoseblock.respond.sites import Site
from whoseblock.respond.steps import ReplacementDigest, StepParameters, StepRecords

__all__ = ["EXEC", "SIGNAL", "Context", "StepOutcome", "execute"]

#: The kinds of steps that notify; `Act` has those that change something.
EXEC: Final = "exec"
SIGNAL: Final = "signal"
#: The key under which the journal keeps the SHA-256 of the data that owners are given.
_REPLACEMENT: Final = "replacement"
#: The key of the records of `PrivilegeJournal`.
_PRIVILEGES: Final = "privileges"
#: The key of the record of `FreezeJournal`; null when the filesystem is thawed.
_FREEZE: Final = "freeze"
#: The key under which the journal keeps where that data is from.
_COPIES: Final = "copies"
#: The key of the outcome of each owner.
_OWNERS: Final = "owners"
#: The errors that fail a step, so that it can be resumed.
_FAILURES: Final = (
    BusyError,
    NotHealedError,
    PartlyDoneError,
    UnguardedError,
    NotifyError,
    WhoseblockError,
)
_CLOSED_BECAUSE: Final = "all planned steps are done and verified"


class StepOutcome(NamedTuple):
    """The state that a step ended in, and why in words; the outcome of each owner, if any."""

    step: Step
    state: State
    says: str
    owners: tuple[OwnerOutcome, ...] = ()


class Context(NamedTuple):
    """The context that steps need besides the journal.

    ``find_site`` returns the site on a layer by its name, None if there is none.  ``query`` returns
    the present owners of a failure by its number.  ``journal_device`` is the ``st_dev`` of the
    journal's file, None if it is no file of this machine.  ``on_wait`` receives a sentence when a
    step waits for another repair of the same filesystem.
    """

    find_site: Callable[[str], Site | None]
    query: Callable[[int], Answer | None]
    journal_device: int | None
    on_wait: Callable[[str], None]


def execute(run: Run, plan: Plan, context: Context) -> Iterator[StepOutcome]:
    """Carry out the steps of a plan that are not finished, one after another.

    Each outcome is yielded once the journal has it.  A failure is closed when all of its steps are
    verified.  Raises `JournalError` when the journal cannot be written; then no further step is
    taken, and the message says what the last one did.
    """
    open_failures = set(plan.failures)
    last = {step.failure: step.id for step in plan.steps}
    for step in plan.steps:
        state = step.state
        if state not in FINAL:
            if step.kind == Act.ADVISE:
                outcome = _skip(run, step, str(step.parameters.get("says", "")))
            else:
                # The last of its steps closes a failure, unless an earlier one was not verified.
                ends = step.failure in open_failures and last.get(step.failure) == step.id
                outcome = _take(run, step, context, ends=ends)
            state = outcome.state
            yield outcome
        if state is not State.VERIFIED and step.kind not in (EXEC, SIGNAL):
            open_failures.discard(step.failure or 0)
    for failure in sorted(open_failures):
        run.close_failure(failure, _CLOSED_BECAUSE)


def _take(run: Run, step: Step, context: Context, *, ends: bool) -> StepOutcome:
    """Carry out a step; ``ends`` closes its failure once it is verified."""
    if step.state is State.DONE:
        # Interrupted before it was verified: a step is safe to repeat.
        run.failed(step.id, "it was not verified")
    run.started(step.id)
    try:
        if step.kind in (EXEC, SIGNAL):
            says = _notify(step, context)
            with _reporting(step, says):
                run.done(step.id, {"says": says})
                run.verified(step.id)
            return StepOutcome(step, State.VERIFIED, says)
        return _change(run, step, context, ends=ends)
    except JournalError:
        raise
    except RefusedError as error:
        # An earlier attempt may have changed some owners, or froze the filesystem: the step is not
        # given up.
        begun = _last(step, _REPLACEMENT) or _last(step, _FREEZE)
        again = isinstance(error, NotNowError) and begun
        return _fail(run, step, str(error)) if again else _skip(run, step, str(error))
    except OSError as error:
        if error.errno in REFUSALS:
            return _skip(run, step, f"the kernel refuses: {error.strerror}")
        return _fail(run, step, error.strerror or str(error))
    except _FAILURES as error:
        return _fail(run, step, str(error), getattr(error, "owners", ()))


@contextmanager
def _reporting(step: Step, outcome: str) -> Iterator[None]:
    """Add what became of a step to the error of a journal that cannot record it."""
    try:
        yield
    except JournalError as error:
        run = step.parameters
        place = f" {run['start']}+{run['length']}" if "start" in run else ""
        message = f"not journaled: {step.kind}{place}: {outcome}: {error}"
        raise type(error)(message, hint=error.hint) from error


def _skip(run: Run, step: Step, why: str) -> StepOutcome:
    with _reporting(step, why):
        run.skipped(step.id, why)
    return StepOutcome(step, State.SKIPPED, why)


def _fail(run: Run, step: Step, why: str, owners: tuple[OwnerOutcome, ...] = ()) -> StepOutcome:
    with _reporting(step, f"failed: {why}"):
        run.failed(step.id, why, {_OWNERS: _details(owners)} if owners else {})
    return StepOutcome(step, State.FAILED, why, owners)


def _change(run: Run, step: Step, context: Context, *, ends: bool) -> StepOutcome:
    parameters = msgspec.convert(step.parameters, StepParameters)
    site = context.find_site(parameters.layer)
    if site is None or site.filesystem is None:
        raise RefusedError(f"{parameters.layer} is missing, or has no known filesystem")
    kind = Act(step.kind)
    records = StepRecords(
        _replacement_of(run, step), _privileges_of(run, step), _freeze_of(run, step)
    )
    with raised_file_limit(), site.exclusive(context.on_wait):
        result = carry_out(kind, parameters, site, context.journal_device, records)
        detail: dict[str, Any] = {"says": result.says, "zeroed": result.zeroed, "kept": result.kept}
        if result.sources:
            detail[_COPIES] = _details(result.sources)
        if result.owners:
            detail[_OWNERS] = _details(result.owners)
        with _reporting(step, result.says):
            run.done(step.id, detail)
        seen = verify(kind, parameters, site, result)
    closes = (step.failure, _CLOSED_BECAUSE) if ends and step.failure is not None else None
    outcome = StepOutcome(step, State.VERIFIED, f"{result.says}; {seen}", result.owners)
    with _reporting(step, outcome.says):
        run.verified(step.id, {"says": seen}, closes=closes)
    return outcome


def _last(step: Step, key: str) -> Any:  # noqa: ANN401 - JSON
    """Return what the newest event of a step has under a key, None if none has it."""
    found = [event.detail[key] for event in step.events if key in event.detail]
    return found[-1] if found else None


def _replacement_of(run: Run, step: Step) -> ReplacementDigest:
    def note(digest: str, sources: Sequence[CopySource]) -> None:
        run.started(step.id, {_REPLACEMENT: digest, _COPIES: _details(sources)})

    return ReplacementDigest(str(_last(step, _REPLACEMENT) or ""), note)


def _privileges_of(run: Run, step: Step) -> PrivilegeJournal:
    def note(records: list[FilePrivileges]) -> None:
        run.started(step.id, {_PRIVILEGES: msgspec.to_builtins(records)})

    records = msgspec.convert(_last(step, _PRIVILEGES) or [], list[FilePrivileges])
    return PrivilegeJournal(records, note)


def _freeze_of(run: Run, step: Step) -> FreezeJournal:
    def note(record: FreezeRecord | None) -> None:
        run.started(step.id, {_FREEZE: msgspec.to_builtins(record)})

    return FreezeJournal(msgspec.convert(_last(step, _FREEZE), FreezeRecord | None), note)


def _details(records: Sequence[CopySource | OwnerOutcome]) -> list[dict[str, Any]]:
    return [record._asdict() for record in records]


def _notify(step: Step, context: Context) -> str:
    """Run the command or send the signal of a step; return what was done."""
    answer = None if step.failure is None else context.query(step.failure)
    if answer is None:
        raise RefusedError("the failure cannot be looked up")
    if step.kind == EXEC:
        run_command(str(step.parameters["command"]), answer)
        return "the command was run"
    users = {
        process.pid: process
        for row in answer
        if isinstance(row, FileOwner) and isinstance(row.processes, tuple)
        for process in row.processes
    }
    sent = signal_processes(str(step.parameters["signal"]), users.values())
    return ", ".join(f"process {pid}: {what}" for pid, what in sent) or "no process maps it"
