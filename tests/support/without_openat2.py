"""Run a command for which openat2(2) is missing, as RestrictSUIDSGID of systemd makes it."""

import ctypes
import errno
import os
import struct
import sys

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_SYS_OPENAT2 = 437
#: linux/bpf_common.h and linux/seccomp.h: load a word, jump if equal, return.
_LD, _JEQ, _RET = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def deny_openat2() -> None:
    """Make openat2 fail with ENOSYS in this process, and in those that it starts."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LD, 0, 0, 0),
            (_JEQ, 0, 1, _SYS_OPENAT2),
            (_RET, 0, 0, _ERRNO | errno.ENOSYS),
            (_RET, 0, 0, _ALLOW),
        )
    )
    code = ctypes.create_string_buffer(program)
    filters = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 4]
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    address = ctypes.addressof(filters)
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address, 0, 0) == 0


if __name__ == "__main__":
    deny_openat2()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - as given
