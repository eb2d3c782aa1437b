"""Bad-block lists of members of md arrays."""

import pytest

from whoseblock.errors import MalformedError
from whoseblock.sources.block_lists.md_badblocks import read_md_badblocks

#: What examine_badblocks_super1() of mdadm prints.
MDADM = """Bad-blocks on /dev/sdb1:
                2456 for 8 sectors
              264192 for 512 sectors
Bad-blocks list is empty in /dev/sdc1
No bad-blocks list configured on /dev/sdd1
Bad-blocks on /dev/mapper/x-y:
                   8 for 1 sectors
"""


def read(text: str) -> list[tuple[str, int, int]]:
    lines = text.splitlines(keepends=True)
    return [(one.device, one.start, one.length) for one in read_md_badblocks(lines, "list")]


def test_the_list_of_mdadm_names_the_member() -> None:
    assert read(MDADM) == [
        ("sdb1", 2456 * 512, 8 * 512),
        ("sdb1", 264192 * 512, 512 * 512),
        ("mapper/x-y", 8 * 512, 512),
    ]


def test_the_list_of_sysfs_is_of_the_target() -> None:
    assert read("2456 8\n\n264192 512\n") == [
        ("", 2456 * 512, 8 * 512),
        ("", 264192 * 512, 512 * 512),
    ]


@pytest.mark.parametrize("line", ["x", "1", "1 0", "1 for 0 sectors", "9" * 5000, "-1 8", "1 2 3"])
def test_another_line_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="list, line 2:") as caught:
        read(f"8 8\n{line}\n")
    assert len(str(caught.value)) < 200
