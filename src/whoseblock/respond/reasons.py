"""Why something was not done: ordinary outcomes of steps, which the journal keeps.

Nothing of this leaves `whoseblock.respond`; the message is what the user is told.
"""

__all__ = ["ChangedError", "NotHealedError", "NotNowError", "RefusedError", "UnguardedError"]


class RefusedError(Exception):
    """The step must not be taken: what it is about is not as it has to be."""


class ChangedError(RefusedError):
    """Somebody changed what the step is about since it was planned or looked at."""


class NotNowError(RefusedError):
    """The step cannot be taken now, and perhaps later."""


class NotHealedError(Exception):
    """The device was written, and does not give the bytes back."""


class UnguardedError(Exception):
    """The device was written, and the filesystem may not have been frozen all that time."""
