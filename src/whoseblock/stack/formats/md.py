"""Parse the superblocks of Linux software RAID and derive the layout of the array.

Structures of the kernel's include/uapi/linux/raid/md_p.h: ``struct mdp_superblock_1`` (version 1.0
at the end, 1.1 at the start, 1.2 at 4 KiB) and ``struct mdp_superblock_s`` (0.90, in the last
aligned 64 KiB). Checksums as calc_sb_1_csum and calc_sb_csum in drivers/md/md.c.
"""

from collections.abc import Sequence
from struct import Struct, iter_unpack, unpack_from
from typing import TYPE_CHECKING, Final, NamedTuple

from whoseblock.errors import BlockError, UnsupportedError
from whoseblock.media.base import Media

if TYPE_CHECKING:
    from whoseblock.media.striping import Striping

__all__ = [
    "FOREIGN_ARRAYS",
    "LEVELS",
    "LINEAR",
    "RESERVED_0_90",
    "MdSuperblock",
    "compute_data_size",
    "find_foreign_member",
    "make_striping",
    "read_md_superblock",
]

MD_SB_MAGIC: Final = 0xA92B4EFC
_SECTOR: Final = 512
_SUPERBLOCK_BYTES: Final = 4096
RESERVED_0_90: Final = 64 * 1024

#: magic, major, features, -, array UUID, array name, -, level, layout, component size, chunk,
#: members, -, -, -, ..., data offset, data size, super offset, recovery offset, device number
_V1: Final = Struct("<III4x16s32s8xiIQII4xI8x16xQQQQI")
_V1_EVENTS: Final = Struct("<Q8xII")
_V1_EVENTS_AT, _V1_CHECKSUM_AT, _V1_ROLES_AT = 200, 216, 256
_MAX_DEVICES: Final = (_SUPERBLOCK_BYTES - _V1_ROLES_AT) // 2
_MAX_ROLE: Final = 0xFF00
_ROLES: Final = {0xFFFF: "spare", 0xFFFE: "faulty", 0xFFFD: "journal"}

_RECOVERY_OFFSET, _RESHAPE, _NEW_OFFSET, _JOURNAL, _RAID0_LAYOUT = 2, 4, 64, 512, 4096
_REPLACEMENT: Final = 16

#: Words of a superblock of version 0.90.
_W_MINOR, _W_LEVEL, _W_SIZE, _W_MEMBERS, _W_STATE = 2, 7, 8, 10, 33
_W_CHECKSUM, _W_EVENTS, _W_LAYOUT, _W_CHUNK, _W_THIS = 38, 39, 64, 65, 992
_W_UUIDS: Final = (5, 13, 14, 15)
#: The descriptors of devices: their first word, their size in words, and how many there are.
_W_DEVICES, _W_DEVICE, _DEVICES_0_90 = 128, 32, 27
_MINORS_0_90: Final = (90, 91)

LINEAR: Final = -1
#: The levels that are followed, with their names. Any other level is unknown.
LEVELS: Final = {
    LINEAR: "linear", 0: "RAID 0", 1: "RAID 1", 4: "RAID 4", 5: "RAID 5", 6: "RAID 6", 10: "RAID 10"
}  # fmt: skip
_ORIGINAL, _ALTERNATE = 1, 2


class MdSuperblock(NamedTuple):
    """The superblock of a member: the member and its array; sizes and offsets in bytes.

    ``role`` is the number in the array, or the name of another role. ``unsupported`` is the reason
    why the data cannot be followed now, "" if there is none. A ``recovering`` member holds only the
    first ``recovered`` bytes of its data. A superblock of version 0.90 (``is_0_90``) has neither a
    name nor its own location. ``number`` is the index of the member in ``roles``, the roles of all
    devices that the array has had. A member that ``is_replacement`` will replace the one with its
    role.
    """

    array: bytes
    name: str
    level: int
    layout: int
    chunk: int
    members: int
    component: int
    role: int | str
    start: int
    size: int
    events: int
    unsupported: str
    recovering: bool
    is_0_90: bool
    number: int = 0
    roles: tuple[int | str, ...] = ()
    recovered: int = 0
    is_replacement: bool = False


