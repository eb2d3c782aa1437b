"""The decision table of plans, which needs no root, and bytes that several layers claim."""

from collections.abc import Collection, Iterable
from itertools import product
from pathlib import Path

import pytest
from demo.demo import unpack
from msgspec.structs import replace

from whoseblock.fs.base import (
    Answer,
    Copy,
    FileId,
    FileOwner,
    Free,
    LayerLocation,
    MetadataOwner,
    Outside,
    Owner,
    Staging,
    Unknown,
    Unreferenced,
)
from whoseblock.fs.driver import Capability, FileFacts, MountedVolume, Volume
from whoseblock.lookup import Lookup
from whoseblock.ranges import ByteRange
from whoseblock.respond.copies.locations import Copies
from whoseblock.respond.exceptions import ChangedError
from whoseblock.respond.owners import QUARANTINE, is_unowned, positions_of
from whoseblock.respond.planning import (
    CHANGES,
    Act,
    PlanOptions,
    decide,
    is_contested,
    proposals_at,
)
from whoseblock.respond.sites import Site
from whoseblock.target import Target, TargetOptions


def file(inode: int, what: str = "data", path: str = "", *, unwritten: bool = False) -> FileOwner:
    return FileOwner(
        0,
        4096,
        inode=inode,
        fork="attr" if what == "xattr" else "data",
        what=what,
        file_offset=None if what == "extent-map" else 0,
        unwritten=unwritten,
        shared=False,
        paths=(path or f"/{inode}",),
        generation=1,
    )


class Offline(Volume):
    """A filesystem of which only what a decision depends on is known."""

    name = "toyfs"

    def __init__(self, capabilities: Collection[Capability]) -> None:
        self._capabilities = frozenset(capabilities)

    @property
    def capabilities(self) -> frozenset[Capability]:
        return self._capabilities

    def files(self, files: Iterable[FileId]) -> dict[FileId, FileFacts]:
        return {one: FileFacts(0o100600, 4096, 1, 1, immutable=one.inode == 99) for one in files}

    def repair_advice(self, row: Owner) -> str:
        return f"repair {row.kind}"


class Mounted(Offline, MountedVolume):
    """The same while it is mounted."""


#: What each act needs on a mounted filesystem.
ALL = frozenset(Capability)


def volume(*, mounted: bool, capabilities: Collection[Capability] = ALL) -> Volume:
    if mounted:
        return Mounted(capabilities)  # type: ignore[abstract] # a decision uses nothing else
    return Offline(capabilities)  # type: ignore[abstract] # the same


KEPT = file(99, path=f"/{QUARANTINE}/0+4096")
OWNERS: dict[str, tuple[Owner, ...]] = {
    "free": (Free(0, 4096),),
    "unwritten": (file(1, unwritten=True),),
    "unwritten-twice": (file(1, unwritten=True), file(2, unwritten=True)),
    "data": (file(1),),
    "data-of-two": (file(1), file(2)),
    "data-of-three": (file(1), file(2), file(3)),
    "data+unwritten": (file(1), file(2, unwritten=True)),
    "data+xattr": (file(1), file(2, "xattr")),
    "directory": (file(1, "directory"),),
    "symlink": (file(1, "symlink"),),
    "xattr": (file(1, "xattr"),),
    "extent-map": (file(1, "extent-map"),),
    "metadata": (MetadataOwner(0, 4096, what="inodes"),),
    "log": (MetadataOwner(0, 4096, what="log"),),
    "staging": (Staging(0, 4096),),
    "outside": (Outside(0, 4096, what="gap"),),
    "unknown": (Unknown(0, 4096),),
    "quarantine": (KEPT,),
    "quarantine+data": (KEPT, file(1)),
    "quarantine+two": (KEPT, file(1), file(2)),
}

#: What the user passed: r is --restore-from, p is --punch, q is --quarantine.
OPTIONS = {
    words: PlanOptions(
        copies=Copies("/backup") if "r" in words else None,
        punch="p" in words,
        quarantine="q" in words,
    )
    for words in ("-", "r", "p", "q", "rp", "rq", "pq", "rpq")
}

