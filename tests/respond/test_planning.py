"""The decision table of plans, which needs no root, and bytes that several layers claim."""

from itertools import product
from pathlib import Path

import pytest
from demo.demo import unpack

from whoseblock.fs.base import (
    Answer,
    FileOwner,
    Free,
    LayerLocation,
    MetadataOwner,
    Outside,
    Owner,
    Staging,
    Unknown,
)
from whoseblock.lookup import Lookup
from whoseblock.respond.copies import Copies
from whoseblock.respond.owners import QUARANTINE
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
    "c": (Act.ADVISE, "pass --restore-from to name one, or --punch"),
    "m": (Act.ADVISE, "only while the filesystem is mounted"),
    "x": (Act.ADVISE, ", which is metadata: xfs_scrub"),
    "s": (Act.ADVISE, "metadata (inodes): xfs_scrub"),
    "l": (Act.ADVISE, "metadata (log): unmount and mount it"),
    "w": (Act.ADVISE, "reserved for a copy-on-write"),
    "o": (Act.ADVISE, "in no filesystem (gap)"),
    "u": (Act.ADVISE, "the owners are unknown"),
    "g": (Act.ADVISE, "pass --quarantine"),
    "k": (Act.NOTHING, "in quarantine"),
}

TABLE = """
                   mounted                     not mounted
                   -  r  p  q  rp rq pq rpq    -  r  p  q  rp rq pq rpq
free               Z  Z  Z  Z  Z  Z  Z  Z      Z  Z  Z  Z  Z  Z  Z  Z
unwritten          Z  Z  Z  Z  Z  Z  Z  Z      Z  Z  Z  Z  Z  Z  Z  Z
unwritten-twice    Z  Z  Z  Z  Z  Z  Z  Z      Z  Z  Z  Z  Z  Z  Z  Z
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
    act, says = decide(OWNERS[owners], OPTIONS[option], mounted=mounted)
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
    certain = decide(OWNERS[owners], OPTIONS[option], mounted=mounted)
    act, says = decide(OWNERS[owners], OPTIONS[option], mounted=mounted, complete=False)
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
def test_a_step_says_what_it_changes(
    owners: str, option: str, words: list[str], *, mounted: bool
) -> None:
    says = decide(OWNERS[owners], OPTIONS[option], mounted=mounted).says
    assert [word for word in words if word not in says] == []
    assert ("free them" in says) is ("q" not in option and option != "-")


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
