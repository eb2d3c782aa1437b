"""The result of one check."""

from enum import StrEnum

from msgspec import Struct

__all__ = ["Check", "State"]


class State(StrEnum):
    """The state of what was checked."""

    WORKS = "works"
    #: It works in part, or slower than it could.
    LIMITED = "limited"
    MISSING = "missing"
    #: It cannot be checked with the present rights.
    UNKNOWN = "unknown"


class Check(Struct, frozen=True):
    """One thing that was checked.

    ``area`` groups checks, and ``name`` says what was checked.  ``detail`` completes the state, and
    ``remedy`` is what to do, "" if there is nothing to do.
    """

    area: str
    name: str
    state: State
    detail: str
    remedy: str = ""
