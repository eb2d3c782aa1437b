"""Run the adversarial round: odd healthy images, and damaged ones.

    python -m tools.adversary healthy --images 100 --questions 1000
    python -m tools.adversary damaged --cases 20000
    python -m tools.adversary damaged --case 4711

Needs root, loop devices and the newest xfsprogs (``tools/xfsprogs``).  The exit status is 1 if an
answer was wrong.
"""

import argparse
import resource
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tests.support.tools import Missing, need_loop_mounts
from tools.adversary.bases import BASES
from tools.adversary.damaged import Finding, Tally, as_json, run_cases
from tools.adversary.healthy import Outcome, Round
from tools.adversary.wounds import WEIGHTS

_HERE = Path("/tmp/whoseblock-adversary")  # noqa: S108 - large, and worth keeping between runs


def main(words: list[str] | None = None) -> int:
    """Run the part that the command line names; return the exit status."""
    options = _parser().parse_args(words)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        need_loop_mounts()
    except Missing as missing:
        print(f"tools.adversary: {missing}", file=sys.stderr)
        return 2
    return _damaged(options) if options.part == "damaged" else _healthy(options)


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tools.adversary",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=1, help="random seed (1)")
    shared.add_argument(
        "--folder", type=Path, default=_HERE, help=f"folder for the images ({_HERE})"
    )
    parts = parser.add_subparsers(required=True, dest="part")
    healthy = parts.add_parser("healthy", parents=[shared], help="make odd images and ask")
    healthy.add_argument("--images", type=int, default=100, help="number of images (100)")
    healthy.add_argument("--first", type=int, default=0, help="number of the first image (0)")
    healthy.add_argument("--image", type=int, help="make this image only, and keep it")
    healthy.add_argument(
        "--questions", type=int, default=1000, help="questions about each image, at least (1000)"
    )
    special = parts.add_parser("special", parents=[shared], help="make very large images and ask")
    special.add_argument("--inodes", type=int, default=1_000_000, help="inodes (1000000)")
    special.add_argument("--extents", type=int, default=700_000, help="extents (700000)")
    special.add_argument("--questions", type=int, default=1000, help="questions, at least (1000)")
    damaged = parts.add_parser("damaged", parents=[shared], help="damage images and ask")
    damaged.add_argument("--cases", type=int, default=20_000, help="number of cases (20000)")
    damaged.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    damaged.add_argument("--case", type=int, help="run this case only, and print everything")
    damaged.add_argument(
        "--base", action="append", default=[], choices=list(BASES), help="base image (all)"
    )
    damaged.add_argument("--findings", type=Path, help="write the findings to FILE, as JSON lines")
    return parser


def _healthy(options: argparse.Namespace) -> int:
    def report(outcome: Outcome) -> None:
        print(outcome, flush=True)
        for question, verdict in outcome.wrong[:3]:
            print(f"  {question}: {verdict.fault}")
            print(f"    expected {verdict.expected}\n    actual   {verdict.actual}", flush=True)

    keep = options.part == "healthy" and options.image is not None
    asked = Round(options.folder, options.seed, options.questions, report, keep=keep)
    if options.part == "special":
        outcomes = asked.special(options.inodes, options.extents)
    elif keep:
        outcomes = asked.planned(range(options.image, options.image + 1))
    else:
        outcomes = asked.planned(range(options.first, options.first + options.images))
    wrong = sum(len(outcome.wrong) for outcome in outcomes)
    made = [outcome for outcome in outcomes if not outcome.skipped]
    print(
        f"{len(made)} images, {sum(outcome.questions for outcome in made)} questions,"
        f" {wrong} wrong answers, {len(outcomes) - len(made)} images skipped"
    )
    return 1 if wrong else 0


def _damaged(options: argparse.Namespace) -> int:
    cases = range(options.first, options.first + options.cases)
    if options.case is not None:
        cases = range(options.case, options.case + 1)
    tally = run_cases(options.folder, options.seed, cases, options.base, _progress)
    _print_tally(tally, everything=options.case is not None)
    if options.findings:
        options.findings.write_text("".join(f"{as_json(one)}\n" for one in tally.findings))
    return 1 if tally.wrong else 0


def _progress(tally: Tally) -> None:
    done = sum(tally.cases.values())
    if sys.stderr.isatty():
        print(
            f"\r{done} cases, {len(tally.wrong)} wrong, {tally.seconds:.0f} s",
            end="",
            file=sys.stderr,
        )


def _print_tally(tally: Tally, *, everything: bool) -> None:
    wrong: dict[str, set[int]] = defaultdict(set)
    inherent: dict[str, set[int]] = defaultdict(set)
    for finding in tally.findings:
        kind = finding.wounds.partition(":")[0]
        (inherent if finding.inherent else wrong)[kind].add(finding.case)
    print(
        f"{'damage':20} {'cases':>7} {'answers':>8} {'incomplete':>10} {'refused':>7}"
        f" {'wrong':>6} {'inherent':>8}"
    )
    rows = [*(kind for kind in WEIGHTS if tally.cases[kind]), "all"]
    for kind in rows:
        each = [kind] if kind != "all" else list(WEIGHTS)
        print(
            f"{kind:20} {sum(tally.cases[one] for one in each):7}"
            f" {sum(tally.answers[one] for one in each):8}"
            f" {sum(tally.incomplete[one] for one in each):10}"
            f" {sum(tally.refused[one] for one in each):7}"
            f" {sum(len(wrong[one]) for one in each):6}"
            f" {sum(len(inherent[one]) for one in each):8}"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    seconds, case = tally.slowest
    print(f"{tally.seconds:.0f} s; slowest {seconds:.2f} s (case {case}); peak memory {peak} MiB")
    _print_classes(tally)
    shown = tally.findings if everything else _one_of_each(tally)
    for finding in shown:
        print(
            f"\ncase {finding.case} of {finding.base}, {finding.wounds}\n  asked"
            f" {finding.question}: {finding.verdict.fault} {finding.inherent and '(inherent)'}\n"
            f"  expected {finding.verdict.expected}\n  actual   {finding.verdict.actual}"
        )


def _print_classes(tally: Tally) -> None:
    """Print the wrong answers by class and by the kinds of metadata that were damaged."""
    classes: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for finding in tally.findings:
        kinds = "+".join(finding.kinds) if len(finding.kinds) < 3 else f"{len(finding.kinds)} kinds"
        classes[(finding.inherent or "WRONG", finding.verdict.fault, kinds)].add(finding.case)
    counts = Counter({key: len(cases) for key, cases in classes.items()})
    for (inherent, fault, kinds), count in counts.most_common(60):
        print(
            f"{count:6} {inherent}: {fault}: {kinds}: case {min(classes[inherent, fault, kinds])}"
        )


def _one_of_each(tally: Tally) -> list[Finding]:
    """Return one finding of each class and each kind that was damaged alone."""
    seen: dict[tuple[str, tuple[str, ...]], Finding] = {}
    for finding in tally.wrong:
        if len(finding.kinds) == 1:
            seen.setdefault((finding.verdict.fault, finding.kinds), finding)
    return list(seen.values())[:30]


if __name__ == "__main__":
    sys.exit(main())