#: A capital is a step, a small letter a reason why there is none.
STEPS = {"Z": Act.ZERO, "R": Act.RESTORE, "P": Act.PUNCH}
REASONS = {
    "c": (Act.ADVISE, "pass --restore-from to name one, --restore-cached"),
    "m": (Act.ADVISE, "only while the filesystem is mounted"),
    "x": (Act.ADVISE, ", which is metadata: repair file"),
    "s": (Act.ADVISE, "metadata (inodes): repair metadata"),
    "l": (Act.ADVISE, "metadata (log): repair metadata"),
    "w": (Act.ADVISE, "reserved for a copy-on-write"),
    "o": (Act.ADVISE, "in no filesystem (gap)"),
    "u": (Act.ADVISE, "the owners are unknown"),
    "g": (Act.ADVISE, "pass --quarantine"),
    "h": (Act.ADVISE, "fallocate --punch-hole --offset 0 --length 4096"),
    "k": (Act.NOTHING, "in quarantine"),
}

TABLE = """
                   mounted                     not mounted
                   -  r  p  q  rp rq pq rpq    -  r  p  q  rp rq pq rpq
free               Z  Z  Z  Z  Z  Z  Z  Z      Z  Z  Z  m  Z  m  m  m
unwritten          Z  Z  Z  h  Z  h  h  h      Z  Z  Z  m  Z  m  m  m
unwritten-twice    Z  Z  Z  h  Z  h  h  h      Z  Z  Z  m  Z  m  m  m
data               c  R  P  P  R  R  P  R      c  m  m  m  m  m  m  m
data-of-two        c  R  P  P  R  R  P  R      c  m  m  m  m  m  m  m
data-of-three      c  R  P  P  R  R  P  R      c  m  m  m  m  m  m  m
data+unwritten     c  R  P  P  R  R  P  R      c  m  m  m  m  m  m  m
data+xattr         x  x  x  x  x  x  x  x      x  x  x  x  x  x  x  x
directory          x  x  x  x  x  x  x  x      x  x  x  x  x  x  x  x
symlink            x  x  x  x  x  x  x  x      x  x  x  x  x  x  x  x
xattr              x  x  x  x  x  x  x  x      x  x  x  x  x  x  x  x
extent-map         x  x  x  x  x  x  x  x      x  x  x  x  x  x  x  x
metadata           s  s  s  s  s  s  s  s      s  s  s  s  s  s  s  s
log                l  l  l  l  l  l  l  l      l  l  l  l  l  l  l  l
staging            w  w  w  w  w  w  w  w      w  w  w  w  w  w  w  w
outside            o  o  o  o  o  o  o  o      o  o  o  o  o  o  o  o
unknown            u  u  u  u  u  u  u  u      u  u  u  u  u  u  u  u
quarantine         k  k  k  k  k  k  k  k      k  k  k  k  k  k  k  k
quarantine+data    g  g  g  P  g  R  P  R      g  g  g  m  g  m  m  m
quarantine+two     g  g  g  P  g  R  P  R      g  g  g  m  g  m  m  m
"""


def cells() -> dict[tuple[str, bool, str], str]:
    """Read the table: letters by owners, whether it is mounted, and options."""
    _, words, *rows = TABLE.strip("\n").splitlines()
    columns = list(product((True, False), OPTIONS))
    assert words.split() == [option for _, option in columns]
    found = {}
    for row in rows:
        owners, *letters = row.split()
        for (mounted, option), letter in zip(columns, letters, strict=True):
            found[owners, mounted, option] = letter
    assert {owners for owners, _, _ in found} == set(OWNERS)
    return found


CELLS = cells()


@pytest.mark.parametrize(("owners", "mounted", "option"), CELLS)
def test_the_decision_table(owners: str, option: str, *, mounted: bool) -> None:
    letter = CELLS[owners, mounted, option]
    act, says = decide(OWNERS[owners], OPTIONS[option], volume(mounted=mounted))
    if letter in STEPS:
        assert act is STEPS[letter]
        assert act in CHANGES
    else:
        expected, reason = REASONS[letter]
        assert act is expected
        assert act not in CHANGES
        assert reason in says
        assert "the file's data" not in says


