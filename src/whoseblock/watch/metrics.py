"""The counts in the form that Prometheus reads, made by its library when first asked for."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from whoseblock.extras import import_extra
from whoseblock.watch.spool import Backlog
from whoseblock.watch.statistics import BUCKETS, Statistics

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS: Final = (
    ("reports", "source", "Reports of failures, by the source that gave them."),
    ("lost_events", "source", "Events that a source lost, as far as it counts them."),
    ("ill_filesystems", "source", "Errors that filesystems reported without a place."),
    ("failures", "device", "Failures that were new to the journal, by device."),
    ("failed_bytes", "owner", "Bytes that failed, by the kind of owner; each counts for each."),
)


def exposition(
    statistics: Statistics, sources: Mapping[str, tuple[bool, str]], backlog: Backlog
) -> bytes:
    """Write all metrics; ``sources`` says of each whether it is watched."""
    import_extra("watch")
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(list(_families(statistics, sources, backlog))))
    return generate_latest(registry)


class _Collector:
    def __init__(self, families: Iterable["Metric"]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator["Metric"]:
        yield from self._families


def _families(
    statistics: Statistics, sources: Mapping[str, tuple[bool, str]], backlog: Backlog
) -> Iterator["Metric"]:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    values = (
        statistics.reports,
        statistics.lost,
        statistics.ill,
        statistics.failures,
        statistics.bytes,
    )
    for (name, label, about), counts in zip(_COUNTERS, values, strict=True):
        family = CounterMetricFamily(f"whoseblock_{name}", about, labels=[label])
        for key, number in sorted(counts.items()):
            family.add_metric([key], number)
        yield family
    about = "What the policy had done, and what became of it."
    actions = CounterMetricFamily("whoseblock_actions", about, labels=["action", "outcome"])
    for key, number in sorted(statistics.actions.items()):
        actions.add_metric(key.split(" ", 1), number)
    yield actions
    about = "Failures that were closed because the kernel's list has them no longer."
    yield CounterMetricFamily("whoseblock_healed_failures", about, value=statistics.healed)
    if statistics.unhealed is not None:
        ranges, size = statistics.unhealed
        about = "Failures of this host that are open in the journal."
        yield GaugeMetricFamily("whoseblock_unhealed_ranges", about, value=ranges)
        about = "Bytes of the failures that are open in the journal."
        yield GaugeMetricFamily("whoseblock_unhealed_bytes", about, value=size)
    about = "Whether a source of events is watched."
    up = GaugeMetricFamily("whoseblock_source_up", about, labels=["source"])
    for name, (watched, _) in sorted(sources.items()):
        up.add_metric([name], float(watched))
    yield up
    about = "Batches of reports that are not dealt with yet."
    yield GaugeMetricFamily("whoseblock_backlog_batches", about, value=backlog.batches)
    about = "How long the oldest of them waits: journal or worker are stuck if that grows."
    yield GaugeMetricFamily("whoseblock_backlog_seconds", about, value=backlog.seconds)
    buckets, total = [], 0
    for end, number in zip([*map(str, BUCKETS), "+Inf"], statistics.reaction, strict=True):
        total += number
        buckets.append((end, total))
    about = "From the failure to the owners in the journal."
    yield HistogramMetricFamily(
        "whoseblock_reaction_seconds", about, buckets=buckets, sum_value=statistics.reaction_sum
    )
