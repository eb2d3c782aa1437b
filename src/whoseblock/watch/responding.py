"""Dealing with a failure on the device itself, as ``whoseblock respond --apply`` does.

The plan that this makes is one that ``whoseblock respond --resume`` can go on with.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import msgspec

from whoseblock.errors import LeftUndoneError
from whoseblock.fs.base import Answer
from whoseblock.journal import Entry, PlannedStep, State
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.lookup import Asked, Lookup, Wish
from whoseblock.respond.acting import parameters_of
from whoseblock.respond.applying import apply, journal_device
from whoseblock.respond.copies import Copies
from whoseblock.respond.planning import Act, Options, Part, parts_of_answer
from whoseblock.target import Target, TargetOptions
from whoseblock.watch.places import layer_named

__all__ = ["DeviceResponder"]

_ACTS: Final = {"zero": Act.ZERO, "restore": Act.RESTORE}


class DeviceResponder:
    """Zeroes free space, restores files; everything is journaled by ``run``."""

    def __init__(self, journal: Journal, run: Run) -> None:
        self._journal = journal
        self._run = run

    def respond(self, failure: Entry, _answer: Mapping[str, Any], how: Mapping[str, Any], /) -> str:
        """Look for the owners again, plan the one act that is allowed, do it, and verify it.

        Raises `WhoseblockError` if it was not to be done, or did not help.
        """
        wanted = _ACTS[how["with"]]
        copies = Copies(folder=how["from"]) if wanted is Act.RESTORE else None
        options = TargetOptions()
        with Target(None, options) as target, Lookup(target.open_leaf) as finder:
            layer = layer_named(target, failure.device)
            asked = Asked(failure.start, failure.length, layer, "the journal", named=True)
            (now,) = finder.answers([asked], Wish(processes=True))
            allowing = Options(copies=copies is not None)
            parts = list(parts_of_answer(asked, now, target, finder, allowing))
            sites = {part.site.layer.name: part.site for part in parts}
            allowed = [part for part in parts if part.act is wanted]
            if not allowed:
                raise LeftUndoneError("; ".join(dict.fromkeys(part.says for part in parts)))
            # What else there is stays open: whoever resumes the plan is told of it.
            others = [part for part in parts if part.act not in (wanted, Act.NOTHING)]
            steps = [_step(part, copies, failure) for part in allowed]
            steps += [_step(part._replace(act=Act.ADVISE), None, failure) for part in others]
            path, _ = target.path_of(layer) or (failure.device, 0)
            kept = {"target": path, "where": asdict(options), "applied": True, "quarantine": False}
            plan = self._run.plan(steps, [failure.id], kept)

            def ask(_failure: int) -> Answer | None:
                return next(finder.answers([asked], Wish(processes=True)), None)

            place = journal_device(self._journal.name)
            outcomes = [
                outcome
                for outcome in apply(self._run, plan, sites.get, ask, place)
                if outcome.step.kind != Act.ADVISE
            ]
        said = "; ".join(outcome.says for outcome in outcomes)
        if any(outcome.state is not State.VERIFIED for outcome in outcomes):
            raise LeftUndoneError(said)
        return said


def _step(part: Part, copies: Copies | None, failure: Entry) -> PlannedStep:
    parameters = msgspec.to_builtins(parameters_of(part, copies, quarantine=False))
    return PlannedStep(str(part.act), parameters, failure.id)
