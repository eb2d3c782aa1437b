"""Why a step was skipped or failed: ordinary outcomes, which the journal keeps.

No exception of this module leaves `whoseblock.respond`; its message is shown to the user.
"""

from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "BusyError",
    "ChangedError",
    "NotHealedError",
    "NotNowError",
    "OwnerOutcome",
    "PartlyDoneError",
    "RefusedError",
    "UnguardedError",
]


class OwnerOutcome(NamedTuple):
    """The outcome of a repair for one owner; ``because`` is the reason if it was not changed."""

    subvolume: int
    inode: int
    offset: int
    changed: bool
    because: str = ""


class RefusedError(Exception):
    """The step must not be taken; nothing is changed."""


class ChangedError(RefusedError):
    """The owners or the content of the blocks changed since they were last read."""


class NotNowError(RefusedError):
    """The step cannot be taken now, but may be later."""


class BusyError(Exception):
    """Another process repairs the filesystem; nothing is changed, and the step can be resumed."""


class NotHealedError(Exception):
    """The device was written, but does not read back what was written."""


class UnguardedError(Exception):
    """The device was written, but the filesystem may have been thawed meanwhile."""


class PartlyDoneError(Exception):
    """Some owners of the blocks were repaired, and others were left as they are.

    The step can be taken again.  ``owners`` are the outcomes of the present owners.
    """

    def __init__(self, says: str, owners: Iterable[OwnerOutcome] = ()) -> None:
        super().__init__(says)
        self.owners = tuple(owners)
