"""The embedded benchmark: data sets that need no download."""

from .digit_canvas import DigitCanvas, Recipe, render
from .megapixel_digits import megapixel_digits, multi_hot


__all__ = ["DigitCanvas", "Recipe", "megapixel_digits", "multi_hot", "render"]
