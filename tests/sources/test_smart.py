"""Failed ranges from the JSON of smartctl."""

import json
from typing import Any

import pytest
from tests.support.json_documents import load
from tests.support.machine_snapshots import FIXTURES as MACHINES

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Reading
from whoseblock.sources.smart import read_smart

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


def test_a_missing_block_size_is_an_error() -> None:
    document = load("smart-ata-failed.json")
    del document["logical_block_size"]
    with pytest.raises(MalformedError, match=r"logical_block_size"):
        smart(document)


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
