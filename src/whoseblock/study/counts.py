"""What a tracker costs: bytes held, now and at most, and the work that was done for them."""

from dataclasses import dataclass

__all__ = ["Counts"]


@dataclass(slots=True)
class Counts:
    """Everything is counted where it happens, and nothing is estimated.

    ``comparisons`` are nodes of a tree whose key was looked at, ``rotations`` those of a red-black
    tree, ``locks`` the times that a lock must be taken since others may change the same,
    ``page_writes`` the times that a ``struct page`` which others use must be changed because its
    extent was cut or joined, ``probes`` the entries of files that a tracker looked at.  Not counted
    is what all designs do for each page of an entry: to write the mapping, the tree, or the number
    of entries to its ``struct page``.
    """

    allocations: int = 0
    frees: int = 0
    comparisons: int = 0
    rotations: int = 0
    locks: int = 0
    page_writes: int = 0
    probes: int = 0
    memory: int = 0
    peak: int = 0

    def take(self, size: int) -> None:
        """Note that a structure of ``size`` bytes was allocated."""
        self.allocations += 1
        self.memory += size
        if self.memory > self.peak:  # noqa: PLR1730 - twice as quick as max() here
            self.peak = self.memory

    def give(self, size: int) -> None:
        """Note that one was freed."""
        self.frees += 1
        self.memory -= size
