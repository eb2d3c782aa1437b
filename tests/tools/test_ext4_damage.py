"""The judge of damaged images notices a check that is taken out of the driver."""

from pathlib import Path

import pytest
from tests.support.ext4_damage import Base, make_base, run_case
from tests.support.ext4_mutations import MUTATIONS, mutated


def is_wrong(base: Base, seed: int, kind: str) -> bool:
    try:
        return bool(run_case(base, seed, 3, kind))
    except TimeoutError:
        return True


@pytest.mark.parametrize(
    "name", ["inode checksums", "faults of block bitmaps", "lost inode tables", "loops of orphans"]
)
def test_a_check_that_is_taken_out_is_noticed(name: str, tmp_path: Path) -> None:
    base = make_base(MUTATIONS[name].base, tmp_path)
    with mutated(name):
        assert any(is_wrong(base, seed, MUTATIONS[name].damage) for seed in range(400))
