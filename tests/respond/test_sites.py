"""Two repairs of one filesystem at once: the second waits, with a line, or can be resumed."""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from demo.demo import unpack
from tests.support.failing_filesystem import EXCHANGE, Bench, bench
from tests.support.shared_blocks import Five, share_five

import whoseblock
from whoseblock.fs.driver import MountedVolume
from whoseblock.fs.mounted.exclusive import RepairLock
from whoseblock.journal import State, open_journal
from whoseblock.journal.journal import Journal
from whoseblock.journal.run import Run
from whoseblock.lookup import Lookup, Query, QueryOptions
from whoseblock.media.device import FileMedia
from whoseblock.media.loops import FileIdentity
from whoseblock.ranges import ByteRange
from whoseblock.respond import service, sites
from whoseblock.respond.exceptions import NotNowError
from whoseblock.respond.service import PlanOptions
from whoseblock.target import Target, TargetOptions


@contextlib.contextmanager
def held(root: Path) -> Iterator[RepairLock]:
    """Hold the lock of a filesystem, as a third repair would."""
    with whoseblock.open(root) as fs:
        assert isinstance(fs, MountedVolume)
        with closing(RepairLock(fs)) as lock:
            assert lock.acquire() == ""
            yield lock


@contextlib.contextmanager
def begun(served: Bench) -> Iterator[tuple[Journal, Run]]:
    with (
        open_journal(str(served.journal)) as journal,
        journal.begin_run(["test"], "1") as run,
    ):
        yield journal, run


@contextlib.contextmanager
def lost_block(tmp_path: Path) -> Iterator[tuple[Bench, Five, ByteRange]]:
    with bench(tmp_path, EXCHANGE) as served:
        five = share_five(served, tmp_path / "copies")
        lost = ByteRange(five.place.start + 512, 1024)
        served.fail(lost)
        yield served, five, lost


def test_two_restores_at_once_take_turns(tmp_path: Path) -> None:
    with lost_block(tmp_path) as (served, five, lost), contextlib.ExitStack() as stack:
        words = [lost, "--restore-from", five.copies, "--apply", "--yes"]
        with held(served.root) as lock:
            both = [
                stack.enter_context(
                    served.responding(*words, WHOSEBLOCK_JOURNAL=str(tmp_path / f"{number}.sqlite"))
                )
                for number in range(2)
            ]
            for one in both:
                assert one.stderr is not None
                line = one.stderr.readline()
                assert line.startswith(f"whoseblock: {served.root} is locked by process ")
                assert line.endswith(": waiting\n")
                assert f"process {os.getpid()} " in line
            lock.close()
            outputs = [one.communicate(timeout=120)[0] for one in both]
        assert [one.returncode for one in both] == [0, 0]
        assert sum("gave the good copy to 5 files" in text for text in outputs) == 1
        assert sum("no sector fails there any more" in text for text in outputs) == 1
        five.check_whole(served)
        assert served.served.bad() == []


def test_a_killed_repair_locks_nobody_out(tmp_path: Path) -> None:
    with lost_block(tmp_path) as (served, five, lost):
        command = f"echo > {tmp_path}/begun; exec sleep 20"
        words = [lost, "--restore-command", command, "--apply", "--yes"]
        with served.responding(*words, WHOSEBLOCK_JOURNAL=str(tmp_path / "1.sqlite")) as process:
            while not (tmp_path / "begun").exists():
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = served.respond(lost, "--restore-from", five.copies, "--apply", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "waiting" not in done.stderr
        five.check_whole(served)


def test_after_its_patience_a_step_is_left_to_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sites, "_PATIENCE_S", 0.2)
    said: list[str] = []
    with bench(tmp_path) as served:
        bad = ByteRange(served.free(1).start, 512)
        served.served.add(bad)
        with held(served.root), begun(served) as (journal, run):
            where = TargetOptions()
            path = str(served.root)
            with Target(path, where) as target, Lookup(target.open_leaf) as finder:
                assert target.layer is not None
                asked = Query(*bad, target.layer)
                options = PlanOptions()
                planned = list(service.plan(target, finder, [asked], options))
                saved = service.save(run, planned, options, target=path, where=where, applied=True)
                (outcome,) = service.apply(journal, run, saved, target, finder, said.append)
        assert outcome.state is State.FAILED
        assert "resume the step later" in outcome.says
        assert len(said) == 1
        assert served.served.bad() == [bad]
        with begun(served) as (journal, run):
            (plan,) = service.unfinished(journal)
            (outcome,) = service.resume(journal, run, plan, said.append)
        assert outcome.state is State.VERIFIED
        assert len(said) == 1
        assert served.served.bad() == []


def test_nothing_is_written_to_a_file_that_took_the_name_of_an_image(tmp_path: Path) -> None:
    # Who may write to the folder could have root zero sectors of another file.
    image, other, link = (tmp_path / name for name in ("disk.img", "other.img", "link"))
    unpack(image)
    unpack(other)
    link.symlink_to(image)
    with Target(str(link), TargetOptions()) as target, Lookup(target.open_leaf) as finder:
        assert target.layer is not None
        assert list(finder.answers([Query(0, 512, target.layer)], QueryOptions()))
        site = sites.site_named(target.layer.name, target, finder)
        assert site is not None
        site.device(exclusive=True).close()
        link.unlink()
        link.symlink_to(other)
        with pytest.raises(NotNowError, match="was replaced by another file: nothing is written"):
            site.device(writable=True, exclusive=True)
        # The filesystem is read again from the file that was named at first.
        with closing(target.layer.open()) as media:
            assert isinstance(media, FileMedia)
            assert media.identity == site.file == FileIdentity(*_identity(image))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
