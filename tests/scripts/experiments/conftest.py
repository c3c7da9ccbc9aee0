"""Photos for the experiments."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest


# Left and top of the only thing to see in each of two grey photos, a square of 16 pixels.
TREES = {"wood": (32, 64), "meadow": (144, 16)}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two grey photos, of 128x128 and 192x128 pixels, with a checkerboard and its Pascal VOC box in each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for (name, (left, top)), width in zip(TREES.items(), (128, 192), strict=True):
        pixels = np.full((128, width, 3), 128, dtype=np.uint8)
        pixels[top : top + 16, left : left + 16] = 255 * (np.indices((16, 16)) // 4).sum(0)[..., None] % 510
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
        sides = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{left + 16}</xmax><ymax>{top + 16}</ymax>"
        (folder / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename>"
            f"<object><bndbox>{sides}</bndbox></object></annotation>"
        )
    return folder
