"""``make bench``: measure, print a table, and write build/bench.json.

``make bench ARGS=live`` measures one part; ``ARGS="watch --idle 60"`` waits but a minute where it
would wait ten.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import rich.table
from rich.console import Console
from tests.support.tools import Missing, need_loop_mounts

from bench import (
    btrfs,
    ext4,
    live,
    maps,
    memory,
    price,
    slopes,
    start,
    tables,
    watch,
    xfs,
    xfs_scan,
)
from bench.measure import Result, Table

_FOLDER = Path("build/bench")


def _number(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".rstrip() if unit else f"{value:.0f}"


def _show(results: list[Result], tables: list[Table]) -> None:
    console = Console(width=130)
    for numbers in tables:
        shown = rich.table.Table(*numbers.heads)
        for row in numbers.rows:
            shown.add_row(*(one if isinstance(one, str) else f"{one:,.4g}" for one in row))
        console.print(shown)
    table = rich.table.Table("measured", "whoseblock", "against", "ratio", "target", "")
    for result in results:
        table.add_row(
            result.what,
            _number(result.ours, result.unit),
            _number(result.theirs, result.unit),
            f"{result.ratio:.2f}x",
            f"{'at least' if result.at_least else 'at most'} {result.target:g}x",
            "met" if result.met else "MISSED",
        )
    console.print(table)


def _parts() -> list[Callable[[Path], Iterator[Result | Table]]]:
    """Return the parts that are named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("part", nargs="*", help="what to measure; without, everything")
    parser.add_argument("--idle", type=float, default=watch.IDLE_S, help="seconds (%(default)g)")
    given = parser.parse_args()
    parts: dict[str, Callable[[Path], Iterator[Result | Table]]] = {
        "start": start.measure_all,
        "xfs": xfs.measure_all,
        "xfs-scan": xfs_scan.measure_all,
        "ext4": ext4.measure_all,
        "btrfs": btrfs.measure_all,
        "price": price.measure_all,
        "maps": maps.measure_all,
        "memory": memory.measure_all,
        "tables": tables.measure_all,
        "slopes": slopes.measure_all,
        "live": live.measure_all,
        "watch": partial(watch.measure_all, idle=given.idle),
        "crowd": watch.measure_crowded,
        "idle": partial(watch.measure_idle, idle=given.idle),
    }
    if unknown := set(given.part) - parts.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    # The part watch has these two.
    usual = [name for name in parts if name not in {"crowd", "idle"}]
    return [parts[name] for name in given.part or usual]


def main() -> int:
    """Run everything, or the parts named; the exit status is 1 if a target was missed."""
    try:
        need_loop_mounts()
    except Missing as reason:
        print(f"nothing measured: {reason}", file=sys.stderr)
        return 0
    _FOLDER.mkdir(parents=True, exist_ok=True)
    results, tables = [], []
    for result in chain(*(part(_FOLDER) for part in _parts())):
        if isinstance(result, Table):
            tables.append(result)
            continue
        results.append(result)
        print(f"{result.what}: {result.ratio:.2f}x", file=sys.stderr)
    _show(results, tables)
    rows = [{**result._asdict(), "met": result.met} for result in results]
    report = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "results": rows,
        "tables": [table._asdict() for table in tables],
    }
    Path("build/bench.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(result.met for result in results) else 1


sys.exit(main())
