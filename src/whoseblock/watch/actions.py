"""Doing what the policy says: each act is a step of a plan, journaled before and after.

Planning and doing are apart: a program may run for an hour, and a device may not answer.  A step is
done if the policy still says so then, whoever planned it.  One that was begun by somebody who was
killed is not begun again: whether it was done nobody knows, and the journal says so.
"""

import subprocess
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, Final, Protocol, cast

import msgspec

from whoseblock.errors import JournalError, WhoseblockError
from whoseblock.fs.base import Owner
from whoseblock.journal import FINAL, Entry, Plan, PlannedStep, State, Step
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.watch.executing import execute
from whoseblock.watch.limits import Limits, Moment
from whoseblock.watch.log import say
from whoseblock.watch.policy import ActionKind, Policy, Rule
from whoseblock.watch.signalling import send, whom
from whoseblock.watch.state import StateFolder
from whoseblock.watch.statistics import Statistics, count

__all__ = ["Actor", "Responder"]

#: What was planned longer ago is not done any more, in seconds: nobody waits for it by now.
_STALE_S: Final = 86400.0
_NOT_AGAIN: Final = "the daemon does not try again"


class Responder(Protocol):
    """Deals with a failure on the device itself."""

    def respond(self, failure: Entry, policy: Policy, number: int, /) -> str:
        """Do what the rule ``number`` of the policy says; say what was done.

        It looks for the owners again, and keeps to those that this is the rule for.  It plans and
        journals its own steps, and raises `WhoseblockError` if it did not succeed.
        """


class Actor:
    """Plans and does what is to be done, within the limits; raises `JournalError`.

    One may plan while another performs.
    """

    def __init__(
        self, journal: Journal, run: Run, policy: Policy, state: StateFolder, responder: Responder
    ) -> None:
        self._journal = journal
        self._run = run
        self._policy = policy
        self._responder = responder
        self._lock = state.lock
        #: Other daemons may write to the same journal, with policies of their own.
        self._ours: dict[str, Any] = {"by": "watch", "state": str(state.path.absolute())}
        self._names = _names(policy)

    def plan(self, failure: int, chosen: Iterable[tuple[Rule, list[Owner]]]) -> bool:
        """Journal what the rules say about a failure; whether they say anything."""
        steps = [
            PlannedStep(kind, self._parameters(rule, kind, rows), failure)
            for rule, rows in chosen
            for kind in rule.does
        ]
        if steps:
            self._run.plan(steps, [failure], self._ours | Moment.now().kept)
        return bool(steps)

    def perform(self, go_on: Callable[[], bool] = lambda: True) -> Statistics:
        """Do all that was planned and is to be done still, in order; leave the rest with a reason.

        It may be called again, and killed, at any point.  ``go_on`` is asked before every step.
        """
        done = Statistics()
        limits = Limits(self._journal)
        for plan in self._journal.unfinished():
            why = self._refusal(plan)
            if why is not None:
                for step in plan.steps:
                    if not go_on():
                        return done
                    outcome = self._step(step, why, limits)
                    if outcome:
                        count(done.actions, {f"{step.kind} {outcome}": 1})
        return done

    def _parameters(self, rule: Rule, kind: ActionKind, rows: Iterable[Owner]) -> dict[str, Any]:
        """Put down all that is needed to do a step, by whoever does it, and what says so."""
        name = _name_for(kind, self._names[self._policy.rules.index(rule)])
        about = {"rule": rule.name, "policy": name}
        if kind == "exec":
            return about | {"command": list(rule.exec), "timeout": rule.exec_timeout}
        if kind == "respond":
            return about | {"with": rule.respond, "from": rule.restore_from}
        return about | {"boot": Moment.now().boot} | whom(rule, rows)

    def _refusal(self, plan: Plan) -> str | None:
        """Say why nothing of a plan is begun, "" if it may be; None if it is not ours."""
        if plan.options.get("by") != "watch":
            return None
        planned = Moment.of(plan.options, plan.at)
        if planned is None or Moment.now().since(planned) > _STALE_S:
            return "it was planned more than a day ago"
        return "" if plan.options.items() >= self._ours.items() else None

    def _step(self, step: Step, why: str, limits: Limits) -> str:
        """Do one step if it is to be done, and if there is no ``why`` not.

        Gives in a word what became of it.
        """
        if step.state in FINAL or step.failure is None:
            return ""
        run = step.events[-1].run
        if (
            step.state is not State.PLANNED
            and run != self._run.id
            and self._journal.is_running(run)
        ):
            # It is in good hands.
            return ""
        rule = step.parameters.get("rule")
        if step.state is State.STARTED:
            why = "whoever began it did not end it, and nobody knows whether it was done"
            self._run.skipped(step.id, why)
            say("warning", "action-unknown", failure=step.failure, action=step.kind, rule=rule)
            return "unknown"
        if step.state is State.DONE:
            self._run.verified(step.id)
            return ""
        if step.state is State.FAILED:
            self._run.skipped(step.id, _NOT_AGAIN)
            return ""
        return self._begin(step, step.failure, why, limits)

    def _begin(self, step: Step, failure: int, why: str, limits: Limits) -> str:
        kind = cast("ActionKind", step.kind)
        about = {"failure": failure, "action": kind, "rule": step.parameters.get("rule")}
        now = Moment.now()
        names = [_name_for(kind, both) for both in self._names]
        planned_by = step.parameters.get("policy")
        number = names.index(planned_by) if planned_by in names else None
        if number is None:
            why = why or "the policy no longer says so"
        elif kind == "signal" and step.parameters.get("boot") != now.boot:
            why = why or "the machine was started anew: the processes are others"
        if why or number is None:
            self._run.skipped(step.id, why)
            say("warning", "action-left", **about, why=why)
            return "left"
        most = self._policy.limits.get(kind, 0)
        if not limits.take(kind, most, now):
            self._run.skipped(step.id, f"the policy allows {most} in an hour")
            say("warning", "action-limited", **about, limit=most)
            return "limited"
        self._run.started(step.id, now.kept)
        try:
            said = self._perform(kind, step, failure, number)
        except JournalError:
            raise
        except (WhoseblockError, OSError, subprocess.SubprocessError) as error:
            self._run.failed(step.id, str(error))
            self._run.skipped(step.id, _NOT_AGAIN)
            say("err", "action-failed", **about, why=str(error))
            return "failed"
        self._run.done(step.id, {"said": said})
        self._run.verified(step.id)
        say("notice", "action-done", **about, said=said or None)
        return "done"

    def _perform(self, kind: ActionKind, step: Step, failure: int, number: int) -> str:
        if kind == "signal":
            return send(step.parameters, self._lock)
        history = self._journal.history(failure)
        if kind == "respond":
            return self._responder.respond(history.failure, self._policy, number)
        answer = history.findings[-1].answer if history.findings else {}
        return execute(step.parameters, history.failure, answer)


def _names(policy: Policy) -> list[tuple[str, str]]:
    """Name each rule, wherever it stands, by what it says, and by that and all rules before it.

    By the latter it is another rule if one was put before it, which may fit the same owners.
    """
    before = blake2b(digest_size=8)
    names = []
    for rule in policy.rules:
        said = msgspec.json.encode(rule._replace(line=0))
        before.update(said)
        names.append((blake2b(said, digest_size=8).hexdigest(), before.hexdigest()))
    return names


def _name_for(kind: ActionKind, names: tuple[str, str]) -> str:
    """Choose the name by which a step finds its rule.

    Who is told is told as long as the rule is there; what would be touched may be spared by now.
    """
    alone, with_others = names
    return alone if kind == "exec" else with_others
