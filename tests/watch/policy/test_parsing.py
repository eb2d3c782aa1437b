"""The policy: what it may say, and the line of what it may not."""

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tools import need_root

from whoseblock.errors import PolicyError
from whoseblock.fs.base import Owner
from whoseblock.watch.policy.parsing import parse_policy, read_policy
from whoseblock.watch.policy.rules import Rule
from whoseblock.watch.policy.toml_lines import Key, find_lines

GOOD = """\
# What may be done.
[limits]
exec = 5
respond = 0

[[rule]]
name = "database"
filesystem = "/srv/db/"
owner = ["file", "unwritten"]
path = "/srv/db/*.data"
exec = [
    "/bin/sh",  # with a comment ]
    "--urgent",
]
exec-timeout = 5
signal = "SIGUSR1"
signal-to = "all"

[[rule]]
device = "pmem*"
owner = "free"
respond = "zero"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_policy(tmp_path: Path) -> None:
    policy = read_policy(write(tmp_path, GOOD))
    assert policy.limits == {"exec": 5, "signal": 20, "respond": 0}
    first, second = policy.rules
    assert first == Rule(
        name="database",
        line=6,
        filesystem="/srv/db",
        owner=("file", "unwritten"),
        path="/srv/db/*.data",
        exec=("/bin/sh", "--urgent"),
        exec_timeout=5,
        signal="SIGUSR1",
        signal_to="all",
    )
    assert first.actions == ("exec", "signal")
    assert (second.name, second.line, second.actions) == ("rule 2", 19, ("respond",))


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("exec = 5", "exec = -1", 3, "a number from 0 to 1000000, not -1"),
        ("exec = 5", "exec = true", 3, "a number from 0"),
        ("exec = 5", "exce = 5", 3, "unknown key 'exce'"),
        ("exec = 5", "exec 5", 3, "invalid TOML: Expected '='"),
        ("[limits]", "[limit]", 2, "unknown key 'limit'"),
        ('name = "database"', "name = 7", 7, "must be a non-empty string, not 7"),
        ('"/srv/db/"', '"srv"', 8, "an absolute path"),
        ('"unwritten"', '"unwriten"', 9, "one of file, unwritten, metadata"),
        ('"/bin/sh"', '"sh"', 11, "must begin with a program's path"),
        ("exec-timeout = 5", "exec-timeout = 0", 15, "a number from 1 to 3600"),
        ('"SIGUSR1"', '"USR1"', 16, "must be one of"),
        ('signal-to = "all"', 'signal-to = "some"', 17, "must be one of mapped, open, all"),
        ('signal = "SIGUSR1"\n', "", 16, "signal-to has no effect without signal"),
        ('owner = "free"', 'owner = "file"', 22, "only free space may be zeroed"),
        ('"zero"', '"restore"', 22, "needs restore-from, a folder"),
        ("[[rule]]\ndevice", "[[rules]]\ndevice", 19, "unknown key 'rules'"),
        ('"/bin/sh"', '"/bin/page"', 11, "there is no program '/bin/page'"),
        ('"/bin/sh"', '"/bin"', 11, "there is no program '/bin'"),
        ('"/bin/sh"', '"/etc/passwd"', 11, "'/etc/passwd' is not executable"),
        ('"/srv/db/"', '"/srv//db"', 8, "no mount point has the path '/srv//db': write '/srv/db'"),
        ('"/srv/db/"', '"/srv/./db"', 8, "write '/srv/db'"),
        ('"/srv/db/"', '"/proc/self/.."', 8, "write '/proc'"),
    ],
)
def test_an_error_in_the_policy_names_its_line(
    tmp_path: Path, old: str, new: str, line: int, what: str
) -> None:
    assert GOOD.count(old) == 1
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(PolicyError, match=r"policy\.toml") as error:
        read_policy(path)
    assert (error.value.line, what in str(error.value)) == (line, True), error.value


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read: No such file"):
        read_policy(tmp_path / "policy.toml")
    (tmp_path / "policy.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(PolicyError, match="not UTF-8"):
        read_policy(tmp_path / "policy.toml")


def test_a_policy_that_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "policy.toml"
    os.mkfifo(pipe)
    # It would wait for a writer.
    with pytest.raises(PolicyError, match=r"policy\.toml: not a regular file"):
        read_policy(pipe)
    with pytest.raises(PolicyError, match="not a regular file"):
        read_policy(Path("/dev/zero"))
    with pytest.raises(PolicyError, match="cannot be read: Is a directory"):
        read_policy(tmp_path)


def _let_others_write(path: Path) -> None:
    path.chmod(0o666)


def _give_away(path: Path) -> None:
    need_root()
    os.chown(path, 65534, -1)


def _share(path: Path) -> None:
    path.parent.chmod(0o1777)


@pytest.mark.parametrize("change", [_let_others_write, _give_away, _share])
def test_a_policy_that_another_user_could_write(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    # Its programs run with the rights of the daemon.
    path = write(tmp_path, GOOD)
    change(path)
    with pytest.raises(PolicyError, match=r"policy\.toml: the policy is not safe to use") as error:
        read_policy(path)
    assert error.value.hint


def test_a_program_that_another_user_could_write(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o775)
    path = write(tmp_path, f'[[rule]]\nname = "x"\nexec = ["{program}"]\n')
    with pytest.raises(PolicyError, match="line 3: the program is not safe to use") as error:
        read_policy(path)
    assert error.value.line == 3
    program.chmod(0o755)
    assert read_policy(path).rules[0].exec == (str(program),)


def test_a_mount_point_is_written_without_links(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "link").symlink_to("to")
    rule = f'[[rule]]\nfilesystem = "{tmp_path}/link"\n'
    with pytest.raises(PolicyError, match=f"line 2: .*: write '{tmp_path}/to'$"):
        read_policy(write(tmp_path, rule))
    # What is not mounted now may be later.
    (rule_of_folder,) = read_policy(write(tmp_path, rule.replace("link", "to"))).rules
    assert rule_of_folder.filesystem == f"{tmp_path}/to"
    assert parse_policy("policy.toml", rule, here=False).rules


def test_a_rule_for_every_kind_of_owner(tmp_path: Path) -> None:
    kinds = [str(row.__struct_config__.tag) for row in Owner.__subclasses__()]
    assert {"free", "unreferenced"} < set(kinds)
    for kind in kinds:
        (rule,) = read_policy(write(tmp_path, f'[[rule]]\nowner = "{kind}"\n')).rules
        assert rule.owner == (kind,)
        assert Rule("", 0).matches(kind, set(), set(), set())


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (Rule("", 0), True),
        (Rule("", 0, owner=("free",)), False),
        (Rule("", 0, filesystem="/srv"), True),
        (Rule("", 0, filesystem="/home"), False),
        (Rule("", 0, device="pmem*"), True),
        (Rule("", 0, device="sd*"), False),
        (Rule("", 0, path="/srv/*.data"), True),
        (Rule("", 0, path="*.log"), False),
    ],
)
def test_which_owners_a_rule_matches(rule: Rule, fits: bool) -> None:  # noqa: FBT001 - of the test
    paths = {"/a/b.data", "/srv/a/b.data"}
    assert rule.matches("file", {"pmem0", "namespace0.0"}, {"/srv"}, paths) is fits


def test_lines_of_everything_that_toml_has() -> None:
    text = '''a = 1
"b c".d = """
e = 2
""" # [f]
[ g . h ]
i = { j = 1, k = [
  "]", ']' ] }
[[l]]
m = \'\'\'
[[l]]
\'\'\'
[[l]]
m = 2
[l.n]
o = 3
'''
    assert tomllib.loads(text)["l"][1] == {"m": 2, "n": {"o": 3}}
    assert find_lines(text) == {
        (): 1,
        ("a",): 1,
        ("b c",): 2,
        ("b c", "d"): 2,
        ("g", "h"): 5,
        ("g", "h", "i"): 6,
        ("l",): 8,
        ("l", 0): 8,
        ("l", 0, "m"): 9,
        ("l", 1): 12,
        ("l", 1, "m"): 13,
        ("l", 1, "n"): 14,
        ("l", 1, "n", "o"): 15,
    }


VALUES = st.one_of(
    st.integers(),
    st.booleans(),
    st.text("ab\"'#[]{}=\\\n ", max_size=8),
    st.lists(st.text("ab]#'", max_size=4), max_size=3),
)


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[\n" + "".join(f"  {as_toml(one)}, # ]\n" for one in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return str(value)


@given(st.lists(st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES), max_size=4))
def test_every_key_is_found_on_its_line(tables: list[dict[str, object]]) -> None:
    text = ""
    expected: dict[Key, int] = {(): 1}
    for number, table in enumerate(tables):
        expected[("rule", number)] = text.count("\n") + 1
        text += "[[rule]]\n"
        for key, value in table.items():
            expected[("rule", number, key)] = text.count("\n") + 1
            text += f"{key} = {as_toml(value)}\n"
    tomllib.loads(text)
    found = find_lines(text)
    assert {key: found.get(key) for key in expected} == expected


@given(st.text(max_size=200))
def test_arbitrary_files_of_the_spool_are_handled(text: str) -> None:
    find_lines(text)
