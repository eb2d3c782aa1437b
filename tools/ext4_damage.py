"""Damage images of ext4, ext3 and ext2 by the thousand, and check that no complete answer is wrong.

    python -m tools.ext4_damage --cases 3000
    python -m tools.ext4_damage --base ext4 --case 4711
    python -m tools.ext4_damage --mutate all --cases 1000

With ``--mutate``, one check is taken out of the driver at a time.  Damage must then make a complete
answer wrong, or a case must not end; the first such case is printed.

Needs e2fsprogs, and no root.  The exit status is 1 if a complete answer was wrong.
"""

import argparse
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.ext4_damage import BASES, Base, make_base, run_case
from tests.support.ext4_mutations import MUTATIONS, mutated

#: Seconds for a case, and for one with a check taken out, which may never end.
_LIMIT: Final = 120
_MUTATED_LIMIT: Final = 20


def main(words: list[str] | None = None) -> int:
    """Run the cases that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--cases", type=int, default=1000, help="cases of each base")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument("--case", type=int, help="run only this case")
    parser.add_argument("--base", choices=BASES, help="damage only this image")
    parser.add_argument("--mutate", choices=[*MUTATIONS, "all"], help="take checks out first")
    options = parser.parse_args(words)
    cases = range(options.first, options.first + options.cases)
    if options.case is not None:
        cases = range(options.case, options.case + 1)
    failed = False
    with tempfile.TemporaryDirectory(prefix="whoseblock-ext4-") as folder:
        names = [options.base] if options.base else [*BASES]
        bases = (make_base(name, Path(folder)) for name in names)
        if options.mutate:
            known = {base.name: base for base in bases}
            for name in MUTATIONS if options.mutate == "all" else [options.mutate]:
                failed |= not _is_noticed(name, known[MUTATIONS[name].base], cases)
        else:
            for base in bases:
                failed |= _damage(base, cases)
    return 1 if failed else 0


def _run(base: Base, seed: int, limit: float, kind: str = "") -> list[str]:
    try:
        return run_case(base, seed, limit, kind)
    except Exception:  # noqa: BLE001 - every exception is a fault to report
        return [f"{base.name} case {seed}: {traceback.format_exc()}"]


def _damage(base: Base, cases: Sequence[int]) -> bool:
    """Run cases, print a summary, and return whether any was wrong."""
    wrong, slowest = 0, (0.0, 0)
    for seed in cases:
        began = time.monotonic()
        lines = _run(base, seed, _LIMIT)
        slowest = max(slowest, (time.monotonic() - began, seed))
        if lines:
            print(*lines, sep="\n", flush=True)
        wrong += bool(lines)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{base.name}: {len(cases)} cases, {wrong} of them wrong; the slowest, case {slowest[1]},"
        f" took {slowest[0]:.1f} s; peak memory {peak} MiB",
        flush=True,
    )
    return wrong > 0


def _is_noticed(name: str, base: Base, cases: Sequence[int]) -> bool:
    """Run cases with one check taken out until one is wrong."""
    if what := MUTATIONS[name].block:
        chosen = {what: base.parts.metadata[what]}
        claims = (one for claims in base.truth.claims for one in claims)
        owners = sorted({one.inode for one in claims if one.what == what} - {0})
        parts = base.parts._replace(metadata=chosen, owners=owners or base.parts.owners)
        base = base._replace(parts=parts)
    with mutated(name):
        for count, seed in enumerate(cases, 1):
            if lines := _run(base, seed, _MUTATED_LIMIT, MUTATIONS[name].damage):
                last = lines[0].strip().splitlines()
                print(f"{name}: noticed in case {count}: {last[0]} {last[-1][:200]}", flush=True)
                return True
    print(f"{name}: not noticed in {len(cases)} cases", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
