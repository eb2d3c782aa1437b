"""Read the policy, a TOML file that says what is done about a failure.

::

    [limits]                     # at most so many in an hour
    exec = 60

    [[rule]]
    name = "tell the database"
    filesystem = "/srv/db"       # a mount point; or device = "pmem*"
    owner = ["file"]
    path = "/srv/db/*.data"
    signal = "SIGUSR1"
    exec = ["/usr/local/sbin/page-me"]

Each owner of the failed bytes gets the first rule that matches it.  Without a rule, a failure is
journaled and logged, as every failure is.
"""

import os
import re
import signal
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from whoseblock.errors import PolicyError
from whoseblock.media.mounts import read_mounts
from whoseblock.media.trusted_files import UntrustedFileError, check_file, find_trusted
from whoseblock.watch.policy.rules import (
    LIMITS,
    OWNERS,
    ActionKind,
    OwnerKind,
    Policy,
    Respond,
    Rule,
    Users,
)
from whoseblock.watch.policy.toml_lines import Key, find_lines

__all__ = ["parse_policy", "read_policy", "read_text"]

_MAX_LIMIT: Final = 1_000_000
_MAX_TIMEOUT_S: Final = 3600
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SIGNALS: Final = tuple(signal.Signals.__members__)
_Limit = Annotated[int, Meta(ge=0, le=_MAX_LIMIT)]
_Text = Annotated[str, Meta(pattern=r"\A[^\0]+\Z")]
_AbsolutePath = Annotated[str, Meta(pattern=r"\A/[^\0]*\Z")]
_SignalName = Annotated[str, Meta(pattern=rf"\A(?:{'|'.join(_SIGNALS)})\Z")]
#: What each key may be, for messages.
_EXPECTED: Final = {
    "limits": "a table",
    **dict.fromkeys(
        ("limits.exec", "limits.signal", "limits.respond"), f"a number from 0 to {_MAX_LIMIT}"
    ),
    "rule": "a table, written as [[rule]]",
    **dict.fromkeys(("name", "device", "path"), "a non-empty string"),
    **dict.fromkeys(("filesystem", "restore-from"), "an absolute path"),
    "owner": f"one of {', '.join(OWNERS)}, or a list of them",
    "exec": "a list of strings",
    "exec-timeout": f"a number from 1 to {_MAX_TIMEOUT_S}",
    "signal": f"one of {', '.join(_SIGNALS)}",
    "signal-to": f"one of {', '.join(get_args(Users))}",
    "respond": f"one of {', '.join(get_args(Respond))}",
}
#: A step of a path in a message of msgspec: a key or an index.
_STEP: Final = re.compile(r"\.([^.\[]+)|\[([0-9]+)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_LINE: Final = re.compile(r"\(at line ([0-9]+), column [0-9]+\)$")


def read_policy(path: Path) -> Policy:
    """Read a policy file; raises `PolicyError` with the line of the error."""
    return parse_policy(str(path), read_text(path))


def read_text(path: Path) -> str:
    """Read a policy file as text; raises `PolicyError`.

    It must be a regular file: a pipe would have to be waited for, and cannot be read again.  No
    other user may be able to write or replace it, since it names programs to run.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, encoding="utf-8") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise PolicyError(str(path), None, "not a regular file")
            check_file(find_trusted("the policy", path.absolute(), make=False))
            return opened.read()
    except UntrustedFileError as error:
        raise PolicyError(str(path), None, str(error), hint=error.hint) from error
    except OSError as error:
        raise PolicyError(str(path), None, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(str(path), None, "not UTF-8") from error


def parse_policy(name: str, text: str, *, here: bool = True) -> Policy:
    """Parse the policy in the file ``name``; raises `PolicyError` with the line of the error.

    ``here`` refuses programs and mount points that this machine cannot have.
    """
    try:
        document = tomllib.loads(text)
        return _Parser(name, document, find_lines(text)).parse(here=here)
    except tomllib.TOMLDecodeError as error:
        at = _LINE.search(str(error))
        what = _LINE.sub("", str(error)).strip()
        raise PolicyError(name, int(at[1]) if at else None, f"invalid TOML: {what}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets nested thousands deep.
        raise PolicyError(name, None, f"cannot be read: {error}") from error


class _Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[limits]``."""

    exec: _Limit = LIMITS["exec"]
    signal: _Limit = LIMITS["signal"]
    respond: _Limit = LIMITS["respond"]


class _RuleTable(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A table ``[[rule]]``; what is None is not in the file."""

    name: _Text | None = None
    filesystem: _AbsolutePath | None = None
    device: _Text | None = None
    owner: OwnerKind | Annotated[tuple[OwnerKind, ...], Meta(min_length=1)] | None = None
    path: _Text | None = None
    exec: Annotated[tuple[_Text, ...], Meta(min_length=1)] | None = None
    exec_timeout: Annotated[int, Meta(ge=1, le=_MAX_TIMEOUT_S)] | None = None
    signal: _SignalName | None = None
    signal_to: Users | None = None
    respond: Respond | None = None
    restore_from: _AbsolutePath | None = None

    def rule(self, number: int, line: int) -> Rule:
        """Return the rule, with defaults for what the file does not set."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        values = {"name": f"rule {number + 1}"} | values
        if isinstance(self.owner, str):
            values["owner"] = (self.owner,)
        for name in ("filesystem", "restore_from"):
            if name in values:
                values[name] = values[name].rstrip("/") or "/"
        return Rule(line=line, **values)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield the keys whose values conflict with those of other keys, and why."""
        owners = {self.owner} if isinstance(self.owner, str) else set(self.owner or OWNERS)
        if self.exec and not self.exec[0].startswith("/"):
            yield "exec", f"must begin with a program's path, not {self.exec[0]!r}"
        if self.respond == "restore" and self.restore_from is None:
            yield "respond", 'respond = "restore" needs restore-from, a folder'
        if self.respond == "zero" and owners != {"free"}:
            yield "respond", 'only free space may be zeroed: set owner = ["free"]'
        if self.respond == "restore" and owners != {"file"}:
            yield "respond", 'only files can be restored: set owner = ["file"]'
        for key, value, needed, there in (
            ("exec-timeout", self.exec_timeout, "exec", self.exec),
            ("signal-to", self.signal_to, "signal", self.signal),
            ("restore-from", self.restore_from, "respond", self.respond),
        ):
            if value is not None and there is None:
                yield key, f"{key} has no effect without {needed}"

    def absences(self) -> Iterator[tuple[str, str]]:
        """Yield the keys that name what this machine cannot have, and why."""
        if self.exec:
            program = Path(self.exec[0])
            if not program.is_file():
                yield "exec", f"there is no program {self.exec[0]!r}"
            elif not os.access(program, os.X_OK):
                yield "exec", f"{self.exec[0]!r} is not executable"
            elif why := _why_not_trusted(program):
                yield "exec", why
        if self.filesystem is not None:
            point = self.filesystem.rstrip("/") or "/"
            # The kernel lists mount points without links, double slashes, "." and "..".  Nothing
            # below a mount is touched, since its server or disk may not answer.
            mounts = read_mounts(os.fsdecode(_MOUNTS.read_bytes()))
            mounted = any(mount.point == point for mount in mounts)
            real = point if mounted else os.path.realpath(point)
            if real != point:
                yield "filesystem", f"no mount point has the path {point!r}: write {real!r}"


def _why_not_trusted(program: Path) -> str:
    """Return who else could write or replace a program, "" if no other user can."""
    try:
        check_file(find_trusted("the program", program, make=False))
    except UntrustedFileError as error:
        return str(error)
    except OSError as error:
        return f"{str(program)!r} cannot be checked: {error.strerror}"
    return ""


class _PolicyTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    limits: _Limits = _Limits()
    rule: tuple[_RuleTable, ...] = ()


class _Parser:
    """Converts a document to a policy, and errors to those with the lines of keys."""

    def __init__(self, name: str, document: dict[str, Any], lines: Mapping[Key, int]) -> None:
        self._name = name
        self._document = document
        self._lines = lines

    def parse(self, *, here: bool) -> Policy:
        """Validate the document, and with ``here`` what it names; raises `PolicyError`."""
        try:
            table = msgspec.convert(self._document, _PolicyTable)
        except msgspec.ValidationError as error:
            raise self._explain(str(error)) from None
        for number, one in enumerate(table.rule):
            for key, why in (*one.faults(), *(one.absences() if here else ())):
                raise self._error(("rule", number, key), why)
        rules = (
            one.rule(number, self._lines.get(("rule", number), 0))
            for number, one in enumerate(table.rule)
        )
        limits = {kind: getattr(table.limits, kind) for kind in get_args(ActionKind)}
        return Policy(tuple(rules), MappingProxyType(limits))

    def _error(self, where: Key, what: str, hint: str = "") -> PolicyError:
        """Return the error for a key; a missing key is reported at the line of its table."""
        at = where
        while at and at not in self._lines:
            at = at[:-1]
        return PolicyError(self._name, self._lines.get(at), what, hint=hint)

    def _explain(self, error: str) -> PolicyError:
        """Return the error of msgspec with the line, the value and what is expected."""
        what, _, path = error.partition(" - at `$")
        where: Key = tuple(
            int(number) if number else name for name, number in _STEP.findall(path.rstrip("`"))
        )
        if unknown := _UNKNOWN.fullmatch(what):
            tables: dict[Key, type[Struct]] = {(): _PolicyTable, ("limits",): _Limits}
            known = tables.get(where, _RuleTable).__struct_encode_fields__
            hint = f"valid keys: {', '.join(known)}"
            return self._error((*where, unknown[1]), f"unknown key {unknown[1]!r}", hint)
        value: Any = self._document
        for step in where:
            value = value[step]
        names = [step for step in where if isinstance(step, str)]
        expected = _EXPECTED.get(".".join(names)) or _EXPECTED[names[-1]]
        return self._error(where, f"must be {expected}, not {value!r}")
