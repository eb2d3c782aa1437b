"""A report as text: titled tables, as lines for a terminal or for Markdown."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from whoseblock.study.report.arithmetic import break_even, bytes_a_page, extrapolate, per_page_bytes
from whoseblock.study.results import EntryTime, LostLeaf, StudyReport, WorkloadResult
from whoseblock.study.sizes import PAGE, STRUCT_PAGE

__all__ = ["Table", "as_markdown", "as_text", "tables"]

_NUMBER: Final = re.compile(r"[\d,.]+(%| µs| bytes| [KMGT]iB)?")


class Table(NamedTuple):
    """Rows of texts below headings; ``name`` is for programs, ``note`` for people."""

    name: str
    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def tables(report: StudyReport) -> Iterator[Table]:
    """Yield all tables of a report, those with times only if it has any."""
    yield _workloads(report)
    yield _memory(report)
    yield _work(report)
    yield _sweep(report)
    if report.pieces:
        yield _pieces(report)
    yield _failures(report)
    yield _disk(report)
    yield _extrapolated(report)
    if report.times:
        yield from _entry_times(report)
        yield _write_times(report)
        yield _failure_times(report)
        yield _break_even(report)
    yield _short(report)


def _workloads(report: StudyReport) -> Table:
    return Table(
        "workloads",
        f"What happened, on the extents of {report.extents}",
        ("workload", "faults", "pages of entries", "pages of the device", "owners a page",
         "comparisons of owners", "disagreements"),
        [
            (one.workload, f"{one.faults:,}", f"{one.associations:,}", f"{one.pages:,}",
             f"{one.sharing:.2f}", f"{one.checked:,}", f"{one.disagreements:,}")
            for one in report.workloads
        ],
    )  # fmt: skip


def _memory(report: StudyReport) -> Table:
    return Table(
        "memory",
        "Bytes of kernel memory",
        ("workload", "design", "at the end", "at most", "for each page faulted in",
         "at the end, of the device"),
        [
            (one.workload, tracker.design, f"{tracker.memory:,}", f"{tracker.peak:,}",
             f"{bytes_a_page(one, tracker.design):.1f}",
             f"{tracker.memory / report.upkeep.size:.2%}")
            for one in report.workloads
            for tracker in one.trackers
        ],
    )  # fmt: skip


def _work(report: StudyReport) -> Table:
    return Table(
        "work",
        "Operations for each page of an entry",
        ("workload", "design", "allocations", "comparisons", "rotations", "locks", "probes",
         "struct pages rewritten"),
        [
            (one.workload, tracker.design, *(
                f"{count / max(one.associations, 1):.3f}"
                for count in (tracker.allocations, tracker.comparisons, tracker.rotations,
                              tracker.locks, tracker.probes, tracker.page_writes)
            ))
            for one in report.workloads
            for tracker in one.trackers
        ],
    )  # fmt: skip


def _sweep(report: StudyReport) -> Table:
    designs = [tracker.design for tracker in report.workloads[0].trackers]
    return Table(
        "sweep",
        "Bytes of kernel memory for each page faulted in, by how many files share it",
        ("extents", "owners a page", "16 + 40·n", *designs),
        [
            (one.extents, f"{one.sharing:.2f}", _formula(one),
             *(f"{bytes_a_page(one, design):.1f}" for design in designs))
            for one in report.sweep
        ],
    )  # fmt: skip


def _pieces(report: StudyReport) -> Table:
    designs = [tracker.design for tracker in report.workloads[0].trackers]
    return Table(
        "pieces",
        "Bytes of kernel memory for each page faulted in, by how long extents are",
        ("owners a page", "pages an extent", *designs),
        [
            (f"{one.result.sharing:.2f}", f"{one.length}",
             *(f"{bytes_a_page(one.result, design):.1f}" for design in designs))
            for one in report.pieces
        ],
    )  # fmt: skip


def _formula(result: WorkloadResult) -> str:
    """Return the value of the formula where all pages have the same number of owners."""
    whole = result.sharing == int(result.sharing)
    return f"{per_page_bytes(int(result.sharing))}" if whole else ""


def _failures(report: StudyReport) -> Table:
    life = report.workloads[-1]
    blind = life.blindness
    rows = [(tracker.design, tracker.failures) for tracker in life.trackers]
    rows.append(("on demand, as in Linux", report.life.linux))
    return Table(
        "failures",
        "What each design could say of the failures of a life",
        ("design", "owners known", "free, cleared", "metadata", "nothing known",
         "owners found", "owners missed", "processes told"),
        [
            (design, *(f"{count:,}" for count in (
                found.files, found.free, found.metadata, found.unknown, found.told, found.missed,
                found.processes)))
            for design, found in rows
        ],
        f"{blind.files - blind.files_known:,} of {blind.files:,} files have no page faulted in at"
        f" the end; of {blind.owners:,} pairs of a page and its file {blind.known:,} are known to"
        f" who tracks faults. Inodes left memory {report.life.evicted:,} times, with"
        f" {report.life.evicted_entries:,} entries.",
    )  # fmt: skip


def _disk(report: StudyReport) -> Table:
    upkeep, lost = report.upkeep, report.lost_leaves
    updates = report.workloads[-1].rmap_updates
    rows: list[tuple[str, ...]] = [
        ("blocks of the reverse mapping", f"{upkeep.rmap_bytes:,} bytes"),
        ("share of all metadata, log and inodes included",
         f"{_share(upkeep.rmap_bytes, upkeep.metadata_bytes):.2%}"),
        ("share of what files have written",
         f"{_share(upkeep.rmap_bytes, upkeep.data_bytes):.3%}"),
        ("space kept back for it to grow, these blocks included",
         f"{upkeep.kept_bytes:,} bytes, {upkeep.kept_bytes / upkeep.size:.2%} of the device"),
        ("records", f"{upkeep.records:,}, {upkeep.file_records:,} of them for data of files"),
        ("levels of the highest of its trees", f"{upkeep.levels:,}"),
        ("records that the life put in, took out or changed", f"{updates:,}"),
        ("pages that one leaf tells of, by the keys above it: mean and median",
         f"{lost.mean:,.0f} and {lost.median.pages:,}, of {lost.leaves:,} leaves"),
        ("pages of the device for each leaf: a failure hits one once in so many times",
         f"{upkeep.size / PAGE / lost.leaves:,.0f}"),
        ("pages that the worst leaf tells of",
         f"{lost.worst.pages:,}, {lost.worst.pages * PAGE / upkeep.size:.0%} of the device"),
        ("records of that leaf", f"{lost.worst.records:,}"),
        ("the median leaf lost, and asked about its pages", _lost(lost.median)),
        ("the worst leaf lost, and asked about its pages", _lost(lost.worst)),
    ]  # fmt: skip
    return Table("disk", "What on-demand lives on, on the disk", ("what", "how much"), rows)


def _lost(leaf: LostLeaf) -> str:
    return (
        f"{leaf.asked - leaf.complete:,} of {leaf.asked:,} answers say that they are incomplete,"
        f" {leaf.wrong:,} are wrong"
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _extrapolated(report: StudyReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (one.device, what, size(count), f"{count / one.size:.3%}")
        for one in extrapolate(report)
        for what, count in (
            *((f"{design}, in memory", memory) for design, memory in one.memory.items()),
            ("reverse mapping, on the device", one.on_disk),
            ("kept back for it, on the device", one.kept_back),
        )
    ]
    return Table(
        "extrapolated",
        "Extrapolated, not measured: a larger device, filled and faulted in like this image",
        ("device", "what", "bytes", "of the device"),
        rows,
        "Kept back is by the rule of the kernel; in it is the reverse mapping itself.",
    )


def _entry_times(report: StudyReport) -> Iterator[Table]:
    yield _times_of_entries(
        report,
        "fault-times",
        "Time of a fault, relative to no tracking",
        lambda time: (time.none, time.added),
    )
    yield _times_of_entries(
        report,
        "out-times",
        "Time of taking an entry out, relative to no tracking",
        lambda time: (time.out_none, time.out_added),
    )


def _times_of_entries(
    report: StudyReport,
    name: str,
    title: str,
    which: Callable[[EntryTime], tuple[float, dict[str, float]]],
) -> Table:
    designs = list(report.times[0].added)
    rows: list[tuple[str, ...]] = []
    for one in report.times:
        none, added = which(one)
        ratios = [f"{1 + added[design] / none:.2f}" for design in designs]
        cells = (one.extents, f"{one.sharing:.2f}", f"{one.entries:,}", f"{none * 1e6:.2f} µs")
        rows.append((*cells, *ratios))
    headings = ("extents", "owners a page", "entries timed", "no tracking", *designs)
    return Table(name, title, headings, rows)


def _write_times(report: StudyReport) -> Table:
    shared = [one for one in report.write_times if one.writes]
    designs = list(report.write_times[0].seconds)
    return Table(
        "write-times",
        "Time that each design takes for a write that breaks sharing",
        ("extents", "owners a page", "writes timed", "the clock alone", *designs),
        [
            (one.extents, f"{one.sharing:.2f}", f"{one.writes:,}", f"{one.clock * 1e6:.2f} µs",
             *(f"{one.seconds[design] * 1e6:.2f} µs" for design in designs))
            for one in shared
        ],
    )  # fmt: skip


def _failure_times(report: StudyReport) -> Table:
    return Table(
        "failure-times",
        "Time and blocks of one failure",
        ("design", "failures", "mean", "median", "longest", "blocks read, mean", "median", "most"),
        [
            (one.design, f"{one.failures:,}", f"{one.mean * 1e6:,.1f} µs",
             *("" if seconds is None else f"{seconds * 1e6:,.1f} µs"
               for seconds in (one.median, one.worst)),
             f"{one.blocks_mean:.3g}",
             *("" if blocks is None else f"{blocks:,g}"
               for blocks in (one.blocks_median, one.blocks_worst)))
            for one in report.failure_times
        ],
    )  # fmt: skip


def _break_even(report: StudyReport) -> Table:
    slower = (1, 10, 100)
    found = {factor: break_even(report, factor) for factor in slower}
    return Table(
        "break-even",
        "Failures that would make tracking cheaper, counting time alone",
        ("design", "question takes", "failures in a million faults",
         "failures a day at 1,000 faults a second"),
        [
            (design, "as measured" if factor == 1 else f"{factor} times as long",
             f"{failures:,.0f}", f"{failures * 86.4:,.0f}")
            for factor in slower
            for design, failures in found[factor].items()
        ],
        "A fault here is the first of a file's page, which puts an entry in: 1,000 a second are"
        f" {size(86_400_000 * PAGE)} a day.",
    )  # fmt: skip


def _short(report: StudyReport) -> Table:
    """Yield the rows with one line for each design."""
    first, life, image = report.workloads[0], report.workloads[-1], report.upkeep
    designs = [tracker.design for tracker in first.trackers]
    memory = [tracker.memory for tracker in first.trackers]
    found = {tracker.design: tracker.failures for tracker in life.trackers}
    rows: list[tuple[str, ...]] = [
        ("kernel memory, of the device", *(f"{one / image.size:.2%}" for one in memory)),
        ("the same, with one tree for each large folio",
         *_only("per page", designs, f"{report.in_folios / image.size:.2%}")),
        ("kernel memory, of that of struct page",
         *(f"{one / (image.size // PAGE * STRUCT_PAGE):.2f}" for one in memory)),
        ("space of the device, kept back for the reverse mapping",
         *("0.00%" if design != "on demand" else f"{image.kept_bytes / image.size:.2%}"
           for design in designs)),
        ("owners of failed pages found",
         *(f"{_share(found[one].told, found[one].told + found[one].missed):.0%}"
           for one in designs)),
    ]  # fmt: skip
    linux = report.life.linux
    share = f"{_share(linux.told, linux.told + linux.missed):.0%}"
    rows.append(("the same, as Linux does it", *_only("on demand", designs, share)))
    if report.times:
        ratios = [
            [1 + (one.added[design] + one.out_added[design]) / (one.none + one.out_none)
             for one in report.times]
            for design in designs
        ]  # fmt: skip
        rows.append(
            ("time of an emulated fault, and of taking its entry out: none = 1",
             *(f"{min(one):.2f} to {max(one):.2f}" for one in ratios))
        )  # fmt: skip
        mean = {one.design: f"{one.mean * 1e6:,.1f} µs" for one in report.failure_times}
        pays = break_even(report)
        rows += [
            ("time to find the owners of a page, mean",
             *(mean.get(design) or mean["on demand, cold"] for design in designs)),
            ("cheaper in time from so many failures in a million faults",
             *(f"{pays[design]:,.0f}" if design in pays else "" for design in designs)),
        ]  # fmt: skip
    return Table("short", f"In short, for {report.extents}", ("what", *designs), rows)


def _only(design: str, designs: list[str], cell: str) -> Iterator[str]:
    return (cell if one == design else "" for one in designs)


def size(count: int) -> str:
    """Write bytes with a unit that leaves one to four digits before the point."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - of a KiB
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def as_text(some: Iterable[Table]) -> Iterator[str]:
    """Write tables for a terminal."""
    for number, table in enumerate(some):
        if number:
            yield ""
        yield table.title
        rows = [tuple(heading.upper() for heading in table.headings), *table.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligns = [str.rjust if right else str.ljust for right in _to_the_right(table)]
        for row in rows:
            cells = map(lambda align, cell, width: align(cell, width), aligns, row, widths)
            yield ("  " + "  ".join(cells)).rstrip()
        if table.note:
            yield f"  {table.note}"


def as_markdown(table: Table) -> Iterator[str]:
    """Write a table for a document."""
    yield "| " + " | ".join(table.headings) + " |"
    yield "|" + "|".join("---:" if right else "---" for right in _to_the_right(table)) + "|"
    for row in table.rows:
        yield "| " + " | ".join(row) + " |"
    if table.note:
        yield ""
        yield table.note


def _to_the_right(table: Table) -> list[bool]:
    """Return which columns hold only numbers."""
    return [
        all(not cell or _NUMBER.fullmatch(cell) for cell in column)
        for column in zip(*table.rows, strict=True)
    ]
