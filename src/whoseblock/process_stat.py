"""Read /proc/PID/stat (proc_pid_stat(5)), and identify processes by pid and start time."""

from pathlib import Path

__all__ = ["read_start_time", "read_stat_fields"]


def read_stat_fields(pid: int) -> list[bytes]:
    """Return the fields from the third on, which is the state; none if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The name before is in parentheses, and may contain parentheses and spaces.
    return text.rpartition(b")")[2].split()


def read_start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot, None if it has ended.

    With the pid it identifies a process, even if the pid is reused.
    """
    fields = read_stat_fields(pid)
    # A zombie has ended, and waits for its parent to read its exit status.
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None
