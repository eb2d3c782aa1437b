"""Generated extents."""

from whoseblock.study.simulation.extents import made_up
from whoseblock.study.simulation.space import Space


def test_generated_extents_have_the_sharers_asked_for() -> None:
    space = Space(made_up(3000, 5, seed=1))
    assert {len(segment.keys) for segment in space.segments()} == {5}
    assert made_up(3000, 5, seed=1) == made_up(3000, 5, seed=1)
    assert any(one.length == 512 and one.page % 512 == 0 for one in made_up(9000, 1, seed=1).files)
