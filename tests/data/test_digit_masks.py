"""Masks of the digits: where the ink is, and nowhere else."""

import numpy as np

from vit_hf.data.digits import add_digit_masks
from vit_hf.data.megapixel_digits import megapixel_digits


def test_masks_are_the_ink_of_the_digits():
    plain = megapixel_digits(
        size=160, num_noise=12, num_train=5, num_test=2, num_digits=3, digit_size=(20, 40)
    )
    masked = add_digit_masks(plain)
    assert masked["train"].column_names == [*plain["train"].column_names, "mask"]
    assert masked["train"]["label"] == plain["train"]["label"]
    for row in masked["train"].select([4, 1]):
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"])
        assert mask.shape == image.shape == (160, 160)
        elsewhere = np.ones(mask.shape, bool)
        for digit, (left, top, right, bottom) in zip(row["digits"], row["boxes"], strict=True):
            box = mask[top:bottom, left:right]
            assert set(np.unique(box)) == {0, 1 + digit}
            assert np.array_equal(box > 0, image[top:bottom, left:right] >= 64)
            elsewhere[top:bottom, left:right] = False
        assert image[elsewhere].any() and not mask[elsewhere].any()  # strokes are background
