"""A report as pictures, SVG and PNG: memory, cost of a fault, cost of a failure, and what follows.

Needs matplotlib, which is an extra: ``pip install 'whoseblock[study]'``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from whoseblock.extras import import_extra
from whoseblock.study.report.arithmetic import break_even, bytes_a_page, extrapolate, per_page_bytes
from whoseblock.study.results import StudyReport
from whoseblock.study.sizes import STRUCT_PAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

#: Told apart by those who see no red or green, too (the palette of Okabe and Ito).
_COLOURS: Final = {"per page": "#D55E00", "per extent": "#0072B2", "on demand": "#009E73"}
_MARKERS: Final = {"per page": "o", "per extent": "s", "on demand": "D"}
_GREY: Final = "#666666"
_STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "whoseblock", "svg.fonttype": "path", "font.size": 10,
    "axes.grid": True, "grid.color": "#dddddd", "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "figure.constrained_layout.use": True,
}  # fmt: skip
_GIB: Final = 1 << 30


def draw(report: StudyReport, folder: Path) -> Iterator[Path]:
    """Draw all pictures that a report has numbers for into ``folder``; gives each path."""
    import_extra("study")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Axes, StudyReport], None]] = {
        "memory-sharing": _memory_by_sharing,
        "memory-life": _memory_over_time,
        "memory-devices": _memory_of_devices,
    }
    if report.pieces:
        pictures["memory-extents"] = _memory_by_length
    if report.times:
        pictures |= {"fault": _faults, "failure": _failures, "break-even": _break_even}
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type] # plain strings, not its literals
        for name, picture in pictures.items():
            figure = Figure(figsize=(7, 4.2))
            picture(figure.add_subplot(), report)
            yield from _save(figure, folder / name)


def _save(figure: "Figure", path: Path) -> Iterator[Path]:
    for suffix, given in ((".svg", {"Date": None}), (".png", {"Software": None})):
        file = path.with_suffix(suffix)
        figure.savefig(file, dpi=90, metadata=given)
        if suffix == ".svg":
            # What draws leaves spaces at the ends of lines.
            lines = file.read_text("utf-8").splitlines()
            file.write_text("".join(line.rstrip() + "\n" for line in lines), "utf-8")
        yield file


def _memory_by_sharing(axes: "Axes", report: StudyReport) -> None:
    sweep = sorted(report.sweep, key=lambda one: one.sharing)
    shared = [one for one in sweep if one.sharing > 1]
    for design in ("per page", "per extent"):
        axes.plot(
            [one.sharing for one in shared],
            [bytes_a_page(one, design) for one in shared],
            color=_COLOURS[design], marker=_MARKERS[design], label=f"{design}, measured",
            linestyle="none" if design == "per page" else "-",
        )  # fmt: skip
    owners = range(2, 65)
    axes.plot(owners, [per_page_bytes(one) for one in owners], color=_COLOURS["per page"],
              linewidth=1, label="16 + 40·n")  # fmt: skip
    axes.plot([2, 64], [0, 0], color=_COLOURS["on demand"], linewidth=3, clip_on=False,
              label="on demand: nothing")  # fmt: skip
    axes.axhline(STRUCT_PAGE, color=_GREY, linestyle=":", linewidth=1)
    axes.text(64, 70, "struct page itself, 64 bytes", color=_GREY, ha="right", va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 60_000)
    axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"])
    axes.set_yticks([0, 1, 10, 100, 1000, 10_000], ["0", "1", "10", "100", "1,000", "10,000"])
    axes.set_xlabel("files that share a page, all of them faulted in")
    axes.set_ylabel("kernel memory for a 4 KiB page (bytes)")
    axes.set_title("Memory against sharing")
    axes.legend(loc="upper left", ncols=2)


def _memory_by_length(axes: "Axes", report: StudyReport) -> None:
    for sharing, style in zip(sorted({one.result.sharing for one in report.pieces}), ("-", "--"),
                              strict=False):  # fmt: skip
        some = [one for one in report.pieces if one.result.sharing == sharing]
        for design in ("per page", "per extent"):
            axes.plot(
                [one.length for one in some],
                [bytes_a_page(one.result, design) for one in some],
                style, color=_COLOURS[design], marker=_MARKERS[design],
                label=f"{design}, shared by {sharing:g}",
            )  # fmt: skip
    lengths = sorted({one.length for one in report.pieces})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length}" for length in lengths])
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("pages of a shared extent, all of them faulted in")
    axes.set_ylabel("kernel memory for a 4 KiB page (bytes)")
    axes.set_title("Memory against the length of extents (made up)")
    axes.legend()


def _memory_over_time(axes: "Axes", report: StudyReport) -> None:
    result = report.workloads[-1]
    phases = report.life.phases
    for tracker in result.trackers:
        places: list[float] = []
        # Each phase is as wide as any other, however many steps it has.
        for number, phase in enumerate(phases):
            parts = max(phase.samples - 1, 1)
            places += (number + at / parts for at in range(phase.samples))
        axes.plot(
            places, [memory / 1024 for memory in tracker.memory_over_time],
            color=_COLOURS[tracker.design], label=tracker.design, linewidth=2,
        )  # fmt: skip
    for number in range(1, len(phases)):
        axes.axvline(number, color=_GREY, linestyle=":", linewidth=1)
    names = [f"{phase.name}\n{phase.steps:,} steps" for phase in phases]
    axes.set_xticks([number + 0.5 for number in range(len(phases))], names)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(0, len(phases))
    axes.set_ylim(-0.02 * max(max(one.memory_over_time) for one in result.trackers) / 1024)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("kernel memory (KiB)")
    axes.set_title(f"Memory in a life of {report.extents}, half of its files faulted in")
    axes.legend()


def _memory_of_devices(axes: "Axes", report: StudyReport) -> None:
    found = list(extrapolate(report))
    on_demand = _COLOURS["on demand"]
    bars: list[tuple[str, list[int], str, str | None]] = [
        (f"{design}, in memory", [one.memory[design] for one in found], colour, None)
        for design, colour in _COLOURS.items()
    ]
    bars += [
        ("reverse mapping, on the device", [one.on_disk for one in found], "white", "////"),
        ("kept back for it, on the device", [one.kept_back for one in found], "white", None),
    ]
    for place, (label, values, colour, hatch) in enumerate(bars):
        drawn = axes.bar(
            [number + (place - 2) * 0.17 for number in range(len(found))],
            [value / _GIB for value in values], 0.16,
            color=colour, edgecolor=on_demand if colour == "white" else colour, hatch=hatch,
            label=label,
        )  # fmt: skip
        labels = [f"{value / _GIB:,.3g}" if value else "0" for value in values]
        axes.bar_label(drawn, labels, padding=2, fontsize=8)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(0, max(max(one.memory.values()) for one in found) / _GIB * 50 + 1)
    ticks = [0, 0.01, 0.1, 1, 10, 100]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks(range(len(found)), [one.device for one in found])
    axes.set_xlabel("persistent memory, filled and faulted in like the image")
    axes.set_ylabel("GiB")
    axes.set_title("Extrapolated, not measured: what a whole device would need")
    axes.legend(loc="upper left", ncols=2, fontsize=9)


def _faults(axes: "Axes", report: StudyReport) -> None:
    sweep = sorted(report.times[1:], key=lambda one: one.sharing)
    for design, colour in _COLOURS.items():
        axes.plot(
            [one.sharing for one in sweep],
            [1 + one.added[design] / one.none for one in sweep],
            color=colour, marker=_MARKERS[design], label=f"{design}, a fault",
        )  # fmt: skip
        axes.plot(
            [one.sharing for one in sweep],
            [1 + one.out_added[design] / one.out_none for one in sweep],
            "--", color=colour, label=f"{design}, its entry taken out",
        )  # fmt: skip
    axes.axhline(1, color=_GREY, linestyle=":", linewidth=1)
    axes.text(64, 0.97, "no tracking", color=_GREY, ha="right", va="top")
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    # With room for what the lines are.
    axes.set_ylim(0, axes.get_ylim()[1] * 1.35)
    axes.set_xlabel("files that share a page")
    axes.set_ylabel("emulated time (without tracking = 1)")
    axes.set_title("Cost of a fault, and of taking its entry out")
    axes.legend(ncols=2, fontsize=9)


def _failures(axes: "Axes", report: StudyReport) -> None:
    rows = list(reversed(report.failure_times))
    colours = [next((c for name, c in _COLOURS.items() if row.design.startswith(name)), _GREY)
               for row in rows]  # fmt: skip
    bars = axes.barh([row.design for row in rows], [row.mean * 1e6 for row in rows], color=colours)
    labels = [
        f" {row.mean * 1e6:,.1f} µs" + (f", {row.blocks_mean:.2g} blocks"
                                          if row.design.startswith("on") else "")
        for row in rows
    ]  # fmt: skip
    axes.bar_label(bars, labels)
    axes.set_xscale("log")
    axes.set_xlim(0.1, max(row.mean for row in rows) * 1e6 * 100)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean time to find the owners of one failed page (µs, emulated)")
    axes.set_title("Cost of a failure")


def _break_even(axes: "Axes", report: StudyReport) -> None:
    faults = [10.0**power for power in range(4, 11)]
    for factor, style in ((1, "-"), (100, "--")):
        for design, ratio in break_even(report, factor).items():
            how = "as measured" if factor == 1 else f"{factor} times as slow"
            axes.plot(
                faults, [ratio * count / 1e6 for count in faults], style,
                color=_COLOURS[design], label=f"{design}, questions {how}",
            )  # fmt: skip
    axes.axhline(1, color=_GREY, linestyle=":", linewidth=1)
    axes.text(faults[-1], 1.2, "one failure a day", color=_GREY, ha="right")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(faults[0], faults[-1])
    axes.set_xlabel("pages newly faulted in by a file, a day")
    axes.set_ylabel("failures a day")
    axes.set_title("Break-even: above its line tracking is cheaper, below it on demand")
    axes.legend(loc="upper left", fontsize=9)
