"""Plan and perform the actions of the policy; each is a journaled step of a plan.

Planning and performing are apart: a program may run for an hour, and a device may not answer. A
step is performed only if the policy still has its rule at that time, whichever process planned it.
A step that a killed process had started is not repeated: the journal says that its outcome is
unknown.
"""

import subprocess
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, Final, Protocol, cast

import msgspec

from whoseblock.errors import JournalError, WhoseblockError
from whoseblock.fs.base import Owner
from whoseblock.journal import FINAL, Plan, PlannedStep, RecordedFailure, State, Step
from whoseblock.journal.authentication import not_authentic
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.watch.log import log_event
from whoseblock.watch.policy.limits import Limits, Moment
from whoseblock.watch.policy.programs import run_program
from whoseblock.watch.policy.rules import ActionKind, Policy, Rule
from whoseblock.watch.policy.signals import send_signals, signal_recipients
from whoseblock.watch.statistics import Statistics, count
from whoseblock.watch.store.state import StateFolder

__all__ = ["Actor", "Responder"]

#: Plans older than this many seconds are not carried out.
_STALE_S: Final = 86400.0
_NOT_AGAIN: Final = "the daemon does not try again"


class Responder(Protocol):
    """The interface to `DeviceResponder`: repairs a failure on the device itself."""

    def respond(self, failure: RecordedFailure, policy: Policy, number: int, /) -> str:
        """Perform what rule ``number`` of the policy says; return a summary of what was done.

        Queries the owners again and acts only on those that the rule matches. Plans and journals
        its own steps. Raises `WhoseblockError` if it did not succeed.
        """


