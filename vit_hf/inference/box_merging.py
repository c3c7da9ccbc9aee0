"""Objects that several windows of an image saw, made one.

A detector that sees an image window by window finds an object once in each window that it reaches into, in
pieces where a border cuts it. Two windows agree on an object if what they say of it is alike in the part that
both see; so neighbors that crowd each other stay apart, and pieces find each other however little they
overlap. Windows that do not meet are never compared: their grid is the spatial index.

Shapes: N detections, of all windows; boxes are left, top, right, bottom in pixels of the image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .dense_tiles import Window, WindowGrid


@dataclass
class Candidates:
    """Detections of all windows, before they are merged.

    Attributes:
        boxes: `(N, 4)` float64.
        scores: `(N,)` float64.
        labels: `(N,)` int64.
        windows: `(N,)` int64 index of the window, rising.
        cut: `(N,)` bool, whether an inner border of the window cuts it.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    windows: np.ndarray
    cut: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class MergeOptions:
    """Options of merging detections of windows that overlap.

    Attributes:
        threshold: least agreement; see `BOX_MERGERS`.
        class_wise: whether only those of one class are.
    """

    threshold: float = 0.3
    class_wise: bool = True


@dataclass
class Merged:
    """
    Attributes:
        boxes: `(M, 4)` float64.
        members: the candidates of each; the first has the score and the label.
    """

    boxes: np.ndarray
    members: list[np.ndarray]


def window_pairs(windows: Sequence[Window], grids: Sequence[WindowGrid]) -> Iterator[tuple[int, int]]:
    """Yields pairs of windows, by number, that overlap or touch, each once.

    Args:
        windows: those that have detections.
        grids: that they are of.
    """
    number_of = {(window.grid, window.top, window.left): index for index, window in enumerate(windows)}
    tops = [np.array(grid.rows.starts) for grid in grids]
    lefts = [np.array(grid.columns.starts) for grid in grids]
    for index, window in enumerate(windows):
        for number, grid in enumerate(grids):
            rows = _between(tops[number], window.top - grid.rows.size, window.bottom)
            columns = _between(lefts[number], window.left - grid.columns.size, window.right)
            for top in rows.tolist():
                for left in columns.tolist():
                    other = number_of.get((number, top, left), -1)
                    if other > index:
                        yield index, other


def _between(starts: np.ndarray, first: int, last: int) -> np.ndarray:
    return starts[np.searchsorted(starts, first, "left") : np.searchsorted(starts, last, "right")]


