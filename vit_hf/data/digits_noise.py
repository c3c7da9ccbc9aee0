"""Distractors: what is drawn around the digits so that ink alone does not give them away.

P patterns, S samples along a curve, G = 28 pixels. A data set draws from one bank of patterns, and train and
test have different ones.
"""

from collections.abc import Callable
from functools import lru_cache
from math import comb

import numpy as np

from .digits import GLYPH_SIZE


NUM_PATTERNS = 50


def straight_strokes(generator: np.random.Generator) -> np.ndarray:
    """Crossings of two straight strokes, as in megapixel MNIST.

    Each pattern unites a stroke that leaves the top-left corner at up to 72 degrees with the stroke of another
    pattern, flipped one time in three along each axis; every pixel of it has its own intensity in [.8, 1]
    (Katharopoulos & Fleuret 2019, "Processing Megapixel Images with Deep Attention-Sampling Models").

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
