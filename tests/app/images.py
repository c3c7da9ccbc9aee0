"""Pictures for the tests of the page."""

import numpy as np
import PIL.Image


def photo(height: int, width: int) -> PIL.Image.Image:
    """Noise on a ramp, so that patches differ."""
    noise = np.random.default_rng(0).normal(0, 30, (height, width, 3))
    ramp = np.linspace(40, 200, width)[None, :, None]
    return PIL.Image.fromarray((noise + ramp).clip(0, 255).astype(np.uint8))
