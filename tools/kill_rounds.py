"""Kill repairs by the hundred, and check after each that nothing is wrong, unshared or frozen.

    python -m tools.kill_rounds --rounds 500 --seed 1

Each kind of failure has a filesystem of its own.  A round makes sectors fail, kills the repair at a
boundary or at a random moment, some with all of its control group, some while another process has
an owner open, and resumes.  A sample is in
``tests/respond/test_execution_killed.py``.  Needs root.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

from tests.support.killed_repairs import ground, victim
from tests.support.killed_trials import Trial
from tests.support.repair_cases import FAILURES

_LEASED = ("shared_by_five", "given_up", "unshared")


def main() -> None:
    """Run the rounds, and print one line for each kind of failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500, help="kills in all (500)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="random seed")
    parser.add_argument("--kind", action="append", choices=[*FAILURES], help="only these failures")
    given = parser.parse_args()
    kinds = [(kind, True) for kind in FAILURES] + [(kind, False) for kind in _LEASED]
    kinds = [one for one in kinds if given.kind is None or one[0] in given.kind]
    print(f"seed {given.seed}", flush=True)
    total: Counter[str] = Counter()
    for number, (kind, exchange) in enumerate(kinds):
        share = given.rounds * (number + 1) // len(kinds) - given.rounds * number // len(kinds)
        begun = time.monotonic()
        found = _rounds(kind, share, given.seed, exchange=exchange)
        total += found
        name = kind if exchange else f"{kind}, lease"
        print(f"{name}: {_told(found)}, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"all: {_told(total)}")


def _told(found: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def _rounds(kind: str, rounds: int, seed: int, *, exchange: bool) -> Counter[str]:
    chance = random.Random(f"{kind} {exchange} {seed}")  # noqa: S311 - a test
    found: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="kill-rounds-") as folder,
        ground(exchange=exchange) as made,
        victim(Path(folder) / "runs") as program,
    ):
        made.capable = 0.4
        trial = Trial(made, program, kind, seed)
        _, usual = trial.undisturbed(), trial.undisturbed()
        moments = usual.moments()
        chance.shuffle(moments)
        more = cycle(moments)
        while program.kills < rounds:
            before = program.kills
            group = program.has_groups and chance.random() < 0.3
            busy = chance.random() < 0.2
            if chance.random() < 0.5:
                at, after = next(more)
                both = chance.random() < 0.5
                trial.kill(at=at, after=after, group=group, surely=False, busy=busy, both=both)
                how = "at a boundary"
                found["with a guard, if any"] += both
            else:
                delays = [chance.random() * usual.seconds for _ in range(chance.choice((1, 2)))]
                trial.kill(delays=delays, group=group, busy=busy)
                how = "at random"
            killed = program.kills - before
            found[f"{how}{' by group' if group else ''}"] += killed
            found["rounds"] += 1
            found["with a busy owner"] += busy
        trial.check_all()
    return found


if __name__ == "__main__":
    main()
