"""Damage images of ext4 and ext2 by the thousand, and check that no complete answer is wrong.

    python -m tools.ext4_damage --cases 3000
    python -m tools.ext4_damage --base ext4 --case 4711

Needs e2fsprogs, and no root.  The exit status is 1 if a complete answer was wrong.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.support.ext4_damage import BASES, make_base, run_case


def main(words: list[str] | None = None) -> int:
    """Run the cases that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--cases", type=int, default=1000, help="cases of each base")
    parser.add_argument("--case", type=int, help="run only this case")
    parser.add_argument("--base", choices=BASES, help="damage only this image")
    options = parser.parse_args(words)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="whoseblock-ext4-") as folder:
        for name in [options.base] if options.base else BASES:
            base = make_base(name, Path(folder))
            cases = [options.case] if options.case is not None else range(options.cases)
            for seed in cases:
                for line in run_case(base, seed):
                    print(line)
                    wrong += 1
            print(f"{name}: {len(cases)} cases, {wrong} wrong words so far")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
