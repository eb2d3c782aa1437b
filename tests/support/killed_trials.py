"""Failures of one kind, repairs of them that are killed, and what must hold after each."""

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.killable_program import ACTING
from tests.support.killed_repairs import Ground, Ran, Victim
from tests.support.repair_cases import FAILURES, Failure

from whoseblock.journal import Plan, State

__all__ = ["Trial", "check_history", "check_order"]

_OFTEN = 20
#: Of the failures before, so many are looked at again after each run; all at the end.
_SAMPLE = 2
#: The number of folders on the way to free blocks, and so of boundaries, depends on earlier runs.
_VARYING = {"free_space", "free_in_quarantine"}


class Trial:
    """Failures of one kind, one after another on the same filesystem."""

    def __init__(self, ground_: Ground, victim_: Victim, kind: str, seed: int = 1) -> None:
        self.ground = ground_
        self.victim = victim_
        self.kind = kind
        self.past: list[Failure] = []
        self.chance = random.Random(f"{kind} {seed}")

    def fail(self) -> tuple[Failure, list[str]]:
        """Make new sectors fail; return the failure and the command line that repairs it."""
        failure = FAILURES[self.kind](self.ground, len(self.past), self.chance)
        self.past.append(failure)
        arguments = ["respond", str(self.ground.root), *failure.arguments]
        return failure, [*arguments, "--apply", "--yes", "--journal", str(self.ground.journal)]

    def check_killed(self, failure: Failure, ran: Ran, known: int, *, group: bool = False) -> None:
        """See that a killed run left nothing behind, and that the journal tells the truth of it.

        With its guard killed, too, only the run that resumes can thaw the filesystem.
        """
        if not group:
            self.ground.check_after(ran)
        failure.check_readable(self.ground)
        plans = self.ground.plans(known)
        assert len(plans) <= 1
        check_order(ran)
        states = {step.state for plan in plans for step in plan.steps}
        for plan in plans:
            assert self.ground.is_closed(plan) == (states == {State.VERIFIED})
        if states <= {State.PLANNED}:
            assert failure.untouched(self.ground)
        if states & {State.DONE, State.VERIFIED}:
            failure.check_finished(self.ground)
        # Failed is only what is begun anew, and that was not reached.
        assert State.SKIPPED not in states

    @property
    def resuming(self) -> list[str]:
        return ["respond", "--resume", "--journal", str(self.ground.journal)]

    def resume(self) -> Ran:
        return self.victim.run(*self.resuming)

    def finish(self, failure: Failure, arguments: list[str], known: int) -> None:
        """Resume after a kill, and check that everything is done then."""
        # Killed before there was a plan, nothing was interrupted, and it is done as if new.
        ran = self.resume() if self.ground.plans(known) else self.victim.run(*arguments)
        assert ran.code == 0, ran.output
        self.ground.check_after(ran)
        check_order(ran)
        failure.check_finished(self.ground)
        (plan,) = self.ground.plans(known)
        check_history(plan)
        assert self.ground.is_closed(plan)
        assert not self.ground.unfinished()
        if len(self.past) % _SAMPLE == 0:
            again = self.resume()
            assert (again.code, "no interrupted steps" in again.output) == (0, True)
            assert not ACTING & set(again.begun()) - {"mkdir"}
        for one in self.chance.sample(self.past, min(_SAMPLE, len(self.past))):
            one.check_finished(self.ground)
        if len(self.past) % _OFTEN == 0:
            self.check_all()

    def check_all(self) -> None:
        """See what xfs_repair says, and look at all files of all failures so far."""
        self.ground.check_repair()
        for one in self.past:
            one.check_finished(self.ground)

    def kill(  # noqa: PLR0913 - the moment, and who dies
        self,
        *,
        at: int | None = None,
        after: bool = False,
        delays: Sequence[float] = (),
        group: bool = False,
        surely: bool = True,
        busy: bool = False,
        both: bool = False,
    ) -> Ran:
        """Make sectors fail, kill the run that repairs them, and resume.

        Of ``delays``, the second is when the run that goes on is killed.  ``group`` kills all of
        its control group, the guard of a frozen filesystem, too.  With ``both``, only that one dies
        with it.  ``busy`` keeps one of several files open until it has ended.  Unless ``surely``,
        it may end before the boundary.
        """
        failure, arguments = self.fail()
        known = self.ground.last_plan()
        delay, *more = delays or (None,)
        with self._kept_open(failure) if busy else contextlib.nullcontext():
            ran = self.victim.run(
                *arguments, at=at, after=after, delay=delay, group=group, guard=both, both=both
            )
        ended = at is not None and len(ran.begun()) < at and self.kind in _VARYING
        assert ran.killed or ended or delay is not None or not surely, ran.output
        self.check_killed(failure, ran, known, group=group or both)
        for later in more:
            words = self.resuming if self.ground.plans(known) else arguments
            again = self.victim.run(*words, delay=later, group=group)
            self.check_killed(failure, again, known, group=group)
        self.finish(failure, arguments, known)
        return ran

    @contextlib.contextmanager
    def _kept_open(self, failure: Failure) -> Iterator[None]:
        """Keep the last of several files open: the first ones are changed, and it is left."""
        _, *others = failure.contents or [""]
        path = self.ground.root / others[-1] if others else Path(os.devnull)
        file = os.open(path, os.O_RDONLY)
        try:
            yield
        finally:
            os.close(file)

    def undisturbed(self) -> Ran:
        """Make sectors fail, and repair them; return the run."""
        failure, arguments = self.fail()
        known = self.ground.last_plan()
        ran = self.victim.run(*arguments)
        assert ran.code == 0, ran.output
        self.ground.check_after(ran)
        check_order(ran)
        failure.check_finished(self.ground)
        check_history(self.ground.plans(known)[0])
        return ran


def check_order(ran: Ran) -> None:
    """See that a step was durably started before anything was done to a device or a file."""
    started = False
    for line in ran.trace:
        mark, _, name = line.split()[:3]
        started |= (mark, name) == (">", "Run.started")
        # SQLite's folder is made by the journal.
        assert started or mark == ">" or name not in ACTING - {"mkdir"}, ran.trace


def check_history(plan: Plan) -> None:
    """See that all steps of a plan came to their end in the one order that there is."""
    for step in plan.steps:
        states = [event.state for event in step.events]
        assert states[0] is State.PLANNED
        assert states[-3:] == [State.STARTED, State.DONE, State.VERIFIED], states
        assert len({event.run for event in step.events[-3:]}) == 1
