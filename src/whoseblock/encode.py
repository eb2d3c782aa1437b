"""Encode records as JSON."""

from collections.abc import Sequence
from functools import cache

import msgspec

__all__ = ["encode_json", "encode_lines"]


@cache
def _encoder() -> msgspec.json.Encoder:
    return msgspec.json.Encoder()


def encode_lines(records: Sequence[object]) -> bytes:
    """Encode each record on a line of its own."""
    try:
        return _encoder().encode_lines(records)
    except UnicodeEncodeError:
        return b"".join(encode_json(record) + b"\n" for record in records)


def encode_json(record: object) -> bytes:
    """Encode a record on one line."""
    try:
        return _encoder().encode(record)
    except UnicodeEncodeError:
        # Lone surrogates represent bytes that are not UTF-8; only json escapes them.
        import json

        return json.dumps(msgspec.to_builtins(record)).encode()