class Actor:
    """Plans actions and performs them within the limits; raises `JournalError`.

    One process may plan while another performs.
    """

    def __init__(
        self, journal: Journal, run: Run, policy: Policy, state: StateFolder, responder: Responder
    ) -> None:
        self._journal = journal
        self._run = run
        self._policy = policy
        self._responder = responder
        self._lock = state.lock
        #: Other daemons with other policies may use the same journal.
        self._origin: dict[str, Any] = {"by": "watch", "state": str(state.path.absolute())}
        self._digests = _digests(policy)

    def plan(self, failure: int, chosen: Iterable[tuple[Rule, list[Owner]]]) -> bool:
        """Journal the steps that the rules require for a failure; return whether there are any."""
        steps = [
            PlannedStep(kind, self._parameters(rule, kind, rows), failure)
            for rule, rows in chosen
            for kind in rule.actions
        ]
        if steps:
            self._run.plan(steps, [failure], self._origin | Moment.now().detail)
        return bool(steps)

    def perform(self, go_on: Callable[[], bool] = lambda: True) -> Statistics:
        """Perform all unfinished steps in order; skip those that no longer apply, with a reason.

        It may be killed at any point and called again. ``go_on`` is called before every step.
        """
        done = Statistics()
        limits = Limits(self._journal)
        for plan in self._journal.unfinished():
            why = self._why_refused(plan)
            if why is not None:
                for step in plan.steps:
                    if not go_on():
                        return done
                    outcome = self._finish_step(step, why, limits)
                    if outcome:
                        count(done.actions, {f"{step.kind} {outcome}": 1})
        return done

    def _parameters(self, rule: Rule, kind: ActionKind, rows: Iterable[Owner]) -> dict[str, Any]:
        """Return everything that any process needs to perform a step, and its rule."""
        name = _digest_for(kind, self._digests[self._policy.rules.index(rule)])
        about = {"rule": rule.name, "policy": name}
        if kind == "exec":
            return about | {"command": list(rule.exec), "timeout": rule.exec_timeout}
        if kind == "respond":
            return about | {"with": rule.respond, "from": rule.restore_from}
        return about | {"boot": Moment.now().boot} | signal_recipients(rule, rows)

    def _why_refused(self, plan: Plan) -> str | None:
        """Return why a plan is refused, "" if it is not; None if it is not of this daemon."""
        if plan.options.get("by") != "watch":
            return None
        planned = Moment.from_detail(plan.options, plan.at)
        if planned is None or Moment.now().since(planned) > _STALE_S:
            return "it was planned more than a day ago"
        return "" if plan.options.items() >= self._origin.items() else None

    def _finish_step(self, step: Step, why: str, limits: Limits) -> str:
        """Finish one step: perform it, or skip it because of ``why``.

        Returns its outcome in a word, "" if there was nothing to do.
        """
        if step.state in FINAL or step.failure is None:
            return ""
        run = step.events[-1].run
        if (
            step.state is not State.PLANNED
            and run != self._run.id
            and self._journal.is_running(run)
        ):
            # A running process performs it.
            return ""
        rule = step.parameters.get("rule")
        if step.state is State.STARTED:
            why = "its process ended before the step did; whether it took effect is unknown"
            self._run.skipped(step.id, why)
            log_event(
                "warning", "action-unknown", failure=step.failure, action=step.kind, rule=rule
            )
            return "unknown"
        if step.state is State.DONE:
            self._run.verified(step.id)
            return ""
        if step.state is State.FAILED:
            self._run.skipped(step.id, _NOT_AGAIN)
            return ""
        return self._perform_if_allowed(step, step.failure, why, limits)

    def _perform_if_allowed(self, step: Step, failure: int, why: str, limits: Limits) -> str:
        kind = cast("ActionKind", step.kind)
        about = {"failure": failure, "action": kind, "rule": step.parameters.get("rule")}
        now = Moment.now()
        names = [_digest_for(kind, both) for both in self._digests]
        planned_by = step.parameters.get("policy")
        number = names.index(planned_by) if planned_by in names else None
        if number is None:
            why = why or "the policy no longer has this rule"
        elif kind == "signal" and step.parameters.get("boot") != now.boot:
            why = why or "the machine was rebooted: these processes no longer exist"
        if why or number is None:
            self._run.skipped(step.id, why)
            log_event("warning", "action-left", **about, why=why)
            return "left"
        most = self._policy.limits.get(kind, 0)
        if not limits.take(kind, most, now):
            self._run.skipped(step.id, f"the policy allows {most} an hour")
            log_event("warning", "action-limited", **about, limit=most)
            return "limited"
        self._run.started(step.id, now.detail)
        try:
            said = self._perform(kind, step, failure, number)
        except JournalError:
            raise
        except (WhoseblockError, OSError, subprocess.SubprocessError) as error:
            self._run.failed(step.id, str(error))
            self._run.skipped(step.id, _NOT_AGAIN)
            log_event("err", "action-failed", **about, why=str(error))
            return "failed"
        self._run.done(step.id, {"said": said})
        self._run.verified(step.id)
        log_event("notice", "action-done", **about, said=said or None)
        return "done"

    def _perform(self, kind: ActionKind, step: Step, failure: int, number: int) -> str:
        if kind == "signal":
            return send_signals(step.parameters, self._lock)
        history = self._journal.history(failure)
        if not any(plan.id == step.plan and plan.authentic for plan in history.plans):
            raise not_authentic(step.plan)
        if kind == "respond":
            return self._responder.respond(history.failure, self._policy, number)
        findings = [finding for finding in history.findings if finding.authentic]
        answer = findings[-1].answer if findings else {}
        return run_program(step.parameters, history.failure, answer)


def _digests(policy: Policy) -> list[tuple[str, str]]:
    """Return two digests for each rule: of itself, and of itself and all rules before it.

    The second changes if a rule is inserted before it, which might match the same owners.
    """
    before = blake2b(digest_size=8)
    names = []
    for rule in policy.rules:
        said = msgspec.json.encode(rule._replace(line=0))
        before.update(said)
        names.append((blake2b(said, digest_size=8).hexdigest(), before.hexdigest()))
    return names


def _digest_for(kind: ActionKind, names: tuple[str, str]) -> str:
    """Return the digest by which a step finds its rule.

    A notification is sent as long as its rule exists. An action that changes something is not
    performed if a rule was inserted before.
    """
    alone, with_others = names
    return alone if kind == "exec" else with_others
