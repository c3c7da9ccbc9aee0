"""Where tiles are: every pixel in one, none outside, and no more than needed."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vit_hf.inference.tile_grid import TileGrid


sides = st.integers(1, 400)


@settings(deadline=None, max_examples=300)
@given(st.tuples(sides, sides), st.tuples(st.integers(1, 120), st.integers(1, 120)), st.floats(0, 0.99))
def test_tiles_cover_the_image(image_size, tile, overlap):
    grid = TileGrid.cover(image_size, tile, overlap)
    for axis, starts in enumerate((grid.tops, grid.lefts)):
        length, size = image_size[axis], grid.tile_size[axis]
        assert size == min(length, tile[axis])
        covered = set()
        for start in starts:
            assert 0 <= start <= length - size
            covered.update(range(start, start + size))
        assert len(covered) == length
        # All as far apart as the overlap allows, but for the last, which may be nearer.
        step = max(1, size - round(size * overlap)) if size == tile[axis] else None
        gaps = [second - first for first, second in pairwise(starts)]
        assert all(gap == step for gap in gaps[:-1]) and all(0 < gap <= step for gap in gaps[-1:])
        # One fewer would not reach the end.
        needed = 1 if length == size else math.ceil((length - size) / step) + 1
        assert len(starts) == needed
    assert len(grid) == len(grid.tops) * len(grid.lefts) == len(grid.coordinates)


def test_coordinates_go_row_by_row():
    grid = TileGrid.cover((40, 100), (30, 40), 0.25)
    assert grid.coordinates.tolist() == [[top, left, 30, 40] for top in (0, 10) for left in (0, 30, 60)]


@pytest.mark.parametrize(
    ("length", "overlap", "starts"),
    [
        (10, 0.0, (0,)),
        (20, 0.0, (0, 10)),
        (21, 0.0, (0, 10, 11)),
        (20, 0.5, (0, 5, 10)),
        # 10 * (1 - 0.9) is a little less than 1.
        (13, 0.9, (0, 1, 2, 3)),
        # Never standing still.
        (12, 0.999, (0, 1, 2)),
        (3, 0.5, (0,)),
    ],
)
def test_starts(length, overlap, starts):
    assert TileGrid.cover((length, 5), 10, overlap).tops == starts
