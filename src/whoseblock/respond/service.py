"""The one way to plan, apply and resume repairs, for the command line and the daemon alike.

`plan` looks up owners and proposes acts; it writes nothing.  `save` records the failures and the
plan in the journal.  `apply` carries out a saved plan, and `resume` one that was interrupted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec

from whoseblock.errors import InUseError
from whoseblock.fs.base import Answer
from whoseblock.journal.authentication import not_authentic
from whoseblock.journal.journal import Journal
from whoseblock.journal.records import NewReport, Plan, PlannedStep
from whoseblock.journal.run import Run
from whoseblock.lookup import Lookup, Query, QueryOptions
from whoseblock.ranges import ByteRange
from whoseblock.respond.execution import EXEC, SIGNAL, Context, StepOutcome, execute
from whoseblock.respond.planning import CHANGES, Act, PlanOptions, Proposal, proposals_for
from whoseblock.respond.sites import Site, site_named, wait_silently
from whoseblock.respond.steps import parameters_of
from whoseblock.target import Target, TargetOptions

__all__ = [
    "PlanOptions",
    "PlannedFailure",
    "SavedPlan",
    "StepOutcome",
    "apply",
    "count_changes",
    "doubtful",
    "plan",
    "resume",
    "save",
    "unfinished",
]


class PlannedFailure(NamedTuple):
    """A failed range, its owners, and what can be done about it.

    ``failure`` is its number if the journal has it already; otherwise `save` records it.
    """

    asked: Query
    answer: Answer
    proposals: tuple[Proposal, ...]
    failure: int | None = None

    @property
    def needs_action(self) -> bool:
        """Whether some of its sectors fail and are not in quarantine, as far as is known."""
        return any(proposal.act is not Act.NOTHING for proposal in self.proposals)


class SavedPlan(NamedTuple):
    """A plan in the journal, and the ranges of its failures by their numbers."""

    plan: Plan
    asked: Mapping[int, Query]


def plan(
    target: Target,
    finder: Lookup,
    asked: Sequence[Query],
    options: PlanOptions,
    *,
    processes: bool = False,
) -> Iterator[PlannedFailure]:
    """Look up the owners of each range, and propose what can be done, in the order asked.

    ``processes`` looks up the processes that use the lost parts, too.  Writes nothing.  Raises
    `WhoseblockError`.
    """
    answers = finder.answers(asked, QueryOptions(processes=processes))
    for one, answer in zip(asked, answers, strict=True):
        proposals = proposals_for(one, answer, target, finder, options)
        yield PlannedFailure(one, answer, tuple(proposals))


def count_changes(planned: Iterable[PlannedFailure]) -> int:
    """Return how many proposals write to the device or to a file."""
    return sum(proposal.act in CHANGES for one in planned for proposal in one.proposals)


def save(  # noqa: PLR0913 - the plan, and how it is applied and resumed
    run: Run,
    planned: Sequence[PlannedFailure],
    options: PlanOptions,
    *,
    target: str | None,
    where: TargetOptions,
    applied: bool,
) -> SavedPlan:
    """Record failures, their owners and the plan in the journal.

    A range that was asked twice is one failure with one set of steps.
    ``target`` and ``where`` are what `resume` opens again: the path as an absolute one, None if
    the failures name their own devices.  Without ``applied``, `resume` leaves the plan alone.
    Raises `JournalError`.
    """
    steps: list[PlannedStep] = []
    asked: dict[int, Query] = {}
    for one in planned:
        failure = one.failure
        if failure is None:
            failure = _record(run, one, target or "")
        if failure in asked:
            continue
        asked[failure] = one.asked
        steps += _notifications(options, failure)
        for proposal in one.proposals:
            if proposal.act is not Act.NOTHING:
                parameters = parameters_of(proposal, options)
                kept = msgspec.to_builtins(parameters)
                steps.append(PlannedStep(str(proposal.act), kept, failure))
    kept = {
        "target": target,
        "where": msgspec.structs.asdict(where),
        "applied": applied,
        "quarantine": options.quarantine,
    }
    return SavedPlan(run.plan(steps, asked, kept), asked)


def _record(run: Run, one: PlannedFailure, target: str) -> int:
    """Record a failure and its owners; return its number."""
    asked = one.asked
    identities = (proposal.site.identity for proposal in one.proposals)
    identity = next((identity for identity in identities if identity), "")
    report = NewReport(source="respond", origin=asked.origin)
    failed = ByteRange(asked.start, asked.length)
    noted = run.record_failure(asked.layer.name, failed, report, identity=identity, target=target)
    run.record_finding(noted.failure, one.answer)
    return noted.failure


def _notifications(options: PlanOptions, failure: int) -> Iterator[PlannedStep]:
    if options.command:
        yield PlannedStep(EXEC, {"command": options.command}, failure)
    if options.signal:
        yield PlannedStep(SIGNAL, {"signal": options.signal}, failure)


def apply(  # noqa: PLR0913 - the plan, the journal and where the failures are
    journal: Journal,
    run: Run,
    saved: SavedPlan,
    target: Target,
    finder: Lookup,
    on_wait: Callable[[str], None] = wait_silently,
) -> Iterator[StepOutcome]:
    """Carry out the unfinished steps of a plan, one after another; yield what became of each.

    Each step is journaled before, verified after, and its outcome is yielded once the journal has
    it.  ``on_wait`` receives a sentence when a step waits for another repair of the filesystem.
    Raises `JournalError` when the journal cannot be written; then no further step is taken.
    """
    if saved.plan.steps and not saved.plan.authentic:
        raise not_authentic(saved.plan.id)

    def find_site(name: str) -> Site | None:
        return site_named(name, target, finder)

    def owners(failure: int) -> Answer | None:
        query = saved.asked[failure]
        return next(finder.answers([query], QueryOptions(processes=True)), None)

    return execute(run, saved.plan, Context(find_site, owners, _device_of(journal.name), on_wait))


def _device_of(name: str) -> int | None:
    """Return the ``st_dev`` of a journal that is a file on this machine, None for any other."""
    try:
        return Path(name).stat().st_dev
    except (OSError, ValueError):
        return None


def unfinished(journal: Journal, target: str | None = None) -> list[Plan]:
    """Return the plans of this host that were to be applied and have unfinished steps.

    ``target`` is an absolute path and restricts them to those of this target.
    """
    return [one for one in journal.unfinished() if _is_wanted(one, target)]


def doubtful(journal: Journal, target: str | None = None) -> Iterator[int]:
    """Yield the numbers of plans that `unfinished` might return if they were authentic.

    They are not carried out.  Reads all steps of this host.
    """
    return (one.id for one in journal.doubtful() if _is_wanted(one, target))


def _is_wanted(plan: Plan, target: str | None) -> bool:
    return bool(plan.options.get("applied")) and target in (None, plan.options.get("target"))


def resume(
    journal: Journal, run: Run, saved: Plan, on_wait: Callable[[str], None] = wait_silently
) -> Iterator[StepOutcome]:
    """Carry out the unfinished steps of an interrupted plan, as `apply` does.

    Opens the target that the plan was made for.  Raises `InUseError` if another run carries it
    out, `TargetError` if the target cannot be opened, and `JournalError`, also if the plan is not
    authentic.
    """
    records = journal.failures_of(saved)
    last = {step.events[-1].run for step in saved.steps if step.events}
    if any(journal.is_running(one) for one in {saved.run, *last}):
        raise InUseError(f"plan {saved.id} is in use by another run: not carried out")
    kept = dict(saved.options["where"])
    where = TargetOptions(**{**kept, "members": tuple(kept["members"])})
    with ExitStack() as stack:
        target = stack.enter_context(Target(saved.options["target"], where))
        finder = stack.enter_context(Lookup(target.open_leaf))
        asked = {}
        for failure in saved.failures:
            record = records[failure]
            layer = target.layer or target.layer_of(record.device)
            asked[failure] = Query(record.start, record.length, layer, "the journal")
        # `site_named` finds only the layers that a lookup has reached.
        for _part in finder.stream(asked.values(), QueryOptions(paths=False)):
            pass
        yield from apply(journal, run, SavedPlan(saved, asked), target, finder, on_wait)
