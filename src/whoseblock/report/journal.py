"""The report of the journal: maps of the devices, and the files in the last findings."""

from collections import defaultdict
from typing import Final, NamedTuple

from whoseblock.fs.base import Answer, FileOwner, MetadataOwner
from whoseblock.journal.records import RecordedFailure
from whoseblock.printable import printable
from whoseblock.ranges import ByteRange, merge
from whoseblock.report.content import Content, Failure, Heading, LostFile, shown_path
from whoseblock.report.device_map import MAX_AREAS, DeviceMap, FileKey
from whoseblock.summary import KINDS, Sweep, kind_of

__all__ = ["JournalReport"]

_NOT_LOOKED_UP: Final = "failures were not looked up; whoseblock respond looks them up"


class _Row(NamedTuple):
    """Bytes of a device, of a kind of `KINDS`; the key of their file, the class of metadata."""

    start: int
    length: int
    kind: int
    key: FileKey | None
    what: str


class _File:
    """A file: its paths, and the places that it lost on devices."""

    def __init__(self) -> None:
        self.paths: dict[str, None] = {}
        self.shared = False
        self.lost: dict[str, list[ByteRange]] = defaultdict(list)


class JournalReport:
    """Collects failures and their last findings for a report."""

    def __init__(self) -> None:
        #: By device; a failure that was closed and came again has the same rows.
        self._rows: dict[str, set[_Row]] = defaultdict(set)
        self._files: dict[FileKey, _File] = defaultdict(_File)
        self._failures: list[Failure] = []
        self._asked: dict[str, list[ByteRange]] = defaultdict(list)
        self._reasons: dict[str, None] = {}
        self._remarks: dict[str, None] = {}

    def add(self, failure: RecordedFailure, answer: Answer | None, line: Failure) -> None:
        """Add a failure, its last answer if there is one, and its line in the list."""
        self._failures.append(line)
        device = f"{failure.host}: {failure.device}"
        self._asked[device].append(failure.range)
        if answer is None:
            self._reasons[_NOT_LOOKED_UP] = None
            row = _Row(*failure.range, KINDS.index("unknown"), None, "")
            self._rows[device].add(row)
            return
        if not answer.complete:
            remarks = answer.remarks or ()
            self._reasons.update(dict.fromkeys(set(answer.notes) - set(remarks)))
        else:
            self._remarks.update(dict.fromkeys(answer.notes))
        for owner in answer.owners:
            key = what = None
            if isinstance(owner, FileOwner):
                layer = owner.via[-1].layer if isinstance(owner.via, tuple) else failure.device
                # The same number is another file on another host.
                key = (f"{failure.host}: {layer}", owner.file, owner.what)
                if not owner.unwritten:
                    file = self._files[key]
                    file.paths.update(dict.fromkeys(owner.paths or ()))
                    file.shared |= owner.shared
                    file.lost[device].append(ByteRange(owner.start, owner.length))
            elif isinstance(owner, MetadataOwner):
                what = owner.what
            kind = KINDS.index(kind_of(owner))
            self._rows[device].add(_Row(owner.start, owner.length, kind, key, what or ""))

    def content(self, heading: Heading) -> Content:
        """Return the content of the page."""
        totals = dict.fromkeys(KINDS, 0)
        metadata: dict[str, int] = defaultdict(int)
        maps: list[DeviceMap] = []
        firsts: dict[object, tuple[int, int]] = {}
        for device, rows in sorted(self._rows.items()):
            # The size of the device is not journaled.
            size = max(row.start + row.length for row in rows)
            left = MAX_AREAS - sum(map(len, maps))
            drawn = DeviceMap(printable(device), size, left, is_whole=False)
            sweep = Sweep()
            for row in sorted(rows, key=lambda row: row[:3]):
                drawn.add(row.start, row.length, KINDS[row.kind], row.key)
                firsts.setdefault(row.key, (len(maps), row.start))
                for kind, count in sweep.add(row.kind, row.start, row.length):
                    totals[kind] += count
                if row.what:
                    metadata[row.what] += row.length
            for kind, count in sweep.finish():
                totals[kind] += count
            maps.append(drawn)
        asked = sum(one.length for ranges in self._asked.values() for one in merge(ranges))
        files = [_lost_file(key, file, firsts) for key, file in self._files.items()]
        return Content(
            *heading,
            asked=asked,
            complete=not self._reasons,
            totals={kind: count for kind, count in totals.items() if count},
            metadata=dict(metadata),
            reasons=list(map(printable, self._reasons)),
            remarks=list(map(printable, self._remarks)),
            ways=[],
            maps=maps,
            files=sorted(files, key=lambda file: (-file.lost, file.path)),
            failures=self._failures,
        )


def _lost_file(key: FileKey, file: _File, firsts: dict[object, tuple[int, int]]) -> LostFile:
    layer, identity, what = key
    paths = sorted(file.paths)
    lost = [one for some in file.lost.values() for one in merge(some)]
    subvolume = f"{identity.subvolume}/" if identity.subvolume else ""
    return LostFile(
        path=shown_path(paths[0] if paths else None),
        others=tuple(map(printable, paths[1:])),
        layer=printable(layer),
        inode=f"{subvolume}{identity.inode}",
        what=what,
        lost=sum(one.length for one in lost),
        ranges=len(lost),
        size=None,
        share=None,
        shared=file.shared,
        first=firsts.get(key),
    )
