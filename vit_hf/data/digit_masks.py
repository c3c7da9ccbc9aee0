"""Masks of the digits on a canvas, rendered when they are read, as the canvases themselves."""

import warnings
from dataclasses import dataclass, field

import datasets
import numpy as np
import PIL.Image
from datasets.features.features import register_feature

from .digit_canvas import RECIPE_PREFIX, DigitCanvas, Recipe, render
from .digits import DIGIT_NAMES, load_digits


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
