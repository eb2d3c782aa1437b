"""Headers of LUKS, compared with cryptsetup; images that QEMU encrypts and decrypts."""

import json
import random
import re
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.commands import lookup, whoseblock
from tests.support.disk_images import copy_range, partition
from tests.support.tools import run
from tests.support.xfs_images import MIB, Geometry, make_image, sparse_file

from whoseblock.media.device import FileMedia
from whoseblock.stack.formats.luks import LuksHeader, read_luks_header

SECRET = b"secret"
QUICK = ["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--disable-locks", "--batch-mode"]


def encrypt(path: Path, *options: str, size: int = 32 * MIB) -> Path:
    """Make an encrypted device of a file; its data is zeros, not encrypted ones."""
    run(["cryptsetup", "luksFormat", *QUICK, *options, sparse_file(path, size), "-"], SECRET)
    return path


def header_of(path: Path) -> LuksHeader:
    with closing(FileMedia(path)) as media:
        header = read_luks_header(media)
    assert header is not None
    return header


CIPHERS = ["aes-xts-plain64", "aes-cbc-essiv:sha256"]


@pytest.mark.parametrize("cipher", CIPHERS)
def test_luks1_agrees_with_cryptsetup(tmp_path: Path, cipher: str) -> None:
    path = encrypt(tmp_path / "disk", "--type=luks1", f"--cipher={cipher}", "--align-payload=10240")
    printed = run(["cryptsetup", "luksDump", path]).decode()
    fields = dict(re.findall(r"^([A-Z][\w ]+):\s+(\S+)$", printed, re.MULTILINE))
    header = header_of(path)
    assert header.cipher == f"{fields['Cipher name']}-{fields['Cipher mode']}" == cipher
    assert header.start == int(fields["Payload offset"]) * 512
    assert (header.version, header.size, header.unsupported) == (1, None, "")


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_luks2_agrees_with_cryptsetup(tmp_path: Path, cipher: str, sector: int) -> None:
    options = ["--type=luks2", f"--cipher={cipher}", f"--sector-size={sector}"]
    path = encrypt(tmp_path / "disk", *options, "--offset=20480")
    (segment,) = json.loads(run(["cryptsetup", "luksDump", "--dump-json-metadata", path]))[
        "segments"
    ].values()
    expected = LuksHeader(2, segment["encryption"], int(segment["offset"]), None, sector)
    assert header_of(path) == expected
    assert (expected.cipher, expected.start, segment["sector_size"]) == (cipher, 10 * MIB, sector)
    # The second header is used if the first is damaged, and cryptsetup does the same.
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\0")
    assert header_of(path) == expected


def test_data_that_is_not_followed(tmp_path: Path) -> None:
    path = encrypt(tmp_path / "disk", "--type=luks2")
    start = header_of(path).start
    run(
        ["cryptsetup", "reencrypt", "--init-only", *QUICK, "--key-file=-", path],
        SECRET,
    )
    header = header_of(path)
    assert header.unsupported == "it is being encrypted anew"
    tree = json.loads(whoseblock("stack", path, "--json").stdout)
    assert "being encrypted anew" in tree["segments"][0]["what"]
    (answer,) = lookup(path, f"{start}+512")
    assert (answer["complete"], answer["owners"][0]["kind"]) == (False, "unknown")


@given(
    flips=st.lists(st.tuples(st.integers(0, 4096 + 600), st.integers(1, 255)), max_size=4),
    version=st.sampled_from([1, 2]),
)
def test_damaged_headers(
    version: int, flips: list[tuple[int, int]], headers: dict[int, bytes]
) -> None:
    raw = bytearray(headers[version])
    for at, change in flips:
        raw[at] ^= change

    class Damaged:
        name, size = "damaged", len(raw)

        def pread(self, offset: int, length: int) -> bytes:
            return bytes(raw[offset : offset + length])

        def close(self) -> None:
            pass

    header = read_luks_header(Damaged())
    if version == 2 and header is not None and raw[:8] == headers[2][:8]:
        # A header with a checksum is read as it was, or not at all.
        assert header.unsupported or header.start == 16 * MIB


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    folder = tmp_path_factory.mktemp("headers")
    found = {}
    for version in (1, 2):
        path = encrypt(folder / f"{version}", f"--type=luks{version}")
        found[version] = path.read_bytes()[:MIB]
    return found


