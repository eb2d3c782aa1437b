"""Draw what a healthy image is made of: options of mkfs.xfs, and what happens to it afterwards."""

import random
from dataclasses import dataclass

__all__ = ["Plan", "draw_plan"]

_KIB, _MIB = 1 << 10, 1 << 20

#: What happens to an image once it is filled.
_EVENTS = ["", "", "", "", "grown", "grown", "shrunk", "full", "full", "uuid", "log cleared"]
_BLOCKS = [1, 1, 2, 4, 4, 4, 8, 16, 32, 64]


@dataclass(frozen=True)
class Plan:
    """The plan of one image; the options are words for mkfs.xfs."""

    number: int
    block: int
    size: int
    beyond: int
    options: tuple[str, ...]
    reflink: bool
    rmapbt: bool
    external_log: bool
    event: str
    names: int
    steps: int

    def __str__(self) -> str:
        more = ["external log"] * self.external_log + [self.event] * bool(self.event)
        more += [f"{self.beyond} bytes beyond"] * bool(self.beyond)
        return f"mkfs.xfs {' '.join(self.options)} ({self.size >> 20} MiB; {', '.join(more)})"


def draw_plan(seed: int, number: int, *, metadir: bool) -> Plan:
    """Draw the plan of an image; *metadir* is whether this kernel can mount such a filesystem."""
    rng = random.Random(f"plan {seed} {number}")

    def flag(chance: float) -> bool:
        return rng.random() < chance

    block = _BLOCKS[number % len(_BLOCKS)] * _KIB
    event = rng.choice(_EVENTS)
    groups = rng.choice((1, 2, 3, 4, 5, 7)) if block < 32 * _KIB else rng.choice((1, 2, 3))
    # Groups of any number of blocks, no power of two, and a last one that is shorter.
    # With the smallest log that mkfs.xfs makes, writes of large attributes can wait for room for
    # ever, and every sync(2) on the machine with them.  The log lies in one group.
    log_size = max(32 * _MIB, 3000 * block)
    group = (log_size + rng.randrange(40 * _MIB, 120 * _MIB)) // block
    last = rng.randrange(group // 2, group)
    blocks = group * (groups - 1) + last
    blocks = max(blocks, (log_size + 60 * _MIB) // block)
    if event == "shrunk":
        blocks = max(blocks, group + group // 2)
    sector = rng.choice((512, 512, 4096)) if block >= 4096 else rng.choice((512, block))
    reflink, rmapbt = flag(0.8), flag(0.97)
    finobt, sparse = flag(0.85), flag(0.8)
    inode = rng.choice([size for size in (512, 1024, 2048) if size <= block // 2])
    directory = rng.choice([size for size in (4, 8, 16, 32, 64) if size * _KIB >= block]) * _KIB
    if flag(0.4):
        directory = max(block, 4096)
    metadata = [f"rmapbt={rmapbt:d}", f"reflink={reflink:d}", f"finobt={finobt:d}"]
    metadata += [f"bigtime={flag(0.8):d}", f"inobtcount={finobt and flag(0.8):d}"]
    has_metadir = metadir and flag(0.15)
    metadata += [f"metadir={has_metadir:d}"]
    naming = [f"size={directory}", f"parent={has_metadir or flag(0.5):d}"]
    inodes = [f"size={inode}", f"sparse={sparse:d}", f"nrext64={flag(0.7):d}"]
    inodes += [f"exchange={has_metadir or flag(0.7):d}"]
    data = [f"size={blocks * block}"]
    data.append(f"agsize={group * block}" if groups > 1 else "agcount=1")
    if flag(0.15) and block <= 16 * _KIB:
        data += ["su=65536", "sw=4"]
    else:
        data.append("noalign")
    external = flag(0.12)
    log = [] if external else [f"size={log_size}"]
    if log and flag(0.3):
        log.append(f"agnum={rng.randrange(groups) % max(1, groups - 1)}")
    options = ["-b", f"size={block}", "-s", f"size={sector}", "-d", ",".join(data)]
    options += ["-i", ",".join(inodes), "-m", ",".join(metadata), "-n", ",".join(naming)]
    options += ["-l", ",".join(log)] if log else []
    beyond = rng.choice((0, 0, 1, 512, 77_777, 3 * _MIB))
    if event == "grown":
        beyond = rng.randrange(group * block // 2, 2 * group * block)
    return Plan(
        *(number, block, blocks * block, beyond, tuple(options), reflink, rmapbt, external, event),
        names=rng.choice((200, 600, 3000, 8000)) if block <= 4096 else rng.choice((200, 600, 2000)),
        steps=rng.choice((300, 800, 1500)),
    )
