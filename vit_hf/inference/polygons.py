"""Outlines of masks, along the edges of pixels, and simplified.

The corners of a mask are all that is kept of it. On each line between rows of pixels, corners are in pairs
from left to right, which are the ends of its horizontal edges; so are those on each line between columns,
from top to bottom. A ring goes along the one and the other by turns. So a mask may come a band of rows at a
time, and memory depends on the number of corners alone.

Pixels that only touch at a corner are apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Polygon:
    """An area without gaps.

    Attributes:
        outer: `(N, 2)` float64 x and y of the corners, without the first again.
        holes: of the same kind.
    """

    outer: np.ndarray
    holes: list[np.ndarray] = field(default_factory=list)

    @property
    def area(self) -> float:
        return abs(signed_area(self.outer)) - sum(abs(signed_area(hole)) for hole in self.holes)


def signed_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0] - ring[0, 0], ring[:, 1] - ring[0, 1]
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


class CornerTable:
    """The corners of a mask `(H, W)` bool that comes a band of rows at a time.

    Args:
        width: of the mask.
    """

    def __init__(self, width: int):
        self._above = np.zeros(width + 2, bool)
        self._row = 0
        self._corners: list[np.ndarray] = []

    def add(self, band: np.ndarray) -> None:
        """The next rows `(n, W)` bool."""
        padded = np.zeros((len(band) + 1, band.shape[1] + 2), bool)
        padded[0] = self._above
        padded[1:, 1:-1] = band
        self._note(padded)
        self._above = padded[-1].copy()
        self._row += len(band)

    def rings(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Outer rings and rings of holes, each `(N, 2)` float64 x and y."""
        last = np.zeros((2, len(self._above)), bool)
        last[0] = self._above
        self._note(last)
        corners = np.concatenate(self._corners) if self._corners else np.zeros((0, 5), np.int64)
        return _trace(corners)

    def _note(self, padded: np.ndarray) -> None:
        """Corners of `(n + 1, W + 2)`: y, x, order among those at one place by row and by column, and whether
        the pixel right below is in the mask."""
        above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
        below_left, below_right = padded[1:, :-1], padded[1:, 1:]
        odd = above_left ^ above_right ^ below_left ^ below_right
        saddle = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
        y, x = np.nonzero(odd)
        zero = np.zeros_like(y)
        self._corners.append(np.stack((y + self._row, x, zero, zero, below_right[y, x]), axis=1))
        y, x = np.nonzero(saddle)
        falling = above_left[y, x].astype(np.int64)  # the mask is above left and below right
        zero, below = np.zeros_like(y), below_right[y, x]
        self._corners.append(np.stack((y + self._row, x, zero, 1 - falling, below), axis=1))
        self._corners.append(np.stack((y + self._row, x, zero + 1, falling, below), axis=1))


