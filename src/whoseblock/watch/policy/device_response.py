"""Repair a failure on the device itself, as ``whoseblock respond --apply`` does.

``whoseblock respond --resume`` can resume its plans.
"""

from collections import defaultdict
from typing import Final

from whoseblock.errors import LeftUndoneError
from whoseblock.fs.base import Answer
from whoseblock.journal import RecordedFailure, State
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.lookup import Lookup, Query
from whoseblock.respond import service
from whoseblock.respond.copies.locations import Copies
from whoseblock.respond.planning import CHANGES, Act, PlanOptions, Proposal
from whoseblock.stack.kernel.host import Host
from whoseblock.target import Target, TargetOptions
from whoseblock.watch.attribution.locations import find_layer, layer_identity
from whoseblock.watch.log import log_event
from whoseblock.watch.policy.rule_matching import match_rule, mount_points
from whoseblock.watch.policy.rules import Policy, Respond

__all__ = ["DeviceResponder"]

_ACTS: Final[dict[Respond | None, Act]] = {"zero": Act.ZERO, "restore": Act.RESTORE}


def _log_wait(what: str) -> None:
    log_event("info", "respond-waits", why=what)


class DeviceResponder:
    """Zeroes free space and restores files; ``run`` journals every step."""

    def __init__(self, journal: Journal, run: Run) -> None:
        self._journal = journal
        self._run = run

    def respond(self, failure: RecordedFailure, policy: Policy, number: int, /) -> str:
        """Query the owners again, plan the one allowed action, perform it, and verify it.

        Raises `WhoseblockError` if the action is not allowed or did not help, or if the device has
        another filesystem than the journal says.
        """
        rule = policy.rules[number]
        wanted = _ACTS[rule.respond]
        copies = Copies(folder=rule.restore_from) if wanted is Act.RESTORE else None
        options = TargetOptions()
        with Target(None, options) as target, Lookup(target.open_leaf) as finder:
            layer = find_layer(target, failure.device)
            _check_identity(failure, layer_identity(target.host, finder, layer))
            asked = Query(failure.start, failure.length, layer, "the journal", named=True)
            allowing = PlanOptions(copies=copies)
            (planned,) = service.plan(target, finder, [asked], allowing)
            scope = _Scope(policy, number, failure.device, planned.answer, target.host)
            parts = [scope.restrict(part) for part in planned.proposals]
            allowed = [part for part in parts if part.act is wanted]
            if not allowed:
                raise LeftUndoneError("; ".join(dict.fromkeys(part.says for part in parts)))
            # The rest stays open as advice, which a resumed plan shows.
            others = [part for part in parts if part.act not in (wanted, Act.NOTHING)]
            proposals = (*allowed, *(part._replace(act=Act.ADVISE) for part in others))
            planned = planned._replace(proposals=proposals, failure=failure.id)
            path, _ = target.path_of(layer) or (failure.device, 0)
            saved = service.save(
                self._run, [planned], allowing, target=path, where=options, applied=True
            )
            carried_out = service.apply(self._journal, self._run, saved, target, finder, _log_wait)
            outcomes = [outcome for outcome in carried_out if outcome.step.kind != Act.ADVISE]
        said = "; ".join(outcome.says for outcome in outcomes)
        if any(outcome.state is not State.VERIFIED for outcome in outcomes):
            raise LeftUndoneError(said)
        return said


def _check_identity(failure: RecordedFailure, present: str) -> None:
    """Raise `LeftUndoneError` unless the filesystem that failed is still under the name."""
    if not failure.identity or not present:
        raise LeftUndoneError(f"{failure.device}: the identity of its filesystem is unknown")
    if failure.identity != present:
        raise LeftUndoneError(f"{failure.device} holds another filesystem than when it failed")


class _Scope:
    """The owners that one rule of a policy matches at present."""

    def __init__(self, policy: Policy, number: int, device: str, now: Answer, host: Host) -> None:
        self._policy = policy
        self._number = number
        self._points = mount_points(host)
        #: By the layer of an owner, the layers that lead to it.
        self._ways: dict[str, set[str]] = defaultdict(lambda: {device})
        for row in now:
            if isinstance(row.via, tuple):
                self._ways[row.via[-1].layer] |= {via.layer for via in row.via}

    def restrict(self, part: Proposal) -> Proposal:
        """Keep the action of a part only if the rule matches all of its owners."""
        devices = self._ways[part.site.layer.name]
        rules = {match_rule(self._policy, row, devices, self._points) for row in part.owners}
        if part.act not in CHANGES or rules == {self._number}:
            return part
        name = self._policy.rules[self._number].name
        says = f"rule {name!r} does not match every owner of {part.run}: skipped"
        return part._replace(act=Act.ADVISE, says=says)
