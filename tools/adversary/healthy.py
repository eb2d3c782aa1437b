"""Make odd healthy images, and compare every answer with the kernel's own."""

import os
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import whoseblock
from tests.support import questions
from tests.support.expect import Expectation
from tests.support.mounts import mounted
from tests.support.tools import Missing
from tests.support.truth import Truth
from whoseblock.fs.base import Filesystem

from tools.adversary.making import can_mount, make_deep, make_many_inodes, make_planned
from tools.adversary.plans import draw_plan
from tools.adversary.verdicts import Judge, Verdict

__all__ = ["Outcome", "ask_image", "check_planned", "check_special"]

Question = tuple[int, int]

_METADIR = ("-m", "metadir=1")


@dataclass
class Outcome:
    """What came of one image."""

    name: str
    rows: int = 0
    inodes: int = 0
    questions: int = 0
    seconds: float = 0.0
    skipped: str = ""
    wrong: list[tuple[str, Verdict]] = field(default_factory=list)

    def __str__(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        if self.skipped:
            return f"{self.name}: skipped: {self.skipped}"
        return (
            f"{self.name}: {self.rows} rows, {self.inodes} inodes, {self.questions} questions,"
            f" {len(self.wrong)} wrong, {self.seconds:.0f} s, peak {peak} MiB"
        )


def check_planned(folder: Path, seed: int, numbers: range, asked: int, report: Callable[[Outcome], None], *, keep: bool) -> list[Outcome]:
    """Make and check the images of a range of numbers; return what came of each."""
    metadir = can_mount(folder, *_METADIR)
    outcomes = []
    for number in numbers:
        plan = draw_plan(seed, number, metadir=metadir)
        outcome = Outcome(f"image {number}: {plan}")
        began = time.monotonic()
        image = folder / f"healthy-{number}.img"
        try:
            truth, log = make_planned(folder, plan)
            ask_image(outcome, truth, log, seed, asked, mapped=plan.rmapbt)
        except (Missing, RuntimeError) as error:
            outcome.skipped = str(error).partition("\n")[0]
        except Exception as error:  # noqa: BLE001 - any other exception is a finding
            outcome.wrong.append(("", Verdict("exception", "none", repr(error))))
        finally:
            if not keep:
                image.unlink(missing_ok=True)
                image.with_suffix(".log").unlink(missing_ok=True)
        outcome.seconds = time.monotonic() - began
        report(outcome)
        outcomes.append(outcome)
    return outcomes


def check_special(folder: Path, seed: int, asked: int, inodes: int, extents: int, report: Callable[[Outcome], None], *, keep: bool) -> list[Outcome]:
    """Make and check the image of many inodes, and the one with deep trees."""
    outcomes = []
    makers: list[tuple[str, Callable[[], tuple[Truth, Path | None]]]] = [
        (f"{inodes} inodes", lambda: make_many_inodes(folder, inodes)),
        (f"trees of {extents} records", lambda: make_deep(folder, extents)),
    ]
    for name, make in makers:
        outcome = Outcome(name)
        began = time.monotonic()
        truth, log = make()
        ask_image(outcome, truth, log, seed, asked, mapped=True)
        if not keep:
            truth.image.unlink()
        outcome.seconds = time.monotonic() - began
        report(outcome)
        outcomes.append(outcome)
    return outcomes


def ask_image(outcome: Outcome, truth: Truth, log: Path | None, seed: int, asked: int, *, mapped: bool) -> None:
    """Ask about an image offline, and mounted if it can be, and compare."""
    rng = random.Random(f"ask {seed} {outcome.name}")
    judge = Judge(Expectation(truth))
    outcome.rows, outcome.inodes = len(truth.rows), len(truth.inodes)
    asking = _Asking(outcome, judge, _questions(truth, rng, asked), rng, mapped)
    with whoseblock.open(truth.image, log_device=log) as fs:
        asking.all(fs)
        asking.groups(fs, truth)
    if mapped and log is None:
        with (
            mounted(truth.image, "ro", "norecovery") as root,
            whoseblock.open(os.fsdecode(root)) as live,
        ):
            asking.some(live)


@dataclass
class _Asking:
    outcome: Outcome
    judge: Judge
    questions: list[Question]
    rng: random.Random
    #: Whether the filesystem has a reverse map: without one, no answer is complete.
    mapped: bool

    def all(self, fs: Filesystem) -> None:
        """Ask everything in bulk, half of it with paths; a tenth singly."""
        half = len(self.questions) // 2
        for part, paths in ((self.questions[:half], False), (self.questions[half:], True)):
            for question, answer in zip(part, fs.owners_many(part, paths=paths), strict=True):
                self._check("bulk", question, answer)
        for question in self.rng.sample(self.questions, len(self.questions) // 5):
            self._check("single", question, fs.owners(*question, paths=False))
        for question in self.rng.sample(self.questions, len(self.questions) // 20):
            self._check("single with paths", question, fs.owners(*question))

    def groups(self, fs: Filesystem, truth: Truth) -> None:
        """Ask for whole groups and everything."""
        for question in questions.large(truth)[:30]:
            self._check("large", question, fs.owners(*question, paths=False))

    def some(self, fs: Filesystem) -> None:
        """Ask a mounted filesystem some of it."""
        # A loop device has whole sectors only.
        there = [one for one in self.questions if sum(one) <= fs.device_size]
        part = self.rng.sample(there, len(there) // 4)
        for question, answer in zip(part, fs.owners_many(part), strict=True):
            self._check("mounted", question, answer)

    def _check(self, way: str, question: Question, answer: whoseblock.fs.base.Answer) -> None:
        self.outcome.questions += 1
        verdict = self.judge.judge(question, answer, strict=True)
        if verdict is None and answer.complete is not self.mapped:
            verdict = Verdict("incomplete on a healthy image", "complete", f"{answer.notes[:3]}")
        if verdict is not None:
            self.outcome.wrong.append((f"{way} {question}", verdict))


def _questions(truth: Truth, rng: random.Random, count: int) -> list[Question]:
    """Draw questions on, before, after and across the edges of every sort of row, and anywhere."""
    rows = questions.sample_rows(truth, rng, 300)
    edges = questions.around_edges(truth, rows)
    asked = rng.sample(edges, min(len(edges), 2 * count // 3))
    asked += questions.everywhere(truth, rng, max(1, (count - len(asked)) // 2))
    rng.shuffle(asked)
    return asked
