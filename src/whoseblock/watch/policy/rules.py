"""The rules of a policy and its limits, as `whoseblock.watch.policy.parsing` reads them."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, get_args

__all__ = [
    "DEFAULT",
    "LIMITS",
    "OWNERS",
    "ActionKind",
    "OwnerKind",
    "Policy",
    "Respond",
    "Rule",
    "Users",
]

ActionKind = Literal["exec", "signal", "respond"]
Respond = Literal["zero", "restore"]
Users = Literal["mapped", "open", "all"]

#: The kinds of owners of an answer. Files whose block was never written are a kind of their own,
#: since they lose nothing.
OwnerKind = Literal[
    "file", "unwritten", "metadata", "free", "staging", "unreferenced", "outside", "unknown"
]
OWNERS: Final = get_args(OwnerKind)
#: The default limits, in steps an hour.
LIMITS: Final[Mapping[ActionKind, int]] = MappingProxyType(
    {"exec": 60, "signal": 20, "respond": 10}
)


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
    limits: Mapping[ActionKind, int] = LIMITS


#: Journal and log only.
DEFAULT: Final = Policy()
