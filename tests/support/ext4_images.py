"""Images of ext2, ext3 and ext4, and their truth by the programs of e2fsprogs.

The truth is that of dumpe2fs (free blocks, fixed metadata) and of debugfs (the map of every inode,
and all names), neither of which is ours.
"""

import os
import random
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.tools import e2fsprogs, run

from whoseblock.fs.base import Answer, FileOwner, MetadataOwner

__all__ = [
    "FIXED",
    "Claim",
    "Truth",
    "claims_in",
    "differences",
    "edge_ranges",
    "fill",
    "make_image",
    "read_truth",
]

_JOURNAL = 8
_NAME = re.compile(r"^(\d+)\t/?(/.*?)(?=\n\d+\t|\ndebugfs:|\n*\Z)", re.MULTILINE | re.DOTALL)
_ROOT = 2


class Claim(NamedTuple):
    """A block as its owner has it: for metadata only ``what``; the offset is in blocks."""

    what: str
    inode: int = 0
    offset: int = -1
    unwritten: bool = False


class Truth(NamedTuple):
    """The owners of each block, and the paths of each inode."""

    block_size: int
    claims: list[set[Claim]]
    paths: dict[int, set[str]]


def make_image(
    path: Path, size: int, *options: str, folder: Path | None = None, newest: bool = False
) -> Path:
    """Make an image with mke2fs, filled from a folder if one is given."""
    with path.open("wb") as file:
        file.truncate(size)
    given = ["-d", str(folder)] if folder is not None else []
    run([e2fsprogs("mke2fs", newest=newest), "-q", "-F", *options, *given, str(path)])
    return path


def fill(root: Path, seed: int = 1, *, values: bool = False) -> None:
    """Make files of every kind that root or its owner may make there.

    With ``values``, some have attributes that only the feature ea_inode has room for.
    """
    rnd = random.Random(seed)
    (root / "d/e/f").mkdir(parents=True)
    for number in range(80):
        (root / f"d/f{number:04}").write_bytes(rnd.randbytes(rnd.randrange(1, 9000)))
    (root / "many").mkdir()
    for number in range(300):
        (root / f"many/name{number:04}_{'x' * rnd.randrange(5, 60)}").touch()
    _fragment([root / f"d/e/fragment{number}" for number in range(3)], rnd)
    with (root / "sparse").open("wb") as file:
        for number in range(40):
            file.seek(number * 200_000)
            file.write(b"x" * 5000)
    with (root / "holes").open("wb") as file:
        for number in range(700):
            file.seek(number * 8192)
            file.write(b"h")
        file.seek(100 << 20)
        file.write(b"end")
    with (root / "reserved").open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 300_000)
        os.pwrite(file.fileno(), b"a" * 5000, 50_000)
    for name in ("d/e/f/hard1", "many/hard2"):
        os.link(root / "sparse", root / name)
    os.symlink("/short", root / "short")
    os.symlink("l" * 200, root / "long")
    os.mkfifo(root / "fifo")
    for number in range(6):
        path = root / f"attributes{number}"
        path.write_bytes(b"x" * number * 600)
        _set_attribute(path, b"Z" * 700)
        if values:
            _set_attribute(path, b"Q" * 20_000, "user.value")
    for number in range(0, 80, 7):
        (root / f"d/f{number:04}").unlink()
    (root / os.fsdecode(b"odd\n\xff name")).touch()


def _fragment(paths: Sequence[Path], rnd: random.Random) -> None:
    """Write files in turns, so that each has many extents."""
    files = [path.open("wb") for path in paths]
    for _ in range(60):
        for file in files:
            file.write(rnd.randbytes(4096 * rnd.randrange(1, 3)))
            file.flush()
            os.fsync(file.fileno())
    for file in files:
        file.close()


def _set_attribute(path: Path, value: bytes, name: str = "user.large") -> None:
    try:
        os.setxattr(path, name, value)
    except OSError:
        # Some filesystems have no attributes, and others no room for them.
        return


def _debugfs(path: Path, commands: Sequence[str], *, newest: bool) -> str:
    done = subprocess.run(
        [e2fsprogs("debugfs", newest=newest), "-f", "-", path],
        input="\n".join(commands).encode(),
        capture_output=True,
        check=True,
    )
    return done.stdout.decode(errors="surrogateescape")


def _ranges(text: str) -> Iterator[tuple[int, int]]:
    for part in text.replace(",", " ").split():
        low, _, high = part.partition("-")
        yield int(low), int(high or low)


