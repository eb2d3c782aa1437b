"""Records as JSON."""

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
        # Lone surrogates stand for bytes that are not UTF-8; msgspec does not escape them.
        return json.dumps(msgspec.to_builtins(record)).encode()
