"""``make study``: make the images, carry out the study, and write it into docs/study.md.

The images are made once, into build/study; delete that folder to have them made anew.
"""

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from tests.support.tools import Missing, need_loop_mounts

from bench.study_images import FACTORS, aged, shared
from bench.upkeep import Price, price
from bench.upkeep import table as upkeep_table
from whoseblock.study.report.figures import draw
from whoseblock.study.report.table import Table, as_markdown, as_text, tables
from whoseblock.study.results import StudyReport
from whoseblock.study.study import Plan, study

__all__ = ["render"]

_FOLDER = Path("build/study")
_DOCUMENT = Path("docs/study.md")
_RESULTS = Path("docs/study")
#: A study of a million faulted pages takes no longer where so many processors do nothing else, as
#: far as the load of the minute before can tell.
_LONGEST_S = 60
_PROCESSORS = 2
_QUIET = 0.5
_MARKED = re.compile(r"(?<=<!-- table: )([\w-]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def render(document: str, results: dict[str, Any]) -> str:
    """Replace the marks in a document by the tables of the results of a study."""
    report = msgspec.convert(results["report"], StudyReport)
    known = {table.name: table for table in (*tables(report), *_more(results))}

    def table(match: re.Match[str]) -> str:
        lines = "".join(line + "\n" for line in as_markdown(known[match[1]]))
        return f"{match[1]}{match[2]}\n{lines}\n"

    return _MARKED.sub(table, document)


def _more(results: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables about the machine and about the kernel's own upkeep."""
    report = results["report"]
    faulted = report["workloads"][0]["associations"]
    yield Table(
        "machine",
        "Where this was measured",
        ("what", "value"),
        [
            ("Python", results["python"]),
            ("kernel that made the images", results["kernel"]),
            ("processors", f"{results['processors']}"),
            ("pages faulted in by each of the first four workloads", f"{faulted:,}"),
            ("other work on them when it began", f"{results['load']:.1f}"),
            ("all workloads and the sweeps together", f"{report['seconds']:.0f} s"),
            ("the same, processor time", f"{report['processor_seconds']:.0f} s"),
            ("the whole study, with what is timed on one processor", f"{results['whole']:.0f} s"),
        ],
    )
    yield upkeep_table(Price(**results["price"]))


def _image(name: str, factor: int = 0) -> str:
    """Make an image, or take the one of an earlier run."""
    path = _FOLDER / f"{name}.img"
    if not path.exists():
        print(f"making {path.name} …", file=sys.stderr)
        unfinished = path.with_suffix(".unfinished")
        if factor:
            shared(unfinished, factor)
        else:
            aged(unfinished)
        unfinished.rename(path)
    return str(path)


def main() -> int:
    """Carry out the study, and rewrite what is committed of it."""
    try:
        need_loop_mounts()
    except Missing as reason:
        print(f"nothing measured: {reason}", file=sys.stderr)
        print("without root: whoseblock study IMAGE, with the image of the demo", file=sys.stderr)
        return 0
    _FOLDER.mkdir(parents=True, exist_ok=True)
    sweep = tuple(_image(f"shared-by-{factor}", factor) for factor in FACTORS)
    plan = Plan(_image("aged"), sweep_images=sweep, jobs=min(os.cpu_count() or 1, 4))
    load, begun = os.getloadavg()[0], time.monotonic()
    report = study(plan)
    whole = time.monotonic() - begun
    results = {
        "python": platform.python_version(),
        "kernel": platform.release().partition("-")[0],
        "processors": os.cpu_count(),
        "load": load,
        "whole": whole,
        "report": msgspec.to_builtins(report),
        "price": price(_FOLDER)._asdict(),
    }
    for line in as_text(tables(report)):
        print(line)
    drawn = list(draw(report, _RESULTS))
    (_RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    text = _DOCUMENT.read_text("utf-8")
    _DOCUMENT.write_text(render(text, results), "utf-8")
    print(f"\nwrote {_DOCUMENT}, and {len(drawn)} pictures beside it")
    failed = bool(report.disagreements)
    if failed:
        print(f"THE DESIGNS DISAGREED {report.disagreements} times", file=sys.stderr)
    if whole > _LONGEST_S:
        print(f"IT TOOK {whole:.0f} s, and should take {_LONGEST_S} s at most", file=sys.stderr)
        if load <= _QUIET and (os.cpu_count() or 1) >= _PROCESSORS:
            failed = True
        else:
            print(
                f"which says little: {os.cpu_count()} processors, load {load:.1f} when it began",
                file=sys.stderr,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
