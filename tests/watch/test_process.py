"""The command line of the daemon's own process."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.watch.daemon import Options
from whoseblock.watch.process import options_of, words_of

#: Any text that can be an argument of a process, and the name of a file.
texts = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=20
)
paths = texts.map(Path)
addresses = st.sampled_from(["127.0.0.1", "::1", "localhost"])


@given(
    st.builds(
        Options,
        state=paths,
        policy=st.none() | paths,
        journal=st.none() | texts,
        interval=st.floats(0.1, 86400),
        metrics_port=st.none() | st.tuples(addresses, st.integers(0, 65535)),
        metrics_file=st.none() | paths,
        root=texts,
        version=texts,
    )
)
def test_options_survive_the_command_line(options: Options) -> None:
    assert options_of(words_of(options)) == options
