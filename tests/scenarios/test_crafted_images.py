"""Forged metadata with valid checksums."""

import lzma
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from tests.support.filled_images import Zoo
from tests.support.image_damage import Block, Overlay, find_metadata, limited, overwrite, seal

import whoseblock
from whoseblock.errors import CorruptError, WhoseblockError
from whoseblock.fs.base import FileOwner
from whoseblock.fs.driver import Volume
from whoseblock.fs.xfs import XfsFilesystem
from whoseblock.media import FileMedia

DEMO = Path(__file__).resolve().parents[2] / "demo" / "image.xfs.xz"

#: No honest question here takes a tenth of it, nor of the memory.
SECONDS = 5.0
MEMORY = 24 << 20

_CORE = 176
_LOCAL, _EXTENTS = 1, 2
_MODE, _FORMAT, _NLINK, _SIZE, _NEXTENTS, _FORKOFF, _INO = 2, 5, 16, 56, 76, 82, 152
_BIG_NEXTENTS = 24


class Forger:
    """An image of which some blocks can be forged."""

    def __init__(self, image: Path) -> None:
        self.media = FileMedia(image)
        self.metadata = find_metadata(image)
        self.inodes = {number(block): block for block in self.metadata["inode"]}
        self._forged: dict[int, bytes] = {}

    def forge(self, block: Block, *edits: tuple[int, bytes]) -> None:
        """Overwrite bytes of a unit of metadata and make its checksum right."""
        data = self._forged.get(block.start, block.data)
        for offset, new in edits:
            data = overwrite(data, offset, new)
        self._forged[block.start] = seal(block.kind, data)

    def open(self) -> XfsFilesystem:
        fs = whoseblock.open(Overlay(self.media, self._forged))
        assert isinstance(fs, XfsFilesystem)
        return fs

    def close(self) -> None:
        self.media.close()

    def folders(self) -> Iterator[Block]:
        """Yield the folders whose entries are in the inode, but for the root."""
        for block in self.inodes.values():
            small = block.data[_MODE] >> 4 == 4 and block.data[_FORMAT] == _LOCAL
            if small and number(block) != self._named("rootino"):
                yield block

    def files(self) -> Iterator[Block]:
        """Yield regular files with one name, but for those that belong to the filesystem."""
        internal = {self._named("rbmino"), self._named("rsumino")}
        for block in self.inodes.values():
            regular = block.data[_MODE] >> 4 == 8
            once = block.data[_NLINK : _NLINK + 4] == b"\0\0\0\1"
            if regular and once and number(block) not in internal:
                yield block

    def _named(self, field: str) -> int:
        """Return the inode that the superblock names."""
        at = {"rootino": 56, "rbmino": 64, "rsumino": 72}[field]
        return int.from_bytes(self.metadata["superblock"][0].data[at : at + 8], "big")


def number(block: Block) -> int:
    """Return the number of an inode."""
    return int.from_bytes(block.data[_INO : _INO + 8], "big")


class Entry:
    """One entry of a folder whose entries are in the inode: where its parts are."""

    def __init__(self, folder: Block, at: int, width: int) -> None:
        length = folder.data[at]
        self.name_at, self.name_length = at + 3, length
        self.inode_at, self.width = at + 3 + length + 1, width
        self.inode = int.from_bytes(folder.data[self.inode_at :][:width], "big")
        self.end = self.inode_at + width


def entries(folder: Block) -> list[Entry]:
    """Return the entries of a folder whose entries are in the inode."""
    count, wide = folder.data[_CORE], folder.data[_CORE + 1]
    width = 8 if wide else 4
    found: list[Entry] = []
    at = _CORE + 2 + width
    for _ in range(count):
        found.append(Entry(folder, at, width))
        at = found[-1].end
    return found


def extent(offset: int, block: int, count: int) -> bytes:
    """Pack one extent."""
    return (offset << 73 | block << 21 | count).to_bytes(16, "big")


def measured(question: Callable[[], object]) -> object:
    """Ask, within bounded time and memory."""
    tracemalloc.start()
    try:
        with limited(SECONDS):
            answer = question()
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    return answer


@pytest.fixture(scope="session")
def demo_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("demo") / "demo.img"
    image.write_bytes(lzma.decompress(DEMO.read_bytes()))
    return image


@pytest.fixture
def demo(demo_image: Path) -> Iterator[Forger]:
    """Provide an image with parent pointers."""
    with closing(Forger(demo_image)) as forger:
        yield forger


@pytest.fixture
def nameless(zoo: Zoo) -> Iterator[Forger]:
    """Provide an image without parent pointers."""
    with closing(Forger(zoo.any("populated-1k-noparent").image)) as forger:
        yield forger


def paths(fs: Volume, ino: int) -> tuple[str, ...]:
    """Ask for paths, and see that each is one that a kernel could have made."""
    found = fs.paths(ino)
    for path in found.paths:
        assert path.startswith("/")
        assert "\0" not in path
        names = path.split("/")[1:]
        assert not {"", ".", ".."} & set(names) or path == "/"
        assert all(len(name.encode("utf-8", "surrogateescape")) < 256 for name in names)
    assert found.complete is not bool(found.notes)
    return found.paths


