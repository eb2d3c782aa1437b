"""One hierarchy of errors, each class with its own exit code."""

import subprocess
import sys

from whoseblock import errors
from whoseblock.errors import (
    OUT_OF_MEMORY,
    JournalPrivilegeError,
    WhoseblockError,
    exit_codes,
)


def _classes() -> list[type[WhoseblockError]]:
    found = [getattr(errors, name) for name in errors.__all__]
    return [one for one in found if isinstance(one, type) and issubclass(one, WhoseblockError)]


def test_every_class_has_an_exit_code_of_its_own() -> None:
    # Without permission it is the same code for the target and for the journal.
    codes = [error.exit_code for error in _classes() if error is not JournalPrivilegeError]
    assert len(set(codes)) == len(codes)
    # 2 is the command line's, and shells use those from 126 on.
    assert all(code not in {0, 2} and code < 126 for code in codes)


def test_the_registry_has_them_all_in_a_sentence() -> None:
    table = exit_codes()
    for error in _classes():
        if error is JournalPrivilegeError:
            continue
        assert table[error.exit_code] == (error.__doc__ or "").partition("\n")[0]
    assert all(meaning.endswith(".") for meaning in table.values())
    assert list(table) == sorted(table)


def test_no_memory_is_an_error_of_one_sentence() -> None:
    # The largest allocation of all fails for real, in the middle of a command.
    program = (
        "from whoseblock import cli\n"
        "from whoseblock.cli import report_owners\n"
        "report_owners.report_owners = lambda *_: bytearray(1 << 62)\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "lookup", "image", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == OUT_OF_MEMORY
    first, hint = done.stderr.splitlines()
    assert first == "whoseblock: out of memory"
    assert hint.startswith("hint: ")