@pytest.mark.parametrize(("owners", "mounted", "option"), CELLS)
def test_nothing_is_changed_while_owners_are_uncertain(
    owners: str, option: str, *, mounted: bool
) -> None:
    certain = decide(OWNERS[owners], OPTIONS[option], volume(mounted=mounted))
    act, says = decide(OWNERS[owners], OPTIONS[option], volume(mounted=mounted), complete=False)
    assert act is Act.ADVISE
    if certain.act is Act.ADVISE:
        assert says == certain.says
    else:
        assert "not certain" in says


@pytest.mark.parametrize(
    ("owners", "option", "mounted", "words"),
    [
        ("free", "-", True, ["free space", "freeze the filesystem"]),
        ("free", "-", False, ["free space", "open the device exclusively"]),
        ("unwritten", "-", True, ["space never written", "freeze"]),
        ("data", "r", True, ["write the good copy", "map it into the file;", "and free them"]),
        ("data-of-two", "r", True, ["both files, which stay shared"]),
        ("data-of-three", "r", True, ["all 3 files, which stay shared"]),
        ("data", "p", True, ["map zeros into the file", "and free them"]),
        ("data", "rq", True, ["into quarantine; write the good copy"]),
        ("data", "pq", True, ["into quarantine; map zeros"]),
        # The file in quarantine is not counted.
        ("quarantine+data", "rq", True, ["map it into the file;"]),
        ("quarantine+two", "q", True, ["both files"]),
    ],
)
def test_a_step_describes_its_changes(
    owners: str, option: str, words: list[str], *, mounted: bool
) -> None:
    says = decide(OWNERS[owners], OPTIONS[option], volume(mounted=mounted)).says
    assert [word for word in words if word not in says] == []
    assert ("free them" in says) is ("q" not in option and option != "-")


# ---------------------------------------------------------------------- what a filesystem supports

RESTORE, PUNCH = OPTIONS["r"], OPTIONS["p"]
C = Capability


@pytest.mark.parametrize(
    ("owners", "options", "capabilities", "act"),
    [
        ("free", PlanOptions(), {C.ZERO_FREE, C.FREEZE}, Act.ZERO),
        ("unwritten", PlanOptions(), {C.ZERO_FREE, C.FREEZE}, Act.ZERO),
        ("free", PlanOptions(), ALL - {C.FREEZE}, "cannot zero free blocks on this toyfs"),
        ("free", PlanOptions(), ALL - {C.ZERO_FREE}, "cannot zero free blocks on this toyfs"),
        ("data", RESTORE, {C.REFLINK}, Act.RESTORE),
        ("data", RESTORE, {C.OVERWRITE}, Act.RESTORE),
        ("data", RESTORE, ALL - {C.REFLINK, C.OVERWRITE}, "cannot restore file data on this toyfs"),
        ("data", PUNCH, {C.REFLINK}, Act.PUNCH),
        ("data", PUNCH, ALL - {C.REFLINK}, "cannot replace file data by zeros on this toyfs"),
        ("data", OPTIONS["rq"], {C.REFLINK, C.QUARANTINE}, Act.RESTORE),
        ("data", OPTIONS["rq"], ALL - {C.QUARANTINE}, "blocks in quarantine on this toyfs"),
        ("data", OPTIONS["rq"], ALL - {C.REFLINK}, "on this toyfs without reflink"),
        ("data", OPTIONS["pq"], ALL - {C.QUARANTINE}, "blocks in quarantine on this toyfs"),
        ("data", PlanOptions(), frozenset(), "cannot restore file data on this toyfs"),
        ("unknown", RESTORE, frozenset(), "cannot restore file data on this toyfs"),
        ("unknown", PUNCH, frozenset(), "cannot replace file data by zeros on this toyfs"),
        ("unknown", OPTIONS["q"], frozenset(), "blocks in quarantine on this toyfs"),
    ],
)
def test_an_act_needs_the_capabilities_of_a_mounted_filesystem(
    owners: str, options: PlanOptions, capabilities: Collection[Capability], act: Act | str
) -> None:
    filesystem = volume(mounted=True, capabilities=capabilities)
    decision = decide(OWNERS[owners], options, filesystem)
    if isinstance(act, Act):
        assert decision.act is act
    else:
        assert decision.act is Act.ADVISE
        assert act in decision.says
        assert decision.says.endswith("nothing is changed")


