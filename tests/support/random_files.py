"""Filling a mounted XFS at random, from a seed, with everything that it can hold.

First come the things that must be there in every image, each in one method; then some thousand
random steps over all files, so that what was neat becomes what years of use leave behind.
"""

import contextlib
import errno
import os
import random
import stat
from collections.abc import Iterator

from tests.support import kernel_oracle, system_calls

__all__ = ["Filler", "odd_names", "take_all_space"]

#: A random step may well be impossible: a name taken, a folder not empty, a file too short,
#: no reflink on this image.
_EXPECTED = {
    errno.EEXIST,
    errno.EINVAL,
    errno.ENODATA,
    errno.ENOENT,
    errno.ENOTEMPTY,
    errno.EOPNOTSUPP,
    errno.ENAMETOOLONG,
}


def odd_names(rng: random.Random) -> list[bytes]:
    """Return unusual names: every byte but "/" and NUL may be in one."""
    every = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    return [
        b"new\nline",
        b"\n",
        b" ",
        b"-rf",
        b"...",
        b"tab\there",
        b"quote\"'`$(id)",
        b"back\\slash",
        b"\x1b[31mred\x1b]0;title\x07",
        b"\xff\xfe not UTF-8",
        b"half \xc3",
        b"\xed\xa0\x80 surrogate",
        "\u202eright to left \u2028".encode(),
        "héé 名前".encode(),
        b"carriage\rreturn",
        b"x" * 255,
        every,
        bytes(rng.choices(every, k=255)),
        bytes(rng.choices(every, k=20)),
    ]


def take_all_space(file: int, block: int) -> int:
    """Allocate all free space to a file, down to single blocks; return where it ends."""
    length, end = 64 << 20, 0
    while length >= block:
        try:
            system_calls.fallocate(file, end, length)
            end += length
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            length //= 2
    return end


