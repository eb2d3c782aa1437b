"""``make bench``: measure, print a table, and write build/bench.json.

``make bench ARGS=live`` measures one part.
"""

import json
import platform
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table
from tests.support.tools import Missing, need_loop_mounts

from bench import live, maps, xfs
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


def _parts() -> list[ModuleType]:
    """Give the parts that are named on the command line, or all."""
    parts = {"xfs": xfs, "maps": maps, "live": live}
    named = sys.argv[1:] or list(parts)
    if unknown := set(named) - parts.keys():
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    return [parts[name] for name in named]


def main() -> int:
    """Run everything, or the parts named; the exit status is 1 if a target was missed."""
    try:
        need_loop_mounts()
    except Missing as reason:
        print(f"nothing measured: {reason}", file=sys.stderr)
        return 0
    _FOLDER.mkdir(parents=True, exist_ok=True)
    results = []
    for result in chain(*(part.measure_all(_FOLDER) for part in _parts())):
        results.append(result)
        print(f"{result.what}: {result.ratio:.2f}x", file=sys.stderr)
    _show(results)
    rows = [{**result._asdict(), "met": result.met} for result in results]
    report = {"python": platform.python_version(), "kernel": platform.release(), "results": rows}
    Path("build/bench.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(result.met for result in results) else 1


sys.exit(main())
