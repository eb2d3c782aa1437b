"""The changes of the policy on a device: only those of its rule, whatever else has failed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenarios.test_emulated_device import BLOCK, FILE_BLOCKS, fill, place_of
from tests.support.emulated_device import Emulated
from tests.support.failing_disk import failing_disk
from tests.support.system_calls import clone_range
from tests.support.tools import need_loop_mounts
from tests.support.xfs_images import MIB, Geometry, make_image

from whoseblock.errors import LeftUndoneError
from whoseblock.journal import Filter, NewReport, State, open_journal
from whoseblock.ranges import ByteRange
from whoseblock.watch.policy.device_response import DeviceResponder
from whoseblock.watch.policy.rules import Policy, Rule
from whoseblock.watch.processor import Processor, Setup
from whoseblock.watch.store.reports import FailedRange
from whoseblock.watch.store.state import StateFolder

SECTOR = 512


class Patient:
    """A failing disk with files of a database and static ones, and a good copy of each."""

    def __init__(self, folder: Path, served: Emulated, loop: Path, root: Path) -> None:
        self.folder = folder
        self.served = served
        self.loop = loop
        self.root = root
        self.copies = folder / "copies"
        for name in ("db", "static"):
            (root / name).mkdir()
            (self.copies / name).mkdir(parents=True)
        self.files = ("static/a", "db/b")
        for name in self.files:
            (self.copies / name).write_bytes(fill(root / name, name))
            self.keep_times(name)
        database = Rule("never touch the database", 1, path=f"{root}/db/*", owner=("file",))
        static = Rule(
            "static files", 2, owner=("file",), respond="restore", restore_from=str(self.copies)
        )
        self.policy = Policy((database, static))

    def share(self, source: str, block: int, other: str) -> None:
        """Share a block of a file with another one, in the same place; in the copies, too."""
        (self.copies / other).write_bytes((self.copies / source).read_bytes())
        with (self.root / source).open("rb") as one, (self.root / other).open("wb") as two:
            # All but the block is a file of its own.
            two.write((self.copies / source).read_bytes())
            two.flush()
            os.fsync(two.fileno())
            clone_range(one.fileno(), block * BLOCK, BLOCK, two.fileno(), block * BLOCK)
            os.fsync(two.fileno())
        self.keep_times(other)

    def keep_times(self, name: str) -> None:
        """Set the times of a copy to those of its file, as backups do."""
        status = (self.root / name).stat()
        os.utime(self.copies / name, ns=(status.st_atime_ns, status.st_mtime_ns))

    def place(self, name: str, block: int) -> int:
        return place_of(self.root, self.root / name, block)

    def fail(self, *places: int) -> None:
        for place in places:
            self.served.add(ByteRange(place, SECTOR))

    def process(self, start: int, length: int) -> dict[str, int]:
        """Process a failure."""
        failure = FailedRange(
            source="sysfs",
            at=2.0,
            key="k",
            device=self.loop.name,
            start=start,
            length=length,
            origin="test",
        )
        journal = str(self.folder / "journal.sqlite")
        with (
            StateFolder(self.folder / "state") as state,
            Processor(Setup(state, self.policy, journal, since=1)) as processor,
        ):
            processor.process([[failure]])
            return processor.perform().actions

    def ends(self) -> list[tuple[str, State, str]]:
        """Return kind, state and last words of what was done on the device."""
        with open_journal(str(self.folder / "journal.sqlite"), write=False) as journal:
            (history,) = journal.histories(Filter())
        return [
            (step.kind, step.state, str(step.events[-1].detail.get("because", "")))
            for plan in history.plans
            if "by" not in plan.options
            for step in plan.steps
        ]


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Patient]:
    need_loop_mounts()
    image = make_image(tmp_path / "disk", Geometry("policy", size=64 * MIB, parent=True))
    with failing_disk(image, tmp_path / "at") as (served, loop, root):
        yield Patient(tmp_path, served, loop, root)


def test_only_the_blocks_of_the_rule_are_repaired(patient: Patient) -> None:
    static, database = patient.place("static/a", 1), patient.place("db/b", 1)
    patient.fail(static, database)
    low, high = sorted((static, database))
    assert patient.process(low, high + BLOCK - low) == {"respond done": 1}
    assert patient.served.bad() == [ByteRange(database, SECTOR)]
    assert patient.place("db/b", 1) == database
    run = ByteRange(database, BLOCK)
    why = f"rule 'static files' does not match every owner of {run}: skipped"
    assert sorted(patient.ends()) == [
        ("advise", State.SKIPPED, why),
        ("restore", State.VERIFIED, ""),
    ]
    with open_journal(str(patient.folder / "journal.sqlite"), write=False) as journal:
        (history,) = journal.histories(Filter())
        # A part of it is not dealt with.
        assert history.failure.closed is None


def test_a_block_shared_with_a_file_of_another_rule(patient: Patient) -> None:
    patient.share("static/a", 1, "db/c")
    place = patient.place("static/a", 1)
    patient.fail(place)
    assert patient.process(place, SECTOR) == {"respond failed": 1}
    assert patient.served.bad() == [ByteRange(place, SECTOR)]
    assert patient.ends() == []


def test_a_block_shared_only_by_files_of_the_rule(patient: Patient) -> None:
    patient.share("static/a", 1, "static/c")
    place = patient.place("static/a", 1)
    patient.fail(place)
    assert patient.process(place, SECTOR) == {"respond done": 1}
    assert patient.served.bad() == []
    assert patient.place("static/a", 1) == patient.place("static/c", 1)


def test_a_file_that_was_renamed_meanwhile_has_the_rule_of_its_name(patient: Patient) -> None:
    # The program of a policy runs before anything is written, and may take its time.
    place = patient.place("static/a", 1)
    patient.fail(place)
    # There would be a good copy for it.
    shutil.copy2(patient.copies / "static/a", patient.copies / "db/a")
    move = ("/bin/mv", str(patient.root / "static/a"), str(patient.root / "db/a"))
    database, static = patient.policy.rules
    patient.policy = Policy((database, static._replace(exec=move)))
    assert patient.process(place, SECTOR) == {"exec done": 1, "respond failed": 1}
    assert patient.served.bad() == [ByteRange(place, SECTOR)]


@pytest.mark.parametrize("identity", ["", "1234"])
def test_a_failure_of_an_unknown_filesystem_is_not_repaired(
    patient: Patient, identity: str
) -> None:
    place = patient.place("static/a", 1)
    patient.fail(place)
    report = NewReport(source="test")
    with (
        open_journal(str(patient.folder / "journal.sqlite")) as journal,
        journal.begin_run(["test"], "1") as run,
    ):
        where = ByteRange(place, SECTOR)
        noted = run.record_failure(patient.loop.name, where, report, identity=identity)
        failure = journal.history(noted.failure).failure
        with pytest.raises(LeftUndoneError, match="another" if identity else "unknown"):
            DeviceResponder(journal, run).respond(failure, patient.policy, 1)
    assert patient.served.bad() == [ByteRange(place, SECTOR)]


def test_space_that_was_never_written_is_not_free(patient: Patient) -> None:
    path = patient.root / "static/reserved"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, FILE_BLOCKS * BLOCK)
        os.fsync(file.fileno())
    place = patient.place("static/reserved", 3)
    free = patient.served.device.stat().st_size - BLOCK
    patient.fail(place, free)
    patient.policy = Policy((Rule("heal", 1, owner=("free",), respond="zero"),))
    assert patient.process(place, free + BLOCK - place) == {"respond done": 1}
    assert patient.served.bad() == [ByteRange(place, SECTOR)]
