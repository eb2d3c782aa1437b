"""Failed ranges from the JSON of smartctl."""

import json
import re
from typing import Any

import pytest
from tests.support.json_documents import load, replaced
from tests.support.machine_snapshots import FIXTURES as MACHINES

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Reading
from whoseblock.sources.programs.smart import read_smart

Place = tuple[str, int, int]


def smart(document: Any) -> list[Place]:  # noqa: ANN401
    return [(one.device, one.start, one.length) for one in read_smart(json.dumps(document), "s")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "smart-ata-failed.json",
            [
                (4096, "extended error log"),
                (2000000, "pending defects log"),
                (122099896, "extended self-test log"),
                (122099897, "pending defects log"),
                (1953525160, "extended self-test log"),
            ],
        ),
        ("smart-nvme-failed.json", [(5000, "error information log"), (8000, "self-test log")]),
        (
            "smart-scsi-failed.json",
            [
                (300, "self-test log"),
                (400, "pending defects log"),
                (401, "pending defects log"),
                (500, "background scan log"),
            ],
        ),
    ],
)
def test_every_smart_log_that_names_failed_blocks_is_parsed(
    name: str, expected: list[tuple[int, str]]
) -> None:
    document = load(name)
    size, device = document["logical_block_size"], document["device"]["name"].removeprefix("/dev/")
    failures = list(read_smart(json.dumps(document), name))
    assert [(one.start, one.length, one.device, one.origin) for one in failures] == [
        (lba * size, size, device, f"{name}, {log}") for lba, log in expected
    ]


@pytest.mark.parametrize("name", ["smart-ata.json", "smart-nvme.json"])
def test_good_disks_have_no_failures(name: str) -> None:
    assert [*read_smart((MACHINES / name).read_text(), name)] == []


def test_short_addresses_are_used_only_if_they_reach_the_whole_disk() -> None:
    small = load("smart-ata-failed.json")
    log = small.pop("ata_smart_error_log")["extended"]
    small["ata_smart_error_log"] = {"summary": log}
    del small["ata_smart_self_test_log"], small["ata_pending_defects_log"]
    assert smart(small) == []
    small["user_capacity"]["blocks"] = 1 << 28
    # 24 bits and, in the device register, four more.
    log["table"][1]["completion_registers"] |= {"lba": 4096, "device": 0xE2}
    assert ("sda", (0x2000000 | 4096) * 512, 512) in smart(small)
    # The standard self-test log has 32 bits.
    huge = load("smart-ata-failed.json")
    del huge["ata_smart_self_test_log"]["extended"], huge["ata_pending_defects_log"]
    assert smart(huge)
    huge["user_capacity"]["blocks"] = 1 << 33
    del huge["ata_smart_error_log"]
    assert smart(huge) == []


@pytest.mark.parametrize(
    ("name", "path", "new", "named"),
    [
        ("ata", ("logical_block_size",), None, "logical_block_size"),
        ("ata", ("logical_block_size",), 520, "logical_block_size"),
        ("ata", ("device", "name"), "s" * 256, "device.name"),
        ("ata", ("smartctl",), None, "smartctl"),
        (
            "ata",
            ("ata_smart_self_test_log", "extended", "table", 0, "lba"),
            -1,
            "ata_smart_self_test_log.extended.table[0].lba",
        ),
        (
            "ata",
            ("ata_smart_error_log", "extended", "table", 1, "completion_registers", "device"),
            None,
            "ata_smart_error_log.extended.table[1].completion_registers.device",
        ),
        (
            "ata",
            ("ata_smart_error_log", "extended", "table", 1, "completion_registers", "lba"),
            1 << 62,
            "ata_smart_error_log.extended.table[1].completion_registers.lba",
        ),
        (
            "ata",
            ("ata_pending_defects_log", "table", 1),
            "x",
            "ata_pending_defects_log.table[1]",
        ),
        (
            "nvme",
            ("nvme_error_information_log", "table", 0, "lba", "value"),
            1.5,
            "nvme_error_information_log.table[0].lba.value",
        ),
        ("nvme", ("nvme_self_test_log", "table", 0, "lba"), [], "nvme_self_test_log.table[0].lba"),
        (
            "scsi",
            ("scsi_self_test_0", "lba_first_failure", "value"),
            True,
            "scsi_self_test_0.lba_first_failure.value",
        ),
        ("scsi", ("scsi_pending_defects", "table", 2), {}, "scsi_pending_defects.table[2].lba"),
        (
            "scsi",
            ("scsi_background_scan", "result_1", "lba"),
            1 << 55,
            "scsi_background_scan.result_1.lba",
        ),
    ],
)
def test_an_error_names_the_path_of_the_malformed_value(
    name: str, path: tuple[Any, ...], new: object, named: str
) -> None:
    document = replaced(load(f"smart-{name}-failed.json"), path, new)
    with pytest.raises(MalformedError, match=rf"^s, \$\.{re.escape(named)}: expected"):
        list(read_smart(json.dumps(document), "s"))


def test_a_disk_behind_a_raid_controller_is_not_the_raid_volume() -> None:
    document = load("smart-ata-failed.json")
    document["device"] = {
        "name": "/dev/sda",
        "info_name": "/dev/sda [megaraid_disk_03]",
        "type": "sat+megaraid,3",
    }
    assert {one[0] for one in smart(document)} == {"sda [megaraid_disk_03]"}


def remarks(document: Any) -> list[str]:  # noqa: ANN401
    reading = Reading("s")
    list(read_smart(json.dumps(document), "s", reading))
    return reading.remarks


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("smart-ata-failed.json", "ata_pending_defects_log"),
        ("smart-nvme-failed.json", "nvme_self_test_log"),
        ("smart-scsi-failed.json", "scsi_background_scan"),
    ],
)
def test_the_output_of_a_run_without_x_names_what_it_lacks(name: str, key: str) -> None:
    document = load(name)
    document["smartctl"]["argv"] = ["smartctl", "-a", "-j", "/dev/sda"]
    assert not any("run smartctl with -x" in one for one in remarks(document))
    # What -a does not print.
    document.pop(key)
    document.get("ata_smart_error_log", {}).pop("extended", None)
    assert any("run smartctl with -x" in one for one in remarks(document))
    # A disk may have no such log.
    for option in ("-x", "-jx", "--xall"):
        document["smartctl"]["argv"][1] = option
        assert not any("run smartctl with -x" in one for one in remarks(document))


def test_a_number_of_bad_sectors_without_addresses_is_reported() -> None:
    attribute = {"id": 197, "name": "Current_Pending_Sector", "raw": {"value": 8 | 1 << 40}}
    ata = {"smartctl": {}, "ata_smart_attributes": {"table": [attribute]}}
    assert "the disk counts 8 sectors in Current_Pending_Sector, and no log names one" in remarks(
        ata
    )
    attribute["raw"] = {"value": 1 << 40}
    assert not any("sectors" in one for one in remarks(ata))
    nvme = {"smartctl": {}, "nvme_smart_health_information_log": {"media_errors": 3}}
    assert "the disk counts 3 media errors, and no log names one" in remarks(nvme)
    # Entries that the log has room for, but does not have.
    nvme["nvme_error_information_log"] = {"size": 64, "read": 16, "unread": 0}
    nvme["nvme_smart_health_information_log"] = {"media_errors": 0}
    reading = Reading("s")
    assert list(read_smart(json.dumps(nvme), "s", reading)) == []
    assert reading.summary() == "0 failures in 0 log entries"
