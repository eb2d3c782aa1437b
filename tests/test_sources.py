"""Every form in which failures come: what is taken, what is passed over, what is refused."""

import itertools
import json
import shutil
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.images import sparse_file
from tests.support.snapshots import FIXTURES, facts
from tests.support.tools import Missing, run

from whoseblock.errors import MalformedError
from whoseblock.sources.badblocks import read_badblocks
from whoseblock.sources.base import Failure
from whoseblock.sources.dmesg import read_dmesg
from whoseblock.sources.mapfile import LOST, read_mapfile
from whoseblock.sources.memory import failure_of_address, failure_of_pfn
from whoseblock.sources.ndctl import read_ndctl
from whoseblock.sources.smart import read_smart
from whoseblock.sources.sysfs import read_sysfs_badblocks

#: Every parser, as a function of a text.
PARSERS: dict[str, Callable[[str], Iterable[Failure]]] = {
    "mapfile": lambda text: read_mapfile(text.splitlines(), "file"),
    "badblocks": lambda text: read_badblocks(text.splitlines(), "file", 1024),
    "sysfs": lambda text: read_sysfs_badblocks(text.splitlines(), "pmem0", "file"),
    "ndctl": lambda text: read_ndctl(text, "file"),
    "smart": lambda text: read_smart(text, "file"),
    "dmesg": lambda text: read_dmesg(text.splitlines(), "file"),
}


def places(failures: Iterable[Failure]) -> list[tuple[int, int]]:
    return [(failure.start, failure.length) for failure in failures]


# ------------------------------------------------------------------ any text at all


@pytest.mark.parametrize("form", PARSERS)
@given(text=st.text(alphabet=string.printable + "é\x00\u2028", max_size=400))
def test_any_text_is_read_or_refused(form: str, text: str) -> None:
    try:
        for failure in PARSERS[form](text):
            assert 0 <= failure.start < failure.start + failure.length <= 1 << 63
    except MalformedError as error:
        assert str(error).startswith("file")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "badblocks offset length blockdev dev region0 smartctl device name table lba value"
                " logical_block_size ata_smart_self_test_log standard extended status passed"
                " ata_smart_error_log completion_registers error scsi_pending_defects LBA".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@pytest.mark.parametrize("form", ["ndctl", "smart"])
@given(document=JSON)
def test_any_json_is_read_or_refused(form: str, document: Any) -> None:  # noqa: ANN401
    if isinstance(document, dict):
        document["smartctl"] = {}
    try:
        for failure in PARSERS[form](json.dumps(document)):
            assert 0 <= failure.start < failure.start + failure.length <= 1 << 63
    except MalformedError:
        pass


@pytest.mark.parametrize("form", ["ndctl", "smart"])
def test_json_without_end_or_bottom_is_refused(form: str) -> None:
    for text in ("", "{", "[" * 100_000, "nul", '{"a": 1} trailing'):
        with pytest.raises(MalformedError):
            list(PARSERS[form](text))


# ------------------------------------------------------------------ ddrescue


@st.composite
def maps(draw: st.DrawFn) -> list[tuple[int, int, str]]:
    """Give the blocks of a map: contiguous, of whole sectors, neighbours of different status."""
    statuses = draw(st.lists(st.sampled_from("?*/-+"), min_size=1, max_size=30))
    statuses = [status for status, _ in itertools.groupby(statuses)]
    sizes = draw(st.lists(st.integers(1, 50), min_size=len(statuses), max_size=len(statuses)))
    starts = itertools.accumulate([0, *sizes])
    return [
        (start * 512, size * 512, status)
        for start, size, status in zip(starts, sizes, statuses, strict=False)
    ]


