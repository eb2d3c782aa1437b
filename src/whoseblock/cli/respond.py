"""``whoseblock respond``: plan repairs, and apply or resume them."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from whoseblock import __version__
from whoseblock.cli.command import Command, is_given
from whoseblock.cli.options.failure_values import FailureOptions
from whoseblock.cli.options.failures import failure_options
from whoseblock.cli.options.reports import read_failures
from whoseblock.cli.options.targets import options_of, target_options
from whoseblock.cli.presentation.notices import (
    exit_passed_over,
    is_passed_over,
    report_options,
    report_readings,
    report_resolver,
)
from whoseblock.cli.presentation.progress import ProgressBar
from whoseblock.errors import InUseError, LeftUndoneError, PrivilegeError, TargetError
from whoseblock.printable import printable

if TYPE_CHECKING:
    from whoseblock.fs.base import Owner
    from whoseblock.journal.journal import Journal
    from whoseblock.journal.records import Plan
    from whoseblock.journal.run import Run
    from whoseblock.lookup import Lookup
    from whoseblock.respond.service import PlannedFailure, PlanOptions, StepOutcome
    from whoseblock.sources.base import Reading
    from whoseblock.target import Target, TargetOptions

__all__ = ["respond"]


@click.command(
    cls=Command,
    epilog="""\b
Without --apply only the journal is written.  With --apply:
  free space     and space never written: the failed sectors are zeroed,
                 and no others
  file data      with --restore-from, --restore-file or --restore-command:
                 the good copy is written to other blocks once and mapped
                 into all files that share it and belong to the same user;
                 the failed sectors are zeroed
                 with --punch: zeros replace what cannot be read
                 what the page cache still has is used first
  metadata       nothing is written; the plan names the tool that repairs it

