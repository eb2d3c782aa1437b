"""Every parser of a text source: arbitrary text is parsed or refused, never an unexpected error."""

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.errors import MalformedError
from whoseblock.sources.block_lists.block_numbers import read_block_numbers
from whoseblock.sources.block_lists.mapfile import read_mapfile
from whoseblock.sources.block_lists.sysfs import parse_bad_block_list
from whoseblock.sources.memory import parse_pfn, parse_physical_address

STATE = "0x00000000     +               1\n"
# Almost what is right, so that more than the first character is looked at.
scraps = st.lists(
    st.sampled_from(
        [*"0123456789xXabF ?*/-+#\n\t_", "0x", STATE, "18446744073709551616", "\u0661"]
    ),
    max_size=40,
).map("".join)


@given(scraps | st.text(max_size=80))
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    lines = text.splitlines(keepends=True)
    for read in (
        lambda: read_mapfile(lines, "x"),
        lambda: read_mapfile([STATE, *lines], "x"),
        lambda: read_block_numbers(lines, "x", 4096),
        lambda: parse_bad_block_list(text, 4096, "d", "x")[0],
        lambda: [parse_pfn(text, 4096), parse_physical_address(text, 4096)],
    ):
        try:
            failures = list(read())
        except MalformedError:
            continue
        assert all(one.length > 0 and one.start + one.length <= 1 << 63 for one in failures)