@given(blocks=maps(), wanted=st.sampled_from(["?*/-", "-", "?", "*/", "+"]))
def test_ddrescues_own_log_tool_lists_the_same_sectors(
    blocks: list[tuple[int, int, str]], wanted: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if shutil.which("ddrescuelog") is None:
        raise Missing("ddrescuelog is not here: install the package gddrescue")
    path = tmp_path_factory.getbasetemp() / "random.map"
    lines = "".join(f"0x{start:08X}  0x{size:08X}  {status}\n" for start, size, status in blocks)
    path.write_text(
        f"# Mapfile. Created by GNU ddrescue\n0x00000000     ?               1\n{lines}"
    )
    listed = run(["ddrescuelog", "--block-size=512", f"--list-blocks={wanted}", path]).split()
    with path.open() as file:
        failures = list(read_mapfile(file, "map", wanted))
    sectors = [
        at // 512 for start, length in places(failures) for at in range(start, start + length, 512)
    ]
    assert sectors == list(map(int, listed))


def test_every_status_but_finished_counts_unless_told() -> None:
    text = "0 ? 1\n0 512 ?\n512 512 *\n1024 512 /\n1536 512 -\n2048 512 +\n"
    assert places(read_mapfile(text.splitlines(), "map")) == [(n * 512, 512) for n in range(4)]
    assert LOST == "?*/-"


def test_numbers_are_read_as_c_reads_them() -> None:
    text = "# made by hand\n0 +\n0x0 010 -  # octal eight\n8 0x8 +\n16 16 -\n"
    failures = list(read_mapfile(text.splitlines(), "map"))
    assert places(failures) == [(0, 8), (16, 16)]
    assert [failure.origin for failure in failures] == ["map, line 3", "map, line 5"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        ("0 ? 1\n", None),
        ("0x0 0x200 +\n", 1),
        ("0 ? 1\n0 512\n", 2),
        ("0 ? 1\n0 512 !\n", 2),
        ("0 ? 1\n0 0 -\n", 2),
        ("0 ? 1\n0 512 -\n1024 512 -\n", 3),
        ("0 ? 1\n0 512 -\n256 512 -\n", 3),
        ("0 ? 1\n-5 512 -\n", 2),
        ("0 ? 1\n0x 512 -\n", 2),
        ("0 ? 1\n08 512 -\n", 2),
        ("0 ? 1\n0 9223372036854775809 -\n", 2),
    ],
)
def test_a_map_of_another_form_is_refused_with_its_line(text: str, line: int | None) -> None:
    with pytest.raises(MalformedError) as caught:
        list(read_mapfile(text.splitlines(), "x.map"))
    assert caught.value.line == line
    assert str(caught.value).startswith("x.map")
    assert "expected" in str(caught.value)


def test_statuses_that_are_none_are_refused() -> None:
    for statuses in ("", "x", "-x"):
        with pytest.raises(MalformedError):
            list(read_mapfile(["0 ? 1", "0 1 -"], "map", statuses))


# ------------------------------------------------------------------ lists of blocks


def test_what_dumpe2fs_prints_of_an_ext4_with_bad_blocks(tmp_path: Path) -> None:
    tools = [shutil.which(name, path="/usr/sbin:/sbin:/usr/bin") for name in ("mke2fs", "dumpe2fs")]
    if None in tools:
        raise Missing("mke2fs and dumpe2fs are not here: install the package e2fsprogs")
    wanted = [5000, 5001, 7777]
    bad = tmp_path / "bad"
    bad.write_text("".join(f"{number}\n" for number in wanted))
    image = sparse_file(tmp_path / "ext4.img", 16 << 20)
    mke2fs, dumpe2fs = map(str, tools)
    run([mke2fs, "-q", "-F", "-b", "1024", "-l", bad, image])
    text = run([dumpe2fs, "-b", image]).decode()
    assert places(read_badblocks(text.splitlines(), "list", 1024)) == [
        (number * 1024, 1024) for number in wanted
    ]


