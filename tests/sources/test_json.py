"""Failures from what ndctl and smartctl print as JSON."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.machine_snapshots import FIXTURES as MACHINES
from tests.support.tools import CHECKOUT

from whoseblock.errors import MalformedError
from whoseblock.sources.ndctl import read_ndctl
from whoseblock.sources.smart import read_smart

FIXTURES = CHECKOUT / "tests" / "fixtures" / "sources"
Place = tuple[str, int, int]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def load(name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((FIXTURES / name).read_text())


def ndctl(document: Any) -> list[Place]:  # noqa: ANN401
    return [(one.device, one.start, one.length) for one in read_ndctl(json.dumps(document), "n")]


def smart(document: Any) -> list[Place]:  # noqa: ANN401
    return [(one.device, one.start, one.length) for one in read_smart(json.dumps(document), "s")]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:  # noqa: ANN401
    """Give a copy of a document with something else at one place."""
    value = copy.deepcopy(value)
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    return value


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Give the way to everything in a document."""
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    else:
        return [path]
    inner = [way for key, one in steps for way in places_in(one, (*path, key))]
    return [path, *inner] if path else inner


REGION = [("region0", 4096 * 512, 8 * 512), ("region0", 200000 * 512, 4 * 512)]


def test_every_list_counts_from_what_it_is_beside() -> None:
    assert ndctl(load("ndctl-bad.json")) == [
        *REGION,
        ("pmem0", 0, 4096),
        ("dax0.1", 51200, 2048),
        # The list of a raw namespace is that of the region.
        *REGION,
    ]


@pytest.mark.parametrize("name", ["pmem.ndctl.json", "pmem.ndctl-human.json"])
def test_a_good_machine_has_no_failures(name: str) -> None:
    assert [*read_ndctl((MACHINES / name).read_text(), name)] == []


def namespace(number: int) -> dict[str, Any]:
    found = load("ndctl-bad.json")[0]["regions"][0]["namespaces"][number]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: [one], lambda one: {"x": [one]}])
def test_the_nesting_does_not_matter(wrap: Callable[[Any], Any]) -> None:
    assert ndctl(wrap(namespace(0))) == [("pmem0", 0, 4096)]


def test_documents_may_follow_each_other() -> None:
    text = json.dumps(namespace(0)) + "\n" + json.dumps([namespace(1)])
    assert [one.device for one in read_ndctl(text, "n")] == ["pmem0", "dax0.1"]


def test_numbers_may_be_texts_as_for_people() -> None:
    human = replaced(namespace(0), ("badblocks", 0, "offset"), "0x10")
    assert ndctl(human) == [("pmem0", 0x10 * 512, 4096)]


def test_a_device_dax_listed_in_full_is_found() -> None:
    one = namespace(1)
    one["daxregion"] = {"id": 0, "devices": [{"chardev": one.pop("chardev"), "size": 65011712}]}
    assert ndctl(one) == [("dax0.1", 51200, 2048)]
    one["daxregion"]["devices"] *= 2
    with pytest.raises(MalformedError):
        ndctl(one)


def test_the_list_of_a_raw_namespace_is_the_disks_only_where_that_is_certain() -> None:
    raw = namespace(2)
    raw["badblocks"] = [{"offset": 3, "length": 1}]
    disk, region = [("pmem0.2", 3 * 512, 512)], [("region0", 3 * 512, 512)]
    # ndctl as root and as anybody print the same form.
    with pytest.raises(MalformedError, match=r"the region of namespace0.2 too") as error:
        ndctl(raw)
    assert "ndctl list --regions" in error.value.hint
    # As anybody ndctl lists no bad blocks of regions; as root the same.
    assert ndctl({"dev": "region0", "namespaces": [raw]}) == disk
    assert ndctl({"dev": "region0", "badblocks": raw["badblocks"], "namespaces": [raw]}) == (
        region + region
    )
    assert ndctl([{"dev": "region0"}, raw]) == disk
    # Without labels a namespace is the region.
    del raw["uuid"]
    assert ndctl(raw) == disk
    raw["badblocks"][0]["dimms"] = ["nmem0"]
    assert ndctl(raw) == region


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("blockdev",), None),
        (("badblocks",), 7),
        (("badblocks", 0), "x"),
        (("badblocks", 0), {"block": 1, "count": 1}),
        (("badblocks", 0, "offset"), -1),
        (("badblocks", 0, "offset"), "64.00 MiB (67.11 MB)"),
        (("badblocks", 0, "offset"), "1_0"),
        (("badblocks", 0, "offset"), 1.5),
        (("badblocks", 0, "offset"), True),
        (("badblocks", 0, "offset"), 1 << 55),
        (("badblocks", 0, "length"), 0),
        (("badblocks", 0, "length"), None),
    ],
)
def test_a_list_that_is_not_ndctls_is_refused(path: tuple[Any, ...], new: object) -> None:
    with pytest.raises(MalformedError, match=r"^n: expected"):
        ndctl(replaced(namespace(0), path, new))


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
def test_every_log_that_names_lost_blocks_is_read(
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


def test_short_registers_count_only_where_they_reach_everything() -> None:
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


def test_a_block_size_is_not_guessed() -> None:
    document = load("smart-ata-failed.json")
    del document["logical_block_size"]
    with pytest.raises(MalformedError, match=r"logical_block_size"):
        smart(document)


def test_a_disk_behind_a_controller_is_not_taken_for_the_volume() -> None:
    document = load("smart-ata-failed.json")
    document["device"] = {
        "name": "/dev/sda",
        "info_name": "/dev/sda [megaraid_disk_03]",
        "type": "sat+megaraid,3",
    }
    assert {one[0] for one in smart(document)} == {"sda [megaraid_disk_03]"}


@pytest.mark.parametrize("read", [read_ndctl, read_smart])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", None),
        (" \n", None),
        ("{", 1),
        ('{"a":\n1,\n}', 3),
        ("no json", 1),
        ("7", None),
        ('"x"', None),
        ("[" * 100_000, 1),
        ('{"a":' * 100_000, 1),
        ("9" * 5000, 1),
    ],
)
def test_what_is_not_json_is_refused(
    read: Callable[[str, str], Any], text: str, line: int | None
) -> None:
    with pytest.raises(MalformedError, match=r"^x") as error:
        list(read(text, "x"))
    assert error.value.line == line


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (read_ndctl, "ndctl-bad.json"),
        (read_smart, "smart-ata-failed.json"),
        (read_smart, "smart-nvme-failed.json"),
        (read_smart, "smart-scsi-failed.json"),
    ],
)
@given(st.data())
def test_anything_anywhere_raises_nothing_else(
    read: Callable[[str, str], Any], name: str, data: st.DataObject
) -> None:
    document = load(name)
    way = data.draw(st.sampled_from(places_in(document)))
    damaged = replaced(document, way, data.draw(json_values))
    try:
        failures = list(read(json.dumps(damaged), name))
    except MalformedError:
        return
    assert all(one.length > 0 and 0 <= one.start <= (1 << 63) - one.length for one in failures)
