"""Outlines of masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.draw import polygon2mask
from skimage.measure import label

from vit_hf.inference.polygons import _crosses, simplify, trace_polygons


def draw(polygons, shape) -> np.ndarray:
    """The mask whose pixel centers are in polygons."""
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        area = inside(polygon.outer, shape)
        for hole in polygon.holes:
            area &= ~inside(hole, shape)
        assert not (mask & area).any()
        mask |= area
    return mask


def inside(ring, shape) -> np.ndarray:
    return polygon2mask(shape, ring[:, ::-1] - 0.5 + 1e-9)


class TestTracing:
    @given(
        mask=arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))),
        rows=st.integers(1, 12),
    )
    @settings(max_examples=150, deadline=None)
    def test_polygons_are_the_connected_areas(self, mask, rows):
        bands = [mask[first : first + rows] for first in range(0, len(mask), rows)]
        polygons = trace_polygons(bands, mask.shape[1])
        assert np.array_equal(draw(polygons, mask.shape), mask)
        assert sum(polygon.area for polygon in polygons) == mask.sum()
        labels, number = label(mask, connectivity=1, return_num=True)
        assert len(polygons) == number
        sizes = sorted(np.bincount(labels.ravel())[1:].tolist())
        assert sorted(polygon.area for polygon in polygons) == sizes

    def test_island_in_a_hole(self):
        mask = np.ones((9, 9), bool)
        mask[2:7, 2:7] = False
        mask[4, 4] = True
        outer, island = sorted(trace_polygons([mask], 9), key=lambda polygon: -polygon.area)
        assert (outer.area, len(outer.holes), island.area, len(island.holes)) == (56, 1, 1, 0)

    @pytest.mark.parametrize("mask", [np.zeros((4, 5), bool), np.zeros((0, 5), bool)])
    def test_nothing(self, mask):
        assert trace_polygons([mask], 5) == []

    def test_every_corner_once(self):
        (polygon,) = trace_polygons([np.ones((300, 200), bool)], 200)
        assert sorted(polygon.outer.tolist()) == [[0, 0], [0, 300], [200, 0], [200, 300]]


class TestSimplifying:
    @given(
        mask=arrays.arrays(bool, st.tuples(st.integers(2, 14), st.integers(2, 14)), fill=st.booleans()),
        tolerance=st.sampled_from([0.5, 1.0, 3.0]),
    )
    @settings(max_examples=100, deadline=None)
    def test_stays_within_the_tolerance_and_apart(self, mask, tolerance):
        for polygon in trace_polygons([mask], mask.shape[1]):
            result = simplify(polygon.outer, tolerance)
            assert 3 <= len(result) <= len(polygon.outer)
            if len(result) < len(polygon.outer):
                assert not _crosses(result)
            for corner in polygon.outer:
                assert distance(corner, result) <= tolerance + 1e-9

    def test_circle_needs_few_corners(self):
        y, x = np.mgrid[:200, :200]
        exact = trace_polygons([np.hypot(x - 99.5, y - 99.5) < 90], 200)
        rough = trace_polygons([np.hypot(x - 99.5, y - 99.5) < 90], 200, tolerance=1.0)
        assert len(rough[0].outer) < len(exact[0].outer) / 7
        assert rough[0].area == pytest.approx(exact[0].area, rel=0.02)


def distance(point, ring) -> float:
    start, end = ring, np.roll(ring, -1, axis=0)
    along = ((point - start) * (end - start)).sum(1) / np.maximum(((end - start) ** 2).sum(1), 1e-12)
    nearest = start + along.clip(0, 1)[:, None] * (end - start)
    return float(np.linalg.norm(point - nearest, axis=1).min())
