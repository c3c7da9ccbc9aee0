"""A line of the result, and the file of them."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .intervals import mcnemar, paired_difference, wilson_interval
from .pareto import pareto_front


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
        behind_best, behind_best_high, p_value: accuracy less than that of the best row, how much less it may be by
            the 95 % interval of the paired difference, and of McNemar's test beside it.
        latency_ms: of one image, from decoded pixels to logits, median.
        images_per_s: at `batch_size`.
        peak_memory_mib: of one image, by how much memory grows.
        gflops_counted, gflops_formula: for an image; 2 for a multiply-add. The formula is of the transformer alone.
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
