"""The cost of a tracker: memory, now and at most, and the operations done."""

from dataclasses import dataclass

__all__ = ["Counts"]


@dataclass(slots=True)
class Counts:
    """Counters, updated by each operation; none of them is an estimate.

    ``comparisons`` are keys compared in trees, ``rotations`` those of red-black trees. ``locks``
    are lock acquisitions. ``page_writes`` are changes of a ``struct page`` in use because its
    extent was cut or joined. ``probes`` are entries of files that a tracker examined. Writing the
    mapping, the tree or the number of entries to the ``struct page`` of each page of an entry is
    not counted: all designs do it.
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

    def count_allocation(self, size: int) -> None:
        """Count an allocated structure of ``size`` bytes."""
        self.allocations += 1
        self.memory += size
        if self.memory > self.peak:  # noqa: PLR1730 - twice as quick as max() here
            self.peak = self.memory

    def count_free(self, size: int) -> None:
        """Count a freed structure."""
        self.frees += 1
        self.memory -= size
