"""Progress logs of HDDSuperClone, read as maps."""

import pytest

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Reading
from whoseblock.sources.block_lists.mapfile import read_mapfile

#: The lines that write_logfile_ccc() of version 2.3 writes around the blocks.
HEAD = """# Disk progress log file created by HDDSuperClone version 2.3.2
# Sat Nov 28 17:19:55 2026
# command= hddsuperclone
################ START CONFIGURATION DATA ################
# startconfig
# source  \t/dev/sdb
# blocksize  \t8
# sectorsize  \t{}
# sectorsizeadjust  \t0
#
# current position  \t \tstatus
0x0009a0        \t \t0x40
#
# position \tsize     \tstatus \tinfo \terr/status/time
"""
BLOCKS = """0x000000 \t0x000998 \t0x7f \t0x0 \t0x0
0x000998 \t0x000008 \t0x40 \t0x0 \t0x3110400
0x0009a0 \t0x000010 \t0x30 \t0x0 \t0x0
0x0009b0 \t0x000010 \t0x10 \t0x2 \t0x0
0x0009c0 \t0x000010 \t0x20 \t0x0 \t0x0
0x0009d0 \t0x000010 \t0x80 \t0x0 \t0xffffffffffffffff
0x0009e0 \t0x01f620 \t0xff \t0x0 \t0x0
"""


def read(text: str, statuses: str = "?*/-") -> list[tuple[int, int]]:
    return [one[:2] for one in read_mapfile(text.splitlines(keepends=True), "log", statuses)]


@pytest.mark.parametrize("sector", [512, 4096])
def test_every_status_is_that_which_the_program_exports(sector: int) -> None:
    text = HEAD.format(sector) + BLOCKS
    bad, scrape = (0x998 * sector, 8 * sector), (0x9A0 * sector, 16 * sector)
    trim, divide = (0x9B0 * sector, 16 * sector), (0x9C0 * sector, 16 * sector)
    untried = (0x9D0 * sector, 16 * sector)
    assert read(text) == [bad, scrape, trim, divide, untried]
    assert read(text, "-") == [bad]
    assert read(text, "*") == [trim, divide]
    assert read(text, "+") == [(0, 0x998 * sector), (0x9E0 * sector, 0x1F620 * sector)]


def test_an_export_for_ddrescue_is_a_map_in_bytes() -> None:
    text = (
        "# Disk progress log file created by HDDSuperClone version 2.3.2\n# ddrescue export\n"
        "# current_pos  current_status\n0x00000000     ?\n#      pos        size  status\n"
        "0x00000000  0x00000200  +\n0x00000200  0x00000200  -\n"
    )
    assert read(text) == [(512, 512)]


@pytest.mark.parametrize(
    "text",
    [
        # Without the size of a sector, or with a size that is none.
        HEAD.format("") + BLOCKS,
        HEAD.format("513") + BLOCKS,
        # Gaps, statuses that do not exist, missing fields, and no block.
        HEAD.format(512) + BLOCKS.replace("0x000998 \t0x000008", "0x000999 \t0x000008"),
        HEAD.format(512) + BLOCKS.replace("0x40", "0x50"),
        HEAD.format(512) + BLOCKS.replace(" \t0x3110400", ""),
        HEAD.format(512),
        HEAD.format(512) + "0x" + "f" * 5000 + " 0x1 0x40 0x0 0x0\n",
    ],
)
def test_a_damaged_log_is_refused(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        read(text)
    assert len(str(caught.value)) < 200


def test_blocks_are_counted() -> None:
    reading = Reading("log")
    text = HEAD.format(512) + BLOCKS
    assert len(list(read_mapfile(text.splitlines(keepends=True), "log", "-", reading))) == 1
    assert reading.summary() == "1 failure in 7 blocks"
