"""Parse failures from a kernel log, as saved by dmesg, journalctl -k or syslog.

A message follows its prefix (`prefixes`), or is a field of a record (`records`). `messages` has the
table of messages, and `sequences` has those that belong together. Other lines that report an error
of storage or memory are counted, and all others are skipped.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from whoseblock.errors import MalformedError
from whoseblock.sources.base import Failure, Reading
from whoseblock.sources.kernel_log.lines import LogForm, OtherErrors
from whoseblock.sources.kernel_log.messages import find_pattern
from whoseblock.sources.kernel_log.patterns import Located, Units, Unplaced
from whoseblock.sources.kernel_log.prefixes import PREFIX, Envelope
from whoseblock.sources.kernel_log.readers import REQUEST_REMARK
from whoseblock.sources.kernel_log.records import Message, find_record_reader
from whoseblock.sources.kernel_log.sequences import LogSequences

__all__ = ["REQUEST_REMARK", "read_dmesg", "read_message", "read_signal_page"]

#: Limit on the places that are remembered, to yield each once.
_MAX_SEEN: Final = 1 << 18
#: Limit on the devices and reasons of errors at unknown places.
_MAX_UNPLACED: Final = 256


def read_dmesg(
    lines: Iterable[str],
    name: str,
    page_size: int = 4096,
    reading: Reading | None = None,
    units: Units | None = None,
) -> Iterator[Failure]:
    """Yield every range that the log reports as failed, each once.

    ``name`` is the file in messages. ``reading`` counts the lines, the damaged lines, and those
    that report an error in another form or at an unknown place. ``units`` replaces ``page_size``.
    Raises `MalformedError` for binary data without any line of the kernel.
    """
    reading = reading or Reading(name)
    parser = _Parser(name, units or Units(page_size), reading)
    numbered: Iterator[tuple[int, str]] = enumerate(lines, 1)
    first = next((one for one in _count(numbered, reading) if one[1].strip()), None)
    if first is not None:
        numbered = chain((first,), numbered)
        reader = find_record_reader(first[1])
        if reader is None:
            yield from _read_lines(numbered, parser, reading)
        else:
            messages = reader(_count(numbered, reading, parser.form), reading)
            yield from _read_records(messages, parser, reading)
    yield from parser.finish()


def _count(
    numbered: Iterable[tuple[int, str]], reading: Reading, form: LogForm | None = None
) -> Iterator[tuple[int, str]]:
    for number, line in numbered:
        reading.read = number
        if form is not None and not form.is_log:
            form.examine(number, line)
        yield number, line


def _read_records(
    messages: Iterable[Message], parser: "_Parser", reading: Reading
) -> Iterator[Failure]:
    is_record = False
    for number, text in messages:
        is_record = True
        if _may_report(text):
            yield from parser.parse(number, text)
    # The first line may only look like a record.
    parser.form.is_log = is_record or not reading.broken


def _read_lines(
    numbered: Iterable[tuple[int, str]], parser: "_Parser", reading: Reading
) -> Iterator[Failure]:
    number = 0
    is_log = False
    may_report = _may_report
    try:
        for number, line in numbered:
            if not is_log:
                parser.form.examine(number, parser.envelope.open(line))
                is_log = parser.form.is_log
            # Nearly every line is rejected by these fast searches.
            if may_report(line):
                text = PREFIX.sub("", parser.envelope.open(line), count=1)
                yield from parser.parse(number, text)
    finally:
        reading.read = number


def _may_report(line: str) -> bool:
    """Return whether a line has words of an error, or of a line that explains one."""
    low = line.lower()
    return (
        "error" in low
        or "fail" in low
        or "corrupt" in low
        or "lost" in low
        or "sense" in low
        or "bad " in low
        or "mismatch" in low
        or "unable to" in low
        or " lba" in low
        or "-byte " in low
        or " cdb: " in low
        or "edac mc" in low
        or "mce 0x" in low
        or "machine check" in low
        or " addr " in low
    )


#: A file, or whether a place is a logical address.
_Space = tuple[int, int] | bool


class _Parser:
    """Parses the messages of one log."""

    def __init__(self, name: str, units: Units, reading: Reading) -> None:
        self.form = LogForm()
        self.envelope = Envelope()
        self._name = name
        self._units = units
        self._reading = reading
        self._others = OtherErrors()
        self._sequences = LogSequences(units)
        #: The length of the failure at each place.
        self._seen: dict[tuple[str, int, _Space], int] = {}
        #: The number of errors at unknown places, and the first of each kind.
        self._unplaced: Counter[Unplaced] = Counter()
        self._first: dict[Unplaced, tuple[int, str]] = {}

    def parse(self, number: int, text: str) -> Iterator[Failure]:
        """Yield the failure that a message reports; count other errors."""
        pattern = find_pattern(text)
        if pattern is None:
            found = self._sequences.interpret(number, text)
        else:
            match = pattern.match(text)
            if match is None:
                if pattern.expected and not pattern.is_foreign(text):
                    self._reading.count_broken(f"line {number}", text, pattern.expected)
                else:
                    self._others.examine(number, text)
                return
            found = pattern.read(match, self._units)
        if found is None:
            self._others.examine(number, text)
            return
        self.form.is_log = True
        if isinstance(found, Located):
            yield from self._take(found, number, is_above=pattern is not None and pattern.is_above)
        elif isinstance(found, Unplaced):
            if found not in self._first and len(self._first) >= _MAX_UNPLACED:
                found = found._replace(device="")
            if found in self._first or len(self._first) < 2 * _MAX_UNPLACED:
                self._first.setdefault(found, (number, text))
                self._unplaced[found] += 1
            else:
                self._others.examine(number, text)

    def _take(self, found: Located, number: int, *, is_above: bool = False) -> Iterator[Failure]:
        self._others.known.add(found.device)
        place = found.device, found.start, found.file or found.is_logical
        if self._seen.get(place, 0) >= found.length:
            return
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen[place] = found.length
        self._reading.failures += 1
        origin = f"{self._name}, line {number}"
        yield Failure(
            found.start,
            found.length,
            found.device,
            origin,
            found.remark,
            is_above,
            found.is_logical,
            found.file,
        )

    def finish(self) -> Iterator[Failure]:
        """Yield what the end of the log decides, and complete the reading."""
        known = {(device, start) for device, start, space in self._seen if not space}
        for command in self._sequences.unexplained(known):
            yield from self._take(command.place, command.number)
        self.form.check(self._name)
        self._others.report_to(self._reading)
        for found, (number, text) in self._first.items():
            if not (found.is_repeated and self._others.is_explained(found.device)):
                count = self._unplaced[found]
                self._reading.count_unplaced(f"line {number}", text, found.reason, count)
        if self._reading.read and not self.form.is_log:
            self._reading.remarks.append("no line has the time or the prefix of a kernel log")


def read_message(text: str, name: str, number: int = 1, page_size: int = 4096) -> Failure | None:
    """Return the page or sector that a message reports as failed, None if it reports none.

    For the daemon: it takes the messages of memory failures and of the block layer. Such a message
    names the start of the failed request, not the failed sector in it: so the result is one sector,
    with `REQUEST_REMARK`. ``name`` and ``number`` are its file and line. Raises `MalformedError`
    for a truncated message.
    """
    pattern = find_pattern(text)
    if pattern is None or not pattern.is_live:
        return None
    match = pattern.match(text)
    if match is None:
        if pattern.is_foreign(text):
            return None
        raise MalformedError(name, number, pattern.expected)
    found = pattern.read(match, Units(page_size))
    if not isinstance(found, Located):
        return None
    origin = f"{name}, line {number}"
    return Failure(found.start, found.length, found.device, origin, found.remark)


def read_signal_page(text: str) -> int | None:
    """Return the page frame number in a message about a signal, None if it is no such message.

    The page that failed is this one, or a later one of the huge page that begins with it.
    """
    pattern = find_pattern(text)
    match = pattern.match(text) if pattern else None
    return int(match[1], 16) if match and match.groupdict().get("signal") else None
