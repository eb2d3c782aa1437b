"""Damage healthy images, ask, and judge every answer by the truth of the healthy image."""

import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.support.expected_rows import Expectation
from tests.support.image_damage import Overlay, limited
from tools.adversary.bases import BASES, Base, make_base
from tools.adversary.described import Described, Question
from tools.adversary.policy import inherent_reason
from tools.adversary.units import Unit
from tools.adversary.verdicts import Judge, Verdict
from tools.adversary.wounds import Wounds, draw_wounds

import whoseblock
from whoseblock.errors import WhoseblockError
from whoseblock.fs.base import Answer, FileOwner
from whoseblock.fs.driver import Volume
from whoseblock.media import EmulatedPmem, FileMedia, Media
from whoseblock.ranges import ByteRange

__all__ = ["Finding", "Patient", "Tally", "ask_case", "run_cases"]

#: A case takes a tenth of a second; this long means that it never comes back.
_SECONDS = 20.0
#: One case may raise the peak memory of the process by this much, in KiB.
_MEMORY_KIB = 150 << 10
#: From so many questions on the program answers them together.
_BULK = 48


class Finding(NamedTuple):
    """A wrong answer of one case."""

    case: int
    base: str
    wounds: str
    kinds: tuple[str, ...]
    question: str
    verdict: Verdict
    inherent: str