# ---------------------------------------------------------------------- directories


def test_directories_in_a_circle(nameless: Forger) -> None:
    # A folder within a folder, each with its entries in the inode; the inner one is made to hold
    # the outer one, and to be where the outer one's ".." leads.
    for outer in nameless.folders():
        for entry in entries(outer):
            inner = nameless.inodes.get(entry.inode)
            if inner is not None and inner in list(nameless.folders()) and entries(inner):
                break
        else:
            continue
        break
    else:
        pytest.fail("the image has no folder with a short name in another")
    back = entries(inner)[0]
    nameless.forge(outer, (_CORE + 2, number(inner).to_bytes(back.width, "big")))
    nameless.forge(inner, (back.inode_at, number(outer).to_bytes(back.width, "big")))
    with nameless.open() as fs:
        found = measured(lambda: fs.paths_many([number(outer), number(inner)]))
    assert isinstance(found, dict)
    for answer in found.values():
        assert answer.paths == ()
        assert not answer.complete
        assert answer.notes


def test_a_directory_in_itself(nameless: Forger) -> None:
    folder = next(block for block in nameless.folders() if entries(block))
    entry = entries(folder)[0]
    own = number(folder).to_bytes(entry.width, "big")
    nameless.forge(folder, (_CORE + 2, own), (entry.inode_at, own))
    with nameless.open() as fs:
        found = measured(lambda: paths(fs, number(folder)))
    assert found == ()


@pytest.mark.parametrize("evil", [b"/", b"\0", b"a/b", b"..", b"."])
def test_names_that_a_directory_cannot_hold(nameless: Forger, evil: bytes) -> None:
    folder, entry = next(
        (folder, entry)
        for folder in nameless.folders()
        for entry in entries(folder)
        if entry.name_length >= len(evil) and entry.inode in nameless.inodes
    )
    # The name becomes the evil one, and what follows it moves up.
    data = overwrite(folder.data, entry.name_at - 3, bytes([len(evil)]))
    moved = data[: entry.name_at] + evil + data[entry.name_at + entry.name_length :]
    nameless.forge(folder, (0, moved + bytes(len(data) - len(moved))))
    with nameless.open() as fs:
        measured(lambda: paths(fs, entry.inode))


def test_names_with_escapes_are_only_names(nameless: Forger) -> None:
    folder = next(block for block in nameless.folders() if entries(block))
    entry = entries(folder)[0]
    name = (b"\x1b]0;\xff\n" * 50)[: entry.name_length]
    nameless.forge(folder, (entry.name_at, name))
    with nameless.open() as fs:
        found = [path.encode("utf-8", "surrogateescape") for path in paths(fs, entry.inode)]
    assert [path for path in found if path.endswith(b"/" + name)]


@pytest.mark.parametrize("links", [2, 1 << 16, (1 << 32) - 1])
def test_more_links_than_there_are_names(nameless: Forger, demo: Forger, links: int) -> None:
    for forger in (nameless, demo):
        file = next(forger.files())
        forger.forge(file, (_NLINK, links.to_bytes(4, "big")))
        with forger.open() as fs:
            found = fs.paths(number(file))
            measured(partial(paths, fs, number(file)))
        assert len(found.paths) == 1
        assert not found.complete


# ---------------------------------------------------------------------- parent pointers


def pointer_at(file: Block) -> tuple[int, int]:
    """Return the place and length of the name of the first parent pointer in an inode."""
    at = _CORE + file.data[_FORKOFF] * 8 + 4
    assert file.data[at + 2] & 8
    return at + 3, file.data[at]


@pytest.mark.parametrize("evil", [b"/", b"\0", b"."])
def test_names_that_cannot_be_in_a_parent_pointer(demo: Forger, evil: bytes) -> None:
    file = next(file for file in demo.files() if pointer_at(file)[1] >= 2)
    at, length = pointer_at(file)
    with demo.open() as fs:
        true = fs.paths(number(file)).paths
    # Short enough names are ".." and "." themselves; so the name is shortened to one of them.
    demo.forge(file, (at, (evil * 255)[:length]))
    with demo.open() as fs:
        found = paths(fs, number(file))
    if evil != b".":
        # The folders still have the right names.
        assert found == true


@pytest.mark.parametrize("evil", [b"", b".", b".."])
def test_a_parent_pointer_is_no_dot(demo: Forger, evil: bytes) -> None:
    file = next(file for file in demo.files() if pointer_at(file)[1] >= 3)
    at, length = pointer_at(file)
    total_at = _CORE + file.data[_FORKOFF] * 8
    total = int.from_bytes(file.data[total_at : total_at + 2], "big")
    rest = file.data[at + length : total_at + total]
    head = bytes([len(evil)]) + file.data[at - 2 : at]
    new = (total - length + len(evil)).to_bytes(2, "big") + file.data[total_at + 2 : total_at + 4]
    demo.forge(file, (total_at, new + head + evil + rest))
    with demo.open() as fs:
        paths(fs, number(file))


