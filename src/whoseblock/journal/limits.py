"""The waiting times of a journal, and the sizes of the batches in which it is read."""

from dataclasses import dataclass
from typing import Final

__all__ = ["USUAL_LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Waiting times in seconds, and numbers of failures.

    ``writer_wait_s`` is for another writer.  ``server_wait_s`` is for a server, which may itself
    wait for a writer meanwhile.  ``batch`` failures are read at a time, or ``histories`` of them
    with everything about each.
    """

    writer_wait_s: float = 30.0
    server_wait_s: int = 40
    batch: int = 256
    histories: int = 64


USUAL_LIMITS: Final = Limits()