#: What dumpe2fs prints about a group, and the class of what it says.
_FIXED = (
    (r"[Ss]uperblock at (\d+)", "static"),
    (r"Group descriptors? at ([\d-]+)", "group-descriptors"),
    (r"Reserved GDT blocks at ([\d-]+)", "reserved-group-descriptors"),
    (r"Block bitmap at (\d+)", "block-bitmap"),
    (r"Inode bitmap at (\d+)", "inode-bitmap"),
    (r"Inode table at ([\d-]+)", "inodes"),
)
#: The classes of fixed metadata.
FIXED = (*dict.fromkeys(what for _, what in _FIXED), "mmp")


def _fixed(groups: str) -> Iterator[tuple[int, Claim]]:
    """Yield the fixed metadata by block."""
    for pattern, what in _FIXED:
        for found in re.finditer(pattern, groups):
            for low, high in _ranges(found[1]):
                yield from ((block, Claim(what)) for block in range(low, high + 1))


def read_truth(path: Path, *, newest: bool = False) -> Truth:
    """Read all that an image holds with dumpe2fs and debugfs."""
    text = run([e2fsprogs("dumpe2fs", newest=newest), path]).decode()
    head, _, groups = text.partition("\n\nGroup 0:")
    lines = (line.partition(":") for line in head.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    size, blocks = int(fields["Block size"]), int(fields["Block count"])
    ratio = int(fields.get("Cluster size", size)) // size
    claims: list[set[Claim]] = [set() for _ in range(blocks)]
    if size == 1024:
        claims[0] = {Claim("static")}
    for block, claim in _fixed(groups):
        claims[block] = {claim}
    if "MMP block number" in fields:
        claims[int(fields["MMP block number"])] = {Claim("mmp")}
    free = set(_listed(groups, "inodes", 1))
    used = [number for number in range(1, int(fields["Inode count"]) + 1) if number not in free]
    out = _debugfs(path, [f"stat <{number}>" for number in used], newest=newest)
    for part in re.split(r"^debugfs: +stat <", out, flags=re.MULTILINE)[1:]:
        number = int(part.partition(">")[0])
        for block, claim in _claims_of(number, part):
            # The resize inode maps reserved descriptors.
            if not any(one.what in _DESCRIPTORS for one in claims[block]):
                claims[block].add(claim)
    if ratio > 1:
        _claim_rests(claims, ratio)
    for block in _listed(groups, "blocks", ratio):
        if block < blocks:
            claims[block].add(Claim("free"))
    return Truth(size, claims, _paths(path, used, newest=newest))


def _listed(groups: str, what: str, ratio: int) -> Iterator[int]:
    """Yield the free blocks or inodes of all groups."""
    for found in re.finditer(rf"^  Free {what}: (.*)$", groups, re.MULTILINE):
        for low, high in _ranges(found[1]):
            # A range of clusters ends with the first block of its last one, and since 1.47.1 with
            # the last block of it.
            yield from range(low, (high // ratio + 1) * ratio)


#: The metadata that the resize inode maps.
_DESCRIPTORS = {"group-descriptors", "reserved-group-descriptors"}
_WHATS = {"regular": "data", "directory": "directory", "symlink": "symlink"}


def _claims_of(number: int, text: str) -> Iterator[tuple[int, Claim]]:
    """Yield what debugfs says of an inode, by block."""
    kind = re.search(r"Type: (.*?) +Mode:", text)
    what = _WHATS.get(kind[1], "data") if kind else "data"
    acl = re.search(r"File ACL: (\d+)", text)
    if acl and int(acl[1]):
        yield int(acl[1]), Claim("xattr", number, 0)
    body = re.search(r"^(?:EXTENTS|BLOCKS):\n(.*)", text, re.MULTILINE | re.DOTALL)
    if body is None:
        return
    for where, low, high in re.findall(r"\(([^)]+)\):(\d+)(?:-(\d+))?", body[1]):
        first, last = int(low), int(high or low)
        is_map = not where[0].isdigit()
        offset = 0 if is_map else int(where.replace("[u]", "").partition("-")[0])
        for block in range(first, last + 1):
            if number == _JOURNAL:
                yield block, Claim("log")
            elif is_map:
                yield block, Claim("extent-map", number)
            else:
                yield block, Claim(what, number, offset + block - first, "[u]" in where)


def _claim_rests(claims: list[set[Claim]], ratio: int) -> None:
    """Assign the rest of each cluster to the owner of the cluster."""
    for first in range(0, len(claims), ratio):
        cluster = claims[first : first + ratio]
        owners = {claim: place for place, one in enumerate(cluster) for claim in one}
        fixed = any(claim.inode == 0 and claim.what != "log" for claim in owners)
        for place, one in enumerate(cluster):
            if one or not owners:
                continue
            if fixed:
                one.add(Claim("static"))
                continue
            for claim, at in owners.items():
                offset = claim.offset + place - at if claim.offset >= 0 else -1
                is_log = claim.what == "log"
                one.add(claim if is_log else claim._replace(offset=offset, unwritten=True))


def _paths(path: Path, used: Sequence[int], *, newest: bool) -> dict[int, set[str]]:
    found: dict[int, set[str]] = defaultdict(set)
    found[_ROOT].add("/")
    # A line of commands may have 8191 bytes.
    lines = [" ".join(map(str, used[at : at + 500])) for at in range(0, len(used), 500)]
    for line in lines:
        out = _debugfs(path, [f"ncheck {line}"], newest=newest)
        # Names may have line feeds.
        for inode, name in _NAME.findall(out):
            found[int(inode)].add(name)
    return found


def claims_in(answer: Answer, size: int) -> dict[int, set[Claim]]:
    """Return the claims of an answer by block; each row must have all of its blocks' bytes."""
    found: dict[int, set[Claim]] = defaultdict(set)
    begin, end = answer.start, answer.start + answer.length
    for row in answer:
        assert row.start % size == 0 or row.start == begin
        assert (row.start + row.length) % size == 0 or row.start + row.length == end
        for block in range(row.start // size, -(-(row.start + row.length) // size)):
            claim = Claim(row.kind)
            if isinstance(row, MetadataOwner):
                claim = Claim(row.what)
            elif isinstance(row, FileOwner):
                offset = -1
                if row.file_offset is not None:
                    offset, rest = divmod(row.file_offset + block * size - row.start, size)
                    assert rest == 0
                claim = Claim(row.what, row.inode, offset, row.unwritten)
            found[block].add(claim)
    return found


def differences(truth: Truth, answer: Answer) -> list[object]:
    """Return where an answer differs from the truth, paths included."""
    wrong: list[object] = []
    size = truth.block_size
    found = claims_in(answer, size)
    blocks = range(answer.start // size, -(-(answer.start + answer.length) // size))
    wrong += [
        (block, found[block], truth.claims[block])
        for block in blocks
        if found[block] != truth.claims[block]
    ]
    for row in answer:
        if isinstance(row, FileOwner):
            paths = row.paths if isinstance(row.paths, tuple) else ()
            if set(paths) != truth.paths.get(row.inode, set()):
                wrong.append((row.inode, paths, truth.paths.get(row.inode)))
    return wrong


def edge_ranges(truth: Truth, rnd: random.Random, most: int) -> list[tuple[int, int]]:
    """Return ranges in bytes on, before, across and after edges of every kind.

    An edge is a block that does not continue the one before it; its kind is what both hold.  At
    most ``most`` edges come, those of rare kinds first.
    """
    size, count = truth.block_size, len(truth.claims)
    kinds: dict[object, list[int]] = defaultdict(list)
    for block in range(1, count):
        before, after = truth.claims[block - 1], truth.claims[block]
        if {_next(claim) for claim in before} != after:
            kinds[_kind(before), _kind(after)].append(block)
    chosen: list[int] = []
    for number, edges in enumerate(sorted(kinds.values(), key=len)):
        share = max((most - len(chosen)) // (len(kinds) - number), 1)
        chosen += rnd.sample(edges, min(share, len(edges)))
    ranges = []
    for block in chosen:
        at, far = block * size, rnd.randrange(2, 40)
        low, high = max(block - far, 0), min(block + far, count)
        ranges += [(at, size), (at, 512), (at - size, size), (at - 512, 512), (at - 512, 1024)]
        ranges += [(at - size, 2 * size), (low * size, (high - low) * size)]
        if block + 1 < count:
            ranges.append((at + size, size))
    return ranges


def _next(claim: Claim) -> Claim:
    """Return the claim of the next block, if it continues this one."""
    return claim._replace(offset=claim.offset + 1) if claim.offset >= 0 else claim


def _kind(claims: set[Claim]) -> frozenset[tuple[str, bool]]:
    return frozenset((claim.what, claim.unwritten) for claim in claims)
