"""Message authentication codes of what is acted on: plans, events of steps, and findings.

A code is HMAC-SHA-256 (RFC 2104) over a list in canonical JSON, whose first item names what it is.
The code of a step's first event covers the whole plan, that of a later one the code before it.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

from whoseblock.errors import JournalError
from whoseblock.journal.host import Host
from whoseblock.journal.host_key import read_key
from whoseblock.journal.records import Event, Finding, Plan, RecordedFailure, RunRecord

__all__ = ["Authenticator", "check_discardable", "not_authentic"]

#: Changes with the content of any code.
_DOMAIN: Final = "whoseblock journal 4"


class Authenticator:
    """Computes and checks codes for one host and this user, whose key is read on first use.

    With ``make`` the key is created if it does not exist.
    """

    def __init__(self, host: Host, *, make: bool) -> None:
        self._host = host
        self._make = make

    @cached_property
    def _key(self) -> bytes | None:
        return read_key(make=self._make)

    def can_check(self, run: RunRecord) -> bool:
        """Return whether rows that a run wrote can be checked: it was of this host and user."""
        ours = run.uid == os.geteuid() and Host(run.host, run.machine_id) == self._host
        return ours and self._key is not None

    def digest_plan(self, plan: Plan, failed: Iterable[RecordedFailure]) -> bytes:
        """Return the digest of all that a plan consists of, with the failures that it concerns.

        The events of its steps are not part of it.
        """
        content = [
            plan.id,
            plan.run,
            plan.at.isoformat(),
            plan.options,
            plan.failures,
            sorted(_facts(one) for one in failed),
            [[one.id, one.number, one.kind, one.failure, one.parameters] for one in plan.steps],
        ]
        return hashlib.sha256(self._message("plan", content)).digest()

    def code_event(self, step: int, event: Event, before: bytes) -> bytes:
        """Return the code of an event.

        ``before`` is the code of the event before it, or the digest of the plan for the first.
        """
        content = [step, event.number, str(event.state), event.run, event.at.isoformat()]
        return self._code("event", [*content, event.detail, before.hex()])

    def code_finding(self, finding: Finding, failure: RecordedFailure) -> bytes:
        """Return the code of a finding about a failure; its number is not part of it."""
        content = [_facts(failure), finding.run, finding.at.isoformat(), finding.complete]
        return self._code("finding", [*content, finding.notes, finding.answer])

    def code_key(self, source: str, key: str) -> bytes:
        """Return the code that identifies an event of a source by its key, in 16 bytes.

        Other hosts cannot compute it, and so cannot claim the event first.
        """
        return self._code("report", [source, key])[:16]

    def _code(self, kind: str, content: list[Any]) -> bytes:
        # Without a key nothing is written, and `can_check` is false.
        return hmac.digest(self._key or b"", self._message(kind, content), "sha256")

    def _message(self, kind: str, content: list[Any]) -> bytes:
        return _canonical([f"{_DOMAIN}: {kind}", *self._host, *content])


def not_authentic(plan: int) -> JournalError:
    """Return the error for a plan that is not carried out."""
    return JournalError(
        f"plan {plan} was written or changed by another host, user or program, or before the"
        " journal had keys: it is not carried out",
        hint="plan the repair again: whoseblock journal list shows its failures; to hear no more of"
        f" this one: whoseblock journal discard {plan}",
    )


def check_discardable(plan: Plan) -> None:
    """Raise `JournalError` unless a plan is certainly not authentic."""
    if plan.authentic is False:
        return
    if plan.authentic:
        hint = "whoseblock respond --resume carries it out if it is unfinished"
        raise JournalError(f"plan {plan.id} is authentic, and is not discarded", hint=hint)
    raise JournalError(
        f"plan {plan.id} was made by another host or user, and only that one can discard it"
    )


def _facts(failure: RecordedFailure) -> list[Any]:
    """Return what is acted on of a failure."""
    device = [failure.host, failure.machine_id, failure.device, failure.identity]
    return [failure.id, *device, failure.start, failure.length, failure.target]


def _canonical(value: list[Any]) -> bytes:
    """Return the same bytes for a JSON value before it is stored and after it is read."""
    # A stored object has texts as keys, which sort in another order than numbers.
    stored = json.loads(json.dumps(value, allow_nan=False))
    return json.dumps(stored, sort_keys=True, separators=(",", ":")).encode()
