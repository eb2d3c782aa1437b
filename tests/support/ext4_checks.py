"""The comparison of a whole image of ext2, ext3 or ext4 with its truth."""

import random
from pathlib import Path
from typing import Final

from tests.support.ext4_images import Truth, differences, edge_ranges, read_truth

import whoseblock

__all__ = ["check_image"]

#: Edges of each image about which ranges are asked.
_EDGES: Final = 300


def check_image(image: Path, *, newest: bool = False) -> tuple[Truth, int]:
    """Compare one question about everything, and questions about edges, with the truth."""
    truth = read_truth(image, newest=newest)
    size, count = truth.block_size, len(truth.claims)
    with whoseblock.open(image) as fs:
        assert fs.reverse_map == "scan"
        assert fs.doubts == ()
        answer = fs.owners(0, count * size)
        assert answer.complete
        assert differences(truth, answer) == []
        # Thousands of ranges, all with one scan, and some with a scan each.
        rnd = random.Random(1)
        asked = edge_ranges(truth, rnd, _EDGES)
        assert len(asked) > 1000
        together = list(fs.owners_many(asked))
        for one in together:
            assert one.complete
            assert differences(truth, one) == []
        for one in rnd.sample(together, 40):
            alone = fs.owners(one.start, one.length)
            assert (alone.complete, alone.owners) == (True, one.owners)
    return truth, len(answer)
