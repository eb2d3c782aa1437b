"""Log lines: ``key=value``, quoted where a value would be ambiguous.

They go to standard error. If the systemd journal reads that, each begins with its priority
(sd-daemon(3)).
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
    """Return an event and its fields as one line; fields that are None are left out."""
    words = [f"event={event}"]
    words += [f"{key}={_value(value)}" for key, value in fields.items() if value is not None]
    return " ".join(words)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    # JSON escapes non-ASCII characters: an adversary chooses names, and terminals show them.
    return text if text and _PLAIN.issuperset(text) else json.dumps(text)


def log_event(level: Level, event: str, **fields: object) -> None:
    """Write a line to the log, if standard error can be written."""
    prefix = f"<{_PRIORITIES[level]}>" if "JOURNAL_STREAM" in os.environ else ""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{prefix}{log_line(event, **fields)}\n")
        sys.stderr.flush()