def test_zeroing_needs_a_capability_of_an_unmounted_filesystem_too() -> None:
    for capabilities, act in ({C.ZERO_FREE}, Act.ZERO), ({C.FREEZE}, Act.ADVISE):
        filesystem = volume(mounted=False, capabilities=capabilities)
        assert decide(OWNERS["free"], PlanOptions(), filesystem).act is act


COPIES = (Copy("sdb", 0),)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("mounted", [True, False], ids=["mounted", "unmounted"])
@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        (replace(file(1), encoding="zstd", file_length=131072), "compressed or encrypted (zstd)"),
        (replace(file(1, unwritten=True), encoding="lzo"), "compressed or encrypted (lzo)"),
        (replace(file(1), file_length=8192), "another length on the device"),
        (replace(file(1), copies=COPIES), "keeps other copies"),
        (Free(0, 4096, copies=COPIES), "keeps other copies"),
    ],
)
def test_only_bytes_that_are_those_of_the_device_are_changed(
    owner: Owner, reason: str, option: str, *, mounted: bool
) -> None:
    options = OPTIONS[option]
    for owners in (owner,), (file(2), owner):
        act, says = decide(owners, options, volume(mounted=mounted))
        assert act is Act.ADVISE
        assert reason in says
    with pytest.raises(ChangedError):
        positions_of([owner], ByteRange(0, 4096))
    assert not is_unowned([owner])


def test_a_block_that_no_file_refers_to_loses_no_data() -> None:
    act, says = decide((Unreferenced(0, 4096),), OPTIONS["rpq"], volume(mounted=True))
    assert act is Act.ADVISE
    assert "no data is lost" in says


@pytest.fixture(name="image", scope="module")
def _image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planning") / "disk.img"
    unpack(path)
    return path


@pytest.mark.parametrize("option", OPTIONS)
def test_without_a_failed_sector_or_a_site_there_is_no_step(image: Path, option: str) -> None:
    with Target(str(image), TargetOptions()) as target, Lookup(target.open_leaf) as finder:
        assert target.layer is not None
        layer, space = target.layer, finder.leaf(target.layer)
        rows: list[Owner] = [Free(0, 4096), file(1)]
        sites = {
            "no action needed": (Act.NOTHING, Site(layer, space, str(image), 0)),
            "not one linear part": (Act.ADVISE, Site(layer, space, None, 0)),
            "cannot open": (Act.ADVISE, Site(layer, space, f"{image}.none", 0)),
            "no filesystem that whoseblock knows": (Act.ADVISE, Site(layer, None, str(image), 0)),
        }
        for reason, (act, site) in sites.items():
            (proposal,) = proposals_at(site, rows, OPTIONS[option])
            assert (proposal.act, proposal.failing) == (act, ())
            assert reason in proposal.says
            assert proposal.owners == tuple(rows)


# ---------------------------------------------------------------------- bytes of several layers


def row(start: int, length: int, layer: str) -> Owner:
    return Free(start, length, via=(LayerLocation("disk", start), LayerLocation(layer, start)))


@pytest.mark.parametrize(
    ("rows", "contested"),
    [
        ([], False),
        ([Free(0, 10), Unknown(0, 10)], False),
        ([row(0, 10, "a"), row(0, 10, "a")], False),
        ([row(0, 10, "a"), row(10, 10, "b")], False),
        ([row(10, 10, "b"), row(0, 10, "a")], False),
        ([row(0, 10, "a"), row(9, 10, "b")], True),
        ([row(0, 10, "a"), row(0, 10, "b")], True),
        ([row(0, 30, "a"), row(5, 5, "a"), row(20, 5, "b")], True),
        ([row(0, 10, "a"), row(5, 20, "a"), row(24, 2, "b")], True),
    ],
)
def test_bytes_of_two_layers_are_contested(rows: list[Owner], *, contested: bool) -> None:
    answer = Answer(start=0, length=100, complete=True, notes=(), owners=tuple(rows))
    assert is_contested(answer) is contested
