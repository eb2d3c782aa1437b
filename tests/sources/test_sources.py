"""Every parser of a text source: arbitrary text is parsed or refused, never an unexpected error."""

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.errors import MalformedError
from whoseblock.sources.badblocks import read_badblocks
from whoseblock.sources.mapfile import read_mapfile
from whoseblock.sources.memory import failure_of_address, failure_of_pfn
from whoseblock.sources.sysfs import read_sysfs_badblocks

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
        lambda: read_badblocks(lines, "x", 4096),
        lambda: read_sysfs_badblocks(lines, "d", "x"),
        lambda: [failure_of_pfn(text, 4096), failure_of_address(text, 4096)],
    ):
        try:
            failures = list(read())
        except MalformedError:
            continue
        assert all(one.length > 0 and one.start + one.length <= 1 << 63 for one in failures)
