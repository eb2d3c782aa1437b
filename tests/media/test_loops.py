"""Loop devices over files whose name leads nowhere, or to another file."""

from pathlib import Path

from tests.support.mounts import loop_device, loop_device_elsewhere

from whoseblock.media.loops import FileIdentity, backing_identity
from whoseblock.media.mounts import readers

SIZE = 1 << 20


def image_at(path: Path) -> Path:
    path.write_bytes(bytes(SIZE))
    return path


def identity(path: Path) -> FileIdentity:
    status = path.stat()
    return FileIdentity(status.st_dev, status.st_ino)


def names(path: Path) -> list[str]:
    return [f"/dev/{reader.name}" for reader in readers(path)]


def test_the_file_is_found_after_its_name_was_removed(tmp_path: Path) -> None:
    image = image_at(tmp_path / "disk.img")
    link = tmp_path / "link"
    link.hardlink_to(image)
    with loop_device(link) as loop:
        assert backing_identity(Path(loop).name) == identity(image)
        link.unlink()
        assert names(image) == [loop]
        other = image_at(link)
        assert names(other) == []
        image.rename(tmp_path / "renamed.img")
        assert names(tmp_path / "renamed.img") == [loop]
    assert names(tmp_path / "renamed.img") == []


def test_the_file_is_found_from_another_mount_namespace(tmp_path: Path) -> None:
    image, other = image_at(tmp_path / "disk.img"), image_at(tmp_path / "other.img")
    with loop_device_elsewhere(image) as loop:
        assert names(image) == [loop]
        assert names(other) == []


def test_a_device_that_is_not_attached_has_no_file(tmp_path: Path) -> None:
    with loop_device(image_at(tmp_path / "disk.img")) as loop:
        name = Path(loop).name
        assert backing_identity(name) is not None
    assert backing_identity(name) is None
    assert backing_identity("loop-that-does-not-exist") is None
