"""JSON documents of ndctl and smartctl: reading the fixtures, and damaging them anywhere."""

import copy
import json
from typing import Any

from hypothesis import strategies as st
from tests.support.tools import CHECKOUT

FIXTURES = CHECKOUT / "tests" / "fixtures" / "sources"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def load(name: str) -> Any:  # noqa: ANN401 - JSON
    """Parse a fixture."""
    return json.loads((FIXTURES / name).read_text())


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:  # noqa: ANN401
    """Return a copy of a document with another value at one place."""
    value = copy.deepcopy(value)
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    return value


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Return the path to every value in a document."""
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    else:
        return [path]
    inner = [way for key, one in steps for way in places_in(one, (*path, key))]
    return [path, *inner] if path else inner
