"""JSON that programs print: nothing is where one expects it until one has looked."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from whoseblock.errors import MalformedError

__all__ = ["as_list", "as_number", "as_text", "find", "objects", "read_documents"]

#: int() alone would also take spaces, underscores and digits of other scripts.
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", re.ASCII)
_MOST: Final = 1 << 63


def read_documents(text: str, name: str, expected: str) -> list[Any]:
    """Read every JSON document in ``text``, one after another.

    Raises `MalformedError` with the line where it is not JSON, and if there is nothing.
    """
    decoder = json.JSONDecoder()
    documents = []
    at = _skip(text, 0)
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            raise MalformedError(name, line, expected) from None
        documents.append(document)
        at = _skip(text, at)
    if not documents:
        raise MalformedError(name, None, expected)
    return documents


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def as_list(value: Any) -> list[Any]:  # noqa: ANN401 - whatever JSON holds
    """Give a list as it is, what is missing as an empty one, and anything else as one element."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def as_text(value: Any) -> str:  # noqa: ANN401
    """Give a text as it is, and anything else as none."""
    return value if isinstance(value, str) else ""


def as_number(value: Any, name: str, expected: str) -> int:  # noqa: ANN401
    """Give a whole number, also one written as text; raises `MalformedError`."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value, 16 if value[:2] in ("0x", "0X") else 10)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
        raise MalformedError(name, None, expected)
    return value


def find(value: Any, *path: str) -> Any:  # noqa: ANN401
    """Give what lies below ``value`` along the names of ``path``, None if it is not there."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def objects(value: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Give every object in ``value``, those within others too, from outside to inside."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield one
            todo += reversed(list(one.values()))
        elif isinstance(one, list):
            todo += reversed(one)
