"""Signatures: which format a device or an image has, and how to go on."""

from whoseblock.signatures.base import (
    Kind,
    Read,
    Signature,
    find_signatures,
)
from whoseblock.signatures.table import SIGNATURES

__all__ = ["SIGNATURES", "Kind", "Read", "Signature", "find_signatures"]
