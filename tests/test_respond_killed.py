"""``whoseblock respond`` killed at every step boundary, and at random moments.

Each failure has files of its own on a filesystem that stays mounted.  After each kill the
filesystem must be in use, no readable byte lost, and the journal true; ``--resume`` must finish.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.failures import FAILURES, Failure
from tests.support.killed import ACTING
from tests.support.killing import Ground, Ran, Victim, ground, victim

from whoseblock.journal import Plan, State

_OFTEN = 20
#: Of the failures before, so many are looked at again after each run; all at the end.
_SAMPLE = 2


class Trial:
    """Failures of one kind, one after another on the same filesystem."""

    def __init__(self, ground_: Ground, victim_: Victim, kind: str, seed: int = 1) -> None:
        self.ground = ground_
        self.victim = victim_
        self.kind = kind
        self.past: list[Failure] = []
        self.chance = random.Random(f"{kind} {seed}")

    def fail(self) -> tuple[Failure, list[str]]:
        """Have something new fail; give that, and the command line that deals with it."""
        failure = FAILURES[self.kind](self.ground, len(self.past), self.chance)
        self.past.append(failure)
        arguments = ["respond", str(self.ground.root), *failure.arguments]
        return failure, [*arguments, "--apply", "--yes", "--journal", str(self.ground.journal)]

    def check_killed(self, failure: Failure, ran: Ran, known: int) -> None:
        """See that a killed run left nothing behind, and that the journal tells the truth of it."""
        self.ground.check_after(ran)
        failure.check_readable(self.ground)
        plans = self.ground.plans(known)
        assert len(plans) <= 1
        check_order(ran)
        states = {step.state for plan in plans for step in plan.steps}
        if states <= {State.PLANNED}:
            assert failure.untouched(self.ground)
        if states & {State.DONE, State.VERIFIED}:
            failure.check_finished(self.ground)
        assert states <= {State.PLANNED, State.STARTED, State.DONE, State.VERIFIED}

    def resume(self) -> Ran:
        return self.victim.run("respond", "--resume", "--journal", self.ground.journal)

    def finish(self, failure: Failure, arguments: list[str], known: int) -> None:
        """Go on after a kill, and see that all is done then."""
        # Killed before there was a plan, nothing was broken off, and it is done as if new.
        ran = self.resume() if self.ground.plans(known) else self.victim.run(*arguments)
        assert ran.code == 0, ran.output
        self.ground.check_after(ran)
        check_order(ran)
        failure.check_finished(self.ground)
        (plan,) = self.ground.plans(known)
        check_history(plan)
        assert not self.ground.unfinished()
        if len(self.past) % _SAMPLE == 0:
            again = self.resume()
            assert (again.code, "nothing was broken off" in again.output) == (0, True)
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

    def kill(
        self, *, at: int | None = None, after: bool = False, delay: float | None = None
    ) -> Ran:
        """Have something fail, kill the run that deals with it, and go on."""
        failure, arguments = self.fail()
        known = self.ground.last_plan()
        ran = self.victim.run(*arguments, at=at, after=after, delay=delay)
        assert ran.killed or delay is not None, ran.output
        self.check_killed(failure, ran, known)
        self.finish(failure, arguments, known)
        return ran

    def undisturbed(self) -> Ran:
        """Have something fail and dealt with; give the run."""
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


@pytest.fixture
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trial]:
    kind, exchange = request.param
    with ground(exchange=exchange) as made, victim(tmp_path / "runs") as program:
        yield Trial(made, program, kind)


KINDS = [(kind, True) for kind in FAILURES] + [("shared_by_five", False), ("given_up", False)]
NAMES = [f"{kind}{'' if exchange else '-lease'}" for kind, exchange in KINDS]


@pytest.mark.parametrize("trial", KINDS, ids=NAMES, indirect=True)
def test_killed_at_every_boundary(trial: Trial) -> None:
    usual = trial.undisturbed()
    for at, after in usual.moments():
        trial.kill(at=at, after=after)
    trial.check_all()


@pytest.mark.parametrize("trial", KINDS, ids=NAMES, indirect=True)
def test_killed_at_random_moments(trial: Trial) -> None:
    usual = max(trial.undisturbed().seconds for _ in range(2))
    for _ in range(15):
        trial.kill(delay=trial.chance.random() * usual)
    trial.check_all()
