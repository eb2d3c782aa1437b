"""Plan, save, apply and resume through the service, on an image and without root."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from demo.demo import unpack

from whoseblock.cli.group import cli
from whoseblock.errors import InUseError, TargetError
from whoseblock.journal import Plan, State, open_journal
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.lookup import Lookup, Query
from whoseblock.respond import service
from whoseblock.respond.planning import Act
from whoseblock.respond.service import PlanOptions, StepOutcome
from whoseblock.target import Target, TargetOptions


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    unpack(path)
    return path


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Journal, Run]]:
    with (
        open_journal(str(folder / "journal.sqlite")) as journal,
        journal.begin_run(["test"], "1") as run,
    ):
        yield journal, run


def planned(
    journal: Journal, run: Run, image: Path, *, applied: bool, carry_out: bool = False
) -> tuple[Plan, list[StepOutcome]]:
    """Plan to write the finding to a file beside the image, and perhaps do it."""
    options = PlanOptions(command=f"cat >> {image.parent / 'findings'}", punch=True)
    where = TargetOptions()
    with Target(str(image), where) as target, Lookup(target.open_leaf) as finder:
        assert target.layer is not None
        asked = [Query(1257472, 4096, target.layer), Query(0, 512, target.layer)]
        found = list(service.plan(target, finder, asked, options))
        assert [one.asked for one in found] == asked
        assert {proposal.act for one in found for proposal in one.proposals} == {Act.NOTHING}
        assert service.count_changes(found) == 0
        saved = service.save(run, found, options, target=str(image), where=where, applied=applied)
        assert saved.asked == dict(zip(saved.plan.failures, asked, strict=True))
        if not carry_out:
            return saved.plan, []
        return saved.plan, list(service.apply(journal, run, saved, target, finder))


def findings(image: Path) -> list[int]:
    text = (image.parent / "findings").read_text()
    return [json.loads(line)["start"] for line in text.splitlines()]


def test_a_plan_is_carried_out_once(image: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, run):
        saved, outcomes = planned(journal, run, image, applied=True, carry_out=True)
        assert [step.kind for step in saved.steps] == ["exec", "exec"]
        assert [outcome.state for outcome in outcomes] == [State.VERIFIED] * 2
        assert findings(image) == [1257472, 0]
        for failure in saved.failures:
            assert journal.history(failure).failure.closed is not None
        assert service.unfinished(journal) == []


def test_a_failure_that_is_journaled_is_not_recorded_again(image: Path, tmp_path: Path) -> None:
    where, options = TargetOptions(), PlanOptions()
    with (
        opened(tmp_path) as (journal, run),
        Target(str(image), where) as target,
        Lookup(target.open_leaf) as finder,
    ):
        assert target.layer is not None
        (found,) = service.plan(target, finder, [Query(0, 512, target.layer)], options)
        saved = [
            service.save(run, [one], options, target=None, where=where, applied=True)
            for one in (found, found._replace(failure=1))
        ]
        assert [one.plan.failures for one in saved] == [(1,), (1,)]
        history = journal.history(1)
        assert (len(history.reports), len(history.findings)) == (1, 1)


def test_each_step_gets_the_finding_of_its_own_failure(image: Path, tmp_path: Path) -> None:
    where, options = TargetOptions(), PlanOptions(command=f"cat >> {tmp_path / 'findings'}")
    with (
        opened(tmp_path) as (journal, run),
        Target(str(image), where) as target,
        Lookup(target.open_leaf) as finder,
    ):
        assert target.layer is not None
        first, second = (Query(start, 512, target.layer) for start in (4096, 0))
        for asked in ([second], [first, second, second]):
            planned = list(service.plan(target, finder, asked, options))
            saved = service.save(run, planned, options, target=None, where=where, applied=True)
        # The second is known already, and asked twice.
        assert saved.asked == {2: first, 1: second}
        assert [step.failure for step in saved.plan.steps] == [2, 1]
        for outcome in service.apply(journal, run, saved, target, finder):
            assert outcome.state is State.VERIFIED
    assert findings(image) == [4096, 0]


def test_only_applied_plans_are_resumed(image: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, run):
        planned(journal, run, image, applied=False)
        saved, _ = planned(journal, run, image, applied=True)
        assert [one.id for one in service.unfinished(journal)] == [saved.id]
        assert [one.id for one in service.unfinished(journal, str(image))] == [saved.id]
        assert service.unfinished(journal, str(tmp_path)) == []
        # Its run still lives.
        with pytest.raises(InUseError, match="in use by another run"):
            next(service.resume(journal, run, saved))
        done = CliRunner().invoke(cli, ["respond", "--resume", "--journal", journal.name])
        assert isinstance(done.exception, InUseError)
        assert (done.exception.exit_code, "in use by another run" in done.output) == (22, True)
    with opened(tmp_path) as (journal, run):
        (again,) = service.unfinished(journal)
        outcomes = list(service.resume(journal, run, again))
        assert [outcome.state for outcome in outcomes] == [State.VERIFIED] * 2
        assert findings(image) == [1257472, 0]
        assert service.unfinished(journal) == []


def test_a_missing_target_is_not_resumed(image: Path, tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, run):
        saved, _ = planned(journal, run, image, applied=True)
    image.unlink()
    with opened(tmp_path) as (journal, run):
        with pytest.raises(TargetError):
            next(service.resume(journal, run, saved))
        (plan,) = service.unfinished(journal)
        assert {step.state for step in plan.steps} == {State.PLANNED}
