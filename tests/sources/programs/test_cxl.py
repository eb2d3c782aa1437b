"""Media errors in the output of cxl list."""

import json
from typing import Any

import pytest

from whoseblock.errors import MalformedError
from whoseblock.ranges import PHYSICAL_MEMORY
from whoseblock.sources.base import Reading
from whoseblock.sources.programs.cxl import INTERLEAVE_REMARK, read_cxl

#: The examples of cxl-list(1).
REGION: dict[str, Any] = {
    "region": "region5",
    "resource": "0xf110000000",
    "size": "2.00 GiB (2.15 GB)",
    "type": "pmem",
    "interleave_ways": 2,
    "interleave_granularity": 4096,
    "decode_state": "commit",
    "media_errors": [
        {"offset": "0x1000", "length": 64, "source": "Injected"},
        {"offset": "0x2040", "length": 64, "source": "Injected"},
    ],
}
MEMDEV = {
    "memdev": "mem9",
    "pmem_size": "1024.00 MiB (1073.74 MB)",
    "serial": "0x5",
    "media_errors": [{"dpa": "0x40000000", "length": 64, "source": "Injected"}],
}


def read(*documents: object) -> tuple[list[tuple[str, int, int, str]], Reading]:
    reading = Reading("list")
    text = "\n".join(map(json.dumps, documents))
    found = list(read_cxl(text, "list", 4096, reading))
    return [(one.device, one.start, one.length, one.remark) for one in found], reading


def test_the_errors_of_a_region_have_an_address_of_the_host() -> None:
    found, reading = read([REGION])
    assert found == [
        (PHYSICAL_MEMORY, 0xF110001000, 4096, ""),
        (PHYSICAL_MEMORY, 0xF110002000, 4096, ""),
    ]
    assert reading.is_silent


def test_the_errors_of_a_memory_device_alone_are_counted() -> None:
    found, reading = read(MEMDEV)
    assert found == []
    assert "at an unknown place, which is in a memory device" in reading.summary()
    assert "mem9: dpa 0x40000000" in reading.summary()
    assert len(read([MEMDEV, {"regions": [REGION]}])[0]) == 2


def test_an_error_longer_than_the_interleave_is_cut_with_a_remark() -> None:
    long = REGION | {"media_errors": [{"offset": "0x1800", "length": 8192, "source": "x"}]}
    assert read(long)[0] == [(PHYSICAL_MEMORY, 0xF110001000, 4096, INTERLEAVE_REMARK)]
    # One device alone has all of it.
    assert read(long | {"interleave_ways": 1})[0] == [(PHYSICAL_MEMORY, 0xF110001000, 12288, "")]


@pytest.mark.parametrize("document", [{}, {"a": 1}, 7])
def test_another_document_is_refused(document: object) -> None:
    with pytest.raises(MalformedError, match=r"^list, \$: expected the JSON that cxl list"):
        read(document)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"resource": None}, "resource"),
        ({"resource": "x"}, "resource"),
        ({"media_errors": {"offset": -1, "length": 64}}, "media_errors.offset"),
        ({"media_errors": [{"offset": 0, "length": 0}]}, "media_errors[0].length"),
        (
            {"interleave_ways": 1, "media_errors": [{"offset": 8, "length": (1 << 63) - 1}]},
            "media_errors[0].length",
        ),
        (
            {"media_errors": [*REGION["media_errors"], {"offset": 0}]},
            "media_errors[2].length",
        ),
        ({"media_errors": [{"offset": (1 << 63) - 1, "length": 1}]}, "media_errors[0].offset"),
        ({"interleave_granularity": "x", "interleave_ways": "y"}, "interleave_granularity"),
    ],
)
def test_an_error_names_the_path_of_the_malformed_value(
    wrong: dict[str, object], named: str
) -> None:
    with pytest.raises(MalformedError) as caught:
        read(REGION | wrong)
    assert caught.value.path == f"$.{named}"
    # One document of several, in the form of cxl list with several kinds of objects.
    with pytest.raises(MalformedError) as caught:
        read([MEMDEV], [MEMDEV, {"regions": [REGION | wrong]}])
    assert caught.value.path == f"document 2, $[1].regions[0].{named}"
