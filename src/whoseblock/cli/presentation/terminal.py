"""Messages on standard error."""

import sys

__all__ = ["print_error"]


def print_error(line: str) -> None:
    """Print a line on standard error, which may be closed."""
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
