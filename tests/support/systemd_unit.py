"""The daemon's unit for systemd: what it lets the daemon do."""

import re

from tests.support.tools import CHECKOUT

__all__ = ["SOCKET", "UNIT", "as_the_unit", "capabilities"]

UNIT = CHECKOUT / "src/whoseblock/watch/whoseblock-watch.service"
SOCKET = UNIT.with_suffix(".socket")


def capabilities() -> list[str]:
    """Return the capabilities that the unit leaves, as it names them."""
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
    return [word for line in lines for word in line.split()]


def as_the_unit(without: str = "") -> list[str]:
    """Return a command that leaves the next one only the capabilities that systemd would.

    What else the unit forbids is tested under systemd, in tests/vm/guest/test_unit.py.
    """
    kept = (name for name in capabilities() if name != without)
    names = [f"+{name.removeprefix('CAP_').lower()}" for name in kept]
    return ["setpriv", "--bounding-set", ",".join(["-all", *names])]
