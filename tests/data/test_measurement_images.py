"""Pictures for measurements: written in bands, the same every time, and no easy prey for compression."""

import numpy as np
import pytest

from vit_hf.data.measurement_images import picture_bands, write_jpeg, write_tiff
from vit_hf.readers.opening import open_image


@pytest.mark.parametrize("side", [300, 1024])
def test_files_hold_the_picture(side, tmp_path):
    whole = np.concatenate(list(picture_bands(side)))
    assert whole.shape == (side, side, 3) and whole.dtype == np.uint8
    write_tiff(tmp_path / "a.tif", side)
    write_jpeg(tmp_path / "a.jpg", tmp_path / "a.tif")
    with open_image(tmp_path / "a.tif") as image:
        assert image.grids[0].tile_height == image.grids[0].tile_width == 256
        assert np.array_equal(image.read(0, 0, side, side), whole)
    with open_image(tmp_path / "a.jpg") as image:
        difference = image.read(0, 0, side, side).astype(int) - whole
    assert np.abs(difference).mean() < 6  # as much as the grain, which JPEG smooths
    sizes = [(tmp_path / name).stat().st_size / whole.nbytes for name in ("a.tif", "a.jpg")]
    assert sizes[0] > 0.4 and sizes[1] > 0.04


def test_there_is_something_to_select_and_seeds_differ():
    first, same, other = (np.concatenate(list(picture_bands(512, seed))) for seed in (0, 0, 1))
    assert np.array_equal(first, same) and not np.array_equal(first, other)
    blocks = first.reshape(32, 16, 32, 16, 3).astype(float)
    contrast = blocks.std((1, 3)).mean(-1)
    assert 0 < (contrast > 50).mean() < 0.5  # discs
    assert contrast.min() > 2  # grain everywhere
