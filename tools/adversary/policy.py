"""Which wrong answers nothing on the disk could have prevented, and why."""

from tools.adversary.verdicts import Verdict
from tools.adversary.wounds import Wounds

__all__ = ["inherent_reason"]


def inherent_reason(wounds: Wounds, verdict: Verdict) -> str:
    """Return why a wrong answer is inherent, or "" if it is a defect of the program.

    An adversary who can write blocks with right checksums can write a whole consistent
    filesystem; so a lie may give a wrong owner.  It must not make used space free as long as
    it is one lie, because the reverse map and the free-space btree are two structures.  A
    superblock is the only word about the geometry, and many lies may agree.
    """
    if wounds.kind == "lies" and not verdict.fault.startswith("form"):
        return "several sealed lies may agree with each other"
    if wounds.kind == "one lie":
        if wounds.units[0].kind == "superblock" and not verdict.fault.startswith("form"):
            return "a sealed superblock is the only word about the geometry"
        if not verdict.fault.startswith(("form", "free")):
            return "a sealed lie cannot be told from an honest record"
    return ""