\b
Examples:
  whoseblock respond /srv 307p                show the plan
  whoseblock respond /srv 307p --restore-from /backup/srv --apply
  whoseblock respond /dev/sdb1 --mapfile disk.map --apply --yes
  whoseblock respond /srv 307p --punch --quarantine --apply
  whoseblock respond /srv 307p --exec 'mail -s lost admin' --apply
  whoseblock respond --resume                 resume interrupted steps""",
)
@click.argument("target", required=False, type=click.Path(readable=False))
@click.argument("ranges", nargs=-1, metavar="[RANGE]...")
@click.option("--apply", "applied", is_flag=True, help="Carry out the plan after a confirmation.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--restore-from",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Look for good copies below DIR, at the same paths as in the filesystem.",
)
@click.option(
    "--restore-file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Use FILE as the good copy of the damaged file.",
)
@click.option(
    "--restore-command",
    metavar="COMMAND",
    help="Run COMMAND to find a copy: it reads a finding as JSON and prints the path of a copy. It"
    " is killed after an hour, or when it prints more than 64 KiB.",
)
@click.option(
    "--verify-whole",
    is_flag=True,
    help="Compare the whole file with its copy, not only 1 MiB on each side of the loss.",
)
@click.option(
    "--restore-cached",
    is_flag=True,
    help="Restore from the page cache what it still has. The other options of copies and --punch"
    " use it first, too.",
)
@click.option(
    "--accept-older",
    is_flag=True,
    help="Accept copies with another modification time than the damaged file.",
)
@click.option(
    "--accept-zeros",
    is_flag=True,
    help="Accept copies that have only zeros where data was lost.",
)
@click.option(
    "--restore-map",
    type=click.Path(exists=True, dir_okay=False),
    metavar="MAP",
    help="Accept what the ddrescue map MAP of --restore-file has as rescued, and nothing else.",
)
@click.option(
    "--prefer",
    type=click.Choice(["cache", "copy"]),
    help="Where the page cache and a copy differ, use this one.  [default: change nothing]",
)
@click.option("--punch", is_flag=True, help="Replace lost data by zeros if there is no good copy.")
@click.option(
    "--quarantine",
    is_flag=True,
    help="Keep the failed blocks in a hidden file, so that they are not allocated again.",
)
@click.option(
    "--write-read-only",
    is_flag=True,
    help="Write to the device even if its filesystem is mounted read-only.",
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
    help="Send a signal to the processes that map the lost part of a file.",
)
@click.option("--resume", is_flag=True, help="Resume interrupted steps.")
@click.option(
    "--journal",
    "journal_url",
    metavar="URL",
    help="Journal to use: a file, or postgresql://USER@HOST/DATABASE.  [default:"
    " $WHOSEBLOCK_JOURNAL, or the file in the state folder]",
)
@failure_options
@target_options
@click.option(
    "--json", "as_json", is_flag=True, help="Write JSON Lines: the plan, then the outcomes."
)
def respond(target: str | None, ranges: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - click's
    """Plan repairs of failed RANGEs; carry them out with --apply.

    TARGET is a device, an image or a mount point, as for lookup.

    Every step is journaled before, verified after, and can be resumed after an interruption.
    """
    from whoseblock.journal import open_journal

    given = FailureOptions.of(ranges, options)
    _check_options(options)
    if not options["resume"]:
        given.check(target=target is not None)
    else:
        _check_resume()
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


#: So many plans that are not carried out are named.
_MOST_SHOWN: Final = 8
#: What --resume takes; all else is in the journal, as it was when the plan was made.
_WITH_RESUME: Final = frozenset({"target", "resume", "journal_url", "as_json", "applied", "yes"})


def _check_resume() -> None:
    """Refuse what --resume does not look at, with a usage error."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _WITH_RESUME or not is_given(context, name):
            continue
        what = parameter.opts[0] if isinstance(parameter, click.Option) else "RANGE"
        raise click.UsageError(
            f"{what} has no effect with --resume, which carries out the plans in the journal."
        )


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options that have no effect without another, with a usage error."""
    if options["yes"] and not (options["applied"] or options["resume"]):
        raise click.UsageError("--yes has no effect without --apply.")
    if options["restore_map"] and not options["restore_file"]:
        raise click.UsageError("--restore-map has no effect without --restore-file.")
    copies = ("restore_from", "restore_file", "restore_command")
    for name in ("verify_whole", "accept_older", "accept_zeros", "prefer"):
        if options[name] and not any(options[copy] for copy in copies):
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no effect without --restore-from, --restore-file"
                " or --restore-command."
            )


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
        self._left: list[StepOutcome] = []
        self._declined = False
        self._out_of_reach = False
        self._in_use: InUseError | None = None
        self._passed_over = False

    def respond(self, path: str | None, given: FailureOptions) -> None:
        """Plan, and apply the plan if that is wanted."""
        from whoseblock.lookup import Lookup
        from whoseblock.respond import service
        from whoseblock.target import Target

        where = options_of(self._options)
        options = _plan_options(self._options)
        with Target(path, where) as target, Lookup(target.open_leaf) as finder:
            planned = self._plan(target, finder, given, where, options)
            if not planned:
                # Standard error reports what was read.
                return
            self._show(planned)
            # A plan that the user declined is in the journal, and --resume leaves it alone.
            agreed = False
            saved = None
            try:
                agreed = self._options["applied"] and self._confirm(planned)
            finally:
                # Readable sectors are no failure; what is applied closes one that is open.
                failed = planned if agreed else [one for one in planned if one.needs_action]
                if failed:
                    saved = service.save(
                        self._run,
                        failed,
                        options,
                        target=_absolute(path),
                        where=where,
                        applied=agreed,
                    )
            self._show_plan(saved.plan if saved else None)
            if agreed and saved:
                self._show_outcomes(
                    service.apply(self._journal, self._run, saved, target, finder, _report_wait)
                )

    def _plan(
        self,
        target: "Target",
        finder: "Lookup",
        given: FailureOptions,
        where: "TargetOptions",
        options: "PlanOptions",
    ) -> "list[PlannedFailure]":
        from whoseblock.resolve import Resolver
        from whoseblock.respond import service

        planned = []
        with ProgressBar() as progress:
            finder.progress = progress
            readings: list[Reading] = []
            resolver = Resolver(target, device=where.device, offset=given.offset)
            asked = list(resolver.resolve(read_failures(given, target, finder, readings)))
            for one in service.plan(target, finder, asked, options, processes=True):
                planned.append(one)
                progress("failures planned", len(planned), len(asked))
        report_readings(readings)
        report_resolver(resolver, target)
        report_options(target)
        self._passed_over = is_passed_over(resolver, readings)
        return planned

    def _confirm(self, planned: "Sequence[PlannedFailure]") -> bool:
        from whoseblock.respond.service import count_changes

        count = count_changes(planned)
        if self._options["yes"] or not count:
            return True
        if not sys.stdin.isatty():
            raise click.UsageError("not a terminal; pass --yes to confirm")
        question = "Apply this step?" if count == 1 else f"Apply these {count} steps?"
        if click.confirm(question, err=True):
            return True
        self._declined = True
        return False

    def resume(self, only: str | None) -> None:
        """Resume the plans that were to be applied and are not finished."""
        from whoseblock.respond import service

        plans = service.unfinished(self._journal, _absolute(only))
        doubtful = self._show_doubtful(service.doubtful(self._journal, _absolute(only)))
        if not plans and not doubtful:
            click.echo("no interrupted steps", err=True)
        for plan in plans:
            try:
                self._show_outcomes(service.resume(self._journal, self._run, plan, _report_wait))
            except InUseError as error:
                self._in_use = error
                click.echo(str(error), err=True)
            except PrivilegeError:
                raise
            except TargetError as error:
                self._out_of_reach = True
                click.echo(f"plan {plan.id}: {printable(str(error))}", err=True)

    def _show_doubtful(self, numbers: "Iterable[int]") -> int:
        """Report plans that are not carried out since they are not authentic; return how many."""
        count, shown = 0, []
        for count, number in enumerate(numbers, 1):
            if count <= _MOST_SHOWN:
                shown.append(str(number))
        if count:
            self._out_of_reach = True
            what = f"plan {shown[0]} was" if count == 1 else f"{count} plans were"
            names = (
                "" if count == 1 else f" ({', '.join(shown)}{', …' if count > len(shown) else ''})"
            )
            click.echo(
                f"{what} written or changed by another program, or before the journal had keys:"
                f" not carried out{names}",
                err=True,
            )
            click.echo(f"hint: whoseblock journal discard {shown[0]} shows and drops it", err=True)
        return count

    def finish(self) -> None:
        """Raise `LeftUndoneError` unless every step was verified."""
        if self._declined:
            raise LeftUndoneError("declined: nothing was changed")
        if self._out_of_reach and not self._left:
            raise LeftUndoneError("interrupted steps cannot be resumed: see above")
        if self._left:
            what = "a step was" if len(self._left) == 1 else f"{len(self._left)} steps were"
            raise LeftUndoneError(
                f"{what} skipped or failed",
                hint="see above, and: whoseblock journal list --open",
            )
        if self._in_use is not None:
            hint = "wait until that run has ended, and resume again"
            raise InUseError("steps were left to another run: see above", hint=hint)
        if self._passed_over:
            exit_passed_over()

    # ------------------------------------------------------------------ presentation

    def _show(self, planned: "Sequence[PlannedFailure]") -> None:
        for one in () if self._options["as_json"] else planned:
            click.echo(_printed(_describe(one)))

    def _show_plan(self, plan: "Plan | None") -> None:
        """Show the plan in the journal, None if no sector fails."""
        if self._options["as_json"]:
            found = (plan.id, list(plan.failures), plan.steps) if plan else (None, [], [])
            _write_json(dict(zip(("plan", "failures", "steps"), found, strict=True)))
        elif plan and plan.steps and not self._options["applied"]:
            click.echo(f"dry run: plan {plan.id} saved; run again with --apply to carry it out")

    def _show_outcomes(self, outcomes: "Iterable[StepOutcome]") -> None:
        from whoseblock.journal import State

        for outcome in outcomes:
            self._show_outcome(outcome)
            if outcome.state is not State.VERIFIED:
                self._left.append(outcome)

    def _show_outcome(self, outcome: "StepOutcome") -> None:
        step = outcome.step
        if self._options["as_json"]:
            record: dict[str, object] = {"step": step.id, "kind": step.kind, "state": outcome.state}
            record["says"] = outcome.says
            if outcome.owners:
                record["owners"] = [owner._asdict() for owner in outcome.owners]
            _write_json(record)
            return
        run = step.parameters
        place = f" {run['start']}+{run['length']}" if "start" in run else ""
        click.echo(_printed([f"{outcome.state}: {step.kind}{place}: {printable(outcome.says)}"]))


def _report_wait(what: str) -> None:
    click.echo(f"whoseblock: {printable(what)}", err=True)


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def _plan_options(options: dict[str, Any]) -> "PlanOptions":
    """Return what the command line allows."""
    from whoseblock.respond.copies.locations import Copies, Preference
    from whoseblock.respond.service import PlanOptions

    folder, file = _absolute(options["restore_from"]), _absolute(options["restore_file"])
    command = options["restore_command"]
    copies = None
    if folder or file or command or options["restore_cached"]:
        copies = Copies(
            folder,
            file,
            command,
            whole=options["verify_whole"],
            older=options["accept_older"],
            zeros=options["accept_zeros"],
            rescue_map=_absolute(options["restore_map"]),
            prefer=Preference(options["prefer"]) if options["prefer"] else None,
        )
    return PlanOptions(
        copies=copies,
        punch=options["punch"],
        quarantine=options["quarantine"],
        command=options["command"],
        signal=options["signal_name"],
        write_read_only=options["write_read_only"],
    )


def _write_json(record: object) -> None:
    from whoseblock.encode import encode_json

    sys.stdout.buffer.write(encode_json(record) + b"\n")
    sys.stdout.buffer.flush()


def _printed(lines: "Sequence[str] | Iterator[str]") -> bytes:
    return "\n".join(lines).encode(errors="backslashreplace")


def _describe(planned: "PlannedFailure") -> Iterator[str]:
    """Describe a failed range, its owners, and what can be done, in lines of text."""
    asked = planned.asked
    origin = f" ({printable(asked.origin)})" if asked.origin else ""
    yield f"{asked.start}+{asked.length} of {printable(asked.layer.name)}{origin}"
    for proposal in planned.proposals:
        layer = proposal.site.layer
        where = "" if layer is asked.layer else f" of {printable(layer.name)}"
        bad = ", ".join(map(str, proposal.failing))
        yield f"  {proposal.run}{where}{f', of which {bad} fails' if bad else ''}"
        for owner in proposal.owners:
            yield from (f"    {line}" for line in _owner_lines(owner))
        for note in proposal.notes:
            yield f"    note: {printable(note)}"
        act = "" if proposal.act == "nothing" else f"{proposal.act}: "
        yield f"    {act}{printable(proposal.says)}"
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
    about = f"inode {owner.inode}"
    about += f" of subvolume {owner.subvolume}" if isinstance(owner.subvolume, int) else ""
    about += f", {owner.what}"
    about += "" if owner.file_offset is None else f" at {owner.file_offset}"
    about += "".join(f", {flag}" for flag in flags)
    yield f"{printable(paths[0]) if paths else '(no path)'}: {about}"
    for path in paths[1:]:
        yield f"  also {printable(path)}"
    users = owner.processes if isinstance(owner.processes, tuple) else ()
    for process in users:
        how = "mapped" if process.mappings else "open"
        yield f"  {how} by process {process.pid} {printable(process.command)}"
