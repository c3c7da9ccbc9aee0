"""What so many images can tell of an accuracy, and of the difference of two."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, norm


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
    """How likely two equally good classifiers are to differ by so much on the same images: McNemar's test (1947), exact.

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
