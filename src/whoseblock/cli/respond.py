"""``whoseblock respond``: what can be done about it, and doing it."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whoseblock import __version__
from whoseblock.cli.failures import Given, failure_options, failures_of
from whoseblock.cli.progress import ProgressBar
from whoseblock.cli.targets import options_of, target_options
from whoseblock.cli.terminal import printable
from whoseblock.errors import LeftUndoneError, TargetError

if TYPE_CHECKING:
    from whoseblock.fs.base import Answer, Owner
    from whoseblock.journal.journal import Journal
    from whoseblock.journal.records import Plan
    from whoseblock.journal.run import Run
    from whoseblock.lookup import Asked, Lookup
    from whoseblock.respond.applying import Outcome, Planned
    from whoseblock.respond.copies import Copies
    from whoseblock.target import Target, TargetOptions

__all__ = ["respond"]


@click.command(
    epilog="""\b
Nothing is written but the journal unless --apply is given. What is done then:
  free space, and space never written: exactly the failed sectors are zeroed
  data of files, with --restore-from, --restore-file or --restore-command: the good copy is
    written once elsewhere and given to all files that share it; the failed sectors are zeroed
  data of files, with --punch: zeros take the place of what cannot be read
  metadata: nothing; the plan says what repairs it

\b
Examples:
  whoseblock respond /srv 307p                   what could be done
  whoseblock respond /srv 307p --restore-from /backup/srv --apply
  whoseblock respond /dev/sdb1 --mapfile disk.map --apply --yes
  whoseblock respond /srv 307p --punch --quarantine --apply
  whoseblock respond /srv 307p --exec 'mail -s lost admin' --signal TERM --apply
  whoseblock respond --resume                    go on with what was broken off"""
)
@click.argument("target", required=False, type=click.Path())
@click.argument("ranges", nargs=-1, metavar="[RANGE]...")
@click.option("--apply", "applied", is_flag=True, help="Do what is planned, after asking.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@click.option(
    "--restore-from",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Good copies are below DIR, at the same paths as below the root of the filesystem.",
)
@click.option(
    "--restore-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="FILE is a good copy of the file that lost something.",
)
@click.option(
    "--restore-command",
    metavar="COMMAND",
    help="COMMAND gets a finding as JSON on standard input, and prints the path of a good copy.",
)
@click.option(
    "--verify-whole",
    is_flag=True,
    help="Compare all of a file with its copy before it is believed, not only what is around.",
)
@click.option("--punch", is_flag=True, help="Without a good copy, put zeros where data was lost.")
@click.option(
    "--quarantine",
    is_flag=True,
    help="Keep the failed blocks in a hidden file, so that nobody is given them again.",
)
@click.option(
    "--exec",
    "command",
    metavar="COMMAND",
    help="Run COMMAND with each finding as JSON on its standard input.",
)
@click.option(
    "--signal",
    "signal_name",
    metavar="NAME",
    help="Send a signal to the processes that have the lost part of a file mapped.",
)
@click.option("--resume", is_flag=True, help="Go on with the steps that were broken off.")
@click.option(
    "--journal",
    "journal_url",
    metavar="URL",
    help="The journal: a file, or postgresql://…; see whoseblock journal --help.",
)
@failure_options
@target_options
@click.option("--json", "as_json", is_flag=True, help="Write JSON Lines: the plan, then outcomes.")
def respond(target: str | None, ranges: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click's
    """Plan what is done about failed RANGEs of TARGET, and with --apply do it.

    Whatever is done is in the journal before, is verified after, and can be repeated if it was
    broken off.
    """
    from whoseblock.journal import open_journal

    given = Given.of(ranges, options)
    if not options["resume"]:
        given.check(target=target is not None)
    elif ranges or given.names_devices or given.of_the_target:
        raise click.UsageError("--resume goes on with what is in the journal: no RANGE.")
    if options["signal_name"]:
        _check_signal(options["signal_name"])
    with open_journal(options["journal_url"]) as journal:
        command = [sys.argv[0], *sys.argv[1:]]
        with journal.begin_run(command, __version__) as run:
            work = _Work(journal, run, options)
            if options["resume"]:
                work.resume(target)
            else:
                work.respond(target, given)
    work.finish()


def _check_signal(name: str) -> None:
    from whoseblock.respond.notify import signal_number

    try:
        signal_number(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--signal") from error


class _Work:
    """One run of the command."""

    def __init__(self, journal: "Journal", run: "Run", options: dict[str, Any]) -> None:
        self._journal = journal
        self._run = run
        self._options = options
        self._left: list[Outcome] = []
        self._declined = False
        self._out_of_reach = False

    def respond(self, path: str | None, given: Given) -> None:
        """Plan, and do it if that is wanted."""
        from whoseblock.lookup import Lookup
        from whoseblock.respond.applying import Notice, record
        from whoseblock.target import Target

        where = options_of(self._options)
        copies = self._copies()
        with Target(path, where) as target, Lookup(target.open_leaf) as finder:
            planned = self._plan(target, finder, given, where)
            self._show(planned)
            # What nobody agreed to is in the journal as a plan, and --resume leaves it alone.
            agreed = False
            try:
                agreed = self._options["applied"] and self._confirm(planned)
            finally:
                kept = {
                    "target": None if path is None else str(Path(path).absolute()),
                    "where": _plain(where),
                    "applied": agreed,
                    "quarantine": self._options["quarantine"],
                }
                notice = Notice(self._options["command"], self._options["signal_name"])
                plan = record(self._run, planned, copies, notice, kept)
            self._show_plan(plan)
            if not agreed:
                return
            asked = {
                failure: one.asked for failure, one in zip(plan.failures, planned, strict=True)
            }
            self._apply(plan, target, finder, asked)

    def _copies(self) -> "Copies | None":
        from whoseblock.respond.copies import Copies

        folder, file = (
            None if path is None else str(Path(path).absolute())
            for path in (self._options["restore_from"], self._options["restore_file"])
        )
        command = self._options["restore_command"]
        if not (folder or file or command):
            return None
        return Copies(folder, file, command, whole=self._options["verify_whole"])

    def _plan(
        self, target: "Target", finder: "Lookup", given: Given, where: "TargetOptions"
    ) -> "list[Planned]":
        from whoseblock.lookup import Wish
        from whoseblock.respond.applying import Planned
        from whoseblock.respond.planning import Options, parts_of_answer
        from whoseblock.sources.resolve import Resolver

        allowed = Options(
            copies=self._copies() is not None,
            punch=self._options["punch"],
            quarantine=self._options["quarantine"],
        )
        planned = []
        with ProgressBar() as progress:
            finder.progress = progress
            resolver = Resolver(target, device=where.device)
            asked = list(resolver.asked(failures_of(given, target, finder)))
            answers = finder.answers(asked, Wish(processes=True))
            for number, (one, answer) in enumerate(zip(asked, answers, strict=True), 1):
                parts = parts_of_answer(one, answer, target, finder, allowed)
                planned.append(Planned(one, answer, tuple(parts)))
                progress("failures planned", number, len(asked))
        return planned

    def _confirm(self, planned: "Sequence[Planned]") -> bool:
        from whoseblock.respond.planning import CHANGES

        count = sum(part.act in CHANGES for one in planned for part in one.parts)
        if self._options["yes"] or not count:
            return True
        if not sys.stdin.isatty():
            raise click.UsageError("Nobody can be asked here: say --yes to do it.")
        if click.confirm("Do it?" if count == 1 else f"Do these {count} steps?", err=True):
            return True
        self._declined = True
        return False

    def resume(self, only: str | None) -> None:
        """Go on with the plans that were to be done and are not finished."""
        from whoseblock.lookup import Asked, Lookup, Wish
        from whoseblock.target import Target, TargetOptions

        wanted = None if only is None else str(Path(only).absolute())
        plans = [
            plan
            for plan in self._journal.unfinished()
            if plan.options.get("applied") and wanted in (None, plan.options.get("target"))
        ]
        if not plans:
            click.echo("nothing was broken off", err=True)
        for plan in plans:
            if self._journal.is_running(plan.run):
                click.echo(f"plan {plan.id} is being done by another run: left alone", err=True)
                continue
            where = TargetOptions(
                **{**plan.options["where"], "members": tuple(plan.options["where"]["members"])}
            )
            path = plan.options["target"]
            try:
                with ExitStack() as stack:
                    target = stack.enter_context(Target(path, where))
                    finder = stack.enter_context(Lookup(target.open_leaf))
                    asked = {}
                    for failure in plan.failures:
                        entry = self._journal.history(failure).failure
                        layer = target.layer or target.layer_of(entry.device)
                        asked[failure] = Asked(entry.start, entry.length, layer, "the journal")
                    # Whatever layers they lead to are known then.
                    deque(finder.stream(asked.values(), Wish(paths=False)), maxlen=0)
                    self._apply(plan, target, finder, asked)
            except TargetError as error:
                self._out_of_reach = True
                click.echo(f"plan {plan.id}: {printable(str(error))}", err=True)

    def _apply(
        self, plan: "Plan", target: "Target", finder: "Lookup", asked: "dict[int, Asked]"
    ) -> None:
        from whoseblock.journal import State
        from whoseblock.lookup import Wish
        from whoseblock.respond.applying import apply, journal_device
        from whoseblock.respond.sites import site_named

        def ask(failure: int) -> "Answer | None":
            return next(finder.answers([asked[failure]], Wish(processes=True)), None)

        outcomes = apply(
            self._run,
            plan,
            lambda name: site_named(name, target, finder),
            ask,
            journal_device(self._journal.name),
        )
        for outcome in outcomes:
            self._tell(outcome)
            if outcome.state is not State.VERIFIED:
                self._left.append(outcome)

    def finish(self) -> None:
        """Say with the exit code if something was left undone."""
        if self._declined:
            raise LeftUndoneError("nothing was done")
        if self._out_of_reach and not self._left:
            raise LeftUndoneError("what was broken off cannot be gone on with: see above")
        if self._left:
            what = "a step was" if len(self._left) == 1 else f"{len(self._left)} steps were"
            raise LeftUndoneError(
                f"{what} not done, or did not help",
                hint="see above, and: whoseblock journal list --open",
            )

    # ------------------------------------------------------------------ presentation

    def _show(self, planned: "Sequence[Planned]") -> None:
        for one in () if self._options["as_json"] else planned:
            click.echo(_printed(_describe(one)))

    def _show_plan(self, plan: "Plan") -> None:
        if self._options["as_json"]:
            _write_json({"plan": plan.id, "failures": list(plan.failures), "steps": plan.steps})
        elif plan.steps and not self._options["applied"]:
            click.echo(f"plan {plan.id} is in the journal; nothing was done: --apply does it")

    def _tell(self, outcome: "Outcome") -> None:
        step = outcome.step
        if self._options["as_json"]:
            _write_json(
                {"step": step.id, "kind": step.kind, "state": outcome.state, "says": outcome.says}
            )
            return
        run = step.parameters
        place = f" {run['start']}+{run['length']}" if "start" in run else ""
        click.echo(_printed([f"{outcome.state}: {step.kind}{place}: {printable(outcome.says)}"]))


def _plain(where: "TargetOptions") -> dict[str, Any]:
    return asdict(where)


def _write_json(record: object) -> None:
    from whoseblock.encode import encode_json

    sys.stdout.buffer.write(encode_json(record) + b"\n")
    sys.stdout.buffer.flush()


def _printed(lines: "Sequence[str] | Iterator[str]") -> bytes:
    return "\n".join(lines).encode(errors="backslashreplace")


def _describe(planned: "Planned") -> Iterator[str]:
    """Say what failed, whose it is, and what can be done."""
    asked = planned.asked
    origin = f" ({printable(asked.origin)})" if asked.origin else ""
    yield f"{asked.start}+{asked.length} of {printable(asked.layer.name)}{origin}"
    for part in planned.parts:
        where = "" if part.site.layer is asked.layer else f" of {printable(part.site.layer.name)}"
        fails = f", of which {', '.join(map(str, part.failing))} fails" if part.failing else ""
        yield f"  {part.run}{where}{fails}"
        for owner in part.owners:
            yield from (f"    {line}" for line in _owner_lines(owner))
        for note in part.notes:
            yield f"    note: {printable(note)}"
        act = "" if part.act == "nothing" else f"{part.act}: "
        yield f"    {act}{printable(part.says)}"
    for note in planned.answer.notes:
        yield f"  note: {printable(note)}"


def _owner_lines(owner: "Owner") -> Iterator[str]:
    from whoseblock.fs.base import FileOwner

    if not isinstance(owner, FileOwner):
        what = getattr(owner, "what", "")
        yield f"{owner.kind}{f': {printable(what)}' if what else ''}"
        return
    paths = owner.paths if isinstance(owner.paths, tuple) else ()
    flags = [name for name in ("shared", "unwritten") if getattr(owner, name)]
    about = f"inode {owner.inode}, {owner.what}"
    about += "" if owner.file_offset is None else f" at {owner.file_offset}"
    about += "".join(f", {flag}" for flag in flags)
    yield f"{printable(paths[0]) if paths else '(no path)'}: {about}"
    for path in paths[1:]:
        yield f"  also {printable(path)}"
    users = owner.processes if isinstance(owner.processes, tuple) else ()
    for process in users:
        how = "mapped" if process.mappings else "open"
        yield f"  {how} by process {process.pid} {printable(process.command)}"
