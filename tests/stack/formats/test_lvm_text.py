"""The text format of LVM's metadata."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whoseblock.stack.formats.lvm_text import Section, Value, parse_text

names = st.from_regex(r"[a-z][a-z0-9_.+-]{0,8}", fullmatch=True)
texts = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
values: st.SearchStrategy[Value] = st.recursive(
    st.integers(-(10**15), 10**15) | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=6
)
sections: st.SearchStrategy[Section] = st.recursive(
    st.dictionaries(names, values, max_size=4),
    lambda inner: st.dictionaries(names, values | inner, max_size=3),
    max_leaves=6,
)


def written(value: "Value | Section") -> str:
    """Write a value as LVM does."""
    if isinstance(value, dict):
        inside = "\n".join(
            f"{name} {written(one)}" if isinstance(one, dict) else f"{name} = {written(one)}"
            for name, one in value.items()
        )
        return f"{{\n{inside}\n}}"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


@given(sections)
def test_every_generated_text_is_parsed(section: Section) -> None:
    text = written(section)[1:-1] + "\n# a comment {\n"
    assert parse_text(text) == section


@given(st.text(alphabet='ab1 {}[]=,"\\#\n', max_size=200))
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_text(text)
    except ValueError:
        return


def test_sections_without_end_are_refused() -> None:
    for text in ("a {" * 100_000, "a = " + "[" * 100_000):
        with pytest.raises(ValueError, match=r"nested too deeply|expected a value"):
            parse_text(text)