class Patient:
    """A base image with all that the cases share."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.media = FileMedia(base.truth.image)
        self.judge = Judge(Expectation(base.truth))
        self.described = Described(base)

    def newest(self, unit: Unit) -> bytes:
        """Return the bytes that a unit has in the healthy image."""
        return self.media.pread(unit.start, unit.length)


@dataclass
class Tally:
    """The results of a run of many cases."""

    cases: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Finding]:
        """The findings that nothing excuses."""
        return [finding for finding in self.findings if not finding.inherent]


@dataclass
class _Case:
    """One damaged image while it is asked."""

    number: int
    patient: Patient
    wounds: Wounds
    tally: Tally

    @property
    def strict(self) -> bool:
        """Whether the checksums tell of all of the damage."""
        if self.patient.base.geometry.version4:
            return False
        return not self.wounds.kind.startswith(("stale", "one lie", "lies", "claim"))

    def add(self, question: str, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        kinds = tuple(sorted({unit.kind for unit in self.wounds.units}))
        reason = inherent_reason(self.patient.base, self.wounds, verdict)
        self.tally.findings.append(
            Finding(
                *(self.number, self.patient.base.truth.image.stem, str(self.wounds), kinds),
                *(question, verdict, reason),
            )
        )

    def count(self, answer: Answer) -> None:
        self.tally.answers[self.wounds.kind] += 1
        self.tally.incomplete[self.wounds.kind] += not answer.complete


def patients(folder: Path, seed: int, names: list[str]) -> Callable[[str], Patient]:
    """Return what makes or loads a base image, once."""
    known: dict[str, Patient] = {}

    def get(name: str) -> Patient:
        if name not in known:
            known[name] = Patient(make_base(folder, name, seed))
        return known[name]

    for name in names:
        get(name)
    return get


def run_cases(
    folder: Path, seed: int, cases: range, bases: list[str], progress: Callable[[Tally], None]
) -> Tally:
    """Run the cases of a range; each depends on the seed and its own number only."""
    get = patients(folder, seed, bases or list(BASES))
    names = bases or list(BASES)
    tally = Tally()
    began = time.monotonic()
    for number in cases:
        patient = get(names[number % len(names)])
        ask_case(patient, seed, number, tally)
        tally.seconds = time.monotonic() - began
        if number % 100 == 99:
            progress(tally)
    return tally


def ask_case(patient: Patient, seed: int, number: int, tally: Tally) -> Wounds:
    """Damage an image, ask about it, and add to the tally."""
    rng = random.Random(f"{seed} {number}")
    wounds = draw_wounds(patient.base, rng)
    case = _Case(number, patient, wounds, tally)
    tally.cases[wounds.kind] += 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    try:
        with limited(_SECONDS):
            _ask(case, rng)
    except Exception as error:  # noqa: BLE001 - any exception is a finding
        case.add("", Verdict(f"exception {type(error).__name__}", "none", _where(error)))
    took = time.monotonic() - began
    tally.slowest = max(tally.slowest, (took, number))
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if more > _MEMORY_KIB and number > 100:
        case.add("", Verdict("memory", f"{_MEMORY_KIB >> 10} MiB", f"{more >> 10} MiB more"))
    return wounds


def _where(error: BaseException) -> str:
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{error!r} at {place}"


def _ask(case: _Case, rng: random.Random) -> None:
    patient, wounds = case.patient, case.wounds
    media: Media = Overlay(patient.media, wounds.patches)
    size = patient.media.size
    bad = [ByteRange(one.start, min(one.length, size - one.start)) for _, one in wounds.unreadable]
    if bad:
        media = EmulatedPmem(media, bad)
    try:
        opened = whoseblock.open(media)
    except WhoseblockError:
        case.tally.refused[wounds.kind] += 1
        return
    with closing(opened) as fs:
        if case.number % 3 == 0:
            # A scan answers in place of a damaged reverse map.
            fs.rescan_limit = size
        targeted = list(_questions(patient, wounds, rng))
        rng.shuffle(targeted)
        targeted = targeted[:12]
        anywhere = [patient.described.anywhere(rng) for _ in range(4)]
        _check_each(case, fs, targeted[:8] + anywhere[:2], paths=False)
        _check_each(case, fs, targeted[:4] + anywhere[2:3], paths=True)
        if case.number % 2 == 0:
            _bulk(case, fs, targeted + anywhere, rng)


def _questions(patient: Patient, wounds: Wounds, rng: random.Random) -> Iterator[Question]:
    """Draw questions about what the wounds describe."""
    yield from wounds.claimed
    for unit, data, _ in wounds.replaced:
        yield from patient.described.about(unit, patient.newest(unit), data, rng)
    for unit, _ in wounds.unreadable:
        newest = patient.newest(unit)
        yield from patient.described.about(unit, newest, newest, rng)


def _may_scan(fs: Volume) -> bool:
    return fs.reverse_map == "scan" or bool(fs.rescan_limit)


def _check_each(case: _Case, fs: Volume, questions: list[Question], *, paths: bool) -> None:
    """Ask each question alone, or all together where each may take a scan of all inodes."""
    if _may_scan(fs):
        answers = list(fs.owners_many(questions, paths=paths))
    else:
        answers = [fs.owners(*question, paths=paths) for question in questions]
    for question, answer in zip(questions, answers, strict=True):
        case.count(answer)
        case.add(f"{question}", case.patient.judge.judge(question, answer, strict=case.strict))


def _bulk(case: _Case, fs: Volume, questions: list[Question], rng: random.Random) -> None:
    """Ask many together, with paths every other time, and compare with single answers."""
    paths = case.number % 4 == 0
    questions = [*questions, *rng.sample(case.patient.described.pool, _BULK)]
    answers = list(fs.owners_many(questions, paths=paths))
    for question, answer in zip(questions, answers, strict=True):
        case.count(answer)
        verdict = case.patient.judge.judge(question, answer, strict=case.strict)
        case.add(f"{question} in bulk", verdict)
    singles = 2 if _may_scan(fs) else 8
    for question, answer in list(zip(questions, answers, strict=True))[:singles]:
        alone = fs.owners(*question, paths=paths)
        # A scan for many questions may know more of what both call incomplete.
        if _may_scan(fs) and not (alone.complete or answer.complete):
            continue
        if alone.owners != answer.owners or alone.complete is not answer.complete:
            verdict = Verdict("single and bulk differ", _told(alone), _told(answer))
            case.add(f"{question}", verdict)


def _told(answer: Answer) -> str:
    rows = [
        (
            row.start,
            row.length,
            row.kind,
            *((row.inode, row.paths) if isinstance(row, FileOwner) else ()),
        )
        for row in answer.owners[:4]
    ]
    return f"complete={answer.complete} {rows} {answer.notes[:2]}"


def as_json(finding: Finding) -> str:
    """Return a finding as one line of JSON."""
    plain = finding._asdict()
    plain["verdict"] = finding.verdict._asdict()
    return json.dumps(plain)