class Encrypted:
    """A disk with an encrypted partition, and an image of the opened volume, made by QEMU."""

    START = 2 * MIB
    SIZE = 16 * MIB

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        geometry = Geometry("clear", size=self.SIZE, parent=False)
        self.clear = make_image(folder / "clear.img", geometry)
        self.secret = folder / "secret"
        self.secret.write_bytes(SECRET)
        # cryptsetup makes the header: QEMU would measure how fast the processors are.
        self.container = encrypt(folder / "container", "--type=luks1", size=self.SIZE + 2 * MIB)
        self._convert("-n", "--target-image-opts", "-f", "raw", self.clear, self._driver)
        size = self.container.stat().st_size
        self.disk = sparse_file(folder / "disk.img", 40 * MIB)
        partition(self.disk, f"label: gpt\nstart={self.START // 512}, size={size // 512}\n")
        copy_range(self.container, 0, self.disk, self.START, size)
        self.payload = header_of(self.container).start

    @property
    def _driver(self) -> str:
        return f"driver=luks,key-secret=key,file.filename={self.container}"

    def _convert(self, *words: str | Path) -> None:
        run(["qemu-img", "convert", "--object", f"secret,id=key,file={self.secret}", *words])

    def decrypt(self, target: Path) -> bytes:
        """Return the content that QEMU reads from the container."""
        self._convert("--image-opts", "-O", "raw", self._driver, target)
        return target.read_bytes()


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Encrypted:
    return Encrypted(tmp_path_factory.mktemp("encrypted"))


def test_a_closed_volume_is_named(encrypted: Encrypted) -> None:
    (head, data) = lookup(
        encrypted.disk, str(encrypted.START), f"{encrypted.START + encrypted.payload}+4096"
    )
    assert head["owners"][0]["kind"] == "outside"
    assert head["owners"][0]["what"] == "LUKS1 header and keys"
    assert (data["complete"], data["owners"][0]["kind"]) == (False, "unknown")
    notes = "\n".join(data["notes"])
    assert "LUKS1, closed, aes-xts-plain64" in notes
    assert "--member disk.img1=IMAGE" in notes


@pytest.mark.parametrize("layer", ["disk.img1", "CLEAR"])
def test_blocks_inside_are_found(encrypted: Encrypted, tmp_path: Path, layer: str) -> None:
    # The truth: a sector that is changed in the container is another one after QEMU decrypts it.
    size = encrypted.clear.stat().st_size
    rng = random.Random(layer)
    sectors = [0, size // 512 - 1, *rng.sample(range(size // 512), 6)]
    changed = bytearray(encrypted.container.read_bytes())
    original = bytes(changed)
    for sector in sectors:
        changed[encrypted.payload + sector * 512] ^= 1
    encrypted.container.write_bytes(changed)
    before = encrypted.clear.read_bytes()
    after = encrypted.decrypt(tmp_path / "decrypted")
    encrypted.container.write_bytes(original)
    pieces = range(0, size, 512)
    differing = [at // 512 for at in pieces if before[at : at + 512] != after[at : at + 512]]
    assert differing == sorted(set(sectors))

    starts = [encrypted.START + encrypted.payload + sector * 512 for sector in differing]
    given = [f"{start}+512" for start in starts]
    answers = lookup(encrypted.disk, *given, "--member", f"{layer}={encrypted.clear}")
    expected = lookup(encrypted.clear, *(f"{sector * 512}+512" for sector in differing))
    for sector, start, answer, other in zip(differing, starts, answers, expected, strict=True):
        assert answer["via"][-1] == {"layer": "clear.img", "start": sector * 512}
        assert answer["complete"] is other["complete"] is True
        for row, clear in zip(answer["owners"], other["owners"], strict=True):
            del row["via"]
            assert row == clear | {"start": start}


def test_a_volume_of_another_size_is_doubted(encrypted: Encrypted, tmp_path: Path) -> None:
    other = make_image(tmp_path / "other.img", Geometry("other", size=17 * MIB, parent=False))
    at = f"{encrypted.START + encrypted.payload}+512"
    (answer,) = lookup(encrypted.disk, at, "--member", f"disk.img1={other}")
    assert not answer["complete"]
    assert any("may be the image of another volume" in note for note in answer["notes"])


def test_opened_volumes_without_a_layer(encrypted: Encrypted) -> None:
    done = whoseblock("lookup", encrypted.disk, "0", "--member", f"disk.img7={encrypted.clear}")
    assert "there is no encrypted layer disk.img7" in done.stderr