@pytest.mark.parametrize("line", ["12 13", "0x10", "-3", "12a", "99999999999999999999", "١٢"])
def test_a_line_that_is_no_block_number_is_refused(line: str) -> None:
    with pytest.raises(MalformedError, match="list, line 2"):
        list(read_badblocks(["7", line], "list", 4096))


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 20)), max_size=20))
def test_lists_of_sysfs_are_sectors_and_counts(pairs: list[tuple[int, int]]) -> None:
    text = "".join(f"{sector} {count}\n" for sector, count in pairs)
    failures = list(read_sysfs_badblocks(text.splitlines(), "pmem0", "badblocks"))
    assert places(failures) == [(sector * 512, count * 512) for sector, count in pairs]
    assert {failure.device for failure in failures} <= {"pmem0"}


# ------------------------------------------------------------------ memory


def test_a_page_frame_number_is_a_page() -> None:
    assert failure_of_pfn("0x10140a", 4096)[:3] == (0x10140A000, 4096, "physical-memory")
    assert failure_of_pfn("10", 65536)[:2] == (655360, 65536)


def test_a_physical_address_is_the_page_that_holds_it() -> None:
    assert failure_of_address("0x10140a123", 4096)[:2] == (0x10140A000, 4096)


@pytest.mark.parametrize("text", ["", "0x", "12p", "-1", "0x" + "f" * 16, "1" * 30])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        failure_of_pfn(text, 4096)
    with pytest.raises(MalformedError):
        failure_of_address(text, 1 << 20 if text.startswith("0xf") else 4096)


# ------------------------------------------------------------------ the kernel log


def test_real_logs_with_a_memory_failure_and_a_medium_error() -> None:
    lines = (FIXTURES / "pmem.dmesg.txt").read_text().splitlines()
    (failure,) = read_dmesg(lines, "log")
    assert failure[:3] == (int(facts("pmem")["pfn"], 16) * 4096, 4096, "physical-memory")
    known = facts("disk")
    lines = (FIXTURES / "disk.dmesg.txt").read_text().splitlines()
    (failure,) = read_dmesg(lines, "log")
    # The kernel names the request that failed, which began before the bad sector.
    assert failure[:3] == (known["request_sector"] * 512, 512, known["failing"])
    assert known["bad_sector"] > known["request_sector"]


MESSAGES = {
    "Memory failure: 0x10140a: recovery action for dax page: Recovered": (
        0x10140A000,
        4096,
        "physical-memory",
    ),
    "I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2": (
        1 << 20,
        512,
        "sda",
    ),
    "blk_update_request: I/O error, dev nvme0n1, sector 16": (8192, 512, "nvme0n1"),
    "print_req_error: critical medium error, dev sdb, sector 7 flags 0": (3584, 512, "sdb"),
}


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize(
    "before",
    [
        "",
        "[    1.234567] ",
        "[Tue Nov 24 16:46:10 2026] ",
        "<3>[    1.234567] ",
        "kern  :err   : [    1.2] ",
        "Nov 24 16:46:10 host kernel: ",
        "2026-11-24T16:46:10,123456+00:00 ",
    ],
)
def test_messages_are_found_however_the_log_was_saved(message: str, before: str) -> None:
    lines = ["unrelated", before + message, before + message, "nvme nvme0: I/O timeout"]
    (failure,) = read_dmesg(lines, "log")
    assert failure == (*MESSAGES[message], "log, line 2")


@pytest.mark.parametrize(
    "line", ["Memory failure: 0x", "I/O error, dev sda, sector", "I/O error, dev , sector 5"]
)
def test_a_message_that_breaks_off_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(MalformedError, match="log, line 3"):
        list(read_dmesg(["", "", line], "log"))


def test_errors_that_do_not_blame_the_medium_are_passed_over() -> None:
    lines = [
        "operation not supported error, dev loop2, sector 0 op 0x9:(WRITE_ZEROES) flags 0x10800800",
        "timeout error, dev sda, sector 8",
        "Buffer I/O error on dev sda1, logical block 5, async page read",
        "I/O error, dev sda, sector 18446744073709551615 op 0x0:(READ)",
    ]
    assert list(read_dmesg(lines, "log")) == []


# ------------------------------------------------------------------ ndctl and smartctl


