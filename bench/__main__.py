"""``make bench``: measure, print a table, and write build/bench.json."""

import json
import platform
import sys
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tests.support.tools import Missing, need_loop_mounts

from bench import maps, xfs
from bench.measure import Result

_FOLDER = Path("build/bench")


def _number(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".rstrip() if unit else f"{value:.0f}"


def _show(results: list[Result]) -> None:
    table = Table("measured", "whoseblock", "against", "ratio", "target", "")
    for result in results:
        table.add_row(
            result.what,
            _number(result.ours, result.unit),
            _number(result.theirs, result.unit),
            f"{result.ratio:.2f}x",
            f"{'at least' if result.at_least else 'at most'} {result.target:g}x",
            "met" if result.met else "MISSED",
        )
    Console(width=130).print(table)


def main() -> int:
    """Run everything; the exit status is 1 if a target was missed."""
    try:
        need_loop_mounts()
    except Missing as reason:
        print(f"nothing measured: {reason}", file=sys.stderr)
        return 0
    _FOLDER.mkdir(parents=True, exist_ok=True)
    results = []
    for result in chain(xfs.measure_all(_FOLDER), maps.measure_all(_FOLDER)):
        results.append(result)
        print(f"{result.what}: {result.ratio:.2f}x", file=sys.stderr)
    _show(results)
    rows = [{**result._asdict(), "met": result.met} for result in results]
    report = {"python": platform.python_version(), "kernel": platform.release(), "results": rows}
    Path("build/bench.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(result.met for result in results) else 1


sys.exit(main())
