"""Read JSON that another program may have stored in an unexpected form."""

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from whoseblock.fs.base import (
    Answer,
    FileOwner,
    Free,
    MetadataOwner,
    Outside,
    Owner,
    Staging,
    Unknown,
    Unreferenced,
)
from whoseblock.journal.records import Finding

__all__ = ["answer_of", "as_answer", "as_object", "as_texts"]


def as_object(value: object) -> dict[str, Any]:
    """Return a stored object; an empty one if another program stored something else."""
    return value if isinstance(value, dict) else {}


def as_texts(value: object) -> tuple[str, ...]:
    """Return a stored list of texts; an empty one if another program stored something else."""
    return tuple(map(str, value)) if isinstance(value, list) else ()


class _StoredOwner(Struct):
    """The part of a row of an answer on which readers rely."""

    start: int
    length: int
    paths: list[str] | UnsetType | None = UNSET


class _StoredAnswer(Struct):
    """The part of an answer on which readers rely."""

    start: int
    length: int
    owners: list[_StoredOwner]


def as_answer(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a stored answer; one without owners if another program stored something else."""
    try:
        msgspec.convert(answer, _StoredAnswer)
    except msgspec.ValidationError:
        return {"start": 0, "length": 0, "owners": []}
    return answer


_Row = FileOwner | MetadataOwner | Free | Staging | Unreferenced | Outside | Unknown


def answer_of(finding: Finding) -> Answer:
    """Convert the answer that was journaled as JSON."""
    stored = finding.answer
    rows: list[Owner] = []
    for row in stored["owners"]:
        try:
            # A later version may know kinds of owners that this one does not.
            rows.append(msgspec.convert(row, type=_Row))
        except msgspec.ValidationError:
            rows.append(Unknown(start=row["start"], length=row["length"]))
    remarks = stored.get("remarks")
    return Answer(
        stored["start"],
        stored["length"],
        finding.complete,
        finding.notes,
        tuple(rows),
        remarks=tuple(map(str, remarks)) if isinstance(remarks, list) else UNSET,
    )