def _trace(corners: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    y, x, by_row, by_column, below = corners.T
    along = _partners(np.lexsort((by_row, x, y)))
    down = _partners(np.lexsort((by_column, y, x)))
    outer, holes = [], []
    seen = np.zeros(len(corners), bool)
    along, down, place = along.tolist(), down.tolist(), corners[:, [1, 0]].astype(np.float64)
    # The first corner of a ring in this order is its upper left one.
    for first in np.lexsort((by_row, x, y)).tolist():
        if seen[first]:
            continue
        ring, corner = [], first
        while not seen[corner]:
            other = along[corner]
            seen[corner] = seen[other] = True
            ring += [corner, other]
            corner = down[other]
        (outer if below[first] else holes).append(place[ring])
    return outer, holes


def _partners(order: np.ndarray) -> np.ndarray:
    partners = np.empty(len(order), np.int64)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def trace_polygons(bands: Iterable[np.ndarray], width: int, tolerance: float = 0.0) -> list[Polygon]:
    """The areas of a mask, each with its holes.

    Args:
        bands: rows `(n, W)` bool, from top to bottom.
        width: W.
        tolerance: most pixels that an outline may be simplified by; see `simplify`.
    """
    table = CornerTable(width)
    for band in bands:
        table.add(np.asarray(band, bool))
    outer, holes = table.rings()
    polygons = [Polygon(ring) for ring in outer]
    low = np.array([ring.min(axis=0) for ring in outer]).reshape(-1, 2)
    high = np.array([ring.max(axis=0) for ring in outer]).reshape(-1, 2)
    sizes = np.array([abs(signed_area(ring)) for ring in outer])
    for hole in holes:
        # In the pixel above the hole's upper left one, which is in the area around it.
        x, y = hole[np.lexsort((hole[:, 0], hole[:, 1]))[0]] + (0.5, -0.5)
        around = np.flatnonzero((low < (x, y)).all(axis=1) & (high > (x, y)).all(axis=1))
        for index in around[np.argsort(sizes[around])].tolist():
            if _contains(outer[index], x, y):
                polygons[index].holes.append(hole)
                break
    if not tolerance:
        return polygons
    return [
        Polygon(simplify(polygon.outer, tolerance), [simplify(hole, tolerance) for hole in polygon.holes])
        for polygon in polygons
    ]


def _contains(ring: np.ndarray, x: float, y: float) -> bool:
    first, second = ring, np.roll(ring, -1, axis=0)
    upright = first[:, 0] == second[:, 0]
    low, high = np.minimum(first[:, 1], second[:, 1]), np.maximum(first[:, 1], second[:, 1])
    return bool((upright & (first[:, 0] < x) & (low < y) & (y < high)).sum() % 2)


def simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A ring with fewer corners, no corner of the old one farther than `tolerance` from the new one.

    By Ramer (1972) and Douglas and Peucker (1973), from its two corners that are farthest apart along the
    diagonal. Where the result would cross itself, the tolerance is halved until it does not.
    """
    for _ in range(6):
        start = int(ring.sum(axis=1).argmin())
        turned = np.roll(ring, -start, axis=0)
        middle = int(np.linalg.norm(turned - turned[0], axis=1).argmax())
        closed = np.concatenate((turned, turned[:1]))
        kept = np.concatenate(
            (_kept(closed[: middle + 1], tolerance)[:-1], _kept(closed[middle:], tolerance)[:-1])
        )
        result = turned[kept]
        if len(result) >= 3 and signed_area(result) != 0 and not _crosses(result):
            return result
        tolerance /= 2
    return ring


def _kept(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Selects the points of an open line that remain, `(N,)` bool."""
    kept = np.zeros(len(points), bool)
    kept[[0, -1]] = True
    todo = [(0, len(points) - 1)]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        distances = _distances(points[first + 1 : last], points[first], points[last])
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            todo += [(first, middle), (middle, last)]
    return kept


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances of points from the line between two others, which ends there."""
    direction = end - start
    length = float(direction @ direction)
    along = np.clip((points - start) @ direction / length, 0, 1) if length else np.zeros(len(points))
    return np.linalg.norm(points - start - along[:, None] * direction, axis=1)


def _crosses(ring: np.ndarray, rows: int = 512) -> bool:
    """Returns whether two edges that are no neighbors have a point in common."""
    first, second = ring, np.roll(ring, -1, axis=0)
    number = len(ring)
    places = np.arange(number)
    for begin in range(0, number, rows):
        part = slice(begin, begin + rows)
        a, b = first[part, None], second[part, None]
        c, d = first[None], second[None]
        one, two = _turn(a, b, c), _turn(a, b, d)
        three, four = _turn(c, d, a), _turn(c, d, b)
        touching = (one * two <= 0) & (three * four <= 0)
        # Of edges on one line, turns are all 0: their boxes decide.
        low = np.maximum(np.minimum(a, b), np.minimum(c, d))
        high = np.minimum(np.maximum(a, b), np.maximum(c, d))
        touching &= (low <= high).all(axis=-1)
        gap = np.abs(places[part, None] - places[None])
        if (touching & (gap > 1) & (gap < number - 1)).any():
            return True
    return False


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.sign(
        (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
    )
