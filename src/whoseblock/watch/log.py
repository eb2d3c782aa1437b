"""Lines of the log: ``key=value``, quoted where a value could be taken for more than one.

On standard error, with the priority in front that systemd takes from there (sd-daemon(3)), if it
is the journal of systemd that reads them.
"""

import json
import os
import sys
from contextlib import suppress
from typing import Final, Literal

__all__ = ["Level", "log_event", "log_line"]

Level = Literal["err", "warning", "notice", "info"]

_PRIORITIES: Final[dict[Level, int]] = {"err": 3, "warning": 4, "notice": 5, "info": 6}
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:+-@%,")


def log_line(event: str, **fields: object) -> str:
    """Write an event and its fields on one line; fields that are None are left out."""
    words = [f"event={event}"]
    words += [f"{key}={_value(value)}" for key, value in fields.items() if value is not None]
    return " ".join(words)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    # JSON escapes whatever is not ASCII: names come from an adversary, and terminals read this.
    return text if text and _PLAIN.issuperset(text) else json.dumps(text)


def log_event(level: Level, event: str, **fields: object) -> None:
    """Write a line to the log; that nobody can read it stops nothing."""
    prefix = f"<{_PRIORITIES[level]}>" if "JOURNAL_STREAM" in os.environ else ""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{prefix}{log_line(event, **fields)}\n")
        sys.stderr.flush()
