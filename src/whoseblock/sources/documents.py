"""Access JSON documents of other programs without assumptions about their structure."""

import json
from collections.abc import Iterator
from typing import Any, Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import MAX_OFFSET, parse_number

__all__ = ["as_list", "as_number", "as_text", "find", "iterate_objects", "read_documents"]


#: Limit on the values in a document, each of which takes up to some hundred bytes.
_MAX_VALUES: Final = 1 << 22


def read_documents(text: str, name: str, expected: str) -> list[Any]:
    """Parse all JSON documents in ``text``, one after another.

    Raises `MalformedError` with the line of invalid JSON, if there is no document, and for more
    values than fit in a bounded memory.
    """
    if text.count(",") + text.count("[") + text.count("{") > _MAX_VALUES:
        raise MalformedError(name, None, f"a document of less than {_MAX_VALUES} values")
    decoder = json.JSONDecoder()
    documents = []
    at = _skip_space(text, 0)
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            raise MalformedError(name, line, expected) from None
        documents.append(document)
        at = _skip_space(text, at)
    if not documents:
        raise MalformedError(name, None, expected)
    return documents


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def as_list(value: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
    """Return a list unchanged, None as an empty list, and any other value as its only element."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def as_text(value: Any) -> str:  # noqa: ANN401
    """Return *value* if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def as_number(value: Any, name: str, expected: str) -> int:  # noqa: ANN401
    """Return a whole number, also from a string; raises `MalformedError`."""
    if isinstance(value, str):
        value = parse_number(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_OFFSET:
        raise MalformedError(name, None, expected)
    return value


def find(value: Any, *path: str) -> Any:  # noqa: ANN401
    """Return the value below ``value`` along the keys of ``path``, None if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def iterate_objects(value: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Yield every object in ``value``, nested ones after those around them."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            yield one
            pending += reversed(list(one.values()))
        elif isinstance(one, list):
            pending += reversed(one)
