"""The embedded benchmark: data sets that need no download."""

from .digit_canvas import DigitCanvas, Recipe, render
from .digit_masks import DigitMask, add_masks, render_mask
from .megapixel_digits import megapixel_digits, multi_hot
from .moving_digits import MovingDigits


__all__ = [
    "DigitCanvas",
    "DigitMask",
    "MovingDigits",
    "Recipe",
    "add_masks",
    "megapixel_digits",
    "multi_hot",
    "render",
    "render_mask",
]
