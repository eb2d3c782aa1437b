"""The status line of a process (proc_pid_stat(5)), and its start time, which identifies it."""

from pathlib import Path

__all__ = ["started_at", "stat_fields"]


def stat_fields(pid: int) -> list[bytes]:
    """Return the fields from the third, the state, on; none if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name before them is in parentheses, and may contain parentheses and spaces.
    return text.rpartition(b")")[2].split()


def started_at(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since the boot; None if it has ended.

    It distinguishes the process from later ones with the same pid.
    """
    fields = stat_fields(pid)
    # A zombie has ended, and waits for its parent.
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None
