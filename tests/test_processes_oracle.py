"""The search for processes against a plain one: stat(2) of every descriptor and every mapping."""

from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.support.mapping_processes import running
from tests.support.tools import need_root

from whoseblock.processes import Wanted, find_processes

FILES = 12
PAGE = 4096
#: Users of one process: descriptors of any of its threads, and the addresses of mappings.
Users = tuple[frozenset[int], frozenset[tuple[int, int]]]

#: Opens, maps, closes, duplicates and unlinks at random, in threads with tables of their own, too.
CHURN = """if True:
    import random
    chance = random.Random(int(more[0]))
    def churn():
        for _ in range(chance.randrange(25)):
            at = f"{path}/{chance.randrange(int(more[1]))}"
            what = chance.randrange(6)
            if what == 0:
                map_file(chance.randrange(4) * PAGE, chance.randrange(1, 9) * PAGE, at=at,
                         flags=chance.choice([SHARED, PRIVATE]))
            elif what == 1:
                os.dup(os.open(at, os.O_RDONLY))
            elif what == 2:
                os.open(at, os.O_PATH)
            elif what == 3:
                os.close(os.open(at, os.O_RDWR))
            elif what == 4:
                os.pipe()
            else:
                os.open("/dev/null", os.O_RDONLY)
    def live():
        call("unshare", 0x400)  # CLONE_FILES
        churn()
        done.append(1)
        time.sleep(1000)
    churn()
    done, threads = [], chance.randrange(3)
    for number in range(threads):
        threading.Thread(target=live, daemon=True).start()
        while len(done) <= number:
            time.sleep(0.01)
    if os.fork() == 0:
        churn()
        ready(os.getpid())
        os._exit(0)
    os.wait()
"""


def users_by_stat(pids: list[int], device: int, inodes: list[int]) -> list[dict[int, Users]]:
    """Return those processes that use each file, as stat(2) of the links in /proc shows them.

    Only of these processes: another one may have a file whose filesystem does not answer.
    """
    descriptors: dict[tuple[int, int], set[int]] = defaultdict(set)
    mappings: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for pid in pids:
        for link in Path(f"/proc/{pid}").glob("task/*/fd/*"):
            # Standard input and output are pipes, and the listing itself is gone.
            with suppress(FileNotFoundError):
                status = link.stat()
                if status.st_dev == device:
                    descriptors[status.st_ino, pid].add(int(link.name))
        for link in Path(f"/proc/{pid}/map_files").iterdir():
            status = link.stat()
            if status.st_dev == device:
                low, high = (int(end, 16) for end in link.name.split("-"))
                mappings[status.st_ino, pid].add((low, high - low))
    used = {*descriptors, *mappings}
    return [
        {
            pid: (frozenset(descriptors[inode, pid]), frozenset(mappings[inode, pid]))
            for pid in pids
            if (inode, pid) in used
        }
        for inode in inodes
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_users_as_stat_finds(tmp_path: Path, seed: int) -> None:
    need_root()
    paths = [tmp_path / str(number) for number in range(FILES)]
    for path in paths:
        path.write_bytes(bytes(16 * PAGE))
    device = tmp_path.stat().st_dev
    inodes = [path.stat().st_ino for path in paths]
    pids: list[int] = []
    with ExitStack() as undo:
        for number in range(3):
            pids += undo.enter_context(
                running(CHURN, tmp_path, str(10 * seed + number), str(FILES))
            )
        for path in paths[::3]:
            path.unlink()
        found = find_processes([Wanted(device, inode, 0, 1 << 40) for inode in inodes])
        expected = users_by_stat(pids, device, inodes)
    assert found.omitted == 0
    assert [
        {
            one.pid: (
                frozenset(file.fd for file in one.open),
                frozenset((mapping.address, mapping.length) for mapping in one.mappings),
            )
            for one in users
        }
        for users in found.processes
    ] == expected
    assert sum(map(len, expected)) > FILES // 2