def intersection_sides(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`(F, S, 2)` width and height of what boxes have in common; negative where they are apart."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return high - low


def areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def agreement(first: np.ndarray, second: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Computes the IoU `(F, S)` of boxes in the part `common` of the image that both windows see.

    Along an axis on which the windows only touch, boxes agree if both reach their common border.
    """
    iou = np.ones((len(first), len(second)))
    for axis in (0, 1):
        lows, highs = (
            [np.clip(boxes[:, side], common[axis], common[axis + 2]) for boxes in (first, second)]
            for side in (axis, axis + 2)
        )
        if common[axis] == common[axis + 2]:
            reach = [
                (boxes[:, axis] <= common[axis]) & (boxes[:, axis + 2] >= common[axis])
                for boxes in (first, second)
            ]
            iou *= reach[0][:, None] & reach[1][None]
            continue
        inside = np.minimum(highs[0][:, None], highs[1][None]) - np.maximum(lows[0][:, None], lows[1][None])
        around = np.maximum(highs[0][:, None], highs[1][None]) - np.minimum(lows[0][:, None], lows[1][None])
        iou *= np.divide(np.maximum(inside, 0), around, out=np.zeros_like(inside), where=around > 0)
    return iou


class _Pairs:
    """The detections of windows that meet, two windows at a time."""

    def __init__(
        self, found: Candidates, windows: Sequence[Window], grids: Sequence[WindowGrid], class_wise: bool
    ):
        self.found, self.class_wise = found, class_wise
        numbers, starts = np.unique(found.windows, return_index=True)
        self.windows = [windows[number] for number in numbers]
        self.bounds = [*starts.tolist(), len(found)]
        self.grids = grids

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Indices of the detections of one window and of the other that reach their common part, and that."""
        boxes = self.found.boxes
        for one, two in window_pairs(self.windows, self.grids):
            first, second = self.windows[one], self.windows[two]
            common = np.array(
                [
                    max(first.left, second.left),
                    max(first.top, second.top),
                    min(first.right, second.right),
                    min(first.bottom, second.bottom),
                ],
                np.float64,
            )
            chosen = []
            for number in (one, two):
                indices = np.arange(self.bounds[number], self.bounds[number + 1])
                held = boxes[indices]
                reach = (held[:, :2] <= common[2:]).all(axis=1) & (held[:, 2:] >= common[:2]).all(axis=1)
                chosen.append(indices[reach])
            if len(chosen[0]) and len(chosen[1]):
                yield chosen[0], chosen[1], common

    def comparable(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        labels = self.found.labels
        if not self.class_wise:
            return np.ones((len(first), len(second)), bool)
        return labels[first][:, None] == labels[second][None]

    def overlaps(self, over_smaller: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds detections of different windows that overlap; returns both indices, and IoU or the
        intersection over the smaller area."""
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
        for first, second, _ in self:
            boxes = self.found.boxes
            inside = np.maximum(intersection_sides(boxes[first], boxes[second]), 0).prod(axis=2)
            one, two = areas(boxes[first])[:, None], areas(boxes[second])[None]
            whole = np.minimum(one, two) if over_smaller else one + two - inside
            value = np.divide(inside, whole, out=np.zeros_like(inside), where=whole > 0)
            rows, columns = np.nonzero((value > 0) & self.comparable(first, second))
            parts.append((first[rows], second[columns], value[rows, columns]))
        return tuple(map(np.concatenate, zip(*parts, strict=True)))


def merge_matched(
    found: Candidates, windows: Sequence[Window], grids: Sequence[WindowGrid], options: MergeOptions
) -> Merged:
    """Merges detections that windows agree on: to the whole one with the best score, or of pieces only, the
    box around them. A piece that no window confirms goes if another's box covers most of it."""
    pairs = _Pairs(found, windows, grids, options.class_wise)
    matches = []
    for first, second, common in pairs:
        values = agreement(found.boxes[first], found.boxes[second], common)
        values[~pairs.comparable(first, second)] = 0
        wide, high = common[2] - common[0], common[3] - common[1]
        seen = (-wide * high, -wide - high)
        matches.extend(
            (*seen, -value, i, j) for i, j, value in _one_to_one(values, first, second, options.threshold)
        )
    # The largest common part decides: in a small one, different objects may look alike.
    groups = _Groups(found.windows)
    for *_, i, j in sorted(matches):
        groups.join(i, j)
    absorbed = _unconfirmed_pieces(found, pairs, groups)
    boxes, members = [], []
    for group in groups.members():
        group = np.array([index for index in group if index not in absorbed])
        if not len(group):
            continue
        whole = group[~found.cut[group]]
        best = (whole if len(whole) else group)[np.argsort(-found.scores[whole if len(whole) else group])]
        boxes.append(found.boxes[best[0]] if len(whole) else around(found.boxes[group]))
        members.append(best)
    return Merged(np.array(boxes).reshape(-1, 4), members)


def around(boxes: np.ndarray) -> np.ndarray:
    """The box `(4,)` around boxes."""
    return np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))


def _one_to_one(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, threshold: float
) -> Iterator[tuple[int, int, float]]:
    """The best pairs, in which each detection is once at most."""
    rows, columns = np.nonzero((values >= threshold) & (values > 0))
    order = np.argsort(-values[rows, columns], kind="stable")
    taken_rows, taken_columns = set(), set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            yield int(first[row]), int(second[column]), float(values[row, column])


def _unconfirmed_pieces(found: Candidates, pairs: _Pairs, groups: "_Groups") -> set[int]:
    """Cut pieces that no other window agrees on, and most of which is in a larger box of another window."""
    alone = {group[0] for group in groups.members() if len(group) == 1 and found.cut[group[0]]}
    absorbed: set[int] = set()
    if not alone:
        return absorbed
    sizes = areas(found.boxes)
    for i, j, value in zip(*(part.tolist() for part in pairs.overlaps(over_smaller=True)), strict=True):
        piece, other = (i, j) if sizes[i] < sizes[j] else (j, i)
        if value > 0.5 and piece in alone and other not in absorbed:
            absorbed.add(piece)
    return absorbed


class _Groups:
    """Sets of detections that are one object, with one of each window at most."""

    def __init__(self, windows: np.ndarray):
        self._windows = windows.tolist()
        self._group = list(range(len(windows)))
        self._members = {index: [index] for index in self._group}

    def join(self, one: int, two: int) -> None:
        """Makes two groups one, unless both have a detection of the same window."""
        first, second = self._group[one], self._group[two]
        if first == second:
            return
        if len(self._members[first]) < len(self._members[second]):
            first, second = second, first
        seen = {self._windows[index] for index in self._members[first]}
        if any(self._windows[index] in seen for index in self._members[second]):
            return
        for index in self._members.pop(second):
            self._group[index] = first
            self._members[first].append(index)

    def members(self) -> Iterator[list[int]]:
        return iter(self._members.values())


def suppress(
    found: Candidates, windows: Sequence[Window], grids: Sequence[WindowGrid], options: MergeOptions
) -> Merged:
    """Suppresses non-maxima between windows: of detections whose IoU is above the threshold, the one with
    the best score stays as it is."""
    kept, boxes = _greedy(found, windows, grids, options, over_smaller=False)
    return Merged(boxes, [members[:1] for members in kept])


def merge_greedily(
    found: Candidates, windows: Sequence[Window], grids: Sequence[WindowGrid], options: MergeOptions
) -> Merged:
    """Merges greedily between windows: the one with the best score takes in all whose intersection, over the
    smaller of both areas, is above the threshold, and becomes the box around them."""
    kept, _ = _greedy(found, windows, grids, options, over_smaller=True)
    boxes = [around(found.boxes[members]) for members in kept]
    return Merged(np.array(boxes).reshape(-1, 4), kept)


def _greedy(
    found: Candidates,
    windows: Sequence[Window],
    grids: Sequence[WindowGrid],
    options: MergeOptions,
    over_smaller: bool,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Groups detections around the best ones; returns the members, and the box of the first of each."""
    first, second, value = _Pairs(found, windows, grids, options.class_wise).overlaps(over_smaller)
    close = value > options.threshold
    neighbors: dict[int, list[int]] = {}
    for i, j in zip(first[close].tolist(), second[close].tolist(), strict=True):
        neighbors.setdefault(i, []).append(j)
        neighbors.setdefault(j, []).append(i)
    taken = np.zeros(len(found), bool)
    members = []
    for index in np.argsort(-found.scores, kind="stable").tolist():
        if taken[index]:
            continue
        taken[index] = True
        joined = [other for other in neighbors.get(index, ()) if not taken[other]]
        taken[joined] = True
        members.append(np.array([index, *joined]))
    boxes = found.boxes[[group[0] for group in members]] if members else np.zeros((0, 4))
    return members, boxes


BOX_MERGERS: dict[str, Callable[..., Merged]] = {
    "match": merge_matched,
    "nms": suppress,
    "greedy": merge_greedily,
}


def check_merging(merging: str, threshold: float | None, class_wise: bool) -> MergeOptions:
    """
    Raises:
        ValueError: for an unknown one, or a threshold outside (0, 1).
    """
    if merging not in BOX_MERGERS:
        raise ValueError(f"merging={merging!r} is unknown. Choose from {', '.join(map(repr, BOX_MERGERS))}.")
    threshold = (0.3 if merging == "match" else 0.5) if threshold is None else threshold
    if not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ValueError(f"merge_threshold={threshold!r} must be between 0 and 1, such as 0.5.")
    return MergeOptions(threshold, class_wise)
