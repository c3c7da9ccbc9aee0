"""Kept patches of a video, drawn frame by frame."""

import numpy as np
import pytest
import torch

from tests.helpers.models import tiny_config
from vit_hf import (
    AdaptiveViTForImageClassification,
    AdaptiveViTForVideoClassification,
    explain,
    explain_video,
)
from vit_hf.explanations.explain import FRAME_SIZE, GAP, OUTLINE


def test_outlines_are_where_patches_were_kept():
    config = tiny_config(num_frames=6, patch_selector="motion", num_selected_patches=2)
    model = AdaptiveViTForVideoClassification(config).train()
    video = torch.full((6, 3, 32, 48), 0.5)
    video[1, :, 8:16, 40:48] = 1  # moves in the first tubelet
    video[4, :, 0:8, 0:8] = 0  # and in the third
    strip = explain_video(model, video, columns=2)
    assert model.training
    width, height = FRAME_SIZE // 32 * 48, FRAME_SIZE
    assert strip.size == (2 * width + GAP, 2 * height + GAP)
    pixels = np.asarray(strip)
    marked = (pixels == OUTLINE).all(-1)
    patch = FRAME_SIZE // 4
    first, second, third = marked[:height, :width], marked[:height, -width:], marked[-height:, :width]
    assert not second.any()
    for frame, row, column in ((first, 1, 5), (third, 0, 0)):
        rows, columns = np.nonzero(frame)
        assert (rows.min(), rows.max()) == (row * patch, (row + 1) * patch - 1)
        assert (columns.min(), columns.max()) == (column * patch, (column + 1) * patch - 1)
    # Kept patches are as light as they were, and the others dimmer.
    kept, dropped = pixels[patch + patch // 2, 5 * patch + patch // 2], pixels[patch // 2, patch // 2]
    assert (kept > dropped).all()


def test_what_cannot_be_drawn_is_refused():
    video = AdaptiveViTForVideoClassification(tiny_config(num_frames=6))
    with pytest.raises(ValueError, match="explain_video"):
        explain(video, None, [])
    with pytest.raises(ValueError, match="model is for images"):
        explain_video(AdaptiveViTForImageClassification(tiny_config()), torch.zeros(6, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(T, C, H, W\)"):
        explain_video(video, torch.zeros(1, 6, 3, 32, 32))
