"""The window of a byte, compared with the mapping of every range in it."""

from hypothesis import given
from hypothesis import strategies as st

from whoseblock.stack.base import (
    Layer,
    LinearSegment,
    RangeMapping,
    Segment,
    UnmappedSegment,
    descend,
    linear_window,
)

SIZE = 40


@st.composite
def layers(draw: st.DrawFn, depth: int = 3) -> Layer:
    """Return a layer with segments that may overlap, end past its end, and lead to few layers."""
    said = st.lists(st.sampled_from(["a", "b"]), max_size=1)
    layer = Layer(f"layer{depth}", draw(st.integers(1, SIZE)), "disk")
    layer.remarks, layer.doubts = tuple(draw(said)), tuple(draw(said))
    if not depth:
        return layer
    below = draw(st.lists(layers(depth - 1), min_size=1, max_size=2))
    places = st.tuples(st.integers(0, SIZE), st.integers(1, SIZE))
    segments: list[Segment] = []
    for start, length in draw(st.lists(places, max_size=3)):
        if draw(st.integers(0, 4)) == 0:
            segments.append(UnmappedSegment(start, length, "swap"))
            continue
        to, to_start = draw(st.sampled_from(below)), draw(st.integers(0, SIZE // 2))
        remark, doubt = draw(st.sampled_from(["", "r"])), draw(st.sampled_from(["", "d"]))
        segments.append(LinearSegment(start, length, to, to_start, "", remark, doubt))
    layer.segments = segments
    if draw(st.integers(0, 5)) == 0:
        layer.backing_segments = (LinearSegment(0, SIZE, below[0]),)
    return layer


def _moved(window: RangeMapping, start: int, length: int) -> RangeMapping:
    by = start - window.start
    via = tuple(one._replace(start=one.start + by) for one in window.via)
    return window._replace(start=start, length=length, via=via, offset=window.offset + by)


@given(layers(), st.data())
def test_every_range_in_a_window_is_mapped_as_the_window(layer: Layer, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, SIZE))
    window = linear_window(layer, at)
    if window is None:
        return
    end = window.start + window.length
    assert window.start <= at < end
    start = data.draw(st.integers(window.start, end - 1))
    length = data.draw(st.integers(1, end - start))
    assert list(descend(layer, start, length)) == [_moved(window, start, length)]


def test_a_partition_is_one_window() -> None:
    disk, part = Layer("disk", 100, "disk"), Layer("part", 50, "partition")
    disk.segments = [UnmappedSegment(0, 10, "table"), LinearSegment(10, 60, part)]
    window = linear_window(disk, 30)
    assert window is not None
    assert (window.start, window.length, window.layer, window.offset) == (10, 50, part, 0)
    assert [linear_window(disk, at) for at in (5, 60, 80)] == [None, None, None]
