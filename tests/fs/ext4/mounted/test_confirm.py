"""Extents that the kernel reports in pieces of its choice."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.fs.ext4.mounted.confirm import join_mapped
from whoseblock.fs.pieces import DATA, FILE_DATA
from whoseblock.fs.scan.engine import Extent

_FLAGS = FILE_DATA << 1


@given(st.sets(st.integers(1, 29)), st.sets(st.integers(0, 28), max_size=5))
def test_one_extent_is_one_in_whatever_pieces(cuts: set[int], again: set[int]) -> None:
    edges = sorted({0, 30, *cuts})
    pieces = [
        Extent(100 + low, high - low, 12, DATA, 7 + low, _FLAGS)
        for low, high in itertools.pairwise(edges)
    ]
    pieces += [Extent(100 + low, 30 - low, 12, DATA, 7 + low, _FLAGS) for low in again]
    assert join_mapped(set(pieces)) == [Extent(100, 30, 12, DATA, 7, _FLAGS)]


def test_extents_of_other_files_forks_places_and_states_stay() -> None:
    one = Extent(100, 10, 12, DATA, 0, _FLAGS)
    others = [
        Extent(110, 10, 13, DATA, 10, _FLAGS),
        Extent(110, 10, 12, DATA, 11, _FLAGS),
        Extent(110, 10, 12, DATA, 10, _FLAGS | 1),
        Extent(111, 10, 12, DATA, 11, _FLAGS),
    ]
    for other in others:
        assert join_mapped([other, one]) == [one, other]
    blocks_of_maps = [one._replace(offset=-1), one._replace(start=110, offset=-1)]
    assert join_mapped(blocks_of_maps) == blocks_of_maps
