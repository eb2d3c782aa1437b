"""Access JSON documents of other programs without assumptions about their structure."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from whoseblock.errors import MalformedError
from whoseblock.sources.base import MAX_OFFSET, parse_number, quote, shorten

__all__ = ["Documents", "as_list", "as_text", "find", "iterate_objects", "read_documents"]

#: Limit on the values in a document, each of which takes up to some hundred bytes.
_MAX_VALUES: Final = 1 << 22
#: Limit on either end of a JSON path in an error, in characters.
_MAX_PATH_END: Final = 80
#: The keys that need no quotes in a JSON path.
_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Documents(NamedTuple):
    """The JSON documents of one input, called ``name`` in errors.

    Errors name the JSON path of a value, which follows from an object of a document and the steps
    from there. Steps are keys of objects and indexes of lists; `as_list` may have made such a list.
    """

    name: str
    values: list[Any]

    def number(self, start: dict[str, Any], *steps: str | int, expected: str) -> int:
        """Return the whole number at ``steps``, also from a string; raises `MalformedError`."""
        value = find(start, *steps)
        if isinstance(value, str):
            value = parse_number(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_OFFSET:
            raise self.error(expected, start, *steps)
        return value

    def error(self, expected: str, start: Any, *steps: str | int, hint: str = "") -> MalformedError:  # noqa: ANN401
        """Return an error with the path of the value at ``steps``.

        The path ends at the first value that is no object or list.
        """
        path = ""
        for number, document in enumerate(self.values, 1):
            above = _locate(document, start)
            if above is not None:
                path = _format_path([*above, *_present(start, steps)])
                path = f"document {number}, {path}" if len(self.values) > 1 else path
                break
        return MalformedError(self.name, None, expected, hint=hint, path=path)


def _locate(document: Any, wanted: Any) -> list[str | int] | None:  # noqa: ANN401
    """Return the steps from a document to an object or list in it, None if it is elsewhere."""
    if document is wanted:
        return []
    steps: list[str | int] = []
    pending = [_iterate_steps(document)]
    while pending:
        for step, value in pending[-1]:
            if not isinstance(value, dict | list):
                continue
            steps.append(step)
            if value is wanted:
                return steps
            pending.append(_iterate_steps(value))
            break
        else:
            pending.pop()
            del steps[-1:]
    return None


def _iterate_steps(value: Any) -> Iterator[tuple[str | int, Any]]:  # noqa: ANN401
    if isinstance(value, dict):
        return iter(value.items())
    return enumerate(value if isinstance(value, list) else ())


def _present(value: Any, steps: Iterable[str | int]) -> Iterator[str | int]:  # noqa: ANN401
    """Yield the steps from ``value`` up to the first value that is no object or list."""
    for step in steps:
        if isinstance(step, str) and isinstance(value, dict):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list):
            value = value[step]
        elif isinstance(step, str) or step:
            return
        else:
            # The only element of what `as_list` made a list.
            continue
        yield step


def _format_path(steps: Iterable[str | int]) -> str:
    """Return a JSON path (RFC 9535), with long names and the middle of a long path cut."""
    path = "$" + "".join(map(_format_step, steps))
    if len(path) <= 2 * _MAX_PATH_END:
        return path
    return f"{path[:_MAX_PATH_END]}…{path[-_MAX_PATH_END:]}"


def _format_step(step: str | int) -> str:
    if isinstance(step, str):
        return f".{shorten(step)}" if _PLAIN_KEY.fullmatch(step) else f"[{quote(step)}]"
    return f"[{step}]"


def read_documents(text: str, name: str, expected: str) -> Documents:
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
    return Documents(name, documents)


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


def find(value: Any, *steps: str | int) -> Any:  # noqa: ANN401
    """Return the value below ``value`` along the keys and indexes, None if there is none."""
    for step in steps:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            inner = as_list(value)
            value = inner[step] if step < len(inner) else None
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