def test_what_ndctl_printed_without_bad_blocks() -> None:
    for name in ("pmem.ndctl.json", "pmem.ndctl-human.json"):
        assert list(read_ndctl((FIXTURES / name).read_text(), name)) == []


def test_bad_blocks_of_namespaces_and_regions() -> None:
    """By hand, after ndctl's source: the virtual machine's modules cannot be poisoned by ndctl."""
    bad = {"offset": 8, "length": 2, "dimms": ["nmem0"]}
    namespace = {"dev": "namespace0.0", "mode": "fsdax", "blockdev": "pmem0", "badblocks": [bad]}
    device_dax = {"dev": "namespace1.0", "mode": "devdax", "chardev": "dax1.0", "badblocks": [bad]}
    region = {"dev": "region0", "badblocks": [bad | {"offset": "0x10"}], "namespaces": [namespace]}
    failures = list(read_ndctl(json.dumps([{"regions": [region]}, device_dax]), "ndctl"))
    assert sorted(failure[:3] for failure in failures) == [
        (4096, 1024, "dax1.0"),
        (4096, 1024, "pmem0"),
        (8192, 1024, "region0"),
    ]


def test_bad_blocks_of_nobody_are_refused() -> None:
    with pytest.raises(MalformedError):
        list(read_ndctl('{"badblocks": [{"offset": 1, "length": 1}]}', "ndctl"))


def test_healthy_disks_as_smartctl_prints_them() -> None:
    for name in ("smart-ata.json", "smart-nvme.json"):
        assert list(read_smart((FIXTURES / name).read_text(), name)) == []


def smart(**logs: object) -> str:
    known = {"smartctl": {"version": [7, 4]}, "device": {"name": "/dev/sda"}}
    return json.dumps(known | {"logical_block_size": 512, "user_capacity": {"blocks": 1000}} | logs)


def self_test(value: int, lba: int) -> dict[str, object]:
    return {"status": {"value": value, "passed": value == 0}, "lba": lba}


def test_addresses_of_every_log() -> None:
    """By hand, after smartmontools' source: no disk here has errors of its own."""
    error = {"completion_registers": {"error": 0x40, "lba": 5, "device": 0xE0}}
    text = smart(
        ata_smart_self_test_log={"standard": {"table": [self_test(0x79, 11), self_test(0, 12)]}},
        ata_smart_error_log={"extended": {"table": [error]}},
        ata_pending_defects_log={"table": [{"lba": 13}]},
        nvme_error_information_log={
            "table": [
                {"lba": {"value": 14}, "status_field": {"status_code_type": 2}},
                {"lba": {"value": 15}, "status_field": {"status_code_type": 0}},
            ]
        },
        nvme_self_test_log={"table": [{"self_test_result": {"value": 7}, "lba": 16}]},
        scsi_self_test_0={"lba_first_failure": {"value": 17}},
        scsi_pending_defects={"count": 1, "1": {"LBA": 18}},
        scsi_background_scan={"result_1": {"lba": 19}},
    )
    failures = list(read_smart(text, "smart"))
    assert [failure.start // 512 for failure in failures] == [5, 11, 13, 14, 16, 17, 18, 19]
    assert {(failure.length, failure.device) for failure in failures} == {(512, "sda")}


def test_an_address_that_is_too_short_for_the_disk_is_passed_over() -> None:
    error = {"completion_registers": {"error": 0x40, "lba": 5, "device": 0xE1}}
    log = {"summary": {"table": [error]}}
    small = smart(ata_smart_error_log=log)
    assert places(read_smart(small, "smart")) == [((5 | 1 << 24) * 512, 512)]
    large = smart(ata_smart_error_log=log, user_capacity={"blocks": 1 << 30})
    assert places(read_smart(large, "smart")) == []


def test_addresses_need_a_block_size() -> None:
    text = json.dumps({"smartctl": {}, "ata_pending_defects_log": {"table": [{"lba": 1}]}})
    with pytest.raises(MalformedError, match="logical_block_size"):
        list(read_smart(text, "smart"))
