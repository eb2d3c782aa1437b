"""Check the prose of the project, and print ``FILE:LINE: what`` for each fault.

    python -m tools.prose
    python -m tools.prose --paths src/whoseblock/stack docs/guides/stack.md

Without ``--paths`` everything is checked, except for the paths in ``pending.txt``.  The exit status
is 1 if there are faults.
"""

import argparse
import sys
from pathlib import Path

from tools.prose.checks import Fault, check_file
from tools.prose.files import TOP, pending, selected


def main(words: list[str] | None = None) -> int:
    """Check the files that the command line selects; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.prose", description="Check the prose.")
    parser.add_argument(
        "--paths", nargs="+", type=Path, metavar="PATH", help="files and folders to check"
    )
    paths: list[Path] | None = parser.parse_args(words).paths
    files = selected([TOP], pending()) if paths is None else selected(paths, [])
    faults: list[Fault] = [fault for file in files for fault in check_file(file)]
    for fault in faults:
        print(fault)
    if faults:
        print(f"prose: {len(faults)} faults in {len(files)} files", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