def test_parent_pointers_in_a_circle(demo: Forger) -> None:
    # Two folders, each made the parent of the other, generations and all.
    with demo.open() as fs:
        folders = [
            block
            for block in demo.inodes.values()
            if block.data[_MODE] >> 4 == 4 and fs.paths(number(block)).paths not in ((), ("/",))
        ]
        one, other = folders[:2]
        true = {ino: fs.paths(ino) for ino in map(number, (one, other))}
    for folder, parent in ((one, other), (other, one)):
        at, length = pointer_at(folder)
        gen = parent.data[92:96]
        demo.forge(folder, (at + length, number(parent).to_bytes(8, "big") + gen))
    with demo.open() as fs:
        found = measured(lambda: fs.paths_many([number(one), number(other)]))
    # The folders do not confirm them, and have the right names.
    assert found == true


def test_attribute_leaves_in_a_circle(zoo: Zoo) -> None:
    with closing(Forger(zoo.any("populated-1k").image)) as forger:
        leaf = forger.metadata["attr leaf"][0]
        owner = int.from_bytes(leaf.data[48:56], "big")
        # The next leaf of the only leaf is itself.
        forger.forge(leaf, (0, b"\0\0\0\0"))
        with forger.open() as fs:
            fs.attributes(owner)
            true = fs.paths(owner)
        forger.forge(leaf, (0, (0xFFFFFF).to_bytes(4, "big")))
        with forger.open() as fs:
            with pytest.raises(CorruptError):
                measured(lambda: fs.attributes(owner))
            # The folders still know the names.
            assert set(fs.paths(owner)) <= set(true)


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("block", [0, 10, 1 << 30, (1 << 52) - 1])
@pytest.mark.parametrize("count", [1, 19_000, (1 << 21) - 1])
@pytest.mark.parametrize("mode", [0o040755, 0o120777])
def test_extents_that_lead_elsewhere(demo: Forger, block: int, count: int, mode: int) -> None:
    file = next(demo.files())
    demo.forge(
        file,
        (_MODE, mode.to_bytes(2, "big")),
        (_FORMAT, bytes([_EXTENTS])),
        (_SIZE, (500).to_bytes(8, "big")),
        (_NEXTENTS, (1).to_bytes(4, "big")),
        (_BIG_NEXTENTS, (1).to_bytes(8, "big")),
        (_CORE, extent(0, block, count)),
    )
    with demo.open() as fs:
        if mode == 0o120777:
            with pytest.raises(CorruptError):
                measured(lambda: fs.readlink(number(file)))
        measured(lambda: paths(fs, number(file)))
        measured(lambda: fs.owners(0, fs.size))


@pytest.mark.parametrize("offset", [(1 << 54) - 1, 1 << 53, 1 << 51, 1 << 40])
def test_file_offsets_beyond_64_bits(demo: Forger, offset: int) -> None:
    block = demo.metadata["rmapbt"][0]
    count = int.from_bytes(block.data[6:8], "big")
    records = [struct.unpack_from(">IIQQ", block.data, 56 + 24 * index) for index in range(count)]
    index = next(index for index, record in enumerate(records) if record[2] < 1 << 63)
    demo.forge(block, (56 + 24 * index + 16, offset.to_bytes(8, "big")))
    question = (records[index][0] * 4096, 4096)
    with demo.open() as fs:
        alone = fs.owners(*question, paths=False)
        together = list(fs.owners_many([question] * 100, paths=False))
        fs.owners_of([question[0]], [question[1]])
    assert set(together) == {alone}
    for row in alone:
        if isinstance(row, FileOwner):
            assert row.file_offset is None or 0 <= row.file_offset < 1 << 63


@pytest.mark.parametrize(
    "edits",
    [
        ((88, (1 << 28).to_bytes(4, "big")), (8, (19200 << 28).to_bytes(8, "big"))),
        ((96, bytes(4)),),
        ((96, b"\xff" * 4),),
        ((48, b"\xff" * 8),),
        ((56, b"\xff" * 8),),
        ((192, b"\x04"),),
    ],
    ids=["groups", "no log", "large log", "log elsewhere", "root elsewhere", "folder blocks"],
)
def test_a_forged_superblock(
    nameless: Forger, demo: Forger, edits: tuple[tuple[int, bytes], ...]
) -> None:
    for forger in (nameless, demo):
        file = next(forger.files())
        forger.forge(file, (_NLINK, b"\0\0\0\5"))
        size = int.from_bytes(forger.metadata["superblock"][0].data[84:88], "big")
        forger.forge(
            forger.metadata["superblock"][0],
            *((at, ((size << 28).to_bytes(8, "big") if at == 8 else new)) for at, new in edits),
        )

        def ask(forger: Forger = forger, file: Block = file) -> None:
            try:
                fs = forger.open()
            except WhoseblockError:
                return
            with fs:
                fs.owners(0, 100_000)
                fs.paths(number(file))

        measured(ask)
