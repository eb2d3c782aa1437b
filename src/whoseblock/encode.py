"""Encode records as JSON."""

import json
from functools import cache

import msgspec

__all__ = ["encode_json"]


@cache
def _encoder() -> msgspec.json.Encoder:
    return msgspec.json.Encoder()


def encode_json(record: object) -> bytes:
    """Encode a record on one line."""
    try:
        return _encoder().encode(record)
    except UnicodeEncodeError:
        # Lone surrogates represent bytes that are not UTF-8; only json escapes them.
        return json.dumps(msgspec.to_builtins(record)).encode()
