"""Write the counts in the Prometheus text format; its library is imported on first use."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from whoseblock.extras import import_extra
from whoseblock.watch.statistics import BUCKETS, Statistics
from whoseblock.watch.store.spool import Backlog

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["CONTENT_TYPE", "format_metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS: Final = (
    ("reports", "source", "Reports of failures, by source."),
    ("lost_events", "source", "Events that a source lost, as far as it counts them."),
    ("ill_filesystems", "source", "Errors that filesystems reported without a location."),
    ("failures", "device", "Failures that were new to the journal, by device."),
    ("failed_bytes", "owner", "Failed bytes, by kind of owner; shared bytes count once for each."),
)


def format_metrics(
    statistics: Statistics, sources: Mapping[str, tuple[bool, str]], backlog: Backlog
) -> bytes:
    """Return all metrics; ``sources`` holds whether each source is watched."""
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
    about = "Actions of the policy, by outcome."
    actions = CounterMetricFamily("whoseblock_actions", about, labels=["action", "outcome"])
    for key, number in sorted(statistics.actions.items()):
        actions.add_metric(key.split(" ", 1), number)
    yield actions
    about = "Failures closed because the kernel no longer lists them."
    yield CounterMetricFamily("whoseblock_healed_failures", about, value=statistics.healed)
    if statistics.unhealed is not None:
        ranges, size = statistics.unhealed
        about = "Open failures of this host in the journal."
        yield GaugeMetricFamily("whoseblock_unhealed_ranges", about, value=ranges)
        about = "Bytes of the open failures in the journal."
        yield GaugeMetricFamily("whoseblock_unhealed_bytes", about, value=size)
    about = "Whether a source of events is watched."
    up = GaugeMetricFamily("whoseblock_source_up", about, labels=["source"])
    for name, (watched, _) in sorted(sources.items()):
        up.add_metric([name], float(watched))
    yield up
    about = "Batches of reports that wait to be processed."
    yield GaugeMetricFamily("whoseblock_backlog_batches", about, value=backlog.batches)
    about = "Age of the oldest waiting batch; if it grows, the journal or the worker is stuck."
    yield GaugeMetricFamily("whoseblock_backlog_seconds", about, value=backlog.seconds)
    buckets, total = [], 0
    for end, number in zip([*map(str, BUCKETS), "+Inf"], statistics.reaction, strict=True):
        total += number
        buckets.append((end, total))
    about = "Seconds from the failure to its owners in the journal."
    yield HistogramMetricFamily(
        "whoseblock_reaction_seconds", about, buckets=buckets, sum_value=statistics.reaction_sum
    )
