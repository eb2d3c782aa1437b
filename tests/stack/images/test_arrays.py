"""Arrays of md, built from the images of their members."""

from pathlib import Path

from whoseblock.media.device import FileMedia
from whoseblock.stack.base import Layer, descend
from whoseblock.stack.formats.md import LINEAR, MdSuperblock
from whoseblock.stack.images.arrays import ArrayMember, build_array

MIB = 1 << 20
SECTOR = 512


def test_linear_arrays_follow_one_another(tmp_path: Path) -> None:
    # By hand: the available kernels are built without md's linear personality.
    sizes = [3 * MIB, MIB, 2 * MIB]
    members = []
    for number, size in enumerate(sizes):
        path = tmp_path / f"member-{number}"
        path.write_bytes(bytes(SECTOR) + bytes([number + 1]) * size)
        about = MdSuperblock(
            b"a" * 16, "tail", LINEAR, 0, 0, 3, 0, number, SECTOR, size, 7, "", False, False  # noqa: FBT003
        )  # fmt: skip
        layer = Layer(path.name, size + SECTOR, "disk")
        members.append(ArrayMember(layer, FileMedia(path), about))
    ((array, media),) = build_array(members)
    assert array.size == sum(sizes)
    before = 0
    for number, (member, size) in enumerate(zip(members, sizes, strict=True)):
        (landing,) = descend(member.layer, SECTOR + 100, 10)
        assert (landing.layer, landing.offset) == (array, before + 100)
        (head,) = descend(member.layer, 0, 1)
        assert head.what == "md metadata of md/tail"
        assert media.pread(before + size - 1, 1) == bytes([number + 1])
        before += size
    assert media.pread(3 * MIB - 1, 2) == b"\1\2"


def test_an_array_without_a_member_whose_size_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "member"
    path.write_bytes(bytes(MIB))
    about = MdSuperblock(
        b"a" * 16, "tail", LINEAR, 0, 0, 2, 0, 0, SECTOR, MIB, 7, "", False, False  # noqa: FBT003
    )  # fmt: skip
    member = ArrayMember(Layer("member", MIB, "disk"), FileMedia(path), about)
    assert list(build_array([member])) == []
    (landing,) = descend(member.layer, 5000, 1)
    assert not landing.certain
    assert "missing" in landing.what
