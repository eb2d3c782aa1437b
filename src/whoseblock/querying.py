"""Query a volume: the owners of ranges, the processes that use them, and whether they changed."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from msgspec import UNSET
from msgspec.structs import replace

from whoseblock.encode import encode_json
from whoseblock.fs.base import Answer, FileOwner, Owner, Process, distinct
from whoseblock.fs.driver import AddressSpace, MountedVolume
from whoseblock.fs.stream import ROW_BUDGET, LeadingRows, chunks, join_rows

if TYPE_CHECKING:
    from hashlib import blake2b

    from whoseblock.processes import Found, Wanted

__all__ = ["FileDevices", "QueryOptions", "StreamItem", "find_users", "stream_owners"]

StreamItem = LeadingRows | Answer

_CAP_SYS_PTRACE: Final = 19  # linux/capability.h


class QueryOptions(NamedTuple):
    """The content of answers.

    ``paths`` of files; the ``processes`` that use them on a mounted filesystem; whether the owners
    are ``verified`` by a second query at the end.  ``bare`` leaves ``via`` out where a filesystem's
    own device was queried.
    """

    paths: bool = True
    processes: bool = False
    verified: bool = False
    bare: bool = False

    @property
    def bare_rows(self) -> bool:
        """Whether rows are those of the filesystem, with nothing added."""
        return not (self.paths or self.processes or self.verified)


def stream_owners(
    space: AddressSpace, wanted: Sequence[tuple[int, int]], options: QueryOptions
) -> Iterable[StreamItem]:
    """Yield the owners of ranges, with what ``options`` ask for; see `fs.stream`."""
    stream: Iterable[StreamItem] = space.owners_stream(wanted, paths=options.paths)
    if options.processes and isinstance(space, MountedVolume):
        stream = _with_processes(stream, space)
    if options.verified:
        stream = _verify(stream, space)
    return stream


def _with_processes(stream: Iterable[StreamItem], space: MountedVolume) -> Iterator[StreamItem]:
    """Add the processes that map the lost part of a file, or have the file open, to its rows."""
    # Notes that belong to leading rows stand in the answer that ends them.
    carried: list[str] = []
    for chunk in chunks(stream, ROW_BUDGET):
        files = [row for item in chunk for row in item.owners if isinstance(row, FileOwner)]
        devices = FileDevices.of(space, files)
        users, notes = find_users((row, devices) for row in files)
        for item in chunk:
            owners = tuple(
                replace(row, processes=next(users)) if isinstance(row, FileOwner) else row
                for row in item.owners
            )
            if isinstance(item, LeadingRows):
                carried += [note for note in notes if note not in carried]
                yield replace(item, owners=owners)
            else:
                added = [*carried, *notes]
                carried = []
                yield replace(
                    item,
                    owners=owners,
                    notes=distinct([*item.notes, *added]),
                    remarks=item.remarks
                    if item.complete or not added
                    else distinct([*(item.remarks or ()), *added]),
                )


class FileDevices(NamedTuple):
    """The device numbers under which files of a filesystem appear.

    ``own`` has the ``st_dev`` of the files of subvolumes, which not all lists have.
    """

    numbers: frozenset[int]
    own: dict[int, int]

    @classmethod
    def of(cls, space: MountedVolume, rows: Iterable[Owner]) -> Self:
        """Return the numbers for the files of some rows."""
        files = (row for row in rows if isinstance(row, FileOwner))
        found = {one: space.subvolume_device(one) for one in {row.file.subvolume for row in files}}
        own = {one: device for one, device in found.items() if device is not None}
        return cls(space.devices, own)

    def joined(self, other: Self | None) -> Self:
        """Return these numbers with those of other subvolumes of the same filesystem."""
        return self if other is None else self._replace(own={**other.own, **self.own})


def find_users(
    files: Iterable[tuple[FileOwner, FileDevices]], seconds: float | None = None
) -> tuple[Iterator[tuple[Process, ...]], list[str]]:
    """Return the processes that use the lost part of each file, and notes on what may be missing.

    Each file comes with the numbers under which files of its filesystem appear. ``seconds`` is as
    for `find_processes`.
    """
    from whoseblock.processes import find_processes

    found = find_processes([_wanted(*one) for one in files], seconds=seconds)
    return iter(found.processes), _process_notes(found)


def _wanted(row: FileOwner, devices: FileDevices) -> "Wanted":
    from whoseblock.processes import Wanted

    offset, length = row.lost or (None, row.length)
    own = devices.own.get(row.file.subvolume)
    offset = offset if row.what == "data" else None
    return Wanted(devices.numbers, row.inode, offset, length, own)


def _process_notes(found: "Found") -> list[str]:
    """Return notes on the processes that may be missing; the owners are complete."""
    notes = []
    if found.hidden:
        how_many = _count_processes(found.hidden)
        if _has_ptrace():
            notes.append(f"{how_many} could not be looked into: the kernel refuses it")
        else:
            notes.append(f"{how_many} could not be looked into: that takes CAP_SYS_PTRACE")
    if found.unanswered:
        how_many = _count_processes(found.unanswered)
        notes.append(f"{how_many} could not be looked into: a filesystem does not answer")
    if found.unsearched:
        how_many = _count_processes(found.unsearched)
        notes.append(f"{how_many} could not be looked into in time")
    if found.unlisted:
        notes.append("/proc does not list every process: ask outside of the container")
    if found.omitted:
        notes.append(f"{found.omitted} more mappings and descriptors are not listed")
    return notes


def _has_ptrace() -> bool:
    """Return whether this process has the effective capability CAP_SYS_PTRACE."""
    status = Path("/proc/self/status").read_bytes()
    effective = status.partition(b"\nCapEff:\t")[2].partition(b"\n")[0]
    return bool(int(effective, 16) >> _CAP_SYS_PTRACE & 1)


def _count_processes(number: int) -> str:
    return "a process" if number == 1 else f"{number} processes"


def _verify(stream: Iterable[StreamItem], space: AddressSpace) -> Iterator[StreamItem]:
    """Query the owners again once the rows of an answer are complete, and compare."""
    from hashlib import blake2b

    digest = None
    for chunk in chunks(stream, ROW_BUDGET):
        held: list[Answer] = []
        for item in chunk:
            if isinstance(item, LeadingRows):
                yield from _again(held, space)
                held = []
                digest = digest or blake2b()
                _count_in(digest, item)
                yield item
            elif digest:
                _count_in(digest, item)
                again = blake2b()
                question = [(item.start, item.length)]
                for now in space.owners_stream(question, paths=False):
                    _count_in(again, now)
                yield _verified(item, same=digest.digest() == again.digest())
                digest = None
            else:
                held.append(item)
        yield from _again(held, space)


def _again(answers: Sequence[Answer], space: AddressSpace) -> Iterator[Answer]:
    """Query the owners of whole answers again, together."""
    questions = [(answer.start, answer.length) for answer in answers]
    now = join_rows(space.owners_stream(questions, paths=False))
    for answer, again in zip(answers, now, strict=True):
        same = list(map(_identity, answer)) == list(map(_identity, again))
        yield _verified(answer, same=same)


def _count_in(digest: "blake2b", item: StreamItem) -> None:
    """Add the owners of rows to a digest that does not depend on how they are cut."""
    for row in item.owners:
        digest.update(encode_json(_identity(row)))


def _verified(answer: Answer, *, same: bool) -> Answer:
    """Record in an answer whether the owners are still the same."""
    if same:
        return replace(answer, verified=True)
    note = "the owners changed while paths and processes were looked for: ask again"
    return replace(
        answer,
        verified=False,
        complete=False,
        notes=distinct([note, *answer.notes]),
        remarks=(answer.notes or UNSET) if answer.complete else answer.remarks,
    )


def _identity(row: Owner) -> Owner:
    """Return a row without the facts about its owner that may change."""
    if isinstance(row, FileOwner):
        return replace(
            row, paths=UNSET, unlinked=UNSET, detail=UNSET, mounted_at=UNSET, processes=UNSET
        )
    return row
