"""Make odd healthy images, and compare every answer with the kernel's own."""

import os
import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.support import questions
from tests.support.expected_rows import Expectation
from tests.support.mounts import mounted
from tests.support.tools import Missing
from tests.support.truth import Truth
from tools.adversary.making import (
    Made,
    can_mount,
    heights,
    make_deep,
    make_many_inodes,
    make_planned,
)
from tools.adversary.plans import draw_plan
from tools.adversary.verdicts import Judge, Verdict

import whoseblock
from whoseblock.fs.driver import Volume

__all__ = ["Outcome", "Round"]

Question = tuple[int, int]

_METADIR = ("-m", "metadir=1")


@dataclass
class Outcome:
    """The outcome of one image."""

    name: str
    rows: int = 0
    inodes: int = 0
    questions: int = 0
    seconds: float = 0.0
    skipped: str = ""
    heights: str = ""
    wrong: list[tuple[str, Verdict]] = field(default_factory=list)

    def __str__(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        if self.skipped:
            return f"{self.name}: skipped: {self.skipped}"
        return (
            f"{self.name}: {self.rows} rows, {self.inodes} inodes, {self.questions} questions,"
            f" levels {self.heights}, {len(self.wrong)} wrong, {self.seconds:.0f} s,"
            f" peak {peak} MiB"
        )


@dataclass(frozen=True)
class Round:
    """A round of healthy images: how they are made and checked."""

    folder: Path
    seed: int
    #: Questions about each image, at least.
    questions: int
    report: Callable[[Outcome], None]
    #: Whether the images are kept.
    keep: bool = False

    def planned(self, numbers: range) -> list[Outcome]:
        """Make and check the images of a range of numbers; return what came of each."""
        metadir = can_mount(self.folder, *_METADIR)
        outcomes = []
        for number in numbers:
            plan = draw_plan(self.seed, number, metadir=metadir)
            outcome = Outcome(f"image {number}: {plan}")
            self._check(outcome, partial(make_planned, self.folder, plan), mapped=plan.rmapbt)
            outcomes.append(outcome)
        return outcomes

    def special(self, inodes: int, extents: int) -> list[Outcome]:
        """Make and check an image of many inodes, and one with deep trees."""
        many, deep = Outcome(f"{inodes} inodes"), Outcome(f"trees of {extents} records")
        if inodes:
            self._check(many, partial(make_many_inodes, self.folder, inodes))
        if extents:
            self._check(deep, partial(make_deep, self.folder, extents))
        return [many, deep]

    def _check(self, outcome: Outcome, make: Callable[[], Made], *, mapped: bool = True) -> None:
        began = time.monotonic()
        rng = random.Random(f"ask {self.seed} {outcome.name}")
        try:
            made = _patiently(make)
            outcome.heights = heights(made.truth)
            _ask_image(outcome, made, rng, self, mapped=mapped)
        except (Missing, RuntimeError) as error:
            outcome.skipped = str(error).partition("\n")[0]
        except Exception as error:  # noqa: BLE001 - any other exception is a finding
            outcome.wrong.append(("", Verdict("exception", "none", repr(error))))
        if not self.keep:
            for suffix in (".img", ".log"):
                (self.folder / "healthy").with_suffix(suffix).unlink(missing_ok=True)
        outcome.seconds = time.monotonic() - began
        self.report(outcome)


def _patiently(make: Callable[[], Made]) -> Made:
    """Make an image, again if the loop device of the last mount was not free yet."""
    for _ in range(3):
        try:
            return make()
        except Missing as missing:
            if "busy" not in str(missing):
                raise
            time.sleep(1)
    return make()


def _ask_image(
    outcome: Outcome, made: Made, rng: random.Random, asked: Round, *, mapped: bool
) -> None:
    """Ask about an image offline, and mounted if it can be, and compare."""
    truth = made.truth
    outcome.rows, outcome.inodes = len(truth.rows), len(truth.inodes)
    drawn = _questions(truth, rng, asked.questions)
    asking = _Asking(outcome, Judge(Expectation(truth)), drawn, rng, mapped)
    with whoseblock.open(truth.image, log_device=made.log) as fs:
        asking.all(fs)
        asking.groups(fs, truth)
    if mapped and made.log is None:
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

    def all(self, fs: Volume) -> None:
        """Ask everything in bulk, half of it with paths; a tenth singly."""
        half = len(self.questions) // 2
        for part, paths in ((self.questions[:half], False), (self.questions[half:], True)):
            for question, answer in zip(part, fs.owners_many(part, paths=paths), strict=True):
                self._check("bulk", question, answer)
        for question in self.rng.sample(self.questions, len(self.questions) // 5):
            self._check("single", question, fs.owners(*question, paths=False))
        for question in self.rng.sample(self.questions, len(self.questions) // 20):
            self._check("single with paths", question, fs.owners(*question))

    def groups(self, fs: Volume, truth: Truth) -> None:
        """Ask for whole groups and everything."""
        for question in questions.large(truth)[:30]:
            self._check("large", question, fs.owners(*question, paths=False))

    def some(self, fs: Volume) -> None:
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
