"""Rows of the result, statistics of accuracies, and the Pareto front."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Finds the points that no other point dominates, by lower or equal cost and higher or equal value.

    Args:
        costs: lower is better.
        values: higher is better.

    Returns:
        Indices, by ascending cost. Equal points are all among them, or none is.
    """
    front: list[int] = []
    best, best_cost = -float("inf"), -float("inf")
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], -values[index])):
        if values[index] > best or (values[index], costs[index]) == (best, best_cost):
            front.append(index)
            best, best_cost = values[index], costs[index]
    return front


def wilson_interval(num_right: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Computes bounds of a proportion (Wilson, 1927), valid for few images and near 0 and 1, too.

    Raises:
        ValueError: without images, or if `num_right` is not between 0 and `num_images`.
    """
    if num_images < 1 or not 0 <= num_right <= num_images:
        raise ValueError(f"{num_right} of {num_images} images cannot be right")
    interval = binomtest(num_right, num_images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(right: Sequence[bool], other: Sequence[bool]) -> float:
    """Computes the p-value of McNemar's exact test (1947) of two classifiers on the same images.

    Args:
        right, other: for each image, whether the first and the second classifier were right.

    Returns:
        The two-sided p-value; 1 if both were right about the same images.

    Raises:
        ValueError: for different numbers of images.
    """
    gained, lost = _discordant(right, other)
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def paired_difference(
    right: Sequence[bool], other: Sequence[bool], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Computes the difference of two accuracies on the same images, and its bounds.

    The interval is Wald's with half an image added to each cell (Agresti & Min, 2005).

    Raises:
        ValueError: for different numbers of images, or none.
    """
    gained, lost = _discordant(right, other)
    number = len(right)
    low, high = _difference_interval(gained, lost, number, confidence)
    return (gained - lost) / number, low, high


def _difference_interval(gained: float, lost: float, number: float, confidence: float) -> tuple[float, float]:
    middle = (gained - lost) / (number + 2)
    spread = ((gained + lost + 1) - (gained - lost) ** 2 / (number + 2)) ** 0.5 / (number + 2)
    margin = float(norm.ppf((1 + confidence) / 2)) * spread
    return middle - margin, middle + margin


def images_needed(
    right: Sequence[bool], other: Sequence[bool], margin: float, confidence: float = 0.95
) -> int | None:
    """Estimates how many images bring the upper bound of `paired_difference` down to a margin.

    The fractions of images that only one of the two predicts correctly are taken from these images; a second
    classifier that was more accurate by chance counts as equally accurate.

    Args:
        right, other: for each image, whether the first and the second classifier were right.
        margin: largest loss of accuracy, as a fraction.

    Returns:
        The number of images; None if the loss on these images is not below the margin, so that no number is
        enough.

    Raises:
        ValueError: for different numbers of images, or none.
    """
    gained, lost = _discordant(right, other)
    number = len(right)
    disagreement, loss = (gained + lost) / number, max(0.0, (gained - lost) / number)
    if loss >= margin:
        return None

    def is_enough(images: int) -> bool:
        one, two = (images * (disagreement + sign * loss) / 2 for sign in (1, -1))
        return _difference_interval(one, two, images, confidence)[1] <= margin

    high = 1
    while not is_enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def _discordant(right: Sequence[bool], other: Sequence[bool]) -> tuple[int, int]:
    """Counts the images about which only the first, and only the second, was right."""
    if len(right) != len(other) or not len(right):
        raise ValueError(f"{len(right)} and {len(other)} images cannot be paired")
    one, two = np.asarray(right, dtype=bool), np.asarray(other, dtype=bool)
    return int((one & ~two).sum()), int((two & ~one).sum())


def chance_of(num_classes: int, is_multi_label: bool) -> float:
    """Returns the accuracy of guessing; close to 0 for multi-label models, where all labels must be right."""
    return 0.5**num_classes if is_multi_label else 1 / num_classes


# Two strategies differ if p is below this.
SIGNIFICANT = 0.05


@dataclass
class Row:
    """Measurements of one strategy, or the reason why there are none.

    Attributes:
        name: name of the strategy, and of the output if it has several.
        strategy: its key in `STRATEGIES`.
        selector: selector of patches before the encoder, or None.
        budget: number of patches to compare it at; None for no particular one.
        adapt_steps: steps of fine-tuning before the measurement.
        num_images, accuracy, accuracy_low, accuracy_high: accuracy with its 95 % interval (Wilson).
        behind_best, behind_best_high, p_value: difference to the accuracy of the best row, its upper bound by
            the 95 % interval of the paired difference, and p of McNemar's test.
        latency_ms: median for one image, from decoded pixels to logits.
        images_per_s: speed at `batch_size`.
        peak_memory_mib: growth of memory for one image.
        gflops_counted, gflops_formula: for one image, 2 for a multiply-add. The formula covers only the
            transformer.
        tokens, tokens_out: patches that enter the encoder and tokens that leave it, summed over tiles.
        on_front_of_latency, on_front_of_gflops: True if no other row is as accurate for less.
        behind_all, behind_all_low, behind_all_high, p_value_all: difference to the accuracy of all patches,
            its 95 % interval, and p of McNemar's test; only where a number of patches was chosen.
        within_margin: "shown", "estimated" or "no", whether that difference is within the margin; see
            `choosing.py`.
        reason: reason why there are no figures.
        right: for each image, whether the prediction was right.
        variant: name of the strategy, without that of the output.
        pictures: files that show what was computed on in the examples.
        predicted: predictions for the examples.
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
    behind_all: float | None = None
    behind_all_low: float | None = None
    behind_all_high: float | None = None
    p_value_all: float | None = None
    within_margin: str | None = None
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
        """Returns True if the two rows do not differ significantly on these images."""
        return mcnemar(self.right, other.right) >= SIGNIFICANT


# Columns of the file: all numbers and words.
COLUMNS = [entry.name for entry in fields(Row)][: [entry.name for entry in fields(Row)].index("right")]


def measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.accuracy is not None]


def best_of(rows: Iterable[Row]) -> Row:
    """Returns the most accurate row, and the fastest among equals."""
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
        for index, row in enumerate(priced):
            setattr(row, flag, index in front)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Writes CSV with a header and six digits."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in asdict(row).items()})


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def digits(value: float) -> str:
    """Formats three significant digits, or all before the decimal point."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
