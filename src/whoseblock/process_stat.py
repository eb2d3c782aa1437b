"""What the kernel says of one process in a line (proc_pid_stat(5)), and what names it for good."""

from pathlib import Path

__all__ = ["started_at", "stat_fields"]


def stat_fields(pid: int) -> list[bytes]:
    """Give the fields from the third on, which is the state; none if the process has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name before is in parentheses, and may hold more of them, and spaces.
    return text.rpartition(b")")[2].split()


def started_at(pid: int) -> int | None:
    """Give when a process began, in clock ticks since the boot; None if it has ended.

    With the pid it names a process, whoever has its number later.
    """
    fields = stat_fields(pid)
    # A zombie does nothing any more; it waits to be asked how it ended.
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None