class Filler:
    """Fills the filesystem mounted on ``root``."""

    def __init__(self, root: bytes, seed: str, *, block: int, reflink: bool = True) -> None:
        self.root = root
        self.rng = random.Random(seed)
        self.block = block
        self.reflink = reflink
        self.folders: list[bytes] = [root]
        self.files: list[bytes] = []
        self._made = 0

    def fill(self, *, steps: int = 2500, names: int = 3000) -> None:
        """Apply all changes."""
        self.folder_tree()
        self.folders_of_every_form(names)
        self.strange_names()
        self.links()
        self.special_files()
        self.fragmented_files()
        self.unwritten_and_holes()
        if self.reflink:
            self.shared_files()
        self.attributes()
        for _ in range(steps):
            with self._tolerating():
                self.random_step()

    # What must be there.

    def folder_tree(self) -> None:
        """Make folders, some deep: the kernel puts new ones into other allocation groups."""
        for _ in range(60):
            self.new_folder(self.rng.choice(self.folders[-8:]))

    def folders_of_every_form(self, most: int) -> None:
        """Fill folders until their entries are in the inode, in one block, with a leaf, with nodes.

        All grow together, so that their blocks are not in one run, and afterwards lose names.
        """
        sizes = {self.new_folder(self.root, b"names"): 0}
        for size in (3, 25, 120, 700, most):
            sizes[self.new_folder(self.rng.choice(self.folders))] = size
        made: dict[bytes, list[bytes]] = {folder: [] for folder in sizes}
        for number in range(max(sizes.values())):
            for folder, size in sizes.items():
                if number < size:
                    name = b"%d-" % number + b"n" * self.rng.choice((1, 1, 8, 40, 200))
                    self._create(folder + b"/" + name)
                    made[folder].append(folder + b"/" + name)
        for paths in made.values():
            for path in self.rng.sample(paths, len(paths) // 4):
                os.unlink(path)
            left = [path for path in paths if os.path.lexists(path)]
            self.files += self.rng.sample(left, min(10, len(left)))

    def strange_names(self) -> None:
        """Rename files and folders to names that no program expects."""
        for name in odd_names(self.rng):
            folder = self.new_folder(self.rng.choice(self.folders))
            path = self._create(folder + b"/" + name, self.block)
            self.files.append(path)
            with self._tolerating():
                self.new_folder(self.rng.choice(self.folders), name)

    def links(self) -> None:
        """Make hard links, near and far and many, and symbolic links in the inode and outside."""
        for count in (2, 5, 300):
            path = self.new_file(self.block * 2)
            for number in range(count - 1):
                folder = self.rng.choice(self.folders)
                os.link(path, folder + b"/link-%d-%d" % (count, number))
        # Two names in one folder, one of them long.
        path = self.new_file(self.block)
        os.link(path, os.path.dirname(path) + b"/" + b"twin" * 60)
        for length in (1, 30, 150, 400, 900, 1023):
            for _ in range(3):
                where = self.rng.choice(self.folders) + b"/symlink-%d" % length
                with self._tolerating():
                    os.symlink(b"t" * length, where)
        where = self.rng.choice(self.folders) + b"/symlink linked"
        os.symlink(b"../" * 300, where)
        os.link(where, self.rng.choice(self.folders) + b"/symlink twin", follow_symlinks=False)

    def special_files(self) -> None:
        """Make what has no data at all."""
        for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            path = self.rng.choice(self.folders) + b"/special-%o" % kind
            os.mknod(path, kind | 0o600, os.makedev(1, 3))
        self._create(self.rng.choice(self.folders) + b"/empty")

    def fragmented_files(self) -> None:
        """Write every other block, so that the extent maps become trees, one of two levels."""
        for count in (30, 300, 2600):
            path = self.new_file()
            with self._open(path) as file:
                places = list(range(count))
                self.rng.shuffle(places)
                for place in places:
                    os.pwrite(file, b"f" * 100, 2 * place * self.block)
                # Written out now, so that delayed allocation cannot join what comes later.
                os.fsync(file)
                for place in self.rng.sample(places, count // 10):
                    system_calls.punch_hole(file, 2 * place * self.block, self.block)

    def unwritten_and_holes(self) -> None:
        """Allocate without writing, write into that, and far beyond a file's end."""
        for _ in range(12):
            path = self.new_file(self._some(40))
            with self._open(path) as file:
                system_calls.fallocate(file, self._somewhere(60), self._some(60))
                os.pwrite(file, b"w" * self._some(5), self._somewhere(60))
                system_calls.punch_hole(file, self._somewhere(30), self._some(6))
                system_calls.zero_range(file, self._somewhere(30), self._some(6))
        path = self.new_file()
        with self._open(path) as file:
            for power in (30, 40, 50, 62):
                os.pwrite(file, b"far", 1 << power)
            system_calls.fallocate(file, 1 << 33, self._some(20), system_calls.KEEP_SIZE)

    def shared_files(self) -> None:
        """Share whole files and parts, within files too, and break some of it again."""
        for count in (1, 2, 30):
            source = self.new_file(self.block * self.rng.randrange(20, 60))
            size = os.path.getsize(source)
            with self._open(source) as file:
                os.fsync(file)
                for _ in range(count):
                    with self._open(self.new_file()) as copy:
                        system_calls.clone_range(file, 0, 0, copy, 0)
                for _ in range(count):
                    with self._open(self.new_file()) as copy:
                        start = self.rng.randrange(size // self.block - 8) * self.block
                        to = self._aligned(100)
                        system_calls.clone_range(file, start, 8 * self.block, copy, to)
                        os.pwrite(copy, b"broken", to + 3 * self.block)
                system_calls.clone_range(file, 0, 4 * self.block, file, 200 * self.block)
                os.pwrite(file, b"broken" * self.block, self.block * 5)

    def attributes(self) -> None:
        """Set attributes until they are in the inode, in a leaf, in nodes, and outside."""
        for count, size in ((1, 10), (4, 60), (40, 200), (700, 100), (3, 5000), (6, 65536)):
            for path in (self.new_file(self.block), self.new_folder(self.root)):
                for number in range(count):
                    value = self.rng.randbytes(self.rng.randint(0, size))
                    os.setxattr(path, b"user.%d-%d" % (size, number), value)
        path = self.rng.choice(self.folders) + b"/symlink with attributes"
        os.symlink(b"target" * 50, path)
        os.setxattr(path, b"trusted.large", bytes(9000), follow_symlinks=False)

    def fragmented_attributes(self) -> None:
        """Make an attribute fork whose map is a tree: easy while free space is in bits."""
        # In one folder, hence in one allocation group, or they would not be in each other's way.
        folder = self.new_folder(self.root)
        path, other = self._create(folder + b"/one"), self._create(folder + b"/other")
        value = min(4 * self.block, 30_000)
        for number in range(120):
            os.setxattr(path, b"user.%d" % number, self.rng.randbytes(value))
            # In between, so that the blocks of neither are in one run.
            os.setxattr(other, b"user.%d" % number, self.rng.randbytes(value))
        for number in self.rng.sample(range(120), 60):
            os.removexattr(path, b"user.%d" % number)
        for number in range(200, 230):
            os.setxattr(path, b"user.%d" % number, self.rng.randbytes(2 * value))

    def sparse_inodes(self, inode: int) -> None:
        """Leave no free run as long as an inode chunk, then make inodes: chunks get holes."""
        chunk = 64 * inode
        hole = chunk - self.block
        if hole < self.block:
            return  # a block holds so many inodes that there are no sparse chunks
        with self._open(self._create(self.root + b"/takes all the space")) as file:
            end = take_all_space(file, self.block)
            for place in range(0, end, 4 * chunk):
                system_calls.punch_hole(file, place, hole)
            os.fsync(file)
        # What the kernel had set aside for its own trees can now be had, in one run: no longer.
        path, at = self._create(self.root + b"/takes the long runs"), 0
        # On a small filesystem the kernel keeps some of it back.
        with self._open(path) as file, self._tolerating(errno.ENOSPC):
            for run in self._free_runs(2 * chunk):
                for _ in range(run // chunk):
                    system_calls.fallocate(file, at, chunk)
                    at += 2 * chunk
        for folder in self.rng.sample(self.folders, 10):
            for number in range(450):
                with self._tolerating(errno.ENOSPC):
                    self._create(folder + b"/sparse-%d" % number)

    def _free_runs(self, least: int) -> list[int]:
        return [
            row.length
            for row in kernel_oracle.getfsmap(self.root)
            if row.kind == "free" and row.length >= least
        ]

    # What years of use do.

    def random_step(self) -> None:
        """Apply one of the changes that programs make to files."""
        steps = [
            (self._write, 8),
            (self._punch, 4),
            (self._fallocate, 3),
            (self._clone, 6 if self.reflink else 0),
            (self._shift, 2),
            (self._truncate, 1),
            (self._set_attribute, 4),
            (self._remove_attribute, 2),
            (self._rename, 4),
            (self._exchange, 1),
            (self._move_folder, 1),
            (self._link, 3),
            (self._unlink, 3),
            (self._remove_folder, 1),
            (self._new_folder, 1),
            (self._new_file, 4),
        ]
        functions, weights = zip(*steps, strict=True)
        self.rng.choices(functions, weights)[0]()

    def _write(self) -> None:
        with self._open(self.rng.choice(self.files)) as file:
            os.pwrite(file, self.rng.randbytes(self._some(4)), self._somewhere(80))
            if self.rng.random() < 0.3:
                os.fsync(file)

    def _punch(self) -> None:
        with self._open(self.rng.choice(self.files)) as file:
            system_calls.punch_hole(file, self._somewhere(80), self._some(8))

    def _fallocate(self) -> None:
        with self._open(self.rng.choice(self.files)) as file:
            mode = self.rng.choice((0, system_calls.KEEP_SIZE))
            system_calls.fallocate(file, self._somewhere(90), self._some(10), mode)

    def _clone(self) -> None:
        with (
            self._open(self.rng.choice(self.files)) as source,
            self._open(self.rng.choice(self.files)) as target,
        ):
            start, length = self._aligned(40), self._aligned(12)
            system_calls.clone_range(source, start, length, target, self._aligned(80))

    def _shift(self) -> None:
        change = self.rng.choice((system_calls.collapse_range, system_calls.insert_range))
        with self._open(self.rng.choice(self.files)) as file:
            change(file, self._aligned(20), self._aligned(5) or self.block)

    def _truncate(self) -> None:
        os.truncate(self.rng.choice(self.files), self._somewhere(70))

    def _set_attribute(self) -> None:
        path = self.rng.choice(self.files + self.folders)
        size = self.rng.choice((1, 30, 300, 3000, 20000, 65536))
        name = b"user.r%d" % self.rng.randrange(40) + b"x" * self.rng.choice((0, 0, 100, 240))
        os.setxattr(path, name[:255], self.rng.randbytes(self.rng.randint(0, size)))

    def _remove_attribute(self) -> None:
        path = self.rng.choice(self.files + self.folders)
        names = os.listxattr(path)
        if names:
            os.removexattr(path, self.rng.choice(names))

    def _rename(self) -> None:
        at = self.rng.randrange(len(self.files))
        target = self.rng.choice(self.folders) + b"/moved-%d" % self._next()
        os.rename(self.files[at], target)
        self.files[at] = target

    def _exchange(self) -> None:
        system_calls.exchange_names(self.rng.choice(self.files), self.rng.choice(self.files))

    def _move_folder(self) -> None:
        source, target = self.rng.choice(self.folders[1:]), self.rng.choice(self.folders)
        target += b"/folder-%d" % self._next()
        os.rename(source, target)
        for known in (self.folders, self.files):
            for at, path in enumerate(known):
                if path == source or path.startswith(source + b"/"):
                    known[at] = target + path[len(source) :]

    def _link(self) -> None:
        path = self.rng.choice(self.folders) + b"/linked-%d" % self._next()
        os.link(self.rng.choice(self.files), path)
        self.files.append(path)

    def _unlink(self) -> None:
        at = self.rng.randrange(len(self.files))
        os.unlink(self.files[at])
        del self.files[at]

    def _remove_folder(self) -> None:
        at = self.rng.randrange(1, len(self.folders))
        os.rmdir(self.folders[at])
        del self.folders[at]

    def _new_folder(self) -> None:
        self.new_folder(self.rng.choice(self.folders))

    def _new_file(self) -> None:
        self.new_file(self._some(20))

    # Tools.

    def new_folder(self, parent: bytes, name: bytes | None = None) -> bytes:
        """Make a folder and know it."""
        path = parent + b"/" + (name or b"folder-%d" % self._next())
        os.mkdir(path)
        self.folders.append(path)
        return path

    def new_file(self, size: int = 0) -> bytes:
        """Make a file in any folder and know it."""
        name = b"file-%d" % self._next() + b"-" * self.rng.choice((0, 0, 0, 20, 180))
        path = self._create(self.rng.choice(self.folders) + b"/" + name, size)
        self.files.append(path)
        return path

    def _create(self, path: bytes, size: int = 0) -> bytes:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            if size:
                os.write(file, b"d" * size)
        finally:
            os.close(file)
        return path

    def _next(self) -> int:
        self._made += 1
        return self._made

    def _some(self, blocks: int) -> int:
        """Return a length of some blocks, seldom whole ones."""
        return self.rng.randint(1, blocks * self.block)

    def _somewhere(self, blocks: int) -> int:
        return self.rng.randrange(blocks * self.block)

    def _aligned(self, blocks: int) -> int:
        return self.rng.randrange(blocks) * self.block

    @contextlib.contextmanager
    def _open(self, path: bytes) -> Iterator[int]:
        file = os.open(path, os.O_RDWR)
        try:
            yield file
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _tolerating(self, *more: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _EXPECTED and error.errno not in more:
                raise
