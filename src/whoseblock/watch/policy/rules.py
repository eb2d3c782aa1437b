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

import re
import signal
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, get_args

from whoseblock.errors import PolicyError
from whoseblock.watch.policy.toml_lines import Key, find_lines

__all__ = ["DEFAULT", "ActionKind", "Policy", "Respond", "Rule", "Users", "read_policy"]

ActionKind = Literal["exec", "signal", "respond"]
Respond = Literal["zero", "restore"]
Users = Literal["mapped", "open", "all"]

#: The kinds of owners of an answer. Files whose block was never written are a kind of their own,
#: since they lose nothing.
OWNERS: Final = ("file", "unwritten", "metadata", "free", "staging", "outside", "unknown")
_LIMITS: Final[Mapping[ActionKind, int]] = MappingProxyType(
    {"exec": 60, "signal": 20, "respond": 10}
)
_MAX_LIMIT: Final = 1_000_000
_MAX_TIMEOUT_S: Final = 3600
_CHOICES: Final = {
    "signal": tuple(signal.Signals.__members__),
    "signal-to": get_args(Users),
    "respond": get_args(Respond),
}
_LINE: Final = re.compile(r"\(at line ([0-9]+), column [0-9]+\)$")


class Rule(NamedTuple):
    """One rule: what it matches, and what is done then.

    ``line`` is where it begins. Patterns are those of fnmatch, where * also matches /. Keys that
    are not set match everything or do nothing.
    """

    name: str
    line: int
    filesystem: str = ""
    device: str = ""
    owner: tuple[str, ...] = OWNERS
    path: str = ""
    exec: tuple[str, ...] = ()
    exec_timeout: int = 30
    signal: str = ""
    signal_to: Users = "mapped"
    respond: Respond | None = None
    restore_from: str = ""

    def matches(self, kind: str, devices: set[str], points: set[str], paths: set[str]) -> bool:
        """Return whether the rule matches an owner.

        ``devices`` are the layers from the failure to its filesystem, ``points`` its mount points,
        and ``paths`` those of the file.
        """
        return (
            kind in self.owner
            and (not self.filesystem or self.filesystem in points)
            and (not self.device or any(fnmatchcase(name, self.device) for name in devices))
            and (not self.path or any(fnmatchcase(path, self.path) for path in paths))
        )

    @property
    def actions(self) -> tuple[ActionKind, ...]:
        """The actions of the rule, in the order in which they are performed."""
        wanted: dict[ActionKind, object] = {
            "exec": self.exec,
            "signal": self.signal,
            "respond": self.respond,
        }
        return tuple(kind for kind, value in wanted.items() if value)


class Policy(NamedTuple):
    """The rules in their order, and the hourly limits."""

    rules: tuple[Rule, ...] = ()
    limits: Mapping[ActionKind, int] = _LIMITS


#: Journal and log only.
DEFAULT: Final = Policy()


