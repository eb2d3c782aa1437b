"""The sizes of the kernel's structures, compared with the types of the running kernel."""

import struct
from pathlib import Path
from typing import Any

from tests.support.tools import Missing

from whoseblock.study import sizes


def kernel_sizes() -> dict[str, int]:
    """Read the sizes of structures from the type information of the running kernel (BTF)."""
    try:
        raw = Path("/sys/kernel/btf/vmlinux").read_bytes()
    except OSError as error:
        raise Missing(f"this kernel shows no types: {error}") from error
    _, _, _, header, types, length, strings, _ = struct.unpack_from("<HBBIIIII", raw)
    at, end = header + types, header + types + length
    # What follows the three words of a type, by its kind: bytes, and bytes for each member.
    fixed = {1: 4, 3: 12, 14: 4, 17: 4}
    each = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    found: dict[str, Any] = {}
    while at < end:
        name, info, size = struct.unpack_from("<III", raw, at)
        kind = info >> 24 & 31
        at += 12 + fixed.get(kind, 0) + each.get(kind, 0) * (info & 0xFFFF)
        if kind == 4:
            start = header + strings + name
            found[raw[start : raw.index(0, start)].decode()] = size
    return found


def test_sizes_are_those_of_the_running_kernel() -> None:
    found = kernel_sizes()
    assert found["rb_node"] == sizes.RB_NODE
    assert found["rb_root_cached"] == sizes.RB_ROOT_CACHED
    assert sizes.SHARED_FILE == 40
    # Options of the kernel's configuration add to it.
    assert sizes.ADDRESS_SPACE <= found["address_space"] <= sizes.ADDRESS_SPACE + 64
