"""Rows of the result, what a number of images can tell of an accuracy, and which strategies are worth
considering."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Places of the points that no other one beats: none has as low a cost and as high a value, and is better
    in one.

    Args:
        costs: less is better.
        values: more is better.

    Returns:
        Places, by ascending cost. Of equal points all are among them, or none.
    """
    front: list[int] = []
    best, best_cost = -float("inf"), -float("inf")
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -values[place])):
        if values[place] > best or (values[place], costs[place]) == (best, best_cost):
            front.append(place)
            best, best_cost = values[place], costs[place]
    return front


def wilson_interval(num_right: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a share (Wilson, 1927), which hold for few images and shares near 0 and 1 as well.

    Raises:
        ValueError: without images, or for a number of right ones that does not fit.
    """
    if num_images < 1 or not 0 <= num_right <= num_images:
        raise ValueError(f"{num_right} of {num_images} images cannot be right")
    interval = binomtest(num_right, num_images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(right: Sequence[bool], other: Sequence[bool]) -> float:
    """How likely two equally good classifiers are to differ by so much on the same images: McNemar's test
    (1947), exact.

    Args:
        right, other: for each image, whether the one and the other were right.

    Returns:
        p, two-sided; 1 where they were right about the same images.

    Raises:
        ValueError: for different numbers of images.
    """
    gained, lost = _discordant(right, other)
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_difference(
    right: Sequence[bool], other: Sequence[bool], confidence: float = 0.95
) -> tuple[float, float, float]:
    """By how much more often the one was right than the other on the same images, and bounds of that.

    The interval is Wald's with half an image added to each cell (Agresti & Min, 2005).

    Raises:
        ValueError: for different numbers of images, or none.
    """
    gained, lost = _discordant(right, other)
    number = len(right)
    middle = (gained - lost) / (number + 2)
    spread = ((gained + lost + 1) - (gained - lost) ** 2 / (number + 2)) ** 0.5 / (number + 2)
    margin = float(norm.ppf((1 + confidence) / 2)) * spread
    return (gained - lost) / number, middle - margin, middle + margin


def _discordant(right: Sequence[bool], other: Sequence[bool]) -> tuple[int, int]:
    """Images about which only the one, and only the other was right."""
    if len(right) != len(other) or not len(right):
        raise ValueError(f"{len(right)} and {len(other)} images cannot be paired")
    one, two = np.asarray(right, dtype=bool), np.asarray(other, dtype=bool)
    return int((one & ~two).sum()), int((two & ~one).sum())


# Below this two strategies are told apart.
SIGNIFICANT = 0.05


@dataclass
class Row:
    """One way of using the checkpoint, measured; or the reason why it could not be.

    Attributes:
        name: of the strategy, and of the answer if it gives several.
        strategy: its line in `STRATEGIES`.
        selector: that chose patches before the encoder, or None.
        budget: number of patches it is to be compared at; None for no particular one.
        adapt_steps: of fine-tuning before it was measured.
        num_images, accuracy, accuracy_low, accuracy_high: with its 95 % interval (Wilson).
        behind_best, behind_best_high, p_value: accuracy less than that of the best row, how much less it may
            be by the 95 % interval of the paired difference, and of McNemar's test beside it.
        latency_ms: of one image, from decoded pixels to logits, median.
        images_per_s: at `batch_size`.
        peak_memory_mib: of one image, by how much memory grows.
        gflops_counted, gflops_formula: for an image; 2 for a multiply-add. The formula is of the transformer
            alone.
        tokens, tokens_out: patches that enter the encoder and that leave it, in all tiles together.
        on_front_of_latency, on_front_of_gflops: whether nothing is as accurate for less.
        reason: why there are no figures.
        right: for each image whether the answer was right.
        variant: name of the strategy, without that of the answer.
        pictures: files that show what was looked at in the examples.
        predicted: what was answered about them.
    """

    name: str
    strategy: str
    selector: str | None = None
    budget: int | None = None
    adapt_steps: int = 0
    num_images: int = 0
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    behind_best: float | None = None
    behind_best_high: float | None = None
    p_value: float | None = None
    latency_ms: float | None = None
    images_per_s: float | None = None
    batch_size: int | None = None
    peak_memory_mib: float | None = None
    gflops_counted: float | None = None
    gflops_formula: float | None = None
    tokens: int | None = None
    tokens_out: int | None = None
    on_front_of_latency: bool = False
    on_front_of_gflops: bool = False
    reason: str | None = None
    right: list[bool] = field(default_factory=list, repr=False)
    variant: str = ""
    pictures: list[str] = field(default_factory=list, repr=False)
    predicted: list[str] = field(default_factory=list, repr=False)

    def __post_init__(self):
        if self.right:
            self.num_images = len(self.right)
            self.accuracy = sum(self.right) / self.num_images
            self.accuracy_low, self.accuracy_high = wilson_interval(sum(self.right), self.num_images)

    def as_good_as(self, other: "Row") -> bool:
        """Whether these images cannot tell the two apart."""
        return mcnemar(self.right, other.right) >= SIGNIFICANT


# Columns of the file: everything that is a number or a word.
COLUMNS = [entry.name for entry in fields(Row)][: [entry.name for entry in fields(Row)].index("right")]


def measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.accuracy is not None]


def best_of(rows: Iterable[Row]) -> Row:
    """The most accurate; of equals the fastest."""
    return max(rows, key=lambda row: (row.accuracy, -(row.latency_ms or 0)))


def mark(rows: list[Row]) -> None:
    """Compares rows with the best, and finds the fronts."""
    known = measured(rows)
    if not known:
        return
    best = best_of(known)
    for row in known:
        row.behind_best, _, row.behind_best_high = paired_difference(best.right, row.right)
        row.p_value = mcnemar(best.right, row.right)
    for flag, cost in (("on_front_of_latency", "latency_ms"), ("on_front_of_gflops", "gflops_counted")):
        priced = [row for row in known if getattr(row, cost) is not None]
        front = pareto_front([getattr(row, cost) for row in priced], [row.accuracy for row in priced])
        for place, row in enumerate(priced):
            setattr(row, flag, place in front)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """CSV with a header, six digits."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in asdict(row).items()})


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
