"""Count what the daemon does; the worker sends its counts, the collector adds them up."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

__all__ = ["BUCKETS", "Statistics", "count"]

#: Upper bounds of the classes of reaction times, in seconds.
BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Statistics(Struct):
    """Counts since the start.

    ``reports``, ``lost`` and ``ill`` are by source, ``failures`` (new ones) by device, ``bytes`` by
    kind of owner, and ``actions`` by ``KIND OUTCOME``. ``reaction`` has a count for each class of
    `BUCKETS` and one for longer times. ``unhealed`` is the number of open failures and of their
    bytes, None if they were not counted. ``latest`` is when a failure was last journaled.
    ``batches`` is the number of processed batches, ``planned`` of failures with planned steps.
    ``unanswered`` is when the next retry of unknown owners is due, 0 if there is none.
    """

    reports: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    ill: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    actions: dict[str, int] = field(default_factory=dict)
    healed: int = 0
    reaction: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    reaction_sum: float = 0.0
    unhealed: tuple[int, int] | None = None
    latest: float | None = None
    batches: int = 0
    planned: int = 0
    unanswered: float | None = None

    def add_reaction(self, seconds: float) -> None:
        """Count one reaction time."""
        at = next((place for place, end in enumerate(BUCKETS) if seconds <= end), len(BUCKETS))
        self.reaction[at] += 1
        self.reaction_sum += seconds

    def add(self, more: "Statistics") -> None:
        """Add the counts of another process."""
        for name in ("reports", "lost", "ill", "failures", "bytes", "actions"):
            count(getattr(self, name), getattr(more, name))
        for name in ("healed", "batches", "planned"):
            setattr(self, name, getattr(self, name) + getattr(more, name))
        self.reaction = [a + b for a, b in zip(self.reaction, more.reaction, strict=True)]
        self.reaction_sum += more.reaction_sum
        for name in ("unhealed", "latest", "unanswered"):
            if getattr(more, name) is not None:
                setattr(self, name, getattr(more, name))


def count(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Add ``more`` to ``counts``."""
    for name, number in more.items():
        counts[name] = counts.get(name, 0) + number
