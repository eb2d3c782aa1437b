"""Notes on the processes that an answer may lack."""

from whoseblock.processes import Found
from whoseblock.querying import _process_notes


def test_a_capability_is_named_only_where_the_kernel_refused() -> None:
    assert _process_notes(Found([], 0, unlisted=False, omitted=0)) == []
    assert _process_notes(Found([], 2, unlisted=False, omitted=0)) == [
        "2 processes could not be looked into: that takes CAP_SYS_PTRACE"
    ]
    assert _process_notes(Found([], 0, unlisted=False, omitted=0, unanswered=1)) == [
        "a process could not be looked into: a filesystem does not answer"
    ]
