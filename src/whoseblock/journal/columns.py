"""Column types that store every value exactly, in SQLite and in PostgreSQL.

Neither takes every Python string: PostgreSQL refuses NUL and lone surrogates in a text, SQLite the
latter, and paths, command lines and what users say may hold both.
"""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, DateTime, Dialect, Integer, LargeBinary, Text, TypeDecorator

__all__ = ["Id", "JsonText", "PathBytes", "Plain", "Unsigned", "Utc", "digest", "path_digest"]

#: SQLite numbers the rows of a table only by an INTEGER.
Id: Final = BigInteger().with_variant(Integer, "sqlite")

_UNSTORABLE: Final = re.compile("[\\\\\0\ud800-\udfff]")
_LONG_NUMBER: Final = re.compile("[0-9]{20}")
_ESCAPED: Final = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")


class Plain(TypeDecorator[str]):
    r"""Any text, in readable form: NUL and surrogates as ``\u0000``, and a backslash doubled."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        """Escape."""
        return None if value is None else _UNSTORABLE.sub(_escape, value)

    def process_result_value(self, value: str | None, _dialect: Dialect) -> str | None:
        """Undo the escapes."""
        return None if value is None else _ESCAPED.sub(_unescape, value)


def _escape(match: re.Match[str]) -> str:
    return r"\\" if match[0] == "\\" else f"\\u{ord(match[0]):04x}"


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else "\\"


class JsonText(TypeDecorator[Any]):
    """Any JSON value, as ASCII: PostgreSQL's own JSON types refuse some of them."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Dialect) -> str:  # noqa: ANN401 - JSON
        """Write JSON."""
        return json.dumps(value, allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, _dialect: Dialect) -> Any:  # noqa: ANN401 - JSON
        """Read JSON; return None for a text that another program wrote and that is no JSON."""
        if value is None:
            return None
        try:
            return json.loads(value, parse_int=_number if _LONG_NUMBER.search(value) else None)
        except (ValueError, OverflowError, RecursionError):
            return None


def _number(text: str) -> int | float:
    """Return an integer of 64 bits, and a float for a longer one, which could not be exported."""
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 64 else float(text)


class PathBytes(TypeDecorator[str]):
    """A path, as the bytes that the filesystem stores."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> bytes | None:
        """Return the bytes."""
        return None if value is None else value.encode("utf-8", "surrogateescape")

    def process_result_value(self, value: bytes | None, _dialect: Dialect) -> str | None:
        """Return the text, with lone surrogates for bytes that are not UTF-8."""
        return None if value is None else value.decode("utf-8", "surrogateescape")


class Unsigned(TypeDecorator[int]):
    """An unsigned number of 64 bits, in a column of signed ones."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, _dialect: Dialect) -> int | None:
        """Return the signed number of the same bits."""
        return value - (1 << 64) if value is not None and value >= 1 << 63 else value

    def process_result_value(self, value: int | None, _dialect: Dialect) -> int | None:
        """Return the unsigned number of the same bits."""
        return value + (1 << 64) if value is not None and value < 0 else value


class Utc(TypeDecorator[datetime]):
    """A time in UTC, to the microsecond."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Convert the time to UTC, which SQLite does not do."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(
        self, value: datetime | str | None, _dialect: Dialect
    ) -> datetime | None:
        """Mark the time as UTC, which SQLite does not do; return the year 1 for infinity."""
        if isinstance(value, str):
            return datetime.min.replace(tzinfo=UTC)
        if value is None or value.tzinfo is not None:
            return None if value is None else value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


def digest(data: bytes) -> int:
    """Return a digest of ``data`` of 64 bits, as a signed number."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def path_digest(path: str) -> int:
    """Return the digest that indexes a path: an index of PostgreSQL refuses long paths."""
    return digest(path.encode("utf-8", "surrogateescape"))