def read_policy(path: Path) -> Policy:
    """Read a policy file; raises `PolicyError` with the line of the error."""
    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text)
        return _PolicyParser(str(path), find_lines(text)).policy(document)
    except OSError as error:
        raise PolicyError(str(path), None, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(str(path), None, "not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        at = _LINE.search(str(error))
        what = _LINE.sub("", str(error)).strip()
        raise PolicyError(str(path), int(at[1]) if at else None, f"invalid TOML: {what}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets nested thousands deep.
        raise PolicyError(str(path), None, f"cannot be read: {error}") from error


class _PolicyParser:
    """Builds a policy from the parsed document, and knows the lines of its keys."""

    def __init__(self, name: str, lines: Mapping[Key, int]) -> None:
        self._name = name
        self._lines = lines

    def _error(self, where: Key, what: str, hint: str = "") -> PolicyError:
        """Return the error for a key; a missing key is reported at the line of its table."""
        at = where
        while at and at not in self._lines:
            at = at[:-1]
        return PolicyError(self._name, self._lines.get(at), what, hint=hint)

    def policy(self, document: dict[str, Any]) -> Policy:
        self._check_keys((), document, ("limits", "rule"))
        limits = self._table(("limits",), document.get("limits", {}))
        self._check_keys(("limits",), limits, get_args(ActionKind))
        most = {**_LIMITS}
        for kind in get_args(ActionKind):
            if kind in limits:
                most[kind] = self._number(("limits", kind), limits[kind], 0, _MAX_LIMIT)
        rules = document.get("rule", [])
        if not isinstance(rules, list):
            raise self._error(("rule",), "rules are written as [[rule]]")
        made = tuple(
            self._rule(("rule", number), self._table(("rule", number), rule))
            for number, rule in enumerate(rules)
        )
        return Policy(made, MappingProxyType(most))

    def _rule(self, at: Key, rule: dict[str, Any]) -> Rule:
        names = (name.replace("_", "-") for name in Rule._fields if name != "line")
        self._check_keys(at, rule, tuple(names))
        values: dict[str, Any] = {"name": f"rule {int(at[1]) + 1}", "line": self._lines.get(at, 0)}
        for name, value in rule.items():
            values[name.replace("-", "_")] = self._value(at, name, value)
        made = Rule(**values)
        self._check(at, made, rule)
        return made

    def _value(self, at: Key, name: str, value: object) -> object:
        """Return one value of a rule, validated by itself."""
        where = (*at, name)
        if name in ("owner", "exec"):
            return self._list(where, value)
        if name == "exec-timeout":
            return self._number(where, value, 1, _MAX_TIMEOUT_S)
        text = self._text(where, value)
        if name in _CHOICES:
            return self._one_of(where, text, _CHOICES[name])
        if name in ("filesystem", "restore-from"):
            if not text.startswith("/"):
                raise self._error(where, f"must be an absolute path, not {text!r}")
            return text.rstrip("/") or "/"
        return text

    def _list(self, at: Key, value: object) -> tuple[str, ...]:
        """Return the kinds of owners, which may be a single one, or the words of a command."""
        if at[-1] == "exec":
            command = self._words(at, value)
            if not command[0].startswith("/"):
                raise self._error(at, f"must begin with a program's path, not {command[0]!r}")
            return command
        return tuple(
            self._one_of(at, word, OWNERS)
            for word in self._words(at, [value] if isinstance(value, str) else value)
        )

    def _check(self, at: Key, rule: Rule, given: Mapping[str, object]) -> None:
        """Check that the values of a rule are consistent."""
        if rule.respond == "restore" and not rule.restore_from:
            raise self._error((*at, "respond"), 'respond = "restore" needs restore-from, a folder')
        if rule.respond == "zero" and rule.owner != ("free",):
            why = 'only free space may be zeroed: set owner = ["free"]'
            raise self._error((*at, "respond"), why)
        if rule.respond == "restore" and not set(rule.owner) <= {"file"}:
            why = 'only files can be restored: set owner = ["file"]'
            raise self._error((*at, "respond"), why)
        for needs, needed in (
            ("exec-timeout", "exec"),
            ("signal-to", "signal"),
            ("restore-from", "respond"),
        ):
            if needs in given and needed not in given:
                raise self._error((*at, needs), f"{needs} has no effect without {needed}")

    # ------------------------------------------------------------------ values

    def _check_keys(self, at: Key, table: Mapping[str, object], known: tuple[str, ...]) -> None:
        for name in table:
            if name not in known:
                hint = f"valid keys: {', '.join(known)}"
                raise self._error((*at, name), f"unknown key {name!r}", hint)

    def _table(self, at: Key, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(at, "must be a table")
        return value

    def _text(self, at: Key, value: object) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise self._error(at, f"must be a non-empty string, not {value!r}")
        return value

    def _words(self, at: Key, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise self._error(at, "must be a list of strings")
        return tuple(self._text(at, word) for word in value)

    def _number(self, at: Key, value: object, least: int, most: int) -> int:
        # True is an int too.
        if type(value) is not int or not least <= value <= most:
            raise self._error(at, f"must be a number from {least} to {most}, not {value!r}")
        return value

    def _one_of(self, at: Key, word: str, known: tuple[str, ...]) -> str:
        if word not in known:
            raise self._error(at, f"must be one of {', '.join(known)}, not {word!r}")
        return word
