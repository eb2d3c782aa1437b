"""JSON documents: text that is not JSON, and documents damaged anywhere."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.json_documents import json_values, load, places_in, replaced

from whoseblock.errors import MalformedError
from whoseblock.sources.programs.ndctl import read_ndctl
from whoseblock.sources.programs.smart import read_smart


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
def test_text_that_is_not_json_is_refused(
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
def test_a_document_damaged_anywhere_is_parsed_or_refused(
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


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["a b"], "$['a b'].badblocks[0].offset"),
        (["\x1b[2J"], "$['\\x1b[2J'].badblocks[0].offset"),
        (["n" * 70_000], f"$.{'n' * 32}….badblocks[0].offset"),
        (["level"] * 200, f"$.{'level.' * 13}…"),
    ],
)
def test_the_path_in_an_error_is_short(names: list[str], named: str) -> None:
    document: Any = {"dev": "region0", "badblocks": [{"offset": -1, "length": 1}]}
    for name in reversed(names):
        document = {name: document}
    with pytest.raises(MalformedError) as error:
        list(read_ndctl(json.dumps(document), "x"))
    assert error.value.path.startswith(named)
    assert error.value.path.endswith(".badblocks[0].offset")
    assert len(error.value.path) <= 161
