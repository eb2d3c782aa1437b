"""Failed ranges from the JSON of ndctl."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.json_documents import load, replaced
from tests.support.machine_snapshots import FIXTURES as MACHINES

from whoseblock.errors import MalformedError
from whoseblock.sources.programs.ndctl import read_ndctl

Place = tuple[str, int, int]


def ndctl(document: Any) -> list[Place]:  # noqa: ANN401
    return [(one.device, one.start, one.length) for one in read_ndctl(json.dumps(document), "n")]


REGION = [("region0", 4096 * 512, 8 * 512), ("region0", 200000 * 512, 4 * 512)]


def test_every_list_is_relative_to_the_device_beside_it() -> None:
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
def test_namespaces_are_found_at_any_depth(wrap: Callable[[Any], Any]) -> None:
    assert ndctl(wrap(namespace(0))) == [("pmem0", 0, 4096)]


def test_documents_may_follow_each_other() -> None:
    text = json.dumps(namespace(0)) + "\n" + json.dumps([namespace(1)])
    assert [one.device for one in read_ndctl(text, "n")] == ["pmem0", "dax0.1"]


def test_the_numbers_of_ndctl_human_are_parsed() -> None:
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
    # ndctl prints the same form for root and for other users.
    with pytest.raises(MalformedError, match=r"the region of namespace0.2 too") as error:
        ndctl(raw)
    assert "ndctl list --regions" in error.value.hint
    # Without root, ndctl lists no bad blocks of regions; the result is the same.
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
    ("path", "new", "named"),
    [
        (("blockdev",), None, "$"),
        (("blockdev",), "p" * 256, "$"),
        (("badblocks",), 7, "$.badblocks"),
        (("badblocks", 0), "x", "$.badblocks[0]"),
        (("badblocks", 0), {"block": 1, "count": 1}, "$.badblocks[0].offset"),
        (("badblocks", 0, "offset"), -1, "$.badblocks[0].offset"),
        (("badblocks", 0, "offset"), "64.00 MiB (67.11 MB)", "$.badblocks[0].offset"),
        (("badblocks", 0, "offset"), "1_0", "$.badblocks[0].offset"),
        (("badblocks", 0, "offset"), 1.5, "$.badblocks[0].offset"),
        (("badblocks", 0, "offset"), True, "$.badblocks[0].offset"),
        (("badblocks", 0, "offset"), 1 << 54, "$.badblocks[0].offset"),
        (("badblocks", 0, "offset"), (1 << 54) - 1, "$.badblocks[0].length"),
        (("badblocks", 0, "length"), 0, "$.badblocks[0].length"),
        (("badblocks", 0, "length"), None, "$.badblocks[0].length"),
    ],
)
def test_an_error_names_the_path_of_the_malformed_value(
    path: tuple[Any, ...], new: object, named: str
) -> None:
    document = replaced(namespace(0), path, new)
    with pytest.raises(MalformedError, match=rf"^n, {re.escape(named)}: expected"):
        ndctl(document)
    # The list of a region, with namespaces in it.
    with pytest.raises(MalformedError) as caught:
        ndctl([{"dev": "region0"}, {"dev": "region1", "namespaces": [document]}])
    assert caught.value.path == f"$[1].namespaces[0]{named[1:]}"
