"""Processes that map and open files: each runs some lines of Python, and reports the result."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["running"]

#: What every child knows.  ``ready`` tells the test what was done, and waits until it is over.
_KNOWN = r"""
import ctypes, json, os, signal, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
NONE, READ, WRITE, EXEC, SHARED, PRIVATE, PAGE = 0, 1, 2, 4, 1, 2, 4096
EXIT = {"x86_64": 60, "aarch64": 93, "riscv64": 93, "ppc64le": 1, "s390x": 1}[os.uname().machine]
path, *more = sys.argv[1:]
# By the number in the test's /proc, whatever pid namespace this is.
pid = int(os.readlink("/proc/self"))

def map_file(offset, length, protection=READ, flags=SHARED, at=path):
    descriptor = os.open(at, os.O_RDWR)
    address = libc.mmap(None, length, protection, flags, descriptor, offset)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    os.close(descriptor)
    return address

def call(name, *arguments):
    assert getattr(libc, name)(*arguments) == 0, os.strerror(ctypes.get_errno())

def rename(name):
    call("prctl", 15, name, 0, 0, 0)

def ready(*facts):
    print(json.dumps([pid, *facts]), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def running(
    program: str, path: Path | bytes, *more: str, under: Sequence[str] = ()
) -> Iterator[list[Any]]:
    """Run a child until the block ends; give its pid, and what else it told with ``ready``.

    ``path`` and ``more`` are known to it by these names; ``under`` is a command that starts it.
    """
    child = subprocess.Popen(
        [*under, sys.executable, "-c", _KNOWN + program, path, *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        assert line, "the child ended before it was ready"
        yield json.loads(line)
    finally:
        child.stdin.close()
        child.stdout.close()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(timeout=20)
