"""Read the policy of a daemon, and keep its last valid text for the time after a crash.

An administrator who starts the daemon sees the error of an invalid file.  A service manager that
restarts it after a crash shows the error to no user, and failures would go unnoticed.
"""

from pathlib import Path
from typing import Final

from msgspec import Struct

from whoseblock.errors import PolicyError
from whoseblock.watch.log import log_event
from whoseblock.watch.policy.rules import DEFAULT, Policy
from whoseblock.watch.store.state import StateFolder

__all__ = ["PolicyFile"]

_NAME: Final = "policy.json"


class _KeptPolicy(Struct, frozen=True):
    """The text of a valid policy, and the path that it was read from."""

    path: str
    text: str


class PolicyFile:
    """The policy file ``path``, if there is one, and its last valid text in the state folder.

    ``here`` is as in `parse_policy`.
    """

    def __init__(self, path: Path | None, state: StateFolder, *, here: bool) -> None:
        self._path = path
        self._state = state
        self._here = here

    @property
    def _key(self) -> str:
        # Its name may not be UTF-8, which JSON must be.
        return ascii(str(self._path and self._path.absolute()))

    def load(self) -> Policy:
        """Read the policy, and keep it; raises `PolicyError`."""
        if self._path is None:
            return DEFAULT
        # A daemon without a policy does not need it.
        from whoseblock.watch.policy.parsing import parse_policy, read_text

        text = read_text(self._path)
        policy = parse_policy(str(self._path), text, here=self._here)
        try:
            self._state.save(_NAME, _KeptPolicy(self._key, text))
        except OSError as error:
            log_event("warning", "policy-not-kept", why=error.strerror)
        return policy

    def load_kept(self) -> Policy | None:
        """Return the last valid policy of this file, None if there is none.

        Programs and mount points that are missing by now are left to its actions to report.
        """
        kept = self._state.load(_NAME, _KeptPolicy)
        if kept is None or kept.path != self._key:
            return None
        from whoseblock.watch.policy.parsing import parse_policy

        try:
            return parse_policy(str(self._path), kept.text, here=False)
        except PolicyError:
            # A version of the program that knew other keys has written it.
            return None
