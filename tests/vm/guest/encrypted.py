"""A LUKS volume of the real device mapper over a loop device, with a filesystem on it."""

import os
from pathlib import Path
from typing import Final, NamedTuple

from tests.vm.guest.asking import blocks_of
from tests.vm.guest.machine import Undo, modprobe, mount, run, xfsprogs

__all__ = ["Encrypted", "make_encrypted"]

_MIB: Final = 1 << 20
_BLOCK: Final = 4096
_BLOCKS: Final = 32
_PASSPHRASE: Final = b"secret"
_NAME: Final = "clear"


class Encrypted(NamedTuple):
    """An image of a LUKS device, and a file on its volume.

    ``payload`` is where the volume begins by the kernel's sizes, and ``start`` where the file
    begins on the volume. Each block of the file begins with its own number.
    """

    image: Path
    device: str
    payload: int
    start: int

    @property
    def volume(self) -> str:
        """The device of the opened volume."""
        return f"/dev/mapper/{_NAME}"

    def places(self) -> list[int]:
        """Return the offset of each block of the file on the encrypted device."""
        return [self.payload + self.start + number * _BLOCK for number in range(_BLOCKS)]

    def close(self) -> None:
        """Close the volume and detach the image."""
        run(["cryptsetup", "close", _NAME])
        run(["losetup", "--detach", self.device])

    def damaged_blocks(self, undo: Undo) -> list[int]:
        """Return the blocks of the file that no longer begin with their number."""
        run(["blockdev", "--flushbufs", self.device])
        run(["blockdev", "--flushbufs", self.volume])
        folder = mount(undo, self.volume, "ro,norecovery")
        data = (folder / "file").read_bytes()
        run(["umount", folder])
        return [number for number in range(_BLOCKS) if _tag(number) != _block(data, number)]

    def damage(self, offset: int) -> None:
        """Invert a sector of the encrypted device."""
        with open(self.device, "r+b", buffering=0) as file:
            sector = os.pread(file.fileno(), 512, offset)
            os.pwrite(file.fileno(), bytes(255 - byte for byte in sector), offset)
            os.fsync(file.fileno())


def _tag(number: int) -> bytes:
    return number.to_bytes(8, "big") * (_BLOCK // 8)


def _block(data: bytes, number: int) -> bytes:
    return data[number * _BLOCK : (number + 1) * _BLOCK]


def make_encrypted(undo: Undo, kind: str) -> Encrypted:
    """Make a LUKS device of a kind, open it, and tag the blocks of a file through it."""
    modprobe("loop", "dm_crypt", "xfs")
    image = Path("/run") / f"{kind}.img"
    with image.open("wb") as file:
        file.truncate(64 * _MIB)
    device = run(["losetup", "--find", "--show", image]).decode().strip()
    undo.then("losetup", "--detach", device)
    cheap = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--disable-locks", "-q")
    run(["cryptsetup", "luksFormat", f"--type={kind}", *cheap, device, "-"], _PASSPHRASE)
    run(["cryptsetup", "open", "--disable-locks", "--key-file=-", device, _NAME], _PASSPHRASE)
    undo.then("cryptsetup", "close", _NAME)
    volume = f"/dev/mapper/{_NAME}"
    sizes = [int(run(["blockdev", "--getsize64", one])) for one in (device, volume)]
    options = ("--unsupported", "-m", "rmapbt=1", "-d", "agcount=1")
    run([xfsprogs("mkfs.xfs"), "-q", "-f", "-K", *options, volume])
    folder = mount(undo, volume)
    path = folder / "file"
    path.write_bytes(b"".join(map(_tag, range(_BLOCKS))))
    run(["sync", "-f", folder])
    (extent,) = blocks_of(folder, path.stat().st_ino)
    run(["umount", folder])
    return Encrypted(image, device, sizes[0] - sizes[1], extent.start)