def read_md_superblock(media: Media) -> MdSuperblock | None:
    """Read the superblock of a member; return None if none is valid."""
    sectors = media.size // _SECTOR
    sectors_to_try = {8, 0, max(sectors - 16, 0) // 8 * 8}
    for sector in sorted(sectors_to_try):
        raw = _read_or_empty(media, sector * _SECTOR)
        if member := _parse_v1(raw, sector):
            return member
    aligned = media.size // RESERVED_0_90 * RESERVED_0_90 - RESERVED_0_90
    return _parse_0_90(_read_or_empty(media, aligned), aligned)


def _read_or_empty(media: Media, start: int, length: int = _SUPERBLOCK_BYTES) -> bytes:
    if start < 0 or start + length > media.size:
        return b""
    try:
        return media.pread(start, length)
    except BlockError:
        return b""


def _folded(total: int) -> int:
    return (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF


def _checksum_v1(raw: bytes, devices: int) -> int:
    size = _V1_ROLES_AT + 2 * devices
    cleared = bytearray(raw[:size])
    cleared[_V1_CHECKSUM_AT : _V1_CHECKSUM_AT + 4] = bytes(4)
    # A half word at the end is added unchanged.
    cleared += bytes(-size % 4)
    return _folded(sum(word for (word,) in iter_unpack("<I", cleared)))


def _parse_v1(raw: bytes, sector: int) -> MdSuperblock | None:
    if raw[:4] != MD_SB_MAGIC.to_bytes(4, "little"):
        return None
    fields = _V1.unpack_from(raw)
    _, major, features, array, name, level, layout, component, chunk, members = fields[:10]
    _, start, size, location, recovered, number = fields[10:]
    events, checksum, devices = _V1_EVENTS.unpack_from(raw, _V1_EVENTS_AT)
    if major != 1 or devices > _MAX_DEVICES or location != sector:
        return None
    if checksum != _checksum_v1(raw, devices) or number >= devices:
        return None
    roles = tuple(map(_name_role, unpack_from(f"<{devices}H", raw, _V1_ROLES_AT)))
    role = roles[number]
    if features & _JOURNAL and role == "journal":
        unsupported = "it is a journal"
    else:
        unsupported = "it is being reshaped" if features & (_RESHAPE | _NEW_OFFSET) else ""
    unsupported = unsupported or _find_contradiction(
        members, (start, size), sector, component if level > 0 else 0
    )
    if level == 0 and not features & _RAID0_LAYOUT:
        layout = 0
    label = name.partition(b"\0")[0].decode("utf-8", "replace")
    return MdSuperblock(
        array,
        label.rpartition(":")[2],
        level,
        layout,
        chunk * _SECTOR,
        members,
        component * _SECTOR,
        role,
        start * _SECTOR,
        size * _SECTOR,
        events,
        unsupported,
        bool(features & _RECOVERY_OFFSET),
        is_0_90=False,
        number=number,
        roles=roles,
        recovered=recovered * _SECTOR,
        is_replacement=bool(features & _REPLACEMENT),
    )


def _name_role(role: int) -> int | str:
    return role if role < _MAX_ROLE else _ROLES.get(role, "unused")


def _find_contradiction(
    members: int, data: tuple[int, int], superblock: int, component: int
) -> str:
    """Return what no array can have, "" if the fields of a superblock are plausible.

    ``data`` are the start and the size of the room for data, ``component`` how much of it is used,
    and ``superblock`` its own place, in sectors. As super_1_load in drivers/md/md.c.
    """
    start, size = data
    if not 0 < members <= _MAX_DEVICES:
        return f"its superblock names {members} members"
    after_superblock = start >= superblock + _SUPERBLOCK_BYTES // _SECTOR
    before_superblock = start + size <= superblock
    if component > size or not (after_superblock or before_superblock):
        return "its superblock names an implausible place for data"
    return ""


def _parse_0_90(raw: bytes, location: int) -> MdSuperblock | None:
    if raw[:4] != MD_SB_MAGIC.to_bytes(4, "little"):
        # Big-endian machines wrote this version in their own byte order, which is not supported.
        return None
    words = unpack_from("<1024I", raw)
    if words[1] != 0 or words[_W_MINOR] not in _MINORS_0_90:
        return None
    if _folded(sum(words) - words[_W_CHECKSUM]) != words[_W_CHECKSUM]:
        return None
    level = words[_W_LEVEL] - (1 << 32 if words[_W_LEVEL] >> 31 else 0)
    members = words[_W_MEMBERS]
    role = _role_0_90(words[_W_THIS + 3], words[_W_THIS + 4], members)
    component = words[_W_SIZE] * 1024
    unsupported = "it is being reshaped" if words[_W_MINOR] == _MINORS_0_90[1] else ""
    if not 0 < members <= _DEVICES_0_90 or component > location:
        unsupported = "its superblock is implausible"
    return MdSuperblock(
        b"".join(words[at].to_bytes(4, "little") for at in _W_UUIDS),
        str(words[11]),
        level,
        words[_W_LAYOUT] if level else _ORIGINAL,
        words[_W_CHUNK],
        members,
        component,
        role,
        0,
        component if level > 0 else location,
        words[_W_EVENTS] | words[_W_EVENTS + 1] << 32,
        unsupported,
        recovering=False,
        is_0_90=True,
        number=min(words[_W_THIS], _DEVICES_0_90 - 1),
        roles=tuple(
            _role_0_90(words[at + 3], words[at + 4], members)
            for at in range(_W_DEVICES, _W_DEVICES + _DEVICES_0_90 * _W_DEVICE, _W_DEVICE)
        ),
    )


def _role_0_90(raid_disk: int, state: int, members: int) -> int | str:
    """Return a role from a ``mdp_disk_t``."""
    faulty, active, in_sync = state & 1, state & 2, state & 4
    if faulty:
        return "faulty"
    return raid_disk if active and in_sync and raid_disk < members else "spare"


def compute_data_size(member: MdSuperblock) -> int:
    """Return how many bytes of a member, from its ``start`` on, hold data of the array."""
    size = member.component if member.level > 0 else member.size
    if member.chunk and member.level != 1:
        size -= size % member.chunk
    return size


def make_striping(
    level: int, layout: int, chunk: int, sizes: Sequence[int]
) -> "tuple[Striping, int]":
    """Return the striping of an array and its size in bytes.

    ``sizes`` are the data sizes of the members, as of `compute_data_size`. Raises
    `UnsupportedError` for a layout that is not supported.
    """
    from whoseblock.media.striping import Raid0, Raid1, Raid5, Raid10

    members = len(sizes)
    if level == 1:
        return Raid1(members, max(min(sizes), 1)), min(sizes)
    if level not in LEVELS or level == LINEAR or chunk < _SECTOR or not members:
        raise UnsupportedError(f"md level {level} with chunks of {chunk} bytes is not supported")
    rows = [size // chunk for size in sizes]
    if level == 0:
        several = len({size for size in rows if size}) > 1
        if several and layout not in (_ORIGINAL, _ALTERNATE):
            raise UnsupportedError("a RAID 0 of unequal members without a recorded layout")
        raid0 = Raid0(chunk, rows, global_order=layout == _ORIGINAL)
        return raid0, raid0.chunks * chunk
    if level == 10:  # noqa: PLR2004
        raid10 = Raid10(chunk, members, layout, min(rows))
        return raid10, raid10.chunks * chunk
    parities = 2 if level == 6 else 1  # noqa: PLR2004
    # RAID 4 keeps its parity on the last member, as layout 5 of RAID 5 does.
    raid5 = Raid5(chunk, members, 5 if level == 4 else layout, parities)  # noqa: PLR2004
    return raid5, min(rows) * (members - parities) * chunk


# ------------------------------------------------------------------ arrays of other metadata

#: As in mdadm (super-intel.c, super-ddf.c). The anchor of IMSM is in the last sector but one, that
#: of DDF in the last sector, or 128 or 256 KiB before it on some controllers.
_IMSM: Final = b"Intel Raid ISM Cfg Sig. "
_DDF: Final = b"\xde\x11\xde\x11"
FOREIGN_ARRAYS: Final = (
    ("Intel RST array (IMSM)", _IMSM, (2 * 512, 2 * 4096)),
    ("array with DDF metadata", _DDF, (512, 4096, 257 * 512, 513 * 512)),
)


def find_foreign_member(media: Media) -> tuple[str | None, bool]:
    """Return the kind of array with metadata of a controller that a medium is a member of.

    The second value is whether all places of such metadata were readable.
    """
    readable = True
    for kind, magic, distances in FOREIGN_ARRAYS:
        for distance in distances:
            if distance > media.size:
                continue
            try:
                if media.pread(media.size - distance, len(magic)) == magic:
                    return kind, True
            except BlockError:
                readable = False
    return None, readable
